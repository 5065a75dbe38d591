# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pictures of the page as inline SVG. No text of a host is in them.

Shapes of one class are one path, because a page shows thousands of them. The style sheet of the
page gives each class its colour.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from markupsafe import Markup

# Width and height of the tile of a GPU, and the distance between two tiles.
TILE, HEIGHT, STEP = 11, 20, 15
# Class of the outline of a GPU by its health.
_OUTLINES = {"fault": "gf", "missing": "gx", "warning": "gw", "unknown": "gu", "healthy": "gh"}
# Height and width of a history.
STRIP, DAY = 12, 4
CHART_HEIGHT = 90


def _svg(width: int, height: int, content: str, name: str) -> Markup:
    """Return a picture of a class; the style sheet scales it in both directions."""
    return Markup(
        f'<svg class="{name}" viewBox="0 0 {width} {height}" preserveAspectRatio="none"'
        f' aria-hidden="true">{content}</svg>'
    )


def _paths(shapes: Iterable[tuple[str, str]]) -> str:
    """Return a path for each class of (class, shape)."""
    found: dict[str, str] = {}
    for name, shape in shapes:
        found[name] = found.get(name, "") + shape
    return "".join(f'<path class="{name}" d="{shape}"/>' for name, shape in found.items())


def gpus(gpus: Sequence[Mapping[str, Any]]) -> Markup:
    """Return the GPUs of a host: a tile each, filled by used memory, underlined if reserved."""
    shapes: list[tuple[str, str]] = []
    for number, gpu in enumerate(gpus):
        left = 1 + number * STEP
        shapes.append(
            (_OUTLINES.get(gpu["health"], "gu"), f"M{left} 1h{TILE}v{HEIGHT - 2}h-{TILE}z")
        )
        full = round((HEIGHT - 5) * gpu["used"] / gpu["memory"]) if gpu["memory"] else 0
        if gpu["users"] and not full:
            full = 1
        if full > 0:
            shapes.append(("gm", f"M{left + 5.5} {HEIGHT - 2}v-{min(full, HEIGHT - 5)}"))
        if gpu["reserved"]:
            shapes.append(("gr", f"M{left} {HEIGHT + 2.5}h{TILE}"))
    # Nothing scales it, so it needs no view box.
    return Markup(f'<svg class="g" width="{len(gpus) * STEP}">{_paths(shapes)}</svg>')


def strip(states: Sequence[str | None], measured: Sequence[bool]) -> Markup:
    """Return a history, a column for each day: full where measured, low where carried on."""
    shapes: list[tuple[str, str]] = []
    start = 0
    for (state, full), days in groupby(zip(states, measured, strict=True)):
        length = len(list(days))
        if state:
            height = STRIP if full else 4
            top, width = STRIP - height, length * DAY
            shapes.append((f"c-{state}", f"M{start * DAY} {top}h{width}v{height}h-{width}z"))
        start += length
    return _svg(len(states) * DAY, STRIP, _paths(shapes), "strip")


def areas(series: Sequence[tuple[str, Sequence[int]]]) -> Markup:
    """Return a chart of stacked areas: (class, values); a column for each value."""
    columns = max((len(values) for _name, values in series), default=0)
    totals = [sum(values[column] for _name, values in series) for column in range(columns)]
    peak = max(totals, default=0) or 1
    below = [0] * columns
    content = ""
    for name, values in series:
        above = [low + value for low, value in zip(below, values, strict=True)]
        if any(values):
            content += f'<path class="{name}" d="{_band(below, above, peak)}"/>'
        below = above
    return _svg(columns * DAY, CHART_HEIGHT, content, "chart")


def _band(below: Sequence[int], above: Sequence[int], peak: int) -> str:
    """Return the outline between two lines of steps."""
    forth = _steps(above, peak)
    back = _steps(below, peak)
    shape = f"M0 {_height(below[0], peak)}"
    shape += "".join(f"V{height}H{(end) * DAY}" for height, _start, end in forth)
    shape += "".join(f"V{height}H{start * DAY}" for height, start, _end in reversed(back))
    return shape + "z"


def _steps(values: Sequence[int], peak: int) -> list[tuple[str, int, int]]:
    """Return height, first and last column of each run of equal values."""
    steps = []
    start = 0
    for value, run in groupby(values):
        end = start + len(list(run))
        steps.append((_height(value, peak), start, end))
        start = end
    return steps


def _height(value: int, peak: int) -> str:
    return f"{CHART_HEIGHT - (CHART_HEIGHT - 2) * value / peak:.0f}"
