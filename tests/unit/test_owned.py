# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Owned state against a host's answer: what counts as drift, and what does not."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.apt import openpgp
from ansible_collections.slipway.host.plugins.module_utils.docker import daemon_json_record
from ansible_collections.slipway.host.plugins.module_utils.docker import rootless as docker_rootless
from ansible_collections.slipway.host.plugins.module_utils.host import engine_settings
from ansible_collections.slipway.host.plugins.module_utils.state import (
    engine,
    kinds,
    model,
    projects,
    service_files,
)
from ansible_collections.slipway.host.plugins.module_utils.state import units as state_units
from ansible_collections.slipway.host.plugins.module_utils.state.model import Difference

from tests.unit import survey
from tests.unit.containers import CREATED, described, project_answer

Changes = list[tuple[str, str]]

# The smallest OpenPGP key there is: a version 4 packet without content.
KEY = b"\x98\x01\x04"
FINGERPRINT = hashlib.sha1(b"\x99\x00\x01\x04").hexdigest().upper()


def differences(kind: str, entry: dict[str, Any], found: Any, **answer: Any) -> Changes:
    """Return the changes of one ENTRY where the probe FOUND this of what the entry names."""
    how = kinds.ALL[kind]
    answer = {"engine": None, how.asks: {entry[how.by]: found}, **answer}
    result = survey.differences({kind: [entry]}, answer)
    assert all((one.kind, one.name) == (kind, entry[how.by]) for one in result)
    return [(one.found, one.expected) for one in result]


INSTALLED = ["install", "installed", "1"]
HELD = ["hold", "installed", "1"]


@pytest.mark.parametrize(
    ("entry", "found", "changes"),
    [
        ({}, INSTALLED, []),
        ({}, HELD, []),
        ({}, None, [("missing", "installed")]),
        ({}, ["deinstall", "config-files", "1"], [("missing", "installed")]),
        ({}, ["install", "half-configured", "1"], [("half-configured", "installed")]),
        ({"version": "1"}, INSTALLED, []),
        ({"version": "2"}, INSTALLED, [("version 1", "2")]),
        ({"version": "1*"}, ["install", "installed", "1.5"], []),
        ({"version": "2*"}, ["install", "installed", "1.5"], [("version 1.5", "2*")]),
        ({"optional": True}, None, []),
        ({"optional": True, "hold": True}, INSTALLED, [("not held", "held")]),
        ({"hold": True}, HELD, []),
        ({"hold": True}, INSTALLED, [("not held", "held")]),
        ({"hold": False}, INSTALLED, []),
        ({"hold": False}, HELD, [("held", "not held")]),
        ({"version": "2", "hold": True}, INSTALLED, [("version 1", "2"), ("not held", "held")]),
        ({"state": "absent"}, None, []),
        ({"state": "absent"}, INSTALLED, [("1 installed", "absent")]),
    ],
)
def test_differences_of_packages(entry: dict[str, Any], found: Any, changes: Changes) -> None:
    assert differences("packages", {"name": "a", **entry}, found) == changes


FILE = ["file", "0644", "root", "root", hashlib.sha256(b"text").hexdigest(), 0, 0]
FOLDER = ["directory", "0755", "root", "root", None, 0, 0]


@pytest.mark.parametrize(
    ("entry", "found", "changes"),
    [
        ({}, FILE, []),
        ({}, None, [("missing", "a file")]),
        ({}, FOLDER, [("a directory", "a file")]),
        ({}, ["link", "0777", "root", "root", None, 0, 0], [("a link", "a file")]),
        ({"content": "text"}, FILE, []),
        ({"content": "other"}, FILE, [("content differs", "as declared")]),
        ({"content": ""}, FILE, [("content differs", "as declared")]),
        ({"mode": "0600"}, FILE, [("mode 0644", "0600")]),
        ({"owner": "a", "group": "b"}, FILE, [("owner root", "a"), ("group root", "b")]),
        ({"owner": "0", "group": "0"}, FILE, []),
        ({"owner": "7", "group": "8"}, FILE, [("owner root", "7"), ("group root", "8")]),
        ({"state": "absent"}, None, []),
        ({"state": "absent"}, FILE, [("present", "absent")]),
        ({"state": "directory"}, FOLDER, []),
        ({"state": "directory"}, None, [("missing", "a directory")]),
        ({"state": "directory", "mode": "0700"}, FOLDER, [("mode 0755", "0700")]),
    ],
)
def test_differences_of_files(entry: dict[str, Any], found: Any, changes: Changes) -> None:
    assert differences("files", {"path": "/etc/x", **entry}, found) == changes


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def secret(content: str = "s3cret", mode: str = "0600", uid: int = 7, gid: int = 8) -> list[Any]:
    return ["file", mode, "alice", "alice", digest(content), uid, gid]


@pytest.mark.parametrize(
    ("entry", "found", "changes"),
    [
        ({}, secret(), []),
        ({}, None, [("missing", "a file")]),
        ({}, secret(""), [("empty", "a secret")]),
        ({}, secret(mode="0644"), [("mode 0644", "0600")]),
        ({}, secret(uid=9, gid=9), [("owner alice", "7"), ("group alice", "8")]),
        ({}, FOLDER, [("a directory", "a file")]),
        ({"content": "s3cret"}, secret(), []),
        ({"content": "other"}, secret(), [("content differs", "as declared")]),
        ({"source": "/root/s"}, secret("from there"), []),
        ({"source": "/root/s"}, secret(), [("differs from /root/s", "the same")]),
        ({"source": "/root/s"}, None, [("missing", "a file")]),
    ],
)
def test_differences_of_secrets(entry: dict[str, Any], found: Any, changes: Changes) -> None:
    stated = {"path": "/etc/x", "owner": "7", "group": "8", **entry}
    answer = {"files": {"/etc/x": found, "/root/s": secret("from there", uid=0)}}
    assert "/root/s" in survey.question([{"secrets": [stated]}])["files"] or not entry.get("source")
    differences = survey.differences({"secrets": [stated]}, answer)
    assert [(one.found, one.expected) for one in differences] == changes
    assert "s3cret" not in str(differences)


@pytest.mark.parametrize(
    ("source", "words"), [(None, "nothing"), (FOLDER, "a directory"), (secret(""), "an empty")]
)
def test_a_secret_cannot_be_a_copy_of_nothing(source: Any, words: str) -> None:
    stated = {"path": "/etc/x", "owner": "7", "group": "8", "source": "/root/s"}
    with pytest.raises(model.ConflictError, match=f"/root/s, .*: found {words}"):
        survey.differences({"secrets": [stated]}, {"files": {"/etc/x": None, "/root/s": source}})


LINK = ["link", *FOLDER[1:]]


@pytest.mark.parametrize(
    ("found", "target", "changes"),
    [
        (None, None, [("missing", "a folder of 7:8")]),
        (FOLDER, "/srv/x", []),
        (["directory", "0777", "bob", "bob", None, 9, 9], "/srv/x", []),
        (LINK, "/data/x", []),
        (LINK, None, [("a link to nothing", "a folder")]),
        (LINK, "/etc", [("a link to /etc", "a folder")]),
        (LINK, "/etc/ssh", [("a link to /etc/ssh", "a folder")]),
        (LINK, "/var", [("a link to /var", "a folder")]),
        (LINK, "/var/lib/models", []),
    ],
)
def test_differences_of_mounts(found: Any, target: str | None, changes: Changes) -> None:
    entry = {"path": "/srv/x", "owner": "7", "group": "8"}
    answer = {"link_targets": {"/srv/x": target}, "writable": {"7:8:/srv/x": None}}
    assert differences("mounts", entry, found, **answer) == changes


