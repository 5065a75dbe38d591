# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Docker's daemon.json: the merge of what the project wants into what somebody else wrote there.

Pure functions over text and plain JSON data; the ``daemon_json`` module does the reading and the
writing, the survey asks :func:`owned_difference`.

Whose is a value?  Every key path that the project sets is *recorded* with the value it set and the
value that stood there before (:class:`Owned`).  A value in the file that is not the recorded one is
taken as the user's own.  From these two sentences follow:

* a setting that is no longer wanted gives way to what was there before, or disappears;
* one that somebody edited since is theirs: it is left alone once it is no longer wanted;
* one that is still wanted is repaired whatever the record says, so a lost record breaks nothing: it
  only means that a value written earlier looks like the user's own later.

Objects are merged key by key, everything else (lists too) is replaced as a whole: two lists cannot
be told apart from one list that was edited.  A null in the file counts as a missing key, as it does
to dockerd.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, NoReturn, TypeAlias

Json: TypeAlias = "dict[str, Any]"
KeyPath: TypeAlias = "tuple[str, ...]"

BYTE_ORDER_MARK = "\ufeff"
# How much of a broken line is shown on each side of the column; minified files are one long line.
SHOWN_COLUMNS = 60

_MISSING: Final = object()
_KINDS: Mapping[type, str] = {
    bool: "a boolean",
    dict: "an object",
    float: "a number",
    int: "a number",
    list: "a list",
    str: "a string",
    type(None): "null",
}
_CREDENTIALS = re.compile(r"(?<=://)[^/\s\"]+(?=@)")

# What SIGHUP applies without a restart: Docker's dockerd reference, "Configuration reload
# behavior", and the code behind it (moby: daemon/reload.go, daemon/reload_unix.go and reloadConfig
# in daemon/command/daemon.go).  The code tells two kinds apart, and engine 28.5 does what it says.
# These are set back to their default when the key is gone from the file ...
RESET_ON_RELOAD = frozenset(
    {
        "authorization-plugins",
        "max-concurrent-downloads",
        "max-concurrent-uploads",
        "max-download-attempts",
        "network-diagnostic-port",
    }
)
# ... and these keep the running value then, so that removing them needs a restart.
KEPT_ON_RELOAD = frozenset(
    {
        "allow-nondistributable-artifacts",
        "debug",
        "default-cgroupns-mode",
        "default-ipc-mode",
        "default-runtime",
        "default-shm-size",
        "insecure-registries",
        "labels",
        "live-restore",
        "registry-mirrors",
        "runtimes",
        "shutdown-timeout",
    }
)
# "features" is reloaded, but the CDI driver and the image store are chosen when the daemon starts
# (moby: RegisterCDIDriver in daemon/command/daemon.go; moby pull request 45607).
RELOADED_FEATURES = frozenset({"buildkit"})

# Command line flags of dockerd whose key in daemon.json has another name (moby:
# daemon/command/config.go, config_unix.go and options.go).  --add-runtime is not among them:
# dockerd adds up the flags and the key "runtimes".
KEY_OF_FLAG: Mapping[str, str] = {
    "-D": "debug",
    "-G": "group",
    "-H": "hosts",
    "-b": "bridge",
    "-l": "log-level",
    "-p": "pidfile",
    "--authorization-plugin": "authorization-plugins",
    "--cdi-spec-dir": "cdi-spec-dirs",
    "--default-address-pool": "default-address-pools",
    "--default-network-opt": "default-network-opts",
    "--default-ulimit": "default-ulimits",
    "--dns-opt": "dns-opts",
    "--exec-opt": "exec-opts",
    "--feature": "features",
    "--host": "hosts",
    "--host-gateway-ip": "host-gateway-ips",
    "--insecure-registry": "insecure-registries",
    "--label": "labels",
    "--log-opt": "log-opts",
    "--node-generic-resource": "node-generic-resources",
    "--registry-mirror": "registry-mirrors",
    "--storage-opt": "storage-opts",
}


class DaemonJsonError(ValueError):
    """The file, the wanted settings or the record cannot be used; the message says what to do."""


class _RefusedError(ValueError):
    """Text that Python's parser accepts and dockerd misreads; ``pattern`` finds it in a line."""

    def __init__(self, reason: str, pattern: str) -> None:
        super().__init__(reason)
        self.pattern = pattern


