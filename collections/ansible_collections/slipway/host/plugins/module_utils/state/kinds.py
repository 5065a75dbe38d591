# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""All kinds of owned things. A new kind is a file with ASKS and KINDS, and its name here."""

from __future__ import annotations

from ansible_collections.slipway.host.plugins.module_utils.gpu import health_facts
from ansible_collections.slipway.host.plugins.module_utils.state import (
    accounts,
    containers,
    derived,
    disturbance,
    docker_folder,
    engine,
    engine_access,
    files,
    front_door,
    gpu_containers,
    json_settings,
    kernel_modules,
    keyrings,
    lines,
    links,
    listeners,
    packages,
    packet_filter,
    projects,
    rootless,
    service_files,
    slurm,
    slurm_accounts,
    slurm_database,
    space,
    started,
    trees,
    units,
)

# Those that answer questions themselves come first.
_ASKING = (
    *(accounts, containers, derived, disturbance, docker_folder, engine_access, files),
    *(kernel_modules, links, listeners, packages, packet_filter, rootless, service_files, slurm),
    *(slurm_accounts, slurm_database, space, started, trees, units, gpu_containers, health_facts),
)
_OTHERS = (front_door, json_settings, keyrings, lines, projects)

ALL = engine.by_name(*(module.KINDS for module in (*_ASKING, *_OTHERS)))
# Which file of this package answers a key of a question.
MODULE_OF_KEY = {key: module.__name__ for module in _ASKING for key in module.ASKS}
ASKS = {key: ask for module in _ASKING for key, ask in module.ASKS.items()}
