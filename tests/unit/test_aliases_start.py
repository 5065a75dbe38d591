# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How an alias starts its container: the docker command, and everything that goes into it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.ml import (
    accounts,
    containers,
    engine,
    gpus,
    launch,
    reserve,
    settings,
    start,
    token,
)
from ansible_collections.slipway.host.plugins.module_utils.ml.errors import MlError
from ansible_collections.slipway.host.plugins.module_utils.ml.gpus import Choice, Gpu
from ansible_collections.slipway.host.plugins.module_utils.ml.launch import Mounted

ALIAS = settings.Alias(
    name="fast_ai",
    description="A shell",
    image="fastai",
    variant="gpu",
    network="bridge",
    command=("bash",),
    ports={"jupyter": settings.Port(8888, "/lab?token={token}"), "ssh": settings.Port(22, "")},
    settings={},
)
WANTED: dict[str, Any] = {
    "image": "slipway/fastai:gpu",
    "gpus": "free",
    "ports": {"jupyter": 8888, "ssh": 2222},
}


def always(_what: object) -> bool:
    return True


FREE = launch.Reservations(port=always, name=always)


@pytest.fixture
def who(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> launch.Caller:
    home = tmp_path / "alice"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    return launch.Caller("alice", 1001, 1001, (2000,), home, home)


def planned(
    who: launch.Caller,
    wanted: Mapping[str, Any] | None = None,
    begin: launch.Start | None = None,
    alias: settings.Alias = ALIAS,
    rootless: bool = False,
    names: Sequence[str] = (),
    choice: Choice | None = None,
    take: launch.Reservations = FREE,
) -> launch.Launch:
    image = {"Id": "sha256:1", "Config": {"Env": ["PATH=/bin", "HOME=/home/slipway"]}}
    docker = engine.Engine(rootless=rootless, cdi=False)
    found = launch.Situation(who, docker, image, names, choice or Choice(()))
    return launch.assemble_launch(
        alias, {**WANTED, **(wanted or {})}, begin or launch.Start(), found, take
    )


def values(options: Sequence[str], option: str) -> list[str]:
    return [word.partition("=")[2] for word in options if word.startswith(f"--{option}=")]


def test_the_whole_command(who: launch.Caller) -> None:
    wanted = {"mounts": [{"source": "~/code", "target": "/code"}], "workdir": "/code"}
    found = planned(who, wanted, launch.Start(("python", "train.py"), terminal=True))
    state = f"{who.home}/.local/state/slipway/token"
    account = found.accounts.folder if found.accounts else None
    urls = '{"jupyter": "http://127.0.0.1:8888/lab?token={token}", "ssh": "127.0.0.1:2222"}'
    assert list(found.words) == [
        *("docker", "run", "--rm", "--init", "--pull=never", "--interactive", "--tty"),
        *("--name=alice-fast_ai", "--hostname=fast-ai"),
        "--label=io.slipway.alias=fast_ai",
        "--label=io.slipway.user=alice",
        "--label=io.slipway.uid=1001",
        f"--label=io.slipway.urls={urls}",
        *("--user=1001:1001", "--group-add=2000"),
        *("--publish=127.0.0.1:8888:8888", "--publish=127.0.0.1:2222:22"),
        f"--mount=type=bind,source={who.home}/code,target=/code",
        f"--mount=type=bind,source={account}/passwd,target=/etc/passwd,readonly",
        f"--mount=type=bind,source={account}/group,target=/etc/group,readonly",
        f"--mount=type=bind,source={state},target=/run/slipway/token,readonly",
        "--env=JUPYTER_TOKEN_FILE=/run/slipway/token",
        "--workdir=/code",
        *("--env=USER=alice", "--env=LOGNAME=alice"),
        *("--env=SLIPWAY_PORT_JUPYTER=8888", "--env=SLIPWAY_PORT_SSH=2222"),
        *("--cap-drop=ALL", "--security-opt=no-new-privileges"),
        *("slipway/fastai:gpu", "python", "train.py"),
    ]
    assert found.folders == (who.home / "code",)


def test_shown_command_is_the_one_that_runs(who: launch.Caller) -> None:
    found = planned(who, {"options": ["--ulimit", "memlock=-1"], "environment": {"A": "b 'c'"}})
    shown = start.format_command(found)
    read = subprocess.run(
        ["sh", "-c", f'docker() {{ printf "%s\\n" docker "$@"; }}; {shown}'],
        capture_output=True,
        text=True,
        check=True,
    )
    assert read.stdout.splitlines() == list(found.words)
    assert "\\\n    --ulimit memlock=-1 \\\n" in shown
    assert shown.endswith("\\\n    slipway/fastai:gpu bash")


@pytest.mark.parametrize(
    ("begin", "attached"),
    [
        (launch.Start(), ["--interactive"]),
        (launch.Start(terminal=True), ["--interactive", "--tty"]),
        (launch.Start(("j8",), detach=True), ["--detach"]),
        (launch.Start(detach=True), ["--detach", "--interactive", "--tty"]),
    ],
    ids=["script", "person", "background", "shell in the background"],
)
def test_terminal_is_given_where_a_person_is(
    who: launch.Caller, begin: launch.Start, attached: list[str]
) -> None:
    options = planned(who, begin=begin).options
    assert [word for word in options if word in ("--detach", "--interactive", "--tty")] == attached


def test_a_rootless_engine_makes_the_caller_root_inside(who: launch.Caller) -> None:
    found = planned(who, rootless=True)
    assert values(found.options, "user") == ["0:0"]
    assert not values(found.options, "group-add")
    assert found.accounts is None


def test_root_inside_gets_nothing_of_the_callers(who: launch.Caller) -> None:
    wanted = {"mounts": [{"source": "~/code", "target": "/code"}], "workdir": "/code"}
    found = planned(who, wanted, launch.Start(root=True))
    assert values(found.options, "user") == ["0:0"]
    assert not any("target=/code" in mount for mount in values(found.options, "mount"))
    assert "--cap-drop=ALL" not in found.options
    assert found.folders == ()


def test_a_second_container_has_another_name(who: launch.Caller) -> None:
    assert planned(who, names=["alice-fast_ai", "bob-fast_ai"]).name == "alice-fast_ai-2"
    reserved = launch.Reservations(port=always, name=lambda what: what != "name/alice-fast_ai")
    assert planned(who, take=reserved).name == "alice-fast_ai-2"


@pytest.mark.parametrize(
    ("user", "name"),
    [("alice", "alice-x"), ("LAB\\al", "LAB-al-x"), ("a@lab", "a-lab-x"), ("_svc", "svc-x")],
)
def test_names_are_what_docker_accepts(user: str, name: str) -> None:
    assert launch.container_name(user, "x") == name


# Ports.


def test_the_next_free_port_is_taken_and_said(who: launch.Caller) -> None:
    found = planned(who, take=launch.Reservations(lambda port: port not in (8888, 8889), always))
    assert values(found.options, "publish") == ["127.0.0.1:8890:8888", "127.0.0.1:2222:22"]
    assert found.urls["jupyter"] == "http://127.0.0.1:8890/lab?token={token}"
    assert found.notes == ("port 8888 is in use; jupyter is at port 8890",)


def test_no_port_near_is_an_error(who: launch.Caller) -> None:
    with pytest.raises(MlError, match="no free port from 8888 to 8987"):
        planned(who, take=launch.Reservations(lambda _port: False, always))


@pytest.mark.parametrize(
    ("network", "published", "urls"),
    [
        ("none", [], []),
        ("host", [], ["http://127.0.0.1:8888/lab?token={token}", "127.0.0.1:22"]),
    ],
)
def test_other_networks_publish_nothing(
    who: launch.Caller, network: str, published: list[str], urls: list[str]
) -> None:
    found = planned(who, alias=replace(ALIAS, network=network))
    assert values(found.options, "network") == [network]
    assert values(found.options, "publish") == published
    assert list(found.urls.values()) == urls


def test_ports_that_the_image_lacks_are_those_of_other_aliases(who: launch.Caller) -> None:
    found = planned(who, {"ports": {"board": 6006}})
    assert not values(found.options, "publish") and not found.urls
    assert not found.needs_token


def test_a_listening_port_is_seen_and_a_reserved_one_is_held() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        server.listen()
        assert reserve.is_listening(port)
        assert not reserve.take_port(port)
    assert reserve.take_port(port)
    assert not reserve.take_port(port), "reserved by this very process"


def test_a_reservation_is_kept_by_what_runs_in_our_place(tmp_path: Path) -> None:
    what = f"test/{os.getpid()}"
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[1]);"
        f"from ml import reserve; assert reserve.take({what!r});"
        "os.execvp('sleep', ['sleep', '30'])"
    )
    folder = Path(reserve.__file__).parents[1]
    with subprocess.Popen([sys.executable, "-c", code, str(folder)]) as holder:
        try:
            deadline = time.monotonic() + 10
            while Path(f"/proc/{holder.pid}/comm").read_text() != "sleep\n":
                assert time.monotonic() < deadline
                time.sleep(0.02)
            assert not reserve.take(what)
        finally:
            holder.kill()
    assert reserve.take(what), "free once the holder is gone"


