# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The catalogue of images: read, checked, and turned into what the builder needs.

PRIVATE to the collection. Runs on the controller; hosts get packed contexts.

An image is a folder with an image.yml. `load_catalogue` reads all of them and refuses mistakes
with file, line and key. `Catalogue.builds` resolves the names asked for into builds, each after
the one it is based on. A build carries its rendered Dockerfile and files and is identified by a
digest over everything it is made from: equal digests mean that there is nothing to build.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils._owned import LABEL_DIGEST
from ansible_collections.slipway.host.plugins.module_utils.images.context import (
    ContextError,
    ContextFile,
    digest,
    pack,
    read_files,
    render,
)
from ansible_collections.slipway.host.plugins.module_utils.images.declaration import (
    DeclarationError,
    load,
    nearest,
    with_defaults,
)
from ansible_collections.slipway.host.plugins.module_utils.images.locks import (
    Pin,
    cuda_release,
    on_cpu_wheels,
    read_pins,
    version_for,
    wished_names,
)

VARIANTS = ("cpu", "gpu")

OLDEST_PYTHON = (3, 11)
"""The release of Python from which on locks hold."""

# What an image of the catalogue hands to those based on it, unless they say otherwise. The rest
# is in its layers already (packages, files, environment) or is its own (aliases).
_INHERITED = (
    "variants", "user", "workdir", "ports", "volumes", "entrypoint", "command", "healthcheck",
    "network", "services",
)  # fmt: skip

# Mounted into every build; see images/Dockerfile.j2.
_SHARED_FILES = (
    "bill-of-materials", "environment", "install-apt", "install-python", "installer.lock", "start",
)  # fmt: skip

TORCH_LOCK = "torch-cpu.lock"
"""Beside bases.yml, optional: PyTorch for cpu variants, from wheels that carry no CUDA."""

START = "/opt/slipway/start"
"""Every image's entrypoint; see images/_shared/start."""

_GPU_ENVIRONMENT = {
    "NVIDIA_VISIBLE_DEVICES": "all",
    "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",
}


class CatalogueError(DeclarationError):
    """The catalogue, or what was asked of it, makes no sense; the text says what to change."""


@dataclass(frozen=True)
class Bootstrap:
    """How mmdebstrap makes a base from a distribution's own packages."""

    distribution: str
    suite: str
    components: tuple[str, ...]
    packages: tuple[str, ...]


@dataclass(frozen=True)
class Python:
    """A distribution's Python: its release, what runs it, and what makes environments with pip."""

    version: str
    packages: tuple[str, ...]
    venv_packages: tuple[str, ...]


@dataclass(frozen=True)
class Base:
    """An image that the catalogue stands on: from a registry, or bootstrapped."""

    name: str
    title: str
    reference: str
    bootstrap: Bootstrap | None
    python: Python | None

    @property
    def identity(self) -> str:
        """Return what tells it from another base, by whichever way a host gets it."""
        made = self.bootstrap
        recipe = [made.distribution, made.suite, made.components, made.packages] if made else None
        return json.dumps([self.reference, recipe])


@dataclass(frozen=True)
class Image:
    """A checked declaration: what image.yml says, with what it inherits and the defaults."""

    name: str
    folder: Path
    base: str
    """Name of a base, of another image, or `default`."""
    settings: Mapping[str, Any]
    """Every key of the schema; None where nothing is said and there is no default."""

    @property
    def file(self) -> Path:
        """Return the path of the declaration, for messages."""
        return self.folder / "image.yml"


@dataclass(frozen=True)
class ImageBuild:
    """One build of one variant of an image, complete."""

    name: str
    variant: str
    reference: str
    """The tag of the finished image, for example `slipway/iris-api:cpu`."""
    digest: str
    """SHA-256, in hex, over all that the image is made from."""
    root: Base
    """The base at the bottom, from a registry or bootstrapped."""
    parent: str | None
    """The reference of the build this one is based on, earlier in order; None: based on `root`."""
    dockerfile: str
    files: tuple[ContextFile, ...] = field(repr=False)
    """The context, Dockerfile included."""
    labels: Mapping[str, str]
    """Labels to add to those of the Dockerfile."""
    smoke: tuple[str, ...]
    """The command that proves the image, to run in place of its entrypoint."""
    smoke_timeout: int
    """Seconds after which the smoke test has failed."""
    args: Mapping[str, str]
    """Build arguments of the image, all of them; BASE is the builder's to add."""
    image: Mapping[str, Any]
    """What the image declares, as Image.settings: ports, volumes, services, aliases, ..."""
    pins: tuple[Pin, ...] = field(repr=False)
    """The Python packages of the image and of those it stands on."""
    notes: tuple[str, ...]
    """What its owner should know of this build, in sentences."""

    @property
    def cuda(self) -> str | None:
        """Return the release of CUDA that a gpu build brings along, such as `13.2`, or None."""
        return cuda_release(self.pins) if self.variant == "gpu" else None

    @property
    def base(self) -> Base | None:
        """Return the base that the host must get first, or None when there is a parent."""
        return None if self.parent else self.root


