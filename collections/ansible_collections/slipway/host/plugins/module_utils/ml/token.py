# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The user's token for the pages of containers.

Each user has one token on each host, in a file that only the user can read.  Containers mount the
file, so the token is in no command line, no ``docker inspect``, and no log.
"""

from __future__ import annotations

import os
from pathlib import Path

from .caller import user_folder
from .errors import MlError, reason

# The path of the token in the container, for Jupyter and other servers.
INSIDE = "/run/slipway/token"


def token_file() -> Path:
    """Return the path of the user's token."""
    return user_folder("XDG_STATE_HOME", ".local/state") / "slipway" / "token"


def read_token(service_file: Path | None = None) -> str:
    """Return the user's token, or the token in the file of a service.

    Raise MlError if there is no token.
    """
    path = service_file or token_file()
    try:
        if path.exists() and not path.is_file():
            raise OSError("not a file")
        return path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        remedy = "" if service_file else ". The next start of an alias creates it"
        raise MlError(f"cannot read {path}: {reason(error, path)}{remedy}") from error


def ensure_token() -> Path:
    """Create the user's token if it is missing; return its path."""
    path = token_file()
    try:
        if path.exists():
            return path
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        with os.fdopen(
            os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w"
        ) as stream:
            # No newline: Jupyter reads the whole file as the token.
            stream.write(os.urandom(24).hex())
        try:
            # Unlike a rename, this does not replace the token of another start at the same time.
            path.hardlink_to(temporary)
        except FileExistsError:
            pass
        finally:
            temporary.unlink()
    except OSError as error:
        raise MlError(f"cannot write your token: {reason(error)}") from error
    return path
