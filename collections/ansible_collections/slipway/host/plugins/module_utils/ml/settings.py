# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The settings of an alias, in layers; each layer overrides the one before.

The layers are the project's defaults, the image, the host (for all aliases, then for one), the user
(for all, then for one), and the command line.  A layer is a mapping with any of these keys:

============  =====================================================================================
key           value
============  =====================================================================================
image         reference of another image to start
gpus          ``free`` (every GPU that nobody uses), ``all``, ``none``, or indexes such as ``0,1``
              or, of a partitioned GPU, ``0:1``
workdir       folder in the container to start in
ports         host port by the image's name of the port
mounts        list of source, target, read_only?, optional?; a layer replaces by target
environment   variables
shm_size      size of /dev/shm, for example ``8g``
memory        the most memory, for example ``32g``
cpus          processors, for example ``4`` or ``0.5``
options       more options of docker run; a layer adds to them
quiet         whether to print warnings only
partition     partition of the Slurm cluster; ignored on other hosts
time          time limit of the job, for example ``12:00:00``; ignored on other hosts
============  =====================================================================================
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .caller import user_folder
from .errors import MlError, reason, suggest

Layer = Mapping[str, Any]

HOST_FILE = Path("/etc/slipway/aliases.json")
USER_FILE = "slipway/aliases.ini"
# The section of the user's file for all aliases.
ALL_ALIASES = "*"
# A larger file is no settings file.
LARGEST_FILE = 1 << 20

# Docker's 64 MB for /dev/shm are too small for PyTorch's data loaders.  A limit reserves no memory.
DEFAULTS: Layer = {"gpus": "free", "shm_size": "8g"}

GPUS = re.compile(r"(free|all|none|\d+(:\d+)?(,\d+(:\d+)?)*)\Z", re.ASCII)
SIZE = re.compile(r"\d+[bkmg]?\Z", re.IGNORECASE | re.ASCII)
ABSOLUTE = re.compile(r"/[^\0\n]*\Z")
SOURCE = re.compile(r"(/[^\0\n]*|~(/[^\0\n]*)?)\Z")
NUMBER = re.compile(r"\d+(\.\d+)?\Z", re.ASCII)
PARTITION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\Z", re.ASCII)
# Slurm also reads minutes, which look like hours.
TIME = re.compile(r"(\d+-\d+(:\d\d){0,2}|\d+:\d\d:\d\d)\Z", re.ASCII)
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
LINE = re.compile(r"[^\0\n]+\Z")
YES = {"yes": True, "true": True, "on": True, "no": False, "false": False, "off": False}


# A check returns None for a valid value, else the expected value as text.
Check = Callable[[Any], "str | None"]


def _text_check(pattern: re.Pattern[str], expected: str) -> Check:
    """Return a check that a value is text that matches."""
    return lambda value: None if isinstance(value, str) and pattern.match(value) else expected


def _mapping_check(key: re.Pattern[str], is_valid: Callable[[Any], bool], expected: str) -> Check:
    """Return a check that all keys of a mapping match and all its values are valid."""

    def check(value: Any) -> str | None:
        valid = isinstance(value, Mapping) and all(
            isinstance(name, str) and key.match(name) and is_valid(entry)
            for name, entry in value.items()
        )
        return None if valid else expected

    return check


