#!/usr/bin/python
# Copyright: Slipway contributors
# GNU General Public License v3.0+ (see LICENSE)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module slipway.host.rootless_docker."""

from __future__ import annotations

DOCUMENTATION = r"""
module: rootless_docker
short_description: Engines of their own for people who are not to be root
description:
  - Sets up what a user's own engine needs that is no file of root's (subordinate ids, lingering, a
    docker context), starts it, and starts it again where files changed that it has read.
  - Or takes it from everybody who has a configuration in C(/etc/slipway/rootless) and is not
    listed.
  - What is done in a home is done as its owner. The context is chosen when it is made; which one
    people use later is theirs to say.
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
      since:
        description: Files that the engine has read.
        type: list
        elements: path
        default: []
  obstacles:
    description: What stands in the way of all of them, as in a role's owned state.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: A file, such as a setting of the kernel.
        type: path
        required: true
      holds:
        description: What it holds where nothing can be done.
        type: str
        required: true
      why:
        description: A sentence that says what to do.
        type: str
        required: true
  state:
    description:
      - V(present) sets up and runs what is listed, V(absent) takes down what is not. Images and
        volumes stay, and so do subordinate ids, since files of the user's belong to them.
    type: str
    choices: [present, absent]
    default: present
attributes:
  check_mode:
    description: Says whose engines would be set up or taken down.
    support: full
  diff_mode:
    description: Says what each engine lacks.
    support: full
author:
  - Slipway contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Give carol an engine of her own
  slipway.host.rootless_docker:
    engines:
      - user: carol
        since: [/etc/slipway/rootless/carol.json]

- name: Take the engines from everybody else
  slipway.host.rootless_docker:
    engines: [{user: carol}]
    state: absent
"""

RETURN = r"""
users:
  description: Those whose engines were set up or taken down.
  returned: always
  type: list
  elements: str
"""

import pwd
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from ansible_collections.slipway.host.plugins.module_utils.docker import rootless
from ansible_collections.slipway.host.plugins.module_utils.host.module import HostModule
from ansible_collections.slipway.host.plugins.module_utils.state import (
    accounts,
    files,
    model,
    reading,
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
            "since": {"type": "list", "elements": "path", "default": []},
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
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
}
UNIT = "docker.service"
# Seconds; the unit's own time to start is 180.
PATIENCE = 300


class Engine:
    """One user's engine, and the commands that it takes."""

    def __init__(self, module: HostModule, name: str) -> None:
        self.module = module
        self.name = name
        entry = pwd.getpwnam(name)
        self.uid, self.home = entry.pw_uid, entry.pw_dir

    def root(self, *command: str) -> str:
        """Run a command as root, which must succeed; return what it wrote."""
        _status, out, _err = self.module.run_command(list(command), check_rc=True)
        return str(out).strip()

    def own(self, *command: str) -> tuple[int, str, str]:
        """Run a command as the user; return its status and what it wrote."""
        # A user's own files, such as a pipe as ~/.docker/config.json, may hold up these programs.
        limit = ("timeout", "--kill-after=10", str(PATIENCE))
        words = [*limit, *rootless.as_user(self.name, self.home, self.uid, command)]
        done: tuple[int, str, str] = self.module.run_command(words, cwd="/")
        return done

    def set_up(self, state: rootless.State, restart: bool) -> None:
        """Bring it from STATE to an engine that answers; RESTART: its files changed."""
        if min(state.uids, state.gids) < rootless.SUBORDINATE_IDS:
            texts = [reading.read_word(path) for path in ("/etc/subuid", "/etc/subgid")]
            ids = "-".join(str(number) for number in rootless.free_range(texts))
            self.root("usermod", "--add-subuids", ids, "--add-subgids", ids, self.name)
        if not state.lingers:
            self.root("loginctl", "enable-linger", self.name)
        # It answers when the user's own systemd does.
        self.root("systemctl", "start", f"user@{self.uid}.service")
        if restart or not state.began:
            self._start()
        if state.context != rootless.socket(self.uid):
            self._make_context()

    def _start(self) -> None:
        self.own("systemctl", "--user", "daemon-reload")
        # One that was started too often in a row is refused until that is forgotten.
        self.own("systemctl", "--user", "reset-failed", UNIT)
        status, out, err = self.own("systemctl", "--user", "restart", UNIT)
        if status != 0:
            _status, log, _err = self.module.run_command(
                ["journalctl", "--no-pager", "--lines=20", "--output=cat", f"_UID={self.uid}"]
            )
            self._fail(f"the engine of {self.name} does not start: {(err or out).strip()}", log)

    def _make_context(self) -> None:
        status, _out, _err = self.own("docker", "context", "inspect", rootless.CONTEXT)
        address = f"host={rootless.socket(self.uid)}"
        for words in (
            ("create" if status else "update", rootless.CONTEXT, "--docker", address),
            ("use", rootless.CONTEXT),
        ):
            status, out, err = self.own("docker", "context", *words)
            if status != 0:
                self._fail(f"{self.name} could not be given a docker context", err or out)

    def _fail(self, message: str, log: str) -> NoReturn:
        self.module.fail_json(msg=f"{message}\n{log.strip()}")

    def take_down(self) -> None:
        """Stop it, and let the user's systemd end with the last session."""
        if Path(f"/run/user/{self.uid}").exists():
            self.own("systemctl", "--user", "stop", UNIT)
        _status, current, _err = self.own("docker", "context", "inspect", "--format={{.Name}}")
        if current.strip() == rootless.CONTEXT:
            self.own("docker", "context", "use", "default")
        self.own("docker", "context", "rm", "--force", rootless.CONTEXT)
        self.root("loginctl", "disable-linger", self.name)
        _status, sessions, _err = self.module.run_command(
            ["loginctl", "show-user", "--property=Sessions", "--value", self.name]
        )
        if not sessions.strip():
            # systemd would some seconds later, when an account cannot be removed for its sake.
            self.root("systemctl", "stop", f"user@{self.uid}.service")


