# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lock the Python packages of the catalogue's images, and say what moved.

An image that stands on another locks only what it adds, at the versions that the other has.
PyTorch's wheels for CPUs live on an index of their own; where that is out of reach, PyPI's, which
carry CUDA, serve all variants.
"""

from __future__ import annotations

import argparse
import hashlib
import os
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
from ansible_collections.slipway.host.plugins.module_utils.images.types import VARIANTS  # noqa: E402

IMAGES = ROOT / "images"
COMPILE = (
    *("pip", "compile", "--universal", "--python-version", "3.11", "--generate-hashes"),
    *("--no-emit-index-url", "--no-emit-find-links", "--no-header", "--no-annotate"),
    *("--only-binary", ":all:", "--quiet"),
)


class LockError(Exception):
    """Packages could not be locked; the text is uv's, with what was to be locked."""


@dataclass(frozen=True)
class Task:
    """One lock to make: from which wishes, and on top of which other locks."""

    wishes: Path
    below: tuple[Path, ...] = ()

    @property
    def lock(self) -> Path:
        """Return the lock's path, beside its wishes."""
        return self.wishes.with_suffix(".lock")


def main(arguments: Sequence[str]) -> int:
    """Lock what the arguments ask for; return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        if options.torch_index or options.torch_wheels:
            lock_torch(options.torch_index, options.torch_wheels)
            return 0
        for task in tasks(options.names):
            lock(task, options.upgrade)
    except (LockError, DeclarationError) as error:
        print(f"images lock: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="./slipway images lock", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="images; all when none is named")
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions")
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
        help="the same from a folder of wheels; hosts need it too: ml_images_build.wheels",
    )
    return parser


def tasks(names: Sequence[str]) -> Iterator[Task]:
    """Yield what is to be locked for the named images and those that stand on them, in order."""
    catalogue = load_catalogue(IMAGES, check_locks=False)
    if not names:
        yield Task(IMAGES / "_shared/installer.in")
    lineages = {name: [i.name for i in catalogue.lineage(name)] for name in catalogue.images}
    for name in names:
        catalogue.lineage(name)  # refuses a name that does not exist
    chosen = [name for name, line in lineages.items() if not names or set(names) & set(line)]
    seen = set()
    for name in sorted(chosen, key=lambda name: len(lineages[name])):
        image = catalogue.images[name]
        if image.build_requirements_file:
            yield Task(image.folder / image.build_requirements_file)
        for variant in VARIANTS:
            line = [
                ancestor.folder / wishes
                for ancestor in catalogue.lineage(name)
                if (wishes := ancestor.requirements_file(variant))
            ]
            if line and line[0].parent == image.folder and line[0] not in seen:
                seen.add(line[0])
                yield Task(line[0], tuple(path.with_suffix(".lock") for path in line[1:]))


def lock(task: Task, upgrade: bool) -> None:
    """Make one lock and say what moved in it."""
    before = task.lock.read_text(encoding="utf-8") if task.lock.exists() else ""
    constraints = [f"--constraints={path}" for path in task.below]
    fresh = ["--upgrade"] if upgrade else []
    text = compiled([str(task.wishes), *constraints, *fresh], before)
    below = [pin for path in task.below for pin in locks.read_pins(path.read_text("utf-8"))]
    pins = locks.added_pins(locks.read_pins(text), below)
    _write(task.lock, locks.write_pins(pins))


def lock_torch(index: str | None, wheels: Path | None) -> None:
    """Lock PyTorch's wheels for CPUs, at the catalogue's versions if an index is asked."""
    text = hashed_wheels(wheels) if wheels else indexed_wheels(str(index))
    if "+cpu" not in text:
        raise LockError(f"{wheels or index} has no wheel of torch for CPUs alone (version +cpu)")
    _write(IMAGES / TORCH_LOCK, text)


def indexed_wheels(index: str) -> str:
    """Return the lock of what an index has of PyTorch, at the versions of the catalogue."""
    pinned = locks.read_pins((IMAGES / "pytorch/requirements.lock").read_text("utf-8"))
    wishes = [f"{pin.name}=={pin.version}" for pin in pinned if pin.name in locks.TORCH_FAMILY]
    with tempfile.TemporaryDirectory() as folder:
        asked = Path(folder) / "torch.in"
        asked.write_text("\n".join(wishes) + "\n", encoding="utf-8")
        return compiled([str(asked), "--no-deps", f"--default-index={index}"], "")


def hashed_wheels(folder: Path) -> str:
    """Return the lock of the newest wheels of PyTorch that a folder holds."""
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


def compiled(arguments: Sequence[str], before: str) -> str:
    """Return the lock that uv makes; versions of the lock before are kept where they can be."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "new.lock"
        output.write_text(before, encoding="utf-8")
        command = ["uv", *COMPILE, *arguments, f"--output-file={output}"]
        environment = {"UV_NO_CONFIG": "1", "UV_SYSTEM_CERTS": "1", **_index(), **os.environ}
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT
        )
        if done.returncode != 0:
            raise LockError(f"{arguments[0]}:\n{done.stderr.strip()}")
        text = output.read_text(encoding="utf-8")
    bare = [str(pin) for pin in locks.read_pins(text) if "--hash=" not in pin.text]
    if bare:
        raise LockError(
            f"{arguments[0]}: the index tells no hashes of {', '.join(bare)}, so they cannot "
            "be locked. Download the wheels and lock those: --torch-wheels FOLDER"
        )
    return text


def _index() -> dict[str, str]:
    """Tell uv the index that pip is set to use, since it does not read pip's configuration."""
    asked = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.index-url"],
        capture_output=True,
        text=True,
        check=False,
    )
    index = os.environ.get("PIP_INDEX_URL") or asked.stdout.strip()
    return {"UV_DEFAULT_INDEX": index} if index else {}


def _write(file: Path, after: str) -> None:
    """Write a lock whole or not at all, and say what moved in it."""
    name = file.relative_to(ROOT)
    before = file.read_text(encoding="utf-8") if file.exists() else None
    if after == before:
        print(f"{name}: nothing moved")
        return
    written = file.with_suffix(".lock.new")
    written.write_text(after, encoding="utf-8")
    written.rename(file)
    moved = locks.describe_changes(locks.read_pins(before or ""), locks.read_pins(after))
    print(f"{name}: {len(moved)} moved" if moved else f"{name}: same versions, other text")
    for line in moved:
        print(f"  {line}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
