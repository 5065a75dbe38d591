# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A changed image replaces a running service, a broken image does not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.host.conftest import DECLARED, ROOT, Site

pytestmark = pytest.mark.host

IMAGE = "slipway/iris-api:cpu"
# Words that must be found nowhere in an image that was built with them.
CANARY = "canary-7f3a91"


@pytest.fixture(scope="module")
def restored(converged: Site) -> Iterator[None]:
    """After the last test of this file, the site goes back to the real catalogue."""
    yield
    converged.declare(**DECLARED)
    converged.converge()


@pytest.fixture
def catalogue(converged: Site, restored: None, tmp_path: Path) -> Path:
    """A copy of the catalogue that a test may change."""
    copy = tmp_path / "images"
    shutil.copytree(ROOT / "images", copy)
    converged.declare(**DECLARED, ml_catalogue_folder=str(copy))
    return copy


# Asks in a process of its own, since ansible-runner forks this one.
ASK = """
import sys, time, urllib.request
request = urllib.request.Request(sys.argv[1], data=b'{"length": 5.1, "width": 2.4}',
                                 headers={"Content-Type": "application/json"})
while True:
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            print(answer.read().decode(), end="", flush=True)
    except urllib.error.HTTPError as error:
        print(error, flush=True)
    except OSError:
        pass  # nobody listens for a moment while the container is replaced
    time.sleep(0.05)
"""


@contextmanager
def asked_all_the_time(site: Site) -> Iterator[list[str]]:
    """Ask the API in a loop; afterwards the list holds the answers that came, right or wrong."""
    url = f"http://{site.host.address}:5000/predict"
    answers: list[str] = []
    with subprocess.Popen(
        [sys.executable, "-c", ASK, url], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield answers
        finally:
            process.terminate()
            answers += process.communicate()[0].splitlines()


def test_one_changed_line_rebuilds_the_image_and_replaces_the_service(
    converged: Site, catalogue: Path
) -> None:
    page = catalogue / "iris-api" / "iris_api" / "page.html"
    page.write_text(page.read_text().replace("</body>", "<!-- changed --></body>"))
    before = converged.on("docker ps --quiet --no-trunc")
    with asked_all_the_time(converged) as answers:
        run = converged.converge()
    assert run.changed() == {
        "ml_images: Build missing or outdated images",
        "ml_services: Start declared services, remove undeclared ones",
    }
    assert converged.on("docker ps --quiet --no-trunc") != before
    assert set(answers) == {'{"prediction":"virginica"}'}


def test_failing_smoke_test_leaves_the_old_image_serving(converged: Site, catalogue: Path) -> None:
    smoke = catalogue / "iris-api" / "smoke.py"
    smoke.write_text("import sys\nsys.exit('the model has forgotten everything')\n")
    before = converged.on(
        "docker ps --quiet --no-trunc; docker image ls --no-trunc --quiet " + IMAGE
    )
    with asked_all_the_time(converged) as answers:
        run = converged.run("site.yml")
    assert run.status == "failed"
    assert "the smoke test failed; the previous image stays in use" in run.output
    assert "the model has forgotten everything" in run.output
    after = converged.on(
        "docker ps --quiet --no-trunc; docker image ls --no-trunc --quiet " + IMAGE
    )
    assert after == before
    assert set(answers) == {'{"prediction":"virginica"}'}
    assert "candidate" not in converged.on("docker image ls")


def test_unknown_key_of_an_image_is_named(converged: Site, catalogue: Path) -> None:
    declaration = catalogue / "iris-api" / "image.yml"
    declaration.write_text(declaration.read_text() + "\npaquages: [curl]\n")
    run = converged.run("site.yml")
    assert run.status == "failed"
    assert "image.yml" in run.output
    assert "paquages" in run.output
    assert "Did you mean 'packages'" in run.output


@pytest.mark.long
def test_build_settings_and_secrets_are_not_in_the_image(converged: Site, catalogue: Path) -> None:
    # This machine has no proxy and no mirror. Settings that apt and pip read and ignore prove the
    # same: the image does not keep the settings of the build.
    converged.on(
        "mkdir -p /srv/wheels-" + CANARY + ";"
        "(cat /etc/ssl/certs/ca-certificates.crt; echo '# " + CANARY + "') > /srv/ca.crt"
    )
    converged.declare(
        **DECLARED,
        ml_catalogue_folder=str(catalogue),
        ml_images_build={
            "ca_file": "/srv/ca.crt",
            "pip_conf": f"[global]\ntimeout = 60\n# {CANARY}\n",
            "apt_conf": f'Acquire::{CANARY} "{CANARY}";\n',
            "proxy": {"no_proxy": f"{CANARY}.invalid"},
            "wheels": f"/srv/wheels-{CANARY}",
        },
    )
    page = catalogue / "iris-api" / "iris_api" / "page.html"
    page.write_text(page.read_text().replace("</body>", "<!-- lent --></body>"))
    converged.on("docker builder prune --all --force >/dev/null")
    converged.converge()
    converged.on(
        f"rm -rf /srv/image && mkdir /srv/image && docker save {IMAGE} | tar -x -C /srv/image;"
        # Layers are archives, compressed or not; both forms are searched.
        "find /srv/image -type f | while read -r file; do"
        " gzip -dc $file >$file.plain 2>/dev/null || rm -f $file.plain; done"
    )
    assert converged.on("find /srv/image -type f | wc -l") != "0"
    found = converged.on(f"grep -rl {CANARY} /srv/image || true")
    assert found == ""
    history = converged.on(f"docker history --no-trunc {IMAGE}; docker inspect {IMAGE}")
    assert CANARY not in history
    assert "BEGIN CERTIFICATE" not in converged.on(
        "grep -rla 'BEGIN CERTIFICATE' /srv/image || true"
    )
