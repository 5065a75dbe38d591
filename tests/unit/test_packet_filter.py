# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A firewall reload that takes the network of containers away is seen."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.host import network_check
from ansible_collections.slipway.host.plugins.module_utils.state import containers, packet_filter

Program = Callable[[str, str], None]
FORWARD = "-P FORWARD DROP\n-A FORWARD -j DOCKER-USER\n-A FORWARD -j DOCKER-FORWARD"
MASQUERADE = "-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE"
SNAT = "-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j SNAT --to-source 192.0.2.1"
NONE = "-P POSTROUTING ACCEPT"
NFT = 'oifname != "docker0" ip saddr 172.17.0.0/16 counter packets 0 bytes 0 masquerade'
OPTION = packet_filter.OPTION


def network(name: str, subnet: str = "172.17.0.0/16", **more: Any) -> dict[str, Any]:
    return {"Name": name, "Id": "1" * 64, "IPAM": {"Config": [{"Subnet": subnet}]}, **more}


class Filter:
    """The packet filter of a host, for a test to change."""

    def __init__(self, folder: Path, program: Program) -> None:
        self.folder = folder
        self.program = program
        self.networks = [network("bridge")]
        self.interfaces("br-111111111111")
        self.iptables(MASQUERADE)
        self.settings()
        self.dockerd("/usr/sbin/dockerd", "-H", "fd://")

    def iptables(self, rules: str, forward: str = FORWARD, name: str = "iptables-nft") -> None:
        """Set what a variant of iptables lists."""
        script = f"case \"$*\" in *'-t nat'*) echo '{rules}' ;; *) echo '{forward}' ;; esac"
        self.program(name, f'echo "{name} $*" >>{self.folder}/log\n{script}')

    def nft(self, rules: str, table: str = "table ip docker-bridges") -> None:
        """Set what nft lists."""
        self.program("nft", f"test \"$2\" = tables && echo '{table}' || echo '{rules}'")

    def remove(self, *names: str) -> None:
        """Remove programs."""
        for name in names:
            (self.folder / "programs" / name).unlink()

    def settings(self, **settings: Any) -> None:
        """Write daemon.json."""
        (self.folder / "daemon.json").write_text(json.dumps(settings))

    def dockerd(self, *words: str) -> None:
        """Start a process with this command line."""
        (self.folder / "docker.pid").write_text("77")
        (self.folder / "77").mkdir(exist_ok=True)
        (self.folder / "77" / "cmdline").write_bytes("\0".join([*words, ""]).encode())

    def interfaces(self, *names: str) -> None:
        """Add interfaces of the host."""
        for name in names:
            (self.folder / "net" / name).mkdir(parents=True)

    def legacy(self, *tables: str) -> None:
        """Set the names of the legacy tables of the kernel."""
        (self.folder / "tables").write_text("".join(f"{name}\n" for name in tables))

    def ask(self) -> tuple[list[str], str]:
        """Return the networks without rules, and why they are unknown."""
        found = packet_filter.ask_rules(str(self.folder))
        return found["missing"], found["unknown"]

    def log(self) -> str:
        """Return the commands that ran."""
        return (self.folder / "log").read_text()


@pytest.fixture
def host(tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch) -> Filter:
    found = Filter(tmp_path, program)
    monkeypatch.setattr(
        containers, "ask_engine", lambda path: found.networks if "bridge" in path else None
    )
    for name, path in (
        ("PROGRAMS", "programs"),
        ("DAEMON_JSON", "daemon.json"),
        ("PIDFILE", "docker.pid"),
        ("LEGACY_TABLES", "tables"),
        ("INTERFACES", "net"),
    ):
        monkeypatch.setattr(packet_filter, name, str(tmp_path / path))
    return found


@pytest.mark.parametrize("rule", [MASQUERADE, SNAT])
def test_the_rules_of_iptables_count(host: Filter, rule: str) -> None:
    host.iptables(rule)
    assert host.ask() == ([], "")
    assert len(host.log().splitlines()) == 2, "a healthy host runs two programs"


