"""Attention inside segments: the TPU's kernel, blocks and windows agree, and compile for TPUs."""

import dataclasses
import importlib.util
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import PLANNED

from seva_jax.models import (
    Llava,
    Qwen2VisionConfig,
    Qwen3VisionConfig,
    Qwen25VisionConfig,
    abstract_stored,
    abstract_variables,
)
from seva_jax.models.segments import attend_segments, attend_windows
from seva_jax.plan.chips import Topology
from seva_jax.sharding import MeshShape, batch_sharding, placed, variable_shardings


def inputs(length, width, sizes):
    """Returns queries, keys, values and segments of two rows; the second row's are in reverse."""
    rng = np.random.default_rng(length)
    values = rng.normal(size=(3, 2, length, 2, width)).astype(np.float32)
    segments = np.zeros((2, length), np.int32)
    for row, these in enumerate((sizes, sizes[::-1])):
        ids = np.repeat(np.arange(len(these)) + 1, these)
        segments[row, : len(ids)] = ids
    return *values, segments


def gradient(attend, arguments):
    """Returns the result of attention and the gradient of the sum of its squares at segments."""
    q, k, v, segments = arguments

    def loss(q, k, v):
        out = jnp.where((segments > 0)[..., None, None], attend(q, k, v, segments), 0)
        return (out**2).sum(), out

    gradients, out = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
    return out, *gradients


def assert_close(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("length", "width", "sizes"),
    [(200, 80, [7, 90, 60]), (640, 72, [500, 140]), (1100, 64, [1, 600, 300])],
    ids=str,
)
def test_the_kernel_equals_blocks(length, width, sizes):
    """It does, also where rows and heads are padded; interpreted in Python here."""
    arguments = inputs(length, width, sizes)

    def kernel(*arguments):
        return attend_segments(*arguments, interpret=True)

    assert_close(gradient(kernel, arguments), gradient(attend_segments, arguments))


@pytest.mark.parametrize(("length", "sizes"), [(100, [16, 16, 3, 12, 16, 1, 16]), (11, [5, 6])])
def test_windows_equal_segments(length, sizes):
    """They do wherever windows lie in the blocks of 16, and for rows shorter than a block."""
    arguments = inputs(length, 8, sizes)

    def windows(*arguments):
        return attend_windows(*arguments, longest=16)

    assert_close(gradient(windows, arguments), gradient(attend_segments, arguments))


SIZES = {"num_layers": 3, "num_heads": 2, "mlp_size": 256}


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="compiles with libtpu")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("topology", "tower"),
    [
        ("v5e:2x2", Qwen25VisionConfig(hidden_size=160, full_layers=(1,), **SIZES)),
        ("v5p:2x2x1", Qwen2VisionConfig(hidden_size=160, **SIZES)),
        ("v6e:2x2", Qwen3VisionConfig(hidden_size=144, deep=(0, 1), position_grid=8, **SIZES)),
    ],
    ids=["v5e", "v5p", "v6e"],
)
def test_a_tower_compiles_for_tpus(topology, tower):
    """Forward and backward use the kernel, and no array has all pairs of patches."""
    tiles = 300  # more patches than any dim of a weight
    mesh = MeshShape(fsdp=2, tensor=2).make(Topology.parse(topology).devices())
    config = dataclasses.replace(PLANNED, vision=tower, feature_layer=-1, feature_select="full")
    model = Llava(config, dtype=jnp.dtype(jnp.bfloat16), remat="layers")
    boxed = {"vision": abstract_variables(model)["params"]["vision"]}
    stored = abstract_stored(boxed, "float", "bfloat16")
    params = placed(stored, variable_shardings(mesh, stored))
    rows, side = batch_sharding(mesh), tower.image_size
    pixels = jax.ShapeDtypeStruct((4, tiles, side, side, 3), jnp.float32, sharding=rows)
    place = jax.ShapeDtypeStruct((4, tiles, 5), jnp.int32, sharding=rows)

    def loss(params, pixels, place):
        features = model.apply({"params": params}, pixels, place, method="features")
        return features.astype(jnp.float32).sum()

    with jax.set_mesh(mesh):
        text = jax.jit(jax.grad(loss)).lower(params, pixels, place).compile().as_text()
    assert "tpu_custom_call" in text
    patches = tiles * tower.num_patches
    shapes = {tuple(map(int, dims.split(","))) for dims in re.findall(r"\w\[([\d,]+)\]", text)}
    assert max(max(shape) for shape in shapes) >= patches
    assert not [shape for shape in shapes if sum(size >= patches for size in shape) > 1]
