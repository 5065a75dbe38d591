# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line of an alias: its options, its help, and the start of its container."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from . import accounts, containers, engine, gpus, labels, launch, reserve, settings, token
from .engine import Docker
from .errors import MlError
from .settings import Alias, Layer

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


def build_parser(name: str, alias: Alias) -> argparse.ArgumentParser:
    """Return the parser of an alias; its help explains the alias."""
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
    _add_options(parser, alias)
    return parser


def _add_options(parser: argparse.ArgumentParser, alias: Alias) -> None:
    ports = ", ".join(f"{name} ({port.inside})" for name, port in alias.ports.items())
    parser.add_argument(
        "--gpus",
        metavar="GPUS",
        help="free (every GPU that nobody uses), all, none, or numbers such as 0,1",
    )
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
    if arguments.gpus:
        layer["gpus"] = arguments.gpus
    if arguments.image:
        layer["image"] = arguments.image
    if arguments.quiet:
        layer["quiet"] = True
    if arguments.volume:
        layer["mounts"] = [_parse_volume(spelled) for spelled in arguments.volume]
    if arguments.port:
        layer["ports"] = dict(_parse_port(spelled) for spelled in arguments.port)
    settings.check_layer(layer, "command line", alias.ports)
    return layer


def _parse_volume(spelled: str) -> dict[str, Any]:
    """Return a mount; a relative source is relative to the caller's working folder."""
    source, colon, rest = spelled.partition(":")
    if source and not source.startswith("~"):
        source = str(Path(source).absolute())
    return settings.parse_mount(f"{source}{colon}{rest}")


def _parse_port(spelled: str) -> tuple[str, Any]:
    name, _, number = spelled.partition("=")
    return name, int(number) if number.isdigit() else number


def start(
    docker: Docker,
    alias: Alias,
    arguments: argparse.Namespace,
    options: Sequence[str] = (),
    replace: bool = True,
) -> int:
    """Start a container, with --print only print the command; return the exit status.

    OPTIONS are more options of docker run.  With REPLACE, docker run replaces this process, and
    gets its input and signals.
    """
    wanted = merge_settings(alias, arguments)
    launched = prepare_launch(docker, alias, arguments, wanted, options)
    terminal = sys.stderr.isatty()
    if arguments.show:
        print_messages(
            alias.name,
            start_messages(launched, terminal, wanted.get("quiet", False), containers.hide_token),
        )
        print(format_command(launched))
        return 0
    create_files(docker, launched)
    print_messages(
        alias.name,
        start_messages(launched, terminal, wanted.get("quiet", False), containers.insert_token),
    )
    if replace:
        replace_process(launched.words)
    return run_to_end(launched.words)


def merge_settings(alias: Alias, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of a start from all layers."""
    own = settings.read_user_layer(alias, settings.user_file())
    return settings.merge_layers(alias.settings, own, command_line_layer(arguments, alias))


def prepare_launch(
    docker: Docker,
    alias: Alias,
    arguments: argparse.Namespace,
    wanted: Layer,
    options: Sequence[str] = (),
) -> launch.Launch:
    """Return the start of a container on this host.  Raise MlError where it cannot start."""
    command = tuple(arguments.command)
    if command[:1] == ("--",):
        command = command[1:]
    image = docker.image(wanted["image"])
    if image is None:
        raise MlError(f"image {wanted['image']} is not on this host. Tell {docker.contact}")
    names, claimed = list_containers(docker)
    host_gpus = gpus.list_gpus() if wanted["gpus"] != "none" else []
    busy = gpus.find_users(host_gpus, gpus.list_processes() if host_gpus else {}, claimed)
    choice = gpus.choose_gpus(
        wanted["gpus"], alias.variant, host_gpus, busy, lambda gpu: reserve.take(f"gpu/{gpu}")
    )
    person = sys.stdin.isatty() and sys.stdout.isatty()
    begin = launch.Start(
        command=command,
        terminal=person and not arguments.detach,
        detach=arguments.detach,
        workdir=arguments.workdir,
        root=arguments.root,
        options=(*options, *(f"--env={variable}" for variable in arguments.env)),
    )
    situation = launch.Situation(launch.current_caller(), docker.engine(), image, names, choice)
    return launch.assemble_launch(alias, wanted, begin, situation)


def list_containers(docker: Docker) -> tuple[list[str], dict[str, list[str]]]:
    """Return the names of all containers, and the GPUs of the running ones by name."""
    form = f'{{{{.Names}}}}\t{{{{.State}}}}\t{{{{.Label "{labels.GPUS}"}}}}'
    rows = [line.split("\t") for line in docker.run("ps", "--all", "--format", form).splitlines()]
    claimed = {name: ids.split(",") for name, state, ids in rows if ids and state == "running"}
    return [name for name, _state, _ids in rows], claimed


def start_messages(
    launched: launch.Launch, terminal: bool, quiet: bool, show: Callable[[str], str]
) -> list[str]:
    """Return the lines for the person who starts a container.

    Its name and addresses are for a TERMINAL only: an address with a token must not be written to a
    log.  SHOW formats an address.
    """
    lines = [launched.gpus.warning, "" if quiet else launched.gpus.note]
    if terminal and not quiet:
        ids = ", ".join(launched.gpus.ids)
        lines += [
            f"starting container {launched.name}{f' on GPU {ids}' if ids else ''}",
            *launched.notes,
        ]
        lines += [f"{port} at {show(url)}" for port, url in launched.urls.items()]
        if launched.urls and "SSH_CONNECTION" in os.environ:
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
    return f"ssh {' '.join(words)} {engine.user_name(os.getuid())}@{socket.gethostname()}"


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
            raise MlError(f"cannot create folder {folder}: {error}") from error
    if launched.needs_token:
        token.ensure_token()
    if launched.accounts:
        accounts.write_accounts(launched.accounts, docker.files_of)


def replace_process(words: Sequence[str]) -> NoReturn:
    """Replace this process by another program."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execvp(words[0], list(words))


def run_to_end(words: Sequence[str]) -> int:
    """Run another program to its end; Ctrl-C reaches the program, not this process."""
    with subprocess.Popen(words) as process:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        return process.wait()
