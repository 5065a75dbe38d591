# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is in the way of a front door: programs on its ports, and missing certificates.

Keys of an entry of door_ports: port: as text, files: certificates and keys, which belong to the
administrator, sites: the sites of the port, for the acceptance checks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.state.model import (
    Answer,
    Change,
    ConflictError,
    Entry,
    Kind,
)

OWN_PROGRAM = re.compile(r"process \d+ \(caddy\) of caddy")


def compare_door_ports(entry: Entry, answer: Answer) -> Iterator[Change]:
    """Raise ConflictError for a used port, and for a missing certificate or key."""
    for address, program in answer["listeners"][entry["port"]]:
        if not OWN_PROGRAM.fullmatch(program):
            raise ConflictError(
                f"port {entry['port']} of the front door: found {program} on {address}; expected a "
                "free port. Stop that program, or set another port in ml_front_door_sites"
            )
    for path in entry["files"]:
        found = answer["targets"][path]
        if found is None or found[0] != "file" or found[5] != 0:
            what = f"a {found[0]} of {found[2]}" if found else "nothing"
            raise ConflictError(
                f"{path}, a certificate or key of the front door: found {what}; expected a file of "
                "root. Write the file"
            )
    return iter(())


def _further(entry: Entry) -> Iterator[tuple[str, Iterable[Any]]]:
    yield "targets", entry["files"]


KINDS = (Kind("door_ports", "port", "listeners", compare_door_ports, _further),)
