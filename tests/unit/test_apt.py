# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which packages must change, by which commands, and what apt's own words mean."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.apt import changes, run
from ansible_collections.slipway.host.plugins.module_utils.docker import restart_consent
from ansible_collections.slipway.host.plugins.module_utils.state import disturbance
from ansible_collections.slipway.host.plugins.module_utils.state import packages as state_packages
from ansible_collections.slipway.host.plugins.modules import held_packages

from tests.unit.conftest import RunModule

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
def test_a_package(
    entry: dict[str, Any], known: changes.PackageState, expected: dict[str, Any]
) -> None:
    plan = changes.compare([{"name": "a", **entry}], {"a": known})
    assert plan == changes.Changes(**expected)
    assert plan.needed == bool(expected)


def test_a_missing_package_that_is_optional_is_no_change_of_its_own() -> None:
    plan = changes.compare([{"name": "a", "optional": True, "hold": True}], {"a": None})
    assert plan == changes.Changes(optional=["a"])
    assert not plan.needed


def test_a_replaced_package_is_removed_with_its_replacement() -> None:
    wanted: list[dict[str, Any]] = [
        {"name": "new", "hold": True},
        {"name": "old", "state": "absent"},
        {"name": "gone", "state": "absent"},
        {"name": "free", "hold": False},
    ]
    known = {"new": None, "old": INSTALLED, "gone": REMOVED, "free": HELD}
    change, forget, hold, unhold = changes.commands(changes.compare(wanted, known))
    # One transaction: nothing is removed before apt has fetched all that is to come.
    assert change[-4:] == ["install", "--", "new", "old-"]
    assert "--purge" in change
    assert forget[-3:] == ["purge", "--", "gone"]
    assert hold[-2:] == ["hold", "new"]
    assert unhold[-2:] == ["unhold", "free"]
    assert "--no-install-recommends" in change


def test_packages_without_replacement_are_purged() -> None:
    (purge,) = changes.commands(changes.Changes(purge=["old"], forget=["gone"]))
    assert purge[-4:] == ["purge", "--", "old", "gone"]


def test_only_required_packages_decide_the_newest_set() -> None:
    wanted: list[dict[str, Any]] = [
        {"name": "a", "version": "1"},
        {"name": "b", "state": "absent"},
        {"name": "c", "optional": True},
        {"name": "d", "optional": True},
    ]
    assert changes.names_without_versions(
        wanted, {"a": None, "b": INSTALLED, "c": REMOVED, "d": HELD}
    ) == [
        "a",
        "d",
    ]


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
    assert changes.version_that_needs(shown, version) == expected


def test_no_change_runs_no_command() -> None:
    assert changes.commands(changes.Changes()) == []


def test_only_a_planned_downgrade_is_allowed() -> None:
    (up,) = changes.commands(changes.Changes(install=["a"]))
    (down,) = changes.commands(changes.Changes(install=["a=1"], downgrade=True))
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
def test_errors_of_apt_are_parsed(output: str, stale: bool, syncing: bool) -> None:
    assert changes.is_stale(output) == stale
    assert changes.is_syncing(output) == syncing


@pytest.mark.parametrize(
    ("output", "gone"),
    [
        ("Reading lists...\nE: Version '1.0' for 'a' was not found\n", ["1.0"]),
        ("E: Version '1*' for 'a' was not found\nE: Version '1*' for 'b' was not found", ["1*"]),
        ("E: Unable to locate package a", []),
        ("The file was not found", []),
    ],
)
def test_a_withdrawn_version_differs_from_an_unknown_package(output: str, gone: list[str]) -> None:
    assert changes.missing_versions(output) == gone


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
def test_lines_with_the_reason_of_a_failure(output: str, told: str | None) -> None:
    expected = "; ".join(output.split("\n")).strip("; ") if told is None else told
    assert changes.error_lines(output) == expected


