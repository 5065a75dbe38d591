# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The thin modules, run as on a host: what they change, what they say, what they leave alone."""

from __future__ import annotations

import base64
import grp
import hashlib
import os
import pwd
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.docker import daemon_json_previous
from ansible_collections.slipway.host.plugins.module_utils.host import sessions
from ansible_collections.slipway.host.plugins.module_utils.state import (
    accounts,
    apply_files,
    packet_filter,
    started,
)
from ansible_collections.slipway.host.plugins.module_utils.state import packages as state_packages
from ansible_collections.slipway.host.plugins.module_utils.state import units as state_units
from ansible_collections.slipway.host.plugins.modules import (
    apt_keyring,
    files,
    group_members,
    held_packages,
    host_info,
    units,
)

from tests.unit.conftest import RunModule

Program = Callable[[str, str], None]
ME = pwd.getpwuid(os.geteuid()).pw_name
MINE = grp.getgrgid(os.getegid()).gr_name


# files


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "etc" / "app" / "settings"


def declared(path: Path, **changes: Any) -> list[dict[str, Any]]:
    return [{"path": str(path), "owner": ME, "group": MINE, **changes}]


def test_a_file_is_written_once(run_module: RunModule, file: Path) -> None:
    wanted = declared(file, content="a\n", mode="0640")
    first = run_module(files, files=wanted)
    assert (first["changed"], first["paths"]) == (True, [str(file)])
    assert (file.read_text(), file.stat().st_mode & 0o7777) == ("a\n", 0o640)
    assert not run_module(files, files=wanted)["changed"]
    assert list(file.parent.iterdir()) == [file], "no temporary file is left"


def test_check_mode_says_what_would_be_written(run_module: RunModule, file: Path) -> None:
    result = run_module(files, check=True, files=declared(file, content="a\n"))
    assert result["changed"]
    assert (result["diff"][0]["before"], result["diff"][0]["after"]) == ("", "a\n")
    assert not file.parent.exists()


def test_owners_may_be_numbers_and_what_only_changes_hands_keeps_its_age(
    run_module: RunModule, file: Path
) -> None:
    numbers = {"owner": str(os.geteuid()), "group": str(os.getegid())}
    assert run_module(files, files=declared(file, **numbers, content="a"))["changed"]
    os.utime(file, (1, 1))
    result = run_module(files, files=declared(file, **numbers, mode="0600"))
    assert (result["changed"], file.stat().st_mode & 0o7777) == (True, 0o600)
    assert file.stat().st_mtime == 1
    assert not run_module(files, files=declared(file, mode="0600"))["changed"]


def test_a_secret_stays_out_of_the_diff(run_module: RunModule, file: Path) -> None:
    result = run_module(files, files=declared(file, content="token", secret=True, mode="0600"))
    assert "token" not in str(result["diff"])
    assert file.read_text() == "token"


@pytest.mark.usefixtures("only_root_writes")
def test_a_file_or_folder_of_another_type_is_replaced(run_module: RunModule, file: Path) -> None:
    file.mkdir(parents=True)
    (file / "inside").touch()
    run_module(files, files=declared(file, content="a"))
    assert file.read_text() == "a"
    run_module(files, files=declared(file, state="directory"))
    assert file.is_dir()
    run_module(files, files=declared(file, state="absent"))
    assert not file.exists()
    assert not run_module(files, files=declared(file, state="absent"))["changed"]


def test_the_folder_of_a_drop_in_goes_with_the_last_one(
    run_module: RunModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apply_files, "SYSTEMD_FOLDER", f"{tmp_path}/")
    ours, theirs = (tmp_path / "x.service.d" / name for name in ("ours.conf", "theirs.conf"))
    other = tmp_path / "folder" / "file"
    run_module(files, files=[*declared(ours), *declared(other)])
    theirs.write_text("theirs")
    run_module(files, files=[*declared(ours, state="absent"), *declared(other, state="absent")])
    assert list(ours.parent.iterdir()) == [theirs]
    run_module(files, files=declared(theirs, state="absent"))
    assert list(tmp_path.iterdir()) == [other.parent]