@dataclass(frozen=True)
class Catalogue:
    """All images and bases. Made by `load_catalogue`."""

    folder: Path
    default_base: str
    bases: Mapping[str, Base]
    images: Mapping[str, Image]
    torch_lock: str | None = field(default=None, repr=False)
    """The text of TORCH_LOCK where there is one."""

    def lineage(self, name: str) -> list[Image]:
        """Return an image and the images it stands on, itself first."""
        lineage = [self._known_image(name)]
        while lineage[-1].base in self.images:
            lineage.append(self.images[lineage[-1].base])
        return lineage

    def builds(
        self,
        names: Iterable[str],
        variant: str,
        base: str | None = None,
        args: Mapping[str, Mapping[str, str]] | None = None,
    ) -> list[ImageBuild]:
        """Return the builds that the named images need, each after the one it is based on.

        `variant` is what the host can use: an image without a gpu build gives its cpu build to a
        host with a GPU. `base` is the host's choice for images that leave it open, else that of
        bases.yml. `args` sets build arguments, by image and argument.

        Raise CatalogueError for a name, variant, base or argument that does not exist.
        """
        if variant not in VARIANTS:
            raise CatalogueError(f"variant {variant!r} is not one of: {', '.join(VARIANTS)}")
        values = {name: self._arguments(name, given) for name, given in (args or {}).items()}
        resolver = _Resolver(self, self._known_base(base or self.default_base), values)
        for name in names:
            resolver.add(self._known_image(name), variant)
        return list(resolver.builds.values())

    def _known_image(self, name: str) -> Image:
        if name not in self.images:
            raise CatalogueError(_unknown(f"{self.folder}: has no image", name, self.images))
        return self.images[name]

    def _known_base(self, name: str) -> Base:
        if name not in self.bases:
            where = self.folder / "bases.yml"
            raise CatalogueError(_unknown(f"{where}: has no base", name, self.bases))
        return self.bases[name]

    def _arguments(self, name: str, given: Any) -> Mapping[str, str]:
        image = self._known_image(name)
        if not isinstance(given, Mapping):
            raise CatalogueError(f"build arguments of {name} are {given!r}, must be a mapping")
        for arg, value in given.items():
            if arg not in image.settings["args"]:
                what = f"{image.file}: has no build argument"
                raise CatalogueError(_unknown(what, arg, image.settings["args"]))
            if not isinstance(value, str) or not value or "\n" in value:
                raise CatalogueError(
                    f"build argument {arg} of image {name} is {value!r}, must be text on one line"
                )
        return given


def load_catalogue(folder: Path, check_locks: bool = True) -> Catalogue:
    """Read bases.yml and every image.yml below the folder of the catalogue, and check them all.

    Whoever is about to make the locks does without `check_locks`.

    Raise CatalogueError or its parent DeclarationError with file and key for what is wrong.
    Folders that begin with a dot or an underscore are not images.
    """
    default, bases = _load_bases(folder)
    declared = _load_declarations(folder)
    for name, declaration in declared.items():
        file = folder / name / "image.yml"
        if name in bases or name == "default":
            raise CatalogueError(f"{file}: a base has the name {name!r} already; rename the folder")
        base = declaration.get("base", "default")
        if base != "default" and base not in bases and base not in declared:
            known = [*bases, *declared, "default"]
            raise CatalogueError(_unknown(f"{file}: base: there is no base or image", base, known))
    schema = _read_schema(folder / "image.schema.json")
    images = {
        name: Image(
            name=name,
            folder=folder / name,
            base=declaration.get("base", "default"),
            settings=_settings(_lineage(folder, name, declared), declared, schema),
        )
        for name, declaration in declared.items()
    }
    torch_lock = folder / TORCH_LOCK
    catalogue = Catalogue(
        folder,
        default,
        bases,
        images,
        torch_lock.read_text(encoding="utf-8") if torch_lock.exists() else None,
    )
    for image in images.values():
        _check_files(image)
        _check_ports(image)
        _check_services(catalogue, image)
        if check_locks:
            _check_locks(catalogue, image)
    _check_aliases(images.values())
    return catalogue


