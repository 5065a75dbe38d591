# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command ./slipway bundle: contents, identical bytes, and what setup takes from a bundle."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.plugin_utils.bundle import archive
from ansible_collections.slipway.host.plugins.plugin_utils.bundle.manifest import BundleError
from ansible_collections.slipway.host.plugins.plugin_utils.bundle.reading import open_bundle

from tools import bundle, bundle_contents, bundle_setup, install_collections, with_bundle

RUNNING = bundle.RUNNING
HASHES_OF_LOCKS = bundle_setup.read_hashes
OTHER = "3.14" if RUNNING != "3.14" else "3.13"

LOCK = """\
a==1 \\
    --hash=sha256:aa \\
    --hash=sha256:ab
    # via b
b[x]==2 ; python_full_version < '3.12' \\
    --hash=sha256:ba
b==3 ; python_full_version >= '3.12' \\
    --hash=sha256:bb
    # via
    #   a
c==4 ; sys_platform == 'win32' \\
    --hash=sha256:ca
"""


@pytest.fixture(autouse=True)
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the package index: a wheel for each Python, one for all, and collections."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def write(folder: Path, *names: str) -> list[Path]:
        folder.mkdir()
        for name in names:
            (folder / name).write_bytes(name.encode() * 300)
        return sorted(folder.iterdir())

    def wheels(python: str, folder: Path) -> list[Path]:
        return write(folder / python, f"a-1-cp{python}.whl", "pip-1-py3-none-any.whl")

    def collections(folder: Path) -> Path:
        return write(folder / "collections", "ansible-1.whl")[0]

    names = [f"a-1-cp{version}.whl" for version in bundle.PYTHONS]
    contents = [name.encode() * 300 for name in (*names, "pip-1-py3-none-any.whl", "ansible-1.whl")]
    hashes = {hashlib.sha256(content).hexdigest() for content in contents}
    monkeypatch.setattr(bundle_setup, "read_hashes", lambda: hashes)
    monkeypatch.setattr(bundle_contents, "download_wheels", wheels)
    monkeypatch.setattr(bundle_contents, "download_collections", collections)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    assert bundle.main([str(tmp_path / "b.tar"), "--python", OTHER]) == 0
    return tmp_path / "b.tar"


@pytest.mark.parametrize(
    ("python", "lines"),
    [
        ("3.11", ["a==1 --hash=sha256:aa --hash=sha256:ab", "b[x]==2 --hash=sha256:ba"]),
        ("3.14", ["a==1 --hash=sha256:aa --hash=sha256:ab", "b==3 --hash=sha256:bb"]),
    ],
)
def test_packages_are_those_for_the_requested_python(python: str, lines: list[str]) -> None:
    assert bundle_contents.pick_requirements(LOCK, python).splitlines() == lines


def test_each_package_of_the_lock_keeps_all_hashes() -> None:
    lock = bundle_contents.LOCK.read_text()
    picked = [bundle_contents.pick_requirements(lock, python) for python in bundle.PYTHONS]
    hashes = {word for text in picked for word in text.split() if word.startswith("--hash")}
    only_windows = lock.partition("\ncolorama==")[2].partition("# via")[0]
    left_out = only_windows.count("--hash")
    assert left_out and len(hashes) == lock.count("--hash") - left_out


def test_two_bundles_of_the_same_inputs_are_identical(made: Path) -> None:
    first = {path.name: path.read_bytes() for path in made.parent.iterdir() if path.is_file()}
    assert set(first) == {"b.tar", "b.tar.pub"}
    assert bundle.main([str(made), "--python", OTHER]) == 0
    assert first == {p.name: p.read_bytes() for p in made.parent.iterdir() if p.is_file()}


