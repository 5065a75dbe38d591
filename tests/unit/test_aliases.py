# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The owned state of ml_aliases: the commands of a host and their declaration."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.gpu import cuda_bundle
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
    parent=None,
    cuda=None,
    unavailable={},
    image={
        "ports": {"web": 80, "ssh": 22},
        "network": "bridge",
        "command": ["serve"],
        "aliases": {"tool": ALIAS},
    },
)
PLAIN = Options("Dana")


def with_alias(**changes: Any) -> Planned:
    """Return the image with changes of its alias."""
    alias = {**ALIAS, **changes}
    return replace(IMAGE, image={**IMAGE.image, "aliases": {"tool": alias}})


def content(owned: dict[str, list[dict[str, Any]]], path: str) -> str:
    """Return the declared content of a file."""
    (declared_content,) = (entry["content"] for entry in owned["files"] if entry["path"] == path)
    assert isinstance(declared_content, str)
    return declared_content


def declared(image: Planned, options: Options = PLAIN) -> dict[str, Any]:
    """Return the entry of the alias in the declaration on the host."""
    declaration = json.loads(content(ml_aliases.owned([image], options), ml_aliases.DECLARATION))
    entry: dict[str, Any] = declaration["aliases"]["tool"]
    return entry


def test_every_name_of_an_alias_is_a_link_to_the_program() -> None:
    owned = ml_aliases.owned([with_alias(names=["tool2"])], PLAIN)
    assert owned["links"] == [
        {
            "folder": "/usr/local/bin",
            "target": "/usr/local/lib/slipway/ml",
            "names": ["ml", "tool", "tool2"],
            "unhidden": ["/usr/sbin", "/usr/bin", "/snap/bin"],
        }
    ]
    survey.check("ml_aliases", owned)


def test_without_aliases_only_the_command_ml_is_installed() -> None:
    owned = ml_aliases.owned([replace(IMAGE, image={**IMAGE.image, "aliases": {}})], PLAIN)
    assert owned["links"][0]["names"] == ["ml"]
    assert json.loads(content(owned, ml_aliases.DECLARATION))["images"] == {
        "tool": "slipway/tool:gpu"
    }


def test_the_declaration_has_the_cuda_release_of_images(tmp_path: Path) -> None:
    file = tmp_path / "aliases.json"
    images = [replace(IMAGE, cuda="13.2"), replace(IMAGE, name="cpu", reference="slipway/cpu:cpu")]
    file.write_text(content(ml_aliases.owned(images, PLAIN), ml_aliases.DECLARATION))
    assert settings.read_host(file).cuda == {"slipway/tool:gpu": settings.Cuda("13.2", 580)}
    declared = json.loads(file.read_text())
    del declared["cuda"]
    file.write_text(json.dumps(declared))
    assert settings.read_host(file).cuda == {}, "the declaration of an older version"


def test_the_modules_of_the_cuda_check_are_installed() -> None:
    names = {f"{part.__name__.rpartition('.')[2]}.py" for part in cuda_bundle.PARTS}
    assert {name for name, _content in ml_aliases.cuda_check_sources()} == names


def test_the_program_reads_the_declaration(tmp_path: Path) -> None:
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
        # All ports of the image. The settings list the published ones.
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
def test_settings_of_the_host_override_those_of_the_image(
    image: Planned, options: Options, key: str, value: Any
) -> None:
    assert declared(image, options)["settings"][key] == value


def test_the_command_of_the_alias_precedes_that_of_the_image() -> None:
    assert declared(IMAGE)["command"] == ["serve"]
    assert declared(with_alias(command=["bash", "-l"]))["command"] == ["bash", "-l"]


def test_an_alias_can_be_disabled() -> None:
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
def test_invalid_aliases_and_settings_are_errors(
    image: Planned, options: Options, message: str
) -> None:
    with pytest.raises(AliasError) as caught:
        ml_aliases.owned([image], options)
    assert message in str(caught.value)


def test_numbers_may_be_written_without_quotes() -> None:
    numbers = {"gpus": 0, "cpus": 4, "environment": {"OMP_NUM_THREADS": 8}}
    settings_as_text = declared(IMAGE, Options("", settings={"tool": numbers}))["settings"]
    assert (settings_as_text["gpus"], settings_as_text["cpus"]) == ("0", "4")
    assert settings_as_text["environment"] == {"OMP_NUM_THREADS": "8"}


def test_an_absent_role_owns_the_removal_of_all_its_files() -> None:
    owned = ml_aliases.removed()
    present = ml_aliases.owned([IMAGE], PLAIN)
    survey.check("ml_aliases", owned)
    assert owned["links"][0]["names"] == []
    removed = [entry["path"] for entry in owned["files"]]
    for entry in present["files"]:
        assert any(entry["path"].startswith(path) for path in removed), entry["path"]


