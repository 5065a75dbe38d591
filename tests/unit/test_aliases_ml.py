# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command ml: containers, images, displays, and completion."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import socket
import struct
import tarfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.ml import (
    api,
    complete,
    containers,
    display,
    engine,
    images,
    launch,
    listing,
    main,
    settings,
    start,
    token,
)
from ansible_collections.slipway.host.plugins.module_utils.ml import (
    commands as ml_commands,
)
from ansible_collections.slipway.host.plugins.module_utils.ml.containers import Container
from ansible_collections.slipway.host.plugins.module_utils.ml.errors import MlError
from ansible_collections.slipway.host.plugins.module_utils.ml.gpus import Gpu
from ansible_collections.slipway.host.plugins.module_utils.ml.images import Image

from tests.unit import fake_engine

ALIAS = settings.Alias(
    name="lab",
    description="A shell",
    image="lab",
    variant="cpu",
    network="bridge",
    command=("bash",),
    ports={"web": settings.Port(8888, "/lab?token={token}")},
    settings={"image": "slipway/lab:cpu", "gpus": "free"},
)
HOST = settings.Host(
    contact="Dana",
    aliases={"lab": ALIAS, "laboratory": ALIAS},
    images={"lab": "slipway/lab:cpu", "other": "slipway/other:cpu"},
    cuda={},
)
ME, OTHER = 1000, 1001
URL = "http://127.0.0.1:8888/lab?token={token}"


def container(name: str, uid: int | None = ME, alias: str = "lab", **changed: Any) -> Container:
    user = {ME: "me", OTHER: "other", None: ""}[uid]
    fields: dict[str, Any] = {
        "image": "slipway/lab:cpu",
        "gpus": (),
        "urls": {"web": URL},
        "project": "",
        "token": "",
        "started": "2026-11-20T04:00:00.123456789Z",
        **changed,
    }
    return Container(name=name, alias=alias, user=user, uid=uid, **fields)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(os, "getuid", lambda: ME)
    for name in ("XDG_STATE_HOME", "XDG_CONFIG_HOME", "DISPLAY", "WAYLAND_DISPLAY", "XAUTHORITY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/engine.sock")
    return tmp_path


@pytest.fixture
def engine_api(tmp_path: Path) -> Iterator[fake_engine.Start]:
    """Return a function that starts a stand-in for the engine, on the socket in DOCKER_HOST."""
    with contextlib.ExitStack() as stack:

        def serve(answers: Mapping[str, Any]) -> fake_engine.FakeEngine:
            return stack.enter_context(fake_engine.running(tmp_path / "engine.sock", answers))

        yield serve


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that replaces a command by a shell script."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def put(name: str, script: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    return put


# Containers.


def inspected(labels: Mapping[str, str], ports: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {
        "Id": "c1",
        "Name": "/one",
        "Config": {"Labels": labels, "Image": "slipway/lab:cpu"},
        "NetworkSettings": {"Ports": ports or {}},
        "State": {"StartedAt": "2026-11-20T04:00:00Z", "Status": "running"},
    }


def test_the_address_of_a_service_is_its_published_port() -> None:
    ports = {
        "5000/tcp": [
            {"HostIp": "0.0.0.0", "HostPort": "80"},
            {"HostIp": "::", "HostPort": "80"},
        ],
        "6006/tcp": None,
        "8888/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8889"}],
    }
    service = containers.parse_container(inspected({"com.docker.compose.project": "iris"}, ports))
    assert (service.user, service.uid, service.gpus) == ("service", None, ())
    assert service.urls == {"5000": "*:80", "8888": "127.0.0.1:8889"}


def test_empty_labels_count_as_missing() -> None:
    labels = {f"io.slipway.{name}": "" for name in ("alias", "user", "uid", "gpus", "urls")}
    parsed = containers.parse_container(inspected(labels))
    assert (parsed.user, parsed.uid, parsed.gpus, parsed.urls) == ("", None, (), {})


@pytest.mark.parametrize(
    ("running", "name", "selected"),
    [
        ([container("me-lab")], None, "me-lab"),
        ([container("me-lab"), container("o-lab", OTHER)], None, "me-lab"),
        ([container("me-lab"), container("o-lab", OTHER)], "lab", "me-lab"),
        ([container("me-lab"), container("me-lab-2")], "me-lab-2", "me-lab-2"),
    ],
)
def test_a_container_is_selected_by_name_alias_or_owner(
    running: list[Container], name: str | None, selected: str
) -> None:
    assert containers.select_container(running, name, "stop it").name == selected


@pytest.mark.parametrize(
    ("running", "name", "message"),
    [
        ([], None, "you have no running container"),
        ([container("o-lab", OTHER)], None, "you have no running container"),
        ([container("o-lab", OTHER)], "lab", "you have no running container"),
        (
            [container("o-lab", OTHER)],
            "o-lab",
            "container o-lab belongs to other; you cannot stop it",
        ),
        (
            [container("iris", None)],
            "iris",
            "container iris belongs to another user; you cannot stop it",
        ),
        ([container("me-lab")], "me-lap", "no running container me-lap. Did you mean me-lab?"),
        (
            [container("me-lab"), container("me-lab-2")],
            "lab",
            "you have 2 running containers. Name one of: me-lab, me-lab-2",
        ),
    ],
)
def test_a_container_is_not_selected_if_missing_ambiguous_or_foreign(
    running: list[Container], name: str | None, message: str
) -> None:
    with pytest.raises(MlError) as caught:
        containers.select_container(running, name, "stop it")
    assert message in str(caught.value)