@pytest.mark.parametrize(
    ("writable", "read_only", "conflict"),
    [(True, False, False), (False, False, True), (False, True, False)],
)
def test_a_service_must_be_able_to_write(writable: bool, read_only: bool, conflict: bool) -> None:
    entry = {"path": "/srv/x", "owner": "7", "group": "8", "read_only": read_only}
    asked = survey.question([{"mounts": [entry]}])
    assert asked.get("writable", []) == ([] if read_only else ["7:8:/srv/x"])
    answer = {"link_targets": {"/srv/x": "/srv/x"}, "writable": {"7:8:/srv/x": writable}}
    if conflict:
        with pytest.raises(model.ConflictError, match="7:8 may not write to /srv/x; expected a"):
            differences("mounts", entry, FOLDER, **answer)
    else:
        assert differences("mounts", entry, FOLDER, **answer) == []


@pytest.mark.parametrize("read_only", [True, False])
@pytest.mark.parametrize(
    ("found", "is_volume", "conflict"),
    [
        (["file", *FOLDER[1:]], True, True),
        (["file", *FOLDER[1:]], False, False),
        (["pipe", *FOLDER[1:]], True, True),
        (FOLDER, True, False),
        (LINK, True, False),
    ],
)
def test_a_file_cannot_be_a_volume(
    found: Any, is_volume: bool, conflict: bool, read_only: bool
) -> None:
    entry = {"path": "/srv/x", "owner": "7", "group": "8", "read_only": read_only}
    answer = {"link_targets": {"/srv/x": "/srv/y"}, "writable": {"7:8:/srv/x": None}}
    changed = {**entry, "is_volume": is_volume}
    if conflict:
        with pytest.raises(model.ConflictError, match=f"/srv/x, .*: found a {found[0]}; expected"):
            differences("mounts", changed, found, **answer)
    else:
        assert differences("mounts", changed, found, **answer) == []


def test_a_file_that_is_only_read_must_exist() -> None:
    entry = {"path": "/srv/x", "owner": "7", "group": "8", "read_only": True}
    assert differences("mounts", entry, FOLDER) == []
    with pytest.raises(model.ConflictError, match=r"/srv/x, .*: found nothing"):
        differences("mounts", entry, None)


@pytest.mark.parametrize(
    ("found", "changes"),
    [
        (None, []),
        ([], []),
        (["a"], []),
        (["c", "a", "b"], [("b is there", "removed"), ("c is there", "removed")]),
    ],
)
def test_folders(found: Any, changes: Changes) -> None:
    assert differences("folders", {"path": "/etc/x", "entries": ["a"]}, found) == changes


JSON_FILE = ["file", "0644", "root", "root", None, 0, 0]
FOREIGN_FILE = ["file", "0666", "bob", "bob", None, 7, 7]
CLOSED_FILE = ["file", "0600", "root", "root", None, 0, 0]
OPEN = [
    ("mode 0666", "not writable by group or others"),
    ("owner bob", "root"),
    ("group bob", "root"),
]


def json_differences(settings: dict[str, Any], text: Any, state: Any = JSON_FILE) -> Changes:
    entry = {"path": "/etc/x.json", "settings": settings}
    return differences("json", entry, text, targets={"/etc/x.json": state if text else None})


@pytest.mark.parametrize(
    ("settings", "found", "changes"),
    [
        ({"debug": True}, '{"debug": true, "other": 1}', []),
        ({}, None, []),
        ({"debug": True}, None, [("missing", "a file with the declared keys")]),
        ({"debug": True}, "{}", [("debug: (not set) → true", "as declared")]),
    ],
)
def test_differences_of_keys_of_json_files(
    settings: dict[str, Any], found: Any, changes: Changes
) -> None:
    assert json_differences(settings, found) == changes


@pytest.mark.parametrize(
    ("state", "changes"),
    [
        (CLOSED_FILE, []),
        (["file", "0640", *CLOSED_FILE[2:]], []),
        (FOREIGN_FILE, OPEN),
        (["file", "0755", *CLOSED_FILE[2:]], [("mode 0755", "at least 0600, at most 0644")]),
    ],
)
def test_json_is_only_roots_to_write(state: Any, changes: Changes) -> None:
    assert json_differences({}, "{}", state) == changes


JSON_RECORD = daemon_json_record.update_record(
    "", "/etc/x.json", list(daemon_json_record.record_keys({}, {"debug": True}))
)


@pytest.mark.parametrize(
    ("text", "state", "changes"),
    [
        (JSON_RECORD, CLOSED_FILE, []),
        (None, None, [("its record /var/r is missing", "as declared")]),
        ("broken", CLOSED_FILE, [("its record /var/r differs", "as declared")]),
        (
            JSON_RECORD,
            ["file", "0644", *CLOSED_FILE[2:]],
            [("its record /var/r: mode 0644", "0600")],
        ),
    ],
)
def test_keys_of_the_record_are_compared(text: Any, state: Any, changes: Changes) -> None:
    entry = {"path": "/etc/x.json", "settings": {"debug": True}, "record": "/var/r"}
    texts = {"/etc/x.json": '{"debug": true}', "/var/r": text}
    targets = {"/etc/x.json": JSON_FILE, "/var/r": state}
    found = survey.differences({"json": [entry]}, {"texts": texts, "targets": targets})
    assert [(one.found, one.expected) for one in found] == changes


def test_broken_json_is_in_the_way_and_the_place_is_named() -> None:
    with pytest.raises(model.ConflictError, match=r"/etc/x\.json.*line 1"):
        json_differences({"debug": True}, '{"debug": }')


@pytest.mark.parametrize(
    ("found", "changes"),
    [
        ("b\nother\na\n", []),
        ("a\n", [("1 of 2 lines missing", "all there")]),
        # A line within a longer one is not that line.
        ("aa\nbb\n", [("2 of 2 lines missing", "all there")]),
        (None, [("2 of 2 lines missing", "all there")]),
    ],
)
def test_differences_of_lines(found: Any, changes: Changes) -> None:
    assert differences("lines", {"path": "/etc/x", "lines": ["a", "b"]}, found) == changes


def armoured(keyring: bytes) -> str:
    return f"{openpgp.ARMOUR}\n\n{base64.b64encode(keyring).decode()}\n-----END PGP"


BINARY = "base64:" + base64.b64encode(KEY).decode()
ARMOURED = armoured(KEY)
OTHER = "0" * 40
# Another key of version 4, one of version 6, and a secret key.
SECOND = b"\x98\x02\x04\x00"
SECOND_FINGERPRINT = hashlib.sha1(b"\x99\x00\x02\x04\x00").hexdigest().upper()
VERSION_6 = b"\x98\x01\x06"
SECRET = b"\x94\x01\x04"
FORM = ("another form than its name says", "armoured for .asc, binary for .gpg")


@pytest.mark.parametrize(
    ("path", "fingerprint", "text", "changes"),
    [
        ("x.gpg", FINGERPRINT, BINARY, []),
        ("x.asc", FINGERPRINT, BINARY, [FORM]),
        ("x.gpg", FINGERPRINT, ARMOURED, [FORM]),
        ("x.asc", FINGERPRINT, ARMOURED, []),
        # As vendors print it.
        ("x.asc", f"{FINGERPRINT[:4].lower()} {FINGERPRINT[4:]}", ARMOURED, []),
        ("x.asc", FINGERPRINT, None, [("missing", f"the key {FINGERPRINT}")]),
        ("x.gpg", OTHER, BINARY, [(f"the key {FINGERPRINT}", OTHER)]),
        ("x.asc", OTHER, "<html>", [("not an OpenPGP key (no armour)", f"the key {OTHER}")]),
        *(
            ("x.asc", FINGERPRINT, text, [(f"the key {FINGERPRINT}, {other}", FINGERPRINT)])
            for text, other in (
                (armoured(KEY + SECOND), SECOND_FINGERPRINT),
                (f"{ARMOURED}\n{armoured(SECOND)}", SECOND_FINGERPRINT),
                (armoured(KEY + VERSION_6), "a key of version 6"),
                (armoured(KEY + SECRET), "a packet of type 5"),
            )
        ),
        (
            "x.asc",
            FINGERPRINT,
            f"{ARMOURED}\n{armoured(SECOND).replace('PUBLIC', 'PRIVATE')}",
            [("a block that is not a public key", f"the key {FINGERPRINT}")],
        ),
    ],
)
def test_differences_of_keyrings(path: str, fingerprint: str, text: Any, changes: Changes) -> None:
    entry = {"path": f"/etc/apt/keyrings/{path}", "fingerprint": fingerprint}
    files = {entry["path"]: None if text is None else FILE}
    assert differences("keyrings", entry, text, files=files) == changes


