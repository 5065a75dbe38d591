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
              names, or numbers in digits
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
lines         path, lines: lines the role owns in a file it shares with others
keyrings      path, fingerprint of the OpenPGP key it must hold
derived       path, since: files that went into it, which must not be newer; required? (then
              it must be there)
modules       name, version?, state?: kernel modules that are loaded, or not (``absent``)
units         name, enabled?, active?, since?: files that a running unit has read, so that it
              must have been started or reloaded after they changed
groups        name, gid?
users         name, uid?, shell?, home?, state?
members       group, users, exclusive? (then nobody else may be in the group)
images        reference, digest: the context digest that its label must bear
projects      name, services: list of {name, config, image?}: containers of a compose
              project by their ``io.slipway.config`` label and context digest; since?: files
              that its containers have read, so that they must be newer; urls?: its addresses
              by name, for people
refused       sentences that say why the role cannot work on this host; none where it can
============  ============================================================================
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from ansible_collections.slipway.host.plugins.module_utils import _apt, _daemon_json, _openpgp

Entry: TypeAlias = Mapping[str, Any]
Answer: TypeAlias = Mapping[str, Any]
Change: TypeAlias = "tuple[str, str]"

LABEL_DIGEST = "io.slipway.digest"
LABEL_CONFIG = "io.slipway.config"
# How a service is proven, as JSON.
LABEL_PROOF = "io.slipway.proof"

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
    if not _apt.is_version(version, wanted_version):
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
        record = _daemon_json.read_record(noted or "", entry["path"])
    except _daemon_json.DaemonJsonError:
        record = ()  # a broken record counts as a lost one, as in the module
    # A broken file raises: somebody must look at it before anything is changed.
    lines = _daemon_json.owned_difference(
        text, entry["settings"], entry.get("absent", ()), record, name=entry["path"]
    )
    for line in lines:
        yield line, "as declared"


def _lines(entry: Entry, answer: Answer) -> Iterator[Change]:
    present = set((answer["texts"][entry["path"]] or "").splitlines())
    missing = sum(line not in present for line in entry["lines"])
    if missing:
        yield f"{missing} of {len(entry['lines'])} lines {MISSING}", "all there"


def _keyrings(entry: Entry, answer: Answer) -> Iterator[Change]:
    text = answer["texts"][entry["path"]]
    if text is None:
        yield MISSING, f"the key {entry['fingerprint']}"
        return
    try:
        found = _openpgp.fingerprints(_openpgp.from_text(text))
    except ValueError as error:
        yield str(error), f"the key {entry['fingerprint']}"
        return
    if entry["fingerprint"] not in found:
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
    for what, was in (("uid", found[0]), ("home", found[2]), ("shell", found[3])):
        should = entry.get(what)
        if should is not None and should != was:
            yield f"{what} {was}", str(should)


def _members(entry: Entry, answer: Answer) -> Iterator[Change]:
    found = answer["groups"][entry["group"]]
    members = set(found[1]) if found else set()
    wanted = set(entry["users"])
    for user in sorted(wanted - members):
        yield f"{user} is not a member", "a member"
    if entry.get("exclusive", False):
        for user in sorted(members - wanted):
            yield f"{user} is a member", "no member, because nobody listed it"


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
    "images": Kind("images", "reference", _images),
    "projects": Kind("projects", "name", _projects),
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


def question(statements: Sequence[Mapping[str, Sequence[Entry]]]) -> dict[str, list[str]]:
    """Return the one question for the probe that covers all STATEMENTS."""
    asked: dict[str, set[str]] = {}
    for owned in statements:
        for kind, entries in stated(owned):
            how = KINDS[kind]
            asked.setdefault(how.asks, set()).update(entry[how.by] for entry in entries)
            read = {path for entry in entries for path in entry.get("since", ())}
            if read:
                asked.setdefault("mtimes", set()).update(read)
            sources = {entry["source"] for entry in entries if entry.get("source")}
            if sources:
                asked.setdefault("files", set()).update(sources)
            records = {entry["record"] for entry in entries if entry.get("record")}
            if records:
                asked.setdefault("texts", set()).update(records)
    return {key: sorted(names) for key, names in sorted(asked.items())}


def differences(owned: Mapping[str, Sequence[Entry]], answer: Answer) -> list[Difference]:
    """Return where a host's ANSWER differs from one role's OWNED state, in the stated order.

    Raise DaemonJsonError, with line and column, where a shared JSON file is broken, and
    ConflictError where something else is in the way.
    """
    return [
        Difference(kind, str(entry[KINDS[kind].by]), found, expected)
        for kind, entries in stated(owned)
        for entry in entries
        for found, expected in KINDS[kind].compare(entry, answer)
    ]
