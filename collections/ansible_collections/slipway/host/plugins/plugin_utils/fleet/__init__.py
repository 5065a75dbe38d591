# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The reports of hosts: what runs recorded, and the page about the fleet."""
