# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the acceptance checks on a host.

Labels of images contain the command of the smoke test, labels of containers the request that checks
the service. Everybody who reaches the engine can write such labels. So they count only on content
and containers that root recorded, and the declaration of a service precedes its labels.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from operator import itemgetter
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

from ansible_collections.slipway.host.plugins.module_utils.docker import labels
from ansible_collections.slipway.host.plugins.module_utils.gpu import health, health_check
from ansible_collections.slipway.host.plugins.module_utils.gpu import host as gpu_host
from ansible_collections.slipway.host.plugins.module_utils.gpu import load as gpu_load
from ansible_collections.slipway.host.plugins.module_utils.gpu import proof as gpu_proof
from ansible_collections.slipway.host.plugins.module_utils.gpu.accepted_faults import Entry
from ansible_collections.slipway.host.plugins.module_utils.host import (
    apt_check,
    data_sets,
    engine_settings,
    engine_users,
    front_door_check,
    installed_files,
    network_check,
    reach_check,
    slurm_check,
)
from ansible_collections.slipway.host.plugins.module_utils.host.check import (
    STAND_IN,
    Check,
    run_check,
)
from ansible_collections.slipway.host.plugins.module_utils.images import record, tested_system
from ansible_collections.slipway.host.plugins.module_utils.images import smoke as images_smoke
from ansible_collections.slipway.host.plugins.module_utils.state import (
    container_description,
    containers,
)
from ansible_collections.slipway.host.plugins.module_utils.state import facts as state_facts

SMOKE_TIMEOUT = 1800
DRIVER_ROLE = "nvidia_driver"
GPUS, HEALTH, COMPUTATION, LOAD = "GPUs", "GPU health", "GPU computation", "GPU load"
GPUS_IN_CONTAINERS, NETWORK = "GPUs in containers", "container network"
APT = "apt settings"
OUTWARD, PUBLISHED, COMMAND = "network from containers", "published ports", "commands of users"
REQUEST_TIMEOUT = 30
QUICK, NORMAL, FULL = LEVELS = ("quick", "normal", "full")
NO_CONTAINERS = "not tried: host_verify_containers is false"
NO_SERVERS = "not tried: the packages of this host come from a bundle"
# Memory to test per GPU in MiB.
FULL_MEMORY_MIB = 1024
# Minutes of a day.
MAX_BURN_IN = 1440


@dataclass(frozen=True)
class Options:
    """How much to check.

    LEVEL is one of LEVELS: ``quick`` leaves out the smoke tests of images and the digests of data
    sets, ``full`` tests more memory of each GPU. SMOKE: run the smoke tests of the images.
    REPEAT_SMOKE: also those that passed with the same image on the same system. NOTE_TESTS: record
    which passed. DAEMON_RELOAD: run `systemctl daemon-reload` while a container uses the GPUs.
    BURN_IN: minutes of load on all GPUs. CONTAINERS: run the checks that start a container.
    DATA_DIGESTS: read every file of the data sets. OTHER_HOSTS: ask the services behind a front
    door. ACCEPTED_FAULTS: known faults of GPUs, see :mod:`gpu.accepted_faults`.
    """

    level: str = NORMAL
    smoke: bool = True
    daemon_reload: bool = True
    burn_in: int = 0
    data_digests: bool = False
    other_hosts: bool = False
    accepted_faults: Sequence[Entry] = ()
    containers: bool = True
    repeat_smoke: bool = False
    note_tests: bool = True


def _check_engine(facts: Mapping[str, Any], declared: Mapping[str, Any]) -> Check:
    if facts["docker_package"]:
        return run_check("engine", _ask_version)
    if declared.get("engine"):
        seen = "not installed; expected Docker Engine. Run ./slipway site"
        return Check("engine", False, seen)
    return Check("engine", True, "not installed")


def _ask_version() -> str:
    version = containers.ask_engine("/version")
    return f"Docker Engine {version['Version']}, API {version['ApiVersion']}"


