# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The three forms of JSON: version 1 keeps every key that scripts may read."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jsonschema
import pytest
from ansible_collections.slipway.host.plugins.module_utils.host import acceptance
from ansible_collections.slipway.host.plugins.module_utils.state import report as state_report
from ansible_collections.slipway.host.plugins.plugin_utils.fleet import history

from tests.contract.tree import ROOT

# Keys of version 1, which no change removes. A new key is added; for a removed one, the form needs
# a new version.
KEYS: dict[str, list[str]] = json.loads((ROOT / "tests/unit/json_version_1.json").read_text())
VERSIONS = {
    "acceptance-report": acceptance.VERSION,
    "host-report": history.VERSION,
    "run-report": state_report.VERSION,
}


def schema(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / f"docs/{name}.schema.json").read_text())
    return found


def required(part: Mapping[str, Any], top: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Yield the path of each key that JSON of a schema always has."""
    if reference := part.get("$ref"):
        part = top["$defs"][str(reference).rpartition("/")[2]]
    for key in part.get("required", ()):
        yield f"{path}.{key}"
    for key, below in part.get("properties", {}).items():
        yield from required(below, top, f"{path}.{key}")
    for word, mark in (("items", "[]"), ("additionalProperties", ".*")):
        if isinstance(below := part.get(word), dict):
            yield from required(below, top, f"{path}{mark}")


@pytest.mark.parametrize("name", VERSIONS)
def test_version_1_keeps_its_keys(name: str) -> None:
    assert VERSIONS[name] == 1
    found = schema(name)
    assert sorted({*required(found, found)}) == KEYS[name], "record new keys; remove none"


@pytest.mark.parametrize("name", VERSIONS)
def test_a_form_names_its_schema_and_version(name: str) -> None:
    recorded = KEYS[name]
    assert [path for path in recorded if path.endswith(".schema")]
    assert [path for path in recorded if path.endswith(".version")]


def test_the_test_finds_a_removed_key() -> None:
    found = schema("run-report")
    found["additionalProperties"]["properties"]["conflicts"]["additionalProperties"]["items"][
        "required"
    ].remove("reason")
    assert {*KEYS["run-report"]} - {*required(found, found)} == {".*.conflicts.*[].reason"}


def validate_run(report: Any) -> None:
    """Raise ValidationError for JSON that is not in the form of a run."""
    jsonschema.Draft202012Validator(schema("run-report")).validate(report)


def test_a_key_of_another_type_is_an_error() -> None:
    with pytest.raises(jsonschema.ValidationError):
        validate_run({"a": {"state": "no_drift"}})


RUN = state_report.as_json({"a": {"state": "no_drift", "differences": {}, "conflicts": {}}})
PARTS: dict[str, Any] = {"consequences": [], "health": [], "information": [], "waiting": []}
PARTS |= {"checks": [], "system": {}, "urls": {}, "notes": []}


def test_verify_prints_json_alone(program: Callable[[str, str], None]) -> None:
    report = json.dumps({host: {**entry, **PARTS} for host, entry in RUN.items()})
    program("ansible-playbook", f"echo '{report}' >$SLIPWAY_REPORT; echo a task; exit 2")
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools/verify.py"), "--json"], capture_output=True, text=True
    )
    assert done.returncode == 2
    found = json.loads(done.stdout)
    jsonschema.Draft202012Validator(schema("acceptance-report")).validate(found)
    assert found["hosts"]["a"]["error"] == "no check ran"
    assert done.stderr.startswith("a task\n")
    assert "Accepted: 0 of 1 hosts." in done.stderr


def test_verify_prints_json_of_a_run_without_hosts(program: Callable[[str, str], None]) -> None:
    program("ansible-playbook", "echo broken inventory >&2; exit 4")
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools/verify.py"), "--json"], capture_output=True, text=True
    )
    assert (done.returncode, json.loads(done.stdout)["hosts"]) == (4, {})
    assert done.stderr.startswith("broken inventory\n")