def test_root_selects_containers_of_users_but_sees_no_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 0)
    other = container("o-lab", OTHER)
    assert containers.select_container([other], "o-lab", "stop it") == other
    assert containers.format_urls(other) == ["web  http://127.0.0.1:8888/lab"]


def test_only_root_sees_the_token_of_a_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "jupyter_token"
    file.write_text("s3cret\n")
    labels = {
        "com.docker.compose.project": "notebooks",
        "io.slipway.urls": json.dumps({"web": URL}),
        "io.slipway.token": str(file),
    }
    service = containers.parse_container(inspected(labels))
    assert containers.format_urls(service) == ["web  http://127.0.0.1:8888/lab"]
    with pytest.raises(MlError, match="notebooks belongs to service"):
        containers.select_container([service], "notebooks", "see its address")
    monkeypatch.setattr(os, "getuid", lambda: 0)
    assert containers.select_container([service], "notebooks", "see its address") == service
    # A user who starts a container chooses its labels: the file and the address in them.
    monkeypatch.setattr(containers, "SERVICE_RECORDS", tmp_path)
    for record in (None, "", "[]", "{}", '{"containers": ["c2"]}'):
        if record is not None:
            (tmp_path / "notebooks.json").write_text(record)
        assert containers.format_urls(service) == ["web  http://127.0.0.1:8888/lab"]
    (tmp_path / "notebooks.json").write_text('{"containers": ["c1"]}')
    for project in ("", "../notebooks", str(tmp_path / "notebooks")):
        other = service._replace(project=project)
        assert containers.format_urls(other) == ["web  http://127.0.0.1:8888/lab"]
    assert containers.format_urls(service) == ["web  http://127.0.0.1:8888/lab?token=s3cret"]
    assert containers.format_urls(service, ["https://lab.example.org/?token={token}"]) == [
        "front door  https://lab.example.org/?token=s3cret",
        "web         http://127.0.0.1:8888/lab?token=s3cret",
    ]
    file.unlink()
    with pytest.raises(MlError, match=r"^cannot read .*jupyter_token: No such file or directory$"):
        containers.format_urls(service)


def test_addresses_contain_the_token_of_the_caller() -> None:
    token.ensure_token()
    # A label names no file to read.
    (line,) = containers.format_urls(container("me-lab", token="/etc/passwd"))
    assert line == f"web  http://127.0.0.1:8888/lab?token={token.read_token()}"
    with pytest.raises(MlError, match="me-lab publishes no port"):
        containers.format_urls(container("me-lab", urls={}))


# Lists.

IMAGE = Image(
    "slipway/lab:cpu", "lab", "cpu", "sha256:1", "0123456789abcdef", 114_302_978,
    "2026-11-18T05:00:00.5+01:00",
)  # fmt: skip
NOW = datetime(2026, 11, 20, 5, 0, 30, tzinfo=timezone.utc)


def test_list_shows_images_containers_and_gpus_without_tokens() -> None:
    token.ensure_token()
    changed = Image("me/lab:2", "lab", "cpu", "sha256:2", "", 2_500_000_000, "0001-01-01T00:00:00Z")
    running = [container("me-lab", gpus=("0",)), container("iris", None, "", urls={})]
    data = listing.collect_data(
        HOST, [changed, IMAGE], running, [Gpu("0", "A100", "u"), Gpu("1", "A100", "v")],
        {"0": "me-lab"},
    )  # fmt: skip
    assert listing.format_text(data, NOW) == (
        "IMAGE              VARIANT  SIZE     AGE  DIGEST        COMMANDS\n"
        "me/lab:2           cpu      2.5 GB        (changed)\n"
        "slipway/lab:cpu    cpu      114 MB   2 d  0123456789ab  lab laboratory\n"
        "slipway/other:cpu  cpu      missing\n"
        "\n"
        "RUNNING  USER  IMAGE            GPU  SINCE  ADDRESS\n"
        "me-lab   me    slipway/lab:cpu  0    1 h    web http://127.0.0.1:8888/lab\n"
        "iris     -     slipway/lab:cpu  -    1 h\n"
        "\n"
        "GPU  MODEL  USED BY\n"
        "0    A100   me-lab\n"
        "1    A100   free"
    )
    text = json.dumps(data)
    assert token.read_token() not in text and "{token}" not in text


def test_an_empty_list_is_explained() -> None:
    data = listing.collect_data(settings.Host("", {}, {}, {}), [], [], [], {})
    assert (
        listing.format_text(data)
        == "no images of the catalogue on this host\n\nno running containers"
    )


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (37_385_731, "37.4 MB"), (3e12, "3 TB")],
)
def test_sizes_have_decimal_units(count: int, words: str) -> None:
    assert listing.format_size(count) == words


