# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Templates that are compiled once a run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import filter_loader
from ansible.template import Templar, trust_as_template
from ansible_collections.slipway.host.plugins.plugin_utils import _templates
from jinja2 import Environment

OURS = "{{ greeting }}, {{ name }}"


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What Jinja compiles from here on."""
    monkeypatch.setattr(_templates, "_ready", [])
    texts: list[str] = []
    compile_anew = Environment.compile

    def compile_and_note(self: Environment, source: Any, *args: Any, **kwargs: Any) -> Any:
        texts.append(str(source))
        return compile_anew(self, source, *args, **kwargs)

    monkeypatch.setattr(Environment, "compile", compile_and_note)
    yield texts


def rendered(text: str, **variables: str) -> str:
    templar = Templar(loader=DataLoader(), variables=variables)
    _templates.use_prepared(templar)
    return str(templar.template(trust_as_template(text)))


def test_a_template_of_a_role_is_compiled_once_for_all_hosts(compiled: list[str]) -> None:
    _templates.prepare([{"a": ["plain", {"b": trust_as_template(OURS)}]}], [])
    hosts = [rendered(OURS, greeting="Hello", name=name) for name in ("gpu01", "gpu02")]
    assert hosts == ["Hello, gpu01", "Hello, gpu02"]
    assert compiled == [OURS]


def test_another_is_compiled_by_ansible(compiled: list[str]) -> None:
    _templates.prepare([OURS], [])
    assert rendered("{{ name | upper }}", name="gpu01") == "GPU01"
    assert compiled == [OURS, "{{ name | upper }}"]


def test_one_that_is_wrong_is_left_for_whoever_uses_it(compiled: list[str]) -> None:
    _templates.prepare(["{{ name | no_such_filter }}", OURS], [])
    assert rendered(OURS, greeting="Hello", name="gpu01") == "Hello, gpu01"
    assert compiled.count(OURS) == 1


def test_without_a_way_in_everything_is_compiled_as_ever(
    compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_templates, "Templar", lambda loader: object())
    _templates.prepare([OURS], [])
    assert rendered(OURS, greeting="Hello", name="gpu01") == "Hello, gpu01"
    assert compiled == [OURS]


def test_a_filter_is_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_templates, "_ready", [])
    _templates.prepare([], ["ansible.builtin.basename"])
    asked: list[str] = []
    get: Any = filter_loader.get

    def get_and_note(name: str, *rest: Any, **more: Any) -> Any:
        asked.append(name)
        return get(name, *rest, **more)

    monkeypatch.setattr(filter_loader, "get", get_and_note)
    assert rendered("{{ path | ansible.builtin.basename }}", path="/srv/shared") == "shared"
    assert rendered("{{ path | ansible.builtin.dirname }}", path="/srv/shared") == "/srv"
    assert asked == ["ansible.builtin.dirname"]
