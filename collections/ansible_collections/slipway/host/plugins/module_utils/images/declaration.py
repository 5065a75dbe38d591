# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads YAML declarations strictly and validates them by JSON Schema.

Only for the collection itself. Runs on the controller.

The schemas are ordinary JSON Schema (2020-12), so editors complete and check the same files.  Each
error names file, line and key: `<file>:<line>: <key>: <found>; expected <expected>. <What to do>.`
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ansible_collections.slipway.host.plugins.module_utils.images import released

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator, ValidationError

Schema = Mapping[str, Any]
KeyPath: TypeAlias = "tuple[str | int, ...]"

_TYPE_NAMES: Mapping[str, str] = {
    "object": "a mapping",
    "array": "a list",
    "string": "a string",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "null": "nothing",
}


# The first version that does not accept keys with `renamedTo` (decision 0035).
OLD_KEYS_UNTIL = "0.3"


class DeclarationError(ValueError):
    """An invalid declaration. The message names the file, the key and the allowed values."""


@dataclass(frozen=True)
class Problem:
    """A mistake in a document: the key path, the value found, the value expected, the remedy."""

    path: KeyPath
    found: str
    expected: str
    remedy: str

    def __str__(self) -> str:
        """Return `key.path[0]: found; expected this. Do that.`."""
        key = f"{key_path(self.path)}: " if self.path else ""
        return f"{key}{self.found}; expected {self.expected}. {self.remedy}"


def key_path(path: KeyPath) -> str:
    """Return a path as people write it: `service.publish`, `copy[0].from`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def suggest(word: str, known_words: Iterable[str]) -> str:
    """Return `Did you mean 'x'?` for the known word most like this one, or an empty string."""
    matches = difflib.get_close_matches(word, list(known_words), n=1, cutoff=0.6)
    return f"Did you mean {matches[0]!r}?" if matches else ""


def load(path: Path, schema: Schema, warnings: list[str] | None = None) -> dict[str, Any]:
    """Read a YAML mapping and validate it; the schema's defaults are not filled in.

    An old key, declared in the schema with `renamedTo`, gets its new name and adds to `warnings`.
    Raise DeclarationError for a file that cannot be read or is not YAML, for a duplicate key, and
    for everything the schema forbids.  The error lists all problems, each with its line.
    """
    # Imported late, because the survey reads catalogues from its cache.
    from ansible_collections.slipway.host.plugins.module_utils.images import strict_yaml

    try:
        text = path.read_text(encoding="utf-8")
        document, node = strict_yaml.read(text)
    except OSError as error:
        raise DeclarationError(f"{path}: cannot read the file: {error}.") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DeclarationError(
            f"{path}:{line}: found a byte that is not UTF-8; expected UTF-8. Save the file "
            "as UTF-8."
        ) from error
    except strict_yaml.StrictYamlError as error:
        raise DeclarationError(f"{path}{error.place}: invalid YAML: {error}.") from error
    renamed: list[KeyPath] = []
    conflicts: list[Problem] = []
    document = _rename_old_keys(document, schema, schema, (), renamed, conflicts)
    problems = [*conflicts, *_validate_file(path, document, schema)]
    located = [(strict_yaml.line_of(node, problem.path), problem) for problem in problems]
    if located:
        located.sort(key=lambda entry: entry[0])
        raise DeclarationError("\n".join(f"{path}:{line}: {problem}" for line, problem in located))
    if not isinstance(document, dict):
        raise DeclarationError(f"{path}:1: {_describe(document)}; expected a mapping.")
    if warnings is not None:
        warnings += [
            f"{path}:{strict_yaml.line_of(node, key)}: {key_path(key)} is now named "
            f"{_rule_at(schema, key)['renamedTo']}. The old name is accepted until version "
            f"{OLD_KEYS_UNTIL}."
            for key in renamed
        ]
    return dict(document)


def _rename_old_keys(
    value: Any,
    schema: Schema,
    root: Schema,
    path: KeyPath,
    renamed: list[KeyPath],
    conflicts: list[Problem],
) -> Any:
    """Return a value with new names for its old keys; add the old keys to `renamed`.

    A mapping with the old and the new key adds a problem to `conflicts`.
    """
    rule = _resolve(schema, root) if isinstance(schema, Mapping) else {}
    if isinstance(value, list):
        items = rule.get("items", {})
        return [
            _rename_old_keys(entry, items, root, (*path, index), renamed, conflicts)
            for index, entry in enumerate(value)
        ]
    if not isinstance(value, dict):
        return value
    result = {}
    for key, entry in value.items():
        inner = rule.get("properties", {}).get(key, rule.get("additionalProperties", {}))
        new_key = inner.get("renamedTo", key) if isinstance(inner, Mapping) else key
        inner_path = (*path, str(key))
        if new_key != key:
            if new_key in value:
                found = f"set beside {new_key}, its new name"
                conflicts.append(Problem(inner_path, found, f"only {new_key}", f"Remove {key}."))
                continue
            renamed.append(inner_path)
        result[new_key] = _rename_old_keys(entry, inner, root, inner_path, renamed, conflicts)
    return result


def validate(document: Any, schema: Schema) -> Iterator[Problem]:
    """Yield the mistakes in a document. Raise ImportError without the package jsonschema."""
    for error in _validator_class()(schema).iter_errors(document):
        yield from _problems(error, schema)


def _validate_file(path: Path, document: Any, schema: Schema) -> list[Problem]:
    """Return the mistakes in a file.

    ansible-core does not install jsonschema. Without it, only the catalogue of the installed
    collection can be used: that catalogue was validated when the collection was built.
    """
    try:
        return list(validate(document, schema))
    except ImportError as error:
        if released.is_released(path):
            return []
        raise DeclarationError(
            f"{path}: cannot validate the file: the Python package jsonschema is missing on the "
            "controller. Install it for the Python of Ansible: pip install jsonschema"
        ) from error


def with_defaults(document: Mapping[str, Any], schema: Schema) -> dict[str, Any]:
    """Return the mapping with the schema's `default` for every property that is absent.

    Nested mappings that are present get their defaults too. The input is not changed.
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


