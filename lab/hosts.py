# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Throwaway hosts: containers with systemd that are reached over SSH.

A host belongs to a group. The group's SSH key, known_hosts and records are in its state folder.
The group's containers and volumes have labels with the name of the group and that folder, so that
removing a group removes all of its containers and volumes and no others.
"""

from __future__ import annotations

import enum
import os
import shlex
import socket
from dataclasses import dataclass
from pathlib import Path

from lab import emulation
from lab.base_images import ensure_base
from lab.bases import EMULATION_FOLDER, USER, base_named
from lab.commands import install_commands
from lab.containers import (
    ENGINE_FOLDERS,
    RUN_OPTIONS,
    SPEC_LABEL,
    ContainerState,
    bounding_set,
    capability_options,
    cgroup_options,
    container_name,
    parse_inspect,
    spec_digest,
)
from lab.engine import Engine
from lab.errors import BaseUnavailableError, LabError
from lab.host_spec import HostSpec, check_name, check_spec
from lab.processes import locked, wait_until
from lab.state_folder import HostRecord, StateFolder, group_folder
from lab.trust import BUNDLE, certificates_tar, controller_certificates

GROUP_LABEL = "slipway.group"
STATE_LABEL = "slipway.state"
HOST_LABEL = "slipway.host"

BOOTED_STATES = ("running", "degraded")
BOOT_SECONDS = 90.0
SSH_SECONDS = 30.0


@dataclass(frozen=True)
class Host:
    """A running host; `changed` is whether it had to be created or started.

    system_state: the output of `systemctl is-system-running`, running or degraded.
    """

    name: str
    base: str
    address: str
    user: str
    private_key_file: Path
    known_hosts_file: Path
    system_state: str
    changed: bool

    @property
    def ssh_options(self) -> tuple[str, ...]:
        """Options by which ssh trusts only this group's hosts and offers only its key."""
        return (
            # Quoted, because ssh separates several files by spaces.
            *("-o", f'UserKnownHostsFile="{self.known_hosts_file}"'),
            *("-o", "StrictHostKeyChecking=yes"),
            *("-o", "IdentitiesOnly=yes"),
        )

    def ssh_command(self, *command: str) -> list[str]:
        """Return the arguments that run `command` on the host."""
        identity = ("-i", str(self.private_key_file))
        target = f"{self.user}@{self.address}"
        return ["ssh", *self.ssh_options, *identity, target, shlex.join(command)]


class Action(enum.Enum):
    """The action that makes a host available."""

    KEEP = "keep"
    START = "start"
    CREATE = "create"


def decide(state: ContainerState | None, record: HostRecord, digest: str, has_keys: bool) -> Action:
    """Choose the action for a host.

    state: the container in the engine. record: the host's last complete state. digest: of the
    required specification. has_keys: whether the group's key and known_hosts exist.
    """
    if state is None or state.spec != digest or state.container != record.container:
        return Action.CREATE
    if not state.running or state.address != record.address or not has_keys:
        return Action.START
    return Action.KEEP


