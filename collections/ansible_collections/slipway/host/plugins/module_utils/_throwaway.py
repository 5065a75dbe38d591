# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Throwaway hosts: containers that run systemd and are reached over real SSH.

The demo, molecule and pytest all get their hosts here. A host belongs to a group; a group's key,
known_hosts and records lie in its state folder, and everything the engine holds for it (containers
and volumes) carries labels that name the group and that folder, so that removing a group finds all
of it and nothing else.
"""

from __future__ import annotations

import enum
import hashlib
import json
import os
import re
import shlex
import socket
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils._throwaway_bases import (
    DEFAULT_BASE,
    USER,
    base_named,
    content_key,
    ensure_base,
)
from ansible_collections.slipway.host.plugins.module_utils._throwaway_engine import (
    BaseUnavailableError,
    Engine,
    ThrowawayError,
    install_commands,
    locked,
    wait_until,
)
from ansible_collections.slipway.host.plugins.module_utils._throwaway_state import (
    Record,
    StateFolder,
)
from ansible_collections.slipway.host.plugins.module_utils._throwaway_trust import (
    BUNDLE,
    certificates_tar,
    controller_certificates,
)

GROUP_LABEL = "slipway.group"
STATE_LABEL = "slipway.state"
HOST_LABEL = "slipway.host"
SPEC_LABEL = "slipway.spec"

UP_STATES = ("running", "degraded")
BOOT_SECONDS = 90.0
SSH_SECONDS = 30.0

# Names end up in file, container and host names.
NAME_PATTERN = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")

# An engine needs real disk under these; a container's own file system is an overlay already.
ENGINE_FOLDERS = ("/var/lib/docker", "/var/lib/containerd")

# Options by which a container may run systemd and an engine, also on machines that refuse
# --privileged. Without systempaths=unconfined the inner engine cannot set up its bridge network.
CONTAINER_OPTIONS = (
    "--security-opt=seccomp=unconfined",
    "--security-opt=apparmor=unconfined",
    "--security-opt=systempaths=unconfined",
    "--tmpfs=/run",
    "--tmpfs=/run/lock",
    "--env=container=docker",
    "--stop-signal=SIGRTMIN+3",
    "--tty",
)

# By bit number, as in linux/capability.h. The newest three are left out: engines of 2020 do not
# know them, and SYS_ADMIN comprises them.
CAPABILITIES = (
    *("CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID"),
    *("SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW"),
    *("IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT"),
    *("SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD"),
    *("LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG"),
    *("WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ"),
)


@dataclass(frozen=True)
class Mount:
    """A folder of this machine that the host sees at `target`."""

    source: str
    target: str
    read_only: bool = False


@dataclass(frozen=True)
class HostSpec:
    """What a host of a group is to be.

    hostname: what the host calls itself; its name when empty.
    """

    name: str
    base: str = DEFAULT_BASE
    hostname: str = ""
    mounts: tuple[Mount, ...] = ()


@dataclass(frozen=True)
class Host:
    """A host that is up; `changed` says whether it was not before.

    system_state is systemd's word for it: running, or degraded when a unit failed.
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
        """Options by which ssh trusts exactly this group's hosts and offers only its key."""
        return (
            # A space would end the first of several files.
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
    """What it takes to have the host."""

    KEEP = "keep"
    START = "start"
    MAKE = "make"


@dataclass(frozen=True)
class Found:
    """What the engine holds under a host's name."""

    container: str
    running: bool
    address: str
    spec: str


def check_spec(spec: HostSpec) -> None:
    """Raise ThrowawayError for a spec that no host can be made from."""
    base_named(spec.base)
    check_name("name", spec.name)
    check_name("hostname", spec.hostname or spec.name)
    for mount in spec.mounts:
        for path in (mount.source, mount.target):
            if not path.startswith("/") or ":" in path:
                raise ThrowawayError(
                    f"a mount's path has to be absolute and without a colon, and is {path!r}"
                )
        if not Path(mount.source).exists():
            raise ThrowawayError(f"the mount's source {mount.source} does not exist")


def check_name(what: str, name: str) -> None:
    """Raise ThrowawayError for a name that cannot be part of a host name."""
    if not NAME_PATTERN.fullmatch(name):
        raise ThrowawayError(
            f"the {what} is {name!r}; it has to be 1 to 40 small letters, digits and hyphens, "
            "with no hyphen at an end"
        )


def spec_digest(spec: HostSpec) -> str:
    """Return a digest that changes with everything a container is made from."""
    recipe = asdict(spec) | {
        "base_key": content_key(base_named(spec.base)),
        "options": [*CONTAINER_OPTIONS, *CAPABILITIES, *ENGINE_FOLDERS],
    }
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]


def container_name(name: str, group: str, state_dir: Path) -> str:
    """Return the host's name in the engine, which two checkouts of the project may share."""
    owner = hashlib.sha256(str(state_dir).encode()).hexdigest()[:6]
    return f"slipway-{group}-{name}-{owner}"


