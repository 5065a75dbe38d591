# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The contents of a bundle for the controller: the project, and the wheels of its lock files."""

from __future__ import annotations

import io
import os
import platform
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path, PurePath

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


def list_files(root: Path) -> Iterator[Path]:
    """Yield the files of a folder that is not a checkout, without those of .gitignore."""
    patterns = [".git", *(root / ".gitignore").read_text(encoding="utf-8").split()]
    strange = [pattern for pattern in patterns if pattern[0] in "!#" or "**" in pattern]
    if strange:
        raise BundleError(
            f".gitignore has the pattern {strange[0]}; expected /PATH, /PATH/, NAME/ or *.SUFFIX. "
            "Make the bundle in a git checkout."
        )
    for path, folders, names in os.walk(root):
        inside = PurePath(path).relative_to(root)
        folders[:] = [n for n in folders if not _ignored(inside / n, patterns)]
        yield from (Path(path) / n for n in names if not _ignored(inside / n, patterns))


def _ignored(path: PurePath, patterns: list[str]) -> bool:
    """Return whether .gitignore names a path below the root of the project."""
    return any(
        fnmatchcase(f"/{path}" if pattern.startswith("/") else path.name, pattern.rstrip("/"))
        for pattern in patterns
    )


def pack_project(root: Path = ROOT) -> tuple[str | None, bytes]:
    """Return the commit of a project, and a tar archive of its files with one form of headers."""
    commit, archive = read_head(root)
    files: dict[str, tuple[tarfile.TarInfo, bytes]] = {}
    if commit is None:
        for path in list_files(root):
            member = tarfile.TarInfo(str(path.relative_to(root)))
            if path.is_symlink():
                member.type, member.linkname, content = tarfile.SYMTYPE, str(path.readlink()), b""
            else:
                member.mode, content = path.stat().st_mode, path.read_bytes()
            files[member.name] = (member, content)
    else:
        with tarfile.open(fileobj=io.BytesIO(archive)) as source:
            for member in source:
                opened = source.extractfile(member) if member.isfile() else None
                if not member.isdir():
                    files[member.name] = (member, opened.read() if opened else b"")
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
