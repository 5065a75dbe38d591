# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What each role owns: one pure function per role, from host facts and options."""
