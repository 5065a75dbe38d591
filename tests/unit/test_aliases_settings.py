# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The settings that a user has: what the file may say, and what it may not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.ml import main, settings
from ansible_collections.slipway.host.plugins.module_utils.ml.errors import MlError

ALIAS = settings.Alias(
    name="lab",
    description="A shell",
    image="lab",
    variant="gpu",
    network="bridge",
    command=(),
    ports={"web": settings.Port(80, "/")},
    settings={"image": "slipway/lab:gpu", "gpus": "free"},
)


def said(folder: Path, text: str) -> dict[str, Any]:
    file = folder / "aliases.ini"
    file.write_text(text)
    return settings.read_user_layer(ALIAS, file)


@pytest.mark.parametrize(
    ("text", "layer"),
    [
        ("", {}),
        ("[lab]\ngpus = 0,1\n", {"gpus": "0,1"}),
        ("[lab]\ngpus = 0:1\n", {"gpus": "0:1"}),
        ("[*]\ngpus = none\n[lab]\ngpus = all\n", {"gpus": "all"}),
        ("[*]\ngpus = none\n[other]\ngpus = all\n", {"gpus": "none"}),
        ("[lab]\nport.web = 9000\n", {"ports": {"web": 9000}}),
        # Another image may have it.
        ("[*]\nport.board = 6007\n", {"ports": {"board": 6007}}),
        ("[lab]\nenv.HF_HOME = /data/hf\nenv.a = b=c\n",
         {"environment": {"HF_HOME": "/data/hf", "a": "b=c"}}),
        ("[lab]\n/code = ~/work\n",
         {"mounts": [{"source": "~/work", "target": "/code", "read_only": False}]}),
        ("[lab]\n/data = /srv/data:ro\n",
         {"mounts": [{"source": "/srv/data", "target": "/data", "read_only": True}]}),
        ("[lab]\noptions = --ulimit memlock=-1 --label 'a b'\n",
         {"options": ["--ulimit", "memlock=-1", "--label", "a b"]}),
        ("[lab]\nquiet = yes\nshm_size = 16g\nmemory = 32g\ncpus = 1.5\n",
         {"quiet": True, "shm_size": "16g", "memory": "32g", "cpus": "1.5"}),
        ("[lab]\nimage = alice/lab:2\nworkdir = /code/x\n",
         {"image": "alice/lab:2", "workdir": "/code/x"}),
    ],
)  # fmt: skip
def test_settings_of_a_user_are_read(tmp_path: Path, text: str, layer: dict[str, Any]) -> None:
    assert said(tmp_path, text) == layer


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpus = 0\n", "cannot read"),
        ("[lab]\ngpu = 0\n", "section [lab]: unknown setting gpu. Did you mean gpus?"),
        ("[lab]\ngpus = two\n", "gpus is 'two'; expected free, all, none, or indexes such as 0,1"),
        ("[lab]\nport.web = high\n", "ports is {'web': 'high'}; expected port numbers of the host"),
        ("[lab]\nport.web = 70000\n", "expected port numbers of the host"),
        ("[lab]\nport.wob = 9000\n", "the image has no port wob. Did you mean web?"),
        ("[lab]\nshm_size = big\n", "shm_size is 'big'; expected a size such as 8g"),
        ("[lab]\ncpus = -1\n", "cpus is '-1'; expected a number of processors"),
        ("[lab]\nworkdir = code\n", "workdir is 'code'; expected an absolute path"),
        ("[lab]\nquiet = maybe\n", "quiet is 'maybe'; expected yes or no"),
        ("[lab]\nenv.1 = a\n", "environment is {'1': 'a'}; expected text values"),
        ("[lab]\n/code = work\n", "whose source is an absolute path or begins with ~"),
        ("[lab]\n/code = a:b:c\n", "expected SOURCE:TARGET or SOURCE:TARGET:ro"),
        ("[lab]\noptions = 'a\n", "No closing quotation"),
        ("[lab]\nports = 1\n", "ports is not a setting of this file. Write port.NAME = NUMBER"),
        ("[lab]\nmounts = 1\n", "mounts is not a setting of this file"),
    ],
)
def test_invalid_settings_of_a_user_are_errors(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(MlError) as caught:
        said(tmp_path, text)
    assert message in str(caught.value)
    assert "aliases.ini" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("[notebok]\ngpus = 0\n", ["[notebok] is not a command of this host"]),
        ("[notebook]\n[pytorch]\n[*]\n", []),
        # A command of another host with the same home folder.
        ("[sas9]\n", []),
        ("[pytorhc]\n[Notebook]\n", ["Did you mean [pytorch]?", "Did you mean [notebook]?"]),
        ("gpus = 0\n# [notebok]\n [notebok]\n", []),
        ("\xff", []),
    ],
)
def test_a_misspelt_section_is_reported(tmp_path: Path, text: str, sentences: list[str]) -> None:
    file = tmp_path / "aliases.ini"
    file.write_bytes(text.encode("latin-1"))
    found = main.misspelt_sections(file, ["notebook", "pytorch"])
    assert len(found) == len(sentences)
    for one, sentence in zip(found, sentences, strict=True):
        assert sentence in one and str(file) in one


def test_no_file_has_no_misspelt_section(tmp_path: Path) -> None:
    assert main.misspelt_sections(tmp_path / "none.ini", ["notebook"]) == []


def test_a_missing_file_has_no_settings(tmp_path: Path) -> None:
    assert settings.read_user_layer(ALIAS, tmp_path / "none.ini") == {}


def test_the_users_file_is_where_the_system_keeps_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "/elsewhere")
    assert settings.user_file() == Path("/elsewhere/slipway/aliases.ini")
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", "/home/alice")
    assert settings.user_file() == Path("/home/alice/.config/slipway/aliases.ini")


def test_a_later_layer_replaces_adds_or_joins() -> None:
    merged = settings.merge_layers(
        {
            "gpus": "free",
            "ports": {"a": 1, "b": 2},
            "mounts": [{"source": "/x", "target": "/code"}, {"source": "/y", "target": "/data"}],
            "environment": {"A": "1"},
            "options": ["--one"],
        },
        {
            "gpus": "0",
            "ports": {"b": 3},
            "mounts": [{"source": "/z", "target": "/code"}],
            "environment": {"B": "2"},
            "options": ["--two"],
        },
    )
    assert merged == {
        "gpus": "0",
        "ports": {"a": 1, "b": 3},
        "mounts": [{"source": "/z", "target": "/code"}, {"source": "/y", "target": "/data"}],
        "environment": {"A": "1", "B": "2"},
        "options": ["--one", "--two"],
    }


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"contact": "x", "images": {}}'])
def test_a_broken_declaration_names_the_role_that_writes_it(tmp_path: Path, text: str) -> None:
    file = tmp_path / "aliases.json"
    file.write_text(text)
    with pytest.raises(MlError, match="Run Slipway's role ml_aliases again"):
        settings.read_host(file)
    with pytest.raises(MlError, match="cannot read"):
        settings.read_host(tmp_path / "missing.json")
