# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check the part of a host in its Slurm cluster: controller, node, or both."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Collection, Iterator
from functools import partial

from ansible_collections.slipway.host.plugins.module_utils.host.check import Check, run_check

CONTROLLER, NODE, ACCOUNTING = "Slurm controller", "Slurm node", "Slurm accounting"
# By the unit that runs the part.
UNITS = {CONTROLLER: "slurmctld.service", NODE: "slurmd.service", ACCOUNTING: "slurmdbd.service"}
# A line of scontrol ping.
_PING = re.compile(r"Slurmctld\(\S+\) at (?P<host>\S+) is (?P<state>\w+)")
SLURM_USER = "slurm"
TIMEOUT = 60
# A node that has just started is not known to the controller for some seconds.
PATIENCE, PAUSE = 30.0, 1.0
# How the states of sinfo begin in which a node cannot run jobs.
BROKEN = ("down", "fail", "inval", "error", "no_respond")
DRAIN = "drain"
# Causes of the error output of sinfo, and what to do. The first that it contains counts.
REMEDIES = {
    "Unable to contact": "Start slurmctld on the controller: run ./slipway site",
    "establish a configuration source": "Start slurmd on this host: run ./slipway site",
    "": "The munge key or the clock of this host may differ: ./slipway site compares both",
}


def check_cluster(units: Collection[str]) -> Iterator[Check]:
    """Yield the checks of the parts whose UNITS are declared on this host."""
    # Slurm knows hosts by their names without the domain.
    name = os.uname().nodename.split(".")[0]
    if UNITS[CONTROLLER] in units:
        yield run_check(CONTROLLER, partial(check_controller, name))
    if UNITS[ACCOUNTING] in units:
        yield run_check(ACCOUNTING, check_accounting)
    if UNITS[NODE] in units:
        yield run_check(NODE, partial(check_node, name))


def check_controller(name: str) -> str:
    """Return what each controller answers; raise ValueError if that of host NAME is down.

    The first controller that is up is in charge of the jobs.
    """
    _status, output, errors = _run("scontrol", "ping")
    lines = (output or errors).strip().splitlines() or ["no answer"]
    pings = [found for line in lines if (found := _PING.fullmatch(line.strip()))]
    own = next((ping for ping in pings if ping["host"] == name), None)
    if own is None or own["state"] != "UP":
        line = own[0] if own else lines[0]
        raise ValueError(f"{line}; expected it to be UP. Run ./slipway site, which starts it")
    answering = next(ping["host"] for ping in pings if ping["state"] == "UP")
    words = [f"{answering} answers"] if len(pings) > 1 else []
    return ", ".join([*words, *(ping[0] for ping in pings)])


def check_accounting() -> str:
    """Return the clusters whose jobs are recorded; raise ValueError if slurmdbd knows none.

    The controller tells slurmdbd its address some seconds after its start.
    """
    words = ("sacctmgr", "--noheader", "--parsable2", "list", "clusters")
    deadline = time.monotonic() + PATIENCE
    while True:
        status, output, errors = _run(*words, "format=Cluster,ControlHost")
        lines = [line.split("|") for line in output.splitlines()]
        names = [name for name, address in lines if address] if not status else []
        if names or time.monotonic() >= deadline:
            break
        time.sleep(PAUSE)
    if not names:
        last = (errors.strip().splitlines() or ["slurmdbd knows no running controller"])[-1]
        raise ValueError(
            f"{last}; expected that slurmdbd records jobs. Look at: systemctl status slurmdbd "
            "mariadb slurmctld"
        )
    return f"records of cluster {', '.join(names)}"


def check_node(name: str) -> str:
    """Return the state of a node; raise ValueError if it cannot run jobs.

    A node that an administrator drained passes, because that is no fault.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        state, user, reason = _ask_state(name)
        is_silent = state.endswith("*") or state.startswith("unknown")
        if not is_silent or time.monotonic() >= deadline:
            break
        time.sleep(PAUSE)
    why = f": {reason}" if reason != "none" else ""
    if is_silent or state.startswith(BROKEN) or (state.startswith(DRAIN) and user == SLURM_USER):
        raise ValueError(
            f"node {name} is {state}{why}; expected a node that runs jobs. Repair the cause, then "
            f"run: scontrol update nodename={name} state=resume"
        )
    if state.startswith(DRAIN):
        return f"node {name} is {state} by {user}{why}; it gets no jobs"
    return f"node {name} is {state}"


def _ask_state(name: str) -> tuple[str, str, str]:
    """Return state, and user and text of the reason; raise ValueError without an answer."""
    words = ("sinfo", "--noheader", "--Node", f"--nodes={name}", "--format=%T|%u|%E")
    status, output, errors = _run(*words)
    # There is one line for each partition.
    fields = output.strip().partition("\n")[0].split("|", 2)
    if status:
        lines = errors.strip().splitlines() or ["sinfo failed without a message"]
        remedy = next(text for cause, text in REMEDIES.items() if cause in lines[-1])
        raise ValueError(f"{lines[-1]}; expected an answer of the controller. {remedy}")
    if len(fields) != 3:
        raise ValueError(
            f"the controller knows no node {name}; expected this host in slurm.conf. Run "
            "./slipway site for the controller."
        )
    return fields[0].strip(), fields[1].strip(), fields[2].strip()


def _run(*words: str) -> tuple[int, str, str]:
    done = subprocess.run(
        words, capture_output=True, text=True, errors="replace", timeout=TIMEOUT, check=False
    )
    return done.returncode, done.stdout, done.stderr
