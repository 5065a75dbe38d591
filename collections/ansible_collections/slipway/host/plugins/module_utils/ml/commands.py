# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line of ``ml``: its parser, and one function for each of its commands."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from . import complete, containers, gpus, start
from .engine import Docker
from .errors import MlError, reason
from .settings import Host

COMPLETE = "--complete"


def run_ml(host: Host, words: Sequence[str]) -> int:
    """Run one of the commands of ``ml``; return the exit status."""
    if words and words[0] == COMPLETE:
        return print_candidates(host, words[1:])
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
    ended = "also list ended containers that were started with --detach"
    verb.add_argument("--all", action="store_true", help=ended)
    for name, summary in (
        ("run", "start the container of an alias"),
        ("gui", "start the container of an alias with your display, so that it can open windows"),
    ):
        verb = add_verb(name, summary)
        verb.add_argument("alias")
        rest = "options and command, as for the alias"
        verb.add_argument("words", nargs=argparse.REMAINDER, metavar="...", help=rest)
    verb = add_verb("stop", "stop your containers")
    verb.add_argument("names", nargs="*", metavar="NAME", help=container)
    verb.add_argument("--all", action="store_true", help="stop all your containers")
    verb = add_verb("logs", "show the output of one of your containers")
    verb.add_argument("name", nargs="?", metavar="NAME", help=container)
    verb.add_argument("-f", "--follow", action="store_true", help="follow the output")
    verb = add_verb("remove", "remove your ended containers with their logs")
    verb.add_argument("names", nargs="*", metavar="NAME", help=container)
    verb.add_argument("--all", action="store_true", help="remove all your ended containers")
    summary = "find out why a container does not see the GPUs of this host"
    verb = add_verb("doctor", summary)
    of = "image to check: name in the catalogue, alias, or reference; default a gpu variant"
    verb.add_argument("image", nargs="?", metavar="IMAGE", help=of)
    verb = add_verb(
        "url", "show the addresses of one of your containers or services, with its token"
    )
    verb.add_argument("name", nargs="?", metavar="NAME", help=container)
    add_verb("queue", "list the jobs of the Slurm cluster: who runs, who waits, and why")
    add_verb("top", "list the GPUs of the Slurm cluster and their users")
    verb = add_verb("cancel", "end jobs of yours, running or waiting")
    number = "number of a job, as ml queue lists it"
    verb.add_argument("jobs", nargs="+", metavar="JOB", help=number)
    verb = add_verb("chat", "talk to a language model that the alias llm or your service serves")
    verb.add_argument("--model", metavar="MODEL", help="model; default the first one of the server")
    verb.add_argument("--server", metavar="NAME", help="container or service; default the only one")


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
    from . import images, listing

    query = gpus.Query()
    host_images = images.list_images(docker)
    running = containers.list_running(docker)
    ended = containers.list_ended(docker) if arguments.all else None
    host_gpus = query.gpus()
    computing = query.processes() if host_gpus else {}
    claimed = containers.gpus_by_container(running)
    if host.slurm:
        claimed = containers.gpu_users_in_cluster(containers.list_all_running(docker))
    users = gpus.find_users(host_gpus, computing, claimed)
    data = listing.collect_data(host, host_images, running, host_gpus, users, ended)
    print(json.dumps(data, indent=2) if arguments.json else listing.format_text(data))
    return 0


def run(docker: Docker, host: Host, arguments: argparse.Namespace) -> int:
    """Start the container of an alias."""
    return start.run_alias(host, arguments.alias, arguments.words)


def gui(docker: Docker, host: Host, arguments: argparse.Namespace) -> int:
    """Start the container of an alias with the caller's display; clean up at its end."""
    import tempfile

    from . import display

    # Ctrl-C must not skip the cleanup.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    alias = host.alias(arguments.alias)
    alias_arguments = start.build_parser(alias.name, alias).parse_args(arguments.words)
    if alias_arguments.detach:
        raise MlError(
            "--detach does not work with ml gui: the container ends with this command. "
            "Remove --detach"
        )
    parent = display.private_folder()
    try:
        folder = tempfile.TemporaryDirectory(prefix="slipway-", dir=parent)
    except OSError as error:
        raise MlError(f"cannot create a folder in {parent}: {reason(error, parent)}") from error
    with (
        folder as path,
        display.forward_display(os.environ, Path(path)) as (options, warning),
    ):
        print(f"{complete.ML}: {warning}", file=sys.stderr)
        merged = start.merge_settings(alias, alias_arguments)
        if host.slurm:
            # A display is on this host; Slurm may choose another one.
            merged["gpus"] = "none"
        return start.start(docker, alias, alias_arguments, options, merged, replace=False)


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
    container = containers.select_container(
        containers.list_running(docker),
        arguments.name,
        "read its output",
        containers.list_ended(docker),
    )
    options = ["--follow"] if arguments.follow else []
    return start.replace_process(docker, ["docker", "logs", *options, container.name])


def remove(docker: Docker, host: Host, arguments: argparse.Namespace) -> int:
    """Remove the caller's ended containers with their logs."""
    ended = containers.list_ended(docker)
    if arguments.all:
        selected = [container for container in ended if container.mine]
    else:
        running = containers.list_running(docker)
        selected = [
            containers.select_container(running, name, "remove it", ended)
            for name in arguments.names or [None]
        ]
    for container in selected:
        if not container.ended:
            raise MlError(f"container {container.name} is running. Stop it first: ml stop")
    if selected:
        containers.remove_containers(docker, selected)
        print("\n".join(container.name for container in selected))
    return 0


