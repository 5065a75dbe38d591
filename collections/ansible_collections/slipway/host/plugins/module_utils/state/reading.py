# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the survey reads files on a host: it never waits, and follows no link that users can make."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Json = dict[str, Any]

# Seconds to wait for a look into a home with the rights of its user.
USER_TIMEOUT = 5
# Bytes of the largest file that is read: a sparse file in a home may have any size.
MAX_BYTES = 1 << 25
# Bytes of the largest text of a user that is sent to the controller.
MAX_TEXT = 1 << 20
MOUNTS = "/proc/self/mountinfo"
# Folder to whether only root can change a name on the way to it or in it.
TRUSTED: Json = {}
# Path that was not read, to [path of the obstacle, what was found, what was expected].
UNSAFE: Json = {}
# Mount points of users' file systems, to their descriptions; None until they are read.
USER_MOUNTS: dict[str, dict[str, str] | None] = {"found": None}
# Names of numbers: hosts with a directory service answer slowly.
USER_NAMES: dict[int, str] = {}
GROUP_NAMES: dict[int, str] = {}


def reset() -> None:
    """Forget what earlier questions found."""
    for known in (TRUSTED, UNSAFE, USER_NAMES, GROUP_NAMES):
        known.clear()
    USER_MOUNTS["found"] = None


def each(ask: Callable[[str], Any]) -> Callable[[list[str], Json], Json]:
    """Return the function that answers a question for each of several names."""
    return lambda names, _reply: {name: ask(name) for name in names}


def safe_paths() -> Any:
    """Return the module state.paths, loaded only if a path is below a folder others can write."""
    from ansible_collections.slipway.host.plugins.module_utils.state import paths

    return paths


def is_trusted_folder(folder: str) -> bool:
    """Return whether only root can change a name on the way to a folder, or in it."""
    if folder in TRUSTED:
        return bool(TRUSTED[folder])
    # Until it is known; this also ends a circle of links.
    TRUSTED[folder] = False
    above = folder.rpartition("/")[0]
    if folder and (".." in folder.split("/") or not is_trusted_folder(above)):
        return False
    try:
        info = os.lstat(folder or "/")
    except OSError:
        TRUSTED[folder] = True  # Only root can create it.
    else:
        kind = info.st_mode & 0o170000
        if kind == 0o120000:
            # Only root can have made this link.
            target = os.readlink(folder)
            path = target if target.startswith("/") else f"{above}/{target}"
            TRUSTED[folder] = is_trusted_folder(path)
        else:
            TRUSTED[folder] = info.st_uid == 0 and info.st_mode & 0o022 == 0
    return bool(TRUSTED[folder])


def is_trusted_path(path: str) -> bool:
    """Return whether only root decides what a path refers to."""
    return is_trusted_folder(path.rpartition("/")[0]) and not os.path.islink(path)


