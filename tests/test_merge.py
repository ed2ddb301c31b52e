"""Adapters merged into weights compute the same function, on any mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers_devices import MODEL, placed
from tiny_models import random_variables

from seva_jax.models import Llava, abstract_variables, merge_adapters
from seva_jax.sharding import variable_shardings


@pytest.fixture(scope="module")
def variables():
    """Returns random weights of `MODEL`, as NumPy arrays that can be put on any mesh."""
    return jax.tree.map(np.asarray, random_variables(MODEL))


def merged(shape, weights, dtype="float32"):
    """Returns the merged parameters on a mesh."""
    mesh, there = placed(shape, weights)
    params = jax.tree.map(lambda x: jnp.array(x, dtype), there["params"])
    shardings = variable_shardings(mesh, abstract_variables(MODEL)["params"])
    assert MODEL.lora is not None
    return merge_adapters(params, there["lora"], MODEL.lora, jnp.dtype(dtype), shardings)


def logits(model, weights):
    """Returns the logits of an image and a few words."""
    tokens_BS = jnp.arange(24).reshape(2, 12) % 40
    positions_BS = jnp.broadcast_to(jnp.arange(12), (2, 12))
    mask_BSU = jnp.broadcast_to(jnp.tril(jnp.ones((12, 12), bool)), (2, 12, 12))
    patch_BS = jnp.where(positions_BS < MODEL.config.tile_features, positions_BS, -1)
    side = MODEL.config.vision.image_size
    pixels = jax.random.normal(jax.random.key(2), (2, 1, side, side, 3))
    return model.apply(weights, tokens_BS, positions_BS, mask_BSU, patch_BS, pixels)


def test_the_merged_model_is_the_adapted_one(variables):
    """Logits agree to 1e-5 of the largest one, and differ from those without adapters."""
    _, there = placed((1, 1, 1), variables)
    expected = logits(MODEL, there)
    alone = Llava(MODEL.config)
    found = logits(alone, {"params": merged((1, 1, 1), variables)})
    scale = float(jnp.abs(expected).max())
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * scale)
    before = logits(alone, {"params": there["params"]})
    assert float(jnp.abs(before - expected).max()) > 1e-2 * scale


def test_sums_are_rounded_once(variables):
    """In bfloat16 they are NumPy's float32 sums, rounded; other weights are unchanged."""
    found = merged((1, 1, 1), variables, "bfloat16")
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), variables["params"])
    for name, adapter in variables["lora"]["language"]["layers"].items():
        kernel = rounded["language"]["layers"][name]["kernel"].astype(np.float32)
        change = np.einsum("lir,lro->lio", adapter["a"], adapter["b"]) * np.float32(2.0)
        rounded["language"]["layers"][name]["kernel"] = (kernel + change).astype(jnp.bfloat16)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(rounded), strict=True
    ):
        assert a.dtype == jnp.bfloat16
        differ = np.mean(np.asarray(a) != b)  # a float32 sum may round the other way
        assert differ < (2e-3 if path[-1].key == "kernel" else 1e-9), path


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 8, 1), (2, 2, 2)], ids=str)
def test_devices_change_nothing(shape, variables):
    """Every leaf also has the sharding it should have."""
    found, alone = merged(shape, variables), merged((1, 1, 1), variables)
    mesh, _ = placed(shape, variables)
    wanted = variable_shardings(mesh, abstract_variables(MODEL)["params"])
    for a, b, sharding in zip(*map(jax.tree.leaves, (found, alone, wanted)), strict=True):
        assert a.sharding.is_equivalent_to(sharding, a.ndim)
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
