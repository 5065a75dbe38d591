# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Decide which host builds the images of another host. Pure; runs on the controller."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

AUTO = "auto"


@dataclass(frozen=True)
class Candidate:
    """A host that may build: its architecture, and the context digests of its images by reference.

    Of a host that this run did not look at, nothing is known: both are None.
    """

    architecture: str | None
    images: Mapping[str, str] | None


def choose_builder(
    wanted: Sequence[str],
    host: str,
    own: Candidate,
    hosts: Iterable[str],
    look: Callable[[str], Candidate | None],
) -> str | None:
    """Return the host that builds the images of HOST, None if it builds them itself.

    WANTED is ``ml_images_builder``: names of hosts, the first with the architecture of HOST builds;
    ``auto``: the first of HOSTS with that architecture for which the same images are declared;
    nothing: every host builds. LOOK returns a candidate, None for a host that failed in this run.
    """
    is_auto = list(wanted) == [AUTO]
    for name in hosts if is_auto else wanted:
        if name == host:
            return None
        candidate = look(name)
        if candidate is None or candidate.architecture not in (None, own.architecture):
            continue
        if not is_auto or (candidate.images is not None and _has_all(candidate.images, own)):
            return name
    return None


def _has_all(images: Mapping[str, str], own: Candidate) -> bool:
    return all(images.get(reference) == digest for reference, digest in (own.images or {}).items())


def declared_images(owned: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return the context digest of each image in the owned state of a host, by reference."""
    entries = (entry for statement in owned for entry in statement.get("images", ()))
    return {entry["reference"]: entry["digest"] for entry in entries}
