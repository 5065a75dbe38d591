# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Print a file for another tool, made from the inventory and the reports of earlier runs.

Usage: ./slipway export TARGET [--out FILE] [--name NAME] [--port PORT]
                        [ARGUMENTS FOR ansible-playbook ...]

  ssh-config   a configuration of OpenSSH: ssh -F FILE HOST, or Include FILE in ~/.ssh/config
  skypilot     an SSH node pool of SkyPilot: ~/.sky/ssh_node_pools.yaml
  dstack       an SSH fleet of dstack
  ray          a cluster of the Ray cluster launcher
  gpustack     GPUStack workers for Docker Compose
  prometheus   targets of node_exporter for file_sd_configs of Prometheus

  --out FILE         write FILE at once instead of printing
  --name NAME        name of the pool, fleet or cluster; default: slipway
  --port PORT        port of node_exporter, only for prometheus; default: 9100
  --limit HOST,...   only these hosts or groups
  -i INVENTORY       another inventory than inventory/hosts.yml

Connects to no host. Held hosts are left out; except from ssh-config and prometheus, so are hosts
that the last run did not reach. The output has no passwords and no keys, only paths of keys. What
each tool needs next: docs/export.md. Exit status: 0 done, 1 an error; then nothing is written.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "collections"))

from ansible_collections.slipway.host.plugins.plugin_utils.export import formats, hosts  # noqa: E402
from ansible_collections.slipway.host.plugins.plugin_utils.fleet import store  # noqa: E402

HIGHEST_PORT = 65535


def say(sentence: str) -> None:
    """Print a message."""
    print(f"slipway: export: {sentence}", file=sys.stderr)


class Parser(argparse.ArgumentParser):
    """Reports errors in the form of Slipway."""

    def error(self, message: str) -> NoReturn:
        """Exit with the reason."""
        raise hosts.ExportError(f"{message}. See ./slipway export --help.")


def parse(arguments: Sequence[str]) -> tuple[str, argparse.Namespace, list[str]]:
    """Return target, options of this program, and the other arguments; raise ExportError."""
    parser = Parser(prog="export", add_help=False, allow_abbrev=False)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--name", default=formats.Options.name)
    parser.add_argument("--port", type=int, default=formats.Options.port)
    target, *rest = arguments or [""]
    if target not in formats.TARGETS:
        nearest = difflib.get_close_matches(target, formats.TARGETS, n=1)
        raise hosts.ExportError(
            f"target {target!r}; expected one of: {' '.join(formats.TARGETS)}. "
            + "".join(f"Did you mean {name}? " for name in nearest)
            + "./slipway export --help explains the targets."
        )
    options, others = parser.parse_known_args(rest)
    if not formats.GROUP_NAME.fullmatch(options.name):
        raise hosts.ExportError(
            f"--name {options.name!r}; expected 2 to 41 lower-case letters, digits and hyphens, a "
            "letter first. Choose another name."
        )
    if options.port not in range(1, HIGHEST_PORT + 1):
        raise hosts.ExportError(f"--port {options.port}; expected 1 to {HIGHEST_PORT}. Correct it.")
    return target, options, others


def read_connections(arguments: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return hold and connection by host, in the order of the inventory; raise ExportError."""
    with tempfile.TemporaryDirectory() as folder:
        report, results = Path(folder) / "report.json", Path(folder) / "hosts"
        results.mkdir()
        variables = json.dumps({"slipway_export_folder": str(results)})
        run = subprocess.run(
            [
                *("ansible-playbook", str(ROOT / "playbooks/export.yml"), *arguments),
                *("--extra-vars", variables),
            ],
            env={
                **os.environ,
                "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default",
                "SLIPWAY_REPORT": str(report),
                "SLIPWAY_REPORTS": os.devnull,
            },
            capture_output=True,
            text=True,
            check=False,
        )
        found = [json.loads(file.read_text(encoding="utf-8")) for file in results.iterdir()]
        ended = json.loads(report.read_text(encoding="utf-8")) if report.exists() else {}
    sys.stderr.writelines(
        line for line in run.stderr.splitlines(True) if line.startswith("[WARNING]")
    )
    errors = [f"{host}: {entry['error']}" for host, entry in ended.items() if entry["error"]]
    if errors:
        raise hosts.ExportError(*errors)
    if run.returncode or not found:
        raise hosts.ExportError(run.stderr.strip() or run.stdout.strip())
    found.sort(key=lambda entry: int(entry["position"]))
    return {entry["host"]: entry for entry in found}


def read_reports(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the report of each host that has one."""
    folder = Path(os.environ.get("SLIPWAY_REPORTS") or ROOT / "reports")
    if not folder.is_dir():
        return {}
    reports = store.Store(folder, say)
    return {name: reports.read(store.file_name(name)) for name in names}


def write(path: Path, text: str) -> None:
    """Replace a file at once; write to a device or a pipe directly. Raise OSError."""
    path = path.expanduser().resolve()
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")
        return
    umask = os.umask(0o077)
    os.umask(umask)
    # ssh refuses a configuration that a group can write.
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o644 & ~umask
    store.replace_file(path, text, mode)


def export(arguments: Sequence[str]) -> None:
    """Print or write the file; raise ExportError."""
    name, options, others = parse(arguments)
    target = formats.TARGETS[name]
    connections = read_connections(others)
    reports = read_reports(list(connections))
    selection = hosts.select(connections, reports, Path.cwd(), target.with_unreachable)
    text = target.render(selection, formats.Options(options.name, options.port))
    for note in selection.notes:
        say(f"{note}.")
    if options.out is None:
        print(text, end="", flush=True)
        return
    try:
        write(options.out, text)
    except OSError as error:
        raise hosts.ExportError(
            f"--out {options.out}: {error.strerror}; expected a file that you can write. Choose "
            "another one."
        ) from None
    say(f"wrote {options.out}")


def main(arguments: list[str]) -> int:
    """Export the hosts; return the exit status."""
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    try:
        export(arguments)
    except hosts.ExportError as error:
        for sentence in error.sentences:
            say(sentence)
        return 1
    return 0


if __name__ == "__main__":
    try:
        result = main(sys.argv[1:])
    except BrokenPipeError:
        # The reader of the output has ended, as in export ssh-config | head.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        result = 1
    except KeyboardInterrupt:
        result = 130
    sys.exit(result)
