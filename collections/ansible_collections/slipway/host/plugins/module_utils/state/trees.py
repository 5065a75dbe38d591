# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Data sets and git work trees of the role ml_data.

Keys of an entry (``?``: optional):

datasets: path, version: the checksum of the archive that the tree is unpacked from, or its URL,
mode, owner, group, places: the paths to which a link may lead there, state?, offer?: the question
about the URL of an optional tree.

checkouts: the same for a git work tree, and url, revision, settled?: the revision is a commit. The
version is made of URL and revision.
"""

from __future__ import annotations

import json
import os

from ansible_collections.slipway.host.plugins.module_utils.state import reading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any

    from ansible_collections.slipway.host.plugins.module_utils.state.model import (
        Answer,
        Change,
        Entry,
    )

    Json = dict[str, Any]

# The records of the role ml_data in a data set and in a git work tree, and its folder of
# unfinished trees beside them.
TREE_RECORD, GIT_RECORD = "/.slipway/record.json", "/.git/slipway.json"
STAGES = ".slipway-unfinished"
# Opens for a look at type, owner and names only.
_WALK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def ask_tree(path: str) -> Json | None:
    """Return what is known of a tree of files that the role ml_data may have made.

    ``leads`` is the target of a link at PATH, empty if there is no link, and ``link`` describes the
    link. ``state`` is ``[type, mode, owner, group]`` of the tree, null behind a dangling link.
    ``record`` is the record of the role in the tree, null if the tree is not the role's;
    ``record_owner`` is the owner of a record that is not root's. ``missing`` are recorded names at
    the top that are gone. ``staged`` says whether an unfinished tree lies beside it. ``git`` is
    what :func:`read_checkout` returns. ``obstacle``, instead of all these, describes what root must
    not follow.
    """
    paths = reading.safe_paths()
    try:
        with paths.opened_parent(path) as (folder, name):
            info = folder.lstat(name)
            if info is None:
                return None
            if paths.type_of(info) != paths.LINK:
                return {"leads": "", "link": "", **_read_tree(folder, name)}
            leads = os.readlink(name, dir_fd=folder.descriptor)
    except FileNotFoundError:
        return None
    except (OSError, paths.UnsafePathError) as error:
        return {"obstacle": reading.escape_control(str(error))}
    link = reading.escape_control(paths.describe(info, leads))
    return {"leads": reading.escape_control(leads), "link": link, **_read_target(leads)}


def _read_target(path: str) -> Json:
    """Return what is known of the tree that a link leads to."""
    paths = reading.safe_paths()
    try:
        with paths.opened_parent(path) as (folder, name):
            return _read_tree(folder, name)
    except paths.UnsafePathError as error:
        return {"obstacle": reading.escape_control(str(error))}
    except (OSError, ValueError):
        return {"state": None, "record": None, "missing": [], "staged": False, "git": None}


def _read_tree(folder: Any, name: str) -> Json:
    """Return what is known of a name in an opened folder.

    Raise UnsafePathError for a link, FileNotFoundError if there is nothing.
    """
    top = os.open(name, _WALK, dir_fd=folder.descriptor)
    try:
        info = os.fstat(top)
        state = reading.ownership(info)
        if state[0] == "link":
            raise folder.refuse(name, info, "a folder")
        git = read_checkout(top) if state[0] == "directory" else None
        record = read_record(top, GIT_RECORD if git else TREE_RECORD)
        names = (record or {}).get("names", ())
        missing = [reading.escape_control(entry) for entry in names if not _is_there(entry, top)]
        record_owner = ""
        if record and not git and record["owner"] not in (0, os.geteuid()):
            # The owner of the tree wrote it. The record of a work tree decides nothing but drift.
            record_owner, record = reading.user_name(record["owner"]), None
    finally:
        os.close(top)
    return {
        "state": state,
        "record": record,
        "record_owner": record_owner,
        "missing": missing if record else [],
        "staged": _is_there(f"{STAGES}/{name}", folder.descriptor),
        "git": git,
    }


def _is_there(name: str, folder: int) -> bool:
    """Return whether an opened folder has a name of any type."""
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return False
    return True


def read_record(top: int, name: str) -> Json | None:
    """Return the record of the role in an opened tree, null if there is no valid record.

    The owner of the tree may have written anything there, so types are checked. ``owner`` is the
    user ID of the owner of the record.
    """
    try:
        text, owner = _read_first_text(top, name)
        content = json.loads(text)
        texts = {key: content[key] for key in ("version", "commit", "branch") if key in content}
        names = [str(entry) for entry in content["names"][:1000] if "/" not in str(entry)]
        texts["version"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    if not all(isinstance(value, str) for value in texts.values()):
        return None
    return {
        "owner": owner,
        **{key: reading.escape_control(value) for key, value in texts.items()},
        "names": [entry for entry in names if entry not in ("", ".", "..", ".slipway")],
    }


def _read_first_text(top: int, name: str) -> tuple[str, int]:
    """Return the beginning of a file in an opened tree and its writer; empty if there is none.

    The writer is the owner of the folder, who can replace the file, or the owner of the file if the
    folder is root's. Users may have put anything there: links are not followed, pipes are not
    opened, and a file with several names (hard links) is not read.
    """
    here, above = os.dup(top), 0
    try:
        for part in name.strip("/").split("/"):
            if part in ("", ".", ".."):
                return "", 0
            below = os.open(part, _WALK, dir_fd=here)
            above = os.fstat(here).st_uid
            os.close(here)
            here = below
        info = os.fstat(here)
        if info.st_mode & 0o170000 != 0o100000 or info.st_nlink != 1:
            return "", 0
        with open(os.open(f"/proc/self/fd/{here}", os.O_RDONLY | os.O_CLOEXEC), "rb") as stream:
            return stream.read(1 << 20).decode("utf-8", "replace").strip(), above or info.st_uid
    except (OSError, ValueError):
        return "", 0
    finally:
        os.close(here)


def read_checkout(top: int) -> Json | None:
    """Return ``{head, branch, url}`` of an opened git work tree, without running git."""

    def text(name: str) -> str:
        return _read_first_text(top, f".git/{name}")[0]

    head = text("HEAD")
    if not head:
        return None
    branch = head[len("ref: refs/heads/") :] if head.startswith("ref: ") else ""
    if branch:
        reference = f"refs/heads/{branch}"
        head = text(reference)
        if not head:
            packed = (line.split(" ") for line in text("packed-refs").splitlines())
            head = next((line[0] for line in packed if line[-1] == reference), "")
    url, section = "", ""
    for line in text("config").splitlines():
        key, _separator, value = line.strip().partition("=")
        if key.startswith("["):
            section = key
        elif section == '[remote "origin"]' and key.strip() == "url":
            url = value.strip()
    found = {"head": head, "branch": branch, "url": url}
    return {key: reading.escape_control(value[:1000]) for key, value in found.items()}


def ask_offers(requests: list[list[str]], reply: Json) -> Json:
    """Return for each path why its URL does not provide the tree, empty if it does.

    A request is ``[path, URL, version, environment, headers]``, the last two as JSON. REPLY already
    has the answer about the trees; a tree of that version is not asked for.
    """
    from http.client import HTTPException
    from urllib.error import HTTPError
    from urllib.request import Request, build_opener

    found: Json = {}
    for path, url, version, environment, headers in requests:
        found[path] = ""
        if ((reply["trees"][path] or {}).get("record") or {}).get("version") == version:
            continue
        os.environ.update(json.loads(environment))
        try:
            # A new opener each time: it reads the proxies from the environment once.
            request = Request(url)
            for name, value in json.loads(headers).items():
                # Headers may be secret, so redirections do not get them.
                request.add_unredirected_header(name, value)
            build_opener().open(request, timeout=10).close()
        except HTTPError as error:
            # A server that asks for a password has the file.
            reason = reading.escape_control(str(error.reason))
            found[path] = "" if error.code == 401 else f"it answers {error.code} {reason}"
        except (OSError, ValueError, HTTPException) as error:
            found[path] = (
                f"out of reach: {reading.escape_control(str(getattr(error, 'reason', error)))}"
            )
    return found


ASKS = {"trees": reading.each(ask_tree), "offers": ask_offers}


# --- Nothing below is sent to hosts with the survey. ---
from ansible_collections.slipway.host.plugins.module_utils.data import checkout_drift
from ansible_collections.slipway.host.plugins.module_utils.state import accounts
from ansible_collections.slipway.host.plugins.module_utils.state.model import (
    MISSING,
    ConflictError,
    Kind,
)


def _tree(entry: Entry, answer: Answer) -> tuple[Any, bool]:
    """Return what is known of the tree at an entry's path, and whether it can be fetched.

    Raise ConflictError where something is in its place that is not the role's.
    """
    path = entry["path"]
    found = answer["trees"][path]
    offered = not answer.get("offers", {}).get(path)
    if found is None:
        return None, offered
    leads = found.get("leads")
    if leads and leads not in entry["places"]:
        raise ConflictError(
            f"{path}: found {found['link']}, which is in no folder of ml_data_disks; expected a "
            "folder. List its folder there, or move the link out of the way."
        )
    if "obstacle" in found:
        raise ConflictError(found["obstacle"])
    if found["state"] is None:
        return None, offered
    if found["record"] is None and not _is_adopted(entry, found):
        raise ConflictError(_no_record(path, found))
    return found, offered


def _no_record(path: str, found: Mapping[str, Any]) -> str:
    """Return why a tree is not the role's, and what to do."""
    if found.get("record_owner"):
        return (
            f"{path}: found a record that belongs to {found['record_owner']}; expected root's. If "
            f"this data set was made by Slipway, run 'chown -R root: {path}/.slipway', else move "
            "it out of the way, then run again."
        )
    kind, _mode, owner, _group = found["state"]
    return (
        f"{path}: found a {kind}, owned by {owner}, that was not made from this declaration; "
        "expected a tree of Slipway's, or nothing. Move it out of the way, or declare another "
        "place with 'to'."
    )


