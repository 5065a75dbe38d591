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

from ansible_collections.slipway.host.plugins.module_utils.data.progress import format_size
from ansible_collections.slipway.host.plugins.module_utils.host import environment, job
from ansible_collections.slipway.host.plugins.module_utils.host.job import Progress
from ansible_collections.slipway.host.plugins.module_utils.images import (
    builder,
    own_registry,
    record,
    registry,
)
from ansible_collections.slipway.host.plugins.module_utils.images.commands import (
    BuildError,
    remove_delivery_references,
    run_or_fail,
)
from ansible_collections.slipway.host.plugins.module_utils.images.own_registry import (
    OwnRegistryError,
    Registry,
)

Json = dict[str, Any]
Login = registry.Login | Registry


def push(images: Json, progress: Progress, login: Login, config: Path) -> Json:
    """Push images, context digest by reference, to a registry; return what it has of each.

    CONFIG: folder with the login for Docker.
    """
    offered: Json = {}
    for reference in images:
        content = record.inspect_image(reference)
        if content is None:
            raise BuildError(f"image {reference} is not on this host. Build it again.")
        progress.now(f"the builder pushes {reference}")
        has = _pushed(login, reference, content) or _push(login, config, reference, content)
        record.add_layers(reference, has["layers"])
        offered[reference] = {**has, "size": content.size}
    return offered


def _pushed(login: Login, reference: str, content: record.Content) -> Json | None:
    """Return what the registry has of an image, None unless it has this content.

    The engine's content ID is a digest of the configuration or of the manifest: nobody can make
    another content with that digest.
    """
    name, _colon, tag = reference.rpartition(":")
    try:
        has = registry.describe(login, name, tag)
    except (OSError, ValueError, KeyError, OwnRegistryError):
        return None
    return has if content.identity in (has["config"], has["manifest"]) else None


def _push(login: Login, config: Path, reference: str, content: record.Content) -> Json:
    if isinstance(login, registry.Login) and not registry.has_room(content.size):
        raise BuildError(
            f"no space for a compressed copy of {reference} in {registry.FOLDER}: expected "
            f"{format_size(content.size)}. Free some space there, or set ml_images_builder."
        )
    target = f"{login.prefix}{reference}"
    run_or_fail("tagging", ["docker", "tag", content.identity, target])
    docker = ["docker", "--config", str(config)]
    run_or_fail(f"pushing {reference}", [*docker, "push", "--quiet", target])
    has = _pushed(login, reference, content)
    if has is None:
        raise BuildError(f"the registry has another content of {reference} than the engine")
    return has


def offer(folder: Path, progress: Progress) -> Json:
    """Build, push and serve; return the result of the builder with ``images`` and ``port``.

    ``unavailable``: why this host cannot offer what it has. A registry of the user serves itself:
    without ``port``.
    """
    work = builder.Builder(folder, progress)
    wanted, own = work.job["offer"], own_registry.load(folder)
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
    prefix = own.prefix if own else ""
    remove_delivery_references(prefix)
    try:
        if own:
            result["images"] = push(ready, progress, own, folder / own_registry.CONFIG)
        elif ready:
            with registry.taking_images() as login:
                result["images"] = push(ready, progress, login, registry.PUSH)
            registry.remove_unused()
            result["port"] = registry.serve(wanted["lease"])
    except (BuildError, registry.RegistryError, OSError) as error:
        result["unavailable"] = str(error)
    finally:
        remove_delivery_references(prefix)
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
