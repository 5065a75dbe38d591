# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images are built on one host and delivered to the other one over SSH."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.slipway.host.plugins.plugin_utils.bundle import images, reading

from lab.bases import ENGINE_BASE
from lab.host_spec import HostSpec
from lab.hosts import Group
from tests.host.conftest import ROOT, Run, Site
from tests.host.own_registry import FOLDER, PASSWORD, PATTERNS, OwnRegistry, traces, watch
from tools import bundle, bundle_contents

pytestmark = pytest.mark.host

IMAGE = """
title: Small image
description: For tests.
licence: GPL-3.0-or-later
version: "1.0"
packages: [zstd]
files:
  - {from: text, to: /srv/text}
smoke:
  file: smoke.sh
"""
REFERENCE = "slipway/small:cpu"
RECORD = "/var/lib/slipway/images/slipway-small-cpu.json"
SHARED = ("_shared", "Dockerfile.j2", "bases.yml", "bases.schema.json", "image.schema.json")
# Moments at which every test run kills a delivery, see MOMENTS.
SHORT = (("push", True), ("pull", False))


class Fleet:
    """Two hosts, and a catalogue with one small image."""

    def __init__(self, hosts: list[Site], folder: Path, control: str) -> None:
        self.builder, self.other = hosts
        self.folder, self.control = folder, Path(control)
        self.images = folder / "images"
        self.images.mkdir()
        for name in SHARED:
            source = ROOT / "images" / name
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, self.images / name)
        (self.images / "small").mkdir()
        (self.images / "small/image.yml").write_text(IMAGE)
        (self.images / "small/smoke.sh").write_text("#!/bin/sh\nzstd --version\necho smoke: well\n")
        self.write("one")
        self.builder.inventory = folder / "hosts.yml"
        self.inventory = {site.host.name: site.connection for site in hosts}
        self.declare(self.builder)

    def declare(self, site: Site, **variables: Any) -> None:
        """Set all variables of a host that are not for its connection."""
        self.inventory[site.host.name] = {**site.connection, **variables}
        inventory = yaml.safe_dump({"all": {"hosts": self.inventory}})
        self.builder.inventory.write_text(inventory)

    def write(self, text: str) -> None:
        """Change the image."""
        (self.images / "small/text").write_text(text)

    @property
    def variables(self) -> dict[str, Any]:
        return {
            "slipway_roles": ["docker_engine", "ml_images"],
            "ml_images_present": ["small"],
            "ml_catalogue_folder": str(self.images),
        }

    def run(self, *arguments: str, playbook: str = "site.yml", **extra: Any) -> Run:
        """Run a playbook on both hosts."""
        return self.builder.run(playbook, *arguments, **{**self.variables, **extra})

    def converge(self, **extra: Any) -> Run:
        run = self.run(**extra)
        assert run.status == "successful", run.output
        return run

    def contents(self) -> list[str]:
        """Return the content ID of the image on each host."""
        script = f"docker image inspect --format '{{{{.Id}}}}' {REFERENCE}"
        return [site.on(script) for site in (self.builder, self.other)]

    def origin(self, site: Site) -> str:
        return str(json.loads(site.on(f"cat {RECORD}"))["origin"])

    def left(self) -> list[str]:
        """Return what a delivery left: registries, forwarded ports, processes and sockets."""
        found = [path.name for path in self.control.glob("slipway-*")]
        for site in (self.builder, self.other):
            listening = site.on("ss -Hltnp").splitlines()
            found += [line for line in listening if "sshd" in line and ":22 " not in line]
            found += site.on("pgrep -a docker-registry || true").splitlines()
            references = "docker image ls --digests --format '{{.Repository}}@{{.Digest}}'"
            found += site.on(f"{references} | grep ^127 || true").splitlines()
            # A job whose controller was killed goes ten minutes after its end.
            jobs = "find /var/lib/slipway/builds -mindepth 1 -maxdepth 1"
            found += site.on(f"{jobs} ! -exec test -e {{}}/result.json ';' -print").splitlines()
        return found

    def kill_connections(self) -> None:
        """Kill the masters of ssh of this test; no other run has sockets in its folder."""
        masters = []
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if file.read_bytes().startswith(f"ssh: {self.control}/".encode()):
                    masters.append(int(file.parent.name))
        assert masters
        for pid in masters:
            os.kill(pid, signal.SIGKILL)

    def received_by_interface(self) -> int:
        """Return the bytes that the network interfaces of the host that pulls received."""
        counters = "/sys/class/net/e*/statistics/rx_bytes"
        return sum(map(int, self.other.on(f"cat {counters}").split()))

    def planned(self) -> str:
        """Return what plan expects of the image on the host that does not build."""
        options = ("-i", str(self.folder / "hosts.yml"), "-e", json.dumps(self.variables))
        plan = [str(ROOT / "slipway"), "plan", "--json", *options]
        done = subprocess.run(plan, capture_output=True, text=True, check=False)
        assert done.returncode == 2, done.stdout + done.stderr
        differences = json.loads(done.stdout)["other-2"]["differences"]["ml_images"]
        return str(next(one["expected"] for one in differences if one["kind"] == "images"))


