# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Errors of ml give their reason in words, and each path once."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest
from ansible_collections.slipway.host.plugins.module_utils.ml import settings
from ansible_collections.slipway.host.plugins.module_utils.ml.errors import MlError, reason

PROGRAM = Path(settings.__file__).parent


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/a/b"), "Permission denied"),
        (PermissionError(errno.EACCES, "Permission denied", b"/a/b"), "Permission denied"),
        (PermissionError(errno.EACCES, "Permission denied", "/a"), "/a: Permission denied"),
        (OSError(errno.EXDEV, "Invalid link", "/a/b", 0, "/c"), "Invalid link"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "No space left on device"),
        (OSError("not a file"), "not a file"),
        (ValueError("embedded null byte"), "embedded null byte"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "not UTF-8 text"),
        (KeyError("aliases"), "aliases is missing"),
    ],
)  # fmt: skip
def test_the_reason_of_an_error_is_in_words(error: Exception, words: str) -> None:
    assert reason(error, "/a/b") == words
    assert reason(error, Path("/a/b")) == words


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda file: file.mkdir(), "Is a directory"),
        (lambda file: file.symlink_to(file), "Too many levels of symbolic links"),
        (lambda file: file.write_bytes(b"\xff"), "not UTF-8 text"),
    ],
)
def test_a_message_has_each_path_once(tmp_path: Path, make: object, words: str) -> None:
    file = tmp_path / "aliases.json"
    assert callable(make)
    make(file)
    with pytest.raises(MlError, match=f"^cannot read {re.escape(str(file))}: {words}[.] Run"):
        settings.read_host(file)


# What Python says of an error of the system, put into a message as it is.
RAW = re.compile(r"(MlError|ApiError)\([^)]*: \{error\}")


@pytest.mark.parametrize("file", sorted(PROGRAM.glob("*.py")), ids=lambda file: file.name)
def test_no_message_repeats_the_text_of_python(file: Path) -> None:
    found = RAW.findall(file.read_text(encoding="utf-8"))
    # An answer that is no JSON or no archive: not an error of the system.
    assert len(found) == {"api.py": 1, "engine.py": 1}.get(file.name, 0)
