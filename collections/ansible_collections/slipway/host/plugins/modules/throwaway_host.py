#!/usr/bin/python
# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module slipway.host.throwaway_host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: throwaway_host
short_description: Make or remove a throwaway host on the controller
version_added: 0.1.0
description:
  - Makes a host to try roles on. It is a container with real systemd and real apt, reached over
    real SSH by a user who may become root.
  - Runs on the controller. Where no Docker Engine answers there, it installs the distribution's
    package and starts one, for which it has to run as root. An engine that is there is used as
    it is.
  - Base images are made once and kept; the next host of a base starts in seconds.
options:
  name:
    description:
      - The host's name within its group.
      - With O(state=absent), leave it out to remove the whole group.
    type: str
  group:
    description:
      - What the host belongs to, such as V(demo) or V(molecule).
    type: str
    required: true
  state:
    description:
      - Whether the host is up, or gone with everything that was made for it.
      - A host that was stopped is started; one that is half-made, or was made to another
        specification, is made anew.
    type: str
    choices: [present, absent]
    default: present
  base:
    description:
      - What the host runs.
      - The C(debian-) bases are bootstrapped from Debian's packages, the C(ubuntu-) bases are
        pulled from a registry. C(ubuntu-like-) is Debian 13 that calls itself Ubuntu, for the
        branches of a role where no Ubuntu image can be had; it proves the role's logic, not
        Ubuntu.
      - Debian 12's own packages lack BuildKit and compose v2. A host of V(debian-12) needs
        Docker's package repository for more than a bare engine.
      - C(debian-sid) is Debian unstable, which may be broken on any day.
    type: str
    default: debian-13
    choices:
      - debian-13
      - debian-12
      - debian-sid
      - ubuntu-22.04
      - ubuntu-24.04
      - ubuntu-26.04
      - ubuntu-like-22.04
      - ubuntu-like-24.04
      - ubuntu-like-26.04
  hostname:
    description:
      - What the host calls itself. Its O(name) by default.
    type: str
  mounts:
    description:
      - Files and folders of the controller that the host is to see, for example a made-up PCI tree
        over C(/sys/bus/pci/devices).
    type: list
    elements: dict
    default: []
    suboptions:
      source:
        description: Absolute path on the controller; it has to exist.
        type: path
        required: true
      target:
        description: Absolute path in the host.
        type: str
        required: true
      read_only:
        description: Whether the host may not write there.
        type: bool
        default: false
  state_dir:
    description:
      - Folder on the controller for the key, known_hosts and records of the group, of this group
        alone.
      - By default C(.slipway/hosts/GROUP) in the project, whose root is the nearest folder with an
        C(ansible.cfg) around the playbook.
    type: path
  optional:
    description:
      - Whether a base that cannot be had is a result (RV(available=false)) instead of a failure.
    type: bool
    default: false
  purge:
    description:
      - With O(state=absent), also remove the base images that no host uses.
    type: bool
    default: false
  stop_engine:
    description:
      - With O(state=absent), also stop the engine if this module had started it and no container
        is left on it.
    type: bool
    default: false
attributes:
  check_mode:
    description:
      - Says whether something would change, and changes nothing. Whether a base can be had is not
        tried.
    support: full
  diff_mode:
    description: There is nothing of the user's to show a difference of.
    support: none
requirements:
  - A controller with Linux, systemd not needed, and cgroup v2 mounted
author:
  - Slipway contributors (@slipway)
"""

EXAMPLES = r"""
- name: Make a throwaway host
  slipway.host.throwaway_host:
    name: web
    group: try
  register: host
  delegate_to: localhost

- name: Make one with Ubuntu where its image can be pulled
  slipway.host.throwaway_host:
    name: noble
    group: try
    base: ubuntu-24.04
    optional: true
  register: noble
  delegate_to: localhost

- name: Make one that sees a made-up GPU
  slipway.host.throwaway_host:
    name: gpu
    group: try
    mounts:
      - source: "{{ playbook_dir }}/pci-devices"
        target: /sys/bus/pci/devices
        read_only: true
  delegate_to: localhost

