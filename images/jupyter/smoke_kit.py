# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the smoke tests of all images with Jupyter share; lies beside them in the image.

A smoke test is a list of steps, each a function that raises where the image does not do its job.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

# Of a host that is busy, too.
START_SECONDS = 180.0


class SmokeError(Exception):
    """The image does not do its job; the text says what was found and what was expected."""


def expect(what: str, found: object, wanted: object) -> None:
    """Raise SmokeError where what was found is not what was wanted."""
    if found != wanted:
        raise SmokeError(f"{what}: got {found!r}, wanted {wanted!r}")


def main(*steps: Callable[[], object]) -> None:
    """Run the steps in order, tell each with its time, and exit 1 at the first that fails."""
    # As where a person's folder is mounted; some tools, like PyStan's compiler, write beside them.
    os.chdir(tempfile.mkdtemp())
    for step in (runs_as_anybody, *steps):
        began = time.monotonic()
        title = (step.__doc__ or step.__name__).splitlines()[0].rstrip(".")
        try:
            said = step()
        except Exception:
            traceback.print_exc()
            print(f"smoke: FAILED: {title}", file=sys.stderr)
            sys.exit(1)
        told = f" ({said})" if said else ""
        print(f"smoke: {time.monotonic() - began:5.1f} s  {title}{told}", flush=True)


def runs_as_anybody() -> None:
    """Runs as a user of any number, with a home to write to."""
    expect("running as root", os.getuid() == 0, False)
    for folder in (Path.home(), Path.home() / ".cache", Path(tempfile.gettempdir())):
        folder.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass


def get(url: str, token: str = "") -> tuple[int, str]:
    """Return the status and the text of a page, with Jupyter's token if one is given."""
    headers = {"Authorization": f"token {token}"} if token else {}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=10
        ) as answer:
            return answer.status, answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")


@contextlib.contextmanager
def server(command: Sequence[str], url: str) -> Iterator[Path]:
    """Run a server until the block ends; begin when it answers at `url`. Yield its log."""
    with tempfile.NamedTemporaryFile("wb", suffix=".log", delete=False) as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    file = Path(log.name)
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(OSError):
                get(url)
                break
            if process.poll() is not None or time.monotonic() > deadline:
                said = file.read_text(errors="replace")[-3000:]
                raise SmokeError(f"{command[0]} does not answer at {url}:\n{said}")
            time.sleep(0.2)
        yield file
        process.terminate()
        process.wait(timeout=30)
    finally:
        process.kill()


def jupyter_lets_in_by_token_alone() -> None:
    """Jupyter opens with the token that it makes up, and with none or another it does not."""
    url = "http://127.0.0.1:8888"
    with server(["jupyter", "lab"], f"{url}/api") as log:
        found = re.search(r"/lab\?token=(\w{32,})", log.read_text(errors="replace"))
        if not found:
            raise SmokeError(f"Jupyter printed no token:\n{log.read_text(errors='replace')}")
        expect("status without a token", get(f"{url}/api/status")[0], 403)
        expect("status with another token", get(f"{url}/api/status", "x" * 48)[0], 403)
        status, text = get(f"{url}/api/status", found[1])
        expect("status with the token", (status, "started" in json.loads(text)), (200, True))
        status, text = get(f"{url}/lab?token={found[1]}")
        expect("the page", (status, "JupyterLab" in text), (200, True))
        health = subprocess.run([sys.executable, "/opt/slipway/jupyter_health.py"], check=False)
        expect("exit status of the health check", health.returncode, 0)
    refused = subprocess.run(
        ["jupyter", "lab", "--IdentityProvider.token="],
        capture_output=True,
        text=True,
        check=False,
        timeout=START_SECONDS,
    )
    expect("starting without a token", refused.returncode, 1)


def notebook(kernel: str, source: str) -> str:
    """Execute a notebook with one cell and return what the cell printed."""
    import nbformat
    from nbclient import NotebookClient

    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    NotebookClient(made, timeout=120, kernel_name=kernel).execute()
    return "".join(output.get("text", "") for output in made.cells[0].outputs)


def python_notebook_runs() -> None:
    """A notebook with the Python kernel is executed."""
    expect("the cell's output", notebook("python3", "print(6 * 7)"), "42\n")


def tensorboard_shows(logs: Path, tag: str) -> None:
    """See TensorBoard's page, and the scalar `tag` of the run in `logs`."""
    url = "http://127.0.0.1:6006"
    with server(["tensorboard", "--logdir", str(logs), "--port", "6006"], url):
        status, text = get(url)
        expect("the page", (status, "TensorBoard" in text), (200, True))
        deadline = time.monotonic() + START_SECONDS
        while tag not in get(f"{url}/data/plugin/scalars/tags")[1]:
            if time.monotonic() > deadline:
                raise SmokeError(f"TensorBoard does not show the scalar {tag}")
            time.sleep(0.5)
