# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the unit tests share: modules run in this process as they do on a host."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import pytest
from ansible.module_utils import _internal
from ansible.module_utils.common import warnings
from ansible.module_utils.testing import patch_module_args
from ansible_collections.slipway.host.plugins.module_utils.host import (
    environment,
    network_check,
    verify,
)
from ansible_collections.slipway.host.plugins.module_utils.state import (
    facts,
    folder,
    paths,
    reading,
)

from lab.commands import Commands


class RunModule(Protocol):
    """Runs a module with parameters and returns its result."""

    def __call__(
        self, module: ModuleType, check: bool = False, **parameters: Any
    ) -> dict[str, Any]: ...


@pytest.fixture(autouse=True)
def on_a_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo what an import of a filter does: from then on Ansible takes itself for a controller.

    It would then print a module's warnings instead of returning them.
    """
    monkeypatch.setattr(_internal, "is_controller", False)
    # A process that ends with its module need not forget the warnings that it gave.
    monkeypatch.setattr(warnings, "_global_warnings", {})
    # A module in this process must not change the environment of the tests, whose PATH has
    # programs that stand for those of a host. test_environment.py tests the function itself.
    monkeypatch.setattr(environment, "apply", lambda: None)


@pytest.fixture(autouse=True)
def keep_broken_pipes_harmless() -> Iterator[None]:
    """Ignore SIGPIPE again after a test of an alias, which lets it end the process.

    Later, a client that ends early would end the tests: servers of tests answer it.
    """
    yield
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)


@pytest.fixture
def run_module(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> RunModule:
    """Return a function that runs a module in this process."""

    def run(module: ModuleType, check: bool = False, **parameters: Any) -> dict[str, Any]:
        settings = {"_ansible_check_mode": check, "_ansible_tmpdir": str(tmp_path)}
        with patch_module_args({**settings, **parameters}), pytest.raises(SystemExit):
            module.main()
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        return result

    return run


@pytest.fixture
def only_root_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every folder for one that only root can write, as those of a host's system are."""
    for module in (folder, paths):
        monkeypatch.setattr(module, "is_trusted", lambda _info: True)
    monkeypatch.setattr(reading, "is_trusted_folder", lambda _folder: True)


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Return a function that puts a shell script of a name first on the PATH."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def write(name: str, script: str) -> None:
        file = folder / name
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)

    return write


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[int]:
    """Start a process that outlives its parent; return its ID."""
    pid = Commands().start_daemon("sh", "-c", "echo up; exec sleep 60", log=tmp_path / "log")
    yield pid
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 9)


@pytest.fixture
def installed_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """State an engine package in the facts of this machine, which may have none."""
    read = facts.ask_host
    monkeypatch.setattr(facts, "ask_host", lambda: {**read(), "docker_package": "docker.io"})
    # The network of this machine is not that of the host; these checks have tests of their own.
    monkeypatch.setattr(network_check, "check", lambda: "has rules")
    monkeypatch.setattr(verify, "_check_ways", lambda *_words: [])
