# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Throwaway hosts: what is decided about them, and what is done to an engine for them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ansible_collections.slipway.host.plugins.module_utils import _throwaway as throwaway
from ansible_collections.slipway.host.plugins.module_utils._throwaway import (
    Action,
    Found,
    Group,
    Host,
    HostSpec,
    Mount,
    cgroup_options,
    check_spec,
    container_name,
    decide,
    parse_inspect,
    spec_digest,
)
from ansible_collections.slipway.host.plugins.module_utils._throwaway_bases import base_named
from ansible_collections.slipway.host.plugins.module_utils._throwaway_engine import (
    BaseUnavailableError,
    Engine,
    ThrowawayError,
)
from ansible_collections.slipway.host.plugins.module_utils._throwaway_state import Record

from tests.unit.fake_docker import Container, FakeDocker, inspection

WEB = HostSpec("web")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> FakeDocker:
    monkeypatch.setattr(throwaway, "_speaks_ssh", lambda address: True)
    monkeypatch.setattr(throwaway, "cgroup_options", lambda: ((), ("/sbin/init",)))
    monkeypatch.setattr(throwaway, "controller_certificates", lambda *_: {"ab" * 32: "PEM"})
    monkeypatch.setattr(throwaway, "BOOT_SECONDS", 0.1)
    monkeypatch.setattr(throwaway, "SSH_SECONDS", 0.1)
    return FakeDocker()


@pytest.fixture
def group(machine: FakeDocker, tmp_path: Path) -> Group:
    return Group("try", tmp_path / "hosts", Engine(machine, tmp_path / "run"))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        pytest.param(HostSpec("Web"), "the name is 'Web'; it has to be 1 to 40", id="capital"),
        pytest.param(HostSpec(""), "the name is ''", id="empty"),
        pytest.param(HostSpec("web-"), "no hyphen at an end", id="hyphen-at-end"),
        pytest.param(HostSpec("../web"), "small letters", id="path"),
        pytest.param(HostSpec("a" * 41), "1 to 40", id="long"),
        pytest.param(HostSpec("web", hostname="a.b"), "the hostname is 'a.b'", id="hostname"),
        pytest.param(HostSpec("web", base="debian-1"), "no base 'debian-1'", id="base"),
        pytest.param(
            HostSpec("web", mounts=(Mount("pci", "/sys"),)), "absolute .* 'pci'", id="relative"
        ),
        pytest.param(HostSpec("web", mounts=(Mount("/", "/a:b"),)), "without a colon", id="colon"),
        pytest.param(
            HostSpec("web", mounts=(Mount("/no/such", "/mnt"),)),
            "source /no/such does not exist",
            id="missing-source",
        ),
    ],
)
def test_spec_that_makes_no_host_is_an_error_that_says_why(spec: HostSpec, said: str) -> None:
    with pytest.raises(ThrowawayError, match=said):
        check_spec(spec)


@pytest.mark.parametrize("name", ["a", "7", "gpu-01", "a" * 40])
def test_good_names_are_accepted(name: str) -> None:
    check_spec(HostSpec(name, hostname=name, mounts=(Mount("/", "/mnt"),)))


FOUND = Found("id1", True, "172.17.0.2", "digest")
RECORD = Record("id1", "172.17.0.2", "running")


@pytest.mark.parametrize(
    ("found", "record", "has_keys", "action"),
    [
        pytest.param(FOUND, RECORD, True, Action.KEEP, id="up"),
        pytest.param(None, Record(), False, Action.MAKE, id="never-made"),
        pytest.param(None, RECORD, True, Action.MAKE, id="container-is-gone"),
        pytest.param(FOUND, Record(), True, Action.MAKE, id="half-made"),
        pytest.param(
            FOUND, Record("id0", "172.17.0.2", "running"), True, Action.MAKE, id="another-container"
        ),
        pytest.param(
            Found("id1", True, "172.17.0.2", "old"), RECORD, True, Action.MAKE, id="another-spec"
        ),
        pytest.param(
            Found("id1", False, "", "digest"), RECORD, True, Action.START, id="engine-was-restarted"
        ),
        pytest.param(
            Found("id1", True, "172.17.0.3", "digest"), RECORD, True, Action.START, id="moved"
        ),
        pytest.param(FOUND, RECORD, False, Action.START, id="keys-are-lost"),
    ],
)
def test_decision(found: Found | None, record: Record, has_keys: bool, action: Action) -> None:
    assert decide(found, record, "digest", has_keys) is action


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


