# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole site on one host: first run, second run, tampering, failures, removal.

Two independent witnesses must agree: the survey says what differs, and the roles without the
survey say what they change.
"""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.host.conftest import DECLARED, Run, Site, Tamper, predict

pytestmark = pytest.mark.host

COMPOSE = "/etc/slipway/services/iris-api/compose.yaml"
IMAGE = "slipway/iris-api:cpu"


def start_times(site: Site) -> str:
    return site.on(
        "systemctl show --property=ActiveEnterTimestampMonotonic docker.service;"
        "docker inspect --format '{{.State.StartedAt}}' $(docker ps --quiet --all)"
    )


def test_api_answers_from_the_image_built_on_the_host(converged: Site) -> None:
    assert predict(converged) == {"prediction": "virginica"}


def test_second_run_changes_nothing_and_restarts_nothing(converged: Site) -> None:
    before = start_times(converged)
    run = converged.converge()
    assert run.changed() == set()
    assert start_times(converged) == before


def test_survey_and_roles_agree_that_nothing_differs(converged: Site) -> None:
    assert converged.plan() == (0, set())
    before = start_times(converged)
    alone = converged.converge(slipway_survey=False)
    assert alone.changed() == set()
    assert "docker_engine" in alone.output and "ml_services" in alone.output
    assert start_times(converged) == before


def test_check_mode_after_the_run_is_true(converged: Site) -> None:
    run = converged.run("site.yml", "--check", "--diff", slipway_survey=False)
    assert run.status == "successful", run.output
    assert run.changed() == set()


# The tampers of a group are applied together, because a survey and a run take time. No two of them
# have a name in common, so plan shows each of them.
TAMPERED: dict[str, dict[str, Tamper]] = {
    "settings, keys and an ended container": {
        "a key of daemon.json changed": (
            "sed -i s/50m/1m/ /etc/docker/daemon.json;"
            "systemctl reset-failed docker; systemctl restart docker",
            {("docker_engine", "json", "/etc/docker/daemon.json")},
        ),
        "a file edited": (
            f"echo '# mine' >> {COMPOSE}",
            {("ml_services", "files", COMPOSE)},
        ),
        "a unit disabled": (
            "systemctl disable docker.service 2>/dev/null",
            {("docker_engine", "units", "docker.service")},
        ),
        "a hold dropped": (
            "apt-mark -qq unhold docker-compose",
            {("docker_engine", "packages", "docker-compose")},
        ),
        "a member removed": (
            "gpasswd --delete alice docker >/dev/null",
            {("user_access", "members", "docker")},
        ),
        "a key removed": (
            ": > /home/alice/.ssh/authorized_keys",
            {("user_access", "lines", "/home/alice/.ssh/authorized_keys")},
        ),
        "a folder of a service nobody declares": (
            "mkdir /etc/slipway/services/old",
            {("ml_services", "folders", "/etc/slipway/services")},
        ),
        "a container stopped": (
            "docker stop iris-api-iris-api-1 >/dev/null",
            {("ml_services", "projects", "iris-api")},
        ),
    },
    "an engine with other settings and a removed container": {
        "an engine that runs with other settings than those in daemon.json": (
            "cp -p /etc/docker/daemon.json /root/kept;"
            "sed -i s/50m/1m/ /etc/docker/daemon.json;"
            "systemctl reset-failed docker; systemctl restart docker;"
            "cp -p /root/kept /etc/docker/daemon.json",
            {("docker_engine", "units", "docker.service")},
        ),
        "a file deleted": (f"rm {COMPOSE}", {("ml_services", "files", COMPOSE)}),
        "an apt source added": (
            "echo 'Types: deb' > /etc/apt/sources.list.d/docker.sources",
            {("docker_engine", "files", "/etc/apt/sources.list.d/docker.sources")},
        ),
        "a member that nobody listed": (
            "usermod --append --groups docker bob",
            {("user_access", "members", "docker")},
        ),
        "a group deleted": (
            "groupdel research",
            {("user_access", "groups", "research"), ("user_access", "members", "research")},
        ),
        "a container removed": (
            "docker rm --force iris-api-iris-api-1 >/dev/null",
            {("ml_services", "projects", "iris-api")},
        ),
    },
    "removed things": {
        "a mode changed": (f"chmod 0666 {COMPOSE}", {("ml_services", "files", COMPOSE)}),
        "a unit enabled until the next boot": (
            "systemctl disable docker.service; systemctl enable --runtime docker.service",
            {("docker_engine", "units", "docker.service")},
        ),
        "a package removed": (
            "apt-get -qq purge -y --allow-change-held-packages docker-buildx >/dev/null",
            {("docker_engine", "packages", "docker-buildx")},
        ),
        "a user deleted": ("userdel bob", {("user_access", "users", "bob")}),
        "an image deleted": (
            f"docker image rm --force {IMAGE} >/dev/null",
            {("ml_images", "images", IMAGE)},
        ),
    },
    "a masked unit, and paths open to others": {
        "an owner changed": (f"chown bob {COMPOSE}", {("ml_services", "files", COMPOSE)}),
        "a unit masked until the next boot": (
            "systemctl mask --runtime docker.service",
            {("docker_engine", "units", "docker.service")},
        ),
        "paths of several roles open to others": (
            "chmod 0777 /etc/docker /etc/docker/daemon.json /etc/slipway /usr/local/lib/slipway;"
            "chmod 0777 /home/alice/.ssh; chown bob /var/lib/slipway/daemon_json.json;"
            "echo 'raise SystemExit' >/usr/local/lib/slipway/slipway_ml/json.py",
            {
                ("docker_engine", "parent_folders", "/etc/docker"),
                ("docker_engine", "json", "/etc/docker/daemon.json"),
                ("ml_aliases", "parent_folders", "/etc/slipway"),
                ("ml_aliases", "parent_folders", "/usr/local/lib/slipway"),
                ("ml_aliases", "folders", "/usr/local/lib/slipway/slipway_ml"),
                ("ml_services", "parent_folders", "/etc/slipway"),
                ("user_access", "parent_folders", "/etc/slipway"),
                ("user_access", "lines", "/home/alice/.ssh/authorized_keys"),
            },
        ),
    },
    "a stopped engine": {
        "a unit stopped": (
            "systemctl stop docker.socket docker.service",
            {
                ("docker_engine", "units", "docker.service"),
                ("docker_engine", "units", "docker.socket"),
                ("ml_images", "images", IMAGE),
                ("ml_services", "projects", "iris-api"),
            },
        ),
    },
}


@pytest.mark.parametrize("rows", TAMPERED.values(), ids=TAMPERED.keys())
def test_plan_names_and_site_repairs_exactly_the_tampered_things(
    converged: Site, rows: dict[str, Tamper]
) -> None:
    converged.repair(rows)
    assert predict(converged) == {"prediction": "virginica"}


def test_changed_times_of_files_cause_no_restart(converged: Site) -> None:
    before = start_times(converged)
    for time in ("2099-01-01", "now"):
        converged.on(f"touch --date {time} /etc/docker/daemon.json")
        assert converged.plan() == (0, set())
    assert start_times(converged) == before


def test_a_drop_in_of_somebody_else_is_named_and_stays(converged: Site) -> None:
    drop_in = "/etc/systemd/system/docker.service.d/proxy.conf"
    converged.on(
        f"mkdir -p {drop_in.rpartition('/')[0]};"
        f"printf '[Service]\\nEnvironment=HTTPS_PROXY=http://secret@192.0.2.1\\n' >{drop_in};"
        "systemctl daemon-reload"
    )
    sentence = f"docker.service: drop-in {drop_in} sets Environment"
    # The engine runs without it as long as nobody restarts it.
    assert converged.plan() == (2, {("docker_engine", "units", "docker.service")})
    converged.converge()
    assert converged.plan() == (0, set())
    verified = converged.run("playbooks/verify.yml", host_verify_smoke=False)
    assert verified.status == "successful", verified.output
    assert sentence in verified.output and "secret@" not in verified.output
    converged.on(f"test -e {drop_in}; rm {drop_in}; systemctl daemon-reload")
    converged.converge()
    assert converged.plan() == (0, set())


# Ways to the engine that no member of the docker group needs, and how they are closed again.
OPENED = """
usermod --gid docker bob
groupadd --non-unique --gid $(getent group docker | cut -d: -f3) games2
gpasswd --administrators alice docker
echo 'nobody ALL = (root) /usr/bin/docker' >/etc/sudoers.d/nobody
"""
CLOSED = """
usermod --gid bob bob
groupdel games2
gpasswd --administrators '' docker
rm /etc/sudoers.d/nobody
"""


def test_other_ways_to_the_engine_are_named_and_fail(converged: Site) -> None:
    converged.on(OPENED)
    try:
        assert converged.plan() == (0, set())
        run = converged.run("playbooks/verify.yml", host_verify_smoke=False)
    finally:
        converged.on(CLOSED)
    assert run.status == "failed"
    assert "engine access: the engine is reached by bob; expected no user without" in run.output
    for way in (
        "bob, primary group",
        "nobody may run /usr/bin/docker as root by sudo, /etc/sudoers.d/nobody",
    ):
        assert f"engine access: {way}" in run.output
    run = converged.run("playbooks/verify.yml", host_verify_smoke=False)
    assert run.status == "successful", run.output


def test_a_file_of_a_package_that_is_gone_is_named(converged: Site) -> None:
    file = "/usr/libexec/docker/cli-plugins/docker-compose"
    converged.on(f"mv {file} /root/kept")
    run = converged.run("playbooks/verify.yml", host_verify_smoke=False)
    converged.on(f"mv /root/kept {file}")
    assert run.status == "failed"
    assert f"docker-compose: {file} is missing" in run.output


BAD_INPUT: dict[str, tuple[dict[str, Any], str]] = {
    "a misspelt variable": (
        {"docker_engine_sorce": "docker"},
        "docker_engine_sorce; did you mean docker_engine_source",
    ),
    "an unknown key": (
        {"user_access_users": [{"name": "a", "dokcer": True}]},
        "unknown key user_access_users.dokcer",
    ),
    "a wrong type": ({"docker_engine_hold": "perhaps"}, "docker_engine_hold"),
    "an impossible choice": ({"ml_catalogue_variant": "xpu"}, "must be one of: auto, cpu, gpu"),
    "an unknown image": ({"ml_images_present": ["iris-apu"]}, "Did you mean 'iris-api'"),
    "an unknown port": (
        {"ml_services_instances": [{"name": "iris-api", "ports": {"htp": 80}}]},
        "image iris-api has no port 'htp'; expected one of: api",
    ),
    "docker as a plain group": (
        {"user_access_users": [{"name": "a", "groups": ["docker"]}]},
        "Set 'docker: true'",
    ),
}


@pytest.mark.parametrize(("variables", "words"), BAD_INPUT.values(), ids=BAD_INPUT.keys())
def test_invalid_input_fails_before_the_first_change(
    converged: Site, variables: dict[str, Any], words: str
) -> None:
    run = converged.run("site.yml", **variables)
    assert run.status == "failed"
    assert words in run.output
    assert "Traceback" not in run.output
    assert run.changed() == set()


def report(run: Run) -> str:
    """Return what a run printed, without colours and on one line."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", run.output).split())


