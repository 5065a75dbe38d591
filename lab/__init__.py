# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Throwaway hosts, simulated GPU hosts and virtual machines for the demo, molecule and pytest."""