def _check_image(reference: str, identity: str, command: list[str], options: Options) -> str:
    system = tested_system.digest()
    if not options.repeat_smoke and record.passed_with(reference, identity, system):
        return "smoke test passed earlier; image and system are the same"
    started = time.monotonic()
    images_smoke.test(identity, command, SMOKE_TIMEOUT)
    if options.note_tests:
        record.note_test(reference, identity, system)
    return f"smoke test passed in {time.monotonic() - started:.0f} s"


def contains(answer: Any, expected: Any) -> bool:
    """Return whether a JSON ANSWER contains all of EXPECTED; it may contain more."""
    if isinstance(expected, Mapping):
        return isinstance(answer, Mapping) and all(
            key in answer and contains(answer[key], value) for key, value in expected.items()
        )
    return bool(answer == expected)


def _find_address(container: Mapping[str, Any], port: int) -> str:
    """Return the address on the host of a container's port."""
    addresses = [
        (published.get("IP") or "127.0.0.1", published["PublicPort"])
        for published in container.get("Ports") or ()
        if published.get("PrivatePort") == port and published.get("PublicPort")
    ]
    if not addresses:
        raise ValueError(f"port {port} is not published on the host")
    # A port that is published on all addresses is listed for IPv4 and for IPv6.
    ip, number = min(addresses, key=lambda address: ":" in address[0])
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(ip, ip)
    return f"{f'[{reachable}]' if ':' in reachable else reachable}:{number}"


def _check_service(container: Mapping[str, Any], proof: Mapping[str, Any]) -> str:
    url = f"http://{_find_address(container, proof['port'])}{proof['path']}"
    secret = Path(proof["secret"]).read_text(encoding="utf-8").strip() if "secret" in proof else ""
    closed = "rejected a request without the secret, " if secret else ""
    if secret:
        _check_secret_required(url)
    request = Request(url)
    if secret:
        request.add_header("Authorization", f"Bearer {secret}")
    if proof.get("post") is not None:
        request.data = json.dumps(proof["post"]).encode()
        request.add_header("Content-Type", "application/json")
    try:
        text = _send(request)
    except HTTPError as error:
        raise ValueError(f"{url} answered {error.code}: {error.read(400)!r}") from None
    if proof.get("expect") is not None and not contains(_parse_json(text), proof["expect"]):
        raise ValueError(f"{url} answered {text.strip()[:200]}, expected {proof['expect']}")
    summary = text.strip()[:200] if proof.get("expect") else "with success"
    return f"{url} {closed}answered {summary}"