@pytest.mark.parametrize(
    ("rules", "forward"),
    [
        (NONE, "-P FORWARD ACCEPT"),
        (NONE, FORWARD),
        (MASQUERADE, "-P FORWARD DROP"),
        (MASQUERADE.replace("172", "10"), FORWARD),
        (MASQUERADE.replace("172", "1172"), FORWARD),
        (MASQUERADE.replace("MASQUERADE", "RETURN"), FORWARD),
    ],
)
def test_missing_rules_are_named(host: Filter, rules: str, forward: str) -> None:
    host.iptables(rules, forward)
    host.legacy("filter")
    assert host.ask() == (["bridge"], "")
    assert "legacy" not in host.log(), "listing a legacy table creates it"


def test_each_network_needs_its_own_rule(host: Filter) -> None:
    host.networks += [network("team", "172.18.0.0/16"), network("v6", "fd00::/64")]
    assert host.ask() == (["team"], "")


def test_subnets_are_compared_as_filters_show_them(host: Filter) -> None:
    host.networks = [network("bridge", "172.17.5.9/16")]
    assert host.ask() == ([], "")
    assert packet_filter.mask("10.9.8.7/20") == "10.9.0.0/20"
    assert packet_filter.mask("10.9.8.7/32") == "10.9.8.7/32"
    assert packet_filter.mask("10.9.8.7/0") == "0.0.0.0/0"


def test_a_network_whose_interface_the_engine_could_not_create_needs_no_rule(
    host: Filter,
) -> None:
    host.iptables(NONE)
    host.networks = [
        network("lost", Id="2" * 64),
        network("named", Options={f"{OPTION}name": "docker0"}),
    ]
    assert host.ask() == ([], "")
    host.interfaces("docker0")
    assert host.ask() == (["named"], "")


@pytest.mark.parametrize(
    "more",
    [
        {"Internal": True},
        {"ConfigOnly": True},
        {"Scope": "swarm"},
        {"Options": {f"{OPTION}enable_ip_masquerade": "false"}},
        {"Options": {f"{OPTION}enable_ip_masquerade": "0"}},
        {"Options": {f"{OPTION}gateway_mode_ipv4": "routed"}},
        {"IPAM": {"Config": None}},
        {"IPAM": None},
    ],
)
def test_networks_without_translation_need_no_rule(host: Filter, more: dict[str, Any]) -> None:
    host.networks = [{**network("inner"), **more}]
    host.iptables(NONE)
    assert host.ask() == ([], "")
    host.networks = [{**network("inner"), "Options": {f"{OPTION}gateway_mode_ipv4": "nat"}}]
    assert host.ask() == (["inner"], "")


@pytest.mark.parametrize(("rule", "missing"), [(MASQUERADE, []), (NONE, ["bridge"])])
def test_legacy_tables_count_where_the_kernel_has_them(
    host: Filter, rule: str, missing: list[str]
) -> None:
    host.legacy("nat", "filter")
    host.iptables(rule, name="iptables-legacy")
    for name in ("an empty filter", "no program"):
        host.iptables(NONE, "-P FORWARD ACCEPT")
        if name == "no program":
            host.remove("iptables-nft")
        assert host.ask() == (missing, ""), name


@pytest.mark.parametrize(
    ("settings", "flags"),
    [
        ({"firewall-backend": "nftables"}, []),
        ({}, ["--firewall-backend=nftables"]),
        ({}, ["--firewall-backend", "nftables"]),
    ],
)
def test_an_engine_with_nftables_has_a_table_of_its_own(
    host: Filter, settings: dict[str, Any], flags: list[str]
) -> None:
    host.settings(**settings)
    host.dockerd("dockerd", *flags)
    host.nft(NFT)
    assert host.ask() == ([], "")
    host.nft("")
    assert host.ask() == (["bridge"], "")
    host.nft(NFT, "table ip filter")
    assert host.ask() == (["bridge"], ""), "the rule is in a table of somebody else"
    host.remove("nft")
    missing, unknown = host.ask()
    assert (missing, unknown.partition(":")[0]) == ([], "the rules cannot be listed")


