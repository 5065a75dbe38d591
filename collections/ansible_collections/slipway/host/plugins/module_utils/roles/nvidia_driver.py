# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan of the role nvidia_driver: the driver of a host and the owned state.

``gpu.decision`` selects the driver. This file turns the decision into packages with versions and
holds, their repository, and the files that protect them from other changes.

Private to the collection.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.apt.package_record import asked_again
from ansible_collections.slipway.host.plugins.module_utils.gpu import host as gpu_host
from ansible_collections.slipway.host.plugins.module_utils.gpu import tables as data
from ansible_collections.slipway.host.plugins.module_utils.gpu.decision import (
    Decision,
    decide,
    driver_misfit,
)
from ansible_collections.slipway.host.plugins.module_utils.gpu.detection import DRIVER_PACKAGE
from ansible_collections.slipway.host.plugins.module_utils.gpu.model import (
    AUTO,
    HostFacts,
    Wanted,
)
from ansible_collections.slipway.host.plugins.module_utils.gpu.packages import PREBUILT

DISTRIBUTION = "distribution"
KEEP = "keep"

KEYRING = "/etc/apt/keyrings/slipway-nvidia-driver.asc"
SOURCES = "/etc/apt/sources.list.d/slipway-nvidia-driver.sources"
PREFERENCES = "/etc/apt/preferences.d/slipway-nvidia-driver.pref"
UNATTENDED = "/etc/apt/apt.conf.d/60slipway-nvidia-driver"
MODPROBE = "/etc/modprobe.d/slipway-nvidia-driver.conf"
MODULES_LOAD = "/etc/modules-load.d/slipway-nvidia-driver.conf"
PERSISTENCE = "/etc/systemd/system/nvidia-persistenced.service.d/slipway.conf"
DAEMONS = ("nvidia-persistenced.service", "nvidia-fabricmanager.service")
WRITTEN_BY = "# Written by Slipway's role nvidia_driver.\n"

# The version of a driver package up to its revision: 580.178.04 of 580.178.04-0ubuntu0.24.04.1.
_PACKAGE_VERSION = re.compile(r"(\d{3}\.\d+(?:\.\d+)?)-")
_DRIVER_VERSION = re.compile(r"\d{3}\.\d+(?:\.\d+)?")
# Not the 149 of linux-signatures-nvidia-6.8.0-149-generic: that is a kernel version.
_NAMED_BRANCH = re.compile(r"(?<!\.\d)-(\d{3})(?=-|$)")
# In names of firmware packages, for example: several versions can be installed together.
_NAMED_VERSION = re.compile(r"-(\d{3}\.\d+(?:\.\d+)?)$")
# Driver packages whose version is not that of the driver, in at least one distribution.
_SEPARATE_VERSIONS = frozenset(
    {
        *("nvidia-settings", "nvidia-modprobe", "nvidia-persistenced", "nvidia-prime"),
        *("nvidia-xconfig", "nvidia-support", "nvidia-installer-cleanup", "nvidia-legacy-check"),
        *("nvidia-kernel-common", "nvlsm"),
    }
)

# Packages that install Ubuntu's driver with desktop parts, which is not the -server flavour.
_DESKTOP_FLAVOUR = re.compile(r"nvidia-(driver|headless|headless-no-dkms)-\d{3}(-open)?")
_BOTH_FLAVOURS = ("nvidia-fabricmanager-", "libnvidia-nscq-", "libnvsdm-", "nvidia-imex-")

# Driver packages as patterns of apt_preferences(5). The last one excludes libnvidia-container.
_APT_PATTERNS = (
    "cuda-drivers* libcuda1 libnvcuvid1 libnvsdm* nvidia-alternative* nvidia-compute-utils* "
    "nvidia-dkms* nvidia-driver* nvidia-fabricmanager* nvidia-firmware* nvidia-headless* "
    "nvidia-kernel* nvidia-modprobe nvidia-open* nvidia-persistenced nvidia-smi nvidia-utils* "
    "/^libnvidia-([^c]|c[^o]|co[^n])/"
)
# The same for unattended-upgrades: Python regular expressions for the beginning of a name.
_UNATTENDED_PATTERNS = (
    "nvidia-(?!container)",
    "libnvidia-(?!container)",
    "linux-(modules|objects|signatures)-nvidia-",
    "libcuda1$",
    "libnvcuvid1$",
    "libnvsdm",
    "nvlsm$",
    "cuda-drivers",
    "firmware-nvidia-",
)