def test_a_keyring_is_only_roots_to_write() -> None:
    entry = {"path": "/etc/apt/keyrings/x.asc", "fingerprint": FINGERPRINT}
    files = {entry["path"]: FOREIGN_FILE}
    found = differences("keyrings", entry, ARMOURED, files=files)
    assert found == [("mode 0666", "0644"), *OPEN[1:]]


ROOT_FOLDERS = dict.fromkeys(("/", "/etc", "/etc/apt", "/etc/apt/keyrings"), FOLDER)


@pytest.mark.parametrize(
    ("path", "state", "changes"),
    [
        ("/etc/apt", ["directory", "0750", "root", "adm", None, 0, 4], []),
        ("/etc/apt", None, []),
        ("/etc/apt", ["directory", "0777", "root", "root", None, 0, 0], [OPEN[0]]),
        ("/etc", ["directory", "0775", "bob", "bob", None, 7, 7], [OPEN[0], OPEN[1]]),
        ("/etc/apt", FILE, [("a file", "a directory")]),
        (
            "/etc/apt/keyrings",
            ["directory", "0700", "root", "root", None, 0, 0],
            [("mode 0700", "at least 0755, at most 7755")],
        ),
    ],
)
def test_differences_of_parent_folders(path: str, state: Any, changes: Changes) -> None:
    changes = [(found.replace("0666", "0777"), expected) for found, expected in changes]
    owned: dict[str, Any] = {
        "files": [{"path": "/etc/apt/keyrings/x"}, {"path": "/etc/apt/keyrings/y"}]
    }
    answer = {
        "parents": {**ROOT_FOLDERS, path: state},
        "files": {entry["path"]: FILE for entry in owned["files"]},
    }
    assert set(ROOT_FOLDERS) == set(survey.question([owned])["parents"])
    found = survey.differences(owned, answer)
    assert [(one.kind, one.name) for one in found] == [("parent_folders", path)] * len(changes)
    if path == "/etc":
        changes = [("mode 0775", changes[0][1]), changes[1]]
    assert [(one.found, one.expected) for one in found] == changes


def test_parent_folders_of_people_are_not_compared() -> None:
    owned: dict[str, Any] = {
        "files": [
            {"path": "/srv/shared", "state": "directory"},
            {"path": "/etc/x/y", "state": "absent"},
        ],
        "lines": [{"path": "/home/bob/.ssh/authorized_keys", "lines": [], "user": "bob"}],
    }
    assert "parents" not in survey.question([owned])


def test_a_link_in_the_place_of_a_parent_is_a_conflict_of_all_below_it() -> None:
    unsafe = {"/etc/x": ["/etc/x", "a symbolic link to /tmp, owned by bob", "a folder"]}
    parents = {"/": FOLDER, "/etc": ["directory", "0777", "root", "root", None, 0, 0]}
    owned = {"files": [{"path": f"/etc/{name}"} for name in ("x/y", "x/z", "other")]}
    answer = {
        "parents": parents,
        "files": {"/etc/x/y": None, "/etc/x/z": None, "/etc/other": None},
        "unsafe": unsafe,
    }
    found = engine.compare({"role": owned}, answer, kinds.ALL)["role"]
    assert [conflict.reason for conflict in found.conflicts] == [
        "/etc/x: found a symbolic link to /tmp, owned by bob; expected a folder. Move it out of "
        "the way, then run again."
    ]
    # What is not below the link is compared.
    assert [one.name for one in found.differences] == ["/etc", "/etc/other"]


@pytest.mark.parametrize(
    ("entry", "found", "changes"),
    [
        ({}, "580.1", []),
        ({}, "", []),
        ({}, None, [("not loaded", "loaded")]),
        ({"version": "580.1"}, "580.1", []),
        ({"version": "580.2"}, "580.1", [("version 580.1 is loaded", "version 580.2")]),
        ({"version": "580.2"}, "", [("version unknown is loaded", "version 580.2")]),
        ({"state": "absent"}, None, []),
        ({"state": "absent"}, "", [("loaded", "not loaded")]),
    ],
)
def test_differences_of_modules(entry: dict[str, Any], found: Any, changes: Changes) -> None:
    assert differences("modules", {"name": "nvidia", **entry}, found) == changes


def state(
    file: str = "enabled", active: str = "active", needs_reload: bool = False, **more: Any
) -> dict[str, Any]:
    return {
        **state_units.NO_UNIT,
        "load": "loaded",
        "file": file,
        "active": active,
        "reload": needs_reload,
        "start": "i1",
        "began": 100.0,
        "fragment": "/lib/systemd/system/x.service",
        **more,
    }


ON = {"enabled": True, "active": True}
OFF = {"enabled": False, "active": False}


@pytest.mark.parametrize(
    ("entry", "found", "changes"),
    [
        (ON, state(), []),
        (ON, state(active="activating"), []),
        (ON, state(active="auto-restart"), [("auto-restart", "active")]),
        (OFF, state("disabled", "auto-restart"), [("auto-restart", "inactive")]),
        (ON, state(file=""), [("disabled", "enabled")]),
        (ON, state(active="failed"), [("failed", "active")]),
        (ON, None, [("missing", "a unit")]),
        (ON, state(load="not-found", active="inactive"), [("missing", "a unit")]),
        (OFF, None, []),
        (OFF, state("disabled", "inactive"), []),
        (OFF, state(), [("enabled", "disabled"), ("active", "inactive")]),
        ({}, state("disabled", "failed"), []),
        (
            {},
            state(needs_reload=True),
            [("its files changed since systemd read them", "read again")],
        ),
    ],
)
def test_differences_of_units(entry: dict[str, Any], found: Any, changes: Changes) -> None:
    answer = {"starts": {"x.service": None}}
    assert differences("units", {"name": "x.service", **entry}, found, **answer) == changes


# All states of a unit file in systemctl(1), is-enabled; "" is a unit without a unit file.
@pytest.mark.parametrize(
    ("file", "enabled", "disabled"),
    [
        ("enabled", True, False),
        ("enabled-runtime", False, False),
        ("linked", False, True),
        ("linked-runtime", False, True),
        ("alias", False, False),
        ("masked", False, True),
        ("masked-runtime", False, True),
        ("static", False, True),
        ("indirect", False, True),
        ("disabled", False, True),
        ("generated", False, True),
        ("transient", False, False),
        ("bad", False, False),
        ("a state of a later systemd", False, False),
        ("", False, True),
    ],
)
def test_a_unit_is_enabled_or_disabled_only_in_known_states(
    file: str, enabled: bool, disabled: bool
) -> None:
    answer = {"starts": {"x.service": None}}
    entry = {"name": "x.service"}
    as_on = differences("units", {**entry, "enabled": True}, state(file), **answer)
    as_off = differences("units", {**entry, "enabled": False}, state(file), **answer)
    assert as_on == ([] if enabled else [(file or "disabled", "enabled")])
    assert as_off == ([] if disabled else [(file, "disabled")])


START = {"start": "i1", "files": {"/etc/x": "a"}}


