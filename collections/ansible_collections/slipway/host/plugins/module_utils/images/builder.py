# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Builds images on the host: base, build, smoke test, and only then the tag.

The controller starts and follows it, see :mod:`host.job`.  The folder of a job contains
``job.json``, one ``<n>.tar`` build context per image, ``secrets/``, and this module with its
imports.  Standard library of Python 3.10 only.
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
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.docker import labels
from ansible_collections.slipway.host.plugins.module_utils.host import environment, job
from ansible_collections.slipway.host.plugins.module_utils.host.job import Progress
from ansible_collections.slipway.host.plugins.module_utils.images import smoke as images_smoke

LOCK = Path(labels.BUILD_LOCK)
# Seconds after which a registry that does not answer counts as unreachable.
REGISTRY_TIMEOUT = 20
# Seconds for a pull from such a registry: the engine may still have a mirror or a proxy.
ENGINE_TIMEOUT = 300
# Seconds without output after which a line tells that the step still runs.
HEARTBEAT = 15
STEP = re.compile(r"#(\d+) (.*)")
# Parts of a step that a person does not need to read.
NOISE = re.compile(r"--mount=\S+\s+|\. /run/slipway/environment && |/run/slipway/|set -eu;\s*")
Job = dict[str, Any]


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


def run_or_fail(doing: str, command: list[str], timeout: float | None = None) -> str:
    """Run COMMAND and return its output; raise BuildError with the end of its output on failure."""
    done = run(command, timeout)
    if done.returncode != 0:
        raise BuildError(f"{doing} failed: {last_lines(done.stdout + done.stderr)}")
    return done.stdout.strip()


def last_lines(output: str, count: int = 25) -> str:
    """Return the end of a command's output, which has the reason of a failure."""
    return "\n".join(output.strip().splitlines()[-count:])


def read_digest(reference: str) -> str | None:
    """Return the context digest in the label of an image on the host, None for none."""
    command = ["docker", "image", "inspect", "--format", "{{json .Config.Labels}}", reference]
    inspected = run(command)
    if inspected.returncode != 0:
        return None
    image_labels = json.loads(inspected.stdout) or {}
    return str(image_labels[labels.DIGEST]) if labels.DIGEST in image_labels else None


def read_image_id(reference: str) -> str | None:
    """Return the ID of an image on the host, None for none."""
    inspected = run(["docker", "image", "inspect", "--format", "{{.Id}}", reference])
    return inspected.stdout.strip() if inspected.returncode == 0 else None


def apt_sources(recipe: Job, mirror: str) -> str:
    """Return apt sources, in deb822 form, for a build that installs from MIRROR."""
    return (
        f"Types: deb\nURIs: {mirror}\nSuites: {recipe['suite']}\n"
        f"Components: {' '.join(recipe['components'])}\n"
        f"Signed-By: /usr/share/keyrings/{recipe['distribution']}-archive-keyring.gpg\n"
    )


def record_file(reference: str, suffix: str) -> Path:
    """Return the path of a record about an image on the host."""
    folder = LOCK.parent / "images"
    folder.mkdir(exist_ok=True)
    return folder / f"{re.sub('[/:]', '-', reference)}{suffix}"


def read_lines(process: subprocess.Popen[bytes]) -> Iterator[str | None]:
    """Yield the lines of PROCESS's output, and None from time to time while there is none."""
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    pending = b""
    while True:
        chunk = process.stdout.read()
        if chunk == b"":
            break
        if chunk is None:
            yield None
            time.sleep(0.2)
            continue
        *whole, pending = (pending + chunk).split(b"\n")
        yield from (line.decode("utf-8", "replace") for line in whole)
    if pending:
        yield pending.decode("utf-8", "replace")


