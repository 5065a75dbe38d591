# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Builds images on the host: base, build, smoke test, and only then the tag.

The controller starts the builder and follows its progress, see :mod:`host.job`.  A job folder
contains ``job.json``, one ``<n>.tar`` build context per image, ``secrets/``, and this module with
its imports.  Standard library of Python 3.10 only.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.data.progress import format_size
from ansible_collections.slipway.host.plugins.module_utils.docker import labels
from ansible_collections.slipway.host.plugins.module_utils.host import environment, job
from ansible_collections.slipway.host.plugins.module_utils.host.job import Progress
from ansible_collections.slipway.host.plugins.module_utils.images import build_cache, record
from ansible_collections.slipway.host.plugins.module_utils.images import smoke as images_smoke
from ansible_collections.slipway.host.plugins.module_utils.images.activity import Activities
from ansible_collections.slipway.host.plugins.module_utils.images.commands import (
    BuildError,
    run,
    run_or_fail,
    save_bill_of_materials,
)
from ansible_collections.slipway.host.plugins.module_utils.images.output import (
    last_lines,
    read_lines,
)
from ansible_collections.slipway.host.plugins.module_utils.state import containers

LOCK = Path(labels.BUILD_LOCK)
# Seconds after which a registry that does not answer counts as unreachable.
REGISTRY_TIMEOUT = 20
# Seconds for a pull from such a registry: the engine may still have a mirror or a proxy.
ENGINE_TIMEOUT = 300
# Seconds without a line after which one reports that the step still runs, then twice as many.
HEARTBEAT = 15
# A line of a step: its number, the seconds of its command, its text.
STEP = re.compile(r"#(\d+) (?:\d+\.\d+ )?(.*)")
# Parts of a step that a person does not need to read.
NOISE = re.compile(r"--mount=\S+\s+|\. /run/slipway/environment && |/run/slipway/|set -eu;\s*")
Job = dict[str, Any]


def read_image_id(reference: str) -> str | None:
    """Return the content ID of an image on the host, None for none."""
    content = record.inspect_image(reference)
    return content.identity if content else None


def apt_sources(recipe: Job, mirror: str) -> str:
    """Return apt sources, in deb822 form, for a build that installs from MIRROR."""
    return (
        f"Types: deb\nURIs: {mirror}\nSuites: {recipe['suite']}\n"
        f"Components: {' '.join(recipe['components'])}\n"
        f"Signed-By: /usr/share/keyrings/{recipe['distribution']}-archive-keyring.gpg\n"
    )


def is_current(image: Job) -> bool:
    """Return whether record and engine of the host agree that an image needs no build."""
    content = record.inspect_image(image["reference"])
    return record.is_recorded(image["reference"], image["digest"], content)


def describe_line(step: str, text: str) -> str:
    """Return what a line of a build says, with the number of its STEP unless it begins one."""
    number = f"{step.partition(']')[0]}] " if "]" in step and not text.startswith("[") else ""
    return (number + NOISE.sub("", text))[:120]


