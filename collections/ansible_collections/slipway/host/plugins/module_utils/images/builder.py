# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Builds images on the host: base, build, smoke test, and only then the tag.

How it is started and followed is described in :mod:`host.job`.  The folder holds
``job.json``, one ``<n>.tar`` build context per image, ``secrets/``, and this module with what it
imports.  Only the standard library of Python 3.10 is used.
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
from ansible_collections.slipway.host.plugins.module_utils.host import job
from ansible_collections.slipway.host.plugins.module_utils.host.job import Progress
from ansible_collections.slipway.host.plugins.module_utils.images import smoke as images_smoke

LOCK = Path(labels.BUILD_LOCK)
# A registry that does not answer within this many seconds counts as out of reach.
REGISTRY_TIMEOUT = 20
# Where the engine is asked all the same, it may say so itself, or have a mirror or a proxy.
ENGINE_TIMEOUT = 300
# A step that says nothing for this long gets a line saying that it still runs; seconds.
HEARTBEAT = 15
STEP = re.compile(r"#(\d+) (.*)")
# What a person does not want to read of a step.
NOISE = re.compile(r"--mount=\S+\s+|\. /run/slipway/environment && |/run/slipway/|set -eu;\s*")
Job = dict[str, Any]


class BuildError(Exception):
    """An image could not be made; the message is for a person."""


def run(command: list[str], timeout: float | None = None) -> subprocess.CompletedProcess[str]:
    """Run COMMAND and return what it said; a time-out counts as a failure."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired as error:
        said = (error.stdout or b"").decode("utf-8", "replace") if error.stdout else ""
        return subprocess.CompletedProcess(command, 124, said, f"no end after {timeout:.0f} s")


def must(doing: str, command: list[str], timeout: float | None = None) -> str:
    """Run COMMAND and return its output; raise BuildError with its last words where it fails."""
    done = run(command, timeout)
    if done.returncode != 0:
        raise BuildError(f"{doing} failed: {last_words(done.stdout + done.stderr)}")
    return done.stdout.strip()


def last_words(output: str, lines: int = 25) -> str:
    """Return the end of a command's output, where the reason stands."""
    return "\n".join(output.strip().splitlines()[-lines:])


def digest_of(reference: str) -> str | None:
    """Return the context digest that an image on the host bears, None where there is none."""
    found = run(["docker", "image", "inspect", "--format", "{{json .Config.Labels}}", reference])
    if found.returncode != 0:
        return None
    image_labels = json.loads(found.stdout) or {}
    return str(image_labels[labels.DIGEST]) if labels.DIGEST in image_labels else None


def image_id(reference: str) -> str | None:
    """Return the id of an image on the host, None where there is none."""
    found = run(["docker", "image", "inspect", "--format", "{{.Id}}", reference])
    return found.stdout.strip() if found.returncode == 0 else None


def apt_sources(recipe: Job, mirror: str) -> str:
    """Return apt sources, in deb822 form, by which a build installs from MIRROR."""
    return (
        f"Types: deb\nURIs: {mirror}\nSuites: {recipe['suite']}\n"
        f"Components: {' '.join(recipe['components'])}\n"
        f"Signed-By: /usr/share/keyrings/{recipe['distribution']}-archive-keyring.gpg\n"
    )


def kept(reference: str, suffix: str) -> Path:
    """Return the file on the host that tells something of an image."""
    folder = LOCK.parent / "images"
    folder.mkdir(exist_ok=True)
    return folder / f"{re.sub('[/:]', '-', reference)}{suffix}"


