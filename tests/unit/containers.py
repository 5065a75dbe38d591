# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Containers as the survey describes them, and the answers of hosts that run them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.state.container_description import (
    commands,
    digest_of,
)

CREATED = 1700000000
LIMITS = ["cpu", "memory", "pids"]
COMMANDS = {name: digest_of(name) for name in commands({})}


def described(service: str = "web", config: str = "c1", **changes: Any) -> dict[str, Any]:
    """Return a running container with the rights that Slipway gives."""
    return {
        "id": f"id-of-{service}",
        "name": f"api-{service}-1",
        "service": service,
        "state": "running",
        "health": "",
        "created": CREATED,
        "labels": {"io.slipway.config": config},
        "image": "sha256:1",
        "user": "1000:1000",
        "own": dict(COMMANDS),
        "inherited": dict(COMMANDS),
        "variables": [],
        "mounts": [],
        "ports": [],
        "networks": ["api_default"],
        "restart": "unless-stopped",
        "shm_size": 64 << 20,
        "settings": {"cap_drop": ["ALL"], "security_opt": ["no-new-privileges:true"]},
        **changes,
    }


def project_answer(
    found: Sequence[Any], record: Any = None, limits: Sequence[str] = tuple(LIMITS)
) -> dict[str, Any]:
    """Return the answer about one project."""
    return {"containers": list(found), "record": record, "limits": list(limits)}
