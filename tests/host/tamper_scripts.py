# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Shell scripts that tamper with a host, and take the change back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

BASE = "/etc/slipway/matrix"
DATA = "/srv/matrix"
KEEP = "/root/kept"
HOME = "/home/alice"
# A key of the user that no other test has, and keyrings without a secret.
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMATRIXMATRIXMATRIXMATRIXMATRIXMATRIXMATRIX alice"
KEYRING, SECOND_KEYRING = b"\x98\x01\x04", b"\x98\x02\x04\x00"
# Fields of a path that every kind of path compares.
ATTRIBUTES = ("type", "link", "owner", "group", "mode")
PARENT = ("type", "link", "owner", "mode")


@dataclass(frozen=True)
class Tamper:
    """One change of a host.

    KIND and NAME are those of the difference that the survey must find; FIELD is the changed field.
    """

    kind: str
    name: str
    field: str
    title: str
    apply: str
    undo: str

    @property
    def covered(self) -> tuple[str, str]:
        """Return kind and field that this tamper covers."""
        return self.kind, self.field

    def __str__(self) -> str:
        """Return a name for reports."""
        return f"{self.kind} {self.name}: {self.title}"


def on_path(
    kind: str,
    path: str,
    *,
    name: str = "",
    folder: bool = False,
    fields: Sequence[str] = (*ATTRIBUTES, "path"),
    mode: str = "0777",
) -> Iterator[Tamper]:
    """Yield a tamper for each attribute of a path."""
    other = f"touch {path}" if folder else f"mkdir {path}"
    scripts = {
        "type": ("another type", f"rm -rf {path}; {other}"),
        "link": (
            "a link to a copy",
            f"cp -a {path} {KEEP}.copy; rm -rf {path}; ln -s {KEEP}.copy {path}",
        ),
        "owner": ("another owner", f"chown bob {path}"),
        "group": ("another group", f"chgrp bob {path}"),
        "mode": ("open to everybody", f"chmod {mode} {path}"),
        "path": ("removed", f"rm -rf {path}"),
    }
    undo = f"rm -rf {path} {KEEP}.copy; cp -a {KEEP} {path}; rm -rf {KEEP}"
    for field in fields:
        title, script = scripts[field]
        keep = f"rm -rf {KEEP}; cp -a {path} {KEEP}; {script}"
        yield Tamper(kind, name or path, field, title, keep, undo)


def on_parent(path: str, mode: str) -> Iterator[Tamper]:
    """Yield a tamper for each attribute of a parent folder."""
    moved = f"{path}.moved"
    back = f"rm -rf {path}; mv {moved} {path}"
    others = "/home/bob/moved"
    away, returned = f"mv {path} {others}", f"rm {path}; mv {others} {path}"
    for field, title, apply, undo in (
        ("mode", "open to everybody", f"chmod 0777 {path}", f"chmod {mode} {path}"),
        ("mode", "open to its group", f"chmod 0775 {path}", f"chmod {mode} {path}"),
        ("owner", "another owner", f"chown bob {path}", f"chown root {path}"),
        ("link", "a link that bob can redirect", f"{away}; ln -s {others} {path}", returned),
        ("type", "a file", f"mv {path} {moved}; touch {path}", back),
    ):
        yield Tamper("parent_folders", path, field, title, apply, undo)


def in_content(kind: str, path: str, field: str = "content", name: str = "") -> Iterator[Tamper]:
    """Yield tampers of the content of a file."""
    keep, undo = f"cp -a {path} {KEEP}", f"cp -a {KEEP} {path}; rm {KEEP}"
    back = f"touch -r {KEEP} {path}"
    for title, script in (
        ("more content", f"echo more >>{path}"),
        ("emptied", f": >{path}"),
        ("other content, with its old time", f"sed -i 's/[a-z]/x/' {path}; {back}"),
    ):
        yield Tamper(kind, name or path, field, title, f"{keep}; {script}", undo)


def extra_name(folder: str, name: str, make: str = "touch") -> Tamper:
    """Return the tamper that adds a name to a folder."""
    path = f"{folder}/{name}"
    return Tamper("folders", folder, "entries", f"{name} added", f"{make} {path}", f"rm -rf {path}")


def line_edit(kind: str, name: str, field: str, title: str, path: str, edit: str) -> Tamper:
    """Return a tamper that edits a file with sed."""
    return Tamper(
        kind,
        name,
        field,
        title,
        f"cp -a {path} {KEEP}; sed -i '{edit}' {path}",
        f"cp -a {KEEP} {path}; rm {KEEP}",
    )
