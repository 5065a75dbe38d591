# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Data sets and code repositories: the program that installs and removes them on a host."""
