# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The reports of hosts: what a run writes, their history, and the folder that has them."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ansible_collections.slipway.host.plugins.module_utils.gpu import host as gpu_host
from ansible_collections.slipway.host.plugins.module_utils.gpu.health import Finding
from ansible_collections.slipway.host.plugins.plugin_utils.fleet import (
    form,
    history,
    overview,
    page,
    recorder,
    store,
)

from tests.contract.tree import ROOT
from tests.unit import fleet_reports
from tests.unit import survey as this_host
from tests.unit.fleet_reports import NOW, run
from tests.unit.gpu_facts import facts

SCHEMA = json.loads((ROOT / "docs/host-report.schema.json").read_text(encoding="utf-8"))
DRIFT = {"docker_engine": [fleet_reports.DIFFERENCE]}


def survey(**more: Any) -> dict[str, Any]:
    answer = fleet_reports.report(0, 1)
    parts = {"overview": answer["overview"], "system": {"distribution": "Ubuntu"}}
    empty: dict[str, Any] = {"differences": {}, "conflicts": {}, "health": [], "information": []}
    return {**empty, **parts, **more}


def update(*runs: dict[str, Any]) -> dict[str, Any]:
    """Return the report of a host after runs, one on each day."""
    report: dict[str, Any] = {}
    for number, one in enumerate(runs):
        report = history.update(report, "gpu01", one, NOW + timedelta(days=number))
    return report


def kinds(report: dict[str, Any]) -> list[str]:
    return [one["kind"] for one in report["events"]]


@pytest.mark.parametrize("number", range(12))
def test_a_report_has_its_schema(number: int) -> None:
    jsonschema.validate(fleet_reports.report(number, 12), SCHEMA)


def test_drift_is_recorded_when_it_changes_and_when_it_is_repaired() -> None:
    found = run(survey(differences=DRIFT), state="drift", command="plan")
    repaired = run(survey(), state="changed", found=DRIFT)
    report = update(found, found, repaired, run(survey()))
    assert kinds(report) == ["drift", "repaired"]
    assert [one["state"] for one in report["days"]] == ["drift", "drift", "declared", "declared"]
    assert [one["drift"] for one in report["days"]] == [1, 1, 0, 0]


def test_upgrades_and_reboots_are_recorded() -> None:
    before, after = survey(), survey()
    after["overview"] = {
        **after["overview"],
        "driver": {"version": "590.1", "flavour": "open"},
        "boot": "b",
    }
    report = update(run(before), run(after), run(after))
    assert [one["text"].partition(" ")[0] for one in report["events"]] == ["rebooted", "NVIDIA"]


def test_faults_are_recorded_until_they_are_gone() -> None:
    fault = {"where": "0000:1b:00.0", **fleet_reports.FAULT}
    warning = {**fault, "warning": True}
    report = update(
        run(survey(health=[warning])),
        run(survey(health=[fault, warning]), state="fault"),
        run(survey(health=[warning])),
    )
    assert kinds(report) == ["fault", "recovered"]
    assert [one["faults"] for one in report["days"]] == [0, 1, 0]


def test_an_unreachable_host_keeps_what_is_known_of_it() -> None:
    known = update(run(survey(differences=DRIFT), state="drift"))
    down = run(None, state="unreachable", error="no route to host")
    report = history.update(known, "gpu01", down, NOW + timedelta(days=3))
    assert {key: report[key] for key in ("seen", "overview", "drift", "system")} == {
        key: known[key] for key in ("seen", "overview", "drift", "system")
    }
    assert report["ran"] == (NOW + timedelta(days=3)).isoformat()
    assert (history.condition(report), kinds(report)[-1]) == ("unreachable", "unreachable")
    again = history.update(report, "gpu01", run(survey()), NOW + timedelta(days=4))
    assert kinds(again)[-1] == "reachable"


def test_a_held_host_keeps_what_is_known_of_it_until_it_is_released() -> None:
    known = update(run(survey(differences=DRIFT), state="drift"))
    held = history.update(known, "gpu01", run(None, state="held", hold="swap"), NOW)
    assert (held["overview"], held["drift"]) == (known["overview"], known["drift"])
    assert (history.condition(held), held["hold"]) == ("held", "swap")
    assert (kinds(held)[-1], held["days"][-1]["state"]) == ("held", "held")
    again = history.update(held, "gpu01", run(None, state="held", hold="swap"), NOW)
    assert kinds(again) == kinds(held)
    free = history.update(again, "gpu01", run(survey()), NOW + timedelta(days=1))
    assert (history.condition(free), free["hold"]) == ("declared", "")
    assert "released" in kinds(free)


