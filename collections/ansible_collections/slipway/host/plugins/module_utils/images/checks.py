# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks that a schema cannot express: names and files that must exist.

Only for the collection itself. Runs on the controller.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from ansible_collections.slipway.host.plugins.module_utils.images import architectures
from ansible_collections.slipway.host.plugins.module_utils.images.declaration import suggest
from ansible_collections.slipway.host.plugins.module_utils.images.locks import read_pins
from ansible_collections.slipway.host.plugins.module_utils.images.requirements import (
    required_packages,
)
from ansible_collections.slipway.host.plugins.module_utils.images.types import (
    VARIANTS,
    CatalogueError,
    Image,
    describe_unknown,
    lineage,
)


def check_images(images: Mapping[str, Image], check_locks: bool = True) -> None:
    """Raise CatalogueError for the first declaration that names something that does not exist."""
    for image in images.values():
        _check_architectures(image)
        _check_files(image)
        _check_ports(image)
        _check_services(images, image)
        if check_locks:
            _check_locks(images, image)
    _check_aliases(images.values())


def _check_architectures(image: Image) -> None:
    """Raise CatalogueError for architectures that are left out without a reason."""
    left_out = any(architectures.unavailable(image.settings, variant, {}) for variant in VARIANTS)
    if left_out and not image.settings["other_architectures"]:
        raise CatalogueError(
            f"{image.place('architectures')}: other_architectures is missing; expected the reason "
            f"for leaving out one of {', '.join(architectures.ARCHITECTURES)}, and what to use "
            "there. Add other_architectures."
        )


def _check_files(image: Image) -> None:
    """Raise CatalogueError for a file that is not in the folder of the image."""
    settings = image.settings
    build = settings["build"] or {}
    for key, entries in (("files", settings["files"]), ("build.files", build.get("files", []))):
        for index, entry in enumerate(entries):
            _require(image, f"{key}[{index}].from", entry["from"])
    _require(image, "smoke.file", settings["smoke"]["file"])
    for variant in VARIANTS:
        if requirements := image.requirements_file(variant):
            _require_packages(image, "requirements", requirements)
    if image.build_requirements_file:
        _require_packages(image, "build.requirements", image.build_requirements_file)


def _require_packages(image: Image, key: str, requirements: str) -> None:
    """Raise CatalogueError for a missing file, or for a line that no lock can contain."""
    _require(image, key, requirements)
    for _name in required_packages(image.folder / requirements):
        pass


def _require(image: Image, key: str, path: str) -> None:
    if not (image.folder / path).exists():
        siblings = (str(p.relative_to(image.folder)) for p in image.folder.rglob("*"))
        raise CatalogueError(
            f"{image.place(key)}: {image.folder / path} does not exist; expected a file of the "
            f"image's folder. {suggest(path, siblings) or 'Correct the path.'}"
        )


def _check_locks(images: Mapping[str, Image], image: Image) -> None:
    """Raise CatalogueError for a lock that is missing, unsafe or out of date."""
    if image.build_requirements_file:
        _check_lock(image, "build.requirements", image.build_requirements_file, [])
    for variant in VARIANTS:
        line = [
            (ancestor, requirements)
            for ancestor in lineage(images, image.name)
            if (requirements := ancestor.requirements_file(variant))
        ]
        if line and line[0][0] is image:
            below = [ancestor.folder / requirements for ancestor, requirements in line[1:]]
            _check_lock(image, "requirements", line[0][1], below)


def _check_lock(image: Image, key: str, requirements: str, below: Iterable[Path]) -> None:
    """Raise CatalogueError for a lock without hashes or with addresses, missing or out of date.

    `below` are the requirements of the images below, whose locks count as well.
    """
    file = image.folder / requirements
    lock = file.with_suffix(".lock")
    remedy = f"Run: ./slipway images lock {image.name}"
    if not lock.exists():
        raise CatalogueError(
            f"{image.place(key)}: {lock} does not exist; expected a lock beside {file.name}. "
            f"{remedy}"
        )
    text = lock.read_text(encoding="utf-8")
    if "://" in text:
        raise CatalogueError(
            f"{lock}: contains the address of a package index; expected package names, versions "
            f"and hashes only. {remedy}"
        )
    locked = {pin.name for pin in read_pins(text)}
    if locked and "--hash=sha256:" not in text:
        raise CatalogueError(f"{lock}: has no hashes; expected a hash for each package. {remedy}")
    for lower in (path.with_suffix(".lock") for path in below):
        locked |= {pin.name for pin in read_pins(lower.read_text(encoding="utf-8"))}
    for name in required_packages(file):
        if name not in locked:
            raise CatalogueError(
                f"{lock}: package {name} is missing; expected every package of {file.name}. "
                f"{remedy}"
            )


def _check_ports(image: Image) -> None:
    """Raise CatalogueError for a service or alias with a port that the image does not declare."""
    settings, ports = image.settings, image.settings["ports"]
    used: list[tuple[str, str]] = []
    for service, declared in settings["services"].items():
        used += [(f"services.{service}.publish", name) for name in declared["publish"]]
        used += [(f"services.{service}.urls", name) for name in declared["urls"]]
        if "endpoint" in declared:
            used.append((f"services.{service}.endpoint.port", declared["endpoint"]["port"]))
    for alias, declared in settings["aliases"].items():
        used += [(f"aliases.{alias}.publish", name) for name in declared["publish"]]
        used += [(f"aliases.{alias}.urls", name) for name in declared["urls"]]
    for key, name in used:
        if name not in ports:
            raise CatalogueError(describe_unknown(f"{image.place(key)}: unknown port", name, ports))


def _check_services(images: Mapping[str, Image], image: Image) -> None:
    """Raise CatalogueError for a service with an undeclared secret or build argument."""
    args = [arg for lower in lineage(images, image.name) for arg in lower.settings["args"]]
    for service, declared in image.settings["services"].items():
        key = f"services.{service}"
        # A secret that may be omitted cannot protect an endpoint.
        required = [
            name for name, rule in declared["secrets"].items() if rule["otherwise"] != "omitted"
        ]
        secret = declared.get("endpoint", {}).get("secret")
        if secret is not None and secret not in required:
            problem = f"{image.place(f'{key}.endpoint.secret')}: unknown or optional secret"
            raise CatalogueError(describe_unknown(problem, secret, required))
        if secret is None and any("{token}" in url for url in declared["urls"].values()):
            raise CatalogueError(
                f"{image.place(f'{key}.urls')}: {{token}} without endpoint.secret; expected "
                "the secret whose value replaces {token}. Add endpoint.secret."
            )
        for arg in declared["args"]:
            if arg not in args:
                problem = f"{image.place(f'{key}.args')}: unknown build argument"
                raise CatalogueError(describe_unknown(problem, arg, args))


def _check_aliases(images: Iterable[Image]) -> None:
    """Raise CatalogueError for a duplicate alias: aliases are commands in one folder of a host."""
    owners: dict[str, Image] = {}
    for image in images:
        for alias, declared in image.settings["aliases"].items():
            for name in (alias, *declared["names"]):
                if name in owners:
                    raise CatalogueError(
                        f"{image.place(f'aliases.{alias}')}: duplicate alias {name!r}; expected "
                        f"a name that {owners[name].file} does not use. Rename one of the two "
                        "aliases."
                    )
                owners[name] = image
