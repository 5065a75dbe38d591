# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A registry on a host that offers the host's images to other hosts, on loopback only.

The program is the OCI distribution registry of the distribution's package ``docker-registry``. The
package is unpacked, not installed: its service listens on all addresses. A registry that takes
images, with a password, runs while they are pushed; one that cannot be written to serves them, as a
transient unit that ends without connections. Standard library of Python 3.10 only.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.docker import labels
from ansible_collections.slipway.host.plugins.module_utils.images.output import last_lines
from ansible_collections.slipway.host.plugins.module_utils.images.own_registry import (
    MANIFESTS,
    Registry,
)

FOLDER = Path(f"{labels.STATE_FOLDER}/registry")
DATA = FOLDER / "data"
PROGRAM = FOLDER / "program/usr/bin/docker-registry"
# When the program was unpacked; a newer package may have corrections.
UNPACKED, MAX_AGE_SECONDS = FOLDER / "unpacked", 30 * 86400
PACKAGE = "docker-registry"
UNIT = "slipway-registry"
# Belongs to the unit: systemd removes it when the unit ends.
RUNTIME = Path(f"/run/{UNIT}")
# The engine knows pushed layers by the address, so it is the same each time if it is free.
PUSH_PORT = 15055
USER = "slipway"
# What only root can read while images are pushed: settings, and the password for Docker.
PUSH = FOLDER / "push"
SETTINGS, USERS = PUSH / "settings.yml", PUSH / "users"
# Hashes the password that it reads. The registry accepts bcrypt only, which Python does not have.
BCRYPT = r"""chomp($_ = <STDIN>); my ($password, $salt) = split; print crypt($password, $salt)"""
START_SECONDS = 20.0
# Held while a lease is taken or given back. Only root can open it.
LOCK = f"{labels.STATE_FOLDER}/registry.lock"
# Seconds without a connection after which the registry ends: other hosts may still build. The
# longest life of the unit.
IDLE_SECONDS, LIFE_SECONDS = 3600, 6 * 3600
# Ends the registry when there was no connection for a while. Arguments: program, configuration,
# port, seconds.
KEEPER = """
"$1" serve "$2" & pid=$!
established=$(printf '0100007F:%04X [0-9A-F]*:[0-9A-F]* 01 ' "$3")
idle=0
while kill -0 $pid 2>/dev/null && [ $idle -lt "$4" ]; do
    sleep 5
    if grep -q "$established" /proc/net/tcp; then idle=0; else idle=$((idle + 5)); fi
done
kill $pid
"""


# Asks the registry of this host, whatever proxy is set for others.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class RegistryError(Exception):
    """The registry does not work; the message is for a person."""


def provide_program() -> str:
    """Return the path of the registry's program; unpack its package if the host has none."""
    installed = shutil.which(PACKAGE)
    if installed:
        return installed
    if not PROGRAM.exists():
        _unpack()
    elif not UNPACKED.exists() or time.time() - UNPACKED.stat().st_mtime > MAX_AGE_SECONDS:
        # Without a connection to the archive, the present program is good enough.
        with contextlib.suppress(RegistryError):
            _unpack()
    return str(PROGRAM)


def _unpack() -> None:
    """Unpack the package; a killed run leaves no half of a program."""
    partial = FOLDER / "program.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    download = ["apt-get", "--quiet=2", "download", PACKAGE]
    if _run(download, partial).returncode != 0:
        _run(["apt-get", "--quiet=2", "--option=DPkg::Lock::Timeout=300", "update"], partial)
        downloaded = _run(download, partial)
        if downloaded.returncode != 0:
            raise RegistryError(
                f"cannot download the package {PACKAGE}: {last_lines(downloaded.stderr, 2)}; "
                "expected it in the apt sources of this host. Add the component that has it "
                "(Ubuntu: universe), or set ml_images_builder: []"
            )
    (archive,) = partial.glob("*.deb")
    unpacked = _run(["dpkg-deb", "--extract", archive.name, "program"], partial)
    if unpacked.returncode != 0:
        raise RegistryError(f"cannot unpack {archive.name}: {last_lines(unpacked.stderr, 2)}")
    shutil.rmtree(FOLDER / "program", ignore_errors=True)
    (partial / "program").rename(FOLDER / "program")
    UNPACKED.touch()
    shutil.rmtree(partial)


