# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Calls of the CUDA driver, ``libcuda.so.1``, by ctypes.

The functions, their arguments and the attribute numbers are those of ``cuda.h`` of CUDA 13.0.
Names with the suffix ``_v2`` exist since CUDA 4.0 at the latest. Runs on Python 3.8 and newer.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

LIBRARY = "libcuda.so.1"
# A symbol that only the tests' stand-in for the library has.
STAND_IN_SYMBOL = "slipway_stand_in_cuda"

COMPUTE_CAPABILITY_MAJOR, COMPUTE_CAPABILITY_MINOR = 75, 76
JIT_ERROR_LOG_BUFFER, JIT_ERROR_LOG_BUFFER_SIZE = 5, 6
PEER_ACCESS_ALREADY_ENABLED = 704
LOG_BYTES = 4096
THREADS = 256


class CudaCallError(Exception):
    """A call of the driver failed: FUNCTION returned CODE; DETAILS is the compiler's log."""

    def __init__(self, function: str, code: int, name: str | None, details: str = "") -> None:
        super().__init__(f"{function} returned {code}")
        self.function, self.code, self.name, self.details = function, code, name, details


class Driver:
    """The loaded driver library. Raises OSError if the library is missing or unusable."""

    def __init__(self, library: str = LIBRARY) -> None:
        self._library = ctypes.CDLL(library)

    @property
    def stand_in(self) -> bool:
        """Whether the library is the tests' stand-in."""
        return hasattr(self._library, STAND_IN_SYMBOL)

    def call(self, function: str, *arguments: object) -> None:
        """Call a FUNCTION of the driver. Raises CudaCallError for every code but 0."""
        try:
            code = getattr(self._library, function)(*arguments)
        except AttributeError:
            raise CudaCallError(function, 36, None, f"{LIBRARY} lacks {function}") from None
        if code != 0:
            raise CudaCallError(function, code, self._error_name(code))

    def _error_name(self, code: int) -> str | None:
        text = ctypes.c_char_p()
        function = getattr(self._library, "cuGetErrorName", None)
        if function is None or function(code, ctypes.byref(text)) != 0 or text.value is None:
            return None
        return text.value.decode("ascii", "replace")

    def initialize(self) -> None:
        """Initialize the driver in this process."""
        self.call("cuInit", ctypes.c_uint(0))

    def cuda_version(self) -> str:
        """Return the newest CUDA version that the driver supports, such as ``13.0``."""
        version = ctypes.c_int()
        self.call("cuDriverGetVersion", ctypes.byref(version))
        return f"{version.value // 1000}.{version.value % 1000 // 10}"

    def device_count(self) -> int:
        """Return how many GPUs, or MIG slices, this process may use."""
        count = ctypes.c_int()
        self.call("cuDeviceGetCount", ctypes.byref(count))
        return count.value

    def device(self, number: int) -> Device:
        """Return a GPU by its NUMBER."""
        handle = ctypes.c_int()
        self.call("cuDeviceGet", ctypes.byref(handle), ctypes.c_int(number))
        return Device(self, handle.value)


