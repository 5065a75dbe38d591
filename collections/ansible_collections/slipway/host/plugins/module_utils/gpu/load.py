# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep all GPUs of a host busy for some minutes, and record temperature, clock and power.

Private to the collection.
"""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Mapping, Sequence

from ansible_collections.slipway.host.plugins.module_utils.apt import consent
from ansible_collections.slipway.host.plugins.module_utils.gpu import (
    accepted_faults,
    health,
    health_facts,
    nvidia_smi,
    proof,
)

# Seconds between two looks at the GPUs: nvidia-smi needs a part of a second for each GPU.
PAUSE = 10
TEMPERATURE, CLOCK = "temperature/gpu_temp", "clocks/sm_clock"
# Drivers from 530 on use the first name.
POWER = ("gpu_power_readings/instant_power_draw", "gpu_power_readings/power_draw")
FIELDS = (*health_facts.FIELDS, TEMPERATURE, CLOCK, *POWER, "power_readings/power_draw")

Sample = Mapping[str, Mapping[str, str]]


class Watch:
    """Reads nvidia-smi again and again until it ends."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watch:
        """Start."""
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        """End after the look that goes on."""
        self._ends.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ends.wait(PAUSE if self.samples else 0):
            done = subprocess.run(
                health_facts.SMI, capture_output=True, text=True, errors="replace", check=False
            )
            try:
                self.samples.append(health_facts.read_fields(done.stdout, FIELDS))
            except ValueError:
                # The check of health, which follows, says why.
                self.samples.append({})


def check(
    addresses: Sequence[str], minutes: int, accepted: Sequence[accepted_faults.Entry] = ()
) -> str:
    """Load the GPUs with these PCI ADDRESSES for some MINUTES; return the result in one line.

    Raise ValueError if the GPUs are in use, if a result is wrong, or with the faults that GPUs
    showed under load and that are not ACCEPTED.
    """
    if users := consent.gpu_users():
        raise ValueError(
            f"the GPUs are in use by {', '.join(users)}; expected idle GPUs for the load. Wait "
            "until this work ends, then run again."
        )
    with Watch() as watch:
        result = proof.compute_on_host(addresses, load_seconds=60 * minutes)
    findings = dict.fromkeys(
        finding
        for sample in watch.samples
        if sample
        for finding in health.judge_smi({"status": 0, "gpus": sample}, addresses)
    )
    judged = accepted_faults.apply(list(findings), accepted, accepted_faults.today(), False)
    told = health.sentences(finding.as_data() for finding in judged)
    if faults := [text for kind, text in told if kind == health.FAULT]:
        raise ValueError(" ".join(faults))
    warnings = [text.rstrip(".") for _kind, text in told]
    return "; ".join([f"{minutes} min: {result}", *describe(watch.samples), *warnings])


def describe(samples: Sequence[Sample]) -> list[str]:
    """Return for each GPU the extremes of its temperature, clock and power in SAMPLES."""
    texts = []
    for bus in dict.fromkeys(bus for sample in samples for bus in sample):
        fields = [sample[bus] for sample in samples if bus in sample]
        temperatures = _numbers(fields, TEMPERATURE)
        clocks, powers = _numbers(fields, CLOCK), _numbers(fields, *FIELDS[-3:])
        parts = [
            f"at most {max(temperatures):g} °C" if temperatures else "",
            f"clock {min(clocks):g} to {max(clocks):g} MHz" if clocks else "",
            f"at most {max(powers):g} W" if powers else "",
        ]
        address = nvidia_smi.sysfs_address(bus)
        texts.append(f"GPU {address}: {', '.join(filter(None, parts)) or 'no readings'}")
    return texts


def _numbers(fields: Sequence[Mapping[str, str]], *names: str) -> list[float]:
    """Return the numbers of the first of several fields that each sample has."""
    found = []
    for one in fields:
        text = next((one[name] for name in names if name in one), "").partition(" ")[0]
        if text.replace(".", "", 1).isdigit():
            found.append(float(text))
    return found
