# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line of an alias: its options, its help, and the start itself."""

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
Without a command it runs: {command}
A command runs inside instead, with this one's input, and its exit status is returned:
  {name} python train.py --epochs 3        {name} --gpus 0 python train.py <input >output

The container is removed when it ends. It runs as you, in the folder where you are if that is
mounted. What is mounted: {mounts}
Pages it serves are for this host alone, at the addresses that are shown at the start and by ml url.

Your own settings: {file}
  [{name}]
  gpus = 0
  port.NAME = 9000
  env.NAME = VALUE
  /target = ~/folder
  options = --ulimit memlock=-1
A section [*] goes for every alias. Keys: gpus, image, workdir, shm_size, memory, cpus, quiet.
"""


def build_parser(name: str, alias: Alias) -> argparse.ArgumentParser:
    """Return the parser for an alias, which also explains it."""
    mounted = (
        f"{entry['source']} at {entry['target']}" for entry in alias.settings.get("mounts", ())
    )
    made = argparse.ArgumentParser(
        prog=name,
        description=f"{alias.description} (image {alias.settings['image']})",
        epilog=EPILOG.format(
            name=name,
            command=shlex.join(alias.command) or "what the image runs by itself",
            mounts=", ".join(mounted) or "nothing",
            file=settings.user_file(),
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    ports = ", ".join(f"{name} ({port.inside})" for name, port in alias.ports.items())
    made.add_argument(
        "--gpus", metavar="GPUS", help="free (all that nobody uses), all, none, or such as 0,1"
    )
    made.add_argument("--image", metavar="IMAGE", help="start another image the same way")
    made.add_argument(
        "-w", "--workdir", metavar="FOLDER", default="", help="folder in the container to start in"
    )
    made.add_argument(
        "-e", "--env", action="append", default=[], metavar="NAME[=VALUE]", help="set a variable"
    )
    made.add_argument(
        "-v", "--volume", action="append", default=[], metavar="FOLDER:TARGET[:ro]",
        help="mount a folder",
    )  # fmt: skip
    made.add_argument(
        "--port", action="append", default=[], metavar="NAME=NUMBER",
        help=f"this host's port; the image has: {ports or 'none'}",
    )  # fmt: skip
    made.add_argument(
        "--root", action="store_true",
        help="be root inside, to install things for ml commit; none of your folders are mounted",
    )  # fmt: skip
    made.add_argument("-d", "--detach", action="store_true", help="leave it in the background")
    made.add_argument("-q", "--quiet", action="store_true", help="say only what is unusual")
    made.add_argument(
        "--print", action="store_true", dest="show", help="show the docker command, start nothing"
    )
    made.add_argument("command", nargs=argparse.REMAINDER, help="what runs inside")
    return made


def command_line_layer(arguments: argparse.Namespace, alias: Alias) -> dict[str, Any]:
    """Return the settings that the command line says.  Raise MlError where they cannot be."""
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
    """Return a mount; what is relative is so to where the caller is."""
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
    """Start a container, with --print only show how; return the exit status.

    OPTIONS are further words for docker run.  With REPLACE it starts in place of this process:
    input, signals and exit status are its own.
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
    """Ask what a start depends on, and work it out.  Raise MlError where it cannot be."""
    command = tuple(arguments.command)
    if command[:1] == ("--",):
        command = command[1:]
    image = docker.image(wanted["image"])
    if image is None:
        raise MlError(f"the image {wanted['image']} is not on this host; tell {docker.contact}")
    names, claimed = list_containers(docker)
    found = gpus.list_gpus() if wanted["gpus"] != "none" else []
    busy = gpus.find_users(found, gpus.list_processes() if found else {}, claimed)
    choice = gpus.choose_gpus(
        wanted["gpus"], alias.variant, found, busy, lambda gpu: reserve.take(f"gpu/{gpu}")
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
    """Return what a person should know of a start.

    What it runs as and where it is found goes to a TERMINAL alone: with the token in it, it must
    not end up in a log.  SHOW writes an address for the person.
    """
    lines = [launched.gpus.warning, "" if quiet else launched.gpus.note]
    if terminal and not quiet:
        ids = ", ".join(launched.gpus.ids)
        lines += [f"runs as {launched.name}{f' on GPU {ids}' if ids else ''}", *launched.notes]
        lines += [f"{port} at {show(url)}" for port, url in launched.urls.items()]
        if launched.urls and "SSH_CONNECTION" in os.environ:
            lines.append(f"from your own machine: {tunnel_command(launched.urls)}")
    return [line for line in lines if line]


def print_messages(name: str, lines: Sequence[str]) -> None:
    """Write lines on standard error, under the name of the command."""
    for line in lines:
        print(f"{name}: {line}", file=sys.stderr)


def tunnel_command(urls: Mapping[str, str]) -> str:
    """Return the ssh command that brings the addresses of this host to the person's own."""
    ports = [
        url.removeprefix("http://").partition("/")[0].rpartition(":")[2] for url in urls.values()
    ]
    words = [f"-L {port}:{reserve.LOCALHOST}:{port}" for port in ports]
    return f"ssh {' '.join(words)} {engine.user_name(os.getuid())}@{socket.gethostname()}"


def format_command(launched: launch.Launch) -> str:
    """Return the docker command for a shell, an option a line."""
    lines = [list(launch.RUN)]
    for word in launched.options:
        # An option of the host or the user may have its value as a word of its own.
        lines.append([word]) if word.startswith("-") else lines[-1].append(word)
    return " \\\n    ".join(map(shlex.join, [*lines, launched.program]))


def create_files(docker: Docker, launched: launch.Launch) -> None:
    """Make what the container needs of the caller's: folders, which docker would make as root."""
    for folder in launched.folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MlError(f"{folder} cannot be made: {error}") from error
    if launched.needs_token:
        token.ensure_token()
    if launched.accounts:
        accounts.write_accounts(launched.accounts, docker.files_of)


def replace_process(words: Sequence[str]) -> NoReturn:
    """Become another program."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execvp(words[0], list(words))


def run_to_end(words: Sequence[str]) -> int:
    """Run another program to its end, which a key pressed by the person ends first."""
    with subprocess.Popen(words) as process:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        return process.wait()