def received(run: Run) -> int:
    """Return the bytes of the layers that a run delivered."""
    # Events of -vvv have no data.
    results = (event.get("event_data", {}).get("res", {}) for event in run.events)
    return sum(result.get("received", 0) for result in results if isinstance(result, dict))


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, patch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    # Short, and not that of other runs: some tests kill the connections.
    control = tempfile.mkdtemp(prefix="cp", dir="/tmp")
    patch.setenv("ANSIBLE_SSH_CONTROL_PATH_DIR", control)
    group = Group("pytest-delivery")
    group.remove()
    folder = tmp_path_factory.mktemp("delivery")
    sites = []
    for name in ("build-1", "other-2"):
        (folder / name).mkdir()
        sites.append(Site(group.ensure(HostSpec(name, base=ENGINE_BASE)), folder / name))
    yield Fleet(sites, folder, control)
    group.remove()
    shutil.rmtree(control, ignore_errors=True)


@pytest.fixture(scope="module")
def delivered(fleet: Fleet) -> set[str]:
    """Deliver the image for the first time; the addresses on which anything but sshd listened."""
    addresses: set[str] = set()
    over = threading.Event()

    def sample() -> None:
        while not over.wait(0.5):
            for site in (fleet.builder, fleet.other):
                lines = site.try_as(site.host.user, "ss -Hltn").stdout.splitlines()
                addresses.update(line.split()[3] for line in lines if ":22 " not in line)

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        fleet.converge()
    finally:
        over.set()
        sampler.join()
    return addresses


def test_one_host_builds_and_the_other_gets_the_same_content(
    fleet: Fleet, delivered: set[str]
) -> None:
    first, second = fleet.contents()
    assert first == second
    assert [fleet.origin(fleet.builder), fleet.origin(fleet.other)] == ["built", "delivered"]
    assert fleet.other.on("docker buildx du | grep -c '^[a-z0-9]\\{20\\}' || true") == "0"
    assert fleet.other.on("docker image ls --format '{{.Repository}}'") == "slipway/small"


def test_a_delivery_listens_on_loopback_only_and_leaves_nothing(
    fleet: Fleet, delivered: set[str]
) -> None:
    assert delivered
    assert {address.rpartition(":")[0] for address in delivered} == {"127.0.0.1"}
    assert fleet.left() == []


def test_a_second_run_changes_nothing(fleet: Fleet, delivered: set[str]) -> None:
    assert fleet.converge().changed() == set()


def test_only_what_changed_is_transferred(fleet: Fleet, delivered: set[str]) -> None:
    whole = int(fleet.other.on(f"docker image inspect --format '{{{{.Size}}}}' {REFERENCE}"))
    fleet.write("two")
    assert fleet.planned().endswith(", pull from build-1")
    checked = fleet.run("--check", "--diff")
    assert (checked.status, received(checked)) == ("successful", 0)
    assert ", pull from build-1" in checked.output
    before = fleet.received_by_interface()
    run = fleet.converge()
    assert 0 < received(run) < whole / 1000
    # Ansible itself sends most of it, for an image of any size: scripts, and modules of Python.
    assert fleet.received_by_interface() - before < 1_200_000
    assert len(set(fleet.contents())) == 1
    assert fleet.other.on(f"docker run --rm {REFERENCE} cat /srv/text") == "two"


