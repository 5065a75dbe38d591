# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line of an alias: its options, its help, and the start of its container."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import accounts, containers, engine, gpus, guard, labels, launch, reserve, settings, token
from .api import Request
from .caller import current_caller, user_name
from .engine import Docker
from .errors import MlError, reason
from .settings import Alias, Host, Layer

# Variables of a process whose person may be at another host: by ssh, or by a job of Slurm.
REMOTE = {"SSH_CONNECTION", "SLURMD_NODENAME"}
EPILOG = """\
Without a command, the container runs: {command}
With a command, it runs that instead and returns its exit status:
  {name} python train.py --epochs 3        {name} --gpus 0 python train.py <input >output

The container runs as you, and is removed when it ends. It starts in your current folder if that
folder is mounted. Mounted folders: {mounts}
Only this host can open its pages. Their addresses are shown at the start and by: ml url

Your own settings: {file}
  [{name}]
  gpus = 0
  port.NAME = 9000
  env.NAME = VALUE
  /target = ~/folder
  options = --ulimit memlock=-1
Section [*] is for all aliases. Other keys: image, workdir, shm_size, memory, cpus, quiet.
"""


def build_parser(name: str, alias: Alias, slurm: bool = False) -> argparse.ArgumentParser:
    """Return the parser of an alias; its help explains the alias.

    SLURM: whether the alias is a job of a Slurm cluster.
    """
    mounted = (
        f"{entry['source']} at {entry['target']}" for entry in alias.settings.get("mounts", ())
    )
    parser = argparse.ArgumentParser(
        prog=name,
        description=f"{alias.description} (image {alias.settings['image']})",
        epilog=EPILOG.format(
            name=name,
            command=shlex.join(alias.command) or "the default command of the image",
            mounts=", ".join(mounted) or "nothing",
            file=settings.user_file(),
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if slurm:
        _add_slurm_options(parser)
    else:
        indexes = "free (every GPU that nobody uses), all, none, or numbers such as 0,1"
        parser.add_argument("--gpus", metavar="GPUS", help=indexes)
    _add_options(parser, alias)
    return parser


def _add_slurm_options(parser: argparse.ArgumentParser) -> None:
    for option, value, default, summary in (
        ("gpus", "NUMBER", None, "GPUs to ask Slurm for, by default 1; none needs no job"),
        ("hosts", "NUMBER", "1", "hosts that run the command at once, each with its GPUs"),
        ("time", "TIME", None, "time limit of the job, such as 12:00:00 or 1-12:00:00"),
        ("partition", "NAME", None, "partition of the cluster, as sinfo lists them"),
    ):
        parser.add_argument(f"--{option}", metavar=value, default=default, help=summary)


def _add_options(parser: argparse.ArgumentParser, alias: Alias) -> None:
    ports = ", ".join(f"{name} ({port.inside})" for name, port in alias.ports.items())
    parser.add_argument(
        "--image",
        metavar="IMAGE",
        help="start a container of another image, with the same settings",
    )
    parser.add_argument(
        "-w", "--workdir", metavar="FOLDER", default="", help="folder in the container to start in"
    )
    parser.add_argument(
        "-e",
        "--env",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="set an environment variable",
    )
    parser.add_argument(
        "-v", "--volume", action="append", default=[], metavar="FOLDER:TARGET[:ro]",
        help="mount a folder of this host",
    )  # fmt: skip
    parser.add_argument(
        "--port", action="append", default=[], metavar="NAME=NUMBER",
        help=f"port of this host for a port of the image: {ports or 'none'}",
    )  # fmt: skip
    parser.add_argument(
        "--root", action="store_true",
        help="run as root, to install software before ml commit; your folders are not mounted",
    )  # fmt: skip
    parser.add_argument("-d", "--detach", action="store_true", help="run in the background")
    parser.add_argument("-q", "--quiet", action="store_true", help="print warnings only")
    parser.add_argument(
        "--print",
        action="store_true",
        dest="show",
        help="print the docker command without running it",
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, help="command to run in the container")


def command_line_layer(arguments: argparse.Namespace, alias: Alias) -> dict[str, Any]:
    """Return the settings of the command line.  Raise MlError for invalid ones."""
    layer: dict[str, Any] = {}
    for key in ("gpus", "image", "partition", "time"):
        if value := getattr(arguments, key, None):
            layer[key] = value
    if arguments.quiet:
        layer["quiet"] = True
    if arguments.volume:
        layer["mounts"] = [_parse_volume(text) for text in arguments.volume]
    if arguments.port:
        layer["ports"] = dict(_parse_port(text) for text in arguments.port)
    settings.check_layer(layer, "command line", alias.ports)
    return layer


def _parse_volume(text: str) -> dict[str, Any]:
    """Return a mount; a relative source is relative to the caller's working folder."""
    source, colon, rest = text.partition(":")
    if source and not source.startswith(("~", "/")):
        try:
            source = str(Path(source).absolute())
        except OSError as error:
            raise MlError(
                f"mount {text!r}: cannot read the current folder: {reason(error)}"
            ) from error
    return settings.parse_mount(f"{source}{colon}{rest}")


def _parse_port(text: str) -> tuple[str, Any]:
    name, _separator, number = text.partition("=")
    return name, settings.parse_port(number)


def run_alias(host: Host, name: str, words: Sequence[str]) -> int:
    """Run an alias with its command line; return the exit status."""
    alias, docker = host.alias(name), Docker(host.contact)
    if not host.slurm:
        return start(docker, alias, build_parser(name, alias).parse_args(words))
    from . import jobs

    words = jobs.words_of_job(words)
    arguments = build_parser(name, alias, slurm=True).parse_args(words)
    return jobs.start_alias(docker, alias, arguments, words)


def start(
    docker: Docker,
    alias: Alias,
    arguments: argparse.Namespace,
    options: Sequence[str] = (),
    merged: Layer | None = None,
    replace: bool = True,
) -> int:
    """Start a container, with --print only print the command; return the exit status.

    OPTIONS are additional options of docker run.  MERGED are the settings, by default those of all
    layers.  With REPLACE, docker run replaces this process, and gets its input and signals.
    """
    merged = merge_settings(alias, arguments) if merged is None else merged
    guarded = not (arguments.show or arguments.detach or guard.survives_hangup())
    label = guard.new_start_label()
    if guarded:
        options = (*options, f"--label={label}")
    launched = prepare_launch(docker, alias, arguments, merged, options)
    terminal, quiet = is_terminal(2), merged.get("quiet", False)
    if arguments.show:
        print_messages(alias.name, start_messages(launched, terminal, quiet, containers.hide_token))
        print(format_command(launched))
        return 0
    if arguments.detach:
        remove_expired(docker)
    create_files(docker, launched)
    print_messages(alias.name, start_messages(launched, terminal, quiet, containers.insert_token))
    if guarded:
        guard.start_guard(label)
    if replace:
        replace_process(docker, launched.words)
    return run_to_end(docker, launched.words)


def remove_expired(docker: Docker) -> None:
    """Remove the caller's ended containers beyond the limits of number and age."""
    from datetime import datetime, timezone

    ended = containers.list_ended(docker)
    expired = containers.expired(ended, datetime.now(timezone.utc))
    if expired:
        containers.remove_containers(docker, expired)


def is_terminal(descriptor: int) -> bool:
    """Return whether a descriptor of this process is a terminal; False for a closed one."""
    return os.isatty(descriptor)


def merge_settings(alias: Alias, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of a start from all layers."""
    user_layer = settings.read_user_layer(alias, settings.user_file())
    return settings.merge_layers(alias.settings, user_layer, command_line_layer(arguments, alias))


def prepare_launch(
    docker: Docker,
    alias: Alias,
    arguments: argparse.Namespace,
    merged: Layer,
    options: Sequence[str] = (),
) -> launch.Launch:
    """Return the start of a container on this host.  Raise MlError if it cannot start."""
    query = gpus.Query() if merged["gpus"] != "none" else None
    image, names, claimed, docker_engine = read_engine(docker, merged["image"])
    host_gpus = query.gpus() if query else []
    computing = query.processes() if query and host_gpus else {}
    choice = gpus.choose_gpus(
        merged["gpus"],
        alias.variant,
        host_gpus,
        gpus.find_users(host_gpus, computing, claimed),
        lambda gpu: reserve.reserve(f"gpu/{gpu}"),
    )
    command = tuple(arguments.command)
    if command[:1] == ("--",):
        command = command[1:]
    start_options = launch.Start(
        command=command,
        terminal=is_terminal(0) and is_terminal(1) and not arguments.detach,
        detach=arguments.detach,
        workdir=arguments.workdir,
        root=arguments.root,
        options=(*options, *(f"--env={variable}" for variable in arguments.env)),
    )
    situation = launch.Situation(current_caller(), docker_engine, image, names, choice)
    return launch.assemble_launch(alias, merged, start_options, situation)


def read_engine(
    docker: Docker, reference: str
) -> tuple[launch.Image, list[str], dict[str, list[str]], engine.Engine]:
    """Return what a start depends on, in one round of requests.

    These are the image, the names of all containers, the GPUs of the running ones by name, and the
    engine.  Raise MlError for an image that is not on this host.
    """
    image_answer, containers_answer, engine_answer = docker.send(
        engine.image_request(reference), CONTAINERS_REQUEST, engine.ENGINE_REQUEST
    )
    docker_engine = docker.parse_engine(engine_answer)
    if image_answer.status == engine.MISSING:
        raise MlError(f"image {reference} is not on this host. Tell {docker.contact}")
    names, claimed = docker.parse(containers_answer, parse_names)
    return docker.parse(image_answer, parse_image), names, claimed, docker_engine


CONTAINERS_REQUEST = Request("/containers/json?all=1")


def parse_image(inspected: Mapping[str, Any]) -> launch.Image:
    """Return an image from docker's description of it."""
    pairs = (entry.partition("=") for entry in inspected["Config"].get("Env") or ())
    variables = {name: value for name, _, value in pairs}
    return launch.Image(
        str(inspected["Id"]), variables.get("HOME", ""), variables.get(launch.PACKAGES, "")
    )


def parse_names(listed: Sequence[Mapping[str, Any]]) -> tuple[list[str], dict[str, list[str]]]:
    """Return the names of all containers, and the GPUs of the running ones by name."""
    names, claimed = [], {}
    for entry in listed:
        for name in entry["Names"] or ():
            names.append(name.lstrip("/"))
            ids = (entry.get("Labels") or {}).get(labels.GPUS, "")
            if ids and entry["State"] == "running":
                claimed[names[-1]] = ids.split(",")
    return names, claimed


def start_messages(
    launched: launch.Launch, terminal: bool, quiet: bool, format_url: Callable[[str], str]
) -> list[str]:
    """Return the lines for the person who starts a container.

    Its name and addresses are for a TERMINAL only: an address with a token must not be written to a
    log.  FORMAT_URL shows or hides the token in an address.
    """
    lines = [launched.gpus.warning, "" if quiet else launched.gpus.note]
    if terminal and not quiet:
        ids = ", ".join(launched.gpus.ids)
        lines += [
            f"starting container {launched.name}{f' on GPU {ids}' if ids else ''}",
            *launched.notes,
        ]
        lines += [f"{port} at {format_url(url)}" for port, url in launched.urls.items()]
        if launched.urls and not REMOTE.isdisjoint(os.environ):
            lines.append(
                f"to open it on your own machine, run there: {tunnel_command(launched.urls)}"
            )
    return [line for line in lines if line]


def print_messages(name: str, lines: Sequence[str]) -> None:
    """Print lines on standard error, each after the name of the command."""
    for line in lines:
        print(f"{name}: {line}", file=sys.stderr)


def tunnel_command(urls: Mapping[str, str]) -> str:
    """Return the ssh command that forwards the ports of this host to the person's own machine."""
    ports = [
        url.removeprefix("http://").partition("/")[0].rpartition(":")[2] for url in urls.values()
    ]
    words = [f"-L {port}:{reserve.LOCALHOST}:{port}" for port in ports]
    return f"ssh {' '.join(words)} {user_name(os.getuid())}@{os.uname().nodename}"


def format_command(launched: launch.Launch) -> str:
    """Return the docker command for a shell, one option a line."""
    lines = [list(launch.RUN)]
    for word in launched.options:
        # An option of the host or the user may have its value in the next word.
        lines.append([word]) if word.startswith("-") else lines[-1].append(word)
    return " \\\n    ".join(map(shlex.join, [*lines, launched.program]))


def create_files(docker: Docker, launched: launch.Launch) -> None:
    """Create the folders, token and account files that the container needs, as the caller."""
    for folder in launched.folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MlError(f"cannot create folder {folder}: {reason(error, folder)}") from error
    for file in launched.files:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        except OSError as error:
            raise MlError(f"cannot create file {file}: {reason(error, file)}") from error
    if launched.needs_token:
        token.ensure_token()
    if launched.accounts:
        accounts.write_accounts(launched.accounts, docker.files_of)


def replace_process(docker: Docker, words: Sequence[str]) -> int:
    """Replace this process by another program.  Raise MlError if the program does not start."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    # Python ignores the signal, and the program would inherit that.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        os.execvp(words[0], list(words))
    except (OSError, ValueError) as error:
        raise docker.cannot_run(error) from None


def run_to_end(docker: Docker, words: Sequence[str]) -> int:
    """Run another program to its end and return its exit status.

    Ctrl-C reaches the program, not this process.
    """
    import subprocess

    def pass_on(number: int, _frame: object) -> None:
        process.send_signal(number)

    signal.signal(signal.SIGINT, lambda *_signal: None)
    try:
        process = subprocess.Popen(words)
    except (OSError, ValueError) as error:
        raise docker.cannot_run(error) from None
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, pass_on)
    status = process.wait()
    # As a shell reports the end by a signal.
    return status if status >= 0 else 128 - status
