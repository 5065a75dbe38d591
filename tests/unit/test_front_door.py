# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan of the role ml_front_door, its files, and the check of its sites."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleActionFail, AnsibleUndefinedVariable
from ansible_collections.slipway.host.plugins.module_utils.host import front_door_check
from ansible_collections.slipway.host.plugins.module_utils.roles import ml_front_door, ml_services
from ansible_collections.slipway.host.plugins.module_utils.state import facts as state_facts
from ansible_collections.slipway.host.plugins.module_utils.state import front_door, model
from ansible_collections.slipway.host.plugins.module_utils.state.model import ConflictError
from ansible_collections.slipway.host.plugins.plugin_utils import role_plans
from ansible_collections.slipway.host.plugins.plugin_utils.fleet import overview

from tests.contract.tree import ROOT
from tests.unit.role_options import options as role_options

IRIS = {"name": "iris-api"}
NOTEBOOKS = {"name": "notebooks", "image": "jupyter"}


def host(address: str, *services: dict[str, Any], bind: str = "0.0.0.0") -> dict[str, Any]:
    """Return the options of a host as the plan gets them."""
    found = role_options("ml_services", instances=list(services), bind_address=bind)
    return {**found, "ml_front_door_address": address}


HOSTS = {
    "gpu01": host("192.0.2.1", IRIS, NOTEBOOKS),
    "gpu02": host("192.0.2.2", IRIS),
    "gpu03": host("2001:db8::3", IRIS, bind="::"),
    "login": host("192.0.2.9"),
}


