# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Templating of the roles' own text, made ready once a run.

Ansible compiles a template and looks for a filter each time that they are used, so for each host
again; that took half of the time that the controller spends on a host where nothing differs.  The
outcome depends on nothing but the text, as long as it is text of the roles: only that is
remembered, and the inventory's templates are left to Ansible.

This reaches into ansible-core, which has no door for it.  Where a release moved what is used here,
templates are compiled each time, as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from types import CodeType
from typing import Any

from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar
from jinja2 import TemplateError

# The Jinja environment of prepare(), shared with every process that is forked from this one.
_ready: list[Any] = []


def prepare(values: Iterable[object], filters: Iterable[str]) -> None:
    """Compile all templates in VALUES and load FILTERS."""
    engine = getattr(Templar(loader=DataLoader()), "_engine", None)
    environment = getattr(engine, "environment", None)
    if environment is None:
        return
    compiled: dict[str, CodeType] = {}
    for text in set(_templates(values)):
        # One that is wrong is left for whoever uses it, and gets Ansible's error then.
        with suppress(TemplateError):
            compiled[text] = environment.compile(text)
    environment.compile = _remembering(compiled, environment.compile)
    for name in filters:
        # To look whether it is there loads it.
        name in environment.filters  # noqa: B015
    _ready.append(environment)


def use_prepared(templar: Templar) -> None:
    """Let TEMPLAR take what was made ready."""
    engine: Any = getattr(templar, "_engine", None)
    if _ready and hasattr(engine, "_environment"):
        engine._environment = _ready[-1]


def _remembering(
    compiled: dict[str, CodeType], compile_anew: Callable[..., CodeType]
) -> Callable[..., CodeType]:
    def remembered(source: Any, *args: Any, **kwargs: Any) -> CodeType:
        known = compiled.get(source) if isinstance(source, str) else None
        return known or compile_anew(source, *args, **kwargs)

    return remembered


def _templates(value: object) -> Iterator[str]:
    """Yield the templates in a value of any depth."""
    if isinstance(value, str):
        if "{{" in value:
            yield value
    elif isinstance(value, dict):
        yield from _templates(value.values())
    elif isinstance(value, Iterable):
        for one in value:
            yield from _templates(one)
