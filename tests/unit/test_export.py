# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""`./slipway export`: which hosts are in a file, what each file has, and what none may have."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.slipway.host.plugins.plugin_utils.export import formats, hosts
from ansible_collections.slipway.host.plugins.plugin_utils.export.hosts import (
    ExportError,
    Gpus,
    Host,
    Selection,
    select,
)
from ansible_collections.slipway.host.plugins.plugin_utils.export.ssh_arguments import Jump

FOLDER = Path("/srv/slipway")
JUMP = Jump("bastion", "admin", 2222)
H100 = Gpus(("NVIDIA H100", "NVIDIA H100"), "580.95.05")
PLAIN = Host("gpu01", "192.0.2.11", 0, "ubuntu", "/k", gpus=H100)
FAR = Host("gpu02", "2001:db8::2", 2200, "ops", "/my keys/k", (JUMP,))
CPU = Host("cpu01", "cpu01.example.org", 22, "ubuntu", "/k", gpus=Gpus())


def connection(**values: Any) -> dict[str, Any]:
    """Return what slipway.host.connection_info returns for a host."""
    known = {"transport": "ssh", "address": "192.0.2.11", "port": None, "user": "ubuntu"}
    return {"hold": "", "connection": {**known, "key": "", "arguments": "", **values}}


def report(**values: Any) -> dict[str, Any]:
    """Return a report of a host."""
    gpus = [{"name": "NVIDIA L4", "health": health} for health in ("healthy", "fault", "missing")]
    overview = {"gpus": gpus, "driver": {"version": "580.95.05"}}
    return {"state": "no_drift", "ran": "2026-11-28T10:00:00+00:00", "overview": overview, **values}


def test_the_hosts_have_the_values_of_inventory_and_report() -> None:
    found = {
        "gpu01": connection(key="keys/k", port=2200, arguments="-J admin@bastion:2222"),
        "new01": connection(address="192.0.2.12", user=None, key="~/.ssh/k"),
    }
    selection = select(found, {"gpu01": report()}, FOLDER, False)
    gpus = Gpus(("NVIDIA L4", "NVIDIA L4"), "580.95.05", faulty=True)
    assert selection.notes == []
    assert selection.hosts == [
        Host("gpu01", "192.0.2.11", 2200, "ubuntu", "/srv/slipway/keys/k", (JUMP,), (), gpus),
        Host("new01", "192.0.2.12", key="~/.ssh/k"),
    ]
    assert gpus.text == "2 x NVIDIA L4, driver 580.95.05, a GPU has a fault"
    assert Gpus().text == "no GPU"


def test_hosts_that_no_tool_may_use_are_left_out_with_the_reason() -> None:
    found = {
        "gpu01": connection(),
        "gpu02": {"hold": "disk\x1b[2J swap", "connection": {}},
        "gpu\x1b03": {"hold": "x", "connection": {}},
        "gpu04": connection(transport="docker"),
        "gpu05": connection(arguments="-o Ciphers=aes256-ctr"),
        "gpu06": connection(arguments="-o Ciphers=aes256-ctr -A"),
    }
    unreachable = {"gpu05": report(state="unreachable"), "gpu01": report(state="fault")}
    selection = select(found, unreachable, FOLDER, False)
    assert [host.name for host in selection.hosts] == ["gpu01", "gpu06"]
    assert selection.notes == [
        "gpu02 is left out: held: disk\\x1b[2J swap",
        "gpu\\x1b03 is left out: held: x",
        "gpu04 is left out: its connection is docker, not ssh",
        "gpu05 is left out: unreachable in the run of 2026-11-28T10:00:00+00:00",
        "the option Ciphers of ansible_ssh_common_args is not exported (hosts: 1)",
        "the option -A of ansible_ssh_common_args is not exported (hosts: 1)",
    ]
    # Not from the files for people and for alerts.
    with_it = select(found, unreachable, FOLDER, True).hosts
    assert [host.unreachable for host in with_it] == ["", "2026-11-28T10:00:00+00:00", ""]


