# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Let apt use the packages of a bundle and no other source, for the time of one module.

The sources and package lists of the host stay as they are. The controller gives the SHA-256 of the
index, and the index gives that of each package. So nobody else on the host can offer packages, even
if the forwarded port is free for a moment.
"""

from __future__ import annotations

import hashlib
import http.client
import tempfile
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

from ansible_collections.slipway.host.plugins.module_utils.apt.run import AptError
from ansible_collections.slipway.host.plugins.module_utils.state.reading import escape_control

# The option of the modules that use apt.
ARGUMENT_SPEC = {
    "type": "dict",
    "options": {
        "url": {"type": "str", "required": True},
        "sha256": {"type": "str", "required": True},
    },
}
INDEX = "Packages"
MAX_INDEX = 64 << 20
# For an index in a folder of its own.
WITHOUT_CACHE = ("Dir::Cache::pkgcache=", "Dir::Cache::srcpkgcache=", "Acquire::Languages=none")
ANSWER_SECONDS = 60


def _fetch_index(url: str, sha256: str) -> bytes:
    """Return the index of a bundle from the forwarded port; raise AptError for other bytes."""
    address = urllib.parse.urlsplit(url)
    # Another program of the host may answer: follow no redirection, and expect no valid answer.
    try:
        with closing(http.client.HTTPConnection(address.netloc, timeout=ANSWER_SECONDS)) as server:
            server.request("GET", f"{address.path}/{INDEX}")
            answer = server.getresponse()
            content = answer.read(MAX_INDEX)
            if answer.status != http.client.OK:
                raise OSError(f"HTTP status {answer.status}")
    except (OSError, http.client.HTTPException) as error:
        reason = escape_control(str(error).strip())
        raise AptError(
            f"cannot read the packages of the bundle: {reason}; expected an answer of the "
            "controller. Run again. No package was installed or removed."
        ) from None
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise AptError(
            f"index of the bundle: SHA-256 {found}; expected {sha256}. Find out which program of "
            f"this host answers on {url}, then run again. No package was installed or removed."
        )
    return content


def private_index(folder: Path) -> list[str]:
    """Return the options with which apt uses the sources and lists in a FOLDER instead of its own.

    The folder must exist. apt downloads with the rights of the user _apt, who must be able to read
    it; only root may write to it.
    """
    (folder / "lists/partial").mkdir(parents=True)
    settings = (
        f"Dir::Etc::SourceList={folder}/sources.list",
        "Dir::Etc::SourceParts=/dev/null",
        f"Dir::State::Lists={folder}/lists",
        *WITHOUT_CACHE,
        "Acquire::http::Proxy::127.0.0.1=DIRECT",
        # apt refuses a default release of the host that is not in its sources.
        "APT::Default-Release=",
    )
    return [f"--option={setting}" for setting in settings]


@contextmanager
def use(bundle: Mapping[str, str] | None) -> Iterator[list[str]]:
    """Yield the options with which apt uses only the packages of a bundle; none without a bundle.

    BUNDLE: ``url`` of a repository on a forwarded port, and ``sha256`` of its index.
    """
    if bundle is None:
        yield []
        return
    content = _fetch_index(bundle["url"], bundle["sha256"])
    with tempfile.TemporaryDirectory(prefix="slipway-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        options = private_index(folder)
        (folder / INDEX).write_bytes(content)
        # apt reads the index from the folder, and packages from the port.
        here = urllib.parse.quote(name)
        (folder / "mirrors").write_text(
            f"file:{here}/\tpriority:1 type:index\n{bundle['url']}/\tpriority:2 type:deb\n"
        )
        # The index was compared with its SHA-256 above.
        line = f"deb [trusted=yes] mirror+file:{here}/mirrors ./\n"
        (folder / "sources.list").write_text(line)
        yield options