# Folders.


def test_missing_folders_of_the_caller_are_made_and_no_others(
    who: launch.Caller, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    entries: list[dict[str, Any]] = [
        {"source": "~/a b", "target": "/code"},
        {"source": str(shared), "target": "/shared", "read_only": True},
        {"source": "/nowhere", "target": "/x", "optional": True},
    ]
    found, missing = launch.resolve_mounts(entries, who)
    assert missing == [who.home / "a b"]
    assert found == [
        Mounted(who.home / "a b", PurePosixPath("/code")),
        Mounted(shared, PurePosixPath("/shared"), read_only=True),
    ]
    with pytest.raises(
        MlError, match="folder /nowhere does not exist; it is the source of the mount at /x"
    ):
        launch.resolve_mounts([{"source": "/nowhere", "target": "/x"}], who)


@pytest.mark.parametrize(
    ("source", "option"),
    [
        ("/a", "--mount=type=bind,source=/a,target=/t"),
        ("/a,b", '--mount=type=bind,"source=/a,b",target=/t'),
        ('/a"b', '--mount=type=bind,"source=/a""b",target=/t'),
    ],
)
def test_mounts_are_quoted_as_docker_reads_them(source: str, option: str) -> None:
    assert launch.mount_option(Mounted(Path(source), PurePosixPath("/t"))) == option


@pytest.mark.parametrize(
    ("here", "asked", "usual", "folder", "note"),
    [
        ("code/mine/deep", "", "/code/course", "/code/mine/deep", ""),
        ("code", "", "/code/course", "/code", ""),
        ("code/data/x", "", "/code", "/data/x", ""),
        (".", "", "/code/mine", "/code/mine", ""),
        (".", "", "/code/course/dl1", "/code", "folder /code/course/dl1 does not exist yet"),
        (".", "", "", "", ""),
        (".", "", "/opt/x", "/opt/x", ""),
        ("code/mine", "/tmp", "/code/course", "/tmp", ""),
    ],
    ids=["mounted", "root of a mount", "deepest mount", "usual", "usual missing", "image's own",
         "usual in the image", "asked for"],
)  # fmt: skip
def test_where_it_starts(
    who: launch.Caller, here: str, asked: str, usual: str, folder: str, note: str
) -> None:
    for name in ("code/mine/deep", "code/data/x"):
        (who.home / name).mkdir(parents=True)
    mounted = [
        Mounted(who.home / "code", PurePosixPath("/code")),
        Mounted(who.home / "code/data", PurePosixPath("/data")),
    ]
    found, said = launch.working_folder(
        asked, usual, mounted, replace(who, folder=(who.home / here).resolve())
    )
    assert found == folder
    assert note in said and bool(note) == bool(said)


# GPUs.

LISTED = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-aa)
  MIG 1g.5gb      Device  0: (UUID: MIG-a0)
  MIG 2g.10gb     Device  1: (UUID: MIG-a1)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-bb)
