# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What goes wrong, in words for the person at the terminal."""

from __future__ import annotations


class MlError(Exception):
    """Something a person has to know or do; the message says what."""
