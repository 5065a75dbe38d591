# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fields of each kind of owned thing that need a tamper, and those that need none."""

from __future__ import annotations

from collections.abc import Mapping

from tests.host.tamper_scripts import ATTRIBUTES, PARENT

# Fields that need a tamper, by kind: of entries, and of what the kind compares beyond its entries.
FIELDS: Mapping[str, frozenset[str]] = {
    "files": frozenset({*ATTRIBUTES, "path", "state", "content", "default_acl"}),
    "secrets": frozenset({*ATTRIBUTES, "path", "content", "source"}),
    "folders": frozenset({"entries"}),
    "parent_folders": frozenset(PARENT),
    "json": frozenset({*ATTRIBUTES, "path", "settings", "defaults", "absent", "record"}),
    "keyrings": frozenset({*ATTRIBUTES, "path", "fingerprint"}),
    "derived": frozenset(
        {"type", "link", "owner", "mode", "path", "content", "since", "holds", "alone_in", "record"}
    ),
    "lines": frozenset({"type", "link", "owner", "mode", "path", "lines", "folder"}),
    "left_by_root": frozenset({"user"}),
    "mounts": frozenset({"path", "link", "writable"}),
    "users": frozenset({"name", "uid", "comment", "shell", "home", "state"}),
    "groups": frozenset({"name", "gid"}),
    "members": frozenset({"group", "users", "exclusive", "devices"}),
    "packages": frozenset({"name", "version", "hold", "state"}),
    "units": frozenset({"name", "enabled", "active", "file", "reads", "packet_filter"}),
    "links": frozenset({"names", "target", "unhidden"}),
    "obstacles": frozenset({"holds"}),
    "munge_keys": frozenset({"path", "digest", "type", "owner", "group", "mode"}),
    "slurm_accounts": frozenset({"cluster", "accounts", "record"}),
    "slurm_databases": frozenset({"name", "user"}),
    "engine_access": frozenset(),
    "gpu_containers": frozenset(),
    # What is in the way is a conflict: tests/unit/test_front_door.py.
    "door_ports": frozenset(),
    "datasets": frozenset(
        {"path", "type", "mode", "owner", "group", "places", "version", "names", "state"}
    ),
    "checkouts": frozenset(
        {"path", "type", "mode", "owner", "group", "places", "version", "state", "url", "revision"}
    ),
    "modules": frozenset({"name", "version", "state"}),
    "rootless": frozenset({"user", "uids", "gids", "lingers", "context", "began", "reads"}),
    "images": frozenset({"reference", "digest", "id"}),
    "projects": frozenset(
        {
            *("name", "services", "since", "config", "image", "reference", "user", "restart"),
            *("networks", "ports", "mounts", "shm_size", "settings", "command", "healthcheck"),
            *("labels", "variables", "environment"),
        }
    ),
}

# Fields of entries that are no state of the host, or belong to people (docs/security.md).
NEEDS = {"needs": "other entries that this one waits for"}
NOT_COMPARED: Mapping[str, Mapping[str, str]] = {
    "rootless": NEEDS,
    "files": {**NEEDS, "validate": "a command of the module", "secret": "hides the diff"},
    "folders": {"path": "a missing folder has no undeclared names"},
    "json": {"restart": "when Docker may be restarted"},
    "lines": {
        "group": "only matters with write permission, which is compared",
        "user": "the owner",
        "home": "compared with the account: another home is a conflict",
    },
    "mounts": {
        "owner": "belongs to people if the service can write the folder",
        "group": "belongs to people if the service can write the folder",
        "read_only": "whether a missing folder is made",
        "is_volume": "whether a file is a conflict",
    },
    "derived": {"required": "whether a missing file is made", "group": "as for lines"},
    "members": {
        "foreign": "whether a missing group is a conflict",
        "owner": "for all kinds with an owner: the user must be there first",
        "user": "for all kinds with a user: the user must be there first",
    },
    "packages": {
        **NEEDS,
        "optional": "whether a missing package is installed",
        "follows": "how a version changes",
    },
    "units": {
        **NEEDS,
        "restart": "when the unit may be restarted",
        "previous": "the way back",
        "unit_files": "which drop-ins are not reported",
    },
    "gpu_containers": {"socket": "the engine; containers of people are information"},
    "engine_access": {
        "socket": "other ways to the engine are information",
        "users": "other ways to the engine are information",
    },
    "door_ports": {
        "port": "a used port is a conflict",
        "files": "a missing certificate is a conflict",
        "sites": "for the acceptance checks",
    },
    "links": {"folder": "a missing folder has no links"},
    "munge_keys": {"managed": "whether another key is a conflict", "key_host": "text for people"},
    "obstacles": {"path": "a missing file is no obstacle", "why": "text for people"},
    "datasets": {"offer": "a question to the server of an optional tree"},
    "checkouts": {
        "offer": "a question to the server of an optional tree",
        "settled": "whether the revision is a commit",
    },
    "projects": {
        "urls": "addresses for people",
        "together": "other entries that are made with this one or not at all",
    },
}
