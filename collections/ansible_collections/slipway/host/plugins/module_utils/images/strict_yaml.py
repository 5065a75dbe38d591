# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""YAML as declarations of images use it: each key once, no dates, and the line of each key."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml


class StrictYamlError(ValueError):
    """A text is not YAML; the message is the problem, ``place`` is ``:LINE`` or empty."""

    def __init__(self, problem: str, place: str = "") -> None:
        super().__init__(problem)
        self.place = place


if TYPE_CHECKING:
    from yaml import SafeLoader
else:
    # libyaml, if PyYAML has it: a catalogue is read in half the time.
    SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class StrictLoader(SafeLoader):
    """YAML without duplicate keys and without dates: `2023-04-30` is a text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Raise an error for a duplicate key; YAML would silently use the last one."""
        seen: set[Any] = set()
        for key_node, _value in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"duplicate key {key_node.value!r}", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read(text: str) -> tuple[Any, yaml.Node | None]:
    """Return the document in a text, and its node for `line_of`; raise StrictYamlError."""
    try:
        loader = StrictLoader(text)
        node = loader.get_single_node()
        return node and loader.construct_document(node), node
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise StrictYamlError(str(error.problem), f":{line}") from error
    except yaml.YAMLError as error:
        raise StrictYamlError(str(error)) from error


def line_in_file(file: Path, key: str) -> int:
    """Return the line of a key such as `files[0].from`, of its deepest part that the file has."""
    _document, node = read(file.read_text(encoding="utf-8"))
    parts = re.findall(r"[^.\[\]]+", key)
    return line_of(node, [int(part) if part.isdigit() else part for part in parts])


def line_of(node: yaml.Node | None, path: Iterable[str | int]) -> int:
    """Return the line, from 1, of the deepest part of the path that the document has."""
    line = 1
    for part in path:
        if isinstance(node, yaml.MappingNode):
            entries = [(key, value) for key, value in node.value if key.value == str(part)]
            if not entries:
                break
            line, node = entries[0][0].start_mark.line + 1, entries[0][1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line
