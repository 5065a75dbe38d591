# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The builder on a host, with a script as the engine that keeps its images in a file."""

from __future__ import annotations

import fcntl
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.docker import labels
from ansible_collections.slipway.host.plugins.module_utils.host import job
from ansible_collections.slipway.host.plugins.module_utils.images import (
    build_cache,
    commands,
    output,
)
from ansible_collections.slipway.host.plugins.module_utils.images import builder as images_builder
from ansible_collections.slipway.host.plugins.module_utils.state import containers

# Answers the docker commands of the builder. $ENGINE/images.json maps references to labels; `_id`
# and `_created` are values of the engine. $ENGINE/say contains the planned events, $ENGINE/log gets
# each command. With `together`, a build waits until that many builds have started, or for a while.
DOCKER = """#!{python} -IS
import fcntl, json, os, sys, time
engine = os.environ["ENGINE"]
words = sys.argv[1:]
with open(engine + "/log", "a") as log:
    log.write(json.dumps(words) + "\\n")
say = json.load(open(engine + "/say"))
together, patience = say.get("together", 0) if words[0] == "buildx" else 0, 200
while open(engine + "/log").read().count('["buildx"') < together:
    time.sleep(0.05)
    patience -= 1
    if not patience:
        sys.exit("nobody came")
lock = open(engine + "/lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX)
images = json.load(open(engine + "/images.json"))
def end(status=0, out="", err=""):
    with open(engine + "/images.json", "w") as file:
        json.dump(images, file)
    sys.stdout.write(out)
    sys.stderr.write(err)
    sys.exit(status)
def identity(tag):
    return images[tag].get("_id", "sha256:" + tag)
def find(word):
    return next((tag for tag in images if word in (tag, identity(tag))), None)
verb = " ".join(words[:2])
if verb == "image inspect":
    tag = find(words[-1])
    if tag is None:
        end(1, err="Error: No such image")
    labels = {{key: value for key, value in images[tag].items() if not key.startswith("_")}}
    created = images[tag].get("_created", "2026-01-01T00:00:00.5Z")
    config = {{"Labels": labels}}
    end(out=json.dumps([{{"Id": identity(tag), "Created": created, "Config": config}}]))
if verb == "manifest inspect" or words[0] == "pull":
    if words[0] == "manifest" and say.get("registry") == "of the engine":
        end(1, err="no such host")
    end() if say.get("registry") and not images.update({{words[-1]: {{}}}}) else end(
        1, err="dial tcp: no route to host")
if verb == "image ls":
    end(out="".join(identity(tag) + "\\n" for tag in images if "_untagged" in images[tag]))
if words[0] == "tag":
    images[words[2]] = dict(images[find(words[1])], _id=identity(find(words[1])))
    end()
if words[0] == "import":
    images[words[-1]] = {{}}
    end()
if verb == "buildx build":
    labels = [word[8:] for word in words if word.startswith("--label=")]
    tag = words[words.index("--tag") + 1]
    print("#1 [internal] load build definition")
    print("#2 [system 1/2] RUN --mount=type=tmpfs,target=/tmp echo hello")
    print("#2 0.1 hello")
    print("#3 [system 2/2] RUN cached")
    print("#3 CACHED")
    if tag.startswith(say.get("broken_build", "-")):
        print("#2 ERROR: exit code: 1")
        end(1)
    images[tag] = dict((label.split("=", 1) for label in labels), _id="sha256:built-" + tag)
    end()
if words[0] == "run":
    if "while_testing" in say:
        images["dangling"] = images[find(words[-2])]
        images.update(say["while_testing"])
    end(say.get("smoke", 0), out="smoke says hello\\n")
if verb == "image rm":
    images.pop(words[-1], None)
end()
"""
MMDEBSTRAP = """#!/bin/sh
for word; do case $word in *.tar) : >"$word" ;; esac; done
echo "mmdebstrap $*" >>"$ENGINE/bootstrapped"
"""
LOCAL_BASE = "slipway/base:debian-13-0123456789ab"
TOOL = "slipway/tool:cpu"
OTHER = "slipway/other:cpu"


