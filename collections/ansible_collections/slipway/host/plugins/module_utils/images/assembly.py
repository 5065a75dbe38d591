# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Assembles builds: base, variant, Dockerfile, files and context digest of each image.

Only for the collection itself. Runs on the controller.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ansible_collections.slipway.host.plugins.module_utils.docker import labels
from ansible_collections.slipway.host.plugins.module_utils.images import architectures
from ansible_collections.slipway.host.plugins.module_utils.images.context import (
    ContextError,
    ContextFile,
    digest,
    read_files,
    render,
)
from ansible_collections.slipway.host.plugins.module_utils.images.locks import (
    Pin,
    cuda_release,
    read_pins,
    use_cpu_wheels,
)
from ansible_collections.slipway.host.plugins.module_utils.images.template_variables import (
    template_variables,
)
from ansible_collections.slipway.host.plugins.module_utils.images.types import (
    Base,
    CatalogueError,
    Image,
    ImageBuild,
    UnfitError,
    lock_file,
)

TORCH_LOCK = "torch-cpu.lock"
"""Optional file beside bases.yml: PyTorch for cpu variants, from wheels without CUDA."""

# Mounted into every build; see images/Dockerfile.j2.
_SHARED_FILES = (
    "bill-of-materials", "environment", "install-apt", "install-python", "installer.lock",
    "pip.lock", "start", "user_packages.py",
)  # fmt: skip


@dataclass
class Assembly:
    """Assembles the builds of one host: bases first, each build once."""

    folder: Path
    bases: Mapping[str, Base]
    images: Mapping[str, Image]
    torch_lock: str | None
    default_base: Base
    args: Mapping[str, Mapping[str, str]]
    """Build arguments, by image and argument."""
    builds: dict[tuple[str, str], ImageBuild] = field(default_factory=dict)

    def add(self, image: Image, variant: str) -> ImageBuild:
        """Add the image's build for a host that can use the variant; return the build."""
        variant = _choose_variant(image, variant)
        parent_image = self.images.get(image.base)
        parent = self.add(parent_image, variant) if parent_image else None
        key = (image.name, variant)
        if key not in self.builds:
            self.builds[key] = self._assemble(image, variant, parent)
        return self.builds[key]

    def _assemble(self, image: Image, variant: str, parent: ImageBuild | None) -> ImageBuild:
        root = parent.root if parent else self.bases.get(image.base, self.default_base)
        locks = _read_locks(image, variant, self.torch_lock)
        requirements = image.requirements_file(variant)
        own_pins = read_pins(locks[lock_file(requirements)] if requirements else "")
        pins = (*(parent.pins if parent else ()), *own_pins)
        args = self.args.get(image.name, {})
        variables = template_variables(image, variant, root, parent, args, pins)
        try:
            dockerfile = render(self.folder, _template(image), variables)
            files = (
                ContextFile("Dockerfile", False, dockerfile.encode()),
                *_context_files(image, locks),
            )
        except ContextError as error:
            raise CatalogueError(str(error)) from error
        context_digest = digest(parent.digest if parent else root.identity, files)
        smoke = image.settings["smoke"]
        return ImageBuild(
            name=image.name,
            variant=variant,
            reference=f"slipway/{image.name}:{variant}",
            digest=context_digest,
            root=root,
            parent=parent.reference if parent else None,
            dockerfile=dockerfile,
            files=files,
            labels={
                labels.IMAGE: image.name,
                labels.VARIANT: variant,
                labels.DIGEST: context_digest,
                labels.OCI_BASE_NAME: parent.reference if parent else root.reference,
            },
            smoke=_smoke_command(smoke["file"]),
            smoke_timeout=smoke["timeout"],
            args=variables["args"],
            image=image.settings,
            pins=pins,
            notes=tuple(_notes(image, variant, own_pins)),
            unavailable=architectures.unavailable(
                image.settings, variant, parent.unavailable if parent else {}
            ),
        )


def _choose_variant(image: Image, usable: str) -> str:
    """Return the variant for a host that can use `usable`; hosts with a GPU also run cpu builds."""
    variants = image.settings["variants"]
    if usable in variants:
        return usable
    if "cpu" in variants:
        return "cpu"
    raise UnfitError(
        f"{image.place('variants')}: no cpu variant; expected one because the host has no GPU. "
        "Add the cpu variant, or do not list the image for this host."
    )


def _read_locks(image: Image, variant: str, torch_lock: str | None) -> dict[str, str]:
    """Return the text of each lock that a variant of an image uses, by file name."""
    files = filter(None, (image.requirements_file(variant), image.build_requirements_file))
    texts = {
        name: (image.folder / name).read_text(encoding="utf-8")
        for name in sorted({lock_file(requirements) for requirements in files})
    }
    if variant == "gpu" or torch_lock is None:
        return texts
    return {name: use_cpu_wheels(text, torch_lock) for name, text in texts.items()}


def _template(image: Image) -> str:
    own_template = image.folder / "Dockerfile.j2"
    return f"{image.name}/Dockerfile.j2" if own_template.exists() else "Dockerfile.j2"


def _context_files(image: Image, locks: Mapping[str, str]) -> Iterator[ContextFile]:
    """Yield the files that the Dockerfile uses: the shared ones, and those the image declares."""
    shared = image.folder.parent / "_shared"
    for name in _SHARED_FILES:
        yield from read_files(shared / name, f"shared/{name}")
    settings = image.settings
    paths = {file["from"] for file in settings["files"]} | {settings["smoke"]["file"]}
    paths |= {file["from"] for file in (settings["build"] or {}).get("files", [])}
    files = {
        file.path: file
        for path in sorted(paths)
        # Docker too resolves `image/../llm/file`.
        for file in read_files(image.folder / path, posixpath.normpath(f"image/{path}"))
    }
    yield from files.values()
    for name, text in locks.items():
        yield ContextFile(f"image/{name}", False, text.encode())


def _smoke_command(file: str) -> tuple[str, ...]:
    interpreter = "python3" if file.endswith(".py") else "sh"
    return (labels.START, interpreter, f"{labels.IMAGE_FOLDER}/{file}")


def _notes(image: Image, variant: str, pins: Sequence[Pin]) -> Iterator[str]:
    """Yield sentences for the owner of a host, before an image is built there."""
    torch = next((pin.version for pin in pins if pin.name == "torch"), None)
    if torch and variant == "cpu" and cuda_release(pins):
        yield (
            f"torch {torch} comes from PyPI and contains CUDA: about 3 GB that a CPU does not use. "
            "To use CPU wheels, run: ./slipway images lock --torch-index URL"
        )
    elif torch and variant == "cpu":
        missing = "" if any(pin.name == "torchvision" for pin in pins) else ", without torchvision"
        yield f"torch {torch} is the CPU wheel that {TORCH_LOCK} names{missing}"
    if image.settings["unproven"]:
        yield f"not proven by the project itself: {image.settings['unproven']}"
