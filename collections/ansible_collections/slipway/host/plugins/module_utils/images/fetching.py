# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pulls images that another host offers, tests them here, and only then moves the tags.

Standard library of Python 3.10 only.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.data.progress import format_size
from ansible_collections.slipway.host.plugins.module_utils.docker import labels
from ansible_collections.slipway.host.plugins.module_utils.host import environment, job
from ansible_collections.slipway.host.plugins.module_utils.host.job import Progress
from ansible_collections.slipway.host.plugins.module_utils.images import (
    own_registry,
    record,
    smoke,
)
from ansible_collections.slipway.host.plugins.module_utils.images.commands import (
    BuildError,
    remove_delivery_references,
    run_or_fail,
    save_bill_of_materials,
)
from ansible_collections.slipway.host.plugins.module_utils.images.output import last_lines
from ansible_collections.slipway.host.plugins.module_utils.state import containers, listeners, paths

Json = dict[str, Any]
LOOPBACK = ("127.0.0.1", "::1")
# A line of `docker pull` about a layer that was transferred: the beginning of its digest. The store
# of containerd does not report "Pull complete".
LAYER = re.compile(r"^([0-9a-f]{12}): (?:Pull|Download) complete$", re.MULTILINE)
# Room that a pull needs, relative to the size of what is unpacked: the compressed layers too.
ROOM = 1.5
# Where the store of containerd has images, whatever the folder of the engine is.
CONTAINERD, SNAPSHOTTER = "/var/lib/containerd", "io.containerd.snapshotter"


class FetchError(Exception):
    """An image was not delivered; the message is for a person."""


def check_forward(port: int) -> None:
    """Fail unless the forwarded PORT is there and on loopback only."""
    addresses = {
        listener[0]
        for table in listeners.TABLES
        for listener in listeners.read_listeners(table, {str(port): []})
    }
    if not addresses or not addresses <= set(LOOPBACK):
        where = "not there" if not addresses else "on other addresses than loopback"
        raise FetchError(
            f"port {port} that ssh forwards is {where}; expected it on loopback. In sshd_config of "
            "this host, set AllowTcpForwarding yes and GatewayPorts no"
        )


def received_bytes(output: str, layers: Mapping[str, int]) -> int:
    """Return the bytes of the layers that a pull brought; OUTPUT is that of docker pull."""
    short = {digest.partition(":")[2][:12]: size for digest, size in layers.items()}
    return sum(short.get(layer, 0) for layer in set(LAYER.findall(output)))


def missing_share(image: Json) -> float:
    """Return which part of an image this host lacks, by the layers of the image that it has."""
    try:
        path = containers.image_record_path(image["reference"])
        known = set(json.loads(paths.read_file(path)).get("layers", ()))
    except (OSError, ValueError, AttributeError):
        return 1.0
    sizes: dict[str, int] = image["layers"]
    whole = sum(sizes.values()) or 1
    return sum(size for layer, size in sizes.items() if layer not in known) / whole


