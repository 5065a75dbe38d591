# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The page about the fleet: what it shows, that it is escaped, its size and its cost."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from ansible_collections.slipway.host.plugins.module_utils.state import report as state_report
from ansible_collections.slipway.host.plugins.plugin_utils.fleet import history, page, store

from tests.unit import fleet_reports

LIMIT = 400_000
HOSTILE = "<img src=x onerror=alert(1)>\"'&\x1b[31m\u202eevil\x00\n{{ 7*7 }}"


class Tags(HTMLParser):
    """The tags of a page and their attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data

    def values(self, name: str) -> list[str]:
        return [value for _tag, attribute, value in self.attributes if attribute == name]


def render(*reports: dict[str, Any]) -> str:
    return page.render(reports, fleet_reports.NOW)["index.html"]


def rows(html: str) -> list[str]:
    """Return the names of the hosts in the order of the table."""
    return re.findall(r'<tr[^>]*><th scope="row"><a href="[^"]*">([^<]*)</a><small>', html)


def test_what_needs_a_person_comes_first() -> None:
    html = render(*fleet_reports.fleet(12))
    order = ["cpu05", "gpu03", "gpu04", "gpu08", "gpu06", "gpu02", "cpu10", "gpu01", "gpu07"]
    assert rows(html)[:9] == order
    assert rows(html)[-1] == "gpu12"


def test_a_failed_check_is_one_reason() -> None:
    report = fleet_reports.report(4, 12)
    (failed,) = (one for one in report["checks"]["items"] if one["status"] == "failed")
    assert report["error"] == f"{failed['what']}: {failed['found']}"
    assert "check published ports: no answer on 8888</small>" in render(report)
    # Another error comes first.
    report["error"] = "apt: no space"
    assert "apt: no space (and 1 more)</small>" in render(report)


def test_a_long_reason_ends_with_a_word() -> None:
    report = {**fleet_reports.report(4, 12), "error": "word " * 40}
    assert "word word… (and 1 more)</small>" in render(report)
    assert f"{'x' * 139}… (and 1 more)" in render({**report, "error": "x" * 300})


def test_names_are_sorted_as_people_count() -> None:
    hosts = [{**fleet_reports.report(0, 1), "host": name} for name in ("n10", "n2", "a", "N1")]
    assert rows(render(*hosts)) == ["N1", "a", "n2", "n10"]


def test_the_page_asks_for_nothing() -> None:
    tags = Tags(render(*fleet_reports.fleet(12)))
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert policy in tags.values("content")
    forbidden = {"script", "link", "img", "iframe", "object", "embed", "form", "base"}
    assert not forbidden & {*tags.tags}
    assert not {"src", "srcset", "action", "background"} & {
        name for _t, name, _v in tags.attributes
    }
    assert [name for _tag, name, _value in tags.attributes if name.startswith("on")] == []
    css = (Path(page.__file__).parent / "page.css").read_text(encoding="utf-8")
    assert "url(" not in css
    assert "@import" not in css


def test_every_link_within_the_page_has_a_target() -> None:
    tags = Tags(render(*fleet_reports.fleet(12)))
    links = {value[1:] for value in tags.values("href") if value.startswith("#")}
    assert len(links) > 12
    assert links <= {*tags.values("id")}
    assert len(tags.values("id")) == len({*tags.values("id")})


def spoil(value: Any) -> Any:
    """Return JSON in which each text for people is hostile; times and states stay."""
    if isinstance(value, dict):
        kept = ("at", "day", "seen", "ran", "schema")
        return {key: one if key in kept else spoil(one) for key, one in value.items()}
    if isinstance(value, list):
        return [spoil(one) for one in value]
    return HOSTILE if isinstance(value, str) else value


def test_texts_of_hosts_are_shown_as_text() -> None:
    report = spoil(fleet_reports.report(2, 12))
    report["drift"] = {HOSTILE: [dict.fromkeys(("kind", "name", "found", "expected"), HOSTILE)]}
    report["conflicts"] = {HOSTILE: [{"reason": HOSTILE}]}
    html = render(report, fleet_reports.report(0, 12))
    tags = Tags(html)
    assert "img" not in tags.tags
    assert not any(name.startswith("on") for _tag, name, _value in tags.attributes)
    # Nothing that a terminal, a browser or the template would read as more than text.
    assert not {"\x1b", "\x00", "\u202e"} & {*html}
    assert "49" not in re.findall(r"evil.{12}", html)
    assert tags.text.count("<img src=x onerror=alert(1)>") > 20
    assert r"\x1b[31m\u202eevil\x00\n{{ 7*7 }}" in tags.text


@pytest.mark.parametrize("url", ["javascript:alert(1)", "data:text/html,x", "HTTPS://x"])
def test_only_addresses_of_the_web_are_links(url: str) -> None:
    report = fleet_reports.report(0, 1)
    report["overview"]["services"][0]["urls"] = {"jupyter": url}
    tags = Tags(render(report))
    assert url not in tags.values("href")
    assert url in tags.text


@pytest.mark.parametrize("name", ["a b", "../x", "a/b", "ünï", "<b>", "a'b", "#x", "x" * 300])
def test_a_host_of_any_name_has_its_section(name: str) -> None:
    tags = Tags(render({**fleet_reports.report(0, 1), "host": name}))
    assert f"host-{quote(name, safe='')}" in tags.values("id")


def test_a_fleet_without_reports_says_so() -> None:
    assert "No run has written a report yet" in render()


def test_500_hosts_fit_and_the_needy_have_sections() -> None:
    reports = list(fleet_reports.fleet(500))
    html = render(*reports)
    assert len(html.encode()) <= LIMIT
    assert len(rows(html)) == 500
    needy = [one["host"] for one in reports if history.condition(one) in state_report.UNFINISHED]
    sections = re.findall(r'<section class="host" id="host-([^"]*)"', html)
    assert len(needy) > 30
    assert sections[: len(needy)] and {*needy} <= {*sections}
    assert f"{500 - len(sections)} hosts have their sections on further pages" in html


def test_each_of_500_hosts_has_a_section_that_its_row_leads_to() -> None:
    pages = page.render(list(fleet_reports.fleet(500)), fleet_reports.NOW)
    ids = {name: {*Tags(html).values("id")} for name, html in pages.items()}
    links = re.findall(r'<th scope="row"><a href="([^"]*)">', pages["index.html"])
    assert len({*links}) == 500
    for link in links:
        name, _hash, anchor = link.partition("#")
        assert anchor in ids[name or "index.html"], link
    assert len(pages) > 5
    for name, html in pages.items():
        assert len(html.encode()) <= LIMIT
        policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
        assert policy in Tags(html).values("content")
        inside = {value[1:] for value in Tags(html).values("href") if value[0] == "#"}
        assert inside <= ids[name]
        if name != "index.html":
            assert html.count('<a href="index.html">') == html.count('class="host"') + 1


def test_pages_of_a_fleet_that_shrank_are_removed(tmp_path: Path) -> None:
    reports = store.Store(tmp_path, print)
    for one in fleet_reports.fleet(200):
        reports.folder.mkdir(exist_ok=True)
        reports.write(store.file_name(one["host"]), json.dumps(one))
    page.write(reports, fleet_reports.NOW)
    assert [*tmp_path.glob("hosts-*.html")] != []
    for file in tmp_path.glob("gpu*.json"):
        file.unlink()
    (tmp_path / "hosts-gpu.json").write_text("{}")
    page.write(reports, fleet_reports.NOW)
    assert [*tmp_path.glob("hosts-*.html")] == []
    assert (tmp_path / "index.html").exists()
    assert (tmp_path / "hosts-gpu.json").exists()


def test_the_sections_of_many_ill_hosts_are_bounded() -> None:
    ill = [{**fleet_reports.report(2, 12), "host": f"gpu{number}"} for number in range(500)]
    for one in ill:
        one["error"] = "x" * 400
        one["conflicts"] = {"ml_services": [fleet_reports.CONFLICT] * 200}
    pages = page.render(ill, fleet_reports.NOW)
    assert max(len(html.encode()) for html in pages.values()) <= LIMIT
    assert sum(html.count('<section class="host"') for html in pages.values()) == 500


def cpu(action: Callable[[], object]) -> float:
    """Return the CPU time of an action in seconds, the best of three."""
    times = []
    for _attempt in range(3):
        began = time.process_time()
        action()
        times.append(time.process_time() - began)
    return min(times)


def test_the_cost_grows_with_the_hosts_and_stays_small() -> None:
    reports = list(fleet_reports.fleet(500))
    texts = [json.dumps(one) for one in reports]
    unit = cpu(lambda: [json.loads(text) for text in texts])
    # Reading 500 reports costs about 0.05 s of CPU, writing their page about 0.8 s.
    assert cpu(lambda: render(*reports)) < 60 * unit
