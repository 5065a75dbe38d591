#!/usr/bin/python
# Copyright: Slipway contributors
# GNU General Public License v3.0+ (see LICENSE)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module slipway.host.rootless_docker."""

from __future__ import annotations

DOCUMENTATION = r"""
module: rootless_docker
short_description: Set up and remove rootless Docker Engines of users
description:
  - Sets up the parts of a user's engine that are not files of root (subordinate IDs, lingering, a
    docker context), starts the engine, and restarts it after a change of files that it reads.
  - With O(state=absent), removes the engines of unlisted users with a configuration in
    C(/etc/slipway/rootless).
  - Works in a home folder only with the rights of its user. Selects the docker context only when it
    creates it; users may select another one later.
options:
  engines:
    description: The engines, as the C(rootless) list of a role's owned state.
    type: list
    elements: dict
    required: true
    suboptions:
      user:
        description: Name of the user.
        type: str
        required: true
      reads:
        description: Files that the engine reads at its start.
        type: list
        elements: path
        default: []
        aliases: [since]
  obstacles:
    description:
      - Conditions of the host that prevent all engines, as in a role's owned state. With such a
        condition no engine is set up, and the module fails.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: A file, such as a setting of the kernel.
        type: path
        required: true
      holds:
        description: Regular expression of a content of the file that prevents rootless engines.
        type: str
        required: true
      why:
        description: Sentence with the reason and the solution.
        type: str
        required: true
  restart:
    description:
      - When an engine may be restarted that runs with older files. V(idle) means that it runs no
        container, or that C(live-restore) is on. The module then changes all else and says why the
        restart waits.
    type: str
    choices: [idle, always, never]
    default: idle
  state:
    description:
      - V(present) sets up and starts the listed engines, V(absent) removes all others. Images and
        volumes remain, and subordinate IDs too, because they own files of the user.
    type: str
    choices: [present, absent]
    default: present
attributes:
  check_mode:
    description: Reports the users whose engines would be set up or removed.
    support: full
  diff_mode:
    description: Shows the differences of each engine.
    support: full
author:
  - Slipway contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Set up a rootless engine for carol
  slipway.host.rootless_docker:
    engines:
      - user: carol
        reads: [/etc/slipway/rootless/carol.json]

- name: Remove the rootless engines of all other users
  slipway.host.rootless_docker:
    engines: [{user: carol}]
    state: absent
"""

RETURN = r"""
slipway_waiting:
  description: Which restarts wait, why, and what to do.
  returned: when a restart waits
  type: list
  elements: str
users:
  description: Users whose engines were set up or removed.
  returned: always
  type: list
  elements: str
conflicts:
  description: What is in the way, a mapping with kind, name and reason for each conflict.
  returned: always
  type: list
  elements: dict
"""

import pwd
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from ansible_collections.slipway.host.plugins.module_utils.docker import (
    restart_consent,
    rootless,
)
from ansible_collections.slipway.host.plugins.module_utils.host.module import HostModule
from ansible_collections.slipway.host.plugins.module_utils.state import (
    accounts,
    apply_files,
    files,
    model,
    reading,
    started,
)
from ansible_collections.slipway.host.plugins.module_utils.state import rootless as rootless_state
from ansible_collections.slipway.host.plugins.module_utils.state.here import Here

HERE = Here(rootless_state, accounts, files)

ARGUMENT_SPEC: dict[str, Any] = {
    "engines": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {
            "user": {"type": "str", "required": True},
            "reads": {"type": "list", "elements": "path", "default": [], "aliases": ["since"]},
        },
    },
    "obstacles": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "path": {"type": "path", "required": True},
            "holds": {"type": "str", "required": True},
            "why": {"type": "str", "required": True},
        },
    },
    "restart": {"type": "str", "choices": list(restart_consent.POLICIES), "default": "idle"},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
}
UNIT = "docker.service"
# Seconds for a command of a user; the unit has 180 seconds to start.
COMMAND_TIMEOUT = 300


