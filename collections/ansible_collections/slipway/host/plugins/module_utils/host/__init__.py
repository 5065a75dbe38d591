# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs and sessions on a host: long jobs, login sessions, acceptance checks."""
