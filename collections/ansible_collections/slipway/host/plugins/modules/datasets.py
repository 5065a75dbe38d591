#!/usr/bin/python
# Copyright: Slipway contributors
# GNU General Public License v3.0+ (see LICENSE)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The documentation of slipway.host.datasets; it runs on the controller, see the action plugin."""

from __future__ import annotations

DOCUMENTATION = r"""
module: datasets
short_description: Install, update and remove data sets and code repositories
description:
  - Downloads archives, continues interrupted downloads, and compares checksums. Unpacks archives
    into a hidden folder beside their path and makes them visible by a rename.
  - Clones repositories in the same way. Checks out another revision only if no work would be lost.
  - A tree (data set or repository) is installed on the first disk with enough space. If this is not
    the disk of its path, the path becomes a link.
  - Files that people added to a tree are never removed. If a change would remove them, the tree is
    not changed, and the task fails after the other trees.
  - The work runs detached on the host, and the controller shows its progress. A lost connection
    does not end the work.
  - Compares trees with the host in the same way as the survey.
options:
  trees:
    description: The C(trees) of the plan of the role ml_data.
    type: list
    elements: dict
    required: true
  owned:
    description: The C(owned) state of the same plan.
    type: dict
    required: true
  secrets:
    description: The C(secrets) of the same plan, which are addresses and headers by name of tree.
    type: dict
    required: true
  environment:
    description: Environment variables for downloads, such as a proxy.
    type: dict
    default: {}
attributes:
  check_mode:
    description: Reports which trees would be installed, updated and removed.
    support: full
  diff_mode:
    description: Shows the differences.
    support: full
author:
  - Slipway contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Install data sets and repositories
  slipway.host.datasets:
    trees: "{{ plan.trees }}"
    owned: "{{ plan.owned }}"
    secrets: "{{ plan.secrets }}"
  vars:
    plan: "{{ lookup('slipway.host.role_plan', 'ml_data') }}"
"""

RETURN = r"""
paths:
  description: Paths of the trees that differed.
  returned: always
  type: list
  elements: str
conflicts:
  description:
    - What is in the way, and why trees could not be made, a mapping with kind, name and reason for
      each.
  returned: always
  type: list
  elements: dict
"""
