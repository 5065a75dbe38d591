#!/usr/bin/python
# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: the single writer of Docker's daemon.json."""

from __future__ import annotations

DOCUMENTATION = r"""
module: daemon_json
short_description: Merge settings into Docker's daemon.json
version_added: 0.1.0
author:
  - Slipway contributors
description:
  - Merges the settings that a project owns into Docker's C(daemon.json) and leaves every other key
    as it is, in its place.
  - Objects are merged key by key. Everything else is replaced as a whole, lists too, for two lists
    cannot be told from one that somebody edited.
  - A file that says the same already, in whatever form, is not rewritten; what is written has four
    spaces of indentation. Only a file that is empty or starts with a byte order mark always is,
    because engines before 23.0 do not start on it.
  - The new content takes the place of the old in one step and only after C(dockerd) has accepted
    it. A refusal leaves the file as it was.
  - Refuses what C(dockerd) would refuse or misread, with the line, the column and a caret. That is
    text that is not JSON or not UTF-8, a key that is repeated in one object, a file without an
    object at its top, an object where something else is wanted or the other way round, and a key
    that the systemd unit sets by a flag as well.
  - A symbolic link stays; the file that it leads to is written.
  - A file that is not there is made, unless there is nothing to write into it.
  - User names and passwords in URLs are masked in the diff and in what is returned.
options:
  path:
    description:
      - The file.
    type: path
    default: /etc/docker/daemon.json
  settings:
    description:
      - The keys that are wanted, nested as in the file.
      - A setting that an earlier run made and that is no longer here gives way to the value that
        stood there before it, or is removed where there was none. If somebody has changed it since,
        it is theirs and stays.
      - So V({}) takes everything back.
      - An empty object asks for an object and leaves what is in it alone. A null is refused.
    type: dict
    default: {}
  absent:
    description:
      - Key paths that must not be in the file, whoever wrote them.
      - Write V(log-opts.max-size), or V([log-opts, max-size]) where a key itself holds a dot.
      - The object around a removed key stays, even if empty.
    type: list
    elements: raw
    default: []
  record:
    description:
      - Where to note, for each file, the keys that were set and what stood there before.
      - It is a help and not the truth. Whatever it says, O(settings) end up in the file. If it is
        lost, values written before that are taken for the user's own and are no longer taken back.
      - Only root can read it. Writing it does not count as a change.
    type: path
    default: /var/lib/slipway/daemon_json.json
  validate:
    description:
      - The command that checks the new content before it is used; C(%s) is replaced by a file that
        holds it.
      - The default is skipped, with a note, where there is no C(dockerd) yet and where it is older
        than 23.0 and cannot validate. Any other command must exist.
      - An empty string switches the check off.
    type: str
    default: dockerd --validate --config-file %s
  unit:
    description:
      - The systemd unit of the daemon that reads the file.
      - C(dockerd) does not start if its command line and the file both set a key, for instance
        C(hosts) and C(-H fd://), and C(--validate) cannot see that. The module does. It fails if it
        would write such a file and warns if it finds one.
      - An empty string switches the check off; it is skipped where systemd does not run.
    type: str
    default: docker.service
  mode:
    description:
      - The permissions of the file. Without them, those of V(0644) that the file has; a proxy's
        password in it is nobody else's.
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
      - Keep a copy of the old file, with the date in its name, when the content changes.
    type: bool
    default: false
attributes:
  check_mode:
    description: Reports what would change, and validates it, without changing anything.
    support: full
  diff_mode:
    description: Shows the content before and after.
    support: full
notes:
  - Which changes C(SIGHUP) applies without a restart follows Docker's reference of C(dockerd) and
    the source code of the engine. A few keys can be changed by a reload but not removed, and of
    C(features) only C(buildkit) is read again; such changes report RV(restart_required).
"""

