# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan of the role ml_data: data sets and git repositories of a host.

Values that may be secret (complete URLs and headers) are separate from the rest, so that the rest
can be logged.
"""

from __future__ import annotations

import base64
import hashlib
import json
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from ansible_collections.slipway.host.plugins.module_utils.data.checksums import (
    DataError,
    join,
    read_checksum,
    read_files,
)
from ansible_collections.slipway.host.plugins.module_utils.state import trees as state_trees

__all__ = ["DataError", "plan"]

Item = Mapping[str, Any]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
MODE = re.compile(r"[0-7]{4}")
SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT]?)i?B?")
UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


@dataclass(frozen=True)
class Address:
    """The source of a tree.

    url: without user and password; secret, because its query may contain a key.
    shown: the URL for messages and logs, without secrets.
    headers: request headers; secret.
    """

    url: str
    shown: str
    headers: Mapping[str, str]


def address(where: str, url: str, headers: Mapping[str, str]) -> Address:
    """Return the address of a URL; user and password in it become a header."""
    if not url.startswith(("http://", "https://")):
        if headers:
            raise DataError(
                f"{where}: headers are set for a URL that is not http; expected http:// or "
                "https://. Remove headers or change url"
            )
        return Address(url, re.sub(r"//([^/@:]*):[^/@]*@", r"//\1@", url), {})
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise DataError(f"{where}: invalid url: {error}. Change url") from None
    user, at, host = parts.netloc.rpartition("@")
    sent = {str(name): str(value) for name, value in headers.items()}
    if at:
        token = base64.b64encode(unquote(user).encode()).decode()
        sent.setdefault("Authorization", f"Basic {token}")
    plain = parts._replace(netloc=host)
    shown = plain._replace(query="...") if parts.query else plain
    return Address(plain.geturl(), shown.geturl(), sent)


def plan(facts: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``owned`` state, the ``trees`` and their ``secrets``.

    OPTIONS are the role's options; FACTS are unused. ``trees`` is for the module ``datasets``;
    ``secrets`` maps the name of a tree to its ``{url, headers}``. Raise DataError for a declaration
    that cannot be applied.
    """
    disks, environment = options["ml_data_disks"], options["ml_data_environment"]
    for disk in disks:
        _check_path("ml_data_disks", disk)
    state = {"state": "absent"} if options["ml_data_state"] == "absent" else {}
    sources = [
        *(
            _dataset({**item, **state}, options["ml_data_folder"], disks)
            for item in options["ml_data_archives"]
        ),
        *(
            _checkout({**item, **state}, options["ml_data_code_folder"], disks)
            for item in options["ml_data_repositories"]
        ),
    ]
    trees = [tree for tree, _address in sources]
    _check_apart(trees)
    secrets = {
        tree["name"]: {"url": address.url, "headers": dict(address.headers)}
        for tree, address in sources
        if address
    }
    offers = _offers(trees, secrets, environment)
    return {"owned": _owned(trees, offers, disks), "trees": trees, "secrets": secrets}


def _dataset(
    item: Item, folder: str, disks: Sequence[str]
) -> tuple[dict[str, Any], Address | None]:
    tree, where = _common("ml_data_archives", item, folder, disks)
    tree["kind"] = "datasets"
    if tree["state"] == "absent":
        return tree, None
    if bool(item.get("url")) == bool(item.get("path")):
        raise DataError(
            f"{where}: url and path are both set or both missing; expected one of the two. Set "
            "url, or path for a file on the host"
        )
    checksum = read_checksum(where, item.get("checksum") or "")
    source = _source(where, item)
    _check_optional(where, tree, source.url if source else "")
    shown = source.shown if source else str(item["path"])
    tree |= {
        "version": checksum or shown,
        "checksum": checksum,
        "from": shown,
        "local": not source,
        "strip": _count(where, "strip", item.get("strip", 0)),
        "unpack": item.get("unpack", True),
    }
    if files := read_files(where, item):
        listed = json.dumps(files, sort_keys=True).encode()
        version = f"files:sha256:{hashlib.sha256(listed).hexdigest()}"
        tree |= {"version": version, "files": files, "unpack": False}
    return tree, source