@pytest.mark.parametrize(
    ("output", "locked", "interrupted", "full"),
    [
        ("E: Could not get lock /var/lib/apt/lists/lock. It is held by process 9", 1, 0, 0),
        ("E: Unable to acquire the dpkg frontend lock (/var/lib/dpkg/lock-frontend)", 1, 0, 0),
        ("dpkg: error: dpkg frontend lock was locked by another process", 1, 0, 0),
        ("E: dpkg was interrupted, you must manually run 'sudo dpkg --configure -a'", 0, 1, 0),
        ("E: You don't have enough free space in /var/cache/apt/archives/.", 0, 0, 1),
        ("E: Write error - write (28: No space left on device)", 0, 0, 1),
        ("E: Unable to locate package a", 0, 0, 0),
    ],
)
def test_obstacles_of_apt_are_parsed(output: str, locked: int, interrupted: int, full: int) -> None:
    assert changes.is_locked(output) == bool(locked)
    assert changes.is_interrupted(output) == bool(interrupted)
    assert changes.is_full(output) == bool(full)


@pytest.mark.parametrize(
    ("output", "path"),
    [
        (
            " cannot copy extracted data for './opt/a' to '/opt/a.dpkg-new': failed to write "
            "(No space left on device)",
            "/opt/a.dpkg-new",
        ),
        (
            "E: You don't have enough free space in /var/cache/apt/archives/.",
            "/var/cache/apt/archives",
        ),
        ("E: Write error - write (28: No space left on device)", ""),
    ],
)
def test_full_file_systems_are_named(output: str, path: str) -> None:
    assert changes.full_path(output).rstrip("/") == path


UNTRUSTED = "apt source http://m: not signed by the key of its entry in /etc/apt"
VERIFICATION = "W: An error occurred during the signature verification. The repository is not used."


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        pytest.param("Reading package lists...\nW: Target is configured twice", [], id="none"),
        pytest.param(
            "W: Failed to fetch http://m/InRelease  Unable to connect to m:9:\n"
            "W: Some index files failed to download.",
            ["apt source http://m/InRelease: download failed (Unable to connect to m:9). Make"],
            id="out of reach",
        ),
        pytest.param(
            "E: Failed to fetch http://m/Packages  Hash Sum mismatch",
            [
                "apt source http://m/Packages: download failed (Hash Sum mismatch). Run again "
                "when its mirror"
            ],
            id="half-synchronised",
        ),
        pytest.param(
            "E: The repository 'http://m x Release' does not have a Release file.",
            ["apt source http://m: not a repository. Correct"],
            id="no repository",
        ),
        pytest.param(
            "E: The repository 'http://m x InRelease' is not signed.",
            [f"{UNTRUSTED}. Set"],
            id="not signed",
        ),
        pytest.param(
            f"{VERIFICATION} GPG error: http://m x InRelease: The key is missing: NO_PUBKEY 1\n"
            "E: The repository 'http://m x InRelease' is not signed.",
            [f"{UNTRUSTED} (The key is missing: NO_PUBKEY 1). Set"],
            id="another key, by GnuPG",
        ),
        pytest.param(
            f"{VERIFICATION} OpenPGP signature verification failed: http://m x InRelease: "
            "Missing key 1\nW: Failed to fetch http://m/dists/x/InRelease  Missing key 1",
            [f"{UNTRUSTED} (Missing key 1). Set"],
            id="another key, by Sequoia",
        ),
        pytest.param(
            "E: Conflicting values set for option Signed-By regarding source http://m/ x: "
            "/etc/apt/keyrings/m.asc != \nE: The list of sources could not be read.",
            ["apt source http://m/: defined twice in /etc/apt with different Signed-By keys"],
            id="two keys",
        ),
    ],
)
def test_unusable_sources_are_named_with_a_remedy(output: str, expected: list[str]) -> None:
    found = list(changes.unusable_sources(output).values())
    assert len(found) == len(expected)
    assert all(one.startswith(start) for one, start in zip(found, expected, strict=True)), found


def test_sources_with_the_same_error_share_a_sentence() -> None:
    failed = "W: Failed to fetch http://{}  Could not resolve 'm'\n"
    output = failed.format("m/InRelease") + failed.format("m/other") + failed.format("n")
    output += "E: Failed to fetch http://o  Hash Sum mismatch"
    merged = changes.merge_sources(changes.unusable_sources(output))
    assert [one.partition(")")[0] for one in merged] == [
        "apt sources http://m/InRelease, http://m/other, http://n: download failed (Could not "
        "resolve 'm'",
        "apt source http://o: download failed (Hash Sum mismatch",
    ]
    assert merged[1].endswith(
        "Run again when its mirror has finished its own update, or use another mirror."
    )


