# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests on a machine with a real NVIDIA GPU, without a network; see docs/proven-on.md."""
