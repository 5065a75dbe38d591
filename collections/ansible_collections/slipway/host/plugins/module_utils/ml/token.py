# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The user's token for the pages that containers serve.

One a user and host, in a file that only the user can read.  Containers get the file, not its
content: so it is in no command line, no ``docker inspect``, and no log.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from .errors import MlError

# Where Jupyter and other servers find it in the container.
INSIDE = "/run/slipway/token"


def token_file() -> Path:
    """Return where the user's token stands."""
    folder = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(folder).expanduser() / "slipway" / "token"


def read_token(other: Path | None = None) -> str:
    """Return the user's token, or that in an OTHER file.  Raise MlError where there is none."""
    path = other or token_file()
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        how = "" if other else "; the next start of an alias makes it anew"
        raise MlError(f"{path} cannot be read ({error}){how}") from error


def ensure_token() -> Path:
    """Make the user's token where there is none; return where it stands."""
    path = token_file()
    if path.exists():
        return path
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = path.with_name(f"{path.name}.{os.getpid()}")
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            # No newline: Jupyter takes the file as it is.
            stream.write(secrets.token_hex(24))
        try:
            # Unlike a rename, this leaves a token alone that another start made meanwhile.
            path.hardlink_to(fresh)
        except FileExistsError:
            pass
        finally:
            fresh.unlink()
    except OSError as error:
        raise MlError(f"your token cannot be written: {error}") from error
    return path
