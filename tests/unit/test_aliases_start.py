# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The start of a container by an alias: the docker command and its parts."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.ml import (
    accounts,
    api,
    containers,
    engine,
    gpus,
    guard,
    launch,
    reserve,
    settings,
    start,
    token,
)
from ansible_collections.slipway.host.plugins.module_utils.ml.caller import Caller
from ansible_collections.slipway.host.plugins.module_utils.ml.errors import MlError
from ansible_collections.slipway.host.plugins.module_utils.ml.gpus import Choice, Gpu
from ansible_collections.slipway.host.plugins.module_utils.ml.mounts import Mounted, mount_option

from tests.unit import fake_engine

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
SETTINGS: dict[str, Any] = {
    "image": "slipway/fastai:gpu",
    "gpus": "free",
    "ports": {"jupyter": 8888, "ssh": 2222},
}


def always(_name: object) -> bool:
    return True


FREE = launch.Reservations(port=always, name=always)


@pytest.fixture
def caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Caller:
    home = tmp_path / "alice"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    return Caller("alice", 1001, 1001, (2000,), home, home)


def assembled(
    caller: Caller,
    merged: Mapping[str, Any] | None = None,
    start_options: launch.Start | None = None,
    alias: settings.Alias = ALIAS,
    rootless: bool = False,
    names: Sequence[str] = (),
    choice: Choice | None = None,
    reservations: launch.Reservations = FREE,
    packages: str = "",
) -> launch.Launch:
    image = launch.Image("sha256:1", "/home/slipway", packages)
    docker = engine.Engine(rootless=rootless, cdi=False)
    situation = launch.Situation(caller, docker, image, names, choice or Choice(()))
    return launch.assemble_launch(
        alias,
        {**SETTINGS, **(merged or {})},
        start_options or launch.Start(),
        situation,
        reservations,
    )


def values(options: Sequence[str], option: str) -> list[str]:
    return [word.partition("=")[2] for word in options if word.startswith(f"--{option}=")]


