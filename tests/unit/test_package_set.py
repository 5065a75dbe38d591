# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module package_set without apt: what it keeps, what it refuses, when it does nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.apt import package_record, run
from ansible_collections.slipway.host.plugins.module_utils.apt import package_set as apt_package_set
from ansible_collections.slipway.host.plugins.module_utils.apt.package_record import Before, Record
from ansible_collections.slipway.host.plugins.module_utils.docker import restart_consent
from ansible_collections.slipway.host.plugins.module_utils.state import apply_files
from ansible_collections.slipway.host.plugins.module_utils.state import packages as state_packages
from ansible_collections.slipway.host.plugins.modules import package_set

from tests.unit.conftest import RunModule

WANTED = [{"name": "driver", "hold": True}]

# Stands for apt-get and apt-cache; what it is told is noted, and $new comes in place of 1.
APT = """
echo "$(basename "$0") $*" >>{told}
case "$*" in
*--simulate*) printf '{simulated}' ;;
*show*) printf 'Installed-Size: {size}\\n' ;;
*--download-only*) touch {archives}/driver_2_amd64.deb ;;
esac
"""


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with one package installed, whose file is in apt's cache."""
    folder, archives = tmp_path / "upgrade", tmp_path / "archives"
    archives.mkdir()
    (archives / "driver_1_amd64.deb").write_text("one")
    monkeypatch.setattr(package_record, "FOLDER", str(folder))
    monkeypatch.setattr(package_record, "FILE", str(folder / "record.json"))
    monkeypatch.setattr(apt_package_set, "ARCHIVES", archives)
    state = ["hold", "installed", "1"]
    monkeypatch.setattr(state_packages, "ask_packages", lambda names: dict.fromkeys(names, state))
    monkeypatch.setattr(apply_files, "settle", settle)
    return tmp_path


def settle(entry: dict[str, Any]) -> None:
    """Write a file without giving it to root."""
    Path(entry["path"]).write_text(entry["content"])


@pytest.fixture
def apt(host: Path, program: Callable[[str, str], None]) -> Callable[..., None]:
    """Return a function that says what apt would do, and what the packages take when installed."""

    def does(simulated: str = "Inst driver [1] (2 x)", size: int = 1) -> None:
        told, archives = host / "told", host / "archives"
        script = APT.format(told=told, archives=archives, simulated=simulated, size=size)
        for name in ("apt-get", "apt-cache", "apt-mark"):
            program(name, script)
        program("dpkg", "echo amd64")

    return does


def told(host: Path, word: str) -> list[str]:
    """Return the calls that hold a WORD."""
    return [line for line in (host / "told").read_text().splitlines() if word in line]


def upgrade(run_module: RunModule, check: bool = False, **more: Any) -> dict[str, Any]:
    parameters = {"state": "upgraded", "role": "x", "packages": WANTED, **more}
    return run_module(package_set, check=check, **parameters)


def test_an_upgrade_keeps_what_was_and_what_comes(
    run_module: RunModule, host: Path, apt: Callable[..., None]
) -> None:
    apt()
    result = upgrade(run_module)
    assert (result["changed"], result["open"]) == (True, True)
    assert result["moves"] == ["1 -> 2: driver"]
    assert result["diff"] == {"before": "driver 1\n", "after": "driver 2\n"}
    record = package_record.parse((host / "upgrade/record.json").read_text())
    assert record.state == package_record.UPGRADING
    expected = Before("x", "1", True, "driver_1_amd64.deb", "driver_2_amd64.deb")
    assert record.packages == {"driver": expected}
    assert {file.name for file in (host / "upgrade").glob("*.deb")} == record.files
    # Fetched before the change, held after it.
    steps = [line.split("--")[0].strip() for line in told(host, "apt-mark")]
    assert steps == ["apt-mark"]
    calls = told(host, "install --")
    assert ["--simulate" in calls[0], "--download-only" in calls[1]] == [True, True]
    assert len(calls) == 3


def test_nothing_newer_is_no_change(
    run_module: RunModule, host: Path, apt: Callable[..., None]
) -> None:
    apt(simulated="")
    result = upgrade(run_module)
    assert (result["changed"], result["moves"], result["open"]) == (False, [], False)
    assert not (host / "upgrade").exists()


def test_check_mode_has_an_index_of_its_own(
    run_module: RunModule, host: Path, apt: Callable[..., None]
) -> None:
    apt()
    assert upgrade(run_module, check=True)["moves"] == ["1 -> 2: driver"]
    assert not (host / "upgrade").exists()
    assert all("Dir::State::Lists=" in line for line in (host / "told").read_text().splitlines())


@pytest.mark.parametrize(
    ("simulated", "size", "words"),
    [
        ("Inst driver [1] (2 x)\\nRemv theirs [1]", 1, "would remove theirs"),
        ("Inst driver [1] (2 x)", 1 << 50, "Free some space. No package was"),
    ],
)
def test_an_impossible_upgrade_is_refused(
    run_module: RunModule,
    host: Path,
    apt: Callable[..., None],
    simulated: str,
    size: int,
    words: str,
) -> None:
    apt(simulated, size)
    result = upgrade(run_module)
    assert result["failed"]
    assert words in result["msg"]
    assert not (host / "upgrade").exists()
    assert not told(host, "apt-mark")


