# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The owned state of ml_aliases: which commands a host gets, and what they know."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.images.index import Planned
from ansible_collections.slipway.host.plugins.module_utils.ml import settings
from ansible_collections.slipway.host.plugins.module_utils.ml.errors import MlError
from ansible_collections.slipway.host.plugins.module_utils.roles import ml_aliases
from ansible_collections.slipway.host.plugins.module_utils.roles.ml_aliases import (
    AliasError,
    Options,
)

from tests.unit import survey
from tests.unit.role_options import options

CATALOGUE = Path(__file__).parents[1] / "fixtures/catalogue"
ALIAS: dict[str, Any] = {
    "description": "A shell",
    "names": [],
    "gpus": "free",
    "publish": {"web": 8888},
    "urls": {"web": "/lab?token={token}"},
}
IMAGE = Planned(
    name="tool",
    variant="gpu",
    reference="slipway/tool:gpu",
    digest="0" * 64,
    image={
        "ports": {"web": 80, "ssh": 22},
        "network": "bridge",
        "command": ["serve"],
        "aliases": {"tool": ALIAS},
    },
)
PLAIN = Options("Dana")


def with_alias(**changed: Any) -> Planned:
    """Return the image with its alias changed."""
    alias = {**ALIAS, **changed}
    return replace(IMAGE, image={**IMAGE.image, "aliases": {"tool": alias}})


def content(owned: dict[str, list[dict[str, Any]]], path: str) -> str:
    """Return what a file is to hold."""
    (found,) = (entry["content"] for entry in owned["files"] if entry["path"] == path)
    assert isinstance(found, str)
    return found


def declared(image: Planned, options: Options = PLAIN) -> dict[str, Any]:
    """Return what the program is told of an image's alias."""
    found = json.loads(content(ml_aliases.owned([image], options), ml_aliases.DECLARATION))
    entry: dict[str, Any] = found["aliases"]["tool"]
    return entry


def test_every_name_of_an_alias_is_a_link_to_the_program() -> None:
    owned = ml_aliases.owned([with_alias(names=["tool2"])], PLAIN)
    assert owned["links"] == [
        {
            "folder": "/usr/local/bin",
            "target": "/usr/local/lib/slipway/ml",
            "names": ["ml", "tool", "tool2"],
        }
    ]
    assert {"path": "/usr/bin/tool2"} in owned["unhidden"]
    survey.check("ml_aliases", owned)


def test_an_image_without_aliases_leaves_the_command_for_the_rest() -> None:
    owned = ml_aliases.owned([replace(IMAGE, image={**IMAGE.image, "aliases": {}})], PLAIN)
    assert owned["links"][0]["names"] == ["ml"]
    assert json.loads(content(owned, ml_aliases.DECLARATION))["images"] == {
        "tool": "slipway/tool:gpu"
    }


def test_the_program_reads_what_is_declared(tmp_path: Path) -> None:
    file = tmp_path / "aliases.json"
    options = Options("Dana", mounts=[{"source": "~/code", "target": "/code"}])
    image = with_alias(names=["tool2"], workdir="/code/course")
    file.write_text(content(ml_aliases.owned([image], options), ml_aliases.DECLARATION))
    host = settings.read_host(file)
    assert host.contact == "Dana"
    assert host.alias("tool2") == settings.Alias(
        name="tool",
        description="A shell",
        image="tool",
        variant="gpu",
        network="bridge",
        command=("serve",),
        # All of the image's; published unless asked for otherwise are those of the settings.
        ports={
            "web": settings.Port(80, "/lab?token={token}"),
            "ssh": settings.Port(22, ""),
        },
        settings={
            "image": "slipway/tool:gpu",
            "gpus": "free",
            "shm_size": "8g",
            "workdir": "/code/course",
            "ports": {"web": 8888},
            "mounts": [{"source": "~/code", "target": "/code"}],
        },
    )
    with pytest.raises(MlError, match=r"no alias tol on this host. Did you mean tool"):
        host.alias("tol")


