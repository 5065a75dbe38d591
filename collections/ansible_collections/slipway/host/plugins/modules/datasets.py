#!/usr/bin/python
# Copyright: Slipway contributors
# GNU General Public License v3.0+ (see LICENSE)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The documentation of slipway.host.datasets; it runs on the controller, see the action plugin."""

from __future__ import annotations

DOCUMENTATION = r"""
module: datasets
short_description: Data sets and code repositories on a host, whole or not at all
description:
  - Downloads archives, going on where an earlier download was cut, compares their checksum, unpacks
    them into a hidden folder beside their place and makes them visible by a rename. Repositories
    are cloned the same way, and moved to another revision where no work would be lost.
  - A tree goes where there is room; one on another disk is linked from its path.
  - What people added to a tree is never removed. Where it would be, the tree is left and the task
    fails at the end, after the other trees.
  - The work runs detached on the host and is followed from here, so a lost connection does not end
    it.
  - Whether a tree is as declared is decided by the same comparison as in the survey.
options:
  trees:
    description: The trees, as C(slipway.host.data_plan) gives them.
    type: list
    elements: dict
    required: true
  owned:
    description: The owned state, from the same.
    type: dict
    required: true
  secrets:
    description: Addresses and headers by the name of a tree, from the same.
    type: dict
    required: true
  environment:
    description: Environment of downloads, such as a proxy.
    type: dict
    default: {}
attributes:
  check_mode:
    description: Says which trees would be made, moved and removed.
    support: full
  diff_mode:
    description: Shows what differs.
    support: full
author:
  - Slipway contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Bring a data set
  slipway.host.datasets:
    trees: "{{ plan.trees }}"
    owned: "{{ plan.owned }}"
    secrets: "{{ plan.secrets }}"
  vars:
    plan: >-
      {{ [{'name': 'pets', 'url': 'https://data.example.org/pets.tar.gz'}]
         | slipway.host.data_plan([], '/srv/data', '/srv/code') }}
"""

RETURN = r"""
paths:
  description: What differed.
  returned: always
  type: list
  elements: str
"""