@dataclass(frozen=True)
class Repository:
    """An apt repository.

    ``fingerprint`` belongs to the key at ``key_url``. Without both, apt trusts ``keyring``, the
    path of the distribution's keyring on the host.
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
# Folder of the repository, and file name and fingerprint of the key in this folder.
_CUDA_KEYS: Mapping[tuple[str, str], tuple[str, str, str]] = {
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
# Files of NVIDIA's package cuda-keyring. apt fails if two files declare the same repository with
# different key files.
_CUDA_LISTS = ("cuda.list", "cuda-{folder}-{architecture}.list")


class _SettingsError(Exception):
    """The options conflict with each other or with the host; the message is a sentence."""


def plan(facts: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the driver of a host and the ``owned`` state that follows.

    FACTS is ``ansible_facts['slipway']``, OPTIONS the role's options. The result has ``needed`` (a
    GPU of this host needs a driver), ``managed`` (this role installs it), ``source``, ``branch``,
    ``modules``, ``reason`` and ``notes`` for people, ``key_url``, ``first`` (packages to install
    before all others) and ``newest`` (packages that an upgrade changes). Unsupported settings are
    in ``owned['refused']``.
    """
    host = gpu_host.host_facts(facts)
    present = _driver_packages(facts)
    if options["nvidia_driver_state"] == "absent":
        return _removal(present, host)
    source, version = options["nvidia_driver_source"], options["nvidia_driver_version"]
    fallback = options["nvidia_driver_version_fallback"]
    hold, hold_kernel = options["nvidia_driver_hold"], options["nvidia_driver_hold_kernel"]
    try:
        wanted = _wanted(host, options)
        decision = _decide_with_installed(host, wanted, present)
        if not decision.needed:
            return _result(decision)
        if source == KEEP:
            return _unmanaged(facts, host)
        _refuse_foreign_driver(facts, present)
        if source == AUTO:
            _refuse_desktop_flavour(present)
        if not decision.supported:
            raise _SettingsError(decision.reason)
        where = _repository(facts, host, decision, options["nvidia_driver_repository"])
    except _SettingsError as problem:
        return _result(Decision(False, str(problem)), refused=[str(problem).rstrip(".")])
    chosen = _set_version(decision, present, version, fallback)
    packages = [
        *_packages(decision, present, chosen, chosen == version, hold),
        *(
            {"name": f"linux-image-{meta}", "hold": hold and hold_kernel}
            for meta in host.kernel_metas
            if decision.build == PREBUILT
        ),
    ]
    pin = [entry for entry in packages if entry["name"] == decision.pin_package]
    variables = "nvidia_driver_branch, nvidia_driver_version"
    owned = {
        "refused": []
        if options["nvidia_driver_upgrade"]
        else asked_again(facts, packages, variables),
        "keyrings": [{"path": KEYRING, "fingerprint": where.fingerprint}]
        if where and where.key_url
        else [],
        "files": [
            *_repository_files(where, host, decision),
            {"path": PREFERENCES, "content": _preferences(decision, version)},
            {"path": UNATTENDED, "content": _unattended(host, decision, hold_kernel)}
            if hold
            else {"path": UNATTENDED, "state": "absent"},
            {"path": MODPROBE, "content": _modprobe()},
            {"path": MODULES_LOAD, "content": _modules_load(decision)},
            {"path": PERSISTENCE, "content": _persistence()}
            if decision.source == data.UBUNTU
            else {"path": PERSISTENCE, "state": "absent"},
        ],
        "packages": packages,
        "derived": [{"path": f"/boot/initrd.img-{host.kernel}", "since": [MODPROBE]}],
        "modules": _kernel_modules(decision, present),
        "units": [
            {
                "name": DAEMONS[0],
                "enabled": True,
                "active": True,
                "since": [PERSISTENCE] if decision.source == data.UBUNTU else [],
            },
            *(
                {"name": DAEMONS[1], "enabled": True, "active": True}
                for _ in range(decision.fabric_manager)
            ),
        ],
    }
    return _result(
        decision,
        owned,
        managed=True,
        first=pin,
        newest=_upgrade_packages(packages, version),
        version_fallback=fallback,
        key_url=where.key_url if where else "",
    )


