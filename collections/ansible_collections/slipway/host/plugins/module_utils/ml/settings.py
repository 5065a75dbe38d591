# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How an alias starts its container: settings in layers, each over the one before.

The layers are the project's defaults, the image, the host (for all aliases, then for one), the user
(for all, then for one), and the command line.  A layer is a mapping with any of these keys:

============  =====================================================================================
key           value
============  =====================================================================================
image         reference of another image to start
gpus          ``free`` (all that nobody uses), ``all``, ``none``, or indexes such as ``0,1`` or,
              of a partitioned GPU, ``0:1``
workdir       folder in the container to start in
ports         host port by the image's name of the port
mounts        list of source, target, read_only?, optional?; a layer replaces by target
environment   variables
shm_size      size of /dev/shm, for example ``8g``
memory        the most memory, for example ``32g``
cpus          processors, for example ``4`` or ``0.5``
options       further words for docker run; a layer adds to them
quiet         whether only what is unusual is said
============  =====================================================================================
"""

from __future__ import annotations

import configparser
import difflib
import json
import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import MlError

Layer = Mapping[str, Any]

HOST_FILE = Path("/etc/slipway/aliases.json")
USER_FILE = "slipway/aliases.ini"
# The section of the user's file that goes for every alias.
EVERY = "*"

# Docker's own 64 MB for /dev/shm stop PyTorch's data loaders; this is a limit and takes nothing.
DEFAULTS: Layer = {"gpus": "free", "shm_size": "8g"}

GPUS = re.compile(r"(free|all|none|\d+(:\d+)?(,\d+(:\d+)?)*)\Z")
SIZE = re.compile(r"\d+[bkmg]?\Z", re.IGNORECASE)
ABSOLUTE = re.compile(r"/[^\0\n]*\Z")
NUMBER = re.compile(r"\d+(\.\d+)?\Z")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
LINE = re.compile(r"[^\0\n]+\Z")
YES = {"yes": True, "true": True, "on": True, "no": False, "false": False, "off": False}


def _text_check(pattern: re.Pattern[str], meaning: str) -> Callable[[Any], str | None]:
    """Return a check that a value is text of a form; a check returns what it should be."""
    return lambda value: None if isinstance(value, str) and pattern.match(value) else meaning


def _mapping_check(key: re.Pattern[str], fits: Callable[[Any], bool], meaning: str) -> Any:
    def check(value: Any) -> str | None:
        good = isinstance(value, Mapping) and all(
            isinstance(name, str) and key.match(name) and fits(inner)
            for name, inner in value.items()
        )
        return None if good else meaning

    return check


def _is_port(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 65536


def _check_mounts(value: Any) -> str | None:
    meaning = "a list of source, target, and, where wanted, read_only and optional"
    if not isinstance(value, list):
        return meaning
    for entry in value:
        known = isinstance(entry, Mapping) and set(entry) <= {
            "source", "target", "read_only", "optional",
        }  # fmt: skip
        if not known or not {"source", "target"} <= set(entry):
            return meaning
        if not re.match(r"(/|~(/|\Z))", str(entry["source"])):
            return "a list of mounts whose source is an absolute path or begins with ~"
        if not ABSOLUTE.match(str(entry["target"])):
            return "a list of mounts whose target is an absolute path"
    return None


CHECKS: Mapping[str, Callable[[Any], str | None]] = {
    "image": _text_check(LINE, "a reference of an image"),
    "gpus": _text_check(GPUS, "free, all, none, or indexes such as 0,1"),
    "workdir": _text_check(ABSOLUTE, "an absolute path in the container"),
    "ports": _mapping_check(LINE, _is_port, "a port of the host by the image's name of the port"),
    "mounts": _check_mounts,
    "environment": _mapping_check(VARIABLE, lambda value: isinstance(value, str), "texts by name"),
    "shm_size": _text_check(SIZE, "a size such as 8g"),
    "memory": _text_check(SIZE, "a size such as 32g"),
    "cpus": _text_check(NUMBER, "a number of processors such as 4 or 0.5"),
    "options": lambda value: (
        None
        if isinstance(value, list) and all(isinstance(word, str) for word in value)
        else "a list of words for docker run"
    ),
    "quiet": lambda value: None if isinstance(value, bool) else "yes or no",
}


def suggest(word: str, known: Iterable[str]) -> str:
    """Return a hint at the known word that was probably meant, else at all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(names) or 'none'}"


def check_layer(layer: Layer, where: str, ports: Iterable[str] | None = None) -> None:
    """Raise MlError where a layer says what cannot be; PORTS are the names the image has."""
    for key, value in layer.items():
        if key not in CHECKS:
            raise MlError(f"{where}: there is no setting {key}; {suggest(key, CHECKS)}")
        should = CHECKS[key](value)
        if should:
            raise MlError(f"{where}: {key} is {value!r}, must be {should}")
    if ports is not None:
        for name in layer.get("ports", {}):
            if name not in set(ports):
                raise MlError(f"{where}: there is no port {name}; {suggest(name, ports)}")


