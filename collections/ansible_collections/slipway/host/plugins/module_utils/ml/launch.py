# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Assembles the docker command that starts the container of an alias."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from . import accounts, containers, engine, gpus, labels, reserve, token
from .errors import MlError
from .settings import Alias, Layer

RUN = ("docker", "run")
CONFINED = ("--cap-drop=ALL", "--security-opt=no-new-privileges")
# Mounts and variables that every start adds to the image.
OWN_TARGETS = ("/etc/passwd", "/etc/group", "/run/slipway/", "/tmp/.X11-unix/")
OWN_VARIABLES = (
    *("USER", "LOGNAME", "JUPYTER_TOKEN_FILE", "SLIPWAY_PORT_"),
    *("DISPLAY", "WAYLAND_DISPLAY", "XAUTHORITY", "QT_X11_NO_MITSHM"),
)
# Servers listen on every address of the container; only this address of the host reaches them.
PUBLISHED_ON = reserve.LOCALHOST


@dataclass(frozen=True)
class Caller:
    """The person who starts a container; ``folder`` is the working folder."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: Path
    folder: Path


@dataclass(frozen=True)
class Start:
    """The options of one start.

    terminal: whether the container gets a terminal, because input and output are a person's.
    workdir: the folder in the container from the command line, else empty.
    root: whether to run as root, to install software; then none of the caller's folders is mounted.
    options: more options of docker run.
    """

    command: tuple[str, ...] = ()
    terminal: bool = False
    detach: bool = False
    workdir: str = ""
    root: bool = False
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Situation:
    """The state of the host that a start depends on.

    image: docker's description.  names: of all containers.
    """

    caller: Caller
    engine: engine.Engine
    image: Mapping[str, Any]
    names: Collection[str]
    gpus: gpus.Choice


@dataclass(frozen=True)
class Reservations:
    """The functions that reserve ports and names."""

    port: Callable[[int], bool] = reserve.take_port
    name: Callable[[str], bool] = reserve.take


@dataclass(frozen=True)
class Launch:
    """A container that is ready to start.

    options: of docker run.  program: the image and its command.  folders: to create first, as the
    caller.  urls: as of :class:`containers.Container`.  notes: sentences for the person.
    accounts: files with the caller's account, to write first.  gpus: the chosen GPUs.
    """

    name: str
    options: tuple[str, ...]
    program: tuple[str, ...]
    folders: tuple[Path, ...]
    accounts: accounts.Accounts | None
    urls: Mapping[str, str]
    notes: tuple[str, ...]
    gpus: gpus.Choice

    @property
    def words(self) -> tuple[str, ...]:
        """Return the docker command."""
        return (*RUN, *self.options, *self.program)

    @property
    def needs_token(self) -> bool:
        """Whether a page of the container asks for the caller's token."""
        return any(containers.TOKEN in url for url in self.urls.values())


@dataclass(frozen=True)
class Mounted:
    """A folder of the host that is mounted; ``source`` is absolute."""

    source: Path
    target: PurePosixPath
    read_only: bool = False


def current_caller() -> Caller:
    """Return the user of this process and its working folder."""
    uid, gid = os.getuid(), os.getgid()
    try:
        folder = Path.cwd()
    except FileNotFoundError:
        folder = Path("/")
    return Caller(
        name=engine.user_name(uid),
        uid=uid,
        gid=gid,
        groups=tuple(sorted(set(os.getgroups()) - {gid})),
        home=Path("~").expanduser(),
        folder=folder,
    )


