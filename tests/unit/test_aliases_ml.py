# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command ml: containers, images, displays, and what a tab offers."""

from __future__ import annotations

import io
import json
import os
import signal
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
    complete,
    containers,
    display,
    engine,
    images,
    listing,
    main,
    settings,
    start,
    token,
)
from ansible_collections.slipway.host.plugins.module_utils.ml.containers import Container
from ansible_collections.slipway.host.plugins.module_utils.ml.errors import MlError
from ansible_collections.slipway.host.plugins.module_utils.ml.gpus import Gpu
from ansible_collections.slipway.host.plugins.module_utils.ml.images import Image

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
)
ME, OTHER = 1000, 1001
URL = "http://127.0.0.1:8888/lab?token={token}"


def container(name: str, uid: int | None = ME, alias: str = "lab", **changed: Any) -> Container:
    user = {ME: "me", OTHER: "other", None: ""}[uid]
    given: dict[str, Any] = {
        "image": "slipway/lab:cpu",
        "gpus": (),
        "urls": {"web": URL},
        "project": "",
        "token": "",
        "started": "2026-11-20T04:00:00.123456789Z",
        **changed,
    }
    return Container(name=name, alias=alias, user=user, uid=uid, **given)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(os, "getuid", lambda: ME)
    for name in ("XDG_STATE_HOME", "XDG_CONFIG_HOME", "DISPLAY", "WAYLAND_DISPLAY", "XAUTHORITY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that puts a shell script in the place of a command."""
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
        "Name": "/one",
        "Config": {"Labels": labels, "Image": "slipway/lab:cpu"},
        "NetworkSettings": {"Ports": ports or {}},
        "State": {"StartedAt": "2026-11-20T04:00:00Z"},
    }


def test_a_service_is_found_where_docker_publishes_it() -> None:
    ports = {
        "5000/tcp": [
            {"HostIp": "0.0.0.0", "HostPort": "80"},
            {"HostIp": "::", "HostPort": "80"},
        ],
        "6006/tcp": None,
        "8888/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8889"}],
    }
    found = containers.parse_container(inspected({"com.docker.compose.project": "iris"}, ports))
    assert (found.user, found.uid, found.gpus) == ("service", None, ())
    assert found.urls == {"5000": "*:80", "8888": "127.0.0.1:8889"}


def test_labels_that_are_empty_say_nothing() -> None:
    labels = {f"io.slipway.{name}": "" for name in ("alias", "user", "uid", "gpus", "urls")}
    found = containers.parse_container(inspected(labels))
    assert (found.user, found.uid, found.gpus, found.urls) == ("", None, (), {})


@pytest.mark.parametrize(
    ("running", "name", "picked"),
    [
        ([container("me-lab")], None, "me-lab"),
        ([container("me-lab"), container("o-lab", OTHER)], None, "me-lab"),
        ([container("me-lab"), container("o-lab", OTHER)], "lab", "me-lab"),
        ([container("me-lab"), container("me-lab-2")], "me-lab-2", "me-lab-2"),
    ],
)
def test_which_container_is_meant(running: list[Container], name: str | None, picked: str) -> None:
    assert containers.select_container(running, name, "stop it").name == picked


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
def test_which_container_cannot_be_meant(
    running: list[Container], name: str | None, message: str
) -> None:
    with pytest.raises(MlError) as caught:
        containers.select_container(running, name, "stop it")
    assert message in str(caught.value)


def test_root_sees_to_everybodys_containers_but_not_to_their_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 0)
    other = container("o-lab", OTHER)
    assert containers.select_container([other], "o-lab", "stop it") == other
    assert containers.format_urls(other) == ["web  http://127.0.0.1:8888/lab"]


