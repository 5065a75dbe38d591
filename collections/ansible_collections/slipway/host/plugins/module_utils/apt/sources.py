# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files of others that name a repository which a role is about to declare with its own key.

apt fails as a whole if two files name one repository with different keys. A file that names only
this repository is replaced by the role's own file. A file that names other repositories too is
refused: only its owner knows which lines to keep.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.state import apt_sources

# Names of architectures in packages, by the names of the kernel.
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
Key = tuple[str, str]


def replaced_files(facts: Mapping[str, Any], own: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the files that the role's file OWN replaces, as owned files to remove.

    FACTS is ``ansible_facts['slipway']``. OWN has ``path`` and ``content``, in the format deb822.
    """
    return [
        {"path": path, "state": "absent"}
        for path, only_repository in _conflicts(facts, own).items()
        if only_repository
    ]


def mixed_files(facts: Mapping[str, Any], own: Mapping[str, str]) -> list[str]:
    """Return why the role cannot write its file OWN: other files name its repository and others."""
    return [
        f"{path} names the repository of {own['path']} with another key, and other repositories; "
        "expected each repository in one file, because apt fails if two files name it with "
        "different keys. Remove the lines of this repository from the file"
        for path, only_repository in _conflicts(facts, own).items()
        if not only_repository
    ]


def _conflicts(facts: Mapping[str, Any], own: Mapping[str, str]) -> dict[str, bool]:
    """Return the files that conflict with OWN, and whether they name only its repository."""
    declared: dict[Key, tuple[set[str], str]] = {}
    for uri, suite, components, signed_by in apt_sources.parse_deb822(own["content"]):
        declared[_key(facts, uri, suite)] = (set(components), signed_by)
    conflicts = {}
    sources: Mapping[str, Any] = facts.get("apt_sources", {})
    for path, entries in sources.items():
        keys = [(_key(facts, uri, suite), set(more), by) for uri, suite, more, by in entries]
        if path == own["path"]:
            continue
        if any(key in declared and by != declared[key][1] for key, _components, by in keys):
            conflicts[path] = all(
                key in declared and components <= declared[key][0] for key, components, _by in keys
            )
    return conflicts


def _key(facts: Mapping[str, Any], uri: str, suite: str) -> Key:
    """Return address and suite of a source in one form, so that spelling makes no difference."""
    machine = facts.get("architecture", "")
    architecture = ARCHITECTURES.get(machine, machine)
    address = re.sub(r"^(?:[a-z0-9]+\+)?https?://(?:[^/@]*@)?", "", uri, flags=re.I)
    address = re.sub(r"/+", "/", address.replace("$(ARCH)", architecture)).rstrip("/")
    host, slash, path = address.partition("/")
    return f"{host.lower()}{slash}{path}", suite.rstrip("/") or "/"