def merge_layers(*layers: Layer) -> dict[str, Any]:
    """Return the settings that the layers, the weakest first, make together."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            if key in ("ports", "environment"):
                merged[key] = {**merged.get(key, {}), **value}
            elif key == "mounts":
                by_target = {entry["target"]: entry for entry in [*merged.get(key, []), *value]}
                merged[key] = list(by_target.values())
            elif key == "options":
                merged[key] = [*merged.get(key, []), *value]
            else:
                merged[key] = value
    return merged


@dataclass(frozen=True)
class Port:
    """A port of an image: its number in the container, and the path that a person opens there.

    The path is empty where there is no page; ``{token}`` in it stands for the user's token.
    """

    inside: int
    path: str


@dataclass(frozen=True)
class Alias:
    """A command that starts a container, as the host declares it."""

    name: str
    description: str
    image: str
    """Name of the image in the catalogue."""
    variant: str
    network: str
    command: tuple[str, ...]
    ports: Mapping[str, Port]
    settings: Layer


@dataclass(frozen=True)
class Host:
    """What the host declares: whom to ask, its aliases by every name, its images by name."""

    contact: str
    aliases: Mapping[str, Alias]
    images: Mapping[str, str]

    def alias(self, name: str) -> Alias:
        """Return the alias of a name.  Raise MlError where there is none."""
        if name not in self.aliases:
            raise MlError(f"there is no alias {name} on this host; {suggest(name, self.aliases)}")
        return self.aliases[name]


def read_host(file: Path = HOST_FILE) -> Host:
    """Read what the host declares.  Raise MlError where that cannot be."""
    try:
        declared = json.loads(file.read_text(encoding="utf-8"))
        return Host(
            contact=declared["contact"],
            aliases={
                name: Alias(
                    name=main,
                    description=entry["description"],
                    image=entry["image"],
                    variant=entry["variant"],
                    network=entry["network"],
                    command=tuple(entry["command"]),
                    ports={key: Port(**port) for key, port in entry["ports"].items()},
                    settings=entry["settings"],
                )
                for main, entry in declared["aliases"].items()
                for name in (main, *entry["names"])
            },
            images=declared["images"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MlError(
            f"{file} cannot be used ({error}); it is written by Slipway's role ml_aliases"
        ) from error


def user_file() -> Path:
    """Return where a user's own settings stand."""
    folder = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(folder).expanduser() / USER_FILE


def read_user_layer(alias: Alias, file: Path) -> dict[str, Any]:
    """Return the user's layer for an alias; an absent file says nothing.

    Raise MlError where the file says what cannot be.
    """
    parser = configparser.RawConfigParser(delimiters=("=",), default_section="")
    # Names of variables are told apart by their case.
    parser.optionxform = str  # type: ignore[method-assign,assignment]
    try:
        parser.read(file, encoding="utf-8")
    except (OSError, ValueError, configparser.Error) as error:
        raise MlError(f"{file} cannot be read: {error}") from error
    layers = []
    for section in (EVERY, alias.name):
        if parser.has_section(section):
            where = f"{file}, section [{section}]"
            layer = _parse_section(parser.items(section), where)
            # What goes for every alias may name ports that only some of them have.
            check_layer(layer, where, alias.ports if section == alias.name else None)
            layers.append(layer)
    return merge_layers(*layers)


def _parse_section(items: Iterable[tuple[str, str]], where: str) -> dict[str, Any]:
    """Return a section as a layer: ``port.NAME``, ``env.NAME`` and ``/target`` are grouped."""
    layer: dict[str, Any] = {}
    for key, value in items:
        kind, dot, name = key.partition(".")
        if key.startswith("/"):
            layer.setdefault("mounts", []).append(
                _parse_value(where, parse_mount, f"{value}:{key}")
            )
        elif dot and kind == "port":
            layer.setdefault("ports", {})[name] = int(value) if value.isdigit() else value
        elif dot and kind == "env":
            layer.setdefault("environment", {})[name] = value
        elif key == "options":
            layer[key] = _parse_value(where, shlex.split, value)
        elif key == "quiet":
            layer[key] = YES.get(value.lower(), value)
        elif key in ("ports", "mounts", "environment"):
            raise MlError(
                f"{where}: write port.NAME = NUMBER, env.NAME = VALUE and /TARGET = FOLDER "
                f"instead of {key}"
            )
        else:
            layer[key] = value
    return layer


def _parse_value(where: str, read: Callable[[str], Any], value: str) -> Any:
    """Return what READ makes of a value; say WHERE it stands if that is nothing."""
    try:
        return read(value)
    except (MlError, ValueError) as error:
        raise MlError(f"{where}: {error}") from error


def parse_mount(spelled: str) -> dict[str, Any]:
    """Return the mount that ``SOURCE[:ro]:TARGET`` or ``SOURCE:TARGET[:ro]`` says.

    Raise MlError for anything else.
    """
    words = spelled.split(":")
    read_only = "ro" in words[1:]
    paths = [word.strip() for word in words if word not in ("ro", "rw")]
    if len(paths) != 2:
        raise MlError(f"a mount is written SOURCE:TARGET or SOURCE:TARGET:ro, and not {spelled!r}")
    found = {"source": paths[0], "target": paths[1], "read_only": read_only}
    should = _check_mounts([found])
    if should:
        raise MlError(f"{spelled!r} is not {should}")
    return found
