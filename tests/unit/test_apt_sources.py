# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""apt sources count by what they say: another file of a repository must not break apt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.apt import sources
from ansible_collections.slipway.host.plugins.module_utils.roles import (
    docker_engine,
    nvidia_container_toolkit,
    nvidia_driver,
)
from ansible_collections.slipway.host.plugins.module_utils.state import apt_sources

from tests.unit.gpu_facts import NOBLE, facts
from tests.unit.role_options import options

DOCKER = "https://download.docker.com/linux/ubuntu"
KEY = "/etc/apt/keyrings/docker.asc"
OWN = {
    "path": "/etc/apt/sources.list.d/docker.sources",
    "content": f"Types: deb\nURIs: {DOCKER}\nSuites: noble\nComponents: stable\nSigned-By: {KEY}\n",
}


def ask(tmp_path: Path, **files: str) -> dict[str, Any]:
    """Return what is found of FILES; the name `list` stands for sources.list."""
    folder = tmp_path / "sources.list.d"
    folder.mkdir()
    for name, text in files.items():
        path = tmp_path / "sources.list" if name == "list" else folder / name.replace("__", ".")
        path.write_text(text)
    found = apt_sources.ask_sources(str(tmp_path))
    return {path.removeprefix(f"{tmp_path}/"): entries for path, entries in found.items()}


def test_both_formats_are_read(tmp_path: Path) -> None:
    found = ask(
        tmp_path,
        list="# deb http://no x main\ndeb http://a/ubuntu noble main  restricted # why\n",
        b__list="deb [arch=amd64 signed-by=/k.gpg] https://b stable main\ndeb-src http://c s /\n",
        d__sources=(
            "# a comment\nTypes: deb\nURIs: http://d\n http://e/\nSuites: x x-updates\n"
            "Components: main\nsigned-by:\n -----BEGIN\n .\n key\n\n"
            "Enabled: no\nTypes: deb\nURIs: http://off\nSuites: x\n\n"
            "Types: deb\n#URIs: http://no\nURIs: http://flat\nSuites: /\n"
        ),
        ignored__bak="deb http://f x main\n",
        empty__list="\n",
    )
    key = "-----BEGIN . key"
    assert found == {
        "sources.list": [("http://a/ubuntu", "noble", ["main", "restricted"], "")],
        "sources.list.d/b.list": [
            ("https://b", "stable", ["main"], "/k.gpg"),
            ("http://c", "s", ["/"], ""),
        ],
        "sources.list.d/d.sources": [
            *(("http://d", suite, ["main"], key) for suite in ("x", "x-updates")),
            *(("http://e/", suite, ["main"], key) for suite in ("x", "x-updates")),
            ("http://flat", "/", [], ""),
        ],
    }


@pytest.mark.parametrize(
    "uri",
    [
        DOCKER,
        f"{DOCKER}/",
        "http://download.docker.com/linux/ubuntu",
        "https://Download.Docker.com//linux/ubuntu",
        "tor+https://user:secret@download.docker.com/linux/ubuntu",
    ],
)
def test_a_file_of_the_same_repository_is_replaced_whatever_its_name(uri: str) -> None:
    given = {**NOBLE, "apt_sources": {"/x/anything.list": [(uri, "noble", ["stable"], "/k")]}}
    assert sources.replaced_files(given, OWN) == [{"path": "/x/anything.list", "state": "absent"}]
    assert sources.mixed_files(given, OWN) == []


@pytest.mark.parametrize(
    "entry",
    [
        (DOCKER, "jammy", ["stable"], "/k"),
        (f"{DOCKER}-test", "noble", ["stable"], "/k"),
        ("https://mirror/linux/ubuntu", "noble", ["stable"], "/k"),
        # apt reads the same repository twice, and warns.
        (DOCKER, "noble", ["stable"], KEY),
    ],
)
def test_other_repositories_and_the_same_key_are_no_conflict(entry: Any) -> None:
    given = {**NOBLE, "apt_sources": {"/x/other.list": [entry], OWN["path"]: [entry]}}
    assert sources.replaced_files(given, OWN) == []
    assert sources.mixed_files(given, OWN) == []