def read_guarded(look: Any, path: str) -> Any:
    """Return what LOOK finds at a path; note an obstacle in UNSAFE and return None for it.

    Root may have no rights in a home on a network file system. Then the owner's rights are used.
    """
    try:
        refuse_user_mount(path)
        try:
            return look(path)
        except PermissionError:
            from ansible_collections.slipway.host.plugins.module_utils.state import user_rights

            value, refused = user_rights.as_user(
                _last_visible_owner(path), lambda: _look_as_user(look, path), USER_TIMEOUT
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


def refuse_user_mount(path: str) -> None:
    """Raise UnsafePathError for a path in a file system that a user mounted."""
    if found := user_mount_above(path):
        raise safe_paths().UnsafePathError(*found, "a folder of the host")


def _look_as_user(look: Any, path: str) -> tuple[Any, list[str] | None]:
    """Return what LOOK finds at a path, and the obstacle if there is one."""
    try:
        return look(path), None
    except OSError:
        return None, None
    except ValueError as error:
        where: Any = error
        return None, [where.path, where.found, where.expected]


def _last_visible_owner(path: str) -> str:
    """Return the owner of the last folder on the way to a path that can be seen."""
    import pwd

    while path:
        path = path.rpartition("/")[0]
        try:
            return pwd.getpwuid(os.lstat(path).st_uid).pw_name
        except PermissionError:
            continue
    raise KeyError(path)


def _open_regular(path: str, flags: int) -> int:
    """Open a regular file and nothing else.

    Opening a pipe would stop the survey, and opening a device may have effects.
    """
    seen = os.open(path, os.O_PATH)
    try:
        info = os.fstat(seen)
        if info.st_mode & 0o170000 != 0o100000 or info.st_size > MAX_BYTES:
            raise OSError(f"{path}: not a regular file, or too large")
        return os.open(f"/proc/self/fd/{seen}", flags)
    finally:
        os.close(seen)


def read_file(path: str) -> bytes | None:
    """Return the content of a regular file, None if it cannot be read."""
    try:
        with open(path, "rb", opener=_open_regular) as stream:
            return stream.read()
    except OSError:
        return None


def read_record(path: str) -> bytes | None:
    """Return the content of a file of root that nobody else can write, None for any other file.

    Whoever can write a record decides what counts as declared.
    """
    try:
        with open(path, "rb", opener=_open_regular) as stream:
            info = os.fstat(stream.fileno())
            if info.st_uid not in (0, os.geteuid()) or info.st_mode & 0o022:
                return None
            return stream.read()
    except OSError:
        return None


def read_untrusted(path: str, limit: int = MAX_BYTES) -> bytes:
    """Return the content of a file below a folder that others can write."""
    content: bytes = safe_paths().read_file(path, limit + 1)
    if len(content) > limit:
        raise safe_paths().UnsafePathError(path, f"more than {limit} bytes", "a smaller file")
    return content


def user_mount_above(path: str) -> tuple[str, str] | None:
    """Return mount point and description of a user's file system on the way to a path, else None.

    A user can mount a file system whose program never answers (FUSE). Whoever opens a path in it
    waits until the program ends.
    """
    mounts = USER_MOUNTS["found"]
    if mounts is None:
        mounts = USER_MOUNTS["found"] = _read_user_mounts()
    return next((one for one in mounts.items() if f"{path}/".startswith(f"{one[0]}/")), None)


def _read_user_mounts() -> dict[str, str]:
    """Return the mount points of users' file systems with their descriptions."""
    with open(MOUNTS, "rb") as stream:
        text = stream.read()
    found: dict[str, str] = {}
    if b" fuse" not in text:
        return found
    for line in text.decode("utf-8", "surrogateescape").splitlines():
        fields, _separator, rest = line.partition(" - ")
        kind, options = rest.split(" ")[0], rest.split(" ")[-1]
        numbers = [word[8:] for word in options.split(",") if word.startswith("user_id=")]
        if kind.startswith("fuse") and numbers and numbers[0] != "0":
            mount = fields.split(" ")[4]
            for char in " \t\n\\":
                mount = mount.replace(f"\\{ord(char):03o}", char)
            found[mount] = f"a file system ({kind}) of {user_name(int(numbers[0]))}"
    return found


def ownership(info: os.stat_result) -> list[Any]:
    """Return ``[type, mode, owner, group]``; an ID without a name stays a number."""
    import stat

    kind = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link"}.get(
        stat.S_IFMT(info.st_mode), "other"
    )
    mode = f"{stat.S_IMODE(info.st_mode):04o}"
    return [kind, mode, user_name(info.st_uid), group_name(info.st_gid)]


def user_name(uid: int) -> str:
    """Return the name of a user ID, the number if it has no name."""
    import pwd

    if uid not in USER_NAMES:
        try:
            USER_NAMES[uid] = pwd.getpwuid(uid).pw_name
        except KeyError:
            USER_NAMES[uid] = str(uid)
    return str(USER_NAMES[uid])


def group_name(gid: int) -> str:
    """Return the name of a group ID, the number if it has no name."""
    import grp

    if gid not in GROUP_NAMES:
        try:
            GROUP_NAMES[gid] = grp.getgrgid(gid).gr_name
        except KeyError:
            GROUP_NAMES[gid] = str(gid)
    return str(GROUP_NAMES[gid])


def list_names(path: str) -> list[str] | None:
    """Return the sorted names in a folder, None if there is no folder."""
    try:
        return sorted(os.listdir(path))
    except OSError:
        return None


def run_command(command: list[str]) -> str:
    """Return the output of a command; raise OSError if there is no such command."""
    return run_for_status(command)[1]


def run_for_status(command: list[str]) -> tuple[int, str]:
    """Return exit status and output of a command; raise OSError if there is no such command.

    Without subprocess: its import costs more than the command. A signal that ended the command
    counts as in a shell, from 128.
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
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return (128 - status if status < 0 else status), text


def escape_control(text: str) -> str:
    """Return a text with control characters escaped, so that a terminal only shows it."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def read_word(path: str) -> str:
    """Return the text of a file without surrounding white space, empty if there is no file."""
    return (read_file(path) or b"").decode("utf-8", "replace").strip()


def read_link_name(path: str) -> str:
    """Return the last component of the target of a link, empty if there is no link."""
    try:
        return os.readlink(path).rsplit("/", 1)[-1]
    except OSError:
        return ""