@pytest.mark.parametrize(
    ("since", "words"),
    [
        ("2026-11-20T05:00:00.999999999Z", "30 s"),
        ("2026-11-20T04:58:00Z", "2 min"),
        ("2026-11-20T06:00:00+02:00", "1 h"),
        ("2026-11-21T00:00:00Z", "0 s"),
        ("", ""),
    ],
)
def test_ages_have_the_largest_unit(since: str, words: str) -> None:
    assert listing.format_age(since, NOW) == words


# Images.


class Docker(engine.Docker):
    """Answers commands by their first words, and requests by the first characters of the path."""

    def __init__(self, answers: Mapping[str, Any]) -> None:
        super().__init__("Dana")
        self.answers = answers
        self.asked: list[str] = []

    def _answer(self, asked: str) -> Any:
        self.asked.append(asked)
        return next((self.answers[key] for key in self.answers if asked.startswith(key)), None)

    def run(self, *words: str) -> str:
        answer = self._answer(" ".join(words))
        if answer is None:
            raise MlError(f"unexpected command: {words}")
        return str(answer)

    def send(self, *requests: api.Request) -> list[api.Answer]:
        contents = [self._answer(request.path) for request in requests]
        return [
            api.Answer(404 if content is None else 200, json.dumps(content).encode())
            for content in contents
        ]


LABELS = {
    "io.slipway.image": "lab",
    "io.slipway.variant": "cpu",
    "io.slipway.digest": "0123456789abcdef",
}
INSPECTED = {
    "Id": "sha256:1",
    "Size": 5,
    "Created": "2026-11-20T04:00:00Z",
    "RepoTags": ["slipway/lab:cpu", "me/lab:1"],
    "Config": {
        "Labels": LABELS,
        "Env": ["PATH=/bin"],
        "User": "1000:1000",
        "WorkingDir": "/code",
        "Cmd": ["bash"],
    },
}


def test_an_image_is_listed_once_for_each_tag() -> None:
    untagged = {**INSPECTED, "RepoTags": None}
    listed = [{"Id": "sha256:1"}, {"Id": "sha256:1"}, {"Id": "sha256:2"}]
    docker = Docker(
        {
            "/images/json?filters=%7B%22label%22": listed,
            "/images/sha256:1/json": INSPECTED,
            "/images/sha256:2/json": untagged,
        }
    )
    assert [image.reference for image in images.list_images(docker)] == [
        "me/lab:1",
        "slipway/lab:cpu",
    ]
    assert docker.asked[1:] == ["/images/sha256:1/json", "/images/sha256:2/json"]
    assert images.list_images(Docker({"/images/json": []})) == []


@pytest.mark.parametrize("name", ["lab", "laboratory", "slipway/lab:cpu"])
def test_an_image_is_found_by_catalogue_name_alias_or_reference(name: str) -> None:
    docker = Docker({"/images/slipway/lab:cpu/json": INSPECTED})
    image = images.find_image(docker, name, HOST)
    assert image.reference == "slipway/lab:cpu"
    assert images.describe_image(image) == [
        "image id        sha256:1",
        "context digest  0123456789abcdef",
    ]


def test_a_missing_image_is_named_with_the_existing_ones() -> None:
    with pytest.raises(
        MlError, match=r"no image nope on this host. Images of the catalogue here: lab, other"
    ):
        images.find_image(Docker({}), "nope", HOST)


def test_only_a_declared_image_is_taken_for_its_cuda() -> None:
    """Another image with the labels of the catalogue is on the host as well."""
    listed = {"/images/json?filters=%7B%22label%22": [{"Id": "sha256:1"}]}
    cuda = {name: settings.Cuda("13.2", 580) for name in ("slipway/gone:gpu", "slipway/lab:gpu")}
    host = HOST._replace(cuda=cuda)
    here = Docker({**listed, "/images/slipway/lab:gpu/json": INSPECTED})
    found = images.find_gpu_image(here, host)
    assert found is not None
    assert found.reference == "slipway/lab:gpu"
    assert images.find_gpu_image(Docker(listed), host) is None
    assert images.find_gpu_image(here, HOST) is None


STORE = """
case "$*" in
"image save slipway/lab:cpu") printf archive ;;
"image save broken") echo "Error response from daemon: no such layer" >&2; exit 1 ;;
"image load --quiet") cat >"$HOME/loaded"; echo "Loaded image: slipway/lab:cpu" ;;
esac
"""
PACK = """
for last; do :; done
case "$*" in
*--decompress*--) cat ;;
*--decompress*--\\ *) cat "$last" ;;
*--decompress*) cat ;;
*-o*) cat >"$last" ;;
*) cat ;;
esac
"""