def test_a_test_that_fails_on_the_other_host_keeps_its_old_image(
    fleet: Fleet, delivered: set[str]
) -> None:
    before = fleet.contents()
    fleet.write("three")
    # The smoke test of this host ends with an error, whatever image it runs.
    fleet.other.on("mv /usr/bin/docker-init /usr/bin/docker-init.away")
    try:
        run = fleet.run()
        assert run.status == "failed"
        assert "docker-init" in run.output
        built, kept = fleet.contents()
        assert (built != before[0], kept) == (True, before[1])
        assert fleet.left() == []
    finally:
        fleet.other.on("mv /usr/bin/docker-init.away /usr/bin/docker-init")
    fleet.converge()
    assert len(set(fleet.contents())) == 1


@pytest.mark.long
def test_a_host_may_build_its_own_images_or_get_them_again(
    fleet: Fleet, delivered: set[str]
) -> None:
    fleet.write("four")
    refused = fleet.run(ml_images_builder=["nobody"])
    assert refused.status == "failed"
    assert "ml_images_builder: nobody is not in the inventory" in refused.output
    fleet.converge(ml_images_builder=[])
    assert fleet.origin(fleet.other) == "built"
    fleet.write("four, delivered")
    run = fleet.run(playbook="playbooks/images_build.yml")
    assert run.status == "successful", run.output
    assert fleet.origin(fleet.other) == "delivered"


def test_a_host_builds_itself_if_no_port_is_forwarded(fleet: Fleet, delivered: set[str]) -> None:
    setting = "/etc/ssh/sshd_config.d/slipway-test.conf"
    fleet.write("five")
    fleet.builder.on(f"echo AllowTcpForwarding no >{setting}; systemctl reload ssh")
    try:
        declared = fleet.run(ml_images_builder=["build-1"])
        assert declared.status == "failed"
        assert "set AllowTcpForwarding yes" in declared.output
        run = fleet.converge()
        assert "other-2 builds the images itself" in run.output
    finally:
        fleet.builder.on(f"rm {setting}; systemctl reload ssh")
    assert fleet.origin(fleet.other) == "built"
    assert fleet.left() == []


def make_bundle(fleet: Fleet) -> Path:
    """Write a bundle with the image of the builder, which builds it first."""
    inventory = ["-i", str(fleet.folder / "hosts.yml"), "--limit", "build-1"]
    words = ["--images", "small", *inventory, "-e", json.dumps(fleet.variables)]
    # A killed ssh of another test leaves the output of pytest not blocking; ./slipway mends that.
    for number in (1, 2):
        os.set_blocking(number, True)
    assert bundle.main([str(fleet.folder / "b.tar"), *words]) == 0
    assert fleet.left() == []
    return fleet.folder / "b.tar"


