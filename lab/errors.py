# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Errors of the lab; each message states the problem and what a person can do."""

from __future__ import annotations


class LabError(Exception):
    """A failure that a person must solve."""


class BaseUnavailableError(LabError):
    """The base image cannot be created here and now; the message is the reason."""
