"""The families' checkpoints on a mesh: loaded in shards, and the same features and logits."""

import dataclasses

import jax
import numpy as np
import pytest
from helpers_devices import mesh_of
from helpers_llava import random_params, their_tensors
from safetensors.numpy import save_file
from tiny_models import EIGHT_HEADS

from seva_jax.convert import load_params
from seva_jax.models import InternConfig, Llava, SiglipConfig, abstract_variables
from seva_jax.sharding import batch_sharding, variable_shardings

SIZES = {
    "image_size": 8,
    "patch_size": 2,
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 8,
    "mlp_size": 32,
}
CONFIGS = {
    "next": dataclasses.replace(EIGHT_HEADS, newline=True),
    "onevision": dataclasses.replace(
        EIGHT_HEADS,
        vision=SiglipConfig(**SIZES),
        text=dataclasses.replace(EIGHT_HEADS.text, qkv_bias=True),
        feature_layer=-1,
        feature_select="full",
        newline=True,
    ),
    "internvl": dataclasses.replace(
        EIGHT_HEADS,
        vision=InternConfig(**SIZES, qk_norm=True),
        text=dataclasses.replace(EIGHT_HEADS.text, qkv_bias=True),
        feature_layer=-1,
        projector_norm=True,
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_shards_give_the_same_model(tmp_path, name):
    config = CONFIGS[name]
    params = jax.tree.map(lambda x: 0.3 * x, random_params(config))
    save_file(their_tensors(params), tmp_path / "model.safetensors")
    mesh, model = mesh_of(2, 2, 2), Llava(config)
    shardings = variable_shardings(mesh, abstract_variables(model)["params"])
    loaded = load_params(tmp_path, config, "float32", shardings)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    split = [x for x in jax.tree.leaves(loaded["vision"]) if not x.sharding.is_fully_replicated]
    assert split

    rng = np.random.default_rng(1)
    pixels = rng.standard_normal((4, 3, 8, 8, 3)).astype(np.float32)
    length = 3 * config.tile_features + 2
    tokens = rng.integers(5, 40, (4, length)).astype(np.int32)
    patch = np.broadcast_to(np.arange(length) - 1, (4, length)).astype(np.int32)
    patch = np.where(patch >= 3 * config.tile_features, -2 if config.newline else -1, patch)
    positions = np.broadcast_to(np.arange(length), (4, length))
    mask = np.broadcast_to(np.tril(np.ones((length, length), bool)), (4, length, length))
    batch = (tokens, positions, mask, patch, pixels)

    @jax.jit
    def logits(params, batch):
        return model.apply({"params": params}, *batch)

    expected = logits(params, batch)
    rows = jax.device_put(batch, batch_sharding(mesh))
    with jax.set_mesh(mesh):
        got = logits(loaded, rows)
    assert np.asarray(expected).std() > 0.1
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
