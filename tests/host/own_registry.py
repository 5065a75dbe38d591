# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A registry with TLS and accounts on a throwaway host, and what its password leaves on hosts."""

from __future__ import annotations

import base64
import json
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.images import registry

from tests.host.conftest import Site

PORT, FOLDER = 5443, "/srv/own-registry"
# The account of Slipway, and that of a user, whose login a file on the host may have.
ACCOUNTS = {"fleet": "pa55-of-the-fleet", "ana": "pa55-of-ana"}
PASSWORD = ACCOUNTS["fleet"]
# Processes with their arguments and variables, ten times a second.
PATTERNS = "/srv/patterns"
WATCH = "while :; do ps axeww; sleep 0.1; done"


def basic(name: str) -> str:
    return base64.b64encode(f"{name}:{ACCOUNTS[name]}".encode()).decode()


class OwnRegistry:
    """The registry; its program is the one that a delivery over SSH unpacked on the host."""

    def __init__(self, site: Site, folder: Path) -> None:
        self.site, self.server = site, f"{site.host.address}:{PORT}"
        for name in ("right", "other"):
            command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
            command += ["-keyout", f"{name}.key", "-out", f"{name}.crt", "-subj", f"/CN={name}"]
            command += ["-addext", f"subjectAltName=IP:{site.host.address}"]
            subprocess.run(command, cwd=folder, check=True, capture_output=True)
        self.right, self.other = (
            (folder / f"{name}.crt").read_text() for name in ("right", "other")
        )
        users = (f"{name}:{registry.hash_password(word)}" for name, word in ACCOUNTS.items())
        settings = {
            "version": 0.1,
            "log": {"level": "error"},
            "storage": {"filesystem": {"rootdirectory": f"{FOLDER}/data"}},
            "http": {
                "addr": f"0.0.0.0:{PORT}",
                "tls": {"certificate": f"{FOLDER}/tls.crt", "key": f"{FOLDER}/tls.key"},
            },
            "auth": {"htpasswd": {"realm": "own", "path": f"{FOLDER}/users"}},
        }
        files = {
            "tls.crt": self.right,
            "tls.key": (folder / "right.key").read_text(),
            "users": "\n".join(users),
            "settings.yml": json.dumps(settings),
            "ana/config.json": json.dumps({"auths": {self.server: {"auth": basic("ana")}}}),
        }
        site.on(f"mkdir -p {FOLDER}/ana; cp {registry.PROGRAM} {FOLDER}/own-registry")
        for name, content in files.items():
            site.on(f"printf %s {shlex.quote(content)} >{FOLDER}/{name}")
        self.start()

    def start(self) -> None:
        words = f"{FOLDER}/own-registry serve {FOLDER}/settings.yml"
        self.site.on(f"systemd-run --quiet --collect --unit=own-registry {words}")
        self.site.on(f"until ss -Hltn | grep -q :{PORT}; do sleep 0.1; done")

    def stop(self) -> None:
        self.site.on("systemctl stop own-registry")

    def option(self, **changes: str) -> Mapping[str, Any]:
        """Return the option by which Slipway uses the registry, in the folder ``team``."""
        login = {"username": "fleet", "password": PASSWORD}
        address = f"{self.server}/team"
        return {"ml_images_registry": {"address": address, "ca": self.right, **login, **changes}}

    def push_as_ana(self, reference: str, name: str) -> None:
        """Push an image of the host under another name, as its user does."""
        target = f"{self.server}/{name}"
        docker = f"docker --config {FOLDER}/ana"
        self.site.on(f"docker tag {reference} {target}; {docker} push -q {target}")

    def manifests(self) -> str:
        """Return the digest of the manifest of each tag, a line each."""
        folder = f"{FOLDER}/data/docker/registry/v2/repositories"
        return self.site.on(f"cd {folder}; grep -r sha256 --include=link . | grep /current/ | sort")


def watch(site: Site) -> None:
    """Record the processes of a host until :func:`traces`."""
    words = f"sh -c {shlex.quote(WATCH)}"
    output = "--property=StandardOutput=file:/srv/processes"
    site.on(f"systemd-run --quiet --collect --unit=watch {output} {words}")


def traces(site: Site) -> list[str]:
    """Return the files and lists of processes of a host that have the password of Slipway.

    The password comes by standard input: sudo logs its arguments. PATTERNS is always found.
    """
    folders = "/etc /root /home /run /tmp /var/lib/slipway /var/log /var/tmp"
    script = (
        f"cat >{PATTERNS}; systemctl stop watch; journalctl --no-pager >/srv/journal; "
        f"grep -q dockerd /srv/processes || echo no processes; grep -rlFf {PATTERNS} {PATTERNS} "
        f"/srv/processes /srv/journal {folders}"
    )
    patterns = f"{PASSWORD}\n{basic('fleet')}\n"
    done = site.try_as(site.host.user, f"sudo sh -c {shlex.quote(script)}", stdin=patterns)
    return done.stdout.splitlines()
