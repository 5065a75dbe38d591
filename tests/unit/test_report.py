# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tables that a person reads and the exit status that a script reads."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.state import report as state_report

UNIT = {"kind": "units", "name": "docker.service", "found": "inactive", "expected": "active"}
GROUP = {"kind": "groups", "name": "lab", "found": "missing", "expected": "a group"}


def entry(**changes: Any) -> dict[str, Any]:
    return {"state": "no_drift", "differences": {}, "urls": {}, "notes": [], **changes}


DRIFT = entry(state="drift", differences={"docker_engine": [UNIT], "user_access": [GROUP, GROUP]})
DOWN = entry(state="unreachable", error="ssh: connect to host gpu02: timed out")


CONFLICT = {
    "kind": "links",
    "name": "/usr/local/bin/ml",
    "reason": "/usr/local/bin/ml: found a file.",
    "blocks": [],
}
BLOCKING = {**CONFLICT, "reason": "home of bob: found a link.", "blocks": ["lines /home/bob/k"]}
IN_CONFLICT = entry(
    differences={"docker_engine": [UNIT]},
    conflicts={"ml_aliases": [CONFLICT], "user_access": [BLOCKING]},
)


def lines(*text: str) -> str:
    return "\n".join(text)


def test_the_plan_has_a_row_for_each_difference_in_the_order_of_hosts() -> None:
    assert state_report.plan({"gpu02": DOWN, "gpu01": DRIFT, "a": entry()}) == lines(
        "HOST   ROLE           WHAT WOULD CHANGE",
        "a      -              no drift",
        "gpu01  docker_engine  units docker.service: inactive -> active",
        "gpu01  user_access    groups lab: missing -> a group",
        "gpu01  user_access    groups lab: missing -> a group",
        "gpu02  unreachable    ssh: connect to host gpu02: timed out",
        "",
        "OK: 1 host as declared.",
        "1 host needs you: gpu02 (unreachable). See above what to do.",
        "3 differences on 1 host. To apply, run ./slipway site --limit gpu01",
    )


def difference(kind: str, name: str, found: str = "missing") -> dict[str, str]:
    return {"kind": kind, "name": name, "found": found, "expected": "as declared"}


SIMILAR = [
    difference("packages", "a"),
    difference("files", "/usr/local/lib/slipway/slipway_ml/api.py"),
    difference("packages", "b"),
    difference("packages", "c", "1.0"),
    difference("files", "/usr/local/lib/slipway/ml"),
    difference("files", "/etc/a"),
    difference("files", "/etc/b"),
    difference("files", "/usr/local/lib/slipway-other/ml"),
    difference("links", "/usr/local/lib/slipway/link"),
]


def test_similar_differences_share_a_row_of_the_plan() -> None:
    report = {"gpu01": entry(differences={"ml_aliases": SIMILAR, "user_access": SIMILAR[:1]})}
    assert [line.partition("  ")[2] for line in state_report.plan(report).splitlines()[1:]] == [
        "ml_aliases   packages a, b: missing -> as declared",
        "ml_aliases   program ml, 2 files (-v lists them): missing -> as declared",
        "ml_aliases   packages c: 1.0 -> as declared",
        "ml_aliases   files /etc/a: missing -> as declared",
        "ml_aliases   files /etc/b: missing -> as declared",
        "ml_aliases   files /usr/local/lib/slipway-other/ml: missing -> as declared",
        "ml_aliases   links /usr/local/lib/slipway/link: missing -> as declared",
        "user_access  packages a: missing -> as declared",
        "",
        "",
    ]
    assert "\n10 differences on 1 host." in state_report.plan(report)


def test_a_verbose_plan_lists_each_difference() -> None:
    report = {"gpu01": entry(differences={"ml_aliases": SIMILAR})}
    rows = state_report.plan(report, verbose=True).splitlines()[1:-2]
    assert [row.split()[3].rstrip(":") for row in rows] == [one["name"] for one in SIMILAR]


def test_the_plan_says_what_it_disturbs() -> None:
    disturbing = {
        **DRIFT,
        "consequences": [
            {"kind": "restart", "name": "docker.service", "effect": "would restart"},
            {"kind": "container", "name": "train", "effect": "would stop"},
            {"kind": "gpu_process", "name": "7", "effect": "python of bob uses /dev/nvidia0"},
            {"kind": "session", "name": "carol", "effect": "is logged in at pts/0"},
        ],
    }
    plan = state_report.plan({"gpu01": disturbing, "a": entry()})
    table, _empty, *rows, _end, _ok, _differences = plan.splitlines()[4:]
    assert table == "gpu01  user_access    groups lab: missing -> a group"
    assert rows == [
        "HOST   WHAT THE CHANGES DISTURB, AND WHO USES THE HOST",
        "gpu01  unit docker.service: would restart",
        "gpu01  container train: would stop",
        "gpu01  GPU process 7: python of bob uses /dev/nvidia0",
        "gpu01  user carol: is logged in at pts/0",
    ]