def test_data_is_in_a_bundle_by_its_checksum(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive, target = made.with_name("words.tar"), made.with_name("d.tar")
    archive.write_bytes(b"words" * 1000)
    assert bundle.main([str(target), "--data", str(archive), "--data", str(archive)]) == 0
    opened = open_bundle(target)
    (entry,) = (one for one in opened.manifest.files if one.kind == "data")
    assert entry.path == f"data/{hashlib.sha256(archive.read_bytes()).hexdigest()}"
    assert opened.read(entry) == archive.read_bytes()
    newer = made.with_name("e.tar")
    assert bundle.main([str(newer), "--data", str(archive), "--since", str(target)]) == 0
    assert newer.stat().st_size < target.stat().st_size - 5000
    for wrong in (made.parent, made.with_name("none")):
        assert bundle.main([str(target), "--data", str(wrong)]) == 1
        assert f"{wrong}: " in capsys.readouterr().err


def test_a_bundle_lists_project_wheels_and_locks(made: Path) -> None:
    manifest = open_bundle(made).manifest
    assert [entry.path for entry in manifest.files if entry.kind != "wheel"] == [
        *("project.tar", "project.tar.sig")
    ]
    assert manifest.controller["wheels"][OTHER] == [
        *(f"wheels/a-1-cp{OTHER}.whl", "wheels/ansible-1.whl", "wheels/pip-1-py3-none-any.whl")
    ]
    assert manifest.controller["locks"] == bundle_setup.digest_locks()
    assert sorted(manifest.requested["python"]) == sorted({RUNNING, OTHER})


def test_a_difference_has_only_new_files(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = made.with_name("new.tar")
    assert bundle.main([str(new), "--since", str(made)]) == 0
    assert "new.tar has only the differences: keep b.tar beside it" in capsys.readouterr().out
    assert new.stat().st_size < made.stat().st_size
    assert bundle.main(["--verify", str(new)]) == 0
    assert "match, 3 of them in b.tar; signed with SHA256:" in capsys.readouterr().out
    stored = {entry.path for entry in open_bundle(new).manifest.files if not entry.omitted}
    assert stored == {"project.tar", "project.tar.sig"}


def test_an_older_bundle_is_checked_before_anything_is_written(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bundle.main([str(made), "--since", f"{made.parent}/./b.tar"]) == 1
    assert "b.tar is a bundle that OUT would need; expected" in capsys.readouterr().err
    second = made.with_name("2.tar")
    assert bundle.main([str(second), "--since", str(made)]) == 0
    assert bundle.main([str(made), "--since", str(second)]) == 1
    open_bundle(second).check()
    strange = made.with_name("my bundle.tar")
    strange.write_bytes(made.read_bytes())
    assert bundle.main([f"{made.parent}/new.tar", "--since", str(strange)]) == 1
    assert "name 'my bundle.tar' of the older bundle; expected letters" in capsys.readouterr().err
    wheel = f"a-1-cp{OTHER}.whl".encode() * 300
    strange.rename(made.with_name("damaged.tar"))
    made.with_name("damaged.tar").write_bytes(made.read_bytes().replace(wheel, wheel[::-1]))
    assert bundle.main([f"{made.parent}/new.tar", "--since", f"{made.parent}/damaged.tar"]) == 1
    assert "is damaged" in capsys.readouterr().err
    assert list(made.parent.glob("new.tar*")) == []


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), OSError(28, "No space", "x")])
def test_an_error_of_a_disk_has_the_usual_form(
    made: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: OSError,
) -> None:
    def fail(*_words: object) -> str:
        raise error

    monkeypatch.setattr(archive, "copy", fail)
    name = error.filename or str(made)
    form = rf"{name}: {error.strerror}; expected a file .*\. Check "
    for main, words in (
        (bundle.main, [str(made)]),
        (bundle.main, ["--verify", str(made)]),
        (bundle_setup.main, [str(made), f"{made.parent}/wheels"]),
    ):
        assert main(words) == 1
        assert re.search(form, capsys.readouterr().err)
    with pytest.raises(SystemExit, match=f"site: {form}"):
        with_bundle.main(["site", "--bundle", str(made)])