def test_a_saved_image_can_be_loaded(commands: Any, home: Path) -> None:
    commands("docker", STORE)
    commands("zstd", PACK)
    file = home / "lab.tar.zst"
    images.save("slipway/lab:cpu", file, force=False)
    assert file.read_text() == "archive"
    assert images.load(file) == ["slipway/lab:cpu"]
    assert (home / "loaded").read_text() == "archive"
    with pytest.raises(MlError, match=r"already exists. To replace it, add: --force"):
        images.save("slipway/lab:cpu", file, force=False)
    file.write_text("old")
    images.save("slipway/lab:cpu", file, force=True)
    assert file.read_text() == "archive"


def test_a_failed_save_keeps_the_existing_file(commands: Any, home: Path) -> None:
    commands("docker", STORE)
    commands("zstd", PACK)
    file = home / "saved" / "lab.tar.zst"
    with pytest.raises(MlError, match=r"folder .* does not exist"):
        images.save("broken", file, force=True)
    file.parent.mkdir()
    file.write_text("old")
    with pytest.raises(MlError, match="no such layer"):
        images.save("broken", file, force=True)
    assert [entry.name for entry in file.parent.iterdir()] == ["lab.tar.zst"]
    assert file.read_text() == "old"
    commands("zstd", "cat >/dev/null; echo 'zstd: No space left on device' >&2; exit 1")
    with pytest.raises(MlError, match="No space left on device"):
        images.save("slipway/lab:cpu", file, force=True)
    assert file.read_text() == "old"


def test_loading_a_damaged_or_missing_archive_fails(commands: Any, home: Path) -> None:
    commands("docker", STORE)
    commands("zstd", "echo 'cut.zst: premature end' >&2; exit 1")
    file = home / "cut.zst"
    file.write_text("cut")
    with pytest.raises(MlError, match="premature end"):
        images.load(file)
    with pytest.raises(MlError, match=r"file .* does not exist"):
        images.load(home / "none.zst")


def test_saving_without_zstd_names_the_missing_command(
    commands: Any, home: Path, monkeypatch: Any
) -> None:
    commands("docker", STORE)
    monkeypatch.setenv("PATH", str(home / "bin"))
    with pytest.raises(MlError, match="command zstd not found on this host"):
        images.save("slipway/lab:cpu", home / "x", force=False)


STARTED = {
    "Config": {
        "Labels": {**LABELS, "io.slipway.user": "alice", "io.slipway.urls": "{}"},
        "Env": ["PATH=/bin", "USER=alice", "JUPYTER_TOKEN_FILE=/run/slipway/token", "API_KEY=x"],
    },
    "Image": "sha256:1",
    "Mounts": [
        {"Destination": "/code"},
        {"Destination": "/run/slipway/token"},
        {"Destination": "/etc/passwd"},
    ],
}


def test_a_committed_image_has_labels_of_its_source() -> None:
    prepared = images.prepare_commit(STARTED, INSPECTED, "alice")
    assert prepared.changes == (
        'LABEL io.slipway.user=""',
        'LABEL io.slipway.urls=""',
        'LABEL io.slipway.digest=""',
        'LABEL io.slipway.committed-from-digest="0123456789abcdef"',
        'LABEL io.slipway.committed-from="sha256:1"',
        'LABEL io.slipway.committed-by="alice"',
        "ENV USER=",
        "ENV JUPYTER_TOKEN_FILE=",
        "ENV API_KEY=",
        "USER 1000:1000",
        "WORKDIR /code",
        'CMD ["bash"]',
    )
    losses = "\n".join(prepared.losses)
    assert "files in /code are not in the image; they stay on the host" in losses
    assert "the variables API_KEY are empty in the image" in losses
    assert "the image cannot be built again" in losses and "no smoke test" in losses


def test_an_image_committed_twice_still_names_the_image_of_the_catalogue() -> None:
    again = {**LABELS, "io.slipway.digest": "", "io.slipway.committed-from-digest": "abc"}
    image = {**INSPECTED, "Config": {"Labels": again, "Env": [], "Cmd": None}}
    changes = images.prepare_commit({"Config": {}}, image, "bob").changes
    assert 'LABEL io.slipway.committed-from-digest="abc"' in changes
    assert changes[-1] == "CMD []"


def test_a_commit_to_a_name_of_the_catalogue_fails() -> None:
    with pytest.raises(MlError, match="Choose another name"):
        images.commit(Docker({}), "me-lab", "slipway/lab:cpu", "me")


PUSHES = 'case "$*" in "image push good"*|"image push reg"*) ;; *) echo "%s" >&2; exit 1 ;; esac'


def test_a_push_returns_the_digest_in_the_registry(commands: Any) -> None:
    commands("docker", PUSHES % "")
    pushed = {**INSPECTED, "RepoDigests": ["me/lab@sha256:9", "reg:5000/me/lab@sha256:8"]}
    docker = Docker({"/images/": pushed, "image tag": ""})
    assert images.push(docker, "slipway/lab:cpu", "reg:5000/me/lab:1") == (
        "reg:5000/me/lab@sha256:8"
    )
    assert images.push(docker, "slipway/lab:cpu", "reg:5000/me/lab") == "reg:5000/me/lab@sha256:8"
    assert images.push(docker, "slipway/lab:cpu", "good") == ""


