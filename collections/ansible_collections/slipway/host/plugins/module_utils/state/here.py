# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compare owned state with the very host that a module runs on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType

from ansible_collections.slipway.host.plugins.module_utils.state import (
    engine,
    files,
    probe,
    started,
)
from ansible_collections.slipway.host.plugins.module_utils.state.model import (
    Answer,
    Comparison,
    Conflict,
    Difference,
)


class Here:
    """The kinds that one module works on, asked and compared on this host."""

    def __init__(self, *modules: ModuleType) -> None:
        self.kinds = engine.by_name(*(module.KINDS for module in modules))
        # Any kind may ask for the files that went into something.
        asking = (files, started, *modules)
        self.asks = {key: ask for module in asking for key, ask in module.ASKS.items()}

    def look(self, *owned: engine.Owned) -> Answer:
        """Return the answer of this host about owned state."""
        return engine.look(owned, self.kinds, self.asks)

    def compare(self, owned: engine.Owned, answer: Answer | None = None) -> Comparison:
        """Return where this host differs and what is in the way.

        Ask it unless its ANSWER is given.
        """
        found = self.look(owned) if answer is None else answer
        return self.compare_each({"": owned}, found)[""]

    def compare_each(
        self,
        statements: Mapping[str, engine.Owned],
        answer: Answer,
        known: Sequence[Conflict] = (),
    ) -> dict[str, Comparison]:
        """Return the same for several statements by their names; KNOWN are further conflicts."""
        return engine.compare(statements, answer, self.kinds, known)

    def differences(self, owned: engine.Owned, answer: Answer | None = None) -> list[Difference]:
        """Return where this host differs; ask it unless its ANSWER is given.

        Raise ConflictError where something is in the way.
        """
        found = self.look(owned) if answer is None else answer
        return engine.differences(owned, found, self.kinds)

    def guarded(self, owned: engine.Owned) -> list[str]:
        """Return the paths of owned state whose parent folders must be root's."""
        return engine.guarded(owned, self.kinds)

    def parent_differences(self, owned: engine.Owned) -> list[Difference]:
        """Return where parent folders of owned state differ on this host."""
        question = {"parents": engine.parent_folders(owned, self.kinds)}
        return engine.parent_differences(owned, probe.answer(question, self.asks), self.kinds)


def diff_of(differences: Iterable[Difference]) -> dict[str, str]:
    """Return differences as Ansible's diff mode shows them."""
    return {"prepared": "".join(f"{difference}\n" for difference in differences)}
