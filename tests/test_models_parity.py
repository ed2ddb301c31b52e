"""Every block against transformers' on the same random weights, in float32, within 1e-5."""

import jax.numpy as jnp
import numpy as np
import pytest

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")

from helpers_llava import random_llava, save  # noqa: E402

from seva_jax.convert import load_params, read_llava_config  # noqa: E402
from seva_jax.models import DynamicRope, LinearRope, Llama3Rope, TextConfig, YarnRope  # noqa: E402
from seva_jax.models.attention import attend  # noqa: E402
from seva_jax.models.clip import VisionTower  # noqa: E402
from seva_jax.models.layers import LayerNorm, RMSNorm  # noqa: E402
from seva_jax.models.llama import DecoderLayer, rotary, rotate, window_mask  # noqa: E402
from seva_jax.models.llava import Projector  # noqa: E402

TOLERANCE = {"rtol": 0, "atol": 1e-5}


def draw(*shape, scale=1.0, seed=0):
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def kernel(linear):
    bias = {} if linear.bias is None else {"bias": linear.bias.detach().numpy()}
    return {"kernel": linear.weight.detach().numpy().T, **bias}


@pytest.mark.parametrize("eps", [1e-6, 1e-2])
def test_rms_norm(eps):
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    theirs = LlamaRMSNorm(32, eps)
    scale, x = 1 + draw(32, scale=0.3), draw(2, 5, 32, scale=0.1, seed=1)
    theirs.weight.data = torch.tensor(scale)
    ours = RMSNorm(eps).apply({"params": {"scale": scale}}, x)
    np.testing.assert_allclose(ours, theirs(torch.tensor(x)).detach(), **TOLERANCE)


def test_layer_norm():
    theirs = torch.nn.LayerNorm(32, 1e-3)
    scale, bias, x = 1 + draw(32, scale=0.3), draw(32, seed=1), 3 + draw(2, 5, 32, seed=2)
    theirs.weight.data, theirs.bias.data = torch.tensor(scale), torch.tensor(bias)
    ours = LayerNorm(1e-3).apply({"params": {"norm": {"scale": scale, "bias": bias}}}, x)
    np.testing.assert_allclose(ours, theirs(torch.tensor(x)).detach(), **TOLERANCE)


@pytest.mark.parametrize("base", [10000.0, 500000.0])
def test_rotary(base):
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    config = LlamaConfig(
        hidden_size=32,
        num_attention_heads=2,
        rope_parameters={"rope_type": "default", "rope_theta": base},
    )
    positions = np.array([[0, 1, 2, 7, 100, 2000], [5, 4, 3, 2, 1, 0]])
    query, key = draw(2, 6, 2, 16), draw(2, 6, 1, 16, seed=1)
    their_cos, their_sin = LlamaRotaryEmbedding(config)(
        torch.tensor(query), torch.tensor(positions)
    )
    cos, sin = rotary(jnp.asarray(positions), TextConfig(head_dim=16, rope_base=base))
    # At large positions float32 angles themselves are only good to about 1e-4.
    np.testing.assert_allclose(cos[:, :, 0], their_cos, rtol=0, atol=2e-4)
    np.testing.assert_allclose(cos[:, :4, 0], their_cos[:, :4], **TOLERANCE)
    cos, sin = jnp.asarray(their_cos)[:, :, None], jnp.asarray(their_sin)[:, :, None]
    rotated = apply_rotary_pos_emb(
        torch.tensor(query).transpose(1, 2), torch.tensor(key).transpose(1, 2), their_cos, their_sin
    )
    for ours, theirs in zip((query, key), rotated, strict=True):
        np.testing.assert_allclose(
            rotate(jnp.asarray(ours), cos, sin), theirs.transpose(1, 2), **TOLERANCE
        )


