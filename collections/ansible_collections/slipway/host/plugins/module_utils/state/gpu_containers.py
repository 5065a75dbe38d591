# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Containers of a Slurm node that use GPUs without a job: Slurm may give the same GPUs to a job.

Keys of an entry:

gpu_containers: socket.

The number of the job is a label, and users choose labels: this names mistakes, not people who hide.
"""

from __future__ import annotations

import json

from ansible_collections.slipway.host.plugins.module_utils.state import (
    containers,
    disturbance,
    reading,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from ansible_collections.slipway.host.plugins.module_utils.state.model import (
        Answer,
        Change,
        Entry,
    )

# Modules that the survey sends along.
NEEDS = (containers.__name__, disturbance.__name__)


def ask_outside_of_jobs(_socket: str) -> list[list[str]]:
    """Return name and owner of each running container with GPUs, but of no job or service.

    The owner is empty if it is unknown. No engine, or one that does not answer, has no containers.
    """
    running = (disturbance.ask_containers() or {}).get("containers", [])
    candidates = [one for one in running if one["gpu"] and not one["job"]]
    services = _ids_of_services() if candidates else set()
    return [[one["name"], one["owner"]] for one in candidates if one["id"] not in services]


def _ids_of_services() -> set[str]:
    """Return the IDs of the containers that Slipway started as services."""
    found: set[str] = set()
    folder = containers.SERVICE_RECORDS
    for name in reading.list_names(folder) or []:
        try:
            found.update(json.loads(reading.read_file(f"{folder}/{name}") or b"")["containers"])
        except (ValueError, KeyError, TypeError):
            continue
    return found


ASKS = {"gpu_containers": reading.each(ask_outside_of_jobs)}


# --- Nothing below is sent to hosts with the survey. ---
from ansible_collections.slipway.host.plugins.module_utils.state.model import Kind


def compare_containers(_entry: Entry, _answer: Answer) -> Iterator[Change]:
    """Yield nothing: the containers of people are no drift."""
    return iter(())


def inform_about_containers(entry: Entry, answer: Answer) -> Iterator[str]:
    """Yield a sentence for each container with GPUs and without a job."""
    for name, owner in answer["gpu_containers"][entry["socket"]]:
        of_owner = f" of {reading.escape_control(owner)}" if owner else ""
        yield (
            f"Slurm: container {name}{of_owner} uses GPUs without a job. Slurm may give these GPUs "
            "to a job. The command of its image would start it as a job"
        )


KINDS = (
    Kind(
        *("gpu_containers", "socket", "gpu_containers", compare_containers),
        inform=inform_about_containers,
    ),
)
