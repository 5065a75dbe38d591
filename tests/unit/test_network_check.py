# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A firewall reload that takes the network of containers away is seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.host import network_check
from ansible_collections.slipway.host.plugins.module_utils.state import containers

Program = Callable[[str, str], None]
IPTABLES = "-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE"
NFT = 'oifname != "docker0" ip saddr 172.17.0.0/16 counter packets 0 bytes 0 masquerade'


def network(name: str, subnet: str = "172.17.0.0/16", **more: Any) -> dict[str, Any]:
    return {"Name": name, "IPAM": {"Config": [{"Subnet": subnet}]}, **more}


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Return the networks of the engine, for a test to change."""
    found = [network("bridge")]
    monkeypatch.setattr(containers, "ask_engine", lambda path: found if "bridge" in path else None)
    return found


@pytest.fixture(autouse=True)
def no_rules(program: Program) -> None:
    program("iptables", "echo '-P POSTROUTING ACCEPT'")
    program("nft", "true")


@pytest.mark.parametrize(("name", "rule"), [("iptables", IPTABLES), ("nft", NFT)])
@pytest.mark.usefixtures("networks")
def test_the_rules_of_both_backends_count(name: str, rule: str, program: Program) -> None:
    program(name, f"echo '{rule}'")
    assert network_check.check("/none").endswith("of 1 container networks")


@pytest.mark.usefixtures("networks")
def test_a_flushed_filter_is_a_fault() -> None:
    with pytest.raises(ValueError, match=r"no rules for the networks bridge.*restart docker"):
        network_check.check("/none")


def test_each_network_needs_its_own_rule(networks: list[dict[str, Any]], program: Program) -> None:
    networks += [network("team", "172.18.0.0/16"), network("v6", "fd00::/64")]
    program("iptables", f"echo '{IPTABLES}'")
    with pytest.raises(ValueError, match="networks team:"):
        network_check.check("/none")


@pytest.mark.parametrize(
    "more",
    [
        {"Internal": True},
        {"Options": {"com.docker.network.bridge.enable_ip_masquerade": "false"}},
        {"IPAM": {"Config": None}},
        {"IPAM": None},
    ],
)
def test_networks_without_a_way_out_need_none(
    more: dict[str, Any], networks: list[dict[str, Any]]
) -> None:
    networks[:] = [{**network("inner"), **more}]
    assert network_check.check("/none").endswith("of 0 container networks")


@pytest.mark.usefixtures("networks")
def test_disabled_filters_and_missing_programs_are_named(
    tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tmp_path / "daemon.json"
    settings.write_text('{"iptables": false}')
    assert network_check.check(str(settings)).startswith("not checked: the engine does not")
    settings.write_text("[]")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="neither iptables nor nft found; expected the package"):
        network_check.check(str(settings))


@pytest.mark.usefixtures("networks")
def test_an_empty_filter_is_a_fault(program: Program) -> None:
    program("iptables", "exit 3")
    with pytest.raises(ValueError, match="no rules for the networks bridge"):
        network_check.check("/none")