class Host:
    """A host with a stand-in engine, and a job folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.job: dict[str, Any] = {
            "builds": [build(TOOL)],
            "secrets": {},
            "base_source": "auto",
            "apt_mirror": "",
            "apt_proxy": "",
            "proxy": {},
            "wheels": "",
            "parallel": 1,
            "cache_bytes": 0,
        }
        self.images: dict[str, dict[str, str]] = {LOCAL_BASE: {}}
        self.say: dict[str, Any] = {}
        self.folder = root / "job"
        self.folder.mkdir()

    def run(self) -> dict[str, Any]:
        """Run the job; return its result."""
        (self.root / "images.json").write_text(json.dumps(self.images))
        (self.root / "say").write_text(json.dumps(self.say))
        (self.folder / "job.json").write_text(json.dumps(self.job))
        for one in self.job["builds"]:
            with tarfile.open(self.folder / one["context"], "w") as context:
                member = tarfile.TarInfo("Dockerfile")
                context.addfile(member, io.BytesIO())
        images_builder.main(self.folder)
        self.images = json.loads((self.root / "images.json").read_text())
        result: dict[str, Any] = json.loads((self.folder / "result.json").read_text())
        return result

    def record_file(self, reference: str) -> Path:
        return Path(containers.image_record_path(reference))

    def record(self, reference: str) -> dict[str, Any]:
        """Return the record of an image."""
        record: dict[str, Any] = json.loads(self.record_file(reference).read_text())
        return record

    def write_record(self, reference: str, **record: Any) -> None:
        self.write_record_text(reference, json.dumps(record))

    def write_record_text(self, reference: str, text: str) -> None:
        self.record_file(reference).parent.mkdir(parents=True, exist_ok=True)
        self.record_file(reference).write_text(text)

    @property
    def progress(self) -> list[str]:
        """Return the progress messages."""
        return (self.folder / "progress").read_text().splitlines()

    def commands(self, *begin: str) -> list[list[str]]:
        """Return the docker commands that begin with BEGIN."""
        log = self.root / "log"
        spoken = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        return [words for words in spoken if words[: len(begin)] == list(begin)]


def build(reference: str, **changes: Any) -> dict[str, Any]:
    """Return a job's entry for an image."""
    name = reference.partition("/")[2].partition(":")[0]
    return {
        "name": name,
        "reference": reference,
        "digest": f"new-{name}",
        "parent": None,
        "base": {
            "name": "debian-13",
            "reference": "debian:trixie-slim",
            "bootstrap": {
                "distribution": "debian",
                "suite": "trixie",
                "components": ["main"],
                "packages": ["ca-certificates"],
            },
            "local": LOCAL_BASE,
        },
        "context": f"{name}.tar",
        "labels": {labels.DIGEST: f"new-{name}"},
        "smoke": ["sh", "/opt/slipway/smoke.sh"],
        "smoke_timeout": 30,
        **changes,
    }


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in (
        ("docker", DOCKER.format(python=sys.executable)),
        ("mmdebstrap", MMDEBSTRAP),
    ):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("ENGINE", str(tmp_path))
    monkeypatch.setattr(images_builder, "LOCK", tmp_path / "lib/build.lock")
    monkeypatch.setattr(containers, "IMAGE_RECORDS", str(tmp_path / "lib/images"))
    return Host(tmp_path)


def test_an_image_is_tagged_after_build_and_smoke_test(host: Host) -> None:
    assert host.run() == {"built": [TOOL], "recorded": [], "failed": {}}
    assert host.images[TOOL][labels.DIGEST] == "new-tool"
    assert host.images[TOOL]["org.opencontainers.image.base.digest"] == f"sha256:{LOCAL_BASE}"
    assert f"{TOOL}-candidate" not in host.images
    order = [words[0] for words in host.commands() if words[0] in ("buildx", "run", "tag")]
    assert order == ["buildx", "run", "tag"]
    assert host.record(TOOL)["proven"] == []


def test_the_tested_image_gets_the_tag_even_if_the_candidate_tag_moved(host: Host) -> None:
    other = {labels.DIGEST: "new-tool", "_id": "sha256:another"}
    host.say = {"while_testing": {f"{TOOL}-candidate": other}}
    host.run()
    tested = f"sha256:built-{TOOL}-candidate"
    assert host.images[TOOL]["_id"] == host.record(TOOL)["id"] == tested
    assert tested in host.commands("run")[0]


def test_replaced_images_are_removed_and_those_of_users_stay(host: Host) -> None:
    """`docker commit` keeps the labels of its source, so labels do not tell whose an image is."""
    host.images[TOOL] = {labels.DIGEST: "old", "_id": "sha256:2"}
    host.write_record(TOOL, digest="old", id="sha256:2", replaced=["sha256:1", "sha256:0"])
    # Of these only the engine knows that 0 has another tag now, and that 7 was committed.
    for identity in ("sha256:1", "sha256:2", "sha256:7"):
        host.images[f"untagged {identity}"] = {
            labels.DIGEST: "old",
            "_id": identity,
            "_untagged": "",
        }
    host.run()
    removed = [words[-1] for words in host.commands("image", "rm") if "candidate" not in words[-1]]
    assert removed == ["sha256:1", "sha256:2"]
    assert host.record(TOOL)["replaced"] == ["sha256:2", "sha256:1", "sha256:0"]
    assert not host.commands("image", "prune")


