"""Floating point operations of a training step, computed from the architecture.

A multiply-add counts as two. Only matrix products are counted; norms, softmax and activations are
below one per cent at these sizes.
"""

from __future__ import annotations

import dataclasses

from seva_jax.batches.trees import RowShape
from seva_jax.models import LlavaConfig, LoraConfig, QwenVisionConfig, Remat
from seva_jax.models.attention import BLOCK


@dataclasses.dataclass(frozen=True)
class Forward:
    """Operations of one forward pass over one row.

    Attributes:
        tower: vision tower.
        projector: projector, or the mergers of Qwen-VL.
        through: the part of `projector` in products through which gradients reach its first
            weights: its second layer, or both if there is a norm before them.
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
    through: float
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
    t = config.text
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
    tower = _native_tower if config.vision.native else _tower
    first, second = _projector(config, shape.tiles)
    has_norm = config.vision.native or config.projector_norm
    tower_lora, projector_lora = _image_adapters(config, lora)
    return Forward(
        tower(config, shape.tiles), first + second, second + has_norm * first, linear, down,
        adapters, shape.tiles * tower_lora, shape.tiles * projector_lora, attention, head,
    )  # fmt: skip


def _image_adapters(config: LlavaConfig, lora: LoraConfig) -> tuple[float, float]:
    """Returns the operations of the adapters of tower and projector for one tile."""
    v, width = config.vision, config.text.hidden_size
    places = v.num_patches + v.class_token
    sizes = sum(size for name, size in v.linear_sizes.items() if name in lora.vision_targets)
    vision = lora.of("vision").rank * (lora.vision and lora.rank > 0)
    tower = 2 * places * config.tower_depth * vision * sizes
    connector = lora.of("connector").rank * (lora.connector and lora.rank > 0)
    return tower, 2 * config.tile_features * connector * (config.feature_width + 3 * width)


def _tower(config: LlavaConfig, tiles: int) -> float:
    """Counts the operations of a tower that sees each tile by itself."""
    v = config.vision
    places = v.num_patches + v.class_token
    per_layer = 2 * places * (4 * v.hidden_size**2 + 2 * v.hidden_size * v.mlp_size)
    per_layer += 4 * places**2 * v.hidden_size
    embedding = 2 * v.num_patches * v.patch_size**2 * 3 * v.hidden_size
    return tiles * (config.tower_depth * per_layer + embedding)


def _native_tower(config: LlavaConfig, tiles: int) -> float:
    """Counts the operations of a tower for which the tiles of a row are one sequence.

    A patch attends to all patches of the row, also where they are of other pictures, or in layers
    with windows to those of three blocks, see `attend_windows`.
    """
    v = config.vision
    assert isinstance(v, QwenVisionConfig)
    patches = tiles * v.num_patches
    products = 4 * v.hidden_size**2 + (3 if v.gated else 2) * v.hidden_size * v.mlp_size
    linear = v.num_layers * products + v.patch_size**2 * 3 * v.hidden_size
    whole = v.num_layers
    seen = 0
    if v.windows:
        whole = len(set(v.whole_layers) & set(range(v.num_layers)))
        block = v.windows**2 * v.num_patches
        seen = (v.num_layers - whole) * -(-patches // block) * block * 3 * block
    seen += whole * patches**2
    return 2 * patches * linear + 4 * seen * v.hidden_size


def _projector(config: LlavaConfig, tiles: int) -> tuple[float, float]:
    """Counts the operations of both layers of the projector, or of a tower's mergers."""
    width = config.text.hidden_size
    mergers = 1 + len(config.vision.deep_layers)
    joined = config.feature_width // mergers
    inside = joined if config.vision.native else width
    tokens = tiles * config.tile_features * mergers
    return 2 * tokens * joined * inside, 2 * tokens * inside * width


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
        projector += once.through
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