def _run(command: list[str], folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, errors="replace", check=False
    )


@dataclass(frozen=True)
class Login:
    """How a registry that takes images is reached: its port and the password of this run."""

    port: int
    password: str

    @property
    def basic(self) -> str:
        """Return user and password as HTTP has them."""
        return base64.b64encode(f"{USER}:{self.password}".encode()).decode()

    @property
    def prefix(self) -> str:
        """Return the beginning of the references of its images."""
        return f"127.0.0.1:{self.port}/"

    def read_manifest(self, name: str, tag: str) -> bytes:
        """Return the manifest of an image."""
        headers = {"Accept": ", ".join(MANIFESTS), "Authorization": f"Basic {self.basic}"}
        request = urllib.request.Request(_url(self.port, f"{name}/manifests/{tag}"), None, headers)
        with OPENER.open(request, timeout=30) as answer:
            return bytes(answer.read())


def hash_password(password: str) -> str:
    """Return the bcrypt hash of a random password; perl-base is on every host."""
    salt = f"$2b$04${secrets.token_hex(11)[:21]}."
    hashed = subprocess.run(
        ["perl", "-e", BCRYPT],
        input=f"{password} {salt}\n",
        capture_output=True,
        text=True,
        check=False,
    )
    if not hashed.stdout.startswith("$2b$"):
        raise RegistryError(
            f"cannot hash a password: {last_lines(hashed.stderr, 2) or 'no bcrypt'}; expected perl "
            "and libcrypt with bcrypt. Set ml_images_builder: []"
        )
    return hashed.stdout


def configuration(port: int, readonly: bool) -> str:
    """Return the configuration of a registry on loopback; JSON is YAML.

    A registry that takes images asks for the password in the file ``users``.
    """
    maintenance = {"readonly": {"enabled": readonly}, "uploadpurging": {"enabled": False}}
    return json.dumps(
        {
            "version": 0.1,
            "log": {"level": "error", "accesslog": {"disabled": True}},
            "storage": {
                "filesystem": {"rootdirectory": str(DATA)},
                "delete": {"enabled": not readonly},
                "maintenance": maintenance,
            },
            "http": {"addr": f"127.0.0.1:{port}"},
            **({} if readonly else {"auth": {"htpasswd": {"realm": UNIT, "path": f"{USERS}"}}}),
        }
    )


def free_port(preferred: int = 0) -> int:
    """Return a free port of loopback, PREFERRED if it is free."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", preferred))
        except OSError:
            listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def taking_images() -> Iterator[Login]:
    """Run a registry that takes images from who knows the password; yield how it is reached."""
    FOLDER.mkdir(mode=0o700, parents=True, exist_ok=True)
    program, login = provide_program(), Login(free_port(PUSH_PORT), secrets.token_hex(16))
    DATA.mkdir(exist_ok=True)
    # Also what a killed run left.
    shutil.rmtree(PUSH, ignore_errors=True)
    PUSH.mkdir(mode=0o700)
    SETTINGS.write_text(configuration(login.port, readonly=False), encoding="utf-8")
    USERS.write_text(f"{USER}:{hash_password(login.password)}\n", encoding="ascii")
    auths = {f"127.0.0.1:{login.port}": {"auth": login.basic}}
    (PUSH / "config.json").write_text(json.dumps({"auths": auths}), encoding="ascii")
    with (PUSH / "log").open("w+", encoding="utf-8") as log:
        process = subprocess.Popen([program, "serve", str(SETTINGS)], stdout=log, stderr=log)
        try:
            if not _answers(login.port, process):
                log.seek(0)
                raise RegistryError(f"the registry does not start: {last_lines(log.read())}")
            yield login
        finally:
            process.terminate()
            process.wait()
            for secret in (USERS, PUSH / "config.json"):
                secret.unlink(missing_ok=True)


def _answers(port: int, process: subprocess.Popen[bytes] | None = None) -> bool:
    """Wait until a registry answers; return False if it ended or time is over."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and (process is None or process.poll() is None):
        try:
            with OPENER.open(_url(port, ""), timeout=2):
                return True
        except urllib.error.HTTPError:
            # It asks for the password.
            return True
        except OSError:
            time.sleep(0.05)
    return False


