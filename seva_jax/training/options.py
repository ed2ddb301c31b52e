"""How a model is trained: the `train` section of a config."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from seva_jax.ranges import ABOVE_0, FROM_0, FROM_1, NO_EFFECT, Range


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """How long, on what, and what is trained.

    Attributes:
        batch_size: comparisons in an optimiser step, over all devices.
        micro_batches: the batch is computed in this many parts; gradients are those of the whole.
        epochs: passes over the comparisons.
        repeat: the list of comparisons is concatenated with itself this many times before it is
            shuffled. SeVa uses 2 and one epoch, which is not two epochs.
        max_steps: stop after this many steps; 0 means no limit.
        trained: parts of the model that change. "lora" are the adapters. SeVa also trains the
            projector (its flag meant to freeze it has no effect).
        reference: "cached" computes reference log-probs once, before training; "in_step"
            computes them in every step from an untrained copy of the trained parts.
        feature_cache: directory that keeps what the frozen vision tower made of every image, by
            content and tower, for this and other runs; empty computes it in every step. An image
            of LLaVA-1.5 takes 1.1 MiB in bfloat16.
        save_every_s: a kill costs at most so many seconds of training, also while a checkpoint is
            written: one is begun earlier by the time that writing takes, at a line of metrics,
            and where writing takes too long, training waits for it.
        save_every: a kill costs at most so many steps: there is a checkpoint beside those by time
            every so many, and training waits until it is written; 0 means by time only.
        log_every: steps between lines of metrics.
        max_nonfinite: so many steps, one after another, whose loss or gradient is not finite end
            the run with exit code 65. Such a step changes nothing, and the ids of its examples go
            to nonfinite.jsonl.
        read_processes: processes that prepare batches; 0 prepares them in threads, which starts
            sooner and is enough until decoding images keeps the device waiting.
    """

    batch_size: Annotated[int, FROM_1] = 128
    micro_batches: Annotated[int, FROM_1] = 1
    epochs: Annotated[int, FROM_1] = 1
    repeat: Annotated[int, FROM_1] = 1
    max_steps: Annotated[int, FROM_0] = 0
    trained: tuple[Literal["lora", "projector", "language", "vision"], ...] = ("lora", "projector")
    reference: Literal["cached", "in_step"] = "cached"
    feature_cache: str = ""
    save_every_s: Annotated[float, ABOVE_0, NO_EFFECT] = 600.0
    save_every: Annotated[int, FROM_0, NO_EFFECT] = 0
    log_every: Annotated[int, FROM_1, NO_EFFECT] = 10
    max_nonfinite: Annotated[int, FROM_1, NO_EFFECT] = 3
    read_processes: Annotated[int, Range(0, 1024), NO_EFFECT] = 0
