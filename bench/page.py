# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Size and cost of the page about a fleet, for several numbers of hosts with 90 days of history.

Usage: ./slipway run python bench/page.py [--hosts 1,12,500] [--rounds N]

"Read" is the CPU time for reading and checking the reports, "page" for making and writing the page
of them, each the least of N rounds (default 3). "Sections" is how many hosts have a section in the
page; those of the others are in the further pages. The last column compares a row with the limit
for 500 hosts: 400 kB for the page, and 2 seconds of CPU for all of it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "collections")]

from ansible_collections.slipway.host.plugins.module_utils.state import report  # noqa: E402
from ansible_collections.slipway.host.plugins.plugin_utils.fleet import page, store  # noqa: E402

from tests.unit import fleet_reports  # noqa: E402

LIMIT_BYTES, LIMIT_SECONDS = 400_000, 2.0


def cpu_seconds(rounds: int, action: Callable[[], object]) -> float:
    """Return the least CPU time of an action."""
    times = []
    for _round in range(rounds):
        began = time.process_time()
        action()
        times.append(time.process_time() - began)
    return min(times)


def measure(folder: Path, hosts: int, rounds: int) -> tuple[str, ...]:
    """Return the row of the table for a number of hosts."""
    reports = store.Store(folder / str(hosts), print)
    with reports.lock():
        for one in fleet_reports.fleet(hosts):
            reports.write(store.file_name(one["host"]), json.dumps(one))
    read = cpu_seconds(rounds, reports.read_all)
    both = cpu_seconds(rounds, lambda: page.write(reports, fleet_reports.NOW))
    html = reports.page.read_text(encoding="utf-8")
    size = len(html.encode())
    is_within = size <= LIMIT_BYTES and both <= LIMIT_SECONDS
    return (
        *(str(hosts), f"{size / 1000:.0f} kB", f"{read:.2f} s", f"{both - read:.2f} s"),
        str(html.count('<section class="host"')),
        str(len([*reports.folder.glob("hosts-*.html")])),
        "yes" if is_within else "NO",
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--hosts", default="1,12,500")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    counts = [int(count) for count in options.hosts.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(Path(folder), count, options.rounds) for count in counts]
    heading = ("HOSTS", "SIZE", "READ", "PAGE", "SECTIONS", "FURTHER PAGES", "WITHIN THE LIMIT")
    print(report.table(rows, heading))


if __name__ == "__main__":
    main()
