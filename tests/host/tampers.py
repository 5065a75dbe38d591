# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tamper matrix: for each kind of owned thing and each of its fields a change of a host.

Each tamper is a shell script that changes one thing and one that takes the change back. A survey
between the two must name the entry. tests/contract/tamper_fields.py lists the fields of each kind,
and those that need no tamper with the reason; tests/contract/test_tampers.py checks that nothing is
missing. tests/host/test_tampers.py runs the tampers on a host with the owned state
:func:`statement`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from tests.host.tamper_paths import PATH_TAMPERS
from tests.host.tamper_scripts import BASE, DATA, HOME, KEEP, KEY, Tamper, in_content, line_edit


def _accounts() -> Iterator[Tamper]:
    undo = "; ".join(f"cp -a {KEEP}.{name} /etc/{name}" for name in ("passwd", "group", "gshadow"))
    keep = "; ".join(f"cp -a /etc/{name} {KEEP}.{name}" for name in ("passwd", "group", "gshadow"))
    passwd, group = "/etc/passwd", "/etc/group"
    for kind, name, field, title, file, edit in (
        ("users", "alice", "uid", "another uid", passwd, "s/^alice:x:4001/alice:x:4009/"),
        ("users", "alice", "comment", "another comment", passwd, "s/Alice/Eve/"),
        ("users", "alice", "shell", "another shell", passwd, "/^alice/s,/bin/sh,/bin/false,"),
        ("users", "alice", "home", "another home", passwd, "/^alice/s,/home/alice,/tmp,"),
        ("users", "alice", "name", "removed", passwd, "/^alice:/d"),
        ("users", "ghost", "state", "made again", passwd, "$aghost:x:4077:4077::/:/bin/sh"),
        ("groups", "team", "gid", "another gid", group, "s/^team:x:4500/team:x:4501/"),
        ("groups", "team", "name", "removed", group, "/^team:/d"),
        ("members", "team", "users", "a member removed", group, "/^team:/s/alice$//"),
        ("members", "team", "exclusive", "a member added", group, "/^team:/s/$/,bob/"),
        ("members", "team", "group", "the group removed", group, "/^team:/d"),
    ):
        script = f"sed -i '{edit}' {file}"
        yield Tamper(kind, name, field, title, f"{keep}; {script}", undo)


def _packages() -> Iterator[Tamper]:
    status = "/var/lib/dpkg/status"

    def edit(name: str, field: str, title: str, change: str) -> Tamper:
        script = f"/^Package: {name}$/,/^$/{change}"
        return line_edit("packages", name, field, title, status, script)

    yield edit("tar", "hold", "the hold dropped", "s/^Status: hold/Status: install/")
    yield edit("tar", "name", "removed", "s/^Status: .*/Status: deinstall ok config-files/")
    yield edit("tar", "name", "half configured", "s/ installed$/ half-configured/")
    yield edit("tar", "version", "another version", "s/^Version: .*/Version: 0.1/")
    yield edit("gzip", "hold", "a hold added", "s/^Status: install/Status: hold/")
    entry = "\\nPackage: matrix-gone\\nStatus: install ok installed\\nVersion: 1\\n"
    yield Tamper(
        *("packages", "matrix-gone", "state", "installed again"),
        f"cp -a {status} {KEEP}; printf '{entry}\\n' >>{status}",
        f"cp -a {KEEP} {status}; rm {KEEP}",
    )


def _units() -> Iterator[Tamper]:
    unit, file = "matrix.service", "/etc/systemd/system/matrix.service"
    on = f"systemctl enable --quiet {unit}; systemctl reset-failed {unit}; systemctl restart {unit}"
    back = f"mv {KEEP} {file}; systemctl daemon-reload"
    for field, title, apply, undo in (
        ("enabled", "disabled", f"systemctl disable --quiet {unit} 2>/dev/null", ":"),
        ("active", "stopped", f"systemctl stop {unit}", ":"),
        (
            *("enabled", "masked"),
            f"mv {file} {KEEP}; ln -s /dev/null {file}; systemctl daemon-reload",
            back,
        ),
        (
            *("name", "its file removed"),
            f"systemctl stop {unit}; mv {file} {KEEP}; systemctl daemon-reload",
            back,
        ),
        (
            *("file", "its file changed, not read again"),
            f"cp -a {file} {KEEP}; echo '# more' >>{file}",
            back,
        ),
    ):
        yield Tamper("units", unit, field, title, apply, f"{undo}; {on}")
    for tamper in in_content("units", f"{BASE}/conf", "reads", name=unit):
        yield replace(tamper, undo=f"{tamper.undo}; {on}")


def _links() -> Iterator[Tamper]:
    folder, name = "/usr/local/bin", "/usr/local/bin/matrix-a"
    back = f"rm -rf {name}; ln -s /usr/bin/true {name}"
    yield Tamper("links", folder, "names", "a link removed", f"rm {name}", back)
    added = f"{folder}/matrix-c"
    yield Tamper(
        "links", folder, "names", "a link added", f"ln -s /usr/bin/true {added}", f"rm {added}"
    )
    for title, script in (
        ("another target", f"ln -sf /usr/bin/false {name}"),
        ("a file in its place", f"rm {name}; touch {name}"),
    ):
        yield Tamper("links", folder, "target", title, script, back)
    hidden, obstacle = "/opt/matrix/matrix-b", f"{BASE}/obstacle"
    for kind, name, field, path, script in (
        ("links", folder, "unhidden", hidden, f"mkdir /opt/matrix; touch {hidden}"),
        ("obstacles", obstacle, "holds", obstacle, f"echo 0 >{obstacle}"),
    ):
        undo = f"rm -r {'/opt/matrix' if path == hidden else path}"
        yield Tamper(kind, name, field, "in the way", script, undo)


