#!/usr/bin/python
# Copyright: Slipway contributors
# GNU General Public License v3.0+ (see LICENSE)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module slipway.host.gpu_info."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gpu_info
short_description: Find NVIDIA GPUs and choose the driver they need
description:
  - Finds GPUs, NVSwitches, their audio functions and NVIDIA network cards by numeric PCI IDs in
    sysfs. No tool need be installed, and none is asked for names.
  - Chooses the driver branch, kernel module flavour and packages that serve every GPU of the host,
    or says in a sentence why none does.
  - Says which driver is loaded and which is on disk, who holds a GPU, and, while the driver is
    loaded, what C(nvidia-smi) reports.
  - Reads only. Run it as root to see whether a GPU is a vGPU, and the processes of other users.
options:
  source:
    description:
      - Where the driver comes from.
      - V(auto) takes the distribution's archive, and NVIDIA's CUDA repository only for hardware
        that the archive cannot serve.
    type: str
    choices: [auto, ubuntu, debian, cuda]
    default: auto
  branch:
    description:
      - Driver branch to use, such as V(580), instead of the chosen one.
      - A branch that cannot drive a GPU here, or that the source does not have, is refused.
    type: int
  modules:
    description:
      - Kernel module flavour to use instead of the chosen one.
      - A flavour that cannot drive a GPU here is refused.
    type: str
    choices: [open, proprietary]
  video:
    description: Include the libraries that containers need to encode and decode video.
    type: bool
    default: false
  query:
    description: Ask C(nvidia-smi), where it is installed and the driver is loaded.
    type: bool
    default: true
  nvidia_smi:
    description: Path of C(nvidia-smi); without it, the one on the path of the user.
    type: path
  pci_root:
    description: Folder with one entry for each PCI function.
    type: path
    default: /sys/bus/pci/devices
  proc_root:
    description: Where procfs is mounted.
    type: path
    default: /proc
  sys_root:
    description: Where sysfs is mounted.
    type: path
    default: /sys
  modules_root:
    description: Folder with the modules of each kernel.
    type: path
    default: /lib/modules
  run_root:
    description: Folder in which packages ask for a reboot.
    type: path
    default: /run
  os_release:
    description: File that names the distribution.
    type: path
    default: /etc/os-release
  dpkg_status:
    description: File in which dpkg keeps the state of packages.
    type: path
    default: /var/lib/dpkg/status
attributes:
  check_mode:
    description: Reads only, so check mode makes no difference.
    support: full
  diff_mode:
    description: Changes nothing.
    support: none
author:
  - Slipway contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Ask which driver this host needs
  slipway.host.gpu_info:
  register: gpu

- name: Stop where no driver serves all GPUs
  ansible.builtin.assert:
    that: gpu.driver.supported
    fail_msg: "{{ gpu.driver.reason }}"

- name: Ask whether the production branch would do
  slipway.host.gpu_info:
    branch: 595
    query: false
  register: wished

- name: Decide for a host from a copy of its PCI tree
  slipway.host.gpu_info:
    pci_root: /srv/copies/node7/devices
    query: false
"""

RETURN = r"""
gpus:
  description: NVIDIA GPUs, in order of PCI address.
  returned: always
  type: list
  elements: dict
  contains:
    address:
      description: PCI address as sysfs spells it.
      type: str
      sample: "0000:17:00.0"
    id:
      description: Vendor and device ID.
      type: str
      sample: 10de:20b0
    subsystem:
      description: Vendor and device ID of the board.
      type: str
      sample: 10de:134f
    class:
      description: PCI class and subclass.
      type: str
      sample: "0302"
    driver:
      description: Kernel driver that holds it, such as V(nvidia), V(nouveau) or V(vfio-pci).
      type: str
    name:
      description: Product name, or the numeric ID of a GPU that has none here.
      type: str
      sample: NVIDIA A100 SXM4 40GB
    architecture:
      description: GPU generation.
      type: str
      sample: Ampere
    skipped:
      description: Why this host's driver leaves it alone, or null.
      type: str
    vgpu:
      description: Whether it is a vGPU, a slice that a hypervisor hands out; null if root only
        could tell.
      type: bool
    smi:
      description: What nvidia-smi reports of it (name, uuid, memory_mib, persistence, ecc, mig,
        mig_pending, mig_devices, virtualization, fabric_state, fabric_status, recovery_action,
        gsp_firmware, processes), or null. Values it does not state are null.
      type: dict
nvswitches:
  description: NVSwitches that are PCI devices of the host, with address, id, subsystem, class and
    driver.
  returned: always
  type: list
  elements: dict
audio:
  description: Audio functions of the GPUs, likewise.
  returned: always
  type: list
  elements: dict
nics:
  description: NVIDIA (Mellanox) network functions, likewise.
  returned: always
  type: list
  elements: dict
