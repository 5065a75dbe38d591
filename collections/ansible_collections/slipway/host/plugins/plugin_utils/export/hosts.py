# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The hosts of an export: how they are reached, which GPUs they have, and which are left out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.state.reading import escape_control
from ansible_collections.slipway.host.plugins.plugin_utils.export import ssh_arguments

SSH = "ssh"
UNREACHABLE, FAULT = "unreachable", "fault"
# Names, addresses and users that no tool reads as a pattern, an option or several words.
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]*")
USER = re.compile(ssh_arguments.USER)
# Paths with these characters have another meaning in a configuration of ssh.
REFUSED_IN_PATHS = re.compile(r'["\\%$]')
RENAME = "Rename the host, or leave it out with --limit."


class ExportError(Exception):
    """An export is not possible. ``sentences``: the reasons, each with what to do."""

    def __init__(self, *sentences: str) -> None:
        super().__init__("\n".join(sentences))
        self.sentences = sentences


@dataclass(frozen=True)
class Gpus:
    """The GPUs of a host at its last run: models, and the version of the driver."""

    models: tuple[str, ...] = ()
    driver: str = ""
    faulty: bool = False

    @property
    def text(self) -> str:
        """Return the GPUs as a line, such as ``2 x NVIDIA L4, driver 580.95.05``."""
        counts = Counter(self.models)
        models = ", ".join(f"{number} x {model}" for model, number in counts.items())
        driver = f", driver {self.driver}" if self.driver else ""
        fault = ", a GPU has a fault" if self.faulty else ""
        return f"{models or 'no GPU'}{driver}{fault}"


@dataclass(frozen=True)
class Host:
    """A host that tools reach by SSH; an empty value is the default of ssh.

    ``options``: further options of ssh by name. ``gpus`` is None if no report has them.
    ``unreachable``: when a run last found the host unreachable, empty if the last run reached it.
    """

    name: str
    address: str
    port: int = 0
    user: str = ""
    key: str = ""
    jumps: tuple[ssh_arguments.Jump, ...] = ()
    options: tuple[tuple[str, str], ...] = ()
    gpus: Gpus | None = None
    unreachable: str = ""


@dataclass
class Selection:
    """The hosts of an export, and sentences about hosts and options that it lacks."""

    hosts: list[Host] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def select(
    connections: Mapping[str, Mapping[str, Any]],
    reports: Mapping[str, Mapping[str, Any]],
    folder: Path,
    with_unreachable: bool,
) -> Selection:
    """Return the hosts to export; raise ExportError with a sentence for each unusable host.

    CONNECTIONS: the result of slipway.host.connection_info by host, in the order of the inventory.
    REPORTS: the report by host. Relative paths of keys are relative to FOLDER.
    """
    selection = Selection()
    errors: list[str] = []
    options: Counter[str] = Counter()
    for name, found in connections.items():
        shown = escape_control(name)
        if found["hold"]:
            selection.notes.append(f"{shown} is left out: held: {escape_control(found['hold'])}")
            continue
        connection = found["connection"]
        if connection["transport"] != SSH:
            transport = escape_control(connection["transport"])
            selection.notes.append(f"{shown} is left out: its connection is {transport}, not ssh")
            continue
        try:
            host = _read(name, connection, reports.get(name, {}), folder)
        except ExportError as error:
            errors += error.sentences
            continue
        if host.unreachable and not with_unreachable:
            selection.notes.append(
                f"{name} is left out: unreachable in the run of {host.unreachable}"
            )
            continue
        selection.hosts.append(host)
        options.update(ssh_arguments.parse(connection["arguments"]).others)
    if errors:
        raise ExportError(*errors)
    selection.notes += [
        f"the option {option} of ansible_ssh_common_args is not exported (hosts: {number})"
        for option, number in options.items()
    ]
    if not selection.hosts:
        raise ExportError(
            "no host is left; expected at least one that runs reach by SSH. Change the inventory "
            "or --limit.",
            *(f"{note}." for note in selection.notes),
        )
    return selection


def _read(
    name: str, connection: Mapping[str, Any], report: Mapping[str, Any], folder: Path
) -> Host:
    """Return a host whose values are safe in all files; raise ExportError otherwise."""
    address, user = str(connection["address"]), str(connection["user"] or "")
    port, key = int(connection["port"] or 0), str(connection["key"] or "")
    expected = "letters, digits and the characters . _ : - (not first)"
    for label, value, form, remedy in (
        ("name of the host", name, NAME, RENAME),
        ("ansible_host", address, NAME, "Correct it."),
        ("ansible_user", user or "x", USER, "Correct it."),
    ):
        if not form.fullmatch(value):
            raise ExportError(
                f"{escape_control(name)}: {label}: {value!r}; expected {expected}. {remedy}"
            )
    if not 0 <= port < 65536:
        raise ExportError(f"{name}: ansible_port: {port}; expected 1 to 65535. Correct it.")
    try:
        arguments = ssh_arguments.parse(connection["arguments"])
    except ssh_arguments.ArgumentsError as error:
        # Without the value: a ProxyCommand may have a password.
        raise ExportError(
            f"{name}: ansible_ssh_common_args: found {error}. Change the argument, or leave out "
            "the host with --limit."
        ) from None
    jumps = tuple(
        ssh_arguments.Jump(jump.host, jump.user, jump.port, _path(name, jump.key, folder))
        for jump in arguments.jumps
    )
    is_unreachable = report.get("state") == UNREACHABLE
    return Host(
        name,
        address,
        port,
        user,
        _path(name, key, folder),
        jumps,
        arguments.kept,
        _gpus(report),
        escape_control(str(report["ran"])) if is_unreachable else "",
    )


def _path(name: str, path: str, folder: Path) -> str:
    """Return the absolute path of a key, or one below ``~``."""
    absolute = path if not path or path.startswith("~") else str(folder / path)
    if REFUSED_IN_PATHS.search(absolute) or not absolute.isprintable():
        raise ExportError(
            # Without the value: it may be the content of a key.
            f'{name}: path of a key: found one of the characters " \\ % $ or a control character; '
            "expected a path without them. Move the key, or link to it."
        )
    return absolute


def _gpus(report: Mapping[str, Any]) -> Gpus | None:
    overview = report.get("overview", {})
    if "gpus" not in overview:
        return None
    present: Sequence[Mapping[str, Any]] = [
        gpu for gpu in overview["gpus"] if gpu["health"] != "missing"
    ]
    return Gpus(
        tuple(escape_control(str(gpu["name"])) for gpu in present),
        escape_control(str(overview.get("driver", {}).get("version", ""))),
        any(gpu["health"] == FAULT for gpu in overview["gpus"]),
    )
