# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The error that the person at the terminal reads."""

from __future__ import annotations


class MlError(Exception):
    """A problem that the person has to solve; the message says how."""
