# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The owned state that follows from the people whom the inventory names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
import yaml
from ansible_collections.slipway.host.plugins.module_utils.docker import rootless
from ansible_collections.slipway.host.plugins.module_utils.roles import user_access
from ansible_collections.slipway.host.plugins.module_utils.roles.user_access import (
    DEFAULT_SHARED_FOLDER,
    LIMITS,
    UserAccessError,
)

from tests.contract.tree import ROOT
from tests.unit.role_options import options

K1, K2 = "ssh-rsa AAAAB3Nz bob@a", 'from="192.0.2.0/24" ecdsa-sha2-nistp256 AAAAE2Vj bob@b'
ALICE = {"name": "alice", "uid": 1500, "groups": ["lab"], "keys": ["ssh-ed25519 AAAA alice"]}
BOB = {"name": "bob", "docker": True, "home": "/data/bob", "keys": [K1, K2]}
GONE = {"name": "gone", "state": "absent", "docker": True, "groups": ["lab"], "keys": [K1]}


def owned(
    users: Sequence[Any],
    groups: Sequence[Any],
    docker_exclusive: bool,
    shared: Sequence[Any] = (),
    limits: Sequence[Any] = (),
    rootless_settings: Any = None,
    facts: Any = None,
) -> dict[str, Any]:
    """Return the owned state of these people."""
    asked = options(
        "user_access",
        users=users,
        groups=groups,
        docker_exclusive=docker_exclusive,
        shared_folders=shared,
        limits=limits,
        rootless_settings=rootless_settings,
    )
    found: dict[str, Any] = user_access.plan(facts, asked)["owned"]
    return found


def members(state: dict[str, Any]) -> dict[str, list[str]]:
    return {entry["group"]: entry["users"] for entry in state["members"]}


def test_users_groups_and_keys_are_owned() -> None:
    state = owned(
        [ALICE, BOB], [{"name": "lab", "gid": 2000}, {"name": "empty", "gid": None}], True
    )
    assert state["groups"] == [{"name": "lab", "gid": 2000}, {"name": "empty"}]
    assert state["users"] == [{"name": "alice", "uid": 1500}, {"name": "bob", "home": "/data/bob"}]
    assert state["lines"] == [
        {
            "user": "alice",
            "path": "/home/alice/.ssh/authorized_keys",
            "lines": ["ssh-ed25519 AAAA alice"],
            "home": "/home/alice",
        },
        {"user": "bob", "path": "/data/bob/.ssh/authorized_keys", "lines": [K1, K2]},
    ]


def test_keys_may_come_from_files() -> None:
    (found,) = owned([{"name": "a", "keys": [f"# a's\n{K1} \n\n{K2}\n", ""]}], [], True)["lines"]
    assert found["lines"] == [K1, K2]
    assert owned([{"name": "a", "keys": ["\n"]}], [], True)["lines"] == []


def test_the_keys_of_root_lie_in_its_home() -> None:
    (found,) = owned([{"name": "root", "keys": [K1]}], [], True)["lines"]
    assert found["path"] == "/root/.ssh/authorized_keys"


def test_numbers_may_be_spelled_as_text_and_nothing_is_as_good_as_an_empty_list() -> None:
    user = {"name": "a", "uid": "7", "groups": None, "keys": None, "comment": "A. A."}
    state = owned([user], [{"name": "g", "gid": "8"}], True)
    assert state["users"] == [{"name": "a", "uid": 7, "comment": "A. A."}]
    assert state["groups"] == [{"name": "g", "gid": 8}]


def test_only_those_listed_are_in_the_docker_group() -> None:
    state = owned([ALICE, BOB, GONE], [], True)
    assert members(state) == {"lab": ["alice"], "docker": ["bob"]}
    assert state["members"][-1]["exclusive"] is True


def test_nobody_listed_means_nobody_in_the_docker_group() -> None:
    assert owned([], [], True)["members"] == [{"group": "docker", "users": [], "exclusive": True}]
    assert owned([], [], False)["members"][0]["exclusive"] is False


def test_a_group_that_comes_with_an_account_need_not_be_there_before() -> None:
    guest = {"name": "guest", "groups": ["alice", "lab", "video"]}
    state = owned([{"name": "alice"}, guest], [{"name": "lab"}], True)
    assert [entry["group"] for entry in state["members"] if "foreign" in entry] == ["video"]
    state = owned([{**GONE, "name": "alice"}, guest], [], True)
    assert [entry["group"] for entry in state["members"] if "foreign" in entry] == [
        *("alice", "lab", "video")
    ]


def test_an_absent_user_keeps_no_membership_and_no_keys() -> None:
    state = owned([GONE], [], True)
    assert state["users"] == [{"name": "gone", "state": "absent"}]
    assert state["lines"] == []
    assert members(state) == {"docker": []}


