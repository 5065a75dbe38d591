# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads and checks the catalogue of images, and assembles builds.

Only for the collection itself. Runs on the controller; hosts get packed contexts.

An image is a folder with an image.yml. `load_catalogue` reads all images; an error names file, line
and key. `Catalogue.builds` returns the builds of named images, each after the build below it. A
build has a rendered Dockerfile, files, and a digest over everything that it is built from. Nothing
is built if the digest is unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.images.assembly import (
    TORCH_LOCK,
    Assembly,
)
from ansible_collections.slipway.host.plugins.module_utils.images.checks import check_images
from ansible_collections.slipway.host.plugins.module_utils.images.reading import (
    read_bases,
    read_images,
)
from ansible_collections.slipway.host.plugins.module_utils.images.types import (
    VARIANTS,
    Base,
    CatalogueError,
    Image,
    ImageBuild,
    UnfitError,
    describe_unknown,
    lineage,
)


@dataclass(frozen=True)
class Catalogue:
    """All images and bases. Returned by `load_catalogue`."""

    folder: Path
    default_base: str
    bases: Mapping[str, Base]
    images: Mapping[str, Image]
    torch_lock: str | None = field(default=None, repr=False)
    """The text of TORCH_LOCK, if that file exists."""
    warnings: tuple[str, ...] = ()
    """A sentence for each old key in an image.yml."""

    def lineage(self, name: str) -> list[Image]:
        """Return an image and the images below it, the image first.

        Raise CatalogueError for an unknown name.
        """
        return lineage(self.images, self._find_image(name).name)

    def builds(
        self,
        names: Iterable[str] | None,
        variant: str,
        base: str | None = None,
        args: Mapping[str, Mapping[str, str]] | None = None,
    ) -> list[ImageBuild]:
        """Return the builds of the named images, each after the build below it.

        None selects all images that a host with this variant and base can have.

        `variant` is the variant that the host can use: a host with a GPU gets the cpu build of an
        image without a gpu variant. `base` is the base of the host for images with the base
        `default`; the default is in bases.yml. `args` sets build arguments, by image and argument.

        Raise CatalogueError for a name, variant, base or argument that does not exist.
        """
        if variant not in VARIANTS:
            raise CatalogueError(describe_unknown("unknown variant", variant, VARIANTS))
        all_args = {name: self._checked_args(name, values) for name, values in (args or {}).items()}
        default_base = self._find_base(base or self.default_base)
        assembly = Assembly(
            self.folder, self.bases, self.images, self.torch_lock, default_base, all_args
        )
        for name in self.images if names is None else names:
            try:
                assembly.add(self._find_image(name), variant)
            except UnfitError:
                if names is not None:
                    raise
        return list(assembly.builds.values())

    def _find_image(self, name: str) -> Image:
        if name not in self.images:
            problem = f"{self.folder}: unknown image"
            raise CatalogueError(describe_unknown(problem, name, self.images))
        return self.images[name]

    def _find_base(self, name: str) -> Base:
        if name not in self.bases:
            problem = f"{self.folder / 'bases.yml'}: unknown base"
            raise CatalogueError(describe_unknown(problem, name, self.bases))
        return self.bases[name]

    def _checked_args(self, name: str, args: Any) -> Mapping[str, str]:
        image = self._find_image(name)
        if not isinstance(args, Mapping):
            raise CatalogueError(
                f"ml_catalogue_build_args: {name} is {args!r}; expected a mapping of build "
                "arguments. Write ARGUMENT: VALUE below the image's name."
            )
        for arg, value in args.items():
            if arg not in image.settings["args"]:
                problem = f"{image.place('args')}: unknown build argument"
                raise CatalogueError(describe_unknown(problem, arg, image.settings["args"]))
            if not isinstance(value, str) or not value or "\n" in value:
                raise CatalogueError(
                    f"ml_catalogue_build_args: {name}.{arg} is {value!r}; expected text on one "
                    "line. Change the value, in quotes."
                )
        return args


def load_catalogue(folder: Path, check_locks: bool = True) -> Catalogue:
    """Read and check bases.yml and every image.yml below the folder of the catalogue.

    Raise CatalogueError or its parent DeclarationError with file and key for a mistake.  Folders
    that begin with a dot or an underscore are not images.  `check_locks` is false when the locks
    are created next.
    """
    default_base, bases = read_bases(folder)
    warnings: list[str] = []
    images = read_images(folder, bases, warnings)
    check_images(images, check_locks)
    torch_lock = folder / TORCH_LOCK
    text = torch_lock.read_text(encoding="utf-8") if torch_lock.exists() else None
    return Catalogue(folder, default_base, bases, images, text, tuple(warnings))
