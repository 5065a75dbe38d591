# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The record of what a host had before an upgrade, the way back, and what the inventory may ask."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.apt import changes, package_record
from ansible_collections.slipway.host.plugins.module_utils.apt.package_record import (
    Before,
    Record,
    Rollback,
)
from ansible_collections.slipway.host.plugins.module_utils.state import facts as state_facts
from ansible_collections.slipway.host.plugins.module_utils.state import reading

KERNEL = "6.8.0-149-generic"
RECORD = Record(
    package_record.PROVEN,
    "2026-11-20T08:00:00Z",
    {
        "driver": Before("nvidia_driver", "1", True, "driver_1_amd64.deb", "driver_2_amd64.deb"),
        "lost": Before("nvidia_driver", "1", True),
        "new": Before("nvidia_driver"),
        f"linux-image-{KERNEL}": Before("nvidia_driver"),
        "engine": Before("docker_engine", "5:1", False, "engine_5%3a1_all.deb"),
    },
)
BEFORE: dict[str, changes.PackageState] = {
    "driver": ["hold", "installed", "1"],
    "lost": ["hold", "installed", "1"],
    "new": None,
    f"linux-image-{KERNEL}": None,
    "engine": ["install", "installed", "5:1"],
}
AFTER: dict[str, changes.PackageState] = {
    "driver": ["hold", "installed", "2"],
    "lost": ["hold", "installed", "2"],
    "new": ["hold", "installed", "2"],
    f"linux-image-{KERNEL}": ["install", "installed", "6.8"],
    "engine": ["install", "installed", "5:2"],
}


def test_the_record_survives_its_file() -> None:
    record = package_record.parse(RECORD.to_json())
    assert record == RECORD
    assert package_record.parse("") == Record()


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"state": "proven", "packages": {"a": 1}}'])
def test_a_broken_record_is_told(text: str) -> None:
    with pytest.raises(package_record.RecordError, match=r"Cannot read .*record\.json: "):
        package_record.parse(text)


def test_the_probe_reads_the_same_file(monkeypatch: pytest.MonkeyPatch) -> None:
    assert package_record.FILE == state_facts.UPGRADE_RECORD
    record = Record(package_record.RETURNED, left={"a": ("2", "1")})
    monkeypatch.setattr(reading, "read_file", lambda _path: record.to_json().encode())
    assert state_facts._read_rollback() == ({"a": ["2", "1"]}, False)
    for broken in (None, b"{", b"[]", b'{"left": []}'):
        monkeypatch.setattr(reading, "read_file", lambda _path, text=broken: text)
        assert state_facts._read_rollback() == ({}, False)


def test_an_upgrade_that_goes_on_keeps_the_first_way_back() -> None:
    record = Record(packages={"a": Before("x", "1", True, "a_1.deb", "a_2.deb")})
    record.add({"a": Before("x", "2", True, "a_2.deb", "a_3.deb"), "b": Before("x", "1")})
    assert record.packages == {
        "a": Before("x", "1", True, "a_1.deb", "a_3.deb"),
        "b": Before("x", "1"),
    }
    assert record.files == {"a_1.deb", "a_3.deb"}


def test_versions_that_a_rollback_leaves_are_recorded_once() -> None:
    record = Record(packages={"a": Before("x", "1")})
    record.leave(
        [changes.Move("a", "2", "1"), changes.Move("b", "2", ""), changes.Move("c", "", "1")]
    )
    # The second try finds the first one half done.
    record.leave([changes.Move("a", "1", "1"), changes.Move("d", "3", "1")])
    assert record.state == package_record.RETURNING
    assert record.left == {"a": ("2", "1"), "b": ("2", ""), "d": ("3", "1")}


def test_a_role_is_forgotten_with_what_it_left() -> None:
    record = package_record.parse(RECORD.to_json())
    record.left = {"driver": ("2", "1"), "engine": ("5:2", "5:1")}
    assert record.drop_role("nvidia_driver")
    assert set(record.packages) == set(record.left) == {"engine"}
    assert not record.drop_role("nvidia_driver")


@pytest.mark.parametrize(
    ("version", "file"),
    [("1.0", "a_1.0_amd64.deb"), ("5:29.7~rc_1", "a_5%3a29.7~rc%5f1_amd64.deb")],
)
def test_files_are_named_as_apt_names_them(version: str, file: str) -> None:
    assert package_record.file_name("a", version, "amd64") == file
    assert package_record.file_name("a:amd64", version, "amd64") == file


