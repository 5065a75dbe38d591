# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compares the catalogue with the images on a host: states, sizes, smoke tests.

Only for the collection itself. Runs on the controller.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.docker import labels
from ansible_collections.slipway.host.plugins.module_utils.images.types import ImageBuild
from ansible_collections.slipway.host.plugins.module_utils.state.containers import IMAGE_RECORDS

SEPARATOR = "-- records"
# The beginning of each reference of the catalogue, see declaration.py.
NAMESPACE = "slipway/"

QUESTION = f"""
ids=$(docker image ls --quiet --no-trunc --filter label={labels.IMAGE} | sort -u)
[ -z "$ids" ] && echo '[]' || docker image inspect $ids
for record in {IMAGE_RECORDS}/*.json; do
    case "$record" in
    *'*'* | *.cdx.json) ;;
    *) echo '{SEPARATOR}' && cat "$record" && echo ;;
    esac
done
"""
"""A shell script for the host; `read_answer` parses its output."""

CURRENT, OUTDATED, MISSING, UNKNOWN = "current", "outdated", "missing", "not in the catalogue"
UNRECORDED = "not recorded"


@dataclass(frozen=True)
class HostImage:
    """An image on a host: its size in bytes, and the record of its content.

    The record is empty if the host has no record of this content.
    """

    reference: str
    size: int
    record: Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One image of the catalogue or of the host, compared.

    `added` is its size without the image below it, in bytes; both sizes are None for an image that
    is not on the host. `declared`: whether the image is declared for the host.
    """

    reference: str
    state: str
    declared: bool
    size: int | None = None
    added: int | None = None
    build_seconds: float | None = None
    smoke_seconds: float | None = None
    proven: Sequence[str] = ()
    notes: Sequence[str] = ()


def read_answer(text: str) -> dict[str, HostImage]:
    """Return the images in a host's answer to QUESTION, by reference.

    Raise ValueError for any other text.
    """
    inspected, *recorded = text.split(SEPARATOR)
    records = {
        (record.get("reference"), record.get("id")): record for record in map(json.loads, recorded)
    }
    images = {}
    for image in json.loads(inspected):
        for reference in image.get("RepoTags") or ():
            record = records.get((reference, image["Id"]), {})
            images[reference] = HostImage(reference, image["Size"], record)
    return images


def compare(
    builds: Sequence[ImageBuild],
    images: Mapping[str, HostImage],
    declared: Collection[str],
    unfit: Mapping[str, str] = MappingProxyType({}),
) -> list[Row]:
    """Return the state of the catalogue's BUILDS on a host, then other images of Slipway there.

    DECLARED are the references that are declared for the host; UNFIT has reasons why images do not
    run there.
    """
    rows = [_row(build, images, build.reference in declared, unfit) for build in builds]
    known = {build.reference for build in builds}
    rows += [
        Row(reference, UNKNOWN, False, image.size)
        for reference, image in sorted(images.items())
        if reference not in known
    ]
    return rows


def _row(
    build: ImageBuild, images: Mapping[str, HostImage], declared: bool, unfit: Mapping[str, str]
) -> Row:
    image = images.get(build.reference)
    notes = [*build.notes, *([unfit[build.reference]] if build.reference in unfit else ())]
    if image is None:
        return Row(build.reference, MISSING, declared, notes=notes)
    below = images.get(build.parent) if build.parent else None
    return Row(
        reference=build.reference,
        state=_state(image.record, build.digest),
        declared=declared,
        size=image.size,
        added=image.size - below.size if below else image.size,
        build_seconds=image.record.get("build_seconds"),
        smoke_seconds=image.record.get("smoke_seconds"),
        proven=image.record.get("proven", ()),
        notes=notes,
    )


def _state(record: Mapping[str, Any], digest: str) -> str:
    if not record:
        return UNRECORDED
    return CURRENT if record["digest"] == digest else OUTDATED


HEADINGS = ("image", "on the host", "size", "adds", "build", "smoke test", "proves")


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a table for people, with the notes below it."""
    cells = [HEADINGS, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEADINGS) - 1)]
    lines = [
        "  ".join(
            [*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[-1]]
        )
        for line in cells
    ]
    lines += [f"{row.reference}: {note}" for row in rows for note in row.notes]
    return "\n".join(line.rstrip() for line in lines)


def page(rows: Sequence[Row]) -> str:
    """Return a Markdown table of the catalogue's images on the host: sizes, times, smoke tests."""
    present = [row for row in rows if row.state in (CURRENT, OUTDATED, UNRECORDED)]
    lines = [HEADINGS, ("---",) * len(HEADINGS), *(_cells(row) for row in present)]
    # The state on this one host does not belong on a page.
    return "\n".join(f"| {' | '.join([line[0], *line[2:]])} |" for line in lines)


def _cells(row: Row) -> tuple[str, ...]:
    state = row.state if row.declared or row.state in (MISSING, UNKNOWN) else f"{row.state}, extra"
    return (
        row.reference.removeprefix("slipway/"),
        state,
        _megabytes(row.size),
        _megabytes(row.added),
        _seconds(row.build_seconds),
        _seconds(row.smoke_seconds),
        f"{len(row.proven)} steps" if row.proven else "",
    )


def _megabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:.0f} MB"


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.0f} s"


def unneeded(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the references of undeclared images on a host, in the order to remove them.

    Only names of the catalogue: an image that a user committed has the labels of its source.
    """
    yield from (
        row.reference
        for row in reversed(rows)
        if row.size is not None and not row.declared and row.reference.startswith(NAMESPACE)
    )
