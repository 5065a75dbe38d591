# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Assembles the docker command that starts the container of an alias."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from . import accounts, containers, engine, gpus, labels, reserve, token
from .caller import Caller, expand_home
from .errors import MlError
from .mounts import Mounted, missing_in_mounts, mount_option, mount_packages
from .settings import Alias, Layer

RUN = ("docker", "run")
CONFINED = ("--cap-drop=ALL", "--security-opt=no-new-privileges")
# Mounts and variables that every start adds to the image.
OWN_TARGETS = ("/etc/passwd", "/etc/group", "/run/slipway/", "/tmp/.X11-unix/")
OWN_VARIABLES = (
    *("USER", "LOGNAME", "JUPYTER_TOKEN_FILE", "SLIPWAY_PORT_"),
    *("DISPLAY", "WAYLAND_DISPLAY", "XAUTHORITY", "QT_X11_NO_MITSHM"),
)
# The variable of an image with the folder for the packages that a user installs with pip.
PACKAGES = "SLIPWAY_PACKAGES"
# Servers listen on every address of the container; only this address of the host reaches them.
PUBLISHED_ON = reserve.LOCALHOST


class Start(NamedTuple):
    """The options of one start.

    terminal: whether the container gets a terminal, because input and output are a person's.
    workdir: the folder in the container from the command line, else empty.
    root: whether to run as root, to install software; then none of the caller's folders is mounted.
    options: additional options of docker run.
    """

    command: tuple[str, ...] = ()
    terminal: bool = False
    detach: bool = False
    workdir: str = ""
    root: bool = False
    options: tuple[str, ...] = ()


class Image(NamedTuple):
    """The image to start: its ID, and the folders that it sets, or empty.

    packages: the folder for the packages that a user installs with pip.
    """

    id: str
    home: str
    packages: str = ""


class Situation(NamedTuple):
    """The state of the host that a start depends on; ``names`` are those of all containers."""

    caller: Caller
    engine: engine.Engine
    image: Image
    names: Collection[str]
    gpus: gpus.Choice


class Reservations(NamedTuple):
    """The functions that reserve ports and names."""

    port: Callable[[int], bool] = reserve.reserve_port
    name: Callable[[str], bool] = reserve.reserve


class Launch(NamedTuple):
    """A container that is ready to start.

    options: of docker run.  program: the image and its command.  folders, files: to create first,
    as the caller.  urls: as of :class:`containers.Container`.  notes: sentences for the person.
    accounts: files with the caller's account, to write first.  gpus: the chosen GPUs.
    """

    name: str
    options: tuple[str, ...]
    program: tuple[str, ...]
    folders: tuple[Path, ...]
    files: tuple[Path, ...]
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


def assemble_launch(
    alias: Alias,
    merged: Layer,
    start: Start,
    situation: Situation,
    reservations: Reservations | None = None,
) -> Launch:
    """Return a start with the MERGED settings.  Raise MlError for impossible settings."""
    reservations, caller = reservations or Reservations(), situation.caller
    name = reserve.reserve_next_name(
        container_name(caller.name, alias.name), situation.names, reservations.name
    )
    mounts, missing = resolve_mounts(() if start.root else merged.get("mounts", ()), caller)
    mount_packages(alias.name, "" if start.root else situation.image.packages, mounts, missing)
    folder, folder_note = working_folder(start.workdir, merged.get("workdir", ""), mounts, caller)
    folders, files = missing_in_mounts(folder, mounts)
    ports, port_notes = reserve_ports(alias, merged, reservations.port)
    urls = port_urls(alias, ports)
    as_root = start.root or situation.engine.rootless
    account = None if as_root else _caller_account(situation)
    options = (
        *_lifetime(start),
        *("--init", "--pull=never"),
        *_attachment(start),
        *(f"--name={name}", f"--hostname={host_name(alias.name)}"),
        *_labels(alias, caller, situation.gpus.ids, urls),
        *_identity(caller, as_root),
        *([f"--network={alias.network}"] if alias.network != "bridge" else ()),
        *_publication(alias, ports),
        *(mount_option(mount) for mount in [*mounts, *_account_mounts(account)]),
        *_token_options(urls),
        *([f"--workdir={folder}"] if folder else ()),
        *gpus.gpu_options(situation.gpus.ids, situation.engine.cdi),
        *_limits(merged),
        *_environment(caller, ports, merged.get("environment", {})),
        *(() if start.root else CONFINED),
        *merged.get("options", ()),
        *start.options,
    )
    return Launch(
        name=name,
        options=options,
        program=(merged["image"], *(start.command or alias.command)),
        folders=(*missing, *folders),
        files=tuple(files),
        accounts=account,
        urls=urls,
        notes=tuple(filter(None, (folder_note, *port_notes))),
        gpus=situation.gpus,
    )