def test_a_survey_of_some_roles_leaves_the_others_as_they_were() -> None:
    first = survey(differences={**DRIFT, "user_access": [fleet_reports.DIFFERENCE]})
    second = survey()
    second["overview"] = {"roles": ["docker_engine"], "gpus": [], "engine": "docker-ce 1"}
    report = update(run(first, state="drift"), run(second, command="upgrade"))
    assert [*report["drift"]] == ["user_access"]
    assert report["overview"]["images"] == first["overview"]["images"]
    assert report["overview"]["engine"] == "docker-ce 1"


CHECK = fleet_reports.check("engine", "no answer", "failed")


@pytest.mark.parametrize(
    ("done", "condition"),
    [
        (run(survey()), "declared"),
        (run(survey(), checks=[CHECK]), "failed"),
        (run(survey(differences=DRIFT), state="failed", command="verify"), "drift"),
        (run(survey(differences=DRIFT), state="failed", command="site"), "failed"),
        (run(survey(), waiting=["later"], state="waiting"), "waiting"),
        (run(survey(conflicts={"a": [fleet_reports.CONFLICT]}), state="conflict"), "conflict"),
        (run(None, state="unreachable"), "unreachable"),
    ],
)
def test_condition(done: dict[str, Any], condition: str) -> None:
    assert history.condition(update(done)) == condition


def test_a_failed_check_counts_until_the_checks_pass() -> None:
    failed = run(survey(), checks=[CHECK], state="failed")
    assert history.condition(update(failed, run(survey()))) == "failed"
    passed = run(survey(), checks=[fleet_reports.check("engine", "answers")])
    assert history.condition(update(failed, run(survey()), passed)) == "declared"


def test_a_report_is_bounded() -> None:
    lines = [{**fleet_reports.DIFFERENCE, "found": "x" * 10_000}] * 10_000
    report: dict[str, Any] = {}
    for number in range(history.DAYS * 3):
        drift = run(survey(differences={"a": lines[:number]}), state="drift")
        report = history.update(report, "gpu01", drift, NOW + timedelta(hours=12 * number))
    jsonschema.validate(report, SCHEMA)
    assert len(report["days"]) == history.DAYS
    assert report["events"][0]["at"] >= (NOW + timedelta(hours=12 * 269 - 24 * 90)).isoformat()
    assert len(json.dumps(report)) < 300_000


# The folder.


def reports_in(folder: Path) -> tuple[store.Store, list[str]]:
    warnings: list[str] = []
    return store.Store(folder, warnings.append), warnings


def save(folder: Path, host: str = "gpu01") -> list[str]:
    reports, warnings = reports_in(folder)
    with reports.lock():
        reports.update(host, run(survey()), NOW)
    page.write(reports, NOW)
    return warnings


def modes(folder: Path) -> set[int]:
    return {stat.S_IMODE(file.stat().st_mode) for file in folder.glob("[!.]*")}


def test_reports_are_private_until_the_folder_is_published(tmp_path: Path) -> None:
    folder = tmp_path / "reports"
    assert save(folder) == []
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert sorted(file.name for file in folder.glob("[!.]*")) == ["gpu01.json", "index.html"]
    assert modes(folder) == {0o600}
    folder.chmod(0o755)
    save(folder)
    assert modes(folder) == {0o644}


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "{",
        "[]",
        "\udcff",
        '{"schema": "slipway-host-report", "version": 9}',
        '{"schema": "slipway-host-report", "version": 1, "host": 1}',
        "[" * 100_000,
        "events",
        "overview",
        "days",
        "checks",
        "seen",
    ],
)
def test_a_damaged_report_is_named_and_replaced(tmp_path: Path, damage: str) -> None:
    save(tmp_path)
    file = tmp_path / "gpu01.json"
    if damage.isalpha():
        report = json.loads(file.read_text(encoding="utf-8"))
        report[damage] = {"items": 5} if isinstance(report[damage], dict) else [5]
        if damage == "overview":
            report[damage] = {"gpus": [5]}
        damage = json.dumps(report)
    file.write_text(damage, encoding="utf-8", errors="surrogateescape")
    reports, warnings = reports_in(tmp_path)
    page.write(reports, NOW)
    assert warnings and all(str(file) in one for one in warnings)
    assert 'class="host"' not in (tmp_path / "index.html").read_text(encoding="utf-8")
    save(tmp_path)
    jsonschema.validate(json.loads(file.read_text(encoding="utf-8")), SCHEMA)


