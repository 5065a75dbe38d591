# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs ``ml`` and the aliases: every alias is a link to this program.

An alias imports only the modules that start a container, because each start waits for the imports.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from . import settings
from .complete import ML
from .errors import MlError

# As docker's own: the container was not started, so this is not its exit status.
EXIT_NOT_STARTED = 125
EXIT_FAILED = 1
# How much an unknown section must be like a command, from 0 to 1, to be a misspelt one.
LIKENESS = 0.75


def main(program: str, words: Sequence[str]) -> int:
    """Run the command with the name of PROGRAM; return the exit status."""
    open_standard_streams()
    name = os.path.basename(program)
    try:
        status = run(name, words)
        sys.stdout.flush()
    except MlError as error:
        return fail(name, str(error))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader of the output has ended, as in ml list | head.
        discard_output()
        return 128 + signal.SIGPIPE
    except OSError as error:
        # Output is the only work left without an explanation of its own, such as a full disk.
        discard_output()
        return fail(name, f"cannot write the output: {error.strerror or error}")
    except Exception as error:  # A person at a terminal cannot use a traceback.
        return fail(name, f"internal error: {error!r}. Report it to the project Slipway")
    return status


def run(name: str, words: Sequence[str]) -> int:
    """Run ``ml`` or an alias; return the exit status.  Raise MlError for problems of the caller."""
    host = settings.read_host()
    if name == ML:
        from . import commands

        return commands.run_ml(host, words)
    from . import start

    # The person has read these sentences before the job.
    if "SLURMD_NODENAME" not in os.environ:
        start.print_messages(name, misspelt_sections(settings.user_file(), host.aliases))
    return start.run_alias(host, name, words)


def misspelt_sections(file: Path, names: Iterable[str]) -> list[str]:
    """Return a sentence for each section of the user's file with almost the name of a command.

    NAMES are the commands of this host.  Other unknown names may be commands of another host with
    the same home folder.  A file that cannot be read has none: `settings.read_user_layer` fails.
    """
    try:
        text = settings.read_user_file(file)
    except (OSError, ValueError):
        return []
    known = [*names, settings.ALL_ALIASES]
    unknown = [name for name in re.findall(r"^\[(.+)\]", text, re.MULTILINE) if name not in known]
    if not unknown:
        return []
    import difflib

    return [
        f"{file}: [{name}] is not a command of this host, so its settings are ignored. "
        f"Did you mean [{near[0]}]?"
        for name in unknown
        if (near := difflib.get_close_matches(name, known, n=1, cutoff=LIKENESS))
    ]


def fail(name: str, message: str) -> int:
    """Print an error of a command; return its exit status."""
    print(f"{name}: {message}", file=sys.stderr)
    return EXIT_FAILED if name == ML else EXIT_NOT_STARTED


def open_standard_streams() -> None:
    """Open missing standard streams, and print any text in any locale.

    Without this, a socket could become the standard input of the container.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def discard_output() -> None:
    """Send unwritten output to /dev/null, so that the end of this process does not fail."""
    descriptor = os.open(os.devnull, os.O_WRONLY)
    os.dup2(descriptor, 1)
    os.close(descriptor)
