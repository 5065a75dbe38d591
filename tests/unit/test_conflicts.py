# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A conflict blocks its entry and what needs it, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.services import expected
from ansible_collections.slipway.host.plugins.module_utils.state import model

from tests.unit import survey
from tests.unit.containers import described
from tests.unit.test_services_expected import SERVICE

ALICE, BOB = [1500, 1500, "/home/alice", "/bin/bash", ""], None
HOME = model.Conflict("users", "bob", "home folder of bob: found a link.")


def compare(
    statements: dict[str, Any], known: tuple[model.Conflict, ...] = (), **answer: Any
) -> tuple[list[str], list[model.Conflict]]:
    """Return the names of what differs, and the conflicts."""
    asked = survey.question(list(statements.values()))
    complete = {key: {**dict.fromkeys(map(str, names))} for key, names in asked.items()}
    for key, found in answer.items():
        complete[key] = {**complete.get(key, {}), **found} if isinstance(found, dict) else found
    compared = survey.compare(statements, {"engine": None, **complete}, known)
    return (
        [f"{one.kind} {one.name}" for part in compared.values() for one in part.differences],
        [one for part in compared.values() for one in part.conflicts],
    )


def test_entries_that_need_a_user_in_conflict_wait_in_every_role() -> None:
    statements = {
        "user_access": {
            "users": [{"name": "alice"}, {"name": "bob"}],
            "lines": [
                {"path": f"/home/{name}/.ssh/authorized_keys", "lines": ["k"], "user": name}
                for name in ("alice", "bob")
            ],
        },
        "ml_data": {
            "files": [{"path": "/srv/a", "owner": "bob"}, {"path": "/srv/b", "owner": "alice"}]
        },
    }
    differing, conflicts = compare(statements, (HOME,), users={"alice": ALICE, "bob": BOB})
    assert differing == ["lines /home/alice/.ssh/authorized_keys", "files /srv/b"]
    (conflict,) = conflicts
    assert conflict.reason == HOME.reason
    assert conflict.blocks == ("lines /home/bob/.ssh/authorized_keys", "files /srv/a")


def test_a_gid_of_another_group_blocks_the_group_and_its_members() -> None:
    statements = {
        "user_access": {
            "groups": [{"name": "lab", "gid": 44}, {"name": "team", "gid": 1600}],
            "members": [{"group": name, "users": ["alice"]} for name in ("lab", "team")],
            "files": [{"path": f"/srv/{name}", "group": name} for name in ("lab", "team")],
        }
    }
    for group in (None, [1600, []]):
        differing, (conflict,) = compare(
            statements, users={"alice": ALICE}, gids={"44": "video"}, groups={"lab": group}
        )
        assert differing == ["groups team", "members team", "files /srv/team"]
        assert conflict.reason == (
            "group lab: found gid 44 of group video; expected a gid that no group has. Change gid "
            "in user_access_groups."
        )
        assert conflict.blocks == ("members lab", "files /srv/lab")


def test_an_entry_as_declared_does_not_wait() -> None:
    statements = {"r": {"users": [{"name": "bob"}], "left_by_root": [{"user": "bob"}]}}
    _differing, (conflict,) = compare(statements, (HOME,), left={"bob": []})
    assert conflict.blocks == ()


def test_a_conflict_goes_on_from_need_to_need() -> None:
    units = [
        {"name": "a.service", "active": True, "needs": [["files", "/etc/a"]]},
        {"name": "b.service", "active": True, "needs": [["units", "a.service"]]},
        {"name": "c.service", "active": True},
    ]
    # The order of entries does not matter.
    for order in (units, units[::-1]):
        differing, (conflict,) = compare(
            {"r": {"units": order, "files": [{"path": "/etc/a"}]}},
            unsafe={"/etc/a": ["/etc", "a link, owned by bob", "a folder"]},
        )
        assert differing == ["units c.service"]
        assert set(conflict.blocks) == {"units a.service", "units b.service"}
        assert conflict.reason == (
            "/etc: found a link, owned by bob; expected a folder. Move it out of the way, then run "
            "again."
        )