def test_root_and_nobody_else_is_shown_the_token_of_a_service(
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
        containers.select_container([service], "notebooks", "have its address")
    monkeypatch.setattr(os, "getuid", lambda: 0)
    assert containers.select_container([service], "notebooks", "have its address") == service
    assert containers.format_urls(service) == ["web  http://127.0.0.1:8888/lab?token=s3cret"]
    file.unlink()
    with pytest.raises(MlError, match=r"^cannot read .*jupyter_token: [^.]*jupyter_token'$"):
        containers.format_urls(service)


def test_addresses_are_shown_with_the_callers_token() -> None:
    token.ensure_token()
    (line,) = containers.format_urls(container("me-lab"))
    assert line == f"web  http://127.0.0.1:8888/lab?token={token.read_token()}"
    with pytest.raises(MlError, match="me-lab publishes no port"):
        containers.format_urls(container("me-lab", urls={}))


# Lists.

IMAGE = Image(
    "slipway/lab:cpu", "lab", "cpu", "sha256:1", "0123456789abcdef", 114_302_978,
    "2026-11-18T05:00:00.5+01:00",
)  # fmt: skip
NOW = datetime(2026, 11, 20, 5, 0, 30, tzinfo=timezone.utc)


def test_list_tells_the_truth_and_no_token() -> None:
    token.ensure_token()
    changed = Image("me/lab:2", "lab", "cpu", "sha256:2", "", 2_500_000_000, "0001-01-01T00:00:00Z")
    running = [container("me-lab", gpus=("0",)), container("iris", None, "", urls={})]
    listed = listing.collect_data(
        HOST, [changed, IMAGE], running, [Gpu("0", "A100", "u"), Gpu("1", "A100", "v")],
        {"0": "me-lab"},
    )  # fmt: skip
    assert listing.format_text(listed, NOW) == (
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
    data = json.dumps(listed)
    assert token.read_token() not in data and "{token}" not in data


def test_nothing_to_list_is_said() -> None:
    listed = listing.collect_data(settings.Host("", {}, {}), [], [], [], {})
    assert (
        listing.format_text(listed)
        == "no images of the catalogue on this host\n\nno running containers"
    )


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (37_385_731, "37.4 MB"), (3e12, "3 TB")],
)
def test_sizes(count: int, words: str) -> None:
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
def test_ages(since: str, words: str) -> None:
    assert listing.format_age(since, NOW) == words


# Images.


class Docker(engine.Docker):
    """Answers as docker would, from a table of what it is asked, and notes what was asked."""

    def __init__(self, answers: Mapping[str, Any]) -> None:
        super().__init__("Dana")
        object.__setattr__(self, "answers", answers)
        object.__setattr__(self, "asked", [])

    def run(self, *words: str) -> str:
        asked: list[str] = self.__dict__["asked"]
        asked.append(" ".join(words))
        for key, answer in self.__dict__["answers"].items():
            if asked[-1].startswith(key):
                return answer if isinstance(answer, str) else json.dumps(answer)
        raise MlError(f"No such image: {words[-1]}")


