# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Start all services, use each as a person would, and let each framework learn something."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import smoke_kit

# The smoke test of ml-python, which lies beside this one.
from smoke import keras_learns, tensorflow_learns, torch_learns, xgboost_learns

RUN = Path(f"/tmp/services-{os.getuid()}")
CONTROL = ["supervisorctl", "--configuration", "/opt/slipway/services/supervisord.conf"]
KEY = Path(tempfile.mkdtemp()) / "key"
SSH = [
    *("ssh", "-p", "22", "-o", "StrictHostKeyChecking=accept-new", "-o", "BatchMode=yes"),
    *("-o", f"UserKnownHostsFile={KEY}.known", "slipway@127.0.0.1"),
]
TOKEN = "a-token-that-the-smoke-test-chose"
SECONDS = 90


def wait_for(what: str, condition: Callable[[], bool], output: Path) -> None:
    """Return when the condition holds; raise SmokeError with the output if it never does."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > deadline:
            said = output.read_text(errors="replace")[-4000:]
            raise smoke_kit.SmokeError(
                f"{what}: not within {SECONDS} s. The services said:\n{said}"
            )
        time.sleep(0.5)


def healthy() -> bool:
    """Whether services were started and the image's health check says that they do their job."""
    check = [sys.executable, "/opt/slipway/services_health.py"]
    started = (RUN / "control").exists()
    return started and subprocess.run(check, capture_output=True, check=False).returncode == 0


def services_do_their_job() -> str:
    """All services start, answer, and are started again when they die."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(KEY)], check=True)
    output = KEY.with_name("output")
    os.environ.update(
        JUPYTER_TOKEN=TOKEN,
        SSH_AUTHORIZED_KEYS=KEY.with_suffix(".pub").read_text(),
        # supervisorctl reads the same settings as the services.
        RUN=f"/tmp/services-{os.getuid()}",
        NAMES="",
        NAME="",
        TENSORBOARD_LOGS=".",
    )
    with output.open("wb") as log:
        services = subprocess.Popen(["run_all.sh"], stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_for("the services are healthy", healthy, output)
        wait_for("Shiny runs an app", shiny_runs_an_app, output)
        jupyter_lets_in_by_token()
        smoke_kit.expect(
            "TensorBoard's page", "TensorBoard" in smoke_kit.get("http://127.0.0.1:6006")[1], True
        )
        ssh_lets_in_by_key_alone()
        what_dies_is_started_again(output)
        said = output.read_text(errors="replace")
        smoke_kit.expect("the output tells of Jupyter", "Serving notebooks" in said, True)
        rstudio = Path("/usr/lib/rstudio-server/bin/rserver").exists()
        return "with RStudio" if rstudio else "without RStudio, whose package was not given"
    finally:
        services.terminate()
        services.wait(timeout=30)


def shiny_runs_an_app() -> bool:
    """Whether R itself answers with the page of the example."""
    try:
        status, text = smoke_kit.get("http://127.0.0.1:3838/hello/")
    except OSError:
        return False
    return status == 200 and "Hello from Shiny" in text and "waiting" in text


def jupyter_lets_in_by_token() -> None:
    """Raise SmokeError where Jupyter's door is open or does not open."""
    url = "http://127.0.0.1:8888/api/status"
    smoke_kit.expect("status without a token", smoke_kit.get(url)[0], 403)
    smoke_kit.expect("status with the token", smoke_kit.get(url, TOKEN)[0], 200)


def ssh_lets_in_by_key_alone() -> None:
    """Raise SmokeError where SSH refuses the key or takes anything else."""
    came_in = subprocess.run(
        [*SSH[:-1], "-i", str(KEY), SSH[-1], "id -u; python -c 'import torch'; whoami"],
        capture_output=True,
        text=True,
        check=False,
    )
    if came_in.stdout.split()[:1] != [str(os.getuid())] or came_in.returncode != 0:
        raise smoke_kit.SmokeError(f"SSH by key: {came_in.stdout}{came_in.stderr}")
    refused = subprocess.run(
        [*SSH[:-1], "-o", "IdentityFile=none", SSH[-1], "true"],
        capture_output=True,
        text=True,
        check=False,
    )
    asked_for = "Permission denied (publickey)" in refused.stderr
    smoke_kit.expect("SSH without the key is refused", (refused.returncode, asked_for), (255, True))


