# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""From the variables of the role ml_data to what it owns and to what a host has to be told.

What may be secret (the whole of an address, and headers) is kept apart from the rest, so that the
rest can be shown.
"""

from __future__ import annotations

import base64
import json
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

Item = Mapping[str, Any]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# Hexadecimal digits by algorithm.
CHECKSUMS = {"md5": 32, "sha1": 40, "sha256": 64, "sha512": 128}
COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
MODE = re.compile(r"[0-7]{4}")
SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT]?)i?B?")
UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
# Beside a tree, for the unfinished one; _probe.py knows it too.
STAGES = ".slipway-unfinished"


class DataError(ValueError):
    """A declaration cannot be carried out; the message says which and why."""


@dataclass(frozen=True)
class Address:
    """Where something comes from.

    url: without user and password; secret, since what follows a question mark may be a key.
    shown: fit for people and logs.
    headers: sent along; secret.
    """

    url: str
    shown: str
    headers: Mapping[str, str]


def address(where: str, url: str, headers: Mapping[str, str]) -> Address:
    """Return an address without the user and the password in URL, which become a header."""
    if not url.startswith(("http://", "https://")):
        if headers:
            raise DataError(f"{where}: headers are for http and https alone")
        return Address(url, re.sub(r"//([^/@:]*):[^/@]*@", r"//\1@", url), {})
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise DataError(f"{where}: its url is none: {error}") from None
    user, at, host = parts.netloc.rpartition("@")
    sent = {str(name): str(value) for name, value in headers.items()}
    if at:
        token = base64.b64encode(unquote(user).encode()).decode()
        sent.setdefault("Authorization", f"Basic {token}")
    plain = parts._replace(netloc=host)
    shown = plain._replace(query="...") if parts.query else plain
    return Address(plain.geturl(), shown.geturl(), sent)


def plan(
    archives: Sequence[Item],
    repositories: Sequence[Item],
    folder: str,
    code_folder: str,
    disks: Sequence[str],
    environment: Mapping[str, str],
) -> dict[str, Any]:
    """Return what the role owns, what it does and what of that is secret.

    FOLDER and CODE_FOLDER are where data sets and repositories are that do not say it, DISKS
    folders on other disks, ENVIRONMENT what downloads are given, such as a proxy.

    ``owned`` is for the survey, ``trees`` for the module ``datasets``, ``secrets`` the name of a
    tree to ``{url, headers}``.  Raise DataError where a declaration cannot be carried out.
    """
    for disk in disks:
        _check_path("ml_data_disks", disk)
    found = [
        *(_dataset(item, folder, disks) for item in archives),
        *(_checkout(item, code_folder, disks) for item in repositories),
    ]
    trees = [tree for tree, _address in found]
    _check_apart(trees)
    secrets = {
        tree["name"]: {"url": address.url, "headers": dict(address.headers)}
        for tree, address in found
        if address
    }
    asked = _offers(trees, secrets, environment)
    return {"owned": _owned(trees, asked, disks), "trees": trees, "secrets": secrets}


def _dataset(
    item: Item, folder: str, disks: Sequence[str]
) -> tuple[dict[str, Any], Address | None]:
    tree, where = _common("ml_data_archives", item, folder, disks)
    tree["kind"] = "datasets"
    if tree["state"] == "absent":
        return tree, None
    if bool(item.get("url")) == bool(item.get("path")):
        raise DataError(f"{where}: declare either url or path, a file on the host")
    checksum = _checksum(where, item.get("checksum") or "")
    source = _source(where, item)
    _check_optional(where, tree, source.url if source else "")
    shown = source.shown if source else str(item["path"])
    tree |= {
        "version": checksum or shown,
        "checksum": checksum,
        "from": shown,
        "local": not source,
        "strip": _number(where, "strip", item.get("strip", 0)),
        "unpack": item.get("unpack", True),
    }
    return tree, source


def _source(where: str, item: Item) -> Address | None:
    """Return the address of an archive, None where it is a file on the host."""
    if item.get("path"):
        _check_path(where, str(item["path"]))
        return None
    url = str(item["url"])
    if not url.startswith(("http://", "https://")):
        raise DataError(f"{where}: url begins with http:// or https://; a file on the host is path")
    return address(where, url, item.get("headers") or {})


def _checkout(
    item: Item, folder: str, disks: Sequence[str]
) -> tuple[dict[str, Any], Address | None]:
    tree, where = _common("ml_data_repositories", item, folder, disks)
    tree["kind"] = "checkouts"
    if tree["state"] == "absent":
        return tree, None
    url, revision = str(item.get("url") or ""), str(item.get("revision") or "")
    if not url or not revision:
        raise DataError(f"{where}: declare url and revision: a commit, a tag or a branch")
    if "?" in url:
        raise DataError(f"{where}: the url of a repository has no question mark")
    if re.search(r"^-|\s|\.\.|[~^:?*\[\\]", revision) or url.startswith("-"):
        raise DataError(f"{where}: {revision!r} is no commit, tag or branch")
    source = address(where, url, item.get("headers") or {})
    _check_optional(where, tree, url)
    tree |= {
        "version": f"{source.shown} {revision}",
        "from": source.shown,
        "revision": revision,
        "settled": bool(COMMIT.fullmatch(revision)),
    }
    return tree, source


def _common(
    variable: str, item: Item, folder: str, disks: Sequence[str]
) -> tuple[dict[str, Any], str]:
    """Return what both kinds of trees have, and how an error names this one."""
    name = str(item.get("name") or "")
    where = f"{variable}: {name or 'an item without a name'}"
    if not NAME.fullmatch(name):
        raise DataError(f"{where}: a name has letters, digits, dots, dashes and underscores")
    path = str(item.get("to") or posixpath.join(folder, name))
    _check_path(where, path)
    mode = item.get("mode", "0755")
    if not isinstance(mode, str) or not MODE.fullmatch(mode):
        raise DataError(f"{where}: mode is {mode!r}, must be four octal digits in quotes")
    tree = {
        "name": name,
        "path": path,
        "disks": [str(disk) for disk in disks],
        "mode": str(mode),
        "owner": str(item.get("owner") or "root"),
        "group": str(item.get("group") or "root"),
        "state": str(item.get("state") or "present"),
        "optional": bool(item.get("optional", False)),
        "size": _size(where, str(item.get("size") or "")),
    }
    return tree, where


def _check_optional(where: str, tree: Item, url: str) -> None:
    if tree["optional"] and not url.startswith(("http://", "https://")):
        raise DataError(f"{where}: only what comes by http or https can be optional")


def _check_path(where: str, path: str) -> None:
    if not path.startswith("/") or posixpath.normpath(path) != path or path.count("/") < 2:
        raise DataError(f"{where}: {path} must be an absolute path below a folder of /, without ..")


def _check_apart(trees: Sequence[Item]) -> None:
    """Raise DataError where two trees have one name, or one lies in another."""
    names: dict[str, str] = {}
    for tree in trees:
        if tree["name"] in names:
            raise DataError(f"{tree['name']} is declared twice; the names of all trees differ")
        for name, path in names.items():
            if f"{path}/".startswith(f"{tree['path']}/") or f"{tree['path']}/".startswith(
                f"{path}/"
            ):
                raise DataError(f"{tree['name']} and {name} would lie in each other at {path}")
        names[tree["name"]] = tree["path"]


def _checksum(where: str, declared: str) -> str:
    if not declared:
        return ""
    kind, _, digits = declared.lower().partition(":")
    if CHECKSUMS.get(kind) != len(digits) or re.search(r"[^0-9a-f]", digits):
        raise DataError(
            f"{where}: checksum is {declared!r}, must be one of {', '.join(sorted(CHECKSUMS))}, "
            "a colon, and as many hexadecimal digits as it has"
        )
    return f"{kind}:{digits}"


def _number(where: str, what: str, value: Any) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = -1
    if number < 0:
        raise DataError(f"{where}: {what} is {value!r}, must be a number from 0")
    return number


def _size(where: str, text: str) -> int:
    """Return the bytes that TEXT such as 30G says, 0 where it says nothing."""
    if not text:
        return 0
    match = SIZE.fullmatch(text.strip())
    if not match:
        raise DataError(
            f"{where}: size is {text!r}, must be a number and K, M, G or T, such as 30G"
        )
    return int(float(match[1]) * 1024 ** UNITS[match[2]])


def _offers(
    trees: Sequence[Item], secrets: Mapping[str, Any], environment: Mapping[str, str]
) -> dict[str, list[str]]:
    """Return what the survey asks the address of each optional tree, by the tree's name."""
    found: dict[str, list[str]] = {}
    by_way_of = json.dumps({str(name): str(value) for name, value in environment.items()})
    for tree in trees:
        if tree["optional"] and tree["name"] in secrets:
            url, headers = (secrets[tree["name"]][part] for part in ("url", "headers"))
            # What git asks first.
            asked = f"{url}/info/refs?service=git-upload-pack" if "revision" in tree else url
            found[tree["name"]] = [
                *(tree["path"], asked, tree["version"], by_way_of),
                json.dumps(headers),
            ]
    return found


