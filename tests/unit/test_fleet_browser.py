# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The page about the fleet in a browser: accessible, and nothing wider than the screen.

The rules are those of axe-core. Chromium and npm are tools of the system: without them, these tests
are skipped. axe-core is downloaded once.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.plugin_utils.fleet import page

from tests.contract.tree import ROOT
from tests.unit import fleet_reports

AXE = "axe-core@4.14.1"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
# Writes the findings and the widths into the document, which the browser then prints.
RUN = """
addEventListener('load', () => axe.run().then(found => {
  const out = document.createElement('output');
  out.id = 'found';
  out.textContent = JSON.stringify({
    violations: found.violations.map(one => [one.id, one.nodes.map(node => node.html)]),
    passes: found.passes.length,
    width: [document.documentElement.scrollWidth, innerWidth],
    hidden: [...document.querySelectorAll('.hosts tbody tr')].filter(
      row => getComputedStyle(row).display === 'none').length,
  });
  document.body.append(out);
}));
"""

pytestmark = pytest.mark.skipif(not BROWSER, reason="needs chromium (apt-get install chromium)")


@pytest.fixture(scope="module")
def axe() -> str:
    """Return the source of axe-core."""
    folder = ROOT / ".slipway/axe-core"
    file = folder / f"node_modules/{AXE.partition('@')[0]}/axe.min.js"
    if not file.exists():
        npm = shutil.which("npm")
        if not npm:
            pytest.skip("needs npm (apt-get install npm)")
        folder.mkdir(parents=True, exist_ok=True)
        command = [npm, "install", "--no-save", "--prefix", str(folder), AXE]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip(f"npm could not install {AXE}")
    return file.read_text(encoding="utf-8")


def visit(
    tmp_path: Path,
    axe: str,
    count: int,
    anchor: str = "",
    width: int = 1280,
    dark: bool = False,
    name: str = "index.html",
) -> dict[str, Any]:
    """Return what the browser finds on a page about COUNT hosts."""
    content = page.render(list(fleet_reports.fleet(count)), fleet_reports.NOW)[name]
    # The page allows no scripts.
    content, removed = POLICY.subn("", content)
    assert removed == 1
    file = tmp_path / "index.html"
    script = f"<script>{axe}</script><script>{RUN}</script>"
    file.write_text(content.replace("</body>", f"{script}</body>"), encoding="utf-8")
    command = [
        *(
            str(BROWSER),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--virtual-time-budget=20000",
        ),
        *(f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},1000", "--dump-dom"),
        *(["--blink-settings=preferredColorScheme=0"] if dark else []),
        f"file://{file}{anchor}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    found = re.search(r'<output id="found">(.*?)</output>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    result: dict[str, Any] = json.loads(html.unescape(found[1]))
    return result


CASES = [
    pytest.param(0, {}, id="no host"),
    pytest.param(1, {}, id="one host"),
    pytest.param(12, {}, id="fleet"),
    pytest.param(12, {"dark": True}, id="fleet, dark"),
    pytest.param(12, {"width": 500}, id="fleet, narrow"),
    pytest.param(12, {"anchor": "#host-gpu03"}, id="host"),
    pytest.param(
        12, {"anchor": "#host-gpu03", "dark": True, "width": 500}, id="host, dark, narrow"
    ),
    pytest.param(12, {"anchor": "#host-cpu05"}, id="host with a failed check"),
    pytest.param(12, {"anchor": "#f-need"}, id="filter"),
    pytest.param(200, {"name": "hosts-1.html"}, id="further page"),
    pytest.param(
        200,
        {"name": "hosts-1.html", "anchor": "#host-gpu104", "width": 500},
        id="host of it, narrow",
    ),
]


@pytest.mark.parametrize(("count", "options"), CASES)
def test_the_page_is_accessible_and_fits(
    tmp_path: Path, axe: str, count: int, options: dict[str, Any]
) -> None:
    found = visit(tmp_path, axe, count, **options)
    assert found["violations"] == []
    assert found["passes"] > 10
    assert found["width"][0] <= found["width"][1]


def test_filters_work_without_scripts(tmp_path: Path, axe: str) -> None:
    assert visit(tmp_path, axe, 12)["hidden"] == 0
    assert visit(tmp_path, axe, 12, "#f-need")["hidden"] == 8
    assert visit(tmp_path, axe, 12, "#f-gpu")["hidden"] == 2


def test_axe_finds_what_is_wrong(tmp_path: Path, axe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "_squeeze", lambda text: text.replace('lang="en"', ""))
    assert "html-has-lang" in [name for name, _nodes in visit(tmp_path, axe, 1)["violations"]]
