# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Known faults of GPUs: exactly the named one is accepted, and it stays in every report."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.gpu import accepted_faults, health
from ansible_collections.slipway.host.plugins.module_utils.gpu.health import Finding

from tests.unit.gpu_faults import document, gpu, judge

UUID, OTHER = "GPU-00000000:3B:00.0", "GPU-00000000:86:00.0"
DAY = date(2026, 11, 28)
WIDTH = "PCIe link is 4x wide"
ERRORS = "1 uncorrectable memory errors since the last reset"
ENTRY = {"gpu": UUID, "fault": WIDTH, "reason": "riser of 4 lanes"}


def sick() -> list[Finding]:
    """Return the faults of two GPUs: the first has two, the second the same narrow link."""
    narrow = ("<current_link_width>16x", "<current_link_width>4x")
    first = gpu(old=narrow[0], new=narrow[1]).replace(
        "<dram_uncorrectable>0", "<dram_uncorrectable>1"
    )
    return judge(document(first, gpu("00000000:86:00.0", *narrow)), [])


def apply(*entries: dict[str, Any], complete: bool = True) -> list[tuple[str, str]]:
    found = accepted_faults.apply(sick(), entries, DAY, complete)
    return health.sentences(finding.as_data() for finding in found)


def kinds(told: list[tuple[str, str]]) -> list[str]:
    return sorted(kind for kind, _text in told)


def test_only_the_named_fault_of_the_named_gpu_is_accepted() -> None:
    told = apply(ENTRY)
    assert kinds(told) == ["accepted", "fault", "warning"]
    (text,) = (text for kind, text in told if kind == health.ACCEPTED)
    assert text == f"GPU 0000:3b:00.0: {WIDTH}; expected 16x. Accepted: riser of 4 lanes."


@pytest.mark.parametrize(
    "change",
    [
        {"gpu": ""},
        {"gpu": None},
        {"gpu": "GPU"},
        # The card has a UUID, which a replacement at this address does not have.
        {"gpu": "0000:3b:00.0"},
        {"gpu": "GPU-of-another-host"},
        {"fault": "PCIe link is 8x wide"},
        {"fault": "PCIe link"},
        {"fault": ""},
    ],
)
def test_an_entry_without_its_fault_is_said(change: dict[str, Any]) -> None:
    told = apply({**ENTRY, **change})
    assert kinds(told) == ["fault", "warning", "warning"]
    assert any("not found; expected the fault. Delete its entry" in text for _kind, text in told)
    # nvidia-smi did not answer: nobody knows what became of the fault.
    assert kinds(apply({**ENTRY, **change}, complete=False)) == ["fault", "warning"]


def test_a_number_that_grew_is_a_new_fault() -> None:
    entry = {"gpu": UUID, "fault": ERRORS, "reason": "RMA 7"}
    assert kinds(apply(entry)) == ["accepted", "warning"]
    grown = {**entry, "fault": ERRORS.replace("1", "2")}
    assert "fault" in kinds(apply(grown))


def test_an_acceptance_ends_with_its_last_day() -> None:
    entry = {"gpu": UUID, "fault": ERRORS, "reason": "RMA 7", "until": "2026-11-28"}
    (text,) = (text for kind, text in apply(entry) if kind == health.ACCEPTED)
    assert text.endswith("Accepted until 2026-11-28: RMA 7.")
    told = apply({**entry, "until": "2026-11-27"})
    assert kinds(told) == ["fault", "warning", "warning"]
    assert any("its date has passed; expected 2026-11-27. Repair" in text for _kind, text in told)


def test_faults_without_a_gpu_or_without_its_uuid() -> None:
    lost = health.judge_missing(8, 7)
    dead = Finding("0000:3b:00.0", "the GPU is on the PCI bus", "all", "Reboot")
    entries = [
        {"fault": lost[0].found, "reason": "RMA 8"},
        {"gpu": "0000:3b:00.0", "fault": dead.found, "reason": "RMA 9"},
    ]
    found = accepted_faults.apply([*lost, dead], entries, DAY, True)
    assert [one.accepted for one in found] == ["Accepted: RMA 8", "Accepted: RMA 9"]
    assert all(one.warning for one in found)


@pytest.mark.parametrize(
    ("entry", "error"),
    [
        (ENTRY, ""),
        ({**ENTRY, "until": "2027-02-28"}, ""),
        ({**ENTRY, "reason": " "}, "[0].reason: found nothing; expected text"),
        ({**ENTRY, "fault": ""}, "[0].fault: found nothing; expected text"),
        ({**ENTRY, "until": "spring"}, "[0].until: found spring; expected a date such as"),
        ({**ENTRY, "fault": "kernel log: Xid 48: x"}, "[0]: found no until; expected a date"),
        ({**ENTRY, "fault": "kernel log: Xid 48: x", "until": "2027-02-28"}, ""),
    ],
)
def test_an_entry_is_checked(entry: dict[str, Any], error: str) -> None:
    errors = accepted_faults.find_errors([entry])
    assert len(errors) == bool(error)
    assert all(error in one for one in errors)


def test_an_accepted_fault_of_a_host_is_said_by_its_check() -> None:
    """The answer of the driver decides whether an entry without its fault is said."""
    facts: dict[str, Any] = {"distribution": "Ubuntu", "distribution_version": "24.04"}
    facts |= {"kernel": "6.8", "architecture": "x86_64", "gpu": {"devices": [], "recorded": 0}}
    answer = {"health": {"smi": {"status": 9, "output": ""}}}
    assert accepted_faults.judge(facts, answer, [ENTRY]) == []
    answer = {"health": {"smi": {"status": 0, "gpus": {}}}}
    assert len(accepted_faults.judge(facts, answer, [ENTRY])) == 1
