# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lock the Python packages of the catalogue's images, and print the changes.

The lock of an image that is built on another image contains only the added packages, at versions
that fit the other image.  PyTorch's wheels for CPUs are on a separate index.  If this index is not
available, all variants use the wheels of PyPI, which contain CUDA.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.utils import parse_wheel_filename
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "collections"))

from ansible_collections.slipway.host.plugins.module_utils.images import locks  # noqa: E402
from ansible_collections.slipway.host.plugins.module_utils.images.assembly import TORCH_LOCK  # noqa: E402
from ansible_collections.slipway.host.plugins.module_utils.images.catalogue import load_catalogue  # noqa: E402
from ansible_collections.slipway.host.plugins.module_utils.images.declaration import (  # noqa: E402
    DeclarationError,
)
from ansible_collections.slipway.host.plugins.module_utils.images.requirements import (  # noqa: E402
    read_requirements,
)
from ansible_collections.slipway.host.plugins.module_utils.images.types import VARIANTS  # noqa: E402

IMAGES = ROOT / "images"
OLDEST_PYTHON = "3.11"
COMPILE = (
    *("pip", "compile", "--universal", "--generate-hashes"),
    *("--no-emit-index-url", "--no-emit-find-links", "--no-header", "--no-annotate"),
    *("--only-binary", ":all:", "--quiet"),
)


class LockError(Exception):
    """Packages could not be locked; the message names the file and contains the errors of uv."""


@dataclass(frozen=True)
class Task:
    """One lock to compile: its requirements, and the locks of the images below."""

    requirements: Path
    below: tuple[Path, ...] = ()
    python: str = OLDEST_PYTHON

    @property
    def lock(self) -> Path:
        """Return the path of the lock, beside its requirements."""
        return self.requirements.with_suffix(".lock")


def main(arguments: Sequence[str]) -> int:
    """Compile the locks that the arguments name; return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        if options.torch_index or options.torch_wheels:
            lock_torch(options.torch_index, options.torch_wheels)
            return 0
        for task in tasks(options.names):
            lock(task, options.upgrade, options.allow_older)
    except (LockError, DeclarationError) as error:
        print(f"images lock: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="./slipway images lock", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="images to lock; default: all")
    parser.add_argument("--upgrade", action="store_true", help="use the newest versions")
    parser.add_argument(
        "--allow-older",
        action="store_true",
        help="accept older versions of packages than before; without it, they are an error",
    )
    torch = parser.add_mutually_exclusive_group()
    torch.add_argument(
        "--torch-index",
        metavar="URL",
        help="lock PyTorch's wheels for CPUs from this index, in "
        f"images/{TORCH_LOCK}; cpu variants then use them. Set the same index on "
        "the hosts: ml_images_build.torch_index",
    )
    torch.add_argument(
        "--torch-wheels",
        metavar="FOLDER",
        type=Path,
        help="the same from a folder of wheels; hosts also need it: ml_images_build.wheels",
    )
    return parser


def tasks(names: Sequence[str]) -> Iterator[Task]:
    """Yield the locks of the named images and of the images built on them, in build order."""
    catalogue = load_catalogue(IMAGES, check_locks=False)
    if not names:
        yield Task(IMAGES / "_shared/installer.in")
        yield Task(IMAGES / "_shared/pip.in")
    lineages = {name: [i.name for i in catalogue.lineage(name)] for name in catalogue.images}
    for name in names:
        catalogue.lineage(name)  # raises an error for an unknown name
    chosen = [name for name, line in lineages.items() if not names or set(names) & set(line)]
    seen = set()
    for name in sorted(chosen, key=lambda name: len(lineages[name])):
        image = catalogue.images[name]
        oldest = image.settings["oldest_python"]
        if image.build_requirements_file:
            yield Task(image.folder / image.build_requirements_file, python=oldest)
        for variant in VARIANTS:
            line = [
                ancestor.folder / requirements
                for ancestor in catalogue.lineage(name)
                if (requirements := ancestor.requirements_file(variant))
            ]
            if line and line[0].parent == image.folder and line[0] not in seen:
                seen.add(line[0])
                below = tuple(path.with_suffix(".lock") for path in line[1:])
                yield Task(line[0], below, oldest)


def lock(task: Task, upgrade: bool, allow_older: bool) -> None:
    """Compile one lock and print its changes; keep the old lock if a package moved back."""
    previous = task.lock.read_text(encoding="utf-8") if task.lock.exists() else ""
    constraints = [f"--constraints={path}" for path in task.below]
    python = f"--python-version={task.python}"
    upgrade_options = ["--upgrade"] if upgrade else []
    try:
        text = compile_lock(
            [str(task.requirements), python, *constraints, *upgrade_options], previous
        )
    except LockError as error:
        raise LockError(f"{error}{name_pinning_images(str(error), task.below)}") from error
    if not allow_older:
        expect_no_older(task, previous, text)
    below = [pin for path in task.below for pin in locks.read_pins(path.read_text("utf-8"))]
    pins = locks.added_pins(locks.read_pins(text), below)
    _write(task.lock, locks.write_pins(pins))


def expect_no_older(task: Task, previous: str, text: str) -> None:
    """Raise LockError for packages that are older than before, or far behind the newest ones.

    uv takes an old release without a word if newer ones conflict with another package.
    """
    pins, place = locks.read_pins(text), task.lock.relative_to(ROOT)
    if older := locks.moved_back(locks.read_pins(previous), pins):
        raise LockError(
            f"{place}: older versions than before: {'; '.join(older)}; expected the same or newer "
            f"versions. Require versions in {task.requirements.name}, or accept the older ones "
            "with --allow-older."
        )
    names = [name for name, bounded in read_requirements(task.requirements) if not bounded]
    if behind := locks.left_behind(pins, newest_versions(names, task.python)):
        raise LockError(
            f"{place}: old releases: {'; '.join(behind)}; expected newer ones, with which another "
            f"package conflicts. Require the newer version in {task.requirements.name} to see the "
            "conflict, or accept the old one with a bound such as <2."
        )


def newest_versions(names: Sequence[str], python: str) -> Sequence[locks.Pin]:
    """Return the newest versions of packages on the index, without their dependencies."""
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder) / "newest.in"
        requirements.write_text("\n".join(names) + "\n", encoding="utf-8")
        text = compile_lock([str(requirements), "--no-deps", f"--python-version={python}"], "")
    return locks.read_pins(text)


def name_pinning_images(error: str, below: Sequence[Path]) -> str:
    """Return a sentence with the images whose locks pin packages that an error of uv names."""
    pins = [
        f"{pin.name}=={pin.version} ({path.relative_to(ROOT)})"
        for path in below
        for pin in locks.read_pins(path.read_text("utf-8"))
        if re.search(rf"(?<![\w.-]){re.escape(pin.name)}==", error)
    ]
    if not pins:
        return ""
    return (
        f"\nPinned by images below: {', '.join(pins)}. Require versions that fit, or update the "
        "lock of that image with --upgrade."
    )


def lock_torch(index: str | None, wheels: Path | None) -> None:
    """Lock PyTorch's wheels for CPUs from a folder, or the catalogue's versions from an index."""
    text = lock_folder(wheels) if wheels else lock_index(str(index))
    if "+cpu" not in text:
        raise LockError(
            f"{wheels or index}: no wheel of torch for CPUs; expected a version with +cpu. "
            "Use another index or folder."
        )
    _write(IMAGES / TORCH_LOCK, text)


def lock_index(index: str) -> str:
    """Return the lock of PyTorch's packages on an index, at the versions of the catalogue."""
    pinned = locks.read_pins((IMAGES / "pytorch/requirements.lock").read_text("utf-8"))
    names = [f"{pin.name}=={pin.version}" for pin in pinned if pin.name in locks.TORCH_FAMILY]
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder) / "torch.in"
        requirements.write_text("\n".join(names) + "\n", encoding="utf-8")
        options = ["--no-deps", f"--default-index={index}", f"--python-version={OLDEST_PYTHON}"]
        return compile_lock([str(requirements), *options], "")


