# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Install the collections that requirements.yml pins, without Ansible Galaxy.

The PyPI package ``ansible`` is a bundle of collections.  pip downloads its wheel and checks the
hash in collections.lock.  Only the pinned collections are unpacked from the wheel.  A collection
whose pinned version is not in the wheel is installed from Galaxy.

Usage: install_collections.py DESTINATION [FOLDER]

With FOLDER, the wheel comes from this folder and nothing is downloaded.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import yaml

TOOLS = Path(__file__).resolve().parent
REQUIREMENTS = TOOLS.parent / "requirements.yml"
LOCK = TOOLS / "collections.lock"


def read_pinned_versions() -> dict[str, str]:
    """Return the versions in requirements.yml by name of the collection."""
    entries = yaml.safe_load(REQUIREMENTS.read_text())["collections"]
    return {entry["name"]: str(entry["version"]) for entry in entries}


def installed_version(destination: Path, name: str) -> str | None:
    """Return the version of a collection in a folder, None for a missing collection."""
    manifest = destination / "ansible_collections" / name.replace(".", "/") / "MANIFEST.json"
    try:
        return str(json.loads(manifest.read_text())["collection_info"]["version"])
    except (OSError, ValueError, KeyError):
        return None


def download_bundle(folder: Path, source: Path | None = None) -> Path:
    """Download the locked wheel, or copy it from SOURCE; return its path.  pip checks the hash.

    The wheel is only unpacked, not run, so the Python version that it requires does not matter.
    """
    options = ("--no-index", "--find-links", str(source)) if source else ()
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download"),
            *("--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--require-hashes"),
            *("--requirement", str(LOCK), "--dest", str(folder)),
            *options,
        ],
        check=True,
    )
    return next(folder.glob("*.whl"))


def unpack(bundle: Path, destination: Path, names: set[str]) -> None:
    """Unpack the named collections of the wheel; replace installed versions."""
    with zipfile.ZipFile(bundle) as archive:
        for name in sorted(names):
            prefix = f"ansible_collections/{name.replace('.', '/')}/"
            members = [member for member in archive.namelist() if member.startswith(prefix)]
            shutil.rmtree(destination / prefix, ignore_errors=True)
            archive.extractall(destination, members)


def main() -> int:
    """Install collections that are missing or have another version; return the exit status."""
    destination = Path(sys.argv[1]).resolve()
    source = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    pinned = read_pinned_versions()

    def find_missing() -> set[str]:
        return {n for n, version in pinned.items() if installed_version(destination, n) != version}

    if find_missing():
        with tempfile.TemporaryDirectory() as folder:
            try:
                unpack(download_bundle(Path(folder), source), destination, find_missing())
            except subprocess.CalledProcessError:
                if source:
                    return 1
                message = "slipway: cannot download the collections from PyPI, trying Galaxy"
                print(message, file=sys.stderr)
    if source and find_missing():
        print(
            f"slipway: collections not in the bundle: {', '.join(sorted(find_missing()))}; "
            "expected the versions of requirements.yml. Make the bundle again.",
            file=sys.stderr,
        )
        return 1
    for name in sorted(find_missing()):
        subprocess.run(
            [
                *(str(Path(sys.executable).parent / "ansible-galaxy"), "collection", "install"),
                *("--force", "--no-deps", "-p", str(destination), f"{name}:{pinned[name]}"),
            ],
            check=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