"""
TWO = [Gpu("0", "A", "GPU-0"), Gpu("1", "A", "GPU-1")]
PARTS = [Gpu("0:0", "A", "MIG-0"), Gpu("0:1", "A", "MIG-1"), Gpu("1", "A", "GPU-1")]


def test_gpus_and_parts_of_them_are_listed() -> None:
    assert gpus.parse_gpus(LISTED) == [
        Gpu("0:0", "NVIDIA A100-SXM4-40GB, MIG 1g.5gb", "MIG-a0"),
        Gpu("0:1", "NVIDIA A100-SXM4-40GB, MIG 2g.10gb", "MIG-a1"),
        Gpu("1", "NVIDIA H100 80GB HBM3", "GPU-bb"),
    ]
    assert gpus.parse_gpus("") == []


@pytest.mark.parametrize(
    ("wanted", "found", "busy", "ids", "words"),
    [
        ("none", TWO, {}, (), ""),
        ("free", [], {}, (), "no GPU on this host; the container runs without one"),
        ("0", [], {}, (), "no GPU on this host; the container runs without one"),
        ("free", TWO, {}, ("0", "1"), ""),
        ("free", TWO, {"0": "bob-x"}, ("1",), ""),
        ("free", TWO, {"0": "bob-x", "1": "process 7"}, (),
         "all GPUs are in use (0: bob-x, 1: process 7); the container runs without one"),
        ("all", TWO, {"0": "bob-x"}, ("0", "1"), ""),
        ("1", TWO, {}, ("1",), ""),
        ("1,0", TWO, {"0": "bob-x"}, ("1", "0"), "shares GPU 0 with bob-x"),
        ("0", PARTS, {}, ("0:0", "0:1"), ""),
        ("0:1,1", PARTS, {}, ("0:1", "1"), ""),
    ],
)  # fmt: skip
def test_which_gpus_a_container_gets(
    wanted: str, found: list[Gpu], busy: dict[str, str], ids: tuple[str, ...], words: str
) -> None:
    choice = gpus.choose_gpus(wanted, "gpu", found, busy, always)
    assert choice.ids == ids
    assert words in choice.note + choice.warning
    assert bool(words) == bool(choice.note or choice.warning)


def test_an_image_for_cpus_gets_no_gpu_and_one_that_is_not_there_is_an_error() -> None:
    choice = gpus.choose_gpus("free", "cpu", TWO, {}, always)
    assert choice == Choice(
        (), note="the image has no gpu variant; the container runs without a GPU"
    )
    with pytest.raises(MlError, match="no GPU 4 on this host; expected one of: 0, 1"):
        gpus.choose_gpus("4", "gpu", TWO, {}, always)


def test_a_gpu_that_somebody_else_takes_at_this_moment_is_not_free() -> None:
    assert gpus.choose_gpus("free", "gpu", TWO, {}, lambda gpu: gpu != "0").ids == ("1",)
    choice = gpus.choose_gpus("free", "gpu", TWO, {}, lambda _gpu: False)
    assert "0: starting" in choice.warning


def test_who_uses_a_gpu() -> None:
    busy = gpus.find_users(TWO, {"GPU-0": "alice's process 7"}, {"bob-x": ["1"]})
    assert busy == {"0": "alice's process 7", "1": "bob-x"}


@pytest.mark.parametrize(
    ("ids", "cdi", "options"),
    [
        ((), True, []),
        (("0", "1"), True, ["--device=nvidia.com/gpu=0", "--device=nvidia.com/gpu=1"]),
        (("0", "1"), False, ['--gpus="device=0,1"']),
    ],
)
def test_how_docker_is_asked_for_gpus(ids: tuple[str, ...], cdi: bool, options: list[str]) -> None:
    assert gpus.gpu_options(ids, cdi) == options


def test_gpus_are_labelled_and_told(who: launch.Caller) -> None:
    found = planned(who, choice=Choice(("0", "1")))
    assert "--label=io.slipway.gpus=0,1" in found.options
    assert '--gpus="device=0,1"' in found.options
    lines = start.start_messages(found, terminal=True, quiet=False, show=str)
    assert "starting container alice-fast_ai on GPU 0, 1" in lines


# What is said.


def test_addresses_go_to_terminals_alone(
    who: launch.Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    choice = Choice((), note="no GPU", warning="all busy")
    found = planned(who, choice=choice)
    secret = {"show": lambda url: url.replace("{token}", "5ecret")}
    assert start.start_messages(found, False, False, **secret) == ["all busy", "no GPU"]
    assert start.start_messages(found, True, True, **secret) == ["all busy"]
    assert start.start_messages(found, True, False, **secret) == [
        "all busy",
        "no GPU",
        "starting container alice-fast_ai",
        "jupyter at http://127.0.0.1:8888/lab?token=5ecret",
        "ssh at 127.0.0.1:2222",
    ]
    monkeypatch.setenv("SSH_CONNECTION", "192.0.2.1 1 192.0.2.2 22")
    tunnel = start.start_messages(found, True, False, **secret)[-1]
    assert "ssh -L 8888:127.0.0.1:8888 -L 2222:127.0.0.1:2222 " in tunnel
    assert "5ecret" not in tunnel


# What is made before.


def test_token_is_made_once_for_its_user_alone(who: launch.Caller) -> None:
    with pytest.raises(MlError, match="The next start of an alias creates it"):
        token.read_token()
    path = token.ensure_token()
    first = token.read_token()
    assert len(first) == 48
    assert path.read_text() == first, "Jupyter would take a newline for a part of it"
    assert path.stat().st_mode & 0o777 == 0o600
    assert token.ensure_token() == path and token.read_token() == first
    assert [file.name for file in path.parent.iterdir()] == ["token"]


def test_a_token_that_cannot_be_kept_is_an_error(
    who: launch.Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/none")
    with pytest.raises(MlError, match="cannot write your token"):
        token.ensure_token()


def test_the_callers_name_joins_the_images_accounts(who: launch.Caller) -> None:
    own = "root:x:0:0:root:/root:/bin/sh\nslipway:x:1001:1000::/home/slipway:/bin/sh\nbroken\n"
    lines = ["alice:x:1001:1001:alice:/home/slipway:/bin/bash"]
    assert accounts.merge_accounts(own, lines).splitlines() == [
        "root:x:0:0:root:/root:/bin/sh",
        "alice:x:1001:1001:alice:/home/slipway:/bin/bash",
    ]


def test_accounts_are_made_once_for_an_image(who: launch.Caller) -> None:
    asked: list[str] = []

    def read(image: str, paths: Sequence[str]) -> dict[str, str]:
        asked.append(image)
        return dict.fromkeys(paths, "root:x:0:0:root:/root:/bin/sh\n")

    wanted = accounts.accounts_for("sha256:1", "/home/slipway", "alice", 1001, 123456, (123457,))
    accounts.write_accounts(wanted, read)
    accounts.write_accounts(wanted, read)
    assert asked == ["sha256:1"]
    assert "alice:x:1001:123456:alice:/home/slipway:/bin/bash" in (
        (wanted.folder / "passwd").read_text()
    )
    assert "group-123457:x:123457:" in (wanted.folder / "group").read_text()
    other = replace(wanted, image="sha256:2")
    os.utime(wanted.folder / "passwd", (0, 0))
    os.utime(wanted.folder / "group", (0, 0))
    accounts.write_accounts(other, read)
    assert not wanted.folder.exists(), "what is old is forgotten"
    assert (other.folder / "passwd").exists()


# The command line.


def arguments(*words: str) -> Any:
    alias = replace(ALIAS, settings={"image": "i", "mounts": [{"source": "~", "target": "/h"}]})
    return start.build_parser("fast_ai", alias).parse_args(words)


def test_words_after_the_command_are_its_own() -> None:
    given = arguments("--gpus", "0", "python", "x.py", "--gpus", "1", "--help")
    assert given.gpus == "0"
    assert given.command == ["python", "x.py", "--gpus", "1", "--help"]


def test_what_the_command_line_sets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    given = arguments(
        *("--gpus", "all", "--image", "me/x", "-v", "out:/out", "-v", "~/d:/data:ro"),
        *("--port", "jupyter=9000", "--quiet", "-e", "A=1", "-e", "HF_TOKEN"),
    )
    assert start.command_line_layer(given, ALIAS) == {
        "gpus": "all",
        "image": "me/x",
        "quiet": True,
        "mounts": [
            {"source": str(tmp_path / "out"), "target": "/out", "read_only": False},
            {"source": "~/d", "target": "/data", "read_only": True},
        ],
        "ports": {"jupyter": 9000},
    }
    assert given.env == ["A=1", "HF_TOKEN"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--gpus", "x"), "command line: gpus is 'x'"),
        (("--port", "jupiter=1"), "the image has no port jupiter. Did you mean jupyter?"),
        (("--port", "jupyter"), "expected port numbers of the host"),
        (("-v", "/a"), "expected SOURCE:TARGET or SOURCE:TARGET:ro"),
        (("-v", "/a:b"), "whose target is an absolute path"),
    ],
)
def test_what_the_command_line_cannot_set(words: Sequence[str], message: str) -> None:
    with pytest.raises(MlError) as caught:
        start.command_line_layer(arguments(*words), ALIAS)
    assert message in str(caught.value)


class Docker(engine.Docker):
    """Answers as docker would, from a table of what it is asked."""

    def __init__(self, answers: Mapping[str, str]) -> None:
        super().__init__("Dana")
        object.__setattr__(self, "answers", answers)

    def run(self, *words: str) -> str:
        answers: Mapping[str, str] = self.__dict__["answers"]
        asked = " ".join(words)
        for key, answer in answers.items():
            if asked.startswith(key):
                return answer
        raise MlError(f"No such image: {words[-1]}")


IMAGE = json.dumps([{"Id": "sha256:1", "Config": {"Env": ["HOME=/h"]}}])


def test_print_shows_and_changes_nothing(
    who: launch.Caller, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "list_gpus", list)
    alias = replace(ALIAS, settings={**WANTED, "mounts": [{"source": "~/code", "target": "/c"}]})
    listed = "alice-fast_ai\trunning\t\nother\texited\t0\n"
    docker = Docker({"image inspect": IMAGE, "info": "{}", "ps --all": listed})
    given = start.build_parser("fast_ai", alias).parse_args(["--print", "-q", "--", "nvidia-smi"])
    before = sorted(who.home.rglob("*"))
    assert start.start(docker, alias, given) == 0
    shown = capsys.readouterr()
    assert "slipway/fastai:gpu nvidia-smi\n" in shown.out
    assert shown.err == ""
    assert sorted(who.home.rglob("*")) == before


def test_an_image_that_is_not_there_says_whom_to_tell(who: launch.Caller) -> None:
    alias = replace(ALIAS, settings=WANTED)
    with pytest.raises(MlError, match=r"slipway/fastai:gpu is not on this host. Tell Dana"):
        start.start(Docker({}), alias, start.build_parser("fast_ai", alias).parse_args([]))


def test_gpus_of_running_containers_are_claimed() -> None:
    rows = "a\trunning\t0,1\nb\texited\t2\nc\trunning\t\n"
    names, claimed = start.list_containers(Docker({"ps": rows}))
    assert names == ["a", "b", "c"]
    assert claimed == {"a": ["0", "1"]}


def test_what_is_started_is_waited_for() -> None:
    assert start.run_to_end([sys.executable, "-c", "raise SystemExit(7)"]) == 7


def test_labels_are_read_back(who: launch.Caller) -> None:
    """What an alias writes on its container is what the other commands read of it."""
    found = planned(who, choice=Choice(("0",)))
    labels = dict(word.split("=", 1) for word in values(found.options, "label"))
    read = containers.parse_container(
        {
            "Name": "/alice-fast_ai",
            "Config": {"Labels": labels, "Image": "slipway/fastai:gpu"},
            "NetworkSettings": {"Ports": {}},
            "State": {"StartedAt": "2026-11-20T05:00:00Z"},
        }
    )
    assert (read.alias, read.user, read.uid, read.gpus) == ("fast_ai", "alice", 1001, ("0",))
    assert read.urls == found.urls
