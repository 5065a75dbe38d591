# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask a finished host to do the real thing, and say what came of it.

Everything that is needed stands on the host itself: images bear their smoke test's command and
containers how they are proven, as labels.  So this also proves images that came by `docker load`.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

from ansible_collections.slipway.host.plugins.module_utils.docker import labels
from ansible_collections.slipway.host.plugins.module_utils.gpu import proof as gpu_proof
from ansible_collections.slipway.host.plugins.module_utils.images import smoke as images_smoke
from ansible_collections.slipway.host.plugins.module_utils.state import containers
from ansible_collections.slipway.host.plugins.module_utils.state import facts as state_facts

SMOKE_TIMEOUT = 1800
GPUS, COMPUTATION, GPUS_IN_CONTAINERS = "GPUs", "GPU computation", "GPUs in containers"
REQUEST_TIMEOUT = 30


@dataclass(frozen=True)
class Check:
    """One thing that was tried: what, whether it went well, and what was seen, in words."""

    what: str
    ok: bool
    seen: str


def attempt(what: str, act: Callable[[], str]) -> Check:
    """Return the check of ACT, which returns what it saw or raises."""
    try:
        return Check(what, True, act())
    except (OSError, ValueError, KeyError, IndexError, subprocess.SubprocessError) as error:
        return Check(what, False, str(error) or type(error).__name__)


def _engine() -> str:
    version = containers.ask_engine("/version")
    return f"Docker Engine {version['Version']}, API {version['ApiVersion']}"


def _image(reference: str, command: list[str]) -> str:
    started = time.monotonic()
    images_smoke.test(reference, command, SMOKE_TIMEOUT)
    return f"smoke test passed in {time.monotonic() - started:.0f} s"


def contains(answer: Any, expected: Any) -> bool:
    """Whether a JSON ANSWER says all that is EXPECTED; it may say more."""
    if isinstance(expected, Mapping):
        return isinstance(answer, Mapping) and all(
            key in answer and contains(answer[key], value) for key, value in expected.items()
        )
    return bool(answer == expected)


def _address(container: Mapping[str, Any], port: int) -> str:
    """Return where the host reaches a container's port."""
    found = [
        (published.get("IP") or "127.0.0.1", published["PublicPort"])
        for published in container.get("Ports") or ()
        if published.get("PrivatePort") == port and published.get("PublicPort")
    ]
    if not found:
        raise ValueError(f"port {port} is not published on the host")
    # One that is published everywhere is listed for IPv4 and for IPv6.
    ip, number = min(found, key=lambda place: ":" in place[0])
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(ip, ip)
    return f"{f'[{shown}]' if ':' in shown else shown}:{number}"


def _service(container: Mapping[str, Any], proof: Mapping[str, Any]) -> str:
    url = f"http://{_address(container, proof['port'])}{proof['path']}"
    secret = Path(proof["secret"]).read_text(encoding="utf-8").strip() if "secret" in proof else ""
    closed = "refuses without its secret, " if secret else ""
    if secret:
        _refuses(url)
    request = Request(url)
    if secret:
        request.add_header("Authorization", f"Bearer {secret}")
    if proof.get("post") is not None:
        request.data = json.dumps(proof["post"]).encode()
        request.add_header("Content-Type", "application/json")
    try:
        text = _answer(request)
    except HTTPError as error:
        raise ValueError(f"{url} answered {error.code}: {error.read(400)!r}") from None
    if proof.get("expect") is not None and not contains(_document(text), proof["expect"]):
        raise ValueError(f"{url} answered {text.strip()[:200]}, expected {proof['expect']}")
    seen = text.strip()[:200] if proof.get("expect") else "with success"
    return f"{url} {closed}answered {seen}"


def _answer(request: Request) -> str:
    """Return what the host answers; raise HTTPError where it refuses.

    A proxy of the environment is for other hosts, and not to see a secret.
    """
    try:
        with build_opener(ProxyHandler({})).open(request, timeout=REQUEST_TIMEOUT) as response:
            return str(response.read(1 << 20).decode("utf-8", "replace"))
    except HTTPException as error:
        words = f"{request.full_url} answered with something other than HTTP: {error}"
        raise ValueError(words) from None


def _document(text: str) -> Any:
    """Return the JSON document in a TEXT, the text itself where it is none."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _refuses(url: str) -> None:
    """Raise ValueError where an address is open to whoever reaches it."""
    try:
        _answer(Request(url))
    except HTTPError as error:
        if error.code in (401, 403):
            return
        raise ValueError(f"{url} answered {error.code} without its secret") from None
    raise ValueError(f"{url} opens without its secret")


def _images(smoke: bool) -> Iterator[Check]:
    if not smoke:
        return
    for image in containers.ask_engine("/images/json"):
        image_labels = image.get("Labels") or {}
        if labels.SMOKE not in image_labels:
            continue
        command = json.loads(image_labels[labels.SMOKE])
        for reference in image.get("RepoTags") or ():
            # One that an interrupted build left is nobody's to use.
            if not reference.endswith(images_smoke.CANDIDATE):
                yield attempt(f"image {reference}", partial(_image, reference, command))


def _services() -> Iterator[Check]:
    for container in containers.ask_engine("/containers/json?all=1"):
        container_labels = container.get("Labels") or {}
        name = container_labels.get("com.docker.compose.service")
        once = container_labels.get(containers.ONE_OFF) == "True"
        if not name or once or labels.PROOF not in container_labels:
            continue
        proof = json.loads(container_labels[labels.PROOF])
        yield attempt(f"service {name}", partial(_service, container, proof))


def checks(smoke: bool, daemon_reload: bool) -> list[dict[str, Any]]:
    """Try everything; return what came of it, as plain mappings.

    SMOKE says whether the images' smoke tests run again, DAEMON_RELOAD whether systemd is told to
    read its units anew while a container holds the GPUs.  A host that is to have no engine has
    nothing to prove but its GPUs.
    """
    facts = state_facts.ask_host()
    gpus = gpu_proof.own_gpus(facts)
    found = [attempt(GPUS, partial(gpu_proof.check_host, len(gpus)))] if gpus else []
    if gpus and found[0].ok:
        found.append(attempt(COMPUTATION, partial(gpu_proof.compute_on_host, gpus)))
    healthy = all(check.ok for check in found)
    if not facts["docker_package"]:
        found.append(Check("engine", True, "none is installed"))
        return [asdict(check) for check in found]
    engine = attempt("engine", _engine)
    found.append(engine)
    if engine.ok:
        if gpus and healthy:
            held = partial(gpu_proof.check_container, len(gpus), daemon_reload)
            found.append(attempt(GPUS_IN_CONTAINERS, held))
        found += [*_images(smoke), *_services()]
    return [asdict(check) for check in found]
