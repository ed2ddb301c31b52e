"""The compiled decode loop against decoding by full forward passes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers_trees import IMAGE, PATCHES
from tiny_models import TINY, noisy_variables

from seva_jax.inference.sampler import (
    PromptBatch,
    Sampler,
    choose,
    decode,
    empty_state,
    generate,
    refill,
)
from seva_jax.models import Llava
from seva_jax.text.sampling import Sampling

MODEL = Llava(TINY, stacked=False)
STOP, PAD, NEW, WIDTH = 3, 0, 6, 16


@pytest.fixture(scope="module")
def variables():
    return noisy_variables(MODEL)


def prompts(side):
    """Draws prompts of mixed lengths with 0, 1 and 2 images, padded on one side."""
    rng = np.random.default_rng(0)
    image = np.full(PATCHES, IMAGE)
    rows = [
        np.concatenate([[1], image, rng.integers(5, 40, 3)]),
        rng.integers(5, 40, 5),
        np.concatenate([image, rng.integers(5, 40, 2), image, rng.integers(5, 40, 1)]),
        np.concatenate([rng.integers(5, 40, 9), image, rng.integers(5, 40, 2)]),
    ]
    tokens, mask = np.zeros((4, WIDTH), np.int32), np.zeros((4, WIDTH), bool)
    for i, row in enumerate(rows):
        at = slice(0, len(row)) if side == "right" else slice(WIDTH - len(row), WIDTH)
        tokens[i, at], mask[i, at] = row, True
    is_image = tokens == IMAGE
    patch = np.where(is_image, np.cumsum(is_image, 1) - 1, -1).astype(np.int32)
    pixels = rng.normal(size=(4, 2, 8, 8, 3)).astype(np.float32)
    return rows, PromptBatch(tokens, mask, patch, pixels)


def keys(num):
    """Returns one key a row."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(num))


@jax.jit
def next_logits(variables, tokens, length, prompt_length, pixels):
    """Returns logits after the first `length` tokens of a row with images in its prompt only."""
    is_image = (tokens == IMAGE) & (jnp.arange(len(tokens)) < prompt_length)
    patch = jnp.where(is_image, jnp.cumsum(is_image) - 1, -1)[None]
    size = len(tokens)
    mask = jnp.tril(jnp.ones((size, size), bool))[None]
    logits = MODEL.apply(variables, tokens[None], jnp.arange(size)[None], mask, patch, pixels[None])
    return logits[0, length - 1]


def by_full_passes(variables, row, pixels):
    """Decodes greedily without a cache."""
    tokens, out = list(row), []
    for _ in range(NEW):
        padded = np.pad(tokens, (0, WIDTH + NEW - len(tokens)))
        logits = next_logits(variables, padded, len(tokens), len(row), pixels)
        out.append(int(logits.argmax()))
        tokens.append(out[-1])
        if out[-1] == STOP:
            break
    return out + [PAD] * (NEW - len(out))


@pytest.mark.parametrize("side", ["left", "right"])
def test_greedy_equals_full_forward_passes(variables, side):
    """Mixed lengths, images and padding may be in one batch."""
    rows, batch = prompts(side)
    out = generate(MODEL, variables, batch, keys(4), Sampling(NEW), (STOP,), PAD)
    expected = [
        by_full_passes(variables, r, p) for r, p in zip(rows, batch.pixels_BIHWC, strict=True)
    ]
    np.testing.assert_array_equal(out, expected)
    assert len({tuple(r) for r in expected}) == 4  # the rows do differ


def test_stops_and_pads(variables):
    """After a stop token there is only padding; other rows continue."""
    _, batch = prompts("right")
    free = generate(MODEL, variables, batch, keys(4), Sampling(NEW), (), PAD)
    stop = int(free[0, 1])
    out = np.asarray(generate(MODEL, variables, batch, keys(4), Sampling(NEW), (stop,), PAD))
    for row, unstopped in zip(out, np.asarray(free), strict=True):
        end = np.flatnonzero(unstopped == stop)
        length = end[0] + 1 if len(end) else NEW
        np.testing.assert_array_equal(row[:length], unstopped[:length])
        assert (row[length:] == PAD).all()


def test_sampling_depends_on_its_own_key_only(variables):
    """Rows in another order have the same answers; another key gives another answer."""
    _, batch = prompts("right")
    sampling = Sampling(NEW, temperature=1.5, top_p=0.95)
    out = np.asarray(generate(MODEL, variables, batch, keys(4), sampling, (STOP,), PAD))
    order = np.array([2, 0, 3, 1])
    moved = jax.tree.map(lambda x: x[order], batch)
    again = np.asarray(generate(MODEL, variables, moved, keys(4)[order], sampling, (STOP,), PAD))
    np.testing.assert_array_equal(again, out[order])
    other = generate(MODEL, variables, batch, keys(8)[4:], sampling, (STOP,), PAD)
    assert (np.asarray(other) != out).any()


def test_top_p_keeps_the_smallest_sufficient_set():
    """Tokens outside the nucleus never occur; those inside occur in proportion."""
    probs = np.array([0.5, 0.3, 0.15, 0.05])
    logits = jnp.broadcast_to(jnp.log(probs), (4000, 4))
    tokens = choose(logits, keys(4000), Sampling(1, temperature=1.0, top_p=0.7))
    share = np.bincount(np.asarray(tokens), minlength=4) / 4000
    np.testing.assert_allclose(share, [0.625, 0.375, 0, 0], atol=0.03)
    assert (choose(logits, keys(4000), Sampling(1, temperature=1.0, top_p=0.01)) == 0).all()


@pytest.mark.parametrize("cache", ["exact", "int8"])
def test_narrow_batches_take_the_rows_of_wide_ones(variables, cache):
    """A row that is refilled with a narrower batch forgets the longer prompt that it answered."""
    rows, batch = prompts("right")
    narrow = WIDTH // 2
    short = [i for i, row in enumerate(rows) if len(row) <= narrow]
    assert short == [0, 1]
    few = jax.tree.map(lambda x: x[:2], batch)._replace(
        tokens_BS=batch.tokens_BS[:2, :narrow],
        mask_BS=batch.mask_BS[:2, :narrow],
        patch_BS=batch.patch_BS[:2, :narrow],
    )
    sampler = Sampler(MODEL, Sampling(NEW), (STOP,), PAD, cache)
    tags = np.arange(4, dtype=np.int32)
    state = empty_state(sampler, 4, WIDTH)
    state = refill(sampler, variables, state, batch, keys(4), tags, tags, 1)
    state = decode(sampler, variables, state, jnp.int32(4))
    first = np.asarray(state.out_BT)
    places = np.array([-1, -1, 0, 1], np.int32)  # of the two rows with the longest prompts
    assert np.asarray(state.seen_BS)[2:, narrow:].any()
    state = refill(sampler, variables, state, few, keys(2), tags[:2] + 4, places, 1)
    np.testing.assert_array_equal(state.seen_BS[2:, :narrow], few.mask_BS)
    assert not np.asarray(state.seen_BS)[2:, narrow:].any()
    state = decode(sampler, variables, state, jnp.int32(4))
    np.testing.assert_array_equal(state.tag_B, [0, 1, 4, 5])
    np.testing.assert_array_equal(state.out_BT[:2], first[:2])
    np.testing.assert_array_equal(state.out_BT[2:], first[:2])
    assert (first[2:] != first[:2]).any(axis=1).all()
    if cache == "exact":
        expected = [by_full_passes(variables, rows[i], batch.pixels_BIHWC[i]) for i in short]
        np.testing.assert_array_equal(state.out_BT[2:], expected)
