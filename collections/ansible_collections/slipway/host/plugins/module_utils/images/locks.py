# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lock files of the catalogue: their pins, their changes, and the source of PyTorch.

Only for the collection itself. Runs on the controller.

`uv pip compile --universal --generate-hashes` writes a lock: one pin in each paragraph, with a
marker where the pin is not for every platform. An image that is built on another image locks only
the packages it adds, so that a package has one pin in a line of images.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from packaging.version import Version

TORCH_FAMILY = frozenset({"torch", "torchvision", "torchaudio"})
"""Compiled against each other, so all of them must come from one index."""

# Dependencies of PyPI's torch that CPU wheels do not need.
_CUDA = re.compile(r"nvidia-|cuda-|triton$")
_CUDA_RUNTIME = re.compile(r"nvidia-cuda-runtime(-cu\d+)?$")
_PIN = re.compile(
    r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>\S+)(?: ; (?P<marker>.+?))? *\\?$"
)


@dataclass(frozen=True)
class Pin:
    """One package of a lock; the version is for platforms that match the marker, if any."""

    name: str
    version: str
    marker: str
    text: str = field(repr=False)
    """The whole paragraph, hashes included."""

    def __str__(self) -> str:
        """Return the requirement without its hashes."""
        marker = f" ; {self.marker}" if self.marker else ""
        return f"{self.name}=={self.version}{marker}"


def normalise_name(name: str) -> str:
    """Return the name of a package as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


@lru_cache(maxsize=64)
def read_pins(text: str) -> tuple[Pin, ...]:
    """Return the pins of a lock, in its order; other lines are ignored."""
    paragraphs: list[list[str]] = []
    for line in text.splitlines():
        if _PIN.match(line):
            paragraphs.append([line])
        elif paragraphs and line[:1].isspace() and not line.lstrip().startswith("#"):
            paragraphs[-1].append(line)
    pins = []
    for lines in paragraphs:
        match = cast("re.Match[str]", _PIN.match(lines[0]))
        name, marker = normalise_name(match["name"]), match["marker"] or ""
        pins.append(Pin(name, match["version"], marker, "\n".join(lines) + "\n"))
    return tuple(pins)


def write_pins(pins: Iterable[Pin]) -> str:
    """Return the text of a lock with these pins."""
    return "".join(pin.text for pin in pins)


def added_pins(pins: Iterable[Pin], below: Iterable[Pin]) -> list[Pin]:
    """Return the pins that the images below do not have."""
    known = {str(pin) for pin in below}
    return [pin for pin in pins if str(pin) not in known]


def use_cpu_wheels(text: str, torch_lock: str) -> str:
    """Return a lock in which PyTorch comes from `torch_lock`, without CUDA.

    Packages of PyTorch's family that `torch_lock` does not have are removed too, because they are
    built for CUDA. A lock without PyTorch is returned unchanged.
    """
    pins = read_pins(text)
    kept = [p for p in pins if p.name not in TORCH_FAMILY and not _CUDA.match(p.name)]
    if len(kept) == len(pins):
        return text
    names = {pin.name for pin in pins}
    wheels = [pin for pin in read_pins(torch_lock) if pin.name in names]
    return write_pins(sorted([*kept, *wheels], key=lambda pin: (pin.name, pin.marker)))


def version_for(pins: Iterable[Pin], name: str, python: str, machine: str) -> str | None:
    """Return the version of a package on Linux, None if the lock does not install it there.

    PYTHON is a release such as `3.13`, MACHINE an architecture such as `x86_64`.
    """
    # A dependency of ansible-core, and slow to import.
    from packaging.markers import Marker

    environment = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": machine,
        "os_name": "posix",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }
    for pin in pins:
        if pin.name == name and (not pin.marker or Marker(pin.marker).evaluate(environment)):
            return pin.version
    return None


def cuda_release(pins: Iterable[Pin]) -> str | None:
    """Return the release of CUDA among pinned packages, such as `13.2`, or None."""
    for pin in pins:
        if _CUDA_RUNTIME.match(pin.name):
            return ".".join(pin.version.split(".")[:2])
    return None


def describe_changes(before: Sequence[Pin], after: Sequence[Pin]) -> list[str]:
    """Return the changes between two locks, a line for each package."""
    old, new = _versions(before), _versions(after)
    lines = []
    for name in sorted(old.keys() | new.keys()):
        if name not in old:
            lines.append(f"{name}: new, {new[name]}")
        elif name not in new:
            lines.append(f"{name}: gone, was {old[name]}")
        elif old[name] != new[name]:
            lines.append(f"{name}: {old[name]} -> {new[name]}")
    return lines


def moved_back(before: Sequence[Pin], after: Sequence[Pin]) -> list[str]:
    """Return the packages whose newest version in a lock is older than before, a line for each.

    uv takes an old version of a package without a word if newer ones do not fit the other packages.
    """
    old, new = _newest(before), _newest(after)
    return [
        f"{name}: {version} -> {new[name]}"
        for name, version in old.items()
        if new.get(name, version) < version
    ]


def left_behind(locked: Sequence[Pin], available: Sequence[Pin]) -> list[str]:
    """Return the packages of AVAILABLE that a lock has in an older series, a line for each.

    Versions of a series have the same numbers up to the first that is not 0.
    """
    found = _newest(locked)
    return [
        f"{name}: {found[name]}, available is {version}"
        for name, version in _newest(available).items()
        if name in found and _series(found[name]) < _series(version)
    ]


def _series(version: Version) -> tuple[int, ...]:
    leading = next((index for index, number in enumerate(version.release) if number), 0)
    return version.release[: leading + 1]


def _newest(pins: Iterable[Pin]) -> dict[str, Version]:
    """Return the newest version of each package."""
    # A dependency of ansible-core, and slow to import.
    from packaging.version import Version

    found: dict[str, Version] = {}
    for pin in pins:
        version = Version(pin.version)
        found[pin.name] = max(found.get(pin.name, version), version)
    return found


def _versions(pins: Sequence[Pin]) -> Mapping[str, str]:
    """Return the version, or versions, of each package in a lock."""
    versions: dict[str, list[str]] = {}
    for pin in pins:
        versions.setdefault(pin.name, []).append(pin.version)
    return {name: " / ".join(dict.fromkeys(listed)) for name, listed in versions.items()}
