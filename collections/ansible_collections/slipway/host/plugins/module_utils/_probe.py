# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The survey's question, answered on the host: what is really there.

This file is sent to the host as it is, followed by one line that calls :func:`answer`, and run by
the host's Python.  So it is self-contained, uses the standard library of Python 3.9 and later, and
imports late what only some questions need: start-up is most of its cost.  It never writes.

A question and its answer are JSON objects with the same keys:

=============  ===========================  ====================================================
key            asked with                   answered with
=============  ===========================  ====================================================
``facts``      (always)                     what the host is, see :func:`host_facts`
``reach``      URLs                         in ``facts``, see :func:`reachable`; tried only where
                                            no engine is installed, since only then it matters
``packages``   names                        name to ``[want, state, version]``, see :func:`dpkg`
``files``      paths                        path to ``[type, mode, owner, group, sha256, uid, gid]``
``mtimes``     paths                        path to the time of its last change
``folders``    paths                        path to the names in it
``links``      paths of folders             path to where each name in it leads, empty where it is
                                            no link
``texts``      paths                        path to the content, ``base64:`` before binary ones
``trees``      paths                        path to what is known of a tree there, see :func:`tree`
``offers``     ``[path, URL, version,       path of a tree to why the URL does not give it; empty
               environment, headers]``,     where it does, or where the tree has that version
               the last two as JSON
``units``      names                        name to ``[load state, unit file state, active state,
                                            needs daemon-reload, time of its last change]``
``modules``    kernel modules               name to the version it states, empty where none, of
                                            those that are loaded
``users``      names                        name to ``[uid, gid, home, shell, comment]``
``groups``     names                        name to ``[gid, [members]]``
``acls``       paths of folders             path to its default ACL, see :func:`default_acl`
``devices``    beginnings of paths          beginning to ``{group: path}``, see :func:`devices`
``left``       names of users               name to what root left, see :func:`left_by_root`
``rootless``   names of users               name to ``[lingers, subordinate uids, gids, address of
                                            the context, time the engine began to answer]``
``images``     references                   reference to ``[id, {labels}]``
``projects``   compose project names        name to ``[[service, state, health, {labels},
                                            created]]``, the time in whole seconds since 1970
=============  ===========================  ====================================================

What is not there is answered with null, and ``engine`` holds the reason where Docker could not be
asked, null where it could. ``unsafe`` says of each path that was not read because somebody else may
have put something in the way, ``[path in the way, what was found, what was expected]``.