def container_name(user: str, alias: str) -> str:
    """Return the name of a user's first container of an alias, as docker accepts it."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", f"{user}-{alias}").lstrip("_.-")


def host_name(alias: str) -> str:
    """Return the host name in the container, which the kernel limits to 64 characters."""
    return alias.replace("_", "-")[:63]


def resolve_mounts(
    entries: Sequence[Mapping[str, Any]], caller: Caller
) -> tuple[list[Mounted], list[Path]]:
    """Return the mounts, and the caller's folders to create for them.

    A missing folder below the caller's home is created by the caller, because docker would create
    it as root.  Raise MlError for any other missing folder that is not optional.
    """
    mounts, missing = [], []
    for entry in entries:
        source = expand_home(str(entry["source"]))
        if not os.path.exists(source):
            if caller.home in source.parents:
                missing.append(source)
            elif entry.get("optional"):
                continue
            else:
                raise MlError(
                    f"folder {source} does not exist, or you may not open it; it is the source of "
                    f"the mount at {entry['target']}"
                )
        target = PurePosixPath(entry["target"])
        mounts.append(Mounted(source, target, bool(entry.get("read_only"))))
    return mounts, missing


def working_folder(
    requested: str, default: str, mounts: Sequence[Mounted], caller: Caller
) -> tuple[str, str]:
    """Return the folder in the container to start in, empty for the image's own, and a note.

    The folder is REQUESTED, else the caller's working folder if it is mounted, else DEFAULT.  A
    folder that does not exist is replaced by its nearest parent, because docker would create it as
    root.
    """
    if requested:
        return requested, ""
    current = _container_path(caller.folder, mounts)
    if current:
        return str(current), ""
    target = PurePosixPath(default)
    for mount in mounts:
        if default and (target == mount.target or mount.target in target.parents):
            source = mount.source / target.relative_to(mount.target)
            while not os.path.isdir(source) and source != mount.source:
                source, target = source.parent, target.parent
    if default and str(target) != default:
        return str(target), f"folder {default} does not exist yet; the container starts in {target}"
    return default, ""


def _container_path(folder: Path, mounts: Sequence[Mounted]) -> PurePosixPath | None:
    """Return the path of a host's folder in the container, None if it is not mounted."""
    deepest: tuple[int, PurePosixPath] | None = None
    for mount in mounts:
        source = Path(os.path.realpath(mount.source))
        if folder == source or source in folder.parents:
            candidate = len(source.parts), mount.target / folder.relative_to(source)
            deepest = max(deepest or candidate, candidate)
    return deepest[1] if deepest else None


def reserve_ports(
    alias: Alias, merged: Layer, reserve_port: Callable[[int], bool]
) -> tuple[dict[str, int], list[str]]:
    """Return the host's port of each published port, and a note for each that differs.

    Without a network nothing is published; on the host's network the port of the image is used.
    """
    if alias.network == "none":
        return {}, []
    if alias.network == "host":
        return {name: alias.ports[name].inside for name in _published(alias, merged)}, []
    ports, notes = {}, []
    for name in _published(alias, merged):
        default = merged["ports"][name]
        ports[name] = reserve.reserve_next_port(default, reserve_port)
        if ports[name] != default:
            notes.append(f"port {default} is in use; {name} is at port {ports[name]}")
    return ports, notes


def _published(alias: Alias, merged: Layer) -> list[str]:
    """Return the names of the ports to publish that the image has."""
    return [name for name in merged.get("ports", {}) if name in alias.ports]


def port_urls(alias: Alias, ports: Mapping[str, int]) -> dict[str, str]:
    """Return the address of each published port, a URL for a port with a page."""
    urls = {}
    for name, port in ports.items():
        path = alias.ports[name].path
        address = f"{PUBLISHED_ON}:{port}"
        urls[name] = f"http://{address}{path}" if path else address
    return urls


def _lifetime(start: Start) -> list[str]:
    """Return the option that removes a container at its end; a detached one keeps its logs."""
    return [] if start.detach else ["--rm"]


def _attachment(start: Start) -> list[str]:
    if start.detach:
        # A shell without a terminal ends at once; with a terminal it waits for docker attach.
        return ["--detach"] if start.command else ["--detach", "--interactive", "--tty"]
    return ["--interactive", "--tty"] if start.terminal else ["--interactive"]


def _labels(alias: Alias, caller: Caller, ids: Sequence[str], urls: Mapping[str, str]) -> list[str]:
    """Return the labels that ml list, url and stop read."""
    values = {
        labels.ALIAS: alias.name,
        labels.USER: caller.name,
        labels.UID: str(caller.uid),
        labels.GPUS: ",".join(ids),
        labels.URLS: json.dumps(urls) if urls else "",
    }
    return [f"--label={name}={value}" for name, value in values.items() if value]


def _identity(caller: Caller, as_root: bool) -> list[str]:
    """Return the user of the container: the caller, with the groups of shared folders.

    A rootless engine runs as the caller, who is root in its containers.
    """
    if as_root:
        return ["--user=0:0"]
    return [
        f"--user={caller.uid}:{caller.gid}",
        *(f"--group-add={group}" for group in caller.groups),
    ]


def _caller_account(situation: Situation) -> accounts.Accounts:
    """Return the caller's account files for the image; root has an account there already."""
    image = situation.image
    return accounts.caller_accounts(image.id, image.home, situation.caller)


def _account_mounts(account: accounts.Accounts | None) -> list[Mounted]:
    if account is None:
        return []
    return [
        Mounted(account.folder / name, PurePosixPath("/etc") / name, read_only=True)
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


def _limits(merged: Layer) -> list[str]:
    names = {"shm_size": "--shm-size", "memory": "--memory", "cpus": "--cpus"}
    return [f"{option}={merged[key]}" for key, option in names.items() if merged.get(key)]


def _environment(
    caller: Caller, ports: Mapping[str, int], settings: Mapping[str, str]
) -> list[str]:
    """Return the environment variables: the caller's name, the host's ports, and the settings."""
    # Many programs read the name of the user here.
    variables = {"USER": caller.name, "LOGNAME": caller.name}
    for name, port in ports.items():
        variables["SLIPWAY_PORT_" + re.sub(r"\W", "_", name).upper()] = str(port)
    return [f"--env={name}={value}" for name, value in {**variables, **settings}.items()]