@pytest.mark.parametrize(
    ("target", "error_output", "message"),
    [
        ("reg.lab/me/x:1", "denied: no", "denied: no. Log in first: docker login reg.lab"),
        ("reg:5000/x", "no basic auth credentials", "Log in first: docker login reg:5000"),
        ("me/x", "unauthorized: x", "unauthorized: x. Log in first: docker login"),
        ("me/x", "dial tcp: no such host", "dial tcp: no such host"),
    ],
)
def test_a_rejected_push_removes_its_tag(
    commands: Any, target: str, error_output: str, message: str
) -> None:
    commands("docker", (PUSHES % error_output).replace('"image push reg"*', "never"))
    docker = Docker({"image tag": "", "image rm": ""})
    with pytest.raises(MlError) as caught:
        images.push(docker, "slipway/lab:cpu", target)
    assert str(caught.value) == message if "Log in" not in message else message in str(caught.value)
    assert docker.asked[-1] == f"image rm --no-prune {target}"


def test_a_rejected_push_restores_the_previous_tag(commands: Any) -> None:
    commands("docker", 'echo "denied: no" >&2; exit 1')
    docker = Docker({"/images/": {**INSPECTED, "Id": "sha256:old"}, "image tag": ""})
    with pytest.raises(MlError, match="denied"):
        images.push(docker, "slipway/lab:cpu", "reg.lab/me/x:1")
    assert docker.asked[-1] == "image tag sha256:old reg.lab/me/x:1"


def test_a_push_to_a_name_of_the_catalogue_fails() -> None:
    with pytest.raises(MlError, match="Choose another name"):
        images.push(Docker({}), "slipway/lab:cpu", "slipway/keras:cpu")


# Errors of Docker.


@pytest.mark.parametrize(
    ("error_output", "message"),
    [
        ("Cannot connect to the Docker daemon at unix:///x. Is it", "Docker does not answer on"),
        ("failed to connect to the docker API at unix:///x; check", "this host. Tell Dana"),
        ("x\nError response from daemon: no such container: y\n", "no such container: y"),
        (
            "x\nError response from daemon: a (b: c.\n (exit status 1))\n",
            "a (b: c. (exit status 1))",
        ),
        ("denied: a\nno\n", "no"),
        ("", "docker failed"),
        ("Error response from daemon: ", "docker failed"),
    ],
)
def test_errors_of_docker_are_explained(error_output: str, message: str) -> None:
    assert message in engine.Docker("Dana").explain(error_output)
    assert "Error response" not in engine.Docker("Dana").explain(error_output)


def test_a_user_without_access_learns_the_contact(
    commands: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = "permission denied while trying to connect to the docker API"
    commands("docker", f"echo '{message}' >&2; exit 1")
    with pytest.raises(MlError, match=r"may not use Docker on .* Ask Dana to set"):
        engine.Docker("Dana").run("ps")

    def refuse(*_arguments: object) -> None:
        raise PermissionError

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(MlError, match=r"may not use Docker on .* Ask Dana to set"):
        engine.Docker("Dana").get(dict, "/info")
    assert "newgrp docker" in engine.explain_permission("Dana", "alice", listed=True)


def test_a_missing_docker_command_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(home))
    docker = engine.Docker("Dana")
    with pytest.raises(MlError, match="command docker not found"):
        docker.run("ps")
    with pytest.raises(MlError, match="command docker not found"):
        start.replace_process(docker, ["docker", "logs"])
    with pytest.raises(MlError, match="command docker not found"):
        start.run_to_end(docker, ["docker", "run"])


@pytest.mark.parametrize(
    ("info", "has_spec", "expected"),
    [
        ({}, True, engine.Engine(False, False)),
        ({"CDISpecDirs": ["/etc/cdi"]}, True, engine.Engine(False, True)),
        ({"CDISpecDirs": ["/etc/cdi"]}, False, engine.Engine(False, False)),
        ({"CDISpecDirs": []}, True, engine.Engine(False, False)),
        ({"SecurityOptions": ["name=rootless"]}, False, engine.Engine(True, False)),
    ],
)
def test_settings_of_the_engine_are_read(
    info: dict[str, Any], has_spec: bool, expected: engine.Engine
) -> None:
    assert engine.parse_engine(info, has_spec) == expected


def test_a_cdi_file_of_nvidia_gpus_is_detected(home: Path) -> None:
    folder = home / "cdi"
    assert not engine.has_cdi_spec([folder])
    folder.mkdir()
    (folder / "other.json").write_text('{"kind": "vendor.com/net"}')
    assert not engine.has_cdi_spec([folder])
    (folder / "nvidia.yaml").write_text("kind: nvidia.com/gpu\n")
    assert engine.has_cdi_spec([home / "none", folder])


def tar(name: str, content: bytes) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as opened:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        opened.addfile(member, io.BytesIO(content))
    return archive.getvalue()