What lies below a folder that others can write is reached by :mod:`state.paths`, whose source
follows this file to the host as the variable ``PATHS``.
"""

from __future__ import annotations

import json
import os

# The typing module would be a quarter of the probe's start-up, and no annotation is evaluated.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Json = dict[str, Any]

# Labels other than these may hold anything at all; they are neither needed nor sent.
LABELS = ("io.slipway.", "com.docker.compose.service", "com.docker.compose.oneoff")
DOCKER_SOCKET = "/run/docker.sock"
NVIDIA, MELLANOX = "0x10de", "0x15b3"
# What belongs to a driver; the container toolkit is another role's business.
DRIVER_PACKAGES = (
    *("nvidia-", "libnvidia-", "libcuda1", "libnvcuvid1", "libnvsdm", "nvlsm", "cuda-drivers"),
    *("linux-modules-nvidia-", "linux-objects-nvidia-", "linux-signatures-nvidia-"),
    "firmware-nvidia-",
)
APT_COMPONENTS = {"contrib", "non-free", "non-free-firmware", "restricted", "multiverse"}
TOOLKIT_PACKAGES = ("nvidia-container-", "libnvidia-container")
# GPUs on baseboards whose switches show only in the vital product data of network functions, and
# how many of them need no such look, see gpu.tables.
NVLINK5_GPUS, NVLINK5_BASEBOARD = ("0x2901", "0x2909", "0x290a", "0x3182"), 8
EFI = "/sys/firmware/efi"
UPGRADE_RECORD = "/var/lib/slipway/upgrade/record.json"
# Where the docker command keeps the context of this name: the folder is the name's SHA-256.
CONTEXT = "rootless"
CONTEXT_FILE = (
    ".docker/contexts/meta/"
    "12b961af5feb3e9d39f93b2cefb9a1a944f18d02cca0cac2f04f5a982240605f/meta.json"
)


# Seconds for a look into a home with the rights of its user.
PATIENCE = 5
# No file that is asked for is larger; a sparse file in a home may be of any size.
LARGEST = 1 << 25
# Whether nobody but root can change a name on the way to a folder, or in it.
TRUSTED: Json = {}
# What was in the way, see ``unsafe`` above.
UNSAFE: Json = {}


def paths() -> Any:
    """Return the module state.paths; where nothing is below such a folder, it is not needed."""
    source = globals().get("PATHS")
    if source is None:
        from ansible_collections.slipway.host.plugins.module_utils.state import paths as module

        return module
    if isinstance(source, str):
        module = type(os)("paths")
        exec(compile(source, "paths.py", "exec"), module.__dict__)
        globals()["PATHS"] = module
        return module
    return source


def trusted(folder: str) -> bool:
    """Return whether nobody but root can change a name on the way to a folder, or in it."""
    if folder in TRUSTED:
        return bool(TRUSTED[folder])
    # Of a circle of links, and of what is not found to be root's below.
    TRUSTED[folder] = False
    above = folder.rpartition("/")[0]
    if folder and (".." in folder.split("/") or not trusted(above)):
        return False
    try:
        info = os.lstat(folder or "/")
    except OSError:
        TRUSTED[folder] = True  # Nobody but root can make it.
    else:
        kind = info.st_mode & 0o170000
        if kind == 0o120000:
            # Root's own; state.paths follows it where its target is not as simple.
            target = os.readlink(folder)
            TRUSTED[folder] = trusted(target if target[:1] == "/" else f"{above}/{target}")
        else:
            TRUSTED[folder] = info.st_uid == 0 and info.st_mode & 0o022 == 0
    return bool(TRUSTED[folder])


def plain(path: str) -> bool:
    """Return whether a path leads where it leads by nobody's doing but root's."""
    return trusted(path.rpartition("/")[0]) and not os.path.islink(path)


def guarded(look: Any, path: str) -> Any:
    """Return what LOOK finds at a path, null where that is refused; note what is in the way.

    Root may have no rights in a home on a network file system: then its owner's are used.
    """
    try:
        try:
            return look(path)
        except PermissionError:
            value, refused = paths().as_user(
                owner_on_the_way(path), lambda: looked(look, path), PATIENCE
            )
            if refused:
                UNSAFE[path] = refused
            return value
    except (OSError, KeyError):
        return None
    except ValueError as error:
        where: Any = error
        if not hasattr(error, "found"):
            raise
        UNSAFE[path] = [where.path, where.found, where.expected]
        return None


def looked(look: Any, path: str) -> tuple[Any, list[str] | None]:
    """Return what LOOK finds at a path, or what is in the way."""
    try:
        return look(path), None
    except OSError:
        return None, None
    except ValueError as error:
        where: Any = error
        return None, [where.path, where.found, where.expected]


def owner_on_the_way(path: str) -> str:
    """Return the owner of the last folder on the way to a path that can be seen."""
    import pwd

    while path:
        path = path.rpartition("/")[0]
        try:
            return pwd.getpwuid(os.lstat(path).st_uid).pw_name
        except PermissionError:
            continue
    raise KeyError(path)


def opened(path: str, flags: int) -> int:
    """Open a file, but nothing that stands in its place.

    Some of what is asked for lies in homes. To open a pipe that somebody put there would hold up
    the survey, and to open a device may do things.
    """
    seen = os.open(path, os.O_PATH)
    try:
        info = os.fstat(seen)
        if info.st_mode & 0o170000 != 0o100000 or info.st_size > LARGEST:
            raise OSError(f"{path} is no file, or too large")
        return os.open(f"/proc/self/fd/{seen}", flags)
    finally:
        os.close(seen)


# What the role ml_data notes of a tree, in it, and its folder of unfinished ones, beside it.
TREE_RECORD, GIT_RECORD = "/.slipway/record.json", "/.git/slipway.json"
STAGES = ".slipway-unfinished"


def read(path: str) -> bytes | None:
    """Return a file's bytes, None where it is missing or unreadable as a file."""
    try:
        with open(path, "rb", opener=opened) as stream:
            return stream.read()
    except OSError:
        return None


def dpkg_status() -> str:
    """Return the text of dpkg's own database."""
    return (read("/var/lib/dpkg/status") or b"").decode("utf-8", "replace")


def package_state(text: str, start: int) -> list[str]:
    """Return ``[want, state, version]`` of the stanza of dpkg's database that begins at START."""
    end = text.find("\n\n", start + 1)
    stanza = text[start : end if end > 0 else len(text)]
    field = dict(
        line.split(": ", 1)
        for line in stanza.splitlines()
        if line.startswith(("Status: ", "Version: "))
    )
    want, _flag, state = field.get("Status", "unknown ok not-installed").split(" ", 2)
    return [want, state, field.get("Version", "")]


def dpkg_journal() -> str:
    """Return what dpkg did since it last wrote its database; empty unless it was interrupted."""
    folder = "/var/lib/dpkg/updates"
    return "".join(word(f"{folder}/{name}") + "\n" for name in names_in(folder) or [])


def dpkg(names: list[str]) -> Json:
    """Return ``[want, state, version]`` of each package from dpkg's own database.

    ``interrupted`` is the state of those that dpkg was at work on when it was interrupted: what
    the database says of them is no longer true.
    """
    found: Json = dict.fromkeys(names)
    text, journal = f"\n{dpkg_status()}", f"\n{dpkg_journal()}"
    for name in names:
        # A stanza begins with its package; searching beats parsing three thousand of them.
        stanza = f"\nPackage: {name}\n"
        start = text.find(stanza)
        if start >= 0:
            found[name] = package_state(text, start)
        if stanza in journal:
            want, _state, version = found[name] or ["unknown", "", ""]
            found[name] = [want, "interrupted", version]
    return found


