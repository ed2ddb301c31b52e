"""Options of the language model (biases, norms of heads, windows) through all that uses them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers_devices import mesh_of
from helpers_trees import IMAGE, LONGEST, MOST_IMAGES, OPTIONS, example, pack, shape_of
from test_sampler import PAD, STOP, WIDTH, keys, prompts
from test_unstacked import inputs
from tiny_models import TINY, noisy_variables, random_variables

from seva_jax.inference.answer_stats import _compute, _split
from seva_jax.inference.sampler import Sampler, decode, empty_state, generate, refill
from seva_jax.models import (
    DynamicRope,
    Llava,
    LoraConfig,
    YarnRope,
    abstract_stored,
    abstract_variables,
    is_quantised,
    merge_adapters,
    quantise_all,
    unstack,
)
from seva_jax.sharding import put_batch, variable_shardings
from seva_jax.text.sampling import Sampling
from seva_jax.training.step import make_logps
from seva_jax.types import DataError


def variant(**text):
    """Returns `TINY` with another language model."""
    return dataclasses.replace(TINY, text=dataclasses.replace(TINY.text, **text))


WINDOW, NEW = 3, 6
OPTIONS_OF_TEXT = {"qkv_bias": True, "qk_norm": True, "head_dim": 8, "rope": YarnRope(4.0, 8)}
CONFIG = variant(**OPTIONS_OF_TEXT, window=WINDOW)
WITHOUT_WINDOW = variant(**OPTIONS_OF_TEXT)
MIXED = variant(**OPTIONS_OF_TEXT, window=WINDOW, full_layers=(1,))
LORA = LoraConfig(rank=4, alpha=8.0)


@functools.partial(jax.jit, static_argnums=0)
def plain_logits(model, variables, tokens_S, prompt_length, pixels):
    """Returns the logits of one row, [S, V]; the mask is that of a window, and the model has none.

    Images are in the prompt only.
    """
    place = np.arange(len(tokens_S))
    is_image = (tokens_S == IMAGE) & (place < prompt_length)
    mask = (place <= place[:, None]) & (place > place[:, None] - WINDOW)
    patch = jnp.where(is_image, jnp.cumsum(is_image) - 1, -1)
    return model.apply(
        variables, tokens_S[None], place[None], mask[None], patch[None], pixels[None]
    )[0]


def test_trees_equal_separate_rows():
    """Branches continue the positions of their trunk, and so does the window."""
    model = Llava(CONFIG, LORA)
    variables = random_variables(model)
    plain = Llava(WITHOUT_WINDOW, LORA)
    rng = np.random.default_rng(0)
    examples = [example(rng, num_images=i, num_branches=3, index=i) for i in range(3)]
    batch = pack([examples], shape_of(examples, comparisons=3))
    found = jax.jit(make_logps(model, OPTIONS))(variables, batch)[0]
    for e, own in zip(examples, found, strict=True):
        pixels = np.pad(e.images_IX, ((0, MOST_IMAGES - len(e.images_IX)), (0, 0), (0, 0), (0, 0)))
        for branch, logps in zip(e.branches, own, strict=True):
            tokens = np.concatenate([e.trunk, branch])
            padded = np.pad(tokens, (0, LONGEST - len(tokens)))
            logits = plain_logits(plain, variables, padded, len(e.trunk), pixels)
            logits = np.asarray(logits)[len(e.trunk) - 1 : len(tokens) - 1]
            chosen = logits[np.arange(len(branch)), branch]
            expected = chosen - np.log(np.exp(logits).sum(-1))
            np.testing.assert_allclose(logps[: len(branch)], expected, atol=2e-5)


@pytest.mark.parametrize("cache", ["exact", "int8"])
def test_answers_equal_full_forward_passes(cache):
    """Also of rows that are refilled, whose ring of cache slots is at another place."""
    model = Llava(CONFIG, stacked=False)
    plain = Llava(WITHOUT_WINDOW, stacked=False)
    variables = noisy_variables(model)
    rows, batch = prompts("right")
    expected = []
    for row, pixels in zip(rows, batch.pixels_BIHWC, strict=True):
        tokens = list(row)
        while len(tokens) < len(row) + NEW and (len(tokens) == len(row) or tokens[-1] != STOP):
            padded = np.pad(tokens, (0, WIDTH + NEW - len(tokens)))
            logits = plain_logits(plain, variables, padded, len(row), pixels)
            tokens.append(int(logits[len(tokens) - 1].argmax()))
        answer = tokens[len(row) :]
        expected.append(answer + [PAD] * (NEW - len(answer)))
    assert len({tuple(x) for x in expected}) == 4

    sampler = Sampler(model, Sampling(NEW), (STOP,), PAD, cache)
    tags = np.arange(4, dtype=np.int32)
    state = empty_state(sampler, 4, WIDTH)
    state = refill(sampler, variables, state, batch, keys(4), tags, tags, 1)
    # The first rows stop here, and take other prompts while the clock of all rows continues.
    state = state._replace(done_B=jnp.array([True, True, False, False]))
    state = decode(sampler, variables, state, jnp.int32(2))
    moved = np.array([2, 3, -1, -1], np.int32)
    state = refill(sampler, variables, state, batch, keys(4), tags + 4, moved, 1)
    state = decode(sampler, variables, state, jnp.int32(4))
    whole = generate(model, variables, batch, keys(4), Sampling(NEW), (STOP,), PAD, cache)
    np.testing.assert_array_equal(state.out_BT, np.asarray(whole)[[2, 3, 2, 3]])
    if cache == "exact":
        np.testing.assert_array_equal(whole, expected)


def abstract_call(config, size):
    """Returns the module's call and shapes of its arguments, for one row."""
    model = Llava(config)
    shapes = abstract_variables(model)
    shapes = jax.tree.map(lambda x: x.value, shapes, is_leaf=lambda x: hasattr(x, "names"))
    row = np.zeros((1, size), np.int32)
    mask, pixels = np.ones((1, size, size), bool), np.zeros((1, 0, 8, 8, 3), np.float32)
    return model.apply, shapes, row, row, mask, row - 1, pixels


