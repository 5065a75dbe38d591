# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A stand-in for the commands that the lab runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lab.commands import CommandError, Commands, Completed


class ScriptedCommands(Commands):
    """Commands with a list of installed programs and an exit status for each command line."""

    def __init__(self, installed: set[str], answer: Callable[[tuple[str, ...]], int]) -> None:
        super().__init__()
        self.installed = installed
        self.answer = answer
        self.ran: list[tuple[str, ...]] = []
        self.env: Mapping[str, str] = {}

    def is_installed(self, command: str) -> bool:
        return command in self.installed

    def run(
        self,
        *argv: str,
        stdin: bytes = b"",
        timeout: float = 600.0,
        check: bool = True,
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        self.ran.append(argv)
        self.env = env or {}
        completed = Completed(self.answer(argv), "", "no")
        if check and completed.rc != 0:
            raise CommandError(argv, completed)
        return completed