def installed_like(prefixes: tuple[str, ...]) -> Json:
    """Return the version of each installed package whose name begins with one of PREFIXES."""
    found: Json = {}
    key, text = "\nPackage: ", f"\n{dpkg_status()}"
    for prefix in prefixes:
        start = text.find(key + prefix)
        while start >= 0:
            name = text[start + len(key) : text.index("\n", start + 1)]
            _want, state, version = package_state(text, start)
            if state == "installed":
                found[name] = version
            start = text.find(key + prefix, start + 1)
    return found


def file_state(path: str) -> list[Any] | None:
    """Return ``[type, mode, owner, group, sha256, uid, gid]``; the digest is of files only."""
    found: list[Any] | None = guarded(_file_state, path)
    return found


def _file_state(path: str) -> list[Any] | None:
    import hashlib

    if trusted(path.rpartition("/")[0]):
        try:
            info = os.lstat(path)
        except OSError:
            return None
        content = read(path) if info.st_mode & 0o170000 == 0o100000 else None
    else:
        with paths().opened_parent(path) as (folder, name):
            info = folder.lstat(name)
            if info is None:
                return None
            kind = info.st_mode & 0o170000
            if kind not in (0o040000, 0o100000):
                raise folder.refuse(name, info, "a file or a folder")
            content = untrusted(path) if kind == 0o100000 else None
    digest = None if content is None else hashlib.sha256(content).hexdigest()
    return [*ownership(info), digest, info.st_uid, info.st_gid]


def untrusted(path: str) -> bytes:
    """Return the content of a file that somebody else may have put there."""
    content: bytes = paths().read_file(path, LARGEST + 1)
    if len(content) > LARGEST:
        raise paths().UnsafePathError(path, f"more than {LARGEST} bytes", "a smaller file")
    return content


def ownership(info: os.stat_result) -> list[Any]:
    """Return ``[type, mode, owner, group]``; people without a name are told by number."""
    import grp
    import stat

    kind = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link"}.get(
        stat.S_IFMT(info.st_mode), "other"
    )
    owner = user_name(info.st_uid)
    try:
        group = grp.getgrgid(info.st_gid).gr_name
    except KeyError:
        group = str(info.st_gid)
    return [kind, f"{stat.S_IMODE(info.st_mode):04o}", owner, group]


def files_answer(path: str) -> Json:
    """Return the part of an answer that tells of one path."""
    TRUSTED.clear()
    UNSAFE.clear()
    answered: Json = {"files": {path: file_state(path)}}
    answered["acls"] = {path: default_acl(path)}
    return {**answered, "unsafe": dict(UNSAFE)}


def user_name(uid: int) -> str:
    """Return the name of a user, the number where the user has no name."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def mtime(path: str) -> float | None:
    """Return when a file's content last changed, seconds since 1970, None where there is none."""
    try:
        return os.stat(path).st_mtime
    except OSError:
        return None


def names_in(path: str) -> list[str] | None:
    """Return the names in a folder, None where there is none."""
    try:
        return sorted(os.listdir(path))
    except OSError:
        return None


def folder_names(path: str) -> list[str] | None:
    """Return the names in a folder as :func:`names_in`, without following anybody's link."""
    found: list[str] | None = guarded(_folder_names, path)
    return found


def _folder_names(path: str) -> list[str] | None:
    if plain(path):
        return names_in(path)
    with paths().opened_folder(path) as folder:
        names: list[str] = folder.names()
        return names


def links(path: str) -> Json | None:
    """Return where each name in a folder leads, None where there is no folder."""
    found: Json | None = guarded(_links, path)
    return found


def _links(path: str) -> Json | None:
    if plain(path):
        return leads(path, names_in(path))
    with paths().opened_folder(path) as folder:
        opened_path = f"/proc/self/fd/{folder.descriptor}"
        return leads(opened_path, names_in(opened_path))


def leads(path: str, names: list[str] | None) -> Json | None:
    """Return where the names in a folder lead, empty for what is no link."""
    if names is None:
        return None
    found: Json = {}
    for name in names:
        try:
            found[name] = os.readlink(f"{path}/{name}")
        except OSError:
            found[name] = ""
    return found


def text(path: str) -> str | None:
    """Return a file's content as text, marked ``base64:`` where it is binary."""
    found: str | None = guarded(_text, path)
    return found


def _text(path: str) -> str | None:
    content = read(path) if plain(path) else untrusted(path)
    if content is None:
        return None
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        import base64

        return "base64:" + base64.b64encode(content).decode("ascii")


