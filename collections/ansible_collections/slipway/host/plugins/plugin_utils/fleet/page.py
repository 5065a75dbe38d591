# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The page about the fleet: one HTML file without scripts and without requests to other files.

In a large fleet, further files have the sections of the hosts that do not fit.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any

from ansible_collections.slipway.host.plugins.plugin_utils.fleet import history, view
from ansible_collections.slipway.host.plugins.plugin_utils.fleet.store import PAGE as INDEX
from ansible_collections.slipway.host.plugins.plugin_utils.fleet.store import Store
from jinja2 import Environment, FileSystemLoader, Template
from markupsafe import Markup

PAGE, HOST, HOSTS = "page.html.j2", "host.html.j2", "hosts.html.j2"
# Bytes of the page. Sections beyond that are on further pages, those of healthy hosts first.
MAX_BYTES = 390_000
# A further page, and the bytes of its sections.
FURTHER = "hosts-{}.html"
FURTHER_BYTES = 370_000
# With more hosts, rows have no history, images and names of services.
MAX_FULL_ROWS = 150
_INDENT = re.compile(r"\n\s*")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        size=size,
        day=day,
        minute=minute,
        minute_text=minute_text,
        duration=duration,
        upstream=view.upstream,
    )
    return environment


def _template(name: str) -> Template:
    return _environment().get_template(name)


def size(count: int) -> str:
    """Return a number of bytes for people, such as ``3.2 GB``."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if value >= 10 or unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def day(seconds: int) -> str:
    """Return the day of a time in seconds since 1970."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%d %b %Y") if seconds else "-"


def minute(time: str) -> Markup:
    """Return a time in ISO 8601 as an element with day and minute."""
    moment = datetime.fromisoformat(time).astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%MZ")
    return Markup('<time datetime="{}">{}</time>').format(moment, minute_text(time))


def minute_text(time: str) -> str:
    """Return a time in ISO 8601 as day and minute in UTC."""
    return datetime.fromisoformat(time).astimezone(timezone.utc).strftime("%d %b %H:%M")


def duration(seconds: float) -> str:
    """Return a duration for people, such as ``2 min 5 s``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{whole} s"
    return f"{whole // 60} min {whole % 60} s"


def render(reports: Sequence[Mapping[str, Any]], now: datetime) -> dict[str, str]:
    """Return the pages about the hosts of REPORTS by their file names; most fleets have one."""
    views = [view.host(history.clean(report), now) for report in reports]
    views.sort(key=lambda one: one["rank"])
    fleet = view.fleet(views, now)
    strips = len(views) <= MAX_FULL_ROWS
    for one in views:
        days = one["report"]["days"]
        one.update(strip=view.day_strip(days, now) if strips else "", link=f"#{one['id']}")
    # As long as links become.
    longest = [{**one, "link": FURTHER.format(len(views)) + one["link"]} for one in views]
    rest = MAX_BYTES - len(_fleet_page(longest, fleet, [], now, len(views)).encode())
    sections = _sections(views, now, rest)
    if len(sections) < len(views):
        sections = _sections(views, now, rest, full=False)
    pages = _further_pages(views[len(sections) :], now)
    pages[INDEX] = _fleet_page(views, fleet, sections, now, len(views) - len(sections))
    return pages


def _sections(
    views: Sequence[Mapping[str, Any]],
    now: datetime,
    rest: int,
    full: bool = True,
    fleet: str = "#fleet",
) -> list[Markup]:
    """Return the sections of the first hosts, full or brief, that fit in REST bytes.

    FLEET is the link to the fleet.
    """
    module: Any = _template(HOST).module
    sections: list[Markup] = []
    for one in views:
        section = _squeeze(module.host(one, view.details(one, now, full), full, fleet))
        rest -= len(section.encode())
        if rest < 0:
            break
        sections.append(Markup(section))
    return sections


def _further_pages(views: Sequence[dict[str, Any]], now: datetime) -> dict[str, str]:
    """Return pages with the sections of VIEWS; set the links of the hosts to them."""
    pages: dict[str, str] = {}
    while views:
        name = FURTHER.format(len(pages) + 1)
        # A host has a page for itself, however long its section is.
        sections = _sections(views, now, FURTHER_BYTES, fleet=INDEX) or _sections(
            views[:1], now, sys.maxsize, fleet=INDEX
        )
        here, views = views[: len(sections)], views[len(sections) :]
        pages[name] = _squeeze(
            _template(HOSTS).render(views=here, sections=sections, now=now.isoformat())
        )
        for one in here:
            one["link"] = f"{name}#{one['id']}"
    return pages


def _fleet_page(
    views: Sequence[Mapping[str, Any]],
    fleet: Mapping[str, Any],
    sections: Sequence[Markup],
    now: datetime,
    left_out: int,
) -> str:
    return _squeeze(
        _template(PAGE).render(
            views=views,
            fleet=fleet,
            sections=sections,
            now=now.isoformat(),
            left_out=left_out,
            full=len(views) <= MAX_FULL_ROWS,
        )
    )


def _squeeze(html: str) -> str:
    """Return HTML without indentation; texts of hosts have no line breaks."""
    return _INDENT.sub("\n", html).strip()


def write(store: Store, now: datetime | None = None) -> None:
    """Write the pages from the reports in the folder."""
    with store.lock():
        moment = now or datetime.now(timezone.utc).replace(microsecond=0)
        pages = render(store.read_all(), moment)
        for name, text in pages.items():
            store.write(name, text + "\n")
        for file in store.folder.glob(FURTHER.format("[0-9]*")):
            if file.name not in pages:
                file.unlink()
