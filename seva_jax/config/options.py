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
from seva_jax.ranges import FROM_0, FROM_1
from seva_jax.text.sampling import Sampling
from seva_jax.text.templates import VICUNA_V1, Template


@dataclasses.dataclass(frozen=True)
class TextOptions:
    """How questions and answers become tokens.

    Attributes:
        generate: template the model is asked with.
        train: template the model is trained with. SeVa generates with `LLAVA_V1` and trains with
            `VICUNA_V1`; the sane default is one template for both.
        max_length: longest trunk plus longest answer, tokens. Images and questions are never
            cut: what does not fit is dropped and counted.
    """

    generate: Template = VICUNA_V1
    train: Template = VICUNA_V1
    max_length: Annotated[int, FROM_1] = 2048


@dataclasses.dataclass(frozen=True)
class RolloutOptions:
    """How prompts are answered.

    Attributes:
        sampling: greedy by default, as in SeVa.
        batch_size: rows answered together over all devices; clean and corrupted copies of a
            prompt are rows of their own.
        refill: new prompts start when one in this many rows is done, beside those that go on. 1
            answers whole batches, which costs the time of the longest answer in each, but every
            answer is then computed beside the same others however a run was interrupted.
        cache: keys and values of tokens seen, "exact" or "int8" (half of bfloat16's memory).
    """

    sampling: Sampling = Sampling()
    batch_size: Annotated[int, FROM_1] = 64
    refill: Annotated[int, FROM_1] = 4
    cache: CacheKind = "exact"


@dataclasses.dataclass(frozen=True)
class ComputeOptions:
    """Precision and memory.

    Attributes:
        param_dtype: storage of frozen parameters. Trained parameters are float32 always.
        base_weights: storage of the frozen kernels of the language model's linear layers. "float"
            is param_dtype; "int8" (8 bits) and "nf4" (4.5 bits a weight) are QLoRA's quantised
            base, for adapters; they need the extra "quant".
        dtype: compute dtype; norms, softmax, logits and log-probs are float32 always.
        remat: what the backward pass computes again instead of keeping it: "none", "matmuls"
            (keeps the results of linear layers) or "layers" (keeps a layer's input only).
        attention: "auto" uses a TPU's kernel where there is one; "cudnn" uses cuDNN's, on NVIDIA
            GPUs and in bfloat16; "plain" uses none.
        head_chunk: answer positions whose logits exist at one time, for each row.
        row_shapes: at most this many shapes of batches are compiled. Short comparisons share rows
            and batches of short ones get shorter rows, where that saves work; with 1 every
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
    """The module of a run: with adapters the policy, without them the base model."""
    return Llava(config, lora, jnp.dtype(compute.dtype), compute.remat, compute.attention)


@dataclasses.dataclass(frozen=True)
class ReportOptions:
    """What the report page shows.

    Attributes:
        num_pairs: pairs in the gallery.
        num_examples: evaluation examples shown before and after, for each evaluation.
        device_hour_price: what an hour of one device costs; 0 shows device-hours only.
        currency: of that price.
    """

    num_pairs: Annotated[int, FROM_0] = 60
    num_examples: Annotated[int, FROM_0] = 12
    device_hour_price: Annotated[float, FROM_0] = 0.0
    currency: str = "USD"
