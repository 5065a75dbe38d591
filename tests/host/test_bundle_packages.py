# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts whose only way out is SSH get their packages from a bundle."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from ansible_collections.slipway.host.plugins.plugin_utils.bundle import reading

from lab import gpu_host, nvidia_packages
from lab.containers import container_name
from lab.host_spec import HostSpec
from lab.hosts import Group
from tests.host.conftest import DECLARED, ROOT, Site
from tools import bundle, bundle_contents

pytestmark = pytest.mark.host

ROLES = ["docker_engine", "user_access", "ml_data"]
# All of apt's files, packages and temporary folders on a host, and what listens there.
APT = "find /etc/apt /var/lib/apt /var/cache/apt -type f -printf '%p %s\\n' | sort; dpkg -l"
LEFT = "ls -d /tmp/slipway-* /var/tmp/slipway-* /var/lib/slipway/*apt* 2>/dev/null || true"
LISTENING = "ss -Hltnp | grep sshd | grep -v ':22 ' || true"


class ClosedHost:
    """The network of a host, of which everything but SSH is dropped; what leaves is counted.

    What comes is dropped too. Otherwise, each attempt of others to reach the address, such as
    the health checks of a front door whose host had it before, has an answer that counts.
    """

    def __init__(self, container: str) -> None:
        command = ["docker", "inspect", "--format", "{{.State.Pid}}", container]
        self.pid = subprocess.check_output(command, text=True).strip()
        for program in ("iptables", "ip6tables"):
            self.filter(program, "-A PREROUTING -i eth0 -p tcp ! --dport 22 -j DROP")
            self.filter(program, "-A PREROUTING -i eth0 ! -p tcp -j DROP")
            self.filter(program, "-A OUTPUT ! -o lo -p tcp --sport 22 -j ACCEPT")
            self.filter(program, "-A OUTPUT -o eth0 -j DROP")

    @property
    def inside(self) -> list[str]:
        """The words that run a command in this network: it reaches the host, and nothing else."""
        return ["nsenter", "--net", "--target", self.pid]

    def open(self) -> None:
        """Drop no packets any more."""
        for program in ("iptables", "ip6tables"):
            self.filter(program, "-F")

    def filter(self, program: str, words: str) -> str:
        command = [*self.inside, program, "-t", "raw", *words.split()]
        return subprocess.check_output(command, text=True)

    def dropped(self) -> list[str]:
        """Return the rules that dropped packets, with their number."""
        lines = [
            line
            for program in ("iptables", "ip6tables")
            for line in self.filter(program, "-nvxL OUTPUT").splitlines()
        ]
        return [line for line in lines if " DROP " in line and line.split()[0] != "0"]


@pytest.fixture(scope="module")
def group() -> Iterator[Group]:
    group = Group("pytest-packages")
    group.remove()
    yield group
    group.remove()


@pytest.fixture(scope="module", autouse=True)
def without_wheels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Make bundles without the wheels of the controller, see tests/host/test_bundle.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        patch.setattr(bundle_contents, "download_wheels", lambda python, folder: [])
        patch.setattr(
            bundle_contents,
            "download_collections",
            lambda folder: Path(shutil.copy(__file__, folder)),
        )
        yield


def make_site(group: Group, spec: HostSpec, folder: Path, roles: list[str]) -> Site:
    (folder / spec.name).mkdir(exist_ok=True)
    site = Site(group.ensure(spec), folder / spec.name)
    site.extra = {"slipway_roles": roles}
    return site


def options(site: Site) -> list[str]:
    return ["-i", str(site.inventory), "-e", json.dumps(site.extra)]


def make_bundle(site: Site, target: Path, *words: str) -> str:
    """Write a bundle with the packages of a host; return the output of apt's files there."""
    before = site.on(APT)
    for number in (1, 2):
        os.set_blocking(number, True)
    assert bundle.main([str(target), "--packages", *words, *options(site)]) == 0
    assert (site.on(APT), site.on(LEFT)) == (before, "")
    return before


