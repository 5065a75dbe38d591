#!/usr/bin/python
# Copyright: Slipway contributors
# GNU General Public License v3.0+ (see LICENSE)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module slipway.host.held_packages."""

from __future__ import annotations

DOCUMENTATION = r"""
module: held_packages
short_description: Install, hold and remove a set of apt packages
description:
  - Installs, holds and removes a set of packages in one apt transaction. Nothing is removed before
    apt has found and downloaded all new packages.
  - The package index is refreshed only when apt needs it to find a package.
  - If packages are removed without replacement, also purges their dependencies that no other
    package needs.
  - Waits for another running apt, and tries a half-synchronised mirror again. Finishes an
    interrupted dpkg first, and keeps edited configuration files.
extends_documentation_fragment: [slipway.host.bundle_packages]
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
          - Exact version, or a prefix and C(*). Without it, any installed version is kept.
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
          - A missing optional package is installed only together with other packages, and only if a
            source has it.
        type: bool
        default: false
      follows:
        description:
          - Version of other packages of the set that this package depends on, by C((>= VERSION)).
            When the set changes, the matching version of this package is installed.
        type: str
  refresh:
    description: Refresh the package index first, because a source was added.
    type: bool
    default: false
  version_fallback:
    description:
      - What happens if no source has a declared version any more. V(newest) installs the newest
        versions of the whole set; V(none) fails without a change.
      - The module always fails without a change if the declared version is newer than all versions
        in the sources.
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
    description: Seconds to wait for another apt or dpkg, such as an update after the first boot.
    type: int
    default: 300
attributes:
  check_mode:
    description: Reports which packages would be installed, removed, held and unheld.
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
  description: Packages that were installed, C(name) or C(name=version).
  returned: always
  type: list
  elements: str
slipway_note:
  description:
    - Missing versions and that the newest were installed instead; packages of an interrupted
      installation that was finished.
  returned: after such an event
  type: str
slipway_waiting:
  description: Why the change waits and what to do.
  returned: when the change waits
  type: list
  elements: str
purged:
  description: Packages that were removed.
  returned: always
  type: list
  elements: str
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.apt import bundle_source, changes
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
from ansible_collections.slipway.host.plugins.module_utils.docker.restart_consent import (
    POLICIES,
    waiting_result,
)
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
    "bundle": bundle_source.ARGUMENT_SPEC,
}


def describe_after(states: Mapping[str, changes.PackageState], actions: changes.Changes) -> str:
    """Return the result of :func:`describe` after ACTIONS."""
    after: dict[str, changes.PackageState] = {
        k: v for k, v in states.items() if k not in actions.purge
    }
    for word in actions.install:
        name, _separator, version = word.partition("=")
        after[name] = ["install", "installed", version or "(newest)"]
    for name in [*actions.hold, *actions.unhold]:
        _want, state, version = after[name] or ("", "", "")
        after[name] = ["hold" if name in actions.hold else "install", state, version]
    return describe(after)


def change(
    apt: Apt, module: HostModule, states: Mapping[str, changes.PackageState]
) -> changes.Changes:
    """Change the packages as declared; return the changes."""
    declared = module.params["packages"]
    actions = changes.compare(declared, states)
    if actions.purge and not actions.install:
        actions.purge += apt.orphans(actions.purge)
    if module.params["refresh"] and actions.install:
        apt.refresh()
    if actions.install:
        actions.install += apt.available(actions.optional)
        actions.install += apt.followers(declared, states)
    for command in changes.commands(actions):
        check_consent(apt, module, actions, command)
        if missing := apt.change(command, module.params["version_fallback"]):
            actions.install = changes.names_without_versions(declared, states)
            newest = changes.commands(actions)[0]
            check_consent(apt, module, actions, newest)
            apt.change(newest)
            apt.notes.append(
                f"no source has version {', '.join(missing)}: installed the newest instead"
            )
    return actions


def check_consent(
    apt: Apt, module: HostModule, actions: changes.Changes, command: Sequence[str]
) -> None:
    """Raise WaitingError if a COMMAND is not allowed now; see :mod:`apt.consent`.

    A command whose simulation fails is allowed: it will fail itself, with the reason.
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


def report_waiting(
    module: HostModule, states: Mapping[str, changes.PackageState], reason: str
) -> None:
    """End the module: changes of installed packages can wait, missing packages are an error."""
    missing = [
        entry["name"]
        for entry in module.params["packages"]
        if entry["state"] == "present"
        and not entry["optional"]
        and not changes.is_installed(states[entry["name"]])
    ]
    if missing:
        module.fail_json(msg=f"Cannot install {', '.join(missing)}: {reason}")
    result = waiting_result(module, [reason])
    module.exit_json(changed=False, installed=[], purged=[], **result)


def settle(
    apt: Apt, module: HostModule, states: Mapping[str, changes.PackageState]
) -> changes.Changes:
    """Change packages in STATES that differ, in check mode none; return the changes."""
    if not module.check_mode:
        if unfinished := changes.unfinished(states):
            apt.finish_interrupted(unfinished)
        return change(apt, module, packages.ask_packages([*states]))
    actions = changes.compare(module.params["packages"], states)
    for command in changes.commands(actions):
        check_consent(apt, module, actions, command)
    return actions


def main() -> None:
    """Run the module."""
    module = HostModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    declared = module.params["packages"]
    states = packages.ask_packages([entry["name"] for entry in declared])
    actions = changes.compare(declared, states)
    changed = actions.needed
    apt = Apt(module, module.params["lock_timeout"])
    if changed:
        try:
            with bundle_source.use(module.params["bundle"]) as options:
                apt.use_only(options)
                actions = settle(apt, module, states)
        except AptError as error:
            # Held packages remain held, even if the change failed halfway.
            held = [entry["name"] for entry in declared if entry["hold"]]
            apt.hold_again(held, wait=False)
            module.fail_json(msg=str(error), output=error.output)
        except WaitingError as error:
            report_waiting(module, states, str(error))
    module.exit_json(
        changed=changed,
        installed=actions.install,
        purged=actions.purge + actions.forget,
        diff={"before": describe(states), "after": describe_after(states, actions)},
        **({"slipway_note": "; ".join(apt.notes)} if apt.notes else {}),
    )


if __name__ == "__main__":
    main()