def service(name: str, *mounts: str) -> dict[str, Any]:
    parts = [["mounts", mount] for mount in mounts] + [["files", f"/etc/{name}"]]
    return {
        "mounts": [
            {"path": mount, "owner": "7", "group": "7", "read_only": True} for mount in mounts
        ],
        "files": [{"path": f"/etc/{name}", "content": "x"}],
        "projects": [{"name": name, "services": [{"name": name}], "together": parts}],
    }


NO_CONTAINERS: dict[str, Any] = {"record": None, "containers": []}


def services(*entries: dict[str, Any]) -> dict[str, Any]:
    return {"ml_services": {kind: [i for e in entries for i in e[kind]] for kind in entries[0]}}


def test_a_service_is_made_whole_or_not_at_all() -> None:
    statements = services(service("lab", "/srv/gone"), service("web"))
    differing, (conflict,) = compare(
        statements, projects={"lab": NO_CONTAINERS, "web": NO_CONTAINERS}
    )
    assert differing == ["files /etc/web", "projects web"]
    assert (conflict.kind, conflict.name) == ("mounts", "/srv/gone")
    assert conflict.blocks == ("files /etc/lab", "projects lab")


def test_acceptance_checks_do_not_expect_what_is_in_conflict_or_waits_for_it() -> None:
    statements = services(service("lab", "/srv/gone"), service("web"))
    compared = {
        "ml_services": model.Comparison(
            [], [model.Conflict("mounts", "/srv/gone", "gone.", ("projects lab",))]
        )
    }
    left = survey.without_conflicts(statements, compared)["ml_services"]
    assert [entry["name"] for entry in left["projects"]] == ["web"]
    assert left["mounts"] == []


def test_a_folder_of_two_services_does_not_carry_a_conflict_to_the_other() -> None:
    folder = ["directory", "0755", "root", "root", None, 0, 0]
    statements = services(service("lab", "/srv/data"), service("web", "/srv/data"))
    port = model.Conflict("projects", "lab", "port 80 is in use.")
    differing, (conflict,) = compare(
        statements,
        (port,),
        projects={"lab": NO_CONTAINERS, "web": NO_CONTAINERS},
        files={"/srv/data": folder},
    )
    assert differing == ["files /etc/web", "projects web"]
    assert conflict.blocks == ("files /etc/lab",)


@pytest.mark.parametrize(
    ("listener", "runs", "waits"),
    [
        (["127.0.0.1", "process 7 (node) of bob"], [], True),
        (["0.0.0.0", "container web"], [], True),
        (["::", "container web"], ["127.0.0.1:81:80/tcp"], True),
        (["10.0.0.7", "process 7 (node) of bob"], [], False),
        # The service runs, so both can listen.
        (["::", "process 7 (node) of bob"], ["127.0.0.1:80:80/tcp"], False),
    ],
)
def test_a_port_of_others_blocks_the_service(
    listener: list[str], runs: list[str], waits: bool
) -> None:
    lab = service("lab")
    declared = expected.expected_container("lab", {**SERVICE, "ports": ["127.0.0.1:80:80"]}, {})
    lab["projects"][0]["services"][0].update(config="c1", container=declared)
    container = {**described("lab", "c0"), "ports": runs}
    project = {"record": None, "containers": [container] if runs else [], "limits": []}
    differing, conflicts = compare(
        services(lab, service("web")),
        projects={"lab": project, "web": NO_CONTAINERS},
        listeners={"80": [listener]},
        environments={"lab": []},
        addresses={"127.0.0.1": True},
    )
    assert ("projects lab" in differing) is not waits
    assert "projects web" in differing
    assert [one.reason for one in conflicts] == waits * [
        f"service lab: found {listener[1]} on port 80 of {listener[0]}; expected a free port. Stop "
        "the program, or choose another port with the key ports in ml_services_instances."
    ]
    assert [one.blocks for one in conflicts] == waits * [("files /etc/lab",)]


