# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What diffs show of a compose file that only root may read."""

from __future__ import annotations

import pytest
import yaml
from ansible_collections.slipway.host.plugins.module_utils.services import secret_files

SERVICE = {
    "image": "slipway/x:cpu",
    "environment": {
        "A": "hush-1",
        "LONG": "hush-2 " * 40,
        "LINES": "hush-3\n\n  hush-4: x\nenvironment:\nhush-5",
        "QUOTED": "hush-6: '#",
    },
    "ports": ["127.0.0.1:80:80"],
}


def test_values_of_variables_are_hidden_and_nothing_else() -> None:
    services = {"services": {"x": SERVICE, "y": {**SERVICE, "environment": {}}}}
    text = yaml.safe_dump(services, sort_keys=False)
    shown = secret_files.hide_environment(text)
    assert "hush" not in shown
    expected = dict.fromkeys(SERVICE["environment"], "(hidden)")
    assert yaml.safe_load(shown)["services"]["x"] == {**SERVICE, "environment": expected}
    assert yaml.safe_load(shown)["services"]["y"] == {**SERVICE, "environment": "(hidden)"}


@pytest.mark.parametrize("text", ["", "services:\n  x:\n    image: a\n"])
def test_a_file_without_variables_is_shown_as_it_is(text: str) -> None:
    assert secret_files.hide_environment(text) == text


def test_variables_in_one_line_are_hidden() -> None:
    shown = secret_files.hide_environment("  x:\n    environment: {A: hush}\n    image: a\n")
    assert shown == "  x:\n    environment: (hidden)\n    image: a\n"
