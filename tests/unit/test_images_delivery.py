# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which host builds for another one, and what a delivery checks on the host that pulls."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.host.job import Progress
from ansible_collections.slipway.host.plugins.module_utils.images import (
    delivery,
    fetching,
    record,
    registry,
)
from ansible_collections.slipway.host.plugins.module_utils.images.delivery import Candidate

AMD, ARM = "x86_64", "aarch64"
IMAGES = {"slipway/iris-api:cpu": "1", "slipway/jupyter:cpu": "2"}
HOSTS = {
    "old": Candidate(AMD, {**IMAGES, "slipway/jupyter:cpu": "0"}),
    "arm": Candidate(ARM, IMAGES),
    "more": Candidate(AMD, {**IMAGES, "slipway/pytorch:cpu": "3"}),
    "same": Candidate(AMD, IMAGES),
    "unknown": Candidate(None, None),
    "failed": None,
}


@pytest.mark.parametrize(
    ("wanted", "host", "hosts", "builder"),
    [
        (["auto"], "h", ["h", "same"], None),
        (["auto"], "h", ["same", "h"], "same"),
        (["auto"], "h", ["old", "arm", "more", "h"], "more"),
        (["auto"], "h", ["failed", "unknown", "h", "same"], None),
        (["auto"], "h", ["old", "arm", "failed", "unknown"], None),
        ([], "h", ["same", "h"], None),
        (["h", "same"], "h", ["same", "h"], None),
        (["same"], "h", ["h", "same"], "same"),
        (["arm", "same"], "h", ["h"], "same"),
        (["arm"], "h", ["h"], None),
        # The builder says itself whether it can build, if this run did not look at it.
        (["unknown"], "h", ["h"], "unknown"),
        (["old"], "h", ["h"], "old"),
        (["failed", "same"], "h", ["h"], "same"),
    ],
)
def test_the_builder_of_a_host(
    wanted: list[str], host: str, hosts: list[str], builder: str | None
) -> None:
    own = Candidate(AMD, IMAGES)
    assert delivery.choose_builder(wanted, host, own, hosts, HOSTS.get) == builder


def test_declared_images_are_read_from_all_roles() -> None:
    owned: list[dict[str, Any]] = [{"images": [{"reference": "a", "digest": "1"}]}, {"files": []}]
    assert delivery.declared_images(owned) == {"a": "1"}


TCP = """  sl  local_address rem_address   st tx_queue rx_queue
   0: 0100007F:4E20 00000000:0000 0A 00000000:00000000
   1: 00000000:0016 00000000:0000 0A 00000000:00000000
   2: 0100007F:4E21 0100007F:1234 01 00000000:00000000
"""
TCP6 = """  sl  local_address                         remote_address                        st
   0: 00000000000000000000000001000000:4E20 00000000000000000000000000000000:0000 0A 0:0
   1: 00000000000000000000000000000000:4E22 00000000000000000000000000000000:0000 0A 0:0
"""


@pytest.mark.parametrize(
    ("port", "found"),
    [
        (20000, {"0100007F", "00000000000000000000000001000000"}),
        (22, {"00000000"}),
        (20001, set()),
        (20002, {"00000000000000000000000000000000"}),
    ],
)
def test_the_addresses_of_a_port(port: int, found: set[str]) -> None:
    assert fetching.addresses_of(port, [TCP, TCP6]) == found


@pytest.mark.parametrize(("port", "problem"), [(22, "other addresses"), (20001, "is not there")])
def test_a_forward_that_others_reach_is_refused(
    port: int, problem: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "tcp").write_text(TCP)
    monkeypatch.setattr(fetching, "TABLES", (str(tmp_path / "tcp"), str(tmp_path / "tcp6")))
    with pytest.raises(fetching.FetchError, match=problem):
        fetching.check_forward(port)
    fetching.check_forward(20000)


@pytest.mark.parametrize(
    "output",
    [
        "{b}: Pulling fs layer\n{b}: Download complete\n{b}: Pull complete\n",
        # The store of containerd.
        "{b}: Pulling fs layer\n{b}: Download complete\n",
    ],
)
def test_received_bytes_are_those_of_transferred_layers(output: str) -> None:
    layers = {f"sha256:{digit * 64}": size for digit, size in (("a", 100), ("b", 7), ("c", 1))}
    output = f"{'a' * 12}: Already exists\n{output.format(b='b' * 12)}Digest: sha256:x\n"
    assert fetching.received_bytes(output, layers) == 7


def job_of(folder: Path) -> Path:
    image: dict[str, Any] = {
        "name": "small",
        "reference": "slipway/small:cpu",
        "digest": "1",
        "parent": None,
        "smoke_timeout": 5,
        "adds": 10**30,
        "manifest": "sha256:m",
        "config": "sha256:c",
        "layers": {},
    }
    (folder / "job.json").write_text(
        json.dumps({"images": [image], "builder": "build01", "port": 20000})
    )
    return folder


def test_a_host_without_space_says_how_much_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def docker(action: str, command: list[str], timeout: float | None = None) -> str:
        return str(tmp_path)

    monkeypatch.setattr(fetching, "check_forward", lambda port: None)
    monkeypatch.setattr(fetching, "run_or_fail", docker)
    monkeypatch.setattr(record, "inspect_image", lambda reference: None)
    monkeypatch.setattr(record, "secure_records", lambda: None)
    monkeypatch.setattr(record, "is_recorded", lambda *words: False)
    monkeypatch.setattr(record, "remove_replaced", lambda references: None)
    monkeypatch.setattr(fetching, "run", lambda command: None)
    with (tmp_path / "progress").open("w") as stream:
        result = fetching.Fetcher(job_of(tmp_path), Progress(stream)).run()
    assert result["fetched"] == []
    (reason,) = result["failed"].values()
    assert re.match(r"no space in .*: found .* free; expected at least .* for this image", reason)


def test_a_registry_listens_on_loopback_and_serves_read_only() -> None:
    settings = json.loads(registry.configuration(5000, readonly=True))
    assert settings["http"]["addr"] == "127.0.0.1:5000"
    assert settings["storage"]["maintenance"]["readonly"]["enabled"] is True
    assert settings["storage"]["delete"]["enabled"] is False


def test_the_last_lease_ends_the_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "RUNTIME", tmp_path)
    for host in ("one", "it's; two"):
        (tmp_path / f"lease-{registry.lease_of(host)}").touch()

    def release(host: str) -> str:
        # systemctl is replaced: nothing of this machine is stopped.
        script = f"systemctl() {{ :; }}; {registry.release_script(registry.lease_of(host))}"
        done: Any = subprocess.run(
            ["sh", "-ec", script], capture_output=True, text=True, check=True
        )
        return str(done.stdout).strip()

    assert [release("one"), release("it's; two"), release("one")] == ["", "ended", "ended"]
