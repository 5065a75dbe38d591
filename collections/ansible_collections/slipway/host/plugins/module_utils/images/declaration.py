# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads YAML declarations strictly and checks them against a JSON Schema, in words.

PRIVATE to the collection. Runs on the controller.

The schemas are ordinary JSON Schema (2020-12), so editors complete and check the same files. Only
the part of it that they use is understood here, which is why ansible-core's own dependencies are
enough to run a playbook, and why each message can say what is allowed and what was probably meant.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Schema = Mapping[str, Any]
KeyPath = tuple[str | int, ...]

_ANNOTATIONS = frozenset({"$schema", "$id", "$defs", "title", "description", "default", "examples"})
_TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
_TYPE_WORDS = {
    "object": "a mapping",
    "array": "a list",
    "string": "a string",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "null": "nothing",
}


class DeclarationError(Exception):
    """A declaration that cannot be used. The text names the file, the key and what is allowed."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a document: where, and in words what and what is allowed."""

    path: KeyPath
    message: str

    def __str__(self) -> str:
        """Return `key.path[0]: message`."""
        return f"{key_path(self.path)}: {self.message}" if self.path else self.message


def key_path(path: KeyPath) -> str:
    """Return a path as people write it: `service.publish`, `copy[0].from`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the known word most like this one, or an empty string."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def load(path: Path, schema: Schema) -> dict[str, Any]:
    """Read a YAML mapping, check it, and return it with the schema's defaults left out.

    Raise DeclarationError for a file that cannot be read or is not YAML, for a key given twice,
    and for everything the schema forbids; all problems are reported at once, each with its line.
    """
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=_StrictLoader)
        document = yaml.load(text, Loader=_StrictLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise DeclarationError(f"{path}: cannot be read: {error}") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise DeclarationError(f"{path}:{line}: is not YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise DeclarationError(f"{path}: is not YAML: {error}") from error
    problems = list(check(document, schema))
    if problems:
        raise DeclarationError(
            "\n".join(f"{path}:{_line(node, problem.path)}: {problem}" for problem in problems)
        )
    return dict(document)


def check(document: Any, schema: Schema) -> Iterator[Problem]:
    """Yield what is wrong with a document, in the order of the document.

    Raise NotImplementedError when the schema uses a keyword that is not understood here: better
    than a rule that an editor enforces and a run does not.
    """
    return _check(document, schema, schema, ())


def with_defaults(document: Mapping[str, Any], schema: Schema) -> dict[str, Any]:
    """Return the mapping with the schema's `default` for every property that is absent.

    Nested mappings that are present get theirs too. The input is left alone.
    """
    return _fill(document, schema, schema)


def _fill(document: Mapping[str, Any], schema: Schema, root: Schema) -> dict[str, Any]:
    filled = dict(document)
    for name, declared in schema.get("properties", {}).items():
        rule = _resolve(declared, root)
        if name not in filled and "default" in rule:
            filled[name] = rule["default"]
        if isinstance(filled.get(name), Mapping):
            filled[name] = _fill(filled[name], rule, root)
    extra = schema.get("additionalProperties")
    if isinstance(extra, Mapping):
        rule = _resolve(extra, root)
        filled.update(
            {
                name: _fill(value, rule, root)
                for name, value in filled.items()
                if isinstance(value, Mapping) and name not in schema.get("properties", {})
            }
        )
    return filled


def _check(value: Any, schema: Schema, root: Schema, path: KeyPath) -> Iterator[Problem]:
    schema = _resolve(schema, root)
    _refuse_unknown_keywords(schema)
    expected = schema.get("type")
    if expected is not None and not _is_type(value, expected):
        yield Problem(path, f"is {_found(value)}, must be {_words(expected)}{_hint(schema)}")
        return
    if "enum" in schema and value not in schema["enum"]:
        allowed = ", ".join(map(str, schema["enum"]))
        yield Problem(
            path,
            f"is {value!r}, must be one of: {allowed}{nearest(str(value), allowed.split(', '))}",
        )
    if isinstance(value, str):
        yield from _check_text(value, schema, path)
    elif isinstance(value, dict):
        yield from _check_mapping(value, schema, root, path)
    elif isinstance(value, list):
        yield from _check_list(value, schema, root, path)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield from _check_number(value, schema, path)


def _check_text(value: str, schema: Schema, path: KeyPath) -> Iterator[Problem]:
    pattern = schema.get("pattern")
    # In JSON Schema `$` is the end of the text; in Python it also stands before a last newline.
    if pattern and not re.search(re.sub(r"\$$", r"\\Z", pattern), value):
        yield Problem(path, f"is {value!r}, which is not allowed{_hint(schema) or f': {pattern}'}")


def _check_number(value: float, schema: Schema, path: KeyPath) -> Iterator[Problem]:
    if value < schema.get("minimum", value):
        yield Problem(path, f"is {value}, must be at least {schema['minimum']}{_hint(schema)}")
    if value > schema.get("maximum", value):
        yield Problem(path, f"is {value}, must be at most {schema['maximum']}{_hint(schema)}")


def _check_list(value: list[Any], schema: Schema, root: Schema, path: KeyPath) -> Iterator[Problem]:
    if len(value) < schema.get("minItems", 0):
        yield Problem(path, f"has {len(value)} items, needs {schema['minItems']}{_hint(schema)}")
    if schema.get("uniqueItems"):
        twice = [item for index, item in enumerate(value) if item in value[:index]]
        yield from (Problem(path, f"holds {item!r} more than once") for item in twice)
    if "items" in schema:
        for index, item in enumerate(value):
            yield from _check(item, schema["items"], root, (*path, index))


def _check_mapping(
    value: dict[Any, Any], schema: Schema, root: Schema, path: KeyPath
) -> Iterator[Problem]:
    properties = schema.get("properties", {})
    extra = schema.get("additionalProperties", True)
    for key, item in value.items():
        here = (*path, str(key))
        if key in properties:
            yield from _check(item, properties[key], root, here)
        elif extra is False:
            yield Problem(
                here,
                f"is not a known key{nearest(str(key), properties)} "
                f"(known: {', '.join(sorted(properties))})",
            )
        else:
            if "propertyNames" in schema:
                yield from _check(key, schema["propertyNames"], root, here)
            if isinstance(extra, Mapping):
                yield from _check(item, extra, root, here)
    for key in schema.get("required", ()):
        if key not in value:
            rule = _resolve(properties.get(key, {}), root)
            yield Problem(path, f"lacks the key {key!r}{_hint(rule)}")


def _refuse_unknown_keywords(schema: Schema) -> None:
    understood = _ANNOTATIONS | {
        "type", "enum", "pattern", "minimum", "maximum", "minItems", "uniqueItems", "items",
        "properties", "required", "additionalProperties", "propertyNames", "$ref",
    }  # fmt: skip
    unknown = set(schema) - understood
    if unknown:
        raise NotImplementedError(f"schema keywords not understood: {', '.join(sorted(unknown))}")


def _resolve(schema: Schema, root: Schema) -> Schema:
    """Follow a `$ref` into `$defs`; keywords beside the reference win over those behind it."""
    reference = schema.get("$ref")
    if reference is None:
        return schema
    target = root["$defs"][str(reference).removeprefix("#/$defs/")]
    return {**_resolve(target, root), **{k: v for k, v in schema.items() if k != "$ref"}}


def _is_type(value: Any, expected: str | list[str]) -> bool:
    names = [expected] if isinstance(expected, str) else expected
    return any(
        isinstance(value, _TYPES[name]) and (name == "boolean" or not isinstance(value, bool))
        for name in names
    )


def _words(expected: str | list[str]) -> str:
    names = [expected] if isinstance(expected, str) else expected
    return " or ".join(_TYPE_WORDS[name] for name in names)


def _found(value: Any) -> str:
    if value is None:
        return "empty"
    kind = next(name for name in _TYPES if _is_type(value, name))
    return _TYPE_WORDS[kind] if kind in ("object", "array") else f"{_TYPE_WORDS[kind]} ({value!r})"


def _hint(schema: Schema) -> str:
    description = schema.get("description")
    return f" ({description})" if description else ""


class _StrictLoader(yaml.SafeLoader):
    """YAML with every key once and without dates: `2023-04-30` stays the text that was written."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Refuse a key that is given twice, of which YAML would silently keep the last."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key_node.value!r} is given twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


_StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _line(node: yaml.Node | None, path: KeyPath) -> int:
    """Return the line, from 1, of the deepest part of the path that the document has."""
    line = 1
    for part in path:
        if isinstance(node, yaml.MappingNode):
            found = [(key, value) for key, value in node.value if key.value == part]
            if not found:
                break
            line, node = found[0][0].start_mark.line + 1, found[0][1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line