def what_dies_is_started_again(output: Path) -> None:
    """Raise SmokeError where a service stays dead."""

    def process() -> str:
        asked = [*CONTROL, "pid", "tensorboard"]
        return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()

    first = process()
    os.kill(int(first), 9)
    wait_for("TensorBoard is back", lambda: process() not in (first, "0", "") and healthy(), output)


def without_keys_there_is_no_ssh() -> None:
    """SSH is off unless somebody's key is given; RStudio that is not there is told of."""
    environment = {k: v for k, v in os.environ.items() if k != "SSH_AUTHORIZED_KEYS"}
    asked = subprocess.run(
        ["run_all.sh", "ssh"], env=environment, capture_output=True, text=True, check=False
    )
    smoke_kit.expect("ssh without keys", (asked.returncode, "needs SSH" in asked.stderr), (2, True))
    with socket.socket() as client:
        smoke_kit.expect("port 22 is closed", client.connect_ex(("127.0.0.1", 22)) != 0, True)


def no_keys_are_in_the_image() -> None:
    """The image holds no key of an SSH server."""
    smoke_kit.expect("host keys", list(Path("/etc/ssh").glob("ssh_host_*")), [])


def r_notebook_runs() -> str:
    """A notebook with the R kernel is executed, and draws."""
    cell = (
        "library(ggplot2); library(dplyr, warn.conflicts = FALSE)\n"
        "means <- mtcars |> group_by(cyl) |> summarise(mpg = mean(mpg))\n"
        "drawing <- ggplot(means, aes(cyl, mpg)) + geom_col()\n"
        "invisible(ggsave('r.png', drawing, width = 3, height = 3))\n"
        "cat(nrow(means), file.exists('r.png'), as.character(getRversion()))"
    )
    said = smoke_kit.notebook("ir", cell).split()
    smoke_kit.expect("the cell's output", said[:2], ["3", "TRUE"])
    return f"R {said[2]}"


def lightning_trains() -> str:
    """Lightning trains a model."""
    import lightning
    import torch

    class Line(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def training_step(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
            return torch.nn.functional.mse_loss(self.layer(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=0.1)

    lightning.seed_everything(0)
    x = torch.linspace(-1, 1, 64).unsqueeze(1)
    data = torch.utils.data.TensorDataset(x, 3 * x + 1)
    model = Line()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(max_epochs=60, enable_model_summary=False, **quiet)
    trainer.fit(model, torch.utils.data.DataLoader(data, batch_size=16, shuffle=True))
    smoke_kit.expect("the slope", round(model.layer.weight.item(), 1), 3.0)
    return f"lightning {lightning.__version__}"


def pytensor_compiles() -> str:
    """PyTensor, Theano's successor, differentiates and compiles a function."""
    import pytensor

    x = pytensor.tensor.dscalar("x")
    slope = pytensor.function([x], pytensor.grad(x**2, x))
    smoke_kit.expect("the slope at 3", float(slope(3.0)), 6.0)
    return f"pytensor {pytensor.__version__}"


def folders_of_the_first_deepdocker_work() -> None:
    """A folder below /root can be opened, and run_all.sh is in the first folder."""
    smoke_kit.expect("/root can be passed", os.access("/root", os.X_OK), True)
    program = Path("/work/run_all.sh").resolve()
    smoke_kit.expect("/work/run_all.sh", program, Path("/usr/local/bin/run_all.sh"))


if __name__ == "__main__":
    if "NSS_WRAPPER_PASSWD" not in os.environ:
        # As the image's own entrypoint does.
        os.execv("/opt/slipway/named", ["named", sys.executable, *sys.argv])
    smoke_kit.main(
        folders_of_the_first_deepdocker_work,
        no_keys_are_in_the_image,
        without_keys_there_is_no_ssh,
        services_do_their_job,
        torch_learns,
        lightning_trains,
        tensorflow_learns,
        keras_learns,
        pytensor_compiles,
        xgboost_learns,
        smoke_kit.python_notebook_runs,
        r_notebook_runs,
    )