def url(docker: Docker, host: Host, arguments: argparse.Namespace) -> int:
    """Show the addresses of one of the caller's containers or services."""
    from . import own_services

    services = own_services.find()
    if named := [one for one in services if one.name == arguments.name]:
        return own_services.show(named, host.contact)
    try:
        running = containers.list_running(docker)
    except MlError:
        # The services of the caller need no permission to use Docker.
        if arguments.name or not services:
            raise
        running = []
    if not arguments.name and services and not any(container.mine for container in running):
        return own_services.show(services, host.contact)
    container = containers.select_container(running, arguments.name, "see its addresses")
    door = own_services.find_door_urls(container.project) if container.is_recorded else []
    print("\n".join(containers.format_urls(container, door)))
    return 0


def chat(docker: Docker, host: Host, arguments: argparse.Namespace) -> int:
    """Talk to a language model of one of the caller's containers or services."""
    from . import chat, own_services

    signal.signal(signal.SIGINT, signal.default_int_handler)
    name: str | None = arguments.server
    servers = [
        server
        for service in own_services.find()
        if name in (None, service.name)
        for server in chat.find_servers(service.name, service.urls.values(), service.token_file)
    ]
    try:
        running = containers.list_running(docker)
    except MlError:
        # The services of the caller need no permission to use Docker.
        if not servers:
            raise
        running = []
    for container in running:
        file = containers.find_token_file(container)
        names = (container.name, container.alias, container.project)
        if file is not None and name in (None, *names):
            servers += chat.find_servers(container.name, container.urls.values(), file)
    server = chat.choose_server(servers, name)
    chat.expect_own_listener(server)
    return chat.talk(server, chat.choose_model(server, arguments.model))


def use_queue(docker: Docker, host: Host, arguments: argparse.Namespace) -> int:
    """Show the queue or the GPUs of the Slurm cluster, or cancel jobs of the caller."""
    from . import queue

    return queue.run(docker, host, arguments)


def examine_gpus(docker: Docker, host: Host, arguments: argparse.Namespace) -> int:
    """Show each step by which GPUs reach a container; the exit status is 1 if one failed."""
    from . import doctor, images

    name: str | None = arguments.image
    find_image: Callable[[], images.Image | None] = (
        partial(images.find_gpu_image, docker, host)
        if name is None
        else partial(images.find_image, docker, name, host)
    )
    find_cuda = partial(images.find_cuda, host)
    status = 0
    for step in doctor.examine(doctor.Host(docker.contact), docker, find_image, find_cuda):
        word = {True: "ok", False: "FAILED", None: "not done"}[step.passed]
        # Computations take seconds: show each step when it ends.
        print(f"{word:8}  {step.subject}: {step.result}", flush=True)
        status = 1 if step.passed is False else status
    return status


def save(docker: Docker, host: Host, arguments: argparse.Namespace) -> int:
    """Write an image to a file."""
    from . import images

    image = images.find_image(docker, arguments.image, host)
    images.save(image.reference, arguments.file, arguments.force)
    # Standard output may contain the archive.
    print("\n".join([f"saved {image.reference}", *images.describe_image(image)]), file=sys.stderr)
    return 0


def load(docker: Docker, host: Host, arguments: argparse.Namespace) -> int:
    """Load an image from a file."""
    from . import images

    for reference in images.load(arguments.file):
        image = images.find_image(docker, reference, host)
        print("\n".join([f"loaded {reference}", *images.describe_image(image)]))
    return 0


def commit(docker: Docker, host: Host, arguments: argparse.Namespace) -> int:
    """Commit one of the caller's containers as an image, and print the differences."""
    from . import images

    running = containers.list_running(docker)
    container = containers.select_container(running, arguments.name, "commit it")
    losses = images.commit(docker, container.name, arguments.reference, container.user)
    command = f"{container.alias} --image" if container.alias else "docker run"
    print(
        f"committed {container.name} as {arguments.reference}. "
        f"To start it, run: {command} {arguments.reference}"
    )
    for loss in losses:
        print(f"{complete.ML}: note: {loss}", file=sys.stderr)
    return 0


def push(docker: Docker, host: Host, arguments: argparse.Namespace) -> int:
    """Push an image to a registry."""
    from . import images

    image = images.find_image(docker, arguments.image, host)
    print(images.push(docker, image.reference, arguments.target))
    return 0


VERBS: Mapping[str, Callable[[Docker, Host, argparse.Namespace], int]] = {
    "list": list_all,
    "run": run,
    "gui": gui,
    "stop": stop,
    "logs": logs,
    "remove": remove,
    "url": url,
    "chat": chat,
    **dict.fromkeys(("queue", "top", "cancel"), use_queue),
    "doctor": examine_gpus,
    "save": save,
    "load": load,
    "commit": commit,
    "push": push,
}


def print_candidates(host: Host, words: Sequence[str]) -> int:
    """Print the candidates for the last word, for completion in shells."""
    from . import images

    docker = Docker(host.contact)
    words = [os.path.basename(words[0]), *words[1:]] if words else []
    candidates = complete.complete_words(
        words,
        host,
        VERBS,
        list_running=lambda: _names_of_caller(containers.list_running(docker)),
        list_ended=lambda: _names_of_caller(containers.list_ended(docker)),
        list_images=lambda: [image.short_name(host) for image in images.list_images(docker)],
        list_gpus=lambda: [gpu.id for gpu in gpus.Query().gpus()],
    )
    print("\n".join(candidates))
    return 0


def _names_of_caller(listed: Sequence[containers.Container]) -> list[str]:
    return [container.name for container in listed if container.mine]
