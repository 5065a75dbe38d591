# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Print the locked packages that ``pytest -m gpu`` needs, for pip on another Python version.

Usage: python tests/gpu/carried_requirements.py VERSION, such as 3.12. pip itself evaluates markers
for the Python that runs it, so the lines are chosen here.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

LOCK = Path(__file__).resolve().parents[2] / "requirements.lock"
# ansible-core without cryptography, which only its vault needs, and resolvelib, which only galaxy
# needs; jsonschema for the catalogue; pip because the other machine may have none.
PACKAGES = frozenset(
    "ansible-core attrs iniconfig jinja2 jsonschema jsonschema-specifications markupsafe packaging"
    " pip pluggy pygments pytest pyyaml referencing resolvelib rpds-py typing-extensions".split()
)


def entries(lock: str) -> Iterator[tuple[str, str]]:
    """Yield each requirement of a LOCK file, and its hash options."""
    joined = re.sub(r"\\\n\s*", " ", re.sub(r"^\s*#.*\n", "", lock, flags=re.M))
    for line in joined.splitlines():
        requirement, _, hashes = line.partition("--hash")
        if requirement.strip():
            yield requirement.strip(), f"--hash{hashes}".strip()


def lines(lock: str, version: str) -> Iterator[str]:
    """Yield the lines of a requirements file for a Python VERSION."""
    environment = {"python_version": version, "python_full_version": f"{version}.0"}
    for text, hashes in entries(lock):
        requirement = Requirement(text)
        fits = requirement.marker is None or requirement.marker.evaluate(environment)
        if requirement.name in PACKAGES and fits:
            yield f"{requirement.name}{requirement.specifier} {hashes}"


if __name__ == "__main__":
    print("\n".join(lines(LOCK.read_text(encoding="utf-8"), sys.argv[1])))
