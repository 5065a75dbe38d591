# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run `ansible-test sanity` on the collection file.

Usage: ./slipway run python tools/sanity.py [ARGUMENTS FOR ansible-test sanity ...]

Findings in tests/sanity/ignore.txt are ignored. That file is not part of the collection: Galaxy
reports each ignored finding. ansible-test downloads the tools of some tests.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools import build_collection  # noqa: E402

IGNORED = ROOT / "tests/sanity/ignore.txt"


def main(arguments: list[str]) -> int:
    """Build and unpack the collection, run the tests and return the exit status."""
    python = "{}.{}".format(*sys.version_info)
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "ansible_collections/slipway/host"
        with tarfile.open(build_collection.build(Path(folder))) as archive:
            archive.extractall(tree, filter="data")
        core = ".".join(metadata.version("ansible-core").split(".")[:2])
        file = tree / f"tests/sanity/ignore-{core}.txt"
        file.parent.mkdir()
        file.write_text("".join(f"{path} {test}\n" for path, test in ignored(python)))
        command = [str(Path(sys.executable).parent / "ansible-test"), "sanity"]
        command += ["--python", python, *arguments]
        return subprocess.run(command, cwd=tree, check=False).returncode


def ignored(python: str) -> list[tuple[str, str]]:
    """Return path and test of each ignored finding, for a version of Python."""
    lines = IGNORED.read_text(encoding="utf-8").splitlines()
    entries = [line.split() for line in lines if line and not line.startswith("#")]
    return [(path, f"import-{python}" if test == "import" else test) for path, test in entries]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