class _SameServer(HTTPRedirectHandler):
    """Follows redirects to the same server only: the request may contain a secret.

    A service must not choose an address that root asks, such as the metadata of a cloud.
    """

    def redirect_request(
        self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Request | None:
        if urlsplit(newurl)[:2] != urlsplit(req.full_url)[:2]:
            return None
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _send(request: Request) -> str:
    """Return the answer to a request; raise HTTPError for an error status.

    No proxy is used: the request goes to this host and may contain a secret.
    """
    opener = build_opener(ProxyHandler({}), _SameServer)
    try:
        with opener.open(request, timeout=REQUEST_TIMEOUT) as response:
            return str(response.read(1 << 20).decode("utf-8", "replace"))
    except HTTPException as error:
        raise ValueError(f"{request.full_url} did not answer with HTTP: {error}") from None


def _parse_json(text: str) -> Any:
    """Return the JSON document in a TEXT, or the text itself if it is not JSON."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _check_secret_required(url: str) -> None:
    """Raise ValueError if a service accepts a request without its secret."""
    try:
        _send(Request(url))
    except HTTPError as error:
        if error.code in (401, 403):
            return
        raise ValueError(
            f"{url} answered {error.code} to a request without the secret; expected 401 or 403"
        ) from None
    raise ValueError(f"{url} accepted a request without the secret; expected 401 or 403")


def _check_images(options: Options, declared: Collection[str]) -> Iterator[Check]:
    """Check the tags that refer to the content that the host's record names."""
    smoke = options.smoke and options.containers and options.level != QUICK
    testable = set()
    for reference, image in _recorded_images():
        testable.add(reference)
        if smoke:
            command = json.loads(image["Labels"][labels.SMOKE])
            check = partial(_check_image, reference, image["Id"], command, options)
            yield run_check(f"image {reference}", check)
    for reference in declared:
        if reference not in testable:
            yield Check(
                f"image {reference}",
                False,
                "not on this host, not recorded, or without the label of its smoke test; expected "
                "the declared image. Run ./slipway site",
            )


def _recorded_images() -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield tag and image of each image with a smoke test that root recorded with this content."""
    for image in containers.ask_engine("/images/json"):
        if labels.SMOKE in (image.get("Labels") or {}):
            for reference in image.get("RepoTags") or ():
                if containers.read_image_record(reference).get("id") == image["Id"]:
                    yield reference, image


def _check_services(declared: Mapping[str, str]) -> Iterator[Check]:
    """Check each service by its declaration; without one, by the labels of recorded containers."""
    services: dict[str, list[Mapping[str, Any]]] = {name: [] for name in declared}
    recorded: dict[str, list[Mapping[str, Any]]] = {}
    for container in containers.ask_engine("/containers/json?all=1"):
        container_labels = container.get("Labels") or {}
        name = container_labels.get(container_description.COMPOSE_SERVICE)
        if not name or container_labels.get(containers.ONE_OFF) == "True":
            continue
        if _is_recorded(container_labels, container["Id"]):
            recorded.setdefault(name, []).append(container)
        if name in services:
            services[name].append(container)
    # A container that Slipway did not start counts only if the service has no other.
    for name, found in sorted({**services, **recorded}.items()):
        for container in found:
            own = container["Labels"].get(labels.PROOF, "")
            yield _check_container(name, container, declared.get(name, own))
        if not found:
            seen = "no container; expected a running one. Run ./slipway site"
            yield Check(f"service {name}", False, seen)


def _is_recorded(container_labels: Mapping[str, str], identity: str) -> bool:
    """Return whether Slipway started a container, by the record of the project in its labels.

    Labels of a container never change. So those of a recorded container are Slipway's own.
    """
    project = container_labels.get(containers.COMPOSE_PROJECT) or ""
    if not project or "/" in project:
        return False
    return identity in (containers.read_service_record(project) or {}).get("containers", ())


def _check_container(name: str, container: Mapping[str, Any], request: str) -> Check:
    """Check a container of a service by its REQUEST, JSON text; empty: it must only run."""
    if request:
        return run_check(f"service {name}", partial(_check_service, container, json.loads(request)))
    state = container.get("State") or "in an unknown state"
    return Check(f"service {name}", state == "running", f"{state}, declares no endpoint")


def _check_gpus(
    facts: Mapping[str, Any], declared: Mapping[str, Any], options: Options
) -> Iterator[Check]:
    gpus = health.own_gpus(facts)
    if not gpus:
        return
    required = declared.get("driver") or gpu_proof.has_driver(facts)
    host = run_check(GPUS, partial(gpu_proof.check_host, len(gpus), required))
    yield host
    if not host.ok:
        return
    memory = FULL_MEMORY_MIB if options.level == FULL else gpu_proof.CHECK_MEMORY_MIB
    yield run_check(COMPUTATION, partial(gpu_proof.compute_on_host, gpus, memory))
    if options.burn_in:
        accepted = options.accepted_faults
        yield run_check(LOAD, partial(gpu_load.check, gpus, options.burn_in, accepted))


def _check_running_engine(declared: Mapping[str, Any]) -> Iterator[Check]:
    """Check the settings of the running engine, and who reaches it."""
    yield run_check("engine settings", engine_settings.check_settings)
    users = declared.get("docker_users")
    yield run_check("engine access", partial(engine_users.check_users, users))
    yield run_check("container toolkit settings", engine_settings.check_toolkit)


def _check_container_gpus(
    facts: Mapping[str, Any], declared: Mapping[str, Any], options: Options
) -> Iterator[Check]:
    gpus = health.own_gpus(facts)
    if gpus and not options.containers:
        yield Check(GPUS_IN_CONTAINERS, True, NO_CONTAINERS)
    elif gpus:
        required = declared.get("toolkit") or gpu_proof.has_toolkit()
        check = partial(gpu_proof.check_container, len(gpus), options.daemon_reload, required)
        yield run_check(GPUS_IN_CONTAINERS, check)


def _check_ways(
    facts: Mapping[str, Any], declared: Mapping[str, Any], network: bool, start: bool
) -> Iterator[Check]:
    """Check what others can break beside the engine: ways of packets, users, and apt.

    NETWORK says whether the packet filter has the rules of the engine, START whether to start
    containers.
    """
    yield run_check(APT, apt_check.check)
    users = [engine_users.own_name(name) for name in declared.get("docker_users") or ()]
    yield run_check(COMMAND, partial(reach_check.check_command, users))
    if not network:
        return
    uris = [str(row[0]) for rows in facts["apt_sources"].values() for row in rows]
    images = [
        str(image["Id"]) for _reference, image in sorted(_recorded_images(), key=itemgetter(0))
    ]
    if declared.get("bundle"):
        # A host that gets its packages from a bundle may have no network: asks no name server.
        yield Check(OUTWARD, True, NO_SERVERS)
    elif start:
        yield run_check(OUTWARD, partial(reach_check.check_outward, uris, images))
    else:
        yield Check(OUTWARD, True, NO_CONTAINERS)
    running = containers.ask_engine("/containers/json")
    yield run_check(PUBLISHED, partial(reach_check.check_published, running))


def run_checks(options: Options, declared: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """Run all checks that apply to the host; return the results as plain mappings.

    DECLARED is what :func:`declared.declare` returns. Something declared or installed whose
    program, image or container is missing fails its check. GPUs are not tried if the load of the
    driver waits.
    """
    expected = declared or {}
    facts = state_facts.ask_host()
    if DRIVER_ROLE in expected.get("waiting", ()):
        # The programs of the installed driver do not work with the driver in the kernel.
        usable = False
        results = [Check(GPUS, True, "not tried: the load of the installed driver waits")]
    else:
        results = list(_check_gpus(facts, expected, options))
        usable = all(check.ok for check in results)
        if gpu_host.has_gpu(facts):
            # After the load, which may have caused faults.
            check = partial(health_check.check, facts, options.accepted_faults)
            results.append(run_check(HEALTH, check))
    if expected.get("packages"):
        check = partial(installed_files.check_files, expected["packages"])
        results.append(run_check("installed packages", check))
    for entry in expected.get("datasets", ()):
        digests = options.data_digests and options.level != QUICK
        check = partial(data_sets.check, entry, digests)
        results.append(run_check(f"data set {entry['path']}", check))
    engine = _check_engine(facts, expected)
    results.append(engine)
    if engine.ok and facts["docker_package"]:
        results += _check_running_engine(expected)
        if usable:
            results += _check_container_gpus(facts, expected, options)
        results += _check_images(options, expected.get("images", ()))
        results += _check_services(expected.get("services", {}))
        results.append(run_check(NETWORK, network_check.check))
        results += _check_ways(facts, expected, results[-1].ok, options.containers)
    results += slurm_check.check_cluster(expected.get("slurm", ()))
    sites = expected.get("front_door", ())
    results += front_door_check.check_sites(sites, options.other_hosts)
    simulated = any(STAND_IN in one.seen for one in results if one.what == COMPUTATION)
    return [check.as_data(simulated) for check in results]