def test_two_checkouts_have_containers_of_their_own() -> None:
    names = {container_name("web", "try", Path(f"/home/{user}")) for user in ("ada", "bob")}
    assert len(names) == 2


@pytest.mark.parametrize(
    ("bounding_set", "expected"),
    [
        pytest.param(0, [], id="none"),
        pytest.param(1 << 21 | 1, ["--cap-add=CHOWN", "--cap-add=SYS_ADMIN"], id="two"),
        pytest.param(1 << 24, [], id="sys-resource-never"),
        pytest.param(1 << 39, [], id="too-new-for-old-engines"),
    ],
)
def test_hosts_get_the_capabilities_there_are(bounding_set: int, expected: list[str]) -> None:
    assert throwaway.capability_options(bounding_set) == expected


def test_bounding_set_is_read_from_the_kernel() -> None:
    options = throwaway.capability_options(throwaway.bounding_set())
    assert all(option.startswith("--cap-add=") for option in options)


@pytest.mark.parametrize(
    ("file", "option"),
    [("cgroup.controllers", "--cgroupns=private"), ("unified/cgroup.procs", "--cgroupns=host")],
    ids=["version-2", "both-versions"],
)
def test_cgroup_options_follow_what_is_mounted(tmp_path: Path, file: str, option: str) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    options, command = cgroup_options(tmp_path)
    assert options[0] == option
    assert command[-1].endswith("/sbin/init")


def test_without_cgroup_v2_there_is_no_host(tmp_path: Path) -> None:
    with pytest.raises(ThrowawayError, match="needs cgroup v2"):
        cgroup_options(tmp_path)


def test_container_of_another_origin_has_no_spec() -> None:
    text = json.dumps([inspection(Container("id1", "image", {}, "172.17.0.2"))])
    assert parse_inspect(text) == Found("id1", True, "172.17.0.2", "")


def test_ssh_command_quotes_for_the_remote_shell(tmp_path: Path) -> None:
    host = Host("web", "debian-13", "172.17.0.2", "operator", tmp_path, tmp_path, "running", True)
    command = host.ssh_command("echo", "two  words; $HOME")
    assert command[-2:] == ["operator@172.17.0.2", "echo 'two  words; $HOME'"]
    assert f'UserKnownHostsFile="{tmp_path}"' in command
    assert "StrictHostKeyChecking=yes" in command


def test_host_is_made_and_then_kept(group: Group, machine: FakeDocker) -> None:
    assert group.plan(WEB) is Action.MAKE
    made = group.ensure(WEB)
    assert (made.changed, made.address, made.system_state) == (True, "172.17.0.3", "running")
    assert group.plan(WEB) is Action.KEEP
    kept = group.ensure(WEB)
    assert (kept.changed, kept.address) == (False, made.address)
    assert len(machine.containers) == 1


def test_host_lets_in_the_groups_key_and_trusts_the_controllers_authorities(
    group: Group, machine: FakeDocker
) -> None:
    host = group.ensure(WEB)
    (container,) = machine.containers.values()
    (authorized,) = (text for script, text in container.given.items() if "authorized" in script)
    assert authorized == host.private_key_file.with_suffix(".pub").read_bytes()
    (tar,) = (text for script, text in container.given.items() if script.startswith("tar "))
    assert b"controller-abababababab.crt" in tar
    known = host.known_hosts_file.read_text()
    assert known == f"web,{host.address} ssh-ed25519 HOST-{container.identity}\n"


def test_host_comes_back_after_the_engine_was_restarted(group: Group, machine: FakeDocker) -> None:
    before = group.ensure(WEB)
    (identity,) = (container.identity for container in machine.containers.values())
    machine.restart()
    assert group.plan(WEB) is Action.START
    after = group.ensure(WEB)
    assert after.changed
    assert after.address != before.address
    assert after.known_hosts_file.read_text().startswith(f"web,{after.address} ")
    assert [container.identity for container in machine.containers.values()] == [identity]


def test_host_that_does_not_start_again_is_made_anew(group: Group, machine: FakeDocker) -> None:
    group.ensure(WEB)
    (first,) = (container.identity for container in machine.containers.values())
    machine.restart()
    machine.failing = {"docker start": "its mount is gone"}
    assert group.ensure(WEB).changed
    assert first not in [container.identity for container in machine.containers.values()]


