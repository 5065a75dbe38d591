# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The output of ``ml list``: images, running containers, and GPUs with their users."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from . import containers
from .containers import Container
from .gpus import Gpu
from .images import Image
from .settings import Host

SHORT = 12


def format_size(count: int) -> str:
    """Return a number of bytes as docker writes it: in decimal units."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def format_age(since: str, now: datetime) -> str:
    """Return the age of a time stamp of docker in its largest unit; empty for no time stamp."""
    # Docker writes nanoseconds, which Python 3.10 does not read.
    match = re.match(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)", since)
    if not match or since.startswith("0001"):
        return ""
    offset = re.search(r"[+-]\d\d:\d\d\Z", since)
    then = datetime.fromisoformat(match[1] + (offset[0] if offset else "+00:00"))
    seconds = max(0, int((now - then).total_seconds()))
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"


def format_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table; the last column has no fixed width."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    return [
        "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (head, *rows)
    ]


def collect_data(
    host: Host,
    images: Sequence[Image],
    running: Sequence[Container],
    gpus: Sequence[Gpu],
    busy: Mapping[str, str],
) -> dict[str, Any]:
    """Return the data of ``ml list``; it never contains a token."""
    by_image: dict[str, list[str]] = {}
    for name, alias in host.aliases.items():
        by_image.setdefault(host.images.get(alias.image, ""), []).append(name)
    shown = {image.reference for image in images}
    missing = [
        {"reference": reference, "name": name, "variant": reference.partition(":")[2]}
        for name, reference in host.images.items()
        if reference not in shown
    ]
    return {
        "images": [
            {**vars(image), "commands": sorted(by_image.get(image.reference, ()))}
            for image in images
        ],
        "missing": missing,
        "running": [
            {
                **vars(one),
                "gpus": list(one.gpus),
                "urls": {name: containers.hide_token(url) for name, url in one.urls.items()},
            }
            for one in running
        ],
        "gpus": [{**vars(gpu), "used_by": busy.get(gpu.id, "")} for gpu in gpus],
    }


def format_text(listed: Mapping[str, Any], now: datetime | None = None) -> str:
    """Return the tables of ``ml list``."""
    now = now or datetime.now(timezone.utc)
    images = [
        [
            image["reference"],
            image["variant"],
            format_size(image["size"]),
            format_age(image["created"], now),
            image["digest"][:SHORT] or "(changed)",
            " ".join(image["commands"]),
        ]
        for image in listed["images"]
    ]
    images += [
        [image["reference"], image["variant"], "missing", "", "", ""] for image in listed["missing"]
    ]
    running = [
        [
            one["name"],
            one["user"] or "-",
            one["image"],
            ",".join(one["gpus"]) or "-",
            format_age(one["started"], now),
            " ".join(f"{name} {url}" for name, url in one["urls"].items()),
        ]
        for one in listed["running"]
    ]
    blocks = [
        format_table(["IMAGE", "VARIANT", "SIZE", "AGE", "DIGEST", "COMMANDS"], images)
        if images
        else ["no images of the catalogue on this host"],
        format_table(["RUNNING", "USER", "IMAGE", "GPU", "SINCE", "ADDRESS"], running)
        if running
        else ["no running containers"],
    ]
    if listed["gpus"]:
        rows = [[gpu["id"], gpu["name"], gpu["used_by"] or "free"] for gpu in listed["gpus"]]
        blocks.append(format_table(["GPU", "MODEL", "USED BY"], rows))
    return "\n\n".join("\n".join(block) for block in blocks)
