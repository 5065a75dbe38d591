# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line of ``ml``; every alias is a link to this program."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from . import complete, containers, display, gpus, images, listing, settings, start
from .engine import Docker
from .errors import MlError
from .settings import Host

# As docker's own: the container was not started, so this is not its exit status.
EXIT_NOT_STARTED = 125
EXIT_FAILED = 1
EXIT_INTERRUPTED = 130

COMPLETE = "--complete"


def main(called: str, words: Sequence[str]) -> int:
    """Run the program under the name it was CALLED by; return the exit status."""
    # Otherwise Python and the program that replaces it would not end with the reader of a pipe.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    name = Path(called).name
    try:
        return run_ml(words) if name == complete.ML else run_alias(name, words)
    except MlError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return EXIT_FAILED if name == complete.ML else EXIT_NOT_STARTED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def run_alias(name: str, words: Sequence[str]) -> int:
    """Start the container of an alias."""
    host = settings.read_host()
    alias = host.alias(name)
    given = start.build_parser(name, alias).parse_args(words)
    return start.start(Docker(host.contact), alias, given)


def run_ml(words: Sequence[str]) -> int:
    """Run one of the commands of ``ml``."""
    if words and words[0] == COMPLETE:
        return print_candidates(words[1:])
    host = settings.read_host()
    arguments = build_parser(host).parse_args(words)
    return VERBS[arguments.verb](Docker(host.contact), host, arguments)


def build_parser(host: Host) -> argparse.ArgumentParser:
    """Return the parser of ``ml``."""
    parser = argparse.ArgumentParser(
        prog=complete.ML,
        description="Start, list and stop containers of this host's images, and manage the images.",
        epilog=f"Aliases of this host: {', '.join(sorted(host.aliases)) or 'none'}. "
        "For the options of an alias, run: ALIAS --help",
        allow_abbrev=False,
    )
    verbs = parser.add_subparsers(dest="verb", metavar="COMMAND", required=True)

    def add_verb(name: str, summary: str) -> argparse.ArgumentParser:
        description = f"{summary[0].upper()}{summary[1:]}."
        return verbs.add_parser(name, help=summary, description=description, allow_abbrev=False)

    _add_container_verbs(add_verb)
    _add_image_verbs(add_verb)
    return parser


AddVerb = Callable[[str, str], argparse.ArgumentParser]


def _add_container_verbs(add_verb: AddVerb) -> None:
    container = "container or alias; not needed if you have only one container"
    verb = add_verb("list", "list images, running containers, and GPUs with their users")
    verb.add_argument("--json", action="store_true", help="print JSON")
    for name, summary in (
        ("run", "start the container of an alias"),
        ("gui", "start the container of an alias with your display, so that it can open windows"),
    ):
        verb = add_verb(name, summary)
        verb.add_argument("alias")
        words = "options and command, as for the alias"
        verb.add_argument("words", nargs=argparse.REMAINDER, metavar="...", help=words)
    verb = add_verb("stop", "stop your containers")
    verb.add_argument("names", nargs="*", metavar="NAME", help=container)
    verb.add_argument("--all", action="store_true", help="stop all your containers")
    verb = add_verb("logs", "show the output of one of your containers")
    verb.add_argument("name", nargs="?", metavar="NAME", help=container)
    verb.add_argument("-f", "--follow", action="store_true", help="follow the output")
    verb = add_verb("url", "show the addresses of one of your containers, with your token")
    verb.add_argument("name", nargs="?", metavar="NAME", help=container)


def _add_image_verbs(add_verb: AddVerb) -> None:
    image = "name in the catalogue, alias, or reference"
    verb = add_verb("save", "write an image to a file, compressed with zstd")
    verb.add_argument("image", metavar="IMAGE", help=image)
    verb.add_argument("file", type=Path, metavar="FILE", help="file to write; - is standard output")
    verb.add_argument("--force", action="store_true", help="replace an existing file")
    verb = add_verb("load", "load an image from a file")
    verb.add_argument("file", type=Path, metavar="FILE", help="file to read; - is standard input")
    verb = add_verb("commit", "save one of your containers as a new image")
    verb.add_argument("name", metavar="NAME", help="container or alias")
    reference = "name of the new image, for example me/work:1"
    verb.add_argument("reference", metavar="REFERENCE", help=reference)
    verb = add_verb("push", "push an image to a registry")
    verb.add_argument("image", metavar="IMAGE", help=image)
    target = "name in the registry, for example registry.lab/me/work:1"
    verb.add_argument("target", metavar="TARGET", help=target)


def list_all(docker: Docker, host: Host, arguments: argparse.Namespace) -> int:
    """Show images, containers and GPUs."""
    present = images.list_images(docker)
    running = containers.list_running(docker)
    host_gpus = gpus.list_gpus()
    busy = gpus.find_users(
        host_gpus, gpus.list_processes() if host_gpus else {}, containers.gpus_by_container(running)
    )
    listed = listing.collect_data(host, present, running, host_gpus, busy)
    print(json.dumps(listed, indent=2) if arguments.json else listing.format_text(listed))
    return 0


