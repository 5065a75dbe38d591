# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Owned state: what one role is responsible for on a host, as data, and how drift is found.

A role states it once, as ``__<role>_owned`` in its ``vars/main.yml``; its tasks loop over that
statement and the survey compares it with the host.  The statement is a mapping of these lists,
each of mappings, all optional:

============  ============================================================================
kind          keys of an entry (``?`` marks optional ones)
============  ============================================================================
packages      name, version? (may end with ``*``), hold?, state? (``present`` or ``absent``),
              optional? (then it is not missed where it is not there), follows?: a version of
              others that it depends on, and with which it changes
files         path, content?, mode?, owner?, group?, state? (``file``, ``directory``,
              ``absent``); a file without content may hold anything; owner and group are
              names, or numbers in digits; default_acl?: the mode of what is made in a folder,
              whatever the umask. Such a folder is people's: nothing that stands in its place is
              replaced
folders       path, entries: the names that may be in a folder, and no others
secrets       path, owner, group, content? or source?: another file of the host that it is a copy
              of; without these it may hold anything but nothing at all
mounts        path, owner, group, read_only?: a folder that containers get; one that is there is
              left as it is
links         folder, target, names: the links to a target that are in a folder, and no others;
              what else is in the folder is not the role's
unhidden      path: of a command of the system, which a command of ours would hide; where it is
              there, somebody must decide
json          path, settings: keys the role owns in a JSON file it shares with others; record?:
              where the module daemon_json notes what it set, so that a dropped key is seen
lines         path, lines: lines the role owns in a file it shares with others; user and home?:
              where that user's home was taken to be, which must not be elsewhere
keyrings      path, fingerprint of the OpenPGP key it must hold
derived       path, since: files that went into it, which must not be newer; required? (then
              it must be there)
modules       name, version?, state?: kernel modules that are loaded, or not (``absent``)
units         name, enabled?, active?, since?: files that a running unit has read, so that it
              must have been started or reloaded after they changed
groups        name, gid?
users         name, uid?, comment?, shell?, home?, state?
members       group, users, exclusive? (then nobody else may be in the group), foreign? (then the
              group has to be there already), devices?: beginnings
              of paths; then the users are members only where such a device is the group's and
              not open to everybody
left_by_root  user, whose ``.docker`` folder holds nothing of root's
rootless      user, who has an engine of their own; since?: files that it has read
obstacles     path, holds, why: a file that holds this stands in the way, and WHY says what to do
images        reference, digest: the context digest that its label must bear
projects      name, services: list of {name, config, image?, reference?}: containers of a compose
              project by their ``io.slipway.config`` label and context digest; since?: files
              that its containers have read, so that they must be newer; urls?: its addresses
              by name, for people
datasets      path, version: the checksum of the archive that a tree is unpacked from, or its URL,
              mode, owner, group, places: the paths to which a link may lead there, state?,
              offer?: what the probe is asked about the URL of one that is only wanted where that
              gives it
checkouts     the same for a git work tree, and url, revision, settled?: that the revision is a
              commit; its version is made of URL and revision
refused       sentences that say why the role cannot work on this host; none where it can
============  ============================================================================
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from ansible_collections.slipway.host.plugins.module_utils.apt import changes, openpgp
from ansible_collections.slipway.host.plugins.module_utils.data import standing
from ansible_collections.slipway.host.plugins.module_utils.docker import daemon_json, rootless
from ansible_collections.slipway.host.plugins.module_utils.docker import labels as docker_labels
from ansible_collections.slipway.host.plugins.module_utils.state import acl

Entry: TypeAlias = Mapping[str, Any]
Answer: TypeAlias = Mapping[str, Any]
Change: TypeAlias = "tuple[str, str]"

LABEL_DIGEST = docker_labels.DIGEST
LABEL_CONFIG = docker_labels.CONFIG
LABEL_ONE_OFF = "com.docker.compose.oneoff"
# How a service is proven, as JSON.
LABEL_PROOF = docker_labels.PROOF

MISSING = "missing"
SECRET_MODE = "0600"
NOTHING = hashlib.sha256().hexdigest()


