"""A token step reads weights and cache once and copies neither, in programs of CPU and TPU."""

import dataclasses
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers_devices import mesh_of
from helpers_loop import token_loop

from seva_jax.inference.sampler import Sampler, decode, empty_state
from seva_jax.models import (
    LLAVA_15,
    Llava,
    LlavaConfig,
    TextConfig,
    VisionConfig,
    abstract_variables,
    unstack,
)
from seva_jax.plan.chips import Topology
from seva_jax.sharding import MeshShape, placed, variable_shardings
from seva_jax.text.sampling import Sampling

# Weights and cache are much larger than everything else that a step reads.
ROWS, PROMPT, NEW = 16, 160, 96
CONFIG = LlavaConfig(
    vision=VisionConfig(
        image_size=8, patch_size=4, hidden_size=16, num_layers=2, num_heads=2, mlp_size=32
    ),
    text=TextConfig(
        vocab_size=4096, hidden_size=512, num_layers=2, num_heads=4, num_kv_heads=4, head_dim=128,
        mlp_size=1536,
    ),
    image_token_id=4,
)  # fmt: skip
GROUPED = dataclasses.replace(CONFIG, text=dataclasses.replace(CONFIG.text, num_kv_heads=2))


# Two layers of the 7B model: more than the memory within a chip, where loops keep small arrays.
LARGE = dataclasses.replace(
    LLAVA_15["7b"], text=dataclasses.replace(LLAVA_15["7b"].text, num_layers=2)
)


def lowered(mesh, config, kind, dtype, rows=ROWS, prompt=PROMPT):
    """Lowers the decode loop; returns it, and the bytes of weights and cache on a device."""
    stacked = Llava(config, dtype=jnp.dtype(dtype))
    boxed = abstract_variables(stacked)
    shapes = placed(boxed, variable_shardings(mesh, boxed), dtype)
    model, variables = unstack(stacked, {"params": shapes["params"]})
    sampler = Sampler(model, Sampling(NEW), (2,), 0, kind)
    with jax.set_mesh(mesh):
        empty = empty_state.lower(sampler, rows, prompt)
        state = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            empty.out_info,
            empty.compile().output_shardings,
        )
        program = decode.lower(sampler, variables, state, np.int32(1))

    def on_one(tree):
        return sum(
            np.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
            for x in jax.tree.leaves(tree)
        )

    language = dict(variables["params"]["language"])
    del language["embedding"]  # of which a step reads a row for each row of the batch
    return program, on_one(language), on_one(state.cache), on_one(state)


def check(mesh, config, kind, dtype, rows=ROWS, prompt=PROMPT):
    """Checks copies, bytes read and aliasing of the compiled loop."""
    program, weights, cache, state = lowered(mesh, config, kind, dtype, rows, prompt)
    compiled = program.compile()
    loop = token_loop(compiled.as_text())
    hidden = rows * config.text.hidden_size * 4
    assert not [x for x in loop.copies if x[0] > hidden], loop.copies
    array = cache / (3 * 2 * config.text.num_layers)  # less than the keys of a layer
    assert not [x for x in loop.entry_copies if x[0] > array], loop.entry_copies
    assert loop.read < 1.25 * (weights + cache)
    assert loop.read > 0.5 * (weights + cache)  # or the count is wrong
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.alias_size_in_bytes > 0.99 * state  # the old state's memory is the new one's


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (CONFIG, "exact"),
        (CONFIG, "int8"),
        pytest.param(GROUPED, "exact", marks=pytest.mark.slow),
        pytest.param(GROUPED, "int8", marks=pytest.mark.slow),
    ],
)
def test_on_a_cpu(config, kind):
    """The cache is neither transposed nor converted as a whole."""
    check(mesh_of(), config, kind, "float32")


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="compiles for TPUs with libtpu"
)


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["exact", "int8"])
def test_on_tpus(kind):
    """Nor is it copied on a slice whose chips split the heads."""
    mesh = MeshShape(1, 1, 4).make(Topology.parse("v5e:2x2").devices())
    check(mesh, LARGE, kind, "bfloat16", rows=64, prompt=640)
