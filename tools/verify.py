# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run acceptance checks, report drift and faults of GPUs. Changes no setting of a host.

Usage: ./slipway verify [--quick | --full] [--burn-in MINUTES] [--report FILE] [--json]
                        [ARGUMENTS FOR ansible-playbook ...]

  --quick            leave out the smoke tests of images and the content of data sets
  --full             also test 1 GiB of memory of each GPU instead of 64 MiB
  --burn-in MINUTES  keep all GPUs busy for so long, record temperature, clock and power
  --report FILE      write each check as JSON: expected, found, what to do, seconds
  --json             print the same JSON on standard output, and the run itself on standard error
  --bundle FILE [--signer KEY.pub]  compare with the declared state of a run with this bundle

Exit status: 0 all checks passed and no drift, 2 a host failed a check or has drift, a conflict or a
fault of a GPU, 4 a host was unreachable, another one if the run itself failed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "collections"))

from ansible_collections.slipway.host.plugins.module_utils.host import acceptance, verify  # noqa: E402
from ansible_collections.slipway.host.plugins.module_utils.state import report  # noqa: E402


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the options of this program, and the other arguments."""
    parser = argparse.ArgumentParser(prog="verify", add_help=False, allow_abbrev=False)
    level = parser.add_mutually_exclusive_group()
    for name in (verify.QUICK, verify.FULL):
        level.add_argument(f"--{name}", dest="level", action="store_const", const=name)
    parser.set_defaults(level=verify.NORMAL)
    parser.add_argument("--burn-in", type=int, default=0)
    parser.add_argument("--report", type=Path)
    parser.add_argument("--json", action="store_true")
    options, others = parser.parse_known_args(arguments)
    limit = verify.MAX_BURN_IN
    if options.burn_in not in range(limit + 1):
        parser.error(f"--burn-in {options.burn_in}; expected minutes from 0 to {limit}")
    if options.report and not options.report.absolute().parent.is_dir():
        parser.error(f"--report {options.report}: the folder does not exist. Create it first")
    return options, others


def now() -> str:
    """Return the time in ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def main(arguments: Sequence[str]) -> int:
    """Run the checks and print them; return the exit status."""
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    options, others = parse(arguments)
    # Always given, so that the report states what ran whatever the inventory declares for site.
    extra = {"host_verify_level": options.level, "host_verify_burn_in": options.burn_in}
    began = now()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(os.environ.get("SLIPWAY_REPORT") or Path(folder) / "report.json")
        run = subprocess.run(
            [
                *("ansible-playbook", str(ROOT / "playbooks" / "verify.yml"), *others),
                *("--extra-vars", json.dumps(extra)),
            ],
            env={**os.environ, "SLIPWAY_REPORT": str(file)},
            stdout=sys.stderr if options.json else None,
            check=False,
        )
        found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if found or options.json:
        for entry in found.values():
            failed = [one["what"] for one in entry["checks"] if not one["ok"]]
            if failed:
                # The table of the checks says why.
                entry["error"] = f"failed checks: {', '.join(failed)}"
        accepted = acceptance.build(found, options.level, options.burn_in, began, now())
        tables = sys.stderr if options.json else sys.stdout
        print(f"\n{report.summary(found)}\n\n{acceptance.table(accepted)}", file=tables)
        text = json.dumps(accepted, indent=2, ensure_ascii=False)
        if options.json:
            print(text)
        if options.report:
            options.report.write_text(f"{text}\n", encoding="utf-8")
            print(f"Report: {options.report}", file=tables)
    return run.returncode


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