@pytest.mark.parametrize(
    ("found", "record", "stale"),
    [
        # Without a record of this start, the change time decides.
        ([99.0, "a"], None, False),
        ([101.0, "a"], None, True),
        (None, None, False),
        ([101.0, "a"], {**START, "start": "i0"}, True),
        ([99.0, "b"], {**START, "start": "i0"}, False),
        ([101.0, "a"], {"start": "i1", "files": {}}, True),
        # With a record, the content does: whatever the clock said when it was written.
        ([101.0, "a"], START, False),
        ([9e9, "a"], START, False),
        ([99.0, "b"], START, True),
        (None, START, True),
        ([99.0, "b"], {"start": "i1", "files": {"/etc/x": None}}, True),
        (None, {"start": "i1", "files": {"/etc/x": None}}, False),
    ],
)
def test_a_service_must_have_read_its_files(
    found: Any, record: dict[str, Any] | None, stale: bool
) -> None:
    changes = [("started before /etc/x changed", "started after it")] if stale else []
    entry = {"name": "x.service", "active": True, "reads": ["/etc/x"]}
    answer = {"starts": {"x.service": record}, "reads": {"/etc/x": found}}
    assert differences("units", entry, state(), **answer) == changes
    # The same for its own unit file and drop-ins.
    entry = {"name": "x.service", "active": True}
    answer = {"starts": {"x.service": record}}
    assert differences("units", entry, state(files={"/etc/x": found}), **answer) == changes


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        (OFF, state("disabled", "inactive")),
        # systemd restarts no socket below a running service.
        (ON, state(began=0.0, files={"/etc/y": [101.0, "a"]})),
        ({"enabled": True}, state()),
    ],
)
def test_a_stopped_service_has_read_nothing(entry: dict[str, Any], found: Any) -> None:
    entry = {"name": "x.service", "reads": ["/etc/x"], **entry}
    answer = {"starts": {"x.service": None}, "reads": {"/etc/x": [101.0, "a"]}}
    assert differences("units", entry, found, **answer) == []


def test_a_record_without_a_start_counts_for_no_unit() -> None:
    entry = {"name": "x.service", "active": True, "reads": ["/etc/x"]}
    record = {"start": "", "files": {"/etc/x": "a"}}
    answer = {"starts": {"x.service": record}, "reads": {"/etc/x": [101.0, "a"]}}
    assert differences("units", entry, state(start=""), **answer)


LOST = (
    "the packet filter has no rules for the networks bridge, team",
    "the rules that the engine writes when it starts",
)


@pytest.mark.parametrize(
    ("entry", "active", "rules", "changes", "verb"),
    [
        ({"packet_filter": True}, "active", {"missing": ["bridge", "team"]}, [LOST], "restart"),
        ({"packet_filter": True}, "active", {"missing": []}, [], ""),
        ({"packet_filter": True}, "active", None, [], ""),
        ({"packet_filter": True}, "failed", None, [("failed", "active")], ""),
        (
            {"packet_filter": False, "active": False},
            *("active", {"missing": ["bridge"]}),
            *([("active", "inactive")], "stop"),
        ),
    ],
)
def test_a_running_engine_needs_its_rules_in_the_packet_filter(
    entry: dict[str, Any], active: str, rules: Any, changes: Changes, verb: str
) -> None:
    entry = {"name": "x.service", "active": True, **entry}
    answer = {"starts": {"x.service": None}, "packet_filter": {"x.service": rules}}
    found = state(active=active)
    assert differences("units", entry, found, **answer) == changes
    assert state_units.disturbing_verb(entry, {"units": {"x.service": found}, **answer}) == verb
    asked = survey.question([{"units": [entry]}])
    assert asked.get("packet_filter") == (["x.service"] if entry["packet_filter"] else None)
    assert next(iter(asked)) == "units", "whether the engine runs is asked first"


@pytest.mark.parametrize(
    ("entry", "found", "sentences"),
    [
        ({}, state(), []),
        ({}, None, []),
        ({}, state(fragment="/usr/lib/systemd/system/x.service"), []),
        ({}, state("masked", fragment="/etc/systemd/system/x.service"), []),
        (
            {},
            state(fragment="/etc/systemd/system/x.service"),
            ["x.service is defined by /etc/systemd/system/x.service, not by its package"],
        ),
        (
            {"unit_files": ["/etc/systemd/system/x.service"]},
            state(fragment="/etc/systemd/system/x.service"),
            [],
        ),
        ({}, state(drop_ins={"/etc/systemd/system/x.service.d/a.conf": []}), []),
        (
            {},
            state(drop_ins={"/run/systemd/system/x.service.d/a.conf": ["ExecStart", "User"]}),
            ["x.service: drop-in /run/systemd/system/x.service.d/a.conf sets ExecStart, User"],
        ),
        ({"unit_files": ["/etc/a.conf"]}, state(drop_ins={"/etc/a.conf": ["ExecStart"]}), []),
        (
            {},
            state(drop_ins={"/etc/\x1b[2J": ["User"]}),
            ["x.service: drop-in /etc/\\x1b[2J sets User"],
        ),
    ],
)
def test_drop_ins_of_others_are_information(
    entry: dict[str, Any], found: Any, sentences: list[str]
) -> None:
    owned = {"units": [{"name": "x.service", "enabled": True, "active": True, **entry}]}
    answer = {"units": {"x.service": found}, "starts": {"x.service": None}}
    assert engine.information([owned, owned], answer, kinds.ALL) == sentences


@pytest.mark.parametrize(
    ("entry", "found", "changes"),
    [
        ({}, [2000, []], []),
        ({"gid": 2000}, [2000, []], []),
        ({"gid": 2000}, [2001, []], [("gid 2001", "2000")]),
        ({"gid": 0}, [1, []], [("gid 1", "0")]),
        ({}, None, [("missing", "a group")]),
    ],
)
def test_groups(entry: dict[str, Any], found: Any, changes: Changes) -> None:
    gids = {"gids": {"2000": None, "0": None}}
    assert differences("groups", {"name": "lab", **entry}, found, **gids) == changes


ALICE = [1500, 1500, "/home/alice", "/bin/bash", "Alice"]


@pytest.mark.parametrize(
    ("entry", "found", "changes"),
    [
        ({}, ALICE, []),
        ({"uid": 1500, "home": "/home/alice", "shell": "/bin/bash"}, ALICE, []),
        (
            {"uid": 1, "home": "/data", "shell": "/bin/sh"},
            ALICE,
            [("uid 1500", "1"), ("home /home/alice", "/data"), ("shell /bin/bash", "/bin/sh")],
        ),
        ({"comment": "A."}, ALICE, [("comment Alice", "A.")]),
        ({}, None, [("missing", "a user")]),
        ({"state": "absent"}, None, []),
        ({"state": "absent"}, ALICE, [("present", "absent")]),
    ],
)
def test_differences_of_users(entry: dict[str, Any], found: Any, changes: Changes) -> None:
    further = {"uids": {"1": None, "1500": "alice"}, "homes": {"/home/alice": None, "/data": None}}
    assert differences("users", {"name": "alice", **entry}, found, **further) == changes


@pytest.mark.parametrize("found", [None, ALICE])
def test_a_uid_of_another_user_and_an_unsafe_home_are_in_the_way(found: Any) -> None:
    for entry, words in (({"uid": 7}, "found uid 7 of user bob"), ({"home": "/data"}, "a link")):
        stated = {"name": "alice", **entry}
        asked = survey.question([{"users": [stated]}])
        assert (asked.get("uids"), asked.get("homes")) in ((["7"], None), (None, ["/data"]))
        with pytest.raises(model.ConflictError, match=words):
            differences("users", stated, found, uids={"7": "bob"}, homes={"/data": "a link"})


def test_keys_where_nobody_looks_stop_with_what_to_do() -> None:
    entry = {"path": "/home/alice/.ssh/authorized_keys", "lines": ["k"], "user": "alice"}
    further = {"users": {"alice": [*ALICE[:2], "/data/alice", *ALICE[3:]]}}
    assert differences("lines", entry, "k\n", **further) == []
    with pytest.raises(model.ConflictError, match="Set 'home: /data/alice'"):
        differences("lines", {**entry, "home": "/home/alice"}, None, **further)
    new = {"users": {"alice": None}}
    assert differences("lines", {**entry, "home": "/home/alice"}, "k\n", **new) == []


USERS = {"alice": ALICE}
EVE_OUT = ("eve is a member", "no member, because nobody listed it")


