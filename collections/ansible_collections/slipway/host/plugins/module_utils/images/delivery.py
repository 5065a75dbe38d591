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

    WANTED is ``ml_images_builder``: names of hosts, the first that fits builds; ``auto``: the first
    of HOSTS for which the same images are declared; nothing: every host builds. LOOK returns a
    candidate, None for a host that failed in this run. Raise ValueError if none of the hosts that
    WANTED names fits.
    """
    is_auto = list(wanted) == [AUTO]
    reasons = []
    for name in hosts if is_auto else wanted:
        if name == host:
            return None
        candidate = look(name)
        reason = _unfit(candidate, own)
        if not reason and not (is_auto and not _has_all(candidate, own)):
            return name
        reasons.append(f"{name} {reason}")
    if is_auto or not wanted:
        return None
    raise ValueError(
        f"ml_images_builder: {'; '.join(reasons)}; expected a host that builds for {host}. Correct "
        "the list, or set it to [] to build on each host."
    )


def _unfit(candidate: Candidate | None, own: Candidate) -> str:
    """Return why a candidate cannot build, empty if it can."""
    if candidate is None:
        return "failed in this run"
    if candidate.architecture not in (None, own.architecture):
        return f"has the architecture {candidate.architecture}"
    for reference, digest in (own.images or {}).items():
        # Its own image has the same tag.
        if (candidate.images or {}).get(reference, digest) != digest:
            return f"has another {reference}: its base, variant or build arguments differ"
    return ""


def _has_all(candidate: Candidate | None, own: Candidate) -> bool:
    images = (candidate.images if candidate else None) or {}
    return all(reference in images for reference in own.images or {})


def declared_images(owned: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return the context digest of each image in the owned state of a host, by reference."""
    entries = (entry for statement in owned for entry in statement.get("images", ()))
    return {entry["reference"]: entry["digest"] for entry in entries}
