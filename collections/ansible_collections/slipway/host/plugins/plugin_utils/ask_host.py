# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Put the probe's question to a host from an action plugin: one round trip, no module transfer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible_collections.slipway.host.plugins.module_utils import _probe
from ansible_collections.slipway.host.plugins.module_utils.state import paths

# As text, so that only a host with a folder that others can write compiles it.
PATHS = Path(paths.__file__).read_text(encoding="utf-8")
PROBE = f"{Path(_probe.__file__).read_text(encoding='utf-8')}\nPATHS = {PATHS!r}\n"
DEFAULT_INTERPRETER = "/usr/bin/python3"


def interpreter(action: ActionBase) -> str:
    """Return the Python of the host that ACTION runs for."""
    variables = action._templar.available_variables or {}
    return str(variables.get("ansible_python_interpreter") or DEFAULT_INTERPRETER)


def ask(action: ActionBase, question: Mapping[str, Any]) -> dict[str, Any]:
    """Return the host's answer to QUESTION, see :mod:`_probe`.

    Raise AnsibleConnectionFailure where the host cannot be reached, AnsibleActionFail where it
    cannot answer or not as root.
    """
    script = f"{PROBE}print(json.dumps(answer(json.loads({json.dumps(question)!r}))))\n"
    python = interpreter(action)
    # -I -S: neither the user's nor the site's packages, which only cost time.
    reply = action._low_level_execute_command(
        f"{python} -I -S -", in_data=script.encode(), sudoable=True
    )
    try:
        answer: dict[str, Any] = json.loads(reply["stdout"])
    except ValueError:
        words = (reply["stderr"] or reply["stdout"]).strip() or "no answer"
        if reply["rc"] == 255:
            raise AnsibleConnectionFailure(words) from None
        raise AnsibleActionFail(
            f"the host could not be surveyed: {words[-600:]}. It needs {python}, and the user "
            "needs root rights (ansible_become)."
        ) from None
    if not answer["facts"]["root"]:
        raise AnsibleActionFail(
            "the host must be asked as root: set ansible_become: true (and --ask-become-pass "
            "where sudo asks for a password)"
        )
    return answer
