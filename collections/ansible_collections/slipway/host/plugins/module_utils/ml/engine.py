# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Docker Engine: runs the docker command, sends requests, explains errors to the caller."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from . import api
from .api import Answer, Request
from .caller import user_name
from .errors import MlError, reason

GROUP = "docker"
CDI_KIND = "nvidia.com/gpu"
# Folders of the CDI specifications that NVIDIA's toolkit writes.
CDI_FOLDERS = (Path("/var/run/cdi"), Path("/etc/cdi"))
FOUND, MISSING = 200, 404

# Docker's messages for an engine that does not answer, before and from version 28.
NO_ANSWER = ("Cannot connect to the Docker daemon", "failed to connect to the docker API")
FROM_ENGINE = "Error response from daemon:"

Parsed = TypeVar("Parsed")


@contextmanager
def parsing() -> Iterator[None]:
    """Raise MlError if the block cannot parse an answer of the engine."""
    try:
        yield
    except api.ApiError as error:
        raise MlError(str(error)) from None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise MlError(f"unexpected answer from Docker: {error!r}") from error


def parse_ids(listed: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the IDs in a list of containers or images, each once."""
    return sorted({str(entry["Id"]) for entry in listed})


class Engine(NamedTuple):
    """The properties of the engine that matter to an alias.

    rootless: the engine runs as the user, who is root in its containers.
    cdi: the engine provides GPUs by CDI; containers keep them when systemd reloads.
    """

    rootless: bool
    cdi: bool


class Docker:
    """The Docker Engine of the caller."""

    def __init__(self, contact: str) -> None:
        """Set the person to tell about problems."""
        self.contact = contact

    def run(self, *words: str) -> str:
        """Run the docker command and return its output.  Raise MlError if it fails."""
        import subprocess

        try:
            completed = subprocess.run(["docker", *words], capture_output=True, check=False)
        except (OSError, ValueError) as error:
            raise self.cannot_run(error) from None
        if completed.returncode != 0:
            raise MlError(self.explain(completed.stderr.decode("utf-8", "replace")))
        return completed.stdout.decode("utf-8", "replace")

    def cannot_run(self, error: Exception) -> MlError:
        """Return the error for a docker command that does not start."""
        if isinstance(error, FileNotFoundError):
            return MlError(f"command docker not found on this host. Tell {self.contact}")
        return MlError(f"cannot run docker: {reason(error, 'docker')}")

    def explain(self, error_output: str) -> str:
        """Return docker's error for the person at the terminal."""
        if "permission denied while trying to connect" in error_output:
            return explain_permission(self.contact, *_membership())
        if any(message in error_output for message in NO_ANSWER):
            return f"Docker does not answer on this host. Tell {self.contact}"
        lines = [line.strip() for line in error_output.splitlines() if line.strip()]
        # The error of another program, such as iptables, may have several lines.
        errors = [number for number, line in enumerate(lines) if line.startswith(FROM_ENGINE)]
        text = " ".join(lines[errors[-1] if errors else -1 :])
        return text.removeprefix(FROM_ENGINE).strip() or "docker failed"

    def send(self, *requests: Request) -> list[Answer]:
        """Send requests at the same time; return the answers.  Raise MlError without an answer."""
        try:
            return api.fetch(*requests)
        except api.ApiError as error:
            raise MlError(self.explain(str(error))) from None

    def parse(self, answer: Answer, parse: Callable[[Any], Parsed]) -> Parsed:
        """Return the parsed content of an answer.  Raise MlError for an error of the engine."""
        with parsing():
            content = answer.json()
            if not FOUND <= answer.status < 300:
                raise MlError(self.explain(f"{FROM_ENGINE} {content['message']}"))
            return parse(content)

    def get(self, parse: Callable[[Any], Parsed], *paths: str) -> list[Parsed]:
        """Return the parsed answers for paths.  Raise MlError if the engine refuses one."""
        return [self.parse(answer, parse) for answer in self.send(*map(Request, paths))]

    def image(self, reference: str) -> dict[str, Any] | None:
        """Return docker's description of an image, None for an image that is not on the host."""
        return self.parse_image(self.send(image_request(reference))[0])

    def parse_image(self, answer: Answer) -> dict[str, Any] | None:
        """Return the image of an answer to :func:`image_request`, None for no such image."""
        if answer.status == MISSING:
            return None
        return self.parse(answer, dict)

    def parse_engine(self, answer: Answer) -> Engine:
        """Return the engine of an answer to ENGINE_REQUEST."""
        return self.parse(answer, lambda info: parse_engine(info, has_cdi_spec(CDI_FOLDERS)))

    def files_of(self, image: str, paths: Sequence[str]) -> dict[str, str]:
        """Return the text of files of an image, by path, without running the image."""
        create = Request("/containers/create", "POST", {"Image": image, "NetworkDisabled": True})
        container = self.parse(self.send(create)[0], lambda content: str(content["Id"]))
        try:
            archives = self.send(
                *(Request(f"/containers/{container}/archive?path={path}") for path in paths)
            )
            return {
                path: self._untar(archive) for path, archive in zip(paths, archives, strict=True)
            }
        finally:
            self.send(Request(f"/containers/{container}?force=1", "DELETE"))

    def _untar(self, archive: Answer) -> str:
        """Return the text of the one file in a tar archive; empty for a missing file."""
        import tarfile

        if archive.status == MISSING:
            return ""
        if archive.status != FOUND:
            self.parse(archive, lambda content: content)
        try:
            with tarfile.open(fileobj=io.BytesIO(archive.content)) as opened:
                member = opened.next()
                stream = opened.extractfile(member) if member else None
                return stream.read().decode("utf-8", "replace") if stream else ""
        except (tarfile.TarError, KeyError) as error:
            raise MlError(f"unexpected answer from Docker: {error}") from error


ENGINE_REQUEST = Request("/info")


def image_request(reference: str) -> Request:
    """Return the request for docker's description of an image."""
    return Request(f"/images/{api.escape(reference)}/json")


def explain_permission(contact: str, user: str, listed: bool) -> str:
    """Return the error for a user without access to Docker; LISTED: a new login gives access."""
    if listed:
        return (
            f"{user} may use Docker, but only in a new session. "
            "Log out and in again, or run: newgrp docker"
        )
    return (
        f"{user} may not use Docker on {os.uname().nodename}. "
        f"Ask {contact} to set 'docker: true' for you in user_access_users"
    )


def _membership() -> tuple[str, bool]:
    """Return the user's name, and whether the user is listed in the group docker."""
    import grp

    user = user_name(os.getuid())
    try:
        return user, user in grp.getgrnam(GROUP).gr_mem
    except KeyError:
        return user, False


def parse_engine(info: Mapping[str, Any], has_spec: bool) -> Engine:
    """Return the engine that ``docker info`` describes; HAS_SPEC: a CDI file describes GPUs."""
    return Engine(
        rootless=any("rootless" in option for option in info.get("SecurityOptions") or ()),
        cdi=has_spec and bool(info.get("CDISpecDirs")),
    )


def has_cdi_spec(folders: Sequence[Path]) -> bool:
    """Return whether a file in the folders describes NVIDIA GPUs."""
    for folder in folders:
        try:
            files = sorted(folder.iterdir())
        except OSError:
            continue
        for file in files:
            try:
                if CDI_KIND in file.read_text(encoding="utf-8", errors="replace"):
                    return True
            except OSError:
                continue
    return False
