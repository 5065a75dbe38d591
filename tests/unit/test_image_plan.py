# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The job for the builder on a host: its content and its secrets."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.docker import labels
from ansible_collections.slipway.host.plugins.module_utils.images import job as images_job
from ansible_collections.slipway.host.plugins.module_utils.images.catalogue import load_catalogue
from ansible_collections.slipway.host.plugins.module_utils.images.types import ImageBuild
from ansible_collections.slipway.host.plugins.module_utils.roles import ml_images

from tests.contract.tree import ROOT
from tests.unit.gpu_facts import facts
from tests.unit.role_options import options

OPTIONS = {
    "base_source": "bootstrap",
    "ca_file": "/etc/ssl/certs/ca-certificates.crt",
    "pip_conf": "[global]\nindex-url = https://user:secret@pip.example/simple\n",
    "apt_conf": "",
    "apt_mirror": "http://apt.example/debian",
    "apt_proxy": "",
    "proxy": {"http_proxy": "http://proxy.example", "no_proxy": ""},
    "wheels": "",
}


def test_the_role_owns_each_image_by_reference_and_context_digest() -> None:
    asked = options("ml_images", present=["ml-python", "iris-api"], ml_catalogue_variant="cpu")
    found = ml_images.plan(facts("none"), asked)
    builds = load_catalogue(ROOT / "images").builds(["ml-python", "iris-api"], "cpu", found["base"])
    owned = [
        {
            "reference": build.reference,
            "digest": build.digest,
            **({"needs": [["images", build.parent]]} if build.parent else {}),
        }
        for build in builds
    ]
    assert owned[-1].keys() == {"reference", "digest"}
    assert "needs" in owned[-2]
    assert found == {
        "names": ["ml-python", "iris-api"],
        "catalogue": str(ROOT / "images"),
        "variant": "cpu",
        "base": "ubuntu-24.04",
        "args": {},
        "build": {**asked["ml_images_build"], "cache_bytes": 50 * 10**9},
        "owned": {"images": owned, "files": [], "folders": []},
    }


@pytest.fixture(scope="module")
def builds() -> list[ImageBuild]:
    return load_catalogue(ROOT / "images").builds(["iris-api"], "cpu", "debian-13")


def unpacked(archive: bytes) -> tarfile.TarFile:
    return tarfile.open(fileobj=io.BytesIO(archive))


def content(archive: bytes, name: str) -> bytes:
    member = unpacked(archive).extractfile(name)
    assert member is not None
    return member.read()


def description(archive: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(content(archive, "job.json"))
    return found


def test_the_job_has_all_values_of_each_image(builds: list[ImageBuild]) -> None:
    (build,) = builds
    (entry,) = description(images_job.pack_job(builds, OPTIONS))["builds"]
    assert entry["reference"] == "slipway/iris-api:cpu"
    assert entry["digest"] == entry["labels"][labels.DIGEST] == build.digest
    assert entry["parent"] is None
    assert entry["base"]["name"] == "debian-13"
    assert entry["base"]["bootstrap"]["suite"] == "trixie"
    assert entry["base"]["local"].startswith("slipway/base:debian-13-")
    # The host can test the image later, also an image from `docker load`.
    assert json.loads(entry["labels"][labels.SMOKE]) == entry["smoke"] == list(build.smoke)


def test_the_job_contains_the_build_context(builds: list[ImageBuild]) -> None:
    archive = images_job.pack_job(builds, OPTIONS)
    context = unpacked(content(archive, description(archive)["builds"][0]["context"]))
    assert {"Dockerfile", "image/smoke.py"} <= set(context.getnames())


def test_empty_options_are_omitted(builds: list[ImageBuild]) -> None:
    job = description(images_job.pack_job(builds, OPTIONS))
    assert job["proxy"] == {"http_proxy": "http://proxy.example"}
    assert job["secrets"] == {"pip_conf": "secrets/pip_conf", "ca": OPTIONS["ca_file"]}
    plain = description(images_job.pack_job(builds, {}))
    assert (plain["base_source"], plain["proxy"]) == ("auto", {})
    # By default, a build trusts the certificates of its host.
    assert plain["secrets"] == {"ca": "/etc/ssl/certs/ca-certificates.crt"}
    assert description(images_job.pack_job(builds, {"ca_file": ""}))["secrets"] == {}


def test_secrets_are_separate_files_that_only_root_reads(builds: list[ImageBuild]) -> None:
    archive = images_job.pack_job(builds, OPTIONS)
    assert content(archive, "secrets/pip_conf").decode() == OPTIONS["pip_conf"]
    assert b"user:secret" not in content(archive, "job.json")
    assert {member.mode for member in unpacked(archive).getmembers()} == {0o600}


def test_the_builder_needs_only_the_files_of_the_job(
    builds: list[ImageBuild], tmp_path: Path
) -> None:
    """A missing import would fail on a host only."""
    with unpacked(images_job.pack_job(builds, OPTIONS)) as archive:
        archive.extractall(tmp_path, filter="data")
    started = subprocess.run(
        [sys.executable, "-S", "-c", f"import {images_job.BUILDER}"],
        cwd=tmp_path,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        capture_output=True,
        text=True,
    )
    assert started.stderr == ""
    assert started.returncode == 0


def test_a_builder_that_is_not_in_the_inventory_is_refused() -> None:
    for builders in (["auto"], ["build01"], []):
        ml_images.plan(facts("none"), options("ml_images", builder=builders))
    with pytest.raises(ValueError, match="ml_images_builder: build02 is not in the inventory"):
        ml_images.plan(facts("none"), options("ml_images", builder=["build01", "build02"]))
