# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""An alias and `ml` never end with a traceback, whatever environment, arguments and files they get.

Each example runs the program in a forked process, as a user without rights. `docker` is a script
and the engine a stand-in. SLIPWAY_EXAMPLES sets the number of random examples of each test; without
it the examples are the same in each run.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from ansible_collections.slipway.host.plugins.module_utils.ml import (
    commands,
    guard,
    main,
    settings,
)
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir

from tests.unit import alias_runner, fake_engine

# Exit statuses in docs/for-users.md; the docker command of these tests succeeds.
DOCUMENTED = {0, 1, 2, 125}
LIMIT_SECONDS = 5
MODULES = str(Path(main.__file__).parents[1])
EXAMPLES = int(os.environ.get("SLIPWAY_EXAMPLES", "0"))

# Root runs the examples as a user without rights.
USER = str(alias_runner.NOBODY if os.getuid() == 0 else os.getuid())

IMAGE = {
    "Id": "sha256:1",
    "Config": {"Env": ["HOME=/h"], "Labels": {"io.slipway.image": "lab"}},
    "Size": 5,
    "Created": "2026-11-20T04:00:00Z",
    "RepoTags": ["slipway/lab:cpu"],
}
CONTAINER = {
    "Name": "/me-lab",
    "Config": {
        "Labels": {"io.slipway.uid": USER},
        "Image": "slipway/lab:cpu",
    },
    "NetworkSettings": {"Ports": {}},
    "State": {"StartedAt": "2026-11-20T04:00:00Z", "Status": "running"},
}
DECLARATION: dict[str, Any] = {
    "contact": "Dana",
    "images": {"lab": "slipway/lab:cpu"},
    "cuda": {"slipway/lab:gpu": {"release": "13.2", "driver": 580}},
    "aliases": {
        "lab": {
            "names": ["laboratory"],
            "description": "A shell",
            "image": "lab",
            "variant": "gpu",
            "network": "bridge",
            "command": ["bash"],
            "ports": {"web": {"inside": 80, "path": "/?token={token}"}},
            "settings": {
                "image": "slipway/lab:cpu",
                "gpus": "free",
                "ports": {"web": 8888},
                "mounts": [
                    {"source": "~/code", "target": "/code"},
                    {"source": "/srv/closed", "target": "/data", "optional": True},
                ],
                "workdir": "/code/course",
            },
        }
    },
}


class World(NamedTuple):
    """The folder of the examples: homes, commands, and the socket of the engine."""

    folder: Path
    engine: fake_engine.FakeEngine
    runner: subprocess.Popen[str]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """A folder that any user can read, with odd files in it."""
    with tempfile.TemporaryDirectory(prefix="slipway-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        set_hypothesis_home_dir(str(folder / "hypothesis"))
        for path, mode in (("home", 0o777), ("closed", 0o000), ("bin", 0o755), ("empty", 0o755)):
            (folder / path).mkdir()
            (folder / path).chmod(mode)
        (folder / "file").write_text("text")
        os.mkfifo(folder / "pipe", 0o666)
        for program in ("docker", "zstd"):
            (folder / "bin" / program).write_text("#!/bin/sh\nexit 0\n")
            (folder / "bin" / program).chmod(0o755)
        with fake_engine.running(folder / "engine.sock", {}) as engine:
            (folder / "engine.sock").chmod(0o666)
            command = [sys.executable, alias_runner.__file__, MODULES, str(LIMIT_SECONDS)]
            with subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            ) as runner:
                yield World(folder, engine, runner)
                assert runner.stdin
                runner.stdin.close()
        (folder / "closed").chmod(0o700)


# The parts of an example.

