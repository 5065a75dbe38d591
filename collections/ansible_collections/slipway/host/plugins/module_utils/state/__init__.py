# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Owned state, one file per kind of owned thing, and the tools all kinds share."""