def test_verify_tries_the_ways_that_the_engines_proxy_hides(converged: Site) -> None:
    before = converged.on("ip -brief link | cut -d@ -f1; docker ps --all --quiet | wc -l")
    run = converged.run("playbooks/verify.yml", host_verify_smoke=False)
    assert run.status == "successful", run.output
    told = report(run)
    assert "1 published ports answer from outside" in told
    assert "user alice runs ml list" in told
    assert re.search(r"resolve and reach \S+:\d+|this host itself reaches no server", told), told
    assert converged.on("ip -brief link | cut -d@ -f1; docker ps --all --quiet | wc -l") == before


@pytest.mark.parametrize(
    ("script", "undo", "words"),
    [
        (
            "iptables -I FORWARD 1 -i sw+ -j DROP",
            "iptables -D FORWARD -i sw+ -j DROP",
            "published ports do not answer from outside: found no connection to",
        ),
        (
            "iptables -I DOCKER-USER 1 -i sw+ -j DROP",
            "iptables -D DOCKER-USER -i sw+ -j DROP",
            "the chain DOCKER-USER has rules of somebody else",
        ),
    ],
)
def test_a_way_that_is_closed_is_named(converged: Site, script: str, undo: str, words: str) -> None:
    converged.on(script)
    try:
        run = converged.run("playbooks/verify.yml", host_verify_smoke=False)
    finally:
        converged.on(undo)
    assert (run.status == "failed") == ("DOCKER-USER" not in words), run.output
    assert words in report(run)