@pytest.mark.parametrize(
    ("image", "options", "key", "value"),
    [
        pytest.param(IMAGE, PLAIN, "gpus", "free", id="image"),
        pytest.param(IMAGE, Options("", common={"gpus": "0"}), "gpus", "0", id="host over image"),
        pytest.param(
            IMAGE,
            Options("", common={"gpus": "0"}, settings={"tool": {"gpus": "1"}}),
            "gpus",
            "1",
            id="alias over host",
        ),
        pytest.param(
            IMAGE,
            Options("", settings={"tool": {"ports": {"web": 9000}}}),
            "ports",
            {"web": 9000},
            id="port",
        ),
        pytest.param(with_alias(shm_size="1g"), PLAIN, "shm_size", "1g", id="image's own"),
        pytest.param(
            IMAGE,
            Options("", common={"options": ["--a"]}, settings={"tool": {"options": ["--b"]}}),
            "options",
            ["--a", "--b"],
            id="options add up",
        ),
    ],
)
def test_layers_of_the_host_lie_over_the_image(
    image: Planned, options: Options, key: str, value: Any
) -> None:
    assert declared(image, options)["settings"][key] == value


def test_command_is_the_aliases_own_or_the_images() -> None:
    assert declared(IMAGE)["command"] == ["serve"]
    assert declared(with_alias(command=["bash", "-l"]))["command"] == ["bash", "-l"]


def test_an_alias_can_be_left_out() -> None:
    options = Options("", settings={"tool": {"enabled": False}})
    assert ml_aliases.owned([IMAGE], options)["links"][0]["names"] == ["ml"]


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        pytest.param(
            with_alias(names=["python"]),
            PLAIN,
            "alias 'python' of image tool would hide the shell command python",
            id="hides a command",
        ),
        pytest.param(with_alias(names=["cd"]), PLAIN, "alias 'cd'", id="hides a builtin"),
        pytest.param(with_alias(names=["ml"]), PLAIN, "alias 'ml'", id="hides ml"),
        pytest.param(
            IMAGE,
            Options("", settings={"tool": {"enabled": "no"}}),
            "enabled is 'no'; expected true or false",
            id="enabled",
        ),
        pytest.param(
            IMAGE,
            Options("", settings={"tool": None}),  # type: ignore[dict-item]
            "ml_aliases_settings.tool: not a mapping; expected settings by name",
            id="no settings",
        ),
        pytest.param(
            IMAGE,
            Options("", common={"gpu": "0"}),
            "ml_aliases_common: unknown setting gpu. Did you mean gpus?",
            id="misspelt",
        ),
        pytest.param(
            IMAGE,
            Options("", settings={"tool": {"gpus": "many"}}),
            "ml_aliases_settings.tool: gpus is 'many'; expected free, all, none, or indexes",
            id="value",
        ),
        pytest.param(
            IMAGE,
            Options("", settings={"tool": {"ports": {"wob": 1}}}),
            "the image has no port wob. Did you mean web?",
            id="unknown port",
        ),
        pytest.param(
            IMAGE,
            Options("", mounts=[{"source": "code", "target": "/code"}]),
            "whose source is an absolute path or begins with ~",
            id="relative mount",
        ),
    ],
)
def test_what_cannot_be_is_refused(image: Planned, options: Options, message: str) -> None:
    with pytest.raises(AliasError) as caught:
        ml_aliases.owned([image], options)
    assert message in str(caught.value)


def test_numbers_may_be_written_without_quotes() -> None:
    given = {"gpus": 0, "cpus": 4, "environment": {"OMP_NUM_THREADS": 8}}
    found = declared(IMAGE, Options("", settings={"tool": given}))["settings"]
    assert (found["gpus"], found["cpus"]) == ("0", "4")
    assert found["environment"] == {"OMP_NUM_THREADS": "8"}