def test_the_docker_command_has_all_options(caller: Caller) -> None:
    merged = {"mounts": [{"source": "~/code", "target": "/code"}], "workdir": "/code"}
    launched = assembled(caller, merged, launch.Start(("python", "train.py"), terminal=True))
    state = f"{caller.home}/.local/state/slipway/token"
    account = launched.accounts.folder if launched.accounts else None
    urls = '{"jupyter": "http://127.0.0.1:8888/lab?token={token}", "ssh": "127.0.0.1:2222"}'
    assert list(launched.words) == [
        *("docker", "run", "--rm", "--init", "--pull=never", "--interactive", "--tty"),
        *("--name=alice-fast_ai", "--hostname=fast-ai"),
        "--label=io.slipway.alias=fast_ai",
        "--label=io.slipway.user=alice",
        "--label=io.slipway.uid=1001",
        f"--label=io.slipway.urls={urls}",
        *("--user=1001:1001", "--group-add=2000"),
        *("--publish=127.0.0.1:8888:8888", "--publish=127.0.0.1:2222:22"),
        f"--mount=type=bind,source={caller.home}/code,target=/code",
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
    assert launched.folders == (caller.home / "code",)


@pytest.mark.parametrize(
    ("data_home", "mounts", "root", "source"),
    [
        ("", [], False, "{home}/.local/share/slipway/packages/fast_ai"),
        ("/srv/data of alice", [], False, "/srv/data of alice/slipway/packages/fast_ai"),
        ("relative", [], False, "{home}/.local/share/slipway/packages/fast_ai"),
        ("", [{"source": "~/mine", "target": "/opt/user"}], False, "{home}/mine"),
        ("", [], True, ""),
    ],
    ids=["default", "XDG_DATA_HOME", "relative XDG_DATA_HOME", "own mount", "root"],
)
def test_packages_of_pip_are_in_a_folder_of_the_caller(
    caller: Caller,
    monkeypatch: pytest.MonkeyPatch,
    data_home: str,
    mounts: list[Mapping[str, str]],
    root: bool,
    source: str,
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", data_home)
    launched = assembled(caller, {"mounts": mounts}, launch.Start(root=root), packages="/opt/user")
    folder = source.format(home=caller.home)
    mounted = [word for word in values(launched.options, "mount") if "target=/opt/user" in word]
    assert mounted == ([f"type=bind,source={folder},target=/opt/user"] if folder else [])
    assert launched.folders == ((Path(folder),) if folder else ())


@pytest.mark.parametrize(
    ("mounts", "workdir", "folders"),
    [
        ([("~/code", "/code")], "/code/new/folder", ["code", "code/new/folder"]),
        ([("~/code", "/code")], "/code/../etc", ["code"]),
        ([("~/code", "/code")], "/codes", ["code"]),
        ([("~/code", "/code")], "/code", ["code"]),
        (
            [("~/code", "/code"), ("~/other", "/code/sub/other")],
            "",
            ["code", "other", "code/sub/other"],
        ),
        ([("~/a", "/a"), ("~/b", "/a/b")], "/a/b/c", ["a", "b", "a/b", "b/c"]),
    ],
)
def test_no_folder_in_a_home_is_left_for_docker_to_create(
    caller: Caller, mounts: list[tuple[str, str]], workdir: str, folders: list[str]
) -> None:
    entries = [{"source": source, "target": target} for source, target in mounts]
    launched = assembled(caller, {"mounts": entries}, launch.Start(workdir=workdir))
    assert launched.folders == tuple(caller.home / name for name in folders)


def test_a_file_is_mounted_on_an_empty_file_of_the_caller(caller: Caller) -> None:
    (caller.home / "settings").write_text("a")
    entries = [
        {"source": "~/code", "target": "/code"},
        {"source": "~/settings", "target": "/code/new/settings"},
    ]
    launched = assembled(caller, {"mounts": entries})
    assert launched.folders == (caller.home / "code",)
    assert launched.files == (caller.home / "code/new/settings",)
    start.create_files(engine.Docker("Dana"), launched._replace(accounts=None, urls={}))
    assert (caller.home / "code/new/settings").read_bytes() == b""


def test_a_folder_that_is_mounted_read_only_gets_no_new_folder(caller: Caller) -> None:
    entries = [{"source": "~/code", "target": "/code", "read_only": True}]
    launched = assembled(caller, {"mounts": entries}, launch.Start(workdir="/code/new"))
    assert launched.folders == (caller.home / "code",)


def test_an_image_without_pip_gets_no_folder_for_packages(caller: Caller) -> None:
    assert "packages" not in " ".join(assembled(caller).options)


def test_the_printed_command_is_the_command_that_runs(caller: Caller) -> None:
    launched = assembled(
        caller, {"options": ["--ulimit", "memlock=-1"], "environment": {"A": "b 'c'"}}
    )
    printed = start.format_command(launched)
    completed = subprocess.run(
        ["sh", "-c", f'docker() {{ printf "%s\\n" docker "$@"; }}; {printed}'],
        capture_output=True,
        text=True,
        check=True,
    )
    assert completed.stdout.splitlines() == list(launched.words)
    assert "\\\n    --ulimit memlock=-1 \\\n" in printed
    assert printed.endswith("\\\n    slipway/fastai:gpu bash")


@pytest.mark.parametrize(
    ("start_options", "attached"),
    [
        (launch.Start(), ["--interactive"]),
        (launch.Start(terminal=True), ["--interactive", "--tty"]),
        (launch.Start(("j8",), detach=True), ["--detach"]),
        (launch.Start(detach=True), ["--detach", "--interactive", "--tty"]),
    ],
    ids=["script", "person", "background", "shell in the background"],
)
def test_a_person_gets_a_terminal(
    caller: Caller, start_options: launch.Start, attached: list[str]
) -> None:
    options = assembled(caller, start_options=start_options).options
    assert [word for word in options if word in ("--detach", "--interactive", "--tty")] == attached


def test_the_caller_is_root_in_containers_of_a_rootless_engine(caller: Caller) -> None:
    launched = assembled(caller, rootless=True)
    assert values(launched.options, "user") == ["0:0"]
    assert not values(launched.options, "group-add")
    assert launched.accounts is None


def test_option_root_mounts_no_folder_of_the_caller(caller: Caller) -> None:
    merged = {"mounts": [{"source": "~/code", "target": "/code"}], "workdir": "/code"}
    launched = assembled(caller, merged, launch.Start(root=True))
    assert values(launched.options, "user") == ["0:0"]
    assert not any("target=/code" in mount for mount in values(launched.options, "mount"))
    assert "--cap-drop=ALL" not in launched.options
    assert launched.folders == ()


def test_a_second_container_has_another_name(caller: Caller) -> None:
    assert assembled(caller, names=["alice-fast_ai", "bob-fast_ai"]).name == "alice-fast_ai-2"
    reserved = launch.Reservations(port=always, name=lambda name: name != "name/alice-fast_ai")
    assert assembled(caller, reservations=reserved).name == "alice-fast_ai-2"


@pytest.mark.parametrize(
    ("user", "name"),
    [("alice", "alice-x"), ("LAB\\al", "LAB-al-x"), ("a@lab", "a-lab-x"), ("_svc", "svc-x")],
)
def test_container_names_are_valid(user: str, name: str) -> None:
    assert launch.container_name(user, "x") == name


# Ports.


def test_the_next_free_port_is_used_and_reported(caller: Caller) -> None:
    launched = assembled(
        caller, reservations=launch.Reservations(lambda port: port not in (8888, 8889), always)
    )
    assert values(launched.options, "publish") == ["127.0.0.1:8890:8888", "127.0.0.1:2222:22"]
    assert launched.urls["jupyter"] == "http://127.0.0.1:8890/lab?token={token}"
    assert launched.notes == ("port 8888 is in use; jupyter is at port 8890",)


def test_no_free_port_is_an_error(caller: Caller) -> None:
    with pytest.raises(MlError, match="no free port from 8888 to 8987"):
        assembled(caller, reservations=launch.Reservations(lambda _port: False, always))


@pytest.mark.parametrize(
    ("network", "published", "urls"),
    [
        ("none", [], []),
        ("host", [], ["http://127.0.0.1:8888/lab?token={token}", "127.0.0.1:22"]),
    ],
)
def test_other_networks_publish_nothing(
    caller: Caller, network: str, published: list[str], urls: list[str]
) -> None:
    launched = assembled(caller, alias=ALIAS._replace(network=network))
    assert values(launched.options, "network") == [network]
    assert values(launched.options, "publish") == published
    assert list(launched.urls.values()) == urls


def test_ports_of_other_aliases_are_ignored(caller: Caller) -> None:
    launched = assembled(caller, {"ports": {"board": 6006}})
    assert not values(launched.options, "publish") and not launched.urls
    assert not launched.needs_token


def test_listening_and_reserved_ports_are_in_use() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        server.listen()
        assert reserve.is_listening(port)
        assert not reserve.reserve_port(port)
    assert reserve.reserve_port(port)
    assert not reserve.reserve_port(port), "reserved by this very process"


def test_a_reservation_lasts_until_the_next_program_ends(tmp_path: Path) -> None:
    name = f"test/{os.getpid()}"
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[1]);"
        f"from ml import reserve; assert reserve.reserve({name!r});"
        "os.execvp('sleep', ['sleep', '30'])"
    )
    folder = Path(reserve.__file__).parents[1]
    with subprocess.Popen([sys.executable, "-c", code, str(folder)]) as holder:
        try:
            deadline = time.monotonic() + 10
            while Path(f"/proc/{holder.pid}/comm").read_text() != "sleep\n":
                assert time.monotonic() < deadline
                time.sleep(0.02)
            assert not reserve.reserve(name)
        finally:
            holder.kill()
    assert reserve.reserve(name), "free once the holder is gone"


