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
``packages``   names                        name to ``[want, state, version]`` of dpkg
``files``      paths                        path to ``[type, mode, owner, group, sha256]``
``mtimes``     paths                        path to the time of its last change
``folders``    paths                        path to the names in it
``texts``      paths                        path to the content, ``base64:`` before binary ones
``units``      names                        name to ``[load state, unit file state, active state,
                                            needs daemon-reload, time of its last change]``
``users``      names                        name to ``[uid, gid, home, shell]``
``groups``     names                        name to ``[gid, [members]]``
``images``     references                   reference to ``[id, {labels}]``
``projects``   compose project names        name to ``[[service, state, health, {labels}]]``
=============  ===========================  ====================================================

What is not there is answered with null, and ``engine`` holds the reason where Docker could not be
asked, null where it could.
"""

from __future__ import annotations

import json
import os
from typing import Any

# Labels other than these may hold anything at all; they are neither needed nor sent.
LABELS = ("io.slipway.", "com.docker.compose.service", "com.docker.compose.oneoff")
DOCKER_SOCKET = "/run/docker.sock"
Json = dict[str, Any]


def read(path: str) -> bytes | None:
    """Return a file's bytes, None where it is missing or unreadable as a file."""
    try:
        with open(path, "rb") as stream:
            return stream.read()
    except OSError:
        return None


def dpkg(names: list[str]) -> Json:
    """Return ``[want, state, version]`` of each package from dpkg's own database."""
    found: Json = dict.fromkeys(names)
    text = (read("/var/lib/dpkg/status") or b"").decode("utf-8", "replace")
    for name in names:
        # A stanza begins with its package; searching beats parsing three thousand of them.
        start = 0 if text.startswith(f"Package: {name}\n") else -1
        if start < 0:
            start = text.find(f"\nPackage: {name}\n")
        if start < 0:
            continue
        end = text.find("\n\n", start + 1)
        stanza = text[start : end if end > 0 else len(text)]
        field = dict(
            line.split(": ", 1)
            for line in stanza.splitlines()
            if line.startswith(("Status: ", "Version: "))
        )
        want, _flag, state = field.get("Status", "unknown ok not-installed").split(" ", 2)
        found[name] = [want, state, field.get("Version", "")]
    return found


def file_state(path: str) -> list[Any] | None:
    """Return ``[type, mode, owner, group, sha256]``; the digest is of files only."""
    import grp
    import hashlib
    import pwd
    import stat

    try:
        info = os.lstat(path)
    except OSError:
        return None
    kind = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link"}.get(
        stat.S_IFMT(info.st_mode), "other"
    )
    content = read(path) if kind == "file" else None
    try:
        owner = pwd.getpwuid(info.st_uid).pw_name
    except KeyError:
        owner = str(info.st_uid)
    try:
        group = grp.getgrgid(info.st_gid).gr_name
    except KeyError:
        group = str(info.st_gid)
    digest = None if content is None else hashlib.sha256(content).hexdigest()
    return [kind, f"{stat.S_IMODE(info.st_mode):04o}", owner, group, digest]


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


def units(names: list[str]) -> Json:
    """Return the state of each unit, by one systemctl; times are seconds since 1970."""
    import subprocess
    import time

    properties = ["LoadState", "UnitFileState", "ActiveState", "NeedDaemonReload"]
    changed = "StateChangeTimestampMonotonic"
    found: Json = dict.fromkeys(names)
    try:
        shown = subprocess.run(
            ["systemctl", "show", "--property=" + ",".join([*properties, changed]), "--", *names],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=False,
        ).stdout.decode("utf-8", "replace")
    except OSError:
        return found
    booted = time.time() - time.monotonic()
    for name, block in zip(names, shown.split("\n\n")):
        values = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        state: list[Any] = [values.get(key, "") for key in properties]
        state[3] = state[3] == "yes"
        found[name] = [*state, booted + int(values.get(changed) or 0) / 1e6]
    return found


def users(names: list[str]) -> Json:
    """Return ``[uid, gid, home, shell]`` of each user."""
    import pwd

    found: Json = dict.fromkeys(names)
    for name in names:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        found[name] = [entry.pw_uid, entry.pw_gid, entry.pw_dir, entry.pw_shell]
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


def docker(path: str) -> Any:
    """GET from the engine over its socket; raise OSError or ValueError when it cannot."""
    import socket

    # HTTP/1.0 closes after the answer, which spares an HTTP client and its imports.
    request = f"GET {path} HTTP/1.0\r\nHost: docker\r\n\r\n"
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(DOCKER_SOCKET)
        connection.sendall(request.encode("ascii"))
        chunks = []
        while True:
            chunk = connection.recv(1 << 16)
            if not chunk:
                break
            chunks.append(chunk)
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
    """Return ``[[service, state, health, {labels}]]`` of each compose project."""
    from urllib.parse import quote

    found: Json = {name: [] for name in names}
    # Labels are ANDed by the engine, so all compose containers are asked for at once.
    filters = quote(json.dumps({"label": ["com.docker.compose.project"]}))
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
            ]
        )
    return found


def host_facts() -> Json:
    """Return what the host is: the facts that owned state depends on.

    The first ones have the names and the spelling of Ansible's own facts; ``docker_package`` is
    the installed package that holds the engine (``docker-ce``, ``docker.io``) or empty.
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
    return {
        "distribution": {"debian": "Debian", "ubuntu": "Ubuntu"}.get(
            release.get("ID", ""), release.get("ID", "")
        ),
        "distribution_version": version or codename,
        "distribution_major_version": version.split(".")[0] or codename,
        "distribution_release": codename,
        "architecture": system.machine,
        "kernel": system.release,
        "docker_package": next(
            (
                name
                for name in ("docker-ce", "docker.io")
                if installed[name] and installed[name][1] == "installed"
            ),
            "",
        ),
        "docker_snap": os.path.isdir("/snap/docker/current"),
        "systemd": os.path.isdir("/run/systemd/system"),
        "root": os.geteuid() == 0,
    }


def reachable(urls: list[str], timeout: float) -> Json:
    """Return for each address whether a server answers there at all within TIMEOUT seconds."""
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
        except (OSError, ValueError):
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
    if question.get("texts"):
        reply["texts"] = {path: text(path) for path in question["texts"]}
    if question.get("units"):
        reply["units"] = units(question["units"])
    if question.get("users"):
        reply["users"] = users(question["users"])
    if question.get("groups"):
        reply["groups"] = groups(question["groups"])
    try:
        if question.get("images"):
            reply["images"] = images(question["images"])
        if question.get("projects"):
            reply["projects"] = projects(question["projects"])
    except (OSError, ValueError) as error:
        reply["engine"] = str(error)
    return reply