def output_of(command: list[str]) -> str:
    """Return what a command writes; raise OSError where there is no such command.

    Importing subprocess costs more than the command.
    """
    reading, writing = os.pipe()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    actions = [(os.POSIX_SPAWN_DUP2, writing, 1), (os.POSIX_SPAWN_DUP2, nowhere, 2)]
    try:
        process = os.posix_spawnp(command[0], command, os.environ, file_actions=actions)
    except OSError:
        os.close(reading)
        raise
    finally:
        os.close(writing)
        os.close(nowhere)
    with open(reading, encoding="utf-8", errors="replace") as stream:
        text = stream.read()
    os.waitpid(process, 0)
    return text


class InTheWayError(OSError):
    """Something that root must not follow; the text names it, its owner and what to do."""


def printable(text: str) -> str:
    """Return text that moves no cursor and changes no colour: control characters are escaped."""
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text
    )


def in_the_way(path: str, name: str, above: int, expected: str = "a folder") -> InTheWayError:
    """Return the error for a name of an opened folder that is something else than expected."""
    info = os.stat(name, dir_fd=above, follow_symlinks=False)
    kind, _mode, owner, _group = ownership(info)
    leads = ""
    if kind == "link":
        kind, leads = "symbolic link", f" to {os.readlink(name, dir_fd=above)}"
    return InTheWayError(
        f"{path}: found a {kind}{leads}, owned by {owner}; expected {expected}. Move it out of the "
        "way, then run again."
    )


def is_roots_alone(folder: int) -> bool:
    """Return whether only root can change the names in an opened folder."""
    info = os.fstat(folder)
    return info.st_uid == 0 and not info.st_mode & 0o022


WALK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def opened_parent(path: str) -> tuple[int, str]:
    """Open the folder that holds PATH; return its descriptor and the last name of PATH.

    Links are followed in folders that only root can change; another link raises InTheWayError. See
    state/paths.py, which does the same for all that writes.
    """
    *left, last = [part for part in path.split("/") if part not in ("", ".")]
    above, way, links, trusted = os.open("/", WALK), [""], 0, True
    try:
        while left:
            name = left.pop(0)
            trusted = trusted and is_roots_alone(above)
            info = os.stat(name, dir_fd=above, follow_symlinks=False)
            here = f"{'/'.join(way)}/{name}"
            if info.st_mode & 0o170000 == 0o120000 and trusted and links < 40:
                target = os.path.join("/".join(way) or "/", os.readlink(name, dir_fd=above))
                left = os.path.normpath(target).strip("/").split("/") + left
                left = [part for part in left if part]
                os.close(above)
                above, way, links = os.open("/", WALK), [""], links + 1
                continue
            if info.st_mode & 0o170000 != 0o040000:
                raise in_the_way(here, name, above)
            below = os.open(name, WALK | os.O_DIRECTORY, dir_fd=above)
            os.close(above)
            above, way = below, [*way, name]
        return above, last
    except BaseException:
        os.close(above)
        raise


def tree(path: str) -> Json | None:
    """Return what is known of a tree of files that the role ml_data may have made.

    ``leads`` is where a link at PATH leads, empty where there is none, and ``link`` that link in
    words; ``state`` is that of the tree itself, ``[type, mode, owner, group]``, null behind a link
    that leads nowhere; ``record`` is what the role noted in it, null where it is not the role's;
    ``record_owner`` is who has a note that is not root's; ``missing`` are names at its top
    that were noted and are gone; ``staged`` says whether an unfinished one lies beside it; ``git``
    is what :func:`checkout` returns; ``obstacle``, in place of these, names what root must not
    follow.
    """
    try:
        above, name = opened_parent(path)
        try:
            info = os.stat(name, dir_fd=above, follow_symlinks=False)
            if info.st_mode & 0o170000 != 0o120000:
                return {"leads": "", "link": "", **tree_at(above, name)}
            leads, owner = os.readlink(name, dir_fd=above), ownership(info)[2]
        finally:
            os.close(above)
    except FileNotFoundError:
        return None
    except OSError as error:
        return {"obstacle": printable(str(error))}
    try:
        above, name = opened_parent(leads)
        try:
            found = tree_at(above, name)
        finally:
            os.close(above)
    except InTheWayError as error:
        found = {"obstacle": printable(str(error))}
    except (OSError, ValueError):
        found = {"state": None, "record": None, "missing": [], "staged": False, "git": None}
    link = f"a symbolic link to {leads}, owned by {owner}"
    return {"leads": printable(leads), "link": printable(link), **found}


def tree_at(above: int, name: str) -> Json:
    """Return what :func:`tree` does of a name in an opened folder; raise OSError for a link."""
    top = os.open(name, WALK, dir_fd=above)
    try:
        state = ownership(os.fstat(top))
        if state[0] == "link":
            raise in_the_way(name, name, above)
        git = checkout(top) if state[0] == "directory" else None
        record = noted(top, GIT_RECORD if git else TREE_RECORD)
        names = (record or {}).get("names", ())
        missing = [printable(one) for one in names if not is_there(one, top)]
        owner = ""
        if record and not git and record["owner"] not in (0, os.geteuid()):
            # Whoever has the tree wrote it. The note of a work tree decides nothing but drift.
            owner, record = user_name(record["owner"]), None
    finally:
        os.close(top)
    return {
        "state": state,
        "record": record,
        "record_owner": owner,
        "missing": missing if record else [],
        "staged": is_there(f"{STAGES}/{name}", above),
        "git": git,
    }


