# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The packages of a driver on a host: versions, holds, and packages to remove.

Private to the collection.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.gpu import branches
from ansible_collections.slipway.host.plugins.module_utils.gpu import host as gpu_host
from ansible_collections.slipway.host.plugins.module_utils.gpu.decision import Decision
from ansible_collections.slipway.host.plugins.module_utils.gpu.facts import is_driver_package

# The driver version in the version of a package: 580.178.04 of 580.178.04-0ubuntu0.24.04.1.
_PACKAGE_VERSION = re.compile(r"(\d{3}\.\d+(?:\.\d+)?)(?:-|$)")
# Excludes kernel numbers, such as the 149 in linux-signatures-nvidia-6.8.0-149-generic.
_NAMED_BRANCH = re.compile(r"(?<!\.\d)-(\d{3})(?=-|$)")
# Names of firmware packages contain the version: several can be installed together.
_NAMED_VERSION = re.compile(r"-(\d{3}\.\d+(?:\.\d+)?)$")
# Driver packages without the driver's version in some distribution.
_OWN_VERSION = frozenset(
    {
        *("nvidia-settings", "nvidia-modprobe", "nvidia-persistenced", "nvidia-prime"),
        *("nvidia-xconfig", "nvidia-support", "nvidia-installer-cleanup", "nvidia-legacy-check"),
        *("nvidia-kernel-common", "nvlsm"),
    }
)
_BOTH_FLAVOURS = ("nvidia-fabricmanager-", "libnvidia-nscq-", "libnvsdm-", "nvidia-imex-")


def installed_driver_packages(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return the installed driver packages of the host FACTS, with their versions."""
    packages: Mapping[str, str] = gpu_host.gpu_facts(facts).get("packages", {})
    return {
        name: version for name, version in packages.items() if _is_installed_driver(name, version)
    }


def _is_installed_driver(name: str, version: str) -> bool:
    """Return whether an installed package is part of a driver, not of CUDA or another product.

    Their names start alike. So a package must have a driver version or a known name.
    """
    is_known = name in _OWN_VERSION or name.startswith(("linux-", "nvidia-driver-pinning-"))
    return is_driver_package(name) and (is_known or bool(driver_version(version)))


def has_driver_version(name: str) -> bool:
    """Return whether the package NAME always has the same version as the driver."""
    return bool(
        is_driver_package(name)
        and name not in _OWN_VERSION
        and not _NAMED_VERSION.search(name)
        and not name.startswith(("linux-", "nvidia-driver-pinning-"))
    )


def driver_version(version: str) -> str:
    """Return the driver's version in the VERSION of a package, empty if it has none."""
    match = _PACKAGE_VERSION.match(version)
    return match[1] if match else ""


def _version_key(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def set_versions(present: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the driver versions of the installed packages, each with its packages."""
    versions: dict[str, list[str]] = {}
    for name, version in sorted(present.items()):
        if has_driver_version(name) and (upstream := driver_version(version)):
            versions.setdefault(upstream, []).append(name)
    return versions


def common_version(present: Mapping[str, str]) -> str | None:
    """Return the driver version of most installed packages, the older version in a tie."""
    versions = set_versions(present)
    if not versions:
        return None
    return min(versions, key=lambda version: (-len(versions[version]), _version_key(version)))


def _is_leftover(name: str, decision: Decision, version: str | None = None) -> bool:
    """Return whether an installed package has another branch, source or VERSION than DECISION."""
    branch, exact = _NAMED_BRANCH.search(name), _NAMED_VERSION.search(name)
    if branch and int(branch[1]) != decision.branch:
        return True
    if exact and version and exact[1] != version:
        return True
    # Ubuntu's archive has two flavours of each branch; only these packages belong to both.
    if decision.source == branches.UBUNTU and branch and not name.startswith(_BOTH_FLAVOURS):
        return "-server" not in name
    return decision.source == branches.CUDA and "-server" in name


def target_version(
    decision: Decision, present: Mapping[str, str], requested: str, gone: str
) -> str | None:
    """Return the driver version to install, None for any version.

    Without a REQUESTED version, it is the installed one. GONE is ``newest`` if a later version of
    the branch may replace a requested version that is no longer in the archive.
    """
    own_packages = {
        name: version for name, version in present.items() if not _is_leftover(name, decision)
    }
    current = common_version(own_packages)
    is_later = (
        current
        and gone == "newest"
        and requested
        and _version_key(current) >= _version_key(requested)
    )
    return current if not requested or is_later else requested


def _is_at_version(name: str, present: Mapping[str, str], version: str) -> bool:
    return name in present and driver_version(present[name]) in ("", version)


def declare_packages(
    decision: Decision, present: Mapping[str, str], version: str | None, pinned: bool, hold: bool
) -> Iterator[dict[str, Any]]:
    """Yield the driver's owned packages: chosen ones, their dependencies, and ones to remove.

    Dependencies are held too: a library of another version breaks the driver. All packages need
    VERSION; if it is not PINNED, only packages with another version get this constraint.
    """
    others = [name for name in sorted(present) if name not in decision.packages]
    for name in (*decision.packages, *others):
        if name in others and _is_leftover(name, decision, version):
            yield {"name": name, "state": "absent"}
            continue
        entry: dict[str, Any] = {"name": name, **_version_constraint(name, version)}
        if not pinned and version and _is_at_version(name, present, version):
            entry.pop("version", None)
        if is_driver_package(name):
            entry["hold"] = hold
        if name in decision.running_kernel_packages:
            # Archives remove packages of older kernels; then install the newest kernel and reboot.
            entry["optional"] = True
        yield entry


def packages_to_upgrade(
    packages: Iterable[Mapping[str, Any]], requested: str
) -> Iterator[Mapping[str, Any]]:
    """Yield the packages for an upgrade, without version constraints or at the REQUESTED version.

    A requested version is required again even if a later version replaced it: the pin in apt's
    preferences allows no other version while an archive has it. Packages with a version in their
    name have no newer version; packages with other names replace them.
    """
    for entry in packages:
        if entry.get("state") == "absent":
            yield entry
        elif _NAMED_VERSION.search(entry["name"]):
            yield {**entry, "replaced": True}
        else:
            unconstrained = {k: v for k, v in entry.items() if k not in ("follows", "version")}
            yield {**unconstrained, **_version_constraint(entry["name"], requested)}


def _version_constraint(name: str, version: str | None) -> dict[str, str]:
    """Return the keys that bind a package to a VERSION of the driver."""
    if version and has_driver_version(name):
        return {"version": f"{version}-*"}
    # Prebuilt modules have the kernel's version and depend on one driver version.
    if version and is_driver_package(name) and name.startswith("linux-"):
        return {"follows": version}
    return {}
