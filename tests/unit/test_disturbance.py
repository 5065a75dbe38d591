# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who uses a host, and whether Docker may be restarted."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.docker import restart_consent
from ansible_collections.slipway.host.plugins.module_utils.docker.restart_consent import (
    find_obstacle,
)
from ansible_collections.slipway.host.plugins.module_utils.state import (
    containers,
    disturbance,
    reading,
)

ID = "a" * 64


def details(**changes: Any) -> dict[str, Any]:
    """Return what the engine says of a container without a restart policy."""
    return {
        "Id": ID,
        "Name": "/train",
        "State": {"Pid": 0},
        "Config": {"Image": "pytorch:gpu", "Env": ["A=1"], "Labels": None},
        "HostConfig": {"RestartPolicy": {"Name": "no"}},
        "Mounts": [],
        **changes,
    }


def engine(monkeypatch: pytest.MonkeyPatch, found: dict[str, Any], live: bool = False) -> None:
    answers = {
        "/info": {"LiveRestoreEnabled": live},
        "/containers/json": [{"Id": ID}, {"Id": "gone"}],
        f"/containers/{ID}/json": found,
    }

    def ask(path: str) -> Any:
        if path not in answers:
            raise ValueError("Docker answered 404")
        return answers[path]

    monkeypatch.setattr(containers, "ask_engine", ask)


GPU_ENVIRONMENT = {"Image": "x", "Env": ["NVIDIA_VISIBLE_DEVICES=all"], "Labels": {}}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"gpu": False, "comes_back": False, "owner": "", "image": "pytorch:gpu"}),
        (
            {"HostConfig": {"RestartPolicy": {"Name": "unless-stopped"}}},
            {"gpu": False, "comes_back": True},
        ),
        ({"HostConfig": {"RestartPolicy": {"Name": "on-failure"}}}, {"comes_back": False}),
        ({"HostConfig": {"DeviceRequests": [{"Driver": "cdi"}]}}, {"gpu": True}),
        ({"HostConfig": {"Devices": [{"PathOnHost": "/dev/nvidia0"}]}}, {"gpu": True}),
        ({"HostConfig": {"Devices": [{"PathOnHost": "nvidia.com/gpu=all"}]}}, {"gpu": True}),
        ({"HostConfig": {"Devices": [{"PathOnHost": "/dev/fuse"}]}}, {"gpu": False}),
        ({"HostConfig": {"Runtime": "nvidia"}, "Config": GPU_ENVIRONMENT}, {"gpu": True}),
        ({"HostConfig": {"Runtime": "runc"}, "Config": GPU_ENVIRONMENT}, {"gpu": False}),
        ({"HostConfig": {"Runtime": "nvidia"}}, {"gpu": False}),
        ({"Config": {"Image": "x", "Labels": {"io.slipway.user": "alice"}}}, {"owner": "alice"}),
        (
            {"Config": {"Image": "x", "Labels": {"com.docker.compose.project": "web"}}},
            {"owner": "compose project web"},
        ),
        ({"HostConfig": None, "Config": None, "Mounts": None}, {"image": "", "gpu": False}),
    ],
)
def test_a_container_is_described(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], expected: dict[str, Any]
) -> None:
    engine(monkeypatch, details(**changes))
    found = disturbance.ask_containers()
    assert found is not None
    assert not found["live_restore"]
    (container,) = found["containers"]
    assert container == {**container, "id": ID, "name": "train", **expected}


def test_the_owner_of_a_process_owns_the_container(monkeypatch: pytest.MonkeyPatch) -> None:
    engine(monkeypatch, details(State={"Pid": os.getpid()}))
    monkeypatch.setattr(disturbance, "FIRST_USER", 0)
    found = disturbance.ask_containers()
    assert found is not None
    assert found["containers"][0]["owner"] == reading.user_name(os.geteuid())


@pytest.mark.parametrize(
    ("source", "owner"),
    [("/home/alice", "uid 4001"), ("/root", "uid 4001"), ("/srv/data", ""), ("/home/gone", "")],
)
def test_the_owner_of_a_mounted_home_owns_the_container(
    monkeypatch: pytest.MonkeyPatch, source: str, owner: str
) -> None:
    def stat(path: str) -> SimpleNamespace:
        if path not in ("/home/alice", "/root", "/srv/data"):
            raise FileNotFoundError(path)
        return SimpleNamespace(st_uid=4001)

    engine(monkeypatch, details(Mounts=[{"Source": source}]))
    monkeypatch.setattr(disturbance, "os", SimpleNamespace(stat=stat))
    monkeypatch.setattr(reading, "user_name", lambda number: f"uid {number}")
    found = disturbance.ask_containers()
    assert found is not None
    assert found["containers"][0]["owner"] == owner