class Engine:
    """Sets up or removes the engine of one user."""

    def __init__(self, module: HostModule, name: str) -> None:
        self.module = module
        self.name = name
        entry = pwd.getpwnam(name)
        self.uid, self.home = entry.pw_uid, entry.pw_dir

    def run_as_root(self, *command: str) -> str:
        """Run a command as root and return its output; fail if it fails."""
        _status, out, _err = self.module.run_command(list(command), check_rc=True)
        return str(out).strip()

    def run_as_user(self, *command: str) -> tuple[int, str, str]:
        """Run a command as the user; return its status and its output."""
        # Files of the user, such as a pipe as ~/.docker/config.json, may block these programs.
        limit = ("timeout", "--kill-after=10", str(COMMAND_TIMEOUT))
        full_command = [*limit, *rootless.as_user(self.name, self.home, self.uid, command)]
        result: tuple[int, str, str] = self.module.run_command(full_command, cwd="/")
        return result

    def set_up(self, state: rootless.State, restart: bool) -> None:
        """Set up and start an engine in STATE; RESTART it after a change of its files."""
        if min(state.uids, state.gids) < rootless.SUBORDINATE_IDS:
            texts = [reading.read_word(path) for path in ("/etc/subuid", "/etc/subgid")]
            ids = "-".join(str(number) for number in rootless.free_range(texts))
            self.run_as_root("usermod", "--add-subuids", ids, "--add-subgids", ids, self.name)
        if not state.lingers:
            self.run_as_root("loginctl", "enable-linger", self.name)
        # The command returns when the systemd of the user runs.
        self.run_as_root("systemctl", "start", f"user@{self.uid}.service")
        if restart or not state.began:
            self._start()
        if state.context != rootless.socket(self.uid):
            self._make_context()

    def find_obstacle(self, policy: str) -> str:
        """Return why the engine must not be restarted now, empty if it may be; see POLICIES."""
        if policy == restart_consent.ALWAYS:
            return ""
        if policy == restart_consent.NEVER:
            return restart_consent.find_obstacle(policy, None, ())
        # By the user: the socket is in a folder where the user may put another program.
        docker = ("docker", "--host", rootless.socket(self.uid))
        status, running, _err = self.run_as_user(*docker, "ps", "--quiet")
        number = len(running.split())
        if status != 0 or not number:
            return ""
        live_restore = self.run_as_user(*docker, "info", "--format={{.LiveRestoreEnabled}}")[1]
        if live_restore.strip() == "true":
            return ""
        return (
            f"{number} containers of {self.name} run. Run again when they have ended, or set "
            f"{restart_consent.OPTION} to {restart_consent.ALWAYS}"
        )

    def _start(self) -> None:
        self.run_as_user("systemctl", "--user", "daemon-reload")
        # systemd refuses to start a unit that failed too often in a row, until it is reset.
        self.run_as_user("systemctl", "--user", "reset-failed", UNIT)
        status, out, err = self.run_as_user("systemctl", "--user", "restart", UNIT)
        if status != 0:
            _status, log, _err = self.module.run_command(
                ["journalctl", "--no-pager", "--lines=20", "--output=cat", f"_UID={self.uid}"]
            )
            self._fail(f"Cannot start the engine of {self.name}: {(err or out).strip()}", log)

    def _make_context(self) -> None:
        status, _out, _err = self.run_as_user("docker", "context", "inspect", rootless.CONTEXT)
        address = f"host={rootless.socket(self.uid)}"
        for words in (
            ("create" if status else "update", rootless.CONTEXT, "--docker", address),
            ("use", rootless.CONTEXT),
        ):
            status, out, err = self.run_as_user("docker", "context", *words)
            if status != 0:
                self._fail(f"Cannot create a docker context for {self.name}", err or out)

    def _fail(self, message: str, log: str) -> NoReturn:
        self.module.fail_json(msg=f"{message}\n{log.strip()}")

    def remove(self) -> None:
        """Stop the engine, and disable lingering of the user."""
        if Path(f"/run/user/{self.uid}").exists():
            self.run_as_user("systemctl", "--user", "stop", UNIT)
        _status, current, _err = self.run_as_user(
            "docker", "context", "inspect", "--format={{.Name}}"
        )
        if current.strip() == rootless.CONTEXT:
            self.run_as_user("docker", "context", "use", "default")
        self.run_as_user("docker", "context", "rm", "--force", rootless.CONTEXT)
        self.run_as_root("loginctl", "disable-linger", self.name)
        _status, sessions, _err = self.module.run_command(
            ["loginctl", "show-user", "--property=Sessions", "--value", self.name]
        )
        if not sessions.strip():
            # systemd itself would stop it seconds later; until then the account cannot be removed.
            self.run_as_root("systemctl", "stop", f"user@{self.uid}.service")


