#!/usr/bin/python
# Copyright: Slipway contributors
# GNU General Public License v3.0+ (see LICENSE)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module slipway.host.held_packages."""

from __future__ import annotations

DOCUMENTATION = r"""
module: held_packages
short_description: A set of apt packages, with versions and holds, as one consistent whole
description:
  - Installs, pins, holds and removes a set of packages in one apt transaction. Nothing is removed
    before apt has found and fetched all that is to come.
  - The package index is refreshed only when apt needs it to find a package.
  - Where nothing takes the place of what is removed, packages that came with it and that nothing
    else needs are purged as well.
  - Another apt that runs is waited for; a half-synchronised mirror is tried again. What an
    interrupted dpkg left is finished first, with edited configuration files kept.
options:
  packages:
    description: The set, as the C(packages) list of a role's owned state.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Name of the package.
        type: str
        required: true
      version:
        description:
          - Exact version, or its beginning and C(*); without it, any installed version is good.
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
          - Where it is missing, it is installed together with others that are, if a source has it.
        type: bool
        default: false
      follows:
        description:
          - Version of other packages of the set that this one depends on, by C((>= VERSION)). Where
            the set changes, that version of this one comes with it that fits.
        type: str
  refresh:
    description: Refresh the package index first, because a source was added.
    type: bool
    default: false
  version_fallback:
    description:
      - What happens where no source has a wanted version any more. V(newest) takes the newest of
        the whole set that the sources have; V(none) changes nothing.
      - Nothing is changed either where the wanted version is newer than what the sources have.
    type: str
    choices: [none, newest]
    default: none
  restart:
    description:
      - When packages of Docker Engine may change, which restarts the engine; see the option of the
        same name of M(slipway.host.daemon_json).
    type: str
    choices: [idle, always, never]
    default: idle
  removable:
    description:
      - Names of packages, with wildcards, that apt may remove or downgrade although they are not
        in the set. Without consent, apt removes and downgrades no other package.
    type: list
    elements: str
    default: []
  gpus_free:
    description: Change installed packages of the set only while no process uses a GPU.
    type: bool
    default: false
  role:
    description: The role whose option C(ROLE_removable_packages) fills O(removable), for messages.
    type: str
    default: ""
  lock_timeout:
    description: Seconds to wait for another apt or dpkg, such as a first boot's upgrades.
    type: int
    default: 300
attributes:
  check_mode:
    description: Says what would be installed, removed, held and unheld.
    support: full
  diff_mode:
    description: Shows the set before and after.
    support: full
author:
  - Slipway contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Install and hold the engine
  slipway.host.held_packages:
    packages:
      - {name: docker.io, hold: true}
      - {name: docker-buildx, hold: true}
"""

