# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The folder with the files that the throwaway hosts of one group share.

The folder holds the group's SSH key, the hosts' public keys (known_hosts), one record per host, and
the stand-ins of simulated GPU hosts.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from lab.commands import Commands
from lab.trust import known_hosts_with, known_hosts_without, read_text

PROJECT = Path(__file__).resolve().parents[1]


def group_folder(group: str) -> Path:
    """Return the default state folder of a group."""
    return PROJECT / ".slipway/hosts" / group


@dataclass(frozen=True)
class HostRecord:
    """The last complete state of a host; every field is empty while the host is incomplete."""

    container: str = ""
    address: str = ""
    system_state: str = ""


class StateFolder:
    """The state folder of a group. Every file is replaced atomically."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.private_key = self.path / "id_ed25519"
        self.public_key = self.path / "id_ed25519.pub"
        self.known_hosts = self.path / "known_hosts"

    def has_keys(self) -> bool:
        """Return whether all files for SSH connections exist."""
        return all(path.exists() for path in (self.private_key, self.public_key, self.known_hosts))

    def create(self, commands: Commands, comment: str) -> None:
        """Create the folder and the group's SSH key where missing."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        # The folder may exist with another mode.
        self.path.chmod(0o700)
        if self.private_key.exists() and self.public_key.exists():
            return
        # ssh-keygen asks before it replaces a key.
        self.private_key.unlink(missing_ok=True)
        commands.run(
            *("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment),
            *("-f", str(self.private_key)),
        )

    def record(self, name: str) -> HostRecord:
        """Return the record of a host, an empty record when there is none."""
        try:
            return HostRecord(**json.loads(read_text(self._record_file(name))))
        except (ValueError, TypeError):
            return HostRecord()

    def names(self) -> list[str]:
        """Return the names of the hosts that have a record, in the order of their numbers."""
        names = [path.stem for path in self.path.glob("*.json")]
        return sorted(names, key=lambda name: (len(name), name))

    def has_record(self, name: str | None) -> bool:
        """Return whether a host has a record, or any host when `name` is None."""
        return any(self.path.glob("*.json")) if name is None else self._record_file(name).exists()

    def write_record(self, name: str, record: HostRecord) -> None:
        """Write the record of a host."""
        self._write(self._record_file(name), json.dumps(asdict(record), indent=2) + "\n")

    def write_host_keys(self, name: str, address: str, keys: Iterable[str]) -> None:
        """Set the public keys of a host in known_hosts."""
        known_hosts = read_text(self.known_hosts)
        self._write(self.known_hosts, known_hosts_with(known_hosts, name, address, keys))

    def stand_ins(self, name: str) -> Path:
        """Return the folder with the stand-ins of a simulated GPU host."""
        return self.path / "stand-ins" / name

    def remove_host(self, name: str) -> bool:
        """Remove a host's record, public keys and stand-ins; return whether the record existed."""
        shutil.rmtree(self.stand_ins(name), ignore_errors=True)
        if not self.has_record(name):
            return False
        if self.known_hosts.exists():
            removed = {name, self.record(name).address}
            self._write(self.known_hosts, known_hosts_without(read_text(self.known_hosts), removed))
        self._record_file(name).unlink()
        return True

    def files(self) -> list[Path]:
        """List the files and folders of the group, without foreign files."""
        fixed = (self.private_key, self.public_key, self.known_hosts, self.path / "stand-ins")
        return [
            *(path for path in fixed if path.exists()),
            *self.path.glob("*.json"),
            *self.path.glob("*.partial"),
        ]

    def remove(self) -> bool:
        """Remove the group's files, and the folder unless foreign files are left."""
        files = self.files()
        for path in files:
            if path.is_dir():
                shutil.rmtree(path)
            else:
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