@pytest.mark.parametrize("record", [{}, {"replaced": None}, {"replaced": 3}, []])
def test_a_broken_list_of_replaced_images_removes_nothing(host: Host, record: Any) -> None:
    host.images["untagged"] = {labels.DIGEST: "old", "_id": "3", "_untagged": ""}
    host.write_record_text(TOOL, json.dumps(record))
    assert host.run()["built"] == [TOOL]
    assert host.record(TOOL)["replaced"] == []
    assert not host.commands("image", "ls")


@pytest.mark.parametrize(
    ("step", "text", "shown"),
    [
        ("starting", "DONE 0.0s", "DONE 0.0s"),
        ("starting", "[internal] load metadata", "[internal] load metadata"),
        ("[system 2/2] RUN apt-get", "Fetched 16.9 MB", "[system 2/2] Fetched 16.9 MB"),
        ("[build 5/6] RUN a", "[build 6/6] RUN --mount=type=bind b", "[build 6/6] RUN b"),
    ],
)
def test_a_line_of_a_build_has_the_number_of_its_step(step: str, text: str, shown: str) -> None:
    assert images_builder.describe_line(step, text) == shown


def test_progress_lists_the_steps_that_run_without_cached_steps(host: Host) -> None:
    host.run()
    assert host.progress[0] == "tool: [system 1/2] RUN echo hello"
    assert host.progress[1] == "tool: smoke test"
    assert host.progress[2].startswith("tool: ready after ")
    assert len(host.progress) == 3


def test_a_recorded_image_is_not_built(host: Host) -> None:
    host.images[TOOL] = {labels.DIGEST: "new-tool", "_id": "sha256:1"}
    host.write_record(TOOL, digest="new-tool", id="sha256:1")
    assert host.run() == {"built": [], "recorded": [], "failed": {}}
    assert not host.commands("buildx") and not host.commands("run")


@pytest.mark.parametrize(
    "record",
    [
        None,
        {"digest": "new-tool", "id": "sha256:2"},
        {"digest": "old", "id": "sha256:1"},
        {"reference": OTHER, "digest": "new-tool", "id": "sha256:1"},
        "not JSON",
        ["no", "mapping"],
        {"digest": "new-tool", "id": "sha256:1", "time": "yesterday"},
    ],
    ids=[
        *("no record", "of other content", "of another context", "of another image"),
        *("broken", "another form", "a broken time"),
    ],
)
def test_the_label_of_an_image_is_not_trusted(host: Host, record: Any) -> None:
    host.images[TOOL] = {labels.DIGEST: "new-tool", "_id": "sha256:1"}
    if record is not None:
        host.write_record_text(TOOL, record if isinstance(record, str) else json.dumps(record))
    assert host.run() == {"built": [TOOL], "recorded": [], "failed": {}}
    assert host.images[TOOL]["_id"] == host.record(TOOL)["id"] != "sha256:1"


def test_an_image_of_an_old_version_is_tested_and_recorded_instead_of_built(host: Host) -> None:
    host.images[TOOL] = {labels.DIGEST: "new-tool", "_id": "sha256:1"}
    host.write_record(TOOL, digest="new-tool", proven=[])
    assert host.run() == {"built": [], "recorded": [TOOL], "failed": {}}
    assert not host.commands("buildx") and "sha256:1" in host.commands("run")[0]
    assert (host.record(TOOL)["id"], host.record(TOOL)["origin"]) == ("sha256:1", "built")
    assert host.run() == {"built": [], "recorded": [], "failed": {}}


@pytest.mark.parametrize(
    ("image", "say"),
    [
        ({"_created": "2099-01-01T00:00:00Z"}, {}),
        ({"_created": "some day"}, {}),
        ({"_created": "2026-01-01T00:00:00+02:00"}, {}),
        ({labels.DIGEST: "old"}, {}),
        ({}, {"smoke": 3}),
    ],
    ids=["made later", "no date", "another date", "another label", "fails its test"],
)
def test_an_image_that_the_old_version_did_not_build_is_built(
    host: Host, image: dict[str, str], say: dict[str, Any]
) -> None:
    host.images[TOOL] = {labels.DIGEST: "new-tool", "_id": "sha256:1", **image}
    host.write_record(TOOL, digest="new-tool", proven=[])
    host.say = say
    assert host.run()["recorded"] == []
    assert host.commands("buildx")


