"""The sections of a config: text, rollouts, training, computation, report."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import jax.numpy as jnp

from seva_jax.models import (
    Attention,
    BaseWeights,
    CacheKind,
    Llava,
    LlavaConfig,
    LoraConfig,
    Remat,
)
from seva_jax.ranges import ABOVE_0, FROM_0, FROM_1, NO_EFFECT, Range
from seva_jax.text.sampling import Sampling
from seva_jax.text.templates import VICUNA_V1, Template


@dataclasses.dataclass(frozen=True)
class TextOptions:
    """How questions and answers become tokens.

    Attributes:
        generate: template of prompts that the model answers.
        train: template of prompts and answers in training. SeVa generates with `LLAVA_V1` and
            trains with `VICUNA_V1`; the default is one template for both.
        max_length: longest trunk plus longest answer, tokens. Images and questions are never
            truncated: examples that do not fit are dropped and counted.
    """

    generate: Template = VICUNA_V1
    train: Template = VICUNA_V1
    max_length: Annotated[int, FROM_1] = 2048


@dataclasses.dataclass(frozen=True)
class RolloutOptions:
    """How the model answers prompts.

    Attributes:
        sampling: how tokens are sampled; greedy by default, as in SeVa.
        batch_size: rows answered together over all devices; the clean and corrupted copies of a
            prompt are one row each.
        refill: new prompts replace finished rows as soon as one in this many rows is finished. 1
            answers whole batches: each takes as long as its longest answer, but an answer is then
            always computed in the same batch, even if the run was interrupted.
        cache: KV cache, "exact" or "int8" (half of bfloat16's memory).
    """

    sampling: Sampling = Sampling()
    batch_size: Annotated[int, FROM_1] = 64
    refill: Annotated[int, FROM_1] = 4
    cache: CacheKind = "exact"


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Batches, length of training, checkpoints, and which parts are trained.

    Attributes:
        batch_size: comparisons in an optimiser step, over all devices.
        micro_batches: number of parts in which a batch is computed to save memory; the gradients
            are those of the whole batch.
        epochs: passes over the comparisons.
        repeat: number of copies of the list of comparisons that are joined before shuffling. SeVa
            uses 2 and one epoch, which is not the same as two epochs.
        max_steps: stop after this many steps; 0 means no limit.
        trained: parts of the model that are trained. "lora" are the adapters. SeVa also trains the
            projector (its flag meant to freeze it has no effect).
        reference: "cached" computes reference log-probs once, before training; "in_step"
            computes them in every step from an untrained copy of the trained parts.
        feature_cache: directory for image features of the frozen vision tower, which this and other
            runs with the same tower reuse; empty computes them in every step. An image of LLaVA-1.5
            takes 1.1 MiB in bfloat16.
        save_every_s: seconds of training that a kill costs at most. A save starts early enough to
            finish within the interval, when metrics are logged; if writing takes too long, training
            waits for it (`seva_jax/training/save_schedule.py`).
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
    trained: tuple[Literal["lora", "projector", "language", "vision"], ...] = ("lora", "projector")
    reference: Literal["cached", "in_step"] = "cached"
    feature_cache: str = ""
    save_every_s: Annotated[float, ABOVE_0, NO_EFFECT] = 600.0
    save_every: Annotated[int, FROM_0, NO_EFFECT] = 0
    log_every: Annotated[int, FROM_1, NO_EFFECT] = 10
    max_nonfinite: Annotated[int, FROM_1, NO_EFFECT] = 3
    read_processes: Annotated[int, Range(0, 1024), NO_EFFECT] = 0


@dataclasses.dataclass(frozen=True)
class ComputeOptions:
    """Precision and memory.

    Attributes:
        param_dtype: storage of frozen parameters. Trained parameters are always float32.
        base_weights: storage of the frozen kernels of the language model's linear layers. "float"
            is param_dtype; "int8" (8 bits per weight) and "nf4" (4.5 bits) are QLoRA's quantised
            base, for training adapters; they need the extra "quant".
        dtype: compute dtype; norms, softmax, logits and log-probs are always float32.
        remat: what the backward pass recomputes instead of storing it: "none", "matmuls" (stores
            the results of linear layers) or "layers" (stores only the input of each layer).
        attention: "auto" uses a kernel on TPUs and blocks of queries elsewhere; "cudnn" uses
            cuDNN's kernel, on NVIDIA GPUs and in bfloat16; "plain" computes all scores at once.
        head_chunk: answer positions per row whose logits are in memory at the same time.
        row_shapes: maximum number of batch shapes that are compiled. Short comparisons share rows,
            and batches of short comparisons get shorter rows, if that saves work; with 1 every
            comparison has a row of its own, as long as the longest.
    """

    param_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    base_weights: BaseWeights = "float"
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    remat: Remat = "layers"
    attention: Attention = "auto"
    head_chunk: Annotated[int, FROM_1] = 128
    row_shapes: Annotated[int, FROM_1] = 4


def make_model(
    config: LlavaConfig, compute: ComputeOptions, lora: LoraConfig | None = None
) -> Llava:
    """Returns the module of a run: the policy with adapters, the base model without."""
    return Llava(config, lora, jnp.dtype(compute.dtype), compute.remat, compute.attention)


@dataclasses.dataclass(frozen=True)
class ReportOptions:
    """Content of the report page.

    Attributes:
        num_pairs: pairs in the gallery.
        num_examples: examples per evaluation, with the answers before and after alignment.
        device_hour_price: price of one device for one hour; 0 shows only device-hours.
        currency: currency of the price.
    """

    num_pairs: Annotated[int, FROM_0] = 60
    num_examples: Annotated[int, FROM_0] = 12
    device_hour_price: Annotated[float, FROM_0] = 0.0
    currency: str = "USD"
