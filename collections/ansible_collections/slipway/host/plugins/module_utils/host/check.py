# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Acceptance checks as data: what was checked, expected and found, and what to do."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.state.reading import escape_control

PASSED, FAILED, NOT_RUN = "passed", "failed", "not_run"
# How the result of a check begins that does not apply to the host.
NOT_APPLICABLE = ("not run", "not tried", "not applicable", "not installed")
# What the checks of GPUs say of a simulated driver, see gpu.proof.
STAND_IN = "a stand-in driver"
# The form of an error: what was found; expected what. What to do.
_SENTENCE = re.compile(r"(?P<found>.*?); expected (?P<expected>.*?)\.(?: (?P<remedy>.*))?", re.S)
AGAIN = "Run ./slipway site, then ./slipway verify."


@dataclass(frozen=True)
class Kind:
    """What checks of one subject expect.

    ``others`` are requirements of NVIDIA's list for bare-metal hosts that the check covers: IDs of
    ai-cloud-validation, docs/requirements, read 2026-11 (commit 1207cb7 of 2026-08-19).
    """

    expected: str
    others: tuple[str, ...] = ()


# By subject; a check of one image, service or data set has the subject before its name.
KINDS: Mapping[str, Kind] = {
    "GPUs": Kind("nvidia-smi lists every GPU of the PCI bus", ("BMAAS08-01",)),
    "GPU computation": Kind("every GPU computes what the CPU computes", ("BMAAS08-01",)),
    "GPU load": Kind("no fault while every GPU computes", ("BMAAS09-01",)),
    "GPU health": Kind("no fault", ("BMAAS08-01",)),
    "GPUs in containers": Kind("a container computes on every GPU"),
    "installed packages": Kind("the files of the declared packages, unchanged"),
    "data set": Kind("the files as they were placed"),
    "apt settings": Kind("apt checks signatures and keeps holds"),
    "engine": Kind("Docker Engine answers"),
    "engine settings": Kind("the running engine has the settings of daemon.json"),
    "engine access": Kind("only the declared users reach the engine"),
    "container toolkit settings": Kind("settings with which containers keep their GPUs"),
    "image": Kind("the smoke test passes"),
    "service": Kind("the declared answer, and only with the secret"),
    "Slurm controller": Kind("slurmctld answers"),
    "Slurm accounting": Kind("slurmdbd answers and knows the controller"),
    "Slurm node": Kind("the controller gives jobs to the node"),
    "front door": Kind("the service answers through the front door and on each of its hosts"),
    "container network": Kind("packets of containers pass"),
    "network from containers": Kind("containers resolve names and reach what the host reaches"),
    "published ports": Kind("published ports answer from outside the host"),
    "commands of users": Kind("an ordinary user can run ml"),
}


@dataclass(frozen=True)
class Check:
    """An acceptance check: what was checked, whether it passed, the result, and the duration."""

    what: str
    ok: bool
    seen: str
    seconds: float = 0.0

    @property
    def subject(self) -> str:
        """Return the key of KINDS, empty for an unknown check."""
        longest_first = sorted(KINDS, key=len, reverse=True)
        return next((key for key in longest_first if f"{self.what} ".startswith(f"{key} ")), "")

    def as_data(self, simulated: bool = False) -> dict[str, Any]:
        """Return the check as the module verify does; SIMULATED says whether the GPUs are.

        Services and users choose some of the words: a terminal must only show them.
        """
        seen = "\n".join(map(escape_control, self.seen.split("\n")))
        kind = KINDS.get(self.subject, Kind(""))
        sentence = None if self.ok else _SENTENCE.fullmatch(seen)
        parts = sentence.groupdict() if sentence else {"found": seen}
        return {
            "id": re.sub(r"[^a-z]+", "-", (self.subject or self.what).lower()),
            "what": self.what,
            "ok": self.ok,
            "seen": seen,
            "status": self._status(),
            "found": parts["found"],
            "expected": parts.get("expected") or kind.expected,
            "remedy": "" if self.ok else parts.get("remedy") or AGAIN,
            "seconds": self.seconds,
            "stand_in": self.subject.startswith("GPU") and (simulated or STAND_IN in self.seen),
            "others": list(kind.others),
        }

    def _status(self) -> str:
        if not self.ok:
            return FAILED
        return NOT_RUN if self.seen.startswith(NOT_APPLICABLE) else PASSED


# Called with the name of each check before it runs.
on_start: Callable[[str], None] | None = None


def run_check(what: str, function: Callable[[], str]) -> Check:
    """Return the check of FUNCTION, which returns its result as text or raises an error."""
    if on_start:
        on_start(what)
    started = time.monotonic()
    try:
        check = Check(what, True, function())
    except (OSError, ValueError, KeyError, IndexError, subprocess.SubprocessError) as error:
        check = Check(what, False, str(error) or type(error).__name__)
    return replace(check, seconds=round(time.monotonic() - started, 3))
