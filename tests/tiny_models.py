"""Models small enough for a CPU, one for every size that a test depends on, and random weights.

What lives here: configs, each named after what sets it apart, and weights with which mistakes show.
What does not: checkpoints on disk (`helpers_llava.py`), rows of tokens (`helpers_trees.py`).
"""

import dataclasses

import jax

from seva_jax.models import LlavaConfig, TextConfig, VisionConfig
from seva_jax.models.init import _init, _unbox

# Four patches an image, two layers, two query heads for each key-value head.
TINY = LlavaConfig(
    vision=VisionConfig(
        image_size=8, patch_size=4, hidden_size=16, num_layers=2, num_heads=2, mlp_size=32
    ),
    text=TextConfig(
        vocab_size=40, hidden_size=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4,
        mlp_size=32,
    ),
    image_token_id=4,
)  # fmt: skip

# Eight of everything that the mesh axis `tensor` splits.
EIGHT_HEADS = dataclasses.replace(
    TINY,
    vision=dataclasses.replace(TINY.vision, num_heads=8, hidden_size=32),
    text=dataclasses.replace(TINY.text, num_heads=8, num_kv_heads=8),
)

# Widths that differ, so that a dim cannot be taken for another one.
DISTINCT_SIZES = LlavaConfig(
    vision=dataclasses.replace(TINY.vision, hidden_size=8, mlp_size=16),
    text=dataclasses.replace(TINY.text, hidden_size=12, num_layers=3, mlp_size=20),
)

# What the checkpoints of `helpers_llava.py` hold: CLIP's patch size and another rotary base.
TINY_HF = LlavaConfig(
    vision=VisionConfig(
        image_size=28, patch_size=14, hidden_size=16, num_layers=3, num_heads=2, mlp_size=24
    ),
    text=dataclasses.replace(TINY.text, rope_base=500.0),
    image_token_id=39,
)

# For images and words of the procedural world, whose tokenizer sets the size of the vocabulary.
WORLD_ONE_LAYER = LlavaConfig(
    vision=VisionConfig(
        image_size=16, patch_size=8, hidden_size=16, num_layers=1, num_heads=2, mlp_size=32
    ),
    text=TextConfig(
        hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=8, mlp_size=32
    ),
)
WORLD_TWO_LAYERS = LlavaConfig(
    vision=dataclasses.replace(WORLD_ONE_LAYER.vision, image_size=32, num_layers=2),
    text=dataclasses.replace(WORLD_ONE_LAYER.text, hidden_size=32, num_layers=2, head_dim=16),
)

# A vocabulary large enough for the random tokens of the benchmarks.
BENCHED = LlavaConfig(
    vision=VisionConfig(
        image_size=28, patch_size=14, hidden_size=32, num_layers=2, num_heads=2, mlp_size=64
    ),
    text=TextConfig(
        vocab_size=1024, hidden_size=64, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=32,
        mlp_size=96,
    ),
    image_token_id=1010,
)  # fmt: skip

# Matrix products dominate; each scan runs once, because XLA counts the body of a scan once. The
# vision tower has two layers, of which `select_layer` leaves out the last.
PLANNED = LlavaConfig(
    vision=VisionConfig(
        image_size=64, patch_size=16, hidden_size=128, num_layers=2, num_heads=4, mlp_size=512
    ),
    text=TextConfig(
        vocab_size=1024, hidden_size=256, num_layers=1, num_heads=4, num_kv_heads=2, head_dim=64,
        mlp_size=768,
    ),
    image_token_id=1000,
)  # fmt: skip


def _drawn(model, seed, weight):
    """Variables whose leaves are made from their initial value and noise of their shape."""
    fresh = _unbox(jax.jit(lambda key: _init(model, key))(jax.random.key(0)))
    leaves, tree = jax.tree.flatten(fresh)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    noise = [jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, map(weight, leaves, noise))


def random_variables(model):
    """Draws weights large enough that attention, MLP and both halves of an adapter matter.

    Norm scales are around one, everything else is around zero.
    """
    return _drawn(model, 1, lambda initial, noise: (initial == 1) + 0.2 * noise)


def noisy_variables(model):
    """Adds so much noise to fresh weights that answers to different prompts differ."""
    return _drawn(model, 2, lambda initial, noise: initial + 0.4 * noise)