def context_tar(build: ImageBuild) -> bytes:
    """Return the build's context as a tar archive, the same bytes every time."""
    return pack(build.files)


class _Resolver:
    """Turns images into builds, bases first, each build once."""

    def __init__(
        self, catalogue: Catalogue, default: Base, args: Mapping[str, Mapping[str, str]]
    ) -> None:
        self.catalogue = catalogue
        self.default = default
        self.args = args
        self.builds: dict[tuple[str, str], ImageBuild] = {}

    def add(self, image: Image, wanted: str) -> ImageBuild:
        """Return the image's build for a host that can use the wanted variant."""
        variant = _fitting_variant(image, wanted)
        parent_image = self.catalogue.images.get(image.base)
        parent = self.add(parent_image, variant) if parent_image else None
        key = (image.name, variant)
        if key not in self.builds:
            self.builds[key] = self._build(image, variant, parent)
        return self.builds[key]

    def _build(self, image: Image, variant: str, parent: ImageBuild | None) -> ImageBuild:
        root = parent.root if parent else self.catalogue.bases.get(image.base, self.default)
        locks = _locks(image, variant, self.catalogue.torch_lock)
        lock = locks.get(_lock(wishes_of(image, variant)) or "", "")
        pins = (*(parent.pins if parent else ()), *read_pins(lock))
        variables = _variables(image, variant, root, parent, self.args.get(image.name, {}), pins)
        try:
            dockerfile = render(self.catalogue.folder, _template(image), variables)
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
            reference=_reference(image, variant),
            digest=context_digest,
            root=root,
            parent=parent.reference if parent else None,
            dockerfile=dockerfile,
            files=files,
            labels={
                "io.slipway.image": image.name,
                "io.slipway.variant": variant,
                LABEL_DIGEST: context_digest,
                "org.opencontainers.image.base.name": (
                    parent.reference if parent else root.reference
                ),
            },
            smoke=_smoke_command(smoke["file"]),
            smoke_timeout=smoke["timeout"],
            args=variables["args"],
            image=image.settings,
            pins=pins,
            notes=tuple(_notes(image, variant, read_pins(lock))),
        )


def _fitting_variant(image: Image, wanted: str) -> str:
    """Return the variant of an image for a host that can use `wanted`: gpu hosts run cpu too."""
    offered = image.settings["variants"]
    if wanted in offered:
        return wanted
    if "cpu" in offered:
        return "cpu"
    raise CatalogueError(
        f"{image.file}: variants: there is no cpu build, so a host without a GPU cannot use it"
    )


def _variables(
    image: Image,
    variant: str,
    root: Base,
    parent: ImageBuild | None,
    args: Mapping[str, str],
    pins: Sequence[Pin],
) -> dict[str, Any]:
    """Return what a template may use; images/Dockerfile.j2 says what each is."""
    settings = image.settings
    lock = _lock(wishes_of(image, variant))
    build_lock = _lock((settings["build"] or {}).get("requirements"))
    packages = _of_variant(settings["packages"], variant)
    if lock or build_lock:
        python = _usable_python(image, root)
        if not (parent and parent.pins):
            packages = [*python.packages, *packages]
    return {
        "name": image.name,
        "variant": variant,
        "image": settings,
        "root": root,
        "reference": parent.reference if parent else root.reference,
        "packages": packages,
        "lock": lock,
        "build_lock": build_lock,
        "args": {
            name: args.get(name, argument["default"]) for name, argument in settings["args"].items()
        },
        "environment": {
            **(_GPU_ENVIRONMENT if variant == "gpu" else {}),
            **settings["environment"],
        },
        "start": START,
        "labels": _labels(settings)
        | {"org.opencontainers.image.version": _version(image, root, pins)},
    }


