"""Floating point operations of a training step, computed from the architecture.

A multiply-add counts as two. Only matrix products are counted; norms, softmax and activations are
below one per cent at these sizes.
"""

from __future__ import annotations

import dataclasses

from seva_jax.batches.trees import RowShape
from seva_jax.models import LlavaConfig, LoraConfig, Remat
from seva_jax.models.attention import BLOCK


@dataclasses.dataclass(frozen=True)
class Forward:
    """Operations of one forward pass over one row.

    Attributes:
        tower: vision tower.
        projector: projector.
        linear: the language model's own linear layers.
        down: the part of `linear` in the last product of each layer, whose result no gradient
            needs.
        lora: the language model's adapters.
        tower_lora: the tower's.
        projector_lora: the projector's.
        attention: scores and weighted sums of values, in blocks of queries, each with all keys up
            to the end of the block.
        head: logits at answer positions.
    """

    tower: float
    projector: float
    linear: float
    down: float
    lora: float
    tower_lora: float
    projector_lora: float
    attention: float
    head: float

    @property
    def language(self) -> float:
        """The language model with its adapters."""
        return self.linear + self.lora + self.attention + self.head


def forward(config: LlavaConfig, lora: LoraConfig, shape: RowShape) -> Forward:
    """Counts the operations of a forward pass over one row of a shape."""
    v, t = config.vision, config.text
    patches = v.num_patches
    places = patches + v.class_token
    per_layer = 2 * places * (4 * v.hidden_size**2 + 2 * v.hidden_size * v.mlp_size)
    per_layer += 4 * places**2 * v.hidden_size
    tower = config.tower_depth * per_layer + 2 * patches * v.patch_size**2 * 3 * v.hidden_size
    tokens = config.tile_features
    projector = 2 * tokens * (config.feature_width * t.hidden_size + t.hidden_size**2)
    wide, narrow = t.num_heads * t.head_dim, t.num_kv_heads * t.head_dim
    sizes = {
        "q_proj": (t.hidden_size, wide),
        "k_proj": (t.hidden_size, narrow),
        "v_proj": (t.hidden_size, narrow),
        "o_proj": (wide, t.hidden_size),
        "gate_proj": (t.hidden_size, t.mlp_size),
        "up_proj": (t.hidden_size, t.mlp_size),
        "down_proj": (t.mlp_size, t.hidden_size),
    }
    length = shape.length
    linear = 2 * length * t.num_layers * sum(i * o for i, o in sizes.values())
    down = 2 * length * t.num_layers * t.mlp_size * t.hidden_size
    adapted = lora.targets if lora.rank else ()
    widths = sum(lora.of(name).rank * sum(sizes[name]) for name in adapted)
    adapters = 2 * length * t.num_layers * widths
    tower_lora, projector_lora = _image_adapters(config, lora)
    seen = sum(
        (min(start + BLOCK, length) - start) * min(start + BLOCK, length)
        for start in range(0, length, BLOCK)
    )
    attention = 4 * seen * wide * t.num_layers
    head = 2 * shape.targets * t.hidden_size * t.vocab_size
    tiles = shape.tiles
    return Forward(
        tiles * tower, tiles * projector, linear, down, adapters, tiles * tower_lora,
        tiles * projector_lora, attention, head,
    )  # fmt: skip


def _image_adapters(config: LlavaConfig, lora: LoraConfig) -> tuple[float, float]:
    """Returns the operations of the adapters of tower and projector for one tile."""
    v, width = config.vision, config.text.hidden_size
    places = v.num_patches + v.class_token
    mlp = v.hidden_size + v.mlp_size
    sizes = dict.fromkeys(lora.vision_targets, 2 * v.hidden_size) | {"fc1": mlp, "fc2": mlp}
    vision = lora.of("vision").rank * (lora.vision and lora.rank > 0)
    tower = 2 * places * config.tower_depth * vision * sum(sizes[x] for x in lora.vision_targets)
    connector = lora.of("connector").rank * (lora.connector and lora.rank > 0)
    return tower, 2 * config.tile_features * connector * (config.feature_width + 3 * width)


def model_flops(once: Forward, trained: tuple[str, ...]) -> float:
    """Counts the operations of a row, forward and backward, with nothing computed twice.

    The gradients of a product with respect to its input and to its weights each take as many
    operations as the product; frozen weights need only the first, a frozen tower without adapters
    neither.
    """
    reaches_tower = "vision" in trained or once.tower_lora > 0
    tower = once.tower * (1 + reaches_tower + ("vision" in trained)) + once.tower_lora * 3
    projector = once.projector * (1 + ("projector" in trained) + reaches_tower)
    if not reaches_tower and ("projector" in trained or once.projector_lora):
        projector += once.projector / 2  # through its second layer, about half of it
    projector += once.projector_lora * 3
    backward = 1 + ("language" in trained)
    language = once.linear * (1 + backward) + once.lora * 3 + once.attention * 3
    head = once.head * (1 + backward)
    return tower + projector + language + head


def hardware_flops(once: Forward, trained: tuple[str, ...], remat: Remat) -> float:
    """Counts the operations that the step executes, including recomputation in the backward pass.

    `remat` recomputes layers, or their attention; the head and the attention scores are always
    recomputed.
    """
    again = once.head + once.attention
    if remat != "none":
        again += once.attention
    if remat == "layers":
        again += once.linear - once.down + once.lora
        if "vision" in trained or once.tower_lora:
            again += once.tower + once.tower_lora
    return model_flops(once, trained) + again
