# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module services: what it writes and starts, in which order, and what it never tells."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.host.module import HostModule
from ansible_collections.slipway.host.plugins.module_utils.services import failures
from ansible_collections.slipway.host.plugins.module_utils.state import containers, parents
from ansible_collections.slipway.host.plugins.modules import services

from tests.unit.conftest import RunModule
from tests.unit.containers import described, project_answer

ME, MINE = str(os.geteuid()), str(os.getegid())


class Host:
    """A host whose docker notes what it is told; its containers are what the test says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "services"
        self.folder.mkdir()
        self.log = folder / "docker.log"
        self.data = folder / "data"
        self.containers: list[Any] = []

    def runs(self, config: str = "c1", created: float = 2e9) -> None:
        """Let the one container of the project run."""
        self.containers = [described("lab", config, created=created)]

    @property
    def told(self) -> list[str]:
        """What docker was told, and forget it."""
        said = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        # The question for the record of what was started.
        return [line for line in said if "--no-trunc" not in line]

    @property
    def token(self) -> Path:
        return self.folder / "lab/secrets/token"

    def project(self, volumes: list[str] | None = None, **secret: Any) -> dict[str, Any]:
        """Return the project `lab` with one secret and one folder."""
        root = self.folder / "lab"
        user = {"owner": ME, "group": MINE}
        mine = {"owner": ME, "group": MINE}
        return {
            "name": "lab",
            "ports": [],
            "volumes": volumes or [],
            "files": [
                {"path": str(root / "secrets"), "state": "directory", "mode": "0700", **mine},
                {"path": str(root / "compose.yaml"), "content": "services: {}\n", **mine},
            ],
            "folders": [
                {"path": str(root), "entries": ["compose.yaml", "secrets"]},
                {"path": str(root / "secrets"), "entries": ["token"]},
            ],
            "secrets": [{"path": str(self.token), **user, **secret}],
            "mounts": [{"path": str(self.data), **user, "read_only": False}],
            "projects": [
                {
                    "name": "lab",
                    "services": [{"name": "lab", "config": "c1"}],
                    "since": [str(self.token)],
                }
            ],
        }


def page(host: Host, name: str, port: int) -> dict[str, Any]:
    """Return a project with a port and nothing else."""
    return {
        **{key: [] for key in ("volumes", "folders", "secrets", "mounts")},
        "name": name,
        "ports": [f"127.0.0.1:{port}"],
        "files": [
            {
                "path": str(host.folder / name / "compose.yaml"),
                "content": "x",
                "owner": ME,
                "group": MINE,
            }
        ],
        "projects": [{"name": name, "services": [{"name": name, "config": "new"}]}],
    }


@pytest.fixture
def host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: Callable[[str, str], None]
) -> Host:
    made = Host(tmp_path)
    monkeypatch.setattr(containers, "SERVICE_RECORDS", str(tmp_path / "records"))
    monkeypatch.setattr(
        containers,
        "ask_projects",
        lambda names: {
            name: project_answer(
                [] if name == "sound" else made.containers, containers.read_service_record(name)
            )
            for name in names
        },
    )
    program("docker", f'echo "$*" >>{made.log}')
    return made


def names_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def run(run_module: RunModule, host: Host, *projects: dict[str, Any], **more: Any) -> Any:
    return run_module(services, folder=str(host.folder), projects=list(projects), **more)


def test_a_project_is_made_with_a_secret_of_its_own(run_module: RunModule, host: Host) -> None:
    result = run(run_module, host, host.project(volumes=["lab_work"]))
    assert (result["changed"], result["started"]) == (True, ["lab"])
    volume, up = host.told
    assert volume == "volume create lab_work"
    assert f"--file {host.folder}/lab/compose.yaml --project-name lab up --detach" in up
    assert "--force-recreate --wait --wait-timeout 120" in up
    token = host.token.read_text()
    assert len(token) == 48
    assert host.token.stat().st_mode & 0o7777 == 0o600
    assert host.token.parent.stat().st_mode & 0o7777 == 0o700
    assert host.data.stat().st_mode & 0o7777 == 0o750
    assert token not in str(result)


def test_a_project_as_declared_is_left_alone(run_module: RunModule, host: Host) -> None:
    run(run_module, host, host.project())
    host.runs()
    before = host.token.stat()
    assert host.told
    assert not run(run_module, host, host.project())["changed"]
    assert host.told == []
    assert host.token.stat() == before


def test_check_mode_says_what_would_be_done_and_does_nothing(
    run_module: RunModule, host: Host
) -> None:
    (host.folder / "old").mkdir()
    result = run(run_module, host, host.project(content="s3cret"), check=True)
    assert (result["started"], result["removed"]) == (["lab"], ["old"])
    assert "secrets/token: missing, should be a file" in str(result["diff"])
    assert "s3cret" not in str(result)
    assert (host.told, names_in(host.folder)) == ([], ["old"])


def test_a_secret_keeps_its_age_when_only_its_mode_was_wrong(
    run_module: RunModule, host: Host
) -> None:
    run(run_module, host, host.project())
    host.runs()
    os.utime(host.token, (1, 1))
    host.token.chmod(0o644)
    assert host.told
    assert run(run_module, host, host.project())["started"] == ["lab"]
    assert host.token.stat().st_mode & 0o7777 == 0o600
    assert host.token.stat().st_mtime == 1
    # So the container goes on.
    assert host.told == []


@pytest.mark.parametrize("damage", ["deleted", "emptied", "replaced by a link"])
@pytest.mark.usefixtures("only_root_writes")
def test_a_secret_that_is_lost_is_made_anew_and_so_is_the_container(
    run_module: RunModule, host: Host, tmp_path: Path, damage: str
) -> None:
    run(run_module, host, host.project())
    host.runs(created=int(host.token.stat().st_mtime) - 60)
    first, other = host.token.read_text(), tmp_path / "other"
    other.write_text("not ours")
    host.token.unlink()
    if damage == "emptied":
        host.token.touch(0o600)
    elif damage == "replaced by a link":
        host.token.symlink_to(other)
    assert host.told
    assert run(run_module, host, host.project())["changed"]
    assert not host.token.is_symlink()
    assert host.token.read_text() not in (first, "not ours", "")
    assert other.read_text() == "not ours"
    (up,) = host.told
    assert "--force-recreate" in up


def test_a_secret_that_is_given_is_what_is_written(
    run_module: RunModule, host: Host, tmp_path: Path
) -> None:
    result = run(run_module, host, host.project(content="from a vault"))
    assert host.token.read_text() == "from a vault"
    assert "vault" not in str(result)
    source = tmp_path / "token"
    source.write_text("from a file")
    result = run(run_module, host, host.project(source=str(source)))
    assert host.token.read_text() == "from a file"
    assert "from a file" not in str(result)


def test_output_of_a_container_is_shown_without_its_secret(
    run_module: RunModule, host: Host, program: Callable[[str, str], None]
) -> None:
    says = f'echo "no: $(cat {host.token})" >&2; exit 1'
    program("docker", f'case "$*" in *logs*) cat {host.token};; *up*) {says};; esac')
    result = run(run_module, host, host.project())
    assert result["failed"]
    assert result["msg"].startswith("service lab: docker compose up failed: no: ****")
    assert host.token.read_text() not in str(result)


def test_a_project_that_fails_leaves_the_others(
    run_module: RunModule, host: Host, program: Callable[[str, str], None]
) -> None:
    says = '*first*up*) echo "no room" >&2; exit 1;; *first*logs*) echo why;;'
    program("docker", f'echo "$*" >>{host.log}; case "$*" in {says} esac')
    result = run(run_module, host, page(host, "first", 1), page(host, "second", 2))
    assert result["failed"]
    assert result["msg"] == (
        "service first: docker compose up failed: no room; last line of its log: why"
    )
    assert result["logs"] == "why\n"
    assert "--project-name second up" in host.told[-1]


COMPOSE_ERRORS = {
    "a port in use": (
        " Network lab_default  Creating\n Network lab_default  Created\n"
        " Container lab-lab-1  Creating\n Container lab-lab-1  Created\n"
        " Container lab-lab-1  Starting\n"
        "Error response from daemon: driver failed programming external connectivity on endpoint "
        "lab-lab-1 (c1): failed to bind port 127.0.0.1:22/tcp: address already in use",
        "driver failed programming external connectivity on endpoint lab-lab-1 (c1): failed to "
        "bind port 127.0.0.1:22/tcp: address already in use",
    ),
    "too little memory": (
        " Container lab-lab-1  Error response from daemon: Minimum memory limit allowed is 6MB\n"
        "Error response from daemon: Minimum memory limit allowed is 6MB\n",
        "Minimum memory limit allowed is 6MB",
    ),
    "unhealthy": (
        " Container lab-lab-1  Started\n Container lab-lab-1  Waiting\n"
        " Container lab-lab-1  Error\ncontainer lab-lab-1 is unhealthy\n",
        "container lab-lab-1 is unhealthy",
    ),
    # As after a reload of a firewall: the engine passes on what iptables printed.
    "an error of several lines": (
        " Network lab_default  Error\nfailed to create network lab_default: Error response from "
        "daemon: Failed to Setup IP tables\nError response from daemon: Failed to Setup IP tables: "
        "(iptables failed: iptables -I DOCKER: iptables: No chain/target/match by that name.\n"
        " (exit status 1))\n",
        "Failed to Setup IP tables: (iptables failed: iptables -I DOCKER: iptables: No "
        "chain/target/match by that name. (exit status 1))",
    ),
    "ended": (
        " Container lab-lab-1  Waiting\ncontainer lab-lab-1 exited (1)",
        "container lab-lab-1 exited (1)",
    ),
    "steps alone": (" Container lab-lab-1  Creating\n", "Container lab-lab-1  Creating"),
    "nothing": ("", "no output"),
}


@pytest.mark.parametrize(("output", "cause"), COMPOSE_ERRORS.values(), ids=COMPOSE_ERRORS.keys())
def test_a_failure_names_its_cause_not_the_steps_before(output: str, cause: str) -> None:
    assert failures.find_cause(output) == cause


@pytest.mark.parametrize(
    ("logs", "line"),
    [
        ("", ""),
        (" \n\n", ""),
        ("starting\nImportError: x\n \n", "ImportError: x"),
        ("\x1b[2K[FATAL tini (7)] exec failed\n\x1b[0m\n", "[FATAL tini (7)] exec failed"),
        ("a\rb" + "c" * 900, "c" * 800),
    ],
)
def test_the_last_line_of_a_log(logs: str, line: str) -> None:
    assert failures.last_line(failures.plain_text(logs)) == line


@pytest.mark.parametrize("others_run", [False, True])
def test_a_container_that_never_ran_is_removed(
    run_module: RunModule,
    host: Host,
    program: Callable[[str, str], None],
    others_run: bool,
) -> None:
    others = "echo c2;" if others_run else ":;"
    removed = host.folder / "removed"
    listed = f"test -e {removed} || echo c1; {others}"
    says = (
        f"*status=created*) echo c1;; *no-trunc*) {listed} ;; 'rm --force c1') touch {removed};; "
        "*' up '*) echo 'port is in use' >&2; exit 1;;"
    )
    program("docker", f'echo "$*" >>{host.log}; case "$*" in {says} esac')
    result = run(run_module, host, host.project())
    assert result["msg"] == "service lab: docker compose up failed: port is in use"
    told = host.told
    assert "rm --force c1" in told
    assert ("compose --project-name lab down" in told) is not others_run
    kept = ["c2"] if others_run else []
    assert containers.read_service_record("lab") == {"containers": kept, "starting": False}


def test_an_image_that_is_not_there_is_told_first(
    run_module: RunModule, host: Host, program: Callable[[str, str], None]
) -> None:
    says = "Network lab_default  Created\nError response from daemon: No such image: slipway/x:cpu"
    program("docker", f"echo '{says}' >&2; exit 1")
    result = run(run_module, host, host.project())
    assert result["msg"].startswith("service lab: the host has no image slipway/x:cpu; expected a")


@pytest.mark.parametrize("check", [False, True])
def test_a_project_without_its_image_is_a_conflict_and_others_start(
    run_module: RunModule, host: Host, monkeypatch: pytest.MonkeyPatch, check: bool
) -> None:
    monkeypatch.setattr(containers, "ask_images", dict.fromkeys)
    first, second = page(host, "first", 1), page(host, "second", 2)
    for service in first["projects"][0]["services"]:
        service.update(image="d" * 64, reference="slipway/x:gpu")
    result = run(run_module, host, first, second, check=check)
    # In check mode, ml_images has not built it yet.
    assert result["started"] == (["first", "second"] if check else ["second"])
    reasons = [conflict["reason"] for conflict in result["conflicts"]]
    assert len(reasons) == (0 if check else 1)
    assert all("service first needs image slipway/x:gpu: found no such" in text for text in reasons)


def test_a_project_that_nobody_declares_goes_first_and_whatever_its_folder_holds(
    run_module: RunModule, host: Host
) -> None:
    (host.folder / "old").mkdir()
    (host.folder / "old/anything").touch()
    (host.folder / "Not a project").touch()
    result = run(run_module, host, host.project())
    assert result["removed"] == ["Not a project", "old"]
    assert host.told[0] == "compose --project-name old down --remove-orphans"
    assert names_in(host.folder) == ["lab"]


def test_undeclared_names_in_a_projects_folder_are_removed(
    run_module: RunModule, host: Host
) -> None:
    run(run_module, host, host.project())
    host.runs()
    (host.folder / "lab/secrets/old").touch()
    assert run(run_module, host, host.project())["changed"]
    assert names_in(host.folder / "lab/secrets") == ["token"]


def test_a_folder_that_is_there_is_left_as_it_is(run_module: RunModule, host: Host) -> None:
    host.data.mkdir(mode=0o711)
    (host.data / "note").touch()
    assert not run(run_module, host, host.project()).get("failed")
    assert host.data.stat().st_mode & 0o7777 == 0o711


def test_a_folder_that_was_taken_away_is_made_anew_and_so_is_the_container(
    run_module: RunModule, host: Host
) -> None:
    run(run_module, host, host.project())
    host.runs()
    host.data.rmdir()
    assert host.told
    assert run(run_module, host, host.project())["changed"]
    assert host.data.is_dir()
    assert len(host.told) == 1


def test_a_shared_folder_that_was_taken_away_replaces_the_containers_of_all_its_projects(
    run_module: RunModule, host: Host
) -> None:
    reader = {**page(host, "reader", 8080), "mounts": host.project()["mounts"]}
    # The one container of this host stands for that of each project.
    reader["projects"] = [{"name": "reader", "services": [{"name": "lab", "config": "c1"}]}]
    projects = (host.project(), reader)
    run(run_module, host, *projects)
    host.runs()
    assert not run(run_module, host, *projects)["changed"]
    assert host.told
    host.data.rmdir()
    assert run(run_module, host, *projects)["changed"]
    started = [line for line in host.told if " up " in line]
    assert ["/lab/" in line or "/reader/" in line for line in started] == [True, True], started


def test_a_project_without_the_source_of_its_secret_is_left_alone(
    run_module: RunModule, host: Host
) -> None:
    result = run(run_module, host, host.project(source="/does/not/exist"))
    assert result["failed"]
    (conflict,) = result["conflicts"]
    assert conflict["kind"] == "secrets"
    assert "/does/not/exist" in conflict["reason"]
    assert names_in(host.folder) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can ask for another user")
def test_a_folder_that_the_user_cannot_write_to_is_told_before_anything_is_changed(
    run_module: RunModule, host: Host
) -> None:
    host.data.mkdir(mode=0o755)
    project = host.project()
    project["mounts"][0].update(owner="4242", group="4242")
    result = run(run_module, host, project)
    assert result["failed"]
    assert f"4242:4242 may not write to {host.data}; expected a" in result["msg"]
    assert f"Run chown 4242:4242 {host.data}" in result["msg"]
    (conflict,) = result["conflicts"]
    assert (conflict["kind"], conflict["name"]) == ("mounts", str(host.data))
    assert names_in(host.folder) == []
    host.data.chmod(0o777)
    assert not run(run_module, host, project).get("failed")
    # It is enough to read it.
    host.data.chmod(0o700)
    project["mounts"][0]["read_only"] = True
    assert not run(run_module, host, project).get("failed")


def test_projects_that_swap_ports_do_not_trip_over_each_other(
    run_module: RunModule, host: Host, program: Callable[[str, str], None]
) -> None:
    held = "".join(
        f"""echo '{name} {{"80/tcp":[{{"HostIp":"127.0.0.1","HostPort":"{port}"}}]}}';"""
        for name, port in (("first", 1), ("second", 2), ("other", 3))
    )
    says = f"ps*) echo c1 c2 c3;; inspect*) {held} echo 'gone null'; echo 'bare {{\"80\": null}}';;"
    program("docker", f'echo "$*" >>{host.log}; case "$*" in {says} esac')
    swapped = run(run_module, host, page(host, "first", 2), page(host, "second", 1))
    assert swapped["started"] == ["first", "second"]
    asked, looked, *rest = host.told
    assert asked.startswith("ps") and looked.endswith("c1 c2 c3")
    assert rest[0] == "compose --project-name second stop"
    assert [line.split()[5] for line in rest[1:]] == ["first", "second"]
    # One that moves out of the way goes first, and nobody is stopped.
    run(run_module, host, page(host, "first", 2), page(host, "second", 4))
    assert [line.split()[5] for line in host.told[2:]] == ["second", "first"]


@pytest.mark.parametrize("check", [True, False])
def test_a_link_on_the_way_to_a_volume_is_refused_for_that_project_alone(
    run_module: RunModule, host: Host, tmp_path: Path, check: bool
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    trapped, sound = host.project(), page(host, "sound", 5001)
    trapped["mounts"][0]["path"] = str(tmp_path / "link/data")
    result = run(run_module, host, trapped, sound, check=check)
    assert result["failed"]
    assert f"{tmp_path}/link: found a symbolic link to {tmp_path}/else" in result["msg"]
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert not (host.folder / "lab").exists()
    assert (host.folder / "sound").exists() is not check


def test_a_secret_is_no_copy_of_what_a_user_links_to(
    run_module: RunModule, host: Host, tmp_path: Path
) -> None:
    (tmp_path / "shadow").write_text("root:x")
    (tmp_path / "token").symlink_to(tmp_path / "shadow")
    result = run(run_module, host, host.project(source=str(tmp_path / "token")))
    assert result["failed"] and "found a symbolic link" in result["msg"]
    assert not host.token.exists()


OURS = {"containers": ["id-of-lab"], "starting": False}
PRIVILEGED = {"privileged": True}


def write_record(host: Host, record: dict[str, Any]) -> None:
    file = Path(containers.service_record_path("lab"))
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(record))


def test_started_containers_are_recorded(
    run_module: RunModule, host: Host, program: Callable[[str, str], None]
) -> None:
    program("docker", f'echo "$*" >>{host.log}; case "$*" in *no-trunc*) echo a; echo b;; esac')
    run(run_module, host, host.project())
    recorded = {"containers": ["a", "b"], "starting": False}
    assert containers.read_service_record("lab") == recorded
    assert Path(containers.service_record_path("lab")).stat().st_mode & 0o777 == 0o600
    # While containers are replaced, the known ones stay known.
    with pytest.raises(KeyboardInterrupt):
        interrupted(run_module, host)
    assert containers.read_service_record("lab") == {"containers": ["a", "b"], "starting": True}


def interrupted(run_module: RunModule, host: Host) -> None:
    """Run the module, and stop it while compose runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HostModule, "run_command", interrupt)
        run(run_module, host, host.project())


