# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads bases.yml and every image.yml of a catalogue, with inherited keys and defaults.

Only for the collection itself. Runs on the controller.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.images.declaration import (
    load,
    with_defaults,
)
from ansible_collections.slipway.host.plugins.module_utils.images.types import (
    Base,
    Bootstrap,
    CatalogueError,
    Image,
    Python,
    describe_unknown,
)

# Keys that the images built on an image inherit, unless they declare the keys themselves.  Other
# keys are in the layers already (packages, files, environment), or apply to one image (aliases).
_INHERITED = (
    "variants", "user", "workdir", "ports", "volumes", "entrypoint", "command", "healthcheck",
    "network", "services", "oldest_python",
)  # fmt: skip

Declarations = Mapping[str, Mapping[str, Any]]


def read_bases(folder: Path) -> tuple[str, dict[str, Base]]:
    """Return the name of the default base, and the bases of bases.yml by name."""
    file = folder / "bases.yml"
    schema = _read_schema(folder / "bases.schema.json")
    document = with_defaults(load(file, schema), schema)
    bases = {name: _base(name, declared) for name, declared in document["bases"].items()}
    if document["default"] not in bases:
        problem = f"{file}: default: unknown base"
        raise CatalogueError(describe_unknown(problem, document["default"], bases))
    return document["default"], bases


def read_images(
    folder: Path, bases: Iterable[str], warnings: list[str] | None = None
) -> dict[str, Image]:
    """Return the images of all folders below the catalogue's folder, by name.

    Add a sentence to `warnings` for each old key.
    """
    schema = _read_schema(folder / "image.schema.json")
    declarations = _load_declarations(folder, schema, warnings)
    for name, declaration in declarations.items():
        _check_base(folder / name / "image.yml", name, declaration, {*bases}, declarations)
    return {
        name: Image(
            name=name,
            folder=folder / name,
            base=declaration.get("base", "default"),
            settings=_settings(_lineage(folder, name, declarations), declarations, schema),
        )
        for name, declaration in declarations.items()
    }


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


def _load_declarations(
    folder: Path, schema: Mapping[str, Any], warnings: list[str] | None
) -> dict[str, dict[str, Any]]:
    declarations = {}
    name_rule = schema["$defs"]["name"]
    for entry in sorted(folder.iterdir()):
        if not entry.is_dir() or entry.name.startswith((".", "_")):
            continue
        if not re.fullmatch(name_rule["pattern"], entry.name):
            raise CatalogueError(
                f"{entry}: invalid image name {entry.name!r}; expected {name_rule['description']}. "
                "Rename the folder."
            )
        if not (entry / "image.yml").is_file():
            raise CatalogueError(
                f"{entry}: image.yml is missing; every folder of the catalogue is an image. "
                "Add image.yml, or begin the folder's name with an underscore."
            )
        declarations[entry.name] = load(entry / "image.yml", schema, warnings)
    return declarations


def _check_base(
    file: Path,
    name: str,
    declaration: Mapping[str, Any],
    bases: set[str],
    declarations: Declarations,
) -> None:
    """Raise CatalogueError for an image with the name of a base, or with an unknown base."""
    if name in bases or name == "default":
        raise CatalogueError(
            f"{file}: the image has the name of base {name!r}; expected another name. "
            "Rename the folder."
        )
    base = declaration.get("base", "default")
    known = [*bases, *declarations, "default"]
    if base not in known:
        raise CatalogueError(
            describe_unknown(f"{_place_of_base(file)}: unknown base or image", base, known)
        )


def _place_of_base(file: Path) -> str:
    """Return file, line and key of the base of an image, for an error."""
    from ansible_collections.slipway.host.plugins.module_utils.images import strict_yaml

    return f"{file}:{strict_yaml.line_in_file(file, 'base')}: base"


def _read_schema(file: Path) -> dict[str, Any]:
    try:
        schema: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CatalogueError(f"{file}: cannot read the schema: {error}.") from error
    return schema


def _lineage(folder: Path, name: str, declarations: Declarations) -> list[str]:
    """Return the image and the images below it, itself first. Raise CatalogueError for a circle."""
    line = [name]
    while (base := str(declarations[line[-1]].get("base"))) in declarations:
        if base in line:
            circle = " -> ".join([*line, base])
            file = folder / name / "image.yml"
            raise CatalogueError(
                f"{_place_of_base(file)}: circle of images: {circle}; expected a base of "
                "bases.yml at the end. Change one of these bases."
            )
        line.append(base)
    return line


def _settings(
    line: Iterable[str], declarations: Declarations, schema: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the first image's keys, the inherited ones, and every other key of the schema."""
    resolved: dict[str, Any] = {}
    for name in reversed(list(line)):
        inherited = {key: resolved[key] for key in _INHERITED if key in resolved}
        resolved = {**inherited, **declarations[name]}
    return {**dict.fromkeys(schema["properties"]), **with_defaults(resolved, schema)}