def run(docker: Docker, host: Host, arguments: argparse.Namespace) -> int:
    """Start the container of an alias."""
    alias = host.alias(arguments.alias)
    return start.start(
        docker, alias, start.build_parser(alias.name, alias).parse_args(arguments.words)
    )


def gui(docker: Docker, host: Host, arguments: argparse.Namespace) -> int:
    """Start the container of an alias with the caller's display; clean up at its end."""
    alias = host.alias(arguments.alias)
    given = start.build_parser(alias.name, alias).parse_args(arguments.words)
    if given.detach:
        raise MlError(
            "--detach does not work with ml gui: the container ends with this command. "
            "Remove --detach"
        )
    with (
        tempfile.TemporaryDirectory(prefix="slipway-", dir=display.private_folder()) as folder,
        display.forward_display(os.environ, Path(folder)) as (options, cost),
    ):
        print(f"{complete.ML}: {cost}", file=sys.stderr)
        return start.start(docker, alias, given, options, replace=False)


def stop(docker: Docker, host: Host, arguments: argparse.Namespace) -> int:
    """Stop the caller's containers."""
    running = containers.list_running(docker)
    if arguments.all:
        chosen = [container for container in running if container.mine]
    else:
        names = arguments.names or [None]
        chosen = [containers.select_container(running, name, "stop it") for name in names]
    if chosen:
        print(docker.run("stop", *(container.name for container in chosen)), end="")
    return 0


def logs(docker: Docker, host: Host, arguments: argparse.Namespace) -> int:
    """Show the output of one of the caller's containers."""
    one = containers.select_container(
        containers.list_running(docker), arguments.name, "read its output"
    )
    start.replace_process(["docker", "logs", *(["--follow"] if arguments.follow else []), one.name])


def url(docker: Docker, host: Host, arguments: argparse.Namespace) -> int:
    """Show the addresses of one of the caller's containers."""
    one = containers.select_container(
        containers.list_running(docker), arguments.name, "see its addresses"
    )
    print("\n".join(containers.format_urls(one)))
    return 0


def save(docker: Docker, host: Host, arguments: argparse.Namespace) -> int:
    """Write an image to a file."""
    image = images.find_image(docker, arguments.image, host)
    images.save(image["reference"], arguments.file, arguments.force)
    # Standard output may contain the archive.
    print(
        "\n".join([f"saved {image['reference']}", *images.describe_image(image)]), file=sys.stderr
    )
    return 0


def load(docker: Docker, host: Host, arguments: argparse.Namespace) -> int:
    """Load an image from a file."""
    for reference in images.load(arguments.file):
        image = images.find_image(docker, reference, host)
        print("\n".join([f"loaded {reference}", *images.describe_image(image)]))
    return 0


def commit(docker: Docker, host: Host, arguments: argparse.Namespace) -> int:
    """Commit one of the caller's containers as an image, and print the differences."""
    running = containers.list_running(docker)
    container = containers.select_container(running, arguments.name, "commit it")
    losses = images.commit(docker, container.name, arguments.reference, container.user)
    how = f"{container.alias} --image" if container.alias else "docker run"
    print(
        f"committed {container.name} as {arguments.reference}. "
        f"To start it, run: {how} {arguments.reference}"
    )
    for loss in losses:
        print(f"{complete.ML}: note: {loss}", file=sys.stderr)
    return 0


def push(docker: Docker, host: Host, arguments: argparse.Namespace) -> int:
    """Push an image to a registry."""
    image = images.find_image(docker, arguments.image, host)
    print(images.push(docker, image["reference"], arguments.target))
    return 0


VERBS: Mapping[str, Callable[[Docker, Host, argparse.Namespace], int]] = {
    "list": list_all,
    "run": run,
    "gui": gui,
    "stop": stop,
    "logs": logs,
    "url": url,
    "save": save,
    "load": load,
    "commit": commit,
    "push": push,
}


def short_name(host: Host, image: images.Image) -> str:
    """Return the name of an image, or its reference where the name means another image."""
    return image.name if host.images.get(image.name) == image.reference else image.reference


def print_candidates(words: Sequence[str]) -> int:
    """Print the candidates for the last word, for completion in shells."""
    host = settings.read_host()
    docker = Docker(host.contact)
    words = [Path(words[0]).name, *words[1:]] if words else []
    candidates = complete.complete_words(
        words,
        host,
        own=lambda: [one.name for one in containers.list_running(docker) if one.mine],
        images=lambda: [short_name(host, image) for image in images.list_images(docker)],
        gpus=lambda: [gpu.id for gpu in gpus.list_gpus()],
    )
    print("\n".join(candidates))
    return 0