def capability_options(bounding_set: int) -> list[str]:
    """Return the run options that give a host the capabilities of this machine's bounding set.

    One by one, because "all" is refused where the engine itself lacks one: old engines ask for
    more than there is, new ones do not let the missing be taken off. SYS_RESOURCE is the one that
    tends to be missing; hosts do without it everywhere, to be the same everywhere.
    """
    return [
        f"--cap-add={name}"
        for bit, name in enumerate(CAPABILITIES)
        if bounding_set >> bit & 1 and name != "SYS_RESOURCE"
    ]


def bounding_set() -> int:
    """Return this process's capability bounding set (proc_pid_status(5), CapBnd)."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return int(status.partition("CapBnd:")[2].split()[0], base=16)


def cgroup_options(root: Path = Path("/sys/fs/cgroup")) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the run options and the command by which systemd gets a cgroup v2 tree to write to.

    Raises ThrowawayError on a machine that mounts none.
    """
    if (root / "cgroup.controllers").exists():
        # The engine mounts the container's own part of the tree, but read-only.
        writable = "mount -o remount,bind,rw /sys/fs/cgroup && exec /sbin/init"
        return ("--cgroupns=private",), ("/bin/sh", "-c", writable)
    if (root / "unified/cgroup.procs").exists():
        # Beside cgroup v1 the engine mounts no v2 tree. In the whole one, systemd finds its own
        # part by /proc/self/cgroup, which is why the namespace has to be the machine's.
        tree = f"--volume={root}/unified:/sys/fs/cgroup:rw"
        return ("--cgroupns=host", tree), ("/sbin/init",)
    raise ThrowawayError(
        f"systemd in a container needs cgroup v2, and this machine mounts it neither at {root} nor "
        f"at {root}/unified: mkdir {root}/unified && mount -t cgroup2 none {root}/unified"
    )


def decide(found: Found | None, record: Record, digest: str, has_keys: bool) -> Action:
    """Choose what to do for a host.

    found: what the engine holds; record: what was written when the host was last complete;
    digest: of the spec wanted; has_keys: whether the group's key and known_hosts are there.
    """
    if found is None or found.spec != digest or found.container != record.container:
        return Action.MAKE
    if not found.running or found.address != record.address or not has_keys:
        return Action.START
    return Action.KEEP


def parse_inspect(text: str) -> Found:
    """Read what `docker container inspect` says of one container."""
    container: dict[str, Any] = json.loads(text)[0]
    networks = container["NetworkSettings"]["Networks"]
    return Found(
        container=container["Id"],
        running=container["State"]["Running"],
        address=next((net["IPAddress"] for net in networks.values()), ""),
        spec=container["Config"]["Labels"].get(SPEC_LABEL, ""),
    )


