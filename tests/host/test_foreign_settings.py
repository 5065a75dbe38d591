# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Settings of the accounts on a host change neither what a run does nor what the survey finds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.host_spec import HostSpec
from lab.hosts import Group
from tests.host.conftest import DECLARED, Site, predict

pytestmark = pytest.mark.host

# Each line is from a public report: a greeting in a shell's start file, a closed umask for all
# sessions, variables of Python and of Docker.
LOGIN = r"""
sed -i '1i echo Welcome to {host}; printf no-line-end' ~operator/.bashrc
for kind in common-session common-session-noninteractive; do
    echo 'session required pam_umask.so umask=077' >>/etc/pam.d/$kind
done
cat >>/etc/environment <<END
PYTHONPATH=/nowhere
DOCKER_HOST=tcp://192.0.2.1:2375
LC_ALL=de_DE.UTF-8
END
echo 'Defaults env_keep += "PYTHONPATH DOCKER_HOST LC_ALL"' >/etc/sudoers.d/zz-kept
"""
OTHER_ENGINE = """
unset DOCKER_HOST
mkdir -p /run/other
# With --bridge none, this engine would remove the bridge of the other one.
ip link add other0 type bridge
ip address add 10.98.0.1/24 dev other0
setsid dockerd --host unix:///run/other/docker.sock --data-root /run/other/data --bridge other0 \
    --exec-root /run/other/exec --pidfile /run/other/pid --iptables=false >/run/other/log 2>&1 &
until docker --host unix:///run/other/docker.sock info >/dev/null 2>&1; do sleep 0.2; done
docker context create other --docker host=unix:///run/other/docker.sock >/dev/null
docker context use other >/dev/null
docker buildx create --name container --driver docker-container --use >/dev/null
"""
AWAY = """
unset DOCKER_HOST
kill "$(cat /run/other/pid)"
ip link delete other0
docker context use default >/dev/null 2>&1
docker buildx rm container >/dev/null 2>&1 || true
docker context rm other >/dev/null
"""
READERS = "/etc/slipway /usr/local/lib/slipway /etc/apt/keyrings /etc/docker"


@pytest.fixture(scope="module")
def odd(group: Group, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A host whose accounts had settings of their own before the first run."""
    site = Site(group.ensure(HostSpec("foreign-1")), tmp_path_factory.mktemp("foreign"))
    site.declare(**DECLARED)
    site.on(LOGIN.format(host=site.host.name))
    site.converge()
    yield site
    group.remove("foreign-1")


def test_a_host_is_provisioned_as_usual(odd: Site) -> None:
    assert predict(odd) == {"prediction": "virginica"}
    assert odd.plan() == (0, set())


def test_users_can_read_what_was_installed_under_a_closed_umask(odd: Site) -> None:
    closed = odd.on(f"find {READERS} -maxdepth 0 ! -perm -0055 -printf 'closed: %p'")
    assert "closed: " not in closed
    assert "iris-api" in odd.on("su - alice -c 'env -u DOCKER_HOST ml list'")


def test_images_are_built_on_the_engine_of_the_host(odd: Site) -> None:
    odd.on(OTHER_ENGINE)
    try:
        odd.on("docker --host unix:///run/docker.sock image rm --force slipway/iris-api:cpu")
        odd.converge()
        images = "image ls --format 'image {{.Repository}}'"
        local = odd.on(f"docker --host unix:///run/docker.sock {images}")
        assert "image slipway/iris-api" in local
        other = "docker --host unix:///run/other/docker.sock"
        assert "image " not in odd.on(f"{other} {images}")
        assert odd.plan() == (0, set())
    finally:
        odd.on(AWAY)