EXAMPLES = r"""
- name: Set the project's keys, keep all others
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

- name: Restart Docker only for what a reload does not apply
  ansible.builtin.systemd_service:
    name: docker.service
    state: "{{ 'restarted' if daemon_json.restart_required else 'reloaded' }}"
  when: daemon_json.restart_required or daemon_json.reload_required

- name: Drop keys that an older tool has left behind
  slipway.host.daemon_json:
    settings:
      log-driver: local
    absent:
      - default-runtime
      - [default-network-opts, bridge, com.docker.network.driver.mtu]

- name: Take back everything that was ever set
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
  description: Everything that is in the file now, the user's keys too.
  returned: success
  type: dict
  sample: {"dns": ["192.0.2.1"], "log-driver": "local", "log-opts": {"max-size": "50m"}}
differences:
  description: Each changed key in words.
  returned: success
  type: list
  elements: str
  sample:
    - 'log-opts.max-size: "10m" → "50m"'
    - 'debug: true → (removed)'
restart_required:
  description: Whether a running daemon takes up the changes only when it is restarted.
  returned: success
  type: bool
reload_required:
  description: Whether a running daemon takes up the changes when it is reloaded.
  returned: success
  type: bool
notes:
  description: What a person may want to know, like why the content could not be validated.
  returned: success
  type: list
  elements: str
  sample:
    - Not validated. This host has no dockerd yet.
backup_file:
  description: The copy of the old file.
  returned: when O(backup) is true, the content changed and there was a file
  type: str
  sample: /etc/docker/daemon.json.4711.2026-11-20@04:05:06~
"""

import os
import shlex
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.slipway.host.plugins.module_utils.docker.daemon_json import (
    DaemonJsonError,
    Owned,
    Plan,
    conflicts,
    decode,
    environment_files,
    masked,
    parse,
    plan,
    read_record,
    render,
    unit_flags,
    updated_record,
)

VALIDATE = "dockerd --validate --config-file %s"

ARGUMENT_SPEC: dict[str, dict[str, Any]] = {
    "path": {"type": "path", "default": "/etc/docker/daemon.json"},
    "settings": {"type": "dict", "default": {}},
    "absent": {"type": "list", "elements": "raw", "default": []},
    "record": {"type": "path", "default": "/var/lib/slipway/daemon_json.json"},
    "validate": {"type": "str", "default": VALIDATE},
    "unit": {"type": "str", "default": "docker.service"},
    "mode": {"type": "raw"},
    "owner": {"type": "str", "default": "root"},
    "group": {"type": "str", "default": "root"},
    "backup": {"type": "bool", "default": False},
}


