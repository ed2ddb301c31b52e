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
)
from seva_jax.ranges import ADDED, FROM_0, FROM_1, NO_EFFECT, CountsAs
from seva_jax.text import VICUNA_V1, Sampling, Template

RematChoice = Literal["auto", "none", "matmuls", "layers"]


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
        tensor: devices that share the weights while the model answers, and answer the same rows
            together; all devices are divided into such groups, each with a copy of the model, and
            weights move there from the mesh of training once for each stage. It must divide the
            number of devices, heads, MLPs and vocabulary. More of them read the weights faster and
            leave more memory for rows, but exchange results in every layer. 0 takes the smallest
            number with which a device reads no more weights than KV cache for a token, of those
            whose memory holds the copy, the cache and the weights of training.
    """

    sampling: Sampling = Sampling()
    batch_size: Annotated[int, FROM_1] = 64
    refill: Annotated[int, FROM_1] = 4
    cache: CacheKind = "exact"
    tensor: Annotated[int, FROM_0, ADDED, NO_EFFECT] = 0


@dataclasses.dataclass(frozen=True)
class ComputeOptions:
    """Precision and memory.

    Attributes:
        param_dtype: storage of frozen parameters. Trained parameters are always float32.
        base_weights: storage of the frozen kernels of the language model's linear layers. "float"
            is param_dtype; "int8" (8 bits per weight) and "nf4" (4.5 bits) are QLoRA's quantised
            base, for training adapters; they need the extra "quant".
        dtype: compute dtype; norms, softmax, logits and log-probs are always float32.
        remat: what the backward pass recomputes instead of storing it (gradient checkpointing):
            "none", "matmuls" (stores the results of linear layers) or "layers" (stores only the
            input of each layer). "auto" takes the first of these whose planned memory fits the
            devices, and a line says which and why; a run that is resumed keeps it.
        attention: the kernel. "auto" takes the fastest one for the devices: Pallas' splash
            attention on TPUs; in bfloat16 on NVIDIA GPUs since Ampere cuDNN's, or tokamax's if the
            extra "gpu" is installed and the card is a Hopper or Blackwell; otherwise blocks of
            queries. "blocks", "cudnn" and "tokamax" name one; "plain" computes all scores at once.
        head_chunk: answer positions per row whose logits are in memory at the same time.
        row_shapes: maximum number of batch shapes that are compiled. Short comparisons share rows,
            and batches of short comparisons get shorter rows, if that saves work; with 1 every
            comparison has a row of its own, as long as the longest.
    """

    param_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    base_weights: BaseWeights = "float"
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    remat: Annotated[RematChoice, CountsAs("auto", "layers")] = "auto"
    attention: Attention = "auto"
    head_chunk: Annotated[int, FROM_1] = 128
    row_shapes: Annotated[int, FROM_1] = 4


def make_model(
    config: LlavaConfig, compute: ComputeOptions, lora: LoraConfig | None = None
) -> Llava:
    """Returns the module of a run: the policy with adapters, the base model without.

    With `compute.remat` "auto" it recomputes layers; training takes another one if that fits.
    """
    remat = "layers" if compute.remat == "auto" else compute.remat
    return Llava(config, lora, jnp.dtype(compute.dtype), remat, compute.attention)


@dataclasses.dataclass(frozen=True)
class ReportOptions:
    """Content of the report page.

    Attributes:
        num_pairs: pairs in the gallery.
        num_examples: examples per evaluation, with the answers before and after alignment.
        num_prompts: prompts of the run that are answered before and after alignment for the page.
        device_hour_price: price of one device for one hour; 0 shows only device-hours.
        currency: currency of the price.
    """

    num_pairs: Annotated[int, FROM_0] = 60
    num_examples: Annotated[int, FROM_0] = 12
    num_prompts: Annotated[int, FROM_0, ADDED] = 12
    device_hour_price: Annotated[float, FROM_0] = 0.0
    currency: str = "USD"
