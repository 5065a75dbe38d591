# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Services on real hosts: tokens, data and secrets."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab import pci_tree
from lab.bases import ENGINE_BASE
from lab.host_spec import HostSpec, Mount
from lab.hosts import Group
from tests.host.conftest import ROOT, Site, Tamper

pytestmark = pytest.mark.host

GROUP = "pytest-services"
ROLES = {
    "slipway_roles": ["docker_engine", "user_access", "ml_images", "ml_aliases", "ml_services"]
}
FOLDER = "/etc/slipway/services"
TOKEN = f"{FOLDER}/notebooks/secrets/jupyter_token"
NOTES = "/srv/lab/notebooks"
NOTEBOOKS: dict[str, Any] = {
    "name": "notebooks",
    "image": "jupyter",
    "uid": 4242,
    "gid": 4343,
    "volumes": {"work": NOTES},
    "memory": "2g",
    "pids": 512,
    "shm_size": "256m",
}
# Keeps its data in a volume of Docker's.
SCRATCH = {"name": "scratch", "image": "jupyter", "ports": {"jupyter": 8889}}
BOARD = {
    "name": "board",
    "image": "tensorboard",
    "uid": 4242,
    "gid": 4343,
    "volumes": {"work": f"{NOTES}:ro"},
}
PROJECTS = [{"name": "iris-api"}, NOTEBOOKS, SCRATCH, BOARD]
NOTEBOOK = {
    "type": "notebook",
    "format": "json",
    "content": {"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5},
}
# Asks on the host, where alone the services are reached; prints the status and the answer.
ASK = """
import json, sys, urllib.error, urllib.request
url, token_file, method, body = json.loads(sys.argv[1])
request = urllib.request.Request(url, method=method, data=body.encode() if body else None)
if token_file:
    request.add_header("Authorization", "token " + open(token_file).read().strip())
try:
    answer = urllib.request.urlopen(request, timeout=20)
except urllib.error.HTTPError as error:
    answer = error
print(json.dumps([answer.status, answer.read().decode()]))
"""


@pytest.fixture(scope="module")
def hosts() -> Iterator[Group]:
    group = Group(GROUP)
    group.remove()
    yield group
    group.remove()


SETTINGS: dict[str, Any] = {
    "ml_images_present": ["iris-api", "jupyter", "tensorboard"],
    "user_access_users": [{"name": "alice", "docker": True}],
    # What images do is proven elsewhere; what services do is, each time.
    "host_verify_smoke": False,
}


class Services(Site):
    """A host with services."""

    extra = ROLES

    def serve(self, *projects: dict[str, Any], **more: Any) -> None:
        """Declare these projects."""
        self.declare(ml_services_instances=list(projects), **{**SETTINGS, **more})

    def ask(
        self, port: int, path: str, token: str = "", method: str = "GET", body: Any = None
    ) -> tuple[int, str]:
        """Ask a service; TOKEN is the file on the host that holds it."""
        url = f"http://127.0.0.1:{port}{path}"
        words = json.dumps([url, token, method, json.dumps(body) if body else ""])
        status, text = json.loads(self.on(f"python3 -c {shlex.quote(ASK)} {shlex.quote(words)}"))
        return status, text

    def container(self, name: str) -> Any:
        """Return docker's description of a project's container."""
        return json.loads(self.on(f"docker inspect {name}-{name}-1"))[0]


@pytest.fixture(scope="module")
def lab(hosts: Group, tmp_path_factory: pytest.TempPathFactory) -> Services:
    """A host that keeps running what PROJECTS declares; tests bring it back to that."""
    lab = Services(
        hosts.ensure(HostSpec("services-1", base=ENGINE_BASE)),
        tmp_path_factory.mktemp("services-1"),
    )
    lab.serve(*PROJECTS)
    lab.converge()
    return lab


def test_second_run_changes_nothing(lab: Services) -> None:
    assert lab.plan() == (0, set())
    before = lab.on("docker ps --quiet --no-trunc")
    assert lab.converge(slipway_survey=False).changed() == set()
    assert lab.on("docker ps --quiet --no-trunc") == before


def test_jupyter_opens_only_with_its_own_token(lab: Services) -> None:
    other = f"{FOLDER}/scratch/secrets/jupyter_token"
    assert [lab.ask(8888, "/api/status", token)[0] for token in ("", other, TOKEN)] == [
        403,
        403,
        200,
    ]
    assert lab.ask(8889, "/api/status", other)[0] == 200


def test_services_are_published_only_on_the_host(lab: Services) -> None:
    listening = lab.on("ss --listening --tcp --numeric --no-header | awk '{print $4}'").split()
    for port in (5000, 6006, 8888, 8889):
        assert [one for one in listening if one.endswith(f":{port}")] == [f"127.0.0.1:{port}"]


def test_a_run_names_the_token_file_and_ml_shows_root_the_address(lab: Services) -> None:
    told = lab.converge().output
    assert f"notebooks: http://127.0.0.1:8888/lab (token: {TOKEN})" in told
    url = lab.on("ml url notebooks").split()[-1]
    assert url == f"http://127.0.0.1:8888/lab?token={lab.on(f'cat {TOKEN}')}"
    as_alice = lab.on("su alice -c 'ml url notebooks' 2>&1 || true")
    assert "container notebooks belongs to" in as_alice


# A person without access to Docker, and the service that is for her.
DORA = {"name": "dora", "uid": 2002}
HERS = {
    "name": "hers",
    "image": "jupyter",
    "user": "dora",
    "ports": {"jupyter": 8890},
    "volumes": {"work": "/home/dora/notebooks"},
}


def test_a_person_reaches_the_service_that_is_for_her(lab: Services) -> None:
    users = [{"name": "alice", "docker": True}, DORA]
    lab.serve(*PROJECTS, HERS, user_access_users=users)
    lab.converge()
    assert lab.plan() == (0, set())
    token = f"{FOLDER}/hers/secrets/jupyter_token"
    for words in ("ml url", "ml url hers"):
        shown = lab.on(f"su - dora -c {shlex.quote(words)}")
        assert shown == f"hers jupyter  http://127.0.0.1:8890/lab?token={lab.on(f'cat {token}')}"
    assert lab.on("stat -c '%U:%G %a' /home/dora/notebooks") == "dora:dora 750"
    save(lab, 8890, token, "kept.ipynb")
    assert lab.on("stat -c %U /home/dora/notebooks/kept.ipynb") == "dora"
    # Others read neither the token nor the list of secrets.
    assert "Permission denied" in lab.on(f"su - nobody -s /bin/sh -c 'cat {token}' 2>&1 || true")
    assert "Permission denied" in lab.on("su - dora -c 'ls $(dirname " + token + ")' 2>&1 || true")
    lab.on("docker stop hers-hers-1 >/dev/null")
    stopped = lab.on("su - dora -c 'ml url' 2>&1 || true")
    assert "service hers does not answer at http://127.0.0.1:8890/lab" in stopped
    lab.serve(*PROJECTS)
    lab.converge()


def save(lab: Services, port: int, token: str, name: str) -> None:
    status, text = lab.ask(port, f"/api/contents/{name}", token, "PUT", NOTEBOOK)
    assert status in (200, 201), text


def test_notebooks_outlive_the_container_and_belong_to_the_declared_user(lab: Services) -> None:
    save(lab, 8888, TOKEN, "kept.ipynb")
    before, secret = lab.container("notebooks")["Id"], lab.on(f"cat {TOKEN}")
    changed = {**NOTEBOOKS, "environment": {"PRICE": "5 $ and $HOME"}}
    lab.serve({"name": "iris-api"}, changed, SCRATCH, BOARD)
    assert lab.plan() == (
        2,
        {
            ("ml_services", "files", f"{FOLDER}/notebooks/compose.yaml"),
            ("ml_services", "projects", "notebooks"),
        },
    )
    lab.converge()
    assert lab.container("notebooks")["Id"] != before
    assert lab.on("docker exec notebooks-notebooks-1 printenv PRICE") == "5 $ and $HOME"
    assert lab.on(f"cat {TOKEN}") == secret
    assert lab.ask(8888, "/api/contents/kept.ipynb", TOKEN)[0] == 200
    assert lab.on(f"stat -c '%u:%g %a' {NOTES}") == "4242:4343 750"
    assert lab.on(f"stat -c %u:%g {NOTES}/kept.ipynb") == "4242:4343"
    lab.serve(*PROJECTS)
    lab.converge()


WRITE_A_RUN = (
    "from tensorboard.summary.writer.event_file_writer import EventFileWriter\n"
    "EventFileWriter('runs/first').close()\n"
)


def test_tensorboard_shows_logs_beside_the_notebooks(lab: Services) -> None:
    lab.on(
        f"docker run --rm --user 4242:4343 --volume {NOTES}:/work slipway/tensorboard:cpu "
        f"python -c {shlex.quote(WRITE_A_RUN)} 2>/dev/null"
    )
    lab.on(
        "for i in $(seq 60); do python3 -c 'import urllib.request as u;"
        'print(u.urlopen("http://127.0.0.1:6006/data/runs").read())\' | grep -q first && exit;'
        " sleep 1; done; exit 1"
    )
    assert lab.container("board")["State"]["Health"]["Status"] == "healthy"
    refused = lab.on("docker exec board-board-1 touch /work/x 2>&1 || true")
    assert "Read-only file system" in refused


def test_limits_and_confinement_are_set_in_the_engine(lab: Services) -> None:
    found = lab.container("notebooks")
    host = found["HostConfig"]
    assert host["ShmSize"] == 256 << 20
    assert host["ReadonlyRootfs"] and host["CapDrop"] == ["ALL"]
    assert host["RestartPolicy"]["Name"] == "unless-stopped"
    assert found["Config"]["User"] == "4242:4343"
    file = yaml.safe_load(lab.on(f"cat {FOLDER}/notebooks/compose.yaml"))
    declared = file["services"]["notebooks"]
    assert (declared["mem_limit"], declared["pids_limit"]) == ("2g", 512)
    # The kernel of a host in a container may have no such limits; then the engine says so.
    memory, pids = json.loads(
        lab.on("docker info --format '[{{json .MemoryLimit}}, {{json .PidsLimit}}]'")
    )
    assert host["Memory"] == (2 << 30 if memory else 0)
    assert (host["PidsLimit"] or 0) == (512 if pids else 0)


# Places without secrets: the output of docker, process lists, logs, and all files except its own.
# The search reads the secret from a file, because it would find its own command line.
SEARCH = f"""
search() {{ grep "$@" --fixed-strings --file {TOKEN}; }}
docker ps --all --quiet | xargs docker inspect | search --count || true
ps axewww | search --count || true
for one in $(docker ps --quiet); do docker logs "$one" 2>&1; done | search --count || true
journalctl --no-pager --quiet | search --count || true
search -rlI /etc /root /home /var/log /var/lib/slipway /tmp || true
"""


def traces(lab: Services) -> list[str]:
    """Return where on the host the secret is found: four counts, and files."""
    return lab.on(SEARCH).splitlines()


def reports(folder: Path) -> str:
    """Return the text of the report and of the page that a run wrote."""
    texts = {file.suffix: file.read_text(encoding="utf-8") for file in folder.glob("[!.]*")}
    assert set(texts) == {".json", ".html"}
    assert all("ml_services" in text for text in texts.values())
    return "".join(texts.values())


def test_a_generated_secret_is_only_in_its_file(
    lab: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLIPWAY_REPORTS", str(tmp_path))
    lab.on(f"rm {TOKEN}")
    run = lab.run("site.yml", "-vvv", "--diff")
    assert run.status == "successful", run.output
    secret = lab.on(f"cat {TOKEN}")
    assert re.fullmatch("[0-9a-f]{48}", secret)
    assert secret not in run.output and secret not in str(run.events)
    assert secret not in reports(tmp_path)
    assert lab.ask(8888, "/api/status", TOKEN)[0] == 200
    assert traces(lab) == ["0", "0", "0", "0", TOKEN]


def test_a_declared_secret_is_only_in_its_file(
    lab: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLIPWAY_REPORTS", str(tmp_path))
    given = "given-by-a-vault-9b2c"
    project = {**NOTEBOOKS, "secrets": [{"name": "jupyter_token", "content": given}]}
    lab.serve({"name": "iris-api"}, project, SCRATCH, BOARD)
    assert lab.plan() == (2, {("ml_services", "secrets", TOKEN)})
    run = lab.run("site.yml", "-vvv", "--diff")
    assert run.status == "successful", run.output
    assert given not in run.output and given not in str(run.events)
    assert given not in reports(tmp_path)
    assert lab.on(f"cat {TOKEN}") == given
    assert lab.ask(8888, "/api/status", TOKEN)[0] == 200
    assert traces(lab) == ["0", "0", "0", "0", TOKEN]
    # Without a word of it, the last one stays.
    lab.serve(*PROJECTS)
    assert lab.plan() == (0, set())


@pytest.mark.long
def test_a_secret_may_be_a_file_of_the_host_with_a_line_end(lab: Services) -> None:
    lab.on("umask 077; echo from-a-file-77ab >/root/token")
    project = {**NOTEBOOKS, "secrets": [{"name": "jupyter_token", "file": "/root/token"}]}
    lab.serve({"name": "iris-api"}, project, SCRATCH, BOARD)
    lab.converge()
    assert lab.ask(8888, "/api/status", "/root/token")[0] == 200
    lab.on("echo another-file-11cd >/root/token")
    assert lab.plan() == (2, {("ml_services", "secrets", TOKEN)})
    lab.converge()
    assert lab.ask(8888, "/api/status", "/root/token")[0] == 200
    lab.on("rm /root/token")
    run = lab.run("site.yml")
    assert run.status == "failed"
    assert f"/root/token, the source of {TOKEN}: found nothing" in " ".join(run.output.split())
    lab.serve(*PROJECTS)


def project_of(name: str) -> tuple[str, str, str]:
    return ("ml_services", "projects", name)


COMPOSE = f"{FOLDER}/notebooks/compose.yaml"
OTHER_TOKEN = f"{FOLDER}/scratch/secrets/jupyter_token"
# The tampers of a group are applied together, because a survey and a run take time. No two of them
# have a name in common, so plan shows each of them.
TAMPERED: dict[str, dict[str, Tamper]] = {
    "ended containers and opened folders": {
        "a container stopped": (
            "docker stop notebooks-notebooks-1 >/dev/null",
            {project_of("notebooks")},
        ),
        "a container removed": (
            "docker rm --force board-board-1 >/dev/null",
            {project_of("board")},
        ),
        "a compose file edited": (
            f"echo '# mine' >>{COMPOSE}",
            {("ml_services", "files", COMPOSE)},
        ),
        "the folder of secrets opened": (
            f"chmod 0755 {FOLDER}/notebooks/secrets",
            {("ml_services", "files", f"{FOLDER}/notebooks/secrets")},
        ),
        "a secret that nobody declares": (
            f"touch {FOLDER}/notebooks/secrets/old",
            {("ml_services", "folders", f"{FOLDER}/notebooks/secrets")},
        ),
        "a secret deleted": (f"rm {OTHER_TOKEN}", {("ml_services", "secrets", OTHER_TOKEN)}),
    },
    "secrets open to others": {
        # A new change time may stand for a new content, so the service starts with it.
        "a secret opened to others": (
            f"chmod 0644 {TOKEN}",
            {("ml_services", "secrets", TOKEN), project_of("notebooks")},
        ),
        "a secret given to another": (
            f"chown nobody {OTHER_TOKEN}",
            {("ml_services", "secrets", OTHER_TOKEN), project_of("scratch")},
        ),
    },
    "secrets with another content": {
        "a secret emptied": (
            f": >{TOKEN}",
            {("ml_services", "secrets", TOKEN), project_of("notebooks")},
        ),
        "a secret replaced": (
            f"cp -p {OTHER_TOKEN} {OTHER_TOKEN}.new; echo changed-by-hand-55 >{OTHER_TOKEN}.new;"
            f" mv {OTHER_TOKEN}.new {OTHER_TOKEN}",
            {project_of("scratch")},
        ),
        "the folder of notebooks removed": (f"rm -r {NOTES}", {("ml_services", "mounts", NOTES)}),
    },
}


@pytest.mark.parametrize("rows", TAMPERED.values(), ids=TAMPERED.keys())
def test_plan_names_and_site_repairs_exactly_the_tampered_things(
    lab: Services, rows: dict[str, Tamper]
) -> None:
    lab.repair(rows)
    assert lab.ask(8888, "/api/status", TOKEN)[0] == 200
    assert lab.ask(8889, "/api/status", OTHER_TOKEN)[0] == 200
    save(lab, 8888, TOKEN, "after.ipynb")
    assert lab.on(f"stat -c %u:%g {NOTES}/after.ipynb") == "4242:4343"


IRIS = "slipway/iris-api:cpu"
IMAGE_RECORD = "/var/lib/slipway/images/slipway-iris-api-cpu.json"
# What somebody does who can reach the engine: the label says what is declared, the content is not.
RETAGGED = {
    "an empty image with the label": (
        f'tar -cf - -T /dev/null | docker import --change "LABEL io.slipway.digest=$(docker image '
        f'inspect --format \'{{{{index .Config.Labels "io.slipway.digest"}}}}\' {IRIS})" - {IRIS}'
    ),
    # A paused container may become unhealthy.
    "an image committed from a container": (
        f"docker commit --pause=false iris-api-iris-api-1 {IRIS}"
    ),
}


def image_id(lab: Services) -> str:
    return lab.on(f"docker image inspect --format '{{{{.Id}}}}' {IRIS}")


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(script, id=name, marks=pytest.mark.long if "committed" in name else ())
        for name, script in RETAGGED.items()
    ],
)
def test_an_image_is_known_by_its_content(lab: Services, script: str) -> None:
    running = lab.container("iris-api")["Image"]
    lab.on(f"{script} >/dev/null")
    assert image_id(lab) != running
    assert lab.plan() == (2, {("ml_images", "images", IRIS)})
    lab.converge()
    assert lab.plan() == (0, set())
    assert lab.container("iris-api")["Image"] == image_id(lab)
    assert image_id(lab) == json.loads(lab.on(f"cat {IMAGE_RECORD}"))["id"]


@pytest.mark.long
def test_an_image_of_an_old_version_is_recorded_and_nothing_restarts(lab: Services) -> None:
    before = image_id(lab), lab.on("docker ps --quiet --no-trunc")
    record = json.loads(lab.on(f"cat {IMAGE_RECORD}"))
    old = json.dumps({key: record[key] for key in ("digest", "proven")})
    lab.on(f"printf %s {shlex.quote(old)} >{IMAGE_RECORD}; rm -rf /var/lib/slipway/services")
    status, named = lab.plan()
    assert (status, named) == (2, {("ml_images", "images", IRIS), project_of("iris-api")})
    lab.converge()
    assert lab.plan() == (0, set())
    assert (image_id(lab), lab.on("docker ps --quiet --no-trunc")) == before
    assert json.loads(lab.on(f"cat {IMAGE_RECORD}"))["id"] == before[0]


@pytest.mark.long
def test_images_are_loaded_by_the_record_of_their_archive(lab: Services) -> None:
    archive = {"ml_images_present": ["iris-api"], "ml_images_archive": "/srv/images.tar"}
    before = image_id(lab)
    assert lab.run("playbooks/images_save.yml", **archive).status == "successful"
    assert not lab.run("playbooks/images_load.yml", **archive).changed()
    lab.on(f"docker commit --pause=false iris-api-iris-api-1 {IRIS} >/dev/null; rm {IMAGE_RECORD}")
    loaded = lab.run("playbooks/images_load.yml", **archive)
    assert loaded.status == "successful" and loaded.changed()
    assert image_id(lab) == before
    record = json.loads(lab.on(f"cat {IMAGE_RECORD}"))
    assert (record["id"], record["origin"]) == (before, "loaded")
    lab.on(f"rm {IMAGE_RECORD}; echo more >>/srv/images.tar")
    refused = lab.run("playbooks/images_load.yml", **archive)
    assert refused.status == "failed" and "Copy the archive again" in refused.output
    assert lab.run("playbooks/images_accept.yml", **archive).status == "successful"
    assert json.loads(lab.on(f"cat {IMAGE_RECORD}"))["id"] == before
    lab.on("rm /srv/images.tar /srv/images.tar.json")


def test_a_foreign_container_is_named_and_not_changed(lab: Services) -> None:
    labels = lab.container("scratch")["Config"]["Labels"]
    options = " ".join(shlex.quote(f"--label={key}={value}") for key, value in labels.items())
    # So that the record has this container, whatever ran before.
    lab.on("docker stop scratch-scratch-1 >/dev/null")
    lab.converge()
    lab.on(
        "docker rm --force scratch-scratch-1 >/dev/null; docker run --detach --privileged "
        f"--volume /:/host --name scratch-scratch-1 {options} --network scratch_default "
        "--env JUPYTER_TOKEN=hush-33 slipway/jupyter:cpu sleep 1000 >/dev/null"
    )
    foreign = lab.container("scratch")["Id"]
    lab.on(f"chmod 0644 {TOKEN}")
    secret = ("ml_services", "secrets", TOKEN)
    assert lab.plan() == (3, {project_of("scratch"), project_of("notebooks"), secret})
    run = lab.run("site.yml", "-vvv", "--diff")
    assert run.status == "failed"
    assert f"docker rm --force {foreign[:12]}" in run.output
    assert "hush-33" not in run.output
    # The other services are as declared, and nobody's container was removed.
    assert lab.on(f"stat -c %a {TOKEN}") == "600"
    assert lab.container("scratch")["Id"] == foreign
    lab.on(f"docker rm --force {foreign[:12]}")
    lab.converge()
    assert lab.plan() == (0, set())


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown key": ({"volume": {}}, "unknown key ml_services_instances.volume"),
    "an unknown key of a secret": (
        {"secrets": [{"name": "jupyter_token", "contents": "x"}]},
        "unknown key ml_services_instances.secrets.contents",
    ),
    "an unknown volume": ({"volumes": {"wrok": "/srv"}}, "Did you mean 'work'?"),
    "an unknown service": ({"service": "lab"}, "has no service 'lab'"),
    "a port of another": ({"ports": {"jupyter": 5000}}, "is also published by service iris-api"),
    "a uid out of range": ({"uid": 3000000000}, "uid: 3000000000; expected at most 2147483647"),
    "too little memory": ({"memory": "1m"}, "memory: '1m'; expected at least 6m"),
    "a GPU that is not there": ({"gpus": [0]}, "GPU 0 does not exist; this host has no GPUs."),
    "a folder of somebody else": ({"volumes": {"work": "/opt"}}, "4242:4343 may not write to /opt"),
}


