# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Known faults of GPUs that the owner of a host accepts: the option host_verify_accepted_faults.

An entry names one fault of one GPU, in the words in which it is reported. Another GPU, another
fault or another number is not accepted. An accepted fault stays in every report, with its reason.

Private to the collection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime, timezone
from typing import Any, TypeAlias

from ansible_collections.slipway.host.plugins.module_utils.gpu import health
from ansible_collections.slipway.host.plugins.module_utils.gpu.health import Finding

OPTION = "host_verify_accepted_faults"
# The keys are those of the option: gpu, fault, reason and until.
Entry: TypeAlias = "Mapping[str, str | None]"


def today() -> date:
    """Return the date in UTC."""
    return datetime.now(timezone.utc).date()


def find_errors(entries: Sequence[Entry]) -> list[str]:
    """Return the errors in ENTRIES that the argument spec cannot find."""
    errors = []
    for number, entry in enumerate(entries):
        name = f"{OPTION}[{number}]"
        errors += [
            f"{name}.{key}: found nothing; expected text"
            for key in ("fault", "reason")
            if not (entry.get(key) or "").strip()
        ]
        until = entry.get("until")
        if until and _date(until) is None:
            errors.append(f"{name}.until: found {until}; expected a date such as 2027-03-31")
        if not until and (entry.get("fault") or "").startswith(health.LOG):
            # A later line of the log has the same words: only a date separates the two.
            errors.append(
                f"{name}: found no until; expected a date, because a line of the kernel log does "
                "not differ from a later one"
            )
    return errors


def _date(text: str) -> date | None:
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


def judge(
    facts: Mapping[str, Any], answer: Mapping[str, Any], entries: Sequence[Entry]
) -> list[Finding]:
    """Return the faults of a host as :func:`health.judge` does, with those that ENTRIES accept."""
    complete = "gpus" in ((answer.get("health") or {}).get("smi") or {})
    return apply(health.judge(facts, answer), entries, today(), complete)


def apply(
    findings: Sequence[Finding], entries: Sequence[Entry], day: date, complete: bool
) -> list[Finding]:
    """Return FINDINGS, of which those that ENTRIES accept on a DAY are warnings with the reason.

    An entry whose date has passed, and an entry without a fault, is a warning of its own. Only a
    COMPLETE look at the GPUs shows that a fault is gone.
    """
    result = list(findings)
    notes = []
    for entry in entries:
        fault, reason, until = (entry.get(key) or "" for key in ("fault", "reason", "until"))
        gpu = entry.get("gpu") or ""
        matching = [
            number
            for number, finding in enumerate(result)
            if finding.found == fault and (finding.gpu or finding.where) == gpu
        ]
        name = f"accepted fault '{fault}'" + (f" of {gpu}" if gpu else "")
        last = _date(until)
        if matching and last is not None and day > last:
            remedy = f"Repair the fault, or set a later date in {OPTION}"
            notes.append(Finding("", f"{name}: its date has passed", until, remedy, True))
        elif matching:
            note = f"Accepted{f' until {until}' if until else ''}: {reason}"
            for number in matching:
                result[number] = replace(result[number], warning=True, accepted=note)
        elif complete:
            remedy = f"Delete its entry from {OPTION}"
            notes.append(Finding("", f"{name} not found", "the fault", remedy, True))
    return result + notes