@pytest.mark.parametrize(
    ("entry", "found", "changes"),
    [
        ({}, [998, ["alice", "eve"]], []),
        ({}, [998, []], [("alice is not a member", "a member")]),
        ({}, None, [("alice is not a member", "a member")]),
        ({"exclusive": True}, [998, ["alice"]], []),
        ({"exclusive": True}, [998, ["alice", "eve"]], [EVE_OUT]),
        ({"users": [], "exclusive": True}, None, []),
    ],
)
def test_differences_of_members(entry: dict[str, Any], found: Any, changes: Changes) -> None:
    assert (
        differences("members", {"group": "docker", "users": ["alice"], **entry}, found, users=USERS)
        == changes
    )


def test_a_missing_user_is_not_missing_in_each_group_as_well() -> None:
    entry = {"group": "docker", "users": ["alice", "bob"], "exclusive": True}
    users = {"alice": None, "bob": ALICE}
    found = differences("members", entry, [998, ["eve"]], users=users)
    assert found == [("bob is not a member", "a member"), EVE_OUT]


def test_a_group_of_others_has_to_be_there() -> None:
    entry = {"group": "video", "users": ["alice", "bob"], "foreign": True}
    users = {"alice": ALICE, "bob": None}
    assert differences("members", entry, [44, ["alice", "bob"]], users=users) == []
    with pytest.raises(model.ConflictError, match=r"no such group for alice, bob; .* Declare"):
        differences("members", entry, None)


# Accounts of a directory service.

ANNA = [90001, 90001, "/home/corp/anna", "/bin/bash", "Anna", "anna@corp.example"]


@pytest.mark.parametrize(
    ("declared", "members", "changes"),
    [
        ("anna@corp.example", ["anna@corp.example"], []),
        # The service knows the account by several names; groups list its own name.
        ("CORP\\anna", ["anna@corp.example"], []),
        ("Anna@CORP.example", [], [("anna@corp.example is not a member", "a member")]),
        (
            *("CORP\\anna", ["CORP\\anna"]),
            [
                ("anna@corp.example is not a member", "a member"),
                ("CORP\\anna is a member", "no member, because nobody listed it"),
            ],
        ),
    ],
)
def test_members_of_a_directory_service(
    declared: str, members: list[str], changes: Changes
) -> None:
    entry = {"group": "docker", "users": [declared], "exclusive": True}
    assert differences("members", entry, [998, members], users={declared: ANNA}) == changes


def test_members_of_a_group_of_a_directory_service_are_not_changed_here() -> None:
    entry = {"group": "docker", "users": ["alice"], "exclusive": True}
    assert differences("members", entry, [998, ["alice"], True], users=USERS) == []
    with pytest.raises(model.ConflictError, match="group docker is of a directory service: found"):
        differences("members", entry, [998, [], True], users=USERS)
    with pytest.raises(model.ConflictError, match="eve is a member; expected"):
        differences("members", entry, [998, ["alice", "eve"], True], users=USERS)
    # Without anything to change, its kind does not matter.
    entry = {"group": "docker", "users": ["alice"]}
    assert differences("members", entry, [998, ["alice", "eve"], True], users=USERS) == []


@pytest.mark.parametrize(
    ("entry", "found", "words"),
    [
        ({}, ANNA, ""),
        ({"uid": 90001, "home": "/home/corp/anna"}, ANNA, ""),
        ({"uid": 5}, ANNA, "found uid 90001; expected 5"),
        ({"shell": "/bin/zsh"}, ANNA, "found shell /bin/bash; expected /bin/zsh"),
        ({"state": "absent"}, ANNA, "expected an account of this host to remove"),
        ({"state": "absent"}, None, ""),
        ({}, None, "found no such user; expected one that exists"),
    ],
)
def test_accounts_of_a_directory_service_are_not_changed(
    entry: dict[str, Any], found: Any, words: str
) -> None:
    name = "CORP\\anna"
    more: dict[str, Any] = {
        "uids": {"5": None, "90001": name},
        "homes": {"/home/corp/anna": "a link"},
    }
    entry = {"name": name, **entry}
    if not words:
        assert differences("users", entry, found, **more) == []
        return
    with pytest.raises(model.ConflictError) as conflict:
        differences("users", entry, found, **more)
    assert words in str(conflict.value)


@pytest.mark.parametrize(
    ("name", "gid", "found", "words"),
    [
        ("domain users", None, [70000, [], True], ""),
        ("domain users", None, None, "found no such group"),
        ("research", 5, [70000, [], True], "found gid 70000; expected 5"),
    ],
)
def test_groups_of_a_directory_service_are_not_changed(
    name: str, gid: int | None, found: Any, words: str
) -> None:
    if not words:
        assert differences("groups", {"name": name, "gid": gid}, found) == []
        return
    with pytest.raises(model.ConflictError) as conflict:
        differences("groups", {"name": name, "gid": gid}, found, gids={"5": None})
    assert words in str(conflict.value)


def test_keys_belong_to_the_own_name_of_an_account() -> None:
    entry = {"path": "/h/.ssh/k", "lines": ["x"], "user": "CORP\\anna"}
    files = dict.fromkeys(("/h", "/h/.ssh"))
    state = ["file", "0600", "anna@corp.example", "g", None, 7, 7]
    users = {"CORP\\anna": ANNA}
    found = {**files, "/h/.ssh/k": state}
    assert differences("lines", entry, "x\n", files=found, users=users) == []
    found["/h/.ssh/k"] = ["file", "0600", "eve", "g", None, 7, 7]
    (change,) = differences("lines", entry, "x\n", files=found, users=users)
    assert change == ("/h/.ssh/k: owner eve", "anna@corp.example or root")


NEW, OLD = "a" * 64, "b" * 64
RECORD = {"digest": NEW, "id": "sha256:1", "origin": "built", "time": 1_800_000_000}
UNRECORDED = "an image that was built or loaded, and tested, on this host"


@pytest.mark.parametrize(
    ("found", "engine", "changes"),
    [
        (["sha256:1", RECORD], None, []),
        (
            ["sha256:1", {**RECORD, "digest": OLD}],
            None,
            [(f"context digest {OLD[:12]}", NEW[:12])],
        ),
        (
            [f"sha256:{OLD}", RECORD],
            None,
            [(f"other content than the image built here on 2027-01-15: {OLD[:12]}", "1")],
        ),
        (
            [f"sha256:{OLD}", {"time": 0}],
            None,
            [(f"content {OLD[:12]} is not recorded on this host", UNRECORDED)],
        ),
        (
            [f"sha256:{OLD}", {"digest": NEW, "time": 0}],
            None,
            [(f"content {OLD[:12]} is not recorded on this host", UNRECORDED)],
        ),
        (None, None, [("missing", "built")]),
        (None, "connection refused", [("Docker does not answer", "built")]),
    ],
)
def test_differences_of_images(found: Any, engine: str | None, changes: Changes) -> None:
    entry = {"reference": "slipway/x:cpu", "digest": NEW}
    assert differences("images", entry, found, engine=engine) == changes


def test_the_folders_of_records_must_be_roots() -> None:
    service = {"projects": [{"name": "api", "services": []}]}
    image = {"images": [{"reference": "slipway/x:cpu", "digest": NEW}]}
    assert engine.guarded(service, kinds.ALL) == ["/var/lib/slipway/services/api.json"]
    assert engine.guarded(image, kinds.ALL) == ["/var/lib/slipway/images/slipway-x-cpu.json"]


def test_images_of_an_engine_that_did_not_answer_at_all() -> None:
    owned = {"images": [{"reference": "slipway/x:cpu", "digest": NEW}]}
    (found,) = survey.differences(owned, {"engine": "connection refused"})
    assert found.found == "Docker does not answer"


DECLARED: dict[str, Any] = {
    "user": "1000:1000",
    "restart": "unless-stopped",
    "networks": ["api_default"],
    "ports": [],
    "mounts": [],
    "shm_size": 0,
    "settings": {"cap_drop": ["ALL"], "security_opt": ["no-new-privileges:true"]},
    "command": "",
    "healthcheck": "",
    "labels": {"io.slipway.config": "c1"},
    "variables": [],
    "environment": "of nothing",
}
WEB = {"name": "web", "config": "c1", "image": NEW, "reference": "slipway/web:cpu"}
FOREIGN = {"containers": [], "starting": False}


