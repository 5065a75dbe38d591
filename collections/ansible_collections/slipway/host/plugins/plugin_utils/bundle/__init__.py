# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bundles: one signed file with everything that a controller without a network needs."""
