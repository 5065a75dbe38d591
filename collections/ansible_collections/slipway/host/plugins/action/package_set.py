# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action plugin of slipway.host.package_set: run the module, show its progress."""

from __future__ import annotations

from ansible_collections.slipway.host.plugins.plugin_utils.apt_module import ActionModule

__all__ = ["ActionModule"]
