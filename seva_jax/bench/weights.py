"""Random weights that each side of a measurement makes on its own device, equal on all sides.

A value is a hash of its place in a tensor of the checkpoint, so JAX and torch compute the same
bits, and nothing passes through the host or a file: a 7B has 14 GB of weights. What does not live
here: which tensor is which parameter (`seva_jax/convert/table.py`).
"""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seva_jax.convert.files import write_json
from seva_jax.convert.hf_config import llava_config_fields
from seva_jax.convert.load import shapes_by_path
from seva_jax.convert.processor import write_chat_template, write_processor
from seva_jax.convert.table import TABLE, Shape, canonical
from seva_jax.images.preprocess import ImageProcessing
from seva_jax.models import Llava, LlavaConfig, LoraConfig, abstract_params, abstract_variables
from seva_jax.sharding import is_boxed
from seva_jax.text.templates import VICUNA_V1
from seva_jax.text.tokenizer import save_tokenizer, word_tokenizer

_ROUNDS = ((16, 0x7FEB352D), (15, 0x31848BAB))  # shift and odd factor below 2**31
_CHUNK = 2**24  # values that torch computes at a time, as 64-bit integers
_LORA_SHARE = 0.5  # size of what adapters add, relative to the layer's own output


def random_variables(model: Llava) -> dict[str, Any]:
    """Returns the "params" collection in the dtype of compute, made on the default device."""
    shapes = shapes_by_path(abstract_params(model))
    rows = {row.ours: row for row in TABLE if row.ours in shapes}

    def leaf(path: tuple[Any, ...], like: jax.ShapeDtypeStruct) -> jax.Array:
        row = rows["/".join(key.key for key in path)]
        own = like.shape[1:] if row.stacked else like.shape
        whole = tuple(slice(0, size) for size in own)
        names, theirs = row.names(like.shape), row.their_shape(like.shape)
        values = _stack(names, theirs, *_kind(names[0], theirs))
        ours: Any = jax.vmap(lambda x: row.transform.read(x, whole))(values)
        return jnp.asarray(ours if row.stacked else ours[0], model.dtype)

    make = functools.partial(jax.tree_util.tree_map_with_path, leaf, abstract_params(model))
    return {"params": jax.jit(make)()}


def random_adapters(model: Llava) -> Any:
    """Returns the "lora" collection, float32; B is not zero, or every loss would be log 2."""
    assert model.lora is not None
    rank = model.lora.rank
    boxed = abstract_variables(model)["lora"]
    shapes = jax.tree.map(lambda x: x.value, boxed, is_leaf=is_boxed)

    def leaf(path: tuple[Any, ...], like: jax.ShapeDtypeStruct) -> jax.Array:
        target, which = path[-2].key, path[-1].key
        names = [_adapter_name(target, layer, which) for layer in range(like.shape[0])]
        theirs = like.shape[:0:-1]
        return _stack(names, theirs, _lora_std(which, theirs, rank), 0.0).swapaxes(1, 2)

    return jax.jit(functools.partial(jax.tree_util.tree_map_with_path, leaf, shapes))()


def torch_model(directory: Path, config: LlavaConfig, dtype: str, device: str) -> Any:
    """Returns transformers' model with the values of `random_variables`, made on its device.

    Args:
        directory: gets what a checkpoint has beside its weights: config, tokenizer, processor.
        config: the architecture.
        dtype: dtype of the weights, such as "bfloat16".
        device: torch's name of the device.
    """
    import torch
    import transformers

    directory.mkdir()
    write_json(directory / "config.json", llava_config_fields(config))
    save_tokenizer(word_tokenizer(tuple(f"w{i}" for i in range(100))), directory)
    write_processor(directory, config, ImageProcessing(size=config.vision.image_size))
    write_chat_template(directory, VICUNA_V1)
    fields = transformers.AutoConfig.from_pretrained(directory)
    with torch.device(device):
        model: Any = transformers.AutoModelForImageTextToText.from_config(
            fields, dtype=getattr(torch, dtype)
        )
    with torch.no_grad():
        for name, values in model.named_parameters():
            known = canonical(name)
            _fill(values, known, *_kind(known, tuple(values.shape)))
    return model


def fill_adapters(model: Any, lora: LoraConfig) -> None:
    """Gives peft's adapters the values of `random_adapters`.

    Args:
        model: a model with adapters of peft.
        lora: their config.
    """
    for name, values in model.named_parameters():
        parts = name.split(".")
        if "lora_A" in parts or "lora_B" in parts:
            which = "a" if "lora_A" in parts else "b"
            layer = int(parts[parts.index("layers") + 1])
            target = next(part for part in parts if part in lora.targets)
            shape = tuple(values.shape)
            std = _lora_std(which, shape, lora.rank)
            _fill(values, _adapter_name(target, layer, which), std, 0.0)


def _adapter_name(target: str, layer: int, which: str) -> str:
    return f"{target}.{layer}.{which}"


def _lora_std(which: str, theirs: Shape, rank: int) -> float:
    return theirs[1] ** -0.5 if which == "a" else _LORA_SHARE * rank**-0.5


def _kind(name: str, theirs: Shape) -> tuple[float, float]:
    """Returns the standard deviation of a tensor's values, and their mean."""
    if len(theirs) > 1:
        return math.prod(theirs[1:]) ** -0.5, 0.0
    return 0.0, float(name.endswith(".weight"))  # a norm's scale is 1


def _mixed(index: Any, keep: Callable[[Any], Any]) -> Any:
    """Hashes 32-bit integers; `keep` drops what a wider type holds beyond 32 bits."""
    for shift, factor in _ROUNDS:
        index = keep((index ^ (index >> shift)) * factor)
    return (index ^ (index >> 15)) >> 8


def _seed(name: str) -> int:
    return zlib.crc32(name.encode())


def _stack(names: Sequence[str], shape: Shape, std: float, mean: float) -> jax.Array:
    """Returns the values of tensors of one shape, [names, *shape] in float32."""
    place = jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
    seeds = np.array([_seed(name) for name in names], np.uint32)

    def one(seed: jax.Array) -> jax.Array:
        mixed = _mixed(place + seed, lambda x: x).astype(jnp.float32)
        return (mixed * 2.0**-24 - 0.5) * (std * 12**0.5) + mean

    return jax.vmap(one)(jnp.asarray(seeds))


def _fill(values: Any, name: str, std: float, mean: float) -> None:
    """Gives a torch tensor the values that `_stack` has for the name."""
    import torch

    flat, mask = values.detach().view(-1), 2**32 - 1
    for start in range(0, flat.numel(), _CHUNK):
        part = flat[start : start + _CHUNK]
        place = torch.arange(start, start + part.numel(), device=part.device) + _seed(name)
        mixed = _mixed(place & mask, lambda x: x & mask).to(torch.float32)
        part.copy_((mixed * 2.0**-24 - 0.5) * (std * 12**0.5) + mean)
