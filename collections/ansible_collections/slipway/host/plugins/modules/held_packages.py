#!/usr/bin/python
# Copyright: Slipway contributors
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
  version_gone:
    description:
      - What happens where no source has a wanted version any more. V(newest) takes the newest of
        the whole set that the sources have; V(fail) changes nothing.
    type: str
    choices: [fail, newest]
    default: fail
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
  - Slipway contributors
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
purged:
  description: What was removed.
  returned: always
  type: list
  elements: str
"""

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.slipway.host.plugins.module_utils import _apt, _probe

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
    "version_gone": {"type": "str", "choices": ["fail", "newest"], "default": "fail"},
    "lock_timeout": {"type": "int", "default": 300},
}
# Seconds to wait before a half-synchronised mirror is tried again.
RETRIES = (5, 20, 60)
ENVIRONMENT = {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C", "NEEDRESTART_MODE": "l"}
# Seconds between two looks at a lock.
LOCK_PAUSE = 2
LOCKS = (
    "/var/lib/dpkg/lock-frontend",
    "/var/lib/dpkg/lock",
    "/var/lib/apt/lists/lock",
    "/var/cache/apt/archives/lock",
)
# Where apt and dpkg write, for a full disk that they do not name.
WRITTEN = ("/var/cache/apt/archives", "/var/lib/apt/lists", "/var/lib/dpkg", "/usr", "/boot")


def lock_holder(files: tuple[str, ...] = LOCKS) -> str:
    """Return in words which process holds one of apt's lock FILES, empty where none does."""
    holders = {}
    for line in (_probe.read("/proc/locks") or b"").decode("ascii").splitlines():
        # A process that waits for a lock stands there too, behind an arrow.
        words = line.split()
        if words[1] != "->":
            holders[words[5].rsplit(":", 1)[-1]] = words[4]
    for file in files:
        try:
            pid = holders[str(Path(file).stat().st_ino)]
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
        except (OSError, KeyError):
            continue
        return f"process {pid} ({command.decode('utf-8', 'replace').strip()})"
    return ""


def full_file_system(path: str) -> str:
    """Return in words the file system of PATH; without one, the fullest of those apt writes to."""

    def mount_point(path: Path) -> Path:
        return next(folder for folder in (path, *path.parents) if folder.is_mount())

    points = {mount_point(Path(folder)) for folder in ([path] if path else WRITTEN)}
    point = min(points, key=lambda point: shutil.disk_usage(point).free)
    return f"{point} ({shutil.disk_usage(point).free // 1_000_000} MB free)"


def describe(known: Mapping[str, _apt.Known]) -> str:
    """Return the set as lines for a diff."""
    lines = []
    for name, entry in sorted(known.items()):
        if entry and entry[1] == "installed":
            lines.append(f"{name} {entry[2]}{' (held)' if entry[0] == 'hold' else ''}\n")
    return "".join(lines)


def expected(known: Mapping[str, _apt.Known], actions: _apt.Plan) -> str:
    """Return what :func:`describe` would say after ACTIONS."""
    after: dict[str, _apt.Known] = {k: v for k, v in known.items() if k not in actions.purge}
    for spelled in actions.install:
        name, _, version = spelled.partition("=")
        after[name] = ["install", "installed", version or "(newest)"]
    for name in [*actions.hold, *actions.unhold]:
        _want, state, version = after[name] or ("", "", "")
        after[name] = ["hold" if name in actions.hold else "install", state, version]
    return describe(after)


