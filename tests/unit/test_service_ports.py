# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""In which order services take the ports that others leave."""

from __future__ import annotations

import pytest
from ansible_collections.slipway.host.plugins.module_utils.services import ports as services_ports

A, B, C = "127.0.0.1:5000", "127.0.0.1:5001", "127.0.0.1:5002"


def turns(
    wanted: dict[str, list[str]], held: dict[str, list[str]]
) -> list[tuple[object, list[str]]]:
    projects = [{"name": name, "ports": ports} for name, ports in wanted.items()]
    return [
        (one["name"], stopped) for one, stopped in services_ports.order_replacements(projects, held)
    ]


@pytest.mark.parametrize(
    ("wanted", "held", "found"),
    [
        ({"a": [A], "b": [B]}, {"a": [A], "b": [B]}, [("a", []), ("b", [])]),
        ({"a": [A], "b": [B]}, {}, [("a", []), ("b", [])]),
        ({"a": [B], "b": [C]}, {"a": [A], "b": [B]}, [("b", []), ("a", [])]),
        ({"a": [B], "b": [A]}, {"a": [A], "b": [B]}, [("a", ["b"]), ("b", [])]),
        (
            {"a": [B], "b": [C], "c": [A]},
            {"a": [A], "b": [B], "c": [C]},
            [("a", ["b"]), ("c", []), ("b", [])],
        ),
        ({"a": [A, B], "b": [], "c": []}, {"b": [A], "c": [B]}, [("b", []), ("c", []), ("a", [])]),
    ],
    ids=["they stay", "they are new", "one moves up", "a swap", "a circle", "two are left"],
)
def test_a_project_that_frees_a_port_goes_first_and_only_a_circle_is_cut(
    wanted: dict[str, list[str]], held: dict[str, list[str]], found: list[tuple[str, list[str]]]
) -> None:
    assert turns(wanted, held) == found


@pytest.mark.parametrize(
    ("one", "other", "clash"),
    [
        (A, A, True),
        (A, B, False),
        (A, "0.0.0.0:5000", True),
        (A, ":5000", True),
        ("192.0.2.1:5000", A, False),
        ("[::1]:5000", "::1:5000", True),
        (":::5000", A, True),
    ],
)
def test_which_places_cannot_be_had_at_once(one: str, other: str, clash: bool) -> None:
    assert services_ports.clash(one, other) == clash
    assert services_ports.clash(other, one) == clash
