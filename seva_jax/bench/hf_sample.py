"""transformers' side of `sample.py`: `generate` with the same weights and prompts.

`python -m seva_jax.bench.hf_sample JSON` runs it alone, see `other_side.py`; JSON has the options
of `SampleBench`, and {} takes their defaults.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seva_jax.bench.examples import SIZES, prompts
from seva_jax.bench.options import SampleBench
from seva_jax.bench.other_side import free_memory, measure, next_smaller
from seva_jax.bench.weights import torch_model
from seva_jax.types import DataError


class HfSample:
    """Greedy answers of `transformers.generate`; a call returns their tokens.

    Attributes:
        rows: rows answered together.
    """

    def __init__(self, bench: SampleBench, directory: Path) -> None:
        """Makes the model.

        Args:
            bench: the options.
            directory: a new directory for its config.

        Raises:
            DataError: transformers or torch is not installed.
        """
        try:
            import torch
            import transformers as _  # noqa: F401
        except ImportError as error:
            raise DataError(f"{error}; pip install 'seva_jax[bench]', or give --no-hf") from None
        device = "cuda" if torch.cuda.is_available() else "cpu"
        config = SIZES[bench.size]
        self._model: Any = torch_model(directory, config, bench.dtype, device).eval()
        tokens, pixels = prompts(config, bench.rows, bench.question)
        images = pixels[:, 0].transpose(0, 3, 1, 2)
        dtype = getattr(torch, bench.dtype)
        self._ids = torch.tensor(tokens, dtype=torch.long, device=device)
        self._images = torch.tensor(images, dtype=dtype, device=device)
        self._answer, self.rows = bench.answer, bench.rows

    def __call__(self) -> np.ndarray:
        """Returns the new tokens of the rows, [rows, answer]."""
        import torch

        ids, images = self._ids[: self.rows], self._images[: self.rows]
        with torch.inference_mode():
            out = self._model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=images,
                do_sample=False, max_new_tokens=self._answer, min_new_tokens=self._answer,
                eos_token_id=None, pad_token_id=0,
            )  # fmt: skip
        return out[:, ids.shape[1] :].cpu().numpy()

    def warm_up(self) -> list[np.ndarray]:
        """Returns what a first call does, in a list; for fewer rows if memory runs out.

        Raises:
            DataError: memory runs out with one row.
        """
        import torch

        while True:
            try:
                return [self()]
            except torch.cuda.OutOfMemoryError:
                if self.rows == 1:
                    raise DataError("transformers is out of memory with 1 row") from None
            # Not in the handler: the error refers to tensors of the call that failed.
            self.rows = next_smaller(self.rows, self.rows)
            free_memory()


def main(argv: Sequence[str]) -> None:
    """Measures transformers alone and prints the result as JSON."""
    bench = SampleBench(**json.loads(argv[0]))
    with tempfile.TemporaryDirectory(prefix="seva_jax_hf_") as scratch:
        side = HfSample(bench, Path(scratch) / "model")
        first = [tokens.tolist() for tokens in side.warm_up()]
        print(json.dumps(measure(first, side, bench.rounds, side.rows)))


if __name__ == "__main__":
    main(sys.argv[1:])