class OwnedStateError(ValueError):
    """A role's statement is not of the form that this module describes."""


class ConflictError(ValueError):
    """Something on the host is not the role's and in its way: a person must decide."""


@dataclass(frozen=True)
class Difference:
    """One owned thing that is not as it should be.

    ``kind`` is the list it was stated in, ``name`` which one, ``found`` and ``expected`` are in
    words; neither ever holds the content of a file.
    """

    kind: str
    name: str
    found: str
    expected: str

    def __str__(self) -> str:
        """Return the difference as one line for a person."""
        return f"{self.kind} {self.name}: {self.found}, should be {self.expected}"


def _packages(entry: Entry, answer: Answer) -> Iterator[Change]:
    found = answer["packages"][entry["name"]]
    want, state, version = found or ("unknown", "not-installed", "")
    if entry.get("state", "present") == "absent":
        if state != "not-installed":
            yield f"{version} {state}".strip(), "absent"
        return
    if state != "installed":
        if entry.get("optional"):
            return
        # "config-files" is what dpkg calls a package that was removed but not purged.
        yield (MISSING if state in ("not-installed", "config-files") else state), "installed"
        return
    wanted_version = entry.get("version") or version
    if not changes.is_version(version, wanted_version):
        yield f"version {version}", wanted_version
    hold = entry.get("hold")
    if hold is not None and hold != (want == "hold"):
        yield ("not held", "held") if hold else ("held", "not held")


def _files(entry: Entry, answer: Answer) -> Iterator[Change]:
    state = entry.get("state", "file")
    found = answer["files"][entry["path"]]
    if state == "absent":
        if found is not None:
            yield "present", "absent"
        return
    if found is None:
        yield MISSING, f"a {state}"
        return
    kind, mode, owner, group, digest, uid, gid = found
    default_acl = entry.get("default_acl")
    if kind != state and default_acl:
        raise ConflictError(
            f"{entry['path']} has to be a folder and is a {kind}; declare where it leads, or move "
            "it out of the way"
        )
    if kind != state:
        yield f"a {kind}", f"a {state}"
        return
    content = entry.get("content")
    if content is not None and digest != hashlib.sha256(content.encode()).hexdigest():
        yield "content differs", "as declared"
    default_mode = "0755" if state == "directory" else "0644"
    for what, was, should in (
        ("mode", (mode,), entry.get("mode", default_mode)),
        ("owner", (owner, str(uid)), entry.get("owner", "root")),
        ("group", (group, str(gid)), entry.get("group", "root")),
    ):
        if should not in was:
            yield f"{what} {was[0]}", should
    if default_acl:
        yield from _default_acl(entry["path"], default_acl, answer["acls"][entry["path"]])


def _default_acl(path: str, mode: str, found: str | None) -> Iterator[Change]:
    if found is None:
        raise ConflictError(
            f"the file system of {path} keeps no POSIX ACLs, so it cannot say that new files are "
            "a team's; mount it so that it does, or declare the folder with 'acl: false'"
        )
    change = acl.difference(mode, found)
    if change:
        yield change


def _secrets(entry: Entry, answer: Answer) -> Iterator[Change]:
    source = entry.get("source")
    origin = answer["files"][source] if source else None
    if source and (origin is None or origin[4] in (None, NOTHING)):
        what = "empty" if origin and origin[4] else f"a {origin[0]}" if origin else MISSING
        raise ConflictError(f"{source}, which {entry['path']} is to be a copy of, is {what}")
    file = {**entry, "mode": SECRET_MODE}
    yield from _files(file, answer)
    found = answer["files"][entry["path"]]
    digest = found[4] if found else None
    if origin and digest and digest != origin[4]:
        yield f"differs from {source}", "the same"
    elif digest == NOTHING:
        yield "empty", "a secret"


def _mounts(entry: Entry, answer: Answer) -> Iterator[Change]:
    if answer["files"][entry["path"]] is None:
        if entry.get("read_only"):
            raise ConflictError(f"{entry['path']}, which a service is to read, is {MISSING}")
        yield MISSING, f"a folder of {entry['owner']}:{entry['group']}"