def test_interrupted_packages_are_listed() -> None:
    known = {
        "a": ["install", "unpacked", "1"],
        "b": INSTALLED,
        "c": REMOVED,
        "d": None,
        "e": ["hold", "half-configured", "1"],
    }
    assert changes.unfinished(known) == ["a", "e"]


@pytest.fixture
def apt(
    tmp_path: Path, program: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Callable[[], list[str]]]:
    """Return a function that gives apt-get and dpkg a script; what that returns tells their calls.

    In the script $count says how often it has been called before.
    """
    monkeypatch.setattr(state_packages, "ask_packages", dict.fromkeys)
    monkeypatch.setattr(run, "RETRIES", (0, 0))
    monkeypatch.setattr(run, "LOCK_PAUSE", 0)
    monkeypatch.setattr(run, "lock_holder", str)
    calls = tmp_path / "calls"
    calls.touch()
    (tmp_path / "simulated").touch()

    def script(body: str) -> Callable[[], list[str]]:
        for name in ("apt-get", "dpkg"):
            # That is how the consent to a change is asked for; see the tests of it below.
            simulated = f"case $* in *--quiet=1*) cat {tmp_path}/simulated; exit 0 ;; esac"
            counted = f'count=$(wc -l <{calls})\necho "{name} $*" >>{calls}'
            program(name, f"{simulated}\n{counted}\n{body}")
        return lambda: [
            " ".join(word for word in line.split() if word[:2] != "--" or word == "--configure")
            for line in calls.read_text().splitlines()
        ]

    return script


Apt = Callable[[str], Callable[[], list[str]]]
WANTED = [{"name": "a"}]


def test_a_half_synchronised_mirror_is_tried_again_and_then_named(
    run_module: RunModule, apt: Apt
) -> None:
    calls = apt(
        """case "$*" in
        *update) echo 'E: Failed to fetch http://m/Packages  Hash Sum mismatch.' ;;
        *) echo 'E: Unable to locate package a' ;;
        esac
        exit 100"""
    )
    result = run_module(held_packages, packages=WANTED)
    assert calls() == ["apt-get install a", *["apt-get update"] * 3]
    assert "refreshing the package index failed: E: Failed to fetch" in result["msg"]
    assert "mismatch. apt source http://m/Packages: download failed" in result["msg"]


def test_an_interrupted_dpkg_is_finished_and_apt_runs_again(
    run_module: RunModule, apt: Apt
) -> None:
    calls = apt("[ $count -gt 0 ] || { echo 'E: dpkg was interrupted, you must'; exit 100; }")
    result = run_module(held_packages, packages=WANTED)
    assert calls() == ["apt-get install a", "dpkg --configure -a", "apt-get install a"]
    assert result["slipway_note"] == "finished an interrupted installation"


def test_a_lock_is_waited_for(run_module: RunModule, apt: Apt) -> None:
    calls = apt("[ $count -gt 1 ] || { echo 'E: Could not get lock /var/x'; exit 100; }")
    assert run_module(held_packages, packages=WANTED)["changed"]
    assert calls() == ["apt-get install a"] * 3


def test_waiting_for_a_lock_ends_after_a_time_limit(run_module: RunModule, apt: Apt) -> None:
    calls = apt("echo 'E: Could not get lock /var/x'; exit 100")
    result = run_module(held_packages, packages=WANTED, lock_timeout=0)
    assert calls() == ["apt-get install a"]
    assert "After 0 seconds another process still held apt's lock" in result["msg"]


# Upgrades.

SIMULATED = """\
NOTE: This is only a simulation!
Inst libcommon [1.0] (2.0 Archive:1/noble [amd64]) []
Inst driver [1.0] (2.0 Archive:1/noble [amd64])
Inst kernel-2 (6.8 Archive:1/noble [amd64])
Remv kernel-1 [6.7]
Purg old [0.9]
Remv swapped [1.0]
Inst swapped [1.0] (2.0 Archive:1/noble [all])
Inst again [1.0] (1.0 Archive:1/noble [all])
Conf driver (2.0 Archive:1/noble [amd64])
"""
MOVES = [
    changes.Move("driver", "1.0", "2.0"),
    changes.Move("kernel-1", "6.7", ""),
    changes.Move("kernel-2", "", "6.8"),
    changes.Move("libcommon", "1.0", "2.0"),
    changes.Move("old", "0.9", ""),
    changes.Move("swapped", "1.0", "2.0"),
]