@pytest.mark.parametrize(
    ("say", "words"),
    [
        ({"smoke": 3}, ["smoke test failed", "stays in use", "exit status 3", "smoke says hello"]),
        ({"broken_build": TOOL}, ["the build failed", "ERROR: exit code: 1"]),
    ],
    ids=["smoke", "build"],
)
def test_a_failed_build_keeps_the_previous_image(
    host: Host, say: dict[str, Any], words: list[str]
) -> None:
    host.images[TOOL] = {labels.DIGEST: "old"}
    host.say = say
    result = host.run()
    assert result["built"] == []
    assert all(word in result["failed"][TOOL] for word in words)
    assert host.images[TOOL] == {labels.DIGEST: "old"}
    assert not host.record_file(TOOL).exists()
    assert f"{TOOL}-candidate" not in host.images
    assert host.progress[-1] == "tool: FAILED"


def test_a_failed_build_does_not_stop_the_others(host: Host) -> None:
    host.job["builds"].append(build(OTHER))
    host.say = {"broken_build": TOOL}
    result = host.run()
    assert result["built"] == [OTHER]
    assert list(result["failed"]) == [TOOL]


def test_images_on_top_of_a_failed_image_are_not_built(host: Host) -> None:
    host.job["builds"].append(build(OTHER, parent=TOOL))
    host.say = {"broken_build": TOOL}
    result = host.run()
    assert result["failed"][OTHER] == f"not built, because {TOOL} below it failed"
    assert len(host.commands("buildx")) == 1


def test_independent_images_are_built_in_parallel(host: Host) -> None:
    host.job["builds"].append(build(OTHER))
    host.job["parallel"] = 2
    host.say = {"together": 2}
    result = host.run()
    assert (sorted(result["built"]), result["failed"]) == ([OTHER, TOOL], {})


def test_parallel_builds_are_limited(host: Host) -> None:
    host.job["builds"].append(build(OTHER))
    host.job["parallel"] = 1
    host.run()
    order = [line.split(": ")[0] for line in host.progress]
    assert order == ["tool"] * 3 + ["other"] * 3


def test_an_image_waits_for_its_parent(host: Host) -> None:
    host.job["builds"].append(build(OTHER, parent=TOOL))
    host.job["parallel"] = 2
    assert host.run()["built"] == [TOOL, OTHER]


@pytest.mark.parametrize(
    ("processors", "at_once"), [(1, 1), (2, 1), (4, 2), (64, 4), (None, 1)], ids=str
)
def test_the_number_of_parallel_builds_depends_on_the_processors(
    host: Host, monkeypatch: pytest.MonkeyPatch, processors: int | None, at_once: int
) -> None:
    host.job["parallel"] = 0
    (host.folder / "job.json").write_text(json.dumps(host.job))
    monkeypatch.setattr(os, "cpu_count", lambda: processors)
    builder = images_builder.Builder(host.folder, job.Progress(io.StringIO()))
    assert builder.parallel_builds() == at_once


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (5_000_000, "build cache: removed 5.0 MB"),
        (OSError("no socket"), "build cache: not reduced to 7.0 kB: no socket"),
        (0, None),
    ],
)
def test_the_build_cache_is_reduced_after_a_build(
    host: Host, monkeypatch: pytest.MonkeyPatch, answer: int | OSError, line: str | None
) -> None:
    sizes: list[int] = []

    def shrink(size: int) -> int:
        sizes.append(size)
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(build_cache, "shrink", shrink)
    host.job["cache_bytes"] = 7000
    assert host.run()["built"] == [TOOL]
    assert [text for text in host.progress if "build cache" in text] == ([line] if line else [])
    # A run without a build does not touch the cache.
    assert (host.run()["built"], sizes) == ([], [7000])


def test_an_image_is_built_on_its_parent(host: Host) -> None:
    host.job["builds"].append(build(OTHER, parent=TOOL))
    host.run()
    assert f"--build-arg=BASE={TOOL}" in host.commands("buildx")[1]


def test_a_base_is_pulled_if_a_registry_answers(host: Host) -> None:
    del host.images[LOCAL_BASE]
    host.say = {"registry": True}
    assert host.run() == {"built": [TOOL], "recorded": [], "failed": {}}
    assert "base debian-13: pulled debian:trixie-slim" in host.progress
    assert LOCAL_BASE in host.images


