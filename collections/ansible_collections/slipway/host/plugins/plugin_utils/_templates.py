# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compile the roles' templates once a run.

Ansible compiles a template each time it is used, so for each host again; that took half of the time
that the controller spends on a host where nothing differs.  The outcome depends on nothing but the
text, as long as it is text of the roles: only that is remembered, and the inventory's templates are
left to Ansible.

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

_COMPILED: dict[str, CodeType] = {}


def compile_once(values: Iterable[object]) -> None:
    """Compile all templates in VALUES, for every process that is forked from this one."""
    environment = _environment(Templar(loader=DataLoader()))
    if environment:
        for text in set(_templates(values)):
            # One that is wrong is left for whoever uses it, and gets Ansible's error then.
            with suppress(TemplateError):
                _COMPILED[text] = environment.compile(text)


def use_compiled(templar: Templar) -> None:
    """Let TEMPLAR take what was compiled already."""
    environment = _environment(templar)
    if environment:
        environment.compile = _remembering(environment.compile)


def _environment(templar: Templar) -> Any:
    """Return the Jinja environment that TEMPLAR renders with, None where it is not to be found."""
    return getattr(getattr(templar, "_engine", None), "environment", None)


def _remembering(compile_anew: Callable[..., CodeType]) -> Callable[..., CodeType]:
    def compiled(source: Any, *args: Any, **kwargs: Any) -> CodeType:
        known = _COMPILED.get(source) if isinstance(source, str) else None
        return known or compile_anew(source, *args, **kwargs)

    return compiled


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