@pytest.mark.parametrize(
    ("tree", "waits"),
    [
        ("/srv", False),
        ("/srv/pets", False),
        ("/srv/pets/cats", False),
        ("/srv/other", True),
        ("/srv/pets2", True),
    ],
)
def test_a_path_that_another_role_makes_in_the_same_run_is_no_conflict(
    tree: str, waits: bool
) -> None:
    statements = services(service("lab", "/srv/pets"))
    statements["ml_data"] = {"files": [{"path": tree, "state": "directory"}]}
    differing, conflicts = compare(statements, projects={"lab": NO_CONTAINERS})
    assert bool(conflicts) is waits
    assert ("projects lab" in differing) is not waits


def test_a_mount_of_another_service_does_not_make_the_folder_above_it() -> None:
    writer = service("web", "/srv/out/web")
    writer["mounts"][0]["read_only"] = False
    differing, conflicts = compare(
        services(service("lab", "/srv/out"), writer),
        projects={"lab": NO_CONTAINERS, "web": NO_CONTAINERS},
    )
    assert "projects web" in differing and "projects lab" not in differing
    assert [one.name for one in conflicts] == ["/srv/out"]


def test_a_path_that_another_role_removes_is_a_conflict() -> None:
    link = ["link", "0777", "root", "root", None, 0, 0]
    statements = services(service("lab", "/srv/pets"))
    statements["ml_data"] = {"files": [{"path": "/srv/pets/cats", "state": "absent"}]}
    differing, conflicts = compare(
        statements,
        projects={"lab": NO_CONTAINERS},
        files={"/srv/pets": None, "/srv/pets/cats": link, "/etc/lab": None},
    )
    assert "files /srv/pets/cats" in differing
    assert [one.name for one in conflicts] == ["/srv/pets"]


def test_an_engine_that_does_not_answer_waits_for_its_settings() -> None:
    statements = {
        "docker_engine": {
            "json": [{"path": "/etc/docker/daemon.json", "settings": {"debug": True}}],
            "units": [
                {
                    "name": "docker.service",
                    "active": True,
                    "needs": [["json", "/etc/docker/daemon.json"]],
                }
            ],
        },
        "ml_images": {"images": [{"reference": "a:cpu", "digest": "d" * 64}]},
    }
    broken = {"/etc/docker/daemon.json": "{"}
    differing, (conflict,) = compare(statements, texts=broken, engine="no such file")
    assert differing == []
    assert conflict.blocks == ("units docker.service", "images a:cpu")
    # An engine that answers builds images as before.
    differing, _conflicts = compare(statements, texts=broken)
    assert differing == ["images a:cpu"]


def test_one_obstacle_of_several_entries_is_told_once() -> None:
    unsafe = {
        path: ["/srv/x", "a link, owned by bob", "a folder"] for path in ("/srv/x/a", "/srv/x/b")
    }
    files = [{"path": path} for path in unsafe]
    differing, conflicts = compare({"r": {"files": files}}, unsafe=unsafe)
    assert (differing, len(conflicts)) == ([], 1)


def test_words_of_a_host_are_escaped() -> None:
    unsafe = {"/srv/x": ["/srv/x", "a link to /\x1b[2J", "a folder"]}
    _differing, (conflict,) = compare({"r": {"files": [{"path": "/srv/x"}]}}, unsafe=unsafe)
    assert "\\x1b[2J" in conflict.reason


def test_conflicts_raise_an_error_by_default() -> None:
    owned = {"files": [{"path": "/srv/x"}]}
    answer = {"files": {"/srv/x": None}, "unsafe": {"/srv/x": ["/srv", "a link", "a folder"]}}
    with pytest.raises(model.ConflictError, match="/srv: found a link"):
        survey.differences(owned, answer)