class Builder:
    """Builds the images of one job."""

    def __init__(self, folder: Path, progress: Progress) -> None:
        self.folder = folder
        self.job: Job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
        self.progress = progress
        self.activities = Activities(progress)
        self.base_lock = threading.Lock()
        self.built: list[str] = []
        self.recorded: list[str] = []

    def secrets(self, base: Job) -> list[str]:
        """Return the options that mount secrets into a build; no secret gets into a layer."""
        paths = dict(self.job["secrets"])
        mirror = self.job["apt_mirror"]
        if mirror and base["bootstrap"]:
            path = self.folder / "secrets" / f"apt_sources-{base['name']}"
            path.parent.mkdir(mode=0o700, exist_ok=True)
            path.write_text(apt_sources(base["bootstrap"], mirror), encoding="utf-8")
            # Sources that the host's owner wrote take precedence.
            paths.setdefault("apt_sources", str(path))
        options: list[str] = []
        for name, path in sorted(paths.items()):
            # An absolute path replaces the folder.
            source = self.folder / path
            if source.is_file():
                options += ["--secret", f"id={name},src={source}"]
        return options

    def provide_base(self, base: Job) -> str:
        """Pull or bootstrap a base if it is missing; return its reference on the host."""
        local = str(base["local"])
        if read_image_id(local):
            return local
        source = self.job["base_source"]
        if source in ("auto", "registry"):
            pulled = self.pull(base["reference"])
            if pulled.returncode == 0:
                run_or_fail("tagging the base", ["docker", "tag", base["reference"], local])
                self.progress.say(f"base {base['name']}: pulled {base['reference']}")
                return local
            reason = last_lines(pulled.stderr, 1)
            if source == "registry":
                raise BuildError(
                    f"cannot pull base image {base['reference']}: {reason}. Make a registry "
                    "reachable from the host, or set ml_images_build.base_source to 'bootstrap'."
                )
            self.progress.say(f"base {base['name']}: no registry answers, bootstrapping from apt")
        self.bootstrap(base, local)
        return local

    def pull(self, reference: str) -> subprocess.CompletedProcess[str]:
        """Pull from a registry; wait only a short time for a registry that does not answer."""
        manifest = run(["docker", "manifest", "inspect", reference], REGISTRY_TIMEOUT)
        timeout = ENGINE_TIMEOUT if manifest.returncode else None
        return run(["docker", "pull", "--quiet", reference], timeout)

    def bootstrap(self, base: Job, local: str) -> None:
        """Build a base image from an apt mirror."""
        if not base["bootstrap"]:
            raise BuildError(
                f"cannot pull base image {base['reference']}, and base {base['name']} has no key "
                "bootstrap in images/bases.yml. Make a registry reachable, or add the key."
            )
        # A run that was killed left the package, and this mark.
        mark = self.folder.parent / "mmdebstrap-is-temporary"
        installed = shutil.which("mmdebstrap") is not None and not mark.exists()
        apt_get = ["apt-get", "--quiet=2", "--assume-yes", "--option=DPkg::Lock::Timeout=300"]
        if not installed:
            mark.touch()
            install = [*apt_get, "--no-install-recommends", "install", "mmdebstrap"]
            run_or_fail(
                "installing mmdebstrap", ["env", "DEBIAN_FRONTEND=noninteractive", *install]
            )
        tar, recipe = self.folder / "base.tar", base["bootstrap"]
        try:
            run_or_fail(f"bootstrapping {base['name']}", self.mmdebstrap(recipe, tar))
            imported = ["docker", "import", '--change=CMD ["bash"]', str(tar), local]
            run_or_fail("importing the base", imported)
        finally:
            tar.unlink(missing_ok=True)
            if not installed:
                run([*apt_get, "--auto-remove", "purge", "mmdebstrap"])
                mark.unlink(missing_ok=True)
        self.progress.say(f"base {base['name']}: bootstrapped {recipe['suite']} from apt")

    def mmdebstrap(self, recipe: Job, tar: Path) -> list[str]:
        """Return the command that builds the base's file system from an apt mirror."""
        options = [
            *("--variant=minbase", "--quiet", f"--components={','.join(recipe['components'])}"),
            # Images need no manuals and translations; licences are kept.
            "--dpkgopt=path-exclude=/usr/share/doc/*",
            "--dpkgopt=path-include=/usr/share/doc/*/copyright",
            "--dpkgopt=path-exclude=/usr/share/man/*",
            "--dpkgopt=path-exclude=/usr/share/locale/*",
            # Copied from this host for network access during the build of the base.
            '--customize-hook=rm -f "$1/etc/resolv.conf" "$1/etc/hostname"',
        ]
        if recipe["packages"]:
            options.append(f"--include={','.join(recipe['packages'])}")
        if self.job["apt_proxy"]:
            options.append(f'--aptopt=Acquire::http::Proxy "{self.job["apt_proxy"]}"')
            # The proxy is for the bootstrap only, not for the image.
            options.append('--customize-hook=rm -f "$1/etc/apt/apt.conf.d/99mmdebstrap"')
        mirror = self.job["apt_mirror"]
        if mirror:
            # The mirror is for this host only, not for the image's users; builds get it as secret.
            options.append('--customize-hook=rm -f "$1/etc/apt/sources.list"')
        return ["mmdebstrap", *options, recipe["suite"], str(tar), *([mirror] if mirror else [])]

    def build(self, image: Job) -> None:
        """Build one image; move its tag when its smoke test passes."""
        reference, name = image["reference"], image["name"]
        started = time.monotonic()
        candidate = f"{reference}{images_smoke.CANDIDATE}"
        self.activities.set(name, f"base image {image['base']['name']}")
        with self.base_lock:
            root = self.provide_base(image["base"])
        base = str(image["parent"] or root)
        context = self.folder / f"context-{name}"
        context.mkdir()
        archive = self.folder / image["context"]
        run_or_fail("unpacking", ["tar", "-x", "-C", str(context), "-f", str(archive)])
        # Without its tag, the candidate of an interrupted build would stay on the host.
        run(["docker", "image", "rm", candidate])
        command = ["docker", "buildx", "build", "--progress=plain", "--load", "--tag", candidate]
        command += [f"--build-arg=BASE={base}", f"--build-arg=ROOT={root}"]
        if self.job["wheels"]:
            command.append(f"--build-context=wheels={self.job['wheels']}")
        image_labels = {**image["labels"], labels.OCI_BASE_DIGEST: read_image_id(base) or ""}
        command += [f"--label={key}={value}" for key, value in sorted(image_labels.items())]
        # The engine knows these arguments and keeps them out of the image's history.
        proxy = sorted(self.job["proxy"].items())
        command += [f"--build-arg={key}={value}" for key, value in proxy]
        command += [*self.secrets(image["base"]), str(context)]
        try:
            self.follow(name, command)
            built = time.monotonic()
            # From here on by content ID: the tag of the candidate may move.
            content = record.inspect_image(candidate)
            if content is None:
                raise BuildError("the built image is not on the host. Build again.")
            proven = self.smoke(image, content.identity)
            save_bill_of_materials(reference, content.identity)
            record.write_record(
                reference,
                content,
                image["digest"],
                record.BUILT,
                build_seconds=round(built - started, 1),
                smoke_seconds=round(time.monotonic() - built, 1),
                proven=proven,
            )
            run_or_fail("moving the tag", ["docker", "tag", content.identity, reference])
        finally:
            run(["docker", "image", "rm", candidate])
            shutil.rmtree(context, ignore_errors=True)
        self.progress.say(f"{name}: ready after {time.monotonic() - started:.0f} s")

    def record_old_image(self, image: Job) -> bool:
        """Test and record an image of an old version; return whether that replaces a build."""
        reference, digest = image["reference"], image["digest"]
        content = record.inspect_image(reference)
        if content is None or not record.is_of_old_version(reference, digest, content):
            return False
        started = time.monotonic()
        try:
            proven = self.smoke(image, content.identity)
        except BuildError as error:
            self.progress.say(f"{image['name']}: building again: {error}")
            return False
        seconds = round(time.monotonic() - started, 1)
        record.write_record(
            reference, content, digest, record.BUILT, smoke_seconds=seconds, proven=proven
        )
        return True

    def follow(self, name: str, command: list[str]) -> None:
        """Run the build COMMAND and report each step at its start, except cached steps."""
        environment = {**os.environ, "DOCKER_BUILDKIT": "1", "BUILDX_NO_DEFAULT_ATTESTATIONS": "1"}
        log: list[str] = []
        steps: dict[str, str] = {}
        step, reported, pause = "starting", time.monotonic(), HEARTBEAT
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
        ) as process:
            for line in read_lines(process):
                if line is None:
                    if time.monotonic() - reported > pause:
                        reported, pause = time.monotonic(), 2 * pause
                        self.progress.say(f"{name}: {step}: {self.activities.state(name)}")
                    continue
                log.append(line)
                match = STEP.match(line)
                if not match:
                    continue
                number, text = match.groups()
                if text.startswith("[") and not text.startswith(("[internal]", "[context")):
                    steps[number] = NOISE.sub("", text)[:90]
                elif text == "CACHED":
                    steps.pop(number, None)
                elif number in steps:
                    step, reported, pause = steps.pop(number), time.monotonic(), HEARTBEAT
                    self.progress.say(f"{name}: {step}")
                self.activities.set(name, describe_line(step, text))
            status = process.wait()
        (self.folder / f"{name}.log").write_text("\n".join(log), encoding="utf-8")
        if status != 0:
            raise BuildError(f"the build failed:\n{last_lines(chr(10).join(log))}")

    def smoke(self, image: Job, candidate: str) -> list[str]:
        """Run the image's smoke test in CANDIDATE; return its lines or raise BuildError."""
        self.progress.say(f"{image['name']}: smoke test")
        self.activities.set(image["name"], "smoke test")
        try:
            proven = images_smoke.test(candidate, image["smoke"], image["smoke_timeout"])
        except images_smoke.SmokeError as error:
            raise BuildError(
                f"the smoke test failed; the previous image stays in use: {error}"
            ) from error
        for line in proven:
            self.progress.say(f"{image['name']}: {line}")
        return proven

    def parallel_builds(self) -> int:
        """Return how many images are built at the same time.

        Unpacking packages uses one processor and a smoke test several, so by default each build
        gets two.
        """
        return int(self.job["parallel"]) or max(1, min(4, (os.cpu_count() or 1) // 2))

    def build_or_explain(self, image: Job) -> str | None:
        """Build an image; return the reason of a failure, None for success."""
        usual = containers.read_image_record(image["reference"]).get("build_seconds")
        self.activities.begin(image["name"], usual)
        try:
            if self.record_old_image(image):
                self.recorded.append(image["reference"])
            else:
                self.build(image)
                self.built.append(image["reference"])
        except (BuildError, OSError) as error:
            self.progress.say(f"{image['name']}: FAILED")
            return str(error)
        finally:
            self.activities.end(image["name"])
        return None

    def shrink_cache(self) -> None:
        """Remove build cache beyond its bound; the images are built, whatever the engine says."""
        size = self.job["cache_bytes"]
        try:
            removed = build_cache.shrink(size) if size else 0
        except (OSError, ValueError) as error:
            self.progress.say(f"build cache: not reduced to {format_size(size)}: {error}")
            return
        if removed:
            self.progress.say(f"build cache: removed {format_size(removed)}")

    def build_all(self) -> Job:
        """Build all images of the job, each after the image below it.

        If an image fails, the others are built, except the images on top of it.
        """
        record.secure_records()
        failed: dict[str, str] = {}
        waiting = [image for image in self.job["builds"] if not is_current(image)]
        running: dict[Future[str | None], str] = {}
        with self.activities.shown(), ThreadPoolExecutor(self.parallel_builds()) as pool:
            while waiting or running:
                unfinished = {image["reference"] for image in waiting} | set(running.values())
                for image in [other for other in waiting if other["parent"] not in unfinished]:
                    waiting.remove(image)
                    if image["parent"] in failed:
                        failed[image["reference"]] = (
                            f"not built, because {image['parent']} below it failed"
                        )
                    else:
                        running[pool.submit(self.build_or_explain, image)] = image["reference"]
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    reference, reason = running.pop(future), future.result()
                    if reason is not None:
                        failed[reference] = reason
        record.remove_replaced(image["reference"] for image in self.job["builds"])
        if self.built:
            self.shrink_cache()
        return {"built": self.built, "recorded": self.recorded, "failed": failed}


def main(folder: Path) -> None:
    """Build the images of the job in FOLDER."""
    environment.apply()

    def build(progress: Progress) -> Job:
        try:
            return Builder(folder, progress).build_all()
        finally:
            shutil.rmtree(folder / "secrets", ignore_errors=True)

    job.run_locked(folder, LOCK, "build", build)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
