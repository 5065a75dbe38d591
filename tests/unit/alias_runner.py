# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs aliases and `ml` for the tests: one forked process for each line of standard input.

A line is a run as JSON, the answer is its exit status; a negative number is the signal that ended
the process. Only the modules of an alias are imported, so that a process is forked quickly.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

NOBODY = 65534
# The modules of the program, and those that it imports late: the user of an example may not have
# the rights to read the interpreter's files.
MODULES = (
    *(
        "ml.chat",
        "ml.commands",
        "ml.display",
        "ml.images",
        "ml.listing",
        "ml.start",
        "encodings.latin_1",
    ),
    *("_strptime", "configparser", "datetime", "difflib", "encodings.idna", "hashlib", "shlex"),
    *("shutil", "socketserver", "subprocess", "tarfile", "tempfile", "textwrap"),
    "urllib.parse",
)


def serve(limit_seconds: int) -> None:
    """Run the program for each line of standard input."""
    for module in MODULES:
        import_module(module)
    main = import_module("ml.main")
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            status = 99
            try:
                signal.alarm(limit_seconds)
                status = run(main, json.loads(line))
                sys.stdout.flush()
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else 98
            except OSError:
                # The interpreter ends with this status if the output cannot be written.
                status = 120
            finally:
                os._exit(status)
        _, result = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(result), flush=True)


def run(main: Any, example: dict[str, Any]) -> int:
    """Run the program in this process as an example says; return its exit status."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    messages = os.open(example["messages"], flags, 0o666)
    output = os.open(example["output"], flags, 0o666)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(messages, 2)
    os.closerange(3, 20)
    os.chdir(example["folder"])
    if example["remove_folder"]:
        Path(example["folder"]).rmdir()
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    os.environ.clear()
    os.environ.update(example["variables"])
    for descriptor in example["closed"]:
        os.close(descriptor)
    # As a new interpreter opens its standard streams.
    encoding = "latin-1" if "8859" in example["variables"].get("LC_ALL", "") else "utf-8"
    streams = {
        name: None
        if descriptor in example["closed"]
        else open(  # noqa: SIM115
            descriptor, "w", buffering=buffering, encoding=encoding, errors=errors, closefd=False
        )
        for name, descriptor, buffering, errors in (
            ("stdout", 1, -1, "strict"),
            ("stderr", 2, 1, "backslashreplace"),
        )
    }
    sys.stdout, sys.stderr = streams["stdout"], streams["stderr"]
    declaration = Path(example["declaration"])
    main.settings.read_host = functools.partial(main.settings.read_host, declaration)
    status: int = main.main(example["program"], example["words"])
    return status


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    serve(int(sys.argv[2]))