TEXT = st.text(st.characters(exclude_categories=(), exclude_characters="\0"), max_size=20)
ODD_TEXT = st.one_of(
    TEXT.map(lambda text: text.encode(errors="replace").decode()),
    st.sampled_from(
        ["", "x" * 5000, "\\1", "a\nb", "²", "~", "~nobody", "-", "--", "\udcff", "%s"]
    ),
)
PATHS = st.one_of(
    st.sampled_from(
        ["home", "closed", "closed/below", "file", "file/below", "pipe", "missing", "missing/x"]
    ).map(lambda name: f"@/{name}"),
    st.sampled_from(["", "/", "relative", "/dev/null", "/proc/self/fd", "/" + "x" * 300, "/x\ny"]),
    ODD_TEXT,
)
VARIABLES = st.fixed_dictionaries(
    {},
    optional={
        "HOME": PATHS,
        "XDG_CONFIG_HOME": PATHS,
        "XDG_STATE_HOME": PATHS,
        "XDG_CACHE_HOME": PATHS,
        "XDG_RUNTIME_DIR": PATHS,
        "DOCKER_CONFIG": PATHS,
        "DOCKER_CONTEXT": ODD_TEXT,
        "PATH": st.one_of(PATHS, st.just("@/empty")),
        "TERM": ODD_TEXT,
        "COLUMNS": st.one_of(ODD_TEXT, st.integers(-5, 10).map(str)),
        "LC_ALL": st.sampled_from(["C", "POSIX", "C.UTF-8", "xx_XX", "en_US.ISO-8859-1"]),
        "SSH_CONNECTION": ODD_TEXT,
        "DISPLAY": st.one_of(ODD_TEXT, st.sampled_from([":0", "far:1", ":99999"])),
        "WAYLAND_DISPLAY": PATHS,
        "XAUTHORITY": PATHS,
    },
)
ENGINE_ADDRESSES = st.sampled_from(
    [
        *["unix://@/engine.sock"] * 8,
        *("", "unix://@/file", "unix://@/missing", "unix:///" + "x" * 200, "unix://relative"),
        *("tcp://127.0.0.1:1", "nonsense"),
    ]
)
NAMES = st.one_of(
    st.sampled_from(["lab", "laboratory", "me-lab", "slipway/lab:cpu", "all", "free", "0", "0:1"]),
    ODD_TEXT,
)
MOUNTS = st.tuples(PATHS, st.sampled_from(["", ":/t", ":/t:ro", ":ro:/t", ":t", ":/a:/b"])).map(
    "".join
)
OPTIONS = st.one_of(
    st.tuples(st.sampled_from(["--gpus", "--image", "--workdir", "--env", "-w", "-e"]), NAMES),
    st.tuples(st.sampled_from(["--volume", "-v"]), MOUNTS),
    st.tuples(
        st.just("--port"),
        st.one_of(ODD_TEXT, st.sampled_from(["web=9", "web=²", "web=" + "9" * 5000, "web", "x=1"])),
    ),
    st.sampled_from(
        ["--detach", "--quiet", "--root", "--print", "--print", "--print", "--help", "--", "-x"]
    ).map(lambda option: (option,)),
    ODD_TEXT.map(lambda word: (word,)),
)
ALIAS_WORDS = st.lists(OPTIONS, max_size=5).map(lambda groups: [word for g in groups for word in g])
ML_WORDS = st.one_of(
    st.tuples(st.sampled_from([*commands.VERBS, "--complete", "--help", "x"]), ALIAS_WORDS).map(
        lambda pair: [pair[0], *pair[1]]
    ),
    st.tuples(
        st.sampled_from(["run", "gui", "save", "load", "commit", "push", "stop", "logs", "remove"]),
        st.lists(st.one_of(NAMES, PATHS), max_size=3),
    ).map(lambda pair: [pair[0], *pair[1]]),
)
COMMANDS: st.SearchStrategy[tuple[str, list[str]]] = st.one_of(
    st.tuples(st.sampled_from(["lab", "laboratory"]), ALIAS_WORDS),
    st.tuples(st.just("ml"), ML_WORDS),
    st.tuples(ODD_TEXT, st.just([])),
)
FILES = st.one_of(
    st.binary(max_size=40),
    ODD_TEXT.map(lambda text: text.encode(errors="surrogateescape")),
    st.lists(
        st.tuples(
            st.one_of(
                st.sampled_from(
                    [*settings.CHECKS, "port.web", "port.", "env.A", "env.1", "/code", "/", "/a b"]
                ),
                TEXT,
            ),
            st.one_of(PATHS, MOUNTS, NAMES, st.sampled_from(["yes", "'a", "-v x", "9" * 5000])),
        ),
        max_size=4,
    ).map(
        lambda pairs: ("[lab]\n" + "\n".join(f"{key} = {value}" for key, value in pairs)).encode(
            errors="surrogateescape"
        )
    ),
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5)),
    lambda values: st.one_of(
        st.lists(values, max_size=2), st.dictionaries(st.text(max_size=5), values, max_size=2)
    ),
    max_leaves=5,
)
ANSWERS = st.fixed_dictionaries(
    {
        name: st.one_of(
            *[st.just(content)] * 6,
            st.tuples(
                st.sampled_from([200, 204, 404, 500]), st.one_of(JSON, st.binary(max_size=9))
            ),
        )
        for name, content in (
            ("GET /info", {"CDISpecDirs": ["/etc/cdi"]}),
            ("GET /images/json", [{"Id": "1"}]),
            ("GET /images/", IMAGE),
            ("GET /containers/json", [{"Id": "1", "Names": ["/a"], "State": "x", "Labels": {}}]),
            ("GET /containers/", CONTAINER),
            ("POST /containers/create", {"Id": "1"}),
            ("POST /", {}),
            ("DELETE /", {}),
        )
    }
)