class Group:
    """The hosts of one group, and the folder that holds what they have in common."""

    def __init__(self, group: str, state_dir: Path, engine: Engine | None = None) -> None:
        check_name("group", group)
        self.group = group
        self.state = StateFolder(state_dir)
        self.engine = engine or Engine()

    def plan(self, spec: HostSpec) -> Action:
        """Tell what `ensure` would do, changing nothing."""
        if not self.engine.version():
            return Action.START if self.state.record(spec.name).container else Action.MAKE
        return self._decide(spec)

    def ensure(self, spec: HostSpec) -> Host:
        """See to it that the host is up and can be reached.

        Raises BaseUnavailableError when its base cannot be had, ThrowawayError for the rest.
        """
        check_spec(spec)
        with locked(self.engine.lock):
            self.engine.ensure()
            install_commands(self.engine.commands, "ssh-keygen", "ssh")
            action = self._decide(spec)
            if action is not Action.KEEP:
                self._act(action, spec)
            return self._host(spec, changed=action is not Action.KEEP)

    def remove(self, name: str | None = None, dry_run: bool = False) -> bool:
        """Remove one host, or all of the group with its folder; return whether there was one."""
        if name is not None:
            check_name("name", name)
        with locked(self.engine.lock):
            begun = self.state.has_record(name)
            if dry_run:
                return begun or any(self._held(name)) or (not name and bool(self.state.files()))
            if begun:
                # What is to be removed is in the engine's keeping.
                self.engine.ensure()
            held = self._discard(name)
            return (self.state.forget(name) if name else self.state.remove()) or held

    def _decide(self, spec: HostSpec) -> Action:
        return decide(
            self._found(spec),
            self.state.record(spec.name),
            spec_digest(spec),
            self.state.has_keys(),
        )

    def _container(self, spec: HostSpec) -> str:
        return container_name(spec.name, self.group, self.state.path)

    def _found(self, spec: HostSpec) -> Found | None:
        seen = self.engine.docker("container", "inspect", self._container(spec), check=False)
        return parse_inspect(seen.out) if seen.rc == 0 else None

    def _labels(self, name: str | None) -> list[str]:
        labels = [f"{GROUP_LABEL}={self.group}", f"{STATE_LABEL}={self.state.path}"]
        return [*labels, f"{HOST_LABEL}={name}"] if name else labels

    def _held(self, name: str | None) -> tuple[list[str], list[str]]:
        if self.engine.version() is None:
            return [], []
        filters = [f"--filter=label={label}" for label in self._labels(name)]
        return (
            self.engine.lines("ps", "--all", "--quiet", *filters),
            self.engine.lines("volume", "ls", "--quiet", *filters),
        )

    def _act(self, action: Action, spec: HostSpec) -> None:
        image = ensure_base(self.engine, base_named(spec.base))
        self.state.make(self.engine.commands, comment=f"slipway-{self.group}")
        try:
            if action is Action.MAKE or not self._start(spec):
                self._make(spec, image)
            self._prepare(spec)
        except ThrowawayError as error:
            if not base_named(spec.base).may_break:
                # The host is left as it is, to be looked at; the next run makes it anew.
                raise
            self._discard(spec.name)
            self.state.forget(spec.name)
            raise BaseUnavailableError(f"a host of {spec.base} does not boot: {error}") from error

    def _start(self, spec: HostSpec) -> bool:
        # It fails when something that the host was made with is gone, such as a mount's source.
        return self.engine.docker("start", self._container(spec), check=False).rc == 0

    def _make(self, spec: HostSpec, image: str) -> None:
        # Written first, so that what a half-made host leaves in the engine will be looked for.
        self.state.write_record(spec.name, Record())
        self._discard(spec.name)
        self._run(spec, image)

    def _discard(self, name: str | None) -> bool:
        """Remove containers and volumes of one host or all; return whether there were any."""
        containers, volumes = self._held(name)
        if containers:
            self.engine.docker("rm", "--force", "--volumes", *containers)
        if volumes:
            self.engine.docker("volume", "rm", *volumes)
        return bool(containers or volumes)

    def _run(self, spec: HostSpec, image: str) -> None:
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
        self.engine.docker(
            "run",
            "--detach",
            f"--name={container}",
            f"--hostname={spec.hostname or spec.name}",
            *labels,
            f"--label={SPEC_LABEL}={spec_digest(spec)}",
            *CONTAINER_OPTIONS,
            *capability_options(bounding_set()),
            *cgroup,
            *volumes,
            image,
            *command,
        )

    def _prepare(self, spec: HostSpec) -> None:
        """Wait for a started host, let its user in, and write down how to reach it."""
        system_state = self._booted(spec)
        self._authorize(spec)
        self._trust(spec)
        found = self._found(spec)
        if found is None or not found.running:
            raise ThrowawayError(f"the host {spec.name} ended while it was set up")
        keys = self._exec(spec, "sh", "-c", "cat /etc/ssh/ssh_host_*_key.pub").splitlines()
        self.state.learn_keys(spec.name, found.address, keys)
        if not wait_until(lambda: _speaks_ssh(found.address), SSH_SECONDS):
            raise ThrowawayError(
                f"the host {spec.name} does not answer on port 22 of {found.address}; see "
                f"`docker exec {self._container(spec)} systemctl status ssh`"
            )
        self.state.write_record(spec.name, Record(found.container, found.address, system_state))

    def _booted(self, spec: HostSpec) -> str:
        """Wait until systemd has come up, and return its word for how."""
        state = ""

        def came_up_or_ended() -> bool:
            nonlocal state
            asked = self.engine.docker(
                *("exec", self._container(spec), "systemctl", "is-system-running", "--wait"),
                timeout=BOOT_SECONDS,
                check=False,
            )
            state = asked.out.strip()
            if state in UP_STATES:
                return True
            found = self._found(spec)
            return found is None or not found.running

        if wait_until(came_up_or_ended, BOOT_SECONDS) and state in UP_STATES:
            return state
        console = self.engine.docker("logs", "--tail=12", self._container(spec), check=False)
        raise ThrowawayError(
            f"systemd on the host {spec.name} did not come up (its state: {state or 'no answer'}). "
            f"The end of its console: {console.out.strip() or 'nothing'}"
        )

    def _authorize(self, spec: HostSpec) -> None:
        script = (
            f"install -d -m 0700 -o {USER} -g users /home/{USER}/.ssh && "
            f"install -m 0600 -o {USER} -g users /dev/stdin /home/{USER}/.ssh/authorized_keys"
        )
        public = self.state.public_key.read_bytes()
        self._exec(spec, "sh", "-c", script, stdin=public)

    def _trust(self, spec: HostSpec) -> None:
        """Let the host trust what this machine trusts beyond its distribution's certificates."""
        own = controller_certificates(os.environ, self._exec(spec, "cat", str(BUNDLE)))
        if own:
            script = (
                "tar -x -C /usr/local/share/ca-certificates && "
                # It warns of things in the distribution's own certificates.
                "update-ca-certificates >/dev/null 2>&1"
            )
            self._exec(spec, "sh", "-c", script, stdin=certificates_tar(own))

    def _exec(self, spec: HostSpec, *command: str, stdin: bytes = b"") -> str:
        return self.engine.docker(
            "exec", "--interactive", self._container(spec), *command, stdin=stdin
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


def _speaks_ssh(address: str) -> bool:
    try:
        with socket.create_connection((address, 22), timeout=2) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False