def _usable_python(image: Image, root: Base) -> Python:
    python = root.python
    if python is None or tuple(map(int, python.version.split("."))) < OLDEST_PYTHON:
        has = f"Python {python.version}" if python else "no Python"
        oldest = ".".join(map(str, OLDEST_PYTHON))
        raise CatalogueError(
            f"{image.file}: requirements: base {root.name} has {has}; "
            f"locked packages need {oldest} or newer (take another base, or apt packages)"
        )
    return python


def _labels(settings: Mapping[str, Any]) -> dict[str, str]:
    labels = {
        "org.opencontainers.image.title": settings["title"],
        "org.opencontainers.image.description": " ".join(settings["description"].split()),
        "org.opencontainers.image.licenses": settings["licence"],
        "org.opencontainers.image.source": settings["source"],
        "io.slipway.end-of-life": settings["end_of_life"],
        "io.slipway.successor": settings["successor"],
    }
    return {name: value for name, value in labels.items() if value is not None}


def _version(image: Image, root: Base, pins: Sequence[Pin]) -> str:
    """Return an image's version: as declared, or for `lock:NAME` that of a locked package."""
    declared: str = image.settings["version"]
    kind, _, name = declared.partition(":")
    if kind != "lock":
        return declared
    python = root.python.version if root.python else ""
    # Frameworks publish what is for CPUs alone under a name of its own.
    candidates = (version_for(pins, known_as, python) for known_as in (name, f"{name}-cpu"))
    found = next(filter(None, candidates), None)
    if found is None:
        raise CatalogueError(f"{image.file}: version: no lock of the image pins {name!r}")
    return found


def _notes(image: Image, variant: str, pins: Sequence[Pin]) -> Iterator[str]:
    """Yield what the owner of a host should know before an image is built there."""
    torch = next((pin.version for pin in pins if pin.name == "torch"), None)
    if torch and variant == "cpu" and cuda_release(pins):
        yield (
            f"torch {torch} comes from PyPI and carries CUDA, some 3 GB that a CPU has no use for; "
            "./slipway images lock --torch-index URL takes CPU wheels instead"
        )
    elif torch and variant == "cpu":
        left_out = "" if any(pin.name == "torchvision" for pin in pins) else ", without torchvision"
        yield f"torch {torch} is the CPU wheel that {TORCH_LOCK} names{left_out}"
    if image.settings["unproven"]:
        yield f"not built by the project itself: {image.settings['unproven']}"


def _of_variant(packages: Any, variant: str) -> list[str]:
    if isinstance(packages, list):
        return packages
    return [*packages.get("all", []), *packages.get(variant, [])]


def wishes_of(image: Image, variant: str) -> str | None:
    """Return the name of the file with the Python packages that a variant of an image wants."""
    requirements = image.settings["requirements"]
    return requirements.get(variant) if isinstance(requirements, dict) else requirements


def _lock(wishes: str | None) -> str | None:
    """Return the name of the lock that lies beside a file with wishes."""
    return f"{wishes.removesuffix('.in')}.lock" if wishes else None


def _locks(image: Image, variant: str, torch_lock: str | None) -> dict[str, str]:
    """Return the text of each lock that a variant of an image uses, by its name."""
    settings = image.settings
    names = {
        _lock(wishes_of(image, variant)),
        _lock((settings["build"] or {}).get("requirements")),
    }
    texts = {
        name: (image.folder / name).read_text(encoding="utf-8")
        for name in sorted(filter(None, names))
    }
    if variant == "gpu" or torch_lock is None:
        return texts
    return {name: on_cpu_wheels(text, torch_lock) for name, text in texts.items()}


def _template(image: Image) -> str:
    own = image.folder / "Dockerfile.j2"
    return f"{image.name}/Dockerfile.j2" if own.exists() else "Dockerfile.j2"


def _context_files(image: Image, locks: Mapping[str, str]) -> Iterator[ContextFile]:
    """Yield the files that the Dockerfile uses: the shared ones, and those the image declares."""
    shared = image.folder.parent / "_shared"
    for name in _SHARED_FILES:
        yield from read_files(shared / name, f"shared/{name}")
    settings = image.settings
    wanted = {file["from"] for file in settings["files"]} | {settings["smoke"]["file"]}
    wanted |= {file["from"] for file in (settings["build"] or {}).get("files", [])}
    files = {
        file.path: file
        for path in sorted(wanted)
        for file in read_files(image.folder / path, f"image/{path}")
    }
    yield from files.values()
    for name, text in locks.items():
        yield ContextFile(f"image/{name}", False, text.encode())


