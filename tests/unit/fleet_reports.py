# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reports of fleets that do not exist, the same ones each time."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

from ansible_collections.slipway.host.plugins.plugin_utils.fleet import history

NOW = datetime(2026, 11, 28, 9, 30, tzinfo=timezone.utc)
MODELS = (("NVIDIA H100 80GB HBM3", 81559, 8), ("NVIDIA L4", 23034, 2), ("NVIDIA T4", 15360, 1))
DRIVERS = ("580.95.05", "580.82.09", "570.195.03", "535.274.02")
PEOPLE = ("alice", "bob", "chen", "dora")
FAULT = {
    "found": "Xid 79 in the kernel log: GPU has fallen off the bus",
    "expected": "none",
    "remedy": "Reboot the host; if the error comes back, replace the card",
    "warning": False,
    "accepted": "",
}
CONFLICT = {
    "kind": "projects",
    "name": "jupyter",
    "reason": "service jupyter: found nginx on port 8888; expected a free port. Stop the "
    "program, or choose another port with the key ports in ml_services_instances",
    "blocks": [],
}
DIFFERENCE = {
    "kind": "files",
    "name": "/etc/docker/daemon.json",
    "found": "log-opts max-size 1g",
    "expected": "10m",
}
CHECKS = (
    ("GPU computation", "every GPU computes what the CPU computes"),
    ("GPU health", "no fault"),
    ("GPUs in containers", "a container computes on every GPU"),
    ("engine", "Docker Engine 29.1.0, API 1.52"),
    ("installed packages", "37 packages unchanged"),
    ("image slipway/pytorch:gpu", "smoke test passed in 14 s"),
    ("service jupyter", "http://127.0.0.1:8888/api answered with success"),
    ("container network", "packets pass the packet filter"),
)
ROLES = ("nvidia_driver", "docker_engine", "nvidia_container_toolkit", "user_access", "ml_images")


def check(what: str, found: str, status: str = "passed") -> dict[str, Any]:
    is_failed = status == "failed"
    return {
        "id": "check",
        "what": what,
        "status": status,
        "expected": "success" if is_failed else found,
        "found": found,
        "remedy": "Run ./slipway site" if is_failed else "",
        "seconds": 1.5,
        "stand_in": False,
        "others": [],
    }


def gpus(dice: random.Random, count: int, model: tuple[str, int, int]) -> list[dict[str, Any]]:
    found = []
    for number in range(count):
        is_used = dice.random() < 0.6
        found.append(
            {
                "address": f"0000:{0x1B + 16 * number:02x}:00.0",
                "name": model[0],
                "memory": model[1],
                "used": round(model[1] * dice.choice((0.2, 0.5, 0.75, 0.95))) if is_used else 0,
                "health": "healthy",
                "users": [dice.choice(PEOPLE)] if is_used else [],
                "reserved": ["jupyter"] if number == 0 else [],
            }
        )
    return found


def survey(dice: random.Random, has_gpus: bool) -> dict[str, Any]:
    """Return the result of a survey, as the recorder keeps it, of a host as declared."""
    model = dice.choice(MODELS)
    count = model[2] if has_gpus else 0
    driver = dice.choices(DRIVERS, (60, 25, 10, 5))[0]
    packages = [f"libnvidia-{part}-580" for part in ("cfg1", "compute", "decode", "encode", "gl")]
    names = [*(packages if count else []), "docker-ce", "docker-ce-cli", "containerd.io"]
    images = ("jupyter", "pytorch", "iris-api") if count else ("iris-api",)
    service = {
        "name": "jupyter" if count else "iris-api",
        "project": "jupyter",
        "state": "healthy",
        "urls": {"jupyter": "http://192.0.2.11:8888/lab"},
    }
    overview = {
        "roles": [*ROLES],
        "gpus": gpus(dice, count, model),
        "driver": {"version": driver if count else "", "flavour": "open" if count else ""},
        "engine": f"docker-ce 5:29.{dice.randint(0, 1)}.0-1~ubuntu.24.04~noble",
        "disks": [
            {"path": "/", "free": dice.randint(40, 400) * 10**9, "total": 480 * 10**9},
            {"path": "/srv", "free": dice.randint(1, 12) * 10**12, "total": 14 * 10**12},
        ],
        "boot": "a",
        "packages": [{"name": one, "version": f"{driver}-1", "held": True} for one in names],
        "toolkit": "1.19.0-1",
        "images": [
            {
                "reference": f"slipway/{one}:{'gpu' if count else 'cpu'}",
                "bytes": dice.randint(3, 90) * 10**8,
                "time": int(NOW.timestamp()) - dice.randint(1, 60) * 86400,
                "present": True,
            }
            for one in images
        ],
        "services": [service],
    }
    system = {
        "distribution": "Ubuntu",
        "distribution_version": dice.choice(("22.04", "24.04")),
        "kernel": "6.8.0-88-generic",
        "architecture": "x86_64",
    }
    nothing: dict[str, Any] = {"differences": {}, "conflicts": {}, "health": [], "information": []}
    return {"overview": overview, "system": system, **nothing}


