# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The user's token for the pages of containers.

Each user has one token on each host, in a file that only the user can read.  Containers mount the
file, so the token is in no command line, no ``docker inspect``, and no log.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from .errors import MlError

# The path of the token in the container, for Jupyter and other servers.
INSIDE = "/run/slipway/token"


def token_file() -> Path:
    """Return the path of the user's token."""
    folder = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(folder).expanduser() / "slipway" / "token"


def read_token(other: Path | None = None) -> str:
    """Return the token in the user's file or in an OTHER file.  Raise MlError without a token."""
    path = other or token_file()
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        remedy = "" if other else ". The next start of an alias creates it"
        raise MlError(f"cannot read {path}: {error}{remedy}") from error


def ensure_token() -> Path:
    """Create the user's token if there is none; return its path."""
    path = token_file()
    if path.exists():
        return path
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = path.with_name(f"{path.name}.{os.getpid()}")
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            # No newline: Jupyter reads the whole file as the token.
            stream.write(secrets.token_hex(24))
        try:
            # Unlike a rename, this does not replace the token of another start at the same time.
            path.hardlink_to(fresh)
        except FileExistsError:
            pass
        finally:
            fresh.unlink()
    except OSError as error:
        raise MlError(f"cannot write your token: {error}") from error
    return path
