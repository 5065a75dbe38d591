# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask a host the question of the survey: one round trip, no module transfer.

The script that is sent consists of ``gpu/facts.py`` and of files of ``module_utils/state``. Of the
file of a kind, only the part above MARKER is sent: the part that reads the state of the host.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible_collections.slipway.host.plugins.module_utils.gpu import facts as gpu_facts
from ansible_collections.slipway.host.plugins.module_utils.state import (
    apt_sources,
    facts,
    folder,
    kinds,
    loader,
    packages,
    paths,
    probe,
    reading,
    user_rights,
)
from ansible_collections.slipway.host.plugins.plugin_utils import host_command

MARKER = "# --- Nothing below is sent to hosts with the survey. ---"
# Modules that are sent with every question.
ALWAYS = (*(apt_sources, facts, folder, gpu_facts, packages, paths, probe, reading, user_rights),)
DEFAULT_INTERPRETER = "/usr/bin/python3"
# Exit status of ssh if it cannot connect.
SSH_FAILED = 255


def interpreter(action: ActionBase) -> str:
    """Return the path of Python on the host of ACTION."""
    variables = action._templar.available_variables or {}
    # A delegated task has the variables of the host that it runs on.
    for delegated in variables.get("ansible_delegated_vars", {}).values():
        variables = delegated
    return str(variables.get("ansible_python_interpreter") or DEFAULT_INTERPRETER)


@cache
def source_of(module: str) -> str:
    """Return the part of a module's source that is sent to hosts."""
    file = Path(str(import_module(module).__file__))
    return file.read_text(encoding="utf-8").partition(MARKER)[0]


@cache
def needs_of(module: str) -> tuple[str, ...]:
    """Return the modules that are sent to hosts with a module: its NEEDS, and theirs."""
    needs: Sequence[str] = getattr(import_module(module), "NEEDS", ())
    return tuple(name for need in needs for name in (need, *needs_of(need)))


@cache
def _literal(module: str) -> str:
    """Return the source of a module as a literal of Python."""
    return repr(source_of(module))


def _sent_with(modules: Iterable[str]) -> list[str]:
    """Return the modules that are sent to hosts with MODULES."""
    needs = (name for module in modules for name in needs_of(module))
    return list(dict.fromkeys([*(module.__name__ for module in ALWAYS), *modules, *needs]))


def preload() -> None:
    """Read all sources before Ansible forks a process for each host."""
    source_of(loader.__name__)
    for module in _sent_with(kinds.MODULE_OF_KEY.values()):
        _literal(module)


def script(question: Mapping[str, Sequence[Any]], reach: Sequence[str] = ()) -> str:
    """Return the Python script that prints the answer of the host it runs on as JSON."""
    modules = {key: kinds.MODULE_OF_KEY[key] for key in question}
    sources = ", ".join(f"{name!r}: {_literal(name)}" for name in _sent_with(modules.values()))
    data = json.dumps([modules, question, list(reach)])
    return (
        f"{source_of(loader.__name__)}\n"
        f"SOURCES = {{{sources}}}\n"
        f"import json\nrun(SOURCES, *json.loads({data!r}))\n"
    )


def knows_reachable(facts: Mapping[str, Any], urls: Sequence[str]) -> bool:
    """Return whether FACTS say for each of URLS whether the host can reach it."""
    distribution, known = facts["distribution"].lower(), facts.get("reachable", {})
    return all(url.replace("{distribution}", distribution) in known for url in urls)


def ask(
    action: ActionBase, question: Mapping[str, Sequence[Any]], reach: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the answer of a host, with its ``facts``.

    REACH are URLs that the host tries, see :func:`facts.ask_facts`. Raise AnsibleConnectionFailure
    if the host cannot be reached, AnsibleActionFail if it cannot answer or does not run the script
    as root.
    """
    python = interpreter(action)
    # -I -S skip the packages of the user and of the site: loading them only costs time.
    reply = host_command.run(action, f"{python} -I -S -", script(question, reach).encode())
    try:
        answer: dict[str, Any] = json.loads(reply.output)
    except ValueError:
        output = reply.error or "no answer"
        if reply.status == SSH_FAILED:
            raise AnsibleConnectionFailure(output) from None
        raise AnsibleActionFail(
            f"The survey failed on the host: {output[-600:]}; expected {python}, and root rights "
            "of the user (ansible_become)."
        ) from None
    if not answer["facts"]["root"]:
        raise AnsibleActionFail(
            "The survey needs root: set ansible_become: true (and --ask-become-pass if sudo asks "
            "for a password)."
        )
    return answer