def _result(
    decision: Decision,
    owned: Mapping[str, Any] | None = None,
    *,
    managed: bool = False,
    refused: Iterable[str] = (),
    first: Iterable[Mapping[str, Any]] = (),
    newest: Iterable[Mapping[str, Any]] = (),
    version_fallback: str = "none",
    key_url: str = "",
) -> dict[str, Any]:
    return {
        "needed": decision.needed,
        "managed": managed,
        "source": decision.source,
        "branch": decision.branch,
        "modules": decision.modules,
        "reason": decision.reason,
        "notes": list(decision.warnings),
        "key_url": key_url,
        "first": list(first),
        "newest": list(newest),
        "version_fallback": version_fallback,
        "owned": dict(owned or {"refused": list(refused)}),
    }


# --- decision -----------------------------------------------------------------------------------


def _wanted(host: HostFacts, options: Mapping[str, Any]) -> Wanted:
    """Return the role's options as input of the decision."""
    source, version = options["nvidia_driver_source"], options["nvidia_driver_version"]
    modules = options["nvidia_driver_modules"]
    if version and not isinstance(version, str):
        raise _SettingsError(
            f"nvidia_driver_version is the number {version}; expected text. Put the version in "
            "quotes"
        )
    if version and not _DRIVER_VERSION.fullmatch(version):
        raise _SettingsError(
            f"nvidia_driver_version is {version!r}; expected a version such as 580.178.04. Change "
            "the version"
        )
    number = _branch_number(options["nvidia_driver_branch"])
    if version:
        version_branch = int(version.split(".")[0])
        if number not in (None, version_branch):
            raise _SettingsError(
                f"nvidia_driver_version {version} belongs to branch {version_branch}, but "
                f"nvidia_driver_branch is {number}; expected the same branch. Remove one of the two"
            )
        number = version_branch
    # A driver that Slipway does not manage can have any source.
    source_choice = {AUTO: AUTO, KEEP: AUTO, DISTRIBUTION: host.distribution}.get(source, source)
    return Wanted(
        source_choice, number, None if modules == AUTO else modules, options["nvidia_driver_video"]
    )


def _branch_number(branch: int | str) -> int | None:
    if str(branch) == AUTO:
        return None
    if re.fullmatch(r"\d{3}", str(branch)):
        return int(branch)
    raise _SettingsError(
        f"nvidia_driver_branch is {branch!r}; expected auto or a number such as 580. Change the "
        "branch"
    )


def _decide_with_installed(host: HostFacts, wanted: Wanted, present: Mapping[str, str]) -> Decision:
    """Decide with the source, branch and modules of the installed driver as defaults.

    So a host keeps its branch when the project's default changes, until an option names another.
    """
    fresh = decide(host, wanted)
    installed = _installed(present)
    if installed is None or not fresh.needed:
        return fresh
    adopted = decide(
        host,
        Wanted(
            installed.source if wanted.source == AUTO else wanted.source,
            installed.branch if wanted.branch is None else wanted.branch,
            installed.modules if wanted.modules is None else wanted.modules,
            wanted.video,
        ),
    )
    if not adopted.supported or adopted == fresh:
        return fresh
    return replace(
        adopted,
        reason=f"{adopted.reason} This driver is installed and is kept, unless "
        "nvidia_driver_source, nvidia_driver_branch or nvidia_driver_modules selects another.",
    )