@dataclass(frozen=True)
class Owned:
    """A key path that the project set.

    ``ours`` is the value it set.  ``existed`` is how many leading parts of ``key`` were there
    before: all of them when the project replaced a value, and then ``before`` is that value; fewer
    when it added the key, and then what it emptied by leaving may go as far up as that.
    """

    key: KeyPath
    ours: Any
    existed: int
    before: Any = None

    @property
    def replaced(self) -> bool:
        """Whether a value stood here before."""
        return self.existed == len(self.key)


@dataclass(frozen=True)
class Plan:
    """What a merge would do: the data ``before`` and ``after`` it, and the ``record`` to keep.

    ``plain`` is false for a file that is empty or starts with a byte order mark.  Both mean an
    object to engines from 23.0 on; earlier ones do not start on them.
    """

    before: Json
    after: Json
    record: tuple[Owned, ...]
    plain: bool

    @property
    def changed(self) -> bool:
        """Whether the file has to be written."""
        return not self.plain or not _same(self.before, self.after)

    @property
    def differences(self) -> list[str]:
        """Each change in words, like ``log-opts.max-size: "10m" → "50m"``, without credentials."""
        return [
            f"{in_words(key)}: {_value_in_words(old, '(not set)')} → "
            f"{_value_in_words(new, '(removed)')}"
            for key, old, new in _changes(self.before, self.after)
        ]

    @property
    def restart_required(self) -> bool:
        """Whether a running daemon needs a restart to take up the changes."""
        return any(
            not _reloads(key, old, new)
            for (key, *_), old, new in _changes(self.before, self.after, depth=1)
        )

    @property
    def reload_required(self) -> bool:
        """Whether a reload (SIGHUP) is needed and enough."""
        return not self.restart_required and not _same(self.before, self.after)


def plan(
    text: str | None,
    settings: Mapping[str, Any],
    absent: Sequence[object] = (),
    record: Sequence[Owned] = (),
    name: str = "daemon.json",
) -> Plan:
    """Return what merging does to a file.

    ``text`` is its content, None where there is no file.  ``settings`` are the nested keys wanted,
    ``absent`` the key paths to remove (``log-opts.max-size``, or a list of keys where one of them
    holds a dot), ``record`` what :func:`read_record` returned, ``name`` what errors call the file.
    Raises DaemonJsonError.
    """
    wanted = _checked(settings)
    unwanted = [key_path(key) for key in absent]
    _refuse_contradictions(wanted, unwanted)
    before = parse(text or "", name)
    kept = {key for key, _ in _leaves(wanted)}
    after = _withdraw(before, [owned for owned in record if owned.key not in kept])
    for key in unwanted:
        after = _without(after, key, keep=len(key))
    return Plan(
        before=before,
        after=merge(after, wanted, name),
        record=tuple(_owned(_withdraw(before, record), wanted)),
        plain=text is None or _is_plain(text),
    )


def owned_difference(
    text: str,
    settings: Mapping[str, Any],
    absent: Sequence[object] = (),
    record: Sequence[Owned] = (),
    name: str = "daemon.json",
) -> list[str]:
    """Return in words where a file differs from what the project wants, [] where it does not.

    The arguments are those of :func:`plan`; without ``record``, a setting that was dropped since
    the file was written is not seen.  Raises DaemonJsonError.
    """
    return plan(text, settings, absent, record, name).differences


def merge(data: Json, settings: Mapping[str, Any], name: str = "daemon.json") -> Json:
    """Return ``data`` with ``settings`` in it: objects key by key, all else replaced.

    Keys of ``data`` keep their place, new ones follow in the order of ``settings``.  Raises
    DaemonJsonError where one side has an object and the other has not.
    """
    return _merged(data, settings, (), name)