def project_changes(
    found: list[Any],
    record: Any = None,
    image: Any = ("sha256:1", RECORD),
    right_environment: bool = True,
    limits: Any = ("memory", "pids"),
    addresses: Any = (),
    **declared: Any,
) -> Changes:
    """Return the changes of the project api with the service web."""
    service = {**WEB, "container": {**DECLARED, **declared}}
    return differences(
        "projects",
        {"name": "api", "services": [service]},
        project_answer(found, record, limits),
        images={"slipway/web:cpu": image},
        environments={"api": [one["id"] for one in found if right_environment]},
        addresses=dict(addresses),
    )


@pytest.mark.parametrize(
    ("port", "address"),
    [("203.0.113.9:80:80/tcp", "203.0.113.9"), ("fd00::1:80:80/tcp", "fd00::1")],
)
def test_ports_are_bound_to_addresses_of_the_host(port: str, address: str) -> None:
    service = {**WEB, "container": {**DECLARED, "ports": [port]}}
    asked = survey.question([{"projects": [{"name": "api", "services": [service]}]}])
    assert asked["addresses"] == [address]
    found = [described(ports=[port])]
    assert project_changes(found, ports=[port], addresses={address: True}) == []
    with pytest.raises(model.ConflictError, match=f"bind_address {address} is not an address of"):
        project_changes(found, ports=[port], addresses={address: False})


@pytest.mark.parametrize(
    ("address", "is_there"),
    [("127.0.0.1", True), ("0.0.0.0", True), ("203.0.113.9", False), ("2001:db8::9", False)],
)
def test_an_address_is_one_that_a_program_can_listen_on(address: str, is_there: bool) -> None:
    assert service_files.ask_address(address) is is_there


@pytest.mark.parametrize(
    ("found", "changes"),
    [
        ([described()], []),
        ([described(health="healthy")], []),
        ([described(health="starting")], []),
        ([], [("web is missing", "running")]),
        ([described(state="exited")], [("web is exited", "running")]),
        ([described(state="paused")], [("web is paused", "running")]),
        ([described(health="unhealthy")], [("web is unhealthy", "healthy")]),
        ([described(config="c0")], [("web runs an older configuration", "the declared one")]),
        ([described(image="sha256:2")], [("web runs image 2", "1")]),
        ([described(), described("db")], [("db is there", "removed")]),
        ([described(user="1:1")], [("web: user 1:1", "1000:1000")]),
        ([described(restart="no")], [("web: restart no", "unless-stopped")]),
        (
            [described(networks=["api_default", "host"])],
            [('web: networks ["api_default", "host"]', '["api_default"]')],
        ),
        ([described(ports=["0.0.0.0:1:1/tcp"])], [('web: ports ["0.0.0.0:1:1/tcp"]', "none")]),
        (
            [described(mounts=[["bind", "/", "/host", True]])],
            [('web: mounts [["bind", "/", "/host", true]]', "none")],
        ),
        ([described(variables=["A", "http_proxy"])], None),
    ],
)
def test_differences_of_projects(found: Any, changes: Changes | None) -> None:
    if changes is None:
        assert project_changes(found)
    else:
        assert project_changes(found) == changes


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("privileged", True, "true"),
        ("cap_add", ["SYS_ADMIN"], '["SYS_ADMIN"]'),
        ("cap_drop", ["NET_RAW"], '["NET_RAW"]'),
        ("security_opt", ["seccomp=unconfined"], '["seccomp=unconfined"]'),
        ("devices", ["/dev/sda"], '["/dev/sda"]'),
        ("pid", "host", "host"),
        ("ipc", "host", "host"),
        ("systempaths", "unconfined", "unconfined"),
        ("group_add", ["0"], '["0"]'),
        ("tmpfs", {"/x": ""}, '{"/x": ""}'),
        ("mem_limit", 1, "1"),
        ("gpus", [["cdi", 0, ["nvidia.com/gpu=all"]]], '[["cdi", 0, ["nvidia.com/gpu=all"]]]'),
    ],
)
def test_each_setting_of_a_container_is_compared(name: str, value: Any, text: str) -> None:
    known = described()["settings"]
    found = described(settings={**known, name: value})
    expected = json.dumps(known[name]) if name in known else "none"
    assert project_changes([found], {"containers": [found["id"]], "starting": False}) == [
        (f"web: {name} {text}", expected)
    ]


@pytest.mark.parametrize(
    ("limits", "changes"),
    [(["memory"], [("web: mem_limit none", "5")]), ([], [])],
    ids=["the kernel has limits", "the kernel has none"],
)
def test_a_limit_that_the_kernel_does_not_have_is_no_drift(
    limits: list[str], changes: Changes
) -> None:
    declared = {**DECLARED["settings"], "mem_limit": 5}
    assert project_changes([described()], limits=limits, settings=declared) == changes


@pytest.mark.parametrize("key", ["command", "entrypoint", "healthcheck", "working_dir"])
def test_the_command_of_a_container_is_compared_and_not_shown(key: str) -> None:
    found = described()
    found["own"][key] = "another"
    assert project_changes([found]) == [(f"web: {key} differs", "the declared one")]


def test_a_declared_command_replaces_that_of_the_image() -> None:
    found = described()
    found["own"]["command"] = "declared"
    assert project_changes([found], command="declared") == []
    assert project_changes([described()], command="declared") != []


def test_variables_are_compared_and_their_values_not_shown() -> None:
    assert project_changes([described()], right_environment=False) == [
        ("web: values of environment variables differ", "the declared ones")
    ]
    found = described(variables=["MINE", "HTTP_PROXY", "no_proxy", "ADDED"])
    assert project_changes([found], variables=["MINE"]) == [
        ("web: undeclared environment variables ADDED", "none")
    ]


def test_labels_that_others_read_are_compared() -> None:
    labels = {"io.slipway.config": "c1", "io.slipway.token": "/etc/shadow"}
    assert project_changes(
        [described(labels=labels)], labels={**labels, "io.slipway.token": "/x"}
    ) == [("web: label io.slipway.token differs", "the declared one")]


@pytest.mark.parametrize(
    ("image", "changes"),
    [
        (["sha256:9", RECORD], []),
        (["", RECORD], []),
        (["sha256:1", {**RECORD, "digest": OLD}], [("web runs an older image", NEW[:12])]),
        (
            ["sha256:1", {"time": 0}],
            [("web runs an image that is not recorded on this host", NEW[:12])],
        ),
        (None, [("web runs an image that is not recorded on this host", NEW[:12])]),
    ],
    ids=["the tag moved", "no tag", "older", "not recorded", "no image"],
)
def test_a_container_must_run_the_recorded_content(image: Any, changes: Changes) -> None:
    assert project_changes([described()], image=image) == changes


EVIL: dict[str, Any] = {
    "settings": {"privileged": True},
    "mounts": [["bind", "/", "/host", True]],
    "id": "evil",
}
REFUSED = (
    "has its labels but was not started by Slipway; expected no such container. Stop using it, "
    "then run: docker rm --force "
)


@pytest.mark.parametrize(
    ("found", "record", "changes"),
    [
        ([described(**EVIL)], None, f"{REFUSED}evil"),
        ([described(user="0:0")], None, REFUSED),
        ([described(), described(**EVIL)], None, REFUSED),
        ([described(**EVIL), described()], FOREIGN, REFUSED),
        ([described(config="c0", id="evil")], FOREIGN, REFUSED),
        ([described(), described(id="evil")], FOREIGN, REFUSED),
        ([described()], FOREIGN, []),
        ([described("db", id="evil", name="api-web-1"), described()], FOREIGN, REFUSED),
    ],
    ids=[
        *(
            "alone",
            "as root",
            "beside ours",
            "first",
            "another configuration",
            "a copy beside one that counts",
        ),
        *("exactly as declared", "of an unknown service"),
    ],
)
def test_a_foreign_container_is_named_whatever_its_labels(
    found: Any, record: Any, changes: Changes | str
) -> None:
    if isinstance(changes, str):
        with pytest.raises(model.ConflictError) as caught:
            project_changes(found, record)
        assert changes in str(caught.value)
    else:
        assert project_changes(found, record) == changes


