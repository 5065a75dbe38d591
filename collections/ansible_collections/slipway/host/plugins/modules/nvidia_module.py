#!/usr/bin/python
# Copyright: Slipway contributors
# GNU General Public License v3.0+ (see LICENSE)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module slipway.host.nvidia_module."""

from __future__ import annotations

DOCUMENTATION = r"""
module: nvidia_module
short_description: Load the installed NVIDIA kernel module
description:
  - Loads the installed module. Replaces a loaded module of another version or flavour if no process
    except the driver's own daemons uses a GPU; the daemons are stopped and started again.
  - Afterwards regenerates the CDI specification if the container toolkit maintains one.
  - If a reboot is necessary, returns this and whether O(reboot) allows it. The module itself does
    not reboot.
  - If a reboot is not allowed now, changes nothing and returns who uses the host and what to do.
options:
  modules:
    description: The kernel modules, as the C(modules) list of a role's owned state.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Name of the module, with underscores.
        type: str
        required: true
      version:
        description: The declared version; the module loads the installed one.
        type: str
      state:
        description:
          - Whether the module is loaded. C(absent) is for modules that conflict with the driver.
        type: str
        choices: [present, absent]
        default: present
  reboot:
    description:
      - When the host may be rebooted. V(idle) means that no process uses a GPU, no container runs
        and no user is logged in at a terminal.
      - The machine that Ansible runs on is never rebooted.
      - A reboot that did not help is not repeated; C(/var/lib/slipway/reboot.json) has its reason.
    type: str
    choices: [idle, never, always]
    default: idle
  controller_boot_id:
    description: Content of C(/proc/sys/kernel/random/boot_id) on the machine that Ansible runs on.
    type: str
    default: ""
attributes:
  check_mode:
    description: Reports the step that would be done.
    support: full
  diff_mode:
    description: Shows which version is loaded, before and after.
    support: full
author:
  - Slipway contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Load the installed kernel module
  slipway.host.nvidia_module:
    modules:
      - name: nvidia
      - name: nvidia_uvm
      - name: nouveau
        state: absent
    reboot: idle
    controller_boot_id: "{{ lookup('ansible.builtin.file', '/proc/sys/kernel/random/boot_id') }}"
  register: loaded

- name: Reboot to load the NVIDIA module
  ansible.builtin.reboot:
  when: loaded.reboot
"""

