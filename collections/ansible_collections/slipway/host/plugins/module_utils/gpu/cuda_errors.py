# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Error codes of the CUDA driver: name, meaning and remedy of each code.

Codes and names are those of the enumeration ``CUresult`` in ``cuda.h`` of CUDA 13.0; 35 is a code
of the CUDA runtime (``driver_types.h``), which programs report. Codes that concern textures,
graphics or stream capture are absent: the CUDA check uses none of these.
Runs on Python 3.8 and newer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

KERNEL_LOG = "Read the kernel log: journalctl -k --grep 'NVRM|Xid'."
RESET_GPU = (
    "Stop all programs on the GPU, run nvidia-smi -pm 0, nvidia-smi --gpu-reset and nvidia-smi "
    "-pm 1, or reboot the host."
)
REPORT_BUG = "Report this to Slipway's authors: the CUDA check called the driver wrongly."
SAME_DRIVER = (
    "Make the loaded kernel module and libcuda the same version: reboot the host after a driver "
    "upgrade."
)


@dataclass(frozen=True)
class CudaError:
    """One error code of the CUDA driver.

    ``container_remedy`` replaces ``remedy`` for a check that ran in a container; empty if the
    remedy is the same.
    """

    name: str
    meaning: str
    remedy: str
    container_remedy: str = ""


NEW_CONTAINER = (
    "Refresh the CDI specification (systemctl restart nvidia-cdi-refresh), then start a new "
    "container with --device nvidia.com/gpu=all."
)