@cache
def _validator_class() -> type[Draft202012Validator]:
    """Return the validator of jsonschema, as strict as YAML and Python need it.

    Imported late: jsonschema takes longer to import than a survey with a catalogue in its cache.
    """
    from jsonschema import Draft202012Validator, ValidationError, validators

    def match_pattern(
        _validator: Draft202012Validator, pattern: str, value: Any, _rule: Schema
    ) -> Iterator[ValidationError]:
        # In JSON Schema `$` is the end of the text; in Python it also stands before a last newline.
        if isinstance(value, str) and not re.search(re.sub(r"\$$", r"\\Z", pattern), value):
            yield ValidationError(f"{value!r} does not match {pattern!r}")

    # JSON Schema accepts 80.0 as an integer; as a port number it is a mistake.
    checker = Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _checker, value: isinstance(value, int) and not isinstance(value, bool)
    )
    strict: type[Draft202012Validator] = validators.extend(  # type: ignore[no-untyped-call]
        Draft202012Validator, {"pattern": match_pattern}, type_checker=checker
    )
    return strict


def preload() -> None:
    """Import jsonschema, if it is installed, before Ansible forks a process for each host."""
    with suppress(ImportError):
        _validator_class()


def _problems(error: ValidationError, schema: Schema) -> Iterator[Problem]:
    """Yield the problems in an error of jsonschema, one for each invalid key or item."""
    path: KeyPath = tuple(error.absolute_path)
    value: Any = error.instance
    rule = _rule_at(schema, path)
    if "propertyNames" in error.absolute_schema_path:
        path, rule = (*path, str(value)), error.schema if isinstance(error.schema, dict) else {}
        wrong_type = error.validator == "type"
        expected = _expect("a string", rule) if wrong_type else _allowed(rule, str(rule["pattern"]))
        remedy = "Put the key in quotes." if wrong_type else "Rename the key."
        yield Problem(path, f"key {value!r}", expected, remedy)
    elif error.validator == "additionalProperties":
        known = rule.get("properties", {})
        for key in [key for key in value if key not in known]:
            remedy = suggest(str(key), known) or "Rename or remove the key."
            names = ", ".join(sorted(k for k, rule in known.items() if "renamedTo" not in rule))
            yield Problem((*path, str(key)), "unknown key", f"one of: {names}", remedy)
    elif error.validator == "required":
        # jsonschema reports each missing key on its own, and names the key only in the message.
        required: Any = error.validator_value
        for key in [key for key in required if error.message.startswith(repr(key))]:
            expected = _expect("a value", _rule_at(schema, (*path, key)))
            yield Problem((*path, key), "missing key", expected, "Add the key.")
    else:
        yield Problem(path, *_value_problem(error, rule))


