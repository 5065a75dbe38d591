# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the unit tests share: modules run in this process as they do on a host."""

from __future__ import annotations

import pytest
from ansible.module_utils import _internal


@pytest.fixture(autouse=True)
def on_a_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo what an import of a filter does: from then on Ansible takes itself for a controller.

    It would then print a module's warnings instead of returning them.
    """
    monkeypatch.setattr(_internal, "is_controller", False)
