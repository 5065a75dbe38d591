# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Debian packages in a bundle: for each release and architecture a folder that apt reads.

A folder ``packages/debian-trixie-x86_64`` has the index ``Packages`` and the package files below
``pool``. The signed manifest of the bundle has their SHA-256.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.apt import changes
from ansible_collections.slipway.host.plugins.plugin_utils.bundle.archive import copy
from ansible_collections.slipway.host.plugins.plugin_utils.bundle.manifest import (
    MAX_PATH,
    BundleError,
    Manifest,
)
from ansible_collections.slipway.host.plugins.plugin_utils.bundle.reading import Bundle

FOLDER, INDEX, POOL, CONTROL = "packages", "Packages", "pool", "control"
RELEASE = re.compile(r"[a-z0-9][a-z0-9._-]{1,99}")
FILE = re.compile(r"[a-z0-9][a-z0-9.+-]+_[A-Za-z0-9.+~_-]+_[a-z0-9]+\.deb")
# Fields of the index that the controller writes.
OWN_FIELDS = re.compile(r"(?im)^(filename|size|sha\d+|md5sum):")
MAX_CONTROL = 1 << 20


@dataclass(frozen=True)
class Index:
    """The packages for one release.

    folder: path in the bundle. sha256: of the index. packages: names and versions in it.
    """

    folder: str
    sha256: str
    packages: frozenset[tuple[str, str]]

    def has(self, word: str) -> bool:
        """Return whether the index has a package, given as in apt: ``name`` or ``name=version``.

        A version with ``*`` is a wish: a role installs another one if no source has it.
        """
        name, _equals, version = word.partition("=")
        if version and not version.endswith("*"):
            return (name, version) in self.packages
        return any(name == one for one, _version in self.packages)


def release_of(facts: Mapping[str, Any]) -> str:
    """Return release and architecture of a host, such as ``debian-trixie-x86_64``."""
    names = ("distribution", "distribution_release", "architecture")
    return "-".join(str(facts[name]).lower() for name in names)


def list_releases(manifest: Manifest) -> list[str]:
    """Return the releases for which a bundle has packages, as :func:`release_of` names them."""
    paths = (entry.path.split("/") for entry in manifest.files)
    return [path[1] for path in paths if len(path) == 3 and path[::2] == [FOLDER, INDEX]]


def read_index(bundle: Bundle, facts: Mapping[str, Any]) -> Index:
    """Return the packages of a bundle for a host; raise BundleError if it has none."""
    release, releases = release_of(facts), list_releases(bundle.manifest)
    if release not in releases:
        raise BundleError(
            f"{bundle.path} has packages for {', '.join(releases)}; expected {release}. Make the "
            "bundle with --packages from such a host."
        )
    folder = f"{FOLDER}/{release}"
    (entry,) = (one for one in bundle.manifest.files if one.path == f"{folder}/{INDEX}")
    text = bundle.read(entry).decode("utf-8", "replace")
    found = (dict(re.findall(r"(?m)^(Package|Version): (\S+)$", one)) for one in text.split("\n\n"))
    versions = frozenset((one.get("Package", ""), one.get("Version", "")) for one in found)
    return Index(folder, entry.sha256, versions)


def list_present(owned: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the packages in the owned state of a role that must be installed."""
    entries = owned.get("packages", ())
    return [entry for entry in entries if entry.get("state", "present") == "present"]


def check_index(
    bundle: Bundle,
    facts: Mapping[str, Any],
    owned: Mapping[str, Mapping[str, Any]],
    states: Mapping[str, Any],
) -> None:
    """Raise BundleError if a bundle lacks a package that a host needs.

    OWNED: owned state of the roles that will run. STATES: of the packages on the host, see
    :func:`changes.compare`.
    """
    index = read_index(bundle, facts)
    actions = changes.compare([*chain(*map(list_present, owned.values()))], states)
    # Without the headers of its kernel, the host cannot build modules.
    headers = [name for name in actions.optional if name.startswith("linux-headers-")]
    needed = [*actions.install, *headers]
    missing = sorted({word for word in needed if not index.has(word)})
    if missing:
        raise BundleError(
            f"{bundle.path} has no package {', '.join(missing)} for {release_of(facts)}; expected "
            "all packages that the roles install. Make the bundle with --packages from a host "
            "with the same settings."
        )


class Pool:
    """Package files for one release in a folder of the controller, and their index."""

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        release = release_of(facts)
        if not RELEASE.fullmatch(release):
            raise BundleError(
                f"release {release[:100]!r}: special characters; expected letters, digits and "
                "._-. Check /etc/os-release of the host."
            )
        self.folder = folder / release
        for name in (POOL, CONTROL):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    def place(self, described: Mapping[str, Any]) -> Path | None:
        """Return where to write a package file; None if the pool has these bytes.

        DESCRIBED: file name, size, sha256 and control fields, as the host gives them.
        """
        name = str(described["file"]).replace("%3a", "_")
        stanza = self._stanza(name, described)
        path, control = self.folder / POOL / name, self.folder / CONTROL / name
        if not control.exists():
            return path
        if control.read_text(encoding="utf-8") != stanza:
            raise BundleError(
                f"package {name}: two hosts have different files; expected the same. Use hosts "
                "with the same apt sources."
            )
        return None

    def add(self, described: Mapping[str, Any]) -> None:
        """Check a package file that was written to its :meth:`place`, and add it to the index."""
        name = str(described["file"]).replace("%3a", "_")
        path, stanza = self.folder / POOL / name, self._stanza(name, described)
        size = path.stat().st_size
        with path.open("rb") as content:
            found = copy(content, size, lambda _: None)
        if (size, found) != (described["size"], described["sha256"]):
            raise BundleError(
                f"package {name}: {size} bytes with SHA-256 {found}; expected {described['size']} "
                f"bytes with {described['sha256']}. Run again."
            )
        (self.folder / CONTROL / name).write_text(stanza, encoding="utf-8")
        controls = sorted((self.folder / CONTROL).iterdir())
        index = "\n".join(one.read_text(encoding="utf-8") for one in controls)
        (self.folder / INDEX).write_text(index, encoding="utf-8")

    def _stanza(self, name: str, described: Mapping[str, Any]) -> str:
        """Return the paragraph of a package in the index."""
        control = str(described["control"]).strip("\n")
        # A blank line would begin another package.
        is_valid = (
            FILE.fullmatch(name)
            and len(f"{FOLDER}/{self.folder.name}/{POOL}/{name}") <= MAX_PATH
            and re.fullmatch(r"[0-9a-f]{64}", str(described["sha256"]))
            and type(described["size"]) is int
            and len(control) <= MAX_CONTROL
            and re.search(rf"(?m)^Package: {re.escape(name.partition('_')[0])}$", control)
            and all(line.strip() for line in control.split("\n"))
            and not OWN_FIELDS.search(control)
        )
        if not is_valid:
            raise BundleError(
                f"package {name[:MAX_PATH]!r}: invalid name or control fields; expected a package "
                "of Debian or Ubuntu. Check the apt sources of the host."
            )
        return (
            f"{control}\nFilename: {POOL}/{name}\nSize: {described['size']}\n"
            f"SHA256: {described['sha256']}\n"
        )


def pool_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield path in the bundle and file of each file of the pools in a folder."""
    pools: Iterable[Path] = sorted(folder.iterdir()) if folder.exists() else ()
    for pool in pools:
        for path in (pool / INDEX, *(pool / POOL).iterdir()):
            yield f"{FOLDER}/{path.relative_to(folder)}", path
