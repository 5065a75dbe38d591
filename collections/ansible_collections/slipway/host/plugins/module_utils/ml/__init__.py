# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command ``ml`` and the alias programs, which people run on a host.

The role ml_aliases installs this package under /usr/local/lib/slipway, where it is run by whatever
Python the distribution has: Python 3.10 or later, the standard library, and the programs docker and
zstd.  The controller imports ``settings`` too, to merge the same settings.

Functions that read the host are apart from functions that decide; the latter get the data.
"""
