# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""`./slipway images lock` with the real uv and a package index of the test."""

from __future__ import annotations

import functools
import hashlib
import http.server
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest
from ansible_collections.slipway.host.plugins.module_utils.images import locks
from ansible_collections.slipway.host.plugins.module_utils.images.assembly import TORCH_LOCK

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Project:
    """A copy of the catalogue and of the program that locks its packages."""

    folder: Path

    def lock(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the program of `./slipway images lock`."""
        return subprocess.run(
            [sys.executable, str(self.folder / "tools/lock_images.py"), *arguments],
            capture_output=True,
            text=True,
            check=False,
            # The index of the test is on this machine, not behind a proxy.
            env={**os.environ, "no_proxy": "*", "NO_PROXY": "*"},
        )

    @property
    def torch_lock(self) -> Path:
        return self.folder / "images" / TORCH_LOCK


@pytest.fixture
def project(tmp_path: Path) -> Project:
    ignored = shutil.ignore_patterns("__pycache__", TORCH_LOCK)
    for name in ("images", "tools", "collections"):
        shutil.copytree(ROOT / name, tmp_path / "project" / name, ignore=ignored)
    return Project(tmp_path / "project")


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves folders with their listings, as a package index does."""

    def log_message(self, format: str, *args: object) -> None:
        """Write no log."""


@pytest.fixture
def index(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of an index on this machine, and its folder."""
    folder = tmp_path / "index"
    folder.mkdir()
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", folder
        server.shutdown()


def wheel(folder: Path, project: str, version: str, hashed: bool = True, needs: str = "") -> str:
    """Add an empty wheel to an index; return the SHA-256 digest in the index."""
    name = f"{project}-{version}"
    path = folder / project / f"{name}-py3-none-any.whl"
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        metadata = f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n"
        if needs:
            metadata += f"Requires-Dist: {needs}\n"
        archive.writestr(f"{name}.dist-info/METADATA", metadata)
        archive.writestr(f"{name}.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{name}.dist-info/RECORD", "")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    link = f"{quote(path.name)}#sha256={digest}" if hashed else quote(path.name)
    with (path.parent / "index.html").open("a") as page:
        page.write(f'<a href="{link}">{path.name}</a>\n')
    return digest


def family() -> dict[str, str]:
    """Return the locked versions of PyTorch's packages in the catalogue."""
    pins = locks.read_pins((ROOT / "images/pytorch/requirements.lock").read_text("utf-8"))
    return {pin.name: pin.version for pin in pins if pin.name in locks.TORCH_FAMILY}


def test_wheels_for_cpus_are_locked_at_the_catalogues_versions(
    project: Project, index: tuple[str, Path]
) -> None:
    url, folder = index
    digests = [wheel(folder, name, f"{version}+cpu") for name, version in family().items()]
    wheel(folder, "torch", "99.0+cpu")
    completed = project.lock("--torch-index", url)
    assert completed.returncode == 0, completed.stderr
    text = project.torch_lock.read_text()
    pins = {pin.name: pin.version for pin in locks.read_pins(text)}
    assert pins == {name: f"{version}+cpu" for name, version in family().items()}
    assert all(digest in text for digest in digests)
    assert url not in text
    assert "unchanged" in project.lock("--torch-index", url).stdout


def test_an_index_without_the_catalogues_version_is_named(
    project: Project, index: tuple[str, Path]
) -> None:
    url, folder = index
    for name in family():
        wheel(folder, name, "0.1+cpu")
    completed = project.lock("--torch-index", url)
    assert completed.returncode == 1
    assert f"torch=={family()['torch']}" in completed.stderr
    assert not project.torch_lock.exists()


def test_an_index_with_wheels_for_gpus_is_an_error(
    project: Project, index: tuple[str, Path]
) -> None:
    url, folder = index
    for name, version in family().items():
        wheel(folder, name, version)
    completed = project.lock("--torch-index", url)
    assert completed.returncode == 1
    assert "no wheel of torch for CPUs" in completed.stderr
    assert not project.torch_lock.exists()


def add_image(project: Project, base: str, requirements: str) -> None:
    """Add the image `new` to the catalogue, built on another image."""
    folder = project.folder / "images/new"
    folder.mkdir()
    (folder / "p.in").write_text(requirements, encoding="utf-8")
    (folder / "smoke.sh").write_text("true\n", encoding="utf-8")
    (folder / "image.yml").write_text(
        f"{{title: t, description: d, licence: MIT, version: '1', base: {base}, "
        "requirements: p.in, smoke: {file: smoke.sh}}\n",
        encoding="utf-8",
    )


def test_a_conflict_names_the_image_that_pins_the_package(
    project: Project, index: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", index[0])
    wheel(index[1], "flask", "2.0")
    add_image(project, "iris-api", "flask<3\n")
    completed = project.lock("new")
    assert completed.returncode == 1
    lock = (ROOT / "images/iris-api/requirements.lock").read_text("utf-8")
    version = next(pin.version for pin in locks.read_pins(lock) if pin.name == "flask")
    sentence = f"Pinned by images below: flask=={version} (images/iris-api/requirements.lock). "
    assert sentence in completed.stderr
    assert not (project.folder / "images/new/p.lock").exists()


def test_an_older_version_than_before_is_accepted_only_by_an_option(
    project: Project, index: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", index[0])
    for version in ("0.10.1", "4.4.0"):
        wheel(index[1], "gensim", version)
    add_image(project, "debian-13", "gensim\n")
    assert project.lock("new").returncode == 0
    lock = project.folder / "images/new/p.lock"
    assert lock.read_text("utf-8").startswith("gensim==4.4.0 ")
    (project.folder / "images/new/p.in").write_text("gensim<4\n", encoding="utf-8")
    completed = project.lock("new")
    assert completed.returncode == 1
    assert (
        "images/new/p.lock: older versions than before: gensim: 4.4.0 -> 0.10.1" in completed.stderr
    )
    assert lock.read_text("utf-8").startswith("gensim==4.4.0 ")
    completed = project.lock("new", "--allow-older")
    assert completed.returncode == 0, completed.stderr
    assert lock.read_text("utf-8").startswith("gensim==0.10.1 ")


def test_an_old_release_instead_of_a_conflict_is_an_error(
    project: Project, index: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", index[0])
    wheel(index[1], "vllm", "0.5.0.post1")
    wheel(index[1], "vllm", "0.33.0", needs="flask==99")
    wheel(index[1], "flask", "2.0")
    add_image(project, "debian-13", "vllm\n")
    completed = project.lock("new")
    assert completed.returncode == 1
    sentence = "images/new/p.lock: old releases: vllm: 0.5.0.post1, available is 0.33.0; expected"
    assert sentence in completed.stderr
    assert not (project.folder / "images/new/p.lock").exists()
    (project.folder / "images/new/p.in").write_text("vllm<0.6\n", encoding="utf-8")
    assert project.lock("new").returncode == 0


def test_an_editable_package_is_refused(project: Project) -> None:
    add_image(project, "iris-api", "-e .\n")
    completed = project.lock("new")
    assert completed.returncode == 1
    assert f"{project.folder}/images/new/p.in:1: '-e .': expected the name" in completed.stderr
    assert not (project.folder / "images/new/p.lock").exists()


def test_an_index_without_hashes_is_an_error(project: Project, index: tuple[str, Path]) -> None:
    url, folder = index
    for name, version in family().items():
        wheel(folder, name, f"{version}+cpu", hashed=False)
    completed = project.lock("--torch-index", url)
    assert completed.returncode == 1
    assert "the index has no hashes of torch==" in completed.stderr
    assert not project.torch_lock.exists()