RETURN = r"""
step:
  description: The step that was done or is necessary; V(nothing), V(load), V(reload), V(reboot) or
    V(wait).
  returned: always
  type: str
reason:
  description: Reason of the step.
  returned: always
  type: str
reboot:
  description: Whether the caller must reboot the host now.
  returned: always
  type: bool
pending:
  description: Whether the installed module is still not loaded.
  returned: always
  type: bool
slipway_waiting:
  description: Why the load of the driver waits, and what the administrator of the host must do.
  returned: when step is wait
  type: list
  elements: str
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.docker import restart_consent
from ansible_collections.slipway.host.plugins.module_utils.gpu import detection as detect
from ansible_collections.slipway.host.plugins.module_utils.gpu import facts as gpu_facts
from ansible_collections.slipway.host.plugins.module_utils.gpu import kernel_module
from ansible_collections.slipway.host.plugins.module_utils.gpu.kernel_module import Situation, Step
from ansible_collections.slipway.host.plugins.module_utils.gpu.report import installed_module
from ansible_collections.slipway.host.plugins.module_utils.host import reboot_record
from ansible_collections.slipway.host.plugins.module_utils.host.module import HostModule
from ansible_collections.slipway.host.plugins.module_utils.state import (
    containers,
    facts,
    files,
    reading,
)

PROC = Path("/proc")
SYS = Path("/sys")
MODULES = Path("/lib/modules")
SESSIONS = Path("/run/systemd/sessions")
SPECIFICATION = "nvidia-cdi-refresh.service"

ARGUMENT_SPEC: dict[str, Any] = {
    "modules": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {
            "name": {"type": "str", "required": True},
            "version": {"type": "str"},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
    },
    "reboot": {
        "type": "str",
        "choices": [kernel_module.IDLE, kernel_module.NEVER, kernel_module.ALWAYS],
        "default": kernel_module.IDLE,
    },
    "controller_boot_id": {"type": "str", "default": ""},
}
# Messages of modprobe for a module with an unknown signature.
KEY_REFUSED = ("Key was rejected by service", "Required key not available")


class Host:
    """Reads and changes the modules in the host's kernel."""

    def __init__(self, module: HostModule) -> None:
        self.module = module

    def run(self, command: list[str]) -> tuple[int, str, str]:
        """Run a COMMAND, whose program may be in /sbin."""
        program = self.module.get_bin_path(command[0], required=True)
        self.module.status.show(" ".join(command))
        status, out, err = self.module.run_command([program, *command[1:]])
        return status, out, err

    def read_situation(self) -> Situation:
        """Return the present state of modules and users of the host."""
        kernel = facts.ask_system()["kernel"]
        declared = self.module.params["modules"]
        loaded = {entry["name"]: detect.is_loaded(SYS, entry["name"]) for entry in declared}
        return Situation(
            kernel=kernel,
            installed=installed_module(MODULES, kernel, self.run),
            loaded=detect.loaded_module(*gpu_facts.read_loaded()),
            other_kernels=self._other_kernels(kernel),
            unwanted=[e["name"] for e in declared if e["state"] == "absent" and loaded[e["name"]]],
            missing=[
                e["name"] for e in declared if e["state"] == "present" and not loaded[e["name"]]
            ],
            holders=detect.holders(PROC).processes,
            users=[*self._containers(), *self._terminals()],
            rebooted_for=reboot_record.read_reason(),
            same_machine=self._boot_id() == self.module.params["controller_boot_id"].strip(),
        )

    def _other_kernels(self, kernel: str) -> list[str]:
        names = [name for name in reading.list_names(str(MODULES)) or [] if name != kernel]
        return [name for name in names if detect.module_files(MODULES, name)]

    def _boot_id(self) -> str:
        return (PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()

    def _containers(self) -> list[str]:
        try:
            running = containers.ask_engine("/containers/json")
        except (OSError, ValueError):
            return []
        names = ", ".join(container["Names"][0].lstrip("/") for container in running)
        return [f"containers run: {names}"] if running else []

    def _terminals(self) -> list[str]:
        names = reading.list_names(str(SESSIONS)) or []
        texts = [
            files.ask_text(str(SESSIONS / name)) for name in names if not name.endswith(".ref")
        ]
        return kernel_module.terminals(text for text in texts if text)

    def load(self, names: list[str], also: Sequence[str] = (), stuck: str = "") -> None:
        """Load the modules NAMES; fail with the kernel's message if that is impossible.

        ALSO are modules that other programs had loaded before. If an older module is STUCK in the
        kernel, errors are ignored: a reboot will load the rest.
        """
        for name in (*names, *also):
            status, out, err = self.run(["modprobe", name])
            if status == 0 or stuck:
                continue
            message = f"modprobe {name} failed: {(err or out).strip()}."
            if name in also:
                self.module.warn(f"{message} It was loaded before the driver was replaced.")
                continue
            if any(words in out + err for words in KEY_REFUSED):
                message += " Secure Boot is on and does not know the key of the module's signature."
            self.module.fail_json(msg=message)
        # The service writes the list of driver files for containers, and may have run too early.
        if self.run(["systemctl", "is-enabled", "--quiet", SPECIFICATION])[0] == 0:
            self.run(["systemctl", "restart", SPECIFICATION])

    def unload(self) -> str:
        """Unload the driver; return the module that could not be unloaded, empty if none."""
        for name in kernel_module.UNLOADED:
            if detect.is_loaded(SYS, name) and self.run(["rmmod", name])[0] != 0:
                return name
        return ""

    def reload(self, names: list[str]) -> str:
        """Replace the loaded driver; return the module that could not be unloaded."""
        units = [unit for unit in kernel_module.DAEMONS.values() if self._is_active(unit)]
        if units:
            self.run(["systemctl", "stop", *units])
        before = [name for name in kernel_module.UNLOADED if detect.is_loaded(SYS, name)]
        stuck = self.unload()
        self.load(names, [name for name in reversed(before) if name not in names], stuck)
        if units:
            self.run(["systemctl", "start", *units])
        return stuck

    def _is_active(self, unit: str) -> bool:
        return self.run(["systemctl", "is-active", "--quiet", unit])[0] == 0


def main() -> None:
    """Run the module."""
    module = HostModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    host = Host(module)
    declared = [e["name"] for e in module.params["modules"] if e["state"] == "present"]
    situation = host.read_situation()
    step, reason = kernel_module.next_step(situation, module.params["reboot"])
    if step is Step.FAIL and not module.check_mode:
        module.fail_json(msg=f"{reason}.")
    changed = step in (Step.LOAD, Step.RELOAD)
    if step is Step.LOAD and not module.check_mode:
        host.load(declared)
    elif step is Step.RELOAD and not module.check_mode and (stuck := host.reload(declared)):
        changed = False
        step, reason = kernel_module.after_failed_unload(situation, module.params["reboot"], stuck)
    if step is Step.REBOOT and not module.check_mode:
        reboot_record.write_reason(reason)
    elif step in (Step.NOTHING, Step.LOAD, Step.RELOAD) and not module.check_mode:
        reboot_record.delete()
    waiting = [f"load of the installed NVIDIA driver waits: {reason}."] if step is Step.WAIT else []
    after = situation.installed if changed else situation.loaded
    module.exit_json(
        changed=changed,
        step=step.value,
        reason=reason,
        reboot=step is Step.REBOOT,
        pending=step in (Step.WAIT, Step.REBOOT),
        diff={"before": _describe(situation.loaded), "after": _describe(after)},
        **restart_consent.waiting_result(module, waiting),
    )


def _describe(loaded: detect.KernelModule | None) -> str:
    return f"nvidia {loaded.version}\n" if loaded else ""


if __name__ == "__main__":
    main()
