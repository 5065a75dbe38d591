# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The state `absent` of each role: nothing is declared but the absence of its own things."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.plugin_utils import role_plans, roles

from tests.contract.tree import ROOT, load
from tests.unit.gpu_facts import facts
from tests.unit.role_options import options

RECORDS = "/var/lib/slipway/images"


def absent(role: str, **changes: Any) -> dict[str, Any]:
    """Return the owned state of a role whose state is absent."""
    plan = role_plans.load_module(role).plan
    owned: dict[str, Any] = plan(facts("t4"), options(role, state="absent", **changes))["owned"]
    return owned


def test_services_are_absent_whatever_is_declared() -> None:
    changes = {"instances": [{"name": "iris-api"}], "ml_catalogue_variant": "cpu"}
    owned = absent("ml_services", **changes)
    assert owned["projects"] == owned["files"] == owned["secrets"] == []
    assert owned["folders"] == [{"path": "/etc/slipway/services", "entries": []}]


def test_no_image_is_wanted_and_no_record_may_stay() -> None:
    owned = absent("ml_images", present=["iris-api"], ml_catalogue_variant="cpu")
    assert owned == {
        "images": [],
        "files": [{"path": "/var/lib/slipway/registry", "state": "absent"}],
        "folders": [{"path": RECORDS, "entries": []}],
    }


def test_declared_data_sets_and_repositories_become_absent() -> None:
    owned = absent(
        "ml_data",
        archives=[{"name": "pets", "path": "/var/tmp/pets.tar"}],
        repositories=[{"name": "course", "url": "https://git.example.org/c.git", "revision": "v1"}],
    )
    assert owned["packages"] == []
    states = [entry["state"] for entry in (*owned["datasets"], *owned["checkouts"])]
    assert states == ["absent", "absent"]


@pytest.mark.parametrize("exclusive", [True, False])
def test_accounts_and_shared_folders_are_not_touched(exclusive: bool) -> None:
    owned = absent(
        "user_access",
        users=[{"name": "alice", "docker": "rootless", "keys": ["ssh-ed25519 AAAA a"]}],
        groups=[{"name": "lab"}],
        shared_folders=[{"group": "lab"}],
        limits=[{"applies_to": "*", "nofile": 4096}],
        docker_exclusive=exclusive,
    )
    assert owned["users"] == owned["groups"] == owned["lines"] == owned["rootless"] == []
    assert owned["members"] == [{"group": "docker", "users": [], "exclusive": exclusive}]
    assert {entry["state"] for entry in owned["files"]} == {"absent"}
    assert owned["folders"] == [{"path": "/etc/slipway/rootless", "entries": []}]


@pytest.mark.parametrize("role", load(ROOT / "vars/roles.yml")["slipway_roles"])
def test_every_role_that_provisions_can_be_removed(role: str) -> None:
    removal = load(ROOT / "vars/removal.yml")
    assert removal[f"{role}_state"] == "absent"
    assert f"'{role}'" in removal["__slipway_reverse_order"]
    assert roles.load(role).options[f"{role}_state"]["choices"] == ["present", "absent"]