class Apt:
    """Runs apt, refreshing its index at most once."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.refreshed = False
        self.interrupted = False
        # What the refresh said of sources that it could not use.
        self.unread: list[str] = []

    def fail(self, doing: str, output: str) -> NoReturn:
        """Fail the module with apt's own words and what to do."""
        versions = _apt.gone(output)
        said = (
            f"no source has version {', '.join(versions)} any more; nothing was changed. "
            "Name another one."
            if versions
            else f"{doing} failed: {_apt.errors(output).rstrip('.')}."
        )
        self.module.fail_json(msg=" ".join([said, *self.remedies(output)]), output=output)

    def remedies(self, output: str) -> list[str]:
        """Return sentences that say what stands behind OUTPUT, and what to do."""
        if _apt.is_locked(output):
            holder = lock_holder() or "another process"
            return [
                f"After {self.module.params['lock_timeout']} seconds {holder} still held apt's "
                "lock: wait for it or stop it, and run again."
            ]
        if _apt.is_full(output):
            point = full_file_system(_apt.unwritten(output))
            return [
                f"The file system {point} is too full: make room there (`apt-get clean` gives "
                "back what apt fetched), and run again, which goes on from here."
            ]
        return _apt.unread(output) or (self.unread if _apt.is_stale(output) else [])

    def run(self, command: list[str]) -> tuple[int, str]:
        """Run COMMAND, as soon as nobody else holds a lock; return its status and all it said."""
        # Not by apt's own option: that one is for dpkg's lock alone, and apt-mark knows none.
        deadline = time.monotonic() + self.module.params["lock_timeout"]
        while True:
            status, out, err = self.module.run_command(command, environ_update=ENVIRONMENT)
            output: str = out + err
            left = deadline - time.monotonic()
            if status == 0 or left <= 0 or not _apt.is_locked(output):
                return status, output
            time.sleep(min(LOCK_PAUSE, left))

    def refresh(self) -> None:
        """Refresh the package index; sources that cannot be used are no failure yet."""
        self.refreshed = True
        status, output = self.run(_apt.UPDATE)
        for wait in RETRIES:
            if not _apt.is_syncing(output):
                break
            time.sleep(wait)
            status, output = self.run(_apt.UPDATE)
        if status != 0:
            self.fail("refreshing the package index", output)
        self.unread = _apt.unread(output)

    def known(self, names: list[str]) -> list[str]:
        """Return which of NAMES a source has, by a fresh index where one seems not to be there."""

        def found() -> list[str]:
            return [name for name in names if self.run(["apt-cache", "show", "--", name])[0] == 0]

        if names and len(found()) < len(names) and not self.refreshed:
            self.refresh()
        return found()

    def followers(self, wanted: list[dict[str, Any]], known: Mapping[str, _apt.Known]) -> list[str]:
        """Return the installed packages that have to change with those that they depend on."""
        found = []
        for entry in wanted:
            state = known[entry["name"]]
            if entry["follows"] and state and state[1] == "installed":
                _status, shown = self.run(["apt-cache", "show", "-a", "--", entry["name"]])
                fitting = _apt.follower(shown, entry["follows"])
                if fitting and fitting != state[2]:
                    found.append(f"{entry['name']}={fitting}")
        return found

    def change(self, command: list[str]) -> list[str]:
        """Run a changing COMMAND, with a fresh index where it turns out to be needed.

        Return the wanted versions that no source has, where that is no failure.
        """
        status, output = self.run(command)
        if status != 0 and _apt.is_interrupted(output):
            # Where this does not suffice, because a dependency is still to come, apt goes on.
            self.run(_apt.FINISH)
            self.interrupted = True
            status, output = self.run(command)
        if status != 0 and _apt.is_stale(output) and not self.refreshed:
            self.refresh()
            status, output = self.run(command)
        for wait in RETRIES:
            if status == 0 or not _apt.is_syncing(output):
                break
            time.sleep(wait)
            status, output = self.run(command)
        if status != 0:
            if self.module.params["version_gone"] == "newest" and (versions := _apt.gone(output)):
                return versions
            self.fail(" ".join(word for word in command if not word.startswith("--")), output)
        return []


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    wanted = module.params["packages"]
    known = _probe.dpkg([entry["name"] for entry in wanted])
    actions = _apt.plan(wanted, known)
    notes = []
    if actions.changes and not module.check_mode:
        apt = Apt(module)
        if module.params["refresh"] and actions.install:
            apt.refresh()
        if actions.install:
            actions.install += apt.known(actions.optional)
            actions.install += apt.followers(wanted, known)
        for command in _apt.commands(actions):
            if gone := apt.change(command):
                actions.install = _apt.newest(wanted, known)
                apt.change(_apt.commands(actions)[0])
                words = ", ".join(gone)
                notes.append(f"no source has version {words}: took the newest instead")
        left = _apt.unfinished(known)
        if apt.interrupted or left:
            what = f": {', '.join(left)}" if left else ""
            notes.append(f"finished what an interrupted installation had left{what}")
    module.exit_json(
        changed=actions.changes,
        installed=actions.install,
        purged=actions.purge + actions.forget,
        diff={"before": describe(known), "after": expected(known, actions)},
        **({"slipway_note": "; ".join(notes)} if notes else {}),
    )


if __name__ == "__main__":
    main()
