# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The part of the tamper matrix that no throwaway host can have: answers of a changed host.

Kernel modules, devices, rootless engines and Docker are compared from the answer of a host. Docker
itself is tampered with in tests/host/test_site.py.
"""

from __future__ import annotations

import copy

import pytest
from ansible_collections.slipway.host.plugins.module_utils.state import model

from tests.contract.answer_tampers import ANSWER_TAMPERS, CLEAN, AnswerTamper
from tests.unit import survey


@pytest.mark.parametrize("subject", CLEAN)
def test_a_host_as_declared_has_no_differences(subject: str) -> None:
    entry, answer = CLEAN[subject]
    comparison = survey.compare({"": {subject.partition(" ")[0]: [entry]}}, answer)[""]
    assert comparison == model.Comparison([], [])


@pytest.mark.parametrize("tamper", ANSWER_TAMPERS, ids=str)
def test_a_tampered_answer_differs(tamper: AnswerTamper) -> None:
    entry, answer = copy.deepcopy(CLEAN[tamper.subject])
    tamper.change(answer)
    comparison = survey.compare({"": {tamper.kind: [entry]}}, answer)[""]
    assert comparison.differences or comparison.conflicts
