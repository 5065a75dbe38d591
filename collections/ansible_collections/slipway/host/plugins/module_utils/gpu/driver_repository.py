# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The apt source of a driver: NVIDIA's repository, a mirror, or archive areas of the distribution.

Private to the collection.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.apt import sources as apt_sources
from ansible_collections.slipway.host.plugins.module_utils.gpu import branches
from ansible_collections.slipway.host.plugins.module_utils.gpu import host as gpu_host
from ansible_collections.slipway.host.plugins.module_utils.gpu.decision import Decision
from ansible_collections.slipway.host.plugins.module_utils.gpu.model import HostFacts, Refusal

KEYRING = "/etc/apt/keyrings/slipway-nvidia-driver.asc"
SOURCES = "/etc/apt/sources.list.d/slipway-nvidia-driver.sources"
WRITTEN_BY = "# Written by Slipway's role nvidia_driver.\n"


@dataclass(frozen=True)
class Repository:
    """An apt source.

    ``fingerprint`` belongs to the key at ``key_url``. Without a key, apt trusts ``keyring``, the
    path of the distribution's keyring on the host, or all its keyrings if that is empty.
    """

    url: str
    suites: tuple[str, ...]
    components: tuple[str, ...] = ()
    key_url: str = ""
    fingerprint: str = ""
    keyring: str = KEYRING


_CUDA_URL = "https://developer.download.nvidia.com/compute/cuda/repos"
_CUDA_ARCHITECTURES = {"amd64": "x86_64", "arm64": "sbsa"}
_CUDA_KEY_2022 = ("3bf863cc.pub", "EB693B3035CD5710E231E123A4B469963BF863CC")
# Folder, file and fingerprint of the key; each folder is signed by the key in it.
CUDA_KEYS: Mapping[tuple[str, str], tuple[str, str, str]] = {
    ("ubuntu", "22.04"): ("ubuntu2204", *_CUDA_KEY_2022),
    ("ubuntu", "24.04"): ("ubuntu2404", *_CUDA_KEY_2022),
    ("ubuntu", "26.04"): (
        "ubuntu2604",
        "60DF8A40.pub",
        "14BAFBC7562AD710CA04E69905FBB6DA60DF8A40",
    ),
    ("debian", "12"): ("debian12", *_CUDA_KEY_2022),
    ("debian", "13"): ("debian13", "8793F200.pub", "02182E60104FCDC26EAE1B8597A5D4CB8793F200"),
}


def declare_repository(
    facts: Mapping[str, Any], host: HostFacts, decision: Decision, mirror: Mapping[str, str]
) -> Repository | None:
    """Return the repository to declare, None if the host's apt sources have the packages.

    MIRROR is the variable nvidia_driver_repository.
    """
    default = (
        _cuda_repository(host)
        if decision.source == branches.CUDA
        else _archive_repository(facts, host, decision)
    )
    if not mirror.get("url"):
        return default
    if not (mirror.get("key_url") and mirror.get("fingerprint")):
        raise Refusal(
            "nvidia_driver_repository: found a url without key_url and fingerprint; expected all"
            " three. Add the URL and the fingerprint of the repository's key"
        )
    suites = default.suites if default else _suites(facts, host)
    return Repository(
        mirror["url"],
        suites,
        () if suites == ("/",) else decision.components,
        mirror["key_url"],
        mirror["fingerprint"],
    )


def _cuda_repository(host: HostFacts) -> Repository:
    folder, key, fingerprint = CUDA_KEYS[host.distribution, host.release]
    url = f"{_CUDA_URL}/{folder}/{_CUDA_ARCHITECTURES[host.architecture]}/"
    return Repository(url, ("/",), (), url + key, fingerprint)


def _archive_repository(
    facts: Mapping[str, Any], host: HostFacts, decision: Decision
) -> Repository | None:
    """Return the distribution's archive with the areas that the host does not use yet.

    Address and key are those of the host's own source: apt fails if two files name one suite of an
    address with different keys.
    """
    enabled = gpu_host.gpu_facts(facts).get("components", ())
    missing = tuple(area for area in decision.components if area not in enabled)
    if not missing:
        return None
    suites = _suites(facts, host)
    for uri, suite, components, signed_by in _all_sources(facts):
        if suite == suites[0] and "main" in components:
            return Repository(uri, suites, missing, keyring=signed_by)
    if host.distribution == "debian":
        url, keyring = "http://ftp.debian.org/debian", "debian-archive-keyring.gpg"
    else:
        main = host.architecture == "amd64"
        url = "http://archive.ubuntu.com/ubuntu" if main else "http://ports.ubuntu.com/ubuntu-ports"
        keyring = "ubuntu-archive-keyring.gpg"
    return Repository(url, suites, missing, keyring=f"/usr/share/keyrings/{keyring}")


def _all_sources(facts: Mapping[str, Any]) -> Iterator[tuple[str, str, Sequence[str], str]]:
    """Yield the sources of the host, without those of this role."""
    for path, entries in facts.get("apt_sources", {}).items():
        if path != SOURCES:
            yield from entries


def _suites(facts: Mapping[str, Any], host: HostFacts) -> tuple[str, ...]:
    codename = facts["distribution_release"]
    if host.release == "sid":
        return ("unstable",)
    if host.distribution == "debian":
        return (codename, f"{codename}-updates")
    return (codename, f"{codename}-updates", f"{codename}-security")


def repository_files(
    facts: Mapping[str, Any], repository: Repository | None
) -> Iterator[dict[str, Any]]:
    """Yield the apt source file of a repository, and obsolete files, as owned files."""
    if repository is None or not repository.key_url:
        yield {"path": KEYRING, "state": "absent"}
    if repository is None:
        yield {"path": SOURCES, "state": "absent"}
        return
    sources_file = _sources_file(repository)
    yield from apt_sources.replaced_files(facts, sources_file)
    yield sources_file


def repository_conflicts(facts: Mapping[str, Any], repository: Repository | None) -> list[str]:
    """Return why the apt source file of a repository cannot be written."""
    return apt_sources.mixed_files(facts, _sources_file(repository)) if repository else []


def _sources_file(repository: Repository) -> dict[str, str]:
    components = f"Components: {' '.join(repository.components)}\n" if repository.components else ""
    signed_by = f"Signed-By: {repository.keyring}\n" if repository.keyring else ""
    content = (
        f"{WRITTEN_BY}Types: deb\nURIs: {repository.url}\nSuites: {' '.join(repository.suites)}\n"
        f"{components}{signed_by}"
    )
    return {"path": SOURCES, "content": content}
