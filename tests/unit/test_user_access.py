# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The owned state that follows from the people whom the inventory names."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.slipway.host.plugins.filter.user_access_owned import user_access_owned
from ansible_collections.slipway.host.plugins.module_utils._user_access import (
    UserAccessError,
    owned,
)

ALICE = {"name": "alice", "uid": 1500, "groups": ["lab"], "keys": ["ssh-ed25519 AAAA alice"]}
BOB = {"name": "bob", "docker": True, "home": "/data/bob", "keys": ["k1", "k2"]}
GONE = {"name": "gone", "state": "absent", "docker": True, "groups": ["lab"], "keys": ["k"]}


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
        },
        {"user": "bob", "path": "/data/bob/.ssh/authorized_keys", "lines": ["k1", "k2"]},
    ]


def test_only_those_listed_are_in_the_docker_group() -> None:
    state = owned([ALICE, BOB, GONE], [], True)
    assert members(state) == {"lab": ["alice"], "docker": ["bob"]}
    assert state["members"][-1]["exclusive"] is True


def test_nobody_listed_means_nobody_in_the_docker_group() -> None:
    assert owned([], [], True)["members"] == [{"group": "docker", "users": [], "exclusive": True}]
    assert owned([], [], False)["members"][0]["exclusive"] is False


def test_who_is_gone_keeps_no_membership_and_no_keys() -> None:
    state = owned([GONE], [], True)
    assert state["users"] == [{"name": "gone", "state": "absent"}]
    assert state["lines"] == []
    assert members(state) == {"docker": []}


@pytest.mark.parametrize(
    ("users", "groups", "problem"),
    [
        ([{"name": "Alice"}], [], "'Alice' cannot be a user name"),
        ([{"name": "1st"}], [], "'1st' cannot be a user name"),
        ([{"name": "a\n"}], [], "cannot be a user name"),
        ([{"name": "a" * 33}], [], "cannot be a user name"),
        ([], [{"name": "the lab"}], "'the lab' cannot be a group name"),
        ([{"name": "a"}, {"name": "a"}], [], "the user a is declared 2 times"),
        ([], [{"name": "g"}, {"name": "g"}], "the group g is declared 2 times"),
        ([{"name": "a", "groups": ["docker"]}], [], "write 'docker: true'"),
        ([{"name": "root", "state": "absent"}], [], "root cannot be removed"),
    ],
)
def test_what_cannot_be_carried_out_is_refused(
    users: list[dict[str, Any]], groups: list[dict[str, Any]], problem: str
) -> None:
    with pytest.raises(UserAccessError, match=problem):
        owned(users, groups, True)


@pytest.mark.parametrize("name", ["a", "_apt", "ci-runner_2", "a" * 32])
def test_usual_names_are_accepted(name: str) -> None:
    assert owned([{"name": name}], [{"name": name}], True)["users"] == [{"name": name}]


def test_the_filter_says_which_role_refused() -> None:
    assert user_access_owned([ALICE])["users"] == [{"name": "alice", "uid": 1500}]
    with pytest.raises(AnsibleFilterError, match="user_access: 'A' cannot be a user name"):
        user_access_owned([{"name": "A"}])