@pytest.mark.parametrize("host", ["../x", "/etc/passwd", ".hidden", "..", "a/b", "x" * 500, "ü"])
def test_no_name_of_a_host_leaves_the_folder(tmp_path: Path, host: str) -> None:
    folder = tmp_path / "reports"
    assert save(folder, host) == []
    assert [file.name for file in tmp_path.iterdir()] == ["reports"]
    reports, _warnings = reports_in(folder)
    assert [one["host"] for one in reports.read_all()] == [history.clean(host)]


def _write_often(folder: Path, host: str) -> None:
    reports, warnings = reports_in(folder)
    for _number in range(40):
        with reports.lock():
            reports.update(host, run(survey()), NOW)
        page.write(reports, NOW)
    assert warnings == []


def test_runs_at_the_same_time_do_not_damage_reports(tmp_path: Path) -> None:
    # Each opens the lock for itself, as processes do.
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(_write_often, tmp_path, name) for name in "aabb"]:
            done.result()
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        ".lock",
        "a.json",
        "b.json",
        "index.html",
    ]


def test_the_command_writes_the_page(tmp_path: Path) -> None:
    save(tmp_path)
    (tmp_path / "index.html").unlink()
    command = [sys.executable, str(ROOT / "tools/report.py")]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/index.html\n")
    assert "gpu01" in (tmp_path / "index.html").read_text(encoding="utf-8")
    wrong = subprocess.run([*command, "--open"], capture_output=True, text=True)
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert "expected a folder" in wrong.stderr


# What a run records.


def test_a_recorder_writes_surveys_checks_and_steps(tmp_path: Path) -> None:
    clock = iter([0.0, 1.0, 4.0, 4.0, 10.0])
    recorded = recorder.Recorder(lambda: next(clock))
    host_facts = {"kernel": "6.8", "secret": "x"}
    answer = {**survey(), "ansible_facts": {"slipway": host_facts}}
    recorded.survey("gpu01", {**answer, "differences": DRIFT})
    recorded.survey("gpu01", answer)
    for task, role in (("1", ""), ("2", "slipway.host.docker_engine")):
        recorded.start("gpu01", task)
        recorded.end("gpu01", task, role, f"task {task}", bool(role))
    reports, _warnings = reports_in(tmp_path)
    entry = {"state": "changed", "waiting": []}
    recorded.write(reports, {"gpu01": entry, "gpu02": {**entry, "state": "unreachable"}}, "site")
    found, other = reports.read_all()
    assert found["system"] == {"kernel": "6.8"}
    assert (found["drift"], kinds(found)) == ({}, ["drift", "repaired"])
    assert [[one["role"], one["start"], one["seconds"]] for one in found["timeline"]["steps"]] == [
        ["", 1.0, 3.0],
        ["docker_engine", 4.0, 6.0],
    ]
    assert (other["host"], other["seen"]) == ("gpu02", "")


@pytest.mark.parametrize("folder", ["", "/dev/null"])
def test_reports_can_be_turned_off(folder: str) -> None:
    assert recorder.open_store(folder, print) is None


# What a survey shows.

SMI = {
    "product_name": "Tesla T4",
    "fb_memory_usage/total": "15360 MiB",
    "fb_memory_usage/used": "300 MiB",
}
OWNED: dict[str, Any] = {
    "ml_services": {
        "projects": [
            {
                "name": "jupyter",
                "urls": {"jupyter": "u"},
                "services": [
                    {
                        "name": "jupyter",
                        "container": {"settings": {"gpus": [["cdi", ["nvidia.com/gpu=0"]]]}},
                    }
                ],
            }
        ]
    },
    "docker_engine": {
        "packages": [{"name": "docker-ce"}, {"name": "gone"}, {"name": "x", "state": "absent"}]
    },
    "ml_images": {"images": [{"reference": "a:cpu"}, {"reference": "b:cpu"}]},
}
ANSWER = {
    "users": {"alice": [1500, 1500, "/home/alice", "", ""], "bob": None},
    "packages": {"docker-ce": ["hold", "installed", "29"], "gone": None, "x": None},
    "images": {"a:cpu": ["sha256:1", {"bytes": 5, "time": 9}], "b:cpu": None},
    "projects": {"jupyter": {"containers": [{"service": "jupyter", "state": "running",
                                             "health": "healthy"}]}},
    "disks": {"/": [1, 10], "/srv": [1, 10], "/var/lib/docker": [2, 20], "/none": None},
    "boot": "id",
}  # fmt: skip