class Example(NamedTuple):
    """One run of the program; ``@`` in texts is the folder of the world."""

    program: str
    words: list[str]
    variables: dict[str, str]
    settings_file: bytes | str | None = None
    declaration: Any = DECLARATION
    folder: str = "@/home"
    remove_folder: bool = False
    closed: frozenset[int] = frozenset()
    output: str = "@/output"


def run(world: World, example: Example) -> tuple[int, str]:
    """Run the program; return its exit status and its messages."""
    home = world.folder / "home"
    shutil.rmtree(home)
    home.mkdir()
    home.chmod(0o777)
    _write_settings(world, example.settings_file)
    declaration = world.folder / "aliases.json"
    declaration.write_text(json.dumps(example.declaration))
    messages = world.folder / "messages"

    def place(text: str) -> str:
        return text.replace("@", str(world.folder)).replace("\0", "")

    arguments = {
        "program": place(f"/usr/local/bin/{example.program}"),
        "words": list(map(place, example.words)),
        "variables": {name: place(value) for name, value in example.variables.items()},
        "declaration": str(declaration),
        "folder": place(example.folder),
        "remove_folder": example.remove_folder,
        "closed": sorted(example.closed),
        "messages": str(messages),
        "output": place(example.output),
    }
    assert world.runner.stdin and world.runner.stdout
    world.runner.stdin.write(json.dumps(arguments) + "\n")
    world.runner.stdin.flush()
    status = int(world.runner.stdout.readline())
    return status, messages.read_text(errors="replace")


def _write_settings(world: World, content: bytes | str | None) -> None:
    """Write the settings file of the user, or a link to the path CONTENT."""
    folder = world.folder / "home/.config/slipway"
    folder.mkdir(parents=True)
    file = folder / "aliases.ini"
    if isinstance(content, bytes):
        file.write_bytes(content.replace(b"@", str(world.folder).encode()))
    elif content is not None:
        file.symlink_to(content.replace("@", str(world.folder)))


def check(world: World, example: Example) -> None:
    """Run an example, and check its exit status and messages."""
    status, messages = run(world, example)
    assert status >= 0, f"ended by {signal.Signals(-status).name}"
    for words in ("Traceback", "internal error", "[Errno"):
        assert words not in messages, messages
    assert status in DOCUMENTED, (status, messages)
    output = world.folder / "output"
    if status in (1, 125) and not example.closed and example.output == "@/output":
        # ml doctor prints the reason as its result.
        assert (messages + output.read_text(errors="replace")).strip(), "an error has a message"


def environment(world: World, variables: dict[str, str]) -> dict[str, str]:
    """Return variables with which the program finds docker, the engine and the home folder."""
    return {
        "HOME": "@/home",
        "PATH": "@/bin",
        "DOCKER_HOST": f"unix://{world.folder}/engine.sock",
        **variables,
    }


GOOD_ANSWERS: dict[str, Any] = {
    "GET /info": {},
    "GET /images/json": [{"Id": "1"}],
    "GET /images/": IMAGE,
    "GET /containers/json": [],
    "POST /containers/create": {"Id": "1"},
    "DELETE /": {},
}


