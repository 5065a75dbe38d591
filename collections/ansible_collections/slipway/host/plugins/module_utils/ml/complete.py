# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Completion in shells: the words that may follow.  Without any, a shell offers file names."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .settings import Host

ML = "ml"
ALIAS_OPTIONS = (
    *("--detach", "--env", "--gpus", "--help", "--image", "--port", "--print", "--quiet"),
    *("--root", "--volume", "--workdir"),
)
# Options whose next word is their value.
WITH_VALUE = {
    *("--env", "-e", "--gpus", "--image", "--port", "--volume", "-v", "--workdir", "-w"),
}
COMMANDS = ("commit", "gui", "list", "load", "logs", "push", "run", "save", "stop", "url")


def complete_words(
    words: Sequence[str],
    host: Host,
    own: Callable[[], list[str]],
    images: Callable[[], list[str]],
    gpus: Callable[[], list[str]],
) -> list[str]:
    """Return the candidates for the last of the WORDS; the first one is the command.

    OWN, IMAGES and GPUS list the caller's containers, the images and the GPUs of this host.  They
    are slow, so each is called only where its answer is needed.
    """
    command, *before = words[:-1] or [ML]
    current = words[-1] if len(words) > 1 else ""
    if command != ML:
        return _complete_alias(command, before, current, host, images, gpus)
    if not before:
        return [*COMMANDS, "--help"]
    verb, *rest = before
    if verb in ("run", "gui"):
        if not rest:
            return sorted(host.aliases)
        return _complete_alias(rest[0], rest[1:], current, host, images, gpus)
    if verb in ("stop", "logs", "url"):
        options = {"stop": ["--all"], "logs": ["--follow"], "url": []}[verb]
        return [*own(), *options]
    if verb == "list":
        return ["--json"]
    if rest:
        return []
    return {"commit": own, "save": images, "push": images}.get(verb, list)()


def _complete_alias(
    name: str,
    before: Sequence[str],
    current: str,
    host: Host,
    images: Callable[[], list[str]],
    gpus: Callable[[], list[str]],
) -> list[str]:
    """Return the candidates after an alias: its options, then their values."""
    previous = before[-1] if before else ""
    if previous == "--gpus":
        return ["free", "all", "none", *gpus()]
    if previous == "--image":
        return images()
    if previous == "--port":
        alias = host.aliases.get(name)
        return [f"{port}=" for port in alias.ports] if alias else []
    if previous in WITH_VALUE or _has_command(before):
        return []
    return list(ALIAS_OPTIONS) if current.startswith("-") else []


def _has_command(before: Sequence[str]) -> bool:
    """Whether the command to run in the container begins in the words before."""
    value = False
    for word in before:
        if not value and not word.startswith("-"):
            return True
        value = not value and word in WITH_VALUE
    return False