def _folders(entry: Entry, answer: Answer) -> Iterator[Change]:
    for name in sorted(set(answer["folders"][entry["path"]] or ()) - set(entry["entries"])):
        yield f"{name} is there", "removed"


def _links(entry: Entry, answer: Answer) -> Iterator[Change]:
    folder, target = entry["folder"], entry["target"]
    found = answer["links"][folder] or {}
    for name in sorted(entry["names"]):
        leads = found.get(name)
        if leads is None:
            yield f"{name} is {MISSING}", f"a link to {target}"
        elif leads != target:
            raise ConflictError(
                f"{folder}/{name} is there and is {f'a link to {leads}' if leads else 'no link'}, "
                f"but has to be a link to {target}; move it out of the way, or do without {name}"
            )
    for name in sorted(set(found) - set(entry["names"])):
        if found[name] == target:
            yield f"{name} is there", "removed"


def _unhidden(entry: Entry, answer: Answer) -> Iterator[Change]:
    if answer["files"][entry["path"]] is not None:
        raise ConflictError(
            f"{entry['path']} is a command of this host, which ours of that name would hide; "
            "give ours another name, or do without it"
        )
    return iter(())


def _json(entry: Entry, answer: Answer) -> Iterator[Change]:
    text = answer["texts"][entry["path"]]
    if text is None:
        if entry["settings"]:
            yield MISSING, "a file with the declared keys"
        return
    noted = answer["texts"].get(entry.get("record"))
    try:
        record = daemon_json.read_record(noted or "", entry["path"])
    except daemon_json.DaemonJsonError:
        record = ()  # a broken record counts as a lost one, as in the module
    # A broken file raises: somebody must look at it before anything is changed.
    lines = daemon_json.owned_difference(
        text, entry["settings"], entry.get("absent", ()), record, name=entry["path"]
    )
    for line in lines:
        yield line, "as declared"


def _lines(entry: Entry, answer: Answer) -> Iterator[Change]:
    user = answer["users"][entry["user"]] if entry.get("home") else None
    if user and user[2] != entry["home"]:
        raise ConflictError(
            f"the home of {entry['user']} is {user[2]}, so nobody would look into {entry['path']}; "
            f"declare it with 'home: {user[2]}'"
        )
    for path in _key_paths(entry):
        yield from _keys_mode(entry["user"], path, answer.get("files", {}).get(path))
    present = set(_text_lines(answer["texts"][entry["path"]] or ""))
    missing = sum(line not in present for line in entry["lines"])
    if missing:
        yield f"{missing} of {len(entry['lines'])} lines {MISSING}", "all there"


def _key_paths(entry: Entry) -> tuple[str, ...]:
    """Return the file of a user's keys and its folder: sshd refuses keys that others can change."""
    path = str(entry["path"])
    return (path.rpartition("/")[0], path) if entry.get("user") else ()


def _keys_mode(user: str, path: str, found: Any) -> Iterator[Change]:
    if not found or found[2] != user:
        return
    mode, needed = int(found[1], 8), 0o100 if found[0] == "directory" else 0o400
    if mode & 0o022 or not mode & needed:
        yield f"{path} has mode {found[1]}", "readable by its owner and not writable by others"


def _text_lines(text: str) -> list[str]:
    """Return the lines of a text as the probe spells it, in any encoding."""
    if text.startswith("base64:"):
        text = base64.b64decode(text[7:]).decode("utf-8", "surrogateescape")
    return text.splitlines()


def _keyrings(entry: Entry, answer: Answer) -> Iterator[Change]:
    text = answer["texts"][entry["path"]]
    if text is None:
        yield MISSING, f"the key {entry['fingerprint']}"
        return
    try:
        found = openpgp.fingerprints(openpgp.from_text(text))
    except ValueError as error:
        yield str(error), f"the key {entry['fingerprint']}"
        return
    if openpgp.spelled(entry["fingerprint"]) not in found:
        yield f"the key {', '.join(found)}", entry["fingerprint"]


def _derived(entry: Entry, answer: Answer) -> Iterator[Change]:
    made = answer["mtimes"][entry["path"]]
    if made is None and entry.get("required"):
        yield MISSING, "there"
    for path in entry["since"] if made is not None else ():
        if (answer["mtimes"][path] or 0) > made:
            yield f"older than {path}", "made after it"