def lines(process: subprocess.Popen[bytes]) -> Iterator[str | None]:
    """Yield the lines that PROCESS says, and None from time to time while it says nothing."""
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
    """Carries out one job."""

    def __init__(self, folder: Path, progress: Progress) -> None:
        self.folder = folder
        self.job: Job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
        self.progress = progress
        self.making_a_base = threading.Lock()

    def secrets(self, base: Job) -> list[str]:
        """Return the options that lend a build its secrets; none ends up in a layer."""
        lent = dict(self.job["secrets"])
        mirror = self.job["apt_mirror"]
        if mirror and base["bootstrap"]:
            path = self.folder / "secrets" / f"apt_sources-{base['name']}"
            path.parent.mkdir(mode=0o700, exist_ok=True)
            path.write_text(apt_sources(base["bootstrap"], mirror), encoding="utf-8")
            # Sources that the host's owner wrote win.
            lent.setdefault("apt_sources", str(path))
        options: list[str] = []
        for name, place in sorted(lent.items()):
            # An absolute path stays what it is.
            source = self.folder / place
            if source.is_file():
                options += ["--secret", f"id={name},src={source}"]
        return options

    def base(self, base: Job) -> str:
        """Return the reference that a base has on the host, where it is afterwards."""
        local = str(base["local"])
        if image_id(local):
            return local
        source = self.job["base_source"]
        if source in ("auto", "registry"):
            pulled = self.pull(base["reference"])
            if pulled.returncode == 0:
                must("tagging the base", ["docker", "tag", base["reference"], local])
                self.progress.say(f"base {base['name']}: pulled {base['reference']}")
                return local
            reason = last_words(pulled.stderr, 1)
            if source == "registry":
                raise BuildError(
                    f"the base image {base['reference']} could not be pulled: {reason}. Make a "
                    "registry reachable from the host, or set ml_images_build.base_source to "
                    "'bootstrap'."
                )
            self.progress.say(f"base {base['name']}: no registry answers, bootstrapping from apt")
        self.bootstrap(base, local)
        return local

    def pull(self, reference: str) -> subprocess.CompletedProcess[str]:
        """Pull from a registry, giving up early on one that does not answer at all."""
        asked = run(["docker", "manifest", "inspect", reference], REGISTRY_TIMEOUT)
        timeout = ENGINE_TIMEOUT if asked.returncode else None
        return run(["docker", "pull", "--quiet", reference], timeout)

    def bootstrap(self, base: Job, local: str) -> None:
        """Make a base image from an apt mirror."""
        if not base["bootstrap"]:
            raise BuildError(
                f"no registry gives the base image {base['reference']}, and images/bases.yml does "
                f"not say how to bootstrap {base['name']}"
            )
        installed = shutil.which("mmdebstrap") is not None
        apt_get = ["apt-get", "--quiet=2", "--assume-yes", "--option=DPkg::Lock::Timeout=300"]
        if not installed:
            install = [*apt_get, "--no-install-recommends", "install", "mmdebstrap"]
            must("installing mmdebstrap", ["env", "DEBIAN_FRONTEND=noninteractive", *install])
        tar, recipe = self.folder / "base.tar", base["bootstrap"]
        command = self.mmdebstrap(recipe, tar)
        try:
            must(f"bootstrapping {base['name']}", command)
            imported = ["docker", "import", '--change=CMD ["bash"]', str(tar), local]
            must("importing the base", imported)
        finally:
            tar.unlink(missing_ok=True)
            if not installed:
                run([*apt_get, "--auto-remove", "purge", "mmdebstrap"])
        self.progress.say(f"base {base['name']}: bootstrapped {recipe['suite']} from apt")

    def mmdebstrap(self, recipe: Job, tar: Path) -> list[str]:
        """Return the command that makes the base's file system from an apt mirror."""
        options = [
            *("--variant=minbase", "--quiet", f"--components={','.join(recipe['components'])}"),
            # Manuals and translations are of no use in an image; licences stay.
            "--dpkgopt=path-exclude=/usr/share/doc/*",
            "--dpkgopt=path-include=/usr/share/doc/*/copyright",
            "--dpkgopt=path-exclude=/usr/share/man/*",
            "--dpkgopt=path-exclude=/usr/share/locale/*",
            # Copied from this host, to have a network while the base was made.
            '--customize-hook=rm -f "$1/etc/resolv.conf" "$1/etc/hostname"',
        ]
        if recipe["packages"]:
            options.append(f"--include={','.join(recipe['packages'])}")
        if self.job["apt_proxy"]:
            options.append(f'--aptopt=Acquire::http::Proxy "{self.job["apt_proxy"]}"')
            # What the bootstrap needed is not what the image keeps.
            options.append('--customize-hook=rm -f "$1/etc/apt/apt.conf.d/99mmdebstrap"')
        mirror = self.job["apt_mirror"]
        if mirror:
            # Where this host gets packages is not where the image's users do; a build is lent the
            # mirror as a secret.
            options.append('--customize-hook=rm -f "$1/etc/apt/sources.list"')
        return ["mmdebstrap", *options, recipe["suite"], str(tar), *([mirror] if mirror else [])]

    def build(self, image: Job) -> None:
        """Build one image and, when its smoke test passes, move its tag."""
        reference, name = image["reference"], image["name"]
        started = time.monotonic()
        candidate = f"{reference}{images_smoke.CANDIDATE}"
        with self.making_a_base:
            root = self.base(image["base"])
        base = str(image["parent"] or root)
        context = self.folder / f"context-{name}"
        context.mkdir()
        archive = self.folder / image["context"]
        must("unpacking", ["tar", "-x", "-C", str(context), "-f", str(archive)])
        command = ["docker", "buildx", "build", "--progress=plain", "--load", "--tag", candidate]
        command += [f"--build-arg=BASE={base}", f"--build-arg=ROOT={root}"]
        if self.job["wheels"]:
            command.append(f"--build-context=wheels={self.job['wheels']}")
        image_labels = {**image["labels"], labels.OCI_BASE_DIGEST: image_id(base) or ""}
        command += [f"--label={key}={value}" for key, value in sorted(image_labels.items())]
        # The engine knows these by name and keeps them out of the image's history.
        proxy = sorted(self.job["proxy"].items())
        command += [f"--build-arg={key}={value}" for key, value in proxy]
        command += [*self.secrets(image["base"]), str(context)]
        try:
            self.follow(name, command)
            built = time.monotonic()
            proven = self.smoke(image, candidate)
            self.keep_bill(reference, candidate)
            self.keep_record(image, built - started, time.monotonic() - built, proven)
            must("moving the tag", ["docker", "tag", candidate, reference])
        finally:
            run(["docker", "image", "rm", candidate])
            shutil.rmtree(context, ignore_errors=True)
        self.progress.say(f"{name}: ready after {time.monotonic() - started:.0f} s")

    def follow(self, name: str, command: list[str]) -> None:
        """Run the build COMMAND, telling its steps as they begin; cached ones are not told."""
        environment = {**os.environ, "DOCKER_BUILDKIT": "1", "BUILDX_NO_DEFAULT_ATTESTATIONS": "1"}
        log: list[str] = []
        steps: dict[str, str] = {}
        step, told = "starting", time.monotonic()
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
        ) as process:
            for line in lines(process):
                if line is None:
                    if time.monotonic() - told > HEARTBEAT:
                        told = time.monotonic()
                        self.progress.say(f"{name}: still at {step}")
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
            raise BuildError(f"its build failed:\n{last_words(chr(10).join(log))}")

    def smoke(self, image: Job, candidate: str) -> list[str]:
        """Run the image's smoke test in CANDIDATE; return what it proved or raise BuildError."""
        self.progress.say(f"{image['name']}: smoke test")
        try:
            proven = images_smoke.test(candidate, image["smoke"], image["smoke_timeout"])
        except images_smoke.SmokeError as error:
            raise BuildError(
                f"its smoke test failed, so the image that was there before stays in use: {error}"
            ) from error
        for line in proven:
            self.progress.say(f"{image['name']}: {line}")
        return proven

    def keep_bill(self, reference: str, candidate: str) -> None:
        """Copy what an image says it holds to the host, where auditors find it for all images."""
        container = f"slipway-bill-{os.getpid()}-{threading.get_ident()}"
        must("opening the image", ["docker", "create", f"--name={container}", candidate])
        try:
            bill = str(kept(reference, ".cdx.json"))
            must(
                "copying its bill",
                ["docker", "cp", f"{container}:{labels.BILL_OF_MATERIALS}", bill],
            )
        finally:
            run(["docker", "rm", container])

    def keep_record(
        self, image: Job, build_seconds: float, smoke_seconds: float, proven: list[str]
    ) -> None:
        """Write down what the build took and what the smoke test proved."""
        record = {
            "digest": image["digest"],
            "build_seconds": round(build_seconds, 1),
            "smoke_seconds": round(smoke_seconds, 1),
            "proven": proven,
        }
        file = kept(image["reference"], ".json")
        # At once, since half of it would be no answer to `./slipway images list`.
        written = file.with_suffix(".new")
        written.write_text(json.dumps(record), encoding="utf-8")
        written.rename(file)

    def at_once(self) -> int:
        """Return how many images may be built at the same time.

        Unpacking packages keeps one processor busy and a smoke test several, so unless the host's
        owner says otherwise an image gets two.
        """
        return int(self.job["parallel"]) or max(1, min(4, (os.cpu_count() or 1) // 2))

    def one(self, image: Job) -> str | None:
        """Build an image that differs; return why it failed, None where it did not."""
        try:
            self.build(image)
        except (BuildError, OSError) as error:
            self.progress.say(f"{image['name']}: FAILED")
            return str(error)
        return None

    def all(self) -> Job:
        """Build all images of the job, each after the one it stands on.

        One that fails leaves the others, except those that stand on it.
        """
        built: list[str] = []
        failed: dict[str, str] = {}
        left = [one for one in self.job["builds"] if digest_of(one["reference"]) != one["digest"]]
        running: dict[Future[str | None], str] = {}
        with ThreadPoolExecutor(self.at_once()) as pool:
            while left or running:
                unfinished = {image["reference"] for image in left} | set(running.values())
                for image in [one for one in left if one["parent"] not in unfinished]:
                    left.remove(image)
                    if image["parent"] in failed:
                        failed[image["reference"]] = f"its base {image['parent']} failed"
                    else:
                        running[pool.submit(self.one, image)] = image["reference"]
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    reference, why = running.pop(future), future.result()
                    if why is None:
                        built.append(reference)
                    else:
                        failed[reference] = why
        # What the new images replaced, where no container uses it any more.
        run(["docker", "image", "prune", "--force", f"--filter=label={labels.DIGEST}"])
        return {"built": built, "failed": failed}


def main(folder: Path) -> None:
    """Carry out the job in FOLDER."""

    def build(progress: Progress) -> Job:
        try:
            return Builder(folder, progress).all()
        finally:
            shutil.rmtree(folder / "secrets", ignore_errors=True)

    job.carry_out(folder, LOCK, "build", build)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