def set_up_all(module: HostModule) -> list[model.Difference]:
    """Set up the engines that lack something; return what they lack."""
    lacking: list[model.Difference] = []
    for entry in module.params["engines"]:
        owned = {"rootless": [entry]}
        answer = HERE.look(owned)
        found = HERE.differences(owned, answer)
        lacking += found
        if found and not module.check_mode:
            try:
                engine = Engine(module, entry["user"])
            except KeyError:
                module.fail_json(msg=f"there is no user {entry['user']}")
            state = rootless.State(*answer["rootless"][entry["user"]])
            engine.set_up(state, is_stale(entry, answer, state))
    return lacking


def is_stale(entry: Mapping[str, Any], answer: Mapping[str, Any], state: rootless.State) -> bool:
    """Whether an engine was started before a file changed that it has read."""
    return any((answer["mtimes"][path] or 0) > state.began for path in entry["since"])


def take_down_others(module: HostModule) -> list[model.Difference]:
    """Take down the engines of those who are not listed; return what was there."""
    listed = [rootless.config_file(entry["user"]) for entry in module.params["engines"]]
    folder = Path(rootless.FOLDER)
    owned = {"folders": [{"path": str(folder), "entries": [Path(file).name for file in listed]}]}
    names = reading.list_names(str(folder))
    found = HERE.differences(owned, {"folders": {str(folder): names}})
    for file in sorted(folder.glob("*.json")) if found and not module.check_mode else ():
        if str(file) not in listed:
            try:
                Engine(module, file.stem).take_down()
            except KeyError:
                Path("/var/lib/systemd/linger", file.stem).unlink(missing_ok=True)
            # The last step, so that an interrupted run is finished by the next one.
            file.unlink()
    return found


def main() -> None:
    """Run the module."""
    module = HostModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    obstacles = {"obstacles": module.params["obstacles"]}
    texts = {entry["path"]: files.ask_text(entry["path"]) for entry in module.params["obstacles"]}
    try:
        HERE.differences(obstacles, {"texts": texts})
    except model.ConflictError as error:
        module.fail_json(msg=f"{error}.")
    act = set_up_all if module.params["state"] == "present" else take_down_others
    found = act(module)
    module.exit_json(
        changed=bool(found),
        users=sorted({difference.name for difference in found}),
        diff={"prepared": "".join(f"{difference}\n" for difference in found)},
    )


if __name__ == "__main__":
    main()