def _trees() -> Iterator[Tamper]:
    for kind, name, record in (
        ("datasets", "pets", ".slipway/record.json"),
        ("checkouts", "course", ".git/slipway.json"),
    ):
        path = f"{DATA}/{name}"
        undo = f"rm -rf {path} {KEEP}.copy; cp -a {KEEP} {path}; rm -rf {KEEP}"
        scripts = [
            ("mode", "open to everybody", f"chmod 0777 {path}"),
            ("owner", "another owner", f"chown bob {path}"),
            ("group", "another group", f"chgrp bob {path}"),
            ("path", "removed", f"rm -r {path}"),
            ("places", "a link elsewhere", f"mv {path} {KEEP}.copy; ln -s {KEEP}.copy {path}"),
            ("type", "a file", f"rm -r {path}; touch {path}"),
            ("version", "of another version", f"sed -i s/one/two/ {path}/{record}"),
            ("version", "its record removed", f"rm {path}/{record}"),
        ]
        if kind == "datasets":
            scripts.append(("names", "a name removed", f"rm {path}/cat"))
        else:
            scripts += [
                ("url", "another origin", f"sed -i s/one/two/ {path}/.git/config"),
                ("revision", "another commit", f"echo {'b' * 40} >{path}/.git/HEAD"),
            ]
        for field, title, script in scripts:
            apply = f"rm -rf {KEEP}; cp -a {path} {KEEP}; {script}"
            yield Tamper(kind, path, field, title, apply, undo)
        gone = f"{DATA}/gone-{name}"
        apply = f"cp -a {path} {gone}"
        yield Tamper(kind, gone, "state", "there again", apply, f"rm -rf {gone}")


HOST_TAMPERS = (
    *PATH_TAMPERS,
    *_accounts(),
    *_packages(),
    *_units(),
    *_links(),
    *_trees(),
)


def statement() -> dict[str, list[dict[str, Any]]]:
    """Return the owned state of the host on which the tampers run."""
    place = {"owner": "root", "group": "root"}
    tree = {"mode": "0750", "owner": "alice", "group": "team", "places": []}
    return {
        "groups": [{"name": "team", "gid": 4500}],
        "users": [
            {
                "name": "alice",
                "uid": 4001,
                "comment": "Alice",
                "shell": "/bin/sh",
                "home": HOME,
            },
            {"name": "ghost", "state": "absent"},
        ],
        "members": [{"group": "team", "users": ["alice"], "exclusive": True}],
        "lines": [{"user": "alice", "path": f"{HOME}/.ssh/authorized_keys", "lines": [KEY]}],
        "left_by_root": [{"user": "alice"}],
        "packages": [
            {"name": "tar", "version": "1*", "hold": True},
            {"name": "gzip", "hold": False},
            {"name": "matrix-gone", "state": "absent"},
        ],
        "units": [
            {
                "name": "matrix.service",
                "enabled": True,
                "active": True,
                "reads": [f"{BASE}/conf"],
            }
        ],
        "files": managed_files(),
        "folders": [{"path": f"{BASE}/only", "entries": ["one"]}],
        "secrets": [
            {"path": f"{BASE}/secret", **place, "content": "s3cret\n"},
            {"path": f"{BASE}/copy", **place, "source": "/root/matrix-secret"},
        ],
        "mounts": [{"path": f"{DATA}/volume", "owner": "4001", "group": "4500"}],
        "json": [
            {
                "path": f"{BASE}/daemon.json",
                "record": "/var/lib/slipway/matrix.json",
                "settings": {"debug": True},
                "defaults": {"mtu": 1400},
                "absent": ["gone"],
            }
        ],
        "keyrings": [{"path": f"{BASE}/key.asc", "fingerprint": "FINGERPRINT"}],
        "derived": [derived_entry()],
        "links": [
            {
                "folder": "/usr/local/bin",
                "target": "/usr/bin/true",
                "names": ["matrix-a", "matrix-b"],
                "unhidden": ["/opt/matrix"],
            }
        ],
        "obstacles": [{"path": f"{BASE}/obstacle", "holds": "^0$", "why": f"{BASE}/obstacle is 0"}],
        "datasets": [
            {"path": f"{DATA}/pets", "version": "one", **tree},
            {"path": f"{DATA}/gone-pets", "state": "absent"},
        ],
        "checkouts": [
            {
                "path": f"{DATA}/course",
                "version": "one",
                "url": "https://example.org/one",
                "revision": "a" * 40,
                "settled": True,
                **tree,
            },
            {"path": f"{DATA}/gone-course", "state": "absent"},
        ],
    }


def managed_files() -> list[dict[str, Any]]:
    """Return the entries of ``files``."""
    return [
        {"path": f"{BASE}/file", "content": "text\n", "mode": "0640"},
        {"path": f"{BASE}/folder", "state": "directory", "mode": "0750"},
        {
            "path": f"{DATA}/team",
            "state": "directory",
            "group": "team",
            "mode": "2770",
            "default_acl": "0770",
        },
        {"path": f"{BASE}/gone", "state": "absent"},
    ]


def derived_entry() -> dict[str, Any]:
    """Return the entry of ``derived``."""
    return {
        "path": f"{BASE}/cdi/made",
        "since": [f"{BASE}/source"],
        "required": True,
        "holds": "x/gpu",
        "alone_in": [f"{BASE}/cdi"],
    }
