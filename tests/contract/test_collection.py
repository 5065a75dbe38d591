# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The collection file of `./slipway build-collection`, and the changelog in it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.slipway.host.plugins.plugin_utils import roles

from tests.contract.tree import ROLE_IDS, ROOT, load, text, tracked_files
from tools import build_collection, sanity

VERSION = load(build_collection.SOURCE / "galaxy.yml")["version"]
NAME = f"slipway-host-{VERSION}.tar.gz"
VERBS = ("site", "plan", "verify", "upgrade", "rollback")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built collection file."""
    return build_collection.build(tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="module")
def tree(file: Path) -> Path:
    """The unpacked file, in a collections folder."""
    tree = file.parent / "ansible_collections/slipway/host"
    with tarfile.open(file) as archive:
        archive.extractall(tree, filter="data")
    return tree


def names(folder: Path) -> set[str]:
    """Return the files below a folder, relative to it."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_file_has_the_name_that_the_readme_installs(file: Path) -> None:
    assert file.name == NAME
    assert f"ansible-galaxy collection install {NAME}\n" in text(ROOT / "README.md")


@pytest.mark.parametrize("folder", ["roles", "images", "vars"])
def test_a_folder_of_the_project_is_complete(tree: Path, folder: str) -> None:
    tracked = (path for path in tracked_files() if path.is_relative_to(ROOT / folder))
    assert names(tree / folder) == {str(path.relative_to(ROOT / folder)) for path in tracked}


def test_images_have_the_content_and_the_mode_of_the_project(tree: Path) -> None:
    """Both are part of the context digest of an image."""
    for name in names(tree / "images"):
        built, source = tree / "images" / name, ROOT / "images" / name
        assert built.read_bytes() == source.read_bytes(), name
        assert os.access(built, os.X_OK) == os.access(source, os.X_OK), name


def test_every_playbook_that_needs_no_tool_is_there(tree: Path) -> None:
    found = {path.stem for path in (tree / "playbooks").glob("*.yml")}
    own = {path.stem for path in (ROOT / "playbooks").glob("*.yml")}
    assert found == {"site", *own} - {"demo", "demo_destroy", "export"}


