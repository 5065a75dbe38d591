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
asked, null where it could.
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


def opened(path: str, flags: int) -> int:
    """Open a file, but nothing that stands in its place.

    Some of what is asked for lies in homes. To open a pipe that somebody put there would hold up
    the survey, and to open a device may do things.
    """
    seen = os.open(path, os.O_PATH)
    try:
        if os.fstat(seen).st_mode & 0o170000 != 0o100000:
            raise OSError(f"{path} is no file")
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
    import hashlib

    try:
        info = os.lstat(path)
    except OSError:
        return None
    state = ownership(info)
    content = read(path) if state[0] == "file" else None
    digest = None if content is None else hashlib.sha256(content).hexdigest()
    return [*state, digest, info.st_uid, info.st_gid]


def ownership(info: os.stat_result) -> list[Any]:
    """Return ``[type, mode, owner, group]``; people without a name are told by number."""
    import grp
    import pwd
    import stat

    kind = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link"}.get(
        stat.S_IFMT(info.st_mode), "other"
    )
    try:
        owner = pwd.getpwuid(info.st_uid).pw_name
    except KeyError:
        owner = str(info.st_uid)
    try:
        group = grp.getgrgid(info.st_gid).gr_name
    except KeyError:
        group = str(info.st_gid)
    return [kind, f"{stat.S_IMODE(info.st_mode):04o}", owner, group]


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


def links(path: str) -> Json | None:
    """Return where each name in a folder leads, None where there is no folder."""
    names = names_in(path)
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
    content = read(path)
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


def tree(path: str) -> Json | None:
    """Return what is known of a tree of files that the role ml_data may have made.

    ``leads`` is where a link at PATH leads, empty where there is none; ``state`` is that of the
    tree itself, ``[type, mode, owner, group]``, null behind a link that leads nowhere; ``record``
    is what the role noted in it, null where it is not the role's; ``missing`` are names at its top
    that were noted and are gone; ``staged`` says whether an unfinished one lies beside it; ``git``
    is what :func:`checkout` returns.
    """
    if not os.path.lexists(path):
        return None
    leads = os.readlink(path) if os.path.islink(path) else ""
    real = leads or path
    try:
        state = ownership(os.stat(real))
    except OSError:
        state = None
    git = checkout(real)
    try:
        record = json.loads(glance(real + (GIT_RECORD if git else TREE_RECORD)))
        # Who has the tree may have written anything there.
        names = [name for name in record["names"] if "/" not in name]
    except (ValueError, TypeError, KeyError):
        record, names = None, []
    folder, _, name = real.rpartition("/")
    return {
        "leads": leads,
        "state": state,
        "record": record,
        "missing": [name for name in names if not os.path.lexists(f"{real}/{name}")],
        "staged": os.path.exists(f"{folder}/{STAGES}/{name}"),
        "git": git,
    }


def glance(path: str) -> str:
    """Return a file's first text, empty where there is none; it neither waits nor reads for ever.

    For files that belong to people, who may have put anything in their place.
    """
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as stream:
            return (stream.read(1 << 20) or b"").decode("utf-8", "replace").strip()
    except OSError:
        return ""


def checkout(path: str) -> Json | None:
    """Return ``{head, branch, url}`` of a git work tree without a start of git."""
    head = glance(f"{path}/.git/HEAD")
    if not head:
        return None
    branch = head[len("ref: refs/heads/") :] if head.startswith("ref: ") else ""
    if branch:
        reference = f"refs/heads/{branch}"
        head = glance(f"{path}/.git/{reference}")
        if not head:
            packed = (line.split(" ") for line in glance(f"{path}/.git/packed-refs").splitlines())
            head = next((line[0] for line in packed if line[-1] == reference), "")
    url, section = "", ""
    for line in glance(f"{path}/.git/config").splitlines():
        key, _, value = line.strip().partition("=")
        if key.startswith("["):
            section = key
        elif section == '[remote "origin"]' and key.strip() == "url":
            url = value.strip()
    return {"head": head, "branch": branch, "url": url}


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
            found[path] = "" if error.code == 401 else f"it answers {error.code} {error.reason}"
        except (OSError, ValueError, HTTPException) as error:
            found[path] = f"out of reach: {getattr(error, 'reason', error)}"
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


def is_left(info: os.stat_result) -> bool:
    """Whether this is a folder or a file of root's; other names of a file may be anywhere."""
    kind = info.st_mode & 0o170000
    return info.st_uid == 0 and (kind == 0o040000 or (kind == 0o100000 and info.st_nlink == 1))


def left_by_root(name: str) -> list[str] | None:
    """Return what root owns of a user's ``.docker`` and directly in it, null without a user.

    ``sudo docker login`` leaves it so. A home that is not the user's own is not looked into.
    """
    import pwd

    try:
        entry = pwd.getpwnam(name)
        folder = f"{entry.pw_dir}/.docker"
        own = os.lstat(folder)
        theirs = 0 != entry.pw_uid == os.stat(entry.pw_dir).st_uid
        if not theirs or own.st_mode & 0o170000 != 0o040000:
            return []
        with os.scandir(folder) as entries:
            found = [one.name for one in entries if is_left(one.stat(follow_symlinks=False))]
    except KeyError:
        return None
    except OSError:
        return []
    return sorted([*found, *(["."] if is_left(own) else [])])


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
        context = json.loads(read(f"{entry.pw_dir}/{CONTEXT_FILE}") or b"{}")
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
    reply: Json = {"facts": host_facts(), "engine": None}
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
        reply["folders"] = {path: names_in(path) for path in question["folders"]}
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