def interrupt(*_words: Any, **_options: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("record", "changes", "refused"),
    [
        (OURS, {}, False),
        (OURS, {"id": "another"}, True),
        ({"containers": ["x"], "starting": True}, {"id": "another"}, False),
        ({"containers": ["x"], "starting": True}, {"settings": PRIVILEGED}, True),
        (None, {}, False),
        (None, {"settings": PRIVILEGED}, True),
        (None, {"user": "root"}, True),
    ],
    ids=[
        *("ours", "foreign", "of an interrupted run", "privileged in an interrupted run"),
        *("of an old version", "privileged", "root"),
    ],
)
@pytest.mark.parametrize("check", [True, False], ids=["check", "run"])
def test_only_containers_of_slipway_are_replaced(
    run_module: RunModule,
    host: Host,
    record: Any,
    changes: dict[str, Any],
    refused: bool,
    check: bool,
) -> None:
    host.containers = [described("lab", "older", **changes)]
    if record:
        write_record(host, record)
    result = run(run_module, host, host.project(), page(host, "sound", 5001), check=check)
    assert bool(result.get("failed")) == refused
    told = host.told
    assert any("--project-name lab up" in line for line in told) == (not refused and not check)
    # One service that is refused leaves the others.
    assert any("--project-name sound up" in line for line in told) is not check
    if refused:
        identity = changes.get("id", "id-of-lab")
        assert f"docker rm --force {identity}" in result["msg"]


def test_a_foreign_container_keeps_an_undeclared_service_from_being_removed(
    run_module: RunModule, host: Host
) -> None:
    (host.folder / "lab").mkdir()
    host.containers = [described("lab", id="another")]
    write_record(host, OURS)
    result = run(run_module, host)
    assert result["failed"] and "docker rm --force another" in result["msg"]
    assert (host.told, names_in(host.folder)) == ([], ["lab"])
    host.containers = [described("lab")]
    assert run(run_module, host)["removed"] == ["lab"]
    assert containers.read_service_record("lab") is None


def test_nothing_is_removed_below_a_link_that_others_can_redirect(
    run_module: RunModule, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "victim").mkdir(parents=True)
    elsewhere.chmod(0o777)
    host.folder.rmdir()
    host.folder.symlink_to(elsewhere)
    monkeypatch.setattr(parents, "parents_of", lambda _paths: [str(host.folder)])
    result = run(run_module, host)
    assert result["failed"] and "services: found a symbolic link to " in result["msg"]
    assert host.told == []
    assert names_in(elsewhere) == ["victim"]