- name: Remove all of them
  slipway.host.throwaway_host:
    group: try
    state: absent
  delegate_to: localhost
"""

RETURN = r"""
available:
  description: Whether the base can be had.
  returned: state is present
  type: bool
reason:
  description: Why not, when it cannot.
  returned: base not available
  type: str
base:
  description: The base the host runs.
  returned: state is present
  type: str
address:
  description: The host's address, reachable from the controller.
  returned: host is up
  type: str
  sample: 172.17.0.2
user:
  description: The user to connect as; may become root by sudo without a password.
  returned: host is up
  type: str
  sample: operator
private_key_file:
  description: Path of the key to connect with.
  returned: host is up
  type: str
known_hosts_file:
  description: Path of the file that holds the host's public keys.
  returned: host is up
  type: str
ssh_common_args:
  description: The same as a value for C(ansible_ssh_common_args).
  returned: host is up
  type: str
system_state:
  description: V(running), or V(degraded) when a unit of the host failed as it came up.
  returned: host is up
  type: str
"""

import shlex
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.slipway.host.plugins.module_utils._throwaway import (
    Action,
    Group,
    Host,
    HostSpec,
    Mount,
    check_spec,
)
from ansible_collections.slipway.host.plugins.module_utils._throwaway_bases import (
    BASES,
    DEFAULT_BASE,
    purge_bases,
)
from ansible_collections.slipway.host.plugins.module_utils._throwaway_engine import (
    BaseUnavailableError,
    ThrowawayError,
)
from ansible_collections.slipway.host.plugins.module_utils._throwaway_state import (
    default_state_dir,
)

ARGUMENT_SPEC: dict[str, Any] = {
    "name": {"type": "str"},
    "group": {"type": "str", "required": True},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "base": {"type": "str", "choices": list(BASES), "default": DEFAULT_BASE},
    "hostname": {"type": "str"},
    "mounts": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "source": {"type": "path", "required": True},
            "target": {"type": "str", "required": True},
            "read_only": {"type": "bool", "default": False},
        },
    },
    "state_dir": {"type": "path"},
    "optional": {"type": "bool", "default": False},
    "purge": {"type": "bool", "default": False},
    "stop_engine": {"type": "bool", "default": False},
}


def connection(host: Host) -> dict[str, Any]:
    """Return how to reach a host, as the module's results."""
    return {
        "available": True,
        "base": host.base,
        "address": host.address,
        "user": host.user,
        "private_key_file": str(host.private_key_file),
        "known_hosts_file": str(host.known_hosts_file),
        "ssh_common_args": shlex.join(host.ssh_options),
        "system_state": host.system_state,
        "changed": host.changed,
    }


def present(group: Group, params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Make the host, or say what would be done."""
    spec = HostSpec(
        name=params["name"],
        base=params["base"],
        hostname=params["hostname"] or "",
        mounts=tuple(Mount(**mount) for mount in params["mounts"]),
    )
    check_spec(spec)
    if check_mode and group.plan(spec) is not Action.KEEP:
        return {"available": True, "base": spec.base, "changed": True}
    try:
        return connection(group.ensure(spec))
    except BaseUnavailableError as error:
        if not params["optional"]:
            raise
        return {"available": False, "base": spec.base, "reason": str(error), "changed": False}


def absent(group: Group, params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Remove the host or the group, and on request what is left over once nobody needs it."""
    changed = group.remove(params["name"], dry_run=check_mode)
    if params["purge"]:
        changed |= purge_bases(group.engine, dry_run=check_mode)
    if params["stop_engine"]:
        changed |= group.engine.stop_if_idle(dry_run=check_mode)
    return {"changed": changed}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec=ARGUMENT_SPEC,
        required_if=[("state", "present", ["name"])],
        supports_check_mode=True,
    )
    params = module.params
    act = present if params["state"] == "present" else absent
    try:
        folder = params["state_dir"] or default_state_dir(params["group"], Path.cwd())
        result = act(Group(params["group"], Path(folder)), params, module.check_mode)
    except ThrowawayError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
