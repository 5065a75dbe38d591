# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The catalogue of images: read, checked, and turned into builds.

PRIVATE to the collection. Runs on the controller; hosts get packed contexts.

An image is a folder with an image.yml. `load_catalogue` reads all of them and refuses mistakes
with file, line and key. `Catalogue.builds` returns the builds of the images asked for, each after
the build below it. A build has its rendered Dockerfile and files, and a digest over everything it
is built from: equal digests mean that there is nothing to build.
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
    """The text of TORCH_LOCK where that file exists."""
    warnings: tuple[str, ...] = ()
    """A sentence for each old key in an image.yml."""

    def lineage(self, name: str) -> list[Image]:
        """Return an image and the images below it, itself first; raise CatalogueError for none."""
        return lineage(self.images, self._find_image(name).name)

    def builds(
        self,
        names: Iterable[str],
        variant: str,
        base: str | None = None,
        args: Mapping[str, Mapping[str, str]] | None = None,
    ) -> list[ImageBuild]:
        """Return the builds of the named images, each after the build below it.

        `variant` is what the host can use: an image without a gpu build gives its cpu build to a
        host with a GPU. `base` is the host's choice for images with the base `default`, else that
        of bases.yml. `args` sets build arguments, by image and argument.

        Raise CatalogueError for a name, variant, base or argument that does not exist.
        """
        if variant not in VARIANTS:
            raise CatalogueError(describe_unknown("unknown variant", variant, VARIANTS))
        values = {name: self._checked_args(name, given) for name, given in (args or {}).items()}
        default_base = self._find_base(base or self.default_base)
        assembly = Assembly(
            self.folder, self.bases, self.images, self.torch_lock, default_base, values
        )
        for name in names:
            assembly.add(self._find_image(name), variant)
        return list(assembly.builds.values())

    def _find_image(self, name: str) -> Image:
        if name not in self.images:
            what = f"{self.folder}: unknown image"
            raise CatalogueError(describe_unknown(what, name, self.images))
        return self.images[name]

    def _find_base(self, name: str) -> Base:
        if name not in self.bases:
            what = f"{self.folder / 'bases.yml'}: unknown base"
            raise CatalogueError(describe_unknown(what, name, self.bases))
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
                what = f"{image.file}: args: unknown build argument"
                raise CatalogueError(describe_unknown(what, arg, image.settings["args"]))
            if not isinstance(value, str) or not value or "\n" in value:
                raise CatalogueError(
                    f"ml_catalogue_build_args: {name}.{arg} is {value!r}; expected text on one "
                    "line. Change the value, in quotes."
                )
        return args


def load_catalogue(folder: Path, check_locks: bool = True) -> Catalogue:
    """Read bases.yml and every image.yml below the folder of the catalogue, and check them all.

    Raise CatalogueError or its parent DeclarationError with file and key for a mistake.  Folders
    that begin with a dot or an underscore are not images.  `check_locks` is false where the locks
    are about to be made.
    """
    default_base, bases = read_bases(folder)
    warnings: list[str] = []
    images = read_images(folder, bases, warnings)
    check_images(images, check_locks)
    torch_lock = folder / TORCH_LOCK
    text = torch_lock.read_text(encoding="utf-8") if torch_lock.exists() else None
    return Catalogue(folder, default_base, bases, images, text, tuple(warnings))
