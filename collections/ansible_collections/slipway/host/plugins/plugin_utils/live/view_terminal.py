# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Draws the live view as the last lines of a terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import TextIO

from ansible_collections.slipway.host.plugins.plugin_utils.live.view_lines import Line
from rich.cells import cell_len
from rich.console import COLOR_SYSTEMS, Console

ERASE_LINE, ERASE_BELOW = "\x1b[K", "\x1b[J"
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
# Returns the lines for a width and a height of the terminal.
Render = Callable[[int, int], list[Line]]


class Region:
    """The lines of the view; the caller holds a lock during each call."""

    def __init__(self, stream: TextIO, render: Render) -> None:
        self.stream = stream
        self.render = render
        self.console = Console(file=stream)
        self.colors = COLOR_SYSTEMS.get(self.console.color_system or "")
        # The cells of each line that is on the screen.
        self.drawn: list[int] = []

    def draw(self) -> None:
        """Replace the lines on the screen by the current ones, in a single write."""
        size = self.console.size
        new = self.render(size.width, size.height)
        text = "".join(f"{self._styled(line)}{ERASE_LINE}\n" for line in new)
        self.stream.write(f"{HIDE_CURSOR}{self._to_first_line()}{text}{ERASE_BELOW}")
        self.stream.flush()
        self.drawn = [sum(cell_len(part) for part, _style in line) for line in new]

    def erase(self) -> None:
        """Remove the lines from the screen; the cursor is where the first one was."""
        if self.drawn:
            # Line by line: tmux keeps in its history what a command for the whole screen erases.
            up = self._to_first_line()
            lines = f"{ERASE_LINE}\n" * self._rows()
            self.stream.write(f"{up}{lines}{up}{SHOW_CURSOR}")
            self.stream.flush()
            self.drawn = []

    def _to_first_line(self) -> str:
        """Return what moves the cursor; a terminal that became narrower has wrapped the lines."""
        rows = self._rows()
        return f"\r\x1b[{rows}A" if rows else ""

    def _rows(self) -> int:
        """Return how many rows of the screen the lines have."""
        width = max(1, self.console.size.width)
        return sum(max(1, -(-cells // width)) for cells in self.drawn)

    def _styled(self, line: Line) -> str:
        return "".join(
            self.console.get_style(style).render(text, color_system=self.colors) if style else text
            for text, style in line
        )