LABELS = {
    "io.slipway.image": "lab",
    "io.slipway.variant": "cpu",
    "io.slipway.digest": "0123456789abcdef",
}
FOUND = {
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
    untagged = {**FOUND, "RepoTags": None}
    docker = Docker({"image ls": "sha256:1\nsha256:1\n", "image inspect": [FOUND, untagged]})
    assert [image.reference for image in images.list_images(docker)] == [
        "me/lab:1",
        "slipway/lab:cpu",
    ]
    assert docker.__dict__["asked"][1] == "image inspect sha256:1"
    assert images.list_images(Docker({"image ls": ""})) == []


@pytest.mark.parametrize("name", ["lab", "laboratory", "slipway/lab:cpu"])
def test_images_are_named_by_catalogue_alias_or_reference(name: str) -> None:
    docker = Docker({"image inspect slipway/lab:cpu": [FOUND]})
    found = images.find_image(docker, name, HOST)
    assert found["reference"] == "slipway/lab:cpu"
    assert images.describe_image(found) == [
        "image id        sha256:1",
        "context digest  0123456789abcdef",
    ]


def test_an_image_that_is_not_there_is_named() -> None:
    with pytest.raises(
        MlError, match=r"no image nope on this host. Images of the catalogue here: lab, other"
    ):
        images.find_image(Docker({}), "nope", HOST)


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


def test_an_image_is_saved_whole_and_loaded(commands: Any, home: Path) -> None:
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


def test_a_save_that_fails_leaves_what_was_there(commands: Any, home: Path) -> None:
    commands("docker", STORE)
    commands("zstd", PACK)
    file = home / "saved" / "lab.tar.zst"
    with pytest.raises(MlError, match=r"folder .* does not exist"):
        images.save("broken", file, force=True)
    file.parent.mkdir()
    file.write_text("old")
    with pytest.raises(MlError, match="no such layer"):
        images.save("broken", file, force=True)
    assert [one.name for one in file.parent.iterdir()] == ["lab.tar.zst"]
    assert file.read_text() == "old"
    commands("zstd", "cat >/dev/null; echo 'zstd: No space left on device' >&2; exit 1")
    with pytest.raises(MlError, match="No space left on device"):
        images.save("slipway/lab:cpu", file, force=True)
    assert file.read_text() == "old"


def test_a_damaged_archive_and_a_missing_one_are_said(commands: Any, home: Path) -> None:
    commands("docker", STORE)
    commands("zstd", "echo 'cut.zst: premature end' >&2; exit 1")
    file = home / "cut.zst"
    file.write_text("cut")
    with pytest.raises(MlError, match="premature end"):
        images.load(file)
    with pytest.raises(MlError, match=r"file .* does not exist"):
        images.load(home / "none.zst")


def test_without_zstd_that_is_said(commands: Any, home: Path, monkeypatch: Any) -> None:
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


def test_a_kept_container_is_an_image_that_says_where_it_comes_from() -> None:
    planned = images.prepare_commit(STARTED, FOUND, "alice")
    assert planned.changes == (
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
    said = "\n".join(planned.losses)
    assert "files in /code are not in the image; they stay on the host" in said
    assert "the variables API_KEY are empty in the image" in said
    assert "the image cannot be built again" in said and "no smoke test" in said


def test_what_was_kept_before_still_names_the_catalogues_image() -> None:
    again = {**LABELS, "io.slipway.digest": "", "io.slipway.committed-from-digest": "abc"}
    image = {**FOUND, "Config": {"Labels": again, "Env": [], "Cmd": None}}
    changes = images.prepare_commit({"Config": {}}, image, "bob").changes
    assert 'LABEL io.slipway.committed-from-digest="abc"' in changes
    assert changes[-1] == "CMD []"


def test_the_roles_own_names_are_not_for_kept_containers() -> None:
    with pytest.raises(MlError, match="Choose another name"):
        images.commit(Docker({}), "me-lab", "slipway/lab:cpu", "me")


PUSHES = 'case "$*" in "image push good"*|"image push reg"*) ;; *) echo "%s" >&2; exit 1 ;; esac'


def test_a_pushed_image_is_told_by_its_digest(commands: Any) -> None:
    commands("docker", PUSHES % "")
    pushed = {**FOUND, "RepoDigests": ["me/lab@sha256:9", "reg:5000/me/lab@sha256:8"]}
    docker = Docker({"image inspect": [pushed], "image tag": ""})
    assert images.push(docker, "slipway/lab:cpu", "reg:5000/me/lab:1") == (
        "reg:5000/me/lab@sha256:8"
    )
    assert images.push(docker, "slipway/lab:cpu", "reg:5000/me/lab") == "reg:5000/me/lab@sha256:8"
    assert images.push(docker, "slipway/lab:cpu", "good") == ""


@pytest.mark.parametrize(
    ("target", "said", "message"),
    [
        ("reg.lab/me/x:1", "denied: no", "denied: no. Log in first: docker login reg.lab"),
        ("reg:5000/x", "no basic auth credentials", "Log in first: docker login reg:5000"),
        ("me/x", "unauthorized: x", "unauthorized: x. Log in first: docker login"),
        ("me/x", "dial tcp: no such host", "dial tcp: no such host"),
    ],
)
def test_a_refused_push_leaves_no_name_behind(
    commands: Any, target: str, said: str, message: str
) -> None:
    commands("docker", (PUSHES % said).replace('"image push reg"*', "never"))
    docker = Docker({"image tag": "", "image rm": ""})
    with pytest.raises(MlError) as caught:
        images.push(docker, "slipway/lab:cpu", target)
    assert str(caught.value) == message if "Log in" not in message else message in str(caught.value)
    assert docker.__dict__["asked"][-1] == f"image rm --no-prune {target}"


def test_a_refused_push_gives_a_name_back_to_the_image_that_had_it(commands: Any) -> None:
    commands("docker", 'echo "denied: no" >&2; exit 1')
    docker = Docker({"image inspect": [{**FOUND, "Id": "sha256:old"}], "image tag": ""})
    with pytest.raises(MlError, match="denied"):
        images.push(docker, "slipway/lab:cpu", "reg.lab/me/x:1")
    assert docker.__dict__["asked"][-1] == "image tag sha256:old reg.lab/me/x:1"


def test_the_roles_own_names_are_not_to_be_pushed_to() -> None:
    with pytest.raises(MlError, match="Choose another name"):
        images.push(Docker({}), "slipway/lab:cpu", "slipway/keras:cpu")


# Docker's refusals.


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("Cannot connect to the Docker daemon at unix:///x. Is it", "Docker does not answer on"),
        ("failed to connect to the docker API at unix:///x; check", "this host. Tell Dana"),
        ("x\nError response from daemon: no such container: y\n", "no such container: y"),
        ("", "docker failed"),
    ],
)
def test_what_docker_says_is_put_in_words(said: str, message: str) -> None:
    assert message in engine.Docker("Dana").explain(said)
    assert "Error response" not in engine.Docker("Dana").explain(said)