def test_a_simulation_of_apt_is_parsed() -> None:
    assert changes.moves(SIMULATED) == MOVES
    assert changes.moves("Reading package lists...\n") == []


def test_packages_with_the_same_versions_are_reported_together() -> None:
    assert changes.describe_moves(MOVES) == [
        "1.0 -> 2.0: driver, libcommon, swapped",
        "6.7 -> (removed): kernel-1",
        "(new) -> 6.8: kernel-2",
        "0.9 -> (removed): old",
    ]


@pytest.mark.parametrize(
    ("entry", "known", "choices"),
    [
        pytest.param({}, HELD, [["a"]], id="held at some version"),
        pytest.param({}, None, [["a"]], id="missing"),
        pytest.param({"version": "2.*"}, INSTALLED, [["a=2.*"]], id="at a version that is named"),
        pytest.param({"optional": True}, HELD, [["a"], []], id="optional, let go if need be"),
        pytest.param({"optional": True}, None, [[]], id="optional and missing"),
        pytest.param({"replaced": True}, HELD, [[]], id="replaced by another"),
        pytest.param({"follows": "2"}, HELD, [[]], id="following others"),
        pytest.param({"follows": "2"}, None, [["a"]], id="following others, and missing"),
        pytest.param({"state": "absent"}, HELD, [[]], id="to be removed"),
    ],
)
def test_an_upgrade_installs_its_packages_in_steps(
    entry: dict[str, Any], known: changes.PackageState, choices: list[list[str]]
) -> None:
    plans = changes.list_upgrades([{"name": "a", "hold": True, **entry}], {"a": known})
    assert [plan.install for plan in plans] == choices
    assert all(plan.downgrade == ("version" in entry) for plan in plans)
    # What is let go is named: apt keeps what is held.
    assert [plan.purge for plan in plans[1:]] == [["a"] for _ in choices[1:]]


def test_a_command_that_only_tries() -> None:
    command = ["apt-get", "--quiet=2", "install", "--", "a=1", "old-"]
    assert changes.dry_run(command, "--simulate")[:3] == ["apt-get", "--simulate", "--quiet=2"]
    assert changes.names_in(command) == ["a", "old"]


def test_the_sources_of_each_version_are_read_from_policy() -> None:
    policy = """\
a:
  Installed: 1
  Version table:
     2 500
        500 http://archive noble/main amd64 Packages
 *** 1 100
        100 /var/lib/dpkg/status
        -1 copy:/srv/x ./ Packages
b:
  Installed: 1
  Version table:
 *** 1 100
        100 /var/lib/dpkg/status
"""
    assert changes.sources(policy) == [["http://archive", "copy:/srv/x"], []]


def test_candidate_versions_of_apt() -> None:
    policy = "a:\n  Installed: (none)\n  Candidate: 1:2-1\nb:\n  Candidate: (none)\nc:\n"
    assert changes.candidates(policy) == {"a": "1:2-1"}


def test_disk_space_of_packages() -> None:
    assert (
        changes.installed_bytes("Package: a\nInstalled-Size: 3\n\nPackage: b\nInstalled-Size: 4\n")
        == 7168
    )


