# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Work with the rights of a user, so that root reaches no more than the user does.

This file travels to the host with the survey, so it uses the standard library of Python 3.9 alone
and imports late.
"""

from __future__ import annotations

import os
from contextlib import contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any


@contextmanager
def acting_as(name: str) -> Iterator[None]:
    """Do the work of the block with the rights of a user, and take root's back afterwards.

    Real and saved user ID stay root's, so the user can neither signal nor trace the process. Does
    nothing where the process is not root's: then it has no rights to give up. Raise KeyError for an
    unknown user.
    """
    import pwd

    entry = pwd.getpwnam(name)
    if os.geteuid() != 0 or entry.pw_uid == 0:
        yield
        return
    groups, gid = os.getgroups(), os.getegid()
    os.setgroups(os.getgrouplist(name, entry.pw_gid))
    os.setegid(entry.pw_gid)
    os.seteuid(entry.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(gid)
        os.setgroups(groups)


def as_user(name: str, work: Callable[[], Any], seconds: float = 30) -> Any:
    """Return what WORK returns, JSON data, when done with a user's rights within SECONDS.

    A user may mount a file system of his own that never answers him, and nobody else. So the work
    is done by a child process, which is killed after the time: Raise TimeoutError then, and OSError
    where the work fails without a result.
    """
    import json
    import select
    import signal
    import time

    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            try:
                with acting_as(name):
                    result = [work(), ""]
            except Exception as error:
                result = [None, f"{type(error).__name__}: {error}"]
            with open(writing, "wb") as stream:
                stream.write(json.dumps(result).encode())
        finally:
            os._exit(0)
    os.close(writing)
    chunks: list[bytes] = []
    end = time.monotonic() + seconds
    try:
        while select.select([reading], [], [], max(0, end - time.monotonic()))[0]:
            chunk = os.read(reading, 1 << 16)
            if not chunk:
                break
            chunks.append(chunk)
        else:
            raise TimeoutError(0, f"no answer within {seconds:.0f} seconds")
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        # A child that the kernel does not end is not waited for.
        os.waitpid(child, 0 if chunks else os.WNOHANG)
    result, why = json.loads(b"".join(chunks) or b'[null, "it was ended"]')
    if why:
        raise OSError(0, f"the work with the rights of {name} failed ({why})")
    return result