def _value_problem(error: ValidationError, rule: Schema) -> tuple[str, str, str]:
    """Return the value found, the value expected and the remedy."""
    value: Any = error.instance
    limit: Any = error.validator_value
    change = "Change the value."
    match error.validator:
        case "type":
            remedy = "Put the value in quotes." if _needs_quotes(value, limit) else change
            return _describe(value), _expect(_type_names(limit), rule), remedy
        case "enum":
            choices = [str(choice) for choice in limit]
            remedy = suggest(str(value), choices) or change
            return repr(value), f"one of: {', '.join(choices)}", remedy
        case "pattern":
            return repr(value), _allowed(rule, limit), change
        case "minimum":
            return str(value), _expect(f"at least {limit}", rule), change
        case "maximum":
            return str(value), _expect(f"at most {limit}", rule), change
        case "minItems":
            return f"{len(value)} items", _expect(f"at least {limit}", rule), "Add an item."
        case "uniqueItems":
            repeated = next(item for index, item in enumerate(value) if item in value[:index])
            return f"duplicate item {repeated!r}", "each item once", "Remove the duplicate."
    return repr(value), f"a value that fits {error.validator}: {limit!r}", change


def _rule_at(schema: Schema, path: KeyPath) -> Schema:
    """Return the part of a schema that applies to a key path of a document."""
    rule = _resolve(schema, schema)
    for part in path:
        if isinstance(part, int):
            inner = rule.get("items", {})
        else:
            inner = rule.get("properties", {}).get(part, rule.get("additionalProperties", {}))
        rule = _resolve(inner, schema) if isinstance(inner, Mapping) else {}
    return rule


def _resolve(schema: Schema, root: Schema) -> Schema:
    """Follow a `$ref` into `$defs`; keywords beside the reference override those of its target."""
    reference = schema.get("$ref")
    if reference is None:
        return schema
    target = root["$defs"][str(reference).removeprefix("#/$defs/")]
    return {**_resolve(target, root), **{k: v for k, v in schema.items() if k != "$ref"}}


def _type_names(expected: str | list[str]) -> str:
    names = [expected] if isinstance(expected, str) else expected
    return " or ".join(_TYPE_NAMES[name] for name in names)


def _needs_quotes(value: Any, expected: str | list[str]) -> bool:
    """Return whether YAML read a text without quotes as another type."""
    return "string" in expected and isinstance(value, bool | int | float)


def _describe(value: Any) -> str:
    """Return a value with its type, as YAML reads it."""
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    for kinds, name in ((dict, "a mapping"), (list, "a list"), (str, f"the string {value!r}")):
        if isinstance(value, kinds):
            return name
    return f"the number {value!r}"


def _expect(expected: str, rule: Schema) -> str:
    """Return the expected value, followed by the description of the rule."""
    description = rule.get("description")
    return f"{expected} ({description})" if description else expected


def _allowed(rule: Schema, pattern: str) -> str:
    """Return the rule's description, else the pattern that a text must match."""
    return str(rule.get("description") or f"text that matches {pattern}")