def test_whoever_may_not_use_docker_learns_whom_to_ask(commands: Any) -> None:
    commands(
        "docker", "echo 'permission denied while trying to connect to the docker API' >&2; exit 1"
    )
    with pytest.raises(MlError, match=r"may not use Docker on .* Ask Dana to set"):
        engine.Docker("Dana").engine()
    assert "newgrp docker" in engine.explain_permission("Dana", "alice", listed=True)


def test_an_engine_that_is_down_is_noticed_where_info_succeeds(commands: Any) -> None:
    commands("docker", 'echo \'{"ServerErrors": ["Cannot connect to the Docker daemon"]}\'')
    with pytest.raises(MlError, match=r"does not answer on this host. Tell Dana"):
        engine.Docker("Dana").engine()


def test_without_docker_that_is_said(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(home))
    with pytest.raises(MlError, match="command docker not found"):
        engine.Docker("Dana").run("ps")


@pytest.mark.parametrize(
    ("info", "spec", "found"),
    [
        ({}, True, engine.Engine(False, False)),
        ({"CDISpecDirs": ["/etc/cdi"]}, True, engine.Engine(False, True)),
        ({"CDISpecDirs": ["/etc/cdi"]}, False, engine.Engine(False, False)),
        ({"CDISpecDirs": []}, True, engine.Engine(False, False)),
        ({"SecurityOptions": ["name=rootless"]}, False, engine.Engine(True, False)),
    ],
)
def test_what_engine_it_is(info: dict[str, Any], spec: bool, found: engine.Engine) -> None:
    assert engine.parse_engine(info, spec) == found


def test_a_cdi_file_counts_when_it_names_gpus(home: Path) -> None:
    folder = home / "cdi"
    assert not engine.has_cdi_spec([folder])
    folder.mkdir()
    (folder / "other.json").write_text('{"kind": "vendor.com/net"}')
    assert not engine.has_cdi_spec([folder])
    (folder / "nvidia.yaml").write_text("kind: nvidia.com/gpu\n")
    assert engine.has_cdi_spec([home / "none", folder])