@pytest.mark.parametrize("name", ["{{ x }}", "{% x %}", "{# x"])
def test_a_path_that_ansible_would_evaluate_is_refused(
    made: Path,
    name: str,
    program: Callable[[str, str], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = made.parent / name
    folder.mkdir()
    program("ansible-playbook", f"touch {made.parent}/ran")
    started: list[object] = []
    monkeypatch.setattr(os, "execv", lambda *words: started.append(words))
    for words in (["--bundle", f"{folder}/b"], ["--bundle", str(made), "--signer", f"{folder}/k"]):
        with pytest.raises(SystemExit, match=r"site: .* in a name; expected .*\. Rename the"):
            with_bundle.main(["site", *words])
    for words in ([f"{folder}/new.tar", "--images", "a"], [str(made), "--images", name]):
        assert bundle.main(words) == 1
        assert "in a name; expected a name that" in capsys.readouterr().err
    assert started == [] and not (made.parent / "ran").exists() and list(folder.iterdir()) == []


def test_a_difference_of_a_difference_is_complete(made: Path) -> None:
    second, third = made.with_name("2.tar"), made.with_name("3.tar")
    assert bundle.main([str(second), "--since", str(made)]) == 0
    assert bundle.main([str(third), "--since", str(second), "--python", OTHER]) == 0
    open_bundle(third).check()
    made.unlink()
    with pytest.raises(BundleError, match=r"bundle b\.tar: not found"):
        open_bundle(third).check()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--verify", "none.tar"], "cannot open none.tar: No such file or directory; expected "),
        (["--verify", "."], "cannot open .: Is a directory; expected a bundle"),
        (["no/folder/b.tar"], "folder no/folder: not found; expected it. Create it first."),
        (["b.tar", "--key", "none"], "ssh-keygen: "),
        (["b.tar", "--since", "none.tar"], "cannot open none.tar"),
    ],
)
def test_errors_of_the_command(
    words: list[str],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert bundle.main(words) == 1
    assert f"bundle: {reason}" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir() if path.name != "state"] == []


