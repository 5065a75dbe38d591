# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A stand-in for the commands that create throwaway hosts: a Docker Engine in memory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lab.commands import CommandError, Commands, Completed

OK = Completed(0, "", "")
NO = Completed(1, "", "Error: No such object")


@dataclass
class Container:
    """A container of the stand-in engine."""

    identity: str
    image: str
    labels: dict[str, str]
    address: str
    running: bool = True
    stdin: dict[str, bytes] = field(default_factory=dict)


class FakeDocker(Commands):
    """Answers the docker commands of the lab, mmdebstrap and ssh-keygen.

    `ran` lists every command. A command that contains all words of a key of `failing` fails with
    the value as its error output.
    """

    def __init__(self) -> None:
        super().__init__()
        self.answers = True
        self.containers: dict[str, Container] = {}
        self.images: dict[str, dict[str, str]] = {}
        self.volumes: dict[str, dict[str, str]] = {}
        self.system_state = "running"
        self.ends_at_once = False
        self.failing: dict[str, str] = {}
        self.pull = Completed(0, "pulling", "")
        self.ran: list[tuple[str, ...]] = []
        self._made = 0

    def is_installed(self, command: str) -> bool:
        return True

    def run(
        self,
        *argv: str,
        stdin: bytes = b"",
        timeout: float = 600.0,
        check: bool = True,
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        self.ran.append(argv)
        completed = self._answer(argv, stdin)
        for words, text in self.failing.items():
            if set(words.split()) <= set(argv):
                completed = Completed(1, "", text)
        if check and completed.rc != 0:
            raise CommandError(argv, completed)
        return completed

    def run_with_output_deadline(
        self, *argv: str, first_output: float, timeout: float
    ) -> Completed:
        self.ran.append(argv)
        if self.pull.rc == 0:
            self.images[argv[-1]] = {}
        return self.pull

    def how_often(self, *words: str) -> int:
        """Count the commands run so far that begin with these words."""
        return sum(argv[: len(words)] == words for argv in self.ran)

    def restart(self) -> None:
        """Stop all containers, as a restart of the engine does."""
        for container in self.containers.values():
            container.running = False

    def _answer(self, argv: tuple[str, ...], stdin: bytes) -> Completed:
        if argv[0] == "ssh-keygen":
            key = Path(argv[-1])
            key.write_text("private")
            key.with_suffix(".pub").write_text("ssh-ed25519 PUBLIC\n")
        if argv[0] != "docker":
            return OK
        if not self.answers:
            return NO
        verb, *words = argv[1:]
        if verb in ("container", "image", "volume"):
            verb = f"{verb}_{words.pop(0)}"
        completed: Completed = getattr(self, f"_{verb}")(words, stdin)
        return completed

    def _version(self, words: list[str], stdin: bytes) -> Completed:
        return Completed(0, "28.5.2\n", "")

    def _import(self, words: list[str], stdin: bytes) -> Completed:
        self.images["sha256:imported"] = {}
        return Completed(0, "sha256:imported\n", "")

    def _image_inspect(self, words: list[str], stdin: bytes) -> Completed:
        return OK if words[0] in self.images else NO

    def _image_ls(self, words: list[str], stdin: bytes) -> Completed:
        wanted = _filters(words)
        return _lines(tag for tag, labels in self.images.items() if _has(labels, wanted))

    def _image_rm(self, words: list[str], stdin: bytes) -> Completed:
        if any(container.image == words[0] for container in self.containers.values()):
            return Completed(1, "", "image is being used")
        return OK if self.images.pop(words[0], None) is not None else NO

    def _image_save(self, words: list[str], stdin: bytes) -> Completed:
        Path(words[1]).write_text(words[2])
        return OK

    def _image_load(self, words: list[str], stdin: bytes) -> Completed:
        self.images[Path(words[1]).read_text()] = {}
        return OK

    def _inspect(self, words: list[str], stdin: bytes) -> Completed:
        found = [box.image for box in self.containers.values() if box.identity in words]
        return _lines(found)

    def _run(self, words: list[str], stdin: bytes) -> Completed:
        image = next((word for word in words if word in self.images), None)
        if image is None:
            return NO
        if "--rm" in words:
            return OK
        name = next(
            # `--name NAME` as well as `--name=NAME`
            word.partition("=")[2] or words[index + 1]
            for index, word in enumerate(words)
            if word.startswith("--name")
        )
        self._made += 1
        address = f"172.17.0.{self._made + 1}"
        identity, running = f"id{self._made}", not self.ends_at_once
        self.containers[name] = Container(identity, image, _labels(words), address, running)
        return OK

    def _commit(self, words: list[str], stdin: bytes) -> Completed:
        key, _, value = words[1].removeprefix("LABEL ").partition("=")
        self.images[words[-1]] = {key: value}
        return OK

    def _rm(self, words: list[str], stdin: bytes) -> Completed:
        for word in words:
            found = [name for name, box in self.containers.items() if word in (name, box.identity)]
            for name in found:
                del self.containers[name]
        return OK

    def _start(self, words: list[str], stdin: bytes) -> Completed:
        container = self.containers[words[0]]
        if not container.running:
            self._made += 1
            container.address = f"172.17.0.{self._made + 1}"
            container.running = True
        return OK

    def _exec(self, words: list[str], stdin: bytes) -> Completed:
        name, *command = [word for word in words if word != "--interactive"]
        container = self.containers[name]
        if "is-system-running" in command:
            return Completed(0, f"{self.system_state}\n", "")
        if "ssh_host_" in command[-1]:
            return Completed(0, f"ssh-ed25519 HOST-{container.identity} root@host\n", "")
        container.stdin[command[-1]] = stdin
        return OK

    def _logs(self, words: list[str], stdin: bytes) -> Completed:
        return Completed(0, "the console's last words", "")

    def _container_inspect(self, words: list[str], stdin: bytes) -> Completed:
        container = self.containers.get(words[0])
        if container is None:
            return NO
        return Completed(0, json.dumps([inspection(container)]), "")

    def _ps(self, words: list[str], stdin: bytes) -> Completed:
        wanted = _filters(words)
        return _lines(
            container.identity
            for container in self.containers.values()
            if _has(container.labels, wanted)
        )

    def _volume_create(self, words: list[str], stdin: bytes) -> Completed:
        self.volumes[words[-1]] = _labels(words)
        return OK

    def _volume_ls(self, words: list[str], stdin: bytes) -> Completed:
        wanted = _filters(words)
        return _lines(name for name, labels in self.volumes.items() if _has(labels, wanted))

    def _volume_rm(self, words: list[str], stdin: bytes) -> Completed:
        for name in words:
            del self.volumes[name]
        return OK


def inspection(container: Container) -> dict[str, object]:
    """Return the fields of `docker container inspect` that the lab reads."""
    return {
        "Id": container.identity,
        "State": {"Running": container.running},
        "Config": {"Labels": container.labels},
        "NetworkSettings": {
            "Networks": {"bridge": {"IPAddress": container.address if container.running else ""}}
        },
    }


def _labels(words: Iterable[str]) -> dict[str, str]:
    return _pairs(words, "--label=")


def _filters(words: Iterable[str]) -> dict[str, str]:
    return _pairs(words, "--filter=label=")


def _pairs(words: Iterable[str], option: str) -> dict[str, str]:
    given = [word.removeprefix(option) for word in words if word.startswith(option)]
    return {key: value for key, _, value in (pair.partition("=") for pair in given)}


def _has(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    # A filter without a value asks only for the label.
    return all(key in labels and value in ("", labels[key]) for key, value in wanted.items())


def _lines(words: Iterable[str]) -> Completed:
    return Completed(0, "\n".join(words), "")