def plan(
    *sites: dict[str, Any],
    name: str = "login",
    hosts: dict[str, Any] | None = None,
    facts: dict[str, Any] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """Return the plan of host NAME; login is the front door."""
    known = HOSTS if hosts is None else hosts
    all_facts = {
        "inventory_name": name,
        "hosts": [*known],
        "address": "192.0.2.9",
        "systemd": True,
        "distribution": "Debian",
        "distribution_version": "13",
        "distribution_release": "trixie",
        "role_path": str(ROOT / "roles/ml_front_door"),
        "options_of_hosts": known,
        "front_door": "",
        **(facts or {}),
    }
    settings = {"host": "login", "sites": list(sites), **changes}
    return ml_front_door.plan(all_facts, role_options("ml_front_door", **settings))


def config(*sites: dict[str, Any], **more: Any) -> dict[str, Any]:
    files = plan(*sites, **more)["owned"]["files"]
    assert [file["path"] for file in files] == [state_facts.DOOR_DROP_IN, "/etc/caddy/slipway.json"]
    found: dict[str, Any] = json.loads(files[1]["content"])
    return found


def proxy(server: dict[str, Any], number: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = server["routes"][number]["handle"][-1]
    return found


def test_a_site_has_all_hosts_with_the_service_and_the_paths_of_its_image() -> None:
    found = config({"service": "iris-api", "address": "iris.example.org"})
    server = found["apps"]["http"]["servers"]["443"]
    assert [one["dial"] for one in proxy(server)["upstreams"]] == [
        *("192.0.2.1:5000", "192.0.2.2:5000", "[2001:db8::3]:5000")
    ]
    assert proxy(server)["health_checks"]["active"]["uri"] == "/healthz"
    assert proxy(server)["load_balancing"]["selection_policy"] == {"policy": "least_conn"}
    assert server["routes"][-1]["handle"][0]["status_code"] == 404
    assert found["apps"]["tls"]["certificates"] == {"automate": ["iris.example.org"]}
    assert found["admin"]["listen"] == "unix//run/caddy/admin.sock"


def test_jupyter_is_sticky_unless_the_site_says_otherwise() -> None:
    for site, policy in (({}, "cookie"), ({"sticky": False}, "least_conn")):
        server = config({"service": "notebooks", **site})["apps"]["http"]["servers"]["443"]
        found = proxy(server)["load_balancing"]["selection_policy"]
        assert found["policy"] == policy
        assert found.get("name") == ("slipway_notebooks" if policy == "cookie" else None)
        assert proxy(server)["upstreams"] == [{"dial": "192.0.2.1:8888"}]
        assert server["routes"][0]["match"] == [{"host": ["192.0.2.9"]}]


def test_sites_of_one_port_share_a_server_and_plain_http_has_no_tls() -> None:
    sites: list[dict[str, Any]] = [
        {"service": "iris-api", "address": "a.example.org"},
        {"service": "notebooks", "address": "b.example.org"},
        {"service": "iris-api", "plain_http": True},
    ]
    servers = config(*sites)["apps"]["http"]["servers"]
    assert {port: len(server["routes"]) for port, server in servers.items()} == {"443": 3, "80": 2}
    assert "tls_connection_policies" not in servers["80"]
    assert servers["443"]["tls_connection_policies"] == [{"default_sni": "a.example.org"}]
    assert "tls" not in config(sites[2])["apps"]


def test_root_copies_a_certificate_for_the_service_alone() -> None:
    site = {"service": "iris-api", "certificate": "/etc/ssl/a.pem", "key": "/etc/ssl/a.key"}
    owned = plan(site)["owned"]
    drop_in = owned["files"][0]["content"]
    copy = "+/usr/bin/install -T -m 0440 -o root -g caddy /etc/ssl/a.key /run/caddy-keys/0.key"
    assert drop_in.count(copy) == 2
    assert "RuntimeDirectoryMode=0700" in drop_in
    assert "ConditionPathExists=/etc/caddy/slipway.json" in drop_in
    assert owned["units"][0]["reads"] == [
        "/etc/caddy/slipway.json",
        site["key"],
        site["certificate"],
    ]
    assert owned["door_ports"][0]["files"] == [site["key"], site["certificate"]]
    certificates = json.loads(owned["files"][1]["content"])["apps"]["tls"]["certificates"]
    assert certificates == {
        "load_files": [
            {"certificate": "/run/caddy-keys/0.certificate", "key": "/run/caddy-keys/0.key"}
        ]
    }


def test_the_door_reaches_its_own_service_on_loopback() -> None:
    hosts = {**HOSTS, "login": host("192.0.2.9", IRIS, bind="127.0.0.1")}
    server = config({"service": "iris-api"}, hosts=hosts)["apps"]["http"]["servers"]["443"]
    assert proxy(server)["upstreams"][-1] == {"dial": "127.0.0.1:5000"}
    hosts["gpu02"] = host("192.0.2.2", {**IRIS, "bind_address": "10.0.0.2", "ports": {"api": 81}})
    server = config({"service": "iris-api"}, hosts=hosts)["apps"]["http"]["servers"]["443"]
    assert proxy(server)["upstreams"][1] == {"dial": "10.0.0.2:81"}


@pytest.mark.parametrize(
    ("site", "message"),
    [
        ({"service": "none"}, "no host has such a service"),
        ({"hosts": ["gpu01", "login"]}, "host login has no such service"),
        ({"hosts": ["gpu99"]}, "host gpu99 has no such service"),
        ({"address": "a b"}, "address is 'a b'; expected a host name"),
        ({"address": "a.example.org:80"}, "expected a host name"),
        ({"port": 70000}, "port is 70000; expected 1 to 65535"),
        ({"certificate": "/a"}, "found only a part of certificate and key"),
        ({"certificate": "/a", "key": "/b", "plain_http": True}, "or plain_http beside them"),
        ({"certificate": "/a b", "key": "/b"}, "found path '/a b'; expected an absolute path"),
        ({"certificate": "/a", "key": "/../b"}, "found path '/../b'"),
        ({"service_port": "ssh"}, "has no port 'ssh'; expected one of: api"),
        ({"health_path": "healthz"}, "health_path is 'healthz'; expected one path"),
    ],
)
def test_a_wrong_site_is_an_error_before_a_change(site: dict[str, Any], message: str) -> None:
    with pytest.raises(ml_front_door.FrontDoorError) as error:
        plan({"service": "iris-api", **site})
    assert message in str(error.value)


@pytest.mark.parametrize("bind", ["127.0.0.1", "::1"])
def test_a_service_on_loopback_of_another_host_is_an_error(bind: str) -> None:
    hosts = {**HOSTS, "gpu02": host("192.0.2.2", IRIS, bind=bind)}
    with pytest.raises(ml_front_door.FrontDoorError, match=f"host gpu02 has address {bind}"):
        plan({"service": "iris-api"}, hosts=hosts)
    hosts = {**HOSTS, "gpu02": host("localhost", IRIS)}
    with pytest.raises(ml_front_door.FrontDoorError, match="host gpu02 has address localhost"):
        plan({"service": "iris-api"}, hosts=hosts)


def test_a_door_without_gpus_has_services_that_need_them() -> None:
    hosts = {**HOSTS, "gpu02": host("192.0.2.2", {"name": "vllm"})}
    server = config({"service": "vllm"}, hosts=hosts)["apps"]["http"]["servers"]["443"]
    assert proxy(server)["upstreams"] == [{"dial": "192.0.2.2:8000"}]
    assert proxy(server)["health_checks"]["active"]["uri"] == "/health"


def test_two_hosts_with_one_address_are_an_error() -> None:
    hosts = {**HOSTS, "gpu02": host("192.0.2.1", IRIS)}
    with pytest.raises(ml_front_door.FrontDoorError, match="another address for each host"):
        plan({"service": "iris-api"}, hosts=hosts)


def test_an_ipv6_address_has_brackets_in_urls_alone() -> None:
    site = {"service": "iris-api", "address": "2001:db8::9", "port": 8443}
    owned = plan(site)["owned"]
    assert owned["door_ports"][0]["sites"][0]["url"] == "https://[2001:db8::9]:8443"
    server = config(site)["apps"]["http"]["servers"]["8443"]
    assert server["routes"][0]["match"] == [{"host": ["2001:db8::9"]}]


def test_two_sites_that_exclude_each_other_are_an_error() -> None:
    with pytest.raises(ml_front_door.FrontDoorError, match="another site has address"):
        plan({"service": "iris-api", "address": "A"}, {"service": "notebooks", "address": "a"})
    plain = {"service": "notebooks", "plain_http": True}
    with pytest.raises(ml_front_door.FrontDoorError, match="with and without plain_http"):
        plan({"service": "iris-api", "port": 80}, {**plain, "address": "b.example.org"})
    hosts = {**HOSTS, "login": host("192.0.2.9", IRIS)}
    with pytest.raises(ml_front_door.FrontDoorError, match="port 5000 is that of service iris-api"):
        plan({"service": "notebooks", "port": 5000}, hosts=hosts)


def test_a_host_without_the_package_refuses_and_a_foreign_caddy_is_a_conflict() -> None:
    facts = {
        "distribution": "Ubuntu",
        "distribution_version": "22.04",
        "distribution_release": "jammy",
    }
    (reason,) = plan({"service": "iris-api"}, facts=facts)["owned"]["refused"]
    assert "Ubuntu 22.04 has no package caddy; expected Ubuntu 24.04" in reason
    owned = plan({"service": "iris-api"}, facts={"front_door": "foreign"})["owned"]
    assert [*owned] == ["refused", "obstacles"]


def test_a_host_that_is_no_door_owns_nothing_and_a_former_one_removes_it() -> None:
    for changes in ({"name": "gpu01"}, {"state": "absent"}, {"host": ""}):
        arguments: dict[str, Any] = {"facts": {"front_door": "managed"}, **changes}
        found = plan({"service": "iris-api"}, **arguments)
        assert found["remove"]
        entries = (*found["owned"]["files"], *found["owned"]["packages"])
        assert {entry["state"] for entry in entries} == {"absent"}
        arguments["facts"] = {"front_door": "foreign"}
        assert plan({"service": "iris-api"}, **arguments)["owned"] == {"refused": []}
    with pytest.raises(ml_front_door.FrontDoorError, match="gpu9 is not in the inventory"):
        plan({"service": "iris-api"}, host="gpu9")
    with pytest.raises(ml_front_door.FrontDoorError, match="found an empty list"):
        plan()


def test_a_used_port_and_a_missing_key_are_conflicts() -> None:
    entry = {"port": "443", "files": ["/k"]}
    key = ["file", "0600", "root", "root", None, 0, 0]
    own = [["::", "process 7 (caddy) of caddy"]]
    good: dict[str, Any] = {"listeners": {"443": own}, "targets": {"/k": key}}
    assert list(front_door.compare_door_ports(entry, good)) == []
    for changes, found in (
        ({"listeners": {"443": [["0.0.0.0", "process 9 (nginx) of root"]]}}, "process 9 (nginx)"),
        ({"targets": {"/k": None}}, "found nothing; expected a file of root"),
        ({"targets": {"/k": ["file", "0600", "eve", "eve", None, 9, 9]}}, "found a file of eve"),
    ):
        with pytest.raises(ConflictError) as conflict:
            front_door.compare_door_ports(entry, {**good, **changes})
        assert found in str(conflict.value)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (None, ""),
        ("# Text\n:80 {\n\t# Set\n\troot * /usr/share/caddy\n\n\tfile_server\n}\n", ""),
        (":80 {\n\treverse_proxy localhost:8080\n}\n", "foreign"),
        ("their.example.org\n", "foreign"),
    ],
)
def test_who_configures_caddy(tmp_path: Path, content: str | None, found: str) -> None:
    file, drop_in = tmp_path / "Caddyfile", tmp_path / "slipway.conf"
    if content is not None:
        file.write_text(content)
    assert state_facts.read_front_door(str(drop_in), str(file)) == found
    drop_in.write_text("")
    assert state_facts.read_front_door(str(drop_in), str(file)) == "managed"