def test_files_of_an_image_are_read_without_running_it(commands: Any, home: Path) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as made:
        member = tarfile.TarInfo("passwd")
        member.size = 5
        made.addfile(member, io.BytesIO(b"root\n"))
    (home / "tar").write_bytes(archive.getvalue())
    commands(
        "docker",
        'echo "$*" >>"$HOME/asked"\n'
        'case "$*" in container\\ create*) echo 7f ;; cp*) cat "$HOME/tar" ;; esac',
    )
    assert engine.Docker("").files_of("lab", ["/etc/passwd"]) == {"/etc/passwd": "root\n"}
    assert (home / "asked").read_text().splitlines() == [
        "container create --network=none --pull=never lab",
        "cp 7f:/etc/passwd -",
        "container rm 7f",
    ]


# Displays.


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (":0", display.X11("", 0)),
        (":1.0", display.X11("", 1)),
        ("unix:2", display.X11("", 2)),
        ("localhost:10.0", display.X11("localhost", 10)),
    ],
)
def test_which_display_is_meant(value: str, found: display.X11) -> None:
    assert display.parse_display(value) == found


@pytest.mark.parametrize("value", ["", "foo", "0", ":x", "/tmp/x:0"])
def test_what_is_no_display(value: str) -> None:
    with pytest.raises(MlError, match="expected a display such as"):
        display.parse_display(value)


def authority(*entries: tuple[int, bytes, bytes, bytes, bytes]) -> bytes:
    return b"".join(
        struct.pack(">H", family) + b"".join(struct.pack(">H", len(text)) + text for text in texts)
        for family, *texts in entries
    )


def test_the_cookie_of_a_display_is_made_good_for_any_address() -> None:
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


def test_without_a_display_the_way_to_one_is_said(home: Path) -> None:
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
        with display.forward_display({"DISPLAY": "127.0.0.1:10.0"}, folder) as (options, cost):
            assert cost == display.X11_COST
            assert f"--mount=type=bind,source={folder}/X10,target=/tmp/.X11-unix/X10" in options
            assert "--env=DISPLAY=:10" in options
            assert "--env=XAUTHORITY=/run/slipway/xauthority" in options
            assert (folder / "xauthority").stat().st_mode & 0o777 == 0o600
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(folder / "X10"))
                client.sendall(b"hello")
                assert client.recv(16) == b"HELLO"


def test_a_window_that_closes_does_not_end_the_others() -> None:
    # As in main: without care, what is written to a window that is gone ends the whole program.
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        ours, theirs = socket.socketpair()
        gone, other = socket.socketpair()
        other.close()
        with ours, theirs, gone:
            theirs.sendall(b"expose")
            display._copy(ours, gone)
    finally:
        signal.signal(signal.SIGPIPE, before)


def test_wayland_and_x11_are_both_given_where_both_are(home: Path, monkeypatch: Any) -> None:
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
        with display.forward_display(environment, home) as (options, cost):
            assert cost == display.WAYLAND_COST
            assert options == [
                f"--mount=type=bind,source={home}/wayland-0,target=/run/slipway/wayland",
                "--env=WAYLAND_DISPLAY=/run/slipway/wayland",
            ]
        with display.forward_display({**environment, "DISPLAY": ":1"}, home) as (options, cost):
            assert cost == display.X11_COST
            assert "--env=DISPLAY=:1" in options and "--env=WAYLAND_DISPLAY=" in "".join(options)
        with (
            pytest.raises(MlError, match=r"no X11 server at .*X2"),
            display.forward_display({"DISPLAY": ":2"}, home) as _,
        ):
            pass


def test_a_damaged_cookie_file_is_said(home: Path) -> None:
    (home / ".Xauthority").write_bytes(b"\x01\x00\x00")
    with (
        pytest.raises(MlError, match=r"cannot read .*Xauthority"),
        display.forward_display({"DISPLAY": ":1"}, home) as _,
    ):
        pass


# A tab.


