# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Smoke tests of the images on a host, with a script as the engine."""

from __future__ import annotations

import json
import os
import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils import basic
from ansible.module_utils.testing import patch_module_args
from ansible_collections.slipway.host.plugins.module_utils.docker import labels as docker_labels
from ansible_collections.slipway.host.plugins.module_utils.images import smoke as images_smoke
from ansible_collections.slipway.host.plugins.module_utils.state import containers
from ansible_collections.slipway.host.plugins.modules import image_smoke

TOOL, OTHER = "slipway/tool:cpu", "slipway/other:gpu"

# $ENGINE/images.json maps references to labels; a container runs $ENGINE/run.
DOCKER = """#!{python} -IS
import json, os, sys
engine = os.environ["ENGINE"]
words = sys.argv[1:]
with open(engine + "/log", "a") as log:
    log.write(json.dumps(words) + "\\n")
images = json.load(open(engine + "/images.json"))
if words[:2] == ["image", "inspect"]:
    tag = words[-1].replace("sha256:", "")
    if tag not in images:
        sys.exit("Error: No such image: " + tag)
    labels = images[tag]
    content = {{"Id": "sha256:" + tag, "Created": "2026-01-01T00:00:00Z", "Config": {{}}}}
    content["Config"]["Labels"] = labels
    print(labels["io.slipway.variant"] if "--format" in words else json.dumps([content]))
if words[0] == "info":
    print(open(engine + "/info.json").read())
if words[0] == "run":
    exec(open(engine + "/run").read())
"""


