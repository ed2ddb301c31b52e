"""What the benchmarks compute on: architectures, random comparisons, and batches of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from seva_jax.batches.trees import RowShape, TreeExample, pack_row, stack_rows
from seva_jax.models import LLAVA_15, LlavaConfig, TextConfig, VisionConfig
from seva_jax.types import TreeBatch

BETA, LR = 0.1, 1e-4  # of DPO and AdamW, on all sides
_VISION = VisionConfig(hidden_size=256, num_layers=6, num_heads=4, mlp_size=1024)
SIZES = {
    "tiny": LlavaConfig(  # tries a command; its times mean nothing
        vision=VisionConfig(
            image_size=28, patch_size=14, hidden_size=32, num_layers=2, num_heads=2, mlp_size=64
        ),
        text=TextConfig(
            vocab_size=1024, hidden_size=64, num_layers=2, num_heads=2, num_kv_heads=2,
            head_dim=32, mlp_size=96,
        ),
        image_token_id=1010,
    ),
    # 576 image tokens each; small enough for a CPU.
    "small": LlavaConfig(
        vision=_VISION,
        text=TextConfig(
            vocab_size=8192, hidden_size=512, num_layers=6, num_heads=8, num_kv_heads=8,
            head_dim=64, mlp_size=1408,
        ),
        image_token_id=8000,
    ),
    "mid": LlavaConfig(
        vision=dataclasses.replace(_VISION, hidden_size=512, num_heads=8, mlp_size=2048),
        text=TextConfig(
            hidden_size=1024, num_layers=8, num_heads=16, num_kv_heads=16, head_dim=64,
            mlp_size=2816,
        ),
    ),
    **LLAVA_15,
}  # fmt: skip


def examples(
    config: LlavaConfig, num: int, question: int, answer: int, branches: int = 2, images: int = 1
) -> list[TreeExample]:
    """Returns random comparisons: images, a question around them, answers of full length."""
    rng = np.random.default_rng(0)
    side = config.vision.image_size

    def tokens(num: int) -> np.ndarray:
        return rng.integers(10, 1000, num).astype(np.int32)

    patches = np.full(images * config.tile_features, config.image_token_id, np.int32)
    half = question // 2
    return [
        TreeExample(
            np.concatenate([tokens(half), patches, tokens(question - half)]),
            tuple(tokens(answer) for _ in range(branches)),
            rng.normal(size=(images, side, side, 3)).astype(np.float32),
        )
        for _ in range(num)
    ]


def exact_shape(tree: TreeExample) -> RowShape:
    """Returns the shape of a row that one of `examples` fills."""
    answer = len(tree.branches[0])
    return RowShape(tree.length, 1, len(tree.branches), answer, 1, tree.num_targets)


def packed(config: LlavaConfig, trees: list[TreeExample]) -> TreeBatch:
    """Packs a row for each of `examples`, or for each of their branches."""
    return laid_out(config, [[tree] for tree in trees], exact_shape(trees[0]))


def laid_out(
    config: LlavaConfig, rows: Sequence[Sequence[TreeExample]], shape: RowShape
) -> TreeBatch:
    """Packs rows of several examples each into a batch of one shape."""
    side = config.vision.image_size
    return stack_rows([
        pack_row(
            row, shape, image_shape=(side, side, 3), pad_id=0,
            tile_features=config.tile_features, image_token_id=config.image_token_id,
        )
        for row in rows
    ])  # fmt: skip


def prompts(config: LlavaConfig, rows: int, question: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns random prompts: token ids [rows, S], and an image for each, [rows, 1, H, W, 3]."""
    rng = np.random.default_rng(0)
    side = config.vision.image_size
    image = np.full((rows, config.tile_features), config.image_token_id, np.int32)
    text = rng.integers(10, 1000, (rows, question)).astype(np.int32)
    half = question // 2
    tokens = np.concatenate([text[:, :half], image, text[:, half:]], axis=1)
    return tokens, rng.normal(size=(rows, 1, side, side, 3)).astype(np.float32)