@pytest.mark.parametrize(
    ("users", "groups", "problem"),
    [
        ([{"name": ""}], [], "invalid user name ''"),
        ([{"name": "a\n"}], [], "invalid user name"),
        ([{"name": "a "}], [], "invalid user name"),
        ([{"name": "-a"}], [], "invalid user name"),
        ([{"name": "+@lab"}], [], "invalid user name"),
        ([{"name": "a:b"}], [], "invalid user name"),
        ([{"name": "a,b"}], [], "invalid user name"),
        ([{"name": "../a"}], [], "invalid user name"),
        ([{"name": "a" * 257}], [], "invalid user name"),
        ([], [{"name": "lab/a"}], "invalid group name 'lab/a'"),
        ([{"name": "a", "groups": ["a,b"]}], [], "user a: invalid group name 'a,b'"),
        ([{"name": "CORP\\anna", "docker": "rootless"}], [], "docker is rootless; expected a name"),
        ([{"name": "a"}, {"name": "a"}], [], "user a is declared 2 times"),
        ([], [{"name": "g"}, {"name": "g"}], "group g is declared 2 times"),
        ([{"name": "a", "groups": ["docker"]}], [], "Set 'docker: true'"),
        ([{"name": "root", "state": "absent"}], [], "Root cannot be removed"),
        ([{"name": "a", "uid": -5}], [], "uid is -5; expected a number from 1"),
        ([{"name": "a", "uid": 0}], [], "uid is 0; expected a number from 1"),
        # The kernel uses 4294967295 for "no user".
        ([{"name": "a", "uid": 4294967295}], [], "a number from 1 to 4294967294"),
        ([{"name": "a", "home": "data/a"}], [], "home is 'data/a'; expected an absolute path"),
        ([{"name": "a", "shell": "zsh"}], [], "shell is 'zsh'; expected an absolute path"),
        ([{"name": "a", "comment": "a:b"}], [], "expected one line without ':'"),
        ([{"name": "a", "keys": [K1, "alice.pub"]}], [], r"keys\[1\] is not an SSH public key"),
        ([{"name": "a", "keys": ["ssh-ed25519 AAAA... a@b"]}], [], "is not an SSH public key"),
        ([{"name": "a", "keys": [f"{K1}\ncropped"]}], [], "is not an SSH public key"),
    ],
)
def test_impossible_settings_are_refused(
    users: list[dict[str, Any]], groups: list[dict[str, Any]], problem: str
) -> None:
    with pytest.raises(UserAccessError, match=problem):
        owned(users, groups, True)


@pytest.mark.parametrize(
    "key",
    [
        "ssh-ed25519 AAAAC3Nz",
        "sk-ssh-ed25519@openssh.com AAAAGnNr alice",
        'cert-authority,principals="a b" ssh-rsa AAAAB3Nz+/== the lab',
    ],
)
def test_lines_that_sshd_accepts_are_keys(key: str) -> None:
    assert owned([{"name": "a", "keys": [key]}], [], True)["lines"][0]["lines"] == [key]


def test_a_key_without_value_counts_as_missing() -> None:
    nothing = dict.fromkeys(("uid", "comment", "home", "shell", "groups", "keys"))
    assert owned([{"name": "a", **nothing}], [], True) == owned([{"name": "a"}], [], True)


@pytest.mark.parametrize("uid", [1, 4294967294])
def test_the_first_and_the_last_uid_are_accepted(uid: int) -> None:
    (user,) = owned([{"name": "a", "uid": uid}], [], True)["users"]
    assert user["uid"] == uid


@pytest.mark.parametrize(
    "name",
    [
        *("a", "_apt", "ci-runner_2", "a" * 32),
        # Names of directory services.
        *("anna.muster@corp.example", "CORP\\anna", "CORP\\Anna Muster", "Jörg", "1st", "Alice"),
        *("domain users", "host$", "a" * 33),
    ],
)
def test_usual_names_are_accepted(name: str) -> None:
    assert owned([{"name": name}], [{"name": name}], True)["users"] == [{"name": name}]


# Shared folders, limits, devices, and engines without root.

LAB = [{"name": "lab"}]
FACTS: dict[str, Any] = {
    "distribution": "Debian",
    "distribution_version": "13",
    "kernel": "6.12.0-amd64",
    "architecture": "x86_64",
    "docker_package": "docker.io",
    "docker_version": "26.1.5+dfsg1-9",
    "gpu": {"devices": [["0000:01:00.0", "0x1eb8", "0x030200", "nvidia", False, ""]]},
}
NO_GPU = {**FACTS, "gpu": {"devices": []}}
CAROL = {"name": "carol", "docker": "rootless"}