def _modules(entry: Entry, answer: Answer) -> Iterator[Change]:
    version = answer["modules"][entry["name"]]
    if entry.get("state", "present") == "absent":
        if version is not None:
            yield "loaded", "not loaded"
    elif version is None:
        yield "not loaded", "loaded"
    elif entry.get("version") and version != entry["version"]:
        yield f"version {version or 'unknown'} is loaded", f"version {entry['version']}"


def _units(entry: Entry, answer: Answer) -> Iterator[Change]:
    found = answer["units"][entry["name"]] or ("not-found", "", "", False, 0.0)
    load, unit_file, active, needs_reload, changed = found
    if load == "not-found":
        if entry.get("enabled") or entry.get("active"):
            yield MISSING, "a unit"
        return
    if needs_reload:
        yield "its files changed since systemd read them", "read again"
    enabled = entry.get("enabled")
    # Static and generated units cannot be enabled; systemd starts them when they are needed.
    if enabled is not None and enabled != (unit_file not in ("disabled", "masked", "")):
        yield (unit_file or "disabled"), "enabled" if enabled else "disabled"
    wanted = entry.get("active")
    running = active in ("active", "activating", "reloading")
    if wanted is not None and wanted != running:
        yield active, "active" if wanted else "inactive"
        return
    for path in entry.get("since", ()) if running else ():
        if (answer["mtimes"][path] or 0) > changed:
            yield f"started before {path} changed", "started after it"


def _groups(entry: Entry, answer: Answer) -> Iterator[Change]:
    found = answer["groups"][entry["name"]]
    if found is None:
        yield MISSING, "a group"
    elif entry.get("gid") is not None and found[0] != entry["gid"]:
        yield f"gid {found[0]}", str(entry["gid"])


def _users(entry: Entry, answer: Answer) -> Iterator[Change]:
    found = answer["users"][entry["name"]]
    if entry.get("state", "present") == "absent":
        if found is not None:
            yield "present", "absent"
        return
    if found is None:
        yield MISSING, "a user"
        return
    for what, was in (
        ("uid", found[0]),
        ("comment", found[4]),
        ("home", found[2]),
        ("shell", found[3]),
    ):
        should = entry.get(what)
        if should is not None and should != was:
            yield f"{what} {was}", str(should)


def _members(entry: Entry, answer: Answer) -> Iterator[Change]:
    found = answer["groups"][entry["group"]]
    if found is None and entry.get("foreign", False):
        raise ConflictError(
            f"there is no group {entry['group']} for {', '.join(entry['users'])}: declare it in "
            "user_access_groups, or take it off their groups"
        )
    members = set(found[1]) if found else set()
    if "devices" in entry and not any(
        entry["group"] in answer["devices"][beginning] for beginning in entry["devices"]
    ):
        return
    wanted = set(entry["users"])
    for user in sorted(wanted - members):
        yield f"{user} is not a member", "a member"
    if entry.get("exclusive", False):
        for user in sorted(members - wanted):
            yield f"{user} is a member", "no member, because nobody listed it"


def _left_by_root(entry: Entry, answer: Answer) -> Iterator[Change]:
    names = answer["left"][entry["user"]]
    if names:
        yield f"{', '.join(names)} in ~/.docker is root's", f"{entry['user']}'s"


def _rootless_engines(entry: Entry, answer: Answer) -> Iterator[Change]:
    found = answer["rootless"][entry["user"]]
    if found is None:
        yield MISSING, "a user with an engine"
        return
    state = rootless.State(*found)
    yield from rootless.differences(state, answer["users"][entry["user"]][0])
    for path in entry.get("since", ()) if state.began else ():
        if (answer["mtimes"][path] or 0) > state.began:
            yield f"started before {path} changed", "started after it"


def _obstacles(entry: Entry, answer: Answer) -> Iterator[Change]:
    if (answer["texts"][entry["path"]] or "").strip() == entry["holds"]:
        raise ConflictError(entry["why"])
    return iter(())


