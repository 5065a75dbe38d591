# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs of the image jupyter: start-notebook.py and the health check."""

from __future__ import annotations

import json
import os
import runpy
import ssl
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "images/jupyter"
HEALTH = FOLDER / "jupyter_health.py"
START = FOLDER / "stacks/start-notebook.py"


@pytest.mark.parametrize(
    ("variables", "arguments", "command"),
    [
        ({}, "", "jupyter lab"),
        ({"NOTEBOOK_ARGS": ""}, "--port=1", "jupyter lab --port=1"),
        ({"NOTEBOOK_ARGS": "--a 'b c'"}, "--d", "jupyter lab --a|b c --d"),
        ({"DOCKER_STACKS_JUPYTER_CMD": "notebook"}, "", "jupyter notebook"),
        ({"RESTARTABLE": "yes"}, "", "run-one-constantly jupyter lab"),
        ({"RESTARTABLE": "no"}, "", "jupyter lab"),
        ({"JUPYTERHUB_API_TOKEN": "t"}, "--a", "jupyterhub-singleuser --a"),
    ],
)
def test_the_command_of_jupyter(variables: Mapping[str, str], arguments: str, command: str) -> None:
    found = runpy.run_path(str(START))["jupyter_command"](variables, arguments.split())
    assert " ".join(word.replace(" ", "|") for word in found) == (
        command.replace("|", " ").replace("b c", "b|c")
    )


def start_notebook(**variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(START)],
        env={"PATH": "/nowhere", **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def test_quotes_that_do_not_match_are_an_error_in_one_line() -> None:
    done = start_notebook(NOTEBOOK_ARGS="--a 'b")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "NOTEBOOK_ARGS: No closing quotation; expected arguments as in a shell\n"


def test_a_missing_program_is_named() -> None:
    done = start_notebook(JUPYTERHUB_API_TOKEN="t")
    assert done.returncode == 127
    assert "Executing: jupyterhub-singleuser" in done.stdout
    assert done.stderr.startswith("jupyterhub-singleuser: No such file or directory. ")


def test_the_certificate_is_created_once_and_only_its_owner_reads_the_key(tmp_path: Path) -> None:
    create = runpy.run_path(str(START))["create_certificate"]
    file = create(tmp_path / "new/folder")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(file)
    content = file.read_bytes()
    assert create(tmp_path / "new/folder").read_bytes() == content
    assert [path.name for path in file.parent.iterdir()] == ["notebook.pem"]


# The health check.


@pytest.mark.parametrize(
    ("command", "wanted"),
    [
        ("/opt/slipway/start jupyter lab", True),
        ("jupyter notebook", True),
        ("/opt/venv/bin/python /opt/venv/bin/jupyter-lab --port 1", True),
        ("tini -g -- /opt/slipway/start /usr/local/bin/start.sh start-notebook.py", True),
        ("/sbin/docker-init -- /opt/slipway/start /usr/local/bin/start.sh jupyter lab", True),
        ("bash /usr/local/bin/start.sh start-notebook.sh", True),
        ("/sbin/docker-init -- /opt/slipway/start run-one-constantly jupyter lab", True),
        ("/sbin/docker-init -- /opt/slipway/start python /code/jupyter_train.py", False),
        ("python /code/jupyter/train.py", False),
        ("jupyter nbconvert --to html notebook.ipynb", False),
        ("jupyter", False),
        ("/opt/slipway/start bash", False),
        ("bash -c jupyter", False),
        ("sleep infinity", False),
        ("", False),
    ],
)
def test_a_server_is_expected_only_where_the_command_starts_one(command: str, wanted: bool) -> None:
    assert runpy.run_path(str(HEALTH))["wants_server"](command.split()) is wanted


class Handler(BaseHTTPRequestHandler):
    """A Jupyter server that knows one path."""

    path_of_api = "/base/api"

    def do_GET(self) -> None:
        self.send_response(200 if self.path == self.path_of_api else 404)
        self.end_headers()

    def log_message(self, *_arguments: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Callable[[bool], int]]:
    """Return a function that starts a server and returns its port."""
    servers = []

    def start(secure: bool) -> int:
        made = HTTPServer(("127.0.0.1", 0), Handler)
        if secure:
            file = runpy.run_path(str(START))["create_certificate"](tmp_path / "certificate")
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(file)
            made.socket = context.wrap_socket(made.socket, server_side=True)
        servers.append(made)
        threading.Thread(target=made.serve_forever, daemon=True).start()
        return int(made.server_address[1])

    yield start
    for made in servers:
        made.shutdown()
        made.server_close()


@pytest.mark.parametrize("secure", [False, True], ids=["HTTP", "HTTPS"])
@pytest.mark.parametrize(("base", "code"), [("/base/", 0), ("/other/", 1)])
def test_the_health_check_asks_the_server_at_its_own_address(
    tmp_path: Path, server: Callable[[bool], int], secure: bool, base: str, code: int
) -> None:
    runtime = tmp_path / "runtime"
    runtime.mkdir()
    note = {"pid": os.getpid(), "port": server(secure), "secure": secure, "base_url": base}
    (runtime / "jpserver-1.json").write_text(json.dumps(note))
    done = subprocess.run(
        [sys.executable, str(HEALTH)],
        env={"JUPYTER_RUNTIME_DIR": str(runtime), "https_proxy": "http://192.0.2.1:1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
