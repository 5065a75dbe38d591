# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Data sets and code repositories: what is declared, and the program that brings it to a host."""
