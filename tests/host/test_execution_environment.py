# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The execution environment for AWX, made by ansible-builder, provisions a host.

ansible-runner starts it as AWX does, except that AWX uses Kubernetes or podman.
"""

from __future__ import annotations

import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from lab.containers import container_name
from lab.host_spec import HostSpec
from lab.hosts import Group
from tests.contract.tree import tracked_files
from tests.host.conftest import ROOT, Site

pytestmark = [pytest.mark.host, pytest.mark.long]

TOOL = [str(Path(sys.executable).parent / "uv"), "tool", "run"]
IMAGE = "slipway-pytest-ee"
# The base that the tests have: with the CAs of this machine, by which pip reaches its index.
BASE = """\
FROM {image}
COPY bundle.pem /etc/ssl/certs/ca-certificates.crt
ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt
"""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    group = Group("pytest-ee")
    group.remove()
    site = Site(group.ensure(HostSpec("ee-1")), tmp_path)
    name = container_name("ee-1", group.group, group.state.path)
    inspect = ["docker", "inspect", "--format", "{{.Config.Image}}", name]
    image = subprocess.check_output(inspect, text=True).strip()
    base = tmp_path / "base"
    base.mkdir()
    (base / "Dockerfile").write_text(BASE.format(image=image))
    shutil.copy(ssl.get_default_verify_paths().cafile or "", base / "bundle.pem")
    build(f"{IMAGE}-base", base)
    yield site
    group.remove()
    subprocess.run(["docker", "rmi", "-f", IMAGE, f"{IMAGE}-base"], check=True)


def build(image: str, context: Path, *words: str) -> None:
    subprocess.run(["docker", "build", "--tag", image, *words, str(context)], check=True)


def make_job(site: Site) -> Path:
    """Return the private folder of a job: the project, and an inventory with a key."""
    job = site.folder / "job"
    for file in tracked_files():
        target = job / "project" / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    keys = job / "project/keys"
    keys.mkdir()
    shutil.copy(site.host.private_key_file, keys / "id")
    shutil.copy(site.host.known_hosts_file, keys / "known_hosts")
    connection = {
        **site.connection,
        "ansible_ssh_private_key_file": "/runner/project/keys/id",
        "ansible_ssh_common_args": "-o UserKnownHostsFile=/runner/project/keys/known_hosts",
    }
    (job / "inventory").mkdir()
    hosts = {"all": {"hosts": {"ee-1": connection}}}
    (job / "inventory/hosts.yml").write_text(yaml.safe_dump(hosts))
    (job / "env").mkdir()
    (job / "env/extravars").write_text(yaml.safe_dump({"slipway_roles": ["docker_engine"]}))
    return job


def run(job: Path, *words: str) -> str:
    command = [
        *TOOL,
        *("--from", "ansible-runner==2.4.3", "ansible-runner", "run", str(job), *words),
        *("--process-isolation", "--process-isolation-executable", "docker"),
        *("--container-image", IMAGE),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_environment_is_built_and_provisions_a_host(site: Site) -> None:
    context = site.folder / "context"
    definition = ROOT / "tools/execution-environment.yml"
    command = ["--from", "ansible-builder==3.2.0", "ansible-builder", "create", "-c", str(context)]
    words = [*command, "-f", str(definition), "--output-filename", "Dockerfile"]
    subprocess.run([*TOOL, *words], check=True)
    build(IMAGE, context, "--build-arg", f"EE_BASE_IMAGE={IMAGE}-base")
    job = make_job(site)
    assert "OK: 1 host as declared" in run(job, "-p", "site.yml")
    assert site.on("docker info --format '{{.OSType}}'") == "linux"
    assert "no drift" in run(job, "-p", "site.yml")
    assert "ok  engine: Docker Engine" in run(job, "-p", "playbooks/verify.yml")
