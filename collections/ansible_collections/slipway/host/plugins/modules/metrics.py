#!/usr/bin/python
# Copyright: Slipway contributors
# GNU General Public License v3.0+ (see LICENSE)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module slipway.host.metrics."""

from __future__ import annotations

DOCUMENTATION = r"""
module: metrics
short_description: Write the metrics of a host for node_exporter
description:
  - Writes what the survey and the acceptance checks measured to a file that the textfile collector
    of node_exporter reads. The file is replaced in one step.
  - Reports C(changed) if the file is missing, must be removed, or has another owner or mode. New
    values in the file are no change of the declared state.
  - Does not follow links in a folder that others can write, and refuses entries of another type.
options:
  files:
    description: The files, as the C(files) list of a role's owned state.
    type: list
    elements: dict
    required: true
    suboptions:
      path:
        description: Path on the host.
        type: path
        required: true
      state:
        description: Whether the file exists.
        type: str
        choices: [file, absent]
        default: file
  values:
    description: What the survey measured, RV(slipway.host.survey#module:metrics).
    type: dict
    default: {}
  checks:
    description:
      - The acceptance checks of this run, RV(slipway.host.verify#module:checks). Without any, the
        results in the file stay.
    type: list
    elements: dict
    default: []
  record:
    description:
      - File on the host with the paths of the files of metrics that exist. If another run declares
        no file or another one, the survey finds the earlier one by this record.
    type: path
    default: /var/lib/slipway/metrics.json
attributes:
  check_mode:
    description: Reports whether the file would be created, removed or repaired; writes no values.
    support: full
  diff_mode:
    description: Shows what differs from the declared state; measured values are no difference.
    support: full
author:
  - Slipway contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Write the metrics of the host
  slipway.host.metrics:
    files:
      - path: /var/lib/prometheus/node-exporter/slipway.prom
    values: "{{ __slipway_survey.metrics }}"
"""

RETURN = r"""
paths:
  description: Paths that were created, removed or repaired.
  returned: always
  type: list
  elements: str
conflicts:
  description: What is in the way, a mapping with kind, name and reason for each conflict.
  returned: always
  type: list
  elements: dict
"""

import json
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.host import metrics
from ansible_collections.slipway.host.plugins.module_utils.host.file_entries import FileEntries
from ansible_collections.slipway.host.plugins.module_utils.host.module import HostModule
from ansible_collections.slipway.host.plugins.module_utils.state import apply_files, facts, paths
from ansible_collections.slipway.host.plugins.module_utils.state.here import diff_of

ARGUMENT_SPEC: dict[str, Any] = {
    "files": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {
            "path": {"type": "path", "required": True},
            "state": {"type": "str", "choices": ["file", "absent"], "default": "file"},
        },
    },
    "values": {"type": "dict", "default": {}},
    "checks": {"type": "list", "elements": "dict", "default": []},
    "record": {"type": "path", "default": facts.METRICS_RECORD},
}
MAX_BYTES = 1 << 20


def settle(
    entry: Mapping[str, Any], values: Mapping[str, Any], checks: list[dict[str, Any]]
) -> None:
    """Write one file with new values, or remove it."""
    content = {}
    if entry["state"] == "file":
        try:
            earlier = paths.read_file(entry["path"], MAX_BYTES).decode("utf-8", "replace")
        except (OSError, paths.UnsafePathError):
            earlier = ""
        content["content"] = metrics.render(values, checks, earlier, int(time.time()))
    apply_files.settle({**entry, **content})


class Entries(FileEntries):
    """Writes and removes files of metrics, and records those that exist."""

    def change(self, entry: Mapping[str, Any]) -> dict[str, str] | None:
        """Change one entry of ``files``; return its diff, None if nothing differs."""
        owned = {"files": [entry]}
        differences = [*self.secure_parents(owned), *self.here.differences(owned)]
        if not self.module.check_mode:
            settle(entry, self.module.params["values"], self.module.params["checks"])
        elif differences:
            apply_files.check(entry)
        return diff_of(differences) if differences else None

    def record(self, recorded: set[str]) -> dict[str, str] | None:
        """Record the paths of files, so that a later run finds them whatever it declares."""
        entry = {"path": self.module.params["record"], "mode": "0600"}
        if recorded:
            entry["content"] = json.dumps(sorted(recorded)) + "\n"
        else:
            entry["state"] = "absent"
        if not self.module.check_mode and self.here.differences({"files": [entry]}):
            apply_files.settle(entry)
        return None


def main() -> None:
    """Run the module."""
    module = HostModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    entries, record = Entries(module), module.params["record"]
    present = {one["path"] for one in module.params["files"] if one["state"] == "file"}
    # First, so that a run that ends before the last line leaves no file without its record.
    recorded = present.union(facts.read_metrics_record(record))
    entries.apply("files", record, partial(entries.record, recorded))
    for entry in module.params["files"]:
        entries.apply("files", entry["path"], partial(entries.change, entry))
    recorded = present.union(conflict.name for conflict in entries.conflicts) & recorded
    entries.apply("files", record, partial(entries.record, recorded))
    entries.finish()


if __name__ == "__main__":
    main()