def _reference(image: Image, variant: str) -> str:
    return f"slipway/{image.name}:{variant}"


def _smoke_command(file: str) -> tuple[str, ...]:
    interpreter = "python3" if file.endswith(".py") else "sh"
    return (START, interpreter, f"/opt/slipway/{file}")


def _load_bases(folder: Path) -> tuple[str, dict[str, Base]]:
    file = folder / "bases.yml"
    schema = _read_schema(folder / "bases.schema.json")
    document = with_defaults(load(file, schema), schema)
    bases = {name: _base(name, declared) for name, declared in document["bases"].items()}
    if document["default"] not in bases:
        raise CatalogueError(
            _unknown(f"{file}: default: there is no base", document["default"], bases)
        )
    return document["default"], bases


def _base(name: str, declared: Mapping[str, Any]) -> Base:
    bootstrap, python = declared.get("bootstrap"), declared.get("python")
    return Base(
        name=name,
        title=declared["title"],
        reference=declared["reference"],
        bootstrap=Bootstrap(
            bootstrap["distribution"],
            bootstrap["suite"],
            tuple(bootstrap["components"]),
            tuple(bootstrap["packages"]),
        )
        if bootstrap
        else None,
        python=Python(python["version"], tuple(python["packages"]), tuple(python["venv_packages"]))
        if python
        else None,
    )


def _load_declarations(folder: Path) -> dict[str, dict[str, Any]]:
    schema = _read_schema(folder / "image.schema.json")
    declared = {}
    for entry in sorted(folder.iterdir()):
        if not entry.is_dir() or entry.name.startswith((".", "_")):
            continue
        if not re.fullmatch(schema["$defs"]["name"]["pattern"], entry.name):
            allowed = schema["$defs"]["name"]["description"]
            raise CatalogueError(f"{entry}: is no name for an image ({allowed})")
        if not (entry / "image.yml").is_file():
            raise CatalogueError(f"{entry}: has no image.yml, which every image needs")
        declared[entry.name] = load(entry / "image.yml", schema)
    return declared


def _read_schema(file: Path) -> dict[str, Any]:
    try:
        schema: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CatalogueError(f"{file}: cannot be read: {error}") from error
    return schema


