# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files made by a command: content, sources and records decide, times of files do not."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.state import derived, parents
from ansible_collections.slipway.host.plugins.modules import derived_files

from tests.unit import survey
from tests.unit.conftest import RunModule

Changes = list[tuple[str, str]]
PATH, SOURCE, SMALL = "/boot/made", "/etc/source", "/run/cdi/small"
RECORD_STATE = ["file", "0600", "root", "root", None, 0, 0]


def made(
    digest: str | None, time: int, mode: str = "0644", owner: str = "root", size: int = 9
) -> list[Any]:
    return ["file", mode, owner, owner, digest, 0 if owner == "root" else 7, 0, size, time]


def recorded(made: Any, **sources: Any) -> str:
    return json.dumps({PATH: {"made": made, "sources": {SOURCE: sources["source"]}}})


def changes_of(state: Any, source: Any, record: str = "", **further: Any) -> Changes:
    entry = {"path": PATH, "since": [SOURCE], **further.pop("entry", {})}
    answer = {
        "made": {PATH: state, SOURCE: source},
        "texts": {derived.RECORD: record or None},
        "targets": {derived.RECORD: RECORD_STATE if record else None},
        **further,
    }
    question = survey.question([{"derived": [entry]}])
    assert set(question) <= {*answer, "parents", "files", "holders", "ctimes"}
    found = survey.differences({"derived": [entry]}, answer)
    return [(one.found, one.expected) for one in found]


OLDER = [(f"older than {SOURCE}", "made after it")]
OTHER_SOURCE = [(f"made from another {SOURCE}", "made from the present one")]
OTHER_CONTENT = [("content differs from what its command made", "as recorded")]
UNRECORDED = [("not recorded", f"recorded in {derived.RECORD}")]


@pytest.mark.parametrize(
    ("state", "source", "record", "changes"),
    [
        # Without a record, a large file is compared by the time of the last change.
        (made(None, 5), made("s", 4), "", []),
        (made(None, 5), made("s", 6), "", OLDER),
        (made(None, 5), None, "", []),
        # As recorded: other times of the source mean nothing.
        (made(None, 5), made("s", 6), recorded([9, 5], source="s"), []),
        (made(None, 5), made("t", 4), recorded([9, 5], source="s"), OTHER_SOURCE),
        (made(None, 5), None, recorded([9, 5], source="s"), OTHER_SOURCE),
        # Somebody's tool made a large file again.
        (made(None, 7), made("s", 6), recorded([9, 5], source="s"), []),
        (made(None, 7), made("t", 6), recorded([9, 5], source="s"), []),
        (made(None, 7), made("t", 8), recorded([9, 5], source="s"), OLDER),
        # The content of a small file is compared.
        (made("m", 5), made("s", 6), recorded("m", source="s"), []),
        (made("m", 9), made("s", 6), recorded("m", source="s"), []),
        (made("m", 9), made("t", 6), recorded("m", source="s"), OTHER_SOURCE),
        (made("x", 9), made("s", 6), recorded("m", source="s"), OTHER_CONTENT),
        (made("x", 9), made("t", 6), recorded("m", source="s"), []),
        (made("x", 9), made("t", 10), recorded("m", source="s"), OLDER),
        (made("m", 5), made("s", 4), "", UNRECORDED),
        (made("m", 5), made("s", 4), "broken", UNRECORDED),
        (made("m", 5), made("s", 4), '{"/boot/made": {"made": "m"}}', UNRECORDED),
        (None, made("s", 4), "", []),
    ],
)
def test_changed_sources_and_content_are_differences(
    state: Any, source: Any, record: str, changes: Changes
) -> None:
    assert changes_of(state, source, record) == changes


