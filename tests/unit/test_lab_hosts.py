# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Throwaway hosts: the chosen action, and the commands for the engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lab import hosts
from lab.bases import base_named
from lab.containers import (
    ContainerState,
    bounding_set,
    capability_options,
    cgroup_options,
    container_name,
    parse_inspect,
    spec_digest,
)
from lab.engine import Engine
from lab.errors import BaseUnavailableError, LabError
from lab.host_spec import HostSpec, Mount, check_spec
from lab.hosts import Action, Group, Host, decide
from lab.state_folder import HostRecord
from tests.unit.fake_docker import Container, FakeDocker, inspection

WEB = HostSpec("web")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> FakeDocker:
    monkeypatch.setattr(hosts, "_answers_ssh", lambda address: True)
    monkeypatch.setattr(hosts, "cgroup_options", lambda: ((), ("/sbin/init",)))
    monkeypatch.setattr(hosts, "controller_certificates", lambda *_: {"ab" * 32: "PEM"})
    monkeypatch.setattr(hosts, "BOOT_SECONDS", 0.1)
    monkeypatch.setattr(hosts, "SSH_SECONDS", 0.1)
    return FakeDocker()


@pytest.fixture
def group(machine: FakeDocker, tmp_path: Path) -> Group:
    return Group("try", tmp_path / "hosts", Engine(machine, tmp_path / "run"))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        pytest.param(HostSpec("Web"), "invalid host name 'Web'; expected 1 to 40", id="capital"),
        pytest.param(HostSpec(""), "invalid host name ''", id="empty"),
        pytest.param(HostSpec("web-"), "without a hyphen at either end", id="hyphen-at-end"),
        pytest.param(HostSpec("../web"), "lower-case letters", id="path"),
        pytest.param(HostSpec("a" * 41), "1 to 40", id="long"),
        pytest.param(HostSpec("web", hostname="a.b"), "invalid hostname 'a.b'", id="hostname"),
        pytest.param(HostSpec("web", base="debian-1"), "unknown base 'debian-1'", id="base"),
        pytest.param(
            HostSpec("web", mounts=(Mount("pci", "/sys"),)),
            "invalid mount path 'pci'; expected an absolute path",
            id="relative",
        ),
        pytest.param(HostSpec("web", mounts=(Mount("/", "/a:b"),)), "without a colon", id="colon"),
        pytest.param(
            HostSpec("web", mounts=(Mount("/no/such", "/mnt"),)),
            "source /no/such does not exist",
            id="missing-source",
        ),
    ],
)
def test_invalid_spec_is_an_error(spec: HostSpec, said: str) -> None:
    with pytest.raises(LabError, match=said):
        check_spec(spec)


@pytest.mark.parametrize("name", ["a", "7", "gpu-01", "a" * 40])
def test_valid_names_are_accepted(name: str) -> None:
    check_spec(HostSpec(name, hostname=name, mounts=(Mount("/", "/mnt"),)))


STATE = ContainerState("id1", True, "172.17.0.2", "digest")
RECORD = HostRecord("id1", "172.17.0.2", "running")


@pytest.mark.parametrize(
    ("state", "record", "has_keys", "action"),
    [
        pytest.param(STATE, RECORD, True, Action.KEEP, id="up"),
        pytest.param(None, HostRecord(), False, Action.CREATE, id="new"),
        pytest.param(None, RECORD, True, Action.CREATE, id="container-is-gone"),
        pytest.param(STATE, HostRecord(), True, Action.CREATE, id="incomplete"),
        pytest.param(
            STATE,
            HostRecord("id0", "172.17.0.2", "running"),
            True,
            Action.CREATE,
            id="another-container",
        ),
        pytest.param(
            ContainerState("id1", True, "172.17.0.2", "old"),
            RECORD,
            True,
            Action.CREATE,
            id="another-spec",
        ),
        pytest.param(
            ContainerState("id1", False, "", "digest"),
            RECORD,
            True,
            Action.START,
            id="engine-was-restarted",
        ),
        pytest.param(
            ContainerState("id1", True, "172.17.0.3", "digest"),
            RECORD,
            True,
            Action.START,
            id="moved",
        ),
        pytest.param(STATE, RECORD, False, Action.START, id="keys-are-lost"),
    ],
)
def test_the_action_depends_on_container_record_and_keys(
    state: ContainerState | None, record: HostRecord, has_keys: bool, action: Action
) -> None:
    assert decide(state, record, "digest", has_keys) is action