def file(state: dict[str, Any], path: str) -> dict[str, Any]:
    return next(entry for entry in state["files"] if entry["path"] == path)


def test_a_shared_folder_is_its_groups_and_where_the_aliases_look_for_it() -> None:
    shared: list[dict[str, Any]] = [
        {"group": "lab"},
        {"group": "lab", "path": "/data/open", "readable": True},
    ]
    state = owned([], LAB, True, shared)
    assert file(state, DEFAULT_SHARED_FOLDER) == {
        "path": DEFAULT_SHARED_FOLDER,
        "state": "directory",
        "group": "lab",
        "mode": "2770",
        "default_acl": "0770",
    }
    other = file(state, "/data/open")
    assert (other["mode"], other["default_acl"]) == ("2775", "0775")
    aliases = yaml.safe_load((ROOT / "roles/ml_aliases/defaults/main.yml").read_text())
    assert DEFAULT_SHARED_FOLDER in [mount["source"] for mount in aliases["ml_aliases_mounts"]]


@pytest.mark.parametrize(
    "path",
    [
        *("/", "//", "/etc", "/./etc/", "/usr/share/lab", "/srv/../etc"),
        *("/bin/x", "/boot/x", "/dev/x", "/lib/x", "/lib32/x", "/lib64/x", "/proc/x", "/root/x"),
        *("/run/x", "/sbin/x", "/sys/x", "/home", "/opt", "/srv", "/tmp", "/var"),
    ],
)
def test_a_folder_of_the_system_is_no_teams(path: str) -> None:
    with pytest.raises(UserAccessError, match="is a system folder"):
        owned([], LAB, True, [{"group": "lab", "path": path}])


@pytest.mark.parametrize("path", ["/srv/shared", "/data", "/home/lab", "/mnt/nvme/", "/var/lab"])
def test_a_folder_beside_the_systems_may_be_a_teams(path: str) -> None:
    assert file(owned([], LAB, True, [{"group": "lab", "path": path}]), path)["group"] == "lab"


def test_a_shared_folder_may_do_without_an_acl() -> None:
    assert "default_acl" not in file(
        owned([], LAB, True, [{"group": "lab", "acl": False}]), DEFAULT_SHARED_FOLDER
    )


def test_limits_become_lines_and_are_tried_before_they_are_written() -> None:
    limits = [
        {"applies_to": "@lab", "memlock": "unlimited", "nofile": 65536},
        {"applies_to": "alice", "memlock": 8192, "nofile": 4096},
    ]
    found = file(owned([], LAB, True, (), limits), LIMITS)
    assert found["content"].splitlines()[1:] == [
        "@lab - memlock unlimited",
        "@lab - nofile 65536",
        "alice - memlock 8192",
        "alice - nofile 4096",
    ]
    tried = ["prlimit", "--memlock=unlimited:unlimited", "--nofile=65536:65536", "true"]
    assert found["validate"] == tried
    # limits.conf counts memory in KiB, prlimit in bytes.
    found = file(owned([], LAB, True, (), limits[1:]), LIMITS)
    assert found["validate"][1] == f"--memlock={8192 * 1024}:{8192 * 1024}"


@pytest.mark.parametrize("limits", [[], [{"applies_to": "*"}]])
def test_no_limits_leave_no_file(limits: list[dict[str, Any]]) -> None:
    assert file(owned([], [], True, (), limits), LIMITS) == {"path": LIMITS, "state": "absent"}


@pytest.mark.parametrize(
    ("user", "facts", "listed"),
    [
        ({"gpu": True}, FACTS, True),
        ({"docker": True}, FACTS, True),
        ({"docker": True, "gpu": False}, FACTS, False),
        ({"docker": "rootless"}, FACTS, False),
        ({}, FACTS, False),
        ({"gpu": True}, NO_GPU, False),
        ({"gpu": True}, None, False),
    ],
)
def test_device_groups_are_for_people_with_gpus_to_use(
    user: dict[str, Any], facts: dict[str, Any] | None, listed: bool
) -> None:
    state = owned([{"name": "dora", **user}], [], True, facts=facts)
    found = {e["group"]: (e["users"], e["devices"]) for e in state["members"] if "devices" in e}
    wanted = {"render": (["dora"], ["/dev/dri/renderD"]), "video": (["dora"], ["/dev/nvidia"])}
    assert found == (wanted if listed else {})


