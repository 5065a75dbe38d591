#!/usr/bin/python
# Copyright: Slipway contributors
# GNU General Public License v3.0+ (see LICENSE)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module slipway.host.verify."""

from __future__ import annotations

DOCUMENTATION = r"""
module: verify
short_description: Run acceptance checks on a host
description:
  - Checks that Docker Engine answers, runs the smoke test of each recorded image on the host, and
    sends each service the request that its image declares. The answer must contain the declared
    values.
  - Images and containers that the host's record does not name are neither run nor asked, whatever
    their labels say.
  - Compares the settings of the running engine with C(/etc/docker/daemon.json), tests as each user
    whether that user reaches the engine, and compares the files of the declared packages with
    C(dpkg --verify).
  - On a host with NVIDIA GPUs, lists the GPUs with C(nvidia-smi) and computes on each GPU, on the
    host and in a container. Then systemd reloads its units, by which containers lose GPUs that the
    engine does not know of, and the same container must still list the GPUs.
  - Changes no setting of the host; the record of an image says on which system its smoke test
    passed. Checks run in containers that are removed afterwards.
options:
  level:
    description:
      - C(quick) leaves out the smoke tests of images, C(full) tests 1 GiB of memory of each GPU
        instead of 64 MiB.
    type: str
    choices: [quick, normal, full]
    default: normal
  burn_in:
    description:
      - Minutes during which all GPUs multiply matrices on the host. Temperature, clock and power
        are recorded; a wrong result, and a fault that a GPU reports under load, fails the check.
    type: int
    default: 0
  smoke:
    description: Run the smoke tests of images.
    type: bool
    default: true
  repeat_smoke:
    description:
      - Run the smoke test of an image also if it passed with the same content on the same system,
        by the record of the host. The system is the engine with its settings, the boot, the driver
        and the GPUs.
    type: bool
    default: false
  containers:
    description:
      - Run the checks that start a container. C(false) is for hosts where no container can start,
        such as emulated ones; the report names the checks that did not run.
    type: bool
    default: true
  daemon_reload:
    description:
      - Run C(systemctl daemon-reload) while a container uses the GPUs. This check is skipped if a
        running container would lose its GPUs; the report names that container.
    type: bool
    default: true
  other_hosts:
    description:
      - On a front door, also ask the services on other hosts. Otherwise only the front door itself
        must answer.
    type: bool
    default: false
  data_digests:
    description:
      - Read every file of the declared data sets and compare its digest with the list that was
        written when the data set was unpacked.
      - Otherwise only files are read whose size, inode or time of the last change (ctime) differ.
    type: bool
    default: false
  accepted_faults:
    description:
      - Known faults of GPUs. They stay in the results, and fail no check. An entry accepts one
        fault of one GPU; any other fault fails the check.
    type: list
    elements: dict
    default: []
    suboptions:
      gpu:
        description: UUID of the GPU, or its PCI address if the driver does not report the UUID.
        type: str
      fault:
        description:
          - What was found, in the words of the survey, C(found) in
            RV(slipway.host.survey#module:health).
        type: str
        required: true
      reason:
        description: Why the fault is accepted.
        type: str
        required: true
      until:
        description:
          - Last day, such as C(2027-03-31). Required for faults of the kernel log.
        type: str
  declared:
    description:
      - What the roles declare for the host, RV(slipway.host.survey#module:declared). Something
        declared that is missing fails its check.
      - Without it, the packages of the host decide which programs have to be there.
    type: dict
attributes:
  check_mode:
    description: Changes nothing; check mode skips C(systemctl daemon-reload).
    support: full
  diff_mode:
    description: Changes nothing.
    support: none
author:
  - Slipway contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Run acceptance checks
  slipway.host.verify:
"""

RETURN = r"""
checks:
  description: The checks, in order.
  returned: always
  type: list
  elements: dict
  contains:
    what:
      description: What was checked.
      type: str
    ok:
      description: Whether the check passed.
      type: bool
    seen:
      description: Result of the check, or the reason of the failure.
      type: str
    id:
      description: Kind of the check, such as C(gpu-health).
      type: str
    status:
      description: C(passed), C(failed), or C(not_run) if the check does not apply to the host.
      type: str
    found:
      description: What was found.
      type: str
    expected:
      description: What was expected.
      type: str
    remedy:
      description: What to do; empty for a check that passed.
      type: str
    seconds:
      description: Duration.
      type: float
    stand_in:
      description: Whether a part of the check was simulated.
      type: bool
    others:
      description: IDs of the requirements of NVIDIA's list for bare-metal hosts that it covers.
      type: list
      elements: str
report:
  description: The checks as lines for a person.
  returned: on success
  type: list
  elements: str
slipway_note:
  description: GPUs that a container listed, for the table at the end of a run.
  returned: on success, on a host with GPUs and an engine
  type: str
"""

from collections.abc import Mapping
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.gpu import accepted_faults
from ansible_collections.slipway.host.plugins.module_utils.host import check, verify
from ansible_collections.slipway.host.plugins.module_utils.host.module import HostModule

ARGUMENT_SPEC: dict[str, Any] = {
    "level": {"type": "str", "choices": list(verify.LEVELS), "default": verify.NORMAL},
    "burn_in": {"type": "int", "default": 0},
    "smoke": {"type": "bool", "default": True},
    "repeat_smoke": {"type": "bool", "default": False},
    "containers": {"type": "bool", "default": True},
    "daemon_reload": {"type": "bool", "default": True},
    "data_digests": {"type": "bool", "default": False},
    "other_hosts": {"type": "bool", "default": False},
    "accepted_faults": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "gpu": {"type": "str"},
            "fault": {"type": "str", "required": True},
            "reason": {"type": "str", "required": True},
            "until": {"type": "str"},
        },
    },
    "declared": {"type": "dict"},
}


def format_check(result: Mapping[str, Any]) -> str:
    """Return the result of a check as one line for a person."""
    return f"{'ok' if result['ok'] else 'FAILED'}  {result['what']}: {result['seen']}"


def main() -> None:
    """Run the module."""
    module = HostModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    reload = module.params["daemon_reload"] and not module.check_mode
    given = module.params
    if not 0 <= given["burn_in"] <= verify.MAX_BURN_IN:
        module.fail_json(
            msg=f"burn_in: found {given['burn_in']}; expected minutes from 0 to "
            f"{verify.MAX_BURN_IN}. Set another number."
        )
    if errors := accepted_faults.find_errors(given["accepted_faults"]):
        module.fail_json(msg=f"{'; '.join(errors)}.")
    options = verify.Options(
        *(given["level"], given["smoke"], reload, given["burn_in"], given["data_digests"]),
        other_hosts=given["other_hosts"],
        accepted_faults=given["accepted_faults"],
        containers=given["containers"],
        repeat_smoke=given["repeat_smoke"],
        note_tests=not module.check_mode,
    )
    check.on_start = lambda what: module.status.show(f"check: {what}", force=True)
    checks = verify.run_checks(options, given["declared"])
    failed = [f"{one['what']}: {one['seen']}" for one in checks if not one["ok"]]
    if failed:
        module.fail_json(msg="; ".join(failed), checks=checks)
    notes = [one["seen"] for one in checks if one["what"] == verify.GPUS_IN_CONTAINERS]
    module.exit_json(
        changed=False,
        checks=checks,
        report=[format_check(one) for one in checks],
        **({"slipway_note": f"GPUs: {notes[0]}"} if notes else {}),
    )


if __name__ == "__main__":
    main()