@pytest.mark.parametrize(
    ("name", "values", "error"),
    [
        ("*", {}, "*: name of the host: '*'; expected letters, digits"),
        ("gpu 01", {}, "gpu 01: name of the host: 'gpu 01'; "),
        ("a\nHost *", {}, "a\\nHost *: name of the host: 'a\\nHost *'; "),
        ("-oX=1", {}, "-oX=1: name of the host: "),
        ("!gpu01", {}, "!gpu01: name of the host: "),
        ("gpu01", {"address": "a b"}, "gpu01: ansible_host: 'a b'; "),
        ("gpu01", {"address": "-oProxyCommand=id"}, "gpu01: ansible_host: "),
        ("gpu01", {"address": "fe80::1%eth0"}, "gpu01: ansible_host: "),
        ("gpu01", {"address": ""}, "gpu01: ansible_host: ''; "),
        ("gpu01", {"user": "a b"}, "gpu01: ansible_user: 'a b'; "),
        ("gpu01", {"user": "$(id)"}, "gpu01: ansible_user: "),
        ("gpu01", {"port": 70000}, "gpu01: ansible_port: 70000; expected 1 to 65535"),
        ("gpu01", {"key": '/a"b'}, "gpu01: path of a key: found one of the characters"),
        ("gpu01", {"key": "-----BEGIN KEY\nSECRET\n"}, "gpu01: path of a key: "),
        ("gpu01", {"key": "/${HOME}/k"}, "gpu01: path of a key: "),
        ("gpu01", {"key": "%d/k"}, "gpu01: path of a key: "),
        (
            "gpu01",
            {"arguments": "-o ProxyCommand='ssh -i /%d -W %h:%p bastion'"},
            "gpu01: path of a key: found one of ",
        ),
        (
            "gpu01",
            {"arguments": "-o ProxyCommand='sshpass -p SECRET ssh -W %h:%p b'"},
            "gpu01: ansible_ssh_common_args: found ProxyCommand with another command; expected",
        ),
    ],
)
def test_values_with_another_meaning_are_refused(
    name: str, values: dict[str, Any], error: str
) -> None:
    with pytest.raises(ExportError) as caught:
        select({name: connection(**values), "gpu09": connection(user="é é")}, {}, FOLDER, True)
    first, second = caught.value.sentences
    assert first.startswith(error)
    assert second.startswith("gpu09: ansible_user: ")
    assert "SECRET" not in first


def test_an_export_without_hosts_says_why() -> None:
    with pytest.raises(ExportError) as caught:
        select({"gpu01": {"hold": "disk swap", "connection": {}}}, {}, FOLDER, True)
    assert caught.value.sentences == (
        "no host is left; expected at least one that runs reach by SSH. Change the inventory or "
        "--limit.",
        "gpu01 is left out: held: disk swap.",
    )


def render(target: str, *selected: Host, **options: Any) -> str:
    selection = Selection(list(selected), ["gpu09 is left out: held: disk swap"])
    return formats.TARGETS[target].render(selection, formats.Options(**options))


def load(target: str, *selected: Host, **options: Any) -> Any:
    """Return the data of a file; JSON is YAML."""
    return yaml.safe_load(render(target, *selected, **options))