def _images(entry: Entry, answer: Answer) -> Iterator[Change]:
    found = (answer.get("images") or {}).get(entry["reference"])
    if found is None:
        yield ("Docker does not answer" if answer["engine"] else MISSING), "built"
        return
    digest = found[1].get(LABEL_DIGEST, "none")
    if digest != entry["digest"]:
        yield f"context digest {digest[:12]}", entry["digest"][:12]


def _projects(entry: Entry, answer: Answer) -> Iterator[Change]:
    if answer["engine"]:
        yield "Docker does not answer", "running"
        return
    containers = answer["projects"][entry["name"]]
    wanted = {service["name"]: service for service in entry["services"]}
    for service, state, health, labels, created in containers:
        # What somebody did once by `docker compose run` is no service, and compose leaves it.
        if labels.get(LABEL_ONE_OFF) == "True":
            continue
        if service not in wanted:
            yield f"{service} is there", "removed"
            continue
        declared = wanted.pop(service)
        if state != "running":
            yield f"{service} is {state}", "running"
        elif health == "unhealthy":
            yield f"{service} is unhealthy", "healthy"
        elif labels.get(LABEL_CONFIG) != declared["config"]:
            yield f"{service} runs an older configuration", "the declared one"
        elif declared.get("image") and labels.get(LABEL_DIGEST) != declared["image"]:
            yield f"{service} runs an older image", declared["image"][:12]
        # The engine counts whole seconds.
        elif any(int(answer["mtimes"][path] or 0) > created for path in entry.get("since", ())):
            yield f"{service} was made before a secret changed", "made after it"
    for service in wanted:
        yield f"{service} is {MISSING}", "running"


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


def _datasets(entry: Entry, answer: Answer) -> Iterator[Change]:
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


def _checkouts(entry: Entry, answer: Answer) -> Iterator[Change]:
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
    if not standing.is_of(entry["version"], found):
        if offered:
            git = found["git"]
            yield f"at {git['branch'] or git['head'][:12]} of {git['url']}", wanted
        return
    revision = entry["revision"], entry.get("settled", False)
    yield from standing.displaced(found, entry["url"], *revision)
    yield from _placed(entry, found)


@dataclass(frozen=True)
class Kind:
    """How one kind of owned thing is asked for and compared.

    ``asks`` is the key of the probe's question, ``by`` the entry's key that goes into it and names
    the entry, ``compare`` yields pairs of what was found and what was expected.
    """

    asks: str
    by: str
    compare: Callable[[Entry, Answer], Iterator[Change]]


KINDS: Mapping[str, Kind] = {
    "packages": Kind("packages", "name", _packages),
    "files": Kind("files", "path", _files),
    "folders": Kind("folders", "path", _folders),
    "secrets": Kind("files", "path", _secrets),
    "mounts": Kind("files", "path", _mounts),
    "links": Kind("links", "folder", _links),
    "unhidden": Kind("files", "path", _unhidden),
    "json": Kind("texts", "path", _json),
    "lines": Kind("texts", "path", _lines),
    "keyrings": Kind("texts", "path", _keyrings),
    "derived": Kind("mtimes", "path", _derived),
    "modules": Kind("modules", "name", _modules),
    "units": Kind("units", "name", _units),
    "groups": Kind("groups", "name", _groups),
    "users": Kind("users", "name", _users),
    "members": Kind("groups", "group", _members),
    "left_by_root": Kind("left", "user", _left_by_root),
    "rootless": Kind("rootless", "user", _rootless_engines),
    "obstacles": Kind("texts", "path", _obstacles),
    "images": Kind("images", "reference", _images),
    "projects": Kind("projects", "name", _projects),
    "datasets": Kind("trees", "path", _datasets),
    "checkouts": Kind("trees", "path", _checkouts),
}


def stated(owned: Mapping[str, Sequence[Entry]]) -> Iterator[tuple[str, Sequence[Entry]]]:
    """Yield the lists of a role's statement that tell what is owned."""
    return ((kind, entries) for kind, entries in owned.items() if kind != "refused")