def _installed(present: Mapping[str, str]) -> Wanted | None:
    """Return source, branch and modules of an installed driver that this role can manage."""
    for name in present:
        if match := re.fullmatch(r"nvidia-headless-no-dkms-(\d{3})-server(-open)?", name):
            flavour = data.OPEN if match[2] else data.PROPRIETARY
            return Wanted(data.UBUNTU, int(match[1]), flavour)
    pins = [name for name in present if name.startswith("nvidia-driver-pinning-")]
    is_open = any(
        re.fullmatch(r"nvidia-(dkms(-\d{3})?-open|kernel-open-dkms|open-kernel-dkms)", name)
        for name in present
    )
    flavour = data.OPEN if is_open else data.PROPRIETARY
    version = _common_version(present)
    if version is None:
        return None
    if pins:
        return Wanted(data.CUDA, int(version.split(".")[0]), flavour)
    if {"nvidia-kernel-dkms", "nvidia-open-kernel-dkms"} & set(present):
        return Wanted(data.DEBIAN, int(version.split(".")[0]), flavour)
    return None


def _refuse_foreign_driver(facts: Mapping[str, Any], present: Mapping[str, str]) -> None:
    """Refuse to install over a driver that was not installed by apt."""
    keep = f"or set nvidia_driver_source to {KEEP} to keep it"
    if gpu_host.gpu_facts(facts)["run_installer"]:
        raise _SettingsError(
            "the driver was installed by NVIDIA's .run installer; expected a driver from packages, "
            "because packages would overwrite parts of the installed one. Remove the driver first "
            f"(nvidia-uninstall), {keep}"
        )
    loaded = gpu_host.loaded(facts)
    if loaded and not present:
        raise _SettingsError(
            f"driver {loaded.version} is loaded, but no package owns it; expected a driver from "
            f"packages. Remove the driver first, {keep}"
        )


def _refuse_desktop_flavour(present: Mapping[str, str]) -> None:
    """Refuse to replace a driver with desktop parts, unless an option selects the source."""
    desktop_packages = [name for name in sorted(present) if _DESKTOP_FLAVOUR.fullmatch(name)]
    if desktop_packages and _installed(present) is None:
        raise _SettingsError(
            f"{desktop_packages[-1]} with desktop parts is installed; expected the -server "
            f"flavour, which has none. Set nvidia_driver_source to {DISTRIBUTION} to replace the "
            f"driver, or to {KEEP} to keep it"
        )


def _unmanaged(facts: Mapping[str, Any], host: HostFacts) -> dict[str, Any]:
    """Return the plan of a host whose driver Slipway does not manage, but checks."""
    loaded = gpu_host.loaded(facts)
    if loaded is None:
        why = (
            f"nvidia_driver_source is {KEEP}, but no NVIDIA driver is loaded; expected a loaded "
            "driver. Install and load a driver, or set another nvidia_driver_source"
        )
        return _result(Decision(False, why), refused=[why])
    branch = int(loaded.version.split(".")[0])
    if misfit := driver_misfit(host.gpus, branch, loaded.modules):
        return _result(Decision(False, misfit), refused=[misfit.rstrip(".")])
    flavour = f" with {loaded.modules} kernel modules" if loaded.modules else ""
    reason = f"Driver {loaded.version}{flavour} is loaded; Slipway does not change it."
    decision = Decision(True, reason, source=KEEP, branch=branch, modules=loaded.modules)
    return _result(decision, {"refused": [], "modules": [{"name": "nvidia"}]})


# --- packages ----------------------------------------------------------------------------------