RETURN = r"""
installed:
  description: What was installed, C(name) or C(name=version).
  returned: always
  type: list
  elements: str
slipway_note:
  description:
    - Which versions were gone, and that the newest came instead; what an interrupted run had left
      and this one finished.
  returned: when it was so
  type: str
slipway_waiting:
  description: Why the change waits and what to do.
  returned: when the change waits
  type: list
  elements: str
purged:
  description: What was removed.
  returned: always
  type: list
  elements: str
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.apt import changes
from ansible_collections.slipway.host.plugins.module_utils.apt.consent import (
    Consent,
    WaitingError,
    check,
)
from ansible_collections.slipway.host.plugins.module_utils.apt.run import (
    Apt,
    AptError,
    describe,
)
from ansible_collections.slipway.host.plugins.module_utils.docker.restart_consent import POLICIES
from ansible_collections.slipway.host.plugins.module_utils.host.module import HostModule
from ansible_collections.slipway.host.plugins.module_utils.state import packages

ARGUMENT_SPEC: dict[str, Any] = {
    "packages": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {
            "name": {"type": "str", "required": True},
            "version": {"type": "str"},
            "hold": {"type": "bool"},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "optional": {"type": "bool", "default": False},
            "follows": {"type": "str"},
        },
    },
    "refresh": {"type": "bool", "default": False},
    "version_fallback": {"type": "str", "choices": ["none", "newest"], "default": "none"},
    "restart": {"type": "str", "choices": list(POLICIES), "default": "idle"},
    "removable": {"type": "list", "elements": "str", "default": []},
    "role": {"type": "str", "default": ""},
    "gpus_free": {"type": "bool", "default": False},
    "lock_timeout": {"type": "int", "default": 300},
}


def expected(known: Mapping[str, changes.Known], actions: changes.Plan) -> str:
    """Return what :func:`describe` would say after ACTIONS."""
    after: dict[str, changes.Known] = {k: v for k, v in known.items() if k not in actions.purge}
    for spelled in actions.install:
        name, _, version = spelled.partition("=")
        after[name] = ["install", "installed", version or "(newest)"]
    for name in [*actions.hold, *actions.unhold]:
        _want, state, version = after[name] or ("", "", "")
        after[name] = ["hold" if name in actions.hold else "install", state, version]
    return describe(after)


def change(apt: Apt, module: HostModule, known: Mapping[str, changes.Known]) -> changes.Plan:
    """Make the set as wanted; return what was done."""
    wanted = module.params["packages"]
    actions = changes.plan(wanted, known)
    if actions.purge and not actions.install:
        actions.purge += apt.orphans(actions.purge)
    if module.params["refresh"] and actions.install:
        apt.refresh()
    if actions.install:
        actions.install += apt.known(actions.optional)
        actions.install += apt.followers(wanted, known)
    for command in changes.commands(actions):
        check_consent(apt, module, actions, command)
        if gone := apt.change(command, module.params["version_fallback"]):
            actions.install = changes.newest(wanted, known)
            newest = changes.commands(actions)[0]
            check_consent(apt, module, actions, newest)
            apt.change(newest)
            apt.notes.append(f"no source has version {', '.join(gone)}: took the newest instead")
    return actions


def check_consent(
    apt: Apt, module: HostModule, actions: changes.Plan, command: Sequence[str]
) -> None:
    """Raise WaitingError if a COMMAND may not be run now; see :mod:`apt.consent`.

    A command that cannot be simulated fails for itself, and says why.
    """
    if command[0] != "apt-get":
        return
    simulation = changes.simulation(command)
    status, simulated = apt.run(simulation)
    if status != 0 and changes.is_stale(simulated) and not (apt.refreshed or module.check_mode):
        apt.refresh()
        status, simulated = apt.run(simulation)
    if status == 0:
        parameters = module.params
        own = {entry["name"] for entry in parameters["packages"]} | set(actions.purge)
        consent = Consent(
            parameters["restart"],
            parameters["removable"],
            parameters["role"],
            parameters["gpus_free"],
        )
        check(simulated, own, consent)


def report_waiting(module: HostModule, known: Mapping[str, changes.Known], reason: str) -> None:
    """End the module: what is installed can wait, what is missing cannot."""
    missing = [
        entry["name"]
        for entry in module.params["packages"]
        if entry["state"] == "present"
        and not entry["optional"]
        and not changes.is_installed(known[entry["name"]])
    ]
    if missing:
        module.fail_json(msg=f"Cannot install {', '.join(missing)}: {reason}")
    module.exit_json(changed=False, installed=[], purged=[], slipway_waiting=[reason])


def main() -> None:
    """Run the module."""
    module = HostModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    wanted = module.params["packages"]
    names = [entry["name"] for entry in wanted]
    known = packages.ask_packages(names)
    actions = changes.plan(wanted, known)
    changed = actions.changes
    apt = Apt(module, module.params["lock_timeout"])
    if changed and not module.check_mode:
        try:
            if left := changes.unfinished(known):
                apt.finish(left)
            actions = change(apt, module, packages.ask_packages(names))
        except AptError as error:
            # Whatever was reached: what is held stays held.
            held = [entry["name"] for entry in wanted if entry["hold"]]
            apt.hold_again(held, wait=False)
            module.fail_json(msg=str(error), output=error.output)
        except WaitingError as error:
            report_waiting(module, known, str(error))
    elif changed:
        try:
            for command in changes.commands(actions):
                check_consent(apt, module, actions, command)
        except WaitingError as error:
            report_waiting(module, known, str(error))
    module.exit_json(
        changed=changed,
        installed=actions.install,
        purged=actions.purge + actions.forget,
        diff={"before": describe(known), "after": expected(known, actions)},
        **({"slipway_note": "; ".join(apt.notes)} if apt.notes else {}),
    )


if __name__ == "__main__":
    main()