@pytest.mark.usefixtures("only_root_writes")
def test_a_link_is_replaced_and_what_it_leads_to_is_kept(
    run_module: RunModule, file: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.write_text("theirs")
    file.parent.mkdir(parents=True)
    file.symlink_to(other)
    run_module(files, files=declared(file, content="ours"))
    assert (file.is_symlink(), file.read_text(), other.read_text()) == (False, "ours", "theirs")


def test_content_that_nobody_declares_is_kept(run_module: RunModule, file: Path) -> None:
    file.parent.mkdir(parents=True)
    file.write_text("theirs")
    file.chmod(0o600)
    assert run_module(files, files=declared(file))["changed"]
    assert (file.read_text(), file.stat().st_mode & 0o7777) == ("theirs", 0o644)


def test_a_file_that_the_host_refuses_is_not_written(run_module: RunModule, file: Path) -> None:
    refused = declared(file, content="a", validate=["sh", "-c", "echo too much >&2; false"])
    for check in (True, False):
        result = run_module(files, check=check, files=refused)
        assert result["failed"] and "failed: too much; expected success" in result["msg"]
    assert not file.exists()
    run_module(files, files=declared(file, content="a", validate=["true"]))
    assert file.read_text() == "a"
    # What is as declared is not tried again.
    assert not run_module(files, files=declared(file, content="a", validate=["false"]))["changed"]


def test_an_unknown_owner_is_an_error_and_loses_nothing(run_module: RunModule, file: Path) -> None:
    file.parent.mkdir(parents=True)
    file.write_text("old")
    result = run_module(files, files=declared(file, content="new", owner="nobody-has-this-name"))
    assert result["failed"]
    assert "Cannot change" in result["msg"]
    assert [entry.read_text() for entry in file.parent.iterdir()] == ["old"]


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other users")
@pytest.mark.parametrize("state", ["file", "directory"])
@pytest.mark.parametrize("place", ["link", "folder of another", "file of another", "in the middle"])
def test_an_obstacle_of_a_user_is_refused_and_the_rest_is_done(
    run_module: RunModule, file: Path, tmp_path: Path, place: str, state: str
) -> None:
    target = tmp_path / "target"
    target.mkdir(mode=0o750)
    file.parent.mkdir(parents=True)
    if place == "link":
        file.symlink_to(target)
    elif place == "in the middle":
        file.parent.rmdir()
        file.parent.symlink_to(target)
    else:
        file.mkdir() if place[:3] == "fol" else file.touch()
        os.chown(file, 54321, 54321)
    other = file.parent.parent / "other"
    wanted = [*declared(file, state=state, mode="0777"), *declared(other, content="a")]
    for check in (True, False):
        result = run_module(files, check=check, files=wanted)
        assert result["paths"] == [str(other)]
        assert result["failed"]
        assert [one["reason"] for one in result["conflicts"]] == [result["msg"]]
        assert "; expected a f" in result["msg"]
    assert other.read_text() == "a"
    assert (target.stat().st_mode & 0o7777, list(target.iterdir())) == (0o750, [])


# units


ON = {"name": "x.service", "enabled": True, "active": True}
OFF = {"name": "x.service", "enabled": False, "active": False}


def state(file: str = "enabled", active: str = "active", reload: bool = False) -> dict[str, Any]:
    return {**state_units.NO_UNIT, "file": file, "active": active, "reload": reload}


@pytest.mark.parametrize(
    ("entry", "found", "restart", "verbs"),
    [
        (ON, state(), "", []),
        (ON, state("disabled", "inactive"), "", ["enable", "reset-failed", "start"]),
        (ON, state("enabled-runtime"), "", ["enable"]),
        (ON, state("static"), "", ["enable"]),
        (ON, state("masked", "inactive"), "", ["unmask", "enable", "reset-failed", "start"]),
        (ON, state("masked-runtime"), "", ["unmask --runtime", "enable"]),
        (ON, state(active="failed"), "", ["reset-failed", "start"]),
        (ON, state(active="auto-restart"), "", ["reset-failed", "start"]),
        (OFF, state("disabled", "auto-restart"), "", ["stop"]),
        (ON, state(), "restart", ["reset-failed", "restart"]),
        (ON, state(), "reload", ["reload"]),
        (ON, state(reload=True), "", ["daemon-reload"]),
        (ON, state(active="inactive"), "restart", ["reset-failed", "start"]),
        (OFF, state(), "", ["disable", "stop"]),
        (OFF, state("enabled-runtime", "inactive"), "", ["disable --runtime"]),
        (OFF, state("disabled", "inactive"), "", []),
        (OFF, state_units.NO_UNIT, "", []),
        ({**ON, "active": None}, state(active="failed"), "", []),
        ({**ON, "enabled": None}, state("disabled"), "", []),
    ],
)
def test_verbs_for_systemctl_are_chosen(
    entry: dict[str, Any], found: Any, restart: str, verbs: list[str]
) -> None:
    assert units.select_verbs(entry, found, restart) == verbs


# One unit whose state is in files; each start has an ID of its own, and is at second 1 after boot.
SYSTEMCTL = """
cd {folder}
if [ "$1" = show ]; then
    printf 'LoadState=loaded\\nUnitFileState=%s\\nActiveState=active\\n' "$(cat file)"
    printf 'NeedDaemonReload=no\\nInvocationID=%s\\n' "$(cat start)"
    printf 'ExecMainStartTimestampMonotonic=1000000\\n'
elif [ "$1" = enable ]; then cat enabled >file
elif [ "$1" = restart ]; then echo "$2 restarted" >>told; date +%N >start
elif [ "$1" = reload ]; then echo "$2 reloaded" >>told
elif [ "$1" = reset-failed ]; then :
else echo "no such verb" >&2; exit 1
fi
"""


@pytest.fixture
def unit(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, only_root_writes: None
) -> Path:
    """Return the folder with the state of a unit that runs, and is enabled."""
    folder = tmp_path / "unit"
    folder.mkdir()
    for name, text in (("file", "enabled"), ("enabled", "enabled"), ("start", "1"), ("told", "")):
        (folder / name).write_text(text)
    program("systemctl", SYSTEMCTL.format(folder=folder))
    program("journalctl", "echo the last words")
    monkeypatch.setattr(started, "RECORDS", str(tmp_path / "records"))
    return folder


def test_units_are_changed_once_and_a_refusal_is_told(run_module: RunModule, unit: Path) -> None:
    file = unit / "file"
    file.write_text("disabled")
    entry = [{"name": "x.service", "enabled": True, "active": True}]
    assert run_module(units, check=True, units=entry)["actions"] == ["enable x.service"]
    assert file.read_text() == "disabled"
    assert run_module(units, units=entry)["changed"]
    assert not run_module(units, units=entry)["changed"]
    result = run_module(units, units=[{"name": "x.service", "active": False}])
    assert result["msg"] == "systemctl stop x.service failed: no such verb"
    assert result["log"] == "the last words\n"


RESTARTS = """
case "$1" in
show)
    printf 'LoadState=loaded\\nUnitFileState=enabled\\nActiveState=active\\n'
    printf 'NeedDaemonReload=no\\nExecMainStartTimestampMonotonic=1000000\\n'
    printf 'InvocationID=%s\\n' "$(cat {log} 2>/dev/null | wc -l)" ;;
restart) echo restart >>{log}; ! grep -q bad {config} ;;
esac
"""


@pytest.fixture
def engine_unit(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, only_root_writes: None
) -> dict[str, Any]:
    """A running unit that read a configuration which changed since, and restarts with it."""
    config = tmp_path / "daemon.json"
    config.write_text("good")
    program("systemctl", RESTARTS.format(log=tmp_path / "log", config=config))
    monkeypatch.setattr(started, "RECORDS", str(tmp_path / "records"))
    program("journalctl", "echo the last words")
    return {
        "name": "docker.service",
        "active": True,
        "reads": [str(config)],
        "restart": "idle",
        "previous": str(tmp_path / "previous"),
    }


@pytest.mark.parametrize(("policy", "actions"), [("idle", []), ("always", ["restart"])])
def test_an_engine_without_rules_in_the_packet_filter_is_restarted_by_consent(
    run_module: RunModule,
    engine_unit: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    policy: str,
    actions: list[str],
) -> None:
    log = tmp_path / "log"
    obstacles = {"idle": "container train uses a GPU", "always": ""}
    monkeypatch.setattr(units, "ask_obstacle", obstacles.__getitem__)
    monkeypatch.setattr(
        *(packet_filter, "ask_rules"), lambda: {"missing": [] if log.exists() else ["bridge"]}
    )
    entry = {**engine_unit, "reads": [], "packet_filter": True, "restart": policy}
    # Reloading the engine for another reason does not write the rules.
    parameters = {"units": [entry], "reloaded": engine_unit["reads"]}
    planned = run_module(units, check=True, **parameters)
    assert not log.exists()
    result = run_module(units, **parameters)
    for one in (planned, result):
        verbs = ["reset-failed", *actions] if actions else []
        assert one["actions"] == [f"{verb} docker.service" for verb in verbs]
        assert ("slipway_waiting" in one) == (policy == "idle")
    assert log.exists() == bool(actions)
    assert run_module(units, **parameters)["changed"] is False


@pytest.mark.parametrize("check", [True, False])
def test_a_restart_that_would_disturb_waits(
    run_module: RunModule,
    engine_unit: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    check: bool,
) -> None:
    obstacles = {"idle": "container train uses a GPU", "always": ""}
    monkeypatch.setattr(units, "ask_obstacle", obstacles.__getitem__)
    result = run_module(units, check=check, units=[engine_unit])
    assert (result["changed"], result["actions"]) == (False, [])
    assert result["slipway_waiting"] == [
        "restart of docker.service waits: container train uses a GPU."
    ]
    assert not (tmp_path / "log").exists()
    assert not (tmp_path / "records").exists(), "it has not read the file"
    restarted = run_module(units, units=[{**engine_unit, "restart": "always"}])
    assert restarted["changed"]
    assert "slipway_waiting" not in restarted
    assert (tmp_path / "log").read_text() == "restart\n"


def test_a_unit_that_does_not_start_gets_its_previous_configuration(
    run_module: RunModule, engine_unit: dict[str, Any], tmp_path: Path
) -> None:
    config, previous, record = (tmp_path / name for name in ("daemon.json", "previous", "record"))
    restarts = [{**engine_unit, "restart": "always"}]
    daemon_json_previous.keep(str(previous), str(config), "good", str(record), "")
    config.write_text("bad")
    result = run_module(units, units=restarts)
    assert config.read_text() == "good"
    assert result["msg"].startswith("systemctl restart docker.service failed: ")
    assert result["msg"].endswith(
        f"The previous {config} is restored, and docker.service runs with it. Correct the "
        "settings, then run again."
    )
    assert daemon_json_previous.is_rejected(str(previous), "bad")
    # The next good start forgets it.
    assert run_module(units, units=restarts)["changed"]
    assert not daemon_json_previous.is_rejected(str(previous), "bad")


def test_a_previous_configuration_that_fails_too_is_told(
    run_module: RunModule, engine_unit: dict[str, Any], tmp_path: Path
) -> None:
    config = tmp_path / "daemon.json"
    config.write_text("bad")
    daemon_json_previous.keep(
        engine_unit["previous"], str(config), "bad", str(tmp_path / "record"), ""
    )
    message = run_module(units, units=[{**engine_unit, "restart": "always"}])["msg"]
    assert f"{config} is restored, but docker.service does not start with it either" in message


def test_a_unit_that_stays_different_fails(run_module: RunModule, unit: Path) -> None:
    for file in ("file", "enabled"):
        (unit / file).write_text("static")
    result = run_module(units, units=[{"name": "x.service", "enabled": True}])
    assert result["msg"] == (
        "x.service after enable: static; expected enabled. See systemctl status x.service and "
        "systemctl cat x.service."
    )


def test_the_content_of_a_file_decides_about_a_restart(
    run_module: RunModule, unit: Path, tmp_path: Path
) -> None:
    file = tmp_path / "daemon.json"
    file.write_text("one")
    entry = [{"name": "x.service", "active": True, "reads": [str(file)]}]

    def told(**parameters: Any) -> str:
        (unit / "told").write_text("")
        before = run_module(units, check=True, units=entry, **parameters)
        assert (unit / "told").read_text() == ""
        result = run_module(units, units=entry, **parameters)
        assert (result["changed"], result["actions"]) == (before["changed"], before["actions"])
        text = (unit / "told").read_text()
        assert result["changed"] == bool(text)
        return text

    # The change time of the file is after the start at second 1.
    assert told() == "x.service restarted\n"
    assert told() == ""
    # New times of the same content, also times to come.
    os.utime(file, (9e9, 9e9))
    file.chmod(0o600)
    assert told() == ""
    # Other content with the old time.
    file.write_text("two")
    os.utime(file, (1, 1))
    assert told() == "x.service restarted\n"
    assert told() == ""
    # Somebody changed the file, restarted the service and put the file back with its old time.
    (unit / "start").write_text("by somebody else")
    os.utime(file, (1, 1))
    assert told() == "x.service restarted\n"
    # A change that a reload applies; a change of another file needs a restart.
    file.write_text("three")
    assert told(reloaded=[str(file)]) == "x.service reloaded\n"
    assert told() == ""
    file.write_text("four")
    assert told(reloaded=["/etc/other"]) == "x.service restarted\n"
    # A file that the service had read is gone.
    file.unlink()
    assert told() == "x.service restarted\n"
    assert told() == ""


def test_the_old_name_of_reads_stays(run_module: RunModule, unit: Path) -> None:
    entry = [{"name": "x.service", "active": True, "since": [str(unit / "file")]}]
    result = run_module(units, units=entry)
    assert result["actions"] == ["reset-failed x.service", "restart x.service"]
    assert not run_module(units, units=entry)["changed"]


# group_members


def members(monkeypatch: pytest.MonkeyPatch, found: Any) -> None:
    monkeypatch.setattr(accounts, "ask_groups", lambda names: dict.fromkeys(names, found))
    users = {"alice": [1500, 1500, "", ""], "eve": [1501, 1501, "", ""]}
    monkeypatch.setattr(accounts, "ask_users", lambda names: {n: users.get(n) for n in names})


@pytest.mark.parametrize(
    ("exclusive", "added", "removed"), [(False, ["alice"], []), (True, ["alice"], ["eve"])]
)
def test_members_are_added_and_others_removed_only_on_request(
    run_module: RunModule,
    program: Program,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    exclusive: bool,
    added: list[str],
    removed: list[str],
) -> None:
    members(monkeypatch, [998, ["bob", "eve"]])
    program("gpasswd", f'echo "$@" >>{tmp_path}/told')
    asked: dict[str, Any] = {"group": "docker", "users": ["alice", "bob"], "exclusive": exclusive}
    predicted = run_module(group_members, check=True, **asked)
    assert not (tmp_path / "told").exists()
    result = run_module(group_members, **asked)
    assert (result["added"], result["removed"]) == (added, removed)
    assert {key: predicted[key] for key in ("added", "removed", "changed")} == {
        key: result[key] for key in ("added", "removed", "changed")
    }
    told = [f"--add {name} docker" for name in added]
    told += [f"--delete {name} docker" for name in removed]
    assert (tmp_path / "told").read_text().splitlines() == told


def test_members_of_a_group_that_is_not_there(
    run_module: RunModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    members(monkeypatch, None)
    asked: dict[str, Any] = {"group": "lab", "users": ["alice"]}
    failed = run_module(group_members, **asked)
    assert "group lab: found no such group for alice" in failed["msg"]
    assert [(one["kind"], one["name"]) for one in failed["conflicts"]] == [("members", "lab")]
    assert run_module(group_members, check=True, **asked)["changed"]
    assert not run_module(group_members, group="docker", users=[], exclusive=True)["changed"]


def test_a_user_who_is_not_there_is_no_new_member_and_stays_an_old_one(
    run_module: RunModule, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    members(monkeypatch, [998, ["bob"]])
    program("gpasswd", "exit 3")
    asked: dict[str, Any] = {"group": "lab", "users": ["bob", "carol"], "exclusive": True}
    result = run_module(group_members, **asked)
    assert (result["changed"], result["added"], result["removed"]) == (False, [], [])


def test_members_for_the_sake_of_devices(
    run_module: RunModule, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    members(monkeypatch, [44, []])
    program("gpasswd", "true")
    asked: dict[str, Any] = {"group": "video", "users": ["alice"], "devices": ["/dev/nvidia"]}
    monkeypatch.setattr(accounts, "ask_devices", lambda _beginning: {"render": "/dev/nvidia0"})
    assert run_module(group_members, **asked)["added"] == []
    monkeypatch.setattr(accounts, "ask_devices", lambda _beginning: {"video": "/dev/nvidia0"})
    assert run_module(group_members, **asked)["added"] == ["alice"]


def test_a_program_with_the_groups_of_before_is_warned_of(
    run_module: RunModule, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    members(monkeypatch, [998, ["eve"]])
    program("gpasswd", "true")
    running = [(1500, frozenset({100})), (1501, frozenset({998}))]
    monkeypatch.setattr(sessions, "processes", lambda: running)
    asked: dict[str, Any] = {"group": "docker", "users": ["alice"], "exclusive": True}
    assert "alice was added to docker" not in str(run_module(group_members, check=True, **asked))
    said = str(run_module(group_members, **asked)["warnings"])
    assert "alice was added to docker" in said and "eve was removed from docker" in said


# apt_keyring


KEYRING = b"\x98\x01\x04"
FINGERPRINT = hashlib.sha1(b"\x99\x00\x01\x04").hexdigest().upper()
ARMOURED = (
    "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n"
    f"{base64.b64encode(KEYRING).decode()}\n-----END PGP PUBLIC KEY BLOCK-----\n"
)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files to root")


@needs_root
@pytest.mark.parametrize("content", [KEYRING, ARMOURED.encode()], ids=["binary", "armoured"])
# apt up to 2.x goes by the end of the name.
@pytest.mark.parametrize(("name", "written"), [("d.asc", ARMOURED.encode()), ("d.gpg", KEYRING)])
def test_a_key_with_the_right_fingerprint_is_written_once(
    run_module: RunModule, tmp_path: Path, content: bytes, name: str, written: bytes
) -> None:
    source, target = tmp_path / "gpg", tmp_path / "keyrings" / name
    source.write_bytes(content)
    # A fingerprint may be spelled as people spell it.
    asked: dict[str, Any] = {
        "path": str(target),
        "url": source.as_uri(),
        "fingerprint": FINGERPRINT.lower(),
    }
    assert run_module(apt_keyring, check=True, **asked)["changed"]
    assert not target.exists()
    assert run_module(apt_keyring, **asked)["changed"]
    assert (target.read_bytes(), target.stat().st_mode & 0o777) == (written, 0o644)
    source.unlink()
    again = run_module(apt_keyring, **asked)
    assert (again["changed"], again["fingerprints"]) == (False, [FINGERPRINT])


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (KEYRING, f"has the fingerprint {FINGERPRINT}; expected {'0' * 40}"),
        (b"<html>", "expected an OpenPGP key"),
        (None, "Cannot download the key"),
    ],
)
def test_a_wrong_key_is_refused_and_the_old_one_stays(
    run_module: RunModule, tmp_path: Path, content: bytes | None, problem: str
) -> None:
    source, target = tmp_path / "gpg", tmp_path / "docker.asc"
    target.write_bytes(b"old")
    if content is not None:
        source.write_bytes(content)
    result = run_module(
        apt_keyring, path=str(target), url=source.as_uri(), fingerprint="0000 " * 10
    )
    assert result["failed"]
    assert problem in result["msg"]
    assert target.read_bytes() == b"old"


# held_packages

APT = """
echo "$(basename "$0") $*" >>{folder}/told
case "$*" in *update*) : >{folder}/updated; exit 0 ;; esac
[ -e {folder}/updated ] && exit 0
echo 'E: Unable to locate package docker.io' >&2
exit 100
"""


@pytest.fixture
def told(tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """Return a function that tells what apt was told; its index is missing until it is updated."""
    for name in ("apt-get", "apt-mark", "apt-cache"):
        program(name, APT.format(folder=tmp_path))
    monkeypatch.setattr(state_packages, "ask_packages", dict.fromkeys)
    file = tmp_path / "told"

    def read() -> list[str]:
        lines = file.read_text().splitlines() if file.exists() else []
        return [" ".join(word for word in line.split() if word[:2] != "--") for line in lines]

    return read


ENGINE = [{"name": "docker.io", "hold": True}]


def test_the_index_is_refreshed_only_when_a_package_is_not_found(
    run_module: RunModule, told: Callable[[], Any]
) -> None:
    result = run_module(held_packages, packages=ENGINE)
    assert (result["changed"], result["installed"]) == (True, ["docker.io"])
    assert result["diff"]["after"] == "docker.io (newest) (held)\n"
    assert told() == [
        "apt-get install docker.io",
        "apt-get update",
        # A simulation again, then the real one.
        "apt-get install docker.io",
        "apt-get install docker.io",
        "apt-mark hold docker.io",
    ]


def test_a_new_source_refreshes_it_at_once(run_module: RunModule, told: Callable[[], Any]) -> None:
    run_module(held_packages, packages=ENGINE, refresh=True)
    assert told()[:2] == ["apt-get update", "apt-get install docker.io"]


def test_check_mode_only_simulates(
    run_module: RunModule, told: Callable[[], Any], tmp_path: Path
) -> None:
    result = run_module(held_packages, check=True, packages=ENGINE)
    assert (result["changed"], result["installed"]) == (True, ["docker.io"])
    assert told() == ["apt-get install docker.io"]
    assert "--simulate" in (tmp_path / "told").read_text()


def test_apts_own_words_are_told(
    run_module: RunModule, told: Callable[[], Any], program: Program
) -> None:
    program("apt-get", "echo 'Reading'; echo 'E: Broken packages' >&2; exit 100")
    result = run_module(held_packages, packages=ENGINE)
    assert result["failed"]
    assert "apt-get install docker.io failed: E: Broken packages" in result["msg"]


def test_packages_as_declared_are_left_alone(
    run_module: RunModule, told: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        state_packages,
        "ask_packages",
        lambda names: {name: ["hold", "installed", "1"] for name in names},
    )
    result = run_module(held_packages, packages=ENGINE)
    assert not result["changed"]
    assert result["diff"]["before"] == result["diff"]["after"] == "docker.io 1 (held)\n"
    assert told() == []


# host_info


def test_the_facts_stand_under_the_projects_name(run_module: RunModule) -> None:
    result = run_module(host_info)
    assert not result["changed"]
    assert result["ansible_facts"]["slipway"]["kernel"] == os.uname().release