driver:
  description: The driver this host is to have.
  returned: always
  type: dict
  contains:
    needed:
      description: Whether a GPU of this host wants a driver at all.
      type: bool
    supported:
      description: Whether the host can be served; true as well where no driver is needed.
      type: bool
    reason:
      description: Why it is so, for the host's owner.
      type: str
    warnings:
      description: What the owner should know besides.
      type: list
      elements: str
    source:
      description: V(ubuntu), V(debian) or V(cuda).
      type: str
    branch:
      description: Driver branch.
      type: int
      sample: 580
    modules:
      description: V(open) or V(proprietary).
      type: str
    build:
      description: V(prebuilt), signed by the distribution, or V(dkms), built on the host.
      type: str
    fabric_manager:
      description: Whether the host manages an NVSwitch fabric.
      type: bool
    fabric:
      description: V(none), V(nvswitch), or V(nvlink5) for baseboards since B200.
      type: str
    packages:
      description: Packages to install, in order.
      type: list
      elements: str
    running_kernel_packages:
      description: Those of RV(driver.packages) that serve the running kernel alone.
      type: list
      elements: str
    pin_package:
      description: The package that pins the branch; install it before all others.
      type: str
    components:
      description: Archive areas that must be enabled.
      type: list
      elements: str
    kernel_modules:
      description: Kernel modules to load at boot.
      type: list
      elements: str
    cuda_major:
      description: Newest CUDA major version whose images run on every GPU here.
      type: int
present:
  description: The driver that is there.
  returned: always
  type: dict
  contains:
    branch:
      description: Branch of the loaded module, or else of the installed one.
      type: int
    loaded:
      description: Version and flavour (modules) of the module in the kernel, or null.
      type: dict
    installed:
      description: Version, flavour (modules) and path of the module on disk for the running kernel,
        or null.
      type: dict
    stale:
      description: Whether the loaded module is not the installed one.
      type: bool
    misfit:
      description: Why that driver cannot drive the GPUs, or null.
      type: str
    nouveau:
      description: Whether nouveau or nova is loaded.
      type: bool
    packages:
      description: Installed driver packages and their versions.
      type: dict
holders:
  description: Processes that hold a GPU device open, with pid, command, devices and container.
  returned: always
  type: list
  elements: dict
holders_complete:
  description: Whether every process could be looked into.
  returned: always
  type: bool
mig:
  description: Whether a GPU is split by MIG.
  returned: always
  type: bool
smi:
  description: driver_version and cuda_version as nvidia-smi states them, or its error; all null
    if it was not asked.
  returned: always
  type: dict
host:
  description: distribution, release, architecture, kernel, kernel_metas, headers (whether those of
    the running kernel are there) and secure_boot (null if it could not be read).
  returned: always
  type: dict
reboot_required:
  description: Whether a package asked for a reboot.
  returned: always
  type: bool
"""

from pathlib import Path
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.gpu import branches
from ansible_collections.slipway.host.plugins.module_utils.gpu.model import AUTO, DriverRequest
from ansible_collections.slipway.host.plugins.module_utils.gpu.report import HostPaths, report
from ansible_collections.slipway.host.plugins.module_utils.host.module import HostModule

DEFAULT_PCI_ROOT = "/sys/bus/pci/devices"

ARGUMENT_SPEC: dict[str, Any] = {
    "source": {
        "type": "str",
        "choices": [AUTO, branches.UBUNTU, branches.DEBIAN, branches.CUDA],
        "default": AUTO,
    },
    "branch": {"type": "int"},
    "modules": {"type": "str", "choices": [branches.OPEN, branches.PROPRIETARY]},
    "video": {"type": "bool", "default": False},
    "query": {"type": "bool", "default": True},
    "nvidia_smi": {"type": "path"},
    "pci_root": {"type": "path", "default": DEFAULT_PCI_ROOT},
    "proc_root": {"type": "path", "default": "/proc"},
    "sys_root": {"type": "path", "default": "/sys"},
    "modules_root": {"type": "path", "default": "/lib/modules"},
    "run_root": {"type": "path", "default": "/run"},
    "os_release": {"type": "path", "default": "/etc/os-release"},
    "dpkg_status": {"type": "path", "default": "/var/lib/dpkg/status"},
}


def main() -> None:
    """Run the module."""
    module = HostModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    params = module.params
    pci_root = Path(params["pci_root"])
    # A host may have no PCI bus, but a folder that somebody names should be there.
    if params["pci_root"] != DEFAULT_PCI_ROOT and not pci_root.is_dir():
        module.fail_json(msg=f"pci_root {pci_root} is not a folder; name one like /sys's.")
    smi = None
    if params["query"]:
        smi = params["nvidia_smi"] or module.get_bin_path("nvidia-smi")

    def run(command: list[str]) -> tuple[int, str, str]:
        # A user's path may lack /sbin, where modinfo is.
        program = module.get_bin_path(command[0]) or command[0]
        try:
            code, output, error = module.run_command(
                [program, *command[1:]], handle_exceptions=False
            )
        except OSError as problem:
            return 127, "", str(problem)
        return code, output, error

    paths = HostPaths(
        pci=pci_root,
        proc=Path(params["proc_root"]),
        sys=Path(params["sys_root"]),
        modules=Path(params["modules_root"]),
        run=Path(params["run_root"]),
        os_release=Path(params["os_release"]),
        dpkg_status=Path(params["dpkg_status"]),
    )
    request = DriverRequest(params["source"], params["branch"], params["modules"], params["video"])
    module.exit_json(changed=False, **report(paths, request, smi, run))


if __name__ == "__main__":
    main()
