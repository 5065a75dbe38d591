#!/usr/bin/python
# Copyright: Slipway contributors
# GNU General Public License v3.0+ (see LICENSE)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The documentation of slipway.host.survey; it runs on the controller, see the action plugin."""

from __future__ import annotations

DOCUMENTATION = r"""
module: survey
short_description: Compare a host with its owned state in one round trip
description:
  - Calls the plan of each role, asks the host for all of its owned state in one round trip, and
    compares.
  - Compares digests of files, the status of dpkg, unit states, the content of images with the
    record of the host, and containers by what the engine reports.
  - A host with drift joins the group C(slipway_drift) for the plays that follow, a host with
    conflicts the group C(slipway_conflict), a host with faults of GPUs the group C(slipway_fault).
  - A conflict is something in the way of one owned thing, about which a person must decide. The
    owned thing is then no drift, and neither is what needs it.
  - If the repair of the drift can disturb users, asks the host a second time which users.
  - Runs the host's Python without a module transfer, so it costs about as much as C(raw).
options:
  roles:
    description:
      - The roles to survey, in the order in which they would run.
      - By default the roles in the variable C(slipway_roles).
    type: list
    elements: str
  compare:
    description:
      - When false, every role counts as drifted, so that the roles themselves decide.
      - By default the value of the variable C(slipway_survey), or true if it is not set.
    type: bool
  expect_no_drift:
    description:
      - Fail if anything differs, because the roles have just run. A role may differ if one of
        its tasks returned C(slipway_waiting).
    type: bool
    default: false
  fail_on_conflict:
    description: Fail if something is in the way of one of the roles.
    type: bool
    default: false
  hold_only:
    description:
      - Only check whether the host is held. Do not connect to the host.
      - A host that is not held joins the group C(slipway_ready).
    type: bool
    default: false
notes:
  - A host whose variable C(slipway_hold) has a reason is held. The survey does not connect to it,
    adds it to the group C(slipway_held), and returns only RV(hold) and an empty RV(drift).
attributes:
  check_mode:
    description: Reads only, so check mode makes no difference.
    support: full
  diff_mode:
    description: Changes nothing.
    support: none
author:
  - Slipway contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Survey the host
  slipway.host.survey:
    roles: [docker_engine, user_access]
  register: survey
"""

RETURN = r"""
hold:
  description: Why the host is held, empty if it is not held.
  returned: for held hosts, and with O(hold_only)
  type: str
  sample: disk replacement until Friday
drift:
  description: The roles with drift, in the order in which they run.
  returned: always
  type: list
  elements: str
differences:
  description: Differences of each role with drift.
  returned: always
  type: dict
  sample:
    docker_engine:
      - kind: units
        name: docker.service
        found: inactive
        expected: active
conflicts:
  description:
    - For each role with conflicts, the owned things in conflict, the reason with what to do, and
      the owned things that differ and wait for them.
    - Conflicts that tasks of the roles met and registered earlier in the run are included.
  returned: always
  type: dict
  sample:
    ml_aliases:
      - kind: links
        name: /usr/local/bin/ml
        reason: >-
          /usr/local/bin/ml: found something that is not a link; expected a link to
          /usr/local/lib/slipway/ml, or nothing. Move it out of the way.
        blocks: []
consequences:
  description:
    - What the repair of the drift disturbs - restarts, stopped containers, removed packages - and
      who uses the host. Empty if nothing is disturbed.
    - C(kind) is C(restart), C(stop), C(container), C(driver), C(package), C(gpu_process) or
      C(session).
  returned: always
  type: list
  elements: dict
  sample:
    - kind: container
      name: train
      effect: would stop (owner alice, image pytorch:gpu, uses a GPU)
overview:
  description:
    - What reports of the host show - GPUs, driver, engine, packages, images, services and disks.
    - Only what the surveyed roles declare, see C(docs/host-report.schema.json).
  returned: always
  type: dict
metrics:
  description:
    - Values for M(slipway.host.metrics), if the role C(host_metrics) declares a file. Otherwise
      empty.
  returned: always
  type: dict
health:
  description:
    - Faults of the GPUs of a host with a loaded driver, from C(nvidia-smi) and the kernel log. They
      are no drift. C(where) is a PCI address or empty. A fault with C(warning) may be intended.
      C(gpu) is the UUID of the GPU or empty. C(accepted) says why the owner of the host accepts the
      fault, empty for all others.
  returned: always
  type: list
  elements: dict
  sample:
    - where: "0000:3b:00.0"
      found: the driver asks for recovery action 'GPU Reset'
      expected: none
      remedy: "End all work on the GPU, then reset it: nvidia-smi -pm 0 -i 0000:3b:00.0; ..."
      warning: false
      gpu: GPU-00000000-0000-4000-8000-000000000001
      accepted: ""
declared:
  description: What the roles declare, for the option O(slipway.host.verify#module:declared).
  returned: always
  type: dict
information:
  description:
    - Sentences about what others configured for owned things, such as a drop-in of a unit. It is no
      drift, and Slipway leaves it in place.
  returned: always
  type: list
  elements: str
ansible_facts:
  description: The facts of M(slipway.host.host_info).
  returned: always
  type: dict
"""
