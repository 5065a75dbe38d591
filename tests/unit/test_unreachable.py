# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The message of an unreachable host has the reason of ssh and what to do."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest
from ansible_collections.slipway.host.plugins.plugin_utils import unreachable
from ansible_collections.slipway.host.plugins.plugin_utils.live import run_text

from tests.contract.tree import ROOT

START = 'Task failed: Data could not be sent to remote host "gpu01". Make sure this host can be '
START += "reached over ssh: "
BANNER = "@@@@@\n@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\n@@@@@\n"


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("Host key verification failed.\r\n", ["key is not known", "run ssh gpu01, compare"]),
        (f"{BANNER}Host key verification failed.", ["differs", "ssh-keygen -R gpu01 and then"]),
        (
            "admin@gpu01: Permission denied (publickey,password).",
            ["login failed (Permission denied (publickey,password));", "ssh-copy-id"],
        ),
        ("ssh: Could not resolve hostname gpu01: Name", ["no address;", "ansible_host"]),
        ("ssh: connect to host gpu01 port 22: Connection refused", ["Connection refused; "]),
        ("ssh: connect to host gpu01 port 22: No route to host", ["No route to host; expected"]),
        ("Connection timed out during banner exchange", ["Connection timed out; expected"]),
    ],
)
def test_the_reason_of_ssh_is_explained(words: str, parts: list[str]) -> None:
    message = run_text.message_of({"unreachable": True, "msg": START + words})
    assert message.startswith("SSH to gpu01: ")
    assert "\n" not in message
    assert all(part in message for part in parts)
    assert message.endswith(".")


@pytest.mark.parametrize("message", ["Authentication failed.", START + "ssh: a new reason"])
def test_another_reason_stays(message: str) -> None:
    assert unreachable.explain(message) == message


def test_a_failed_task_is_not_explained() -> None:
    message = START + "Host key verification failed."
    assert run_text.message_of({"msg": message}) == message.removeprefix("Task failed: ")


def test_a_run_names_an_address_without_a_server(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    inventory = tmp_path / "hosts.yml"
    inventory.write_text(
        f"all: {{hosts: {{gpu01: {{ansible_host: 127.0.0.1, ansible_port: {port}}}}}}}\n",
        encoding="utf-8",
    )
    done = subprocess.run(
        ["ansible-playbook", "-i", str(inventory), str(ROOT / "site.yml")],
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_STDOUT_CALLBACK": "slipway.host.live",
            "ANSIBLE_SSH_RETRIES": "0",
            "SLIPWAY_OUTPUT": "plain",
            "SLIPWAY_REPORTS": "/dev/null",
            "SLIPWAY_STATE": str(tmp_path / "state"),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 4
    reason = f"SSH to 127.0.0.1: Connection refused; {unreachable.CHECK_SERVER}."
    # As an event, and in the table at the end.
    assert done.stdout.count(reason) == 2