# Files on the host.


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
    (tmp_path / "argparse.py").write_text("raise SystemExit('imported from the user')")
    for command, text in (([program], "save"), ([alias], "A shell (image slipway/tool:gpu)")):
        # Modules in the caller's folder and environment are not imported.
        completed = subprocess.run(
            [*command, "--help"],
            cwd=tmp_path,
            env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert completed.returncode == 0, completed.stderr
        assert text in completed.stdout


def test_completions_are_for_every_command() -> None:
    owned = ml_aliases.owned([IMAGE], PLAIN)
    bash = content(owned, ml_aliases.BASH_COMPLETION)
    assert "-F _slipway ml tool\n" in bash
    subprocess.run(["bash", "-n"], input=bash, text=True, check=True)
    assert content(owned, ml_aliases.ZSH_COMPLETION).startswith("#compdef ml tool\n")
    assert content(owned, ml_aliases.FISH_COMPLETION).count("complete --command ") == 2


def test_compiled_modules_are_kept_for_the_caller(tmp_path: Path) -> None:
    """Only root can write beside the program, so each start would compile every module."""
    library = tmp_path / "library"
    for entry in ml_aliases.owned([IMAGE], PLAIN)["files"]:
        if entry["path"].startswith(ml_aliases.LIBRARY):
            file = library / Path(entry["path"]).relative_to(ml_aliases.LIBRARY)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(entry["content"])
    home = tmp_path / "home"
    home.mkdir()
    code = (
        "import os, pwd, runpy, sys\n"
        "account = pwd.getpwuid(os.getuid())\n"
        "fields = [*account][:5] + [sys.argv[1]] + [*account][6:]\n"
        "pwd.getpwuid = lambda uid: pwd.struct_passwd(fields)\n"
        "sys.argv = ['ml', '--help']\n"
        f"runpy.run_path({str(library / 'ml')!r}, run_name='__main__')\n"
    )

    def run(folder: Path) -> list[Path]:
        """Run the program in an account with the home folder; return the compiled modules."""
        done = subprocess.run(
            ["/usr/bin/python3", "-ISBc", code, str(folder)],
            capture_output=True,
            text=True,
            check=False,
        )
        # The declaration is missing, which only the program itself can report.
        assert done.stderr.startswith("ml: cannot read /etc/slipway/aliases.json"), done.stderr
        return sorted(tmp_path.rglob("*.pyc"))

    compiled = run(home)
    assert [file.name.partition(".")[0] for file in compiled] == [
        "__init__", "caller", "complete", "errors", "main", "settings",
    ]  # fmt: skip
    assert all(home / ".cache/slipway/bytecode" in file.parents for file in compiled)
    for file, size in zip(compiled, (0, 10, 16, 20, 100, 200), strict=True):
        # A damaged file does not stop the program.
        file.write_bytes(file.read_bytes()[:size])
    run(home)
    shutil.rmtree(home / ".cache")
    for mode in (0o777, 0o775):
        home.chmod(mode)
        assert run(home) == [], "others could write code there"
    assert run(tmp_path / "missing") == []


def test_files_on_the_host_name_the_role_that_writes_them() -> None:
    for entry in ml_aliases.owned([IMAGE], PLAIN)["files"]:
        if not entry["path"].endswith(".py"):
            assert ml_aliases.HEADER in entry["content"], entry["path"]


# The whole plan, over the catalogue for tests.


def planned_state(images: list[str] | None = None, **changes: Any) -> dict[str, Any]:
    """Return the owned state of a host without GPUs."""
    role_options = options(
        "ml_aliases",
        images=["testlab"] if images is None else images,
        ml_catalogue_folder=str(CATALOGUE),
        **changes,
    )
    plan = ml_aliases.plan({"distribution": "Debian"}, role_options)
    owned: dict[str, Any] = plan["owned"]
    return owned


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_the_plan_has_the_aliases_of_the_declared_images() -> None:
    assert planned_state()["links"][0]["names"] == ["ml", "test_lab", "testlab", "testtool"]
    assert planned_state(state="absent") == ml_aliases.removed()


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ({}, None),
        ({"slurm_controller": "other", "slurm_nodes": ["here"]}, True),
        ({"slurm_controller": "here", "slurm_nodes": ["other"]}, True),
        ({"slurm_controller": "other", "slurm_nodes": []}, None),
        ({"slurm_controller": "here", "slurm_state": "absent"}, None),
        ({"slurm_controller": "here", "ml_aliases_slurm": False}, None),
        ({"ml_aliases_slurm": True}, True),
    ],
)
def test_commands_of_a_declared_cluster_are_jobs(
    declared: dict[str, Any], expected: bool | None
) -> None:
    images = {"images": ["testlab"], "ml_catalogue_folder": str(CATALOGUE)}
    role_options = {**options("ml_aliases", **images), **declared}
    facts = {"distribution": "Debian", "inventory_name": "here", "groups": {"slurm": ["else"]}}
    owned = ml_aliases.plan(facts, role_options)["owned"]
    (file,) = (file for file in owned["files"] if file["path"] == ml_aliases.DECLARATION)
    assert json.loads(file["content"]).get("slurm") is expected


def test_settings_of_an_unknown_alias_are_an_error() -> None:
    with pytest.raises(
        ml_aliases.AliasError,
        match=r"unknown alias testlap; expected an alias of an image. Did you mean",
    ):
        planned_state(settings={"testlap": {"gpus": "none"}})


def test_settings_of_an_alias_of_other_hosts_are_accepted() -> None:
    owned = planned_state([], settings={"testlab": {"gpus": "none"}})
    assert owned["links"][0]["names"] == ["ml"]


def test_disks_of_data_sets_are_mounted_at_their_own_path() -> None:
    read_only = {"source": "/mnt/b/data", "target": "/mnt/b/data", "read_only": True}
    owned = planned_state(ml_data_disks=["/mnt/a/data", "/mnt/b/data"], mounts=[read_only])
    declaration = json.loads(content(owned, ml_aliases.DECLARATION))
    assert declaration["aliases"]["testlab"]["settings"]["mounts"] == [
        {"source": "/mnt/a/data", "target": "/mnt/a/data", "optional": True},
        read_only,
    ]
