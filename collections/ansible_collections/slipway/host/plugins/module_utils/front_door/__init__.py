# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Slurm: the configuration of a cluster from the hardware of its nodes."""