def lock_folder(folder: Path) -> str:
    """Return the lock of the newest wheels of PyTorch in a folder."""
    wheels: dict[str, dict[Version, list[Path]]] = {}
    for file in sorted(folder.glob("*.whl")):
        name, version, _, _ = parse_wheel_filename(file.name)
        if name in locks.TORCH_FAMILY:
            wheels.setdefault(name, {}).setdefault(version, []).append(file)
    text = ""
    for project, versions in sorted(wheels.items()):
        newest = max(versions)
        hashes = [hashlib.sha256(file.read_bytes()).hexdigest() for file in versions[newest]]
        text += " \\\n".join(
            [f"{project}=={newest}", *(f"    --hash=sha256:{digest}" for digest in hashes)]
        )
        text += "\n"
    return text


def compile_lock(arguments: Sequence[str], previous: str) -> str:
    """Return a lock compiled by uv; versions of the previous lock are kept if they still fit."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "new.lock"
        output.write_text(previous, encoding="utf-8")
        command = ["uv", *COMPILE, *arguments, f"--output-file={output}"]
        environment = {
            "UV_NO_CONFIG": "1",
            "UV_SYSTEM_CERTS": "1",
            **index_variables(),
            **os.environ,
        }
        completed = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT
        )
        if completed.returncode != 0:
            raise LockError(f"cannot lock {arguments[0]}:\n{completed.stderr.strip()}")
        text = output.read_text(encoding="utf-8")
    without_hash = [str(pin) for pin in locks.read_pins(text) if "--hash=" not in pin.text]
    if without_hash:
        raise LockError(
            f"cannot lock {arguments[0]}: the index has no hashes of {', '.join(without_hash)}; "
            "expected a hash of each package. Download the wheels, then use --torch-wheels FOLDER"
        )
    return text


def index_variables() -> dict[str, str]:
    """Return the package index of pip as a variable of uv, which does not read pip's settings."""
    completed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.index-url"],
        capture_output=True,
        text=True,
        check=False,
    )
    index = os.environ.get("PIP_INDEX_URL") or completed.stdout.strip()
    return {"UV_DEFAULT_INDEX": index} if index else {}


def _write(file: Path, text: str) -> None:
    """Replace a lock in one step, and print the changed versions."""
    name = file.relative_to(ROOT)
    previous = file.read_text(encoding="utf-8") if file.exists() else None
    if text == previous:
        print(f"{name}: unchanged")
        return
    temporary = file.with_suffix(".lock.new")
    temporary.write_text(text, encoding="utf-8")
    temporary.rename(file)
    changes = locks.describe_changes(locks.read_pins(previous or ""), locks.read_pins(text))
    print(f"{name}: {len(changes)} changed" if changes else f"{name}: same versions, other text")
    for line in changes:
        print(f"  {line}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