def is_there(name: str, folder: int) -> bool:
    """Return whether an opened folder has a name, whatever it is."""
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return False
    return True


def noted(top: int, name: str) -> Json | None:
    """Return what the role noted in an opened tree, null where that is no note.

    Who has the tree may have written anything there, so types are checked. ``owner`` is the user
    ID of who has the note.
    """
    try:
        text, owner = glance(top, name)
        read = json.loads(text)
        found: Json = {"owner": owner, "version": read["version"]}
        found.update({key: read[key] for key in ("commit", "branch") if key in read})
        names = [str(one) for one in read["names"][:1000] if "/" not in str(one)]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    if not all(isinstance(value, str) for key, value in found.items() if key != "owner"):
        return None
    found = {key: value if key == "owner" else printable(value) for key, value in found.items()}
    return {**found, "names": [one for one in names if one not in ("", ".", "..", ".slipway")]}


def glance(top: int, name: str) -> tuple[str, int]:
    """Return the first text of a file in an opened tree and who wrote it; empty for none.

    That is the owner of its folder, who can replace it, or its own where the folder is root's. For
    files that belong to people, who may have put anything in their place: no link is followed,
    no pipe waited for, no file of elsewhere read by a further name of it.
    """
    here, above = os.dup(top), 0
    try:
        for part in name.strip("/").split("/"):
            if part in ("", ".", ".."):
                return "", 0
            below = os.open(part, WALK, dir_fd=here)
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


def checkout(top: int) -> Json | None:
    """Return ``{head, branch, url}`` of an opened git work tree without a start of git."""

    def text(name: str) -> str:
        return glance(top, f".git/{name}")[0]

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
        key, _, value = line.strip().partition("=")
        if key.startswith("["):
            section = key
        elif section == '[remote "origin"]' and key.strip() == "url":
            url = value.strip()
    found = {"head": head, "branch": branch, "url": url}
    # A screen full of text is no name of a branch.
    return {key: printable(value[:1000]) for key, value in found.items()}


def offers(asked: list[list[str]], trees: Json) -> Json:
    """Return path to why its URL does not give what is missing there, empty where it does."""
    from http.client import HTTPException
    from urllib.error import HTTPError
    from urllib.request import Request, build_opener

    found: Json = {}
    for path, url, version, environment, headers in asked:
        found[path] = ""
        if ((trees[path] or {}).get("record") or {}).get("version") == version:
            continue
        os.environ.update(json.loads(environment))
        try:
            # A new one for each, since it takes the proxies from the environment once.
            request = Request(url)
            for name, value in json.loads(headers).items():
                # They may be secret, and are not for whom the address leads on to.
                request.add_unredirected_header(name, value)
            build_opener().open(request, timeout=10).close()
        except HTTPError as error:
            # One that asks for a password is there.
            reason = printable(str(error.reason))
            found[path] = "" if error.code == 401 else f"it answers {error.code} {reason}"
        except (OSError, ValueError, HTTPException) as error:
            found[path] = f"out of reach: {printable(str(getattr(error, 'reason', error)))}"
    return found


def units(names: list[str]) -> Json:
    """Return the state of each unit, by one systemctl; times are seconds since 1970."""
    import time

    properties = ["LoadState", "UnitFileState", "ActiveState", "NeedDaemonReload"]
    changed = "StateChangeTimestampMonotonic"
    found: Json = dict.fromkeys(names)
    try:
        shown = output_of(
            ["systemctl", "show", "--property=" + ",".join([*properties, changed]), "--", *names]
        )
    except OSError:
        return found
    booted = time.time() - time.monotonic()
    for name, block in zip(names, shown.split("\n\n")):
        values = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        state: list[Any] = [values.get(key, "") for key in properties]
        state[3] = state[3] == "yes"
        found[name] = [*state, booted + int(values.get(changed) or 0) / 1e6]
    return found


def modules(names: list[str]) -> Json:
    """Return the version of each kernel module that is loaded, empty where it states none."""
    return {
        name: word(f"/sys/module/{name}/version") if os.path.isdir(f"/sys/module/{name}") else None
        for name in names
    }


def users(names: list[str]) -> Json:
    """Return ``[uid, gid, home, shell, comment]`` of each user."""
    import pwd

    found: Json = dict.fromkeys(names)
    for name in names:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        found[name] = [entry.pw_uid, entry.pw_gid, entry.pw_dir, entry.pw_shell, entry.pw_gecos]
    return found


def groups(names: list[str]) -> Json:
    """Return ``[gid, [members]]`` of each group."""
    import grp

    found: Json = dict.fromkeys(names)
    for name in names:
        try:
            entry = grp.getgrnam(name)
        except KeyError:
            continue
        found[name] = [entry.gr_gid, sorted(entry.gr_mem)]
    return found