@pytest.mark.parametrize(
    ("service", "changes", "behind"),
    [
        ("iris-api", {}, True),
        ("notebooks", {}, False),
        ("iris-api", {"ml_front_door_state": "absent"}, False),
        ("iris-api", {"ml_front_door_host": ""}, False),
    ],
)
def test_hosts_behind_the_door_take_turns(
    service: str, changes: dict[str, Any], behind: bool
) -> None:
    options = {
        **host("192.0.2.1", {"name": service, "image": "iris-api"}),
        "ml_front_door_host": "login",
        "ml_front_door_sites": [{"service": "iris-api"}],
        "ml_front_door_state": None,
        **changes,
    }
    facts = {
        "distribution": "Debian",
        "role_path": str(ROOT / "roles/ml_services"),
        "inventory_name": "gpu01",
        "options_of_hosts": {},
    }
    assert ml_services.plan(facts, options)["behind_door"] is behind


DOOR_FILE = "/etc/slipway/services/{}/front_door.json"


def urls_at_door(*sites: dict[str, Any], name: str = "gpu01", **changes: Any) -> dict[str, Any]:
    """Return the addresses at the front door that host NAME has for its services."""
    options = {
        **host("192.0.2.1", IRIS, NOTEBOOKS),
        "ml_front_door_host": "login",
        "ml_front_door_sites": list(sites),
        "ml_front_door_state": None,
        **changes,
    }
    facts = {
        "distribution": "Debian",
        "role_path": str(ROOT / "roles/ml_services"),
        "inventory_name": name,
        "options_of_hosts": {"login": {"ml_services_address": "192.0.2.9"}},
    }
    projects = ml_services.plan(facts, options)["projects"]
    found = {}
    for project in projects:
        for file in project["files"]:
            if file["path"] == DOOR_FILE.format(project["name"]):
                found[project["name"]] = json.loads(file["content"])
        names = project["folders"][0]["entries"]
        assert ("front_door.json" in names) is (project["name"] in found)
    return found


