# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""NVIDIA GPUs: detection, the choice of a driver, its packages, its kernel module, the proof."""