def parse(text: str, name: str = "daemon.json") -> Json:
    """Return the object that a file's text holds; an empty text is an empty object.

    Raises DaemonJsonError with the place for text that is not JSON or not an object, and for what
    JSON parsers let pass but dockerd reads otherwise: repeated keys, NaN, numbers out of range.
    """
    text = text.removeprefix(BYTE_ORDER_MARK)
    if not text.strip():
        return {}
    try:
        data = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
    except json.JSONDecodeError as error:
        raise DaemonJsonError(_broken_json(text, name, error)) from None
    except _RefusedError as error:
        lines = [
            str(number)
            for number, line in enumerate(text.splitlines(), start=1)
            if re.search(error.pattern, line)
        ]
        where = f"line{'s' if len(lines) > 1 else ''} {', '.join(lines)}"
        raise DaemonJsonError(f"{name}: {error} (see {where}).") from None
    except (ValueError, RecursionError) as error:
        raise DaemonJsonError(f"{name} cannot be read as JSON: {error}.") from None
    if not isinstance(data, dict):
        raise DaemonJsonError(
            f"{name} holds {_kind(data)} at its top, not an object. Docker wants keys between "
            'braces, like {"log-driver": "local"}: correct the file or move it away.'
        )
    return data


def decode(raw: bytes, name: str = "daemon.json") -> str:
    """Return the text of a file's bytes; raises DaemonJsonError with the place if not UTF-8."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        head = raw[: error.start]
        line = head.count(b"\n") + 1
        column = len(head) - (head.rfind(b"\n") + 1) + 1
        raise DaemonJsonError(
            f"{name} is not UTF-8 text: byte 0x{raw[error.start]:02x} at line {line}, column "
            f"{column}. Convert the file to UTF-8 (iconv does it) or move it away."
        ) from None


def render(data: object) -> str:
    """Return data as the JSON text that is written: four spaces, keys in their order."""
    text = json.dumps(data, indent=4, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        # Half a surrogate pair, which JSON can say only by its escape.
        text = json.dumps(data, indent=4)
    return text + "\n"


def masked(text: str) -> str:
    """Return text without the user names and passwords in its URLs (proxies may hold some)."""
    return _CREDENTIALS.sub("***", text)


def key_path(key: object) -> KeyPath:
    """Return the parts of ``"log-opts.max-size"`` or ``["log-opts", "max-size"]``.

    Raises DaemonJsonError for anything else.
    """
    parts = key.split(".") if isinstance(key, str) else key
    if (
        not isinstance(parts, list | tuple)
        or not parts
        or not all(isinstance(part, str) and part for part in parts)
    ):
        raise DaemonJsonError(
            f"{key!r} is no key path: write log-opts.max-size, or [log-opts, max-size] where a key "
            "itself holds a dot."
        )
    return tuple(parts)


def in_words(key: Sequence[str]) -> str:
    """Return a key path with dots between its parts; parts that hold dots are quoted."""
    return ".".join(
        part if re.fullmatch(r"[\w-]+", part) else json.dumps(part, ensure_ascii=False)
        for part in key
    )


def read_record(text: str, path: str) -> tuple[Owned, ...]:
    """Return what the record's text says of the file at ``path``; () for an empty text.

    Raises DaemonJsonError if it is no record.
    """
    return tuple(_owned_from(entry) for entry in _records(text).get(path, []))


def updated_record(text: str, path: str, record: Sequence[Owned]) -> str:
    """Return the record's text with the entries of one file replaced, "" if nothing is left.

    Raises DaemonJsonError if ``text`` is no record.
    """
    records = _records(text) | {path: [asdict(owned) for owned in record]}
    if not record:
        del records[path]
    return render(records) if records else ""


def environment_files(unit: str) -> list[str]:
    """Return the environment files that ``systemctl show`` names."""
    return re.findall(r"(/\S+) \(ignore_errors=(?:yes|no)\)", unit)


def unit_flags(unit: str, environments: Sequence[str] = ()) -> dict[str, str]:
    """Return the daemon.json keys that a unit already sets, each with its flag as it is written.

    ``unit`` is what ``systemctl show --property=ExecStart,Environment`` printed for docker.service,
    ``environments`` the texts of its environment files: ``$DOCKER_OPTS`` and the like are looked up
    there.
    """
    command = re.search(r"argv\[\]=(.*?) ; ", unit)
    if command is None:
        return {}
    inline = re.search(r"^Environment=(.*)$", unit, re.MULTILINE)
    assignments = _words(inline[1]) if inline else []
    for environment in environments:
        assignments += (line.strip() for line in environment.splitlines())
    variables = {
        name: " ".join(_words(value))
        for name, equals, value in (line.partition("=") for line in assignments)
        if equals and not name.startswith(("#", ";"))
    }
    words: list[str] = []
    for word in _words(command[1]):
        variable = re.fullmatch(r"\$\{?(\w+)\}?", word)
        words += _words(variables.get(variable[1], "")) if variable else [word]
    flags = [_flag(word) for word in words if word.startswith("-")]
    return {KEY_OF_FLAG.get(flag, flag.lstrip("-")): flag for flag in flags}


def conflicts(data: Json, flags: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the keys, each with its flag, that a file and a unit both set.

    dockerd refuses to start then; its ``--validate`` does not see the unit and cannot tell.
    """
    proxies = data.get("proxies")
    # dockerd looks into this object because its members are flags (moby: configValuesSet).
    names = {*data, *(proxies if isinstance(proxies, dict) else ())}
    return [(key, flag) for key, flag in flags.items() if key in names]