@pytest.mark.parametrize(
    "more",
    [("http://archive.ubuntu.com/ubuntu", "noble", ["main"], ""), (DOCKER, "noble", ["test"], "")],
)
def test_a_file_with_other_repositories_is_refused(more: Any) -> None:
    entries = [(DOCKER, "noble", ["stable"], ""), more]
    given = {**NOBLE, "apt_sources": {"/etc/apt/sources.list": entries}}
    assert sources.replaced_files(given, OWN) == []
    (why,) = sources.mixed_files(given, OWN)
    assert why.startswith("/etc/apt/sources.list names the repository of /etc/apt/sources.list.d/")


def files(found: dict[str, Any]) -> dict[str, str]:
    return {entry["path"]: entry.get("state", "present") for entry in found["owned"]["files"]}


@pytest.mark.parametrize("mixed", [False, True])
def test_each_role_with_a_repository_looks_for_other_files(mixed: bool) -> None:
    toolkit = "https://nvidia.github.io/libnvidia-container/stable/deb/$(ARCH)"
    cuda = "https://developer.download.nvidia.com/compute/cuda/repos/ubuntu2404/x86_64"
    others = [("http://other", "x", ["main"], "")] if mixed else []
    given = facts("t4")
    given["apt_sources"] = {
        "/d/a.list": [(DOCKER, "noble", ["stable"], ""), *others],
        "/d/b.list": [(toolkit, "/", [], "/usr/share/keyrings/x.gpg"), *others],
        "/d/c.list": [(cuda, "/", [], "/usr/share/keyrings/cuda.gpg"), *others],
    }
    plans = {
        "/d/a.list": docker_engine.plan(given, options("docker_engine", source="docker")),
        "/d/b.list": nvidia_container_toolkit.plan(given, options("nvidia_container_toolkit")),
        "/d/c.list": nvidia_driver.plan(given, options("nvidia_driver", source="cuda")),
    }
    for path, found in plans.items():
        refused = [why for why in found["owned"]["refused"] if path in why]
        assert len(refused) == mixed
        assert files(found).get(path) == (None if mixed else "absent")


def test_areas_of_the_archive_come_from_the_source_of_the_host() -> None:
    mirror = "http://mirror.lab/ubuntu"
    given = facts("t4", components=[])
    given["apt_sources"] = {"/etc/apt/sources.list": [(mirror, "noble", ["main"], "")]}
    found = nvidia_driver.plan(given, options("nvidia_driver"))
    (content,) = (
        entry["content"]
        for entry in found["owned"]["files"]
        if entry["path"].endswith("slipway-nvidia-driver.sources")
    )
    assert f"URIs: {mirror}\n" in content and "Signed-By" not in content
    assert found["owned"]["refused"] == []


@pytest.mark.parametrize(
    "others",
    [
        # geerlingguy/ansible-role-docker#316, #335: the file of Docker's instructions.
        {"docker.list": [(DOCKER, "noble", ["stable"], "/usr/share/keyrings/docker.gpg")]},
        # geerlingguy/ansible-role-docker#470: one file with an old and a new line.
        {
            "download_docker_com_linux_ubuntu.list": [
                (DOCKER, "noble", ["stable"], ""),
                (DOCKER, "noble", ["stable"], "/etc/apt/trusted.gpg.d/docker.asc"),
            ]
        },
        # spantaleev/matrix-docker-ansible-deploy#3340: two files, each with another key.
        {
            "docker.list": [(DOCKER, "noble", ["stable"], "/etc/apt/trusted.gpg.d/docker.asc")],
            "docker-ce.sources": [(DOCKER, "noble", ["stable"], "/etc/apt/keyrings/docker.gpg")],
        },
    ],
)
def test_files_of_other_docker_roles_are_replaced(others: dict[str, Any]) -> None:
    given = {**NOBLE, "apt_sources": {f"/d/{name}": rows for name, rows in others.items()}}
    assert [entry["path"] for entry in sources.replaced_files(given, OWN)] == [
        f"/d/{name}" for name in others
    ]
    assert sources.mixed_files(given, OWN) == []