@pytest.mark.parametrize("gone", ["newest", "none"])
def test_a_version_that_is_still_to_come_changes_nothing(
    run_module: RunModule,
    host: Path,
    apt: Callable[..., None],
    program: Callable[[str, str], None],
    gone: str,
) -> None:
    apt()
    lost = "E: Version '3-*' for 'driver' was not found"
    program("apt-get", f'case "$*" in *install*driver=*) echo "{lost}"; exit 100 ;; esac')
    program("apt-cache", "printf 'driver:\\n  Candidate: 2-1\\n'")
    program("dpkg", 'exec /usr/bin/dpkg "$@"')
    wanted = [{"name": "driver", "version": "3-*", "hold": True}]
    result = upgrade(run_module, packages=wanted, version_fallback=gone)
    assert "no source has version 3 yet: the newest driver is 2-1" in result["msg"]
    assert not (host / "upgrade").exists()


KERNEL = {"name": "modules", "optional": True, "hold": True}


@pytest.mark.parametrize(
    ("simulated", "moves"),
    [
        (
            "Inst driver [1] (2 x)\\nPurg modules [1]\\n",
            ["1 -> 2: driver", "1 -> (removed): modules"],
        ),
        # Nothing newer comes by it.
        ("Purg modules [1]\\n", []),
    ],
)
def test_modules_of_a_kernel_that_the_archive_dropped_are_let_go(
    run_module: RunModule,
    host: Path,
    apt: Callable[..., None],
    program: Callable[[str, str], None],
    simulated: str,
    moves: list[str],
) -> None:
    apt()
    dropped = 'case "$*" in *--simulate*modules) echo "E: held broken packages"; exit 100 ;;'
    program("apt-get", f"{dropped} *--simulate*) printf '{simulated}' ;; esac")
    result = upgrade(run_module, packages=[*WANTED, KERNEL])
    assert result.get("moves", []) == moves
    assert result.get("failed", False) == (not moves)


def test_processes_that_hold_a_gpu_are_named(
    run_module: RunModule,
    host: Path,
    apt: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    apt()
    monkeypatch.setattr(apt_package_set, "gpu_users", lambda: ["process 7 (train) of alice"])
    assert "The GPUs are in use: process 7 (train)" in upgrade(run_module, gpus_free=True)["msg"]
    checked = upgrade(run_module, check=True, gpus_free=True)
    assert "process 7 (train)" in checked["slipway_note"]
    assert upgrade(run_module)["changed"]


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A running container that a restart of Docker would stop."""
    monkeypatch.setattr(
        restart_consent,
        "ask_obstacle",
        lambda policy, _keeps: "" if policy == "always" else "container train uses a GPU",
    )


@pytest.mark.parametrize("check", [True, False])
def test_an_upgrade_that_restarts_a_busy_engine_waits(
    run_module: RunModule, host: Path, apt: Callable[..., None], busy: None, check: bool
) -> None:
    apt(simulated="Inst docker.io [26.1.5-1] (28.5.2-1 x)\\nInst docker-cli [1] (2 x)\\n")
    result = upgrade(run_module, check=check)
    assert not result["changed"]
    assert result["slipway_waiting"] == [
        "change of docker.io (restarts Docker) waits: container train uses a GPU."
    ]
    assert not (host / "upgrade").exists()
    assert not told(host, "apt-mark")
    assert upgrade(run_module, check=check, restart="always")["changed"]


def test_a_rollback_of_a_busy_engine_fails_before_a_change(
    run_module: RunModule, host: Path, apt: Callable[..., None], busy: None
) -> None:
    apt()
    write(Record(package_record.PROVEN, packages={"docker.io": Before("x", "0.9")}))
    result = run_module(package_set, state="rolled_back")
    assert result["failed"]
    assert result["msg"].endswith("container train uses a GPU. No package was changed.")
    assert not (host / "told").exists()


def test_a_package_that_nobody_has_any_more_is_told(
    run_module: RunModule, host: Path, apt: Callable[..., None]
) -> None:
    apt()
    (host / "archives/driver_1_amd64.deb").unlink()
    assert "which a rollback needs: driver 1" in upgrade(run_module)["slipway_note"]
    assert told(host, "download -- driver=1")


def write(record: Record) -> None:
    file = Path(package_record.FILE)
    file.parent.mkdir(exist_ok=True)
    file.write_text(record.to_json())


def test_a_proven_upgrade_is_closed_once(run_module: RunModule, host: Path) -> None:
    write(Record(package_record.UPGRADING, packages={"driver": Before("x", "1")}))
    assert run_module(package_set, check=True, state="verified")["open"]
    assert run_module(package_set, state="verified")["changed"]
    again = run_module(package_set, state="verified")
    assert (again["changed"], again["open"]) == (False, False)


def test_a_host_without_a_record_has_no_way_back(run_module: RunModule, host: Path) -> None:
    result = run_module(package_set, state="rolled_back")
    assert not result["changed"]
    assert "no upgrade is recorded" in result["slipway_note"]


def test_a_way_back_that_the_archive_lost_changes_nothing(
    run_module: RunModule,
    host: Path,
    program: Callable[[str, str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run, "RETRIES", ())
    gone = "E: Version '0.9' for 'driver' was not found"
    program("apt-get", f'case "$*" in *install*) echo "{gone}"; exit 100 ;; esac')
    # Its file was removed by somebody.
    write(Record(package_record.PROVEN, packages={"driver": Before("x", "0.9", file="gone.deb")}))
    result = run_module(package_set, state="rolled_back")
    assert result["failed"]
    assert (
        "An apt source must have driver 0.9. No package was installed or removed." in result["msg"]
    )


def test_a_role_that_was_removed_leaves_no_packages(run_module: RunModule, host: Path) -> None:
    write(Record(packages={"driver": Before("x", "1", file="driver_1_amd64.deb")}))
    (host / "upgrade/driver_1_amd64.deb").touch()
    assert not run_module(package_set, state="unrecorded", role="y")["changed"]
    assert run_module(package_set, state="unrecorded", role="x")["changed"]
    assert not (host / "upgrade").exists()
