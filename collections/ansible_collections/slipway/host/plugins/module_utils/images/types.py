# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The types of the catalogue: bases, images and builds.

Only for the collection itself. Runs on the controller.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.images.context import ContextFile
from ansible_collections.slipway.host.plugins.module_utils.images.declaration import (
    DeclarationError,
    suggest,
)
from ansible_collections.slipway.host.plugins.module_utils.images.locks import Pin, cuda_release

VARIANTS = ("cpu", "gpu")


class CatalogueError(DeclarationError):
    """A mistake in the catalogue or in a request for builds; the message has the remedy."""


class UnfitError(CatalogueError):
    """An image that no host of this variant and base can have; the message has the reason."""


@dataclass(frozen=True)
class Bootstrap:
    """The recipe by which mmdebstrap builds a base from the packages of a distribution."""

    distribution: str
    suite: str
    components: tuple[str, ...]
    packages: tuple[str, ...]


@dataclass(frozen=True)
class Python:
    """A distribution's Python: its release, and the packages to run it and to create venvs."""

    version: str
    packages: tuple[str, ...]
    venv_packages: tuple[str, ...]


@dataclass(frozen=True)
class Base:
    """A base image below the catalogue: pulled from a registry, or bootstrapped."""

    name: str
    title: str
    reference: str
    bootstrap: Bootstrap | None
    python: Python | None

    @property
    def identity(self) -> str:
        """Return a text that differs between bases, the same for a pull and for a bootstrap."""
        b = self.bootstrap
        recipe = [b.distribution, b.suite, b.components, b.packages] if b else None
        return json.dumps([self.reference, recipe])


@dataclass(frozen=True)
class Image:
    """A checked declaration: the content of image.yml, with inherited keys and defaults."""

    name: str
    folder: Path
    base: str
    """Name of a base, of another image, or `default`."""
    settings: Mapping[str, Any]
    """Every key of the schema; None for a key without a value and without a default."""

    @property
    def file(self) -> Path:
        """Return the path of the declaration, for messages."""
        return self.folder / "image.yml"

    def place(self, key: str) -> str:
        """Return file, line and key for an error; KEY is a path such as `files[0].from`."""
        # Imported late, because the survey reads catalogues from its cache.
        from ansible_collections.slipway.host.plugins.module_utils.images import strict_yaml

        return f"{self.file}:{strict_yaml.line_in_file(self.file, key)}: {key}"

    def requirements_file(self, variant: str) -> str | None:
        """Return the name of the file that lists the Python packages of a variant."""
        requirements = self.settings["requirements"]
        return requirements.get(variant) if isinstance(requirements, dict) else requirements

    @property
    def build_requirements_file(self) -> str | None:
        """Return the name of the file that lists the Python packages of the build stage."""
        return (self.settings["build"] or {}).get("requirements")


@dataclass(frozen=True)
class ImageBuild:
    """One build of one variant of an image, complete."""

    name: str
    variant: str
    reference: str
    """The tag of the finished image, for example `slipway/iris-api:cpu`."""
    digest: str
    """Context digest: SHA-256, in hex, over everything that the image is built from."""
    root: Base
    """The base below all images, from a registry or bootstrapped."""
    parent: str | None
    """The reference of the build below this one, earlier in order; None: `root` is below."""
    dockerfile: str
    files: tuple[ContextFile, ...] = field(repr=False)
    """The context, Dockerfile included."""
    labels: Mapping[str, str]
    """Labels to add to those of the Dockerfile."""
    smoke: tuple[str, ...]
    """The command of the smoke test, to run in place of the image's entrypoint."""
    smoke_timeout: int
    """Seconds after which the smoke test has failed."""
    args: Mapping[str, str]
    """All build arguments of the image except BASE, which the builder adds."""
    image: Mapping[str, Any]
    """The declaration, as Image.settings: ports, volumes, services, aliases, ..."""
    pins: tuple[Pin, ...] = field(repr=False)
    """The Python packages of the image and of those below it."""
    notes: tuple[str, ...]
    """Sentences about this build for the owner of a host."""
    unavailable: Mapping[str, str]
    """Why the build does not exist for an architecture, by architecture."""

    @property
    def cuda(self) -> str | None:
        """Return the release of CUDA in a gpu build, such as `13.2`, or None."""
        return cuda_release(self.pins) if self.variant == "gpu" else None

    @property
    def base(self) -> Base | None:
        """Return the base that the host must get first, or None when there is a parent."""
        return None if self.parent else self.root


def lineage(images: Mapping[str, Image], name: str) -> list[Image]:
    """Return an image and the images below it, the image itself first."""
    line = [images[name]]
    while line[-1].base in images:
        line.append(images[line[-1].base])
    return line


def lock_file(requirements_file: str) -> str:
    """Return the name of the lock beside a file that lists Python packages."""
    return f"{requirements_file.removesuffix('.in')}.lock"


def describe_unknown(problem: str, name: str, known_names: Iterable[str]) -> str:
    """Return an error for an unknown name: the problem, the known names, and the most similar."""
    names = sorted(known_names)
    expected = f"one of: {', '.join(names)}" if names else "none, because none is declared"
    return f"{problem} {name!r}; expected {expected}. {suggest(name, names) or 'Correct the name.'}"
