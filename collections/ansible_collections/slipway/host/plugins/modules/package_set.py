#!/usr/bin/python
# Copyright: Slipway contributors
# GNU General Public License v3.0+ (see LICENSE)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module slipway.host.package_set."""

from __future__ import annotations

DOCUMENTATION = r"""
module: package_set
short_description: Upgrade a held set of apt packages, and go back
description:
  - Upgrades a set to the newest versions of its sources, holds it again, and records on the host
    what was there before. Returns to that.
  - Before the first change everything is fetched, room is made sure of, and the packages that are
    there now are kept beside the record, since archives drop old versions. They are taken from
    apt's cache, or else fetched from the archive; which of them nobody has any more is told.
  - The record stands in C(/var/lib/slipway/upgrade). It stays open until O(state=verified); an
    upgrade that failed and is run again adds to it.
  - Nothing outside the set is removed. Where that cannot be avoided, nothing is changed.
options:
  state:
    description:
      - V(upgraded) upgrades O(packages) and records the way back.
      - V(verified) closes the record, so that the next upgrade begins a new one.
      - V(rolled_back) returns to the set that is recorded.
      - V(unrecorded) drops what the record has of O(role), and the packages kept for it.
    type: str
    choices: [upgraded, verified, rolled_back, unrecorded]
    required: true
  role:
    description:
      - Whose set it is; needed where O(state) is V(upgraded) or V(unrecorded). Where it
        is V(rolled_back), the role that O(gpus_free) is about.
    type: str
  packages:
    description:
      - The set, as M(slipway.host.held_packages) takes it. Packages without a version get the
        newest one.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the package.
        type: str
        required: true
      version:
        description: Exact version, or its beginning and C(*).
        type: str
      hold:
        description: Whether the package is held; without it, its hold is left alone.
        type: bool
      state:
        description: Whether the package is installed; C(absent) purges it.
        type: str
        choices: [present, absent]
        default: present
      optional:
        description:
          - Where it is missing, it comes with the others if a source has it; where no source has
            one that goes with them, it may go.
        type: bool
        default: false
      follows:
        description: As in M(slipway.host.held_packages).
        type: str
      replaced:
        description: Another one comes in its place. It goes later, and the way back brings it.
        type: bool
        default: false
  first:
    description: Packages to upgrade before all others, of the same form.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the package.
        type: str
        required: true
      hold:
        description: Whether the package is held.
        type: bool
  version_fallback:
    description: As in M(slipway.host.held_packages).
    type: str
    choices: [none, newest]
    default: none
  gpus_free:
    description:
      - Change nothing while a process other than the driver's own daemons holds a GPU, because the
        new driver could not be loaded then.
    type: bool
    default: false
  restart:
    description:
      - When packages of Docker Engine may change; see M(slipway.host.held_packages). An upgrade
        waits, a rollback fails.
    type: str
    choices: [idle, always, never]
    default: idle
  lock_timeout:
    description: Seconds to wait for another apt or dpkg.
    type: int
    default: 300
attributes:
  check_mode:
    description:
      - Says what would move. The package index is refreshed in a folder of its own for that.
    support: full
  diff_mode:
    description: Shows the packages that move, before and after.
    support: full
author:
  - Slipway contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Upgrade the engine
  slipway.host.package_set:
    state: upgraded
    role: docker_engine
    packages:
      - {name: docker.io, hold: true}
      - {name: docker-buildx, hold: true}

- name: Mark the upgrade as verified
  slipway.host.package_set:
    state: verified

- name: Go back
  slipway.host.package_set:
    state: rolled_back
"""

RETURN = r"""
moves:
  description: What moved, or would, packages of the same versions together.
  returned: always
  type: list
  elements: str
  sample: ["26.1.5-1 -> 28.5.2-1: docker.io, docker-cli"]
open:
  description: Whether an upgrade was begun and is neither proven nor gone back from.
  returned: always
  type: bool
slipway_waiting:
  description: Why the upgrade waits and what to do.
  returned: when the upgrade waits
  type: list
  elements: str
slipway_note:
  description:
    - What moved; packages that could not be kept, so that only the archive can give them back; what
      an interrupted run had left and this one finished.
  returned: when there is something to tell
  type: str
"""

from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.apt.consent import WaitingError
from ansible_collections.slipway.host.plugins.module_utils.apt.package_record import RecordError
from ansible_collections.slipway.host.plugins.module_utils.apt.package_set import (
    PackageSet,
    Result,
    combined,
)
from ansible_collections.slipway.host.plugins.module_utils.apt.run import AptError
from ansible_collections.slipway.host.plugins.module_utils.docker.restart_consent import POLICIES
from ansible_collections.slipway.host.plugins.module_utils.host.module import HostModule

ARGUMENT_SPEC: dict[str, Any] = {
    "state": {
        "type": "str",
        "choices": ["upgraded", "verified", "rolled_back", "unrecorded"],
        "required": True,
    },
    "role": {"type": "str"},
    "packages": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "name": {"type": "str", "required": True},
            "version": {"type": "str"},
            "hold": {"type": "bool"},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "optional": {"type": "bool", "default": False},
            "follows": {"type": "str"},
            "replaced": {"type": "bool", "default": False},
        },
    },
    "first": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {"name": {"type": "str", "required": True}, "hold": {"type": "bool"}},
    },
    "version_fallback": {"type": "str", "choices": ["none", "newest"], "default": "none"},
    "gpus_free": {"type": "bool", "default": False},
    "restart": {"type": "str", "choices": list(POLICIES), "default": "idle"},
    "lock_timeout": {"type": "int", "default": 300},
}


def run(packages: PackageSet, parameters: dict[str, Any]) -> Result:
    """Do what O(state) says."""
    if parameters["state"] == "upgraded":
        role, gone = parameters["role"], parameters["version_fallback"]
        sets = (parameters["first"], parameters["packages"])
        return combined([packages.upgrade(role, one, gone) for one in sets if one])
    if parameters["state"] == "rolled_back":
        return packages.go_back(parameters["role"])
    if parameters["state"] == "unrecorded":
        return packages.forget(parameters["role"])
    return packages.prove()


def report_waiting(module: HostModule, packages: PackageSet, reason: str) -> None:
    """End the module: an upgrade can wait; somebody who rolls back expects the older packages."""
    if module.params["state"] == "rolled_back":
        module.fail_json(msg=f"{reason} No package was changed.")
    waiting = {"moves": [], "open": packages.kept.record.open, "slipway_waiting": [reason]}
    module.exit_json(changed=False, **waiting)


def main() -> None:
    """Run the module."""
    module = HostModule(
        argument_spec=ARGUMENT_SPEC,
        supports_check_mode=True,
        required_if=[("state", "upgraded", ["role"]), ("state", "unrecorded", ["role"])],
    )
    packages = PackageSet(module, module.params["lock_timeout"], module.params["gpus_free"])
    try:
        result = run(packages, module.params)
    except (AptError, RecordError, OSError) as error:
        module.fail_json(msg=str(error), output=getattr(error, "output", ""))
    except WaitingError as error:
        report_waiting(module, packages, str(error))
    notes = [*result.told, *packages.apt.notes]
    module.exit_json(
        changed=result.changed,
        moves=result.told,
        open=packages.kept.record.open,
        diff={"before": result.before, "after": result.after},
        **({"slipway_note": "; ".join(notes)} if notes else {}),
    )


if __name__ == "__main__":
    main()
