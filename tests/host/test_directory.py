# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Accounts and groups of a directory service on a real host.

The service is the NSS module libnss-extrausers of Debian: NSS knows its accounts, /etc/passwd does
not. It stands for SSSD, winbind and LDAP, which add such names.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from lab.bases import ENGINE_BASE
from lab.host_spec import HostSpec
from lab.hosts import Group
from tests.host.conftest import Run, Site

pytestmark = pytest.mark.host

ANNA = "anna.muster@corp.example"
BEN = "CORP\\Ben Muster"
DOMAIN_USERS = "domain users"
FOLDER = "/var/lib/extrausers"


def declare(site: Site, *others: dict[str, Any], **changes: Any) -> None:
    key = site.host.private_key_file.with_suffix(".pub").read_text().strip()
    anna = {"name": ANNA, "docker": True, "home": "/home/corp/anna", "keys": [key]}
    site.declare(
        **{
            "ml_images_present": [],
            "ml_services_instances": [],
            "user_access_groups": [{"name": DOMAIN_USERS}, {"name": "lab"}],
            "user_access_users": [
                {"name": "alice", "groups": ["lab"]},
                {**anna, "groups": ["lab"]},
                {"name": BEN, "docker": True},
                *others,
            ],
            **changes,
        }
    )


def told(run: Run) -> str:
    return " ".join(run.output.split())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    group = Group("pytest-directory")
    group.remove()
    site = Site(
        group.ensure(HostSpec("directory-1", base=ENGINE_BASE)),
        tmp_path_factory.mktemp("directory"),
    )
    site.on(
        "apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes "
        "libnss-extrausers >/dev/null\n"
        "sed -i -E 's/^(passwd|group):.*/\\1: files extrausers/' /etc/nsswitch.conf\n"
        "mkdir -p /home/corp/anna && chown 90001:90001 /home/corp/anna\n"
        f"cat >{FOLDER}/passwd <<'END'\n"
        f"{ANNA}:x:90001:90001:Anna Muster:/home/corp/anna:/bin/bash\n"
        f"{BEN}:x:90002:90002::/home/corp/ben:/bin/bash\n"
        "END\n"
        f"printf '%s:x:90001:\\n' {ANNA!r} '{DOMAIN_USERS}' >{FOLDER}/group\n"
        f"printf '%s:x:90003:\\n' 'research' >>{FOLDER}/group\n"
    )
    declare(site)
    yield site
    group.remove()


def test_directory_accounts_become_members_and_stay_as_they_are(site: Site) -> None:
    before = site.on(f"cat /etc/passwd {FOLDER}/passwd | grep -v ^alice; cat {FOLDER}/group")
    checked = site.run("site.yml", "--check", "--diff")
    assert checked.status == "successful", checked.output
    site.converge()
    members = site.on("getent group docker; getent group lab").splitlines()
    assert [line.split(":", 3)[3] for line in members] == [
        ",".join(sorted([ANNA, BEN], key=members[0].index)),
        ",".join(sorted(["alice", ANNA], key=members[1].index)),
    ]
    after = site.on(f"cat /etc/passwd {FOLDER}/passwd | grep -v ^alice; cat {FOLDER}/group")
    assert after == before
    assert site.on("stat --format=%u:%a /home/corp/anna/.ssh/authorized_keys") == "90001:600"


def test_a_second_run_changes_nothing(site: Site) -> None:
    assert site.plan() == (0, set())


def test_directory_members_reach_the_engine(site: Site) -> None:
    for name in (ANNA, BEN):
        site.on(f"runuser -u '{name}' -- docker info --format x >/dev/null")
    verified = site.run("playbooks/verify.yml")
    assert verified.status == "successful", verified.output


def test_other_members_are_removed_under_their_own_names(site: Site) -> None:
    site.on(f"printf '%s:x:90009:90009::/:/bin/sh\\n' 'eve@corp.example' >>{FOLDER}/passwd")
    site.on("gpasswd --add eve@corp.example docker")
    assert site.plan() == (2, {("user_access", "members", "docker")})
    site.converge()
    assert "eve" not in site.on("getent group docker")
    assert site.plan() == (0, set())


@pytest.mark.parametrize(
    ("user", "kind", "words"),
    [
        ({"name": "nobody@corp.example"}, "users", "found no such user; expected one that exists"),
        pytest.param(
            {"name": BEN, "uid": 5},
            "users",
            "is of a directory service: found uid 90002",
            marks=pytest.mark.long,
        ),
        pytest.param(
            {"name": BEN, "state": "absent"},
            "users",
            "an account of this host to remove",
            marks=pytest.mark.long,
        ),
        ({"name": "carol", "groups": ["research"]}, "members", "group research is of a directory"),
    ],
)
def test_what_only_the_service_can_change_is_a_conflict(
    site: Site, user: dict[str, Any], kind: str, words: str
) -> None:
    key = {"name": ANNA, "docker": True, "home": "/home/corp/anna"}
    exclusive = {"user_access_docker_exclusive": False}
    declare(site, user_access_users=[{"name": "carol"}, key], **exclusive)
    site.converge()
    users = {entry["name"]: entry for entry in ({"name": "carol"}, key, user)}
    declare(site, user_access_users=list(users.values()), **exclusive)
    name = "research" if kind == "members" else user["name"]
    assert site.plan()[1] == {("user_access", kind, name)}
    before = site.on(f"cat /etc/passwd /etc/group {FOLDER}/passwd")
    run = site.run("site.yml", slipway_survey=False)
    assert run.status == "failed" and words in told(run), run.output
    assert site.on(f"cat /etc/passwd /etc/group {FOLDER}/passwd") == before