def test_an_overview_has_what_the_survey_knows() -> None:
    host = facts("t4", loaded="580.95.05", recorded=2)
    address = gpu_host.host_facts(host).gpus[0].address
    bus = f"0000{address}"
    health = {"smi": {"gpus": {bus: SMI}, "owners": {bus: [0, 1500, 1501]}}}
    answer = {**ANSWER, "health": health}
    seen = overview.describe(host, OWNED, answer, [], {"jupyter": "http://a", "other": "b"})
    assert seen["gpus"][0] == {
        "address": address,
        "name": "Tesla T4",
        "memory": 15360,
        "used": 300,
        "health": "healthy",
        "users": ["root", "alice", "uid 1501"],
        "reserved": ["jupyter"],
    }
    assert [one["health"] for one in seen["gpus"]] == ["healthy", "missing"]
    assert seen["packages"] == [{"name": "docker-ce", "version": "29", "held": True}]
    assert [one["present"] for one in seen["images"]] == [True, False]
    assert seen["services"] == [
        {
            "name": "jupyter",
            "project": "jupyter",
            "state": "healthy",
            "urls": {"jupyter": "http://a"},
        }
    ]
    assert [one["path"] for one in seen["disks"]] == ["/", "/var/lib/docker"]


@pytest.mark.parametrize(
    ("findings", "health"),
    [([], "unknown"), ([False], "fault"), ([True], "warning"), ([True, False], "fault")],
)
def test_the_health_of_a_gpu(findings: list[bool], health: str) -> None:
    host = facts("t4")
    address = gpu_host.host_facts(host).gpus[0].address
    judged = [Finding(address, "a", "b", "c", one) for one in findings]
    (gpu,) = overview.describe(host, {}, {}, judged, {})["gpus"]
    assert gpu["health"] == health


def test_an_overview_of_some_roles_has_no_more() -> None:
    seen = overview.describe(facts("none"), {"user_access": {"users": []}}, {}, [], {})
    assert {"images", "services", "packages", "toolkit"}.isdisjoint(seen)
    assert (seen["gpus"], seen["engine"]) == ([], "")


def test_secrets_of_services_are_in_no_report(tmp_path: Path) -> None:
    found, declared = "found-s3cret", "declared-s3cret"
    file = tmp_path / "token"
    file.write_text(found, encoding="utf-8")
    entry = {"path": str(file), "owner": "nobody", "group": "root", "content": f"{declared}\n"}
    owned = {"ml_services": {"secrets": [entry]}}
    answer = this_host.answer(this_host.question([*owned.values()]))
    compared = this_host.compare(owned, answer)["ml_services"].differences
    assert "content" in " ".join(map(str, compared))
    seen = overview.describe(facts("none"), owned, answer, [], {})
    done = survey(overview=seen, differences={"ml_services": [vars(one) for one in compared]})
    report = update(run(done, state="drift"))
    for text in (json.dumps(report), page.render([report], NOW)["index.html"]):
        assert str(file) in text
        assert found not in text
        assert declared not in text


def keys(schema: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Yield the path of each key of a JSON schema; keys that may be missing end with ``?``."""
    if "items" in schema:
        yield from keys(schema["items"], f"{path}[]")
    required, known = schema.get("required", []), schema.get("properties", {})
    for key in dict.fromkeys([*required, *known]):
        yield f"{path}.{key}" + ("" if key in required else "?")
        yield from keys(known.get(key, {}), f"{path}.{key}")


def form_keys(part: Any, path: str = "") -> Iterator[str]:
    """Yield the path of each key with a name in a form, as `keys` does."""
    if isinstance(part, list):
        yield from form_keys(part[0], f"{path}[]")
    elif isinstance(part, dict):
        for key, value in part.items():
            if key != "*":
                yield f"{path}.{key}"
                yield from form_keys(value, f"{path}.{key.rstrip('?')}")


def test_the_form_has_the_keys_of_the_schema() -> None:
    # The store checks these two by themselves.
    separate = {".schema", ".version"}
    assert set(form_keys(form.REPORT)) == set(keys(SCHEMA)) - separate