@pytest.mark.parametrize("target", sorted(set(formats.TARGETS) - {"prometheus"}))
def test_files_name_the_hosts_that_they_lack(target: str) -> None:
    first, second, *_rest = render(target, PLAIN).splitlines()
    assert first.startswith(f"# Made by ./slipway export {target}.")
    assert second == "# gpu09 is left out: held: disk swap"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        (PLAIN, {"hostname": "192.0.2.11", "port": "22", "user": "ubuntu", "identityfile": "/k"}),
        (
            FAR,
            {
                "hostname": "2001:db8::2",
                "port": "2200",
                "user": "ops",
                "identityfile": "/my keys/k",
                "proxyjump": "admin@bastion:2222",
            },
        ),
        (
            replace(FAR, jumps=(Jump("b", "admin", key="/a b"),)),
            {"proxycommand": "ssh -W %h:%p -i '/a b' -l admin b"},
        ),
        (
            replace(PLAIN, options=(("UserKnownHostsFile", '"/a b" /c'), ("HostKeyAlias", "x"))),
            {"userknownhostsfile": "/a b /c", "hostkeyalias": "x", "port": "22"},
        ),
        (replace(PLAIN, jumps=(JUMP, Jump("b"))), {"proxyjump": "admin@bastion:2222,b"}),
        (replace(PLAIN, name="fd00::1"), {"hostname": "192.0.2.11"}),
        (replace(PLAIN, unreachable="2026-11-28"), {"hostname": "192.0.2.11"}),
    ],
)
def test_ssh_reads_its_configuration(host: Host, expected: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "config"
    file.write_text(render("ssh-config", CPU, host, replace(PLAIN, name="last")), encoding="utf-8")
    done = subprocess.run(
        ["ssh", "-F", str(file), "-G", host.name], capture_output=True, text=True, check=True
    )
    found = dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)
    assert expected.items() <= found.items()
    assert ("proxyjump" in found, "proxycommand" in found) == (
        "proxyjump" in expected,
        "proxycommand" in expected,
    )


def test_skypilot_gets_a_pool() -> None:
    assert load("skypilot", PLAIN, CPU, replace(PLAIN, key=""), name="lab") == {
        "lab": {
            "hosts": [
                {"ip": "192.0.2.11", "user": "ubuntu", "identity_file": "/k"},
                {"ip": "cpu01.example.org", "user": "ubuntu", "identity_file": "/k"},
                {"ip": "192.0.2.11", "user": "ubuntu"},
            ]
        }
    }
    # It has no keys for ports and jump hosts.
    assert load("skypilot", FAR) == {"slipway": {"hosts": ["gpu02"]}}
    assert "jump host of gpu02 from ~/.ssh/config" in render("skypilot", FAR)


def test_dstack_gets_a_fleet() -> None:
    plain = {"hostname": "192.0.2.11", "user": "ubuntu", "identity_file": "/k"}
    proxy = {"hostname": "bastion", "port": 2222, "user": "admin", "identity_file": "/my keys/k"}
    far = {"hostname": "2001:db8::2", "port": 2200, "user": "ops", "identity_file": "/my keys/k"}
    assert load("dstack", PLAIN, FAR, name="lab") == {
        "type": "fleet",
        "name": "lab",
        "ssh_config": {"hosts": [plain, {**far, "proxy_jump": proxy}]},
    }
    own = replace(FAR, jumps=(replace(JUMP, key="/j"),))
    (entry,) = load("dstack", own)["ssh_config"]["hosts"]
    assert entry["proxy_jump"]["identity_file"] == "/j"


def test_ray_gets_a_cluster() -> None:
    jumped = replace(PLAIN, jumps=(JUMP,))
    found = load("ray", jumped, replace(jumped, name="gpu02", address="192.0.2.12"), name="lab")
    assert found == {
        "cluster_name": "lab",
        "max_workers": 1,
        "provider": {"type": "local", "head_ip": "192.0.2.11", "worker_ips": ["192.0.2.12"]},
        "auth": {
            "ssh_user": "ubuntu",
            "ssh_private_key": "/k",
            "ssh_proxy_command": "ssh -W %h:%p -p 2222 -l admin bastion",
        },
        "docker": {
            "image": "rayproject/ray:latest-gpu",
            "container_name": "ray_container",
            "pull_before_run": True,
        },
    }
    alone = load("ray", CPU)
    assert (alone["provider"]["worker_ips"], alone["max_workers"]) == ([], 0)
    assert alone["docker"]["image"] == "rayproject/ray:latest"


