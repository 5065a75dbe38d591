# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which packages must change, by which commands, and what apt's own words mean."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils import _apt

INSTALLED = ["install", "installed", "1.0"]
HELD = ["hold", "installed", "1.0"]
REMOVED = ["deinstall", "config-files", "1.0"]


@pytest.mark.parametrize(
    ("entry", "known", "expected"),
    [
        pytest.param({}, None, {"install": ["a"]}, id="never heard of"),
        pytest.param({}, INSTALLED, {}, id="installed"),
        pytest.param({}, REMOVED, {"install": ["a"]}, id="only its settings are left"),
        pytest.param({"version": "1.0"}, INSTALLED, {}, id="at its version"),
        pytest.param(
            {"version": "2.0"},
            INSTALLED,
            {"install": ["a=2.0"], "downgrade": True},
            id="at another version",
        ),
        pytest.param({"version": "2.0"}, None, {"install": ["a=2.0"]}, id="new, at a version"),
        pytest.param({"version": "1.*"}, INSTALLED, {}, id="at a version that begins so"),
        pytest.param(
            {"version": "2.*"},
            INSTALLED,
            {"install": ["a=2.*"], "downgrade": True},
            id="at a version that begins otherwise",
        ),
        pytest.param({"optional": True}, INSTALLED, {}, id="optional and there"),
        pytest.param({"optional": True, "hold": True}, HELD, {}, id="optional, there and held"),
        pytest.param({"hold": True}, None, {"install": ["a"], "hold": ["a"]}, id="new and held"),
        pytest.param({"hold": True}, INSTALLED, {"hold": ["a"]}, id="to be held"),
        pytest.param({"hold": True}, HELD, {}, id="held"),
        pytest.param({"hold": False}, HELD, {"unhold": ["a"]}, id="to be unheld"),
        pytest.param({"hold": False}, INSTALLED, {}, id="not held"),
        pytest.param({"hold": False}, None, {"install": ["a"]}, id="new, nothing to unhold"),
        pytest.param({}, HELD, {}, id="a hold that nobody asks about"),
        pytest.param(
            {"hold": True},
            ["hold", "not-installed", ""],
            {"install": ["a"], "hold": ["a"]},
            id="held but not there",
        ),
        pytest.param({"state": "absent"}, HELD, {"purge": ["a"]}, id="to be removed"),
        pytest.param({"state": "absent"}, REMOVED, {"forget": ["a"]}, id="its settings as well"),
        pytest.param({"state": "absent"}, None, {}, id="absent"),
        pytest.param({"state": "absent", "hold": True}, None, {}, id="absent, no hold either"),
    ],
)
def test_a_package(entry: dict[str, Any], known: _apt.Known, expected: dict[str, Any]) -> None:
    plan = _apt.plan([{"name": "a", **entry}], {"a": known})
    assert plan == _apt.Plan(**expected)
    assert plan.changes == bool(expected)


def test_a_missing_package_that_is_optional_is_no_change_of_its_own() -> None:
    plan = _apt.plan([{"name": "a", "optional": True, "hold": True}], {"a": None})
    assert plan == _apt.Plan(optional=["a"])
    assert not plan.changes


def test_what_is_replaced_goes_with_what_replaces_it() -> None:
    wanted: list[dict[str, Any]] = [
        {"name": "new", "hold": True},
        {"name": "old", "state": "absent"},
        {"name": "gone", "state": "absent"},
        {"name": "free", "hold": False},
    ]
    known = {"new": None, "old": INSTALLED, "gone": REMOVED, "free": HELD}
    change, forget, hold, unhold = _apt.commands(_apt.plan(wanted, known))
    # One transaction: nothing is removed before apt has fetched all that is to come.
    assert change[-4:] == ["install", "--", "new", "old-"]
    assert "--purge" in change
    assert forget[-3:] == ["purge", "--", "gone"]
    assert hold[-2:] == ["hold", "new"]
    assert unhold[-2:] == ["unhold", "free"]
    assert "--no-install-recommends" in change
    assert any(option.startswith("--option=DPkg::Lock::Timeout=") for option in change)


