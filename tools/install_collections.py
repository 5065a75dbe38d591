# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Install the collections that requirements.yml pins, without Ansible Galaxy.

The PyPI package ``ansible`` is a bundle of collections.  Its wheel is fetched by pip, checked
against the hash in collections.lock, and only the pinned collections are unpacked from it.
A collection that the bundle does not hold in the pinned version comes from Galaxy instead.

Usage: install_collections.py DESTINATION
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


def pinned() -> dict[str, str]:
    """Return collection name to version, as requirements.yml pins them."""
    entries = yaml.safe_load(REQUIREMENTS.read_text())["collections"]
    return {entry["name"]: str(entry["version"]) for entry in entries}


def installed_version(destination: Path, name: str) -> str | None:
    """Return the version of a collection under DESTINATION, None where it is not there."""
    manifest = destination / "ansible_collections" / name.replace(".", "/") / "MANIFEST.json"
    try:
        return str(json.loads(manifest.read_text())["collection_info"]["version"])
    except (OSError, ValueError, KeyError):
        return None


def download_bundle(folder: Path) -> Path:
    """Fetch the locked wheel into FOLDER; pip checks its hash.

    The wheel is only unpacked, never run, so the Python it asks for does not matter.
    """
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download"),
            *("--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--require-hashes"),
            *("--requirement", str(LOCK), "--dest", str(folder)),
        ],
        check=True,
    )
    return next(folder.glob("*.whl"))


def unpack(bundle: Path, destination: Path, names: set[str]) -> None:
    """Unpack the collections NAMES of the wheel BUNDLE, each replacing what was there."""
    with zipfile.ZipFile(bundle) as archive:
        for name in sorted(names):
            prefix = f"ansible_collections/{name.replace('.', '/')}/"
            members = [member for member in archive.namelist() if member.startswith(prefix)]
            shutil.rmtree(destination / prefix, ignore_errors=True)
            archive.extractall(destination, members)


def main() -> int:
    """Install what is missing or of another version; return the exit status."""
    destination = Path(sys.argv[1]).resolve()
    wanted = pinned()

    def missing() -> set[str]:
        return {n for n, version in wanted.items() if installed_version(destination, n) != version}

    if missing():
        with tempfile.TemporaryDirectory() as folder:
            try:
                unpack(download_bundle(Path(folder)), destination, missing())
            except subprocess.CalledProcessError:
                print("slipway: PyPI did not give the collections, asking Galaxy", file=sys.stderr)
    for name in sorted(missing()):
        subprocess.run(
            [
                *(str(Path(sys.executable).parent / "ansible-galaxy"), "collection", "install"),
                *("--force", "--no-deps", "-p", str(destination), f"{name}:{wanted[name]}"),
            ],
            check=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