def test_gpustack_gets_a_worker_for_each_host() -> None:
    found = load("gpustack", PLAIN, CPU, replace(PLAIN, name="new01", gpus=None))
    assert list(found["services"]) == ["gpu01", "cpu01", "new01"]
    assert [one.get("runtime") for one in found["services"].values()] == ["nvidia", None, "nvidia"]
    worker = found["services"]["gpu01"]
    assert worker["environment"]["GPUSTACK_WORKER_NAME"] == "gpu01"
    # No secret is in the file: Compose reads the values from its environment.
    for name in ("GPUSTACK_TOKEN", "GPUSTACK_SERVER_URL"):
        assert re.fullmatch(rf"\$\{{{name}:\?[^}}]+\}}", worker["environment"][name])


def test_prometheus_gets_targets() -> None:
    mixed = replace(PLAIN, gpus=Gpus(("NVIDIA L4", "Tësla T4", "NVIDIA L4")))
    assert json.loads(render("prometheus", mixed, FAR, CPU, port=9200)) == [
        {
            "targets": ["192.0.2.11:9200"],
            "labels": {"instance": "gpu01", "gpus": "3", "gpu_model": "NVIDIA L4, Tësla T4"},
        },
        {"targets": ["[2001:db8::2]:9200"], "labels": {"instance": "gpu02"}},
        {"targets": ["cpu01.example.org:9200"], "labels": {"instance": "cpu01", "gpus": "0"}},
    ]


@pytest.mark.parametrize(
    ("target", "selected", "error"),
    [
        ("skypilot", [replace(PLAIN, user="")], "gpu01: ansible_user: not set; expected a user."),
        ("dstack", [replace(PLAIN, user="")], "gpu01: ansible_user: not set; expected a value"),
        ("dstack", [replace(PLAIN, key="")], "gpu01: ansible_ssh_private_key_file: not set; "),
        (
            "dstack",
            [replace(PLAIN, jumps=(Jump("b"),))],
            "gpu01: jump host b without a user; expected USER@HOST for dstack.",
        ),
        ("dstack", [replace(PLAIN, jumps=(JUMP, JUMP))], "gpu01: 2 jump hosts; expected at most "),
        ("ray", [PLAIN, replace(FAR, jumps=())], "gpu02: ansible_port: 2200; expected a user and "),
        ("ray", [replace(PLAIN, user="")], "gpu01: ansible_user: not set; expected a user and "),
        (
            "ray",
            [PLAIN, replace(CPU, user="ops", jumps=(JUMP,))],
            "cpu01: ssh_user, ssh_proxy_command differs from gpu01; expected the same user, key ",
        ),
        ("gpustack", [replace(PLAIN, name="fd00::1")], "fd00::1: name of the host; expected a "),
    ],
)
def test_hosts_that_a_tool_cannot_use_are_refused(
    target: str, selected: list[Host], error: str
) -> None:
    with pytest.raises(ExportError) as caught:
        render(target, *selected)
    (sentence,) = caught.value.sentences
    assert sentence.startswith(error)
    assert sentence.endswith(("--limit.",))


def test_errors_of_several_hosts_come_together() -> None:
    for target in ("skypilot", "dstack"):
        with pytest.raises(ExportError) as caught:
            render(target, replace(PLAIN, user=""), replace(CPU, user=""))
        assert [sentence[:6] for sentence in caught.value.sentences] == ["gpu01:", "cpu01:"]


@pytest.mark.parametrize("value", ["yes", "0x10", "1e3", "null", "123", "12:30:45", "1_000"])
@pytest.mark.parametrize("target", sorted(formats.TARGETS))
def test_texts_that_look_like_other_types_stay_texts(target: str, value: str) -> None:
    host = replace(PLAIN, name=value, address=value, user=value)
    if target == "gpustack" and ":" in value:
        with pytest.raises(ExportError):
            render(target, host)
    elif target != "ssh-config":
        texts = json.dumps(load(target, host))
        assert f'"{value}' in texts or f'["{value}:9100"]' in texts
        assert hosts.NAME.fullmatch(value)
