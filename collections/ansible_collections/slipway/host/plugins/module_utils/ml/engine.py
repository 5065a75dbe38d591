# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the docker command, and explains its errors to the person at the terminal."""

from __future__ import annotations

import grp
import io
import json
import os
import pwd
import socket
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import MlError

GROUP = "docker"
CDI_KIND = "nvidia.com/gpu"
# Folders of the CDI specifications that NVIDIA's toolkit writes.
CDI_FOLDERS = (Path("/var/run/cdi"), Path("/etc/cdi"))

# Docker's words for an engine that does not answer, before and from version 28.
NO_ANSWER = ("Cannot connect to the Docker daemon", "failed to connect to the docker API")


@dataclass(frozen=True)
class Engine:
    """The properties of the engine that matter to an alias.

    rootless: the engine runs as the user, who is root in its containers.
    cdi: the engine provides GPUs by CDI; containers keep them when systemd reloads.
    """

    rootless: bool
    cdi: bool


@dataclass(frozen=True)
class Docker:
    """The docker command; CONTACT is the person to tell about problems."""

    contact: str

    def run(self, *words: str) -> str:
        """Run docker and return its output.  Raise MlError where it fails."""
        return self._run(words).decode("utf-8", "replace")

    def _run(self, words: Sequence[str]) -> bytes:
        try:
            done = subprocess.run(["docker", *words], capture_output=True, check=False)
        except FileNotFoundError:
            raise MlError(f"command docker not found on this host. Tell {self.contact}") from None
        if done.returncode != 0:
            raise MlError(self.explain(done.stderr.decode("utf-8", "replace")))
        return done.stdout

    def explain(self, said: str) -> str:
        """Return the error of docker's output SAID, for the person at the terminal."""
        if "permission denied while trying to connect" in said:
            return explain_permission(self.contact, *_membership())
        if any(words in said for words in NO_ANSWER):
            return f"Docker does not answer on this host. Tell {self.contact}"
        lines = [line for line in said.strip().splitlines() if line] or ["docker failed"]
        return lines[-1].removeprefix("Error response from daemon: ")

    def engine(self) -> Engine:
        """Return the engine.  Raise MlError where the user may not use it or it does not answer."""
        info = json.loads(self.run("info", "--format", "{{json .}}"))
        # docker info may succeed although the engine does not answer, and list the error here.
        for problem in info.get("ServerErrors") or ():
            raise MlError(self.explain(problem))
        return parse_engine(info, has_cdi_spec(CDI_FOLDERS))

    def inspect(self, kind: str, names: Sequence[str]) -> list[dict[str, Any]]:
        """Return docker's description of images or containers (KIND), all of which must exist."""
        if not names:
            return []
        inspected: list[dict[str, Any]] = json.loads(self.run(kind, "inspect", *names))
        return inspected

    def image(self, reference: str) -> dict[str, Any] | None:
        """Return docker's description of an image, None for an image that is not on the host."""
        try:
            return self.inspect("image", [reference])[0]
        except MlError as error:
            if "No such image" in str(error):
                return None
            raise

    def files_of(self, image: str, paths: Sequence[str]) -> dict[str, str]:
        """Return the text of files of an image, by path, without running the image."""
        container = self.run("container", "create", "--network=none", "--pull=never", image).strip()
        try:
            return {
                path: _untarred(self._run(["cp", f"{container}:{path}", "-"])) for path in paths
            }
        finally:
            self.run("container", "rm", container)


def _untarred(archive: bytes) -> str:
    """Return the text of the one file in a tar archive."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        member = opened.next()
        stream = opened.extractfile(member) if member else None
        return stream.read().decode("utf-8", "replace") if stream else ""


def explain_permission(contact: str, user: str, listed: bool) -> str:
    """Return the error for a user without access to Docker; LISTED: a new login gives access."""
    if listed:
        return (
            f"{user} may use Docker, but only in a new session. "
            "Log out and in again, or run: newgrp docker"
        )
    return (
        f"{user} may not use Docker on {socket.gethostname()}. "
        f"Ask {contact} to set 'docker: true' for you in user_access_users"
    )


def _membership() -> tuple[str, bool]:
    """Return the user's name, and whether the user is listed in the group docker."""
    user = user_name(os.getuid())
    try:
        return user, user in grp.getgrnam(GROUP).gr_mem
    except KeyError:
        return user, False


def user_name(uid: int) -> str:
    """Return the login name of a uid, the number where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def parse_engine(info: Mapping[str, Any], spec: bool) -> Engine:
    """Return the engine that ``docker info`` describes; SPEC: a CDI file describes GPUs."""
    return Engine(
        rootless=any("rootless" in option for option in info.get("SecurityOptions") or ()),
        cdi=spec and bool(info.get("CDISpecDirs")),
    )


def has_cdi_spec(folders: Sequence[Path]) -> bool:
    """Whether a file in the FOLDERS describes NVIDIA GPUs."""
    for folder in folders:
        for file in sorted(folder.glob("*")) if folder.is_dir() else ():
            try:
                if CDI_KIND in file.read_text(encoding="utf-8", errors="replace"):
                    return True
            except OSError:
                continue
    return False