def offered(*words: str) -> list[str]:
    return complete.complete_words(
        words, HOST, own=lambda: ["me-lab"], images=lambda: ["lab"], gpus=lambda: ["0", "1"]
    )


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["ml", ""], [*complete.COMMANDS, "--help"]),
        (["ml", "stop", ""], ["me-lab", "--all"]),
        (["ml", "stop", "me-lab", ""], ["me-lab", "--all"]),
        (["ml", "url", ""], ["me-lab"]),
        (["ml", "logs", "--f"], ["me-lab", "--follow"]),
        (["ml", "commit", ""], ["me-lab"]),
        (["ml", "commit", "me-lab", ""], []),
        (["ml", "save", ""], ["lab"]),
        (["ml", "save", "lab", ""], []),
        (["ml", "load", ""], []),
        (["ml", "run", ""], ["lab", "laboratory"]),
        (["ml", "gui", "lab", "--gpus", ""], ["free", "all", "none", "0", "1"]),
        (["ml", "list", "-"], ["--json"]),
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
def test_what_a_tab_offers(words: list[str], found: list[str]) -> None:
    assert offered(*words) == found


def test_completion_knows_the_options_there_are() -> None:
    parser = start.build_parser("lab", ALIAS)
    options = {word for action in parser._actions for word in action.option_strings}
    assert {word for word in options if word.startswith("--")} == set(complete.ALIAS_OPTIONS)
    valued = {
        word for action in parser._actions if action.nargs is None for word in action.option_strings
    }
    assert valued == complete.WITH_VALUE
    assert set(complete.COMMANDS) == set(main.VERBS)


# The program.


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "read_host", lambda: HOST)


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Undo what the program does to its process: a broken pipe would end the tests."""
    handler = signal.getsignal(signal.SIGPIPE)
    yield
    signal.signal(signal.SIGPIPE, handler)


def run(called: str, *words: str) -> int:
    return main.main(called, words)


@pytest.mark.parametrize(("called", "status"), [("/usr/local/bin/lab", 125), ("ml", 1)])
def test_an_error_is_one_line_and_a_status_that_no_program_has(
    declared: None, commands: Any, capsys: pytest.CaptureFixture[str], called: str, status: int
) -> None:
    commands("docker", "echo 'Cannot connect to the Docker daemon' >&2; exit 1")
    assert run(called, *([] if status == 125 else ["list"])) == status
    name = Path(called).name
    assert capsys.readouterr().err == f"{name}: Docker does not answer on this host. Tell Dana\n"


def test_list_asks_docker_and_prints(
    declared: None, commands: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    commands("docker", "true")
    commands("nvidia-smi", 'case "$*" in -L) echo "GPU 0: T4 (UUID: GPU-a)" ;;'
             ' *) echo "GPU-a, 999999999" ;; esac')  # fmt: skip
    assert run("ml", "list", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert [one["reference"] for one in listed["missing"]] == list(HOST.images.values())
    assert listed["gpus"] == [
        {"id": "0", "name": "T4", "uuid": "GPU-a", "used_by": "process 999999999"}
    ]


def test_stop_stops_ones_own(
    declared: None, commands: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    own = inspected({"io.slipway.uid": str(ME), "io.slipway.alias": "lab"})
    foreign = {**inspected({"io.slipway.uid": str(OTHER)}), "Name": "/two"}
    commands(
        "docker",
        f"case \"$*\" in ps*) echo 1 2 ;; *inspect*) echo '{json.dumps([own, foreign])}' ;;"
        ' stop*) echo "$*" ;; esac',
    )
    assert run("ml", "stop", "--all") == 0
    assert run("ml", "stop", "lab") == 0
    assert run("ml", "stop") == 0
    assert capsys.readouterr().out == "stop one\n" * 3


def test_a_display_does_not_outlive_its_command(
    declared: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("ml", "gui", "lab", "--detach", "window") == 1
    assert "Remove --detach" in capsys.readouterr().err


def test_completion_speaks_the_shortest_word_for_an_image(
    declared: None, commands: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    commands("docker", f"case \"$*\" in *ls*) echo 1 ;; *) echo '{json.dumps([FOUND])}' ;; esac")
    assert run("ml", "--complete", "/usr/local/bin/ml", "save", "") == 0
    assert capsys.readouterr().out == "me/lab:1\nlab\n"


def test_help_names_every_command_and_alias(
    declared: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run("ml", "--help")
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    words: Sequence[str] = [*complete.COMMANDS, "lab, laboratory"]
    assert all(word in shown for word in words)