FAULT = {
    "where": "0000:3b:00.0",
    "found": "the driver asks for recovery action 'GPU Reset'",
    "expected": "none",
    "remedy": "Reset it: smi -i 0000:3b:00.0",
    "warning": False,
    "gpu": "",
    "accepted": "",
}
NARROW = {
    **FAULT,
    "where": "",
    "found": "PCIe link is 8x wide",
    "expected": "16x",
    "warning": True,
    "gpu": "",
    "accepted": "",
    "remedy": "Check it",
}


def test_health_stands_beside_the_drift() -> None:
    other = {**FAULT, "where": "0000:86:00.0", "remedy": "Reset it: smi -i 0000:86:00.0"}
    found = {"gpu01": {**DRIFT, "health": [FAULT, NARROW, other]}}
    *rows, _empty, need, _differences = state_report.plan(found).splitlines()[5:]
    assert need == "1 host needs you: gpu01 (fault). See above what to do."
    assert rows == [
        "HOST   HEALTH   WHAT IS WRONG WITH GPUS, AND WHAT TO DO",
        "gpu01  fault    GPU 0000:3b:00.0, 0000:86:00.0: the driver asks for recovery action "
        "'GPU Reset'; expected none. Reset it: smi -i ADDRESS.",
        "gpu01  warning  PCIe link is 8x wide; expected 16x. Check it.",
    ]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ({**DRIFT, "health": [FAULT]}, 4),
        ({**DRIFT, "health": [NARROW]}, 2),
        (entry(health=[FAULT]), 4),
        (entry(health=[NARROW]), 0),
        ({**IN_CONFLICT, "health": [FAULT]}, 3),
        ({**DOWN, "health": [FAULT]}, 1),
    ],
)
def test_faults_of_gpus_have_their_own_exit_status(host: dict[str, Any], status: int) -> None:
    assert state_report.exit_status({"gpu01": host}) == status


def test_the_summary_says_what_waits() -> None:
    waiting = entry(state="waiting", waiting=["restart of docker.service waits: ..."])
    assert state_report.summary({"gpu01": waiting}).splitlines()[1:] == [
        "gpu01  waiting  1 change  -",
        "gpu01: restart of docker.service waits: ...",
        "",
        "1 host waits: gpu01. Run again when nobody is disturbed.",
    ]


def test_information_is_printed_after_the_plan() -> None:
    report = {"gpu01": entry(information=["x: drop-in y sets User"]), "a": entry()}
    expected = lines(
        "",
        "",
        "INFORMATION (Slipway changes none of this)",
        "gpu01: x: drop-in y sets User",
        "",
        "OK: 2 hosts as declared.",
    )
    assert state_report.plan(report).endswith(f"gpu01  -     no drift{expected}")
    assert "INFORMATION" not in state_report.summary(report)
    assert state_report.exit_status(report) == 0


def test_the_summary_has_a_row_for_each_host_then_addresses_and_notes() -> None:
    report = {
        "gpu01": {
            **DRIFT,
            "state": "changed",
            "urls": {"iris-api": "http://gpu01:5000/predict"},
            "notes": ["reboot when you like"],
        },
        "gpu02": DOWN,
        "a": entry(),
    }
    assert state_report.summary(report) == lines(
        "HOST   RESULT       DIFFERENCES BEFORE, BY ROLE",
        "a      no drift     -",
        "gpu01  changed      docker_engine: 1, user_access: 2",
        "gpu02  unreachable  ssh: connect to host gpu02: timed out",
        "gpu01: reboot when you like",
        "iris-api: http://gpu01:5000/predict",
        "",
        "OK: 2 hosts as declared.",
        "1 host needs you: gpu02 (unreachable). See above what to do, then run again.",
    )


def test_an_address_of_several_hosts_names_its_host() -> None:
    hosts = {
        name: entry(urls={"api": f"http://{address}:5000"})
        for name, address in (("a", "192.0.2.1"), ("b", "127.0.0.1"))
    }
    found = state_report.summary(hosts)
    assert "api: http://192.0.2.1:5000 (on a)\napi: http://127.0.0.1:5000 (on b itself)" in found


@pytest.mark.parametrize(
    ("text", "wrapped"),
    [
        ("one two three four", "one two\nthree four"),
        ("  one two three four", "  one two\n  three\n  four"),
        ("a   one two three", "a   one\n    two\n    three"),
        ("one two three   four", "one two\nthree\nfour"),
        ("", ""),
        ("a\n\nb", "a\n\nb"),
        ("/a/path/without/any/space b-c", "/a/path/without/any/space b-c"),
        ("   ", "   "),
    ],
)
def test_lines_break_between_words(text: str, wrapped: str) -> None:
    assert state_report.wrap(text, 10) == wrapped


