"""What the model thinks of answers, and where a layer looks, against plain forward passes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers_devices import mesh_of
from helpers_trees import IMAGE, LONGEST, MOST_IMAGES, OPTIONS, example, pack, shape_of
from tiny_models import TINY, noisy_variables

from seva_jax.inference.answer_stats import _compute, _split
from seva_jax.models import Llava, LoraConfig, merge_adapters
from seva_jax.sharding import put_batch, replicated

MODEL = Llava(TINY)
TEXT = TINY.text


@pytest.fixture(scope="module")
def variables():
    """Returns weights large enough that attention matters."""
    return jax.tree.map(np.asarray, noisy_variables(MODEL))


def read(variables, batch, layer, mesh=None, model=MODEL):
    """Returns readings of a batch, by index."""
    one = jax.jit(functools.partial(_compute, model, OPTIONS, layer))
    if mesh is None:
        return {r.index: r for r in _split(*jax.device_get(one(variables, batch)))}
    with jax.set_mesh(mesh):
        out = jax.device_get(one(variables, put_batch(mesh, batch)))
    return {r.index: r for r in _split(*out)}


@functools.partial(jax.jit, static_argnums=3)
def plain_pass(variables, tokens, pixels, layer):
    """Returns embeddings, the layer's input, and logits of one causal row."""
    is_image = tokens == IMAGE
    patch = jnp.where(is_image, jnp.cumsum(is_image) - 1, -1)[None]
    features = MODEL.apply(variables, pixels[None], method="features")
    mask = jnp.tril(jnp.ones((LONGEST, LONGEST), bool))[None]
    hidden, x = MODEL.apply(
        variables, tokens[None], jnp.arange(LONGEST)[None], mask, patch, features, layer,
        method="hidden_and_input",
    )  # fmt: skip
    embedded, _ = MODEL.apply(variables, tokens[None], patch, features, method="embed")
    return embedded[0], x[0], MODEL.apply(variables, hidden, method="head")[0]


def plain(variables, e, layer):
    """Returns attention weights [H, S, S] in NumPy, and log-probs [T, V] at the answer's tokens."""
    tokens = np.concatenate([e.trunk, e.branches[0]])
    size, missing = len(tokens), MOST_IMAGES - len(e.images_IX)
    pixels = np.pad(e.images_IX, ((0, missing), (0, 0), (0, 0), (0, 0)))
    padded = np.pad(tokens, (0, LONGEST - size))
    embedded, x, logits = plain_pass(variables, padded, pixels, layer)
    params, stream = variables["params"]["language"]["layers"], np.asarray(embedded[:size])
    for number in range(layer):
        stream = plain_layer(jax.tree.map(lambda w, n=number: w[n], params), stream)
    np.testing.assert_allclose(x[:size], stream, rtol=1e-5, atol=2e-5)
    weight_HSS = plain_weights(jax.tree.map(lambda w: w[layer], params), stream)
    return weight_HSS, np.asarray(jax.nn.log_softmax(logits))[len(e.trunk) - 1 : size - 1]


def norm(x, scale):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + TEXT.norm_eps) * scale


def rotated(x, num):
    """Turns [S, num * Q] into [num, S, Q] with rotary positions, as complex numbers."""
    size, half = len(x), TEXT.head_dim // 2
    x = np.asarray(x).reshape(size, num, TEXT.head_dim)
    angle = np.arange(size)[:, None] * TEXT.rope_base ** (-np.arange(half) / half)
    turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angle)[:, None]
    return np.concatenate([turned.real, turned.imag], -1).swapaxes(0, 1)