def test_nothing_stays_of_a_role_that_is_absent() -> None:
    owned = ml_aliases.removed()
    present = ml_aliases.owned([IMAGE], PLAIN)
    survey.check("ml_aliases", owned)
    assert owned["links"][0]["names"] == []
    removed = [entry["path"] for entry in owned["files"]]
    for entry in present["files"]:
        assert any(entry["path"].startswith(path) for path in removed), entry["path"]


# What lies on the host.


def test_the_program_runs_outside_of_the_collection(tmp_path: Path) -> None:
    owned = ml_aliases.owned([IMAGE], PLAIN)
    for entry in owned["files"]:
        file = tmp_path / entry["path"].removeprefix("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        text = entry["content"].replace("/usr/local/lib", f"{tmp_path}/usr/local/lib")
        file.write_text(text.replace("/etc/slipway", f"{tmp_path}/etc/slipway"))
    program = tmp_path / "usr/local/lib/slipway/ml"
    program.chmod(0o755)
    alias = tmp_path / "tool"
    alias.symlink_to(program)
    (tmp_path / "argparse.py").write_text("raise SystemExit('the user lent a module')")
    for command, words in (([program], "save"), ([alias], "A shell (image slipway/tool:gpu)")):
        # Isolated from what stands in the caller's folder and environment.
        done = subprocess.run(
            [*command, "--help"],
            cwd=tmp_path,
            env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert words in done.stdout


def test_completions_are_for_every_command() -> None:
    owned = ml_aliases.owned([IMAGE], PLAIN)
    bash = content(owned, ml_aliases.BASH_COMPLETION)
    assert "-F _slipway ml tool\n" in bash
    subprocess.run(["bash", "-n"], input=bash, text=True, check=True)
    assert content(owned, ml_aliases.ZSH_COMPLETION).startswith("#compdef ml tool\n")
    assert content(owned, ml_aliases.FISH_COMPLETION).count("complete --command ") == 2


def test_files_of_the_host_say_who_writes_them() -> None:
    for entry in ml_aliases.owned([IMAGE], PLAIN)["files"]:
        if "/slipway_ml/" not in entry["path"]:
            assert ml_aliases.HEADER in entry["content"], entry["path"]


# The whole plan, over the catalogue for tests.


def planned_state(images: list[str] | None = None, **changes: Any) -> dict[str, Any]:
    """Return the owned state of a host without GPUs."""
    asked = options(
        "ml_aliases",
        images=["testlab"] if images is None else images,
        ml_catalogue_folder=str(CATALOGUE),
        **changes,
    )
    found: dict[str, Any] = ml_aliases.plan({"distribution": "Debian"}, asked)["owned"]
    return found


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_filter_gives_the_aliases_of_the_images_named() -> None:
    assert planned_state()["links"][0]["names"] == ["ml", "test_lab", "testlab", "testtool"]
    assert planned_state(state="absent") == ml_aliases.removed()


def test_settings_of_an_alias_that_no_image_has_are_refused() -> None:
    with pytest.raises(
        ml_aliases.AliasError,
        match=r"unknown alias testlap; expected an alias of an image. Did you mean",
    ):
        planned_state(settings={"testlap": {"gpus": "none"}})


def test_settings_of_an_alias_of_an_image_that_other_hosts_hold_are_not() -> None:
    owned = planned_state([], settings={"testlab": {"gpus": "none"}})
    assert owned["links"][0]["names"] == ["ml"]


def test_disks_of_data_sets_are_mounted_where_they_are() -> None:
    mine = {"source": "/mnt/b/data", "target": "/mnt/b/data", "read_only": True}
    owned = planned_state(ml_data_disks=["/mnt/a/data", "/mnt/b/data"], mounts=[mine])
    found = json.loads(content(owned, ml_aliases.DECLARATION))["aliases"]["testlab"]["settings"]
    assert found["mounts"] == [
        {"source": "/mnt/a/data", "target": "/mnt/a/data", "optional": True},
        mine,
    ]
