# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The apt sources of a host by what they say: every file, in both formats, whatever its name.

apt fails as a whole if two files name one repository with different keys. So a role has to know the
files of others before it writes its own.
"""

from __future__ import annotations

import re

from ansible_collections.slipway.host.plugins.module_utils.state import reading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    # URI, suite, components, value of Signed-By.
    Source = tuple[str, str, list[str], str]

ROOT = "/etc/apt"
# apt ignores files with other endings.
ONE_LINE, DEB822 = ".list", ".sources"
_LINE = re.compile(r"deb(?:-src)?\s+(?:\[([^\]]*)\]\s*)?(\S+)\s+(\S+)\s*([^#]*)")
_SIGNED_BY = re.compile(r"signed-by=(\S+)", re.I)
_DISABLED = ("no", "false", "0", "off", "without", "disable")


def ask_sources(root: str = ROOT) -> dict[str, list[Source]]:
    """Return the enabled sources of each file that has any, in apt's order of files."""
    folder = f"{root}/sources.list.d"
    paths = [f"{root}/sources.list"]
    paths += [f"{folder}/{name}" for name in reading.list_names(folder) or []]
    sources = {path: list(_read_file(path)) for path in paths if path.endswith((ONE_LINE, DEB822))}
    return {path: entries for path, entries in sources.items() if entries}


def _read_file(path: str) -> Iterator[Source]:
    text = (reading.read_file(path) or b"").decode("utf-8", "replace")
    return parse_deb822(text) if path.endswith(DEB822) else _parse_lines(text)


def _parse_lines(text: str) -> Iterator[Source]:
    for line in text.splitlines():
        if match := _LINE.match(line.strip()):
            key = _SIGNED_BY.search(match[1] or "")
            yield match[2], match[3], match[4].split(), key[1] if key else ""


def parse_deb822(text: str) -> Iterator[Source]:
    """Yield a source for each URI and suite of each paragraph."""
    without_comments = re.sub(r"^#.*\n?", "", text, flags=re.M)
    for paragraph in re.split(r"\n\s*\n", without_comments):
        # A line that begins with a space continues the field before it.
        joined = re.sub(r"\n[ \t]+", " ", paragraph)
        fields = {
            name.strip().lower(): value.split()
            for name, colon, value in (line.partition(":") for line in joined.splitlines())
            if colon
        }
        if " ".join(fields.get("enabled", ())).lower() in _DISABLED:
            continue
        for uri in fields.get("uris", ()):
            for suite in fields.get("suites", ()):
                key = " ".join(fields.get("signed-by", ()))
                yield uri, suite, fields.get("components", []), key