def _source(where: str, item: Item) -> Address | None:
    """Return the address of an archive, None for a file on the host."""
    if item.get("path"):
        _check_path(where, str(item["path"]))
        return None
    url = str(item["url"])
    if not url.startswith(("http://", "https://")):
        raise DataError(
            f"{where}: url has another scheme; expected http:// or https://. Change url, or set "
            "path for a file on the host"
        )
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
        raise DataError(
            f"{where}: url or revision is missing; expected both. Set url, and a commit, tag or "
            "branch as revision"
        )
    if "?" in url:
        raise DataError(
            f"{where}: url contains a question mark; expected the URL of a git repository. "
            "Change url"
        )
    if re.search(r"^-|\s|\.\.|[~^:?*\[\\]", revision) or url.startswith("-"):
        raise DataError(
            f"{where}: invalid revision {revision!r}; expected a commit, tag or branch. "
            "Change revision"
        )
    if tree["owner"] == "root" and int(tree["mode"], 8) & 0o022:
        raise DataError(
            f"{where}: mode {tree['mode']} lets other users write a repository that root owns, and "
            "git would run their hooks as root; expected an owner other than root. Set owner"
        )
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
    """Return the keys common to both kinds of trees, and the name of the entry in errors."""
    name = str(item.get("name") or "")
    where = f"{variable}: {name or 'an entry without a name'}"
    if not NAME.fullmatch(name):
        raise DataError(
            f"{where}: invalid name; expected letters, digits, dots, hyphens and underscores, a "
            "letter or digit first. Rename the entry"
        )
    path = str(item.get("to") or posixpath.join(folder, name))
    _check_path(where, path)
    mode = item.get("mode", "0755")
    if not isinstance(mode, str) or not MODE.fullmatch(mode):
        raise DataError(
            f"{where}: mode is {mode!r}; expected four octal digits in quotes. Change mode"
        )
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
        raise DataError(
            f"{where}: optional is set for a source that is not http; expected http:// or "
            "https://. Remove optional"
        )


def _check_path(where: str, path: str) -> None:
    if not path.startswith("/") or posixpath.normpath(path) != path or path.count("/") < 2:
        raise DataError(
            f"{where}: path {path}; expected an absolute path at least two levels below /, without "
            "'..'. Change the path"
        )


def _check_apart(trees: Sequence[Item]) -> None:
    """Raise DataError for two trees with the same name, or with one inside the other."""
    names: dict[str, str] = {}
    for tree in trees:
        if tree["name"] in names:
            raise DataError(
                f"ml_data: {tree['name']} is declared twice; expected each name once. Rename one"
            )
        for name, path in names.items():
            if f"{path}/".startswith(f"{tree['path']}/") or f"{tree['path']}/".startswith(
                f"{path}/"
            ):
                raise DataError(
                    f"ml_data: the folders of {tree['name']} and {name} contain each other, at "
                    f"{path}; expected separate folders. Change one of the paths"
                )
        names[tree["name"]] = tree["path"]


def _count(where: str, key: str, value: Any) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = -1
    if number < 0:
        raise DataError(f"{where}: {key} is {value!r}; expected a number from 0. Change {key}")
    return number


def _size(where: str, text: str) -> int:
    """Return the number of bytes of a size such as 30G, 0 for an empty text."""
    if not text:
        return 0
    match = SIZE.fullmatch(text.strip())
    if not match:
        raise DataError(
            f"{where}: size is {text!r}; expected a number and K, M, G or T, such as 30G. "
            "Change size"
        )
    return int(float(match[1]) * 1024 ** UNITS[match[2]])


def _offers(
    trees: Sequence[Item], secrets: Mapping[str, Any], environment: Mapping[str, str]
) -> dict[str, list[str]]:
    """Return the survey's request to the source of each optional tree, by name of the tree."""
    offers: dict[str, list[str]] = {}
    download_environment = json.dumps(
        {str(name): str(value) for name, value in environment.items()}
    )
    for tree in trees:
        if tree["optional"] and tree["name"] in secrets:
            url, headers = (secrets[tree["name"]][part] for part in ("url", "headers"))
            request_url = url
            if "revision" in tree:
                # The first request of git.
                request_url = f"{url}/info/refs?service=git-upload-pack"
            elif "files" in tree:
                request_url = join(url, quote(next(iter(tree["files"]))))
            offers[tree["name"]] = [
                *(tree["path"], request_url, tree["version"], download_environment),
                json.dumps(headers),
            ]
    return offers


def _owned(
    trees: Sequence[Item], offers: Mapping[str, list[str]], disks: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    """Return the owned state of the role."""
    kinds: dict[str, list[dict[str, Any]]] = {"datasets": [], "checkouts": []}
    for tree in trees:
        kinds[tree["kind"]].append(_entry(tree, offers.get(tree["name"])))
    present = [tree for tree in trees if tree["state"] != "absent"]
    present_kinds = {tree["kind"] for tree in present}
    stages: dict[str, set[str]] = {disk: {tree["name"] for tree in present} for disk in disks}
    for tree in trees:
        folder, name = posixpath.split(tree["path"])
        stages.setdefault(folder, set()).update([name] if tree in present else [])
    return {
        "packages": [{"name": name} for name in _packages(trees, present_kinds)],
        **kinds,
        "folders": [
            {"path": f"{folder}/{state_trees.STAGES}", "entries": sorted(names)}
            for folder, names in sorted(stages.items())
        ],
    }


def _packages(trees: Sequence[Item], present_kinds: set[str]) -> Iterator[str]:
    if present_kinds:
        yield "ca-certificates"
    if "checkouts" in present_kinds:
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