def test_a_failed_download_keeps_the_former_bundle(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(python: str, folder: Path) -> list[Path]:
        raise BundleError("no index")

    former = made.read_bytes()
    monkeypatch.setattr(bundle_contents, "download_wheels", fail)
    assert bundle.main([str(made)]) == 1
    assert made.read_bytes() == former
    assert list(made.parent.glob(".bundle-*")) == []


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["b.tar", "--pyton", "3.11"], "unknown option --pyton; expected one of --help"),
        (["--images", "a", "-i", "hosts.yml", "b.tar"], "OUT is not the first argument"),
        ([], "no OUT or --verify FILE"),
        (["b.tar", "--verify", "c.tar"], "no OUT or --verify FILE"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    words: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        bundle.main(words)
    assert raised.value.code == 2
    assert reason in capsys.readouterr().err


def test_images_are_copied_from_the_hosts_of_the_inventory(
    tmp_path: Path,
    program: Callable[[str, str], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layout = '$(printf \'%s\' "$3" | sed \'s/.*bundle_layout": "\\([^"]*\\)".*/\\1/\')'
    program(
        "ansible-playbook",
        f'echo "$*" >{tmp_path}/words; mkdir -p {layout}/blobs/sha256; '
        f"echo 1 >{layout}/index.json; echo 2 >{layout}/oci-layout; "
        f"echo 3 >{layout}/blobs/sha256/a",
    )
    out = tmp_path / "b.tar"
    assert bundle.main([str(out), "--images", "b,a", "-i", "hosts.yml", "--limit", "x"]) == 0
    words = (tmp_path / "words").read_text()
    assert words.startswith("playbooks/bundle_images.yml -e ")
    monkeypatch.chdir(tmp_path)
    assert bundle.main(["./b.tar", "--images", "b,a", "-i", "hosts.yml", "--limit", "x"]) == 0
    assert '"ml_images_present": ["a", "b"]' in words
    assert words.endswith(" -i hosts.yml --limit x\n")
    manifest = open_bundle(out).manifest
    assert [entry.path for entry in manifest.files if entry.kind == "image"] == [
        *("images/blobs/sha256/a", "images/index.json", "images/oci-layout")
    ]
    program("ansible-playbook", "exit 4")
    assert bundle.main([str(out), "--images", "a"]) == 1
    assert "cannot copy the images a: ansible-playbook ended with 4" in capsys.readouterr().err


def test_site_checks_the_whole_bundle_before_a_run(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _name, words: started.append(words))
    with_bundle.main(["site", "--limit", "gpu01", "--bundle", str(made), "--signer", f"{made}.pub"])
    (words,) = started
    assert words[:-1] == [str(bundle.ROOT / "slipway"), "site", "--limit", "gpu01", "-e"]
    assert json.loads(words[-1]) == {
        "ml_images_bundle": str(made),
        "ml_images_bundle_signer": f"{made}.pub",
        "__ml_images_bundle_manifest": open_bundle(made).digest,
    }
    made.write_bytes(made.read_bytes()[:-1])
    with pytest.raises(SystemExit, match=r"site: .*truncated.* Nothing was changed\."):
        with_bundle.main(["site", "--bundle", str(made)])
    assert started == [words]


def extract(path: Path, target: Path, *signer: Path) -> int:
    return bundle_setup.main([str(path), str(target), *map(str, signer)])


def test_setup_takes_the_wheels_of_its_python_only(made: Path, tmp_path: Path) -> None:
    target = tmp_path / "wheels"
    target.mkdir()
    (target / "left-by-a-killed-run.whl").touch()
    assert extract(made, target) == 0
    assert sorted(path.name for path in target.iterdir()) == [
        *(f"a-1-cp{RUNNING}.whl", "ansible-1.whl", "pip-1-py3-none-any.whl")
    ]


def test_setup_lists_the_pythons_of_a_bundle(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert bundle_setup.main(["~/b.tar", "-", "~/b.tar.pub"]) == 0
    assert capsys.readouterr().out.split() == sorted([RUNNING, OTHER])
    opened = open_bundle(made)
    strange: list[Any] = [1, None, [1], {"x; rm": []}]
    for wheels in strange:
        changed = replace(opened.manifest, controller={"wheels": wheels})
        assert bundle_setup.list_pythons(replace(opened, manifest=changed)) == []


def test_a_bundle_without_a_collection_does_not_ask_galaxy(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    started: list[object] = []
    monkeypatch.setattr(sys, "argv", ["install", str(tmp_path / "to"), str(tmp_path)])
    monkeypatch.setattr(install_collections, "download_bundle", lambda *_words: tmp_path / "w")
    monkeypatch.setattr(install_collections, "unpack", lambda *_words: None)
    monkeypatch.setattr(subprocess, "run", lambda words, **_options: started.append(words))
    assert install_collections.main() == 1
    assert "collections not in the bundle: community.docker, " in capsys.readouterr().err
    assert started == []


def test_setup_without_a_trusted_key_extracts_nothing(
    made: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "of another person"))
    assert extract(made, tmp_path / "wheels") == 1
    assert "expected a key that you name" in capsys.readouterr().err
    assert not (tmp_path / "wheels").exists()
    assert extract(made, tmp_path / "wheels", Path(f"{made}.pub")) == 0


def test_setup_from_a_damaged_bundle_keeps_the_former_files(made: Path, tmp_path: Path) -> None:
    assert extract(made, tmp_path / "wheels") == 0
    content = made.read_bytes()
    # The last file is not even one that this Python needs.
    made.write_bytes(content.replace(f"a-1-cp{OTHER}.whl".encode() * 300, b"x" * 13 * 300))
    (tmp_path / "wheels/mark").touch()
    assert extract(made, tmp_path / "wheels") == 1
    assert (tmp_path / "wheels/mark").exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"locks": "other"}, "made from other lock files"),
        ({"python": "3.10"}, r"wheels for Python 3\..* on .*; expected Python 3\.10 on"),
        ({"machine": "s390x"}, rf"on {platform.machine()}; expected Python .* on s390x"),
    ],
)
def test_a_bundle_for_another_controller_is_refused(
    made: Path, changes: dict[str, Any], reason: str
) -> None:
    arguments = {"python": RUNNING, "machine": platform.machine()}
    arguments["locks"] = bundle_setup.digest_locks()
    with pytest.raises(BundleError, match=reason):
        bundle_setup.choose_wheels(open_bundle(made), **{**arguments, **changes})


