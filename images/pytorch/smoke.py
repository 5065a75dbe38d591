# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Train a small network, on the GPU where there is one, and see the run in TensorBoard."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path

import smoke_kit
import torch

LOGS = Path(tempfile.mkdtemp())
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def a_network_learns() -> str:
    """A network learns to tell the species of irises."""
    from sklearn.datasets import load_iris
    from torch.utils.tensorboard import SummaryWriter

    torch.manual_seed(0)
    iris = load_iris()
    features = torch.tensor(iris.data, dtype=torch.float32, device=DEVICE)
    species = torch.tensor(iris.target, device=DEVICE)
    model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3)).to(
        DEVICE
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    with SummaryWriter(str(LOGS)) as writer:
        for epoch in range(100):
            loss = torch.nn.functional.cross_entropy(model(features), species)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            writer.add_scalar("loss", loss.item(), epoch)
    accuracy = (model(features).argmax(1) == species).float().mean().item()
    if accuracy < 0.95:
        raise smoke_kit.SmokeError(f"accuracy {accuracy} after 100 epochs on {DEVICE}")
    return f"torch {torch.__version__} on {DEVICE}, accuracy {accuracy:.3f}"


def every_gpu_computes() -> str:
    """Each GPU multiplies matrices of integers exactly as the CPU does."""
    left = torch.arange(512 * 512, dtype=torch.float32).remainder(31).reshape(512, 512)
    expected = left @ left.T
    for number in range(torch.cuda.device_count()):
        on_gpu = left.to(f"cuda:{number}")
        smoke_kit.expect(f"GPU {number}", torch.equal((on_gpu @ on_gpu.T).cpu(), expected), True)
    return f"{torch.cuda.device_count()} GPUs"


def add_up(rank: int, count: int, backend: str, file: str) -> None:
    """Add up a tensor over all processes, each with the GPU of its RANK."""
    torch.distributed.init_process_group(
        backend, init_method=f"file://{file}", rank=rank, world_size=count
    )
    where = f"cuda:{rank}" if backend == "nccl" else "cpu"
    tensor = torch.full((1 << 20,), float(rank + 1), device=where)
    torch.distributed.all_reduce(tensor)
    smoke_kit.expect("sum", tensor.unique().tolist(), [count * (count + 1) / 2])
    torch.distributed.destroy_process_group()


def processes_add_up_together() -> str:
    """One process for each GPU, or two without GPUs, add up a tensor by NCCL or gloo."""
    gpus = torch.cuda.device_count()
    count, backend = (gpus, "nccl") if gpus else (2, "gloo")
    with tempfile.TemporaryDirectory() as folder:
        arguments = (count, backend, f"{folder}/rendezvous")
        torch.multiprocessing.spawn(add_up, arguments, nprocs=count)
    return f"{count} processes by {backend}"


def a_function_is_compiled() -> None:
    """torch.compile has a compiler and makes what the function says."""
    doubled = torch.compile(lambda x: torch.sin(x) * 2)
    x = torch.linspace(0, 1, 8, device=DEVICE)
    smoke_kit.expect("close", torch.allclose(doubled(x), torch.sin(x) * 2), True)


def an_image_is_classified() -> str:
    """torchvision runs a network and its own operators."""
    if importlib.util.find_spec("torchvision") is None:
        return "not in this image: its wheels for CPUs were not at hand when it was locked"
    import torchvision

    model = torchvision.models.resnet18(weights=None).eval().to(DEVICE)
    smoke_kit.expect(
        "shape", tuple(model(torch.zeros(1, 3, 64, 64, device=DEVICE)).shape), (1, 1000)
    )
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]], device=DEVICE)
    kept = torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8], device=DEVICE), 0.5)
    smoke_kit.expect("boxes that are kept", kept.tolist(), [0])
    return f"torchvision {torchvision.__version__}"


def tensorboard_shows_the_run() -> None:
    """TensorBoard shows the run."""
    smoke_kit.tensorboard_shows(LOGS, "loss")


if __name__ == "__main__":
    smoke_kit.main(
        a_network_learns,
        every_gpu_computes,
        processes_add_up_together,
        a_function_is_compiled,
        an_image_is_classified,
        tensorboard_shows_the_run,
        smoke_kit.python_notebook_runs,
        smoke_kit.jupyter_lets_in_by_token_alone,
    )
