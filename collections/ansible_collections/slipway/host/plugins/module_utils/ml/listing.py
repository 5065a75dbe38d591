# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The output of ``ml list``: images, running containers, and GPUs with their users."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from . import containers
from .containers import Container, parse_time
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
    then = parse_time(since)
    if then is None:
        return ""
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
    gpu_users: Mapping[str, str],
    ended: Sequence[Container] | None = None,
) -> dict[str, Any]:
    """Return the data of ``ml list``; it never contains a token.

    GPU_USERS are by ID of the GPU.  Without a list of ENDED containers the data has no such key.
    """
    commands: dict[str, list[str]] = {}
    for name, alias in host.aliases.items():
        commands.setdefault(host.images.get(alias.image, ""), []).append(name)
    present = {image.reference for image in images}
    missing = [
        {"reference": reference, "name": name, "variant": reference.partition(":")[2]}
        for name, reference in host.images.items()
        if reference not in present
    ]
    return {
        "images": [
            {**image._asdict(), "commands": sorted(commands.get(image.reference, ()))}
            for image in images
        ],
        "missing": missing,
        "running": [_describe_running(container) for container in running],
        "gpus": [{**gpu._asdict(), "used_by": gpu_users.get(gpu.id, "")} for gpu in gpus],
        **({} if ended is None else {"ended": [_describe_ended(one) for one in ended]}),
    }


def _describe_running(container: Container) -> dict[str, Any]:
    """Return the data of a running container, without what only ended ones have."""
    urls = {name: containers.hide_token(url) for name, url in container.urls.items()}
    data = {**container._asdict(), "gpus": list(container.gpus), "urls": urls}
    hidden = ("ended", "status", "id", *(() if container.job else ("job",)))
    return {key: value for key, value in data.items() if key not in hidden}


def _describe_ended(container: Container) -> dict[str, Any]:
    """Return the data of an ended container."""
    keys = ("name", "image", "alias", "user", "uid", "started", "ended", "status")
    return {key: getattr(container, key) for key in keys}


def format_text(data: Mapping[str, Any], now: datetime | None = None) -> str:
    """Return the tables of ``ml list`` for data of :func:`collect_data`."""
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
        for image in data["images"]
    ]
    images += [
        [image["reference"], image["variant"], "missing", "", "", ""] for image in data["missing"]
    ]
    running = [
        [
            container["name"],
            container["user"] or "-",
            container["image"],
            ",".join(container["gpus"]) or "-",
            format_age(container["started"], now),
            " ".join(f"{name} {url}" for name, url in container["urls"].items()),
        ]
        for container in data["running"]
    ]
    blocks = [
        format_table(["IMAGE", "VARIANT", "SIZE", "AGE", "DIGEST", "COMMANDS"], images)
        if images
        else ["no images of the catalogue on this host"],
        format_table(["RUNNING", "USER", "IMAGE", "GPU", "SINCE", "ADDRESS"], running)
        if running
        else ["no running containers"],
    ]
    if "ended" in data:
        blocks.append(_format_ended(data["ended"], now))
    if data["gpus"]:
        rows = [[gpu["id"], gpu["name"], gpu["used_by"] or "free"] for gpu in data["gpus"]]
        blocks.append(format_table(["GPU", "MODEL", "USED BY"], rows))
    return "\n\n".join("\n".join(block) for block in blocks)


def _format_ended(ended: Sequence[Mapping[str, Any]], now: datetime) -> list[str]:
    """Return the table of ended containers."""
    rows = [
        [
            container["name"],
            container["user"] or "-",
            container["image"],
            str(container["status"]),
            format_age(container["ended"], now),
        ]
        for container in ended
    ]
    if not rows:
        return ["no ended containers"]
    return format_table(["ENDED", "USER", "IMAGE", "STATUS", "SINCE"], rows)
