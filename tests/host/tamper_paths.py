# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tampers of paths: files, folders, keyrings, homes, volumes, derived files, parent folders."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tests.host.tamper_scripts import (
    BASE,
    DATA,
    HOME,
    KEEP,
    Tamper,
    extra_name,
    in_content,
    line_edit,
    on_parent,
    on_path,
)


def _paths() -> Iterator[Tamper]:
    file, folder, team = f"{BASE}/file", f"{BASE}/folder", f"{DATA}/team"
    yield from on_path("files", file)
    yield from in_content("files", file)
    yield from on_path("files", folder, folder=True)
    yield from on_path("files", team, folder=True, fields=("owner", "group", "mode", "path"))
    acl = f'python3 -c \'import os; os.removexattr("{team}", "system.posix_acl_default")\''
    keep = f"cp -a {team} {KEEP}; {acl}"
    undo = f"rm -rf {team}; cp -a {KEEP} {team}; rm -rf {KEEP}"
    yield Tamper("files", team, "default_acl", "without its default ACL", keep, undo)
    gone = f"{BASE}/gone"
    yield Tamper("files", gone, "state", "made again", f"touch {gone}", f"rm {gone}")
    for secret in (f"{BASE}/secret", f"{BASE}/copy"):
        yield from on_path("secrets", secret)
        yield from in_content("secrets", secret)
    source = "/root/matrix-secret"
    yield Tamper(
        *("secrets", f"{BASE}/copy", "source", "another source"),
        *(f"cp -a {source} {KEEP}; echo other >{source}", f"cp -a {KEEP} {source}; rm {KEEP}"),
    )
    only = f"{BASE}/only"
    yield extra_name(only, "more")
    yield extra_name(only, ".hidden")
    yield extra_name(only, "folder", "mkdir")
    yield extra_name(only, "link", "ln -s /etc")
    json, record = f"{BASE}/daemon.json", "/var/lib/slipway/matrix.json"
    yield from on_path("json", json, fields=("type", "owner", "group", "mode", "path"))
    yield line_edit("json", json, "settings", "another value", json, "s/true/false/")
    yield line_edit("json", json, "settings", "a key removed", json, "s/debug/other/")
    yield line_edit("json", json, "absent", "a key that must be absent", json, 's/{/{"gone": 1,/')
    yield line_edit("json", json, "defaults", "a default removed", json, "s/mtu/mtu2/")
    fields = ("type", "owner", "group", "mode", "path")
    for tamper in (
        *on_path("json", record, name=json, fields=fields, mode="0644"),
        *in_content("json", record, name=json),
    ):
        yield replace(tamper, field="record", title=f"record {tamper.title}")
    untrusted = f"mv {json} /tmp/daemon.json; ln -s /tmp/daemon.json {json}"
    yield Tamper(
        *("json", json, "link", "a link to a file that others can replace", untrusted),
        f"rm {json}; mv /tmp/daemon.json {json}",
    )
    keyring = f"{BASE}/key.asc"
    yield from on_path("keyrings", keyring)
    keep, undo = f"cp -a {keyring} {KEEP}", f"cp -a {KEEP} {keyring}; rm {KEEP}"
    for title, script in (
        ("a second key", f"cat /root/second.asc >>{keyring}"),
        ("a second key in the same block", f"cat /root/both.asc >{keyring}"),
        ("another key", f"cat /root/second.asc >{keyring}"),
        ("a binary key", f"printf '\\230\\001\\004' >{keyring}"),
        ("emptied", f": >{keyring}"),
    ):
        yield Tamper("keyrings", keyring, "fingerprint", title, f"{keep}; {script}", undo)
    yield from _derived()


