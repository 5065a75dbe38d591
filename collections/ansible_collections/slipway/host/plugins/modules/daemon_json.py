#!/usr/bin/python
# Copyright: Slipway contributors
# GNU General Public License v3.0+ (see LICENSE)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module slipway.host.daemon_json, the only program of Slipway that writes daemon.json."""

from __future__ import annotations

DOCUMENTATION = r"""
module: daemon_json
short_description: Merge settings into Docker's daemon.json
version_added: 0.1.0
author:
  - Slipway contributors (!UNKNOWN)
description:
  - Merges the declared settings into Docker's C(daemon.json) and keeps every other key as it is, in
    its place.
  - Objects are merged key by key. Every other value, lists too, is replaced as a whole, because an
    edited list and two merged lists look the same.
  - A file with the same content in another format is not rewritten. New content has four spaces of
    indentation. A file that is empty or starts with a byte order mark is always rewritten, because
    engines before 23.0 do not start with it.
  - C(dockerd) validates the new content, which then replaces the old content in one step. If
    C(dockerd) rejects it, the file is not changed.
  - Fails on content that C(dockerd) would reject or misread, with the line, the column and a caret.
    Such content is text that is not JSON or not UTF-8, a duplicate key in one object, a top level
    that is not an object, a key that is an object only in the file or only in the settings, and a
    key that the systemd unit also sets by a flag.
  - A symbolic link is kept; the module writes the file that it points to.
  - A missing file is created, unless there is nothing to write.
  - User names and passwords in URLs are masked in the diff and in the return values.
options:
  path:
    description:
      - Path of the file.
    type: path
    default: /etc/docker/daemon.json
  settings:
    description:
      - The declared keys, nested as in the file.
      - A setting of an earlier run that is no longer declared is replaced by the value that was
        there before it, or removed if there was none. If somebody has changed it since, it is kept.
      - V({}) therefore removes all settings of earlier runs.
      - An empty object creates a missing object and keeps the content of an existing one. A null is
        an error.
    type: dict
    default: {}
  defaults:
    description:
      - Settings for keys without a value. A key in O(settings), or in the file before this module
        wrote it, keeps its value.
      - A default in C(log-opts) applies only with the C(log-driver) of the defaults.
    type: dict
    default: {}
  absent:
    description:
      - Key paths to remove from the file, also those that Slipway did not set.
      - Write V(log-opts.max-size), or V([log-opts, max-size]) if a key contains a dot.
      - The object around a removed key is kept, even if it is empty.
      - C(default-runtime) is removed together with the entry of C(runtimes) that it names.
    type: list
    elements: raw
    default: []
  record:
    description:
      - Path of the record with the keys that the module set, and the values before, for each file.
      - O(settings) are written to the file even without a record. If the record is lost, values
        that were written before count as the user's own and are no longer removed.
      - Only root can read the record. Writing it does not count as a change.
    type: path
    default: /var/lib/slipway/daemon_json.json
  validate:
    description:
      - The command that validates the new content; C(%s) is replaced by the path of a file with
        this content.
      - The default command is skipped, with a note, if C(dockerd) is missing or older than 23.0,
        which cannot validate. Any other command must exist.
      - An empty string disables the validation.
    type: str
    default: dockerd --validate --config-file %s
  unit:
    description:
      - The systemd unit of the daemon that reads the file.
      - C(dockerd) does not start if its command line and the file both set a key, for example
        C(-H fd://) and C(hosts), and C(--validate) does not detect this. The module fails if it
        would write such a file, and warns if it finds one.
      - An empty string disables the check. It is skipped if systemd does not run.
    type: str
    default: docker.service
  restart:
    description:
      - When the daemon of O(unit) may be restarted, if it runs and the change needs a restart.
        V(idle) means that no container runs that would stop and not start again, or that uses a
        GPU; C(live-restore) counts if it is on in the running daemon. V(never) means never.
      - If a restart is not allowed, the file is not changed, and RV(slipway_waiting) has the
        reason.
      - The previous content is kept beside O(record) until M(slipway.host.units) has restarted the
        daemon.
      - Content with which the daemon did not start before is an error, except with V(always).
    type: str
    choices: [idle, always, never]
    default: always
  mode:
    description:
      - The mode of the file. By default, its present mode limited to V(0644), because the file may
        contain the password of a proxy.
    type: raw
  owner:
    description:
      - The user that owns the file.
    type: str
    default: root
  group:
    description:
      - The group that owns the file.
    type: str
    default: root
  backup:
    description:
      - Whether to keep a copy of the old file, with the date in its name, when the content changes.
    type: bool
    default: false
attributes:
  check_mode:
    description: Reports and validates the changes without making them.
    support: full
  diff_mode:
    description: Shows the content before and after.
    support: full
notes:
  - Which changes C(SIGHUP) applies without a restart follows Docker's reference of C(dockerd) and
    the source code of the engine. A reload can change a few keys but not remove them, and it reads
    only C(buildkit) of C(features). Such changes report RV(restart_required).
"""

