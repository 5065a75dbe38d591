# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The catalogue of images: declarations, build contexts, locks, builds and smoke tests."""
