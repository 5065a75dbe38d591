# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build the collection file slipway-host-VERSION.tar.gz from this project.

Usage: ./slipway build-collection [--output DIR]

Install the file with: ansible-galaxy collection install FILE

The file contains the plugins, the roles, the playbooks and the catalogue of images. It is written
to DIR (default: the current folder). The same source always gives the same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "collections/ansible_collections/slipway/host"
sys.path.insert(0, str(ROOT / "collections"))

from ansible_collections.slipway.host.plugins.module_utils.images.catalogue import (  # noqa: E402
    load_catalogue,
)
from ansible_collections.slipway.host.plugins.module_utils.images.declaration import (  # noqa: E402
    DeclarationError,
)

COPIED = ("roles", "images", "vars", "changelogs", "LICENSE", "CHANGELOG.md")
PAGE_LINK = re.compile(r"\]\(\.\./\.\./docs/([\w-]+\.md)")
GENERATED = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")
# In the collection, site.yml is in the folder of the other playbooks.
SITE_PATHS = {
    "playbooks/look.yml": "look.yml",
    "playbooks/metrics.yml": "metrics.yml",
    "playbooks/tasks/apply_role.yml": "tasks/apply_role.yml",
    "vars/roles.yml": "../vars/roles.yml",
    "vars/rolling.yml": "../vars/rolling.yml",
}
COMMANDS = (
    (re.compile(r"\./slipway (site|plan|verify|upgrade|rollback)\b(?! --(help|json))"), r"\1"),
    (
        re.compile(r"\./slipway images (accept|build|list|load|prune|push|save|smoke)\b"),
        r"images_\1",
    ),
)
EXECUTABLE = 0o100


class BuildError(Exception):
    """The collection cannot be built. The text tells the reason."""


def main(arguments: list[str] | None = None) -> int:
    """Build the collection file and print its path; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="./slipway build-collection",
        description=str(__doc__).partition("\n\n")[0],
        epilog=str(__doc__).partition("DIR]\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", metavar="DIR", type=Path, default=Path())
    try:
        print(build(parser.parse_args(arguments).output))
    except (BuildError, DeclarationError) as error:
        print(f"build-collection: {error}", file=sys.stderr)
        return 1
    return 0


def build(output: Path) -> Path:
    """Build the collection file in a folder and return its path."""
    # A controller without jsonschema uses the catalogue without validating it again.
    load_catalogue(ROOT / "images")
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        assemble(tree)
        built = _run_ansible_galaxy(tree, Path(folder) / "built")
        output.mkdir(parents=True, exist_ok=True)
        file = output / built.name
        _write_reproducible(built, file)
    return file


def linked_pages() -> list[str]:
    """Return the names of the pages in docs/ that READMEs of roles link to."""
    readmes = (ROOT / "roles").glob("*/README.md")
    return sorted({page for file in readmes for page in PAGE_LINK.findall(file.read_text("utf-8"))})


def assemble(tree: Path) -> None:
    """Write the files of the collection to a folder that does not exist yet."""
    shutil.copytree(SOURCE, tree, ignore=GENERATED)
    for name in COPIED:
        _copy(ROOT / name, tree / name)
    for page in linked_pages():
        _copy(ROOT / "docs" / page, tree / "docs" / page)
    # The demo needs the throwaway hosts of lab/, and the export a program of tools/.
    ignored = shutil.ignore_patterns("demo*", "export.yml", "templates")
    shutil.copytree(ROOT / "playbooks", tree / "playbooks", ignore=ignored)
    site = (ROOT / "site.yml").read_text(encoding="utf-8")
    (tree / "playbooks/site.yml").write_text(_replace_paths(site), encoding="utf-8")
    for part in ("playbooks", "plugins", "roles"):
        _name_installed_commands((tree / part).rglob("*"))


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=GENERATED)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)


def _replace_paths(site: str) -> str:
    """Return site.yml with paths that start in playbooks/. Raise BuildError for a missing path."""
    for path, replacement in SITE_PATHS.items():
        site, count = re.subn(rf"(?<=[ ]){re.escape(path)}$", replacement, site, flags=re.M)
        if not count:
            raise BuildError(f"site.yml: {path} not found; expected it at the end of a line.")
    return site


def _name_installed_commands(files: Iterable[Path]) -> None:
    """Replace `./slipway VERB` by the command of the collection, in comments and messages."""
    for file in files:
        if file.suffix in (".py", ".yml", ".md"):
            text = changed = file.read_text(encoding="utf-8")
            for pattern, playbook in COMMANDS:
                changed = pattern.sub(rf"ansible-playbook slipway.host.{playbook}", changed)
            if changed != text:
                file.write_text(changed, encoding="utf-8")


def _run_ansible_galaxy(tree: Path, output: Path) -> Path:
    """Run `ansible-galaxy collection build` and return the path of the file."""
    program = str(Path(sys.executable).parent / "ansible-galaxy")
    command = [program, "collection", "build", str(tree), "--output-path", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"ansible-galaxy collection build failed: {done.stderr.strip()}")
    return next(output.glob("*.tar.gz"))


def _write_reproducible(built: Path, file: Path) -> None:
    """Rewrite a collection file with a fixed order, and without times and owners."""
    with tarfile.open(built) as archive:
        content = {member.name: (member, _read(archive, member)) for member in archive.getmembers()}
    listing = json.loads(content["FILES.json"][1])
    listing["files"].sort(key=lambda entry: str(entry["name"]))
    manifest = json.loads(content["MANIFEST.json"][1])
    files_json = _as_json(listing)
    manifest["file_manifest_file"]["chksum_sha256"] = hashlib.sha256(files_json).hexdigest()
    for name, text in (("FILES.json", files_json), ("MANIFEST.json", _as_json(manifest))):
        content[name] = (content[name][0], text)
    # ansible-galaxy expects MANIFEST.json and FILES.json first.
    names = ["MANIFEST.json", "FILES.json"]
    names += sorted(content.keys() - {*names})
    with (
        file.open("wb") as raw,
        gzip.GzipFile("", "wb", mtime=0, fileobj=raw) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for name in names:
            archive.addfile(_plain_entry(*content[name]), io.BytesIO(content[name][1]))


def _as_json(value: Any) -> bytes:
    return json.dumps(value, indent=1).encode()


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(member)
    return stream.read() if stream else b""


def _plain_entry(member: tarfile.TarInfo, content: bytes) -> tarfile.TarInfo:
    """Return the header of an entry, with name, type and executable bit only."""
    entry = tarfile.TarInfo(member.name)
    entry.type, entry.size = member.type, len(content)
    executable = member.isdir() or member.mode & EXECUTABLE
    entry.mode = 0o755 if executable else 0o644
    return entry


if __name__ == "__main__":
    sys.exit(main())