@pytest.mark.parametrize(
    "other",
    [
        HostSpec("web", base="debian-12"),
        HostSpec("web", hostname="gpu01"),
        HostSpec("web", mounts=(Mount("/srv", "/mnt"),)),
        HostSpec("web", mounts=(Mount("/srv", "/mnt", read_only=True),)),
    ],
)
def test_digest_changes_with_the_spec(other: HostSpec) -> None:
    assert spec_digest(other) != spec_digest(WEB)
    assert spec_digest(other) == spec_digest(other)


def test_two_checkouts_have_different_containers() -> None:
    names = {container_name("web", "try", Path(f"/home/{user}")) for user in ("ada", "bob")}
    assert len(names) == 2


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        pytest.param(0, [], id="none"),
        pytest.param(1 << 21 | 1, ["--cap-add=CHOWN", "--cap-add=SYS_ADMIN"], id="two"),
        pytest.param(1 << 24, [], id="sys-resource-never"),
        pytest.param(1 << 39, [], id="too-new-for-old-engines"),
    ],
)
def test_hosts_get_the_available_capabilities(capabilities: int, expected: list[str]) -> None:
    assert capability_options(capabilities) == expected


def test_bounding_set_is_read_from_the_kernel() -> None:
    options = capability_options(bounding_set())
    assert all(option.startswith("--cap-add=") for option in options)


@pytest.mark.parametrize(
    ("file", "option"),
    [("cgroup.controllers", "--cgroupns=private"), ("unified/cgroup.procs", "--cgroupns=host")],
    ids=["version-2", "both-versions"],
)
def test_cgroup_options_depend_on_the_mounts(tmp_path: Path, file: str, option: str) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    options, command = cgroup_options(tmp_path)
    assert options[0] == option
    assert command[-1].endswith("/sbin/init")


def test_without_cgroup_v2_there_is_no_host(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="requires cgroup v2"):
        cgroup_options(tmp_path)


def test_container_of_another_origin_has_no_spec() -> None:
    text = json.dumps([inspection(Container("id1", "image", {}, "172.17.0.2"))])
    assert parse_inspect(text) == ContainerState("id1", True, "172.17.0.2", "")


def test_ssh_command_quotes_for_the_remote_shell(tmp_path: Path) -> None:
    host = Host("web", "debian-13", "172.17.0.2", "operator", tmp_path, tmp_path, "running", True)
    command = host.ssh_command("echo", "two  words; $HOME")
    assert command[-2:] == ["operator@172.17.0.2", "echo 'two  words; $HOME'"]
    assert f'UserKnownHostsFile="{tmp_path}"' in command
    assert "StrictHostKeyChecking=yes" in command


def test_host_is_created_once(group: Group, machine: FakeDocker) -> None:
    assert group.pending_action(WEB) is Action.CREATE
    made = group.ensure(WEB)
    assert (made.changed, made.address, made.system_state) == (True, "172.17.0.3", "running")
    assert group.pending_action(WEB) is Action.KEEP
    kept = group.ensure(WEB)
    assert (kept.changed, kept.address) == (False, made.address)
    assert len(machine.containers) == 1


def test_host_accepts_the_key_of_the_group_and_trusts_the_cas_of_the_controller(
    group: Group, machine: FakeDocker
) -> None:
    host = group.ensure(WEB)
    (container,) = machine.containers.values()
    (authorized,) = (text for script, text in container.stdin.items() if "authorized" in script)
    assert authorized == host.private_key_file.with_suffix(".pub").read_bytes()
    (tar,) = (text for script, text in container.stdin.items() if script.startswith("tar "))
    assert b"controller-abababababab.crt" in tar
    known = host.known_hosts_file.read_text()
    assert known == f"web,{host.address} ssh-ed25519 HOST-{container.identity}\n"


def test_host_is_started_after_a_restart_of_the_engine(group: Group, machine: FakeDocker) -> None:
    before = group.ensure(WEB)
    (identity,) = (container.identity for container in machine.containers.values())
    machine.restart()
    assert group.pending_action(WEB) is Action.START
    after = group.ensure(WEB)
    assert after.changed
    assert after.address != before.address
    assert after.known_hosts_file.read_text().startswith(f"web,{after.address} ")
    assert [container.identity for container in machine.containers.values()] == [identity]


def test_host_that_does_not_start_is_recreated(group: Group, machine: FakeDocker) -> None:
    group.ensure(WEB)
    (first,) = (container.identity for container in machine.containers.values())
    machine.restart()
    machine.failing = {"docker start": "its mount is gone"}
    assert group.ensure(WEB).changed
    assert first not in [container.identity for container in machine.containers.values()]


