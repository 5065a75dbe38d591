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
    sysfs, without any installed tool.
  - Chooses the driver branch, kernel module flavour and packages that support every GPU of the
    host, or returns the reason why none does.
  - Returns the loaded driver, the installed driver, the processes that use a GPU, and, while the
    driver is loaded, the report of C(nvidia-smi).
  - Reads only. Only root can detect a vGPU and see the processes of other users.
options:
  source:
    description:
      - Source of the driver packages.
      - V(auto) uses the archive of the distribution, and NVIDIA's CUDA repository only for hardware
        that the archive does not support.
    type: str
    choices: [auto, ubuntu, debian, cuda]
    default: auto
  branch:
    description:
      - Driver branch to use, such as V(580), instead of the chosen one.
      - Refuses a branch that does not support a GPU of the host or that the source does not have.
    type: int
  modules:
    description:
      - Kernel module flavour to use instead of the chosen one.
      - Refuses a flavour that does not support a GPU of the host.
    type: str
    choices: [open, proprietary]
  video:
    description: Include the libraries that containers need to encode and decode video.
    type: bool
    default: false
  query:
    description: Run C(nvidia-smi) if it is installed and the driver is loaded.
    type: bool
    default: true
  nvidia_smi:
    description: Path of C(nvidia-smi). By default it is searched in C(PATH).
    type: path
  pci_root:
    description: Folder with one entry for each PCI function.
    type: path
    default: /sys/bus/pci/devices
  proc_root:
    description: Mount point of procfs.
    type: path
    default: /proc
  sys_root:
    description: Mount point of sysfs.
    type: path
    default: /sys
  modules_root:
    description: Folder with the modules of each kernel.
    type: path
    default: /lib/modules
  run_root:
    description: Folder with the file by which packages request a reboot.
    type: path
    default: /run
  os_release:
    description: File with the name and version of the distribution.
    type: path
    default: /etc/os-release
  dpkg_status:
    description: File with the states of packages in dpkg.
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
- name: Choose the driver for this host
  slipway.host.gpu_info:
  register: gpu

- name: Fail if no driver supports all GPUs
  ansible.builtin.assert:
    that: gpu.driver.supported
    fail_msg: "{{ gpu.driver.reason }}"

- name: Check whether the production branch supports all GPUs
  slipway.host.gpu_info:
    branch: 595
    query: false
  register: wished

- name: Choose the driver for a copy of the PCI tree of a host
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
      description: Kernel driver of the device, such as V(nvidia), V(nouveau) or V(vfio-pci).
      type: str
    name:
      description: Product name, or the numeric ID of an unknown GPU.
      type: str
      sample: NVIDIA A100 SXM4 40GB
    architecture:
      description: GPU generation.
      type: str
      sample: Ampere
    skipped:
      description: Why the driver of the host does not use the GPU, or null.
      type: str
    vgpu:
      description: Whether the GPU is a vGPU, a share of a GPU from a hypervisor; null if this is
        unknown without root rights.
      type: bool
    smi:
      description: Report of nvidia-smi (name, uuid, memory_mib, persistence, ecc, mig,
        mig_pending, mig_devices, virtualization, fabric_state, fabric_status, recovery_action,
        gsp_firmware, processes), or null. Unknown values are null.
      type: dict
nvswitches:
  description: NVSwitches that are PCI devices of the host, with address, id, subsystem, class and
    driver.
  returned: always
  type: list
  elements: dict
audio:
  description: Audio functions of the GPUs, with the same keys.
  returned: always
  type: list
  elements: dict
nics:
  description: NVIDIA (Mellanox) network functions, with the same keys.
  returned: always
  type: list
  elements: dict
driver:
  description: The driver that was chosen for the host.
  returned: always
  type: dict
  contains:
    needed:
      description: Whether a GPU of the host needs a driver.
      type: bool
    supported:
      description: Whether a driver supports all GPUs; also true if no driver is needed.
      type: bool
    reason:
      description: Reason of the choice, for the administrator of the host.
      type: str
    warnings:
      description: Further information for the administrator.
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
      description: Whether the host needs the fabric manager for NVSwitches.
      type: bool
    fabric:
      description: V(none), V(nvswitch), or V(nvlink5) for baseboards since B200.
      type: str
    packages:
      description: Packages to install, in order.
      type: list
      elements: str
    running_kernel_packages:
      description: Packages of RV(driver.packages) that support only the running kernel.
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
      description: Newest CUDA major version whose images run on every GPU of the host.
      type: int
present:
  description: The present driver.
  returned: always
  type: dict
  contains:
    branch:
      description: Branch of the loaded module, or else of the installed module.
      type: int
    loaded:
      description: Version and flavour (modules) of the module in the kernel, or null.
      type: dict
    installed:
      description: Version, flavour (modules) and path of the module on disk for the running kernel,
        or null.
      type: dict
    stale:
      description: Whether the loaded and the installed module differ.
      type: bool
    misfit:
      description: Why the present driver does not support the GPUs, or null.
      type: str
    nouveau:
      description: Whether nouveau or nova is loaded.
      type: bool
    packages:
      description: Installed driver packages and their versions.
      type: dict
holders:
  description: Processes that use a GPU, with pid, command, devices and container.
  returned: always
  type: list
  elements: dict
holders_complete:
  description: Whether all processes could be inspected.
  returned: always
  type: bool
mig:
  description: Whether a GPU is split by MIG.
  returned: always
  type: bool
smi:
  description: driver_version and cuda_version of nvidia-smi, or its error; all null if nvidia-smi
    did not run.
  returned: always
  type: dict
host:
  description: distribution, release, architecture, kernel, kernel_metas, headers (whether the
    headers of the running kernel are installed) and secure_boot (null if it could not be read).
  returned: always
  type: dict
reboot_required:
  description: Whether a package requests a reboot.
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
    # A host may have no PCI bus, but a folder that was set explicitly must exist.
    if params["pci_root"] != DEFAULT_PCI_ROOT and not pci_root.is_dir():
        module.fail_json(
            msg=f"pci_root: {pci_root} is not a folder; expected a folder such as "
            f"{DEFAULT_PCI_ROOT}."
        )
    smi = None
    if params["query"]:
        smi = params["nvidia_smi"] or module.get_bin_path("nvidia-smi")

    def run(command: list[str]) -> tuple[int, str, str]:
        # PATH may not contain /sbin, the folder of modinfo.
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
