# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The owned state of the role nvidia_driver.

``gpu.decision`` chooses the driver. This module declares its packages with versions and holds,
their repository, and the configuration files.

Private to the collection.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.apt.package_record import (
    find_declared_again,
)
from ansible_collections.slipway.host.plugins.module_utils.gpu import (
    adoption,
    branches,
    driver_files,
    driver_packages,
    driver_repository,
    driver_request,
    health,
    present_driver,
    tables,
)
from ansible_collections.slipway.host.plugins.module_utils.gpu import facts as gpu_facts
from ansible_collections.slipway.host.plugins.module_utils.gpu import host as gpu_host
from ansible_collections.slipway.host.plugins.module_utils.gpu.decision import Decision, decide
from ansible_collections.slipway.host.plugins.module_utils.gpu.model import (
    AUTO,
    DriverRequest,
    HostFacts,
    Refusal,
)
from ansible_collections.slipway.host.plugins.module_utils.gpu.needs import driver_misfit
from ansible_collections.slipway.host.plugins.module_utils.gpu.packages import PREBUILT
from ansible_collections.slipway.host.plugins.module_utils.state import derived

KEEP = driver_request.KEEP
GPU_RECORD = gpu_facts.RECORD
DAEMONS = ("nvidia-persistenced.service", "nvidia-fabricmanager.service")


def plan(facts: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the driver of a host and its ``owned`` state.

    FACTS is ``ansible_facts['slipway']``, OPTIONS the role's options. The result has ``needed`` (a
    GPU of this host needs a driver), ``managed`` (this role installs it), ``source``, ``branch``,
    ``modules``, ``reason`` and ``notes`` for people, ``key_url``, ``first`` (packages to install
    before all others) and ``newest`` (packages that an upgrade changes). Unsupported settings are
    in ``owned['refused']``.
    """
    host = gpu_host.host_facts(facts)
    present = driver_packages.installed_driver_packages(facts)
    if options["nvidia_driver_state"] == "absent":
        return _removal(present, host)
    source, version = options["nvidia_driver_source"], options["nvidia_driver_version"]
    try:
        request = driver_request.read_request(host, options)
        decision = decide(host, request)
        if not decision.needed:
            return _without_gpus(facts, decision, options)
        if source == KEEP:
            return _kept_driver(facts, host, options)
        present_driver.refuse_foreign_driver(facts, present)
        decision = _prefer_installed(facts, host, request, present, version, decision)
        if decision.source == adoption.ADOPTED:
            return _adopted_driver(facts, host, decision, present, options)
        if source == AUTO:
            present_driver.refuse_desktop_flavour(present)
        if not decision.supported:
            raise Refusal(decision.reason)
        repository = driver_repository.declare_repository(
            facts, host, decision, options["nvidia_driver_repository"]
        )
    except Refusal as problem:
        return _result(Decision(False, str(problem)), refused=[str(problem).rstrip(".")])
    chosen = driver_packages.target_version(
        decision, present, version, options["nvidia_driver_version_fallback"]
    )
    packages = _declare_packages(host, decision, present, chosen, options)
    return _result(
        decision,
        _owned_state(facts, host, decision, present, repository, packages, options),
        managed=True,
        first=[entry for entry in packages if entry["name"] == decision.pin_package],
        newest=driver_packages.packages_to_upgrade(packages, version),
        version_fallback=options["nvidia_driver_version_fallback"],
        key_url=repository.key_url if repository else "",
    )


def _without_gpus(
    facts: Mapping[str, Any], decision: Decision, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the state of a host that uses no GPU: nothing to own but a declared number of GPUs.

    Lost GPUs are named.
    """
    expected = _expected_gpus(facts, options)
    lost = [str(finding) for finding in health.judge_missing(expected, 0)]
    owned: dict[str, Any] = {"refused": []}
    if str(options["nvidia_driver_gpus"]) != AUTO:
        owned["files"] = [_record_file(facts, options)]
    return _result(replace(decision, warnings=(*decision.warnings, *lost)), owned)