CUDA_ERRORS: Mapping[int, CudaError] = {
    1: CudaError("CUDA_ERROR_INVALID_VALUE", "an argument is out of range", REPORT_BUG),
    2: CudaError(
        "CUDA_ERROR_OUT_OF_MEMORY",
        "the GPU or the host has not enough free memory",
        "List the programs on the GPU (nvidia-smi), stop one of them, or test less memory "
        "(--memory-mib).",
    ),
    3: CudaError(
        "CUDA_ERROR_NOT_INITIALIZED",
        "the driver library could not initialize",
        f"Load the kernel module (modprobe nvidia, modprobe nvidia-uvm). {KERNEL_LOG}",
        NEW_CONTAINER,
    ),
    4: CudaError(
        "CUDA_ERROR_DEINITIALIZED",
        "the driver library is shutting down",
        "Run the check again; if it fails again, reboot the host.",
    ),
    34: CudaError(
        "CUDA_ERROR_STUB_LIBRARY",
        "the loaded libcuda is the stub of the CUDA toolkit, which is for linking only",
        "Remove the folder 'stubs' from LD_LIBRARY_PATH and from /etc/ld.so.conf.d, then run "
        "ldconfig.",
    ),
    35: CudaError(
        "cudaErrorInsufficientDriver",
        "the driver is older than the CUDA version of the program",
        "Upgrade the driver (./slipway upgrade), or use an image of an older CUDA version.",
    ),
    36: CudaError(
        "CUDA_ERROR_CALL_REQUIRES_NEWER_DRIVER",
        "the driver is older than the function that was called",
        "Upgrade the driver (./slipway upgrade).",
    ),
    46: CudaError(
        "CUDA_ERROR_DEVICE_UNAVAILABLE",
        "the GPU is busy or is in an exclusive compute mode",
        "Stop the program that uses the GPU (nvidia-smi), or set nvidia-smi "
        "--compute-mode=DEFAULT.",
    ),
    100: CudaError(
        "CUDA_ERROR_NO_DEVICE",
        "the driver supports no GPU",
        f"Compare with lspci -d 10de:. {KERNEL_LOG} A GPU in MIG mode needs at least one "
        "instance (nvidia-smi mig -lgi).",
        f"The container has no GPU device file, or may not open it. {NEW_CONTAINER}",
    ),
    101: CudaError(
        "CUDA_ERROR_INVALID_DEVICE",
        "a GPU with this number does not exist, or the GPU needs a reset",
        f"{RESET_GPU} {KERNEL_LOG}",
    ),
    102: CudaError(
        "CUDA_ERROR_DEVICE_NOT_LICENSED",
        "the vGPU has no licence",
        "Configure the licence server in /etc/nvidia/gridd.conf, then restart nvidia-gridd.",
    ),
    200: CudaError(
        "CUDA_ERROR_INVALID_IMAGE", "the kernel image is invalid", f"{SAME_DRIVER} {REPORT_BUG}"
    ),
    201: CudaError("CUDA_ERROR_INVALID_CONTEXT", "no valid context is current", REPORT_BUG),
    209: CudaError(
        "CUDA_ERROR_NO_BINARY_FOR_GPU",
        "the driver has no code for this GPU",
        "Install the driver branch that supports the GPU (ansible-doc slipway.host.gpu_info).",
    ),
    214: CudaError(
        "CUDA_ERROR_ECC_UNCORRECTABLE",
        "the GPU found a memory error that ECC cannot correct",
        f"{RESET_GPU} Check the remapped rows (nvidia-smi -q -d ROW_REMAPPER); replace the GPU if "
        "remapping failed.",
    ),
    217: CudaError(
        "CUDA_ERROR_PEER_ACCESS_UNSUPPORTED",
        "the two GPUs have no direct path to each other",
        "Read the topology: nvidia-smi topo -m.",
    ),
    218: CudaError(
        "CUDA_ERROR_INVALID_PTX",
        "the driver's compiler refused the kernel's PTX text",
        f"{SAME_DRIVER} {REPORT_BUG}",
    ),
    220: CudaError(
        "CUDA_ERROR_NVLINK_UNCORRECTABLE",
        "NVLink reported an error that cannot be corrected",
        f"Read the link errors (nvidia-smi nvlink -e). {RESET_GPU}",
    ),
    221: CudaError(
        "CUDA_ERROR_JIT_COMPILER_NOT_FOUND",
        "libnvidia-ptxjitcompiler.so.1 is missing",
        "Install the driver's compute library package again (libnvidia-compute).",
        f"The CDI specification lacks libnvidia-ptxjitcompiler. {NEW_CONTAINER}",
    ),
    222: CudaError(
        "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
        "the driver is older than the PTX version of the kernel",
        "Upgrade the driver (./slipway upgrade).",
    ),
    223: CudaError(
        "CUDA_ERROR_JIT_COMPILATION_DISABLED",
        "the compilation of PTX is disabled",
        "Remove CUDA_DISABLE_PTX_JIT from the environment.",
    ),
    226: CudaError(
        "CUDA_ERROR_CONTAINED",
        "the GPU contained a memory error and ended the program",
        f"Run the check again. {KERNEL_LOG}",
    ),
    304: CudaError(
        "CUDA_ERROR_OPERATING_SYSTEM",
        "a call of the operating system failed",
        "Check the device files (ls -l /dev/nvidia*), the limit of locked memory (ulimit -l) and "
        "the kernel log.",
        f"The container may not open a device file. {NEW_CONTAINER}",
    ),
    500: CudaError("CUDA_ERROR_NOT_FOUND", "a function or symbol is missing", REPORT_BUG),
    700: CudaError(
        "CUDA_ERROR_ILLEGAL_ADDRESS",
        "a kernel accessed an invalid address",
        f"{RESET_GPU} {KERNEL_LOG}",
    ),
    702: CudaError(
        "CUDA_ERROR_LAUNCH_TIMEOUT",
        "a kernel ran longer than the driver allows",
        f"The display watchdog ended the kernel, or the GPU hangs. {KERNEL_LOG}",
    ),
    710: CudaError("CUDA_ERROR_ASSERT", "an assertion in a kernel failed", REPORT_BUG),
    714: CudaError("CUDA_ERROR_HARDWARE_STACK_ERROR", "a hardware stack error", RESET_GPU),
    715: CudaError(
        "CUDA_ERROR_ILLEGAL_INSTRUCTION", "a kernel met an illegal instruction", RESET_GPU
    ),
    719: CudaError(
        "CUDA_ERROR_LAUNCH_FAILED",
        "a kernel failed while it ran; the cause may be a memory or link error",
        f"{RESET_GPU} {KERNEL_LOG}",
    ),
    720: CudaError(
        "CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE",
        "a kernel has too many blocks for the GPU",
        REPORT_BUG,
    ),
    800: CudaError(
        "CUDA_ERROR_NOT_PERMITTED",
        "the operation is not permitted",
        "Run the check as root, or as a user who may open /dev/nvidia*.",
        NEW_CONTAINER,
    ),
    801: CudaError(
        "CUDA_ERROR_NOT_SUPPORTED",
        "the GPU or the driver does not support the operation",
        "Check the virtualization mode (nvidia-smi -q) and the confidential computing mode "
        "(nvidia-smi conf-compute -q).",
    ),
    802: CudaError(
        "CUDA_ERROR_SYSTEM_NOT_READY",
        "the NVSwitch fabric is not ready; CUDA stays unusable until it is",
        "Start the fabric manager (systemctl restart nvidia-fabricmanager); it must have the "
        "driver's version. Then check the state: nvidia-smi -q, section Fabric.",
    ),
    803: CudaError(
        "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
        "the loaded kernel module and libcuda have different versions",
        SAME_DRIVER,
        f"The container contains the libraries of another driver. {NEW_CONTAINER}",
    ),
    804: CudaError(
        "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE",
        "a libcuda of CUDA's forward compatibility package is loaded, and this GPU does not "
        "support it",
        "Remove the cuda-compat package, or its folder from LD_LIBRARY_PATH.",
        "Use an image whose CUDA version the driver supports, or remove /usr/local/cuda/compat "
        "from the image.",
    ),
    805: CudaError(
        "CUDA_ERROR_MPS_CONNECTION_FAILED",
        "no connection to the MPS control daemon",
        "Start nvidia-cuda-mps-control, or remove CUDA_MPS_PIPE_DIRECTORY from the environment.",
    ),
    807: CudaError(
        "CUDA_ERROR_MPS_SERVER_NOT_READY",
        "the MPS server is not ready for clients",
        "Wait, then run the check again; restart nvidia-cuda-mps-control if it fails again.",
    ),
    999: CudaError(
        "CUDA_ERROR_UNKNOWN",
        "the driver reports an unknown failure",
        f"Load nvidia-uvm (modprobe nvidia-uvm) and check /dev/nvidia-uvm. {KERNEL_LOG} If it "
        "stays, reboot the host.",
        f"The container may lack /dev/nvidia-uvm. {NEW_CONTAINER}",
    ),
}


def describe(code: int, name: str | None = None) -> str:
    """Return a CUDA error as text: number, name and meaning.

    NAME is the driver's own name for a CODE that the table lacks.
    """
    known = CUDA_ERRORS.get(code)
    if known is None:
        return f"CUDA error {code} ({name or 'not in the table of errors'})"
    return f"CUDA error {code} ({known.name}): {known.meaning}"


def remedy(code: int, in_container: bool) -> str:
    """Return what to do about a CUDA error on the host, or IN_CONTAINER."""
    known = CUDA_ERRORS.get(code)
    if known is None:
        return f"Look up the code in CUDA's documentation of CUresult. {KERNEL_LOG}"
    return (known.container_remedy or known.remedy) if in_container else known.remedy
