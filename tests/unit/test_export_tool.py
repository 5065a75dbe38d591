# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""`./slipway export` with real inventories: what Ansible knows, errors, and the file."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible.parsing.vault import EncryptedString
from ansible_collections.slipway.host.plugins.action import connection_info
from ansible_collections.slipway.host.plugins.plugin_utils.export import formats
from ansible_collections.slipway.host.plugins.plugin_utils.fleet import store

from tests.contract.tree import ROOT
from tests.unit import fleet_reports
from tools import export

SECRETS = ("hunter1", "hunter2", "hunter3", "hunter4", "hunter5")


def run(folder: Path, *words: str, **hosts: Any) -> subprocess.CompletedProcess[str]:
    """Export HOSTS, to which every connection fails."""
    inventory = folder / "hosts.yml"
    # JSON is YAML, and keeps the order of the hosts.
    text = json.dumps({"gpu_servers": {"hosts": hosts}})
    inventory.write_text(text.replace('"!vault ', '!vault "'), encoding="utf-8")
    return subprocess.run(
        [sys.executable, str(ROOT / "tools/export.py"), *words, "-i", str(inventory)],
        cwd=ROOT,
        env={
            **{name: text for name, text in os.environ.items() if name != "SLIPWAY_REPORT"},
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_SSH_EXECUTABLE": "/bin/false",
            "SLIPWAY_REPORTS": str(folder / "reports"),
        },
        capture_output=True,
        text=True,
        check=False,
    )


def write_report(folder: Path, host: str) -> dict[str, Any]:
    """Write the report of a host with GPUs that the last run did not reach; return it."""
    reports = store.Store(folder, pytest.fail)
    with reports.lock():
        for state in ("no_drift", "unreachable"):
            survey = fleet_reports.survey(random.Random(1), True) if state == "no_drift" else None
            run_of_host = fleet_reports.run(survey, state=state)
            reports.update(host, run_of_host, fleet_reports.NOW)
    return reports.read(store.file_name(host))


def test_the_file_has_what_ansible_knows_and_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    monkeypatch.setenv("ANSIBLE_LOG_PATH", str(log))
    report = write_report(tmp_path / "reports", "gpu04")
    connection = {
        "ansible_host": "{{ site }}.11",
        "ansible_port": "{{ 2200 + 1 }}",
        "ansible_user": "ubuntu",
        "ansible_ssh_private_key_file": "keys/k",
        "ansible_ssh_common_args": "-J admin@bastion -o SetEnv=TOKEN=hunter1",
        "ansible_password": "hunter2",
        "ansible_ssh_private_key_passphrase": "hunter3",
        "ansible_become_password": "hunter4",
        "api_token": "hunter5",
        "site": "192.0.2",
    }
    gpus = report["overview"]["gpus"]
    held = {"slipway_hold": "disk swap"}
    hosts = {"gpu02": connection, "gpu01": {}, "gpu03": held, "gpu04": {}}
    done = run(tmp_path, "ssh-config", "-v", **hosts)
    assert done.returncode == 0, done.stderr
    assert done.stdout.partition("\n\n")[2] == (
        "Host gpu02\n    HostName 192.0.2.11\n    Port 2201\n    User ubuntu\n"
        f'    IdentityFile "{ROOT}/keys/k"\n    ProxyJump admin@bastion\n\n'
        "Host gpu01\n    HostName gpu01\n\n"
        "Host gpu04\n"
        f"    # {len(gpus)} x {gpus[0]['name']}, driver {report['overview']['driver']['version']}\n"
        f"    # unreachable in the run of {report['ran']}\n"
        "    HostName gpu04\n"
    )
    assert "slipway: export: gpu03 is left out: held: disk swap.\n" in done.stderr
    printed = done.stdout + done.stderr + log.read_text(encoding="utf-8")
    assert "ok: [gpu02]" in printed
    assert not [secret for secret in SECRETS if secret in printed]
    # The reports of the hosts are as before.
    assert [*(tmp_path / "reports").glob("*.json")] == [tmp_path / "reports/gpu04.json"]
    assert not (tmp_path / "reports/index.html").exists()