def check(role: str, owned: Mapping[str, Sequence[Entry]]) -> None:
    """Raise OwnedStateError where a role's statement has an unknown kind or lacks a name."""
    for kind, entries in stated(owned):
        if kind not in KINDS:
            raise OwnedStateError(
                f"role {role} states owned '{kind}', which is none of {', '.join(sorted(KINDS))}"
            )
        for entry in entries:
            if KINDS[kind].by not in entry:
                raise OwnedStateError(f"role {role}: a {kind} entry lacks '{KINDS[kind].by}'")


def question(statements: Sequence[Mapping[str, Sequence[Entry]]]) -> dict[str, list[Any]]:
    """Return the one question for the probe that covers all STATEMENTS."""
    asked: dict[str, set[Any]] = {}
    for owned in statements:
        for kind, entries in stated(owned):
            how = KINDS[kind]
            asked.setdefault(how.asks, set()).update(entry[how.by] for entry in entries)
            for entry in entries:
                for what, names in _further(kind, entry):
                    if names:
                        asked.setdefault(what, set()).update(names)
    return {key: sorted(names) for key, names in sorted(asked.items())}


def _further(kind: str, entry: Entry) -> Iterator[tuple[str, Sequence[Any]]]:
    """Yield what is asked for an entry beside what its kind is asked by."""
    yield "mtimes", entry.get("since", ())
    yield "devices", entry.get("devices", ())
    if entry.get("source"):
        yield "files", [entry["source"]]
    if entry.get("record"):
        yield "texts", [entry["record"]]
    if entry.get("offer"):
        yield "offers", [tuple(entry["offer"])]
    if kind == "projects":
        yield "images", [one["reference"] for one in entry["services"] if one.get("reference")]
    if entry.get("default_acl"):
        yield "acls", [entry["path"]]
    if kind == "lines":
        yield "files", _key_paths(entry)
    if kind == "rootless" or (kind == "lines" and entry.get("home")):
        yield "users", [entry["user"]]


def differences(owned: Mapping[str, Sequence[Entry]], answer: Answer) -> list[Difference]:
    """Return where a host's ANSWER differs from one role's OWNED state, in the stated order.

    Raise DaemonJsonError, with line and column, where a shared JSON file is broken, and
    ConflictError where something else is in the way. What a user put in the way is a difference:
    it must not keep the rest of the host from being compared.
    """
    return [
        Difference(kind, str(entry[KINDS[kind].by]), found, expected)
        for kind, entries in stated(owned)
        for entry in entries
        for found, expected in _refused(entry, KINDS[kind], answer)
        or KINDS[kind].compare(entry, answer)
    ]


def _refused(entry: Entry, kind: Kind, answer: Answer) -> list[Change]:
    """Return what a user put in the way of an entry; the probe did not look behind it."""
    unsafe: Mapping[str, Sequence[str]] = answer.get("unsafe", {})
    for path in (entry[kind.by], entry.get("source")):
        if path is not None and path in unsafe:
            where, found, expected = unsafe[path]
            if entry.get("state") == "absent":
                return [("present", "absent")]
            return [(f"{where} is {found}", f"{expected}; move it out of the way")]
    return []


def without_image(statements: Sequence[Mapping[str, Sequence[Entry]]], answer: Answer) -> list[str]:
    """Return a sentence for each project to start whose image nobody builds and the host lacks.

    On a host that builds none they are loaded, and that takes the engine first.
    """
    built = {image["reference"] for owned in statements for image in owned.get("images", ())}
    if answer["engine"] and not built:
        return []
    return [
        f"project {project['name']} needs the image {reference}, which the host does not have as "
        "it is declared: add it to ml_images_present, load it, or take the project off "
        "ml_services_instances"
        for owned in statements
        for project in owned.get("projects", ())
        for service in project["services"]
        if (reference := service.get("reference"))
        and reference not in built
        and any(_projects(project, answer))
        and any(_images({"reference": reference, "digest": service["image"]}, answer))
    ]


def left_out(answer: Answer) -> list[str]:
    """Return a sentence for each optional thing that its address does not give now."""
    return [
        f"{path} is optional and left out, since its address does not give it: {why}"
        for path, why in answer.get("offers", {}).items()
        if why
    ]
