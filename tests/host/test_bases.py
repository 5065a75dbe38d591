# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine on other releases than Debian 13, if a host with the release can be created.

Ubuntu needs a registry, Debian 12 needs Docker's repository, and Debian unstable may be broken.  An
unavailable release is skipped with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.errors import LabError
from lab.host_spec import HostSpec
from lab.hosts import Group
from tests.host.conftest import Site

pytestmark = pytest.mark.host

GROUP = "pytest-bases"
UNREACHED = "has no packages of BuildKit and compose v2"


class BaseSite(Site):
    """A host that only the engine's role looks after."""

    extra = {"slipway_roles": ["docker_engine"]}


@pytest.fixture(scope="module")
def bases() -> Iterator[Group]:
    group = Group(GROUP)
    group.remove()
    yield group
    group.remove()


@pytest.mark.parametrize(
    "base",
    [
        # Hosts with a T4 in test_gpu_hosts.py run Debian unstable as well.
        pytest.param("debian-sid", marks=pytest.mark.long),
        *("debian-12", "ubuntu-22.04", "ubuntu-24.04", "ubuntu-26.04"),
    ],
)
def test_the_engine_is_installed_on_other_releases(
    base: str, bases: Group, tmp_path_factory: pytest.TempPathFactory
) -> None:
    name = base.replace(".", "-")
    try:
        host = bases.ensure(HostSpec(name, base=base))
    except LabError as error:
        pytest.skip(f"no host of {base}: {error}")
    site = BaseSite(host, tmp_path_factory.mktemp(name))
    site.declare()
    run = site.run("site.yml")
    if run.status != "successful" and UNREACHED in " ".join(run.output.split()):
        # It was refused in words and before anything changed.
        assert run.changed() == set()
        pytest.skip(f"{base} needs Docker's own repository, which cannot be reached here")
    if base == "debian-sid" and run.status != "successful" and "apt-get" in run.output:
        pytest.skip("Debian unstable cannot install its own packages today")
    assert run.status == "successful", run.output
    assert "Docker Engine" in run.output
    assert site.plan() == (0, set())