@pytest.mark.parametrize(
    ("site", "url"),
    [
        ({"address": "a.example.org"}, "https://a.example.org/predict"),
        ({"address": "a.example.org", "port": "8443"}, "https://a.example.org:8443/predict"),
        ({"address": "2001:db8::1", "port": 443}, "https://[2001:db8::1]/predict"),
        ({"plain_http": True}, "http://192.0.2.9/predict"),
        ({"plain_http": True, "port": 443}, "http://192.0.2.9:443/predict"),
        ({"hosts": ["gpu01", "gpu02"]}, "https://192.0.2.9/predict"),
        ({"service_port": "other"}, "https://192.0.2.9"),
    ],
)
def test_a_service_knows_its_address_at_the_door(site: dict[str, Any], url: str) -> None:
    assert urls_at_door({"service": "iris-api", **site}) == {"iris-api": [url]}


def test_only_a_service_behind_the_door_has_an_address_there() -> None:
    both = [{"service": "notebooks", "port": port} for port in (443, 8443)]
    page = "/lab?token={token}"
    assert urls_at_door(*both) == {
        "notebooks": [f"https://192.0.2.9{page}", f"https://192.0.2.9:8443{page}"]
    }
    assert urls_at_door({"service": "iris-api", "hosts": ["gpu02"]}) == {}
    assert urls_at_door({"service": "iris-api"}, ml_front_door_state="absent") == {}
    # The plan of the front door reports these.
    assert urls_at_door({"service": "iris-api"}, ml_front_door_host="none") == {}
    assert urls_at_door({"service": "unknown"}) == {}


