"""Architecture configs, with the defaults of LLaVA-1.5-7B and, where possible, HF's field names.

What does not live here: reading a config from a checkpoint directory (`seva_jax/convert`).
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Annotated, Literal

from typing_extensions import override

from seva_jax.models.rope import Rope
from seva_jax.ranges import ABOVE_0, ADDED, DECAY, FROM_0, FROM_1, Range


@dataclasses.dataclass(frozen=True)
class TowerConfig:
    """Base class of vision towers: a transformer over the patches of a square tile.

    Attributes:
        image_size: side of the square input image in pixels.
        patch_size: side of a patch in pixels; every patch becomes one token.
        hidden_size: width of the tower.
        num_layers: transformer layers of the checkpoint; those above `LlavaConfig.feature_layer`
            are not built.
        num_heads: attention heads; must divide hidden_size.
        mlp_size: hidden width of the MLP.
        norm_eps: epsilon of LayerNorm.
    """

    image_size: Annotated[int, FROM_1] = 336
    patch_size: Annotated[int, FROM_1] = 14
    hidden_size: Annotated[int, FROM_1] = 1024
    num_layers: Annotated[int, FROM_1] = 24
    num_heads: Annotated[int, FROM_1] = 16
    mlp_size: Annotated[int, FROM_1] = 4096
    norm_eps: Annotated[float, Range(0, 1, above=True)] = 1e-5

    @property
    def num_patches(self) -> int:
        """Patches of a tile, without the class token."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def class_token(self) -> bool:
        """Whether a learned token, CLS, precedes the patches."""
        return True

    @property
    def merged(self) -> int:
        """Side of the square of neighbouring patches that are joined to one feature."""
        return 1

    @property
    def deep_layers(self) -> tuple[int, ...]:
        """Layers whose features the first layers of the language model take too."""
        return ()

    @property
    def native(self) -> bool:
        """Whether all tiles of a row are one sequence, in which patches see their own picture."""
        return False

    @property
    def linear_sizes(self) -> Mapping[VisionTarget, int]:
        """Inputs and outputs together of each linear layer in a layer, by its name."""
        same, mlp = 2 * self.hidden_size, self.hidden_size + self.mlp_size
        return {
            "q_proj": same, "k_proj": same, "v_proj": same, "out_proj": same,
            "fc1": mlp, "fc2": mlp,
        }  # fmt: skip

    @property
    def layer_parameters(self) -> int:
        """Parameters of a layer."""
        width, mlp = self.hidden_size, self.mlp_size
        return 4 * (width * width + width) + 2 * width * mlp + mlp + width + 4 * width

    @property
    def norm_parameters(self) -> int:
        """Parameters of the norm after the last layer, which LLaVA does not use."""
        return 2 * self.hidden_size


@dataclasses.dataclass(frozen=True)
class VisionConfig(TowerConfig):
    """CLIP vision transformer.

    Attributes:
        activation: activation of the MLP; OpenAI's towers use "quick_gelu".
    """

    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"


@dataclasses.dataclass(frozen=True)
class SiglipConfig(TowerConfig):
    """SigLIP vision transformer, without class token and pooling head.

    The defaults are those of LLaVA-OneVision.

    Attributes:
        activation: activation of the MLP: exact GELU, or its approximation with tanh.
    """

    image_size: Annotated[int, FROM_1] = 384
    hidden_size: Annotated[int, FROM_1] = 1152
    num_layers: Annotated[int, FROM_1] = 26
    mlp_size: Annotated[int, FROM_1] = 4304
    norm_eps: Annotated[float, Range(0, 1, above=True)] = 1e-6
    activation: Literal["gelu_pytorch_tanh", "gelu"] = "gelu_pytorch_tanh"

    @property
    @override
    def class_token(self) -> bool:
        return False