def _driver_packages(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return the installed packages of the driver with their versions."""
    packages: Mapping[str, str] = gpu_host.gpu_facts(facts).get("packages", {})
    return {
        name: version for name, version in packages.items() if _is_driver_package(name, version)
    }


def _is_driver_package(name: str, version: str) -> bool:
    """Return whether an installed package belongs to the driver, not to a CUDA toolkit.

    The names begin alike. A driver package has the version of a driver, or a known name.
    """
    known = name in _SEPARATE_VERSIONS or name.startswith(("linux-", "nvidia-driver-pinning-"))
    return bool(DRIVER_PACKAGE.match(name)) and (known or bool(_upstream(version)))


def _carries_version(name: str) -> bool:
    """Return whether a package must have the version of the set."""
    return bool(
        DRIVER_PACKAGE.match(name)
        and name not in _SEPARATE_VERSIONS
        and not _NAMED_VERSION.search(name)
        and not name.startswith(("linux-", "nvidia-driver-pinning-"))
    )


def _upstream(version: str) -> str:
    match = _PACKAGE_VERSION.match(version)
    return match[1] if match else ""


def _order(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _common_version(present: Mapping[str, str]) -> str | None:
    """Return the most frequent driver version of the installed set; of two, the older one."""
    counts = Counter(
        upstream
        for name, version in present.items()
        if _carries_version(name) and (upstream := _upstream(version))
    )
    if not counts:
        return None
    return min(counts, key=lambda version: (-counts[version], _order(version)))


def _is_leftover(name: str, decision: Decision, version: str | None = None) -> bool:
    """Return whether an installed package has another branch, source or VERSION than the set."""
    branch, exact = _NAMED_BRANCH.search(name), _NAMED_VERSION.search(name)
    if branch and int(branch[1]) != decision.branch:
        return True
    if exact and version and exact[1] != version:
        return True
    # Ubuntu's archive has two flavours of each branch; only these packages serve both.
    if decision.source == data.UBUNTU and branch and not name.startswith(_BOTH_FLAVOURS):
        return "-server" not in name
    return decision.source == data.CUDA and "-server" in name


def _set_version(
    decision: Decision, present: Mapping[str, str], declared_version: str, fallback: str
) -> str | None:
    """Return the version that the set must have, None for any version.

    Without a declared version, the set keeps its most frequent version. With the fallback
    ``newest``, any later version of the branch counts as the declared version.
    """
    kept = {name: version for name, version in present.items() if not _is_leftover(name, decision)}
    current = _common_version(kept)
    if not declared_version:
        return current
    is_later = current and _order(current) >= _order(declared_version)
    return current if fallback == "newest" and is_later else declared_version


def _has_version(name: str, present: Mapping[str, str], version: str) -> bool:
    return name in present and _upstream(present[name]) in ("", version)


def _packages(
    decision: Decision, present: Mapping[str, str], version: str | None, pinned: bool, hold: bool
) -> Iterator[dict[str, Any]]:
    """Yield the set as owned packages: selected packages, their dependencies, and leftovers.

    Dependencies are held as well, because a library with another version breaks the driver. All
    packages must have VERSION. Unless it is PINNED, only those with another version state it.
    """
    rest = [name for name in sorted(present) if name not in decision.packages]
    for name in (*decision.packages, *rest):
        if name in rest and _is_leftover(name, decision, version):
            yield {"name": name, "state": "absent"}
            continue
        entry: dict[str, Any] = {"name": name, **_version_keys(name, version)}
        if not pinned and version and _has_version(name, present, version):
            entry.pop("version", None)
        if DRIVER_PACKAGE.match(name):
            entry["hold"] = hold
        if name in decision.running_kernel_packages:
            # Archives drop the modules of older kernels. The newest kernel and a reboot help then.
            entry["optional"] = True
        yield entry


def _upgrade_packages(
    packages: Iterable[Mapping[str, Any]], declared_version: str
) -> Iterator[Mapping[str, Any]]:
    """Yield the set for an upgrade: without versions, unless a version is declared.

    The declared version is requested again even if a later one replaced it, because its apt pin
    blocks other versions once an archive has it. Packages with a version in their name have no
    newer versions: other packages replace them.
    """
    for entry in packages:
        if entry.get("state") == "absent":
            yield entry
        elif _NAMED_VERSION.search(entry["name"]):
            yield {**entry, "replaced": True}
        else:
            unversioned = {k: v for k, v in entry.items() if k not in ("follows", "version")}
            yield {**unversioned, **_version_keys(entry["name"], declared_version)}


def _version_keys(name: str, version: str | None) -> dict[str, str]:
    """Return the keys that bind a package to a VERSION of the driver."""
    if version and _carries_version(name):
        return {"version": f"{version}-*"}
    # Prebuilt modules have the version of the kernel, and depend on a version of the driver.
    if version and DRIVER_PACKAGE.match(name) and name.startswith("linux-"):
        return {"follows": version}
    return {}


def _kernel_modules(decision: Decision, present: Mapping[str, str]) -> list[dict[str, Any]]:
    version = _common_version(present)
    return [
        {"name": "nvidia", **({"version": version} if version else {})},
        *({"name": name.replace("-", "_")} for name in decision.kernel_modules),
        *({"name": name, "state": "absent"} for name in sorted(data.NOUVEAU_DRIVERS)),
    ]


# --- repository -------------------------------------------------------------------------------


def _repository(
    facts: Mapping[str, Any], host: HostFacts, decision: Decision, mirror: Mapping[str, str]
) -> Repository | None:
    """Return the repository to add to the host, None if the host's repositories suffice."""
    own = _cuda(host) if decision.source == data.CUDA else _archive(facts, host, decision)
    if not mirror.get("url"):
        return own
    if not (mirror.get("key_url") and mirror.get("fingerprint")):
        raise _SettingsError(
            "nvidia_driver_repository: url is set without the key_url and fingerprint of its key; "
            "expected all three. Add the missing keys"
        )
    suites = own.suites if own else _suites(facts, host)
    return Repository(
        mirror["url"],
        suites,
        () if suites == ("/",) else decision.components,
        mirror["key_url"],
        mirror["fingerprint"],
    )


def _cuda(host: HostFacts) -> Repository:
    folder, key, fingerprint = _CUDA_KEYS[host.distribution, host.release]
    url = f"{_CUDA_URL}/{folder}/{_CUDA_ARCHITECTURES[host.architecture]}/"
    return Repository(url, ("/",), (), url + key, fingerprint)


def _archive(facts: Mapping[str, Any], host: HostFacts, decision: Decision) -> Repository | None:
    """Return the archive of the distribution with the components that the host does not use."""
    used_components = gpu_host.gpu_facts(facts).get("components", ())
    missing = tuple(area for area in decision.components if area not in used_components)
    if not missing:
        return None
    if host.distribution == "debian":
        url, keyring = "http://ftp.debian.org/debian", "debian-archive-keyring.gpg"
    else:
        is_amd64 = host.architecture == "amd64"
        url = (
            "http://archive.ubuntu.com/ubuntu"
            if is_amd64
            else "http://ports.ubuntu.com/ubuntu-ports"
        )
        keyring = "ubuntu-archive-keyring.gpg"
    return Repository(url, _suites(facts, host), missing, keyring=f"/usr/share/keyrings/{keyring}")


def _suites(facts: Mapping[str, Any], host: HostFacts) -> tuple[str, ...]:
    codename = facts["distribution_release"]
    if host.release == "sid":
        return ("unstable",)
    if host.distribution == "debian":
        return (codename, f"{codename}-updates")
    return (codename, f"{codename}-updates", f"{codename}-security")


def _repository_files(
    where: Repository | None, host: HostFacts, decision: Decision
) -> Iterator[dict[str, Any]]:
    if where is None or not where.key_url:
        yield {"path": KEYRING, "state": "absent"}
    if where is None:
        yield {"path": SOURCES, "state": "absent"}
        return
    yield {"path": SOURCES, "content": _sources(where)}
    if decision.source == data.CUDA:
        folder = _CUDA_KEYS[host.distribution, host.release][0]
        architecture = _CUDA_ARCHITECTURES[host.architecture]
        for name in _CUDA_LISTS:
            name = name.format(folder=folder, architecture=architecture)
            yield {"path": f"/etc/apt/sources.list.d/{name}", "state": "absent"}


def _sources(where: Repository) -> str:
    components = f"Components: {' '.join(where.components)}\n" if where.components else ""
    return (
        f"{WRITTEN_BY}Types: deb\nURIs: {where.url}\nSuites: {' '.join(where.suites)}\n"
        f"{components}Signed-By: {where.keyring}\n"
    )


# --- files -------------------------------------------------------------------------------------


def _preferences(decision: Decision, version: str) -> str:
    """Return apt preferences that limit the driver to one source, and to a declared version."""
    is_cuda = decision.source == data.CUDA
    stanzas = [
        "# One source for the driver: versions of the other source may be newer and do not fit.\n"
        f"Package: {_APT_PATTERNS}\n"
        "Pin: release l=NVIDIA CUDA\n"
        f"Pin-Priority: {600 if is_cuda else -1}\n"
    ]
    if version:
        stanzas.insert(
            0,
            "# nvidia_driver_version; above 1000, so that apt also downgrades to it.\n"
            f"Package: {_APT_PATTERNS}\n"
            f"Pin: version {version}-*\n"
            "Pin-Priority: 1001\n",
        )
    return "\n".join([WRITTEN_BY.rstrip("\n"), *stanzas])


def _unattended(host: HostFacts, decision: Decision, hold_kernel: bool) -> str:
    """Return the apt.conf that excludes the set from unattended-upgrades.

    With prebuilt modules, kernels are excluded as well: after a kernel upgrade without its modules,
    the host has no GPUs at the next boot.
    """
    patterns = list(_UNATTENDED_PATTERNS)
    if decision.build == PREBUILT and hold_kernel:
        patterns.append("linux-(image|headers|modules)-")
        patterns += [f"linux-{meta}$" for meta in host.kernel_metas]
    lines = "".join(f'    "{pattern}";\n' for pattern in patterns)
    return (
        "// Written by Slipway's role nvidia_driver.\n"
        f"Unattended-Upgrade::Package-Blacklist {{\n{lines}}};\n"
    )


def _modprobe() -> str:
    lines = [f"blacklist {name}\n" for name in sorted(data.NOUVEAU_DRIVERS)]
    return f"{WRITTEN_BY}{''.join(lines)}options nouveau modeset=0\n"


def _modules_load(decision: Decision) -> str:
    """Return the modules to load at boot, before container runtimes search the device files."""
    return WRITTEN_BY + "".join(f"{name}\n" for name in decision.kernel_modules)


def _persistence() -> str:
    """Return the drop-in that enables persistence mode in Ubuntu's daemon.

    Ubuntu's unit starts the daemon with --no-persistence-mode and stops it when unneeded.
    """
    return (
        f"{WRITTEN_BY}[Unit]\nStopWhenUnneeded=no\n\n[Service]\nExecStart=\n"
        "ExecStart=/usr/bin/nvidia-persistenced --user nvidia-persistenced --persistence-mode "
        "--verbose\n\n[Install]\nWantedBy=multi-user.target\n"
    )


# --- removal -----------------------------------------------------------------------------------


def _removal(present: Mapping[str, str], host: HostFacts) -> dict[str, Any]:
    """Return the plan of a host without the driver and the files of this role."""
    paths = (KEYRING, SOURCES, PREFERENCES, UNATTENDED, MODPROBE, MODULES_LOAD, PERSISTENCE)
    owned = {
        "refused": [],
        "files": [{"path": path, "state": "absent"} for path in paths],
        "packages": [
            *({"name": name, "state": "absent"} for name in sorted(present)),
            *({"name": f"linux-image-{meta}", "hold": False} for meta in host.kernel_metas),
        ],
        "units": [{"name": name, "enabled": False, "active": False} for name in DAEMONS],
    }
    return _result(Decision(True, "nvidia_driver_state is absent.", needed=False), owned)