class HostVars(dict[str, Any]):
    """Variables of a host that Ansible cannot evaluate."""

    def __getitem__(self, name: str) -> Any:
        raise AnsibleUndefinedVariable("'rack' is undefined")


def test_options_of_another_host_are_read_from_its_variables() -> None:
    variables = {
        "gpu01": {"ml_services_instances": [IRIS], "ansible_host": "192.0.2.1"},
        "gpu02": HostVars(ml_services_instances=None),
    }
    options = role_plans.OptionsOfHosts("ml_services", "ml_front_door", {"hostvars": variables})
    found = options.get("gpu01")
    assert found is not None
    assert found["ml_services_instances"] == [IRIS]
    assert found["ml_front_door_address"] == "192.0.2.1"
    assert options.get("gpu03") is None
    with pytest.raises(AnsibleActionFail, match="ml_services on host gpu02: 'rack' is undefined"):
        options.get("gpu02")


def test_the_summary_has_the_address_of_a_door_as_declared() -> None:
    owned = plan({"service": "iris-api", "address": "iris.example.org", "port": 8443})["owned"]
    same = model.Comparison([], [])
    differs = model.Comparison([model.Difference("units", "caddy.service", "a", "b")], [])
    for compared, urls in (
        (same, {"iris-api (front door)": "https://iris.example.org:8443"}),
        (differs, {}),
    ):
        found = overview.service_urls({"ml_front_door": owned}, {"ml_front_door": compared}, {})
        assert found == urls


def test_a_request_reaches_a_host_twice_only_if_it_reads() -> None:
    server = config({"service": "iris-api"})["apps"]["http"]["servers"]["443"]
    methods, unsent = proxy(server)["load_balancing"]["retry_match"]
    assert methods == {"method": ["GET", "HEAD"]}
    assert unsent == {"vars": {"{http.reverse_proxy.upstream.hostport}": ["", "<nil>"]}}


@pytest.mark.parametrize(
    ("length", "is_read"), [("0", True), ("999999", True), ("1000000", False), ("-1", False)]
)
def test_another_host_can_get_small_requests(length: str, is_read: bool) -> None:
    server = config({"service": "iris-api"})["apps"]["http"]["servers"]["443"]
    first = server["routes"][0]["handle"][0]["routes"][0]
    pattern = first["match"][0]["header_regexp"]["Content-Length"]["pattern"]
    assert bool(re.search(pattern, length)) == is_read
    assert "{http.request.body}" in first["handle"][0].values()


def test_clients_cannot_make_a_host_unhealthy() -> None:
    server = config({"service": "iris-api"})["apps"]["http"]["servers"]["443"]
    assert set(proxy(server)["health_checks"]) == {"active"}


def test_a_site_without_an_answer_fails_its_check() -> None:
    site = {
        "service": "iris-api",
        "address": "127.0.0.1",
        "port": 9,
        "url": "http://127.0.0.1:9",
        "certificate": "",
        "upstreams": ["127.0.0.1:9"],
        "health_path": "/healthz",
    }
    (check,) = front_door_check.check_sites([site], services=True)
    assert not check.ok
    assert check.subject == "front door"
    assert "http://127.0.0.1:9/healthz did not answer" in check.seen
    (check,) = front_door_check.check_sites([site], services=False)
    assert not check.ok
    assert "refused" in check.seen
