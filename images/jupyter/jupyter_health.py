# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The health check: ask the Jupyter servers of this container.

A container that was started to do something else, such as `bash`, is healthy without one.
"""

from __future__ import annotations

import json
import os
import ssl
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

# Programs that start another one; the options are those of the inits.
WRAPPERS = frozenset(("docker-init", "tini", "start", "start.sh", "named", "-g", "-s", "--"))
SHELLS = frozenset(("sh", "bash", "dash"))
SUBCOMMANDS = frozenset(("lab", "notebook", "server", "nbclassic"))
STARTERS = frozenset(("start-notebook.py", "start-notebook.sh", "run-one-constantly"))


def wants_server(words: Sequence[str]) -> bool:
    """Return whether the command of the first process starts a Jupyter server."""
    names = [PurePosixPath(word).name for word in words]
    while names and names[0] in WRAPPERS:
        del names[0]
    # An interpreter and its script, or a shell and one of the wrappers.
    if len(names) > 1 and (names[0] in SHELLS or names[0].startswith("python")):
        del names[0]
    while names and names[0] in WRAPPERS:
        del names[0]
    if not names:
        return False
    if names[0] in STARTERS:
        return True
    if names[0] == "jupyter":
        return names[1:2] != [] and names[1] in SUBCOMMANDS
    return names[0].startswith("jupyter-") and names[0].removeprefix("jupyter-") in SUBCOMMANDS


def folders() -> Iterator[Path]:
    """Yield the folders where a server may keep a file about itself."""
    if "JUPYTER_RUNTIME_DIR" in os.environ:
        yield Path(os.environ["JUPYTER_RUNTIME_DIR"])
    # HOME is there on a read-only file system; see /opt/slipway/start.
    for home in (Path("/home/slipway"), *Path(tempfile.gettempdir()).glob("home-*")):
        yield home / ".local/share/jupyter/runtime"


def addresses() -> Iterator[str]:
    """Yield the address of each server that runs."""
    for folder in folders():
        for file in folder.glob("jpserver-*.json"):
            server = json.loads(file.read_text(encoding="utf-8"))
            if Path(f"/proc/{server['pid']}").exists():
                scheme = "https" if server.get("secure") else "http"
                yield f"{scheme}://127.0.0.1:{server['port']}{server.get('base_url', '/')}api"


def main() -> int:
    """Ask every server; return the exit status that Docker understands."""
    answered = 0
    # Without the proxy of the container. A certificate is for the name of the host, not 127.0.0.1.
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )
    for address in addresses():
        opener.open(address, timeout=3).close()
        answered += 1
    words = Path("/proc/1/cmdline").read_bytes().decode(errors="replace").split("\0")
    return 0 if answered or not wants_server(words) else 1


if __name__ == "__main__":
    sys.exit(main())
