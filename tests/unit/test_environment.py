# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a login sets or prints does not change what Slipway runs on a host."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible_collections.slipway.host.plugins.module_utils.host import environment
from ansible_collections.slipway.host.plugins.plugin_utils import host_command

# Settings of an account, each of which changed the result of a program that Slipway runs.
FOREIGN = {
    "DOCKER_HOST": "tcp://other:2375",
    "DOCKER_CONTEXT": "other",
    "DOCKER_CONFIG": "/home/eve/.docker",
    "BUILDX_BUILDER": "other",
    "COMPOSE_FILE": "/home/eve/compose.yaml",
    "COMPOSE_PROJECT_NAME": "other",
    "BASH_ENV": "/home/eve/start",
    "ENV": "/home/eve/start",
    "PYTHONPATH": "/home/eve",
    "PYTHONHOME": "/home/eve",
    "LD_LIBRARY_PATH": "/home/eve",
    "LD_PRELOAD": "",
    "APT_CONFIG": "/home/eve/apt.conf",
    "PIP_INDEX_URL": "https://other.example/simple",
    "PIP_CONFIG_FILE": "/home/eve/pip.conf",
    "GIT_DIR": "/home/eve/.git",
    "GIT_SSH_COMMAND": "false",
    "TAR_OPTIONS": "--exclude=*",
    "TMPDIR": "/home/eve",
    "LANG": "de_DE.UTF-8",
    "LC_MESSAGES": "de_DE.UTF-8",
    "LANGUAGE": "de",
    "DEBIAN_FRONTEND": "dialog",
    "HOME": "/home/eve",
    "PATH": "/home/eve/bin",
}
PROXY = {"https_proxy": "http://proxy:3128", "NO_PROXY": "lab", "SSL_CERT_FILE": "/etc/ca.pem"}


def test_only_the_settings_of_slipway_and_of_the_network_remain() -> None:
    script = (
        f"{Path(environment.__file__).read_text()}\n"
        "apply()\n"
        "import json\n"
        "print(json.dumps([dict(os.environ), os.umask(0)]))\n"
    )
    foreign = {name: text for name, text in FOREIGN.items() if name != "PYTHONHOME"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**foreign, **PROXY},
        capture_output=True,
        check=True,
        umask=0o077,
    )
    remaining, umask = json.loads(done.stdout)
    assert umask == 0o022
    assert remaining.pop("HOME") == pwd.getpwnam(remaining.pop("USER")).pw_dir
    del remaining["LOGNAME"]
    assert remaining == {**environment.FIXED, **PROXY}


def connection(before: str, after: str, **settings: str) -> Any:
    """Return an action whose host prints BEFORE and AFTER around each command, as a login may."""

    def execute(command: str, in_data: bytes, **_: Any) -> dict[str, Any]:
        script = f"printf %s '{before}'\n({command})\nstatus=$?\nprintf %s '{after}'\nexit $status"
        environ = {**os.environ, **settings}
        done = subprocess.run(
            ["/bin/sh", "-c", script], input=in_data, capture_output=True, env=environ, umask=0o077
        )
        return {
            "rc": done.returncode,
            "stdout": done.stdout.decode(),
            "stderr": done.stderr.decode(),
        }

    return SimpleNamespace(_low_level_execute_command=execute)


@pytest.mark.parametrize(
    ("before", "after"),
    [("", ""), ("Welcome to node\n", ""), ('{"facts": {}}\n', "logout\n"), ("no line end", "bye")],
)
@pytest.mark.parametrize("text", ["", "one line", "two\nlines\n"])
def test_the_output_is_found_whatever_else_the_login_prints(
    before: str, after: str, text: str
) -> None:
    reply = host_command.run(connection(before, after), "cat", text.encode())
    assert (reply.status, reply.output) == (0, text)


def test_a_command_runs_with_the_settings_of_slipway() -> None:
    command = 'echo "$DOCKER_HOST $BUILDX_BUILDER $LC_ALL $(umask)"'
    reply = host_command.run(connection("", "", **FOREIGN), command)
    assert reply.output == "unix:///run/docker.sock default C.UTF-8 0022\n"


def test_a_failure_keeps_its_status_and_its_reason() -> None:
    reply = host_command.run(connection("Welcome\n", ""), "echo half; echo no space >&2; exit 7")
    assert (reply.status, reply.output, reply.error) == (7, "half\n", "no space")


def test_a_host_that_does_not_begin_has_no_output() -> None:
    reply = {"rc": 255, "stdout": "Welcome\n", "stderr": ""}
    action: Any = SimpleNamespace(_low_level_execute_command=lambda *_, **__: reply)
    assert host_command.run(action, "true") == host_command.Reply(255, "", "Welcome")


@pytest.mark.parametrize("kind", [AnsibleConnectionFailure, AnsibleError])
def test_the_prompt_of_sudo_rs_is_explained(kind: type[AnsibleError]) -> None:
    def execute(*_words: Any, **_options: Any) -> Any:
        raise kind("Timeout (12s) waiting for privilege escalation prompt: ")

    action: Any = SimpleNamespace(_low_level_execute_command=execute)
    with pytest.raises(kind) as raised:
        host_command.run(action, "true")
    assert str(raised.value).startswith("Timeout (12s) waiting for privilege escalation prompt. ")
    assert "set ansible_become_exe: sudo.ws" in str(raised.value)
    assert "timeout in ansible.cfg" in str(raised.value)


def test_other_failures_of_a_connection_stay() -> None:
    def execute(*_words: Any, **_options: Any) -> Any:
        raise AnsibleConnectionFailure("no route to host")

    action: Any = SimpleNamespace(_low_level_execute_command=execute)
    with pytest.raises(AnsibleConnectionFailure, match=r"^no route to host$"):
        host_command.run(action, "true")