def _is_port(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 65536


def _check_mounts(value: Any) -> str | None:
    expected = "a list of mounts, each with source, target, and optionally read_only and optional"
    if not isinstance(value, list):
        return expected
    for entry in value:
        known = isinstance(entry, Mapping) and set(entry) <= {
            "source", "target", "read_only", "optional",
        }  # fmt: skip
        if not known or not {"source", "target"} <= set(entry):
            return expected
        if not SOURCE.match(str(entry["source"])):
            return "mounts whose source is an absolute path or begins with ~"
        if not ABSOLUTE.match(str(entry["target"])):
            return "mounts whose target is an absolute path"
    return None


CHECKS: Mapping[str, Check] = {
    "image": _text_check(LINE, "an image reference such as me/work:1"),
    "gpus": _text_check(GPUS, "free, all, none, or indexes such as 0,1"),
    "workdir": _text_check(ABSOLUTE, "an absolute path in the container"),
    "ports": _mapping_check(LINE, _is_port, "port numbers of the host, by port name of the image"),
    "mounts": _check_mounts,
    "environment": _mapping_check(
        VARIABLE, lambda value: isinstance(value, str), "text values, by variable name"
    ),
    "shm_size": _text_check(SIZE, "a size such as 8g"),
    "memory": _text_check(SIZE, "a size such as 32g"),
    "cpus": _text_check(NUMBER, "a number of processors such as 4 or 0.5"),
    "options": lambda value: (
        None
        if isinstance(value, list) and all(isinstance(word, str) for word in value)
        else "a list of options of docker run"
    ),
    "quiet": lambda value: None if isinstance(value, bool) else "yes or no",
    "partition": _text_check(PARTITION, "the name of a partition of Slurm"),
    "time": _text_check(TIME, "hours as 12:00:00, or days and hours as 1-12:00:00"),
}


def check_layer(layer: Layer, where: str, ports: Iterable[str] | None = None) -> None:
    """Raise MlError for an invalid setting in a layer; PORTS are the port names of the image."""
    for key, value in layer.items():
        if key not in CHECKS:
            raise MlError(f"{where}: unknown setting {key}. {suggest(key, CHECKS)}")
        expected = CHECKS[key](value)
        if expected:
            raise MlError(f"{where}: {key} is {value!r}; expected {expected}")
    if ports is not None:
        for name in layer.get("ports", {}):
            if name not in set(ports):
                raise MlError(f"{where}: the image has no port {name}. {suggest(name, ports)}")


def merge_layers(*layers: Layer) -> dict[str, Any]:
    """Return the merged settings of layers, the weakest first."""
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


class Port(NamedTuple):
    """A port of an image: its number in the container, and the path that a person opens there.

    The path is empty for a port without a page; ``{token}`` in it stands for the user's token.
    """

    inside: int
    path: str


class Alias(NamedTuple):
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


class Cuda(NamedTuple):
    """The CUDA release in an image, and the oldest driver branch that runs the release."""

    release: str
    driver: int


class Host(NamedTuple):
    """The host's declaration: the contact person, aliases by every name, images by name.

    cuda: CUDA releases of images by reference; images without CUDA are missing.
    slurm: whether aliases with GPUs are jobs of a Slurm cluster.
    """

    contact: str
    aliases: Mapping[str, Alias]
    images: Mapping[str, str]
    cuda: Mapping[str, Cuda]
    slurm: bool = False

    def alias(self, name: str) -> Alias:
        """Return the alias of a name.  Raise MlError for an unknown name."""
        if name not in self.aliases:
            raise MlError(f"no alias {name} on this host. {suggest(name, self.aliases)}")
        return self.aliases[name]


def read_host(file: Path = HOST_FILE) -> Host:
    """Read the host's declaration, also without CUDA releases.  Raise MlError if that fails."""
    try:
        declared = json.loads(file.read_text(encoding="utf-8"))
        aliases = {
            main: _parse_alias(_text(main), entry) for main, entry in declared["aliases"].items()
        }
        return Host(
            contact=_text(declared["contact"]),
            aliases={
                _text(name): aliases[main]
                for main, entry in declared["aliases"].items()
                for name in (main, *entry["names"])
            },
            images={name: _text(reference) for name, reference in declared["images"].items()},
            cuda={
                reference: Cuda(_text(entry["release"]), _number(entry["driver"]))
                for reference, entry in declared.get("cuda", {}).items()
            },
            slurm=declared.get("slurm") is True,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, MlError) as error:
        raise MlError(
            f"cannot read {file}: {reason(error, file)}. Run Slipway's role ml_aliases again"
        ) from error


def _parse_alias(name: str, entry: Mapping[str, Any]) -> Alias:
    """Return a declared alias.  Raise TypeError, KeyError or MlError for an invalid one."""
    ports = {
        key: Port(_port(port["inside"]), _text(port["path"]))
        for key, port in entry["ports"].items()
    }
    merged = entry["settings"]
    check_layer(merged, f"alias {name}", ports)
    return Alias(
        name=name,
        description=_text(entry["description"]),
        image=_text(entry["image"]),
        variant=_text(entry["variant"]),
        network=_text(entry["network"]),
        command=tuple(map(_text, entry["command"])),
        ports=ports,
        settings={"image": merged["image"], "gpus": merged["gpus"], **merged},
    )


def _text(value: Any) -> str:
    """Return a text.  Raise TypeError for another value."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value


def _number(value: Any) -> int:
    """Return a whole number.  Raise TypeError for another value."""
    if type(value) is not int:
        raise TypeError(f"{value!r} is not a whole number")
    return value


def _port(value: Any) -> int:
    """Return a port number.  Raise TypeError for another value."""
    if not _is_port(value):
        raise TypeError(f"{value!r} is not a port number")
    return int(value)


def user_file() -> Path:
    """Return the path of the user's settings."""
    return user_folder("XDG_CONFIG_HOME", ".config") / USER_FILE


def read_user_file(file: Path) -> str:
    """Return the text of the user's settings, empty without a file.

    Raise OSError for a file that cannot be read, and for a pipe or device, which might never end.
    """
    try:
        with os.fdopen(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
            if not os.path.isfile(stream.fileno()):
                raise OSError("not a file")
            content = stream.read(LARGEST_FILE + 1)
    except FileNotFoundError:
        return ""
    if len(content) > LARGEST_FILE:
        raise OSError(f"larger than {LARGEST_FILE} bytes")
    return content.decode("utf-8")


def read_user_layer(alias: Alias, file: Path) -> dict[str, Any]:
    """Return the user's layer for an alias; it is empty without a file.

    Raise MlError for a file that cannot be read and for invalid settings.
    """
    try:
        text = read_user_file(file)
    except (OSError, ValueError) as error:
        raise MlError(f"cannot read {file}: {reason(error, file)}") from error
    return parse_user_layer(alias, text, str(file)) if text else {}


def parse_user_layer(alias: Alias, text: str, file: str) -> dict[str, Any]:
    """Return the user's layer for an alias from the text of FILE.

    Raise MlError for invalid settings.
    """
    import configparser

    parser = configparser.RawConfigParser(delimiters=("=",), default_section="")
    # Names of variables are case-sensitive.
    parser.optionxform = str  # type: ignore[method-assign,assignment]
    try:
        parser.read_string(text, file)
    except configparser.Error as error:
        raise MlError(f"cannot read {file}: {reason(error, file)}") from error
    layers = []
    for section in (ALL_ALIASES, alias.name):
        if parser.has_section(section):
            where = f"{file}, section [{section}]"
            layer = _parse_section(parser.items(section), where)
            # The section for all aliases may name ports that only some of them have.
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
            layer.setdefault("ports", {})[name] = parse_port(value)
        elif dot and kind == "env":
            layer.setdefault("environment", {})[name] = value
        elif key == "options":
            layer[key] = _parse_value(where, _split_options, value)
        elif key == "quiet":
            layer[key] = YES.get(value.lower(), value)
        elif key in ("ports", "mounts", "environment"):
            raise MlError(
                f"{where}: {key} is not a setting of this file. "
                "Write port.NAME = NUMBER, env.NAME = VALUE or /TARGET = FOLDER"
            )
        else:
            layer[key] = value
    return layer


def _split_options(value: str) -> list[str]:
    import shlex

    return shlex.split(value)


def parse_port(number: str) -> int | str:
    """Return a port number as a number; any other text unchanged, for the check of the layer."""
    return int(number) if re.fullmatch(r"[0-9]{1,5}", number) else number


def _parse_value(where: str, parse: Callable[[str], Any], value: str) -> Any:
    """Return the parsed value; WHERE begins the message of an error."""
    try:
        return parse(value)
    except (MlError, ValueError) as error:
        raise MlError(f"{where}: {reason(error)}") from error


def parse_mount(text: str) -> dict[str, Any]:
    """Return the mount of ``SOURCE[:ro]:TARGET`` or ``SOURCE:TARGET[:ro]``.

    Raise MlError for any other form.
    """
    fields = text.split(":")
    read_only = "ro" in fields[1:]
    paths = [field.strip() for field in fields if field not in ("ro", "rw")]
    if len(paths) != 2:
        raise MlError(f"mount {text!r}; expected SOURCE:TARGET or SOURCE:TARGET:ro")
    mount = {"source": paths[0], "target": paths[1], "read_only": read_only}
    expected = _check_mounts([mount])
    if expected:
        raise MlError(f"mount {text!r}; expected {expected}")
    return mount