@pytest.mark.parametrize("name", ["pip-1-py3-none-any.whl", "ansible-1.whl"])
def test_a_wheel_that_no_lock_file_names_is_refused(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    hashes = bundle_setup.read_hashes() - {hashlib.sha256(name.encode() * 300).hexdigest()}
    monkeypatch.setattr(bundle_setup, "read_hashes", lambda: hashes)
    assert extract(made, made.parent / "wheels") == 1
    assert f"wheels/{name} is not a file of requirements.lock or tools" in capsys.readouterr().err
    assert not (made.parent / "wheels").exists()


@pytest.mark.parametrize(
    "controller", [{}, {"wheels": 1}, {"machine": platform.machine(), "wheels": {RUNNING: [{}]}}]
)
def test_a_signed_manifest_of_another_form_is_refused(
    made: Path, controller: dict[str, Any]
) -> None:
    opened = open_bundle(made)
    locks = {"locks": bundle_setup.digest_locks()} if controller else {}
    changed = replace(opened, manifest=replace(opened.manifest, controller=controller | locks))
    with pytest.raises(BundleError, match=r"b\.tar: invalid manifest.json: .*; expected .*\. Make"):
        bundle_setup.find_wheels(changed, RUNNING, platform.machine())


def test_the_lock_files_have_a_hash_for_each_file_that_setup_runs() -> None:
    hashes = HASHES_OF_LOCKS()
    lock = bundle_contents.LOCK.read_text()
    assert len(hashes) == len(set(re.findall("sha256:[0-9a-f]+", lock))) + 1


def git(folder: Path, *words: str) -> None:
    name = ("-c", "user.name=A", "-c", "user.email=a@example.com")
    subprocess.run(["git", "-C", str(folder), *name, *words], check=True, capture_output=True)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A committed project with a program and links, among them one to a folder."""
    folder = tmp_path / "project"
    for name in ("slipway", "inventory/hosts.example.yml", "lib/ä b"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("text")
    (folder / "slipway").chmod(0o775)
    (folder / "link").symlink_to("lib/ä b")
    (folder / "folder").symlink_to("lib")
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "x")
    return folder


@pytest.fixture
def unpacked(project: Path, tmp_path: Path) -> Path:
    """The project in a bundle as a new controller unpacks it, with a person's own files."""
    _commit, content = bundle_contents.pack_project(project)
    with tarfile.open(fileobj=io.BytesIO(content)) as opened:
        opened.extractall(tmp_path / "unpacked", filter="fully_trusted")
    folder = tmp_path / "unpacked/slipway"
    for name in (".env", "vault.yml", "inventory/hosts.yml", "bundle.tar", "lib/id_ed25519"):
        (folder / name).write_text("secret")
    return folder


def members(content: bytes) -> dict[str, tuple[int, float, str, str]]:
    with tarfile.open(fileobj=io.BytesIO(content)) as opened:
        return {m.name: (m.mode, m.mtime, m.uname, m.linkname) for m in opened}


def test_the_project_is_the_same_with_and_without_git(project: Path, unpacked: Path) -> None:
    commit, with_git = bundle_contents.pack_project(project)
    assert commit and len(commit) == 40
    assert bundle_contents.pack_project(unpacked) == (None, with_git)
    assert b"secret" not in with_git
    assert members(with_git) == {
        "slipway/folder": (0o644, 0, "", "lib"),
        "slipway/inventory/hosts.example.yml": (0o644, 0, "", ""),
        "slipway/lib/ä b": (0o644, 0, "", ""),
        "slipway/link": (0o644, 0, "", "lib/ä b"),
        "slipway/project-files.json": (0o644, 0, "", ""),
        "slipway/slipway": (0o755, 0, "", ""),
    }


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (None, "no git checkout and no list of files"),
        ('["../secret"]', "paths that lead out of the folder"),
        ('["/etc/passwd"]', "paths that lead out of the folder"),
        ("[1", "cannot list the project in "),
        ("1", "cannot list the project in "),
        ("[1]", "cannot list the project in "),
        ('["none"]', "cannot read .*none: not a file"),
        ('["lib"]', "cannot read .*lib: not a file"),
    ],
)
def test_a_folder_without_a_usable_list_is_refused(
    unpacked: Path, names: str | None, reason: str
) -> None:
    (unpacked / bundle_contents.LIST).unlink()
    if names:
        (unpacked / bundle_contents.LIST).write_text(names)
    with pytest.raises(BundleError, match=rf"{reason}.*; expected .*\. [A-Z].*\.$"):
        bundle_contents.pack_project(unpacked)


def test_uncommitted_changes_are_reported(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "slipway").write_text("changed")
    bundle_contents.pack_project(project)
    assert "uncommitted changes are not in the bundle" in capsys.readouterr().err


def test_a_checkout_without_a_commit_is_refused(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    with pytest.raises(BundleError, match="cannot read the project with git"):
        bundle_contents.pack_project(tmp_path)