@pytest.mark.parametrize(
    ("state", "changes"),
    [
        (made(None, 5, mode="0666"), [("mode 0666", "not writable by group or others")]),
        (made(None, 5, owner="bob"), [("owner bob", "root")]),
        (made("m", 5, size=0), [("empty", "made by its command")]),
        (["link", *made(None, 5)[1:]], [("a link", "a file")]),
    ],
)
def test_attributes(state: Any, changes: Changes) -> None:
    assert changes_of(state, made("s", 4)) == changes


def test_a_required_file_must_be_there() -> None:
    assert changes_of(None, None, entry={"required": True}) == [("missing", "there")]


def test_times_of_the_kernels_own_files_mean_nothing() -> None:
    entry = {"path": PATH, "since": ["/sys/module/x/version"]}
    answer = {
        "made": {PATH: made(None, 5), "/sys/module/x/version": made("v", 6)},
        "texts": {derived.RECORD: None},
        "targets": {derived.RECORD: None},
    }
    assert survey.differences({"derived": [entry]}, answer) == []


def test_the_record_is_roots_alone() -> None:
    state = {"targets": {derived.RECORD: ["file", "0666", *RECORD_STATE[2:]]}}
    record = recorded([9, 5], source="s")
    found = changes_of(made(None, 5), made("s", 4), record, **state)
    assert found == [(f"its record {derived.RECORD}: mode 0666", "0600")]


@pytest.mark.parametrize(
    ("holders", "changes"),
    [
        ({"/boot": ["made"], "/etc/cdi": []}, []),
        ({"/boot": [], "/etc/cdi": []}, [("without gpu", "a file that contains gpu")]),
        (
            {"/boot": ["made", "a.json"], "/etc/cdi": ["z"]},
            [
                ("/boot/a.json contains gpu too", "removed"),
                ("/etc/cdi/z contains gpu too", "removed"),
            ],
        ),
    ],
)
def test_only_one_file_holds_the_text(holders: Any, changes: Changes) -> None:
    entry = {"holds": "gpu", "alone_in": ["/boot", "/etc/cdi"]}
    assert changes_of(made(None, 5), None, entry=entry, holders=holders) == changes


