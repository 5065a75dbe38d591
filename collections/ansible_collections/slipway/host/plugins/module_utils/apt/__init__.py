# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""apt and dpkg: sources, keys, changes to package sets, the record of an upgrade."""