def assemble_launch(
    alias: Alias,
    wanted: Layer,
    start: Start,
    situation: Situation,
    take: Reservations | None = None,
) -> Launch:
    """Return a start with the merged settings WANTED.  Raise MlError for impossible settings."""
    take = take or Reservations()
    who = situation.caller
    name = reserve.next_name(container_name(who.name, alias.name), situation.names, take.name)
    mounted, missing = resolve_mounts(() if start.root else wanted.get("mounts", ()), who)
    folder, folder_note = working_folder(start.workdir, wanted.get("workdir", ""), mounted, who)
    ports, port_notes = reserve_ports(alias, wanted, take.port)
    urls = port_urls(alias, ports)
    as_root = start.root or situation.engine.rootless
    # root has an account in the image already.
    named = None if as_root else _caller_accounts(situation)
    options = (
        *("--rm", "--init", "--pull=never"),
        *_attachment(start),
        *(f"--name={name}", f"--hostname={alias.name.replace('_', '-')}"),
        *_labels(alias, who, situation.gpus.ids, urls),
        *_identity(who, as_root),
        *([f"--network={alias.network}"] if alias.network != "bridge" else ()),
        *_publication(alias, ports),
        *(mount_option(mount) for mount in [*mounted, *_account_mounts(named)]),
        *_token_options(urls),
        *([f"--workdir={folder}"] if folder else ()),
        *gpus.gpu_options(situation.gpus.ids, situation.engine.cdi),
        *_limits(wanted),
        *_environment(who, ports, wanted.get("environment", {})),
        *(() if start.root else CONFINED),
        *wanted.get("options", ()),
        *start.options,
    )
    return Launch(
        name=name,
        options=options,
        program=(wanted["image"], *(start.command or alias.command)),
        folders=tuple(missing),
        accounts=named,
        urls=urls,
        notes=tuple(filter(None, (folder_note, *port_notes))),
        gpus=situation.gpus,
    )


def container_name(user: str, alias: str) -> str:
    """Return the name of a user's first container of an alias, as docker accepts it."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", f"{user}-{alias}").lstrip("_.-")


def resolve_mounts(
    entries: Sequence[Mapping[str, Any]], who: Caller
) -> tuple[list[Mounted], list[Path]]:
    """Return the mounts, and the caller's folders to create for them.

    A missing folder below the caller's home is created by the caller, because docker would create
    it as root.  Raise MlError for any other missing folder that is not optional.
    """
    mounted, missing = [], []
    for entry in entries:
        source = Path(re.sub(r"^~(?=/|$)", str(who.home), str(entry["source"])))
        if not source.exists():
            if who.home in source.parents:
                missing.append(source)
            elif entry.get("optional"):
                continue
            else:
                raise MlError(
                    f"folder {source} does not exist; it is the source of the mount at "
                    f"{entry['target']}"
                )
        target = PurePosixPath(entry["target"])
        mounted.append(Mounted(source, target, bool(entry.get("read_only"))))
    return mounted, missing


def working_folder(
    asked: str, usual: str, mounted: Sequence[Mounted], who: Caller
) -> tuple[str, str]:
    """Return the folder in the container to start in, empty for the image's own, and a note.

    The folder is ASKED, else the caller's working folder if it is mounted, else USUAL.  A folder
    that does not exist is replaced by its nearest parent, because docker would create it as root.
    """
    if asked:
        return asked, ""
    here = _path_inside(who.folder, mounted)
    if here:
        return str(here), ""
    target = PurePosixPath(usual)
    for mount in mounted:
        if usual and (target == mount.target or mount.target in target.parents):
            there = mount.source / target.relative_to(mount.target)
            while not there.is_dir() and there != mount.source:
                there, target = there.parent, target.parent
    if str(target) != usual and usual:
        return str(target), f"folder {usual} does not exist yet; the container starts in {target}"
    return usual, ""


def _path_inside(folder: Path, mounted: Sequence[Mounted]) -> PurePosixPath | None:
    """Return the path of a host's folder in the container, None if it is not mounted."""
    deepest: tuple[int, PurePosixPath] | None = None
    for mount in mounted:
        source = mount.source.resolve()
        if folder == source or source in folder.parents:
            candidate = len(source.parts), mount.target / folder.relative_to(source)
            deepest = max(deepest or candidate, candidate)
    return deepest[1] if deepest else None


def mount_option(mount: Mounted) -> str:
    """Return the option of docker run; docker reads its fields as CSV."""
    fields = ["type=bind", f"source={mount.source}", f"target={mount.target}"]
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(fields + ["readonly"] * mount.read_only)
    return f"--mount={line.getvalue()}"


