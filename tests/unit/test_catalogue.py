# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The catalogue: validation, inheritance, and digests of builds."""

from __future__ import annotations

import hashlib
import io
import json
import os
import runpy
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ansible_collections.slipway.host.plugins.module_utils.docker import labels
from ansible_collections.slipway.host.plugins.module_utils.images import declaration, released
from ansible_collections.slipway.host.plugins.module_utils.images.catalogue import (
    Catalogue,
    load_catalogue,
)
from ansible_collections.slipway.host.plugins.module_utils.images.context import pack
from ansible_collections.slipway.host.plugins.module_utils.images.declaration import (
    DeclarationError,
)
from ansible_collections.slipway.host.plugins.module_utils.images.types import (
    CatalogueError,
    ImageBuild,
)

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "images"

LOCK = "flask==3.1.3 \\\n    --hash=sha256:00\n"
TOOL: Mapping[str, Any] = {
    "title": "A tool",
    "description": "Does one thing.",
    "licence": "MIT",
    "version": "1",
    "smoke": {"file": "smoke.sh"},
}

Write = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a catalogue without images: the schemas, template and bases of the project."""
    catalogue = tmp_path / "images"
    catalogue.mkdir()
    for name in ("image.schema.json", "bases.schema.json", "bases.yml", "Dockerfile.j2"):
        shutil.copy(IMAGES / name, catalogue)
    shutil.copytree(IMAGES / "_shared", catalogue / "_shared")
    return catalogue


@pytest.fixture
def write(folder: Path) -> Write:
    """Return a function that writes an image: its name, files by path, and keys of image.yml."""

    def write_image(
        name: str = "tool", contents: Mapping[str, str] | None = None, **keys: Any
    ) -> Path:
        image = folder / name
        for path, content in {"smoke.sh": "true\n", **(contents or {})}.items():
            (image / path).parent.mkdir(parents=True, exist_ok=True)
            (image / path).write_text(content, encoding="utf-8")
        (image / "image.yml").write_text(yaml.safe_dump({**TOOL, **keys}), encoding="utf-8")
        return image

    return write_image


def build(folder: Path, name: str = "tool", variant: str = "cpu", **choices: Any) -> ImageBuild:
    return load_catalogue(folder).builds([name], variant, **choices)[-1]


SECRET = {"ports": {"web": 80}, "services": {"a": {"secrets": {"token": {"variable": "T"}}}}}


def test_an_old_key_is_accepted_with_a_warning(folder: Path, write: Write) -> None:
    image = write(**SECRET)
    catalogue = load_catalogue(folder)
    secret = catalogue.images["tool"].settings["services"]["a"]["secrets"]["token"]
    assert secret == {"path_variable": "T", "otherwise": "generated"}
    (warning,) = catalogue.warnings
    assert warning.startswith(f"{image}/image.yml:")
    assert warning.endswith(
        ": services.a.secrets.token.variable is now named path_variable. The old name is accepted "
        "until version 0.3."
    )


def test_an_old_key_beside_its_new_name_is_an_error(folder: Path, write: Write) -> None:
    secrets = {"token": {"variable": "T", "path_variable": "T"}}
    write(ports={"web": 80}, services={"a": {"secrets": secrets}})
    assert (
        "services.a.secrets.token.variable: set beside path_variable, its new name; expected only "
        "path_variable. Remove variable."
    ) in refusal(folder)


def test_an_unknown_key_does_not_suggest_an_old_key(folder: Path, write: Write) -> None:
    write(services={"a": {"secrets": {"token": {"path_variable": "T", "x": 1}}}})
    assert "token.x: unknown key; expected one of: otherwise, path_variable." in refusal(folder)


def refusal(folder: Path) -> str:
    with pytest.raises(DeclarationError) as caught:
        load_catalogue(folder)
    return str(caught.value)


# Errors in image.yml


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        pytest.param(
            {"enviroment": {}},
            ["enviroment: unknown key; expected one of: aliases, ", "Did you mean 'environment'?"],
            id="unknown key",
        ),
        pytest.param(
            {"services": {"a": {"restrat": "no"}}},
            ["services.a.restrat: unknown key; expected one of: args, ", "Did you mean 'restart'?"],
            id="unknown nested key",
        ),
        pytest.param(
            {"files": [{"from": "smoke.sh", "too": "/x"}]},
            ["files[0].too: unknown key; expected one of: from, to. ", "files[0].to: missing key"],
            id="unknown key in a list",
        ),
        pytest.param(
            {"title": None},
            ["title: empty; expected a string (the image in a few words, on one line). Change"],
            id="empty",
        ),
        pytest.param(
            {"version": 1.2},
            ["version: the number 1.2; expected a string (", "Put the value in quotes."],
            id="number for text",
        ),
        pytest.param(
            {"ports": {"web": True}},
            ["ports.web: true; expected a whole number (a port number). Change the value."],
            id="boolean for number",
        ),
        pytest.param(
            {"ports": {"web": 70000}},
            ["ports.web: 70000; expected at most 65535 (a port number)."],
            id="port",
        ),
        pytest.param(
            {"variants": ["gpuu"]},
            ["variants[0]: 'gpuu'; expected one of: cpu, gpu. Did you mean 'gpu'?"],
            id="unknown choice",
        ),
        pytest.param({"variants": []}, ["variants: 0 items; expected at least 1"], id="no variant"),
        pytest.param(
            {"packages": ["curl", "curl"]},
            ["packages: duplicate item 'curl'; expected"],
            id="twice",
        ),
        pytest.param(
            {"packages": ["curl; rm -rf /"]}, ["packages[0]", "the name of an apt"], id="shell code"
        ),
        pytest.param(
            {"command": "gunicorn app"},
            ["command: the string 'gunicorn app'; expected a list ("],
            id="command as text",
        ),
        pytest.param({"user": {"uid": 0}}, ["user.uid: 0; expected at least 1"], id="root"),
        pytest.param(
            {"files": [{"from": "../../other/file", "to": "/x"}]},
            ["files[0].from", "a path in the image's folder"],
            id="path out of the catalogue",
        ),
        pytest.param(
            {"files": [{"from": "../_shared/start", "to": "/x"}]},
            ["files[0].from", "a path in the image's folder"],
            id="path of no image",
        ),
        pytest.param(
            {"files": [{"from": "../shared/start", "to": "/x"}]},
            ["files[0].from", "a path in the image's folder"],
            id="path that the context has",
        ),
        pytest.param(
            {"smoke": {"file": "../other/smoke.sh"}},
            ["smoke.file: '../other/smoke.sh'", "file of the image's folder"],
            id="smoke test of another image",
        ),
        pytest.param({"workdir": "srv"}, ["workdir", "an absolute path"], id="relative workdir"),
        pytest.param(
            {"title": "two\nlines"},
            ["title: 'two\\nlines'; expected ", "on one line"],
            id="two lines",
        ),
        pytest.param({"title": "one\n"}, ["title: 'one\\n'; expected"], id="newline at the end"),
        pytest.param(
            {"ports": {8888: 8888}},
            ["ports.8888: key 8888; expected a string", "in quotes"],
            id="number",
        ),
    ],
)
def test_an_invalid_declaration_names_file_and_key(
    folder: Path, write: Write, keys: dict[str, Any], words: list[str]
) -> None:
    image = write(**keys)
    message = refusal(folder)
    assert str(image / "image.yml") in message
    for word in words:
        assert word in message


def test_a_missing_key_is_named(folder: Path, write: Write) -> None:
    image = write()
    (image / "image.yml").write_text("title: A tool\n", encoding="utf-8")
    message = refusal(folder)
    assert all(
        f":1: {key}: missing key; expected a value (" in message
        for key in ("description", "licence", "smoke")
    )


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        pytest.param(
            "title: a\ndescription: tools: b\n", 2, "invalid YAML: mapping values", id="colon"
        ),
        pytest.param("title: a\n\tx: b\n", 2, "invalid YAML: found a tab character", id="tab"),
        pytest.param("title: a\ntitle: b\n", 2, "invalid YAML: duplicate key 'title'.", id="twice"),
        pytest.param("title: a\n  version: b\n", 2, "invalid YAML", id="indentation"),
        pytest.param("title: [a\n", 2, "invalid YAML", id="open bracket"),
        pytest.param("- a\n", 1, "a list; expected a mapping", id="list"),
        pytest.param("", 1, "empty; expected a mapping", id="empty file"),
        pytest.param("? [a]\n: b\n", 1, "invalid YAML", id="list as key"),
        pytest.param("title: a\nbuild:\n  x: 1\n", 3, "build.x: unknown key", id="key"),
    ],
)
def test_an_error_names_the_line(
    folder: Path, write: Write, text: str, line: int, words: str
) -> None:
    image = write()
    (image / "image.yml").write_text(text, encoding="utf-8")
    assert f"{image / 'image.yml'}:{line}: {words}" in refusal(folder)


def test_a_binary_file_is_an_error(folder: Path, write: Write) -> None:
    (write() / "image.yml").write_bytes(b"title: x\ntitle: \xff\n")
    assert "image.yml:2: found a byte that is not UTF-8; expected UTF-8." in refusal(folder)


def test_a_name_that_does_not_exist_is_shown_with_its_line(folder: Path, write: Write) -> None:
    write(ports={"api": 80}, services={"a": {"publish": {"api": 80}, "urls": {"web": "/"}}})
    text = (folder / "tool/image.yml").read_text(encoding="utf-8")
    line = next(n for n, one in enumerate(text.splitlines(), 1) if "urls" in one)
    assert f"image.yml:{line}: services.a.urls: unknown port 'web'" in refusal(folder)


def test_an_editable_package_is_refused(folder: Path, write: Write) -> None:
    write(requirements="p.in", contents={"p.in": "flask\n-e .\n", "p.lock": LOCK})
    assert "p.in:2: '-e .': expected the name of a package" in refusal(folder)


@pytest.mark.parametrize(
    ("keys", "files", "words"),
    [
        pytest.param(
            {"base": "debian-31"},
            {},
            ["base: unknown base or image 'debian-31'; expected", "Did you mean 'debian-13'?"],
            id="base",
        ),
        pytest.param(
            {"files": [{"from": "ap.py", "to": "/x"}]},
            {"app.py": ""},
            ["files[0].from", "ap.py does not exist", "Did you mean 'app.py'?"],
            id="file",
        ),
        pytest.param(
            {"smoke": {"file": "smoke.py"}},
            {},
            ["smoke.file", "smoke.py does not exist", "Did you mean 'smoke.sh'?"],
            id="smoke",
        ),
        pytest.param(
            {"requirements": "python.in"},
            {"python.in": "flask\n"},
            ["requirements", "python.lock does not exist"],
            id="no lock",
        ),
        pytest.param(
            {"requirements": {"gpu": "python.in"}},
            {"python.in": "flask\nScikit_Learn>=1\n", "python.lock": LOCK},
            ["python.lock: package scikit-learn is missing; expected every package of python.in"],
            id="old lock",
        ),
        pytest.param(
            {"requirements": "python.in"},
            {"python.in": "flask\n", "python.lock": "flask==3.1\n"},
            ["python.lock: has no hashes"],
            id="no hashes",
        ),
        pytest.param(
            {"requirements": "python.in"},
            {"python.in": "flask\n", "python.lock": f"--index-url https://x.test/\n{LOCK}"},
            ["python.lock: contains the address of"],
            id="address in lock",
        ),
        pytest.param(
            {"services": {"a": {"publish": {"web": 80}}}, "ports": {"api": 80}},
            {},
            ["services.a.publish: unknown port 'web'; expected one of: api."],
            id="published port",
        ),
        pytest.param(
            {"services": {"a": {"urls": {"web": "/"}}}},
            {},
            ["services.a.urls: unknown port 'web'"],
            id="page",
        ),
        pytest.param(
            {"services": {"a": {"endpoint": {"port": "web"}}}},
            {},
            ["services.a.endpoint.port: unknown port 'web'; expected none, because"],
            id="endpoint",
        ),
        pytest.param(
            {
                "ports": {"web": 80},
                "services": {
                    "a": {
                        "endpoint": {"port": "web", "secret": "tokn"},
                        "secrets": {"token": {"path_variable": "T"}},
                    }
                },
            },
            {},
            [
                "services.a.endpoint.secret: unknown or optional secret 'tokn'",
                "Did you mean 'token'?",
            ],
            id="secret",
        ),
        pytest.param(
            {
                "ports": {"web": 80},
                "services": {
                    "a": {
                        "endpoint": {"port": "web", "secret": "token"},
                        "secrets": {"token": {"path_variable": "T", "otherwise": "omitted"}},
                    }
                },
            },
            {},
            ["services.a.endpoint.secret: unknown or optional secret 'token'"],
            id="secret that may be missing",
        ),
        pytest.param(
            {"ports": {"web": 80}, "services": {"a": {"urls": {"web": "/?token={token}"}}}},
            {},
            ["services.a.urls: {token} without endpoint.secret"],
            id="token of nothing",
        ),
        pytest.param(
            {"services": {"a": {"args": ["URL"]}}},
            {},
            ["services.a.args: unknown build argument 'URL'"],
            id="build argument of a service",
        ),
        pytest.param(
            {"aliases": {"j8": {"description": "x", "publish": {"web": 80}}}},
            {},
            ["aliases.j8.publish: unknown port 'web'"],
            id="alias port",
        ),
    ],
)
def test_files_and_names_in_a_declaration_must_exist(
    folder: Path, write: Write, keys: dict[str, Any], files: dict[str, str], words: list[str]
) -> None:
    write(contents=files, **keys)
    message = refusal(folder)
    for word in words:
        assert word in message


def test_an_alias_of_two_images_is_an_error(folder: Path, write: Write) -> None:
    write("one", aliases={"j8": {"description": "x"}})
    write("two", aliases={"lab": {"description": "x", "names": ["j8"]}})
    assert "two/image.yml:2: aliases.lab: duplicate alias 'j8'" in refusal(folder)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        pytest.param("Tool", "invalid image name 'Tool'", id="upper case"),
        pytest.param("debian-13", "the image has the name of base 'debian-13'", id="base"),
        pytest.param("default", "the image has the name of base 'default'", id="default"),
    ],
)
def test_a_folder_with_the_name_of_a_base_is_an_error(
    folder: Path, write: Write, name: str, words: str
) -> None:
    write(name)
    assert words in refusal(folder)


def test_a_folder_without_a_declaration_is_an_error(folder: Path) -> None:
    (folder / "tool").mkdir()
    assert "tool: image.yml is missing" in refusal(folder)


def test_hidden_and_shared_folders_and_files_are_not_images(folder: Path) -> None:
    (folder / ".cache").mkdir()
    (folder / "_notes").mkdir()
    (folder / "README.md").touch()
    assert load_catalogue(folder).images == {}


def test_a_circle_of_bases_is_an_error(folder: Path, write: Write) -> None:
    write("one", base="two")
    write("two", base="three")
    write("three", base="one")
    assert "base: circle of images: one -> two -> three -> one" in refusal(folder)


def test_the_default_base_must_exist(folder: Path) -> None:
    text = (folder / "bases.yml").read_text(encoding="utf-8")
    (folder / "bases.yml").write_text(text.replace("default: debian-13", "default: debian-14"))
    assert "bases.yml: default: unknown base 'debian-14'" in refusal(folder)


# Errors in requests


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        pytest.param(
            {"names": ["tol"]}, ["unknown image 'tol'", "Did you mean 'tool'?"], id="name"
        ),
        pytest.param(
            {"variant": "tpu"}, ["unknown variant 'tpu'; expected one of: cpu, gpu"], id="variant"
        ),
        pytest.param(
            {"base": "ubuntu"}, ["bases.yml: unknown base 'ubuntu'", "ubuntu-24.04"], id="base"
        ),
        pytest.param(
            {"args": {"tool": {"VERSON": "2"}}},
            ["args: unknown build argument 'VERSON'", "Did you mean 'VERSION'?"],
            id="argument",
        ),
        pytest.param({"args": {"tol": {}}}, ["unknown image 'tol'"], id="image of an argument"),
        pytest.param(
            {"args": {"tool": {"VERSION": "1\nRUN x"}}},
            ["ml_catalogue_build_args: tool.VERSION is '1\\nRUN x'; expected text on one line"],
            id="argument of two lines",
        ),
        pytest.param(
            {"args": {"tool": None}},
            ["ml_catalogue_build_args: tool is None; expected a mapping"],
            id="nothing",
        ),
        pytest.param(
            {"args": {"tool": {"VERSION": 2}}},
            ["ml_catalogue_build_args: tool.VERSION is 2; expected text on one line"],
            id="number",
        ),
    ],
)
def test_an_invalid_request_is_an_error(
    folder: Path, write: Write, ask: dict[str, Any], words: list[str]
) -> None:
    write(args={"VERSION": {"default": "1", "description": "x"}})
    catalogue = load_catalogue(folder)
    with pytest.raises(CatalogueError) as caught:
        catalogue.builds(**{"names": ["tool"], "variant": "cpu", **ask})
    for word in words:
        assert word in str(caught.value)


def test_python_packages_need_a_base_with_a_current_python(folder: Path, write: Write) -> None:
    write(requirements="a.in", contents={"a.in": "flask\n", "a.lock": LOCK}, base="debian-13")
    catalogue = load_catalogue(folder)
    old = replace(
        catalogue.bases["debian-13"],
        python=replace(catalogue.bases["debian-13"].python, version="3.9"),  # type: ignore[type-var]
    )
    for base, words in ((old, "has Python 3.9"), (replace(old, python=None), "has no Python")):
        with pytest.raises(CatalogueError, match=words):
            replace(catalogue, bases={"debian-13": base}).builds(["tool"], "cpu")


def test_an_error_in_a_template_names_file_and_line(folder: Path, write: Write) -> None:
    write(contents={"Dockerfile.j2": '{% extends "Dockerfile.j2" %}\n{% block files %}{{ typo }}'})
    with pytest.raises(CatalogueError, match=r"tool/Dockerfile.j2:2: "):
        build(folder)
    write(contents={"Dockerfile.j2": "{{ typo }}"})
    with pytest.raises(CatalogueError, match=r"tool/Dockerfile.j2: 'typo' is undefined"):
        build(folder)


def test_links_in_a_context_are_errors(folder: Path, write: Write) -> None:
    image = write(files=[{"from": "app", "to": "/app"}])
    (image / "app").mkdir()
    (image / "app/link").symlink_to("/etc/passwd")
    with pytest.raises(CatalogueError, match="app/link: not a plain file or folder"):
        build(folder)


def test_a_file_of_another_image_is_in_the_context(folder: Path, write: Write) -> None:
    write("other", {"serve": "one"})
    write(files=[{"from": "../other/serve", "to": "/serve"}])
    before = build(folder)
    assert {file.path: file.content for file in before.files}["other/serve"] == b"one"
    # Docker resolves this path to other/serve.
    assert "COPY image/../other/serve /serve" in before.dockerfile
    write("other", {"serve": "two"})
    assert build(folder).digest != before.digest


# Builds of the requested names


def references(builds: list[ImageBuild]) -> list[str]:
    return [build.reference for build in builds]


def test_an_image_is_built_once_after_its_parent(folder: Path, write: Write) -> None:
    write("above", base="middle")
    write("beside", base="ground")
    write("middle", base="ground")
    write("ground")
    builds = load_catalogue(folder).builds(["above", "beside", "middle"], "cpu")
    assert references(builds) == [
        "slipway/ground:cpu",
        "slipway/middle:cpu",
        "slipway/above:cpu",
        "slipway/beside:cpu",
    ]
    ground, middle, above, _ = builds
    assert (ground.parent, ground.base) == (None, ground.root)
    assert (middle.parent, middle.base) == ("slipway/ground:cpu", None)
    assert above.root.name == "debian-13"
    assert above.labels["org.opencontainers.image.base.name"] == "slipway/middle:cpu"


@pytest.mark.parametrize(
    ("offered", "below", "wanted", "expected"),
    [
        (["cpu", "gpu"], ["cpu", "gpu"], "gpu", ["slipway/ground:gpu", "slipway/tool:gpu"]),
        (["cpu", "gpu"], ["cpu", "gpu"], "cpu", ["slipway/ground:cpu", "slipway/tool:cpu"]),
        (["cpu"], ["cpu", "gpu"], "gpu", ["slipway/ground:cpu", "slipway/tool:cpu"]),
        (["gpu"], ["cpu"], "gpu", ["slipway/ground:cpu", "slipway/tool:gpu"]),
    ],
)
def test_a_host_gets_a_variant_that_it_can_use(
    folder: Path,
    write: Write,
    offered: list[str],
    below: list[str],
    wanted: str,
    expected: list[str],
) -> None:
    write("ground", variants=below)
    write(base="ground", variants=offered)
    assert references(load_catalogue(folder).builds(["tool"], wanted)) == expected


def test_an_image_without_cpu_variant_needs_a_gpu(folder: Path, write: Write) -> None:
    write(variants=["gpu"])
    with pytest.raises(CatalogueError, match="variants: no cpu variant"):
        build(folder)


def test_images_with_the_default_base_use_the_base_of_the_host(folder: Path, write: Write) -> None:
    write()
    write("fixed", base="debian-12")
    catalogue = load_catalogue(folder)
    for base, expected in ((None, "debian-13"), ("ubuntu-24.04", "ubuntu-24.04")):
        tool, fixed = catalogue.builds(["tool", "fixed"], "cpu", base)
        assert (tool.root.name, fixed.root.name) == (expected, "debian-12")


def test_inherited_and_not_inherited_keys(folder: Path, write: Write) -> None:
    write(
        "ground",
        variants=["cpu", "gpu"],
        ports={"web": 80},
        volumes={"data": "/data"},
        command=["serve"],
        user={"uid": 7},
        services={"web": {"publish": {"web": 8080}}},
        aliases={"serve": {"description": "Serves"}},
        environment={"A": "1"},
    )
    write(base="ground", command=["other"])
    tool = build(folder).image
    assert tool["variants"] == ["cpu", "gpu"]
    assert (tool["ports"], tool["volumes"]) == ({"web": 80}, {"data": "/data"})
    assert tool["user"] == {"uid": 7, "gid": 1000, "home": "/home/slipway"}
    assert tool["command"] == ["other"]
    assert tool["services"]["web"]["publish"] == {"web": 8080}
    assert (tool["aliases"], tool["environment"]) == ({}, {})


def test_defaults_apply_within_declared_mappings(folder: Path, write: Write) -> None:
    write(services={"s": {"memory": "1g"}}, aliases={"a": {"description": "x"}})
    image = build(folder).image
    assert image["services"]["s"] == {
        "memory": "1g",
        "sticky": False,
        "args": [],
        "environment": {},
        "publish": {},
        "secrets": {},
        "urls": {},
        "read_only": True,
        "tmpfs": ["/tmp"],
        "init": True,
        "restart": "unless-stopped",
    }
    assert image["aliases"]["a"]["gpus"] == "free"
    assert image["end_of_life"] is None


def test_a_date_in_yaml_is_a_text(folder: Path, write: Write) -> None:
    image = write()
    with (image / "image.yml").open("a", encoding="utf-8") as file:
        file.write("end_of_life: 2018-09-01\nsuccessor: pytorch\n")
    dockerfile = build(folder).dockerfile
    assert 'LABEL io.slipway.end-of-life="2018-09-01"' in dockerfile
    assert 'LABEL io.slipway.successor="pytorch"' in dockerfile


# Rendered Dockerfiles


def test_packages_and_locks_depend_on_the_variant(folder: Path, write: Write) -> None:
    write(
        variants=["cpu", "gpu"],
        packages={"all": ["curl"], "gpu": ["nvtop"]},
        requirements={"gpu": "gpu.in"},
        contents={"gpu.in": "flask\n", "gpu.lock": LOCK},
    )
    cpu, gpu = build(folder, variant="cpu"), build(folder, variant="gpu")
    assert "install-apt curl\n" in cpu.dockerfile
    assert "FROM ${BASE} AS system" in cpu.dockerfile
    assert "AS installer" not in cpu.dockerfile
    # Python has a layer of its own, which all images on the base share.
    assert "FROM python AS system" in gpu.dockerfile
    assert "install-apt python3\n" in gpu.dockerfile
    assert "install-apt curl nvtop\n" in gpu.dockerfile
    assert "install-python /opt/venv /run/gpu.lock" in gpu.dockerfile
    assert "NVIDIA_VISIBLE_DEVICES" not in cpu.dockerfile
    assert 'ENV NVIDIA_VISIBLE_DEVICES="all"' in gpu.dockerfile
    assert "image/gpu.lock" not in {file.path for file in cpu.files}


def test_an_image_gets_python_if_the_image_below_it_has_none(folder: Path, write: Write) -> None:
    write("ground", packages=["curl"])
    flask = {"requirements": "a.in", "contents": {"a.in": "flask\n", "a.lock": LOCK}}
    write("above", base="ground", **flask)
    write("top", base="above", packages=["less"], **flask)
    above, top = build(folder, "above").dockerfile, build(folder, "top").dockerfile
    assert "FROM ${BASE} AS system\nUSER root" in above
    # For the installer, and for the image.
    assert above.count("install-apt python3\n") == 2
    assert "FROM ${BASE} AS system\nUSER root" in top
    assert top.count("install-apt python3\n") == 1 and "install-apt less\n" in top


@pytest.mark.parametrize(
    ("value", "quoted"),
    [
        ("plain", '"plain"'),
        ("two words", '"two words"'),
        ("$HOME", r'"\$HOME"'),
        ('say "hi"', r'"say \"hi\""'),
        ("back\\slash", r'"back\\slash"'),
    ],
)
def test_values_are_quoted_for_docker(folder: Path, write: Write, value: str, quoted: str) -> None:
    write(environment={"A": value}, args={"B": {"default": value, "description": "x"}})
    dockerfile = build(folder).dockerfile
    assert f"ENV A={quoted}\n" in dockerfile
    assert f"ARG B={quoted}\n" in dockerfile


def test_a_build_argument_is_in_the_dockerfile(folder: Path, write: Write) -> None:
    write(args={"VERSION": {"default": "1", "description": "x"}})
    changed = build(folder, args={"tool": {"VERSION": "2"}})
    assert (build(folder).args, changed.args) == ({"VERSION": "1"}, {"VERSION": "2"})
    assert 'ARG VERSION="2"' in changed.dockerfile


def test_an_image_extends_the_shared_template(folder: Path, write: Write) -> None:
    own = '{% extends "Dockerfile.j2" %}{% block files %}{{ super() }}RUN extra\n{% endblock %}'
    write(contents={"Dockerfile.j2": own}, requirements="a.in")
    (folder / "tool/a.in").write_text("flask\n", encoding="utf-8")
    (folder / "tool/a.lock").write_text(LOCK, encoding="utf-8")
    dockerfile = build(folder).dockerfile
    assert "COPY shared/start /opt/slipway/start\nRUN extra\n" in dockerfile
    assert "install-python /opt/venv" in dockerfile


@pytest.mark.parametrize(
    ("file", "command"),
    [
        ("smoke.py", ("/opt/slipway/start", "python3", "/opt/slipway/smoke.py")),
        ("smoke.sh", ("/opt/slipway/start", "sh", "/opt/slipway/smoke.sh")),
    ],
)
def test_the_image_contains_its_smoke_test(
    folder: Path, write: Write, file: str, command: tuple[str, ...]
) -> None:
    write(contents={file: ""}, smoke={"file": file, "timeout": 7})
    tool = build(folder)
    assert (tool.smoke, tool.smoke_timeout) == (command, 7)
    assert f"COPY image/{file} {command[2]}" in tool.dockerfile


# Digests of builds


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda image: (image / "smoke.sh").write_text("x"), id="file"),
        pytest.param(lambda image: (image / "smoke.sh").chmod(0o755), id="mode"),
        pytest.param(lambda image: (image / "app/new").touch(), id="new file in a folder"),
        pytest.param(lambda image: (image / "a.lock").write_text(LOCK + "# x"), id="lock"),
        pytest.param(
            lambda image: (image.parent / "_shared/environment").write_text("x"), id="shared script"
        ),
        pytest.param(
            lambda image: (image / "Dockerfile.j2").write_text("FROM scratch\n"), id="template"
        ),
        pytest.param(
            lambda image: (image / "image.yml").write_text(
                (image / "image.yml").read_text() + "environment: {A: x}\n"
            ),
            id="declaration",
        ),
        pytest.param(
            lambda image: (image.parent / "bases.yml").write_text(
                (image.parent / "bases.yml").read_text().replace("trixie-slim", "trixie")
            ),
            id="base",
        ),
    ],
)
def test_the_digest_depends_on_everything_that_an_image_is_built_from(
    folder: Path, write: Write, change: Callable[[Path], None]
) -> None:
    image = write(
        contents={"app/a": "", "a.in": "flask\n", "a.lock": LOCK},
        files=[{"from": "app", "to": "/app"}],
        requirements="a.in",
    )
    write("above", base="tool")
    before = load_catalogue(folder).builds(["above"], "cpu")
    change(image)
    after = load_catalogue(folder).builds(["above"], "cpu")
    assert [old.digest == new.digest for old, new in zip(before, after, strict=True)] == [
        False,
        False,
    ]


def test_the_digest_depends_on_nothing_else(folder: Path, write: Write) -> None:
    image = write(
        contents={"app/a": "", "a.in": "flask\n", "a.lock": LOCK},
        files=[{"from": "app", "to": "/app"}],
        requirements="a.in",
        services={"s": {"memory": "1g"}},
    )
    before = build(folder)
    (image / "notes.md").touch()
    (image / "a.in").write_text("flask # why\n", encoding="utf-8")
    (image / "app/__pycache__").mkdir()
    (image / "app/__pycache__/a.pyc").touch()
    (image / "app/a").chmod(0o600)
    os.utime(image / "app/a", (1, 1))
    text = (image / "image.yml").read_text(encoding="utf-8").replace("1g", "2g")
    (image / "image.yml").write_text(text, encoding="utf-8")
    after = build(folder)
    assert after.digest == before.digest
    assert pack(after.files) == pack(before.files)
    assert after.labels[labels.DIGEST] == after.digest


def test_variants_and_bases_have_different_digests(folder: Path, write: Write) -> None:
    write(variants=["cpu", "gpu"])
    choices = [{}, {"variant": "gpu"}, {"base": "debian-12"}, {"base": "ubuntu-24.04"}]
    assert len({build(folder, **choice).digest for choice in choices}) == len(choices)


def test_packing_a_context_is_reproducible(folder: Path, write: Write) -> None:
    image = write(contents={"app/b": "b", "app/a": "a"}, files=[{"from": "app", "to": "/app"}])
    (image / "app/b").chmod(0o777)
    tool = build(folder)
    packed = pack(tool.files)
    assert pack(reversed(tool.files)) == packed
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        members = archive.getmembers()
        assert archive.extractfile("image/app/b").read() == b"b"  # type: ignore[union-attr]
    modes = {member.name: member.mode for member in members}
    assert modes["image/app"] == modes["image/app/b"] == 0o755
    assert modes["image/app/a"] == 0o644
    assert {(m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, "", "")}
    assert modes["shared/install-apt"] == 0o755


def test_files_of_the_same_size_have_different_dates(folder: Path, write: Write) -> None:
    """BuildKit does not read a file again if size and date are unchanged."""
    dates = set()
    for content in ("x==1.0", "x==1.1"):
        write(contents={"wishes": content}, files=[{"from": "wishes", "to": "/wishes"}])
        with tarfile.open(fileobj=io.BytesIO(pack(build(folder).files))) as archive:
            dates.add(archive.getmember("image/wishes").mtime)
    assert len(dates) == 2
    assert all(946_684_800 <= date < 2_000_000_000 for date in dates)


# Settings of pip for uv in a build


@pytest.mark.parametrize(
    ("configuration", "wheels", "options", "variables"),
    [
        pytest.param("", [], [], {}, id="nothing"),
        pytest.param("", ["a.whl"], [], {"UV_FIND_LINKS": "{wheels}"}, id="wheels"),
        pytest.param(
            "[global]\nindex-url = https://a.test\n[install]\nindex_url = https://b.test\n",
            [],
            [],
            {"UV_DEFAULT_INDEX": "https://b.test"},
            id="section for install wins",
        ),
        pytest.param(
            "[global]\nno-index = yes\nfind-links = /a\n  /b\n",
            ["a.whl"],
            ["--no-index"],
            {"UV_FIND_LINKS": "/a,/b,{wheels}"},
            id="no index",
        ),
        pytest.param(
            "[global]\nextra-index-url = https://me:secret@a.test https://b.test%2F\n"
            "trusted-host = c.test\n",
            [],
            [],
            {
                "UV_INDEX": "https://me:secret@a.test https://b.test%2F",
                "UV_INSECURE_HOST": "c.test",
            },
            id="several",
        ),
    ],
)
def test_settings_of_pip_are_passed_to_uv_without_addresses_on_its_command_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    configuration: str,
    wheels: list[str],
    options: list[str],
    variables: dict[str, str],
) -> None:
    script = runpy.run_path(str(IMAGES / "_shared/install-python"))
    folder = tmp_path / "wheels"
    folder.mkdir()
    for wheel in wheels:
        (folder / wheel).touch()
    monkeypatch.setitem(script["uv_options"].__globals__, "WHEELS", folder)
    (tmp_path / "pip.conf").write_text(configuration, encoding="utf-8")
    settings = script["pip_settings"](str(tmp_path / "pip.conf"))
    assert script["uv_options"](settings) == ["--index-strategy=unsafe-best-match", *options]
    expected = {name: value.format(wheels=folder) for name, value in variables.items()}
    assert script["uv_variables"](settings) == expected


def test_unused_test_packages_are_removed(tmp_path: Path) -> None:
    script = runpy.run_path(str(IMAGES / "_shared/install-python"))
    files = {
        "plain/tests/test_it.py": "from plain.tests.support import x",
        "plain/deep/tests/data.csv": "",
        "relative/__init__.py": "def run():\n    from .tests import runtests\n",
        "relative/tests/__init__.py": "",
        "relative/tests/data/tests/nested.py": "",
        "absolute/tool.py": "import absolute.tests.support",
        "absolute/tests/support.py": "",
        "above/deep/tool.py": "from ..tests.support import case",
        "above/tests/support.py": "",
        "package/tool.py": "from package import tests",
        "package/tests/__init__.py": "",
        "beside/tool.py": "from . import tests",
        "beside/tests/__init__.py": "",
        "module/defaults.py": "from .tests import TESTS",
        "module/tests.py": "TESTS = []",
        "tensorflow/include/tensor.h": "",
        "tensorflow/core.py": "words = 'tests'",
    }
    for path, content in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content)
    script["drop_unused"](tmp_path)
    kept = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()}
    assert set(files) - kept == {
        "plain/tests/test_it.py",
        "plain/deep/tests/data.csv",
        "tensorflow/include/tensor.h",
    }


@pytest.mark.parametrize(
    ("wanted", "there", "actions"),
    [
        pytest.param(
            "a.lock",
            False,
            [
                "sync a.lock --require-hashes",
                "install --no-deps --require-hashes --requirements /run/slipway/pip.lock",
            ],
            id="a new environment",
        ),
        pytest.param(
            "a.lock", True, ["install --no-deps --require-hashes --requirements a.lock"], id="more"
        ),
        pytest.param("torch==2.14.1", True, ["install torch==2.14.1"], id="another version"),
    ],
)
def test_the_python_of_an_image_is_found_or_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: str, there: bool, actions: list[str]
) -> None:
    script = runpy.run_path(str(IMAGES / "_shared/install-python"))
    ran: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        ran.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setitem(script["main"].__globals__, "WHEELS", tmp_path / "wheels")
    monkeypatch.delenv("PIP_CONFIG_FILE", raising=False)
    (tmp_path / "wheels").mkdir()
    venv = tmp_path / "venv"
    if there:
        (venv / "bin").mkdir(parents=True)
        (venv / "bin/python").touch()
    assert script["main"](str(venv), wanted) == 0
    environment = [] if there else [["-m", "venv", "--without-pip", str(venv)]]
    options = [f"--python={venv}/bin/python", "--index-strategy=unsafe-best-match"]
    assert [command[1:] for command in ran] == [
        *environment,
        *(["pip", *action.split(), *options] for action in actions),
    ]


def test_a_failed_installation_ends_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = runpy.run_path(str(IMAGES / "_shared/install-python"))
    ran: list[str] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        ran.append(command[2])
        return subprocess.CompletedProcess(command, 2 if command[1] == "pip" else 0)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setitem(script["main"].__globals__, "WHEELS", tmp_path)
    assert script["main"](str(tmp_path / "venv"), "a.lock") == 2
    assert ran == ["venv", "sync"]


def test_a_new_environment_uses_the_packages_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = runpy.run_path(str(IMAGES / "_shared/install-python"))
    monkeypatch.setitem(script["add_user_packages"].__globals__, "SHARED", IMAGES / "_shared")
    script["add_user_packages"](tmp_path)
    assert (tmp_path / "slipway_packages.pth").read_text() == "import slipway_packages\n"
    assert list(tmp_path.glob("__pycache__/slipway_packages.*.pyc"))


# The project's own catalogue


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return load_catalogue(IMAGES)


@pytest.mark.parametrize("base", ["debian-12", "debian-13", "ubuntu-24.04"])
@pytest.mark.parametrize("variant", ["cpu", "gpu"])
def test_every_image_follows_the_rules(catalogue: Catalogue, base: str, variant: str) -> None:
    for made in catalogue.builds(None, variant, base):
        lines = made.dockerfile.splitlines()
        # Either would download a frontend from a registry or run as root.
        assert not any("syntax=" in line for line in lines)
        assert [line for line in lines if line][-1].startswith("USER ")
        assert not lines[-1].startswith(("USER 0", "USER root"))
        assert not any(
            line.startswith(("ENV", "ARG", "COPY")) and "secret" in line for line in lines
        )
        assert "required=true" not in made.dockerfile


def test_an_image_for_newer_releases_of_python_is_refused(catalogue: Catalogue) -> None:
    assert "jax" in {made.name for made in catalogue.builds(None, "cpu", "debian-13")}
    assert "jax" not in {made.name for made in catalogue.builds(None, "cpu", "debian-12")}
    with pytest.raises(
        CatalogueError, match=r"debian-12 has Python 3\.11; expected Python 3\.12 or newer"
    ):
        catalogue.builds(["jax"], "cpu", "debian-12")


def test_deepdocker_has_the_locked_frameworks_unless_versions_are_set(
    catalogue: Catalogue,
) -> None:
    def dockerfile(**args: str) -> str:
        chosen = {"deepdocker": args}
        return catalogue.builds(["deepdocker"], "cpu", "debian-13", chosen)[-1].dockerfile

    locked = dockerfile()
    assert locked.count("install-python /opt/venv") == 1
    assert "install-rstudio https" not in locked
    chosen = dockerfile(TENSORFLOW_VERSION="2.20.0", PYTORCH_VERSION="2.14.1")
    for package in ("tensorflow-cpu==2.20.0", "torch==2.14.1"):
        assert f"install-python /opt/venv {package}" in chosen
    url = "https://mirror.example/rstudio.deb"
    with_rstudio = dockerfile(RSTUDIO_URL=url, RSTUDIO_SHA256="0123abcd")
    assert f"/opt/slipway/install-rstudio {url} 0123abcd" in with_rstudio


def test_services_of_deepdocker_listen_on_the_declared_ports(catalogue: Catalogue) -> None:
    folder = IMAGES / "deepdocker"
    ports = catalogue.images["deepdocker"].settings["ports"]
    services = {file.stem for file in (folder / "services").glob("*.conf")} - {"supervisord"}
    assert services == set(ports)
    checked = runpy.run_path(str(folder / "services_health.py"))["PORTS"]
    assert checked == {name: port for name, port in ports.items() if name != "ssh"}


@pytest.mark.parametrize("name", ["legacy-caffe-theano", "legacy-torch7"])
def test_unmaintained_images_have_a_notice_and_no_network(catalogue: Catalogue, name: str) -> None:
    (made,) = catalogue.builds([name], "gpu", "debian-13")
    assert made.variant == "cpu"
    assert made.image["network"] == "none"
    assert 'LABEL io.slipway.end-of-life="20' in made.dockerfile
    assert "LABEL io.slipway.successor=" in made.dockerfile


def test_images_not_proven_by_the_project_are_reported(catalogue: Catalogue) -> None:
    told = {
        made.name
        for made in catalogue.builds(None, "cpu")
        if "not proven by" in " ".join(made.notes)
    }
    assert told == {"legacy-torch7"}


@pytest.mark.parametrize(
    ("schema", "files"),
    [
        ("image.schema.json", sorted(IMAGES.glob("*/image.yml"))),
        ("bases.schema.json", [IMAGES / "bases.yml"]),
    ],
)
def test_the_schema_accepts_all_declarations(schema: str, files: list[Path]) -> None:
    rules = json.loads((IMAGES / schema).read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(rules)
    validator = jsonschema.Draft202012Validator(rules)
    for file in files:
        validator.validate(yaml.safe_load(file.read_text(encoding="utf-8")))
        assert f"$schema={os.path.relpath(IMAGES / schema, file.parent)}\n" in file.read_text()


@pytest.mark.parametrize(
    "change",
    [
        {"x": 1},
        {"title": 1},
        {"title": "a\nb"},
        {"variants": []},
        {"variants": ["x"]},
        {"ports": {"a": 0}},
        {"ports": {"A B": 1}},
        {"packages": {"all": ["ab", "ab"]}},
        {"user": []},
        {"requirements": {"tpu": "a.in"}},
        {"requirements": "a.txt"},
        {"services": {"a": {"cpus": 0}}},
        {"services": {"a": {"secrets": {"t": {}}}}},
        {"healthcheck": {}},
        {"build": {"run": [[]], "outputs": []}},
        {"ports": {"a": True}},
        {"ports": {"a": 1}},
        {"packages": ["abc=1:2"]},
        {"requirements": {"cpu": "a.in"}},
    ],
)
def test_the_schema_and_the_catalogue_report_the_same_errors(change: dict[str, Any]) -> None:
    rules = json.loads((IMAGES / "image.schema.json").read_text(encoding="utf-8"))
    document = {**TOOL, **change}
    ours = not list(declaration.validate(document, rules))
    assert ours is jsonschema.Draft202012Validator(rules).is_valid(document)


def test_all_errors_are_listed_by_line(folder: Path, write: Write) -> None:
    file = write() / "image.yml"
    file.write_text("zz: 1\ntitle: 2\nsmoke: {file: smoke.sh}\nports:\n  web: 80.0\n")
    lines = refusal(folder).splitlines()
    keys = ["zz", "description", "licence", "version", "title", "ports.web"]
    assert sorted(line.split(": ")[1] for line in lines) == sorted(keys)
    numbers = [int(line.split(": ")[0].rpartition(":")[2]) for line in lines]
    assert numbers == [1, 1, 1, 1, 2, 5]
    assert lines[-1] == (
        f"{file}:5: ports.web: the number 80.0; expected a whole number (a port number). "
        "Change the value."
    )


def test_every_keyword_of_the_schema_is_enforced() -> None:
    (problem,) = declaration.validate({"a": "long"}, {"properties": {"a": {"maxLength": 2}}})
    assert str(problem) == "a: 'long'; expected a value that fits maxLength: 2. Change the value."


@pytest.fixture
def no_jsonschema(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    declaration._validator_class.cache_clear()
    yield
    declaration._validator_class.cache_clear()


@pytest.mark.usefixtures("no_jsonschema")
def test_without_jsonschema_another_catalogue_is_an_error(folder: Path, write: Write) -> None:
    write()
    message = refusal(folder)
    assert "bases.yml: cannot validate the file" in message
    assert "pip install jsonschema" in message


@pytest.mark.usefixtures("no_jsonschema")
def test_without_jsonschema_an_unchanged_catalogue_of_the_collection_is_read(
    folder: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write() / "image.yml"
    collection = folder.parent
    entries = [
        {
            "name": str(path.relative_to(collection)),
            "chksum_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in (folder / "bases.yml", file)
    ]
    (collection / "FILES.json").write_text(json.dumps({"files": entries}))
    check = partial(released.is_released, collection=collection.resolve())
    monkeypatch.setattr(released, "is_released", check)
    assert load_catalogue(folder).images["tool"].settings["title"] == TOOL["title"]
    file.write_text(f"{file.read_text()}# changed\n")
    released._read_digests.cache_clear()
    assert f"{file}: cannot validate the file" in refusal(folder)


def test_the_source_tree_has_no_released_files() -> None:
    assert not released.is_released(IMAGES / "bases.yml")
    assert not released.is_released(Path(released.__file__))


def test_jsonschema_is_imported_only_to_read_a_catalogue() -> None:
    """Its import takes longer than a survey with the catalogue in the cache."""
    program = (
        "import sys\n"
        "from ansible_collections.slipway.host.plugins.module_utils.images import index\n"
        "from ansible_collections.slipway.host.plugins.module_utils.images import catalogue\n"
        "assert 'jsonschema' not in sys.modules\n"
        f"catalogue.load_catalogue(__import__('pathlib').Path({str(IMAGES)!r}))\n"
        "assert 'jsonschema' in sys.modules\n"
    )
    subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT / "collections")},
        check=True,
    )