@pytest.mark.parametrize(
    ("running", "text", "counts"),
    [
        (True, '{"live-restore": true}', True),
        # The next engine would stop what this one leaves running.
        (True, '{"live-restore": false}', False),
        (True, "{}", False),
        (True, "{", False),
        (True, "[]", False),
        (False, '{"live-restore": true}', False),
    ],
)
def test_live_restore_counts_if_it_is_on_before_and_after_the_restart(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, running: bool, text: str, counts: bool
) -> None:
    engine(monkeypatch, details(), live=running)
    file = tmp_path / "daemon.json"
    file.write_text(text)
    monkeypatch.setattr(disturbance, "DAEMON_JSON", str(file))
    found = disturbance.ask_containers()
    assert found is not None
    assert found["live_restore"] is counts


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (FileNotFoundError(2, "No such file"), None),
        (ConnectionRefusedError(111, "refused"), None),
        (TimeoutError("timed out"), {"error": "timed out"}),
        (ValueError("Docker answered 500"), {"error": "Docker answered 500"}),
    ],
)
def test_an_engine_that_does_not_answer_is_not_one_without_containers(
    monkeypatch: pytest.MonkeyPatch, error: Exception, found: Any
) -> None:
    def fail(_path: str) -> None:
        raise error

    monkeypatch.setattr(containers, "ask_engine", fail)
    assert disturbance.ask_containers() == found


def process(root: Path, pid: int, device: str, cgroup: str = "0::/user.slice") -> None:
    folder = root / str(pid)
    (folder / "fd").mkdir(parents=True)
    (folder / "fd/3").symlink_to(device)
    (folder / "comm").write_text("python\n")
    (folder / "cgroup").write_text(cgroup)


def test_processes_with_an_open_gpu_are_found(tmp_path: Path) -> None:
    process(tmp_path, 12, "/dev/nvidia1", f"0::/docker/{ID}")
    process(tmp_path, 7, "/dev/nvidia0")
    process(tmp_path, 8, "/dev/null")
    (tmp_path / "9").mkdir()  # It ended in the meantime.
    found = disturbance.ask_gpu_processes(str(tmp_path))
    me = reading.user_name(os.geteuid())
    assert [(entry["pid"], entry["container"], entry["devices"]) for entry in found] == [
        (7, "", ["/dev/nvidia0"]),
        (12, ID, ["/dev/nvidia1"]),
    ]
    assert {(entry["user"], entry["command"]) for entry in found} == {(me, "python")}


def test_the_asking_session_is_not_listed(tmp_path: Path) -> None:
    sessions = tmp_path / "sessions"
    sessions.mkdir()
    for name, text in {
        "1": "USER=admin\nCLASS=user\n",
        "1.ref": "",
        "2": "USER=admin\nTTY=pts/1\nCLASS=user\n",
        "3": "USER=alice\nTTY=pts/2\nCLASS=user\nREMOTE_HOST=203.0.113.9\n",
        "4": "USER=bob\nCLASS=user\n",
        "5": "USER=admin\nCLASS=user\n",
        "6": "USER=bob\nCLASS=manager\n",
        "7": "USER=gdm\nCLASS=greeter\n",
    }.items():
        (sessions / name).write_text(text)
    cgroup = tmp_path / "cgroup"
    cgroup.write_text("0::/user.slice/user-1000.slice/session-1.scope\n")
    proc = str(tmp_path / "proc")
    found = disturbance.ask_sessions(str(sessions), str(cgroup), proc)
    assert [(entry["user"], entry["terminal"], entry["from"]) for entry in found] == [
        ("admin", "pts/1", ""),
        ("alice", "pts/2", "203.0.113.9"),
        ("bob", "", ""),
    ]
    assert disturbance.ask_sessions(str(tmp_path / "none"), str(cgroup), proc) == []


OUTER = "b" * 64


@pytest.mark.parametrize(
    ("name", "session", "number", "container", "terminal"),
    [
        ("bash", 7, 136 << 8 | 3, "", "pts/3"),
        ("a) b (c", 7, 137 << 8 | 1, "", "pts/257"),
        ("bash", 7, 4 << 8 | 1, "", "tty1"),
        ("agetty", 7, 4 << 8 | 1, "", ""),
        ("python", 1, 136 << 8 | 3, "", ""),
        ("sshd", 7, 0, "", ""),
        # The first number after those of pseudo-terminals.
        ("bash", 7, 144 << 8 | 1, "", ""),
        ("sh", 7, 136 << 8, ID, ""),
        # The terminal that asks.
        ("sh", 7, 136 << 8 | 9, "", ""),
    ],
)
def test_a_terminal_is_found_by_the_process_that_leads_it(
    tmp_path: Path, name: str, session: int, number: int, container: str, terminal: str
) -> None:
    for pid, words in {"7": f"7 ({name}) S 1 7 {session} {number} 7 0", "self": ""}.items():
        folder = tmp_path / pid
        folder.mkdir()
        own = f"5 (python) S 1 5 5 {136 << 8 | 9} 5 0"
        (folder / "stat").write_text(words or own)
        inner = container if pid == "7" and container else ""
        # The host is a container itself.
        (folder / "cgroup").write_text(f"0::/docker/{OUTER}/system.slice/{inner}\n")
    found = disturbance.ask_sessions(str(tmp_path), str(tmp_path), str(tmp_path))
    me = reading.user_name(os.geteuid())
    expected = {"user": me, "terminal": terminal, "from": ""}
    assert found == ([expected] if terminal else [])