def _derived() -> Iterator[Tamper]:
    made, source = f"{BASE}/cdi/made", f"{BASE}/source"
    yield from on_path("derived", made, fields=("type", "link", "owner", "mode", "path"))
    yield from in_content("derived", made)
    for tamper in in_content("derived", source, "since", name=made):
        yield replace(tamper, title=f"source with {tamper.title}")
    yield Tamper(
        "derived", made, "since", "a source removed", f"mv {source} {KEEP}", f"mv {KEEP} {source}"
    )
    yield line_edit("derived", made, "holds", "without its text", made, "s/gpu/cpu/")
    for name in ("rival.yaml", "a.json"):
        path = f"{BASE}/cdi/{name}"
        script = f"echo 'kind: x/gpu' >{path}"
        yield Tamper("derived", made, "alone_in", f"{name} beside it", script, f"rm {path}")
    record = "/var/lib/slipway/derived.json"
    for tamper in on_path("derived", record, name=made, fields=("owner", "mode", "path")):
        yield replace(tamper, field="record", title=f"record {tamper.title}")


def _homes() -> Iterator[Tamper]:
    keys = f"{HOME}/.ssh/authorized_keys"
    yield from on_path("lines", keys, fields=("type", "link", "owner", "mode", "path"))
    yield Tamper(
        *("lines", keys, "lines", "the key removed"),
        *(f"cp -a {keys} {KEEP}; : >{keys}", f"cp -a {KEEP} {keys}; rm {KEEP}"),
    )
    for path, mode in ((f"{HOME}/.ssh", "0700"), (HOME, "0755")):
        for title, apply, undo in (
            ("open to everybody", f"chmod 0777 {path}", f"chmod {mode} {path}"),
            ("another owner", f"chown bob {path}", f"chown alice {path}"),
        ):
            yield Tamper("lines", keys, "folder", f"{path} {title}", apply, undo)
    for title, apply in (
        ("a link to another home", f"mv {HOME}/.ssh {KEEP}; ln -s /home/bob {HOME}/.ssh"),
        (
            "closed to its user",
            f"mv {HOME}/.ssh {KEEP}; cp -a {KEEP} {HOME}/.ssh; chmod 0 {HOME}/.ssh",
        ),
    ):
        undo = f"rm -rf {HOME}/.ssh; mv {KEEP} {HOME}/.ssh"
        yield Tamper("lines", keys, "folder", f"~/.ssh {title}", apply, undo)
    yield Tamper(
        *("left_by_root", "alice", "user", "a file of root in ~/.docker"),
        *(f"mkdir {HOME}/.docker; touch {HOME}/.docker/config.json", f"rm -r {HOME}/.docker"),
    )


def _mounts() -> Iterator[Tamper]:
    path = f"{DATA}/volume"
    undo = f"rm {path}; mv {KEEP} {path}"
    for target in ("/etc", "/usr/share", "/", "/nowhere"):
        apply = f"mv {path} {KEEP}; ln -s {target} {path}"
        yield Tamper("mounts", path, "link", f"a link to {target}", apply, undo)
    yield Tamper("mounts", path, "path", "removed", f"mv {path} {KEEP}", f"mv {KEEP} {path}")
    closed, undo = f"chown root:root {path}", f"chown 4001:4500 {path}"
    yield Tamper("mounts", path, "writable", "closed to its service", closed, undo)


def _parents() -> Iterator[Tamper]:
    yield from on_parent("/etc/slipway", "0755")
    yield from on_parent(BASE, "0755")
    yield from on_parent("/var/lib/slipway", "0755")
    yield from on_parent(f"{BASE}/cdi", "0755")
    closed = "chmod 0700 /etc/slipway"
    undo = "chmod 0755 /etc/slipway"
    yield Tamper("parent_folders", "/etc/slipway", "mode", "closed to users", closed, undo)
    for path in ("/etc", "/usr/local/bin"):
        yield Tamper(
            *("parent_folders", path, "mode", "open to everybody"),
            *(f"chmod 0777 {path}", f"chmod 0755 {path}"),
        )


PATH_TAMPERS = (*_paths(), *_homes(), *_mounts(), *_parents())