def test_unavailable_base_leaves_no_files(group: Group, machine: FakeDocker) -> None:
    machine.failing = {"mmdebstrap": "E: no network"}
    with pytest.raises(BaseUnavailableError, match="no network"):
        group.ensure(WEB)
    assert not group.state.path.exists()


def test_interrupted_host_is_recreated(
    group: Group, machine: FakeDocker, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(hosts, "_answers_ssh", lambda address: False)
        with pytest.raises(LabError, match="does not answer on port 22"):
            group.ensure(WEB)
    (first,) = (container.identity for container in machine.containers.values())
    assert group.pending_action(WEB) is Action.CREATE
    assert group.ensure(WEB).changed
    (second,) = (container.identity for container in machine.containers.values())
    assert second != first
    assert group.pending_action(WEB) is Action.KEEP


def test_host_with_a_changed_spec_is_recreated(group: Group, machine: FakeDocker) -> None:
    group.ensure(WEB)
    assert group.ensure(HostSpec("web", hostname="gpu01")).changed
    assert len(machine.containers) == 1


def test_host_that_does_not_boot_is_an_error_with_its_console(
    group: Group, machine: FakeDocker
) -> None:
    machine.system_state = "maintenance"
    with pytest.raises(LabError, match=r"maintenance.*the console's last words") as caught:
        group.ensure(WEB)
    assert not isinstance(caught.value, BaseUnavailableError)
    assert machine.containers


def test_broken_unstable_is_unavailable_and_leaves_no_container(
    group: Group, machine: FakeDocker
) -> None:
    machine.system_state = "maintenance"
    with pytest.raises(BaseUnavailableError, match="a host of debian-sid does not boot"):
        group.ensure(HostSpec("sid", base="debian-sid"))
    assert (machine.containers, machine.volumes) == ({}, {})


def test_host_that_ends_is_an_error_at_once(
    group: Group, machine: FakeDocker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts, "BOOT_SECONDS", 60)
    machine.system_state = ""
    machine.ends_at_once = True
    with pytest.raises(LabError, match="did not boot"):
        group.ensure(WEB)
    assert machine.how_often("docker", "exec") == 1


def test_removal_of_one_host_keeps_the_others(group: Group, machine: FakeDocker) -> None:
    group.ensure(WEB)
    other = group.ensure(HostSpec("db"))
    assert group.remove("web", dry_run=True)
    assert len(machine.containers) == 2
    assert group.remove("web")
    assert not group.remove("web")
    assert len(machine.containers) == 1
    assert len(machine.volumes) == 2
    assert other.known_hosts_file.read_text().startswith("db,")
    assert group.pending_action(HostSpec("db")) is Action.KEEP


def test_removal_of_a_group_keeps_other_groups_and_checkouts(
    group: Group, machine: FakeDocker, tmp_path: Path
) -> None:
    others = [
        Group("demo", tmp_path / "demo", group.engine),
        Group("try", tmp_path / "another checkout", group.engine),
    ]
    for each in (group, *others):
        each.ensure(WEB)
    assert group.remove(dry_run=True)
    assert group.remove()
    assert not group.state.path.exists()
    assert not group.remove()
    assert not group.remove(dry_run=True)
    assert len(machine.containers) == 2
    assert [each.pending_action(WEB) for each in others] == [Action.KEEP, Action.KEEP]


def test_removal_finds_a_host_whose_folder_was_lost(group: Group, machine: FakeDocker) -> None:
    group.ensure(WEB)
    group.state.remove()
    assert group.remove()
    assert (machine.containers, machine.volumes) == ({}, {})


def test_without_an_engine_removal_only_removes_files(group: Group, machine: FakeDocker) -> None:
    machine.answers = False
    assert group.pending_action(WEB) is Action.CREATE
    assert not group.remove()
    group.state.path.mkdir()
    group.state.write_record("web", RECORD)
    assert group.pending_action(WEB) is Action.START
    assert group.remove(dry_run=True)


@pytest.mark.parametrize("name", ["", "Try", "a/b"])
def test_group_needs_a_valid_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(LabError, match="invalid group name"):
        Group(name, tmp_path)


def test_host_gets_its_mounts_and_name(group: Group, machine: FakeDocker) -> None:
    group.ensure(HostSpec("web", hostname="gpu01", mounts=(Mount("/srv", "/mnt", True),)))
    (run,) = (argv for argv in machine.ran if argv[:3] == ("docker", "run", "--detach"))
    assert {"--hostname=gpu01", "--volume=/srv:/mnt:ro"} <= set(run)
    assert run[-2].startswith(f"slipway-base:{base_named('debian-13').name}-")
