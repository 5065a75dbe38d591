#!/usr/bin/python
# Copyright: Slipway contributors
# GNU General Public License v3.0+ (see LICENSE)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The documentation of slipway.host.slurm_node; it runs on the controller, see the action."""

from __future__ import annotations

DOCUMENTATION = r"""
module: slurm_node
short_description: Read a host as a node of a Slurm cluster
description:
  - Returns what C(slurm.conf) says about a host, as C(ansible_facts['slipway_slurm_node']). The
    plan of the role C(slurm) for the controller reads this fact of all hosts of the cluster.
  - Reads only, in one round trip. Does not connect to a host that is held, or that declares no
    cluster.
  - Fails if the clock of the host differs by more than two minutes from that of this machine.
options:
  check_clock:
    description: Compare the clock of the host. An upgrade and a rollback do not need it.
    type: bool
    default: true
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
- name: Read the hardware of Slurm hosts
  slipway.host.slurm_node:
"""

RETURN = r"""
ansible_facts:
  description: The fact, under C(slipway_slurm_node).
  returned: if the host declares a cluster
  type: dict
  contains:
    slipway_slurm_node:
      description:
        - hostname, address, cpus, sockets, cores (per socket), threads (per core), memory (MiB),
          gpus (number of the device file and model of each), reserved (GPUs of services), cgroup
          (whether control groups limit CPUs and memory), munge_key (SHA-256 digest or empty),
          managed (whether the role wrote files before), foreign (configuration of another Slurm),
          nodes, cluster and jobs_folder (the nodes, the name of the cluster and where it keeps its
          jobs, which a controller recorded), folder (what hosts see alike of
          C(slurm_state_folder), if it is set).
      type: dict
"""
