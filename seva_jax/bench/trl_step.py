"""TRL's side of `step.py`: `DPOTrainer` with a given batch instead of its data loader."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seva_jax.batches.trees import TreeExample
from seva_jax.models import LoraConfig
from seva_jax.types import DataError


def trl_side(
    directory: Path,
    trees: Sequence[TreeExample],
    adapters: Mapping[str, Mapping[str, np.ndarray]],
    lora: LoraConfig,
    dtype: str,
    beta: float,
    lr: float,
) -> Callable[[], float]:
    """Returns a function that runs one step of TRL's trainer and returns its loss.

    Args:
        directory: a Hugging Face LLaVA directory.
        trees: the batch; all answers have the same length.
        adapters: values by layer name: "a" [L, in, R] and "b" [L, R, out].
        lora: configuration of the adapters.
        dtype: dtype of the frozen weights.
        beta: beta of DPO.
        lr: learning rate of AdamW.

    Raises:
        DataError: TRL is not installed.
    """
    try:
        import peft
        import torch
        import transformers
        from datasets import Dataset  # pyright: ignore[reportMissingImports]
        from PIL import Image
        from trl.trainer.dpo_config import DPOConfig  # pyright: ignore[reportMissingImports]
        from trl.trainer.dpo_trainer import DPOTrainer  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise DataError(f"{error}; pip install 'seva_jax[bench]', or give --no-trl") from None

    model = transformers.LlavaForConditionalGeneration.from_pretrained(
        directory, dtype=getattr(torch, dtype)
    )
    picture = Image.new("RGB", (8, 8))
    data = Dataset.from_list([
        {
            "images": [picture],
            "prompt": [{"role": "user", "content": "w1"}],
            "chosen": [{"role": "assistant", "content": "w2"}],
            "rejected": [{"role": "assistant", "content": "w3"}],
        }
    ])  # fmt: skip
    trainer: Any = DPOTrainer(
        model=model,
        args=DPOConfig(
            output_dir=str(directory / "trl"), beta=beta, learning_rate=lr, report_to=[],
            per_device_train_batch_size=len(trees), bf16=dtype == "bfloat16", max_length=None,
            lr_scheduler_type="constant", weight_decay=1e-4, max_grad_norm=0.0,
        ),
        processing_class=transformers.AutoProcessor.from_pretrained(directory),
        train_dataset=data,
        peft_config=peft.LoraConfig(
            r=lora.rank, lora_alpha=int(lora.alpha), lora_dropout=0.0,
            target_modules=r".*language_model\.layers\.\d+\.(self_attn|mlp)\."
            f"({'|'.join(lora.targets)})",
        ),
    )  # fmt: skip
    trainer.current_gradient_accumulation_steps = 1  # set by its loop, which is not run here
    policy = trainer.model
    with torch.no_grad():
        for name, values in policy.named_parameters():
            parts = name.split(".")
            if "lora_A" in parts or "lora_B" in parts:
                which = "a" if "lora_A" in parts else "b"
                layer = int(parts[parts.index("layers") + 1])
                target = next(part for part in parts if part in lora.targets)
                values.copy_(torch.tensor(adapters[target][which][layer].T))
    optimizer = trainer.create_optimizer()
    device = trainer.accelerator.device
    rows = [np.concatenate([t.trunk, t.branches[k]]) for k in range(2) for t in trees]
    answers = [
        np.arange(len(row)) >= len(t.trunk) for row, t in zip(rows, [*trees] * 2, strict=True)
    ]
    pixels = np.concatenate([t.images_IX for t in trees] * 2).transpose(0, 3, 1, 2)
    inputs = {
        "input_ids": torch.tensor(np.stack(rows), dtype=torch.long),
        "attention_mask": torch.ones(len(rows), len(rows[0]), dtype=torch.long),
        "completion_mask": torch.tensor(np.stack(answers), dtype=torch.long),
        "pixel_values": torch.tensor(pixels, dtype=getattr(torch, dtype)),
    }
    inputs = {name: x.to(device) for name, x in inputs.items()}
    policy.train()

    def run() -> float:
        loss = trainer.training_step(policy, dict(inputs))
        optimizer.step()
        optimizer.zero_grad()
        return float(loss)

    return run
