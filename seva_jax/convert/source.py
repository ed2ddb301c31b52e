"""What an export starts from: a checkpoint directory, and what a run has changed in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from seva_jax.models import LlavaConfig, LoraConfig


def read_nothing(names: Sequence[str]) -> list[np.ndarray]:
    """Trained variables where nothing was trained."""
    raise AssertionError(f"nothing was trained, so not {names}")


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint directory, perhaps with a finished run that was trained from it.

    Attributes:
        directory: the checkpoint.
        tower: the CLIP directory of an original LLaVA; None for Hugging Face's layout.
        config: its architecture.
        lora: the run's adapters.
        trained: shapes of the run's trained variables, float32, by collection and path joined by
            "/" ("lora/language/layers/q_proj/a"); empty without a run.
        read: gives some of the trained variables, by those names.
        before: earlier runs, oldest first, whose merged results each next run started from.
    """

    directory: Path
    tower: Path | None
    config: LlavaConfig
    lora: LoraConfig = LoraConfig(rank=0)
    trained: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    read: Callable[[Sequence[str]], list[np.ndarray]] = read_nothing
    before: tuple[Source, ...] = ()