def test_an_engine_of_ones_own_is_no_membership() -> None:
    state = owned([ALICE, CAROL], [], True, facts=NO_GPU)
    assert members(state)["docker"] == []
    obstacles = [["obstacles", entry["path"]] for entry in state["obstacles"]]
    assert file(state, "/etc/slipway/rootless/carol.json")["needs"] == obstacles
    assert state["rootless"] == [
        {
            "user": "carol",
            "needs": obstacles,
            "reads": [rootless.UNIT, rootless.DOCKERD, "/etc/slipway/rootless/carol.json"],
        }
    ]
    assert state["folders"] == [{"path": "/etc/slipway/rootless", "entries": ["carol.json"]}]
    assert len(state["obstacles"]) == 2
    assert file(state, "/run/cdi")["state"] == file(state, "/etc/cdi")["state"] == "directory"
    assert "d /run/cdi 0755" in file(state, rootless.TMPFILES)["content"]


def test_without_such_engines_nothing_of_theirs_is_there() -> None:
    state = owned([ALICE, {**CAROL, "state": "absent"}], [], True, facts=FACTS)
    assert (state["rootless"], state["packages"], state["obstacles"]) == ([], [], [])
    assert state["folders"] == [{"path": "/etc/slipway/rootless", "entries": []}]
    for path in rootless.FILES:
        assert file(state, path) == {"path": path, "state": "absent"}


@pytest.mark.parametrize(
    ("package", "names"),
    [
        ("docker.io", ["uidmap", "slirp4netns", "dbus-user-session", "rootlesskit"]),
        ("docker-ce", ["uidmap", "slirp4netns", "dbus-user-session", "docker-ce-rootless-extras"]),
        ("", ["uidmap", "slirp4netns", "dbus-user-session"]),
    ],
)
def test_packages_follow_the_engine(package: str, names: list[str]) -> None:
    state = owned([CAROL], [], True, facts={**FACTS, "docker_package": package})
    assert [entry["name"] for entry in state["packages"]] == names


@pytest.mark.parametrize(
    ("version", "gpu", "settings", "config"),
    [
        ("26.1.5", True, {}, {"features": {"cdi": True}}),
        ("5:28.1.1-1", True, {}, {"features": {"cdi": True}}),
        ("5:28.2.0-1", True, {}, {"features": {"cdi": True}}),
        # Without CDI there are no GPUs: what would give them breaks everybody else's.
        ("20.10.24", True, {}, {}),
        ("26.1.5", False, {"debug": True}, {"debug": True}),
        (
            "26.1.5",
            True,
            {"features": {"buildkit": True}},
            {"features": {"buildkit": True, "cdi": True}},
        ),
    ],
)
def test_engines_of_ones_own_have_gpus_by_cdi(
    version: str, gpu: bool, settings: dict[str, Any], config: dict[str, Any]
) -> None:
    facts = {**(FACTS if gpu else NO_GPU), "docker_version": version}
    state = owned([CAROL], [], True, rootless_settings=settings, facts=facts)
    assert json.loads(file(state, "/etc/slipway/rootless/carol.json")["content"]) == config


def test_the_unit_starts_for_whom_there_is_a_configuration() -> None:
    lines = rootless.UNIT_TEXT.splitlines()
    assert f"ConditionPathExists={rootless.FOLDER}/%u.json" in lines
    # systemd takes the doubled signs for single ones, which are then the shell's.
    start = rootless.UNIT_TEXT.partition("ExecStart=")[2].partition("ExecReload")[0]
    assert "$$own" in start and "--config-file" in start


def test_files_left_by_root_are_searched_for_each_present_user() -> None:
    assert owned([ALICE, GONE], [], True)["left_by_root"] == [{"user": "alice"}]


@pytest.mark.parametrize(
    ("declared", "problem"),
    [
        ({"shared": [{"group": "lab", "path": "srv"}]}, "path is 'srv'; expected an absolute path"),
        ({"shared": [{"group": "lab"}, {"group": "lab"}]}, "/srv/shared is declared 2 times"),
        (
            {"shared": [{"group": "staff"}]},
            "group staff of folder /srv/shared is not",
        ),
        ({"limits": [{"applies_to": "@"}]}, "applies_to is '@'; expected a user"),
        ({"limits": [{"applies_to": "the lab"}]}, "expected a user, '@group'"),
        (
            {"limits": [{"applies_to": "*", "memlock": "1g"}]},
            "expected a number of KiB",
        ),
        (
            {"limits": [{"applies_to": "*", "memlock": True}]},
            "expected a number of KiB",
        ),
        (
            {"limits": [{"applies_to": "*", "nofile": "unlimited"}]},
            "expected a number from 1024",
        ),
        (
            {"limits": [{"applies_to": "*", "nofile": 1048577}]},
            "expected a number from 1024",
        ),
        ({"limits": [{"applies_to": "*", "nofile": 10}]}, "blocks logins"),
        ({"users": [{"name": "root", "docker": "rootless"}]}, "Root has no rootless engine"),
    ],
)
def test_harmful_settings_are_refused(declared: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserAccessError, match=problem):
        owned(**{"users": [], "groups": LAB, "docker_exclusive": True, **declared})
