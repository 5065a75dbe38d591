# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command ``ml`` and the aliases: what people run on a host.

The role ml_aliases installs this package under /usr/local/lib/slipway, where it is run by whatever
Python the distribution has: Python 3.10 or later, the standard library, and the programs docker and
zstd.  ``settings`` is also imported on the controller, which merges the same settings.

Every function that asks the host is apart from those that decide; the latter take what was found.
"""