def test_a_base_is_bootstrapped_if_no_registry_answers(host: Host) -> None:
    del host.images[LOCAL_BASE]
    host.job["apt_mirror"] = "http://mirror.example/debian"
    assert host.run() == {"built": [TOOL], "recorded": [], "failed": {}}
    assert host.progress[:2] == [
        "base debian-13: no registry answers, bootstrapping from apt",
        "base debian-13: bootstrapped trixie from apt",
    ]
    command = (host.root / "bootstrapped").read_text().split()
    assert "--include=ca-certificates" in command
    assert command[-1] == "http://mirror.example/debian"
    assert not list(host.folder.glob("base.tar"))


def test_a_required_registry_that_does_not_answer_is_an_error(host: Host) -> None:
    del host.images[LOCAL_BASE]
    host.job["base_source"] = "registry"
    failed = host.run()["failed"][TOOL]
    assert "cannot pull base image debian:trixie-slim: dial tcp: no route to host" in failed
    assert "'bootstrap'" in failed
    assert not (host.root / "bootstrapped").exists()


def test_the_engine_may_reach_a_registry_that_the_command_cannot_reach(host: Host) -> None:
    del host.images[LOCAL_BASE]
    host.say = {"registry": "of the engine"}
    assert host.run()["built"] == [TOOL]
    assert not (host.root / "bootstrapped").exists()


def test_a_base_without_bootstrap_needs_a_registry(host: Host) -> None:
    del host.images[LOCAL_BASE]
    host.job["builds"][0]["base"]["bootstrap"] = None
    failed = host.run()["failed"][TOOL]
    assert "base debian-13 has no key bootstrap" in failed


def test_base_source_bootstrap_contacts_no_registry(host: Host) -> None:
    del host.images[LOCAL_BASE]
    host.job["base_source"] = "bootstrap"
    host.run()
    assert not host.commands("manifest") and not host.commands("pull")


def test_secrets_are_removed_after_the_build(host: Host) -> None:
    secrets = host.folder / "secrets"
    secrets.mkdir()
    (secrets / "pip_conf").write_text("[global]\n")
    host.job["secrets"] = {"pip_conf": "secrets/pip_conf", "ca": "/does/not/exist.crt"}
    host.job["proxy"] = {"http_proxy": "http://proxy.example"}
    host.run()
    (command,) = host.commands("buildx")
    assert command[command.index("--secret") + 1] == f"id=pip_conf,src={secrets}/pip_conf"
    assert command.count("--secret") == 1
    assert "--build-arg=http_proxy=http://proxy.example" in command
    assert not secrets.exists()


def test_the_smoke_test_runs_with_few_rights(host: Host) -> None:
    host.run()
    (command,) = host.commands("run")
    for option in ("--network none", "--read-only", "--cap-drop ALL", "--user 1234:1234"):
        assert option in " ".join(command)
    assert command[-4:] == [
        "--entrypoint",
        "sh",
        f"sha256:built-{TOOL}-candidate",
        "/opt/slipway/smoke.sh",
    ]


def test_a_second_build_waits_for_the_first(host: Host) -> None:
    images_builder.LOCK.parent.mkdir()
    with images_builder.LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = threading.Thread(target=host.run)
        second.start()
        wait_for(lambda: (host.folder / "progress").exists() and bool(host.progress))
        assert host.progress == ["Waiting for another build on this host"]
        assert not host.commands()
    second.join(30)
    assert json.loads((host.folder / "result.json").read_text())["built"] == [TOOL]


def test_every_failure_has_a_result(host: Host) -> None:
    del host.job["builds"][0]["smoke"]
    assert "KeyError" in host.run()["failed"]["job"]


def test_a_command_without_end_fails() -> None:
    done = commands.run(["sh", "-c", "echo begun; exec sleep 30"], timeout=0.2)
    assert (done.returncode, done.stdout, done.stderr) == (124, "begun\n", "no end after 0 s")


def test_lines_are_reported_at_once_including_an_unfinished_last_line() -> None:
    script = "printf 'one\\ntw'; sleep 0.5; printf 'o\\nthree'"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE) as process:
        lines = list(output.read_lines(process))
    assert [line for line in lines if line is not None] == ["one", "two", "three"]
    # Without output, the caller gets None from time to time.
    assert None in lines


def wait_for(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Wait until CONDITION holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