class Group:
    """The hosts of one group and their state folder."""

    def __init__(
        self, group: str, state_folder: Path | None = None, engine: Engine | None = None
    ) -> None:
        check_name("group name", group)
        self.group = group
        self.state = StateFolder(state_folder or group_folder(group))
        self.engine = engine or Engine()

    def pending_action(self, spec: HostSpec) -> Action:
        """Return the action that `ensure` would take; change nothing."""
        if not self.engine.version():
            return Action.START if self.state.record(spec.name).container else Action.CREATE
        return self._decide(spec)

    def ensure(self, spec: HostSpec) -> Host:
        """Create or start the host unless it runs.

        Raises BaseUnavailableError when the base image cannot be built, LabError for other
        failures.
        """
        check_spec(spec)
        if base_named(spec.base).is_emulated:
            emulation.check_machine()
        with locked(self.engine.lock):
            self.engine.ensure()
            install_commands(self.engine.commands, "ssh-keygen", "ssh")
            action = self._decide(spec)
            if action is not Action.KEEP:
                self._act(action, spec)
            return self._host(spec, changed=action is not Action.KEEP)

    def remove(self, name: str | None = None, dry_run: bool = False) -> bool:
        """Remove one host, or the whole group with its folder.

        Returns whether something was removed, in a dry run whether something would be.
        """
        if name is not None:
            check_name("host name", name)
        with locked(self.engine.lock):
            has_record = self.state.has_record(name)
            if dry_run:
                has_files = name is None and bool(self.state.files())
                return has_record or any(self._owned(name)) or has_files
            if has_record:
                # The container and its volumes are in the engine.
                self.engine.ensure()
            removed = self._remove_owned(name)
            return (self.state.remove_host(name) if name else self.state.remove()) or removed

    def images(self) -> list[str]:
        """Return the base images of the group's hosts."""
        containers, _volumes = self._owned(None)
        if not containers:
            return []
        listed = self.engine.lines("inspect", "--format={{.Config.Image}}", *containers)
        return sorted(set(listed))

    def _decide(self, spec: HostSpec) -> Action:
        return decide(
            self._inspect(spec),
            self.state.record(spec.name),
            spec_digest(spec),
            self.state.has_keys(),
        )

    def _container(self, spec: HostSpec) -> str:
        return container_name(spec.name, self.group, self.state.path)

    def _inspect(self, spec: HostSpec) -> ContainerState | None:
        inspected = self.engine.docker("container", "inspect", self._container(spec), check=False)
        return parse_inspect(inspected.out) if inspected.rc == 0 else None

    def _labels(self, name: str | None) -> list[str]:
        labels = [f"{GROUP_LABEL}={self.group}", f"{STATE_LABEL}={self.state.path}"]
        return [*labels, f"{HOST_LABEL}={name}"] if name else labels

    def _owned(self, name: str | None) -> tuple[list[str], list[str]]:
        """Return the containers and the volumes of one host or of all."""
        if self.engine.version() is None:
            return [], []
        filters = [f"--filter=label={label}" for label in self._labels(name)]
        return (
            self.engine.lines("ps", "--all", "--quiet", *filters),
            self.engine.lines("volume", "ls", "--quiet", *filters),
        )

    def _remove_owned(self, name: str | None) -> bool:
        """Remove containers and volumes of one host or of all; return whether there were any."""
        containers, volumes = self._owned(name)
        if containers:
            self.engine.docker("rm", "--force", "--volumes", *containers)
        if volumes:
            self.engine.docker("volume", "rm", *volumes)
        return bool(containers or volumes)

    def _act(self, action: Action, spec: HostSpec) -> None:
        image = ensure_base(self.engine, base_named(spec.base))
        self.state.create(self.engine.commands, comment=f"slipway-{self.group}")
        try:
            if action is Action.CREATE or not self._start(spec):
                self._create(spec, image)
            self._set_up(spec)
        except LabError as error:
            if not base_named(spec.base).may_break:
                # The failed host is kept for inspection; the next run creates a new one.
                raise
            self._remove_owned(spec.name)
            self.state.remove_host(spec.name)
            raise BaseUnavailableError(f"a host of {spec.base} does not boot: {error}") from error

    def _start(self, spec: HostSpec) -> bool:
        # `docker start` fails when a mount's source no longer exists.
        return self.engine.docker("start", self._container(spec), check=False).rc == 0

    def _create(self, spec: HostSpec, image: str) -> None:
        # The record is written first, so that a removal also finds an incomplete host.
        self.state.write_record(spec.name, HostRecord())
        self._remove_owned(spec.name)
        labels = [f"--label={label}" for label in self._labels(spec.name)]
        container = self._container(spec)
        volumes = []
        for folder in ENGINE_FOLDERS:
            volume = f"{container}{folder.replace('/', '-')}"
            self.engine.docker("volume", "create", *labels, volume)
            volumes.append(f"--volume={volume}:{folder}")
        for mount in spec.mounts:
            mode = ":ro" if mount.read_only else ""
            volumes.append(f"--volume={mount.source}:{mount.target}{mode}")
        cgroup, command = cgroup_options()
        if base_named(spec.base).is_emulated:
            command = emulation.start(EMULATION_FOLDER, "/sbin/init")
        self.engine.docker(
            "run",
            "--detach",
            f"--name={container}",
            f"--hostname={spec.hostname or spec.name}",
            *labels,
            f"--label={SPEC_LABEL}={spec_digest(spec)}",
            *RUN_OPTIONS,
            *capability_options(bounding_set()),
            *cgroup,
            *volumes,
            image,
            *command,
        )

    def _set_up(self, spec: HostSpec) -> None:
        """Wait until a started host has booted, install key and CAs, and write its record."""
        system_state = self._wait_for_systemd(spec)
        self._install_key(spec)
        self._install_certificates(spec)
        state = self._inspect(spec)
        if state is None or not state.running:
            raise LabError(f"the container of host {spec.name} ended during setup")
        keys = self._exec(spec, "sh", "-c", "cat /etc/ssh/ssh_host_*_key.pub").splitlines()
        self.state.write_host_keys(spec.name, state.address, keys)
        if not wait_until(lambda: _answers_ssh(state.address), SSH_SECONDS * _slowness(spec)):
            raise LabError(
                f"host {spec.name} does not answer on port 22 of {state.address}."
                f" See `docker exec {self._container(spec)} systemctl status ssh`."
            )
        self.state.write_record(spec.name, HostRecord(state.container, state.address, system_state))

    def _wait_for_systemd(self, spec: HostSpec) -> str:
        """Wait until systemd has booted; return its system state."""
        system_state = ""
        limit = BOOT_SECONDS * _slowness(spec)

        def booted_or_ended() -> bool:
            nonlocal system_state
            answer = self.engine.docker(
                *("exec", self._container(spec)),
                *_enter(spec, "systemctl", "is-system-running", "--wait"),
                timeout=limit,
                check=False,
            )
            system_state = answer.out.strip()
            if system_state in BOOTED_STATES:
                return True
            state = self._inspect(spec)
            return state is None or not state.running

        if wait_until(booted_or_ended, limit) and system_state in BOOTED_STATES:
            return system_state
        console = self.engine.docker("logs", "--tail=12", self._container(spec), check=False)
        raise LabError(
            f"systemd on host {spec.name} did not boot: system state"
            f" {system_state or 'unknown'}; expected {' or '.join(BOOTED_STATES)}. The end of the"
            f" console: {console.out.strip() or 'no output'}"
        )

    def _install_key(self, spec: HostSpec) -> None:
        script = (
            f"install -d -m 0700 -o {USER} -g users /home/{USER}/.ssh && "
            f"install -m 0600 -o {USER} -g users /dev/stdin /home/{USER}/.ssh/authorized_keys"
        )
        self._exec(spec, "sh", "-c", script, stdin=self.state.public_key.read_bytes())

    def _install_certificates(self, spec: HostSpec) -> None:
        """Install the CA certificates that this machine trusts and the distribution lacks."""
        missing = controller_certificates(os.environ, self._exec(spec, "cat", str(BUNDLE)))
        if missing:
            script = (
                "tar -x -C /usr/local/share/ca-certificates && "
                # The command warns about the distribution's own certificates.
                "update-ca-certificates >/dev/null 2>&1"
            )
            self._exec(spec, "sh", "-c", script, stdin=certificates_tar(missing))

    def _exec(self, spec: HostSpec, *command: str, stdin: bytes = b"") -> str:
        return self.engine.docker(
            "exec", "--interactive", self._container(spec), *_enter(spec, *command), stdin=stdin
        ).out

    def _host(self, spec: HostSpec, changed: bool) -> Host:
        record = self.state.record(spec.name)
        return Host(
            name=spec.name,
            base=spec.base,
            address=record.address,
            user=USER,
            private_key_file=self.state.private_key,
            known_hosts_file=self.state.known_hosts,
            system_state=record.system_state,
            changed=changed,
        )


def _enter(spec: HostSpec, *command: str) -> tuple[str, ...]:
    """Return the command that runs `command` in the host's container."""
    return emulation.join(*command) if base_named(spec.base).is_emulated else command


def _slowness(spec: HostSpec) -> int:
    return emulation.SLOWNESS if base_named(spec.base).is_emulated else 1


def _answers_ssh(address: str) -> bool:
    try:
        with socket.create_connection((address, 22), timeout=2) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False