def default_acl(path: str) -> str | None:
    """Return a folder's default ACL as the kernel writes it, in hexadecimal.

    It is empty where there is none, null where the file system keeps none, or there is no folder.
    """
    found: str | None = guarded(_default_acl, path)
    return found


def _default_acl(path: str) -> str | None:
    if not plain(path):
        with paths().opened_parent(path) as (folder, name):
            opened_path = f"/proc/self/fd/{folder.descriptor}/{name}"
            return acl_of(opened_path)
    return acl_of(path)


def acl_of(path: str) -> str | None:
    """Return the default ACL of a folder that is not behind a link."""
    import errno

    try:
        return os.getxattr(path, "system.posix_acl_default", follow_symlinks=False).hex()
    except OSError as error:
        return "" if error.errno == errno.ENODATA else None


def devices(beginning: str) -> Json:
    """Return the groups that may open devices which not everybody may, each with one such path."""
    import grp
    import stat

    folder, _, start = beginning.rpartition("/")
    found: Json = {}
    for name in names_in(folder) or []:
        if not name.startswith(start):
            continue
        try:
            info = os.lstat(f"{folder}/{name}")
            if stat.S_ISCHR(info.st_mode) and info.st_mode & 0o066 == 0o060:
                found.setdefault(grp.getgrgid(info.st_gid).gr_name, f"{folder}/{name}")
        except (OSError, KeyError):
            continue
    return found


def is_left(info: os.stat_result | None) -> bool:
    """Whether this is a folder or a file of root's; other names of a file may be anywhere."""
    if info is None:
        return False
    kind = info.st_mode & 0o170000
    return info.st_uid == 0 and (kind == 0o040000 or (kind == 0o100000 and info.st_nlink == 1))


def left_by_root(name: str) -> list[str] | None:
    """Return what root owns of a user's ``.docker`` and directly in it, null without a user.

    ``sudo docker login`` leaves it so. A home that is not the user's own is not looked into.
    """
    import pwd

    try:
        entry = pwd.getpwnam(name)
        with paths().opened_folder(entry.pw_dir, (0, entry.pw_uid)) as home:
            if not 0 != entry.pw_uid == home.info().st_uid:
                return []
            with home.entered(".docker") as folder:
                found = [one for one in folder.names() if is_left(folder.lstat(one))]
                return sorted([*found, *(["."] if is_left(folder.info()) else [])])
    except KeyError:
        return None
    except (OSError, ValueError):
        return []


def subordinate_ids(path: str, name: str, uid: int) -> int:
    """Return how many numbers a file such as /etc/subuid gives a user."""
    lines = (line.split(":") for line in word(path).splitlines())
    return sum(
        int(line[2])
        for line in lines
        if len(line) == 3 and line[0] in (name, str(uid)) and line[2].isdigit()
    )


def answering_since(path: str) -> float:
    """Return since when something listens on a socket, 0 where nothing does."""
    import _socket

    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        connection.settimeout(2)
        connection.connect(path)
        return os.lstat(path).st_mtime
    except OSError:
        return 0.0
    finally:
        connection.close()


def rootless(name: str) -> list[Any] | None:
    """Return what a user's own engine stands on, null without a user."""
    import pwd

    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    try:
        context = json.loads(text(f"{entry.pw_dir}/{CONTEXT_FILE}") or "{}")
        address = str(context["Endpoints"]["docker"]["Host"])
    except (ValueError, LookupError, TypeError):
        address = ""
    return [
        os.path.exists(f"/var/lib/systemd/linger/{name}"),
        subordinate_ids("/etc/subuid", name, entry.pw_uid),
        subordinate_ids("/etc/subgid", name, entry.pw_uid),
        address,
        answering_since(f"/run/user/{entry.pw_uid}/docker.sock"),
    ]


def docker(path: str) -> Any:
    """GET from the engine over its socket; raise OSError or ValueError when it cannot."""
    # The C module below socket, whose own imports cost more than the question.
    import _socket

    # HTTP/1.0 closes after the answer, which spares an HTTP client.
    request = f"GET {path} HTTP/1.0\r\nHost: docker\r\n\r\n"
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        connection.settimeout(20)
        connection.connect(DOCKER_SOCKET)
        connection.sendall(request.encode("ascii"))
        chunks = []
        while True:
            chunk = connection.recv(1 << 16)
            if not chunk:
                break
            chunks.append(chunk)
    finally:
        connection.close()
    head, _, body = b"".join(chunks).partition(b"\r\n\r\n")
    status = head.split(b" ", 2)[1]
    if status != b"200":
        raise ValueError(f"Docker answered {status.decode('ascii', 'replace')}")
    return json.loads(body.decode("utf-8"))


def own_labels(labels: Json | None) -> Json:
    """Return the labels that the survey compares."""
    return {key: value for key, value in (labels or {}).items() if key.startswith(LABELS)}