def test_files_of_an_image_are_read_without_running_it(engine_api: fake_engine.Start) -> None:
    api_server = engine_api(
        {
            "POST /containers/create": (201, {"Id": "7f"}),
            r"GET /containers/7f/archive\?path=/etc/passwd": tar("passwd", b"root\n"),
            "GET /containers/7f/archive": (404, {"message": "no such file"}),
            "DELETE /containers/7f": (204, b""),
        }
    )
    files = engine.Docker("").files_of("lab", ["/etc/passwd", "/etc/group"])
    assert files == {"/etc/passwd": "root\n", "/etc/group": ""}
    assert json.loads(api_server.bodies[0]) == {"Image": "lab", "NetworkDisabled": True}
    assert api_server.requests[-1] == "DELETE /containers/7f?force=1"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((500, {"message": "disk full"}), "disk full"),
        ((500, {}), "unexpected answer from Docker: KeyError"),
        ((200, b"no json"), "unexpected answer from Docker: Expecting value"),
        ((200, []), "unexpected answer from Docker: "),
        ((200, {"Config": None}), "unexpected answer from Docker: "),
        ((404, {"message": "no"}), "image lab is not on this host. Tell Dana"),
    ],
)
def test_an_unexpected_answer_of_the_engine_is_an_error(
    engine_api: fake_engine.Start, answer: Any, message: str
) -> None:
    engine_api({"GET /images/": answer, "GET /info": {}, "GET /containers/json": []})
    with pytest.raises(MlError) as caught:
        start.read_engine(engine.Docker("Dana"), "lab")
    assert message in str(caught.value)


def test_a_start_needs_one_round_of_requests(engine_api: fake_engine.Start) -> None:
    listed = [
        {"Names": ["/a"], "State": "running", "Labels": {"io.slipway.gpus": "0,1"}},
        {"Names": ["/b"], "State": "exited", "Labels": {"io.slipway.gpus": "2"}},
        {"Names": ["/c"], "State": "running", "Labels": None},
        {"Names": None, "State": "created"},
    ]
    variables = ["PATH=/bin", "HOME=/home/slipway", "SLIPWAY_PACKAGES=/opt/user"]
    image = {"Id": "sha256:1", "Config": {"Env": variables}}
    api_server = engine_api(
        {"GET /images/a b:1/json": image, "GET /containers/json": listed, "GET /info": {}}
    )
    read = start.read_engine(engine.Docker("Dana"), "a b:1")
    assert read == (
        launch.Image("sha256:1", "/home/slipway", "/opt/user"),
        ["a", "b", "c"],
        {"a": ["0", "1"]},
        engine.Engine(rootless=False, cdi=False),
    )
    assert len(api_server.requests) == 3


# The engine's address.


@pytest.mark.parametrize(
    ("variables", "config", "expected"),
    [
        ({}, None, "/var/run/docker.sock"),
        ({}, {}, "/var/run/docker.sock"),
        ({}, {"currentContext": ""}, "/var/run/docker.sock"),
        ({}, {"currentContext": "rootless"}, "/run/user/1000/docker.sock"),
        ({"DOCKER_CONTEXT": "rootless"}, None, "/run/user/1000/docker.sock"),
        ({"DOCKER_CONTEXT": "default"}, {"currentContext": "rootless"}, "/var/run/docker.sock"),
        ({"DOCKER_HOST": "unix:///x.sock"}, {"currentContext": "rootless"}, "/x.sock"),
        # Only the docker command can connect, or explain why not.
        ({"DOCKER_HOST": "ssh://far"}, None, ""),
        ({"DOCKER_HOST": "unix://relative"}, None, ""),
        ({"DOCKER_CONTEXT": "missing"}, None, ""),
        ({}, {"currentContext": "far"}, ""),
        ({}, {"currentContext": ["list"]}, ""),
        ({}, [], ""),
    ],
)
def test_the_engine_is_the_one_of_the_docker_command(
    home: Path, monkeypatch: pytest.MonkeyPatch, variables: Any, config: Any, expected: str
) -> None:
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    (home / ".docker").mkdir()
    for name, address in (
        ("rootless", "unix:///run/user/1000/docker.sock"),
        ("far", "ssh://far"),
    ):
        folder = home / ".docker/contexts/meta" / hashlib.sha256(name.encode()).hexdigest()
        folder.mkdir(parents=True)
        meta = {"Name": name, "Endpoints": {"docker": {"Host": address}}}
        (folder / "meta.json").write_text(json.dumps(meta))
    if config is not None:
        (home / ".docker/config.json").write_text(json.dumps(config))
    assert api.find_socket() == expected


def test_a_remote_engine_is_reached_by_the_docker_command(
    commands: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "ssh://far")
    (home / "answer").write_bytes(fake_engine.encode({"CDISpecDirs": None}))
    commands("docker", '[ "$*" = "system dial-stdio" ] && read line && cat "$HOME/answer"')
    assert engine.Docker("Dana").get(dict, "/info", "/info") == [{"CDISpecDirs": None}] * 2