# Folders.


def test_only_missing_folders_in_the_home_folder_are_created(
    caller: Caller, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    entries: list[dict[str, Any]] = [
        {"source": "~/a b", "target": "/code"},
        {"source": str(shared), "target": "/shared", "read_only": True},
        {"source": "/nowhere", "target": "/x", "optional": True},
    ]
    mounts, missing = launch.resolve_mounts(entries, caller)
    assert missing == [caller.home / "a b"]
    assert mounts == [
        Mounted(caller.home / "a b", PurePosixPath("/code")),
        Mounted(shared, PurePosixPath("/shared"), read_only=True),
    ]
    with pytest.raises(
        MlError, match=r"folder /nowhere does not exist, or .* source of the mount at /x"
    ):
        launch.resolve_mounts([{"source": "/nowhere", "target": "/x"}], caller)


@pytest.mark.parametrize(
    ("source", "option"),
    [
        ("/a", "--mount=type=bind,source=/a,target=/t"),
        ("/a,b", '--mount=type=bind,"source=/a,b",target=/t'),
        ('/a"b', '--mount=type=bind,"source=/a""b",target=/t'),
    ],
)
def test_mount_options_are_quoted_as_csv(source: str, option: str) -> None:
    assert mount_option(Mounted(Path(source), PurePosixPath("/t"))) == option


@pytest.mark.parametrize(
    ("current", "requested", "default", "folder", "note"),
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
    ids=["mounted", "root of a mount", "deepest mount", "default", "default missing", "image's own",
         "default in the image", "requested"],
)  # fmt: skip
def test_the_working_folder_of_a_start(
    caller: Caller, current: str, requested: str, default: str, folder: str, note: str
) -> None:
    for name in ("code/mine/deep", "code/data/x"):
        (caller.home / name).mkdir(parents=True)
    mounts = [
        Mounted(caller.home / "code", PurePosixPath("/code")),
        Mounted(caller.home / "code/data", PurePosixPath("/data")),
    ]
    result, result_note = launch.working_folder(
        requested, default, mounts, caller._replace(folder=(caller.home / current).resolve())
    )
    assert result == folder
    assert note in result_note and bool(note) == bool(result_note)


# GPUs.

LISTED = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-aa)
  MIG 1g.5gb      Device  0: (UUID: MIG-a0)
  MIG 2g.10gb     Device  1: (UUID: MIG-a1)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-bb)
