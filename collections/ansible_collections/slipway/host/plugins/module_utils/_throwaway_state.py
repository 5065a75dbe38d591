# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The folder that holds what the throwaway hosts of one group have in common.

That is the key they are reached with, their public keys (known_hosts), and a record of each.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from ansible_collections.slipway.host.plugins.module_utils._throwaway_engine import (
    Commands,
    ThrowawayError,
)
from ansible_collections.slipway.host.plugins.module_utils._throwaway_trust import (
    known_hosts_with,
    known_hosts_without,
    read_text,
)


@dataclass(frozen=True)
class Record:
    """What is remembered of a host. Of one that was not finished, everything is empty."""

    container: str = ""
    address: str = ""
    system_state: str = ""


class StateFolder:
    """A group's folder. Every file is replaced as a whole, so an interruption tears none."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.private_key = self.path / "id_ed25519"
        self.public_key = self.path / "id_ed25519.pub"
        self.known_hosts = self.path / "known_hosts"

    def has_keys(self) -> bool:
        """Tell whether hosts can be reached with what is here."""
        return all(path.exists() for path in (self.private_key, self.public_key, self.known_hosts))

    def make(self, commands: Commands, comment: str) -> None:
        """Make the folder and the group's key, where missing."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        # It may have been there before, as a folder of the user's making.
        self.path.chmod(0o700)
        if self.private_key.exists() and self.public_key.exists():
            return
        # ssh-keygen asks before it replaces one.
        self.private_key.unlink(missing_ok=True)
        commands.run(
            *("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment),
            *("-f", str(self.private_key)),
        )

    def record(self, name: str) -> Record:
        """Return what is remembered of a host."""
        try:
            return Record(**json.loads(read_text(self._record_file(name))))
        except (ValueError, TypeError):
            return Record()

    def has_record(self, name: str | None) -> bool:
        """Tell whether a host, or any when `name` is None, was at least begun."""
        return any(self.path.glob("*.json")) if name is None else self._record_file(name).exists()

    def write_record(self, name: str, record: Record) -> None:
        """Remember a host."""
        self._write(self._record_file(name), json.dumps(asdict(record), indent=2) + "\n")

    def learn_keys(self, name: str, address: str, keys: Iterable[str]) -> None:
        """Trust exactly these public keys at a host's address."""
        known = read_text(self.known_hosts)
        self._write(self.known_hosts, known_hosts_with(known, name, address, keys))

    def forget(self, name: str) -> bool:
        """Forget a host and its public keys; return whether it was known."""
        if not self.has_record(name):
            return False
        if self.known_hosts.exists():
            gone = {name, self.record(name).address}
            self._write(self.known_hosts, known_hosts_without(read_text(self.known_hosts), gone))
        self._record_file(name).unlink()
        return True

    def files(self) -> list[Path]:
        """List the files here that `make` and the hosts brought."""
        keys = (self.private_key, self.public_key, self.known_hosts)
        return [
            *(path for path in keys if path.exists()),
            *self.path.glob("*.json"),
            *self.path.glob("*.partial"),
        ]

    def remove(self) -> bool:
        """Remove those files, and the folder unless something else lies in it."""
        files = self.files()
        for path in files:
            path.unlink()
        if self.path.is_dir() and not any(self.path.iterdir()):
            self.path.rmdir()
        return bool(files)

    def _record_file(self, name: str) -> Path:
        return self.path / f"{name}.json"

    def _write(self, path: Path, text: str) -> None:
        partial = path.with_name(f"{path.name}.partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)


def default_state_dir(group: str, start: Path) -> Path:
    """Return the state folder of a group in the project that `start` lies in.

    The project's root is the nearest folder with an ansible.cfg. Raises ThrowawayError when there
    is none.
    """
    for folder in (start, *start.parents):
        if (folder / "ansible.cfg").exists():
            return folder / ".slipway" / "hosts" / group
    raise ThrowawayError(
        f"no project (a folder with an ansible.cfg) around {start}; name a state_dir"
    )
