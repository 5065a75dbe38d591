# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Load for the CUDA check: all GPUs multiply matrices at the same time for a given time.

Every product is exact and compared byte by byte, see ``cuda_kernels``. Runs on Python 3.8 and
newer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Dict

from ansible_collections.slipway.host.plugins.module_utils.gpu import cuda_judge, cuda_kernels
from ansible_collections.slipway.host.plugins.module_utils.gpu.cuda_driver import (
    THREADS,
    CudaCallError,
    Device,
)
from ansible_collections.slipway.host.plugins.module_utils.gpu.cuda_judge import Check

# Products between two comparisons: the comparison on the CPU takes as long as a few of them.
PRODUCTS = 20


def run(devices: Dict[str, Device], seconds: float, order: int) -> Dict[str, Check | CudaCallError]:
    """Multiply square matrices of an ORDER on open DEVICES, by PCI address, for some SECONDS.

    Return the check of each GPU, or the error of its driver.
    """
    if any(device.driver.stand_in for device in devices.values()):
        order = min(order, cuda_kernels.SMALL_LOAD_ORDER)
    data = cuda_kernels.load_matrices(order)
    results: Dict[str, Check | CudaCallError] = {}

    def work(address: str, device: Device) -> None:
        try:
            results[address] = _load(address, device, data, order, seconds)
        except CudaCallError as error:
            results[address] = error

    threads = [threading.Thread(target=work, args=item, daemon=True) for item in devices.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {address: results[address] for address in devices}


def _load(address: str, device: Device, data: Sequence[bytes], order: int, seconds: float) -> Check:
    left, right, expected = data
    started = time.monotonic()
    deadline = started + seconds
    device.use()
    pointers = [device.allocate(len(part)) for part in data]
    count = 0
    try:
        device.copy_to(pointers[0], left, len(left))
        device.copy_to(pointers[1], right, len(right))
        while not count or time.monotonic() < deadline:
            device.fill(pointers[2], 0, len(expected) // cuda_kernels.WORD_BYTES)
            for _number in range(PRODUCTS):
                device.run(cuda_kernels.PRODUCT, order * order // THREADS, pointers, order)
                count += 1
                if time.monotonic() >= deadline:
                    break
            result = device.read(pointers[2], len(expected))
            offset = cuda_kernels.first_difference(expected, result)
            if offset >= 0:
                return cuda_judge.judge_result(
                    cuda_judge.LOAD, address, offset, expected, result
                ).timed(time.monotonic() - started)
    finally:
        for pointer in pointers:
            with suppress(CudaCallError):
                device.free(pointer)
    spent = time.monotonic() - started
    speed = 2 * order**3 * count / max(spent, 1e-9) / 1e12
    found = f"{count} correct products of order {order}, {speed:.2f} TFLOP/s"
    return Check(cuda_judge.LOAD, True, "correct products", found, gpu=address).timed(spent)
