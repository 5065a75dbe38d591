# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The view of a run: what its hosts do now, on a terminal and in a log."""
