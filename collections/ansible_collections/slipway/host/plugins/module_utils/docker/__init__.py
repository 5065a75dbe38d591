# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Docker Engine: daemon.json and rootless engines."""
