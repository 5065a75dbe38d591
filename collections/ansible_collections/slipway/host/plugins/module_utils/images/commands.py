# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands that several jobs with images run on a host. Standard library of Python 3.10 only."""

from __future__ import annotations

import os
import re
import subprocess
import threading
from pathlib import Path

from ansible_collections.slipway.host.plugins.module_utils.docker import labels
from ansible_collections.slipway.host.plugins.module_utils.images.output import last_lines
from ansible_collections.slipway.host.plugins.module_utils.state import containers

# A reference by which an image is pushed or pulled in a delivery.
DELIVERY = r"127\.0\.0\.1:\d+/slipway/\S+"


class BuildError(Exception):
    """An image could not be built; the message is for a person."""


def run(command: list[str], timeout: float | None = None) -> subprocess.CompletedProcess[str]:
    """Run COMMAND and return its output; a time-out counts as a failure."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired as error:
        output = (error.stdout or b"").decode("utf-8", "replace") if error.stdout else ""
        return subprocess.CompletedProcess(command, 124, output, f"no end after {timeout:.0f} s")


def run_or_fail(action: str, command: list[str], timeout: float | None = None) -> str:
    """Run COMMAND and return its output; raise BuildError with the end of its output on failure."""
    completed = run(command, timeout)
    if completed.returncode != 0:
        raise BuildError(f"{action} failed: {last_lines(completed.stdout + completed.stderr)}")
    return completed.stdout.strip()


def save_bill_of_materials(reference: str, candidate: str) -> None:
    """Copy the image's bill of materials to the folder of all bills on the host."""
    container = f"slipway-bill-{os.getpid()}-{threading.get_ident()}"
    run_or_fail("creating a container", ["docker", "create", f"--name={container}", candidate])
    try:
        bill = containers.image_record_path(reference, ".cdx.json")
        Path(bill).parent.mkdir(exist_ok=True)
        run_or_fail(
            "copying the bill of materials",
            ["docker", "cp", f"{container}:{labels.BILL_OF_MATERIALS}", bill],
        )
    finally:
        run(["docker", "rm", container])


def remove_delivery_references(prefix: str = "") -> None:
    """Remove the references of deliveries, also of one that was killed; other references stay.

    PREFIX: the beginning of references in a registry of the user, or empty.
    """
    own = rf"|{re.escape(prefix)}slipway/\S+" if prefix else ""
    columns = "{{.Repository}} {{.Tag}} {{.Digest}}"
    listed = run(["docker", "image", "ls", "--digests", "--format", columns]).stdout
    for repository, tag, digest in (line.split() for line in listed.splitlines()):
        if re.fullmatch(DELIVERY + own, repository):
            name = f"{repository}@{digest}" if tag == "<none>" else f"{repository}:{tag}"
            run(["docker", "image", "rm", "--no-prune", name])
