# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which changes of daemon.json a running dockerd applies on a reload, without a restart.

Standard library only, for hosts.
"""

from __future__ import annotations

from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.docker.json_tree import (
    MISSING,
    changes,
)

# What SIGHUP applies without a restart: Docker's dockerd reference, "Configuration reload
# behavior", and the code behind it (moby: daemon/reload.go, daemon/reload_unix.go and reloadConfig
# in daemon/command/daemon.go).  The code tells two kinds apart, and engine 28.5 does what it says.
# These are set back to their default when the key is gone from the file ...
RESET_ON_RELOAD = frozenset(
    {
        "authorization-plugins",
        "max-concurrent-downloads",
        "max-concurrent-uploads",
        "max-download-attempts",
        "network-diagnostic-port",
    }
)
# ... and these keep the running value then, so that removing them needs a restart.
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
    """Whether a reload applies the change of a key at the top of the file."""
    if key == "features":
        old, new = (value if isinstance(value, dict) else {} for value in (old, new))
        return all(name in RELOADED_FEATURES for (name, *_), *_ in changes(old, new))
    gone = new is MISSING or new is None
    return key in RESET_ON_RELOAD or (key in KEPT_ON_RELOAD and not gone)
