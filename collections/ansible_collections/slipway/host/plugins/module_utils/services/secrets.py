# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The secrets of a project: files that its service alone can read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.images.declaration import suggest
from ansible_collections.slipway.host.plugins.module_utils.services.project import (
    SECRETS_FOLDER,
    Project,
)

SECRET_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")


@dataclass(frozen=True)
class Secret:
    """A file that the service alone can read, and the variable with its path in the container.

    origin: ``content`` or ``source`` of the file, as in owned state; empty for a secret that is
    generated on the host.
    """

    name: str
    path: str
    path_variable: str
    origin: Mapping[str, str]


def project_secrets(project: Project) -> list[Secret]:
    """Return the secrets that the service declares, then those that the host adds."""
    declared = project.service["secrets"]
    provided = {str(entry["name"]): entry for entry in project.declared.get("secrets") or ()}
    secrets = []
    for name in dict.fromkeys((*declared, *provided)):
        if name not in provided and declared[name]["otherwise"] == "refused":
            raise project.error(
                f"secret {name} is missing; expected an entry in secrets. Set its content, or a "
                "file with it."
            )
        if name not in provided and declared[name]["otherwise"] == "omitted":
            continue
        entry = provided.get(name, {})
        path_variable = entry.get("path_variable") or declared.get(name, {}).get("path_variable")
        if not path_variable:
            raise project.error(
                f"secret {name} is not declared by image {project.build.name}; expected the key "
                "path_variable: the environment variable with the path of the secret's file. "
                + (suggest(name, declared) or "Add path_variable.")
            )
        if not SECRET_NAME.fullmatch(name):
            raise project.error(
                f"secret {name!r}: invalid name; expected lower-case letters, digits, -, _ and . "
                "Rename the secret."
            )
        path = f"{project.folder}/{SECRETS_FOLDER}/{name}"
        secrets.append(Secret(name, path, path_variable, _origin(project, name, entry)))
    return secrets


def _origin(project: Project, name: str, entry: Mapping[str, Any]) -> dict[str, str]:
    """Return where a secret's content comes from, in the keys of owned state."""
    origin = {
        owned_key: str(entry[key])
        for key, owned_key in (("content", "content"), ("file", "source"))
        if entry.get(key) is not None
    }
    if entry and len(origin) != 1:
        raise project.error(
            f"secret {name}: expected either content or file. Set exactly one of the two."
        )
    if not all(value.strip() for value in origin.values()):
        raise project.error(f"secret {name}: empty; expected content. Set its content or file.")
    return origin


def secret_path(name: str, secrets: Iterable[Secret]) -> str:
    """Return the path of a secret's file on the host."""
    return next(secret.path for secret in secrets if secret.name == name)