def _owned(
    trees: Sequence[Item], offers: Mapping[str, list[str]], disks: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    """Return the owned state of the role."""
    kinds: dict[str, list[dict[str, Any]]] = {"datasets": [], "checkouts": []}
    for tree in trees:
        kinds[tree["kind"]].append(_entry(tree, offers.get(tree["name"])))
    present = [tree for tree in trees if tree["state"] != "absent"]
    wanted = {tree["kind"] for tree in present}
    stages: dict[str, set[str]] = {disk: {tree["name"] for tree in present} for disk in disks}
    for tree in trees:
        folder, name = posixpath.split(tree["path"])
        stages.setdefault(folder, set()).update([name] if tree in present else [])
    return {
        "packages": [{"name": name} for name in _packages(trees, wanted)],
        "folders": [
            {"path": f"{folder}/{STAGES}", "entries": sorted(names)}
            for folder, names in sorted(stages.items())
        ],
        **kinds,
    }


def _packages(trees: Sequence[Item], wanted: set[str]) -> Iterator[str]:
    if wanted:
        yield "ca-certificates"
    if "checkouts" in wanted:
        yield "git"
    if any(tree.get("from", "").endswith((".zst", ".tzst")) for tree in trees):
        yield "zstd"


def _entry(tree: Item, offer: list[str] | None) -> dict[str, Any]:
    """Return a tree as an entry of owned state."""
    entry = {key: tree[key] for key in ("path", "state", "mode", "owner", "group")}
    if tree["state"] == "absent":
        return entry
    entry["version"] = tree["version"]
    entry["places"] = [f"{disk}/{tree['name']}" for disk in tree["disks"]]
    if tree["kind"] == "checkouts":
        entry |= {"url": tree["from"], "revision": tree["revision"], "settled": tree["settled"]}
    if offer:
        entry["offer"] = offer
    return entry
