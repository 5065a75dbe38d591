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

import time
from collections.abc import Mapping
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.host import metrics
from ansible_collections.slipway.host.plugins.module_utils.host.module import HostModule
from ansible_collections.slipway.host.plugins.module_utils.state import (
    apply_files,
    files,
    model,
    paths,
)
from ansible_collections.slipway.host.plugins.module_utils.state.here import Here, diff_of

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


def main() -> None:
    """Run the module."""
    module = HostModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    here = Here(files)
    changed, diffs, conflicts = [], [], []
    for entry in module.params["files"]:
        owned = {"files": [entry]}
        try:
            differences = [*here.parent_differences(owned), *here.differences(owned)]
            if not module.check_mode:
                settle(entry, module.params["values"], module.params["checks"])
            elif differences:
                apply_files.check(entry)
        except (model.ConflictError, paths.UnsafePathError) as error:
            conflicts.append(model.Conflict("files", entry["path"], str(error)))
        except OSError as error:
            reason = f"Cannot change {entry['path']}: {error}"
            conflicts.append(model.Conflict("files", entry["path"], reason))
        else:
            if differences:
                changed.append(entry["path"])
                diffs.append(diff_of(differences))
    module.finish(conflicts, changed=bool(changed), paths=changed, diff=diffs)


if __name__ == "__main__":
    main()