EXAMPLES = r"""
- name: Set the project's keys and keep all others
  slipway.host.daemon_json:
    settings:
      log-driver: local
      log-opts:
        max-size: 50m
      features:
        cdi: true
      runtimes:
        nvidia:
          path: nvidia-container-runtime
          args: []
  register: daemon_json

- name: Restart Docker only for changes that a reload does not apply
  ansible.builtin.systemd_service:
    name: docker.service
    state: "{{ 'restarted' if daemon_json.restart_required else 'reloaded' }}"
  when: daemon_json.restart_required or daemon_json.reload_required

- name: Remove keys of an older tool
  slipway.host.daemon_json:
    settings:
      log-driver: local
    absent:
      - default-runtime
      - [default-network-opts, bridge, com.docker.network.driver.mtu]

- name: Remove all settings of earlier runs
  slipway.host.daemon_json:
    settings: {}

- name: Configure the rootless daemon of a user
  become: true
  become_user: ada
  slipway.host.daemon_json:
    path: ~/.config/docker/daemon.json
    record: ~/.local/state/slipway/daemon_json.json
    owner: ada
    group: ada
    unit: ""
    settings:
      log-driver: local
"""

RETURN = r"""
path:
  description: The file, with symbolic links followed.
  returned: success
  type: str
  sample: /etc/docker/daemon.json
settings:
  description: The whole content of the file, with the user's keys.
  returned: success
  type: dict
  sample: {"dns": ["192.0.2.1"], "log-driver": "local", "log-opts": {"max-size": "50m"}}
differences:
  description: The changed keys, each with its old and its new value.
  returned: success
  type: list
  elements: str
  sample:
    - 'log-opts.max-size: "10m" → "50m"'
    - 'debug: true → (removed)'
restart_required:
  description: Whether a running daemon applies the changes only after a restart.
  returned: success
  type: bool
reload_required:
  description: Whether a running daemon applies the changes after a reload.
  returned: success
  type: bool
notes:
  description: Notes for a person, such as why the content was not validated.
  returned: success
  type: list
  elements: str
  sample:
    - 'Not validated: this host has no dockerd yet.'
slipway_waiting:
  description: Why the change waits and what to do.
  returned: when the change waits
  type: list
  elements: str
conflicts:
  description: What is in the way, a mapping with kind, name and reason for each conflict.
  returned: when the file or the unit of the engine has to be corrected by a person
  type: list
  elements: dict
backup_file:
  description: The copy of the old file.
  returned: when O(backup) is true, the content changed and there was a file
  type: str
  sample: /etc/docker/daemon.json.4711.2026-11-20@04:05:06~
"""

from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.docker.daemon_json import DaemonJsonError
from ansible_collections.slipway.host.plugins.module_utils.docker.daemon_json_file import (
    VALIDATE,
    DaemonJsonFile,
)
from ansible_collections.slipway.host.plugins.module_utils.docker.labels import DAEMON_JSON_RECORD
from ansible_collections.slipway.host.plugins.module_utils.docker.restart_consent import POLICIES
from ansible_collections.slipway.host.plugins.module_utils.host.module import HostModule

ARGUMENT_SPEC: dict[str, dict[str, Any]] = {
    "path": {"type": "path", "default": "/etc/docker/daemon.json"},
    "settings": {"type": "dict", "default": {}},
    "defaults": {"type": "dict", "default": {}},
    "absent": {"type": "list", "elements": "raw", "default": []},
    "record": {"type": "path", "default": DAEMON_JSON_RECORD},
    "validate": {"type": "str", "default": VALIDATE},
    "unit": {"type": "str", "default": "docker.service"},
    "restart": {"type": "str", "choices": list(POLICIES), "default": "always"},
    "mode": {"type": "raw"},
    "owner": {"type": "str", "default": "root"},
    "group": {"type": "str", "default": "root"},
    "backup": {"type": "bool", "default": False},
}


def main() -> None:
    """Run the module."""
    module = HostModule(ARGUMENT_SPEC, supports_check_mode=True)
    try:
        module.exit_json(**DaemonJsonFile(module).run())
    except DaemonJsonError as error:
        conflict = {"kind": "json", "name": module.params["path"], "reason": str(error)}
        module.fail_json(msg=str(error), conflicts=[conflict])
    except OSError as error:
        module.fail_json(
            msg=f"Cannot read or write {error.filename or module.params['path']}: "
            f"{error.strerror}. The content of {module.params['path']} was not changed."
        )


if __name__ == "__main__":
    main()
