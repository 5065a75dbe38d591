# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who can reach the engine, by which way: what the survey reads, and what it reports."""

from __future__ import annotations

import grp
import json
import os
import pwd
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.host import engine_users
from ansible_collections.slipway.host.plugins.module_utils.state import (
    engine,
    engine_access,
    kinds,
    reading,
)

SOCKET = "/run/docker.sock"


def access(**changes: Any) -> dict[str, Any]:
    """Return the answer of a host where group docker, ID 900, opens the socket."""
    return {
        "socket": ["0660", 0, 900, ""],
        "groups": {"docker": [900, ["ada"], [], False]},
        "primary": {"docker": []},
        "hosts": ["fd://"],
        "sudoers": {},
        "sudo_groups": {},
        "root": ["root", "toor"],
        **changes,
    }


def group(name: str = "docker", gid: int = 900, **changes: Any) -> dict[str, Any]:
    values = {"members": [], "admins": [], "password": False, **changes}
    return {name: [gid, values["members"], values["admins"], values["password"]]}


def acl_entry(tag: int, permissions: int, number: int) -> str:
    return b"".join(
        (tag.to_bytes(2, "little"), permissions.to_bytes(2, "little"), number.to_bytes(4, "little"))
    ).hex()


def rules(text: str, **groups: list[Any]) -> dict[str, Any]:
    return access(sudoers={"/etc/sudoers": text}, sudo_groups=groups)


def sudo(who: str, what: str = "everything") -> list[str]:
    return [f"{who} may run {what} as root by sudo, /etc/sudoers"]


@pytest.mark.parametrize(
    ("found", "ways"),
    [
        (None, []),
        (access(), []),
        (access(groups=group(members=["ada", "eve"])), ["eve, member of docker"]),
        (access(primary={"docker": ["eve", "root"]}), ["eve, primary group docker"]),
        (
            access(
                groups={**group(members=["ada"]), **group("games", members=["eve"])},
                primary={"docker": [], "games": ["bob"]},
            ),
            [
                "bob, primary group games, which has the group ID of the engine's socket",
                "eve, member of games, which has the group ID of the engine's socket",
            ],
        ),
        (
            access(groups=group(admins=["eve", "ada"])),
            ["eve, administrator of group docker in /etc/gshadow"],
        ),
        (
            access(groups=group(password=True)),
            ["everybody who knows the password of group docker"],
        ),
        (access(socket=["0666", 0, 900, ""]), [f"everybody, by mode 0666 of {SOCKET}"]),
        (access(socket=["0660", 1000, 900, ""]), [f"user ID 1000, owner of {SOCKET}"]),
        (
            access(socket=["0660", 0, 50, ""]),
            [f"group ID 50, group of {SOCKET}, not group docker"],
        ),
        (
            access(socket=["0660", 0, 50, ""], groups={}, primary={}),
            [f"group ID 50, group of {SOCKET}"],
        ),
        (access(socket=["0660", 0, 0, ""]), []),
        (
            access(
                socket=[
                    *("0660", 0, 900),
                    "02000000"
                    + acl_entry(1, 6, 0)
                    + acl_entry(2, 6, 1000)
                    + acl_entry(2, 4, 7)
                    # A named group that may write.
                    + acl_entry(8, 2, 50),
                ]
            ),
            [f"user ID 1000, by an ACL of {SOCKET}", f"group ID 50, by an ACL of {SOCKET}"],
        ),
        (
            access(hosts=["fd://", "tcp://0.0.0.0:2375", "unix:///var/run/docker.sock"]),
            ["the engine listens on tcp://0.0.0.0:2375"],
        ),
        # Rules of sudo.
        (rules("root ALL=(ALL:ALL) ALL"), []),
        (rules("toor ALL=(ALL:ALL) ALL"), []),
        (rules("ada ALL=(ALL) NOPASSWD: ALL"), []),
        (rules("eve ALL=(ALL:ALL) ALL"), sudo("eve")),
        (rules("eve ALL = NOPASSWD:SETENV: ALL"), sudo("eve")),
        (rules("eve,bob\tgpu01, gpu02=ALL"), [*sudo("eve"), *sudo("bob")]),
        (rules("ALL ALL=(root) /usr/bin/docker ps"), sudo("ALL", "/usr/bin/docker")),
        (rules("#1000 ALL=/usr/bin/ls, /usr/bin/ctr"), sudo("#1000", "/usr/bin/ctr")),
        (rules("eve ALL=(www-data) ALL"), []),
        (rules("eve ALL=(www-data) ALL, (root) /usr/bin/docker"), sudo("eve", "/usr/bin/docker")),
        (rules("eve ALL=(:docker) ALL"), sudo("eve")),
        (rules("eve ALL=/usr/bin/apt, /usr/bin/systemctl restart docker"), []),
        (rules("%sudo ALL=(ALL) ALL", sudo=[27, ["ada", "eve"]]), sudo("eve (group sudo)")),
        (rules("%sudo ALL=(ALL) ALL", sudo=[27, ["ada"]]), []),
        (rules("%nobody-has-this ALL=(ALL) ALL"), []),
        (
            rules(
                "User_Alias ADMINS = eve, MORE : MORE = bob\n"
                "Cmnd_Alias ENGINE = /usr/bin/ls, /usr/bin/docker\n"
                "ADMINS ALL = ENGINE"
            ),
            [*sudo("eve", "/usr/bin/docker"), *sudo("bob", "/usr/bin/docker")],
        ),
        # An alias that names itself ends.
        (rules("User_Alias A = A\nA ALL = ALL"), sudo("A")),
        (rules("nonsense"), []),
        (rules("= ALL"), []),
    ],
)
def test_each_way_to_the_engine_is_information(found: Any, ways: list[str]) -> None:
    owned = {"engine_access": [{"socket": SOCKET, "users": ["ada"]}]}
    answer = {"engine": None, "access": {SOCKET: found}, "users": {"ada": None}}
    assert engine.information([owned], answer, kinds.ALL) == [f"engine access: {x}" for x in ways]
    assert engine.differences(owned, answer, kinds.ALL) == [], "information is no drift"