def test_the_probe_reads_digests_of_small_files_and_holders(tmp_path: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_text("kind: x/y")
    large.write_bytes(b"0" * (derived.MAX_DIGEST_BYTES + 1))
    (tmp_path / "link").symlink_to("small")
    answer = survey.answer(
        {
            "made": [str(small), str(large), str(tmp_path / "link"), str(tmp_path / "missing")],
            "holders": [[str(tmp_path), "x/y"], [str(tmp_path / "missing"), "x/y"]],
        }
    )
    found = answer["made"]
    assert len(found[str(small)][4]) == 64 and found[str(small)][7] == 9
    assert found[str(large)][4] is None
    assert found[str(tmp_path / "link")][0] == "link"
    assert found[str(tmp_path / "missing")] is None
    assert answer["holders"] == {str(tmp_path): ["link", "small"], str(tmp_path / "missing"): []}


class Tree:
    """A derived file with a source, on the file system."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path, self.source = folder / "cdi" / "made", folder / "source"
        self.rival = folder / "other" / "rival"
        for file in (self.path, self.source, self.rival):
            file.parent.mkdir(exist_ok=True)
        self.source.write_text("one")
        self.path.write_text("old")
        self.commands = folder / "commands"
        self.script = f"echo run >>{self.commands}; cp {self.source} {self.path}.new; "
        self.script += f"echo text >>{self.path}.new; mv {self.path}.new {self.path}"

    def entry(self, **further: Any) -> dict[str, Any]:
        return {"path": str(self.path), "since": [str(self.source)], **further}

    def asked(self) -> dict[str, Any]:
        folders = [str(self.path.parent), str(self.rival.parent)]
        entry = self.entry(required=True, holds="text", alone_in=folders)
        return {"derived": [entry], "commands": [["sh", "-c", self.script]]}

    def runs(self) -> int:
        return len(self.commands.read_text().splitlines()) if self.commands.exists() else 0


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    monkeypatch.setattr(derived, "RECORD", str(tmp_path / "state" / "derived.json"))
    monkeypatch.setattr(parents, "parents_of", lambda _paths: [])
    return Tree(tmp_path)


def put_back(tree: Tree) -> None:
    """Change the content of the source, with its old time."""
    times = tree.source.stat()
    tree.source.write_text("two")
    os.utime(tree.source, ns=(times.st_atime_ns, times.st_mtime_ns))


def edit(tree: Tree) -> None:
    times = tree.path.stat()
    tree.path.write_text("xxx\ntext\n")
    os.utime(tree.path, ns=(times.st_atime_ns, times.st_mtime_ns))


TAMPERS: dict[str, Callable[[Tree], object]] = {
    "removed": lambda tree: tree.path.unlink(),
    "emptied": lambda tree: tree.path.write_text(""),
    "edited, with its old time": edit,
    "a source edited, with its old time": put_back,
    "a source removed": lambda tree: tree.source.unlink(),
    "open to others": lambda tree: tree.path.chmod(0o666),
    "another owner": lambda tree: os.chown(tree.path, 54321, 54321),
    "a second file with the text": lambda tree: tree.rival.write_text("a text"),
    "the record lost": lambda tree: Path(derived.RECORD).unlink(),
    "the record open to others": lambda tree: Path(derived.RECORD).chmod(0o666),
}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to change owners")
@pytest.mark.usefixtures("only_root_writes")
@pytest.mark.parametrize("tamper", TAMPERS.values(), ids=TAMPERS.keys())
def test_a_tampered_file_is_made_again(
    run_module: RunModule, tree: Tree, tamper: Callable[[Tree], object]
) -> None:
    asked = tree.asked()
    time.sleep(0.05)
    assert run_module(derived_files, **asked)["changed"]
    assert not run_module(derived_files, **asked)["changed"]
    time.sleep(0.05)
    tamper(tree)
    if not tree.source.exists():
        asked["commands"] = [["sh", "-c", f"rm {tree.path}; echo text >{tree.path}"]]
    assert run_module(derived_files, check=True, **asked)["changed"]
    done = run_module(derived_files, **asked)
    assert done.get("changed"), done
    assert tree.path.read_text().endswith("text\n")
    assert (tree.path.stat().st_uid, tree.path.stat().st_mode & 0o777) == (0, 0o644)
    assert not tree.rival.exists() or "text" not in tree.rival.read_text()
    assert not run_module(derived_files, **asked)["changed"]


@pytest.mark.parametrize("days", [-1000, 1000])
def test_a_time_alone_decides_nothing(run_module: RunModule, tree: Tree, days: int) -> None:
    asked = tree.asked()
    time.sleep(0.05)
    assert run_module(derived_files, **asked)["changed"]
    moment = time.time() + days * 86400
    for path in (tree.path, tree.source):
        os.utime(path, (moment, moment))
        assert not run_module(derived_files, **asked)["changed"]
    assert tree.runs() == 1


def test_a_command_that_makes_nothing_is_an_error(run_module: RunModule, tree: Tree) -> None:
    tree.script = "echo not today"
    result = run_module(derived_files, **tree.asked())
    assert result["msg"].endswith(
        f"{tree.path} was not generated. Output of the command: not today"
    )
    assert not Path(derived.RECORD).exists()
    tree.path.unlink()
    assert (
        "is missing. Output of the command: not today"
        in run_module(derived_files, **tree.asked())["msg"]
    )


def test_records_of_other_files_stay(run_module: RunModule, tree: Tree) -> None:
    other = {"/boot/x": {"made": "m", "sources": {}}}
    Path(derived.RECORD).parent.mkdir()
    Path(derived.RECORD).write_text(json.dumps(other))
    Path(derived.RECORD).chmod(0o600)
    time.sleep(0.05)
    assert run_module(derived_files, **tree.asked())["changed"]
    assert set(json.loads(Path(derived.RECORD).read_text())) == {"/boot/x", str(tree.path)}
