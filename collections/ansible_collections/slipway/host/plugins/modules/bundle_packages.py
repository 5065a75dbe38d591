#!/usr/bin/python
# Copyright: Slipway contributors
# GNU General Public License v3.0+ (see LICENSE)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module slipway.host.bundle_packages: download packages; its action plugin copies them."""

from __future__ import annotations

DOCUMENTATION = r"""
module: bundle_packages
short_description: Copy the packages that roles install to a folder on the controller
description:
  - Downloads packages and everything that they depend on, from the apt sources of the host and of
    the roles. apt checks their signatures. Copies the packages to a folder on the controller, from
    which a bundle is made.
  - The packages, sources and package lists of the host stay as they are.
  - The packages are those of a fresh host without a network. Run this on one host at a time.
  - A host without GPUs downloads the driver of the GPUs in the variable C(slipway_bundle_gpus), for
    the kernel in C(slipway_bundle_kernel).
options:
  roles:
    description: Roles whose packages are copied; set on the controller only.
    type: list
    elements: str
  folder:
    description: Folder on the controller. It is created. Set on the controller only.
    type: path
  names:
    description: Packages to download, as in apt. Set by the action plugin, from O(roles).
    type: list
    elements: str
  optional:
    description: Packages to download if a source has them. Set by the action plugin.
    type: list
    elements: str
    default: []
  first:
    description: Packages whose apt preferences choose the other ones. Set by the action plugin.
    type: list
    elements: str
    default: []
  files:
    description: Files of the roles in C(/etc/apt), by path. Set by the action plugin.
    type: dict
    default: {}
  keys:
    description: Address and fingerprint of keys in C(/etc/apt), by path. Set by the action plugin.
    type: dict
    default: {}
  work:
    description: New folder on the host, which the action plugin removes. Set by the action plugin.
    type: path
attributes:
  check_mode:
    description: Copies nothing.
    support: full
  diff_mode:
    description: Shows nothing.
    support: none
author:
  - Slipway contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Copy the packages of Docker Engine to the controller
  slipway.host.bundle_packages:
    roles: [docker_engine]
    folder: /srv/packages
"""

RETURN = r"""
received:
  description: Bytes that the controller received.
  returned: always
  type: int
"""

import hashlib
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.apt import (
    bundle_source,
    changes,
    key_download,
    openpgp,
)
from ansible_collections.slipway.host.plugins.module_utils.apt.run import Apt, AptError
from ansible_collections.slipway.host.plugins.module_utils.host.module import HostModule

ARGUMENT_SPEC: dict[str, Any] = {
    "roles": {"type": "list", "elements": "str"},
    "folder": {"type": "path"},
    "names": {"type": "list", "elements": "str"},
    "optional": {"type": "list", "elements": "str", "default": []},
    "first": {"type": "list", "elements": "str", "default": []},
    "files": {"type": "dict", "default": {}},
    "keys": {"type": "dict", "default": {}, "no_log": False},
    "work": {"type": "path"},
}
LOCK_TIMEOUT = 300
CHUNK = 1 << 20
APT = "/etc/apt"
LOCAL = re.compile(r"(?<=\s)file:(?=/)")
SOURCES, PREFERENCES = "sources.list", "preferences"


def write_settings(
    folder: Path, files: Mapping[str, str | None], keys: Mapping[str, Any], root: str = APT
) -> None:
    """Write a copy of the sources and preferences of the host, with those of the roles.

    FILES: content by path, None for a file that is not there. KEYS: url and fingerprint by path.
    ROOT: apt's folder. Raise KeyDownloadError.
    """
    for name in (SOURCES, PREFERENCES):
        (folder / f"{name}.d").mkdir(parents=True)
        for source in (Path(root, name), *Path(root, f"{name}.d").glob("*")):
            if source.is_file():
                shutil.copyfile(source, folder / source.relative_to(root))
    for path, content in files.items():
        target = folder / Path(path).relative_to(APT)
        target.unlink(missing_ok=True)
        if content is not None:
            target.write_text(content)
    for path, key in keys.items():
        target = folder / Path(path).name
        fingerprint = openpgp.normalize_fingerprint(key["fingerprint"])
        packets = key_download.download(key["url"], fingerprint)
        is_text = path.endswith(".asc")
        target.write_bytes(openpgp.to_text(packets).encode() if is_text else packets)
    for source in filter(Path.is_file, (folder / SOURCES, *(folder / f"{SOURCES}.d").iterdir())):
        # apt copies no package of a file: source to its cache.
        text = LOCAL.sub("copy:", source.read_text())
        # apt fails if two files name one repository with different keys.
        for path in keys:
            text = text.replace(path, str(folder / Path(path).name))
        source.write_text(text)
    for written in (folder, *folder.rglob("*")):
        written.chmod(0o755 if written.is_dir() else 0o644)


