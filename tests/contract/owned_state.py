# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Print what each role states as its owned state, on several platforms, as JSON.

A program of its own, since Ansible's plugin loader cannot be undone once it is set up:
{platform: {role: statement}}.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar

from tests.contract.tree import ROOT, load

PLATFORMS = {
    "debian-12": ("Debian", "12", "bookworm", "docker-ce"),
    "debian-13": ("Debian", "13", "trixie", "docker.io"),
    "debian-forky": ("Debian", "forky", "forky", "docker.io"),
    "ubuntu-22.04": ("Ubuntu", "22.04", "jammy", "docker-ce"),
    "ubuntu-24.04": ("Ubuntu", "24.04", "noble", "docker.io"),
    "ubuntu-26.04": ("Ubuntu", "26.04", "resolute", "docker-ce"),
}
# What the inventory might say beyond the defaults, so that no list is empty.
INVENTORY: dict[str, Any] = {
    "inventory_hostname": "gpu01",
    "user_access_groups": [{"name": "lab", "gid": 2000}],
    "user_access_users": [
        {"name": "alice", "docker": True, "keys": ["ssh-ed25519 AAAA a"]},
        {"name": "carol", "docker": "rootless"},
    ],
    "user_access_shared_folders": [{"group": "lab"}],
    "user_access_limits": [{"applies_to": "@lab", "memlock": "unlimited"}],
    "host_metrics_folder": "/var/lib/prometheus/node-exporter",
    "slurm_controller": "gpu01",
    "slurm_nodes": ["gpu01"],
    "slurm_accounting": True,
    "slurm_accounts": [{"name": "vision", "members": ["alice"], "gpus": 4}],
    "ml_front_door_host": "gpu01",
    "ml_front_door_sites": [{"service": "iris-api", "hosts": ["gpu01"]}],
    "hostvars": {
        "gpu01": {
            "ml_services_instances": [{"name": "iris-api"}],
            "ansible_facts": {
                "slipway_slurm_node": {
                    "hostname": "gpu01",
                    "address": "192.0.2.11",
                    "cpus": 8,
                    "sockets": 1,
                    "cores": 4,
                    "threads": 2,
                    "memory": 65536,
                    "gpus": [[0, "NVIDIA H100"]],
                    "reserved": [],
                    "cgroup": True,
                    "munge_key": "",
                    "managed": False,
                    "foreign": "",
                    "nodes": {},
                    "cluster": "",
                    "jobs_folder": "",
                }
            },
        }
    },
    "ml_data_archives": [{"name": "pets", "url": "http://a.example.org/pets", "optional": True}],
    "ml_data_repositories": [
        {"name": "course", "url": "git@a.example.org:course", "revision": "v1"},
        {"name": "old", "state": "absent"},
    ],
}

# Without a package for the front door, the role can only remove it.
OTHERWISE = {"ubuntu-22.04": {"ml_front_door_state": "absent"}}


def facts(distribution: str, version: str, codename: str, package: str) -> dict[str, Any]:
    """Return the facts of a host of a platform, with one GPU; PACKAGE holds the engine."""
    return {
        "distribution": distribution,
        "distribution_version": version,
        "distribution_major_version": version.partition(".")[0],
        "distribution_release": codename,
        "architecture": "x86_64",
        "kernel": "6.12.0-amd64",
        "docker_package": package,
        "docker_version": "26.1.5",
        "gpu": {
            "devices": [["0000:01:00.0", "0x1eb8", "0x030200", "nvidia", False, ""]],
            "bridges": [],
            "secure_boot": False,
            "kernel_metas": [],
            "packages": {},
            "components": [],
            "loaded": "",
            "banner": "",
            "run_installer": False,
        },
        "docker_snap": False,
        "front_door": "managed",
        "systemd": True,
        "root": True,
    }


def main() -> int:
    """Print the owned state of every role on every platform."""
    init_plugin_loader([str(ROOT / "collections")])
    # Imported late: the collection is found by the plugin loader.
    from ansible_collections.slipway.host.plugins.plugin_utils import role_plans, roles  # noqa: PLC0415

    found: dict[str, dict[str, Any]] = {}
    for platform, words in PLATFORMS.items():
        found[platform] = {}
        for name in load(ROOT / "vars/roles.yml")["slipway_roles"]:
            role = roles.load(name)
            inventory = {**INVENTORY, **OTHERWISE.get(platform, {})}
            scope = {**role.defaults, **inventory, "role_path": str(role.path)}
            templar = Templar(loader=DataLoader(), variables=scope)
            plan = role_plans.plan(name, inventory, templar.template, facts(*words))
            found[platform][name] = plan["owned"]
    json.dump(found, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