def _lineage(folder: Path, name: str, declared: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the image and the images below it, itself first. Raise CatalogueError for a circle."""
    lineage = [name]
    while (base := str(declared[lineage[-1]].get("base"))) in declared:
        if base in lineage:
            circle = " -> ".join([*lineage, base])
            raise CatalogueError(f"{folder / name / 'image.yml'}: base: goes in a circle: {circle}")
        lineage.append(base)
    return lineage


def _settings(
    lineage: Iterable[str], declared: Mapping[str, Mapping[str, Any]], schema: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the first image's keys with those it inherits, and every other key of the schema."""
    resolved: dict[str, Any] = {}
    for name in reversed(list(lineage)):
        handed_down = {key: resolved[key] for key in _INHERITED if key in resolved}
        resolved = {**handed_down, **declared[name]}
    return {**dict.fromkeys(schema["properties"]), **with_defaults(resolved, schema)}


def _check_files(image: Image) -> None:
    """Refuse a declaration that names files its folder does not have."""
    settings = image.settings
    build = settings["build"] or {}
    for where, entries in (("files", settings["files"]), ("build.files", build.get("files", []))):
        for index, entry in enumerate(entries):
            _require(image, f"{where}[{index}].from", entry["from"])
    _require(image, "smoke.file", settings["smoke"]["file"])
    for variant in VARIANTS:
        if wishes := wishes_of(image, variant):
            _require(image, "requirements", wishes)
    if "requirements" in build:
        _require(image, "build.requirements", build["requirements"])


def _check_locks(catalogue: Catalogue, image: Image) -> None:
    """Refuse locks that are missing or not to be relied on."""
    build = image.settings["build"] or {}
    if "requirements" in build:
        _check_lock(image, "build.requirements", build["requirements"], [])
    for variant in VARIANTS:
        line = [
            (ancestor, wishes)
            for ancestor in catalogue.lineage(image.name)
            if (wishes := wishes_of(ancestor, variant))
        ]
        if line and line[0][0] is image:
            below = [ancestor.folder / wishes for ancestor, wishes in line[1:]]
            _check_lock(image, "requirements", line[0][1], below)


def _require(image: Image, key: str, path: str) -> None:
    if not (image.folder / path).exists():
        siblings = (str(p.relative_to(image.folder)) for p in image.folder.rglob("*"))
        raise CatalogueError(
            f"{image.file}: {key}: {image.folder / path} does not exist{nearest(path, siblings)}"
        )


def _check_lock(image: Image, key: str, requirements: str, below: Iterable[Path]) -> None:
    """Refuse a lock that is missing, without hashes, with addresses, or older than its wishes.

    `below` are the wishes of the images it stands on, whose locks count as well.
    """
    wishes = image.folder / requirements
    lock = wishes.with_suffix(".lock")
    how = f"./slipway images lock {image.name} makes it"
    if not lock.exists():
        raise CatalogueError(f"{image.file}: {key}: {lock} does not exist; {how}")
    text = lock.read_text(encoding="utf-8")
    if "://" in text:
        raise CatalogueError(f"{lock}: holds an address, which must not be in a lock; {how}")
    locked = {pin.name for pin in read_pins(text)}
    if locked and "--hash=sha256:" not in text:
        raise CatalogueError(f"{lock}: has no hashes; {how}")
    for lower in (path.with_suffix(".lock") for path in below):
        locked |= {pin.name for pin in read_pins(lower.read_text(encoding="utf-8"))}
    for name in _wished(wishes):
        if name not in locked:
            raise CatalogueError(f"{lock}: lacks {name}, which {wishes.name} asks for; {how}")


def _wished(wishes: Path) -> Iterator[str]:
    """Yield the projects that a file asks for, with those of the files it includes."""
    text = wishes.read_text(encoding="utf-8")
    yield from wished_names(text)
    for included in re.findall(r"^-r (\S+)$", text, flags=re.MULTILINE):
        yield from _wished(wishes.parent / included)


def _check_ports(image: Image) -> None:
    """Refuse ports that are published or opened under a name the image does not declare."""
    settings, ports = image.settings, image.settings["ports"]
    named: list[tuple[str, str]] = []
    for service, declared in settings["services"].items():
        named += [(f"services.{service}.publish", name) for name in declared["publish"]]
        named += [(f"services.{service}.urls", name) for name in declared["urls"]]
        if "endpoint" in declared:
            named.append((f"services.{service}.endpoint.port", declared["endpoint"]["port"]))
    for alias, declared in settings["aliases"].items():
        named += [(f"aliases.{alias}.publish", name) for name in declared["publish"]]
        named += [(f"aliases.{alias}.urls", name) for name in declared["urls"]]
    for key, name in named:
        if name not in ports:
            raise CatalogueError(_unknown(f"{image.file}: {key}: ports has no", name, ports))


def _check_services(catalogue: Catalogue, image: Image) -> None:
    """Refuse services that speak of secrets or build arguments that are declared nowhere."""
    args = [arg for lower in catalogue.lineage(image.name) for arg in lower.settings["args"]]
    for service, declared in image.settings["services"].items():
        where = f"{image.file}: services.{service}"
        # Whoever asks at the endpoint has to have it.
        sure = [key for key, one in declared["secrets"].items() if one["otherwise"] != "omitted"]
        secret = declared.get("endpoint", {}).get("secret")
        if secret is not None and secret not in sure:
            what = f"{where}.endpoint.secret: secrets always has no"
            raise CatalogueError(_unknown(what, secret, sure))
        if secret is None and any("{token}" in url for url in declared["urls"].values()):
            raise CatalogueError(
                f"{where}.urls: {{token}} needs endpoint.secret, which it stands for"
            )
        for arg in declared["args"]:
            if arg not in args:
                raise CatalogueError(_unknown(f"{where}.args: there is no", arg, args))


def _check_aliases(images: Iterable[Image]) -> None:
    """Refuse two aliases of one name: they become commands in one folder of a host."""
    owners: dict[str, Image] = {}
    for image in images:
        for alias, declared in image.settings["aliases"].items():
            for name in (alias, *declared["names"]):
                if name in owners:
                    taken = f"{name!r} is already an alias in {owners[name].file}"
                    raise CatalogueError(f"{image.file}: aliases: {taken}")
                owners[name] = image


def _unknown(what: str, name: str, known: Iterable[str]) -> str:
    """Say that a name is not known, what was probably meant, and what there is."""
    names = sorted(known)
    return f"{what} {name!r}{nearest(name, names)} (known: {', '.join(names) or 'none'})"
