# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The error that the person at the terminal reads."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


class MlError(Exception):
    """A problem that the person has to solve; the message says how."""


def reason(error: Exception, path: Path | str = "") -> str:
    """Return the reason of an error in words, for a message that names PATH.

    Python's own text of a failed system call has a number, and the path once more. The path of the
    system call is only added if it is another one, such as a parent folder.
    """
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8 text"
    if isinstance(error, KeyError):
        return f"{error.args[0]} is missing"
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    failed = error.filename
    if isinstance(failed, bytes):
        failed = failed.decode("utf-8", "surrogateescape")
    if not isinstance(failed, str) or failed in ("", str(path)):
        return error.strerror
    return f"{failed}: {error.strerror}"


def suggest(word: str, known: Iterable[str]) -> str:
    """Return a sentence with the most similar known word, else with all known words."""
    import difflib

    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1)
    return f"Did you mean {near[0]}?" if near else f"Choose one of: {', '.join(names) or 'none'}"