class Builder:
    """Builds the images of one job."""

    def __init__(self, folder: Path, progress: Progress) -> None:
        self.folder = folder
        self.job: Job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
        self.progress = progress
        self.base_lock = threading.Lock()

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
        """Pull from a registry; give up early on a registry that does not answer."""
        asked = run(["docker", "manifest", "inspect", reference], REGISTRY_TIMEOUT)
        timeout = ENGINE_TIMEOUT if asked.returncode else None
        return run(["docker", "pull", "--quiet", reference], timeout)

    def bootstrap(self, base: Job, local: str) -> None:
        """Build a base image from an apt mirror."""
        if not base["bootstrap"]:
            raise BuildError(
                f"cannot pull base image {base['reference']}, and base {base['name']} has no key "
                "bootstrap in images/bases.yml. Make a registry reachable, or add the key."
            )
        installed = shutil.which("mmdebstrap") is not None
        apt_get = ["apt-get", "--quiet=2", "--assume-yes", "--option=DPkg::Lock::Timeout=300"]
        if not installed:
            install = [*apt_get, "--no-install-recommends", "install", "mmdebstrap"]
            run_or_fail(
                "installing mmdebstrap", ["env", "DEBIAN_FRONTEND=noninteractive", *install]
            )
        tar, recipe = self.folder / "base.tar", base["bootstrap"]
        command = self.mmdebstrap(recipe, tar)
        try:
            run_or_fail(f"bootstrapping {base['name']}", command)
            imported = ["docker", "import", '--change=CMD ["bash"]', str(tar), local]
            run_or_fail("importing the base", imported)
        finally:
            tar.unlink(missing_ok=True)
            if not installed:
                run([*apt_get, "--auto-remove", "purge", "mmdebstrap"])
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
        with self.base_lock:
            root = self.provide_base(image["base"])
        base = str(image["parent"] or root)
        context = self.folder / f"context-{name}"
        context.mkdir()
        archive = self.folder / image["context"]
        run_or_fail("unpacking", ["tar", "-x", "-C", str(context), "-f", str(archive)])
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
            proven = self.smoke(image, candidate)
            self.save_bill_of_materials(reference, candidate)
            self.save_record(image, built - started, time.monotonic() - built, proven)
            run_or_fail("moving the tag", ["docker", "tag", candidate, reference])
        finally:
            run(["docker", "image", "rm", candidate])
            shutil.rmtree(context, ignore_errors=True)
        self.progress.say(f"{name}: ready after {time.monotonic() - started:.0f} s")

    def follow(self, name: str, command: list[str]) -> None:
        """Run the build COMMAND and report each step at its start, except cached steps."""
        environment = {**os.environ, "DOCKER_BUILDKIT": "1", "BUILDX_NO_DEFAULT_ATTESTATIONS": "1"}
        log: list[str] = []
        steps: dict[str, str] = {}
        step, told = "starting", time.monotonic()
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
        ) as process:
            for line in read_lines(process):
                if line is None:
                    if time.monotonic() - told > HEARTBEAT:
                        told = time.monotonic()
                        self.progress.say(f"{name}: still running: {step}")
                    continue
                log.append(line)
                match = STEP.match(line)
                if not match:
                    continue
                number, words = match.groups()
                if words.startswith("[") and not words.startswith(("[internal]", "[context")):
                    steps[number] = NOISE.sub("", words)[:90]
                elif words == "CACHED":
                    steps.pop(number, None)
                elif number in steps:
                    step, told = steps.pop(number), time.monotonic()
                    self.progress.say(f"{name}: {step}")
            status = process.wait()
        (self.folder / f"{name}.log").write_text("\n".join(log), encoding="utf-8")
        if status != 0:
            raise BuildError(f"the build failed:\n{last_lines(chr(10).join(log))}")

    def smoke(self, image: Job, candidate: str) -> list[str]:
        """Run the image's smoke test in CANDIDATE; return its lines or raise BuildError."""
        self.progress.say(f"{image['name']}: smoke test")
        try:
            proven = images_smoke.test(candidate, image["smoke"], image["smoke_timeout"])
        except images_smoke.SmokeError as error:
            raise BuildError(
                f"the smoke test failed; the previous image stays in use: {error}"
            ) from error
        for line in proven:
            self.progress.say(f"{image['name']}: {line}")
        return proven

    def save_bill_of_materials(self, reference: str, candidate: str) -> None:
        """Copy the image's bill of materials to the host, where all of them are in one folder."""
        container = f"slipway-bill-{os.getpid()}-{threading.get_ident()}"
        run_or_fail("creating a container", ["docker", "create", f"--name={container}", candidate])
        try:
            bill = str(record_file(reference, ".cdx.json"))
            run_or_fail(
                "copying the bill of materials",
                ["docker", "cp", f"{container}:{labels.BILL_OF_MATERIALS}", bill],
            )
        finally:
            run(["docker", "rm", container])

    def save_record(
        self, image: Job, build_seconds: float, smoke_seconds: float, proven: list[str]
    ) -> None:
        """Write the durations of build and smoke test, and the lines of the smoke test."""
        record = {
            "digest": image["digest"],
            "build_seconds": round(build_seconds, 1),
            "smoke_seconds": round(smoke_seconds, 1),
            "proven": proven,
        }
        file = record_file(image["reference"], ".json")
        # By a rename, because `./slipway images list` may read the file at any time.
        written = file.with_suffix(".new")
        written.write_text(json.dumps(record), encoding="utf-8")
        written.rename(file)

    def parallel_builds(self) -> int:
        """Return how many images are built at the same time.

        Unpacking packages uses one processor and a smoke test several, so by default each build
        gets two.
        """
        return int(self.job["parallel"]) or max(1, min(4, (os.cpu_count() or 1) // 2))

    def build_or_explain(self, image: Job) -> str | None:
        """Build an image; return the reason of a failure, None for success."""
        try:
            self.build(image)
        except (BuildError, OSError) as error:
            self.progress.say(f"{image['name']}: FAILED")
            return str(error)
        return None

    def build_all(self) -> Job:
        """Build all images of the job, each after the image below it.

        If an image fails, the others are built, except the images on top of it.
        """
        built: list[str] = []
        failed: dict[str, str] = {}
        left = [
            image
            for image in self.job["builds"]
            if read_digest(image["reference"]) != image["digest"]
        ]
        running: dict[Future[str | None], str] = {}
        with ThreadPoolExecutor(self.parallel_builds()) as pool:
            while left or running:
                unfinished = {image["reference"] for image in left} | set(running.values())
                for image in [other for other in left if other["parent"] not in unfinished]:
                    left.remove(image)
                    if image["parent"] in failed:
                        failed[image["reference"]] = (
                            f"not built, because {image['parent']} below it failed"
                        )
                    else:
                        running[pool.submit(self.build_or_explain, image)] = image["reference"]
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    reference, why = running.pop(future), future.result()
                    if why is None:
                        built.append(reference)
                    else:
                        failed[reference] = why
        # Remove replaced images that no container uses.
        run(["docker", "image", "prune", "--force", f"--filter=label={labels.DIGEST}"])
        return {"built": built, "failed": failed}


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