def images(references: list[str]) -> Json:
    """Return ``[id, {labels}]`` of each image reference."""
    found: Json = dict.fromkeys(references)
    for image in docker("/images/json"):
        for tag in image.get("RepoTags") or []:
            if tag in found:
                found[tag] = [image["Id"], own_labels(image.get("Labels"))]
    return found


def projects(names: list[str]) -> Json:
    """Return ``[[service, state, health, {labels}, created]]`` of each compose project."""
    found: Json = {name: [] for name in names}
    # Labels are ANDed by the engine, so all compose containers are asked for at once; quoted by
    # hand, since urllib costs more than the question.
    filters = "%7B%22label%22%3A%5B%22com.docker.compose.project%22%5D%7D"
    for container in docker("/containers/json?all=1&filters=" + filters):
        labels = container.get("Labels") or {}
        project = labels.get("com.docker.compose.project")
        if project not in found:
            continue
        status = container.get("Status", "")
        health = next(
            (word for word in ("unhealthy", "health: starting", "healthy") if word in status), ""
        )
        found[project].append(
            [
                labels.get("com.docker.compose.service", ""),
                container.get("State", ""),
                health.replace("health: ", ""),
                own_labels(labels),
                container.get("Created", 0),
            ]
        )
    return found


def word(path: str) -> str:
    """Return a file's text without the white space around it, empty where there is none."""
    return (read(path) or b"").decode("utf-8", "replace").strip()


def link_name(path: str) -> str:
    """Return the last part of where a link leads, empty where there is none."""
    try:
        return os.readlink(path).rsplit("/", 1)[-1]
    except OSError:
        return ""


def pci_function(path: str) -> list[Any]:
    """Return ``[address, device, class, driver, is a virtual function, configuration]``.

    The numbers are as sysfs writes them. The configuration is in hexadecimal, and only where the
    signature of a vGPU is in it: most of it changes from one moment to the next.
    """
    config = read(f"{path}/config") or b""
    return [
        path.rsplit("/", 1)[-1],
        word(f"{path}/device"),
        word(f"{path}/class"),
        link_name(f"{path}/driver"),
        os.path.exists(f"{path}/physfn"),
        config.hex() if b"VF" in config[64:] else "",
    ]


def secure_boot() -> bool | None:
    """Return whether the kernel demands signed modules, None where that cannot be read."""
    if not os.path.isdir(EFI):
        return False
    shim = EFI + "/efivars/MokSBStateRT-605dab50-e046-4300-abb6-3dd810dd8b23"
    if (read(shim) or b"")[-1:] == b"\x01":
        return False
    value = read(EFI + "/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c")
    return value[-1:] == b"\x01" if value else None


def apt_components(root: str = "/etc/apt") -> list[str]:
    """Return which areas beyond the free ones the host's own apt sources name.

    Sources that this project writes do not count: what they hold depends on the answer.
    """
    folder = root + "/sources.list.d"
    others = [name for name in names_in(folder) or [] if not name.startswith("slipway-")]
    found: set[str] = set()
    for path in [f"{root}/sources.list", *(f"{folder}/{name}" for name in others)]:
        for line in word(path).splitlines():
            if not line.lstrip().startswith("#"):
                found.update(line.split())
    return sorted(found & APT_COMPONENTS)


def gpu_facts(root: str = "/sys/bus/pci/devices") -> Json:
    """Return what the choice of an NVIDIA driver depends on, see gpu.host, which reads it.

    A host without NVIDIA's devices, and with nothing of its driver, is asked no further.
    """
    devices, networks = [], []
    for address in names_in(root) or []:
        path = f"{root}/{address}"
        vendor = word(f"{path}/vendor")
        if vendor == NVIDIA:
            devices.append(pci_function(path))
        elif vendor == MELLANOX:
            networks.append(path)
    if not devices and not os.path.exists("/usr/bin/nvidia-smi"):
        return {"devices": []}
    baseboard = sum(device[1] in NVLINK5_GPUS for device in devices)
    # Vital product data is slow to read, so only where it matters.
    looks = networks if 0 < baseboard < NVLINK5_BASEBOARD else []
    kernels = installed_like(("linux-image-",))
    packages = installed_like(DRIVER_PACKAGES)
    return {
        "devices": devices,
        "bridges": [path[-12:] for path in looks if b"SW_MNG" in (read(f"{path}/vpd") or b"")],
        "secure_boot": secure_boot(),
        # linux-image-generic follows a flavour; linux-image-6.8.0-31-generic is one kernel.
        "kernel_metas": sorted(
            name[12:]
            for name in kernels
            if not name[12:13].isdigit() and not name[12:].startswith("unsigned-")
        ),
        "packages": {
            name: version
            for name, version in sorted(packages.items())
            if not name.startswith(TOOLKIT_PACKAGES)
        },
        "components": apt_components(),
        "loaded": word("/sys/module/nvidia/version"),
        "banner": word("/proc/driver/nvidia/version").partition("\n")[0],
        # What NVIDIA's .run installer leaves, and no package has.
        "run_installer": os.path.exists("/usr/bin/nvidia-uninstall"),
    }


