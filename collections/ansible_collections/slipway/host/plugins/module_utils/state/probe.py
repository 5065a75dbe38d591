# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Answer the question of the survey on the host. It only reads.

A question maps a key to names, its answer the same key to what was found; the file of a kind of
owned thing has the functions that answer its keys (``ASKS``). Null stands for what is missing.
Further keys of an answer: ``engine``, why Docker did not answer, null if it did; ``unsafe``, see
:data:`reading.UNSAFE`.

These files are sent to the host with each survey and run by its Python, see
:mod:`plugin_utils.ask_host`. They use the standard library of Python 3.9 and import late what only
some questions need: most of the cost is the start.
"""

from __future__ import annotations

from ansible_collections.slipway.host.plugins.module_utils.state import reading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    Json = dict[str, Any]
    Ask = Callable[[list[Any], Json], Any]


def answer(question: Mapping[str, list[Any]], asks: Mapping[str, Ask]) -> Json:
    """Return the answer to a question."""
    reading.reset()
    reply: Json = {"engine": None, "unsafe": reading.UNSAFE}
    for key, names in question.items():
        reply[key] = asks[key](names, reply)
    return reply
