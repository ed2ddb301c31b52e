"""TRL's side of `step.py`: `DPOTrainer` with a given batch instead of its data loader.

`python -m seva_jax.bench.trl_step JSON` runs it alone, see `other_side.py`; JSON has the options of
`StepBench`, and {} takes their defaults.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seva_jax.batches.trees import TreeExample
from seva_jax.bench.examples import BETA, LR, SIZES, examples
from seva_jax.bench.options import StepBench
from seva_jax.bench.other_side import Measured, free_memory, measure, next_smaller
from seva_jax.bench.weights import fill_adapters, torch_model
from seva_jax.models import LlavaConfig, LoraConfig
from seva_jax.types import DataError


class TrlStep:
    """One optimiser step of TRL's trainer on a fixed batch; a call returns its loss.

    Attributes:
        pairs: pairs of a micro-batch.
    """

    def __init__(
        self,
        directory: Path,
        config: LlavaConfig,
        trees: Sequence[TreeExample],
        lora: LoraConfig,
        dtype: str,
        micro_batches: int = 1,
    ) -> None:
        """Makes the trainer, with the weights and adapters of the other sides.

        Args:
            directory: a new directory for config and processor.
            config: the architecture.
            trees: the batch; all trunks and all answers have the same length.
            lora: configuration of the adapters.
            dtype: dtype of the frozen weights.
            micro_batches: equal parts of the batch whose gradients are accumulated.

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

        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = torch_model(directory, config, dtype, device)
        picture = Image.new("RGB", (8, 8))
        data = Dataset.from_list([
            {
                "images": [picture],
                "prompt": [{"role": "user", "content": "w1"}],
                "chosen": [{"role": "assistant", "content": "w2"}],
                "rejected": [{"role": "assistant", "content": "w3"}],
            }
        ])  # fmt: skip
        self._trainer: Any = DPOTrainer(
            model=model,
            args=DPOConfig(
                output_dir=str(directory / "trl"), beta=BETA, learning_rate=LR, report_to=[],
                per_device_train_batch_size=len(trees), bf16=dtype == "bfloat16", max_length=None,
                lr_scheduler_type="constant", weight_decay=1e-4, max_grad_norm=0.0,
                use_cpu=device == "cpu",
            ),
            processing_class=transformers.AutoProcessor.from_pretrained(directory),
            train_dataset=data,
            peft_config=peft.LoraConfig(
                r=lora.rank, lora_alpha=int(lora.alpha), lora_dropout=0.0,
                target_modules=r".*language_model\.layers\.\d+\.(self_attn|mlp)\."
                f"({'|'.join(lora.targets)})",
            ),
        )  # fmt: skip
        self._lora, self._trees, self._dtype = lora, trees, getattr(torch, dtype)
        self.pairs = len(trees) // micro_batches
        self._start()

    def _start(self) -> None:
        """Puts adapters and optimiser in their initial state."""
        import torch

        with torch.no_grad():
            fill_adapters(self._trainer.model, self._lora)
        self._trainer.model.train()
        self._trainer.optimizer = None
        self._optimizer = self._trainer.create_optimizer()
        self._optimizer.zero_grad()
        parts = range(0, len(self._trees), self.pairs)
        self._parts = [self._inputs(self._trees[i : i + self.pairs]) for i in parts]
        # Set by the trainer's loop, which is not run here.
        self._trainer.current_gradient_accumulation_steps = len(self._parts)

    def _inputs(self, trees: Sequence[TreeExample]) -> dict[str, Any]:
        import torch

        rows = [np.concatenate([t.trunk, t.branches[k]]) for k in range(2) for t in trees]
        answers = [
            np.arange(len(row)) >= len(t.trunk) for row, t in zip(rows, [*trees] * 2, strict=True)
        ]
        pixels = np.concatenate([t.images_IX for t in trees] * 2).transpose(0, 3, 1, 2)
        inputs = {
            "input_ids": torch.tensor(np.stack(rows), dtype=torch.long),
            "attention_mask": torch.ones(len(rows), len(rows[0]), dtype=torch.long),
            "completion_mask": torch.tensor(np.stack(answers), dtype=torch.long),
            "pixel_values": torch.tensor(pixels, dtype=self._dtype),
        }
        return {name: x.to(self._trainer.accelerator.device) for name, x in inputs.items()}

    def __call__(self) -> float:
        """Runs a step to its end and returns the loss."""
        parts = [self._trainer.training_step(self._trainer.model, dict(x)) for x in self._parts]
        self._optimizer.step()
        self._optimizer.zero_grad()
        return float(sum(parts))

    def warm_up(self) -> list[float]:
        """Runs two steps, with smaller micro-batches if memory runs out, and returns the losses.

        Raises:
            DataError: memory runs out with one pair at a time.
        """
        import torch

        while True:
            try:
                return [self(), self()]
            except torch.cuda.OutOfMemoryError:
                if self.pairs == 1:
                    raise DataError("TRL is out of memory with 1 pair at a time") from None
            # Not in the handler: the error refers to tensors of the step that failed.
            self.pairs = next_smaller(len(self._trees), self.pairs)
            free_memory()
            self._start()


def main(argv: Sequence[str]) -> None:
    """Measures TRL alone and prints the result as JSON."""
    bench = StepBench(**json.loads(argv[0]))
    config = SIZES[bench.size]
    trees = examples(config, bench.pairs, bench.question, bench.answer)
    lora = LoraConfig(rank=bench.rank, alpha=2.0 * bench.rank)
    with tempfile.TemporaryDirectory(prefix="seva_jax_trl_") as scratch:
        step = TrlStep(
            Path(scratch) / "model", config, trees, lora, bench.dtype, bench.micro_batches
        )
        measured: Measured = measure(step.warm_up(), step, bench.rounds, step.pairs)
    print(json.dumps(measured))


if __name__ == "__main__":
    main(sys.argv[1:])