def plain_weights(params, x):
    y = norm(x, params["input_layernorm"]["scale"])
    q = rotated(y @ params["q_proj"]["kernel"], TEXT.num_heads)
    k = rotated(y @ params["k_proj"]["kernel"], TEXT.num_kv_heads)
    k = k.repeat(TEXT.num_heads // TEXT.num_kv_heads, axis=0)
    score = np.where(np.tri(len(x), dtype=bool), q @ k.swapaxes(1, 2) / TEXT.head_dim**0.5, -np.inf)
    weight = np.exp(score - score.max(-1, keepdims=True))
    return weight / weight.sum(-1, keepdims=True)


def plain_layer(params, x):
    x = np.asarray(x, np.float64)
    y = norm(x, params["input_layernorm"]["scale"])
    v = (y @ params["v_proj"]["kernel"]).reshape(len(x), TEXT.num_kv_heads, -1).swapaxes(0, 1)
    v = v.repeat(TEXT.num_heads // TEXT.num_kv_heads, axis=0)
    out = (plain_weights(params, x) @ v).swapaxes(0, 1).reshape(len(x), -1)
    x = x + out @ params["o_proj"]["kernel"]
    y = norm(x, params["post_attention_layernorm"]["scale"])
    gate = y @ params["gate_proj"]["kernel"]
    gate = gate / (1 + np.exp(-gate)) * (y @ params["up_proj"]["kernel"])
    return x + gate @ params["down_proj"]["kernel"]


def examples(num=5):
    """Draws comparisons of one answer with 0 to 2 images at random places."""
    rng = np.random.default_rng(3)
    return [example(rng, i % 3, 1, index=i) for i in range(num)]


def test_readings_are_those_of_plain_attention_and_logits(variables):
    """In packed rows each answer only looks at its own images and has the same numbers."""
    data = examples()
    first = plain(variables, data[1], 1)[1][0].argmax()  # a token that is the likeliest
    data[1].branches[0][0] = first
    batch = pack([data[:3], data[3:]], shape_of(data, comparisons=3))
    without = read(variables, batch, None)
    for layer in range(TEXT.num_layers):
        found = read(variables, batch, layer)
        assert sorted(found) == list(range(5))
        for e in data:
            weight_HSS, logps = plain(variables, e, layer)
            images = np.flatnonzero(e.trunk == IMAGE)
            expected = weight_HSS[:, len(e.trunk) : -1].mean(0).sum(0)[images]  # not the end token
            np.testing.assert_allclose(found[e.index].attention_P, expected, atol=1e-5)
            target = e.branches[0]
            for reading in (found[e.index], without[e.index]):
                own = logps[np.arange(len(target)), target]
                np.testing.assert_allclose(reading.logp_T, own, atol=2e-5)
                np.testing.assert_allclose(reading.best_logp_T, logps.max(-1), atol=2e-5)
            assert not without[e.index].attention_P.size
    assert without[1].logp_T[0] == pytest.approx(without[1].best_logp_T[0], abs=1e-6)


def test_eight_devices_read_as_one(variables):
    """Rows are split over data and fsdp, heads over tensor."""
    data = examples(8)
    batch = pack([[e] for e in data], shape_of(data))
    alone = read(variables, batch, 1)
    apart = read(variables, batch, 1, mesh_of(2, 2, 2))
    for index, reading in alone.items():
        for ours, theirs in zip(reading, apart[index], strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_adapters_count(variables):
    """A model with adapters reads like the one that they are merged into."""
    lora = LoraConfig(rank=2, alpha=8.0)
    adapted = dataclasses.replace(MODEL, lora=lora)
    adapters = noisy_variables(adapted)["lora"]
    data = examples()
    batch = pack([[e] for e in data], shape_of(data))
    shardings = jax.tree.map(lambda _: replicated(mesh_of()), variables["params"])
    copy = jax.tree.map(jnp.array, variables["params"])
    adapters = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), adapters)
    merged = merge_adapters(copy, adapters, lora, jnp.float32, shardings)
    plain = read(variables, batch, 1)
    found = read({**variables, "lora": adapters}, batch, 1, model=adapted)
    for index, expected in read({"params": merged}, batch, 1).items():
        assert np.abs(expected.attention_P - plain[index].attention_P).max(initial=0) > 1e-3 or (
            not expected.attention_P.size
        )
        for ours, theirs in zip(found[index], expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=2e-5)


def streams(function, variables, batch):
    """Returns the number of residual-stream-sized outputs of each scan over layers."""
    found, stream = [], (*batch.tokens_BS.shape, TEXT.hidden_size)

    def visit(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "scan" and equation.params["length"] == TEXT.num_layers:
                found.append(sum(out.aval.shape == stream for out in equation.outvars))
            for value in equation.params.values():
                for inner in jax.tree.leaves(value, is_leaf=lambda x: hasattr(x, "eqns")):
                    if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                        visit(getattr(inner, "jaxpr", inner))

    visit(jax.make_jaxpr(function)(variables, batch).jaxpr)
    return found


def test_what_is_not_asked_for_costs_nothing(variables):
    """The scan over layers gives one more array only for the layer that is asked for."""
    data = examples(2)
    batch = pack([[e] for e in data], shape_of(data))
    without, asked = (
        streams(functools.partial(_compute, MODEL, OPTIONS, layer), variables, batch)
        for layer in (None, 1)
    )
    assert (max(without), max(asked)) == (1, 2)