def damage_package(made: Path, name: str) -> Path:
    """Return a copy of a bundle with one changed byte in a package."""
    opened = reading.open_bundle(made)
    (entry,) = (one for one in opened.manifest.files if f"/pool/{name}_" in one.path)
    content = bytearray(made.read_bytes())
    content[opened.offsets[entry.path] + entry.size // 2] ^= 1
    damaged = made.with_name("damaged.tar")
    damaged.write_bytes(content)
    return damaged


def run(
    verb: str, site: Site, made: Path, *words: str, network: ClosedHost
) -> subprocess.CompletedProcess[str]:
    """Run a command with a bundle; the controller is in the closed network too."""
    command = [str(ROOT / "slipway"), verb, "--bundle", str(made), *words, *options(site)]
    # No connection that began outside.
    with tempfile.TemporaryDirectory(prefix="cp", dir="/tmp") as control:
        environment = {**os.environ, "ANSIBLE_SSH_CONTROL_PATH_DIR": control}
        return subprocess.run(
            [*network.inside, *command],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )


def succeed(verb: str, site: Site, made: Path, *words: str, network: ClosedHost) -> str:
    done = run(verb, site, made, *words, network=network)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_host_without_a_network_is_provisioned_from_a_bundle(
    group: Group, tmp_path: Path
) -> None:
    made = tmp_path / "b.tar"
    maker, site = (
        make_site(group, HostSpec(name), tmp_path, ROLES) for name in ("maker-1", "closed-2")
    )
    words = tmp_path / "words.tar"
    subprocess.run(["tar", "-cf", words, "-C", ROOT, "LICENSE"], check=True)
    archive = {
        "name": "words",
        "url": "https://data.example.org/words.tar",
        "checksum": f"sha256:{hashlib.sha256(words.read_bytes()).hexdigest()}",
        # Without a bundle, the survey would ask the server.
        "optional": True,
    }
    for one in (maker, site):
        one.declare(**DECLARED, ml_data_archives=[archive])
    make_bundle(maker, made, "--data", str(words))
    network = ClosedHost(container_name("closed-2", group.group, group.state.path))
    sources = site.on("cd /etc/apt && find . -type f -exec sha256sum {} +")

    succeed("site", site, made, network=network)
    assert network.dropped() == []
    assert site.on("docker info --format '{{.ServerVersion}}'")
    assert site.on("head -1 /srv/shared/data/words/LICENSE").startswith("GNU GENERAL")
    assert site.on("apt-mark showhold").split() == sorted(
        ["docker-buildx", "docker-cli", "docker-compose", "docker.io", "iptables"]
    )
    assert site.on("cd /etc/apt && find . -type f -exec sha256sum {} +") == sources
    assert (site.on(LEFT), site.on(LISTENING)) == ("", "")
    again = site.run("site.yml", ml_images_bundle=str(made))
    assert (again.status, again.changed()) == ("successful", set()), again.output
    assert network.dropped() == []

    # A package that the bundle lacks is refused before any change.
    site.on("dpkg --purge docker-buildx; apt-get clean")
    site.extra = {"slipway_roles": [*ROLES, "ml_aliases"]}
    refused = site.run("site.yml", ml_images_bundle=str(made))
    assert (refused.status, refused.changed()) == ("failed", set())
    missing = "has no package bash-completion, zstd for debian-trixie-x86_64"
    assert missing in refused.output and "Nothing was changed." in refused.output

    # apt compares packages with the index. `site --bundle` refuses the file first.
    site.extra = {"slipway_roles": ROLES}
    damaged = damage_package(made, "docker-buildx")
    command_line = run("site", site, damaged, network=network)
    assert command_line.returncode == 1
    assert re.search(r"site: .*/docker-buildx_\S+ is damaged: .*Nothing was", command_line.stderr)
    failed = site.run("site.yml", ml_images_bundle=str(damaged))
    assert (failed.status, failed.changed()) == ("failed", set())
    assert "docker-buildx" in failed.output and "Hash" in failed.output
    assert site.run("site.yml", ml_images_bundle=str(made)).changed() == {
        "docker_engine: Install Docker packages"
    }
    assert (site.on(LEFT), site.on(LISTENING), network.dropped()) == ("", "", [])

    # The filter works: without a bundle, the host looks for a way out.
    site.on("getent hosts download.example.org || true")
    assert network.dropped() != []


ALL_ROLES = yaml.safe_load((ROOT / "vars/roles.yml").read_text())["slipway_roles"]
GPU_ROLES = ["nvidia_driver", "docker_engine", "nvidia_container_toolkit"]
MODEL, BASE = "8xb200", "ubuntu-like-24.04"
OLD, NEW = nvidia_packages.BRANCHES[580]
OLD_TOOLKIT, NEW_TOOLKIT = nvidia_packages.TOOLKIT_VERSIONS
SOURCES = "cd /etc/apt && ls keyrings sources.list.d && cat sources.list.d/*"


def list_functions(folder: Path) -> str:
    """Return what `lspci -n -d 10de:` prints on a simulated host."""
    lines = []
    for function in sorted((folder / "pci/bus/pci/devices").iterdir()):
        vendor, device, code = (
            (function / name).read_text().strip()[2:] for name in ("vendor", "device", "class")
        )
        if vendor == "10de":
            lines.append(f"{function.name} {code[:4]}: 10de:{device} (rev a1)")
    return "\n".join(lines)


def versions(site: Site) -> list[str]:
    """Return the versions of loaded driver, driver package and toolkit."""
    names = "libnvidia-compute-580 nvidia-container-toolkit"
    query = f"dpkg-query -W -f '${{Version}}\\n' {names}"
    return site.on(f"cat /sys/module/nvidia/version; {query}").split()


class GpuLab:
    """A GPU host without a network, and a maker without a GPU that reads vendors' repositories."""

    def __init__(self, group: Group, folder: Path, number: int, roles: list[str]) -> None:
        self.repositories = gpu_host.prepare(folder / "maker", MODEL, BASE)
        shown, archive = (self.repositories.mounts[index] for index in (0, -1))
        spec = HostSpec(f"maker-{number}", base=BASE, mounts=(shown, archive))
        self.maker = make_site(group, spec, folder, roles)
        self.old, self.new = (
            {
                **self.repositories.cuda_variables,
                "nvidia_container_toolkit_version": version,
            }
            for version in (OLD_TOOLKIT, NEW_TOOLKIT)
        )
        self.images = ["--images", "iris-api"] if "ml_images" in roles else []
        if self.images:
            self.maker.declare(**self.old)
            built = self.maker.run("site.yml", slipway_roles=["docker_engine", "ml_images"])
            assert built.status == "successful", built.output
        self.bundle = folder / "old.tar"
        self.repositories.cuda.withdraw(NEW)
        self.repositories.toolkit.withdraw(NEW_TOOLKIT)
        self.make_bundle(self.bundle, self.old)

        name = f"closed-{number + 1}"
        self.simulated = gpu_host.prepare(folder / "closed", MODEL, BASE)
        for path in self.vendors():
            path.rename(f"{path}.away")
        spec = HostSpec(name, base=BASE, mounts=self.simulated.mounts)
        self.site = make_site(group, spec, folder, roles)
        self.network = ClosedHost(container_name(name, group.group, group.state.path))
        self.sources = self.site.on(SOURCES)
        self.site.declare(**self.old)

    def vendors(self) -> list[Path]:
        """Return the files and folders on the host that stand for servers of vendors."""
        names = ("archive", "cuda", "toolkit", self.simulated.key.file.name)
        return [self.simulated.folder / name for name in names]

    def make_bundle(self, target: Path, variables: dict[str, object]) -> None:
        self.maker.declare(
            **variables,
            slipway_bundle_gpus=list_functions(self.repositories.folder),
            slipway_bundle_kernel=nvidia_packages.UBUNTU_KERNEL,
        )
        make_bundle(self.maker, target, *self.images)

    def succeed(self, verb: str, made: Path, *words: str) -> str:
        return succeed(verb, self.site, made, *words, network=self.network)

    def check(self, driver: str, toolkit: str) -> None:
        """Check the versions, and that nothing left the network and nothing is left."""
        assert versions(self.site) == [driver, f"{driver}-0ubuntu1", f"{toolkit}-1"]
        assert (self.site.on(LEFT), self.site.on(LISTENING), self.network.dropped()) == ("", "", [])


def test_a_gpu_host_without_a_network_gets_packages_of_vendors(
    group: Group, tmp_path: Path
) -> None:
    lab = GpuLab(group, tmp_path, 3, GPU_ROLES)
    site = lab.site
    lab.succeed("site", lab.bundle)
    lab.check(OLD, OLD_TOOLKIT)
    assert site.on(SOURCES) == lab.sources
    assert "no drift" in lab.succeed("plan", lab.bundle)
    # Another branch, or a version that the bundle lacks: refused before any change.
    for variables, missing in (
        ({**lab.old, "nvidia_driver_branch": "595"}, "nvidia-driver-pinning-595"),
        (lab.new, f"nvidia-container-toolkit={NEW_TOOLKIT}-1"),
    ):
        site.declare(**variables)
        refused = run("upgrade", site, lab.bundle, network=lab.network)
        assert refused.returncode != 0
        assert missing in refused.stdout and "No package was changed" in refused.stdout
    lab.check(OLD, OLD_TOOLKIT)


@pytest.mark.long
def test_everything_works_where_no_packet_leaves_the_network(group: Group, tmp_path: Path) -> None:
    """Controller and host with all roles: provisioned, upgraded, rolled back, removed."""
    lab, newer = GpuLab(group, tmp_path, 5, ALL_ROLES), tmp_path / "new.tar"
    site = lab.site
    lab.succeed("site", lab.bundle)
    lab.check(OLD, OLD_TOOLKIT)
    origin = site.on("cat /var/lib/slipway/images/slipway-iris-api-cpu.json")
    assert json.loads(origin)["origin"] == "delivered"
    assert "no drift" in lab.succeed("plan", lab.bundle)

    lab.repositories.cuda.publish(nvidia_packages.cuda_ubuntu())
    lab.repositories.toolkit.publish(nvidia_packages.toolkit())
    lab.make_bundle(newer, lab.new)
    site.declare(**lab.new)
    lab.succeed("upgrade", newer)
    lab.check(NEW, NEW_TOOLKIT)
    lab.succeed("rollback", newer)
    lab.check(OLD, OLD_TOOLKIT)
    site.declare(**lab.old)
    lab.succeed("site", newer)
    lab.succeed("verify", newer)
    lab.check(OLD, OLD_TOOLKIT)

    lab.succeed("remove", newer, "--yes")
    assert site.on("dpkg-query -W -f '${Package} ' '*nvidia*' 'docker*' 2>/dev/null || true") == ""
    assert site.on(SOURCES) == lab.sources
    assert (site.on(LEFT), site.on(LISTENING), lab.network.dropped()) == ("", "", [])
    # The filter works in the controller's network too.
    look_up = [*lab.network.inside, "ssh", "-oBatchMode=yes", "-oConnectTimeout=1", "192.0.2.1"]
    subprocess.run(look_up, check=False)
    assert lab.network.dropped() != []


@pytest.mark.long
def test_a_host_from_a_bundle_moves_to_the_sources_of_vendors(group: Group, tmp_path: Path) -> None:
    lab = GpuLab(group, tmp_path, 7, GPU_ROLES)
    site = lab.site
    lab.succeed("site", lab.bundle)
    lab.network.open()
    for path in lab.vendors():
        path.with_name(f"{path.name}.away").rename(path)
    # The stand-ins on this host have a key of their own.
    site.declare(**{**lab.old, **lab.simulated.cuda_variables})
    installed = site.on("dpkg -l; apt-mark showhold")
    planned = site.run("site.yml", "--check")
    assert planned.status == "successful", planned.output
    assert site.on(SOURCES) == lab.sources
    online = site.run("site.yml")
    assert online.status == "successful", online.output
    # The newer versions of the vendors wait for an upgrade.
    assert site.on("dpkg -l; apt-mark showhold") == installed
    assert versions(site) == [OLD, f"{OLD}-0ubuntu1", f"{OLD_TOOLKIT}-1"]
    assert "nvidia" in site.on("ls /etc/apt/sources.list.d")
    assert site.run("site.yml").changed() == set()
    assert site.run("site.yml", slipway_survey=False).changed() == set()
