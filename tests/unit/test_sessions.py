# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who still runs programs with the groups of before."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ansible_collections.slipway.host.plugins.module_utils.host import sessions

STATUS = "Name:\tsh\nUid:\t1000\t1001\t1000\t1000\nGid:\t100\t100\t100\t100\nGroups:\t998 27 \n"
DOCKER = 998
ALICE, BOB = 1500, 1501
Processes = list[tuple[int, frozenset[int]]]


def test_a_process_has_its_real_user_and_all_groups() -> None:
    assert sessions.parse(STATUS) == (1000, frozenset({100, 998, 27}))
    assert sessions.parse(STATUS.replace("998 27 ", ""))[1] == {100}


def test_this_process_is_found_and_what_cannot_be_read_is_not(tmp_path: Path) -> None:
    assert os.getuid() in dict(sessions.processes())
    for number, text in (("1", STATUS), ("2", "Name:\tgone\n"), ("self", STATUS)):
        (tmp_path / number).mkdir()
        (tmp_path / number / "status").write_text(text)
    (tmp_path / "3").mkdir()
    assert list(sessions.processes(tmp_path)) == [(1000, frozenset({100, 998, 27}))]


@pytest.mark.parametrize(
    ("processes", "words"),
    [
        ([], []),
        # They know already, or have nothing to do with it.
        ([(ALICE, {DOCKER}), (BOB, {100}), (0, set()), (0, {DOCKER})], []),
        ([(ALICE, {100}), (ALICE, {100})], ["alice was added to docker"]),
        ([(BOB, {100, DOCKER})], ["bob was removed from docker"]),
        (
            [(BOB, {DOCKER}), (ALICE, set())],
            ["alice was added to docker", "bob was removed from docker"],
        ),
    ],
)
def test_users_with_outdated_groups_are_named(processes: Processes, words: list[str]) -> None:
    found = [(uid, frozenset(groups)) for uid, groups in processes]
    said = sessions.find_outdated("docker", DOCKER, {ALICE: "alice"}, {BOB: "bob"}, found)
    assert [" ".join(line.split(".")[0].split()) for line in said] == words


def test_the_command_that_ends_old_programs_is_named() -> None:
    found = [(ALICE, frozenset({100})), (BOB, frozenset({DOCKER}))]
    both = sessions.find_outdated("docker", DOCKER, {ALICE: "alice"}, {BOB: "bob"}, found)
    assert "systemctl restart user@1500.service" in both[0]
    assert "loginctl terminate-user bob" in both[1]
