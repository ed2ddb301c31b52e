"""Architecture configs, named as Hugging Face names the same numbers where it has a name.

The defaults are LLaVA-1.5-7B. TokenStats these from a checkpoint directory is in
`seva_jax/convert`.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from seva_jax.ranges import ABOVE_0, FROM_1, Range


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """CLIP vision transformer.

    Attributes:
        image_size: side of the square input, pixels.
        patch_size: side of a patch, pixels.
        hidden_size: model width.
        num_layers: layers in the checkpoint; only those below the feature layer are built.
        num_heads: attention heads.
        mlp_size: hidden width of the MLP.
        norm_eps: LayerNorm epsilon.
        activation: CLIP's own towers use quick_gelu.
    """

    image_size: Annotated[int, FROM_1] = 336
    patch_size: Annotated[int, FROM_1] = 14
    hidden_size: Annotated[int, FROM_1] = 1024
    num_layers: Annotated[int, FROM_1] = 24
    num_heads: Annotated[int, FROM_1] = 16
    mlp_size: Annotated[int, FROM_1] = 4096
    norm_eps: Annotated[float, Range(0, 1, above=True)] = 1e-5
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"

    @property
    def num_patches(self) -> int:
        """Patches of one image, without CLS."""
        return (self.image_size // self.patch_size) ** 2


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Llama language model.

    Attributes:
        vocab_size: rows of the embedding.
        hidden_size: model width.
        num_layers: decoder layers.
        num_heads: query heads.
        num_kv_heads: key and value heads; fewer than num_heads means grouped-query attention.
        head_dim: width of one head.
        mlp_size: hidden width of the gated MLP.
        norm_eps: RMSNorm epsilon.
        rope_base: base of the rotary frequencies.
        tied_head: whether the output head is the embedding, transposed.
    """

    vocab_size: Annotated[int, FROM_1] = 32064
    hidden_size: Annotated[int, FROM_1] = 4096
    num_layers: Annotated[int, FROM_1] = 32
    num_heads: Annotated[int, FROM_1] = 32
    num_kv_heads: Annotated[int, FROM_1] = 32
    head_dim: Annotated[int, FROM_1] = 128
    mlp_size: Annotated[int, FROM_1] = 11008
    norm_eps: Annotated[float, Range(0, 1, above=True)] = 1e-5
    rope_base: Annotated[float, ABOVE_0] = 10000.0
    tied_head: bool = False


@dataclasses.dataclass(frozen=True)
class LlavaConfig:
    """LLaVA: vision tower, two-layer projector, language model.

    Attributes:
        vision: the tower.
        text: the language model.
        feature_layer: which hidden states of the tower are used, counted as Hugging Face
            counts them: 0 is the embedding, -1 the last layer, -2 the one before.
        feature_select: "default" drops CLS, "full" keeps it.
        projector_bias: whether the projector's linear layers have biases.
        image_token_id: token that marks an image position.
    """

    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()
    feature_layer: int = -2
    feature_select: Literal["default", "full"] = "default"
    projector_bias: bool = True
    image_token_id: int = 32000

    @property
    def tokens_per_image(self) -> int:
        """Language-model positions one image takes."""
        return self.vision.num_patches + (self.feature_select == "full")

    @property
    def tower_depth(self) -> int:
        """Tower layers that have to run to reach the feature layer."""
        layer = self.feature_layer
        return layer if layer >= 0 else self.vision.num_layers + 1 + layer


# LLaVA-1.5 by size.
LLAVA_15 = {
    "7b": LlavaConfig(),
    "13b": LlavaConfig(
        text=TextConfig(
            hidden_size=5120, num_layers=40, num_heads=40, num_kv_heads=40, mlp_size=13824
        )
    ),
}


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters on the language model's linear layers.

    Attributes:
        rank: R; 0 means no adapters.
        alpha: the update is scaled by alpha / rank.
        targets: which linear layers of every decoder layer.
    """

    rank: Annotated[int, Range(0, 2**16)] = 1024
    alpha: Annotated[float, Range(0, 1e6, above=True)] = 2048.0
    targets: tuple[
        Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], ...
    ] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
