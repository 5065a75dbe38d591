# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The contents of a bundle for the controller: the project, and the wheels of its lock files."""

from __future__ import annotations

import io
import json
import platform
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "collections")]

from ansible_collections.slipway.host.plugins.plugin_utils.bundle.manifest import (  # noqa: E402
    BundleError,
)

from tools import install_collections  # noqa: E402

LOCK = ROOT / "requirements.lock"

# The oldest C library of a distribution that has Python 3.11 is newer than that of manylinux_2_28.
PLATFORMS = (
    *("manylinux_2_28", "manylinux_2_17", "manylinux2014", "manylinux_2_12", "manylinux2010"),
    *("manylinux_2_5", "manylinux1", "linux"),
)
# The folder that `tar -xf project.tar` makes.
FOLDER = "slipway"
# The list of the project's files in that folder.
LIST = "project-files.json"
EXECUTABLE = 0o100


def pick_requirements(lock: str, python: str) -> str:
    """Return the packages of a lock for a Python version, without markers and comments."""
    environment = {"python_version": python, "python_full_version": f"{python}.0"}
    lines = []
    for entry in re.split(r"\n(?=[A-Za-z0-9])", re.sub(r"(?m)^\s*#.*\n?", "", lock)):
        name, *hashes = re.split(r"\s+--hash=", entry.replace("\\\n", " ").strip())
        requirement = Requirement(name)
        if requirement.marker is None or requirement.marker.evaluate(environment):
            requirement.marker = None
            lines.append(" ".join([str(requirement), *(f"--hash={word}" for word in hashes)]))
    return "\n".join(lines) + "\n"


def download_wheels(python: str, folder: Path) -> list[Path]:
    """Download the wheels of the lock for a Python version; pip checks their hashes."""
    requirements = folder / f"requirements-{python}.txt"
    lock = LOCK.read_text(encoding="utf-8")
    requirements.write_text(pick_requirements(lock, python), encoding="utf-8")
    target = folder / python
    machine = platform.machine()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download"),
            *("--no-deps", "--only-binary=:all:", "--require-hashes"),
            *("--requirement", str(requirements), "--dest", str(target)),
            *("--python-version", python, "--implementation", "cp"),
            *("--abi", f"cp{python.replace('.', '')}", "--abi", "abi3", "--abi", "none"),
            *(word for name in PLATFORMS for word in ("--platform", f"{name}_{machine}")),
        ],
        check=False,
    )
    if done.returncode:
        raise BundleError(
            f"cannot download the wheels for Python {python}; expected all packages of {LOCK.name} "
            "in the package index. See the errors of pip above."
        )
    return sorted(target.iterdir())


def download_collections(folder: Path) -> Path:
    """Download the wheel that has the collections of requirements.yml; return its path."""
    target = folder / "collections"
    target.mkdir()
    try:
        return install_collections.download_bundle(target)
    except subprocess.CalledProcessError:
        raise BundleError(
            f"cannot download the wheel of {install_collections.LOCK.name}; expected it in the "
            "package index. See the errors of pip above."
        ) from None


def read_head(root: Path) -> tuple[str | None, bytes]:
    """Return commit and archive of HEAD; None and nothing if a folder is not a git checkout."""
    if not (root / ".git").exists():
        return None, b""
    try:
        commit = _git(root, "rev-parse", "HEAD").decode().strip()
        if _git(root, "status", "--porcelain", "--untracked-files=no"):
            print("bundle: uncommitted changes are not in the bundle", file=sys.stderr)
        return commit, _git(root, "archive", "--format=tar", commit)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", b"") or str(error).encode()
        raise BundleError(
            f"cannot read the project with git: {reason.decode(errors='replace').strip()}; "
            "expected a checkout with a commit. Commit the project first."
        ) from None


def _git(root: Path, *words: str) -> bytes:
    command = ["git", "-C", str(root), *words]
    return subprocess.run(command, capture_output=True, check=True).stdout


def list_files(root: Path) -> list[str]:
    """Return the files of a project that came from a bundle, as its list has them.

    A person's own files in the folder, such as inventories and secrets, are not in the list.
    """
    problem = ""
    try:
        names = json.loads((root / LIST).read_text(encoding="utf-8"))
        if any({"", ".", ".."} & {*name.split("/")} for name in names):
            problem = "paths that lead out of the folder"
    except FileNotFoundError:
        problem = "no git checkout and no list of files"
    except (OSError, ValueError, TypeError, AttributeError) as error:
        problem = str(error)
    if problem:
        raise BundleError(
            f"cannot list the project in {root}: {problem}; expected a git checkout, or the folder "
            f"of a bundle with {LIST}. Clone the project with git, then run again."
        )
    return [*names]


def read_files(root: Path) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """Yield the files of a project that is not a git checkout; links are not followed."""
    for name in list_files(root):
        path, member = root / name, tarfile.TarInfo(name)
        try:
            if path.is_symlink():
                member.type, member.linkname = tarfile.SYMTYPE, str(path.readlink())
                yield member, b""
            elif path.is_file():
                member.mode = path.stat().st_mode
                yield member, path.read_bytes()
            else:
                raise FileNotFoundError("not a file")
        except OSError as error:
            raise BundleError(
                f"cannot read {path}: {error}; expected a file of the project. Unpack the project "
                "in the bundle again."
            ) from None


def read_head_files(content: bytes) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """Yield files and links of an archive that git made."""
    with tarfile.open(fileobj=io.BytesIO(content)) as source:
        for member in source:
            opened = source.extractfile(member) if member.isfile() else None
            if not member.isdir():
                yield member, opened.read() if opened else b""


def pack_project(root: Path = ROOT) -> tuple[str | None, bytes]:
    """Return the commit of a project, and a tar archive of its files with one form of headers.

    The archive has a list of the files, so that it can be packed again without git.
    """
    commit, head = read_head(root)
    source = read_files(root) if commit is None else read_head_files(head)
    files = {member.name: (member, content) for member, content in source if member.name != LIST}
    listed = json.dumps(sorted(files), indent=0).encode() + b"\n"
    files[LIST] = (tarfile.TarInfo(LIST), listed)
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=tarfile.GNU_FORMAT) as target:
        for name, (former, content) in sorted(files.items()):
            member = tarfile.TarInfo(f"{FOLDER}/{name}")
            member.type, member.linkname = former.type, former.linkname
            is_program = former.isfile() and former.mode & EXECUTABLE
            member.mode = 0o755 if is_program else 0o644
            member.size = len(content)
            target.addfile(member, io.BytesIO(content))
    return commit, output.getvalue()
