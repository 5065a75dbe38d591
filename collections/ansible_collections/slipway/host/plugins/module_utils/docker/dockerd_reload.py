# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Decide what changes of daemon.json do: which ones a reload applies, which stop containers.

Standard library only, for hosts.
"""

from __future__ import annotations

from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.docker.json_tree import (
    MISSING,
    changes,
)

# Keys that SIGHUP applies without a restart, from "Configuration reload behavior" in Docker's
# dockerd reference and from the code (moby: daemon/reload.go, daemon/reload_unix.go and
# reloadConfig in daemon/command/daemon.go); checked with engine 28.5. These keys are reset to their
# default when they are removed from the file.
RESET_ON_RELOAD = frozenset(
    {
        "authorization-plugins",
        "max-concurrent-downloads",
        "max-concurrent-uploads",
        "max-download-attempts",
        "network-diagnostic-port",
    }
)
# These keys keep the running value when they are removed, so that a removal needs a restart.
KEPT_ON_RELOAD = frozenset(
    {
        "allow-nondistributable-artifacts",
        "debug",
        "default-cgroupns-mode",
        "default-ipc-mode",
        "default-runtime",
        "default-shm-size",
        "insecure-registries",
        "labels",
        "live-restore",
        "registry-mirrors",
        "runtimes",
        "shutdown-timeout",
    }
)
# "features" is reloaded, but the CDI driver and the image store are chosen when the daemon starts
# (moby: RegisterCDIDriver in daemon/command/daemon.go; moby pull request 45607).
RELOADED_FEATURES = frozenset({"buildkit"})


def applies_on_reload(key: str, old: Any, new: Any) -> bool:
    """Return whether a reload applies the change of a top-level key of the file."""
    if key == "features":
        old, new = (value if isinstance(value, dict) else {} for value in (old, new))
        return all(name in RELOADED_FEATURES for (name, *_rest), *_rest in changes(old, new))
    removed = new is MISSING or new is None
    return key in RESET_ON_RELOAD or (key in KEPT_ON_RELOAD and not removed)


# Keys with which the engine looks for containers, their file systems or their networks elsewhere,
# so that live-restore does not find them again after the restart. And live-restore itself: without
# it the new engine stops what the old one left running.
LOSE_CONTAINERS = frozenset(
    {
        "bip",
        "bip6",
        "bridge",
        "cgroup-parent",
        "containerd",
        "containerd-namespace",
        "data-root",
        "default-address-pools",
        "exec-opts",
        "exec-root",
        "fixed-cidr",
        "fixed-cidr-v6",
        "live-restore",
        "storage-driver",
        "storage-opts",
        "userns-remap",
    }
)


def keeps_containers(key: str, old: Any, new: Any) -> bool:
    """Whether live-restore works across the change of a key at the top of the file."""
    if key == "features":
        old, new = (value if isinstance(value, dict) else {} for value in (old, new))
        return all(name != "containerd-snapshotter" for (name, *_rest), *_rest in changes(old, new))
    return key not in LOSE_CONTAINERS