def damage_layers(path: Path) -> None:
    """Change one byte of each layer in a bundle."""
    opened = reading.open_bundle(path)
    entries = {entry.path: entry for entry in opened.manifest.files}
    (described,) = json.loads(opened.read(entries[images.INDEX]))["manifests"]
    manifest = json.loads(opened.read(entries[images.blob_path(described["digest"])]))
    content = bytearray(path.read_bytes())
    for layer in manifest["layers"]:
        entry = entries[images.blob_path(layer["digest"])]
        content[opened.offsets[entry.path] + entry.size // 2] ^= 1
    path.write_bytes(content)


def test_images_come_from_a_bundle_and_nothing_is_built(
    fleet: Fleet, delivered: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without the wheels of the controller, see tests/host/test_bundle.py.
    monkeypatch.setenv("XDG_STATE_HOME", str(fleet.folder / "state"))
    monkeypatch.setattr(bundle_contents, "download_wheels", lambda python, folder: [])
    monkeypatch.setattr(
        bundle_contents, "download_collections", lambda folder: Path(shutil.copy(__file__, folder))
    )
    # The other host has the layers of the builder, also if it built the images itself before.
    fleet.write("before the bundle")
    fleet.converge()
    assert fleet.origin(fleet.other) == "delivered"
    fleet.write("first bundle")
    made = str(make_bundle(fleet))
    assert 0 < received(fleet.converge(ml_images_bundle=made)) < 10000
    first, second = fleet.contents()
    assert first == second
    record = json.loads(fleet.other.on(f"cat {RECORD}"))
    assert (record["origin"], record["builder"]) == ("delivered", "bundle b.tar")
    assert fleet.other.on(f"docker run --rm {REFERENCE} cat /srv/text") == "first bundle"
    assert fleet.left() == []
    assert fleet.converge(ml_images_bundle=made).changed() == set()

    # The catalogue has changed since: refused before any change.
    fleet.write("second bundle")
    refused = fleet.run(ml_images_bundle=made)
    assert refused.status == "failed"
    assert f"b.tar has no image {REFERENCE} of this catalogue" in refused.output
    assert refused.changed() == set()

    # The engine compares the digests of layers. `site --bundle` refuses the file first.
    damage_layers(make_bundle(fleet))
    assert fleet.run(ml_images_bundle=made).status == "failed"
    assert fleet.contents()[1] == second
    assert fleet.left() == []
    command = [str(ROOT / "slipway"), "site", "--bundle", made, "-i", "none"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.search(r"site: .*images/blobs/sha256/\w+ is damaged: .*Nothing was", done.stderr)


@pytest.mark.long
def test_a_declared_builder_is_in_the_first_batch(fleet: Fleet, delivered: set[str]) -> None:
    fleet.write("rolling")
    run = fleet.converge(slipway_serial=1, ml_images_builder=["other-2"])
    assert [fleet.origin(fleet.builder), fleet.origin(fleet.other)] == ["delivered", "built"]
    assert run.output.count("PLAY [Apply roles to hosts with drift]") == 2


def test_a_held_builder_stays_as_it_is(fleet: Fleet, delivered: set[str]) -> None:
    fleet.write("held")
    before = fleet.contents()
    fleet.declare(fleet.builder, slipway_hold="disk swap")
    try:
        refused = fleet.run(ml_images_builder=["build-1"])
        assert refused.status == "failed"
        assert "ml_images_builder: build-1 is held: disk swap" in refused.output
        assert fleet.contents() == before
        fleet.converge()
        assert fleet.contents()[0] == before[0]
        assert fleet.origin(fleet.other) == "built"
    finally:
        fleet.declare(fleet.builder)
    # Released, the host builds for itself: the other one already has the image.
    fleet.converge()
    for site in (fleet.builder, fleet.other):
        assert site.on(f"docker run --rm {REFERENCE} cat /srv/text") == "held"


def test_a_host_without_disk_space_fails_alone(fleet: Fleet, delivered: set[str]) -> None:
    folder = "/var/lib/docker"
    fleet.write("six")
    engine = "docker.service docker.socket"
    fleet.other.on(
        f"systemctl stop {engine}; mount -t tmpfs -o size=24m full {folder}; systemctl start docker"
    )
    try:
        run = fleet.run()
    finally:
        fleet.other.on(f"systemctl stop {engine}; umount {folder}; systemctl start docker")
    assert (run.status, set(run.stats["failures"])) == ("failed", {"other-2"})
    assert re.search(rf"no space in {folder}: found [0-9.]+ MB free; expected at least", run.output)
    assert fleet.builder.on(f"docker run --rm {REFERENCE} cat /srv/text") == "six"
    assert fleet.left() == []
    fleet.converge()
    assert len(set(fleet.contents())) == 1


@pytest.mark.long
def test_hosts_with_other_stores_of_the_engine_agree(fleet: Fleet, delivered: set[str]) -> None:
    def layers() -> list[str]:
        script = f"docker image inspect --format '{{{{json .RootFS.Layers}}}}' {REFERENCE}"
        return [site.on(script) for site in (fleet.builder, fleet.other)]

    for position, site in enumerate((fleet.other, fleet.builder)):
        fleet.declare(site, docker_engine_settings={"features": {"containerd-snapshotter": True}})
        fleet.write(f"store {position}")
        fleet.converge()
        assert "containerd" in site.on("docker info --format '{{json .DriverStatus}}'")
        assert len(set(layers())) == 1
        assert fleet.converge().changed() == set()
        assert [fleet.origin(fleet.builder), fleet.origin(fleet.other)] == ["built", "delivered"]
        assert fleet.left() == []
        # The images of the other store are gone, or old ones return: a change of store needs a
        # further run if the catalogue is the same.
        fleet.declare(site)
        fleet.write(f"ordinary store {position}")
        fleet.converge()


# Prints the first line that the registry answers while it takes images, without a password.
ASK = "exec 3<>/dev/tcp/127.0.0.1/15055; printf 'GET /v2/ HTTP/1.0\\r\\n\\r\\n' >&3; head -n1 <&3"
# Moments of a delivery: the host, and a command that succeeds from then on.
MOMENTS = {
    "before the registry": ("builder", "grep -qs lease /var/lib/slipway/builds/*/job.json"),
    "push": ("builder", f"bash -c {shlex.quote(ASK)} 2>/dev/null | grep HTTP"),
    "before the pull": ("builder", "test -e /run/slipway-registry/port"),
    "pull": ("other", "pgrep -f '[d]ocker pull'"),
    "before the tag": ("other", "docker image ls --digests | grep '^127'"),
}


@pytest.mark.parametrize(
    ("moment", "with_connections"),
    [
        pytest.param(
            moment,
            connections,
            # The others cost a minute each.
            marks=() if (moment, connections) in SHORT else pytest.mark.long,
            id=f"{moment}{', with connections' if connections else ''}",
        )
        for moment in MOMENTS
        for connections in (False, True)
    ],
)
def test_the_next_run_finishes_a_delivery_that_was_killed(
    fleet: Fleet, delivered: set[str], moment: str, with_connections: bool
) -> None:
    name, condition = MOMENTS[moment]
    site: Site = getattr(fleet, name)
    text = f"{moment} {with_connections}"
    fleet.write(text)
    watch = site.host.ssh_command("sudo", "sh", "-c", f"until {condition}; do sleep 0.01; done")
    command = ["ansible-playbook", "site.yml", "-i", str(fleet.folder / "hosts.yml")]
    with subprocess.Popen(
        [*command, "-e", json.dumps(fleet.variables)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        seen = subprocess.run(watch, capture_output=True, text=True, check=True, timeout=300)
        assert process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        if with_connections:
            fleet.kill_connections()
    if moment == "push":
        assert " 401 " in seen.stdout
    fleet.converge()
    assert len(set(fleet.contents())) == 1
    assert fleet.other.on(f"docker run --rm {REFERENCE} cat /srv/text") == text
    assert fleet.left() == []
    assert fleet.converge().changed() == set()


def test_images_come_from_a_registry_of_ones_own(fleet: Fleet, delivered: set[str]) -> None:
    own = OwnRegistry(fleet.builder, fleet.folder)
    sites, folder = (fleet.builder, fleet.other), f"/etc/docker/certs.d/{own.server}"
    fleet.write("own registry")
    before = fleet.contents()
    fleet.declare(fleet.builder, **own.option(password="wrong"))
    fleet.declare(fleet.other, **own.option(ca=own.other))
    refused = fleet.run()
    assert set(refused.stats["failures"]) == {"build-1", "other-2"}
    assert refused.changed() == set()
    reasons = {
        "build-1": f"login to the registry {own.server} failed: login of 'fleet' refused (401)",
        "other-2": f"certificate of the registry {own.server}: self-signed certificate",
    }
    for event in refused.events:
        if event["event"] == "runner_on_failed":
            message = event["event_data"]["res"]["msg"]
            assert message.startswith(reasons.pop(event["event_data"]["host"]))
            assert re.search(r"; expected .*\. Correct .*\. Nothing was changed\.$", message)
    assert reasons == {}

    # A user has his own certificate and tag for the same registry.
    fleet.builder.on(f"mkdir -p {folder}; cp {FOLDER}/tls.crt {folder}/ca.crt")
    own.push_as_ana(REFERENCE, "team/small:cpu")
    tags = own.manifests()
    for site in sites:
        fleet.declare(site, **own.option())
        watch(site)
    assert fleet.planned().endswith(f", pull from {own.server}")
    run = fleet.run("-vvv", "--diff")
    assert run.status == "successful", run.output
    assert f", pull from {own.server}" in run.output
    assert 0 < received(run) < 10000
    first, second = fleet.contents()
    assert first == second != before[1]
    assert fleet.origin(fleet.other) == "delivered"
    assert fleet.left() == []
    assert [traces(site) for site in sites] == [[PATTERNS], [PATTERNS]]
    assert PASSWORD not in run.output + json.dumps(run.events, default=str)
    names = "docker image ls --format '{{.Repository}}:{{.Tag}}' | grep -v ^slipway/ || true"
    assert [site.on(names) for site in sites] == [f"{own.server}/team/small:cpu", ""]
    assert tags in own.manifests()
    assert "/team/slipway/small/" in own.manifests()

    own.stop()
    assert fleet.converge().changed() == set()
    for site in sites:
        fleet.declare(site)
    removed = fleet.converge().changed()
    assert removed == {"ml_images: Update files of images"}
    assert [site.on(f"ls {folder}") for site in sites] == ["ca.crt", ""]