def examples(count: int) -> hypothesis_settings:
    """Return the settings of a test with COUNT examples."""
    return hypothesis_settings(
        max_examples=EXAMPLES or count,
        derandomize=not EXAMPLES,
        # The first example that fails is small enough; to reduce it takes minutes.
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@examples(150)
@given(command=COMMANDS, variables=VARIABLES, address=ENGINE_ADDRESSES, folder=PATHS)
def test_any_environment(
    world: World, command: Any, variables: dict[str, str], address: str, folder: str
) -> None:
    world.engine.answers = GOOD_ANSWERS
    here = folder if folder in ("@/home", "/", "@/empty") else "@/home"
    variables = {**environment(world, {"DOCKER_HOST": address}), **variables}
    check(world, Example(command[0], command[1], variables, folder=here))


@examples(150)
@given(command=COMMANDS, mounts=st.lists(MOUNTS, max_size=3), content=FILES)
def test_any_arguments_and_settings_file(
    world: World, command: Any, mounts: list[str], content: bytes
) -> None:
    world.engine.answers = GOOD_ANSWERS
    program, words = command
    volumes = [word for mount in mounts for word in ("--volume", mount)]
    words = [*words[:1], *volumes, *words[1:]] if program == "ml" else [*volumes, *words]
    check(world, Example(program, words, environment(world, {}), content))


@examples(100)
@given(command=COMMANDS, answers=ANSWERS)
def test_any_answer_of_the_engine(world: World, command: Any, answers: dict[str, Any]) -> None:
    world.engine.answers = answers
    check(world, Example(command[0], command[1], environment(world, {})))


def broken_declarations() -> st.SearchStrategy[Any]:
    """Return declarations of the host with one value replaced."""

    def replace_value(path: tuple[str, ...], value: Any) -> Any:
        copy = json.loads(json.dumps(DECLARATION))
        parent = copy
        for key in path[:-1]:
            parent = parent[key]
        parent[path[-1]] = value
        return copy

    alias = DECLARATION["aliases"]["lab"]
    keys = [
        *((key,) for key in DECLARATION),
        ("aliases", "lab"),
        ("cuda", "slipway/lab:gpu"),
        ("cuda", "slipway/lab:gpu", "release"),
        ("cuda", "slipway/lab:gpu", "driver"),
        *(("aliases", "lab", key) for key in alias),
        *(("aliases", "lab", "settings", key) for key in (*alias["settings"], "options", "env")),
    ]
    replaced = st.tuples(st.sampled_from(keys), JSON).map(lambda pair: replace_value(*pair))
    return st.one_of(replaced, JSON)


@examples(100)
@given(command=COMMANDS, declaration=broken_declarations())
def test_any_declaration_of_the_host(world: World, command: Any, declaration: Any) -> None:
    world.engine.answers = GOOD_ANSWERS
    check(world, Example(command[0], command[1], environment(world, {}), declaration=declaration))


@examples(60)
@given(
    command=COMMANDS,
    closed=st.frozensets(st.integers(0, 2)),
    output=st.sampled_from(["@/output", "/dev/full", "/dev/null"]),
    file=st.sampled_from(["@/pipe", "@/closed", "@/missing", "@/empty", "/dev/zero", "/dev/tty"]),
)
def test_any_streams_and_odd_files(
    world: World, command: Any, closed: frozenset[int], output: str, file: str
) -> None:
    world.engine.answers = GOOD_ANSWERS
    variables = environment(world, {})
    check(world, Example(command[0], command[1], variables, file, closed=closed, output=output))


@pytest.mark.parametrize("words", [[], ["--print"], ["-v", "x:/x"], ["--help"]])
@pytest.mark.parametrize("removed", [True, False])
def test_a_removed_or_closed_working_folder(world: World, words: list[str], removed: bool) -> None:
    world.engine.answers = GOOD_ANSWERS
    if removed:
        (world.folder / "removed").mkdir()
    variables = environment(world, {})
    folder = "@/removed" if removed else "@/closed"
    check(world, Example("lab", words, variables, folder=folder, remove_folder=removed))


def test_an_unexpected_error_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(settings, "read_host", fail)
    assert main.main("lab", []) == 125
    message = "lab: internal error: ZeroDivisionError('division by zero'). Report it to"
    assert capsys.readouterr().err.startswith(message)


def test_the_exit_statuses_are_documented() -> None:
    page = (Path(__file__).parents[2] / "docs/for-users.md").read_text()
    section = page.partition("## Exit codes")[2].partition("\n## ")[0]
    assert {main.EXIT_NOT_STARTED, main.EXIT_FAILED, 2} <= DOCUMENTED
    for status in sorted(DOCUMENTED):
        assert f"| {status} " in section
    assert guard.STOP_SECONDS == 10 and "10 seconds" in page