def test_all_terminals_are_found_in_order(tmp_path: Path) -> None:
    for pid, number in {"self": 0, "7": 0, "8": 136 << 8 | 4, "9": 136 << 8 | 2}.items():
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "stat").write_text(f"{pid} (bash) S 1 7 {pid} {number} 7 0")
    found = disturbance.ask_sessions(str(tmp_path / "none"), str(tmp_path), str(tmp_path))
    assert [session["terminal"] for session in found] == ["pts/2", "pts/4"]


def test_only_the_named_users_of_the_host_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("containers", "gpu_processes", "sessions")
    for name in names:
        monkeypatch.setattr(disturbance, f"ask_{name}", lambda name=name: name)
    for asked in (list(names), ["sessions"]):
        assert disturbance.ask_users(asked) == {name: name for name in asked}


def test_the_innermost_container_of_a_process_counts(tmp_path: Path) -> None:
    process(tmp_path, 12, "/dev/nvidia1", f"0::/docker/{OUTER}/docker/{ID}")
    assert disturbance.ask_gpu_processes(str(tmp_path))[0]["container"] == ID


def test_only_simulations_of_apt_run(program: Any, tmp_path: Path) -> None:
    program("apt-get", f'echo "$LC_ALL $*"; touch {tmp_path}/ran')
    simulated = disturbance.simulate_apt([["apt-get", "--simulate", "install", "x"]])
    assert simulated == {"apt-get --simulate install x": "C --simulate install x\n"}
    (tmp_path / "ran").unlink()
    assert disturbance.simulate_apt([["apt-get", "install", "x"]]) == {}
    assert not (tmp_path / "ran").exists()


# Consent.


def running(*changes: dict[str, Any], live_restore: bool = False) -> dict[str, Any]:
    plain = {"id": ID, "name": "train", "image": "x", "owner": "", "comes_back": False}
    described = [{**plain, "gpu": False, **change} for change in changes]
    return {"live_restore": live_restore, "containers": described}


WEB = {"comes_back": True}
GPU = {"comes_back": True, "gpu": True}
HOLDER = [{"pid": 1, "command": "python", "user": "a", "devices": [], "container": ID}]


@pytest.mark.parametrize(
    ("policy", "found", "processes", "keeps", "obstacle"),
    [
        ("idle", None, [], True, ""),
        ("idle", running(), [], True, ""),
        ("idle", running(WEB), [], True, ""),
        ("idle", running({}), [], True, "would not start again"),
        ("idle", running(GPU), [], True, "uses a GPU"),
        ("idle", running(WEB), HOLDER, True, "uses a GPU"),
        ("idle", running({}, GPU, live_restore=True), [], True, ""),
        ("idle", running({}, live_restore=True), [], False, "would not start again"),
        ("idle", {"error": "timed out"}, [], True, "Docker does not answer (timed out)"),
        ("always", running({}, GPU), HOLDER, False, ""),
        ("always", {"error": "timed out"}, [], True, ""),
        ("never", None, [], True, "docker_engine_restart is never"),
        ("never", running(live_restore=True), [], True, "docker_engine_restart is never"),
    ],
)
def test_consent_to_a_restart(
    policy: str, found: Any, processes: Any, keeps: bool, obstacle: str
) -> None:
    reason = find_obstacle(policy, found, processes, keeps)
    assert obstacle in reason
    assert bool(reason) == bool(obstacle)


def test_an_obstacle_names_container_owner_image_and_what_to_do() -> None:
    found = running({"owner": "alice", "image": "pytorch:gpu", "gpu": True}, WEB)
    assert find_obstacle("idle", found, []) == (
        "container train of alice (image pytorch:gpu) uses a GPU. Run again when this work has "
        "ended, or set docker_engine_restart to always"
    )


def test_words_of_a_host_are_data() -> None:
    found = running({"owner": "al\x1b[2Jice"})
    assert "container train of al\\x1b[2Jice (image x)" in find_obstacle("idle", found, [])


def test_the_host_is_asked_only_where_the_answer_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    engine(monkeypatch, details())
    monkeypatch.setattr(disturbance, "ask_gpu_processes", list)
    assert "train" in restart_consent.ask_obstacle("idle")
    monkeypatch.setattr(disturbance, "ask_containers", None)
    assert restart_consent.ask_obstacle("always") == ""
    assert "never" in restart_consent.ask_obstacle("never")
