# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that other tools read, made from the inventory and the reports of hosts."""
