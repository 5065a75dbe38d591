# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tune a small language model with LoRA, without a network."""

from __future__ import annotations

import tempfile
from typing import Any

import smoke_kit

SENTENCES = [f"ship {number} slides down the slipway." for number in range(40)]
STEPS = 20


def byte_tokenizer() -> Any:
    """Return a tokenizer with a token for each byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(("<s>", "</s>", *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def tune(base: Any, tokenizer: Any) -> Any:
    """Return the trainer that tuned a model with LoRA."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig, TaskType, get_peft_model
    from trl import SFTConfig, SFTTrainer

    lora = LoraConfig(r=8, target_modules="all-linear", task_type=TaskType.CAUSAL_LM)
    settings = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        max_steps=STEPS,
        per_device_train_batch_size=8,
        learning_rate=2e-2,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        max_length=48,
        bf16=False,
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = SFTTrainer(
        model=get_peft_model(base, lora),
        args=settings,
        train_dataset=Dataset.from_dict({"text": SENTENCES}),
        processing_class=tokenizer,
    )
    trainer.train()
    return trainer


def lora_lowers_the_loss() -> str:
    """20 steps of LoRA lower the loss of a Llama, and the tuned weights can be loaded."""
    import torch
    from peft import PeftModel
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        # Large enough for features that LoRA can use, because nothing is trained before.
        initializer_range=0.1,
    )
    base = LlamaForCausalLM(config)
    frozen = base.model.embed_tokens.weight.detach().clone()
    trainer = tune(base, tokenizer)
    losses = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    smoke_kit.expect("steps", len(losses), STEPS)
    smoke_kit.expect("the loss is lower at the end", losses[-1] < losses[0] / 2, True)
    weight = base.model.embed_tokens.weight.detach().cpu()
    smoke_kit.expect("the base is unchanged", bool(torch.equal(weight, frozen)), True)
    folder = tempfile.mkdtemp()
    trainer.save_model(folder)
    PeftModel.from_pretrained(LlamaForCausalLM(config), folder)
    return f"loss {losses[0]:.2f} to {losses[-1]:.2f} on {trainer.args.device}"


if __name__ == "__main__":
    smoke_kit.main(
        lora_lowers_the_loss,
        smoke_kit.python_notebook_runs,
        smoke_kit.jupyter_lets_in_by_token_alone,
    )
