"""The input of an export: a checkpoint directory, and the variables that a run trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from seva_jax.convert.adapters import Adapter
from seva_jax.images.preprocess import ImageProcessing
from seva_jax.models import LlavaConfig, LoraConfig
from seva_jax.text.templates import Template


def read_nothing(names: Sequence[str]) -> list[np.ndarray]:
    """Stands in for `Source.read` where nothing was trained."""
    raise AssertionError(f"nothing was trained, yet {names} are to be read")


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint directory, with or without a finished run that was trained from it.

    Attributes:
        directory: the checkpoint.
        tower: the tower's directory of an original LLaVA, see `original_config.tower_directory`;
            None for Hugging Face's layout.
        config: the checkpoint's architecture.
        lora: the run's adapters.
        trained: shapes of the run's trained variables, which are float32, by collection and path
            joined by "/" ("lora/language/layers/q_proj/a"); empty without a run.
        read: reads the trained variables with the given names.
        processing: the image pipeline that the run trained with; None without a run.
        template: the words around its questions and answers; None without a run.
        adapter: what of `Checkpoint.adapter` is to be applied to the checkpoint before anything
            else; the adapters that a run trained further are in `trained` instead.
        before: earlier runs, oldest first; each later run started from the merged result of the
            one before it.
    """

    directory: Path
    tower: Path | None
    config: LlavaConfig
    lora: LoraConfig = LoraConfig(rank=0)
    trained: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    read: Callable[[Sequence[str]], list[np.ndarray]] = read_nothing
    processing: ImageProcessing | None = None
    template: Template | None = None
    adapter: Adapter | None = None
    before: tuple[Source, ...] = ()