@pytest.mark.parametrize(("keys", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_invalid_settings_fail_before_the_first_change(
    lab: Services, keys: dict[str, Any], words: str
) -> None:
    before = lab.on(f"docker ps --quiet --no-trunc; ls -lR --time-style=full-iso {FOLDER}")
    projects = [{"name": "iris-api"}, {**NOTEBOOKS, **keys}, SCRATCH, BOARD]
    run = lab.run("site.yml", ml_services_instances=projects)
    assert run.status == "failed"
    assert words in run.output
    assert "Traceback" not in run.output
    assert run.changed() == set()
    assert lab.on(f"docker ps --quiet --no-trunc; ls -lR --time-style=full-iso {FOLDER}") == before


def test_a_port_of_others_blocks_only_its_service(lab: Services) -> None:
    board, before = {**BOARD, "ports": {"tensorboard": 6007}}, lab.container("board")["Id"]
    lab.serve({"name": "iris-api"}, NOTEBOOKS, SCRATCH, board)
    lab.on("systemd-run --unit=other --uid=alice python3 -m http.server --bind 0.0.0.0 6007")
    lab.on("timeout 20 sh -c 'until ss -Hlnt sport = 6007 | grep -q .; do sleep 0.1; done'")
    assert lab.plan() == (3, {("ml_services", "projects", "board")})
    run = lab.run("site.yml")
    words = "service board: found process [0-9]+ \\(python3\\) of alice on port 6007 of 0.0.0.0"
    assert run.status == "failed"
    assert re.search(words, " ".join(run.output.split()))
    assert (run.changed(), lab.container("board")["Id"]) == (set(), before)
    lab.on("systemctl stop other")
    lab.converge()
    assert lab.container("board")["Id"] != before
    # A service of Slipway that frees the port in the same run is no conflict.
    lab.serve({"name": "iris-api"}, NOTEBOOKS, {**SCRATCH, "ports": {"jupyter": 6007}}, BOARD)
    lab.converge()
    lab.serve(*PROJECTS)
    lab.converge()


CONFLICTS: dict[str, tuple[dict[str, Any], tuple[str, str], str]] = {
    "an address of another host": (
        {"bind_address": "203.0.113.9"},
        ("projects", "extra"),
        "service extra: bind_address 203.0.113.9 is not an address of this host",
    ),
    "a file as a volume": (
        {"volumes": {"work": "/etc/hostname"}},
        ("mounts", "/etc/hostname"),
        "/etc/hostname, a volume of a service: found a file; expected a folder",
    ),
}
EXTRA = {"name": "extra", "image": "tensorboard", "ports": {"tensorboard": 9011}}


@pytest.mark.parametrize(("keys", "name", "words"), CONFLICTS.values(), ids=CONFLICTS.keys())
def test_plan_names_a_service_that_the_host_cannot_run(
    lab: Services, keys: dict[str, Any], name: tuple[str, str], words: str
) -> None:
    lab.serve(*PROJECTS, {**EXTRA, **keys})
    assert lab.plan() == (3, {("ml_services", *name)})
    run = lab.run("site.yml")
    assert run.status == "failed"
    assert words in " ".join(run.output.split())
    assert lab.on("docker ps --all --quiet --filter name=extra") == ""
    lab.serve(*PROJECTS)


# Services of which most cannot run, with old names of keys: what each one is, and its cause.
def board(name: str, port: int, **keys: Any) -> dict[str, Any]:
    return {"name": name, "image": "tensorboard", "ports": {"tensorboard": port}, **keys}


WORKING = [{"name": "iris-api"}, board("ok", 9010)]
# The first two are known without the host.
FAILING: list[tuple[dict[str, Any], str]] = [
    (board("big", 9012, uid=3000000000), "service big: uid: 3000000000; expected at most"),
    (board("small", 9014, memory="1m"), "service small: memory: '1m'; expected at least 6m"),
    (
        board("other", 9011, publish="203.0.113.9"),
        "service other: bind_address 203.0.113.9 is not an address of this host",
    ),
    (
        board("file", 9013, volumes={"work": "/etc/hostname"}),
        "/etc/hostname, a volume of a service: found a file; expected a folder",
    ),
    (
        board("taken", 22, publish="0.0.0.0"),
        r"service taken: found process [0-9]+ \(sshd\) of root on port 22",
    ),
]
EXISTING = "docker ps --all --format '{{.Names}} {{.State}}' | sort"


def test_each_failing_service_of_a_run_says_its_cause_and_the_others_run(lab: Services) -> None:
    before = lab.on(EXISTING)
    lab.declare(**SETTINGS)
    projects = [*WORKING, *(declared for declared, _cause in FAILING)]
    run = lab.run("site.yml", ml_services_projects=projects)
    assert (run.status, run.changed(), lab.on(EXISTING)) == ("failed", set(), before)
    output = " ".join(run.output.split())
    assert [cause for _declared, cause in FAILING[:2] if cause not in output] == []

    run = lab.run("site.yml", ml_services_projects=[*WORKING, *(one for one, _ in FAILING[2:])])
    output = " ".join(run.output.split())
    assert run.status == "failed"
    assert [cause for _declared, cause in FAILING[2:] if not re.search(cause, output)] == []
    assert "Traceback" not in output
    # Addresses of services that run, and of no other; no container that never ran.
    assert lab.on(EXISTING) == "iris-api-iris-api-1 running\nok-ok-1 running"
    assert set(re.findall(r"http://[\w.]+:\d+", run.output)) == {
        "http://127.0.0.1:5000",
        "http://127.0.0.1:9010",
    }
    lab.serve(*PROJECTS)
    lab.converge()
    assert lab.plan() == (0, set())


@pytest.mark.long
def test_services_with_odd_names_addresses_and_values_run(lab: Services) -> None:
    values = {"P": "a$b${c}$$d#e: 'f' \"g\" \\h", "N": 5, "ML": "x\ny", "B": True, "Z": None}
    long = "n" * 100
    lab.on("sysctl -qw net.ipv6.conf.lo.disable_ipv6=0")
    lab.declare(**SETTINGS)
    projects = [
        {"name": "iris-api"},
        {"name": "envd", "image": "jupyter", "ports": {"jupyter": 9001}, "environment": values},
        board("v6", 9002, publish="::1"),
        board(long, 9003, publish="127.0.0.1"),
    ]
    odd = {"ml_services_projects": projects}
    run = lab.converge(**odd)
    assert "http://[::1]:9002" in run.output
    assert lab.on("docker ps --all --quiet --filter status=running | wc -l") == "4"
    variables = lab.container("envd")["Config"]["Env"]
    texts = {**values, "N": "5", "B": "True", "Z": ""}
    assert {f"{name}={value}" for name, value in texts.items()} <= set(variables)
    for host in ("[::1]:9002", "127.0.0.1:9003"):
        lab.on(f"python3 -c \"import urllib.request as u; u.urlopen('http://{host}', timeout=20)\"")
    assert lab.plan("-e", json.dumps(odd)) == (0, set())
    lab.on("sysctl -qw net.ipv6.conf.lo.disable_ipv6=1")
    lab.serve(*PROJECTS)
    lab.converge()


STARTS: dict[str, tuple[str, str, str]] = {
    "never ran": ("/etc/passwd/below", "not a directory", ""),
    "ends": ("/opt/venv/bin", "last line of its log: ", "extra-extra-1"),
}


@pytest.mark.parametrize(("target", "words", "left"), STARTS.values(), ids=STARTS.keys())
def test_a_service_that_does_not_start_names_its_cause(
    lab: Services, target: str, words: str, left: str
) -> None:
    failing = {**EXTRA, "volumes": {target: "/srv/lab/empty"}}
    lab.serve(*PROJECTS, failing, ml_services_timeout=30)
    run = lab.run("site.yml")
    assert run.status == "failed"
    output = " ".join(run.output.split())
    assert "service extra: docker compose up failed: " in output
    assert words in output
    assert "http://127.0.0.1:9011" not in run.output
    assert lab.on("docker ps --all --format '{{.Names}}' --filter name=extra") == left
    assert lab.on("docker ps --all --quiet --filter status=created") == ""
    lab.serve(*PROJECTS)
    lab.converge()
    assert lab.plan() == (0, set())


def test_values_of_variables_arrive_unchanged(lab: Services) -> None:
    values = {"P": "a$b${c}$$d#e: 'f' \"g\" \\h", "L": "x\ny", "E": "1e3", "O": "0o17", "Z": ""}
    lab.serve(*PROJECTS, {**EXTRA, "environment": values})
    lab.converge()
    variables = lab.container("extra")["Config"]["Env"]
    assert {f"{name}={value}" for name, value in values.items()} <= set(variables)
    assert lab.plan() == (0, set())
    lab.serve(*PROJECTS)
    lab.converge()


def test_an_undeclared_service_is_removed_and_its_data_stays(lab: Services) -> None:
    token = f"{FOLDER}/scratch/secrets/jupyter_token"
    save(lab, 8889, token, "kept.ipynb")
    lab.serve({"name": "iris-api"})
    assert lab.plan() == (2, {("ml_services", "folders", FOLDER)})
    lab.converge()
    assert lab.plan() == (0, set())
    assert lab.on("docker ps --all --format '{{.Names}}'") == "iris-api-iris-api-1"
    assert "scratch" not in lab.on("docker network ls")
    assert lab.on(f"ls {FOLDER}") == "iris-api"
    assert "scratch_work" in lab.on("docker volume ls --quiet").split()
    assert lab.on(f"ls {NOTES}") != ""
    lab.serve(*PROJECTS)
    lab.converge()
    assert lab.ask(8889, "/api/contents/kept.ipynb", token)[0] == 200


def test_a_project_is_removed_without_its_compose_file(lab: Services) -> None:
    lab.on(f"echo 'services: [' >{FOLDER}/scratch/compose.yaml")
    lab.serve({"name": "iris-api"}, NOTEBOOKS, BOARD)
    lab.converge()
    assert "scratch" not in lab.on("docker ps --all --format '{{.Names}}'; docker network ls")
    assert lab.plan() == (0, set())


# The shell of docs/services.md, by the person it is for.
GUIDE = re.compile(r"## Without Ansible.*?```sh\n(.*?)```", re.DOTALL)


def test_the_compose_file_works_without_ansible(lab: Services) -> None:
    lab.serve()
    lab.converge()
    (steps,) = GUIDE.findall((ROOT / "docs/services.md").read_text(encoding="utf-8"))
    file = (ROOT / "images/compose.yaml").read_text(encoding="utf-8")
    lab.on(f"mkdir /home/alice/ml && cat >/home/alice/ml/compose.yaml <<'END'\n{file}END")
    script = f"cd ~/ml && export IMAGE=jupyter\n{steps}"
    lab.on(
        f"chown -R alice: /home/alice/ml; cat >/home/alice/steps <<'END'\n{script}END\n"
        "su - alice -c 'sh -eu ./steps' 2>&1"
    )
    token = "/home/alice/ml/token"
    assert [lab.ask(8888, "/api/status", given)[0] for given in ("", token)] == [403, 200]
    assert "TensorBoard" in lab.ask(6006, "/")[1]
    assert lab.ask(5000, "/healthz")[0] == 200
    save(lab, 8888, token, "mine.ipynb")
    assert lab.on("stat -c %U /home/alice/ml/work/mine.ipynb") == "alice"
    lab.on("su - alice -c 'cd ml && docker compose down'")
    assert lab.on("docker ps --all --quiet") == ""
    assert lab.on("ls /home/alice/ml/work") == "mine.ipynb"


# GPUs, with a stand-in: the CDI specification names a device that is no GPU.

CDI = {
    "cdiVersion": "0.6.0",
    "kind": "nvidia.com/gpu",
    "devices": [
        {
            "name": str(number),
            "containerEdits": {
                "env": [f"STAND_IN_GPU_{number}=yes"],
                "deviceNodes": [
                    {"path": f"/dev/stand-in{number}", "type": "c", "major": 1, "minor": 3}
                ],
            },
        }
        for number in range(8)
    ],
}


ON_GPUS: list[dict[str, Any]] = [
    {"name": "first", "image": "testlab", "gpus": [1, 3]},
    {"name": "second", "image": "testlab", "gpus": 2, "ports": {"notebook": 8889}},
    {"name": "third", "image": "testlab", "ports": {"notebook": 8890}},
]


@pytest.fixture(
    scope="module", params=[ENGINE_BASE, pytest.param("debian-sid", marks=pytest.mark.long)]
)
def gpu_lab(
    request: pytest.FixtureRequest, hosts: Group, tmp_path_factory: pytest.TempPathFactory
) -> Services:
    """A host with eight made-up GPUs, with an engine that has CDI switched on or on by default."""
    folder = tmp_path_factory.mktemp(request.param)
    tree = pci_tree.build(folder / "pci", pci_tree.MODELS["8xh100"], flat=True)
    devices = Mount(str(tree), "/sys/bus/pci/devices")
    spec = HostSpec(f"gpu-{request.param}", base=request.param, mounts=(devices,))
    lab = Services(hosts.ensure(spec), folder)
    lab.extra = {"slipway_roles": ["docker_engine", "ml_images", "ml_services"]}
    lab.on(f"mkdir -p /etc/cdi; cat >/etc/cdi/nvidia.yaml <<'END'\n{json.dumps(CDI)}\nEND")
    lab.declare(
        ml_catalogue_folder=str(ROOT / "tests/fixtures/catalogue"),
        ml_images_present=["testlab"],
        ml_services_instances=ON_GPUS,
    )
    lab.converge()
    return lab


def test_a_project_gets_its_reserved_gpus(gpu_lab: Services) -> None:
    for name, numbers in (("first", "1 3"), ("second", "0 2"), ("third", "")):
        seen = gpu_lab.on(
            f"docker exec {name}-{name}-1 sh -c 'cd /dev; ls -d stand-in* 2>/dev/null || true'"
        )
        assert seen.split() == [f"stand-in{number}" for number in numbers.split()]
    label = gpu_lab.on("docker inspect --format '{{json .Config.Labels}}' first-first-1")
    assert json.loads(label)["io.slipway.gpus"] == "1,3"
    gpu_lab.on("systemctl daemon-reload")
    gpu_lab.on("docker exec first-first-1 sh -c 'echo x >/dev/stand-in1'")
    assert gpu_lab.converge(slipway_survey=False).changed() == set()
    both = [{**ON_GPUS[0], "gpus": "all"}, ON_GPUS[1]]
    run = gpu_lab.run("site.yml", ml_services_instances=both)
    assert run.status == "failed"
    assert "service second: gpus: 2 requested, 0 of this host's 8 GPUs are free" in run.output


def test_an_unhealthy_service_is_recreated(gpu_lab: Services) -> None:
    before = gpu_lab.container("third")["Id"]
    # All of its processes but the first, which only waits for the others, stand still.
    gpu_lab.on(
        "init=$(docker inspect --format '{{.State.Pid}}' third-third-1);"
        " server=$(pgrep --parent $init); kill -STOP $server;"
        " unwell='docker ps --quiet --filter name=third --filter health=unhealthy';"
        " for i in $(seq 240); do $unwell | grep -q . && exit; sleep 1; done; exit 1"
    )
    assert gpu_lab.plan() == (2, {project_of("third")})
    gpu_lab.converge()
    assert gpu_lab.container("third")["Id"] != before
    assert gpu_lab.plan() == (0, set())