def test_conflicts_have_a_table_of_their_own_beside_the_drift() -> None:
    table = lines(
        "",
        "HOST   ROLE         CONFLICT: A PERSON MUST DECIDE",
        "gpu01  ml_aliases   /usr/local/bin/ml: found a file.",
        "gpu01  user_access  home of bob: found a link. Waiting for it: lines /home/bob/k.",
    )
    assert state_report.plan({"gpu01": {**IN_CONFLICT, "state": "drift"}}) == lines(
        "HOST   ROLE           WHAT WOULD CHANGE",
        "gpu01  docker_engine  units docker.service: inactive -> active",
        table,
        "",
        "1 host needs you: gpu01 (conflict). See above what to do.",
        "1 difference on 1 host. To apply, run ./slipway site --limit gpu01",
    )
    assert state_report.summary({"gpu01": {**IN_CONFLICT, "state": "conflict"}}) == lines(
        "HOST   RESULT    DIFFERENCES BEFORE, BY ROLE",
        "gpu01  conflict  docker_engine: 1",
        table,
        "",
        "1 host needs you: gpu01 (conflict). See above what to do, then run again.",
    )


def test_a_compose_project_is_called_a_service() -> None:
    differences = {"ml_services": [{**UNIT, "kind": "projects", "name": "lab"}]}
    blocking = {**CONFLICT, "blocks": ["files /etc/lab", "projects lab"]}
    found = {"gpu01": entry(differences=differences, conflicts={"ml_services": [blocking]})}
    text = state_report.plan(found)
    assert "ml_services  services lab: " in text
    assert "Waiting for it: files /etc/lab, services lab." in text


def test_an_address_that_only_its_host_can_reach_says_so() -> None:
    report = {
        host: entry(urls={"api": "http://127.0.0.1:5000/", "web": f"http://{host}:80/"})
        for host in ("gpu01", "gpu02")
    }
    assert state_report.summary(report).splitlines()[3:-2] == [
        "api: http://127.0.0.1:5000/ (on gpu01 itself)",
        "web: http://gpu01:80/",
        "api: http://127.0.0.1:5000/ (on gpu02 itself)",
        "web: http://gpu02:80/",
    ]


@pytest.mark.parametrize(
    ("report", "status"),
    [
        ({}, state_report.EXIT_CLEAN),
        ({"a": entry()}, state_report.EXIT_CLEAN),
        ({"a": entry(), "b": DRIFT}, state_report.EXIT_DRIFT),
        ({"a": DRIFT, "b": DOWN}, state_report.EXIT_ERROR),
        ({"a": DRIFT, "b": IN_CONFLICT}, state_report.EXIT_CONFLICT),
        ({"a": DOWN, "b": IN_CONFLICT}, state_report.EXIT_ERROR),
        ({"a": entry(state="failed", error="no")}, state_report.EXIT_ERROR),
    ],
    ids=["no host", "no drift", "drift", "unreachable", "conflict", "both", "failed"],
)
def test_exit_status(report: dict[str, Any], status: int) -> None:
    assert state_report.exit_status(report) == status


@pytest.mark.parametrize(
    ("state", "status"),
    [
        ("no_drift", "as declared"),
        ("drift", "drift"),
        ("changed", "changed"),
        ("would_change", "changed"),
        ("failed", "failed"),
        ("unreachable", "unreachable"),
    ],
)
def test_a_report_keeps_the_old_name_of_a_state(state: str, status: str) -> None:
    written = state_report.as_json({"a": entry(state=state)})
    assert (written["a"]["state"], written["a"]["status"]) == (state, status)


def test_a_table_has_no_underscore_in_a_state() -> None:
    assert "would change" in state_report.summary({"a": entry(state="would_change")})


def test_the_last_column_runs_free() -> None:
    assert state_report.table([("a", "long " * 9 + "x")], ("H", "W")).endswith("x")


def test_the_table_counts_what_waits_and_faults_of_gpus() -> None:
    warning = {**FAULT, "warning": True}
    accepted = {**warning, "accepted": "RMA 4711"}
    hosts = {
        "gpu01": entry(state="waiting", waiting=["a", "b"], gpus=8),
        "gpu02": entry(state="fault", health=[FAULT, warning, accepted], gpus=8),
        "cpu01": entry(waiting=["a"]),
    }
    assert state_report.summary(hosts).splitlines()[:4] == [
        "HOST   RESULT    WAITS      GPUS                            DIFFERENCES BEFORE, BY ROLE",
        "cpu01  no drift  1 change   -                               -",
        "gpu01  waiting   2 changes  healthy                         -",
        "gpu02  fault     -          1 fault, 1 warning, 1 accepted  -",
    ]