def test_what_nothing_replaces_is_purged() -> None:
    (purge,) = _apt.commands(_apt.Plan(purge=["old"], forget=["gone"]))
    assert purge[-4:] == ["purge", "--", "old", "gone"]


def test_the_newest_of_a_set_are_those_that_have_to_be_there() -> None:
    wanted: list[dict[str, Any]] = [
        {"name": "a", "version": "1"},
        {"name": "b", "state": "absent"},
        {"name": "c", "optional": True},
        {"name": "d", "optional": True},
    ]
    assert _apt.newest(wanted, {"a": None, "b": INSTALLED, "c": REMOVED, "d": HELD}) == ["a", "d"]


SHOWN = """\
Package: modules
Version: 6.8.0-149.149+2
Depends: common (<= 580.178.04-1), common (>= 580.178.04)

Package: modules
Version: 6.8.0-149.149+1
Depends: common (<= 580.173.02-1), common (>= 580.173.02)
"""


@pytest.mark.parametrize(
    ("shown", "version", "expected"),
    [
        (SHOWN, "580.178.04", "6.8.0-149.149+2"),
        (SHOWN, "580.173.02", "6.8.0-149.149+1"),
        (SHOWN, "580.1", ""),
        ("Package: modules\nVersion: 1\n", "1", ""),
        ("", "1", ""),
    ],
)
def test_which_version_of_a_package_follows_the_others(
    shown: str, version: str, expected: str
) -> None:
    assert _apt.follower(shown, version) == expected


def test_nothing_to_do_takes_no_command() -> None:
    assert _apt.commands(_apt.Plan()) == []


def test_only_a_downgrade_is_allowed_to_be_one() -> None:
    (up,) = _apt.commands(_apt.Plan(install=["a"]))
    (down,) = _apt.commands(_apt.Plan(install=["a=1"], downgrade=True))
    assert "--allow-downgrades" not in up
    assert "--allow-downgrades" in down


@pytest.mark.parametrize(
    ("output", "stale", "syncing"),
    [
        ("E: Unable to locate package docker-ce", True, False),
        ("E: Package 'a' has no installation candidate", True, False),
        ("E: Version '1' for 'a' was not found", True, False),
        ("Err:1 http://m a 1\n  404  Not Found [IP: 192.0.2.1 80]", True, False),
        ("E: Failed to fetch x  Hash Sum mismatch", False, True),
        ("File has unexpected size (1 != 2). Mirror sync in progress?", False, True),
        ("E: Could not get lock /var/lib/dpkg/lock-frontend", False, False),
        ("", False, False),
    ],
)
def test_apts_words_are_understood(output: str, stale: bool, syncing: bool) -> None:
    assert _apt.is_stale(output) == stale
    assert _apt.is_syncing(output) == syncing


@pytest.mark.parametrize(
    ("output", "gone"),
    [
        ("Reading lists...\nE: Version '1.0' for 'a' was not found\n", ["1.0"]),
        ("E: Version '1*' for 'a' was not found\nE: Version '1*' for 'b' was not found", ["1*"]),
        ("E: Unable to locate package a", []),
        ("The file was not found", []),
    ],
)
def test_a_version_that_vanished_is_told_from_a_package_that_was_never_there(
    output: str, gone: list[str]
) -> None:
    assert _apt.gone(output) == gone


@pytest.mark.parametrize(
    ("output", "told"),
    [
        ("Reading lists...\nE: broken\nW: old\n", "E: broken; W: old"),
        ("dpkg: error processing a\nE: Sub-process failed\n", None),
        ("no usual words\n\n", "no usual words"),
        ("", ""),
        ("".join(f"E: {number}\n" for number in range(9)), "E: 4; E: 5; E: 6; E: 7; E: 8"),
    ],
)
def test_the_lines_that_tell_what_failed(output: str, told: str | None) -> None:
    expected = "; ".join(output.split("\n")).strip("; ") if told is None else told
    assert _apt.errors(output) == expected
