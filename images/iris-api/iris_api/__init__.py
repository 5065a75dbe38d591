# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Classifies iris flowers by the length and width of their petals."""
