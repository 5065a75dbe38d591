# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The settings that the running engine reports, compared with those in its daemon.json."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.state import containers, reading

Json = Mapping[str, Any]

DAEMON_JSON = "/etc/docker/daemon.json"
TOOLKIT_CONFIG = "/etc/nvidia-container-runtime/config.toml"
# The toolkit's configuration is TOML: the key may be in a table, dotted, or in an inline table.
NO_CGROUPS = r"^[^#\n]*\bno-cgroups[\"']?\s*=\s*true\b"
WITHOUT_CGROUPS = (
    f"no-cgroups is true in {TOOLKIT_CONFIG}; expected false, because containers of the host's "
    "engine get no GPU with --gpus then. Set it to false. Rootless engines use CDI"
)
DEFAULT_RUNTIME = "runc"
GPU_RUNTIME = "nvidia"

# Keys of daemon.json that /info reports in the same form, with the name there.
_SAME: Mapping[str, str] = {
    "data-root": "DockerRootDir",
    "debug": "Debug",
    "default-runtime": "DefaultRuntime",
    "experimental": "ExperimentalBuild",
    "init-binary": "InitBinary",
    "labels": "Labels",
    "live-restore": "LiveRestoreEnabled",
    "log-driver": "LoggingDriver",
    "storage-driver": "Driver",
}


def check_settings() -> str:
    """Return a sentence; raise ValueError if the engine runs with other settings than declared."""
    try:
        text = reading.read_file(DAEMON_JSON)
        settings = json.loads(text.decode("utf-8-sig") or "{}") if text else {}
    except ValueError as error:
        raise ValueError(
            f"{DAEMON_JSON}: {error}; expected JSON. Correct the file, then run ./slipway site"
        ) from None
    info = containers.ask_engine("/info")
    problems = [
        *(
            f"{key} is {running}; expected {expected} as in {DAEMON_JSON}"
            for key, running, expected in differences(settings, info)
        ),
        *default_runtime(settings, info),
    ]
    if problems:
        raise ValueError(
            f"the engine runs with other settings: {'; '.join(problems)}. Restart the engine: "
            "systemctl restart docker"
        )
    compared = sum(key in settings for key in _comparisons())
    return f"the engine runs with the {compared} settings of {DAEMON_JSON} that it reports"


def differences(settings: Json, info: Json) -> Iterator[tuple[str, str, str]]:
    """Yield key, running value and expected value where INFO differs from the SETTINGS.

    Values that the engine does not report are not compared.
    """
    for key, read in _comparisons().items():
        if key not in settings:
            continue
        expected = settings[key]
        running, wanted = read(expected, info)
        if running is not None and running != wanted:
            yield key, json.dumps(running), json.dumps(wanted)


def _comparisons() -> dict[str, Callable[[Any, Json], tuple[Any, Any]]]:
    """Return for each key the function that gives running and expected value; None: unknown."""

    def same(name: str) -> Callable[[Any, Json], tuple[Any, Any]]:
        def compare(expected: Any, info: Json) -> tuple[Any, Any]:
            running = info.get(name)
            if isinstance(expected, list):
                return sorted(map(str, running or ())), sorted(map(str, expected))
            return running, expected

        return compare

    return {
        **{key: same(name) for key, name in _SAME.items()},
        "exec-opts": _cgroup_driver,
        "features": _cdi,
        "registry-mirrors": _mirrors,
        "runtimes": _runtimes,
    }


def _cgroup_driver(expected: Any, info: Json) -> tuple[Any, Any]:
    prefix = "native.cgroupdriver="
    drivers = [option.removeprefix(prefix) for option in expected if option.startswith(prefix)]
    return (info.get("CgroupDriver"), drivers[-1]) if drivers else (None, None)


def _cdi(expected: Any, info: Json) -> tuple[Any, Any]:
    # Before 27, the engine does not report its folders of CDI specifications.
    if not isinstance(expected, Mapping) or "cdi" not in expected or "CDISpecDirs" not in info:
        return None, None
    return {"cdi": bool(info["CDISpecDirs"])}, {"cdi": bool(expected["cdi"])}


def _mirrors(expected: Any, info: Json) -> tuple[Any, Any]:
    running = (info.get("RegistryConfig") or {}).get("Mirrors") or ()
    return [url.rstrip("/") for url in running], [str(url).rstrip("/") for url in expected]


def _runtimes(expected: Any, info: Json) -> tuple[Any, Any]:
    running = info.get("Runtimes") or {}
    return sorted(name for name in expected if name in running), sorted(expected)


def default_runtime(settings: Json, info: Json) -> Iterator[str]:
    """Yield a sentence if the nvidia runtime is the default without a setting in daemon.json."""
    if "default-runtime" not in settings and info.get("DefaultRuntime") == GPU_RUNTIME:
        yield (
            f"default-runtime is {GPU_RUNTIME}, and {DAEMON_JSON} does not set it; expected "
            f"{DEFAULT_RUNTIME}"
        )


def check_toolkit() -> str:
    """Return a sentence; raise ValueError if the toolkit's settings break containers."""
    content = reading.read_file(TOOLKIT_CONFIG)
    if content is None:
        return f"not applicable: there is no {TOOLKIT_CONFIG}"
    text = content.decode("utf-8", "replace")
    if re.search(NO_CGROUPS, text, re.MULTILINE):
        raise ValueError(WITHOUT_CGROUPS)
    return f"{TOOLKIT_CONFIG} does not set no-cgroups"