def _is_adopted(entry: Entry, found: Mapping[str, Any]) -> bool:
    """Whether somebody's own clone of the declared repository is at its place."""
    return "url" in entry and bool(found["git"]) and found["git"]["url"] == entry["url"]


def _placed(entry: Entry, found: Mapping[str, Any]) -> Iterator[Change]:
    """Yield how a tree differs that holds what it should."""
    for what, was in zip(("mode", "owner", "group"), found["state"][1:], strict=True):
        if was != entry[what]:
            yield f"{what} {was}", entry[what]
    if found["staged"]:
        yield "what an interrupted run left is beside it", "removed"


def _is_removed(entry: Entry, answer: Answer) -> Iterator[Change] | None:
    """Return the difference of an entry that should not be there, None where it should."""
    if entry.get("state", "present") != "absent":
        return None
    found = answer["trees"][entry["path"]]
    if found and "obstacle" in found:
        raise ConflictError(found["obstacle"])
    # What the role did not make is not for the role to remove.
    return iter([("present", "absent")] if found and found["record"] else [])


def compare_datasets(entry: Entry, answer: Answer) -> Iterator[Change]:
    """Yield the differences of a data set."""
    removed = _is_removed(entry, answer)
    if removed is not None:
        yield from removed
        return
    found, offered = _tree(entry, answer)
    version = entry["version"]
    if found is None:
        if offered:
            yield MISSING, "unpacked"
        return
    if found["record"].get("version") != version:
        if offered:
            yield f"of {found['record'].get('version')}", f"of {version}"
        return
    gone = found["missing"]
    if gone and offered:
        more = f" and {len(gone) - 3} more" if len(gone) > 3 else ""
        yield f"{', '.join(gone[:3])}{more} missing", "there"
    yield from _placed(entry, found)