def reserve_ports(
    alias: Alias, wanted: Layer, take: Callable[[int], bool]
) -> tuple[dict[str, int], list[str]]:
    """Return the host's port of each published port, and a note for each that differs.

    Without a network nothing is published; on the host's network there is no choice.
    """
    if alias.network == "none":
        return {}, []
    if alias.network == "host":
        return {name: alias.ports[name].inside for name in _published(alias, wanted)}, []
    ports, notes = {}, []
    for name in _published(alias, wanted):
        usual = wanted["ports"][name]
        ports[name] = reserve.next_port(usual, take)
        if ports[name] != usual:
            notes.append(f"port {usual} is in use; {name} is at port {ports[name]}")
    return ports, notes


def _published(alias: Alias, wanted: Layer) -> list[str]:
    """Return the names of the ports to publish that the image has."""
    return [name for name in wanted.get("ports", {}) if name in alias.ports]


def port_urls(alias: Alias, ports: Mapping[str, int]) -> dict[str, str]:
    """Return the address of each published port, a URL for a port with a page."""
    urls = {}
    for name, port in ports.items():
        path = alias.ports[name].path
        address = f"{PUBLISHED_ON}:{port}"
        urls[name] = f"http://{address}{path}" if path else address
    return urls


def _attachment(start: Start) -> list[str]:
    if start.detach:
        # A shell without a terminal ends at once; with a terminal it waits for docker attach.
        return ["--detach"] if start.command else ["--detach", "--interactive", "--tty"]
    return ["--interactive", "--tty"] if start.terminal else ["--interactive"]


def _labels(alias: Alias, who: Caller, ids: Sequence[str], urls: Mapping[str, str]) -> list[str]:
    """Return the labels that ml list, url and stop read."""
    values = {
        labels.ALIAS: alias.name,
        labels.USER: who.name,
        labels.UID: str(who.uid),
        labels.GPUS: ",".join(ids),
        labels.URLS: json.dumps(urls) if urls else "",
    }
    return [f"--label={name}={value}" for name, value in values.items() if value]


def _identity(who: Caller, as_root: bool) -> list[str]:
    """Return the user of the container: the caller, with the groups of shared folders.

    A rootless engine runs as the caller, who is root in its containers.
    """
    if as_root:
        return ["--user=0:0"]
    return [f"--user={who.uid}:{who.gid}", *(f"--group-add={group}" for group in who.groups)]


def _caller_accounts(situation: Situation) -> accounts.Accounts:
    """Return the caller's account files for the image."""
    variables = dict(entry.split("=", 1) for entry in situation.image["Config"].get("Env") or ())
    who = situation.caller
    return accounts.accounts_for(
        situation.image["Id"], variables.get("HOME", ""), who.name, who.uid, who.gid, who.groups
    )


def _account_mounts(named: accounts.Accounts | None) -> list[Mounted]:
    if named is None:
        return []
    return [
        Mounted(named.folder / name, PurePosixPath("/etc") / name, read_only=True)
        for name in accounts.FILES
    ]


def _publication(alias: Alias, ports: Mapping[str, int]) -> list[str]:
    if alias.network != "bridge":
        return []
    return [
        f"--publish={PUBLISHED_ON}:{port}:{alias.ports[name].inside}"
        for name, port in ports.items()
    ]


def _token_options(urls: Mapping[str, str]) -> list[str]:
    if not any(containers.TOKEN in url for url in urls.values()):
        return []
    mount = Mounted(token.token_file(), PurePosixPath(token.INSIDE), read_only=True)
    return [mount_option(mount), f"--env=JUPYTER_TOKEN_FILE={token.INSIDE}"]


def _limits(wanted: Layer) -> list[str]:
    names = {"shm_size": "--shm-size", "memory": "--memory", "cpus": "--cpus"}
    return [f"{option}={wanted[key]}" for key, option in names.items() if wanted.get(key)]


def _environment(who: Caller, ports: Mapping[str, int], further: Mapping[str, str]) -> list[str]:
    """Return the environment variables: the caller's name, the host's ports, and the settings."""
    # Many programs read the name of the user here.
    variables = {"USER": who.name, "LOGNAME": who.name}
    for name, port in ports.items():
        variables["SLIPWAY_PORT_" + re.sub(r"\W", "_", name).upper()] = str(port)
    return [f"--env={name}={value}" for name, value in {**variables, **further}.items()]
