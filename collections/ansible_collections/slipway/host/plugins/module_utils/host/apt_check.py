# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check that no setting of somebody else makes apt ignore what Slipway declares.

Slipway owns its own files. A later file can still reset the list of packages that unattended
upgrades skip, or let apt install packages without a valid signature.
"""

from __future__ import annotations

import re
import subprocess

from ansible_collections.slipway.host.plugins.module_utils.state import apt_sources, reading

CONF = "/etc/apt/apt.conf.d"
OWN = "slipway-"
UNSIGNED = (
    "APT::Get::AllowUnauthenticated",
    "Acquire::AllowInsecureRepositories",
    "Acquire::AllowDowngradeToInsecureRepositories",
)
SKIPPED = "Unattended-Upgrade::Package-Blacklist::"
_TRUE = ("1", "yes", "true", "on", "with", "enable")
_TRUSTED = re.compile(
    r"^\s*deb(?:-src)?\s+\[[^\]]*\btrusted=(?:yes|true|1)\b|^Trusted:\s*(?:yes|true|1)\s*$",
    re.IGNORECASE | re.MULTILINE,
)


def check(conf: str = CONF, sources: str = apt_sources.ROOT) -> str:
    """Check apt's settings as apt reads them; return the result as text.

    CONF and SOURCES are the folders of apt's files. Raise ValueError if apt accepts unsigned
    packages, or if unattended upgrades do not skip the packages that Slipway's files name.
    """
    settings = _read_settings()
    unsigned = [name for name in UNSIGNED if _is_true(settings, name)]
    if unsigned:
        raise ValueError(
            f"apt installs packages without a valid signature: found {', '.join(unsigned)} set to "
            "true; expected false. apt-config dump shows the settings, /etc/apt/apt.conf and "
            f"{conf} have them. Remove the setting"
        )
    missing = sorted(_own_patterns(conf) - set(_values(settings, SKIPPED)))
    if missing:
        raise ValueError(
            f"unattended upgrades do not skip {', '.join(missing)}: found a later file that resets "
            f"the list; expected the patterns of {conf}/*{OWN}*. Find the file: grep -r "
            f"'#clear.*Package-Blacklist' {conf}"
        )
    trusted = trusted_files(sources)
    return "no setting defeats signatures or holds" + (
        f". apt checks no signature of the sources with trusted=yes in {', '.join(trusted)}"
        if trusted
        else ""
    )


def trusted_files(root: str = apt_sources.ROOT) -> list[str]:
    """Return the files with an apt source whose signature apt does not check."""
    folder = f"{root}/sources.list.d"
    paths = [f"{root}/sources.list", *(f"{folder}/{n}" for n in reading.list_names(folder) or [])]
    return [path for path in paths if _TRUSTED.search(reading.read_word(path))]


def _read_settings() -> list[tuple[str, str]]:
    done = subprocess.run(
        ["apt-config", "dump"], capture_output=True, text=True, errors="replace", check=True
    )
    return re.findall(r'^(\S+) "(.*)";$', done.stdout, re.MULTILINE)


def _values(settings: list[tuple[str, str]], name: str) -> list[str]:
    return [value for key, value in settings if key.lower() == name.lower()]


def _is_true(settings: list[tuple[str, str]], name: str) -> bool:
    return any(value.lower() in _TRUE for value in _values(settings, name)[-1:])


def _own_patterns(conf: str) -> set[str]:
    """Return the patterns of packages that Slipway's files exclude from unattended upgrades."""
    patterns: set[str] = set()
    for name in reading.list_names(conf) or []:
        if OWN in name:
            text = reading.read_word(f"{conf}/{name}")
            block = re.search(r"Package-Blacklist\s*\{(.*?)\}", text, re.DOTALL)
            patterns.update(re.findall(r'"([^"]+)";', block[1]) if block else ())
    return patterns
