# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The beginning of the script that the survey sends to a host: import modules from the script.

The script defines SOURCES, module name to source, and then calls :func:`run`. Modules are compiled
when they are first imported, so a question costs only what it needs. Python 3.9, standard library.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

PACKAGE = "ansible_collections.slipway.host.plugins.module_utils.state"


class SourceFinder:
    """Finds modules, and the packages that they are in, in a mapping of sources."""

    def __init__(self, sources: dict[str, str]) -> None:
        self.sources = sources
        self.packages = {
            name[:end] for name in sources for end, char in enumerate(name) if char == "."
        }

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return how to load a module of the script, None for all others."""
        if name in self.packages:
            return ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]
        return ModuleSpec(name, self) if name in self.sources else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> None:
        """Let Python create the module."""

    def exec_module(self, module: ModuleType) -> None:
        """Compile and execute a module; packages are empty."""
        source = self.sources.get(module.__name__, "")
        exec(compile(source, module.__name__, "exec"), module.__dict__)


def run(
    sources: dict[str, str],
    modules: dict[str, str],
    question: dict[str, list[Any]],
    reach: list[str],
) -> None:
    """Print the answer to a question as JSON.

    MODULES maps each key of the question to the module that answers it. REACH are URLs, see
    facts.ask_facts.
    """
    import json

    sys.meta_path.insert(0, SourceFinder(sources))
    facts, probe = import_module(f"{PACKAGE}.facts"), import_module(f"{PACKAGE}.probe")
    asks = {key: import_module(modules[key]).ASKS[key] for key in question}
    known = facts.ask_facts(reach)
    print(json.dumps({"facts": known, **probe.answer(question, asks)}))
