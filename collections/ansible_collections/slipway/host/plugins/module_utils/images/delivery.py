# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Decide which host builds the images of another host, and describe it. Pure; on the controller."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.data.progress import format_size

AUTO = "auto"
ROLE, KIND = "ml_images", "images"
# What a comparison expects of an image that is missing.
BUILT = "built"


@dataclass(frozen=True)
class Candidate:
    """A host that may build: its architecture, and the context digests of its images by reference.

    Of a host that this run did not look at, nothing is known: both are None. HOLD is why a person
    keeps the host out of runs, or empty.
    """

    architecture: str | None
    images: Mapping[str, str] | None
    hold: str = ""


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
    if candidate.hold:
        return f"is held: {candidate.hold}"
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


def recorded_layers(images: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return context digest and compressed layers of each image that was pushed or pulled here.

    IMAGES is the answer of a host. Only of images whose record is of their content. The layers are
    a mapping of the beginning of a digest to bytes.
    """
    found = {reference: one for reference, one in (images or {}).items() if one and one[0]}
    return {
        reference: {"digest": record["digest"], "layers": record["layers"]}
        for reference, (identity, record) in found.items()
        if record.get("id") == identity and record.get("layers")
    }


def bytes_to_pull(
    reference: str, digest: str, builder: Mapping[str, Any], own: Mapping[str, Any]
) -> int | None:
    """Return how many bytes of an image a host lacks, None if the builder has no record of them.

    BUILDER and OWN are the recorded layers of the two hosts.
    """
    offered = builder.get(reference)
    if not offered or offered["digest"] != digest:
        return None
    return missing_bytes(offered["layers"], own)


def missing_bytes(layers: Mapping[str, Any], own: Mapping[str, Any]) -> int:
    """Return how many bytes of LAYERS a host lacks; OWN are its recorded layers."""
    known = {layer for image in own.values() for layer in image["layers"]}
    return sum(int(size) for layer, size in layers.items() if layer not in known)


def short_names(layers: Mapping[str, int]) -> dict[str, int]:
    """Return the sizes of layers by the beginning of the digest, as the answer of a host."""
    return {digest.rpartition(":")[2][:12]: size for digest, size in layers.items()}


def describe_source(expected: str, origin: str, size: int | None) -> str:
    """Return what a comparison EXPECTED of an image, with its host, registry or bundle."""
    source = f"pull from {origin}" + ("" if size is None else f" ({format_size(size)})")
    return source if expected == BUILT else f"{expected}, {source}"


def plan_pulls(
    surveys: Mapping[str, Mapping[str, Any]], failed: Collection[str]
) -> dict[str, list[dict[str, str]]]:
    """Return the differences of images on each host that gets some of them from another host.

    SURVEYS are the results of the surveys of one run, FAILED the hosts without a result. The
    surveys run in parallel, so none of them knows yet which other host builds.
    """
    pending = [
        host
        for host, survey in surveys.items()
        if any(one["kind"] == KIND for one in survey["differences"].get(ROLE, ()))
    ]
    order = (
        sorted(surveys, key=lambda host: int(surveys[host]["delivery"]["position"]))
        if pending
        else []
    )

    def look(name: str) -> Candidate | None:
        other = surveys.get(name)
        if other is None:
            return None if name in failed else Candidate(None, None)
        return _candidate(other) if other["delivery"]["ssh"] else None

    planned = {}
    for host in pending:
        survey = surveys[host]
        own, differences = survey["delivery"], survey["differences"][ROLE]
        if own["builder"] == [AUTO] and not own["ssh"]:
            continue
        try:
            builder = choose_builder(own["builder"], host, _candidate(survey), order, look)
        except ValueError as error:
            # The role fails with this error.
            planned[host] = [
                {**one, "expected": f"{one['expected']}, but {error}"} for one in differences
            ]
            continue
        if builder:
            planned[host] = [_pull(one, builder, survey, surveys) for one in differences]
    return planned


def _candidate(survey: Mapping[str, Any]) -> Candidate:
    return Candidate(survey["delivery"]["architecture"], survey["images"])


def _pull(
    difference: Mapping[str, str],
    builder: str,
    survey: Mapping[str, Any],
    surveys: Mapping[str, Mapping[str, Any]],
) -> dict[str, str]:
    """Return a difference of an image with its source; another difference stays."""
    if difference["kind"] != KIND:
        return dict(difference)
    reference = difference["name"]
    offered = surveys.get(builder, {}).get("delivery", {}).get("layers", {})
    size = bytes_to_pull(
        reference, survey["images"][reference], offered, survey["delivery"]["layers"]
    )
    origin = survey["delivery"].get("registry") or builder
    return {**difference, "expected": describe_source(difference["expected"], origin, size)}
