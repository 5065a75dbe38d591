#!/usr/bin/python
# Copyright: Slipway contributors
# GNU General Public License v3.0+ (see LICENSE)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The documentation of slipway.host.image_release, whose action plugin runs on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: image_release
short_description: End the offer of images to a host
description:
  - Runs on the host that builds, by C(delegate_to). Stops the registry of slipway.host.image_offer
    and its connection after the last host.
options:
  host:
    description: Name of the host that the images were for.
    type: str
    required: true
attributes:
  check_mode:
    description: Ends nothing.
    support: full
  diff_mode:
    description: Shows nothing.
    support: none
author:
  - Slipway contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: End the offer
  slipway.host.image_release:
    host: "{{ inventory_hostname }}"
  delegate_to: build01
"""

RETURN = r"""
{}
"""
