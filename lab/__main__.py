# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Create and remove throwaway hosts from the command line; the result is one line of JSON."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

from lab import emulation, gpu_host
from lab.base_images import purge_bases
from lab.bases import ARCHITECTURES, BASES, DEFAULT_BASE, base_named
from lab.errors import LabError
from lab.host_spec import HostSpec, check_name
from lab.hosts import Action, Group, Host

# Models whose switch packages are in NVIDIA's CUDA repository only.
CUDA_MODELS = ("8xb200",)


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(
        prog="python -m lab",
        description="Create and remove throwaway hosts: containers with systemd, apt and SSH.",
    )
    host = parser.add_subparsers(required=True).add_parser("host", help="throwaway hosts")
    verbs = host.add_subparsers(required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--group", required=True, help="group of hosts, such as demo")
    common.add_argument("--check", action="store_true", help="report changes, change nothing")

    _add_ensure(verbs.add_parser, common)
    _add_remove(verbs.add_parser, common)
    listing = verbs.add_parser(
        "list", help="list the hosts of a group", description="Print hosts: the names in a group."
    )
    listing.add_argument("--group", required=True, help="group of hosts, such as demo")
    listing.set_defaults(run=list_hosts)
    return parser.parse_args(argv)


def _add_ensure(
    add_parser: Callable[..., argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    """Add the verb ensure."""
    parser = add_parser(
        "ensure",
        parents=[common],
        help="create or start a host",
        description=(
            "Create a host, start a stopped host, or keep a running one. Starts a Docker Engine"
            " where none answers, which requires root. Prints changed, address, user,"
            " private_key_file, known_hosts_file, ssh_common_args, system_state and variables"
            " (role variables of a simulated GPU host)."
        ),
    )
    parser.set_defaults(run=ensure)
    parser.add_argument("--name", required=True, help="the host's name in its group")
    parser.add_argument(
        "--base",
        choices=[name for name, base in BASES.items() if not base.is_emulated],
        default=DEFAULT_BASE,
        help=(
            f"operating system (default {DEFAULT_BASE}); ubuntu-like is Debian 13 with Ubuntu's"
            " os-release, for machines that cannot pull Ubuntu's image"
        ),
    )
    parser.add_argument(
        "--architecture",
        choices=ARCHITECTURES.values(),
        help=(
            "dpkg architecture of the host (default: that of this machine); an x86 machine emulates"
            " arm64 with qemu-user, without containers on the host"
        ),
    )
    parser.add_argument(
        "--gpu", metavar="MODEL", help="simulate a GPU host with stand-ins, such as t4 or 8xh100"
    )


def _add_remove(
    add_parser: Callable[..., argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    """Add the verb remove."""
    parser = add_parser(
        "remove",
        parents=[common],
        help="remove a group of hosts",
        description="Remove a group with its containers, volumes and state folder. Prints changed.",
    )
    parser.set_defaults(run=remove)
    parser.add_argument("--name", help="remove only this host")
    parser.add_argument(
        "--purge", action="store_true", help="also remove base images that no host uses"
    )
    parser.add_argument(
        "--stop-engine",
        action="store_true",
        help="also stop the engine if this command started it and no container is left",
    )


def connection(host: Host) -> dict[str, Any]:
    """Return the connection of a host as JSON values."""
    return {
        "changed": host.changed,
        "base": host.base,
        "address": host.address,
        "user": host.user,
        "private_key_file": str(host.private_key_file),
        "known_hosts_file": str(host.known_hosts_file),
        "ssh_common_args": shlex.join(host.ssh_options),
        "system_state": host.system_state,
    }


def ensure(options: argparse.Namespace) -> dict[str, Any]:
    """Create or start a host; with --check, report whether this is necessary."""
    group = Group(options.group)
    check_name("host name", options.name)
    base = emulation.base_for(options.base, options.architecture)
    is_emulated = base_named(base).is_emulated
    if is_emulated:
        emulation.check_machine()
    simulated = None
    if options.gpu is not None:
        gpu_host.check_model(options.gpu)
        folder = group.state.stand_ins(options.name) / f"{options.gpu}-{base}"
        if not options.check:
            simulated = gpu_host.prepare(folder, options.gpu, base)
        elif folder.exists():
            simulated = gpu_host.describe(folder, base)
        else:
            return {"changed": True, "base": base}
    spec = HostSpec(options.name, base, mounts=simulated.mounts if simulated else ())
    if options.check and group.pending_action(spec) is not Action.KEEP:
        return {"changed": True, "base": base}
    variables = simulated.variables if simulated else {}
    if simulated and options.gpu in CUDA_MODELS:
        variables = simulated.cuda_variables
    if is_emulated:
        variables = {**variables, **emulation.VARIABLES}
    return {**connection(group.ensure(spec)), "variables": variables}


def remove(options: argparse.Namespace) -> dict[str, Any]:
    """Remove a host or a group and, if requested, unused base images and an idle engine."""
    group = Group(options.group)
    changed = group.remove(options.name, dry_run=options.check)
    if options.purge:
        changed |= purge_bases(group.engine, dry_run=options.check)
    if options.stop_engine:
        changed |= group.engine.stop_if_idle(dry_run=options.check)
    return {"changed": changed}


def list_hosts(options: argparse.Namespace) -> dict[str, Any]:
    """Return the names of a group's hosts."""
    return {"hosts": Group(options.group).state.names()}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; print its result, or the error on stderr."""
    options = arguments(argv)
    try:
        result = options.run(options)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