def _url(port: int, path: str) -> str:
    return f"http://127.0.0.1:{port}/v2/{path}"


def describe(login: Login | Registry, name: str, tag: str) -> dict[str, Any]:
    """Return the digests of an image in the registry, and the size of each of its layers.

    manifest, config: digests; layers: digest to compressed bytes. The digest of the manifest is
    computed, not believed. Raise OSError or ValueError without an answer.
    """
    content = login.read_manifest(name, tag)
    manifest = json.loads(content)
    return {
        "manifest": f"sha256:{hashlib.sha256(content).hexdigest()}",
        "config": manifest["config"]["digest"],
        "layers": {layer["digest"]: layer["size"] for layer in manifest["layers"]},
    }


def has_room(size: int) -> bool:
    """Return whether the disk of the registry has room for SIZE bytes."""
    return shutil.disk_usage(FOLDER).free > size


def remove_unused() -> None:
    """Remove what no tag refers to, and uploads that were cut; not while an image is served.

    No registry must take images meanwhile.
    """
    if any(RUNTIME.glob("lease-*")):
        return
    for left in DATA.glob("docker/registry/v2/repositories/**/_uploads"):
        shutil.rmtree(left, ignore_errors=True)
    program = provide_program()
    collected = _run([program, "garbage-collect", "--delete-untagged", str(SETTINGS)])
    if collected.returncode != 0:
        raise RegistryError(f"cannot remove unused images: {last_lines(collected.stderr, 3)}")


@contextmanager
def _locked() -> Iterator[None]:
    descriptor = os.open(LOCK, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as lock:
        # A user who can open the file can hold its lock forever.
        os.fchmod(descriptor, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def serve(lease: str) -> int:
    """Serve the images until every lease is given back; return the port.

    The registry also ends by itself without connections: nothing of a killed run remains.
    """
    with _locked():
        return _serve(lease)


def _serve(lease: str) -> int:
    """Serve without the lock; LEASE: see :func:`plugin_utils.ssh_forward.lease_of`."""
    port = _served_port()
    if port is None:
        port = free_port()
        settings = FOLDER / "serve.yml"
        settings.write_text(configuration(port, readonly=True), encoding="utf-8")
        words = ["sh", "-c", KEEPER, UNIT, provide_program(), str(settings), str(port)]
        started = _run(
            [
                *("systemd-run", "--quiet", "--collect", f"--unit={UNIT}"),
                *(f"--property=RuntimeDirectory={UNIT}", "--property=RuntimeDirectoryMode=0700"),
                *(f"--property=RuntimeMaxSec={LIFE_SECONDS}", "--property=NoNewPrivileges=yes"),
                *("--property=CapabilityBoundingSet=", "--property=ProtectSystem=strict"),
                *("--", *words, str(IDLE_SECONDS)),
            ]
        )
        if started.returncode != 0 or not _answers(port):
            raise RegistryError(f"the registry does not start: {last_lines(started.stderr, 3)}")
        (RUNTIME / "port").write_text(str(port), encoding="ascii")
    # A killed run of the same controller may have left a lease of the same host.
    for old in RUNTIME.glob(f"lease-{lease.rpartition('-')[0]}-*"):
        old.unlink()
    (RUNTIME / f"lease-{lease}").touch()
    return port


def _served_port() -> int | None:
    """Return the port of the registry that serves now, None if there is none."""
    if _run(["systemctl", "is-active", "--quiet", UNIT]).returncode != 0:
        return None
    try:
        return int((RUNTIME / "port").read_text(encoding="ascii"))
    except (OSError, ValueError):
        _run(["systemctl", "stop", UNIT])
        return None


def release_script(leases: str) -> str:
    """Return the shell script that gives leases back, and stops the registry after the last one.

    LEASES is the name of a lease or a pattern. The script prints "ended" if no registry serves
    afterwards.
    """
    return (
        f"umask 077; exec 9>>{LOCK}; chmod 600 {LOCK}; flock 9; rm -f {RUNTIME}/lease-{leases}; "
        f"ls {RUNTIME}/lease-* >/dev/null 2>&1 || "
        f"{{ systemctl stop {UNIT} 2>/dev/null; echo ended; }}"
    )