def compare_checkouts(entry: Entry, answer: Answer) -> Iterator[Change]:
    """Yield the differences of a git work tree."""
    removed = _is_removed(entry, answer)
    if removed is not None:
        yield from removed
        return
    found, offered = _tree(entry, answer)
    wanted = f"at {entry['revision']}"
    if found is None:
        if offered:
            yield MISSING, wanted
        return
    if not checkout_drift.has_version(found, entry["version"]):
        if offered:
            git = found["git"]
            yield f"at {git['branch'] or git['head'][:12]} of {git['url']}", wanted
        return
    revision = entry["revision"], entry.get("settled", False)
    yield from checkout_drift.differences(found, entry["url"], *revision)
    yield from _placed(entry, found)


def skipped_trees(answer: Answer) -> list[str]:
    """Return a sentence for each optional tree whose URL does not provide it now."""
    return [
        f"Skipped optional {path}: download failed: {why}"
        for path, why in answer.get("offers", {}).items()
        if why
    ]


def _offers_of(entry: Entry) -> Iterator[tuple[str, Iterable[Any]]]:
    if entry.get("offer"):
        yield "offers", [tuple(entry["offer"])]


KINDS = (
    Kind("datasets", "path", "trees", compare_datasets, _offers_of, needs=accounts.owner_and_group),
    Kind(
        "checkouts", "path", "trees", compare_checkouts, _offers_of, needs=accounts.owner_and_group
    ),
)