def test_the_variables_are_asked_for_after_the_containers() -> None:
    service = {**WEB, "container": DECLARED}
    question = survey.question([{"projects": [{"name": "api", "services": [service]}]}])
    assert list(question).index("projects") < list(question).index("environments")
    assert question["environments"] == [json.dumps(["api", [], "of nothing"])]


def test_projects_of_an_engine_that_does_not_answer() -> None:
    entry = {"name": "api", "services": []}
    expected = [("Docker does not answer", "running")]
    assert differences("projects", entry, None, engine="connection refused") == expected


@pytest.mark.parametrize(
    ("changed", "stale"), [(CREATED - 9.5, False), (CREATED + 0.9, False), (CREATED + 1, True)]
)
def test_a_container_must_have_read_its_secrets(changed: float, stale: bool) -> None:
    owned = {
        "projects": [
            {"name": "api", "services": [{"name": "web", "config": "c1"}], "since": ["/etc/s"]}
        ]
    }
    assert survey.question([owned])["ctimes"] == ["/etc/s"]
    answer = {
        "engine": None,
        "projects": {"api": project_answer([described()])},
        "ctimes": {"/etc/s": changed},
    }
    found = [one.found for one in survey.differences(owned, answer)]
    assert found == (["web was made before a secret changed"] if stale else [])


@pytest.mark.parametrize(
    ("there", "found", "built", "missing"),
    [
        (None, [], [], True),
        (["sha256:1", {**RECORD, "digest": OLD}], [], [], True),
        (["sha256:2", RECORD], [], [], True),
        (["sha256:1", RECORD], [], [], False),
        (None, [], [{"reference": "slipway/web:cpu", "digest": NEW}], False),
        # Somebody removed the image of what runs.
        (["", RECORD], [described()], [], False),
    ],
    ids=["no image", "an older image", "other content", "loaded", "to be built", "running"],
)
def test_a_project_needs_an_image(
    there: Any, found: list[Any], built: list[dict[str, str]], missing: bool
) -> None:
    owned: list[dict[str, Any]] = [
        {"projects": [{"name": "api", "services": [WEB]}]},
        {"images": built},
    ]
    question = survey.question(owned)
    assert question["images"] == ["slipway/web:cpu"]
    answer = {
        "engine": None,
        "images": {"slipway/web:cpu": there},
        "projects": {"api": project_answer(found)},
    }
    found = projects.without_image(owned, answer)
    assert [(one.kind, one.name) for one in found] == ([("projects", "api")] if missing else [])
    assert all("service api needs image slipway/web:cpu" in one.reason for one in found)


def test_a_host_that_builds_no_image_gets_its_engine_first() -> None:
    owned = [{"projects": [{"name": "api", "services": [WEB]}]}]
    assert projects.without_image(owned, {"engine": "no such file"}) == []
    other = {"images": [{"reference": "slipway/other:cpu", "digest": NEW}]}
    assert projects.without_image([*owned, other], {"engine": "no such file"}) != []


# All kinds together.


@pytest.mark.parametrize("kind", kinds.ALL.values(), ids=lambda kind: kind.name)
def test_every_kind_is_documented_in_its_file(kind: model.Kind) -> None:
    documentation = sys.modules[kind.compare.__module__].__doc__ or ""
    assert re.search(rf"(^|of ){kind.name}( \(``\?``: optional\))?:", documentation, re.MULTILINE)


def test_one_question_covers_all_statements_each_thing_once() -> None:
    one: dict[str, Any] = {
        "units": [{"name": "docker.service", "reads": ["/etc/docker/daemon.json"]}],
        "json": [{"path": "/etc/docker/daemon.json", "settings": {}}],
        "refused": [],
    }
    other: dict[str, Any] = {
        "keyrings": [{"path": "/etc/apt/keyrings/x.asc", "fingerprint": ""}],
        "members": [{"group": "docker", "users": []}],
        "groups": [{"name": "docker"}, {"name": "lab"}],
    }
    parents = ["/", "/etc", "/etc/apt", "/etc/apt/keyrings", "/etc/docker"]
    assert survey.question([one, other]) == {
        "files": ["/etc/apt/keyrings/x.asc"],
        "groups": ["docker", "lab"],
        "parents": parents,
        "reads": ["/etc/docker/daemon.json"],
        "starts": ["docker.service"],
        "targets": ["/etc/docker/daemon.json"],
        "texts": ["/etc/apt/keyrings/x.asc", "/etc/docker/daemon.json"],
        "units": ["docker.service"],
    }


def test_every_question_of_a_kind_has_an_answer() -> None:
    assert {kind.asks for kind in kinds.ALL.values()} <= set(kinds.ASKS)


def test_differences_come_in_the_order_in_which_they_are_stated() -> None:
    owned = {
        "groups": [{"name": "b"}, {"name": "a"}],
        "packages": [{"name": "c"}],
    }
    answer = {"groups": {"a": None, "b": None}, "packages": {"c": None}}
    assert [one.name for one in survey.differences(owned, answer)] == ["b", "a", "c"]


@pytest.mark.parametrize(
    ("owned", "problem"),
    [
        ({"pakages": []}, "unknown kind 'pakages' of owned state; expected one of .*packages"),
        ({"packages": [{"version": "1"}]}, "role web: an entry of packages lacks 'name'"),
        ({"images": [{"digest": "d"}]}, "role web: an entry of images lacks 'reference'"),
    ],
)
def test_a_statement_of_another_form_is_refused(owned: dict[str, Any], problem: str) -> None:
    with pytest.raises(model.OwnedStateError, match=problem):
        survey.check("web", owned)


def test_a_sound_statement_is_accepted() -> None:
    sound: dict[str, Any] = {"packages": [{"name": "a"}], "refused": ["because"]}
    survey.check("web", sound)


@pytest.mark.parametrize(
    ("devices", "found", "changes"),
    [
        ({"render": "/dev/dri/renderD128"}, [998, []], [("alice is not a member", "a member")]),
        ({"render": "/dev/dri/renderD128"}, [998, ["alice"]], []),
        ({"video": "/dev/dri/renderD128"}, [998, []], []),
        ({}, [998, []], []),
        ({}, None, []),
    ],
)
def test_members_for_the_sake_of_devices(devices: Any, found: Any, changes: Changes) -> None:
    entry = {"group": "render", "users": ["alice"], "devices": ["/dev/dri/renderD"]}
    answer = {"/dev/dri/renderD": devices}
    assert differences("members", entry, found, devices=answer, users=USERS) == changes


@pytest.mark.parametrize(
    ("found", "changes"),
    [
        ([], []),
        (None, []),
        ([".", "config.json"], [("., config.json in ~/.docker is root's", "alice's")]),
    ],
)
def test_differences_of_files_left_by_root(found: Any, changes: Changes) -> None:
    assert differences("left_by_root", {"user": "alice"}, found) == changes


SOCKET = "unix:///run/user/1500/docker.sock"


@pytest.mark.parametrize(
    ("found", "changes"),
    [
        ([True, 65536, 65536, SOCKET, 7.0], []),
        ([True, 65536, 100, SOCKET, 7.0], [("100 subordinate gids", "65536")]),
        (
            [False, 0, 65536, SOCKET, 7.0],
            [
                ("0 subordinate uids", "65536"),
                ("ends with the user's last session", "lingering"),
            ],
        ),
        (
            [True, 65536, 65536, SOCKET, 0.0],
            [("the engine does not answer", "an engine that answers")],
        ),
        ([True, 65536, 65536, "", 7.0], [("docker context rootless is missing", SOCKET)]),
        ([True, 65536, 65536, "tcp://x", 7.0], [("docker context rootless is tcp://x", SOCKET)]),
        (
            [True, 65536, 65536, SOCKET, 5.0],
            [("started before /etc/x changed", "started after it")],
        ),
        (None, [("missing", "a user with an engine")]),
    ],
)
def test_differences_of_rootless_engines(found: Any, changes: Changes) -> None:
    entry = {"user": "alice", "reads": ["/etc/x", "/etc/none"]}
    further = {
        "users": {"alice": ALICE},
        "reads": {"/etc/x": [6.0, "a"], "/etc/none": None},
        "starts": {"rootless-alice": None},
    }
    assert differences("rootless", entry, found, **further) == changes