class Device:
    """One GPU of the driver. Raises CudaCallError from every method."""

    def __init__(self, driver: Driver, handle: int) -> None:
        self.driver, self.handle = driver, ctypes.c_int(handle)
        self._functions: dict[str, ctypes.c_void_p] = {}

    def name(self) -> str:
        """Return the product name; a MIG slice has its profile in the name."""
        text = ctypes.create_string_buffer(256)
        self.driver.call("cuDeviceGetName", text, ctypes.c_int(len(text)), self.handle)
        return text.value.decode("utf-8", "replace")

    def address(self) -> str:
        """Return the PCI address as sysfs spells it."""
        text = ctypes.create_string_buffer(32)
        self.driver.call("cuDeviceGetPCIBusId", text, ctypes.c_int(len(text)), self.handle)
        return text.value.decode("ascii", "replace").lower()

    def memory_bytes(self) -> int:
        """Return the total memory in bytes."""
        size = ctypes.c_size_t()
        self.driver.call("cuDeviceTotalMem_v2", ctypes.byref(size), self.handle)
        return size.value

    def compute_capability(self) -> str:
        """Return the compute capability, such as ``9.0``."""
        numbers = []
        for attribute in (COMPUTE_CAPABILITY_MAJOR, COMPUTE_CAPABILITY_MINOR):
            value = ctypes.c_int()
            self.driver.call("cuDeviceGetAttribute", ctypes.byref(value), attribute, self.handle)
            numbers.append(str(value.value))
        return ".".join(numbers)

    def open(self) -> None:
        """Create the primary context, and make it current for this thread."""
        context = ctypes.c_void_p()
        self.driver.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self.handle)
        self._context = context
        self.use()

    def use(self) -> None:
        """Make the context current for this thread."""
        self.driver.call("cuCtxSetCurrent", self._context)

    def synchronize(self) -> None:
        """Wait for all work of the current context."""
        self.driver.call("cuCtxSynchronize")

    def close(self) -> None:
        """Release the primary context."""
        self.driver.call("cuDevicePrimaryCtxRelease", self.handle)

    def free_bytes(self) -> int:
        """Return the free memory in bytes."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self.driver.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value

    def allocate(self, size: int) -> int:
        """Allocate SIZE bytes of GPU memory; return the address."""
        pointer = ctypes.c_uint64()
        self.driver.call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(size))
        return pointer.value

    def free(self, pointer: int) -> None:
        """Free GPU memory."""
        self.driver.call("cuMemFree_v2", ctypes.c_uint64(pointer))

    def allocate_host(self, size: int) -> ctypes.c_void_p:
        """Allocate SIZE bytes of page-locked host memory, which copies need for full speed."""
        pointer = ctypes.c_void_p()
        self.driver.call("cuMemAllocHost_v2", ctypes.byref(pointer), ctypes.c_size_t(size))
        return pointer

    def free_host(self, pointer: ctypes.c_void_p) -> None:
        """Free page-locked host memory."""
        self.driver.call("cuMemFreeHost", pointer)

    def fill(self, pointer: int, pattern: int, words: int) -> None:
        """Write a 32-bit PATTERN to WORDS words of GPU memory."""
        arguments = (ctypes.c_uint64(pointer), ctypes.c_uint(pattern), ctypes.c_size_t(words))
        self.driver.call("cuMemsetD32_v2", *arguments)

    def copy_to(self, pointer: int, source: bytes | ctypes.c_void_p, size: int) -> None:
        """Copy SIZE bytes of host memory to the GPU."""
        arguments = (ctypes.c_uint64(pointer), source, ctypes.c_size_t(size))
        self.driver.call("cuMemcpyHtoD_v2", *arguments)

    def copy_from(self, target: object, pointer: int, size: int) -> None:
        """Copy SIZE bytes of GPU memory to a TARGET buffer of the host."""
        arguments = (target, ctypes.c_uint64(pointer), ctypes.c_size_t(size))
        self.driver.call("cuMemcpyDtoH_v2", *arguments)

    def read(self, pointer: int, size: int) -> bytes:
        """Return SIZE bytes of GPU memory."""
        buffer = ctypes.create_string_buffer(size)
        self.copy_from(buffer, pointer, size)
        return buffer.raw

    def reaches(self, other: Device) -> bool:
        """Whether this GPU can access the memory of an OTHER one directly."""
        able = ctypes.c_int()
        call = self.driver.call
        call("cuDeviceCanAccessPeer", ctypes.byref(able), self.handle, other.handle)
        return bool(able.value)

    def enable_peer(self, other: Device) -> None:
        """Let this GPU, whose context is current, access the memory of an OTHER one."""
        try:
            self.driver.call("cuCtxEnablePeerAccess", other._context, ctypes.c_uint(0))
        except CudaCallError as error:
            if error.code != PEER_ACCESS_ALREADY_ENABLED:
                raise

    def copy_to_peer(self, target: int, other: Device, source: int, size: int) -> None:
        """Copy SIZE bytes from SOURCE on this GPU to TARGET on an OTHER one, and wait."""
        self.driver.call(
            "cuMemcpyPeer",
            ctypes.c_uint64(target),
            other._context,
            ctypes.c_uint64(source),
            self._context,
            ctypes.c_size_t(size),
        )
        self.synchronize()

    def build(self, ptx: str, names: Sequence[str]) -> None:
        """Compile PTX text, and look up its kernels by their NAMES."""
        log = ctypes.create_string_buffer(LOG_BYTES)
        options = (ctypes.c_int * 2)(JIT_ERROR_LOG_BUFFER, JIT_ERROR_LOG_BUFFER_SIZE)
        values = (ctypes.c_void_p * 2)(ctypes.addressof(log), LOG_BYTES)
        module, text = ctypes.c_void_p(), ctypes.c_char_p(ptx.encode("ascii"))
        arguments = (ctypes.byref(module), text, ctypes.c_uint(2), options, values)
        try:
            self.driver.call("cuModuleLoadDataEx", *arguments)
        except CudaCallError as error:
            error.details = error.details or log.value.decode("utf-8", "replace").strip()
            raise
        for name in names:
            function = ctypes.c_void_p()
            text = ctypes.c_char_p(name.encode("ascii"))
            self.driver.call("cuModuleGetFunction", ctypes.byref(function), module, text)
            self._functions[name] = function

    def run(self, name: str, blocks: int, pointers: Sequence[int], number: int) -> None:
        """Run a kernel on a grid of BLOCKS, with POINTERS and then a NUMBER, and wait for it."""
        values = [*map(ctypes.c_uint64, pointers), ctypes.c_uint32(number)]
        parameters = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        grid = [ctypes.c_uint(size) for size in (blocks, 1, 1, THREADS, 1, 1, 0)]
        function, stream = self._functions[name], None
        self.driver.call("cuLaunchKernel", function, *grid, stream, parameters, None)
        self.synchronize()


def library_path() -> str | None:
    """Return the file of the loaded library, None if it is not loaded or /proc is missing."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    except OSError:
        return None
    for line in maps.splitlines():
        file = line.partition("/")[1:]
        if len(file) == 2 and "libcuda.so" in file[1]:
            return "/" + file[1]
    return None
