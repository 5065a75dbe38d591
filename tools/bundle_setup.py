# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check a bundle, then extract the wheels for this Python from it.

`./slipway setup --bundle FILE` runs this file before an environment exists: standard library only.
Usage: bundle_setup.py FILE DESTINATION [SIGNER]

DESTINATION is a folder for the wheels. If it is "-", the command prints the versions of Python for
which the bundle has wheels, and checks its signature only.
"""

from __future__ import annotations

import hashlib
import platform
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "collections"))

from ansible_collections.slipway.host.plugins.plugin_utils.bundle.manifest import (  # noqa: E402
    BundleError,
    Entry,
    files_of,
)
from ansible_collections.slipway.host.plugins.plugin_utils.bundle.reading import (  # noqa: E402
    Bundle,
    open_bundle,
)

LOCKS = ("requirements.lock", "tools/collections.lock", "requirements.yml")


def digest_locks(root: Path = ROOT) -> str:
    """Return the SHA-256 of the lock files of a project."""
    return hashlib.sha256(b"\0".join((root / name).read_bytes() for name in LOCKS)).hexdigest()


def read_hashes(root: Path = ROOT) -> set[str]:
    """Return the SHA-256 of each file that the lock files allow."""
    texts = ((root / name).read_text(encoding="utf-8") for name in LOCKS)
    pattern = r"--hash=sha256:([0-9a-f]{64})"
    return {digest for text in texts for digest in re.findall(pattern, text)}


def find_wheels(bundle: Bundle, python: str, machine: str) -> list[Entry]:
    """Return the wheels for a Python version such as 3.13; each has a hash of the lock files.

    pip itself runs from its wheel, so nothing else would compare it.
    """
    try:
        paths = set(choose_wheels(bundle, python, machine, digest_locks()))
    except (KeyError, TypeError, AttributeError) as error:
        raise BundleError(
            f"{bundle.path}: invalid manifest.json: {type(error).__name__} {error}; expected "
            "locks, machine and wheels. Make the bundle again."
        ) from None
    wheels = [entry for entry in bundle.manifest.files if entry.path in paths]
    allowed = read_hashes()
    wrong = sorted(paths - {entry.path for entry in wheels if entry.sha256 in allowed})
    if wrong:
        raise BundleError(
            f"{bundle.path}: {wrong[0]} is not a file of {' or '.join(LOCKS[:2])}; expected a file "
            "with a hash of these. Do not use this bundle."
        )
    return wheels


def choose_wheels(bundle: Bundle, python: str, machine: str, locks: str) -> list[str]:
    """Return the paths of the wheels for a Python version such as 3.13 on a machine."""
    controller = bundle.manifest.controller
    if controller["locks"] != locks:
        raise BundleError(
            f"{bundle.path}: made from other lock files than those of this folder; expected the "
            "same requirements.lock. Use the project in the bundle, see docs/bundle.md."
        )
    wheels: dict[str, list[str]] = controller["wheels"]
    if controller["machine"] != machine or python not in wheels:
        raise BundleError(
            f"{bundle.path}: wheels for Python {', '.join(sorted(wheels))} on "
            f"{controller['machine']}; expected Python {python} on {machine}. Make the bundle "
            f"with --python {python} on such a machine."
        )
    return wheels[python]


def list_pythons(bundle: Bundle) -> list[str]:
    """Return the versions of Python for which a bundle has wheels."""
    wheels = bundle.manifest.controller.get("wheels")
    names = wheels if isinstance(wheels, dict) else ()
    return [name for name in names if re.fullmatch(r"3\.[0-9]{1,2}", name)]


def extract_wheels(path: Path, destination: Path, signer: Path | None) -> None:
    """Check the whole bundle; then replace DESTINATION by a folder with the wheels."""
    bundle = open_bundle(path, signer)
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    wheels = find_wheels(bundle, version, platform.machine())
    bundle.check()
    shutil.rmtree(destination, ignore_errors=True)
    destination.mkdir(parents=True)
    for entry in wheels:
        bundle.extract(entry, destination / Path(entry.path).name)
    print(f"slipway: {path.name}: signed with {bundle.signer}; all files match", file=sys.stderr)


def main(arguments: list[str]) -> int:
    """Extract the wheels; return the exit status."""
    path, destination, *signers = arguments
    signer = Path(signers[0]).expanduser() if signers else None
    bundle = Path(path).expanduser()
    try:
        with files_of(bundle):
            if destination == "-":
                print(*list_pythons(open_bundle(bundle, signer)))
            else:
                extract_wheels(bundle, Path(destination), signer)
    except BundleError as error:
        print(f"slipway: setup: {error} Nothing was installed.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