def _expected_gpus(facts: Mapping[str, Any], options: Mapping[str, Any]) -> int:
    """Return how many GPUs the host has: as declared, else the largest number seen so far."""
    declared = options["nvidia_driver_gpus"]
    if str(declared) != AUTO:
        return int(declared)
    return max(gpu_host.recorded(facts), gpu_host.count(facts))


def _record_file(facts: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the file with the number of GPUs; a host without GPUs has no such file."""
    number = _expected_gpus(facts, options)
    if number == 0:
        return {"path": GPU_RECORD, "state": "absent"}
    return {"path": GPU_RECORD, "content": f"{json.dumps({'gpus': number})}\n"}


def _declare_packages(
    host: HostFacts,
    decision: Decision,
    present: Mapping[str, str],
    chosen: str | None,
    options: Mapping[str, Any],
) -> list[dict[str, Any]]:
    hold, hold_kernel = options["nvidia_driver_hold"], options["nvidia_driver_hold_kernel"]
    is_pinned = chosen == options["nvidia_driver_version"]
    return [
        *driver_packages.declare_packages(decision, present, chosen, is_pinned, hold),
        *(
            {"name": f"linux-image-{meta}", "hold": hold and hold_kernel}
            for meta in host.kernel_metas
            if decision.build == PREBUILT
        ),
    ]


def _refused_versions(
    facts: Mapping[str, Any], packages: list[dict[str, Any]], options: Mapping[str, Any]
) -> list[str]:
    """Return refusals of versions that conflict with the installed ones, except in an upgrade."""
    if options["nvidia_driver_upgrade"]:
        return []
    return find_declared_again(facts, packages, "nvidia_driver_branch, nvidia_driver_version")


def _owned_state(
    facts: Mapping[str, Any],
    host: HostFacts,
    decision: Decision,
    present: Mapping[str, str],
    repository: driver_repository.Repository | None,
    packages: list[dict[str, Any]],
    options: Mapping[str, Any],
) -> dict[str, Any]:
    persistence = [driver_files.PERSISTENCE] if decision.source == branches.UBUNTU else []
    units = [{"name": DAEMONS[0], "enabled": True, "active": True, "unit_files": persistence}]
    if decision.fabric_manager:
        units.append({"name": DAEMONS[1], "enabled": True, "active": True})
    return {
        "refused": [
            *driver_repository.repository_conflicts(facts, repository),
            *_refused_versions(facts, packages, options),
        ],
        "keyrings": [{"path": driver_repository.KEYRING, "fingerprint": repository.fingerprint}]
        if repository and repository.key_url
        else [],
        "files": [
            _record_file(facts, options),
            *driver_repository.repository_files(facts, repository),
            *driver_files.declare_files(
                host,
                decision,
                options["nvidia_driver_version"],
                options["nvidia_driver_hold"],
                options["nvidia_driver_hold_kernel"],
            ),
        ],
        "packages": packages,
        "derived": [{"path": f"/boot/initrd.img-{host.kernel}", "since": [driver_files.MODPROBE]}],
        "modules": _kernel_modules(decision, present),
        "units": units,
    }


# Packages of drivers, which a change of the declared driver may remove; not those of CUDA and of
# the container toolkit.
_DRIVER_PACKAGES = (
    *("nvidia-[!c]*", "nvidia-compute-utils-*", "cuda-drivers*", "firmware-nvidia-*"),
    *("libnvidia-[!c]*", "libnvidia-cfg1*", "libnvidia-common-*", "libnvidia-compute-*"),
    *("libcuda1*", "libnvcuvid1*", "libnvsdm*", "xserver-xorg-video-nvidia*"),
    *("linux-modules-nvidia-*", "linux-objects-nvidia-*", "linux-signatures-nvidia-*"),
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
        "removable": list(_DRIVER_PACKAGES),
        "owned": dict(owned or {"refused": list(refused)}),
    }


def _prefer_installed(
    facts: Mapping[str, Any],
    host: HostFacts,
    request: DriverRequest,
    present: Mapping[str, str],
    version: str,
    new: Decision,
) -> Decision:
    """Return the decision with the installed driver as the default of each option that is not set.

    So a host keeps its branch when a new version of Slipway would choose another one, and a driver
    that somebody else installed stays if it supports the GPUs. NEW is the decision without it.
    """
    if own := present_driver.installed_driver(present):
        kept = decide(
            host,
            DriverRequest(
                own.source if request.source == AUTO else request.source,
                own.branch if request.branch is None else request.branch,
                own.modules if request.modules is None else request.modules,
                request.video,
            ),
        )
        if kept == new:
            return new
        if kept.supported:
            return replace(
                kept,
                reason=f"{kept.reason} This driver is installed and is kept. To change it, set "
                "nvidia_driver_source, nvidia_driver_branch or nvidia_driver_modules.",
            )
    # After an interrupted run of this role, the next run completes its own packages.
    if not present or request.source != AUTO or gpu_host.gpu_facts(facts).get("managed"):
        return new
    found = adoption.recognise(present, gpu_host.loaded(facts))
    if found and adoption.is_requested(found, request, version):
        return adoption.adopt(host, found, present) or new
    return new


def _adopted_driver(
    facts: Mapping[str, Any],
    host: HostFacts,
    decision: Decision,
    present: Mapping[str, str],
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the state of a host whose driver somebody else installed."""
    holds = options["nvidia_driver_hold"], options["nvidia_driver_hold_kernel"]
    packages = list(adoption.declare_packages(host, present, *holds))
    units = [{"name": DAEMONS[1], "enabled": True, "active": True}]
    owned = {
        "refused": [],
        "files": [
            _record_file(facts, options),
            *adoption.declare_files(host, decision, *holds),
        ],
        "packages": packages,
        "modules": _kernel_modules(decision, present),
        "keyrings": [],
        "derived": [],
        "units": units if decision.fabric_manager else [],
    }
    newest = driver_packages.packages_to_upgrade(packages, "")
    return _result(decision, owned, managed=True, newest=newest)


def _kept_driver(
    facts: Mapping[str, Any], host: HostFacts, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the state of a host that keeps its driver; refuse a driver that does not fit."""
    loaded = gpu_host.loaded(facts)
    if loaded is None:
        reason = (
            f"nvidia_driver_source is {KEEP}, but no NVIDIA driver is loaded; expected a loaded "
            "driver. Install and load a driver, or set another nvidia_driver_source"
        )
        return _result(Decision(False, reason), refused=[reason])
    branch = int(loaded.version.split(".")[0])
    if misfit := driver_misfit(host.gpus, branch, loaded.modules):
        return _result(Decision(False, misfit), refused=[misfit.rstrip(".")])
    flavour = f" with {loaded.modules} kernel modules" if loaded.modules else ""
    reason = f"Driver {loaded.version}{flavour} is loaded and is kept."
    decision = Decision(True, reason, source=KEEP, branch=branch, modules=loaded.modules)
    owned = {"files": [_record_file(facts, options)], "modules": [{"name": "nvidia"}]}
    return _result(decision, {"refused": [], **owned})


def _kernel_modules(decision: Decision, present: Mapping[str, str]) -> list[dict[str, Any]]:
    version = driver_packages.common_version(present)
    return [
        {"name": "nvidia", **({"version": version} if version else {})},
        *({"name": name.replace("-", "_")} for name in decision.kernel_modules),
        *({"name": name, "state": "absent"} for name in sorted(tables.NOUVEAU_DRIVERS)),
    ]


def _removal(present: Mapping[str, str], host: HostFacts) -> dict[str, Any]:
    """Return the state of a host without the packages and files of this role."""
    paths = (
        GPU_RECORD,
        derived.RECORD,
        driver_repository.KEYRING,
        driver_repository.SOURCES,
        *driver_files.PATHS,
    )
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
