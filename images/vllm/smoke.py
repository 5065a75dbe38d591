# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Serve a small model with vLLM on a GPU, and let an OpenAI client complete its sentence."""

from __future__ import annotations

import os

import llm_smoke
import smoke_kit
import torch

# Little memory, and no minutes of compiling: the model is small.
os.environ["LLM_OPTIONS"] = "--enforce-eager --max-model-len 256 --gpu-memory-utilization 0.2"


def a_gpu_is_there() -> str:
    """The container has a GPU: vLLM computes on nothing else."""
    smoke_kit.expect("GPUs that PyTorch can use", torch.cuda.is_available(), True)
    return torch.cuda.get_device_name(0)


if __name__ == "__main__":
    smoke_kit.main(
        a_gpu_is_there,
        llm_smoke.the_server_works,
        llm_smoke.mistakes_are_named,
        llm_smoke.nothing_comes_from_a_hub,
    )
