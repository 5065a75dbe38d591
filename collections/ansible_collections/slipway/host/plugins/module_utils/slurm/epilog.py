# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Removes the containers of a job that ended.  Slurm runs this program as root on each node.

The engine starts containers outside the job, so that Slurm does not end them.  A container counts
as the job's by two labels of the command that started it: the number of the job, and its user.
Containers inherit labels of their image, which any user can choose, so that those do not count.

A status other than 0 drains the node: then a container may still use the GPUs of the job.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import quote

SOCKET = "/run/docker.sock"
JOB, UID = "io.slipway.job", "io.slipway.uid"
# The program in a container has this time to end after SIGTERM.
STOP_SECONDS = 10
# A container may appear late, if its client died while the engine created it.
APPEAR_SECONDS = 3.0
# The engine may restart.
PATIENCE_SECONDS = 60.0
GONE, IN_PROGRESS = 404, 409


class Connection(HTTPConnection):
    """A connection to the engine."""

    def connect(self) -> None:
        """Connect to the socket of the engine."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(STOP_SECONDS * 3)
        self.sock.connect(SOCKET)


def ask(method: str, path: str) -> Any:
    """Return the engine's answer, None for what does not exist any more."""
    connection = Connection("docker")
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        content = answer.read()
    finally:
        connection.close()
    if answer.status in (GONE, IN_PROGRESS):
        return None
    if answer.status >= 400:
        raise OSError(f"the engine answered {method} {path} with status {answer.status}")
    return json.loads(content) if content else {}


def belongs(container: Any, image: Any, job: str, uid: str) -> bool:
    """Return whether a container of the engine's list is of a job."""
    own = container.get("Labels") or {}
    inherited = ((image or {}).get("Config") or {}).get("Labels") or {}
    return own.get(JOB) == job and own.get(UID) == uid and inherited.get(JOB) != job


def remove_containers(job: str, uid: str) -> None:
    """Stop and remove the containers of a job."""
    filters = quote(json.dumps({"label": [f"{JOB}={job}", f"{UID}={uid}"]}))
    for container in ask("GET", f"/containers/json?all=1&filters={filters}") or ():
        if belongs(container, ask("GET", f"/images/{container['ImageID']}/json"), job, uid):
            name = container["Id"]
            ask("POST", f"/containers/{name}/stop?t={STOP_SECONDS}")
            ask("DELETE", f"/containers/{name}?force=1&v=1")


def main() -> int:
    """Remove the containers of the job in the environment; return the exit status."""
    job, uid = os.environ["SLURM_JOB_ID"], os.environ["SLURM_JOB_UID"]
    deadline = time.monotonic() + PATIENCE_SECONDS
    while Path(SOCKET).exists():
        try:
            remove_containers(job, uid)
            time.sleep(APPEAR_SECONDS)
            remove_containers(job, uid)
        except (OSError, HTTPException, ValueError, KeyError, TypeError) as error:
            if time.monotonic() >= deadline:
                print(f"containers of job {job} may still run: {error}", file=sys.stderr)
                return 1
            time.sleep(1)
        else:
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