def test_interrupted_changes_are_finished_before_planning(
    run_module: RunModule, apt: Apt, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = iter(["interrupted", "installed"])
    monkeypatch.setattr(
        state_packages, "ask_packages", lambda names: {"a": ["hold", next(states), "1"]}
    )
    calls = apt("exit 0")
    result = run_module(held_packages, packages=[{"name": "a", "hold": True}])
    # Not installed anew, which would take the newest.
    assert calls() == ["dpkg --configure -a"]
    assert (result["changed"], result["installed"]) == (True, [])
    assert result["slipway_note"] == "finished an interrupted installation: a"


def test_a_version_of_an_unread_source_is_not_replaced_by_the_newest(
    run_module: RunModule, apt: Apt, program: Callable[[str, str], None]
) -> None:
    program("apt-cache", "printf 'a:\\n        500 http://m noble/main amd64 Packages\\n'")
    calls = apt(
        """case "$*" in
        *update) echo 'W: Failed to fetch http://m/dists/noble/InRelease  Could not connect.' ;;
        *) echo "E: Version '2' for 'a' was not found"; exit 100 ;;
        esac"""
    )
    wanted = [{"name": "a", "version": "2"}]
    result = run_module(held_packages, packages=wanted, version_fallback="newest")
    assert calls() == ["apt-get install a=2", "apt-get update", "apt-get install a=2"]
    assert result["failed"]
    assert "no usable source has version 2. No package was installed or removed." in result["msg"]
    assert "apt source http://m/dists/noble/InRelease: download failed" in result["msg"]


@pytest.mark.parametrize("gone", ["newest", "none"])
@pytest.mark.parametrize(
    ("wanted", "candidate", "too_new"),
    [
        ("580.178.04-*", "580.173.02-0ubuntu0.24.04.1", True),
        ("580.99-*", "580.178.04-0ubuntu0.24.04.1", False),
        # The one that is wanted, for another package of the set than the one that lacks it.
        ("580.178.04-*", "580.178.04-0~bpo1", False),
        ("1.21.0-1", "1.20.1-1", True),
        ("1.19.0-1", "1.20.1-1", False),
    ],
)
def test_a_future_version_is_not_a_withdrawn_version(
    run_module: RunModule,
    apt: Apt,
    program: Callable[[str, str], None],
    wanted: str,
    candidate: str,
    too_new: bool,
    gone: str,
) -> None:
    program("apt-cache", f"printf 'a:\\n  Installed: (none)\\n  Candidate: {candidate}\\n'")
    calls = apt(
        f"""case "$*" in
        *--compare-versions*) exec /usr/bin/dpkg "$@" ;;
        *install*a=*) echo "E: Version '{wanted}' for 'a' was not found"; exit 100 ;;
        esac"""
    )
    result = run_module(
        held_packages, packages=[{"name": "a", "version": wanted}], version_fallback=gone
    )
    assert ("apt-get install a" in calls()) == (gone == "newest" and not too_new)
    words = f"no source has version {wanted.removesuffix('-*')} yet: the newest a is {candidate}"
    assert (words in result.get("msg", "")) == too_new


def test_dependencies_are_removed_with_their_package(
    run_module: RunModule, apt: Apt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_packages, "ask_packages", lambda names: dict.fromkeys(names, HELD))
    calls = apt(
        """case "$*" in *--simulate*purge*) printf 'Purg %s [1]\\n' a needs-a ;; esac
        case "$*" in *--auto-remove*) printf 'Purg %s [1]\\n' came idle ;; esac
        case "$*" in *autoremove) printf 'Remv idle [1]\\n' ;; esac"""
    )
    wanted = [{"name": "a", "state": "absent"}]
    assert run_module(held_packages, packages=wanted)["purged"] == ["a", "came"]
    assert calls()[-1] == "apt-get purge a came"


def test_packages_of_a_failed_change_are_held(
    run_module: RunModule,
    apt: Apt,
    program: Callable[[str, str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        state_packages,
        "ask_packages",
        lambda names: {name: ["install", "unpacked", "1"] for name in names},
    )
    program("apt-mark", f'echo "$*" >{tmp_path}/marked')
    apt("case $* in *install*) echo 'E: Sub-process failed'; exit 100 ;; esac")
    wanted = [{"name": "a", "hold": True}, {"name": "b"}]
    assert run_module(held_packages, packages=wanted)["failed"]
    assert (tmp_path / "marked").read_text() == "--quiet=2 hold a\n"


# Consent.

ENGINE = "Inst docker.io [26.1.5-1] (28.5.2-1 Debian:13)\n"


@pytest.fixture
def consent(
    run_module: RunModule, apt: Apt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[dict[str, Any], list[str]]]:
    """Return a function that changes packages where apt SIMULATED something else besides."""
    monkeypatch.setattr(
        restart_consent,
        "ask_obstacle",
        lambda policy, keeps: "" if keeps or policy == "always" else "container train uses a GPU",
    )

    def change(
        simulated: str, known: Any = INSTALLED, **parameters: Any
    ) -> tuple[dict[str, Any], list[str]]:
        monkeypatch.setattr(
            state_packages, "ask_packages", lambda names: dict.fromkeys(names, known)
        )
        calls = apt("")
        (tmp_path / "simulated").write_text(simulated)
        wanted = [{"name": "a", "version": "2"}, {"name": "docker.io"}]
        result = run_module(held_packages, **{"packages": wanted, **parameters})
        return result, calls()

    return change


@pytest.mark.parametrize(
    ("simulated", "parameters", "reason"),
    [
        ("Inst a [1] (2 x)\n", {}, ""),
        ("Remv theirs [1]\nInst a [1] (2 x)\n", {}, "apt would remove or downgrade theirs 1"),
        ("Remv theirs [1]\n", {"removable": ["the*"]}, ""),
        ("Remv theirs [1]\n", {"removable": ["other"]}, "theirs 1"),
        ("Remv theirs [1]\n", {"role": "docker_engine"}, "docker_engine_removable_packages"),
        ("Remv docker.io [1]\n", {"restart": "always"}, ""),
        (
            "The following packages will be DOWNGRADED:\n  old a\nInst old [3] (2 x)\n"
            "Inst a [3] (2 x)\n",
            {},
            "downgrade old 3;",
        ),
        ("Inst better [1] (2 x)\n", {}, ""),
        (ENGINE, {}, "change of docker.io (restarts Docker) waits: container train uses a GPU."),
        (ENGINE, {"restart": "always"}, ""),
        ("Inst containerd [1.7.24] (1.7.27 x)\n", {}, ""),
        ("Inst containerd [1.7.24] (2.0.1 x)\n", {}, "change of containerd"),
        ("Inst docker.io (28.5.2-1 Debian:13)\n", {}, ""),
    ],
)
@pytest.mark.parametrize("check", [True, False])
def test_a_change_that_disturbs_others_waits(
    consent: Callable[..., Any],
    simulated: str,
    parameters: dict[str, Any],
    reason: str,
    check: bool,
) -> None:
    result, calls = consent(simulated, check=check, **parameters)
    assert result["changed"] == (not reason)
    (waiting,) = result.get("slipway_waiting", [""])
    assert reason in waiting
    assert bool(calls) == (not reason and not check)


@pytest.mark.parametrize(
    ("simulated", "command", "gpus_free", "waits"),
    [
        ("Inst a [1] (2 x)\n", "python", True, True),
        ("Inst a [1] (2 x)\n", "python", False, False),
        ("Inst a [1] (2 x)\n", "nvidia-persiste", True, False),
        ("Inst a (2 x)\n", "python", True, False),
        ("Inst b [1] (2 x)\n", "python", True, False),
    ],
    ids=["in use", "not asked", "the driver's own daemon", "a first installation", "another set"],
)
def test_a_driver_in_use_is_not_changed(
    consent: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    simulated: str,
    command: str,
    gpus_free: bool,
    waits: bool,
) -> None:
    process = {"pid": 7, "command": command, "user": "bob", "devices": [], "container": ""}
    monkeypatch.setattr(disturbance, "ask_gpu_processes", lambda: [process])
    result, _calls = consent(simulated, gpus_free=gpus_free)
    assert ("process 7 (python) of bob" in str(result.get("slipway_waiting"))) == waits
    assert result["changed"] == (not waits)


def test_a_missing_package_cannot_wait(consent: Callable[..., Any]) -> None:
    result, calls = consent("Remv theirs [1]\n", known=None)
    assert result["msg"].startswith("Cannot install a, docker.io: change of packages waits: apt")
    assert calls == []


def test_a_removal_asks_for_what_goes_with_it(consent: Callable[..., Any]) -> None:
    wanted = [{"name": "a", "state": "absent"}]
    result, calls = consent("Remv needs-a [1]\nPurg a [1]\n", packages=wanted)
    assert "needs-a 1" in result["slipway_waiting"][0]
    assert not any("purge a" in call and "simulate" not in call for call in calls[3:])
