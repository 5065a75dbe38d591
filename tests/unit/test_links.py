# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Links that a role owns: what differs, what is in the way, and the module that makes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.slipway.host.plugins.module_utils.state import links as state_links
from ansible_collections.slipway.host.plugins.modules import links

from tests.unit import survey

TARGET = "/usr/local/lib/slipway/ml"
ENTRY = {"folder": "/bin", "target": TARGET, "names": ["ml", "lab"]}


def changes(found: dict[str, str] | None) -> list[tuple[str, str]]:
    answer = {"engine": None, "links": {"/bin": found}}
    return [(d.found, d.expected) for d in survey.differences({"links": [ENTRY]}, answer)]


@pytest.mark.parametrize(
    ("found", "differences"),
    [
        pytest.param({"ml": TARGET, "lab": TARGET}, [], id="as declared"),
        pytest.param(
            {"ml": TARGET, "lab": TARGET, "mine": "", "other": "/x"}, [], id="what others have"
        ),
        pytest.param({"ml": TARGET}, [("lab is missing", f"a link to {TARGET}")], id="missing"),
        pytest.param(
            None,
            [("lab is missing", f"a link to {TARGET}"), ("ml is missing", f"a link to {TARGET}")],
            id="no folder",
        ),
        pytest.param(
            {"ml": TARGET, "lab": TARGET, "old": TARGET},
            [("old is there", "removed")],
            id="of nobody",
        ),
    ],
)
def test_missing_and_stale_links_are_differences(
    found: dict[str, str] | None, differences: list[tuple[str, str]]
) -> None:
    assert changes(found) == differences


@pytest.mark.parametrize(
    ("leads", "words"), [("", "something that is not a link"), ("/x", "a link to /x")]
)
def test_an_obstacle_is_a_conflict(leads: str, words: str) -> None:
    answer = {"links": {"/bin": {"lab": leads}}}
    found = survey.compare({"": {"links": [ENTRY]}}, answer)[""]
    (conflict,) = found.conflicts
    assert (conflict.kind, conflict.name) == ("links", "/bin/lab")
    assert f"/bin/lab: found {words}; expected a link to {TARGET}" in conflict.reason
    # The other link is still a difference.
    assert [one.found for one in found.differences] == ["ml is missing"]


def test_a_hidden_command_is_a_conflict() -> None:
    owned = {"links": [{**ENTRY, "unhidden": ["/usr/bin"]}]}
    assert survey.question([owned])["files"] == ["/usr/bin/lab", "/usr/bin/ml"]
    files: dict[str, Any] = {"/usr/bin/lab": None, "/usr/bin/ml": None}
    answer = {"links": {"/bin": {}}, "files": files}
    assert len(survey.differences(owned, answer)) == 2
    files["/usr/bin/lab"] = ["file", "0755", "root", "root", "0"]
    found = survey.compare({"": owned}, answer)[""]
    assert "hide the existing command /usr/bin/lab" in found.conflicts[0].reason
    assert [one.found for one in found.differences] == ["ml is missing"]


def test_the_probe_says_where_names_lead(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("/anywhere")
    assert state_links.ask_links(str(tmp_path)) == {"file": "", "link": "/anywhere"}
    assert state_links.ask_links(str(tmp_path / "none")) is None
    answer = survey.answer({"links": [str(tmp_path)]})
    assert answer["links"] == {str(tmp_path): {"file": "", "link": "/anywhere"}}


# The module.


def run(capsys: pytest.CaptureFixture[str], **arguments: Any) -> dict[str, Any]:
    with patch_module_args(arguments), pytest.raises(SystemExit):
        links.main()
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a link of nobody, one of somebody else, and a file."""
    found = tmp_path / "bin"
    found.mkdir()
    (found / "old").symlink_to(TARGET)
    (found / "other").symlink_to("/elsewhere")
    (found / "mine").write_text("mine")
    return found


def test_only_declared_links_are_created_and_removed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = [{"folder": str(folder), "target": TARGET, "names": ["ml", "lab"]}]
    before = sorted(folder.iterdir())
    checked = run(capsys, links=wanted, _ansible_check_mode=True)
    assert sorted(folder.iterdir()) == before
    done = run(capsys, links=wanted)
    assert {key: checked[key] for key in ("changed", "made", "removed", "diff")} == {
        key: done[key] for key in ("changed", "made", "removed", "diff")
    }
    assert done["changed"]
    assert done["made"] == [f"{folder}/ml", f"{folder}/lab"]
    assert done["removed"] == [f"{folder}/old"]
    assert "lab is missing" in done["diff"]["prepared"]
    assert sorted(path.name for path in folder.iterdir()) == ["lab", "mine", "ml", "other"]
    assert (folder / "lab").readlink() == Path(TARGET)
    assert run(capsys, links=wanted)["changed"] is False


def test_a_missing_folder_is_created(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = [{"folder": str(tmp_path / "a/b"), "target": TARGET, "names": ["ml"]}]
    assert run(capsys, links=wanted)["changed"]
    assert (tmp_path / "a/b/ml").is_symlink()


@pytest.mark.parametrize("taken", ["name", "system"])
def test_an_existing_name_does_not_stop_other_links(
    folder: Path, capsys: pytest.CaptureFixture[str], taken: str
) -> None:
    system = folder.parent / "system"
    system.mkdir()
    if taken == "system":
        (folder / "mine").rename(system / "mine")
    wanted = {"folder": str(folder), "target": TARGET, "names": ["ml", "mine"]}
    failed = run(capsys, links=[{**wanted, "unhidden": [str(system)]}])
    assert failed["failed"] and failed["changed"]
    assert failed["made"] == [f"{folder}/ml"]
    (conflict,) = failed["conflicts"]
    assert (conflict["kind"], conflict["name"]) == ("links", f"{folder}/mine")
    words = "found something that is not a link" if taken == "name" else "hide the existing command"
    assert words in conflict["reason"]
    assert failed["msg"] == conflict["reason"]
    assert (folder / "ml").is_symlink() and not (folder / "mine").is_symlink()
