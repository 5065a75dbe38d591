# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Default ACLs: what is compared, what is kept, and that the kernel takes what is written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.state import acl
from ansible_collections.slipway.host.plugins.module_utils.state import files as state_files
from ansible_collections.slipway.host.plugins.modules import files

from tests.unit.conftest import RunModule
from tests.unit.test_modules import declared

# As setfacl -d -m u::rwx,g::rwx,o::--- writes it on Debian 13.
TEAM = "0200000001000700ffffffff04000700ffffffff20000000ffffffff"
# The same, with u:1002:r-x and the mask that comes with it.
GUEST = "0200000001000700ffffffff02000500ea03000004000700ffffffff10000700ffffffff20000000ffffffff"


def test_the_written_acl_equals_that_of_setfacl() -> None:
    assert acl.packed(acl.wanted("0770", {})).hex() == TEAM
    assert acl.packed(acl.wanted("0770", acl.parse(GUEST))).hex() == GUEST


@pytest.mark.parametrize(
    ("mode", "found", "change"),
    [
        ("0770", TEAM, None),
        ("0770", GUEST, None),
        (
            "0775",
            TEAM,
            (
                "new files: owner rwx, group rwx, others ---",
                "new files: owner rwx, group rwx, others r-x",
            ),
        ),
        ("0770", "", ("no default ACL", "new files: owner rwx, group rwx, others ---")),
        # A mask that takes from the group what the group's own entry gives it.
        (
            "0770",
            GUEST.replace("10000700", "10000500"),
            (
                "new files: owner rwx, group rwx, mask r-x, others ---",
                "new files: owner rwx, group rwx, mask rwx, others ---",
            ),
        ),
    ],
)
def test_a_difference_is_readable_text(mode: str, found: str, change: Any) -> None:
    assert acl.difference(mode, found) == change


@pytest.mark.parametrize("text", ["01000000", "0200000001", "02"])
def test_an_invalid_acl_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="not an ACL of version 2"):
        acl.parse(text)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return where a folder may be on a file system that keeps ACLs."""
    if state_files.ask_acl(str(tmp_path)) is None:
        pytest.skip("the file system of the tests' folder does not support POSIX ACLs")
    return tmp_path / "shared"


def test_a_folder_gets_its_acl_once_with_any_umask(run_module: RunModule, folder: Path) -> None:
    wanted = declared(folder, state="directory", mode="2770", default_acl="0770")
    assert run_module(files, check=True, files=wanted)["changed"] and not folder.exists()
    assert run_module(files, files=wanted)["changed"]
    assert not run_module(files, files=wanted)["changed"]
    assert state_files.ask_acl(str(folder)) == TEAM
    umask = os.umask(0o077)
    try:
        (folder / "file").touch()
    finally:
        os.umask(umask)
    assert (folder / "file").stat().st_mode & 0o777 == 0o660
    os.removexattr(folder, acl.ATTRIBUTE)
    again = run_module(files, files=wanted)
    assert "no default ACL, should be new files: owner rwx" in again["diff"][0]["prepared"]
    assert state_files.ask_acl(str(folder)) == TEAM
    assert (folder / "file").exists()


@pytest.mark.usefixtures("only_root_writes")
def test_a_link_in_place_of_the_folder_is_kept(run_module: RunModule, folder: Path) -> None:
    folder.symlink_to("/elsewhere")
    result = run_module(files, files=declared(folder, state="directory", default_acl="0770"))
    assert result["failed"] and "found a link; expected a folder" in result["msg"]
    assert folder.is_symlink()


def test_a_file_system_without_acls_is_reported(
    run_module: RunModule, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.mkdir()
    monkeypatch.setitem(state_files.ASKS, "acls", lambda paths, _reply: dict.fromkeys(paths))
    result = run_module(files, files=declared(folder, state="directory", default_acl="0770"))
    assert result["failed"] and "does not support POSIX ACLs" in result["msg"]
    assert "acl: false" in result["msg"]
