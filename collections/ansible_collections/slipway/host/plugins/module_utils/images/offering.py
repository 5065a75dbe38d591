# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Builds what is missing on this host, then offers images of this host to another one.

A job of the builder with the key ``offer``: the images and the name of the lease. Standard library
of Python 3.10 only.
"""

from __future__ import annotations

import platform
import shutil
import sys
from pathlib import Path
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.host import environment, job
from ansible_collections.slipway.host.plugins.module_utils.host.job import Progress
from ansible_collections.slipway.host.plugins.module_utils.images import builder, record, registry
from ansible_collections.slipway.host.plugins.module_utils.images.commands import (
    BuildError,
    run,
    run_or_fail,
)

Json = dict[str, Any]


def push(images: Json, progress: Progress) -> Json:
    """Push images, context digest by reference, to the registry; return what it has of each."""
    offered: Json = {}
    with registry.taking_images() as port:
        for reference in images:
            name, _colon, tag = reference.rpartition(":")
            target = f"127.0.0.1:{port}/{reference}"
            progress.now(f"the builder pushes {reference}")
            content = record.inspect_image(reference)
            if content is None:
                raise BuildError(f"image {reference} is not on this host. Build it again.")
            run_or_fail("tagging", ["docker", "tag", content.identity, target])
            try:
                run_or_fail(f"pushing {reference}", ["docker", "push", "--quiet", target])
            finally:
                run(["docker", "image", "rm", "--no-prune", target])
            offered[reference] = {**registry.describe(port, name, tag), "size": content.size}
    # Not while a registry takes images: this job has the lock.
    registry.remove_unused()
    return offered


def offer(folder: Path, progress: Progress) -> Json:
    """Build, push and serve; return the result of the builder with ``images`` and ``port``.

    ``unavailable``: why this host cannot offer what it has.
    """
    work = builder.Builder(folder, progress)
    wanted = work.job["offer"]
    if wanted["architecture"] != platform.machine():
        reason = (
            f"architecture of the builder: {platform.machine()}; expected "
            f"{wanted['architecture']}. Set another host in ml_images_builder."
        )
        return {"failed": dict.fromkeys(wanted["images"], reason)}
    result: Json = work.build_all()
    ready: Json = {}
    for reference, digest in wanted["images"].items():
        if record.is_recorded(reference, digest, record.inspect_image(reference)):
            ready[reference] = digest
        else:
            reason = "not recorded on the builder; expected a tested image. Run ./slipway site."
            result["failed"].setdefault(reference, reason)
    try:
        result["images"] = push(ready, progress) if ready else {}
        result["port"] = registry.serve(wanted["lease"]) if ready else 0
    except (BuildError, registry.RegistryError, OSError) as error:
        result["unavailable"] = str(error)
    return result


def main(folder: Path) -> None:
    """Offer the images of the job in FOLDER."""
    environment.apply()

    def work(progress: Progress) -> Json:
        try:
            return offer(folder, progress)
        finally:
            shutil.rmtree(folder / "secrets", ignore_errors=True)

    job.run_locked(folder, builder.LOCK, "build", work)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