def test_the_own_name_of_an_account_is_listed() -> None:
    """A directory service knows an account by several names."""
    declared = "CORP\\\\ada"
    owned = {"engine_access": [{"socket": SOCKET, "users": [declared]}]}
    found = {"access": {SOCKET: access(groups=group(members=["ada@corp"]))}}
    unknown = engine.information([owned], {**found, "users": {declared: None}}, kinds.ALL)
    assert unknown == ["engine access: ada@corp, member of docker"]
    own = [7, 7, "/h", "/bin/sh", "", "ada@corp"]
    assert engine.information([owned], {**found, "users": {declared: own}}, kinds.ALL) == []


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with a docker group and some accounts; its files are below the returned folder."""
    groups = [
        SimpleNamespace(gr_name=name, gr_gid=gid, gr_mem=members)
        for name, gid, members in (
            ("docker", 900, ["ada"]),
            ("games", os.getgid(), []),
            ("sudo", 27, ["ops"]),
        )
    ]
    users = [
        SimpleNamespace(pw_name=name, pw_uid=uid, pw_gid=gid)
        for name, uid, gid in (("root", 0, 0), ("eve", 1001, 900), ("bob", 1002, 27))
    ]
    monkeypatch.setattr(grp, "getgrall", lambda: groups)
    monkeypatch.setattr(pwd, "getpwall", lambda: users)
    read_file, list_names = reading.read_file, reading.list_names
    monkeypatch.setattr(reading, "read_file", lambda path: read_file(f"{tmp_path}{path}"))
    monkeypatch.setattr(reading, "list_names", lambda path: list_names(f"{tmp_path}{path}"))
    return tmp_path


def write(root: Path, path: str, text: str) -> None:
    file = root / path[1:]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_the_host_reports_users_groups_and_addresses_of_the_engine(root: Path) -> None:
    assert engine_access.ask_access(str(root / "none.sock")) is None
    socket = root / "docker.sock"
    socket.touch()
    socket.chmod(0o640)
    write(root, "/etc/gshadow", "docker:!:eve:ada\ngames:$6$x::\nsudo:*::ops\nbroken\n")
    write(root, "/etc/docker/daemon.json", '{"hosts": ["tcp://127.0.0.1:2375", 5]}')
    write(root, "/run/docker.pid", "77\n")
    write(root, "/proc/77/cmdline", "\0".join(["dockerd", "-H", "fd://", "-Htcp://a", "--host=b"]))
    write(
        root,
        "/etc/sudoers",
        "# a comment\nDefaults env_reset\n%sudo ALL=(ALL) \\\n  ALL\n#1000 ALL=ALL\n#include /x\n"
        "@includedir /etc/sudoers.d\n",
    )
    write(root, "/etc/sudoers.d/ops", "ops ALL=(ALL) ALL\n")
    for ignored in ("readme.txt", "old~", "empty"):
        write(root, f"/etc/sudoers.d/{ignored}", "x ALL=ALL\n" if ignored != "empty" else "")
    found = engine_access.ask_access(str(socket))
    assert found is not None
    assert json.loads(json.dumps(found)) == {
        "socket": ["0640", socket.stat().st_uid, socket.stat().st_gid, ""],
        "groups": {"docker": [900, ["ada"], ["eve"], False], "games": [os.getgid(), [], [], True]},
        "primary": {"docker": ["eve"], "games": ["root"] if os.getgid() == 0 else []},
        "hosts": ["fd://", "tcp://a", "b", "tcp://127.0.0.1:2375"],
        "sudoers": {
            "/etc/sudoers": "%sudo ALL=(ALL)    ALL\n#1000 ALL=ALL",
            "/etc/sudoers.d/ops": "ops ALL=(ALL) ALL",
        },
        "sudo_groups": {"sudo": [27, ["ops", "bob"]]},
        "root": ["root"],
    }


@pytest.mark.parametrize("text", ["", "{", "[]", '{"hosts": null}', "5"])
def test_broken_settings_of_the_engine_have_no_addresses(root: Path, text: str) -> None:
    write(root, "/etc/docker/daemon.json", text)
    write(root, "/run/docker.pid", "not a number")
    assert engine_access._engine_hosts() == []


ACCOUNTS = ["ada", "bob", "eve"]


@pytest.mark.parametrize(
    ("reaching", "declared", "error"),
    [
        (["ada"], ["ada"], ""),
        (["ada"], ["ada", "root"], ""),
        ([], [], ""),
        # Without a declaration everybody may; a user who is not there is another check's.
        (["eve"], None, ""),
        (["ada"], ["ada", "zoe"], ""),
        (["ada", "eve"], ["ada"], "the engine is reached by eve; expected no user without"),
        ([], ["ada"], "the engine is not reached by ada; expected the users with"),
        (["bob"], ["ada"], "reached by bob; .* not reached by ada"),
    ],
)
def test_users_that_reach_the_engine_must_be_declared(
    reaching: list[str], declared: list[str] | None, error: str
) -> None:
    if error:
        with pytest.raises(ValueError, match=error):
            engine_users.judge(reaching, ACCOUNTS, declared)
    else:
        found = engine_users.judge(reaching, ACCOUNTS, declared)
        assert found.endswith(f"reached by {reaching[0] if reaching else 'nobody but root'}")