class Engine:
    """A stand-in engine with two images whose smoke tests pass."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        smoke = json.dumps(["/opt/slipway/start", "python3", "/opt/slipway/smoke.py"])
        self.images: dict[str, dict[str, str]] = {
            TOOL: {docker_labels.SMOKE: smoke, "io.slipway.variant": "cpu"},
            OTHER: {docker_labels.SMOKE: smoke, "io.slipway.variant": "gpu"},
        }
        # With CDI, but without a specification.
        self.info: dict[str, Any] = {"CDISpecDirs": [str(folder / "none"), str(folder / "cdi")]}
        self.run = "print('smoke: 1.0 s  does its job'); print('a word of a library')"

    def prove(self, *references: str, timeout: int = 30, **more: Any) -> dict[str, Any]:
        """Run the module; return its result."""
        (self.folder / "images.json").write_text(json.dumps(self.images))
        (self.folder / "info.json").write_text(json.dumps(self.info))
        (self.folder / "run").write_text(self.run)
        with patch_module_args({"references": list(references), "timeout": timeout, **more}):
            return run_module()

    def runs(self) -> list[list[str]]:
        """Return the commands that started a container."""
        log = (self.folder / "log").read_text().splitlines()
        return [words for words in map(json.loads, log) if words[0] == "run"]


class Ended(Exception):
    """The module ended."""


def run_module() -> dict[str, Any]:
    ended: dict[str, Any] = {}

    def end(self: basic.AnsibleModule, **result: Any) -> None:
        ended.update(result)
        raise Ended

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(basic.AnsibleModule, "exit_json", end)
        patch.setattr(
            basic.AnsibleModule,
            "fail_json",
            lambda self, msg, **result: end(self, failed=True, msg=msg, **result),
        )
        with pytest.raises(Ended):
            image_smoke.main()
    return ended


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    (tmp_path / "docker").write_text(DOCKER.format(python=sys.executable))
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("ENGINE", str(tmp_path))
    monkeypatch.setattr(images_smoke, "GPU_DEVICE", tmp_path / "nvidiactl")
    monkeypatch.setattr(containers, "IMAGE_RECORDS", str(tmp_path / "records"))
    return Engine(tmp_path)


def test_each_image_is_tested_by_the_command_in_its_label(engine: Engine) -> None:
    result = engine.prove(TOOL, OTHER)
    assert result == {
        "changed": False,
        "proven": {
            TOOL: ["smoke: 1.0 s  does its job"],
            OTHER: ["smoke: 1.0 s  does its job"],
        },
    }
    (run, _) = engine.runs()
    assert run[-3:] == [f"sha256:{TOOL}", "python3", "/opt/slipway/smoke.py"]
    assert run[run.index("--entrypoint") + 1] == "/opt/slipway/start"


def test_the_container_of_a_smoke_test_has_few_rights(engine: Engine) -> None:
    engine.prove(TOOL)
    run = " ".join(engine.runs()[0])
    for option in (
        "--network none",
        "--read-only",
        "--user 1234:1234",
        "--cap-drop ALL",
        "--security-opt no-new-privileges",
        "--rm",
    ):
        assert option in run


@pytest.mark.parametrize(
    ("gpus", "reference", "lent"),
    [
        pytest.param(True, OTHER, True, id="a gpu image on a host with GPUs"),
        pytest.param(True, TOOL, False, id="a cpu image on a host with GPUs"),
        pytest.param(False, OTHER, False, id="a gpu image on a host without"),
    ],
)
def test_only_gpu_images_get_gpus(engine: Engine, gpus: bool, reference: str, lent: bool) -> None:
    if gpus:
        images_smoke.GPU_DEVICE.touch()
    engine.prove(reference)
    assert ("--gpus" in engine.runs()[0]) == lent


@pytest.mark.parametrize(
    ("info", "specification", "option"),
    [
        pytest.param(None, "kind: nvidia.com/gpu", ("--device", "nvidia.com/gpu=all"), id="CDI"),
        pytest.param(None, "kind: x.com/net", ("--gpus", "all"), id="CDI, of other devices"),
        pytest.param({"CDISpecDirs": None}, "kind: nvidia.com/gpu", ("--gpus", "all"), id="off"),
        pytest.param({}, "kind: nvidia.com/gpu", ("--gpus", "all"), id="before CDI"),
    ],
)
def test_gpus_are_provided_as_to_users_of_the_image(
    engine: Engine, info: dict[str, Any] | None, specification: str, option: tuple[str, str]
) -> None:
    images_smoke.GPU_DEVICE.touch()
    (engine.folder / "cdi").mkdir()
    (engine.folder / "cdi/nvidia.yaml").write_text(specification)
    engine.info = engine.info if info is None else info
    engine.prove(OTHER)
    run = engine.runs()[0]
    assert option in pairwise(run)


def test_a_failed_smoke_test_does_not_stop_the_others(engine: Engine) -> None:
    engine.run = (
        "if 'sha256:slipway/tool:cpu' in words:\n"
        "    print('smoke: FAILED: it adds up', file=sys.stderr)\n"
        "    sys.exit(3)\n"
        "print('smoke: 1.0 s  does its job')"
    )
    result = engine.prove(TOOL, OTHER)
    assert result["failed"]
    assert result["msg"] == f"{TOOL}: exit status 3\nsmoke: FAILED: it adds up"
    assert set(result["proven"]) == {OTHER}


def test_a_smoke_test_without_end_fails(engine: Engine) -> None:
    engine.run = "import time; time.sleep(30)"
    message = engine.prove(TOOL, timeout=1)["msg"]
    assert re.fullmatch(f"{TOOL}: no end after [0-9]+ s; expected one within 1 s, or .*", message)
    (run,) = engine.runs()
    # The engine keeps a container running whose docker command was killed.
    removed = ["rm", "--force", run[run.index("--name") + 1]]
    assert json.loads((engine.folder / "log").read_text().splitlines()[-1]) == removed


def test_the_error_has_the_seconds_that_a_test_had_on_a_busy_host(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.run = "import time; time.sleep(30)"
    monkeypatch.setattr(images_smoke, "STEP_SECONDS", 0.1)
    # A second counts a third.
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    monkeypatch.setattr(os, "getloadavg", lambda: (3.0, 0.0, 0.0))
    message = engine.prove(TOOL, timeout=1)["msg"]
    ((real, limit),) = re.findall(r"no end after (\d+) s; expected one within (\d+) s", message)
    assert limit == "1"
    assert int(real) >= 2


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        pytest.param(None, "image not found on the host", id="not there"),
        pytest.param({}, f"label {docker_labels.SMOKE} is missing", id="somebody else's"),
    ],
)
def test_images_without_a_smoke_test_are_reported(
    engine: Engine, labels: dict[str, str] | None, words: str
) -> None:
    del engine.images[TOOL]
    if labels is not None:
        engine.images[TOOL] = labels
    result = engine.prove(TOOL)
    assert result["failed"] and words in result["msg"]


def test_an_image_is_accepted_only_on_request_after_its_smoke_test(
    engine: Engine,
) -> None:
    engine.images[TOOL][docker_labels.DIGEST] = "d"
    assert not engine.prove(TOOL)["changed"]
    assert containers.read_image_record(TOOL) == {"time": 0}
    assert engine.prove(TOOL, record=True, _ansible_check_mode=True)["changed"]
    assert containers.read_image_record(TOOL) == {"time": 0}
    assert engine.prove(TOOL, record=True)["changed"]
    record = containers.read_image_record(TOOL)
    assert (record["digest"], record["id"], record["origin"]) == (
        "d",
        f"sha256:{TOOL}",
        "accepted",
    )
    assert not engine.prove(TOOL, record=True)["changed"]
    engine.run = "sys.exit(3)"
    assert engine.prove(OTHER, record=True)["failed"]
    assert containers.read_image_record(OTHER) == {"time": 0}