def test_ansible_finds_the_playbooks_and_their_roles(tree: Path, tmp_path: Path) -> None:
    playbooks = (path.stem for path in (tree / "playbooks").glob("*.yml"))
    environment = {key: value for key, value in os.environ.items() if key[:8] != "ANSIBLE_"}
    done = subprocess.run(
        [
            *("ansible-playbook", "--list-tasks", "-i", "a,"),
            *(f"slipway.host.{name}" for name in playbooks),
        ],
        cwd=tmp_path,
        env={**environment, "ANSIBLE_COLLECTIONS_PATH": str(tree.parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # Imported roles are read by --list-tasks.
    assert "slipway.host.host_verify : " in done.stdout
    assert "slipway.host.ml_images : " in done.stdout


def test_roles_are_found_beside_the_plugins(tree: Path) -> None:
    assert roles.find_roles_path(tree)[0] == str(tree / "roles")
    assert roles.find_roles_path(build_collection.SOURCE)[0] == str(ROOT / "roles")


def test_roles_path_is_a_list_of_folders_without_templates(tmp_path: Path) -> None:
    program = (
        "from ansible_collections.slipway.host.plugins.plugin_utils import roles\n"
        "print(*roles.ROLES_PATH, *roles.all_names())"
    )
    (tmp_path / "ansible.cfg").write_text("", encoding="utf-8")
    environment = {key: value for key, value in os.environ.items() if key[:8] != "ANSIBLE_"}
    shown = subprocess.run(
        ["python", "-c", program],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(ROOT / "collections"), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "{{" not in shown
    assert f"{tmp_path}/.ansible/roles" in shown.split()
    assert {*ROLE_IDS} <= {*shown.split()}


def test_messages_name_commands_that_are_installed(tree: Path) -> None:
    left = [
        f"{name}: {command}"
        for part in ("playbooks", "plugins", "roles")
        for name in names(tree / part)
        for command in re.findall(r"\./slipway [a-z]+(?: [a-z]+| --\w+)?", text(tree / part / name))
        if not command.endswith((" --help", "images lock"))
    ]
    assert [command for command in left if command.split()[2] in (*VERBS, "images")] == []
    message = text(tree / "playbooks/verify.yml")
    assert "ansible-playbook slipway.host.plan" in message
    for name in re.findall(r"slipway\.host\.(\w+) --limit", text(tree / "playbooks/upgrade.yml")):
        assert (tree / f"playbooks/{name}.yml").is_file()


def test_links_of_the_roles_pages_lead_somewhere(tree: Path) -> None:
    for page in (tree / "roles").glob("*/README.md"):
        links = re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", text(page))
        assert [link for link in links if not (page.parent / link).exists()] == [], page


def test_ignored_findings_of_ansible_test_are_about_files_that_exist(tree: Path) -> None:
    entries = sanity.ignored("3.13")
    assert ("plugins/plugin_utils/bytecode_cache.py", "import-3.13") in entries
    assert [path for path, _test in entries if not (tree / path).is_file()] == []
    # Galaxy reports each ignored finding.
    assert not (tree / "tests/sanity").exists()


def test_digests_are_right(tree: Path) -> None:
    def digest(path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    manifest = json.loads(text(tree / "MANIFEST.json"))
    assert manifest["file_manifest_file"]["chksum_sha256"] == digest(tree / "FILES.json")
    entries = json.loads(text(tree / "FILES.json"))["files"]
    listed = {one["name"]: one["chksum_sha256"] for one in entries if one["ftype"] == "file"}
    assert {*listed} == names(tree) - {"MANIFEST.json", "FILES.json"}
    assert all(digest(tree / name) == expected for name, expected in listed.items())


def test_the_same_source_gives_the_same_bytes(file: Path, tmp_path: Path) -> None:
    umask = os.umask(0o077)
    try:
        again = build_collection.build(tmp_path)
    finally:
        os.umask(umask)
    assert again.read_bytes() == file.read_bytes()


def test_a_moved_path_of_site_yml_is_named() -> None:
    with pytest.raises(build_collection.BuildError, match=r"look\.yml not found"):
        build_collection._replace_paths("- import_playbook: look.yml\n")


def test_a_broken_catalogue_is_not_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(ROOT / "images", tmp_path / "images")
    with (tmp_path / "images/iris-api/image.yml").open("a") as declaration:
        declaration.write("unknown: 1\n")
    monkeypatch.setattr(build_collection, "ROOT", tmp_path)
    assert build_collection.main(["--output", str(tmp_path)]) == 1
    assert "iris-api/image.yml" in capsys.readouterr().err
    assert list(tmp_path.glob("*.gz")) == []


# Metadata.


def empty_fields() -> Iterator[str]:
    """Yield the addresses of galaxy.yml that are empty; Galaxy refuses an empty repository."""
    galaxy = load(build_collection.SOURCE / "galaxy.yml")
    for field in ("repository", "documentation", "homepage", "issues"):
        if not galaxy.get(field):
            yield field


def test_galaxy_yml_is_complete_and_has_the_version_of_the_project() -> None:
    assert list(empty_fields()) == []
    assert f'\nversion = "{VERSION}"\n' in text(ROOT / "pyproject.toml")


def test_the_collection_requires_what_pyproject_requires() -> None:
    (required,) = text(build_collection.SOURCE / "meta/requirements.txt").splitlines()
    assert f'"{required}",' in text(ROOT / "pyproject.toml")


def test_the_changelog_has_every_fragment(tmp_path: Path) -> None:
    galaxy = build_collection.SOURCE.relative_to(ROOT) / "galaxy.yml"
    for name in ("changelogs", "tools/changelog.sh", galaxy):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name)
        else:
            shutil.copy(ROOT / name, tmp_path / name)
    subprocess.run(["sh", tmp_path / "tools/changelog.sh"], check=True, capture_output=True)
    remedy = "CHANGELOG.md is out of date: ./slipway run tools/changelog.sh"
    assert text(tmp_path / "CHANGELOG.md") == text(ROOT / "CHANGELOG.md"), remedy