"""
TWO = [Gpu("0", "A", "GPU-0"), Gpu("1", "A", "GPU-1")]
PARTS = [Gpu("0:0", "A", "MIG-0"), Gpu("0:1", "A", "MIG-1"), Gpu("1", "A", "GPU-1")]


def test_gpus_and_mig_parts_are_listed() -> None:
    assert gpus.parse_gpus(LISTED) == [
        Gpu("0:0", "NVIDIA A100-SXM4-40GB, MIG 1g.5gb", "MIG-a0"),
        Gpu("0:1", "NVIDIA A100-SXM4-40GB, MIG 2g.10gb", "MIG-a1"),
        Gpu("1", "NVIDIA H100 80GB HBM3", "GPU-bb"),
    ]
    assert gpus.parse_gpus("") == []


@pytest.mark.parametrize(
    ("setting", "host_gpus", "users", "ids", "message"),
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
def test_gpus_are_chosen_for_a_container(
    setting: str,
    host_gpus: list[Gpu],
    users: dict[str, str],
    ids: tuple[str, ...],
    message: str,
) -> None:
    choice = gpus.choose_gpus(setting, "gpu", host_gpus, users, always)
    assert choice.ids == ids
    assert message in choice.note + choice.warning
    assert bool(message) == bool(choice.note or choice.warning)


def test_cpu_images_get_no_gpu_and_a_missing_gpu_is_an_error() -> None:
    choice = gpus.choose_gpus("free", "cpu", TWO, {}, always)
    assert choice == Choice(
        (), note="the image has no gpu variant; the container runs without a GPU"
    )
    with pytest.raises(MlError, match="no GPU 4 on this host; expected one of: 0, 1"):
        gpus.choose_gpus("4", "gpu", TWO, {}, always)


def test_a_gpu_reserved_by_another_start_is_not_free() -> None:
    assert gpus.choose_gpus("free", "gpu", TWO, {}, lambda gpu: gpu != "0").ids == ("1",)
    choice = gpus.choose_gpus("free", "gpu", TWO, {}, lambda _gpu: False)
    assert "0: starting" in choice.warning


def test_the_user_of_a_gpu_is_a_container_or_process() -> None:
    users = gpus.find_users(TWO, {"GPU-0": "alice's process 7"}, {"bob-x": ["1"]})
    assert users == {"0": "alice's process 7", "1": "bob-x"}


@pytest.mark.parametrize(
    ("ids", "cdi", "options"),
    [
        ((), True, []),
        (("0", "1"), True, ["--device=nvidia.com/gpu=0", "--device=nvidia.com/gpu=1"]),
        (("0", "1"), False, ['--gpus="device=0,1"']),
    ],
)
def test_gpu_options_of_docker(ids: tuple[str, ...], cdi: bool, options: list[str]) -> None:
    assert gpus.gpu_options(ids, cdi) == options


def test_gpus_are_in_labels_and_messages(caller: Caller) -> None:
    launched = assembled(caller, choice=Choice(("0", "1")))
    assert "--label=io.slipway.gpus=0,1" in launched.options
    assert '--gpus="device=0,1"' in launched.options
    lines = start.start_messages(launched, terminal=True, quiet=False, format_url=str)
    assert "starting container alice-fast_ai on GPU 0, 1" in lines


# Messages.


def test_addresses_are_shown_only_on_terminals(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    choice = Choice((), note="no GPU", warning="all busy")
    launched = assembled(caller, choice=choice)
    secret = {"format_url": lambda url: url.replace("{token}", "5ecret")}
    assert start.start_messages(launched, False, False, **secret) == ["all busy", "no GPU"]
    assert start.start_messages(launched, True, True, **secret) == ["all busy"]
    assert start.start_messages(launched, True, False, **secret) == [
        "all busy",
        "no GPU",
        "starting container alice-fast_ai",
        "jupyter at http://127.0.0.1:8888/lab?token=5ecret",
        "ssh at 127.0.0.1:2222",
    ]
    monkeypatch.setenv("SSH_CONNECTION", "192.0.2.1 1 192.0.2.2 22")
    tunnel = start.start_messages(launched, True, False, **secret)[-1]
    assert "ssh -L 8888:127.0.0.1:8888 -L 2222:127.0.0.1:2222 " in tunnel
    assert "5ecret" not in tunnel


# Files that are created before the start.


def test_the_token_is_created_once_and_private(caller: Caller) -> None:
    with pytest.raises(MlError, match="The next start of an alias creates it"):
        token.read_token()
    path = token.ensure_token()
    first = token.read_token()
    assert len(first) == 48
    assert path.read_text() == first, "Jupyter would read a newline as a part of the token"
    assert path.stat().st_mode & 0o777 == 0o600
    assert token.ensure_token() == path and token.read_token() == first
    assert [file.name for file in path.parent.iterdir()] == ["token"]


def test_a_token_that_cannot_be_written_is_an_error(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/none")
    with pytest.raises(MlError, match="cannot write your token"):
        token.ensure_token()


def test_the_caller_is_added_to_the_accounts_of_the_image(caller: Caller) -> None:
    image_file = (
        "root:x:0:0:root:/root:/bin/sh\nslipway:x:1001:1000::/home/slipway:/bin/sh\nbroken\n"
    )
    lines = ["alice:x:1001:1001:alice:/home/slipway:/bin/bash"]
    assert accounts.merge_accounts(image_file, lines).splitlines() == [
        "root:x:0:0:root:/root:/bin/sh",
        "alice:x:1001:1001:alice:/home/slipway:/bin/bash",
    ]


def test_account_files_are_written_once_for_an_image(caller: Caller) -> None:
    asked: list[str] = []

    def read(image: str, paths: Sequence[str]) -> dict[str, str]:
        asked.append(image)
        return dict.fromkeys(paths, "root:x:0:0:root:/root:/bin/sh\n")

    member = caller._replace(gid=123456, groups=(123457,))
    account = accounts.caller_accounts("sha256:1", "/home/slipway", member)
    accounts.write_accounts(account, read)
    accounts.write_accounts(account, read)
    assert asked == ["sha256:1"]
    assert "alice:x:1001:123456:alice:/home/slipway:/bin/bash" in (
        (account.folder / "passwd").read_text()
    )
    assert "group-123457:x:123457:" in (account.folder / "group").read_text()
    other = account._replace(image="sha256:2")
    os.utime(account.folder, (0, 0))
    (account.folder.parent / "a file of the user").touch()
    accounts.write_accounts(other, read)
    assert not account.folder.exists(), "old files are removed"
    assert (other.folder / "passwd").exists()


# The command line.


def arguments(*words: str) -> Any:
    alias = ALIAS._replace(settings={"image": "i", "mounts": [{"source": "~", "target": "/h"}]})
    return start.build_parser("fast_ai", alias).parse_args(words)


def test_words_after_the_command_belong_to_the_command() -> None:
    parsed = arguments("--gpus", "0", "python", "x.py", "--gpus", "1", "--help")
    assert parsed.gpus == "0"
    assert parsed.command == ["python", "x.py", "--gpus", "1", "--help"]


def test_options_of_the_command_line_are_settings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    parsed = arguments(
        *("--gpus", "all", "--image", "me/x", "-v", "out:/out", "-v", "~/d:/data:ro"),
        *("--port", "jupyter=9000", "--quiet", "-e", "A=1", "-e", "HF_TOKEN"),
    )
    assert start.command_line_layer(parsed, ALIAS) == {
        "gpus": "all",
        "image": "me/x",
        "quiet": True,
        "mounts": [
            {"source": str(tmp_path / "out"), "target": "/out", "read_only": False},
            {"source": "~/d", "target": "/data", "read_only": True},
        ],
        "ports": {"jupyter": 9000},
    }
    assert parsed.env == ["A=1", "HF_TOKEN"]


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
def test_invalid_options_are_errors(words: Sequence[str], message: str) -> None:
    with pytest.raises(MlError) as caught:
        start.command_line_layer(arguments(*words), ALIAS)
    assert message in str(caught.value)


class Docker(engine.Docker):
    """Answers requests by the first characters of the path; no other image exists."""

    def __init__(self, answers: Mapping[str, Any]) -> None:
        super().__init__("Dana")
        self.answers = answers
        self.requests: list[api.Request] = []

    def send(self, *requests: api.Request) -> list[api.Answer]:
        self.requests += requests
        contents = [
            next((self.answers[key] for key in self.answers if request.path.startswith(key)), None)
            for request in requests
        ]
        return [
            api.Answer(404 if content is None else 200, json.dumps(content).encode())
            for content in contents
        ]


ANSWERS: dict[str, Any] = {
    "/images/slipway/fastai:gpu/json": {"Id": "sha256:1", "Config": {"Env": ["HOME=/h"]}},
    "/info": {},
    "/containers/json": [{"Names": ["/alice-fast_ai"], "State": "running", "Labels": {}}],
}


def test_print_shows_and_changes_nothing(
    caller: Caller, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(caller.home))
    alias = ALIAS._replace(settings={**SETTINGS, "mounts": [{"source": "~/code", "target": "/c"}]})
    parsed = start.build_parser("fast_ai", alias).parse_args(["--print", "-q", "--", "nvidia-smi"])
    before = sorted(caller.home.rglob("*"))
    docker = Docker(ANSWERS)
    assert start.start(docker, alias, parsed) == 0
    printed = capsys.readouterr()
    assert "slipway/fastai:gpu nvidia-smi\n" in printed.out
    assert "-fast_ai" in printed.out and "io.slipway.start" not in printed.out
    assert printed.err == ""
    assert sorted(caller.home.rglob("*")) == before
    assert {request.method for request in docker.requests} == {"GET"}


def test_a_missing_image_names_the_contact(caller: Caller) -> None:
    alias = ALIAS._replace(settings={**SETTINGS, "image": "slipway/gone:gpu"})
    with pytest.raises(MlError, match=r"slipway/gone:gpu is not on this host. Tell Dana"):
        start.start(Docker(ANSWERS), alias, start.build_parser("fast_ai", alias).parse_args([]))


def test_a_program_runs_to_its_end() -> None:
    docker = Docker({})
    assert start.run_to_end(docker, [sys.executable, "-c", "raise SystemExit(7)"]) == 7
    killed = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    assert start.run_to_end(docker, killed) == 137


def test_labels_are_read_back(caller: Caller) -> None:
    """The other commands read the labels that an alias writes."""
    launched = assembled(caller, choice=Choice(("0",)))
    labels = dict(word.split("=", 1) for word in values(launched.options, "label"))
    container = containers.parse_container(
        {
            "Name": "/alice-fast_ai",
            "Config": {"Labels": labels, "Image": "slipway/fastai:gpu"},
            "NetworkSettings": {"Ports": {}},
            "State": {"StartedAt": "2026-11-20T05:00:00Z", "Status": "running"},
        }
    )
    assert (container.alias, container.user, container.uid, container.gpus) == (
        "fast_ai",
        "alice",
        1001,
        ("0",),
    )
    assert container.urls == launched.urls


# The end of a container with its client.


def test_only_streams_with_a_reader_are_watched(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    near, far = socket.socketpair()
    with near, far, (tmp_path / "log").open("w") as log, Path(os.devnull).open("w") as null:
        terminal, shell = os.openpty()
        descriptors = [writer, near.fileno(), log.fileno(), null.fileno(), shell, 99999]
        assert guard.output_streams(descriptors) == {writer, near.fileno(), shell}
    for descriptor in (reader, writer, terminal, shell):
        os.close(descriptor)


def test_a_connection_is_lost_when_no_output_has_a_reader() -> None:
    with subprocess.Popen(["sleep", "60"]) as client:
        pidfd = os.pidfd_open(client.pid)
        reader, writer = os.pipe()
        near, far = socket.socketpair()
        try:
            os.close(reader)
            far.close()
            assert guard.wait_for_end(pidfd, frozenset({writer, near.fileno()}))
            assert not guard.has_ended(pidfd)
        finally:
            client.kill()
        reader, other_writer = os.pipe()
        # One output still has a reader: only the end of the client counts.
        assert not guard.wait_for_end(pidfd, frozenset({writer, other_writer}))
        assert guard.has_ended(pidfd)
        near.close()
        for descriptor in (writer, reader, other_writer, pidfd):
            os.close(descriptor)


def test_a_container_without_a_client_is_stopped_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/engine.sock")
    monkeypatch.setattr(guard, "POLL_SECONDS", 0.01)
    listing = 'GET /containers/json\\?all=1&filters={"label": \\["io.slipway.start=7"\\]}'
    answers: dict[str, Any] = {
        listing: [],
        "POST /containers/7f/stop": (204, b""),
        "DELETE /containers/7f": (404, {"message": "already removed"}),
    }
    with fake_engine.running(tmp_path / "engine.sock", answers) as server:
        assert guard.find_containers("io.slipway.start=7", 0, lambda: True) == []
        assert len(server.requests) == 1, "the container ended before its client"

        def is_ended() -> bool:
            # The engine has created the container only now.
            server.answers[listing] = [{"Id": "7f"}]
            return False

        assert guard.find_containers("io.slipway.start=7", 0, is_ended) == ["7f"]
        guard.end_containers(["7f"])
        assert server.requests[-2:] == [
            "POST /containers/7f/stop?t=10",
            "DELETE /containers/7f?force=1&v=1",
        ]
    # Without an engine the attempt ends.
    assert guard.find_containers("io.slipway.start=7", 60, lambda: False) == []
    guard.end_containers(["7f"])


def test_a_restart_of_the_engine_does_not_end_containers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "RESTART_SECONDS", 0.1)
    monkeypatch.setattr(guard, "POLL_SECONDS", 0.01)
    near, far = socket.socketpair()
    with near, far:
        far.sendall(b"HTTP/1.0 200 OK")
        assert not guard.has_engine_restarted(near)
        far.close()
        assert guard.has_engine_restarted(near)
    assert guard.has_engine_restarted(None)


@pytest.mark.parametrize("lost", ["client", "connection"])
def test_the_guard_of_a_start_stops_its_container(tmp_path: Path, lost: str) -> None:
    answers: dict[str, Any] = {
        "GET /containers/json": [{"Id": "7f"}],
        "POST /containers/7f/stop": (204, b""),
        "DELETE /containers/7f": (204, b""),
        'GET /events\\?filters={"label": \\["io.slipway.start=7"\\]': fake_engine.ENDLESS,
    }
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[1]);"
        "from ml import guard; guard.start_guard('io.slipway.start=7');"
        "os.execvp('sleep', ['sleep', '30'])"
    )
    folder = str(Path(guard.__file__).parents[1])
    variables = {**os.environ, "DOCKER_HOST": f"unix://{tmp_path}/engine.sock"}
    with fake_engine.running(tmp_path / "engine.sock", answers) as server:
        client = subprocess.Popen(
            [sys.executable, "-c", code, folder],
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert client.stdout is not None
        while Path(f"/proc/{client.pid}/comm").read_text() != "sleep\n":
            time.sleep(0.02)
        if lost == "client":
            client.kill()
            # The guard writes nothing, and does not keep the reader of the output waiting.
            assert client.stdout.read() == b""
        client.stdout.close()
        while "DELETE /containers/7f?force=1&v=1" not in server.requests:
            time.sleep(0.02)
        client.kill()
        client.wait()


def test_a_command_under_nohup_has_no_guard() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert guard.survives_hangup()
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        assert not guard.survives_hangup()
    finally:
        signal.signal(signal.SIGHUP, before)


# Ended containers.


def ended(name: str, day: int, uid: int = 1001) -> containers.Container:
    return containers.Container(
        *(name, "i", "fast_ai", "alice", uid, "", (), {}, "", ""),
        ended=f"2026-11-{day:02}T04:00:00.1Z",
        status=0,
    )


def test_ended_containers_are_limited_by_number_and_age(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 1001)
    now = datetime(2026, 11, 27, tzinfo=timezone.utc)
    kept = [ended(f"new-{number}", 26) for number in range(containers.KEEP_ENDED)]
    foreign, old, one_more = ended("foreign", 1, uid=7), ended("old", 1), ended("one-more", 25)
    assert containers.expired([*kept, foreign], now) == []
    assert containers.expired([*kept[1:], old, foreign], now) == [old]
    assert containers.expired([*kept, one_more], now) == [one_more]


def test_running_containers_precede_ended_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 1001)
    running, old = ended("running", 26)._replace(ended="", status=None), ended("old", 25)
    assert containers.select_container([running], "fast_ai", "see it", [old]) == running
    assert containers.select_container([running], "old", "see it", [old]) == old
    assert containers.select_container([], None, "see it", [old]) == old
    with pytest.raises(MlError, match=r"you have 2 containers. Name one of: old, older"):
        containers.select_container([], None, "see it", [old, ended("older", 24)])
    with pytest.raises(MlError, match=r"you have no container older. Did you mean old\?"):
        containers.select_container([], "older", "see it", [old])


@pytest.mark.parametrize(
    ("status", "code", "ended"),
    [
        ("exited", 3, "2026-11-02T00:00:00Z"),
        ("dead", 137, "2026-11-02T00:00:00Z"),
        # `docker run --detach` of a program that does not exist.
        ("created", 127, "2026-11-01T00:00:00Z"),
        # Another start is between the creation and the start of its container.
        ("created", 0, ""),
        ("running", 0, ""),
        ("restarting", 1, ""),
    ],
)
def test_a_container_that_never_started_has_ended(status: str, code: int, ended: str) -> None:
    finished = "0001-01-01T00:00:00Z" if status == "created" else "2026-11-02T00:00:00Z"
    found = containers.parse_container(
        {
            "Name": "/job",
            "Created": "2026-11-01T00:00:00Z",
            "Config": {"Labels": {"io.slipway.uid": "1001"}, "Image": "i"},
            "NetworkSettings": {"Ports": {}},
            "State": {
                "StartedAt": "0001-01-01T00:00:00Z",
                "FinishedAt": finished,
                "ExitCode": code,
                "Status": status,
            },
        }
    )
    assert (found.ended, found.status) == (ended, code if ended else None)


def test_a_detached_start_removes_expired_containers(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 1001)
    inspected = {
        "Name": "/old",
        "Config": {"Labels": {"io.slipway.uid": "1001"}, "Image": "i"},
        "NetworkSettings": {"Ports": {}},
        "State": {
            "StartedAt": "2020-01-01T00:00:00Z",
            "FinishedAt": "2020-01-02T00:00:00Z",
            "ExitCode": 3,
            "Status": "exited",
        },
    }
    docker = Docker({"/containers/json": [{"Id": "1"}], "/containers/1/json": inspected})
    start.remove_expired(docker)
    assert docker.requests[-1] == api.Request("/containers/old?v=1", "DELETE")
