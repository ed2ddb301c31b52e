"""The `train` section of a config."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from seva_jax.ranges import ABOVE_0, ADDED, DECAY, FROM_0, FROM_1, NO_EFFECT, Range


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Batches, length of training, checkpoints, and which parts are trained.

    Attributes:
        batch_size: comparisons in an optimiser step, over all devices.
        micro_batches: number of parts in which a batch is computed to save memory (gradient
            accumulation); the gradients are those of the whole batch.
        epochs: passes over the comparisons.
        repeat: number of copies of the list of comparisons that are joined before shuffling. SeVa
            uses 2 and one epoch, which is not the same as two epochs.
        max_steps: stop after this many steps, even if `epochs` asks for more; 0 means no limit. The
            run says before training how many steps the pairs give.
        eval_fraction: share of the pairs that is not trained on, such as 0.1. Their loss, margin
            and accuracy are measured at intervals. Pairs that share an image stay together. 0
            trains on all pairs.
        eval_every: steps between evaluations of held-out pairs; 0 evaluates them after each pass
            over the others. They are also evaluated before training and after the last step.
        patience: end training when this many evaluations in a row bring no lower held-out loss; 0
            never does.
        keep: which step becomes the aligned model: the last one, or the one with the lowest
            held-out loss. The checkpoints of both are kept.
        trained: parts of the model that are trained. "lora" are the adapters. SeVa also trains the
            projector (its flag meant to freeze it has no effect).
        reference: "cached" computes reference log-probs once, before training; "in_step"
            computes them in every step from an untrained copy of the trained parts.
        feature_cache: directory for image features of the frozen vision tower, which this and other
            runs with the same tower reuse; empty computes them in every step. An image of LLaVA-1.5
            takes 1.1 MiB in bfloat16. Refused where the tower or adapters on it are trained.
        save_every_s: seconds of training that a kill costs at most. A save starts early enough to
            finish within the interval, when metrics are logged; if writing takes too long, training
            waits for it.
        save_every: also save every N steps and wait until it is written, so that a kill costs at
            most N steps; 0 disables.
        log_every: steps between rows of metrics.
        max_nonfinite: this many consecutive steps with a loss or gradient that is not finite end
            the run with exit status 65. Such a step changes nothing, and the ids of its examples
            are written to nonfinite.jsonl.
        read_processes: processes that prepare batches; 0 prepares them in threads, which starts
            faster and suffices unless decoding images keeps the device waiting.
    """

    batch_size: Annotated[int, FROM_1] = 128
    micro_batches: Annotated[int, FROM_1] = 1
    epochs: Annotated[int, FROM_1] = 1
    repeat: Annotated[int, FROM_1] = 1
    max_steps: Annotated[int, FROM_0] = 0
    eval_fraction: Annotated[float, DECAY, ADDED] = 0.0
    eval_every: Annotated[int, FROM_0, ADDED] = 0
    patience: Annotated[int, FROM_0, ADDED] = 0
    keep: Annotated[Literal["last", "best"], ADDED] = "last"
    trained: tuple[Literal["lora", "projector", "language", "vision"], ...] = ("lora", "projector")
    reference: Literal["cached", "in_step"] = "cached"
    feature_cache: str = ""
    save_every_s: Annotated[float, ABOVE_0, NO_EFFECT] = 600.0
    save_every: Annotated[int, FROM_0, NO_EFFECT] = 0
    log_every: Annotated[int, FROM_1, NO_EFFECT] = 10
    max_nonfinite: Annotated[int, FROM_1, NO_EFFECT] = 3
    read_processes: Annotated[int, Range(0, 1024), NO_EFFECT] = 0