def _checked(settings: Mapping[str, Any]) -> Json:
    """Return the wanted settings as plain JSON data, which a caller's types may not be."""
    try:
        plain: Json = json.loads(json.dumps(settings, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise DaemonJsonError(f"settings cannot be written as JSON: {error}.") from None
    for key, value in _leaves(plain):
        if value is None:
            raise DaemonJsonError(
                f"settings: {in_words(key)} has no value (null). Give it one, leave it out, or "
                "name it under absent to have it removed."
            )
    return plain


def _refuse_contradictions(settings: Json, absent: Sequence[KeyPath]) -> None:
    for key in absent:
        for wanted, _ in _leaves(settings):
            if wanted[: len(key)] == key:
                raise DaemonJsonError(
                    f"{in_words(wanted)} is wanted by settings, and absent names "
                    f"{in_words(key)}: take one of them out."
                )


def _leaves(settings: Json, at: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Yield the key paths that a merge sets, each with its value."""
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*at, key))
        else:
            yield (*at, key), value


def _merged(data: Json, settings: Mapping[str, Any], at: KeyPath, name: str) -> Json:
    merged = dict(data)
    for key, wanted in settings.items():
        found = data.get(key)
        if found is not None and isinstance(found, dict) != isinstance(wanted, dict):
            raise DaemonJsonError(
                f"{name}: {in_words((*at, key))} is {_kind(found)} in the file, but {_kind(wanted)}"
                " is wanted there. Correct or remove the key in the file."
            )
        if isinstance(wanted, dict):
            merged[key] = _merged(found or {}, wanted, (*at, key), name)
        else:
            merged[key] = wanted
    return merged


def _owned(data: Json, settings: Json) -> Iterator[Owned]:
    """Yield the record of setting ``settings`` in ``data``."""
    for key, value in _leaves(settings):
        existed, found = 0, data
        for part in key:
            if not isinstance(found, dict) or found.get(part) is None:
                break
            existed, found = existed + 1, found[part]
        yield Owned(key, value, existed, found if existed == len(key) else None)


def _withdraw(data: Json, record: Sequence[Owned]) -> Json:
    """Return the data as it would be had the project not set what the record says."""
    for owned in record:
        if not _same(_lookup(data, owned.key), owned.ours):
            continue
        if owned.replaced:
            data = _with(data, owned.key, owned.before)
        else:
            data = _without(data, owned.key, keep=owned.existed)
    return data


def _lookup(data: Json, key: KeyPath) -> Any:
    found: Any = data
    for part in key:
        if not isinstance(found, dict) or part not in found:
            return _MISSING
        found = found[part]
    return found


def _with(data: Json, key: KeyPath, value: Any) -> Json:
    """Return data with the value at an existing key path replaced."""
    head, rest = key[0], key[1:]
    return {**data, head: _with(data[head], rest, value) if rest else value}


def _without(data: Json, key: KeyPath, keep: int) -> Json:
    """Return data without a key path.

    Objects around it that are empty then go too, save those at the first ``keep`` parts of it.
    """
    head, rest = key[0], key[1:]
    inner: Any = data.get(head)
    if rest and not isinstance(inner, dict):
        return data
    if rest:
        inner = _without(inner, rest, keep - 1)
        if inner or keep > 0:
            return {**data, head: inner}
    return {name: value for name, value in data.items() if name != head}


def _changes(
    before: Json, after: Json, at: KeyPath = (), depth: int | None = None
) -> Iterator[tuple[KeyPath, Any, Any]]:
    """Yield key path, old and new value of each change, looking ``depth`` levels down at most."""
    for key in before | after:
        old, new = before.get(key, _MISSING), after.get(key, _MISSING)
        if _same(old, new):
            continue
        if isinstance(old, dict) and isinstance(new, dict) and depth != len(at) + 1:
            yield from _changes(old, new, (*at, key), depth)
        else:
            yield (*at, key), old, new


def _same(one: Any, other: Any) -> bool:
    """Compare as JSON: the order of keys means nothing, and true is not 1 (it is to Python)."""
    if one is _MISSING or other is _MISSING:
        return one is other
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _reloads(key: str, old: Any, new: Any) -> bool:
    """Return whether a reload takes up the change of a key at the top of the file."""
    if key == "features":
        old, new = (value if isinstance(value, dict) else {} for value in (old, new))
        return all(name in RELOADED_FEATURES for (name, *_), *_ in _changes(old, new))
    gone = new is _MISSING or new is None
    return key in RESET_ON_RELOAD or (key in KEPT_ON_RELOAD and not gone)


def _is_plain(text: str) -> bool:
    return bool(text.strip()) and not text.startswith(BYTE_ORDER_MARK)


def _object(pairs: list[tuple[str, Any]]) -> Json:
    for key, count in Counter(key for key, _ in pairs).items():
        if count > 1:
            quoted = json.dumps(key, ensure_ascii=False)
            raise _RefusedError(
                f"the key {quoted} stands {count} times in the same object; dockerd would take the "
                "last one without a word. Keep the one that is meant",
                re.escape(quoted) + r"\s*:",
            )
    return dict(pairs)


def _refuse_constant(name: str) -> NoReturn:
    raise _RefusedError(
        f"{name} is no value that JSON knows. Write a number", rf"(?<!\w){re.escape(name)}\b"
    )


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise _RefusedError(f"the number {digits} is out of range. Correct it", re.escape(digits))
    return number


def _broken_json(text: str, name: str, error: json.JSONDecodeError) -> str:
    """Return the message for text that is not JSON: the place, the line and a caret under it."""
    # JSONDecodeError counts only \n as the end of a line.
    line = text.split("\n")[error.lineno - 1].rstrip("\r").replace("\t", " ")
    at = error.colno - 1
    start = max(0, at - SHOWN_COLUMNS)
    return (
        f"{name} is not valid JSON: line {error.lineno}, column {error.colno}: {error.msg}.\n"
        f"    {line[start : at + SHOWN_COLUMNS]}\n"
        f"    {' ' * (at - start)}^\n"
        "Correct the file and run again; it has been left as it is. JSON allows no comments, no "
        "comma after the last item and only double quotes; a missing comma is reported at the item "
        "after it."
    )


def _kind(value: Any) -> str:
    """Return what a value is, in JSON's words."""
    return _KINDS[type(value)]


def _value_in_words(value: Any, missing: str) -> str:
    return missing if value is _MISSING else masked(json.dumps(value, ensure_ascii=False))


def _records(text: str) -> dict[str, Any]:
    """Return the record's entries by file; raises DaemonJsonError if the text is no record."""
    try:
        records = json.loads(text) if text.strip() else {}
    except ValueError as error:
        raise DaemonJsonError(f"it is not JSON: {error}") from None
    if not isinstance(records, dict) or not all(
        isinstance(entries, list) for entries in records.values()
    ):
        raise DaemonJsonError("it is not an object of lists")
    return records


def _owned_from(entry: Any) -> Owned:
    try:
        owned = Owned(key_path(entry["key"]), entry["ours"], entry["existed"], entry["before"])
    except (TypeError, KeyError) as error:
        raise DaemonJsonError(f"an entry of it is broken: {error}") from None
    if not isinstance(owned.existed, int) or not 0 <= owned.existed <= len(owned.key):
        raise DaemonJsonError(f"an entry of it is broken: existed is {owned.existed!r}")
    return owned


def _words(text: str) -> list[str]:
    """Split as a shell does; where quotes are not closed, at blanks."""
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()


def _flag(word: str) -> str:
    """Return the flag in ``--label=a=b`` or ``-Hunix:///run/docker.sock``."""
    return word.partition("=")[0] if word.startswith("--") else word[:2]