NO_CGROUPS = engine_settings.NO_CGROUPS
IS_ZERO = docker_rootless.OBSTACLES[0]["holds"]


@pytest.mark.parametrize(
    ("holds", "text", "stops"),
    [
        (IS_ZERO, None, False),
        (IS_ZERO, "10\n", False),
        (IS_ZERO, "0\n1\n", False),
        (IS_ZERO, "0\n", True),
        (NO_CGROUPS, None, False),
        (NO_CGROUPS, "", False),
        (NO_CGROUPS, "[nvidia-container-cli]\n#no-cgroups = true\n", False),
        (NO_CGROUPS, "[nvidia-container-cli]\nno-cgroups = false # not true\n", False),
        (NO_CGROUPS, "[nvidia-container-cli]\nno-cgroups = true # mine\n", True),
        (NO_CGROUPS, "[nvidia-container-cli]\n\t'no-cgroups'=true\n", True),
        (NO_CGROUPS, "nvidia-container-cli.no-cgroups = true\n", True),
        (NO_CGROUPS, 'nvidia-container-cli = {root = "/", "no-cgroups" = true}\n', True),
    ],
)
def test_obstacles_stop_with_what_to_do(holds: str, text: str | None, stops: bool) -> None:
    entry = {"path": "/etc/x", "holds": holds, "why": "switch it on"}
    if stops:
        with pytest.raises(model.ConflictError, match="switch it on"):
            differences("obstacles", entry, text)
    else:
        assert differences("obstacles", entry, text) == []


def test_further_things_are_asked_for_what_is_compared_with_them() -> None:
    asked = survey.question(
        [
            {
                "files": [{"path": "/srv/a", "default_acl": "0770"}, {"path": "/etc/b"}],
                "members": [{"group": "render", "users": ["a"], "devices": ["/dev/dri/"]}],
                "rootless": [{"user": "alice", "reads": ["/etc/x"]}],
                "json": [{"path": "/etc/j", "settings": {}, "record": "/var/r"}],
                "lines": [{"path": "/home/b/k", "lines": [], "user": "bob", "home": "/home/b"}],
            }
        ]
    )
    assert asked == {
        "acls": ["/srv/a"],
        "devices": ["/dev/dri/"],
        "files": ["/etc/b", "/home", "/home/b", "/home/b/k", "/srv/a"],
        "groups": ["render"],
        "parents": ["/", "/etc"],
        "reads": ["/etc/x"],
        "rootless": ["alice"],
        "starts": ["rootless-alice"],
        "targets": ["/etc/j", "/var/r"],
        "texts": ["/etc/j", "/home/b/k", "/var/r"],
        "users": ["a", "alice", "bob"],
    }


def test_a_difference_reads_as_a_sentence() -> None:
    difference = Difference("units", "docker.service", "inactive", "active")
    assert str(difference) == "units docker.service: inactive, should be active"


# What users put in the way.


UNSAFE = {"/home/b/.ssh/k": ["/home/b/.ssh", "a symbolic link to /etc, owned by b", "a folder"]}
IN_THE_WAY = (
    "/home/b/.ssh: found a symbolic link to /etc, owned by b; expected a folder. Move it out of "
    "the way, then run again."
)


@pytest.mark.parametrize("kind", ["lines", "files", "mounts", "secrets"])
def test_an_obstacle_of_a_user_is_a_conflict_of_that_entry(kind: str) -> None:
    own = {"owner": "7", "group": "7"} if kind in ("mounts", "secrets") else {}
    entry = {"path": "/home/b/.ssh/k", "lines": ["x"], **own}
    other = {"path": "/srv/x", "lines": ["x"], **own}
    answer = {
        "texts": {"/home/b/.ssh/k": None, "/srv/x": None},
        "files": {"/home/b/.ssh/k": None, "/srv/x": None},
        "unsafe": UNSAFE,
    }
    found = survey.compare({"role": {kind: [entry, other]}}, answer)["role"]
    (conflict,) = found.conflicts
    assert (conflict.name, conflict.reason) == ("/home/b/.ssh/k", IN_THE_WAY)
    (difference,) = found.differences
    assert (difference.name, difference.found.endswith("missing")) == ("/srv/x", True)


def test_an_absent_entry_is_removed_as_a_name() -> None:
    entry = {"path": "/home/b/.ssh/k", "state": "absent"}
    (found,) = survey.differences({"files": [entry]}, {"files": {}, "unsafe": UNSAFE})
    assert (found.found, found.expected) == ("present", "absent")


HOME, KEYS_FOLDER, KEYS_FILE = "/h", "/h/.ssh", "/h/.ssh/k"
SURPLUS = "not writable by group or others"


@pytest.mark.parametrize(
    ("path", "state", "changes"),
    [
        (HOME, ["directory", "0775", "b"], []),
        (HOME, ["directory", "0755", "root"], []),
        (HOME, ["link", "0777", "root"], []),
        (HOME, ["directory", "0777", "b"], [("/h: mode 0777", SURPLUS)]),
        (HOME, ["directory", "0755", "c"], [("/h: owner c", "b or root")]),
        (KEYS_FOLDER, ["directory", "0700", "b"], []),
        (KEYS_FOLDER, ["directory", "0777", "b"], [("/h/.ssh: mode 0777", SURPLUS)]),
        (
            KEYS_FOLDER,
            ["directory", "0600", "b"],
            [("/h/.ssh: mode 0600", "at least 0100, at most 7755")],
        ),
        (KEYS_FOLDER, ["directory", "0700", "c"], [("/h/.ssh: owner c", "b or root")]),
        (KEYS_FILE, ["file", "0644", "b"], []),
        (KEYS_FILE, ["file", "0644", "root"], []),
        (KEYS_FILE, ["file", "0664", "b"], [("/h/.ssh/k: mode 0664", SURPLUS)]),
        (KEYS_FILE, ["file", "0600", "c"], [("/h/.ssh/k: owner c", "b or root")]),
        (KEYS_FILE, ["directory", "0600", "b"], [("/h/.ssh/k: a directory", "a file")]),
    ],
)
def test_keys_that_others_can_change(path: str, state: list[Any], changes: Changes) -> None:
    entry = {"path": KEYS_FILE, "lines": ["x"], "user": "b"}
    files = {HOME: None, KEYS_FOLDER: None, KEYS_FILE: None, path: [*state, "b", None, 7, 7]}
    assert set(files) <= set(survey.question([{"lines": [entry]}])["files"])
    answer = {"texts": {KEYS_FILE: "x\n"}, "files": files, "users": {"b": None}}
    found = survey.differences({"lines": [entry]}, answer)
    assert [(one.found, one.expected) for one in found] == changes


def test_lines_in_another_encoding_are_seen() -> None:
    text = "base64:" + base64.b64encode(b"# J\xf6rg\nkey\n").decode()
    entry = {"path": "/h/k", "lines": ["key"]}
    assert survey.differences({"lines": [entry]}, {"texts": {"/h/k": text}}) == []


def test_words_of_a_host_cannot_act_on_a_terminal() -> None:
    owned = {"packages": [{"name": "a", "version": "1"}]}
    answer = {"packages": {"a": ["install", "installed", "2\x1b]0;owned\x07\n"]}}
    (difference,) = survey.differences(owned, answer)
    assert str(difference) == "packages a: version 2\\x1b]0;owned\\x07\\n, should be 1"
