# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write the page about the fleet, reports/index.html, from the reports that runs have written.

Usage: ./slipway report [FOLDER]

Each run of site, plan, verify and upgrade does this at its end. FOLDER has the JSON files of the
hosts; default: reports/. To remove a host from the page, delete its file and run this command.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "collections"))

from ansible_collections.slipway.host.plugins.plugin_utils.fleet import page, store  # noqa: E402


def warn(sentence: str) -> None:
    """Print a warning."""
    print(f"slipway: report: {sentence}", file=sys.stderr)


def main(arguments: list[str]) -> int:
    """Write the page and print its path; return the exit status."""
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    if len(arguments) > 1 or any(one.startswith("-") for one in arguments):
        warn(f"found {' '.join(arguments)}; expected a folder or nothing. See report --help.")
        return 1
    reports = store.Store(Path(arguments[0]) if arguments else ROOT / "reports", warn)
    try:
        page.write(reports)
    except OSError as error:
        warn(f"the page was not written: {error}. Choose a folder that you can write.")
        return 1
    print(reports.page)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