def test_a_window_that_holds_every_row_changes_nothing():
    """The program is the one without a window."""

    def program(config):
        call, *arguments = abstract_call(config, 8)
        return jax.jit(call).lower(*arguments).as_text()

    assert program(variant(window=8)) == program(TINY)
    assert program(variant(window=7)) != program(TINY)
    assert program(variant(window=7, full_layers=(0, 1))) != program(variant(window=7))


def test_attention_weights_have_the_options_of_their_layer():
    """What answers look at is within the window, and follows from biases and norms."""
    rng = np.random.default_rng(1)
    data = [example(rng, num_images=1, num_branches=1, index=0)]
    assert len(data[0].branches[0]) > 2
    batch = pack([data], shape_of(data))
    variables = random_variables(Llava(CONFIG))

    compute = jax.jit(_compute, static_argnums=(0, 1, 2))

    def read(variables, **text):
        model = Llava(variant(**OPTIONS_OF_TEXT, **text))
        out = compute(model, OPTIONS, 1, variables, batch)
        (stats,) = _split(*jax.device_get(out))
        return stats.attention_P

    assert not read(variables, window=1).any()  # a token sees only itself
    assert (read(variables, window=1, full_layers=(1,)) > 0).all()
    whole = read(variables)
    for part in (("q_proj", "bias"), ("k_proj", "bias"), ("q_norm", "scale"), ("k_norm", "scale")):
        other = jax.tree_util.tree_map_with_path(
            lambda path, x, part=part: x * 3 if tuple(p.key for p in path[-2:]) == part else x,
            variables,
        )
        assert np.abs(read(other) - whole).max() > 1e-3, part


def test_rows_beyond_the_context_of_a_dynamic_rope_are_refused():
    config = variant(rope=DynamicRope(2.0, 8))
    jax.eval_shape(*abstract_call(config, 8))
    with pytest.raises(DataError, match=r"rows of 9 tokens .* 8 \(max_position_emb.*\"dynamic\""):
        jax.eval_shape(*abstract_call(config, 9))


def test_separate_layers_and_quantised_kernels():
    """Biases and norms stay floats, and are carried to every layer."""
    stacked = Llava(MIXED, LORA)
    variables = random_variables(stacked)

    def hidden(model, variables):
        return jax.jit(functools.partial(model.apply, method="hidden"))(variables, *inputs(model))[
            0
        ]

    expected = hidden(stacked, variables)
    np.testing.assert_allclose(hidden(*unstack(stacked, variables)), expected, atol=2e-5)
    boxed = abstract_stored(abstract_variables(stacked)["params"], "int8", "float32")
    shardings = variable_shardings(mesh_of(), boxed)
    stored = quantise_all(variables["params"], "int8", shardings)
    assert sum(is_quantised(x) for x in jax.tree.leaves(stored, is_leaf=is_quantised)) == 7
    near = hidden(stacked, {**variables, "params": stored})
    assert 0 < np.abs(near - expected).max() < 0.2 * np.abs(expected).max()


def test_any_mesh_computes_the_same():
    """Biases are split along heads as their kernels are, and adapters merge into these."""
    model = Llava(MIXED, LORA)
    variables = random_variables(model)
    rng = np.random.default_rng(0)
    examples = [example(rng, index=i) for i in range(4)]
    batch = pack([[e] for e in examples], shape_of(examples))
    logps = jax.jit(make_logps(model, OPTIONS))
    expected = np.asarray(logps(variables, batch))
    mesh = mesh_of(2, 2, 2)
    boxed = abstract_variables(model)
    shardings = {k: variable_shardings(mesh, boxed[k]) for k in variables}
    there = jax.device_put(variables, shardings)
    layers = there["params"]["language"]["layers"]
    assert layers["q_proj"]["bias"].sharding.spec[-1] == "tensor"
    with jax.set_mesh(mesh):
        found = logps(there, put_batch(mesh, batch))
        np.testing.assert_allclose(found, expected, atol=2e-5)
        merged = merge_adapters(
            there["params"], there["lora"], LORA, jnp.dtype("float32"), shardings["params"]
        )
        alone = jax.jit(make_logps(Llava(MIXED), OPTIONS))
        np.testing.assert_allclose(
            alone({"params": merged}, put_batch(mesh, batch)), found, atol=1e-4
        )
