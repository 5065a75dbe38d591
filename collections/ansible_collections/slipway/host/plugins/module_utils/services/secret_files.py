# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files with the secrets of services on a host."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.state import (
    apply_files,
    paths,
    service_files,
)

# As many hexadecimal digits as Jupyter itself takes.
SECRET_BYTES = 24
# Of the compose files that Slipway writes.
INDENT = 2


def read_root_file(path: str) -> str:
    """Return a file's text, empty if there is no file; a link is not followed."""
    try:
        with paths.opened_parent(path) as (folder, name):
            return (folder.read(name) or b"").decode("utf-8")
    except (OSError, ValueError):
        return ""


def write_secrets(project: Mapping[str, Any]) -> Iterator[str]:
    """Write the secrets of a project and yield their values.

    A file with the right content keeps its age, and its container keeps running.
    """
    for secret in project["secrets"]:
        place = {key: secret[key] for key in ("path", "owner", "group")}
        content = _new_content(secret)
        apply_files.settle({**place, "mode": service_files.SECRET_MODE, "content": content})
        yield read_root_file(secret["path"]).strip()


def _new_content(secret: Mapping[str, Any]) -> str | None:
    """Return the content to write, None if the file has the right content."""
    present = read_root_file(secret["path"])
    if secret.get("content"):
        declared = str(secret["content"])
    elif secret.get("source"):
        declared = paths.read_file(secret["source"]).decode("utf-8")
    else:
        declared = present or secrets.token_hex(SECRET_BYTES)
    return None if declared == present else declared


def hide_environment(text: str) -> str:
    """Return the text of a compose file without the values of variables, which may be secret."""
    lines: list[str] = []
    depth: int | None = None
    for line in text.splitlines(keepends=True):
        indent = len(line) - len(line.lstrip(" "))
        if depth is not None and line.strip() and indent <= depth:
            depth = None
        if depth is None:
            is_inline = line.strip().startswith("environment: ")
            lines.append(f"{' ' * indent}environment: (hidden)\n" if is_inline else line)
            depth = indent if line.strip().startswith("environment:") else None
        elif indent == depth + INDENT and ":" in line:
            # Deeper lines continue a value.
            lines.append(f"{line.partition(':')[0]}: (hidden)\n")
    return "".join(lines)
