#!/usr/bin/python
# Copyright: Slipway contributors
# GNU General Public License v3.0+ (see LICENSE)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module slipway.host.package_set."""

from __future__ import annotations

DOCUMENTATION = r"""
module: package_set
short_description: Upgrade and roll back a held set of apt packages
description:
  - Upgrades a set to the newest versions of its sources, holds it again, and records the previous
    versions on the host. Rolls back to these versions.
  - Before the first change, downloads all packages, checks the disk space, and stores the files of
    the present packages beside the record, because archives remove old versions. The files come
    from apt's cache or from an apt source. A note lists packages that no source has any more.
  - The record is in C(/var/lib/slipway/upgrade). It is open until O(state=verified); a repeated
    upgrade after a failure adds to it.
  - Does not remove packages outside the set. If apt would have to, the module fails without a
    change.
extends_documentation_fragment: [slipway.host.bundle_packages]
options:
  state:
    description:
      - V(upgraded) upgrades O(packages) and records the previous versions.
      - V(verified) closes the record, so that the next upgrade starts a new one.
      - V(rolled_back) restores the recorded packages.
      - V(unrecorded) removes the entries of O(role) from the record, and their package files.
    type: str
    choices: [upgraded, verified, rolled_back, unrecorded]
    required: true
  role:
    description:
      - The role that owns the set; required if O(state) is V(upgraded) or V(unrecorded). With
        V(rolled_back), the role whose packages wait for O(gpus_free).
    type: str
  packages:
    description:
      - The set, in the format of M(slipway.host.held_packages). Packages without a version are
        upgraded to the newest one.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the package.
        type: str
        required: true
      version:
        description: Exact version, or a prefix and C(*).
        type: str
      hold:
        description: Whether the package is held. By default the hold is not changed.
        type: bool
      state:
        description: Whether the package is installed; C(absent) purges it.
        type: str
        choices: [present, absent]
        default: present
      optional:
        description:
          - A missing optional package is installed with the others if a source has it. An optional
            package may be removed if no source has a version that matches the others.
        type: bool
        default: false
      follows:
        description: As in M(slipway.host.held_packages).
        type: str
      replaced:
        description: Another package replaces this one later; a rollback reinstalls it.
        type: bool
        default: false
  first:
    description: Packages to upgrade before all others, in the same format.
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
      - Change nothing while a process other than the driver's own daemons uses a GPU, because the
        new driver could not be loaded.
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
      - Reports the versions that would change. The package index is refreshed in a temporary
        folder.
    support: full
  diff_mode:
    description: Shows the changed packages, before and after.
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

- name: Roll back the upgrade
  slipway.host.package_set:
    state: rolled_back
"""

RETURN = r"""
moves:
  description: Changed versions, each with all packages that have it.
  returned: always
  type: list
  elements: str
  sample: ["26.1.5-1 -> 28.5.2-1: docker.io, docker-cli"]
open:
  description: Whether an upgrade or rollback is unfinished or not verified.
  returned: always
  type: bool
slipway_waiting:
  description: Why the upgrade waits and what to do.
  returned: when the upgrade waits
  type: list
  elements: str
slipway_note:
  description:
    - Changed versions; packages whose files could not be stored; packages of an interrupted
      installation that was finished.
  returned: after such an event
  type: str
"""

from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.apt import bundle_source
from ansible_collections.slipway.host.plugins.module_utils.apt.consent import WaitingError
from ansible_collections.slipway.host.plugins.module_utils.apt.package_record import RecordError
from ansible_collections.slipway.host.plugins.module_utils.apt.package_set import (
    PackageSet,
    Result,
    combine,
)
from ansible_collections.slipway.host.plugins.module_utils.apt.run import AptError
from ansible_collections.slipway.host.plugins.module_utils.docker.restart_consent import (
    POLICIES,
    waiting_result,
)
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
    "bundle": bundle_source.ARGUMENT_SPEC,
}


def run(packages: PackageSet, parameters: dict[str, Any]) -> Result:
    """Bring the packages to O(state)."""
    if parameters["state"] == "upgraded":
        role, fallback = parameters["role"], parameters["version_fallback"]
        sets = (parameters["first"], parameters["packages"])
        return combine([packages.upgrade(role, entries, fallback) for entries in sets if entries])
    if parameters["state"] == "rolled_back":
        return packages.roll_back(parameters["role"])
    if parameters["state"] == "unrecorded":
        return packages.drop_role(parameters["role"])
    return packages.mark_verified()


def report_waiting(module: HostModule, packages: PackageSet, reason: str) -> None:
    """End the module: an upgrade can wait, but a rollback fails."""
    if module.params["state"] == "rolled_back":
        module.fail_json(msg=f"{reason} No package was changed.")
    result = waiting_result(module, [reason])
    module.exit_json(changed=False, moves=[], open=packages.storage.record.open, **result)


def main() -> None:
    """Run the module."""
    module = HostModule(
        argument_spec=ARGUMENT_SPEC,
        supports_check_mode=True,
        required_if=[("state", "upgraded", ["role"]), ("state", "unrecorded", ["role"])],
    )
    packages = PackageSet(module, module.params["lock_timeout"], module.params["gpus_free"])
    # Other states do not use apt.
    uses_apt = module.params["state"] in ("upgraded", "rolled_back")
    try:
        with bundle_source.use(module.params["bundle"] if uses_apt else None) as options:
            packages.apt.use_only(options)
            result = run(packages, module.params)
    except (AptError, RecordError, OSError) as error:
        module.fail_json(msg=str(error), output=getattr(error, "output", ""))
    except WaitingError as error:
        report_waiting(module, packages, str(error))
    notes = [*result.descriptions, *packages.apt.notes]
    module.exit_json(
        changed=result.changed,
        moves=result.descriptions,
        open=packages.storage.record.open,
        diff={"before": result.before, "after": result.after},
        **({"slipway_note": "; ".join(notes)} if notes else {}),
    )


if __name__ == "__main__":
    main()