class DaemonJson:
    """One run of the module."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.params: dict[str, Any] = module.params
        # What is renamed onto a link would replace the link.
        self.target = Path(os.path.realpath(self.params["path"]))
        if self.params["mode"] is None:
            self.params["mode"] = f"{self.usual_mode():04o}"
        self.notes: list[str] = []
        self.result: dict[str, Any] = {"changed": False, "path": str(self.target)}

    def run(self) -> dict[str, Any]:
        """Bring the file to its wanted state, or say what that would change; return the result."""
        text = self.read()
        record_text, record = self.read_record()
        merge = plan(text, self.params["settings"], self.params["absent"], record, str(self.target))
        if not merge.plain:
            self.notes.append(
                f"{self.target} is empty or starts with a byte order mark, on which engines before "
                "23.0 do not start; it is written as plain JSON."
            )
        self.refuse_conflicts(merge)
        new_record = updated_record(record_text, self.params["path"], merge.record)
        if merge.changed:
            self.change(text, merge, new_record)
        else:
            self.keep(text, new_record)
        return self.result | {
            "settings": parse(masked(render(merge.after))),
            "differences": merge.differences,
            "restart_required": merge.restart_required,
            "reload_required": merge.reload_required,
            "notes": self.notes,
        }

    def usual_mode(self) -> int:
        """Return the permissions of the file, none of them beyond the usual ones."""
        found = self.target.stat().st_mode if self.target.is_file() else 0o644
        return found & 0o644 | 0o600

    def read(self) -> str | None:
        """Return the file's text, None where there is no file."""
        try:
            return decode(self.target.read_bytes(), str(self.target))
        except FileNotFoundError:
            return None

    def read_record(self) -> tuple[str, tuple[Owned, ...]]:
        """Return the record's text and its entries; a broken record counts as a lost one."""
        path = Path(self.params["record"])
        try:
            text = decode(path.read_bytes(), "it")
            return text, read_record(text, self.params["path"])
        except FileNotFoundError:
            pass
        except DaemonJsonError as error:
            self.notes.append(
                f"The record {path} is of no use and is begun anew ({error}); keys that were set "
                "before are now taken for the user's own."
            )
        return "", ()

    def refuse_conflicts(self, merge: Plan) -> None:
        """Fail, or warn if the file stays as it is, where the unit sets one of its keys too."""
        for key, flag in conflicts(merge.after, self.unit_flags()):
            message = (
                f"{key} is set in {self.target} and by {flag} on dockerd's command line in "
                f"{self.params['unit']}; Docker does not start on that. Take {key} out of "
                f"{self.target} or of the settings, or take {flag} out of the unit (systemctl edit "
                f"{self.params['unit']}: an empty ExecStart=, then one without {flag})."
            )
            if merge.changed:
                self.module.fail_json(msg=message)
            self.module.warn(message)

    def unit_flags(self) -> dict[str, str]:
        """Return the keys that dockerd's command line sets, with their flags."""
        systemctl = self.module.get_bin_path("systemctl")
        if not self.params["unit"] or systemctl is None:
            return {}
        properties = "--property=ExecStart,Environment,EnvironmentFiles"
        rc, unit, _ = self.module.run_command([systemctl, "show", properties, self.params["unit"]])
        if rc != 0:
            return {}
        files = [Path(name) for name in environment_files(unit)]
        texts = [file.read_text("utf-8", "replace") for file in files if file.is_file()]
        return unit_flags(unit, texts)

    def change(self, text: str | None, merge: Plan, record: str) -> None:
        """Replace the file's content, or in check mode validate what it would be."""
        content = render(merge.after)
        self.result["changed"] = True
        if self.module._diff:
            self.result["diff"] = {
                "before_header": str(self.target),
                "before": masked(text or ""),
                "after_header": str(self.target),
                "after": masked(content),
            }
        if self.module.check_mode:
            with tempfile.NamedTemporaryFile("w", encoding="utf-8") as file:
                file.write(content)
                file.flush()
                self.validate(file.name)
            return

        def prepare(file: Path) -> None:
            self.set_attributes(file)
            self.validate(str(file))
            if self.params["backup"] and text is not None:
                self.result["backup_file"] = self.module.backup_local(str(self.target))
            # Before the file: if the run ends between the two, the record claims values that are
            # not in the file, which means nothing; the other way round they would look like the
            # user's own.
            self.write_record(record)

        replace_file(self.target, content, prepare)

    def keep(self, text: str | None, record: str) -> None:
        """Repair the mode and the owner of a file whose content is right."""
        if text is not None:
            attributes: dict[str, Any] = {}
            self.result["changed"] = self.set_attributes(self.target, attributes)
            if self.module._diff and attributes:
                self.result["diff"] = attributes
        if not self.module.check_mode:
            self.write_record(record)

    def set_attributes(self, file: Path, diff: dict[str, Any] | None = None) -> bool:
        """Set mode and owner; return whether they differed."""
        wanted = self.module.load_file_common_arguments(self.params, path=str(file))
        return bool(self.module.set_fs_attributes_if_different(wanted, False, diff, expand=False))

    def validate(self, file: str) -> None:
        """Have dockerd check a file; fail if it refuses, note it where it could not be asked."""
        command: str = self.params["validate"]
        if not command:
            return
        try:
            program, *words = shlex.split(command)
        except ValueError as error:
            self.module.fail_json(msg=f"validate is no command: {error}: {command}")
        if "%s" not in command:
            self.module.fail_json(msg=f"validate must hold %s, where the file goes: {command}")
        found = self.module.get_bin_path(program)
        if found is None:
            if command != VALIDATE:
                self.module.fail_json(msg=f"validate: there is no program {program} on this host.")
            self.notes.append("Not validated. This host has no dockerd yet.")
            return
        rc, out, err = self.module.run_command(
            [found, *(word.replace("%s", file) for word in words)], expand_user_and_vars=False
        )
        if rc == 0:
            return
        if "unknown flag: --validate" in err:
            self.notes.append("Not validated. This host's dockerd is older than 23.0 and cannot.")
            return
        message = masked((err or out).strip().replace(file, str(self.target)))
        self.module.fail_json(
            msg=f"The new content of {self.target} was refused, and the file has been left as it "
            f"was. {program} says: {message}",
            rc=rc,
        )

    def write_record(self, text: str) -> None:
        """Bring the record to its new text, "" meaning that it is not needed."""
        path = Path(self.params["record"])
        if not text:
            path.unlink(missing_ok=True)
        elif not path.exists() or path.read_bytes() != text.encode():
            replace_file(path, text)


def replace_file(path: Path, text: str, prepare: Callable[[Path], None] | None = None) -> None:
    """Replace a file in one step that a power cut cannot halve; its mode is 0600 at first.

    ``prepare`` is called with the finished new file before it takes the place of the old one. If
    it does not return, the old file stays.
    """
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    new = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        if prepare is not None:
            prepare(new)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(ARGUMENT_SPEC, supports_check_mode=True)
    try:
        module.exit_json(**DaemonJson(module).run())
    except DaemonJsonError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(
            msg=f"{error.filename or module.params['path']}: {error.strerror}. The content of "
            f"{module.params['path']} has been left as it was."
        )


if __name__ == "__main__":
    main()