@pytest.mark.parametrize(
    ("variables", "error"),
    [
        ({"ansible_host": "{{ missing_variable }}"}, "gpu01: .*'missing_variable' is undefined"),
        ({"slipway_hodl": "disk swap"}, "gpu01: slipway_hodl: unknown variable; did you mean sl"),
        ({"ansible_host": "!vault VAULT"}, "gpu01: ansible_host: found a value encrypted with "),
        (
            {"ansible_user": "{{ vaulted }}", "vaulted": "!vault VAULT"},
            "gpu01: ansible_user: found a value encrypted with ",
        ),
        (
            {"ansible_ssh_common_args": "-o {{ vaulted }}", "vaulted": "!vault VAULT"},
            "gpu01: ansible_ssh_common_args: found a value encrypted with ",
        ),
        (
            {"ansible_host": "{{ part }}.example.org", "part": "a-{{ x }}", "x": "!vault VAULT"},
            "gpu01: ansible_host: found a value encrypted with ",
        ),
        ({"ansible_user": "a b"}, "gpu01: ansible_user: 'a b'; expected letters, digits and "),
    ],
)
def test_a_host_with_an_error_is_named(
    tmp_path: Path, variables: dict[str, str], error: str
) -> None:
    password = tmp_path / "password"
    password.write_text("hunter1\n", encoding="utf-8")
    encrypted = subprocess.run(
        ["ansible-vault", "encrypt", "--vault-password-file", str(password)],
        input="hunter2",
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    values = {name: value.replace("VAULT", encrypted) for name, value in variables.items()}
    out = tmp_path / "out"
    words = ("dstack", "--out", str(out), "--vault-password-file", str(password))
    done = run(tmp_path, *words, gpu01=values)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.match(f"slipway: export: {error}", done.stderr)
    assert not [secret for secret in SECRETS if secret in done.stderr]
    assert not out.exists()


def test_an_inventory_without_hosts_or_with_an_error_is_named(tmp_path: Path) -> None:
    done = run(tmp_path, "ray")
    assert (done.returncode, done.stdout) == (1, "")
    assert "No host matched: the inventory has no hosts" in done.stderr
    done = run(tmp_path, "ray", "--limit", "gpu09", gpu01={})
    assert (done.returncode, done.stdout) == (1, "")
    assert "--limit leaves us with no hosts" in done.stderr


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ([], "target ''; expected one of: ssh-config skypilot dstack ray gpustack prometheus. ./s"),
        (["ssh"], "target 'ssh'; expected one of: .*"),
        (["skipilot"], "target 'skipilot'; .* Did you mean skypilot[?] ./slipway export --help"),
        (["ray", "--name", "My Lab"], "--name 'My Lab'; expected 2 to 41 lower-case letters"),
        (["prometheus", "--port", "0"], "--port 0; expected 1 to 65535"),
        (["prometheus", "--port", "x"], "argument --port: invalid int value: 'x'. See ./slipway "),
        (["ray", "--out"], "argument --out: expected one argument. See ./slipway export --help."),
    ],
)
def test_wrong_arguments_are_refused(
    words: list[str], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export.main(words) == 1
    assert re.match(f"slipway: export: {error}", capsys.readouterr().err)


def test_the_help_names_each_target(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--help"], ["dstack", "-h"]):
        assert export.main(words) == 0
        help_text = capsys.readouterr().out
        for target in formats.TARGETS:
            assert re.search(f"^  {target} ", help_text, re.M)


def test_a_file_is_replaced_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, link = tmp_path / "config", tmp_path / "link"
    umask = os.umask(0o022)
    try:
        export.write(file, "old\n")
    finally:
        os.umask(umask)
    assert file.stat().st_mode & 0o777 == 0o644
    file.chmod(0o600)
    link.symlink_to(file)
    reader = file.open(encoding="utf-8")
    export.write(link, "new\n")
    # A reader has the old file, and the link and the mode stay.
    assert (reader.read(), file.read_text(), link.is_symlink()) == ("old\n", "new\n", True)
    assert file.stat().st_mode & 0o777 == 0o600

    def fail(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fchmod", fail)
    with pytest.raises(OSError, match="No space"):
        export.write(file, "half")
    assert file.read_text() == "new\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config", "link"]


def test_a_group_cannot_write_a_new_file(tmp_path: Path) -> None:
    umask = os.umask(0o002)
    try:
        export.write(tmp_path / "config", "text\n")
    finally:
        os.umask(umask)
    assert (tmp_path / "config").stat().st_mode & 0o777 == 0o644


def test_variables_in_templates_may_be_encrypted() -> None:
    secret = EncryptedString(ciphertext="$ANSIBLE_VAULT;1.1;AES256\n61\n")
    variables = {
        "plain": "a",
        "x": secret,
        "deep": {"net": [secret], "name": "b"},
        "circle": "{{ circle }} {{ plain }}",
        "y": "{{ deep.net }}",
    }
    for value in (
        secret,
        "{{ x }}",
        "a{{ x | lower }}",
        "{{ deep.net[0] }}",
        "{{ deep.name }} {{ y }}",
        "{% if x %}",
    ):
        assert connection_info.is_encrypted(value, variables), value
    readable = (None, 22, "x", "{{ plain }}", "{{ deep.name }}", "{{ circle }}", "{{ none }}")
    for other in readable:
        assert not connection_info.is_encrypted(other, variables), other


def test_a_device_is_written_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE, text=True) as reader:
        export.write(pipe, "text\n")
        assert reader.communicate()[0] == "text\n"
    assert pipe.is_fifo()


def test_a_folder_without_rights_is_named(tmp_path: Path) -> None:
    done = run(tmp_path, "ssh-config", "--out", str(tmp_path / "missing/file"), gpu01={})
    assert (done.returncode, done.stdout) == (1, "")
    assert "missing/file: No such file or directory; expected a file that you can wr" in done.stderr