@pytest.mark.parametrize(
    ("rope", "fields"),
    [
        (LinearRope(2.5), {"rope_type": "linear", "factor": 2.5}),
        (DynamicRope(2.0, 64), {"rope_type": "dynamic", "factor": 2.0}),
        (
            Llama3Rope(8.0, 1.0, 4.0, 1024),
            {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
            | {"original_max_position_embeddings": 1024},
        ),
        (
            YarnRope(4.0, 1024),
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
        ),
        (
            YarnRope(1.5, 128, 0.8, 16, 2, False),
            {"rope_type": "yarn", "factor": 1.5, "original_max_position_embeddings": 128}
            | {"attention_factor": 0.8, "beta_fast": 16, "beta_slow": 2, "truncate": False},
        ),
    ],
)
@pytest.mark.parametrize(("base", "head_dim"), [(10000.0, 64), (1e6, 128)])
def test_scaled_rotary(rope, fields, base, head_dim):
    """All kinds differ from the plain one but the dynamic one within its context."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    theirs = LlamaRotaryEmbedding(
        LlamaConfig(
            hidden_size=2 * head_dim,
            num_attention_heads=2,
            max_position_embeddings=64,
            rope_parameters=fields | {"rope_theta": base},
        )
    )
    frequencies = rope.frequencies(base, head_dim)
    np.testing.assert_allclose(frequencies, theirs.inv_freq, rtol=3e-7, atol=0)
    plain = TextConfig().rope.frequencies(base, head_dim)
    assert (frequencies == plain).all() == isinstance(rope, DynamicRope)
    positions = np.array([[0, 1, 2, 63]])
    cos, sin = theirs(torch.zeros(1), torch.tensor(positions))
    config = TextConfig(head_dim=head_dim, rope_base=base, rope=rope)
    for ours, expected in zip(rotary(jnp.asarray(positions), config), (cos, sin), strict=True):
        np.testing.assert_allclose(ours[:, :, 0], expected, rtol=0, atol=2e-5)


def test_grouped_query_attention():
    query, key, value = draw(2, 5, 6, 8), draw(2, 7, 2, 8, seed=1), draw(2, 7, 2, 8, seed=2)
    mask = np.random.default_rng(3).random((2, 5, 7)) < 0.6
    mask[..., 0] = True
    theirs = torch.nn.functional.scaled_dot_product_attention(
        *(torch.tensor(x).transpose(1, 2) for x in (query, key, value)),
        attn_mask=torch.tensor(mask)[:, None],
        enable_gqa=True,
    )
    ours = attend(*map(jnp.asarray, (query, key, value, mask)))
    np.testing.assert_allclose(ours, theirs.transpose(1, 2), **TOLERANCE)


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ({"num_key_value_heads": 4}, {"num_kv_heads": 4}),
        ({"num_key_value_heads": 2}, {"num_kv_heads": 2}),
        ({"num_key_value_heads": 1, "head_dim": 16}, {"num_kv_heads": 1, "head_dim": 16}),
        (
            {"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 3},
            {"num_kv_heads": 2, "window": 3},
        ),
        (
            {"model_type": "qwen2", "num_key_value_heads": 2},
            {"num_kv_heads": 2, "qkv_bias": True},
        ),
        (
            {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 16},
            {"num_kv_heads": 2, "head_dim": 16, "qk_norm": True},
        ),
    ],
)
def test_decoder_layer(text, options):
    model = random_llava(text).model.language_model
    theirs = model.layers[0]
    sizes = {"vocab_size": 8, "hidden_size": 32, "num_layers": 1, "num_heads": 4, "head_dim": 8}
    config = TextConfig(**sizes | {"mlp_size": 56, "norm_eps": 1e-6} | options)
    parts = ("q_proj", "k_proj", "v_proj", "o_proj")
    params = {name: kernel(getattr(theirs.self_attn, name)) for name in parts}
    parts = ("gate_proj", "up_proj", "down_proj")
    params |= {name: kernel(getattr(theirs.mlp, name)) for name in parts}
    norms = {
        name: getattr(theirs, name) for name in ("input_layernorm", "post_attention_layernorm")
    }
    if config.qk_norm:
        norms |= {name: getattr(theirs.self_attn, name) for name in ("q_norm", "k_norm")}
    params |= {name: {"scale": norm.weight.detach().numpy()} for name, norm in norms.items()}

    x, positions = draw(2, 6, 32), np.array([[0, 1, 2, 3, 4, 5], [3, 4, 5, 6, 7, 8]])
    causal = np.tril(np.ones((2, 6, 6), bool))
    mask = causal & ~np.tril(causal, -config.window) if config.window else causal
    expected = theirs(
        torch.tensor(x),
        attention_mask=torch.tensor(mask)[:, None],
        position_embeddings=model.rotary_emb(torch.tensor(x), torch.tensor(positions)),
    )
    positions = jnp.asarray(positions)
    layer = DecoderLayer(config, None, jnp.dtype("float32"), "plain")
    carry, near = (jnp.asarray(x), None, None), window_mask(config, positions, positions)
    rope = rotary(positions, config)
    (ours, *_), _ = layer.apply({"params": params}, carry, 0, rope, causal, None, None, near)
    np.testing.assert_allclose(ours, expected.detach(), **TOLERANCE)


@pytest.mark.parametrize(
    ("feature_layer", "select", "activation"),
    [
        (-2, "default", "quick_gelu"),
        (-1, "default", "gelu"),
        (1, "full", "quick_gelu"),
        (0, "full", "quick_gelu"),
    ],
)
def test_vision_tower_and_projector(tmp_path, feature_layer, select, activation):
    model = random_llava(
        vision={"hidden_act": activation, "image_size": 56, "layer_norm_eps": 1e-4},
        vision_feature_layer=feature_layer,
        vision_feature_select_strategy=select,
    )
    config = read_llava_config(save(model, tmp_path))
    params = load_params(tmp_path, config)
    pixels = draw(3, 3, 56, 56)

    tower = model.model.vision_tower(torch.tensor(pixels), output_hidden_states=True)
    expected = tower.hidden_states[feature_layer][:, 1 if select == "default" else 0 :]
    tower = VisionTower(config, jnp.dtype("float32"), remat="none")
    features = tower.apply({"params": params["vision"]}, pixels.transpose(0, 2, 3, 1))
    assert features.shape == (3, config.tile_features, 32)
    np.testing.assert_allclose(features, expected.detach(), **TOLERANCE)

    projected = model.model.multi_modal_projector(expected)
    ours = Projector(config, jnp.dtype("float32")).apply(
        {"params": params["projector"]}, expected.detach().numpy()
    )
    np.testing.assert_allclose(ours, projected.detach(), **TOLERANCE)