def test_base_that_cannot_be_had_leaves_nothing(group: Group, machine: FakeDocker) -> None:
    machine.failing = {"mmdebstrap": "E: no network"}
    with pytest.raises(BaseUnavailableError, match="no network"):
        group.ensure(WEB)
    assert not group.state.path.exists()


def test_interrupted_host_is_made_anew(
    group: Group, machine: FakeDocker, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(throwaway, "_speaks_ssh", lambda address: False)
        with pytest.raises(ThrowawayError, match="does not answer on port 22"):
            group.ensure(WEB)
    (first,) = (container.identity for container in machine.containers.values())
    assert group.plan(WEB) is Action.MAKE
    assert group.ensure(WEB).changed
    (second,) = (container.identity for container in machine.containers.values())
    assert second != first
    assert group.plan(WEB) is Action.KEEP


def test_host_of_another_spec_is_made_anew(group: Group, machine: FakeDocker) -> None:
    group.ensure(WEB)
    assert group.ensure(HostSpec("web", hostname="gpu01")).changed
    assert len(machine.containers) == 1


def test_host_that_does_not_come_up_is_an_error_with_its_console(
    group: Group, machine: FakeDocker
) -> None:
    machine.system_state = "maintenance"
    with pytest.raises(ThrowawayError, match=r"maintenance.*the console's last words") as caught:
        group.ensure(WEB)
    assert not isinstance(caught.value, BaseUnavailableError)
    assert machine.containers


def test_broken_unstable_is_unavailable_and_leaves_nothing(
    group: Group, machine: FakeDocker
) -> None:
    machine.system_state = "maintenance"
    with pytest.raises(BaseUnavailableError, match="a host of debian-sid does not boot"):
        group.ensure(HostSpec("sid", base="debian-sid"))
    assert (machine.containers, machine.volumes) == ({}, {})


def test_host_that_ends_is_not_waited_for(
    group: Group, machine: FakeDocker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throwaway, "BOOT_SECONDS", 60)
    machine.system_state = ""
    machine.ends_at_once = True
    with pytest.raises(ThrowawayError, match="did not come up"):
        group.ensure(WEB)
    assert machine.how_often("docker", "exec") == 1


def test_removal_of_one_host_leaves_the_others(group: Group, machine: FakeDocker) -> None:
    group.ensure(WEB)
    other = group.ensure(HostSpec("db"))
    assert group.remove("web", dry_run=True)
    assert len(machine.containers) == 2
    assert group.remove("web")
    assert not group.remove("web")
    assert len(machine.containers) == 1
    assert len(machine.volumes) == 2
    assert other.known_hosts_file.read_text().startswith("db,")
    assert group.plan(HostSpec("db")) is Action.KEEP


def test_removal_of_a_group_leaves_other_groups_and_checkouts(
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
    assert [each.plan(WEB) for each in others] == [Action.KEEP, Action.KEEP]


def test_removal_finds_a_host_whose_folder_was_lost(group: Group, machine: FakeDocker) -> None:
    group.ensure(WEB)
    group.state.remove()
    assert group.remove()
    assert (machine.containers, machine.volumes) == ({}, {})


def test_without_an_engine_nothing_is_planned_or_removed_in_vain(
    group: Group, machine: FakeDocker
) -> None:
    machine.answers = False
    assert group.plan(WEB) is Action.MAKE
    assert not group.remove()
    group.state.path.mkdir()
    group.state.write_record("web", RECORD)
    assert group.plan(WEB) is Action.START
    assert group.remove(dry_run=True)


@pytest.mark.parametrize("name", ["", "Try", "a/b"])
def test_group_needs_a_good_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(ThrowawayError, match="the group is"):
        Group(name, tmp_path)


def test_host_gets_its_mounts_and_name(group: Group, machine: FakeDocker) -> None:
    group.ensure(HostSpec("web", hostname="gpu01", mounts=(Mount("/srv", "/mnt", True),)))
    (run,) = (argv for argv in machine.ran if argv[:3] == ("docker", "run", "--detach"))
    assert {"--hostname=gpu01", "--volume=/srv:/mnt:ro"} <= set(run)
    assert run[-2].startswith(f"slipway-base:{base_named('debian-13').name}-")