@dataclasses.dataclass(frozen=True)
class InternConfig(TowerConfig):
    """InternViT, the vision transformer of InternVL: residual branches have learned scales.

    The defaults are those of InternVL3-1B, -2B and -8B.

    Attributes:
        attention_bias: whether queries, keys and values have biases.
        qk_norm: whether queries and keys are normalised (RMSNorm) before they are split into heads.
        pool: side of the square of neighbouring patches that are joined to one feature; must
            divide the number of patches along a side.
    """

    image_size: Annotated[int, FROM_1] = 448
    norm_eps: Annotated[float, Range(0, 1, above=True)] = 1e-6
    attention_bias: bool = True
    qk_norm: bool = False
    pool: Annotated[int, FROM_1] = 2

    @property
    @override
    def merged(self) -> int:
        return self.pool

    @property
    @override
    def layer_parameters(self) -> int:
        more = 2 - 3 * (not self.attention_bias) + 2 * self.qk_norm
        return super().layer_parameters + more * self.hidden_size

    @property
    @override
    def norm_parameters(self) -> int:
        return 0


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Decoder of the Llama kind: Llama, Vicuna, Mistral, Qwen2 and Qwen3 by their options.

    Attributes:
        vocab_size: rows of the embedding table.
        hidden_size: width of the language model.
        num_layers: decoder layers.
        num_heads: query heads.
        num_kv_heads: key and value heads; must divide num_heads. Fewer than num_heads means
            grouped-query attention.
        head_dim: width of an attention head.
        mlp_size: hidden width of the gated MLP.
        norm_eps: epsilon of RMSNorm.
        rope_base: base of the rotary frequencies ("rope_theta" in Hugging Face's files).
        tied_head: whether the output head is the transposed embedding table.
        rope: how the rotary frequencies are scaled for a longer context.
        qkv_bias: whether the linear layers of queries, keys and values have biases (Qwen2).
        qk_norm: whether RMSNorm is applied to every head of queries and keys (Qwen3).
        window: a token attends to this many tokens up to itself (Mistral's sliding window); 0 for
            all of them.
        full_layers: layers without the window, counted from 0.
        rope_sections: how many rotary frequencies turn by time, rows and columns of an image
            (M-RoPE of Qwen-VL); empty where all turn by the position in the text.
        rope_interleaved: whether frequencies of the three axes alternate (Qwen3-VL), or follow one
            another.
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
    rope: Annotated[Rope, ADDED] = Rope()
    qkv_bias: Annotated[bool, ADDED] = False
    qk_norm: Annotated[bool, ADDED] = False
    window: Annotated[int, FROM_0, ADDED] = 0
    full_layers: Annotated[tuple[int, ...], ADDED] = ()
    rope_sections: Annotated[tuple[int, ...], ADDED] = ()
    rope_interleaved: Annotated[bool, ADDED] = False

    @property
    def rope_axes(self) -> tuple[int, ...]:
        """The axis that each rotary frequency turns by: 0 for time, 1 for rows, 2 for columns."""
        num = self.head_dim // 2
        if not self.rope_sections:
            return (0,) * num
        if not self.rope_interleaved:
            return tuple(axis for axis, size in enumerate(self.rope_sections) for _ in range(size))
        return tuple(i % 3 if i < 3 * self.rope_sections[i % 3] else 0 for i in range(num))


@dataclasses.dataclass(frozen=True)
class LlavaConfig:
    """LLaVA and its relatives: vision tower, two-layer projector, language model.

    Attributes:
        vision: the vision tower; its class says which one (CLIP, SigLIP, InternViT).
        text: the language model.
        feature_layer: which hidden states of the tower become image features, counted as Hugging
            Face does: 0 is the output of the embedding, -1 that of the last layer, -2 that of the
            layer before it.
        feature_select: "default" drops the CLS token, "full" keeps it; of a tower without one,
            "full".
        projector_bias: whether the linear layers of the projector have biases.
        image_token_id: the token id at image positions.
        newline: whether a learned vector ends every row of an image (LLaVA-NeXT, OneVision).
        projector_norm: whether LayerNorm precedes the linear layers of the projector (InternVL).
        video_token_id: the token id that transformers puts at the positions of a video
            (OneVision); None for models without videos.
    """

    vision: TowerConfig = VisionConfig()
    text: TextConfig = TextConfig()
    feature_layer: int = -2
    feature_select: Literal["default", "full"] = "default"
    projector_bias: bool = True
    image_token_id: int = 32000
    newline: Annotated[bool, ADDED] = False
    projector_norm: Annotated[bool, ADDED] = False
    video_token_id: Annotated[int | None, ADDED] = None

    @property
    def tile_features(self) -> int:
        """Features of a tile, P."""
        keeps_class_token = self.vision.class_token and self.feature_select == "full"
        return self.vision.num_patches // self.vision.merged**2 + keeps_class_token

    @property
    def feature_width(self) -> int:
        """Width of a feature before the projector, E."""
        per_layer = self.vision.hidden_size * self.vision.merged**2
        return per_layer * (1 + len(self.vision.deep_layers))

    @property
    def tower_depth(self) -> int:
        """Tower layers up to the feature layer: those that are built."""
        layer = self.feature_layer
        return layer if layer >= 0 else self.vision.num_layers + 1 + layer

    @property
    def unused_parameters(self) -> int:
        """Parameters of a checkpoint behind the image features, which are not built.

        They are the tower's further layers and its last norm; transformers counts them.
        """
        tower = self.vision
        above = tower.num_layers - self.tower_depth
        return above * tower.layer_parameters + tower.norm_parameters


# LLaVA-1.5 by size.
LLAVA_15 = {
    "7b": LlavaConfig(),
    "13b": LlavaConfig(
        text=TextConfig(
            hidden_size=5120, num_layers=40, num_heads=40, num_kv_heads=40, mlp_size=13824
        )
    ),
}


Target = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# InternViT calls its out_proj projection_layer.
VisionTarget = Literal[
    "q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2",
    # Of Qwen-VL's towers, which also have the last two above (Qwen2-VL).
    "qkv", "proj", "gate_proj", "up_proj", "down_proj", "linear_fc1", "linear_fc2",
]  # fmt: skip
LoraGroup = Literal[Target, "vision", "connector"]


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters on linear layers: the language model's, and on request the others'.

    A run that trains the adapters of `Checkpoint.adapter` further takes all of this from them.

    Attributes:
        rank: rank of every adapter; 0 means no adapters. A higher rank trains more parameters.
        alpha: the output of an adapter is scaled by alpha / rank. For rank-stabilised LoRA (peft's
            `use_rslora`) multiply alpha by the square root of the rank.
        targets: which linear layers of every decoder layer have adapters.
        rank_pattern: targets with another rank, such as `(("q_proj", 8),)`; "vision" and
            "connector" stand for all adapters there.
        alpha_pattern: targets with another alpha, likewise.
        dropout: share of the inputs of every adapter that training drops, as peft's `lora_dropout`.
            The reference, rollouts and evaluations never drop any.
        vision: adapters on the layers of the vision tower, too. Image features then change from
            step to step, so `TrainOptions.feature_cache` is refused.
        vision_targets: which linear layers of every layer of the tower have adapters with `vision`.
            Names that a tower does not have mean nothing to it.
        connector: adapters on all linear layers of the projector, too.
    """

    rank: Annotated[int, Range(0, 2**16)] = 1024
    alpha: Annotated[float, Range(0, 1e6, above=True)] = 2048.0
    targets: tuple[Target, ...] = typing.get_args(Target)
    rank_pattern: tuple[tuple[LoraGroup, int], ...] = ()
    alpha_pattern: tuple[tuple[LoraGroup, float], ...] = ()
    dropout: Annotated[float, DECAY, ADDED] = 0.0
    vision: Annotated[bool, ADDED] = False
    vision_targets: Annotated[tuple[VisionTarget, ...], ADDED] = typing.get_args(VisionTarget)
    connector: Annotated[bool, ADDED] = False

    def of(self, target: str) -> LoraConfig:
        """Returns the config of the adapters on one target, whose patterns are empty.

        Args:
            target: a linear layer of the language model, "vision" or "connector".
        """
        rank = {str(name): rank for name, rank in self.rank_pattern}.get(target, self.rank)
        alpha = {str(name): alpha for name, alpha in self.alpha_pattern}.get(target, self.alpha)
        return LoraConfig(rank, alpha, self.targets, dropout=self.dropout)

    def at(self, path: str) -> LoraConfig:
        """Returns `of` the adapter at a path of the variables, such as "vision/layers/q_proj"."""
        part, _, name = path.partition("/")
        groups = {"vision": "vision", "projector": "connector"}
        return self.of(groups.get(part) or name.rpartition("/")[2])

    @property
    def finished(self) -> LoraConfig:
        """The config of the same adapters when they are not trained: without dropout."""
        return dataclasses.replace(self, dropout=0.0)

    @property
    def scale(self) -> float:
        """Factor of an adapter's output; of adapters with patterns, ask `of` a target."""
        return self.alpha / self.rank