def rolled_back() -> Json:
    """Return what the last rollback left, see apt.package_record; a broken record tells nothing."""
    try:
        left = json.loads(read(UPGRADE_RECORD) or b"{}").get("left", {})
    except (ValueError, AttributeError):
        return {}
    return left if isinstance(left, dict) else {}


def host_facts() -> Json:
    """Return what the host is: the facts that owned state depends on.

    The first ones have the names and the spelling of Ansible's own facts; ``docker_package`` is
    the installed package that holds the engine (``docker-ce``, ``docker.io``) or empty, and
    ``docker_version`` its version; ``gpu`` is what :func:`gpu_facts` returns, ``rolled_back`` what
    :func:`rolled_back` does.
    """
    release: dict[str, str] = {}
    for line in (read("/etc/os-release") or b"").decode("utf-8", "replace").splitlines():
        key, _, value = line.partition("=")
        release[key] = value.strip().strip("\"'")
    system = os.uname()
    version = release.get("VERSION_ID", "")
    # Debian's testing and unstable have no VERSION_ID; their base-files says trixie/sid or so.
    codename = release.get("VERSION_CODENAME", "")
    installed = dpkg(["docker-ce", "docker.io"])
    docker_package = next(
        (
            name
            for name in ("docker-ce", "docker.io")
            if installed[name] and installed[name][1] == "installed"
        ),
        "",
    )
    return {
        "distribution": {"debian": "Debian", "ubuntu": "Ubuntu"}.get(
            release.get("ID", ""), release.get("ID", "")
        ),
        "distribution_version": version or codename,
        "distribution_major_version": version.split(".")[0] or codename,
        "distribution_release": codename,
        "architecture": system.machine,
        # As procfs has it, which is what is read of a simulated host as well.
        "kernel": word("/proc/sys/kernel/osrelease") or system.release,
        "docker_package": docker_package,
        "docker_version": installed[docker_package][2] if docker_package else "",
        "docker_snap": os.path.isdir("/snap/docker/current"),
        "systemd": os.path.isdir("/run/systemd/system"),
        "root": os.geteuid() == 0,
        "gpu": gpu_facts(),
        "rolled_back": rolled_back(),
    }


def reachable(urls: list[str], timeout: float) -> Json:
    """Return for each address whether a server answers there at all within TIMEOUT seconds."""
    from http.client import HTTPException
    from urllib.error import HTTPError
    from urllib.request import urlopen

    found: Json = {}
    for url in urls:
        try:
            urlopen(url, timeout=timeout).close()
            found[url] = True
        except HTTPError as error:
            # A refusing proxy answers 403 in the server's name; the server itself would not.
            found[url] = error.code not in (403, 407, 502, 503, 504)
        except (OSError, ValueError, HTTPException):
            found[url] = False
    return found


def answer(question: Json) -> Json:
    """Answer a question; see the module's own words for the keys."""
    TRUSTED.clear()
    UNSAFE.clear()
    reply: Json = {"facts": host_facts(), "engine": None, "unsafe": UNSAFE}
    facts = reply["facts"]
    if not facts["docker_package"]:
        urls = [
            url.replace("{distribution}", facts["distribution"].lower())
            for url in question.get("reach", [])
        ]
        facts["reachable"] = reachable(urls, question.get("timeout", 5))
    if question.get("packages"):
        reply["packages"] = dpkg(question["packages"])
    if question.get("files"):
        reply["files"] = {path: file_state(path) for path in question["files"]}
    if question.get("mtimes"):
        reply["mtimes"] = {path: mtime(path) for path in question["mtimes"]}
    if question.get("folders"):
        reply["folders"] = {path: folder_names(path) for path in question["folders"]}
    if question.get("links"):
        reply["links"] = {path: links(path) for path in question["links"]}
    if question.get("texts"):
        reply["texts"] = {path: text(path) for path in question["texts"]}
    if question.get("trees"):
        reply["trees"] = {path: tree(path) for path in question["trees"]}
    if question.get("offers"):
        reply["offers"] = offers(question["offers"], reply["trees"])
    if question.get("units"):
        reply["units"] = units(question["units"])
    if question.get("modules"):
        reply["modules"] = modules(question["modules"])
    if question.get("users"):
        reply["users"] = users(question["users"])
    if question.get("groups"):
        reply["groups"] = groups(question["groups"])
    if question.get("acls"):
        reply["acls"] = {path: default_acl(path) for path in question["acls"]}
    if question.get("devices"):
        reply["devices"] = {path: devices(path) for path in question["devices"]}
    if question.get("left"):
        reply["left"] = {name: left_by_root(name) for name in question["left"]}
    if question.get("rootless"):
        reply["rootless"] = {name: rootless(name) for name in question["rootless"]}
    try:
        if question.get("images"):
            reply["images"] = images(question["images"])
        if question.get("projects"):
            reply["projects"] = projects(question["projects"])
    except (OSError, ValueError) as error:
        reply["engine"] = str(error)
    return reply