def set_up_all(module: HostModule, waiting: list[str]) -> list[model.Difference]:
    """Set up the engines that differ; return the differences.

    Add a sentence to WAITING for each engine that must not be restarted now.
    """
    all_differences: list[model.Difference] = []
    for entry in module.params["engines"]:
        owned = {"rootless": [entry]}
        answer = HERE.look(owned)
        differences = HERE.differences(owned, answer)
        all_differences += differences
        if module.check_mode:
            continue
        if differences:
            try:
                engine = Engine(module, entry["user"])
            except KeyError:
                module.fail_json(
                    msg=f"Cannot set up the engine of {entry['user']}: the user does not exist. "
                    "Create the user, then run again."
                )
            state = rootless.State(*answer["rootless"][entry["user"]])
            restart = bool(rootless_state.unread_files(entry, answer))
            obstacle = engine.find_obstacle(module.params["restart"]) if restart else ""
            engine.set_up(state, restart and not obstacle)
            if obstacle:
                waiting.append(f"restart of the engine of {entry['user']} waits: {obstacle}.")
                left = HERE.differences(owned)
                all_differences = [one for one in all_differences if one not in left]
                continue
        # The digests of before the start: what changed since then was not read.
        record_start(entry, HERE.look(owned) if differences else answer, answer)
    return all_differences


def record_start(
    entry: Mapping[str, Any], answer: Mapping[str, Any], earlier: Mapping[str, Any]
) -> None:
    """Record what a running engine has read: the files as in an EARLIER answer."""
    began = rootless.State(*answer["rootless"][entry["user"]]).began
    if began:
        read = started.digests(rootless_state.files_read(entry, earlier))
        started.write_record(rootless_state.record_name(entry), str(began), read)


def remove_others(module: HostModule, _waiting: list[str]) -> list[model.Difference]:
    """Remove the engines of unlisted users; return the differences."""
    listed = [rootless.config_file(entry["user"]) for entry in module.params["engines"]]
    folder = Path(rootless.FOLDER)
    owned = {"folders": [{"path": str(folder), "entries": [Path(file).name for file in listed]}]}
    comparison = Here(files).compare(owned)
    if comparison.conflicts:
        module.finish(comparison.conflicts, changed=False)
    differences = comparison.differences
    if not differences or module.check_mode:
        return differences
    apply_files.secure_parents(f"{folder}/*")
    for file in [folder / name for name in reading.list_names(str(folder)) or ()]:
        if str(file) not in listed:
            if file.suffix == ".json":
                _remove_engine(module, file.stem)
            # The last step, so that an interrupted run is finished by the next one.
            apply_files.settle({"path": str(file), "state": "absent"})
    return differences


def _remove_engine(module: HostModule, user: str) -> None:
    try:
        Engine(module, user).remove()
    except KeyError:
        Path("/var/lib/systemd/linger", user).unlink(missing_ok=True)


def main() -> None:
    """Run the module."""
    module = HostModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    obstacles = {"obstacles": module.params["obstacles"]}
    texts = {entry["path"]: files.ask_text(entry["path"]) for entry in module.params["obstacles"]}
    conflicts = HERE.compare(obstacles, {"texts": texts}).conflicts
    waiting: list[str] = []
    if module.params["state"] == "absent":
        differences = remove_others(module, waiting)
    else:
        differences = [] if conflicts else set_up_all(module, waiting)
    module.finish(
        conflicts,
        changed=bool(differences),
        users=sorted({difference.name for difference in differences}),
        diff={"prepared": "".join(f"{difference}\n" for difference in differences)},
        **restart_consent.waiting_result(module, waiting),
    )


if __name__ == "__main__":
    main()