@pytest.mark.parametrize("received", [b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.0 x\r\n\r\n"])
def test_a_server_that_does_not_speak_http_is_an_error(received: bytes) -> None:
    with pytest.raises(api.ApiError, match="unexpected answer from Docker"):
        api.parse_answer(received)


# Displays.


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (":0", display.X11("", 0)),
        (":1.0", display.X11("", 1)),
        ("unix:2", display.X11("", 2)),
        ("localhost:10.0", display.X11("localhost", 10)),
    ],
)
def test_a_display_is_parsed(value: str, expected: display.X11) -> None:
    assert display.parse_display(value) == expected


@pytest.mark.parametrize("value", ["", "foo", "0", ":x", "/tmp/x:0", ":99999999999", ":²"])
def test_an_invalid_display_is_an_error(value: str) -> None:
    with pytest.raises(MlError, match="expected a display such as"):
        display.parse_display(value)


def authority(*entries: tuple[int, bytes, bytes, bytes, bytes]) -> bytes:
    return b"".join(
        struct.pack(">H", family) + b"".join(struct.pack(">H", len(text)) + text for text in texts)
        for family, *texts in entries
    )


def test_the_cookie_of_a_display_is_valid_for_any_address() -> None:
    file = authority(
        (256, b"host", b"0", b"MIT-MAGIC-COOKIE-1", b"zero"),
        (256, b"host", b"10", b"MIT-MAGIC-COOKIE-1", b"ten"),
        (256, b"host", b"10", b"XDM-AUTHORIZATION-1", b"other"),
    )
    assert display.select_cookie(file, 10) == authority(
        (0xFFFF, b"", b"10", b"MIT-MAGIC-COOKIE-1", b"ten")
    )
    shared = file + authority((256, b"other", b"10", b"MIT-MAGIC-COOKIE-1", b"far"))
    assert display.select_cookie(shared, 10)[-3:] == b"far"
    assert display.select_cookie(shared, 10, "host")[-3:] == b"ten"
    assert display.select_cookie(file, 3) == b""
    assert display.select_cookie(b"", 0) == b""


def test_a_missing_display_is_explained(home: Path) -> None:
    with (
        pytest.raises(MlError, match="connect with: ssh -X"),
        display.forward_display({}, home) as _,
    ):
        pass


def test_a_display_over_tcp_is_relayed_by_a_socket(home: Path, monkeypatch: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(display, "X11_PORT", server.getsockname()[1] - 10)

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(connection.recv(16).upper())

        threading.Thread(target=answer, daemon=True).start()
        (home / ".Xauthority").write_bytes(
            authority((256, b"h", b"10", b"MIT-MAGIC-COOKIE-1", b"ten"))
        )
        folder = home / "private"
        folder.mkdir()
        with display.forward_display({"DISPLAY": "127.0.0.1:10.0"}, folder) as (options, warning):
            assert warning == display.X11_WARNING
            assert f"--mount=type=bind,source={folder}/X10,target=/tmp/.X11-unix/X10" in options
            assert "--env=DISPLAY=:10" in options
            assert "--env=XAUTHORITY=/run/slipway/xauthority" in options
            assert (folder / "xauthority").stat().st_mode & 0o777 == 0o600
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(folder / "X10"))
                client.sendall(b"hello")
                assert client.recv(16) == b"HELLO"


