#!/opt/venv/bin/python
# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""start-notebook.py [ARGUMENTS FOR JUPYTER]: start Jupyter.

Variables: DOCKER_STACKS_JUPYTER_CMD is the program, default lab. NOTEBOOK_ARGS are more arguments.
RESTARTABLE=yes starts Jupyter again when it ends. GEN_CERT=yes creates a certificate and serves
HTTPS. With JUPYTERHUB_API_TOKEN, jupyterhub-singleuser starts.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

YES = ("1", "true", "yes")


def jupyter_command(variables: Mapping[str, str], arguments: Sequence[str]) -> list[str]:
    """Return the command that starts Jupyter.

    Raise ValueError for quotes in NOTEBOOK_ARGS that do not match.
    """
    extra = shlex.split(variables.get("NOTEBOOK_ARGS", ""))
    if variables.get("JUPYTERHUB_API_TOKEN"):
        return ["jupyterhub-singleuser", *extra, *arguments]
    program = variables.get("DOCKER_STACKS_JUPYTER_CMD") or "lab"
    command = ["jupyter", program, *extra, *arguments]
    if variables.get("RESTARTABLE", "").lower() in YES:
        return ["run-one-constantly", *command]
    return command


def create_certificate(folder: Path) -> Path:
    """Return a file with a key and its certificate, created if it is missing."""
    file = folder / "notebook.pem"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}")
        # The file contains the key.
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        options = ["-x509", "-nodes", "-newkey", "rsa:2048", "-days", "365"]
        subprocess.run(
            [
                *("openssl", "req", *options, "-subj", "/CN=localhost"),
                *("-keyout", str(partial), "-out", f"{partial}.crt"),
            ],
            check=True,
            capture_output=True,
        )
        certificate = Path(f"{partial}.crt")
        with partial.open("ab") as stream:
            stream.write(certificate.read_bytes())
        certificate.unlink()
        partial.replace(file)
    return file


def main() -> int:
    """Start Jupyter in the place of this program; return an exit status if that fails."""
    try:
        command = jupyter_command(os.environ, sys.argv[1:])
    except ValueError as error:
        print(f"NOTEBOOK_ARGS: {error}; expected arguments as in a shell", file=sys.stderr)
        return 2
    if command[0] == "jupyterhub-singleuser":
        print("WARNING: using start-singleuser.py instead of start-notebook.py", flush=True)
    elif os.environ.get("GEN_CERT"):
        file = create_certificate(Path.home() / ".local/share/jupyter")
        command += [f"--ServerApp.certfile={file}"]
    print(f"Executing: {shlex.join(command)}", flush=True)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(
            f"{command[0]}: {error.strerror}. Build an image on this one that contains it",
            file=sys.stderr,
        )
        return 127


if __name__ == "__main__":
    sys.exit(main())
