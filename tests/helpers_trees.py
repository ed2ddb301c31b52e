"""Random comparisons as rows of trees, and their log-probs in the usual layout, a row an answer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from tiny_models import TINY

from seva_jax.batches.trees import RowShape, TreeExample, pack_row, stack_rows
from seva_jax.models import Llava, LoraConfig
from seva_jax.training.step import StepOptions, make_logps

IMAGE = TINY.image_token_id
PATCHES = TINY.tile_features
MODEL = Llava(TINY, LoraConfig(rank=4, alpha=8.0))
OPTIONS = StepOptions(head_chunk=7)  # does not divide the number of answer positions
LONGEST, MOST_IMAGES = 32, 2  # tokens and images of the widest `example`

logps = jax.jit(make_logps(MODEL, OPTIONS))


def example(rng, num_images=1, num_branches=2, index=0, weight=1.0):
    """Draws a comparison with images at random places of its trunk."""
    parts = [rng.integers(5, 40, rng.integers(1, 4))]
    for _ in range(num_images):
        parts += [np.full(PATCHES, IMAGE), rng.integers(5, 40, rng.integers(1, 4))]
    branches = tuple(
        rng.integers(5, 40, rng.integers(1, 7)).astype(np.int32) for _ in range(num_branches)
    )
    pixels = rng.normal(size=(num_images, 8, 8, 3)).astype(np.float32)
    trunk = np.concatenate(parts).astype(np.int32)
    return TreeExample(trunk, branches, pixels, weight=weight, index=index)


def pack(rows, shape):
    """Makes a batch of lists of examples, a row of each."""
    sizes = {
        "image_shape": (8, 8, 3),
        "tile_features": PATCHES,
        "image_token_id": IMAGE,
        "pad_id": 0,
    }
    return stack_rows([pack_row(row, shape, **sizes) for row in rows])


def shape_of(examples, comparisons=1):
    """Returns a row shape that holds any `comparisons` of the examples."""
    shape = RowShape.covering(examples)
    return dataclasses.replace(
        shape,
        length=shape.length * comparisons,
        comparisons=comparisons,
        tiles=shape.tiles * comparisons,
        targets=shape.targets * comparisons,
    )


def plain_logps(variables, example):
    """Returns the log-probs of every branch's tokens, each branch in a padded row of its own."""
    out = []
    for branch in example.branches:
        tokens = np.concatenate([example.trunk, branch])
        tokens = np.pad(tokens, (0, LONGEST - len(tokens)))[None]
        missing = MOST_IMAGES - len(example.images_IX)
        pixels = np.pad(example.images_IX, ((0, missing), (0, 0), (0, 0), (0, 0)))[None]
        logits = plain_logits(variables, tokens, pixels)[0]
        start = len(example.trunk)
        logps = jax.nn.log_softmax(logits[start - 1 : start + len(branch) - 1])
        out.append(logps[np.arange(len(branch)), branch])
    return out


@jax.jit
def plain_logits(variables, tokens, pixels):
    """Returns the logits of rows with a causal mask."""
    is_image = tokens == IMAGE
    patch = jnp.where(is_image, jnp.cumsum(is_image, 1) - 1, -1)
    mask = jnp.tril(jnp.ones((LONGEST, LONGEST), bool))[None]
    return MODEL.apply(variables, tokens, jnp.arange(LONGEST)[None], mask, patch, pixels)


def parts(variables):
    """Returns the trained variables (adapters and projector) and the frozen ones."""
    params = variables["params"]
    trainable = {"lora": variables["lora"], "params": {"projector": params["projector"]}}
    return trainable, {"params": {p: params[p] for p in ("vision", "language")}}


def assert_trees_close(a, b, atol):
    """Compares two trees leaf by leaf."""
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)