def test_wayland_and_x11_are_both_forwarded(home: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(display, "X11_FOLDER", home)
    environment = {"WAYLAND_DISPLAY": "wayland-0", "XDG_RUNTIME_DIR": str(home)}
    with (
        pytest.raises(MlError, match=r"no Wayland server at .*wayland-0"),
        display.forward_display(environment, home) as _,
    ):
        pass
    with socket.socket(socket.AF_UNIX) as wayland, socket.socket(socket.AF_UNIX) as x:
        wayland.bind(str(home / "wayland-0"))
        x.bind(str(home / "X1"))
        with display.forward_display(environment, home) as (options, warning):
            assert warning == display.WAYLAND_WARNING
            assert options == [
                f"--mount=type=bind,source={home}/wayland-0,target=/run/slipway/wayland",
                "--env=WAYLAND_DISPLAY=/run/slipway/wayland",
            ]
        with display.forward_display({**environment, "DISPLAY": ":1"}, home) as (options, warning):
            assert warning == display.X11_WARNING
            assert "--env=DISPLAY=:1" in options and "--env=WAYLAND_DISPLAY=" in "".join(options)
        with (
            pytest.raises(MlError, match=r"no X11 server at .*X2"),
            display.forward_display({"DISPLAY": ":2"}, home) as _,
        ):
            pass


def test_a_damaged_cookie_file_is_an_error(home: Path) -> None:
    (home / ".Xauthority").write_bytes(b"\x01\x00\x00")
    with (
        pytest.raises(MlError, match=r"cannot read .*Xauthority"),
        display.forward_display({"DISPLAY": ":1"}, home) as _,
    ):
        pass


# Completion.


def completed(*words: str) -> list[str]:
    return complete.complete_words(
        words,
        HOST,
        ml_commands.VERBS,
        list_running=lambda: ["me-lab"],
        list_ended=lambda: ["old-lab"],
        list_images=lambda: ["lab"],
        list_gpus=lambda: ["0", "1"],
    )


@pytest.mark.parametrize(
    ("words", "candidates"),
    [
        (["ml", ""], [*sorted(ml_commands.VERBS), "--help"]),
        (["ml", "stop", ""], ["me-lab", "--all"]),
        (["ml", "stop", "me-lab", ""], ["me-lab", "--all"]),
        (["ml", "url", ""], ["me-lab"]),
        (["ml", "logs", "--f"], ["me-lab", "old-lab", "--follow"]),
        (["ml", "remove", ""], ["old-lab", "--all"]),
        (["ml", "commit", ""], ["me-lab"]),
        (["ml", "commit", "me-lab", ""], []),
        (["ml", "save", ""], ["lab"]),
        (["ml", "save", "lab", ""], []),
        (["ml", "load", ""], []),
        (["ml", "run", ""], ["lab", "laboratory"]),
        (["ml", "gui", "lab", "--gpus", ""], ["free", "all", "none", "0", "1"]),
        (["ml", "list", "-"], ["--all", "--json"]),
        (["lab", ""], []),
        (["lab", "--p"], list(complete.ALIAS_OPTIONS)),
        (["lab", "--gpus", ""], ["free", "all", "none", "0", "1"]),
        (["lab", "--gpus", "0", "-"], list(complete.ALIAS_OPTIONS)),
        (["lab", "--image", ""], ["lab"]),
        (["lab", "--port", ""], ["web="]),
        (["lab", "--volume", ""], []),
        (["lab", "python", "-"], []),
    ],
    ids=" ".join,
)
def test_completion_lists_candidates(words: list[str], candidates: list[str]) -> None:
    assert completed(*words) == candidates


def test_completion_has_every_option() -> None:
    parser = start.build_parser("lab", ALIAS)
    options = {word for action in parser._actions for word in action.option_strings}
    assert {word for word in options if word.startswith("--")} == set(complete.ALIAS_OPTIONS)
    valued = {
        word for action in parser._actions if action.nargs is None for word in action.option_strings
    }
    assert valued == complete.WITH_VALUE


# The program.


@pytest.fixture
def declared_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "read_host", lambda: HOST)


def run(program: str, *words: str) -> int:
    return main.main(program, words)


@pytest.mark.parametrize(("program", "status"), [("/usr/local/bin/lab", 125), ("ml", 1)])
def test_an_error_is_one_line_with_a_documented_status(
    declared_host: None, capsys: pytest.CaptureFixture[str], program: str, status: int
) -> None:
    assert run(program, *([] if status == 125 else ["list"])) == status
    name = Path(program).name
    assert capsys.readouterr().err == f"{name}: Docker does not answer on this host. Tell Dana\n"


def test_list_prints_json(
    declared_host: None,
    commands: Any,
    engine_api: fake_engine.Start,
    capsys: pytest.CaptureFixture[str],
) -> None:
    engine_api({"GET /(images|containers)/json": []})
    commands("nvidia-smi", 'case "$*" in -L) echo "GPU 0: T4 (UUID: GPU-a)" ;;'
             ' *) echo "GPU-a, 999999999" ;; esac')  # fmt: skip
    assert run("ml", "list", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert [image["reference"] for image in listed["missing"]] == list(HOST.images.values())
    assert listed["gpus"] == [
        {"id": "0", "name": "T4", "uuid": "GPU-a", "used_by": "process 999999999"}
    ]


def test_stop_stops_the_containers_of_the_caller(
    declared_host: None,
    commands: Any,
    engine_api: fake_engine.Start,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = inspected({"io.slipway.uid": str(ME), "io.slipway.alias": "lab"})
    foreign = {**inspected({"io.slipway.uid": str(OTHER)}), "Name": "/two"}
    engine_api(
        {
            "GET /containers/json": [{"Id": "1"}, {"Id": "2"}, {"Id": "removed"}],
            "GET /containers/1/json": own,
            "GET /containers/2/json": foreign,
        }
    )
    commands("docker", 'case "$*" in stop*) echo "$*" ;; esac')
    assert run("ml", "stop", "--all") == 0
    assert run("ml", "stop", "lab") == 0
    assert run("ml", "stop") == 0
    assert capsys.readouterr().out == "stop one\n" * 3


def test_gui_does_not_detach(declared_host: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("ml", "gui", "lab", "--detach", "window") == 1
    assert "Remove --detach" in capsys.readouterr().err


def test_completion_uses_the_shortest_name_of_an_image(
    declared_host: None, engine_api: fake_engine.Start, capsys: pytest.CaptureFixture[str]
) -> None:
    engine_api({"GET /images/json": [{"Id": "1"}], "GET /images/1/json": INSPECTED})
    assert run("ml", "--complete", "/usr/local/bin/ml", "save", "") == 0
    assert capsys.readouterr().out == "me/lab:1\nlab\n"


def test_help_names_every_command_and_alias(
    declared_host: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run("ml", "--help")
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    words: Sequence[str] = [*ml_commands.VERBS, "lab, laboratory"]
    assert all(word in shown for word in words)
