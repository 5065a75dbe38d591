# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""NVIDIA GPUs: detection, choice and packages of a driver, its kernel module, and the CUDA check.

The CUDA check is a computation on every GPU that needs nothing but Python and the driver.
``cuda_check`` is the program, ``cuda_bundle`` packs it into one file for a host or a container.
``cuda_errors``, ``cuda_judge`` and ``cuda_kernels`` are pure; ``cuda_driver`` calls the driver.
"""