# As after the reload of a firewall: either table alone takes the network of containers away.
@pytest.mark.parametrize("table", [pytest.param("nat", marks=pytest.mark.long), "filter"])
def test_a_flushed_packet_filter_is_repaired_by_consent(converged: Site, table: str) -> None:
    running = "docker inspect --format '{{.Id}} {{.State.StartedAt}}' $(docker ps --quiet)"
    before = converged.on(running)
    named = {("docker_engine", "units", "docker.service")}
    converged.on(f"iptables -t {table} -F")
    assert converged.plan() == (2, named)
    run = converged.run("playbooks/verify.yml", host_verify_smoke=False)
    assert run.status == "failed"
    assert "the packet filter has no rules for the networks" in report(run)
    run = converged.run("site.yml", docker_engine_restart="never")
    assert "restart of docker.service waits: docker_engine_restart is never" in report(run)
    assert converged.plan() == (2, named)
    run = converged.converge()
    assert {task.partition(":")[0] for task in run.changed()} == {"docker_engine"}
    assert "1 published ports answer from outside" in report(run)
    assert converged.plan() == (0, set())
    assert converged.on(running) == before


def test_verify_fails_on_a_host_with_drift(converged: Site) -> None:
    assert converged.run("playbooks/verify.yml").status == "successful"
    run = converged.run("playbooks/verify.yml", docker_engine_hold=False)
    assert run.status == "failed"
    assert "Drift in docker_engine; expected none" in run.output
    assert run.changed() == set()