@pytest.mark.parametrize(
    ("settings", "flags", "unknown"),
    [
        ({"iptables": False}, [], packet_filter.UNMANAGED),
        ({}, ["--iptables=false"], packet_filter.UNMANAGED),
        ({}, ["--iptables=F"], packet_filter.UNMANAGED),
        ({}, ["--iptables"], ""),
        ({"iptables": True}, [], ""),
    ],
)
def test_an_engine_that_does_not_manage_the_filter_lacks_nothing(
    host: Filter, settings: dict[str, Any], flags: list[str], unknown: str
) -> None:
    host.settings(**settings)
    host.dockerd("/usr/bin/dockerd", *flags)
    host.iptables(NONE)
    assert host.ask() == ([] if unknown else ["bridge"], unknown)


@pytest.mark.parametrize("text", ["", "[]", "{", "\ufeff{}"])
def test_a_broken_daemon_json_has_an_error_of_its_own(host: Filter, text: str) -> None:
    (host.folder / "daemon.json").write_text(text)
    assert host.ask() == ([], "")


def test_an_engine_that_nobody_knows_is_not_judged(host: Filter) -> None:
    host.iptables(NONE)
    host.dockerd("/usr/bin/sleep")
    assert host.ask()[1].startswith("the command line of dockerd is unknown")
    (host.folder / "docker.pid").unlink()
    assert host.ask()[0] == []


@pytest.mark.parametrize("name", ["iptables-nft", "iptables-legacy"])
def test_a_filter_that_cannot_be_listed_is_not_judged(host: Filter, name: str) -> None:
    host.legacy("nat")
    for variant in ("iptables-nft", "iptables-legacy"):
        host.iptables(NONE, name=variant)
    assert host.ask() == (["bridge"], "")
    host.program(name, "exit 4")
    missing, unknown = host.ask()
    assert (missing, name in unknown, "exit status 4" in unknown) == ([], True, True)


def test_no_program_at_all_is_not_judged(host: Filter) -> None:
    host.remove("iptables-nft")
    assert host.ask()[0] == []
    assert "iptables-nft" in host.ask()[1]


@pytest.mark.parametrize(
    ("units", "asked"),
    [
        ({"docker.service": {"active": "active"}}, True),
        ({"docker.service": {"active": "inactive"}}, False),
        ({"docker.service": {"active": "activating"}}, False),
        ({"docker.service": None}, False),
        ({}, False),
        (None, False),
    ],
)
def test_only_an_engine_that_runs_is_asked(
    host: Filter, monkeypatch: pytest.MonkeyPatch, units: Any, asked: bool
) -> None:
    monkeypatch.setattr(packet_filter, "ask_rules", lambda: {"missing": ["bridge"]})
    answer = packet_filter.ASKS["packet_filter"](
        ["docker.service"], {"engine": None, "units": units}
    )
    assert answer == {"docker.service": {"missing": ["bridge"]} if asked else None}


@pytest.mark.parametrize(
    ("error", "questions"), [(TimeoutError("timed out"), 1), (ValueError("Docker answered 500"), 3)]
)
def test_an_engine_without_an_answer_has_an_error_of_its_own(
    monkeypatch: pytest.MonkeyPatch, error: Exception, questions: int
) -> None:
    asked: list[str] = []

    def fail(path: str) -> None:
        asked.append(path)
        raise error

    monkeypatch.setattr(containers, "ask_engine", fail)
    reply: dict[str, Any] = {"engine": None, "units": {"docker.service": {"active": "active"}}}
    assert packet_filter.ASKS["packet_filter"](["docker.service"], reply) == {
        "docker.service": None
    }
    assert reply["engine"] == str(error)
    # Each question to an engine that hangs takes 20 seconds.
    asks: dict[str, Any] = containers.ASKS
    for key in ("images", "projects"):
        assert asks[key](["a:b"], reply) is None
    assert len(asked) == questions


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (([], ""), "the packet filter translates addresses of 1 container networks"),
        (([], "no reason"), "not checked: no reason"),
        ((["bridge"], ""), "no rules for the networks bridge; expected the rules that Docker"),
    ],
)
def test_verify_says_what_it_found(
    monkeypatch: pytest.MonkeyPatch, found: tuple[list[str], str], words: str
) -> None:
    missing, unknown = found
    answer = {"networks": ["bridge"], "missing": missing, "unknown": unknown}
    monkeypatch.setattr(packet_filter, "ask_rules", lambda: answer)
    if missing:
        with pytest.raises(ValueError, match=f"{words}.*systemctl restart docker"):
            network_check.check()
    else:
        assert network_check.check() == words
