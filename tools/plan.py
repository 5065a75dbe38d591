# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Print the changes that `./slipway site` would make, as a table or as JSON.

Usage: ./slipway plan [--json] [-v] [ARGUMENTS FOR ansible-playbook ...]

  --json   print JSON
  -v       list each package and each file, also the files of the program ml
  --bundle FILE [--signer KEY.pub]  the plan of a run with this bundle

Exit status: 0 no changes and no faults, 2 changes, 3 conflicts about which a person must decide,
4 faults of GPUs, and with 3 or 4 maybe also changes, 1 a host could not be surveyed. With --json,
standard output is JSON in each of these cases.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# How the summary callback begins the line with the path of the page about the fleet.
PAGE = "Fleet page: "
VERBOSE = re.compile("-v+|--verbose")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "collections"))

from ansible_collections.slipway.host.plugins.module_utils.state import report as state_report  # noqa: E402


def main(arguments: list[str]) -> int:
    """Survey the hosts and print the plan; return the exit status."""
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    as_json = "--json" in arguments
    playbook_arguments = [argument for argument in arguments if argument != "--json"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.json"
        run = subprocess.run(
            ["ansible-playbook", str(ROOT / "playbooks" / "plan.yml"), *playbook_arguments],
            env={**os.environ, "SLIPWAY_REPORT": str(file)},
            capture_output=True,
            text=True,
            check=False,
        )
        report = json.loads(file.read_text()) if file.exists() else {}
    status = state_report.exit_status(report)
    if not report or (run.returncode and status != state_report.EXIT_ERROR):
        # Ansible itself failed: only its output has the reason.
        has_reason = not report and "[ERROR]" in run.stderr
        sys.stderr.write(run.stderr if has_reason else run.stdout + run.stderr)
        status = state_report.EXIT_ERROR
    else:
        # Such as a warning about an inventory that Ansible ignored.
        prefixes = ("[WARNING]", "[DEPRECATION WARNING]")
        sys.stderr.writelines(
            line for line in run.stderr.splitlines(True) if line.startswith(prefixes)
        )
    if as_json:
        print(json.dumps(report, indent=2, sort_keys=True))
    elif report:
        text = state_report.plan(report, any(map(VERBOSE.fullmatch, arguments)))
        width = shutil.get_terminal_size().columns
        print(state_report.wrap(text, width) if sys.stdout.isatty() else text)
        pages = [line for line in run.stdout.splitlines() if line.startswith(PAGE)]
        print("".join(f"\n{line}" for line in pages), end="\n" if pages else "")
    return status


if __name__ == "__main__":
    try:
        result = main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of the output has ended, as in plan | head.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        result = state_report.EXIT_ERROR
    except KeyboardInterrupt:
        result = 130
    sys.exit(result)
