# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line of ``ml``; every alias is a link to the same program."""

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

# As docker's own: what the started program returns is told apart from what never started.
EXIT_NOT_STARTED = 125
EXIT_FAILED = 1
EXIT_INTERRUPTED = 130

COMPLETE = "--complete"


def main(called: str, words: Sequence[str]) -> int:
    """Run the program under the name it was CALLED by; return the exit status."""
    # Otherwise Python, and what it starts in its place, would not end with the reader of a pipe.
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
    made = argparse.ArgumentParser(
        prog=complete.ML,
        description="Containers and images of this host's machine-learning catalogue.",
        epilog=f"Aliases of this host: {', '.join(sorted(host.aliases)) or 'none'}. "
        "Each explains itself with --help.",
        allow_abbrev=False,
    )
    verbs = made.add_subparsers(dest="verb", metavar="COMMAND", required=True)

    def verb(name: str, words: str) -> argparse.ArgumentParser:
        description = f"{words[0].upper()}{words[1:]}."
        return verbs.add_parser(name, help=words, description=description, allow_abbrev=False)

    one = "container or alias; not needed for an only one"
    image = "name in the catalogue, alias, or reference"
    further = "options and command, as after the alias itself"

    added = verb("list", "images, what runs, whose, on which GPU and where")
    added.add_argument("--json", action="store_true", help="as data")

    for name, words in (
        ("run", "start the container of an alias"),
        ("gui", "start the container of an alias with your display, so that it can open windows"),
    ):
        added = verb(name, words)
        added.add_argument("alias")
        added.add_argument("words", nargs=argparse.REMAINDER, metavar="...", help=further)

    added = verb("stop", "stop your containers")
    added.add_argument("names", nargs="*", metavar="NAME", help=one)
    added.add_argument("--all", action="store_true", help="all of yours")

    added = verb("logs", "what one of your containers has written")
    added.add_argument("name", nargs="?", metavar="NAME", help=one)
    added.add_argument("-f", "--follow", action="store_true", help="and what it goes on to write")

    added = verb("url", "where one of your containers serves its pages, with your token")
    added.add_argument("name", nargs="?", metavar="NAME", help=one)

    added = verb("save", "write an image to a file, compressed with zstd")
    added.add_argument("image", metavar="IMAGE", help=image)
    added.add_argument("file", type=Path, metavar="FILE", help="- is standard output")
    added.add_argument("--force", action="store_true", help="replace the file")

    added = verb("load", "load an image from a file")
    added.add_argument("file", type=Path, metavar="FILE", help="- is standard input")

    added = verb("commit", "keep one of your containers as an image")
    added.add_argument("name", metavar="NAME", help="container or alias")
    added.add_argument("reference", metavar="REFERENCE", help="for example me/work:1")

    added = verb("push", "push an image to a registry")
    added.add_argument("image", metavar="IMAGE", help=image)
    added.add_argument("target", metavar="TARGET", help="for example registry.lab/me/work:1")
    return made


def list_all(docker: Docker, host: Host, arguments: argparse.Namespace) -> int:
    """Show images, containers and GPUs."""
    present = images.list_images(docker)
    running = containers.list_running(docker)
    found = gpus.list_gpus()
    busy = gpus.find_users(
        found, gpus.list_processes() if found else {}, containers.gpus_by_container(running)
    )
    listed = listing.collect_data(host, present, running, found, busy)
    print(json.dumps(listed, indent=2) if arguments.json else listing.format_text(listed))
    return 0


def run(docker: Docker, host: Host, arguments: argparse.Namespace) -> int:
    """Start an alias by its name."""
    alias = host.alias(arguments.alias)
    return start.start(
        docker, alias, start.build_parser(alias.name, alias).parse_args(arguments.words)
    )


def gui(docker: Docker, host: Host, arguments: argparse.Namespace) -> int:
    """Start an alias with the caller's display, and clear up when it has ended."""
    alias = host.alias(arguments.alias)
    given = start.build_parser(alias.name, alias).parse_args(arguments.words)
    if given.detach:
        raise MlError("a container with your display ends with this command; leave out --detach")
    with (
        tempfile.TemporaryDirectory(prefix="slipway-", dir=display.private_folder()) as folder,
        display.forward_display(os.environ, Path(folder)) as (options, cost),
    ):
        print(f"{complete.ML}: {cost}", file=sys.stderr)
        return start.start(docker, alias, given, options, replace=False)


def stop(docker: Docker, host: Host, arguments: argparse.Namespace) -> int:
    """Stop containers of the caller."""
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
    """Show what a container of the caller has written."""
    one = containers.select_container(
        containers.list_running(docker), arguments.name, "read what it says"
    )
    start.replace_process(["docker", "logs", *(["--follow"] if arguments.follow else []), one.name])


def url(docker: Docker, host: Host, arguments: argparse.Namespace) -> int:
    """Show where a container of the caller serves its pages."""
    one = containers.select_container(
        containers.list_running(docker), arguments.name, "have its address"
    )
    print("\n".join(containers.format_urls(one)))
    return 0


def save(docker: Docker, host: Host, arguments: argparse.Namespace) -> int:
    """Write an image to a file."""
    found = images.find_image(docker, arguments.image, host)
    images.save(found["reference"], arguments.file, arguments.force)
    # Standard output may be the archive.
    print(
        "\n".join([f"saved {found['reference']}", *images.describe_image(found)]), file=sys.stderr
    )
    return 0


def load(docker: Docker, host: Host, arguments: argparse.Namespace) -> int:
    """Load an image from a file."""
    for reference in images.load(arguments.file):
        found = images.find_image(docker, reference, host)
        print("\n".join([f"loaded {reference}", *images.describe_image(found)]))
    return 0


def commit(docker: Docker, host: Host, arguments: argparse.Namespace) -> int:
    """Keep a container of the caller as an image, and say what is lost."""
    running = containers.list_running(docker)
    one = containers.select_container(running, arguments.name, "keep it")
    losses = images.commit(docker, one.name, arguments.reference, one.user)
    how = f"{one.alias} --image" if one.alias else "docker run"
    print(f"kept {one.name} as {arguments.reference}; start it with: {how} {arguments.reference}")
    for loss in losses:
        print(f"{complete.ML}: not kept: {loss}", file=sys.stderr)
    return 0


def push(docker: Docker, host: Host, arguments: argparse.Namespace) -> int:
    """Push an image to a registry."""
    found = images.find_image(docker, arguments.image, host)
    print(images.push(docker, found["reference"], arguments.target))
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
    """Return the shortest word for an image: its name, where that is not another one."""
    return image.name if host.images.get(image.name) == image.reference else image.reference


def print_candidates(words: Sequence[str]) -> int:
    """Print what may stand in the place of the last word, for a shell's completion."""
    host = settings.read_host()
    docker = Docker(host.contact)
    words = [Path(words[0]).name, *words[1:]] if words else []
    found = complete.complete_words(
        words,
        host,
        own=lambda: [one.name for one in containers.list_running(docker) if one.mine],
        images=lambda: [short_name(host, image) for image in images.list_images(docker)],
        gpus=lambda: [gpu.id for gpu in gpus.list_gpus()],
    )
    print("\n".join(found))
    return 0
