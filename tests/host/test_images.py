# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images on a host: access to Jupyter, a new image, and rebuilt images."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.host.conftest import ROOT, Run, Site

pytestmark = pytest.mark.host

TOKEN = "a-token-that-the-test-chose"
IMAGES = ("jupyter", "iris-api", "tabular", "graphs")

# What the page tells to put into a file, and the file.
STEP = re.compile(r"`images/(tabular/[\w.]+)`.*?\n```\w*\n(.*?)```\n", re.DOTALL)
DERIVED = """
title: Tabular data tools with graphs
description: tabular with Graphviz.
licence: BSD-3-Clause
version: "1.0"
{keys}
smoke:
  file: smoke.sh
"""


class Project:
    """A copy of what makes images, for a test to change, and the host that builds them."""

    def __init__(self, site: Site, folder: Path) -> None:
        self.site = site
        self.folder = folder
        self.images = folder / "images"
        litter = shutil.ignore_patterns("__pycache__", "torch-cpu.lock")
        for name in ("images", "tools", "collections"):
            shutil.copytree(ROOT / name, folder / name, ignore=litter)

    def lock(self, name: str) -> str:
        """Do what `./slipway images lock NAME` does; return what it says."""
        done = subprocess.run(
            [sys.executable, str(self.folder / "tools/lock_images.py"), name],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def build(self, *names: str) -> Run:
        """Build images on the host, which must succeed."""
        run = self.site.run(
            "playbooks/images_build.yml",
            ml_images_present=list(names),
            ml_catalogue_folder=str(self.images),
        )
        assert run.status == "successful", run.output
        return run

    def held(self) -> dict[str, str]:
        """Return the identity of each image on the host, by its name."""
        told = self.site.on(
            "docker image ls --no-trunc --format '{{.Repository}} {{.Tag}} {{.ID}}'"
        )
        lines = [line.split() for line in told.splitlines()]
        return {
            repository.removeprefix("slipway/"): identity
            for repository, tag, identity in lines
            if tag == "cpu"
        }

    def rebuilt(self, *names: str) -> set[str]:
        """Build, and return the names of the images that are others than before."""
        before = self.held()
        self.build(*names)
        return {name for name, identity in self.held().items() if before.get(name) != identity}


@pytest.fixture(scope="module")
def project(converged: Site, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project with the image that docs/add-an-image.md makes, followed to the letter."""
    project = Project(converged, tmp_path_factory.mktemp("project"))
    page = (ROOT / "docs/add-an-image.md").read_text(encoding="utf-8")
    steps = dict(STEP.findall(page))
    assert set(steps) == {
        f"tabular/{name}" for name in ("image.yml", "requirements.in", "smoke.py")
    }
    for path, text in steps.items():
        (project.images / path).parent.mkdir(exist_ok=True)
        (project.images / path).write_text(text)
    assert "pandas: new" in project.lock("tabular")
    derive(project, "base: tabular\npackages: [graphviz]")
    project.build(*IMAGES)
    return project


def derive(project: Project, keys: str) -> None:
    """Write the image `graphs`, which stands on `tabular`."""
    folder = project.images / "graphs"
    folder.mkdir(exist_ok=True)
    (folder / "image.yml").write_text(DERIVED.format(keys=keys))
    (folder / "smoke.sh").write_text("dot -V && python -c 'import pandas'\n")


def test_a_new_folder_adds_an_image(project: Project) -> None:
    assert set(IMAGES) <= set(project.held())
    layers = "docker image inspect --format '{{json .RootFS.Layers}}' slipway/%s:cpu"
    lower, upper = (project.site.on(layers % name) for name in ("tabular", "graphs"))
    assert upper.startswith(lower.removesuffix("]"))
    bill = project.site.on("cat /var/lib/slipway/images/slipway-tabular-cpu.cdx.json")
    assert '"pkg:pypi/pandas@' in bill


def test_the_second_run_builds_nothing(project: Project) -> None:
    before = project.held()
    run = project.build(*IMAGES)
    assert not run.changed()
    assert project.held() == before


def test_a_changed_image_and_the_images_built_on_it_are_rebuilt(
    project: Project,
) -> None:
    derive(project, "base: tabular\npackages: [graphviz, tree]")
    assert project.rebuilt(*IMAGES) == {"graphs"}
    wishes = project.images / "tabular/requirements.in"
    wishes.write_text("pandas\ntabulate\n")
    project.lock("tabular")
    assert project.rebuilt(*IMAGES) == {"tabular", "graphs"}


def test_a_smoke_test_runs_again_on_the_host(project: Project) -> None:
    run = project.site.run(
        "playbooks/images_smoke.yml",
        ml_images_present=["tabular"],
        ml_catalogue_folder=str(project.images),
    )
    assert run.status == "successful", run.output
    assert "smoke: read and added up a table" in run.output


def status(url: str, token: str = "") -> int:
    request = urllib.request.Request(url)
    if token:
        request.add_header("Authorization", f"token {token}")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_jupyter_needs_the_token_and_writes_files_of_the_caller(
    project: Project,
) -> None:
    site = project.site
    container = site.on(
        "install -d -o 1234 -g 1234 /srv/notes && docker run --detach --rm --read-only "
        "--tmpfs /tmp:exec --user 1234:1234 --publish 8899:8888 --volume /srv/notes:/work "
        f"--env JUPYTER_TOKEN={TOKEN} slipway/jupyter:cpu"
    )
    try:
        health = f"docker inspect --format '{{{{.State.Health.Status}}}}' {container}"
        deadline = time.monotonic() + 60
        while site.on(health) != "healthy":
            assert time.monotonic() < deadline, site.on(f"docker logs {container} 2>&1")
            time.sleep(1)
        url = f"http://{site.host.address}:8899/api/status"
        assert [status(url), status(url, "another"), status(url, TOKEN)] == [403, 403, 200]
        site.on(f"docker exec {container} touch /work/note")
        assert site.on("stat -c %u:%g /srv/notes/note") == "1234:1234"
    finally:
        site.on(f"docker rm --force {container}; rm -rf /srv/notes")