class Fetcher:
    """Brings the images of one job to this host."""

    def __init__(self, folder: Path, progress: Progress) -> None:
        self.job: Json = json.loads((folder / "job.json").read_text(encoding="utf-8"))
        self.config = folder / own_registry.CONFIG
        self.progress = progress
        self.fetched: list[str] = []
        self.failed: dict[str, str] = {}
        self.received = 0

    def run(self) -> Json:
        """Pull all images, while ssh forwards the port; then test them one after the other.

        The result has ``unavailable`` if the forwarded port is not as it must be.
        """
        record.secure_records()
        waiting = [
            image
            for image in self.job["images"]
            if not record.is_recorded(
                image["reference"], image["digest"], record.inspect_image(image["reference"])
            )
        ]
        try:
            if waiting and self.job["port"]:
                check_forward(self.job["port"])
        except FetchError as error:
            return {"failed": {}, "unavailable": str(error)}
        prefix = "" if self.job["port"] else self.job["prefix"]
        remove_delivery_references(prefix)
        try:
            pulled = [image for image in waiting if self.try_step(image, self.pull)]
            for image in pulled:
                if image["parent"] in self.failed:
                    reason = f"not used, because {image['parent']} below it failed"
                    self.failed[image["reference"]] = reason
                elif self.try_step(image, self.accept):
                    self.fetched.append(image["reference"])
        finally:
            remove_delivery_references(prefix)
        record.remove_replaced(image["reference"] for image in self.job["images"])
        return {"fetched": self.fetched, "failed": self.failed, "received": self.received}

    def try_step(self, image: Json, step: Any) -> bool:
        """Take a step for an image; return whether it succeeded, else keep the reason."""
        try:
            step(image)
        except (FetchError, BuildError, smoke.SmokeError, OSError) as error:
            self.progress.say(f"{image['name']}: FAILED")
            self.failed[image["reference"]] = str(error)
            return False
        return True

    def check_room(self, image: Json) -> None:
        """Fail if the disk of the engine's images cannot hold what an image adds."""
        shown = run_or_fail(
            "asking Docker for its folder",
            ["docker", "info", "--format", "{{.DockerRootDir}} {{json .DriverStatus}}"],
        )
        root = CONTAINERD if SNAPSHOTTER in shown else shown.split()[0]
        needed = int(ROOM * image["adds"] * missing_share(image))
        free = shutil.disk_usage(root).free
        if free < needed:
            raise FetchError(
                f"no space in {root}: found {format_size(free)} free; expected at least "
                f"{format_size(needed)} for this image. Free some space, or move the folder to a "
                "larger disk (docker_engine_data_root)"
            )

    def source(self, image: Json) -> str:
        """Return the reference of an image in the registry."""
        name = image["reference"].rpartition(":")[0]
        return f"{self.job['prefix']}{name}@{image['manifest']}"

    def pull(self, image: Json) -> None:
        """Pull an image by its digest."""
        self.check_room(image)
        self.progress.now(f"pulls {image['name']} from {self.job['source']}")
        login = ["--config", str(self.config)] if self.config.exists() else []
        done = subprocess.run(
            ["docker", *login, "pull", self.source(image)],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode != 0:
            raise FetchError(f"docker pull failed: {last_lines(done.stdout + done.stderr, 3)}")
        received = received_bytes(done.stdout, image["layers"])
        self.received += received
        whole = format_size(sum(image["layers"].values()))
        self.progress.say(
            f"{image['name']}: pulled {format_size(received)} of {whole} from {self.job['source']}"
        )

    def accept(self, image: Json) -> None:
        """Test a pulled image; record it and move its tag."""
        content = record.inspect_image(self.source(image))
        # The classic store knows an image by its configuration, containerd's by its manifest.
        if content is None or content.identity not in (image["config"], image["manifest"]):
            found = content.identity if content else "no image"
            raise FetchError(f"content {found}; expected {image['config']}. Run again.")
        if content.digest != image["digest"]:
            raise FetchError(f"context digest {content.digest}; expected {image['digest']}")
        self.progress.say(f"{image['name']}: smoke test")
        self.progress.now(f"{image['name']}: smoke test")
        proven = smoke.test_content(content, image["smoke_timeout"])
        reference = image["reference"]
        save_bill_of_materials(reference, content.identity)
        record.write_record(
            reference,
            content,
            image["digest"],
            record.DELIVERED,
            proven=proven,
            builder=self.job["builder"],
            layers=image["layers"],
        )
        run_or_fail("moving the tag", ["docker", "tag", content.identity, reference])


def main(folder: Path) -> None:
    """Fetch the images of the job in FOLDER."""
    environment.apply()

    def fetch(progress: Progress) -> Json:
        try:
            return Fetcher(folder, progress).run()
        finally:
            shutil.rmtree(folder / "secrets", ignore_errors=True)

    job.run_locked(folder, Path(labels.BUILD_LOCK), "build", fetch)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