def test_a_rollback_restores_versions_holds_and_kernel() -> None:
    folder = package_record.FOLDER
    back = package_record.plan_rollback(RECORD, AFTER, "6.5.0-1-generic")
    assert back == Rollback(
        moves=[
            changes.Move("driver", "2", "1"),
            changes.Move("engine", "5:2", "5:1"),
            changes.Move(f"linux-image-{KERNEL}", "6.8", ""),
            changes.Move("lost", "2", "1"),
            changes.Move("new", "2", ""),
        ],
        install=[f"{folder}/driver_1_amd64.deb", f"{folder}/engine_5%3a1_all.deb", "lost=1"],
        purge=[f"linux-image-{KERNEL}", "new"],
        hold=["driver", "lost"],
        unkept=["lost 1"],
    )


def test_a_kernel_that_runs_stays_and_its_driver_goes() -> None:
    driver = f"linux-modules-nvidia-580-server-{KERNEL}"
    record = Record(packages={**RECORD.packages, driver: Before("nvidia_driver")})
    known = {**AFTER, driver: ["hold", "installed", "6.8"]}
    back = package_record.plan_rollback(record, known, KERNEL)
    assert back.stays == [f"linux-image-{KERNEL}"]
    assert back.purge == [driver, "new"]


def test_a_rollback_of_unchanged_packages_only_restores_holds() -> None:
    assert package_record.plan_rollback(RECORD, BEFORE, KERNEL) == Rollback()
    unheld: dict[str, changes.PackageState] = {**BEFORE, "driver": ["install", "installed", "1"]}
    assert package_record.plan_rollback(RECORD, unheld, KERNEL) == Rollback(hold=["driver"])


def test_a_rollback_continues_with_an_unpacked_package() -> None:
    half: dict[str, changes.PackageState] = {**BEFORE, "driver": ["install", "unpacked", "1"]}
    back = package_record.plan_rollback(RECORD, half, KERNEL)
    assert [move.name for move in back.moves] == back.hold == ["driver"]


def test_a_finished_rollback_is_not_repeated() -> None:
    returned = Record(package_record.RETURNED, packages=RECORD.packages)
    assert package_record.plan_rollback(returned, AFTER, KERNEL) == Rollback()


@pytest.mark.parametrize(
    ("entry", "refused"),
    [
        ({"version": "2"}, "Declare 1 (x_version)"),
        ({"version": "2.*"}, ""),
        ({"version": "3"}, ""),
        ({"version": "1"}, ""),
        ({}, ""),
        ({"name": "gone"}, "Declare the previous version (x_version)"),
        ({"name": "gone", "version": "9"}, "Declare the previous version (x_version)"),
        ({"name": "gone", "optional": True}, ""),
        ({"name": "gone", "state": "absent"}, ""),
        ({"name": "another", "version": "2"}, ""),
    ],
)
def test_a_version_that_was_rolled_back_must_be_declared(
    entry: dict[str, Any], refused: str
) -> None:
    facts = {"rolled_back": {"moved": ["2", "1"], "gone": ["2", ""]}}
    packages = [{"name": "moved", **entry}]
    words = " ".join(package_record.find_declared_again(facts, packages, "x_version"))
    assert refused in words
    assert bool(words) == bool(refused)
    assert package_record.find_declared_again({}, packages, "x_version") == []


def test_an_interrupted_rollback_is_the_reason_to_refuse() -> None:
    facts = {"rolled_back": {"moved": ["2", "1"]}, "rollback_interrupted": True}
    packages = [{"name": "moved", "version": "2"}]
    (reason,) = package_record.find_declared_again(facts, packages, "x_version")
    assert reason.startswith("moved 2: its rollback was interrupted; expected")
    assert reason.endswith("Finish it with ./slipway rollback")
    packages[0]["version"] = "1"
    assert package_record.find_declared_again(facts, packages, "x_version") == []


def test_the_record_of_a_rollback_says_whether_it_was_interrupted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    record = Record(package_record.RETURNING, left={"a": ("2", "1")})
    monkeypatch.setattr(reading, "read_file", lambda _path: record.to_json().encode())
    assert state_facts._read_rollback() == ({"a": ["2", "1"]}, True)


def test_many_that_come_again_are_one_sentence() -> None:
    facts = {"rolled_back": {"a": ["2", "1"], "b": ["2", "1"], "c": ["2", "1"]}}
    packages = [{"name": name, "version": "2"} for name in "abc"]
    assert package_record.find_declared_again(facts, packages, "x_version") == [
        "a 2 and 2 more: installed by an upgrade that was rolled back, but declared again. "
        "Declare 1 (x_version), or try the upgrade again with ./slipway upgrade"
    ]