def use_preferences(apt: Apt, work: Path, first: list[str]) -> None:
    """Download the packages FIRST, and use the apt preferences in them."""
    if first:
        install = ["apt-get", *changes.OPTIONS, "install", "--", *first]
        apt.change(changes.dry_run(install, "--download-only"))
    for name in first:
        for file in (work / "archives").glob(f"{name}_*.deb"):
            subprocess.run(["dpkg-deb", "--extract", file, work / name], check=True)
        for file in (work / name / APT[1:] / f"{PREFERENCES}.d").glob("*"):
            shutil.copyfile(file, work / f"etc/{PREFERENCES}.d" / file.name)


def download(apt: Apt, work: Path, names: list[str], optional: list[str], first: list[str]) -> None:
    """Download packages with all dependencies, as for a host without any package."""
    apt.refresh()
    if apt.unusable:
        # Other sources may have the same packages in older versions.
        errors = " ".join(changes.merge_sources(apt.unusable))
        raise AptError(f"Cannot find the newest versions. {errors}")
    use_preferences(apt, work, first)
    names = [*names, *apt.available(optional)]
    install = ["apt-get", *changes.OPTIONS, "install", "--", *names]
    apt.change(changes.dry_run(install, "--download-only"), activity="the download of the packages")
    downloaded = {file.name.partition("_")[0] for file in (work / "archives").glob("*.deb")}
    if missing := sorted({name.partition("=")[0] for name in names} - downloaded):
        raise AptError(
            f"apt downloaded no file of {', '.join(missing)}; expected one of each package. Use "
            "apt sources with http, https or file addresses on this host."
        )


def describe(file: Path) -> dict[str, Any]:
    """Return name, size, SHA-256 and control fields of a package file; anybody may read it then."""
    command = ["dpkg-deb", "--field", str(file)]
    control = subprocess.run(command, capture_output=True, check=True).stdout
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while chunk := content.read(CHUNK):
            digest.update(chunk)
    file.chmod(0o644)
    return {
        "file": file.name,
        "size": file.stat().st_size,
        "sha256": digest.hexdigest(),
        "control": control.decode("utf-8", "replace"),
    }


def main() -> None:
    """Run the module."""
    module = HostModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    work = Path(module.params["work"])
    archives = work / "archives"
    (archives / "partial").mkdir(parents=True)
    (work / "status").touch()
    # The connecting user reads the packages, which are no secret.
    for folder in (work, archives):
        folder.chmod(0o755)
    settings = (
        f"Dir::State::Lists={work}/lists",
        f"Dir::State::status={work}/status",
        f"Dir::State::extended_states={work}/extended",
        f"Dir::Cache::archives={archives}",
        f"Dir::Etc::SourceList={work}/etc/{SOURCES}",
        f"Dir::Etc::SourceParts={work}/etc/{SOURCES}.d",
        f"Dir::Etc::Preferences={work}/etc/{PREFERENCES}",
        f"Dir::Etc::PreferencesParts={work}/etc/{PREFERENCES}.d",
        *bundle_source.WITHOUT_CACHE,
    )
    (work / "lists/partial").mkdir(parents=True)
    apt = Apt(module, LOCK_TIMEOUT, [f"--option={setting}" for setting in settings])
    try:
        write_settings(work / "etc", module.params["files"], module.params["keys"])
        download(apt, work, *(module.params[name] for name in ("names", "optional", "first")))
    except (AptError, key_download.KeyDownloadError) as error:
        module.fail_json(msg=str(error), output=getattr(error, "output", ""))
    module.exit_json(changed=False, packages=[*map(describe, sorted(archives.glob("*.deb")))])


if __name__ == "__main__":
    main()