def test_broken_json_on_the_host_is_an_error_and_kept(converged: Site) -> None:
    broken = '{"debug": tru}'
    good = converged.on("cat /etc/docker/daemon.json")
    converged.on(f"printf '%s' '{broken}' > /etc/docker/daemon.json")
    run = converged.run("site.yml")
    assert run.status == "failed"
    assert "/etc/docker/daemon.json: invalid JSON at line 1, column 11" in run.output
    assert run.changed() == set()
    assert converged.on("cat /etc/docker/daemon.json") == broken
    converged.on(f"printf '%s\\n' '{good}' > /etc/docker/daemon.json")
    converged.converge()


def test_user_keys_of_daemon_json_survive(converged: Site) -> None:
    converged.on(
        "python3 -c \"import json; p='/etc/docker/daemon.json'; d=json.load(open(p));"
        "d['labels']=['rack=7']; json.dump(d, open(p, 'w'))\""
    )
    converged.converge()
    settings = json.loads(converged.on("cat /etc/docker/daemon.json"))
    assert settings["labels"] == ["rack=7"]
    assert settings["log-opts"]["max-size"] == "50m"


def test_an_undeclared_setting_of_daemon_json_is_drift_and_removed(converged: Site) -> None:
    converged.declare(**DECLARED, docker_engine_extra_settings={"labels": ["rack=9"]})
    converged.converge()
    assert "rack=9" in converged.on("cat /etc/docker/daemon.json")
    converged.declare(**DECLARED)
    assert converged.plan() == (2, {("docker_engine", "json", "/etc/docker/daemon.json")})
    converged.converge()
    assert "rack=9" not in converged.on("cat /etc/docker/daemon.json")
    assert converged.plan() == (0, set())