def run(answer: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    """Return a run that found a host as declared."""
    run: dict[str, Any] = {
        "command": "site",
        "state": "no_drift",
        "error": "",
        "hold": "",
        "survey": answer,
        "found": (answer or {}).get("differences", {}),
        "checks": None,
        "steps": [],
        "waiting": [],
    }
    return {**run, **more}


def steps(dice: random.Random) -> list[dict[str, Any]]:
    start, found = 0.4, []
    for role in ROLES:
        for step in ("Install packages", "Configure", "Start"):
            seconds = round(dice.expovariate(0.1), 1)
            found.append(
                {
                    "role": role,
                    "step": f"{step} of {role}",
                    "start": round(start, 1),
                    "seconds": seconds,
                    "changed": dice.random() < 0.4,
                }
            )
            start += seconds
    return found


def days(dice: random.Random, driver: str, state: str) -> list[dict[str, Any]]:
    """Return a record for each day of the last 90; on some days something was wrong."""
    found, current = [], "declared"
    for number in range(history.DAYS - 1, -1, -1):
        if dice.random() < 0.12:
            current = dice.choices(
                ("declared", "drift", "fault", "unreachable", "waiting"), (80, 30, 5, 5, 10)
            )[0]
        current = state if number == 0 else current
        found.append(
            {
                "day": (NOW - timedelta(days=number)).date().isoformat(),
                "state": current,
                "drift": int(current == "drift"),
                "faults": int(current == "fault"),
                "driver": driver if number < 40 else DRIVERS[2] if driver else "",
            }
        )
    return found


def events(dice: random.Random) -> list[dict[str, Any]]:
    kinds = (
        ("drift", "2 found: docker_engine 1, user_access 1"),
        ("repaired", "2 repaired: docker_engine 1, user_access 1"),
        ("upgrade", "NVIDIA driver 570.195.03 → 580.95.05"),
        ("reboot", "rebooted"),
    )
    return [
        {
            "at": (NOW - timedelta(days=number, minutes=dice.randint(0, 600))).isoformat(),
            **dict(zip(("kind", "text"), dice.choice(kinds), strict=True)),
        }
        for number in sorted(dice.sample(range(1, 89), 20), reverse=True)
    ]


def spoil(dice: random.Random, number: int, count: int, answer: dict[str, Any]) -> dict[str, Any]:
    """Return a run on a host; every few hosts something is wrong, each time something else."""
    case = number % 40 if count > 1 else 0
    passed = [check(*one) for one in CHECKS]
    done = run(answer, checks=passed, steps=steps(dice))
    if case == 1:
        answer["differences"] = {"docker_engine": [DIFFERENCE], "user_access": [DIFFERENCE]}
        done = run(answer, state="drift", command="plan")
    elif case == 2 and answer["overview"]["gpus"]:
        address = answer["overview"]["gpus"][-1]["address"]
        answer["overview"]["gpus"][-1]["health"] = "fault"
        answer["health"] = [{"where": address, **FAULT}]
        done["state"] = "fault"
    elif case == 3:
        answer["conflicts"] = {"ml_services": [CONFLICT]}
        done["state"] = "conflict"
    elif case == 4:
        done["checks"] = [*passed, check("published ports", "no answer on 8888", "failed")]
        done.update(state="failed", error="published ports: no answer on 8888")
    elif case == 5:
        done["waiting"] = ["docker.service must restart, which stops 2 containers of alice"]
        done["state"] = "waiting"
    return done


def report(number: int, count: int) -> dict[str, Any]:
    """Return the report of one host of a fleet of COUNT hosts."""
    dice = random.Random(number)
    has_gpus = number % 5 != 4
    name = f"{'gpu' if has_gpus else 'cpu'}{number + 1:02d}"
    answer = survey(dice, has_gpus)
    done = spoil(dice, number, count, answer)
    found = history.update({}, name, done, NOW - timedelta(minutes=number))
    driver = answer["overview"]["driver"]["version"]
    found["days"] = days(dice, driver, history.condition(found))
    found["events"] = [*events(dice), *found["events"]]
    if count > 6 and number == count // 2 + 1:
        down = run(None, state="unreachable", error="ssh: connect to port 22: timed out")
        found["seen"] = (NOW - timedelta(days=12)).isoformat()
        found = history.update(found, name, down, NOW)
    return found


def fleet(count: int) -> Iterator[dict[str, Any]]:
    """Yield the reports of a fleet of COUNT hosts."""
    for number in range(count):
        yield report(number, count)
