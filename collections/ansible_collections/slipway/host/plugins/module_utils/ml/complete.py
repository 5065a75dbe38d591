# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Completion in shells: candidates for the next word.

If there are none, the shell completes file names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

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
# Options of commands of ml whose words are containers.
CONTAINER_OPTIONS = {"stop": ["--all"], "remove": ["--all"], "logs": ["--follow"], "url": []}
# Options of commands of ml that have no other words.
OPTIONS = {"list": ["--all", "--json"], "chat": ["--model", "--server"]}


List = Callable[[], list[str]]


def complete_words(
    words: Sequence[str],
    host: Host,
    commands: Iterable[str],
    list_running: List,
    list_ended: List,
    list_images: List,
    list_gpus: List,
) -> list[str]:
    """Return the candidates for the last of the WORDS; the first word is the command.

    COMMANDS are those of ml. The functions list the caller's containers, the images and the GPUs of
    this host. They are slow, so each is called only if its result is needed.
    """
    command, *previous = words[:-1] or [ML]
    current = words[-1] if len(words) > 1 else ""
    if command != ML:
        return _complete_alias(command, previous, current, host, list_images, list_gpus)
    if not previous:
        return [*sorted(commands), "--help"]
    verb, *arguments = previous
    if verb in ("run", "gui"):
        if not arguments:
            return sorted(host.aliases)
        name, *alias_words = arguments
        return _complete_alias(name, alias_words, current, host, list_images, list_gpus)
    if verb in CONTAINER_OPTIONS:
        names = [] if verb == "remove" else list_running()
        names += list_ended() if verb in ("remove", "logs") else []
        return [*names, *CONTAINER_OPTIONS[verb]]
    if verb in OPTIONS and arguments[-1:] != ["--server"]:
        return OPTIONS[verb]
    if arguments and verb != "chat":
        return []
    lists = {
        "commit": list_running,
        "chat": list_running,
        **dict.fromkeys(("doctor", "push", "save"), list_images),
    }
    return lists.get(verb, list)()


def _complete_alias(
    name: str,
    previous: Sequence[str],
    current: str,
    host: Host,
    list_images: List,
    list_gpus: List,
) -> list[str]:
    """Return the candidates after an alias: its options, or the values of an option."""
    option = previous[-1] if previous else ""
    if option == "--gpus":
        return ["free", "all", "none", *list_gpus()]
    if option == "--image":
        return list_images()
    if option == "--port":
        alias = host.aliases.get(name)
        return [f"{port}=" for port in alias.ports] if alias else []
    if option in WITH_VALUE or _has_command(previous):
        return []
    return list(ALIAS_OPTIONS) if current.startswith("-") else []


def _has_command(words: Sequence[str]) -> bool:
    """Return whether WORDS contain the command to run in the container, or its beginning."""
    is_value = False
    for word in words:
        if not is_value and not word.startswith("-"):
            return True
        is_value = not is_value and word in WITH_VALUE
    return False
