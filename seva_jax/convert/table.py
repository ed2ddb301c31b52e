"""Maps the tensors of a checkpoint ("theirs") to our parameters ("ours").

`TABLE` is the only place that knows, and serves both directions: a transform reads a slice of ours
from theirs, and writes theirs from ours. It serves all families, because a parameter of ours has
the same name in theirs wherever a model has it: which rows a model needs follows from its
parameters. What does not live here: finding and checking the tensors (`load.py`), what a family
reads from config.json (`families/`).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
from typing_extensions import override

Shape = tuple[int, ...]
Index = tuple[slice, ...]


@dataclasses.dataclass(frozen=True)
class Transform:
    """How one of their tensors relates to ours, or to one layer of ours: here, they are equal.

    `row_dim` is the dim of ours that is the first one of theirs.
    """

    row_dim: ClassVar[int] = 0

    def their_shape(self, shape: Shape) -> Shape:
        """Returns the shape of their tensor, given the shape of ours."""
        return shape

    def their_rows(self, index: Index) -> slice:
        """Returns the part of the first dim of theirs that the part `index` of ours needs."""
        return index[self.row_dim]

    def read(self, source: Any, index: Index) -> np.ndarray:
        """Returns the part `index` of our tensor.

        Args:
            source: their tensor, or any object that NumPy-style slicing turns into an array, so
                that only the slice is read from disk.
            index: a slice with explicit bounds for each of our dims.
        """
        return source[index]

    def write(self, ours: np.ndarray) -> np.ndarray:
        """Returns their tensor, given the whole of ours; the inverse of `read`."""
        return ours


@dataclasses.dataclass(frozen=True)
class Transposed(Transform):
    """Linear kernels: theirs [out, in], ours [in, out]."""

    row_dim: ClassVar[int] = 1

    @override
    def their_shape(self, shape: Shape) -> Shape:
        return shape[::-1]

    @override
    def read(self, source: Any, index: Index) -> np.ndarray:
        return source[index[::-1]].T

    @override
    def write(self, ours: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(ours.T)


@dataclasses.dataclass(frozen=True)
class PatchKernel(Transform):
    """Patch embedding: theirs a convolution [E, 3, p, p], ours a linear kernel [p * p * 3, E].

    p is the side of a patch in pixels. Our input dim runs over rows, columns and channels,
    slowest first.
    """

    row_dim: ClassVar[int] = 1

    @override
    def their_shape(self, shape: Shape) -> Shape:
        side = math.isqrt(shape[0] // 3)
        return shape[1], 3, side, side

    @override
    def read(self, source: Any, index: Index) -> np.ndarray:
        kernel = source[(index[1], slice(None), slice(None), slice(None))]
        return kernel.transpose(2, 3, 1, 0).reshape(-1, kernel.shape[0])[index[0]]

    @override
    def write(self, ours: np.ndarray) -> np.ndarray:
        width, _, side, _ = self.their_shape(ours.shape)
        return np.ascontiguousarray(ours.reshape(side, side, 3, width).transpose(3, 2, 0, 1))


@dataclasses.dataclass(frozen=True)
class FramesKernel(Transform):
    """Patch embedding of several frames: theirs [E, 3, T, p, p], ours [T, p * p * 3, E].

    T is the number of frames; see `PatchKernel`.
    """

    row_dim: ClassVar[int] = 2

    @override
    def their_shape(self, shape: Shape) -> Shape:
        width, _, side, _ = PatchKernel().their_shape(shape[1:])
        return width, 3, shape[0], side, side

    @override
    def read(self, source: Any, index: Index) -> np.ndarray:
        kernel = source[(index[2], *[slice(None)] * 4)][:, :, index[0]]
        width, _, frames, side, _ = kernel.shape
        rows = kernel.transpose(2, 3, 4, 1, 0).reshape(frames, side * side * 3, width)
        return rows[:, index[1]]

    @override
    def write(self, ours: np.ndarray) -> np.ndarray:
        width, _, frames, side, _ = self.their_shape(ours.shape)
        kernel = ours.reshape(frames, side, side, 3, width).transpose(4, 3, 0, 1, 2)
        return np.ascontiguousarray(kernel)


@dataclasses.dataclass(frozen=True)
class Leading(Transform):
    """Theirs has dims of size 1 before ours.

    Attributes:
        dims: how many.
    """

    dims: int

    @override
    def their_shape(self, shape: Shape) -> Shape:
        return (1,) * self.dims + shape

    @override
    def their_rows(self, index: Index) -> slice:
        return slice(0, 1)

    @override
    def read(self, source: Any, index: Index) -> np.ndarray:
        values = source[(slice(0, 1),) * self.dims + index]
        return values.reshape(values.shape[self.dims :])

    @override
    def write(self, ours: np.ndarray) -> np.ndarray:
        return ours.reshape(self.their_shape(ours.shape))


@dataclasses.dataclass(frozen=True)
class Row:
    """One of our parameters, and the tensors it is made of.

    Attributes:
        theirs: their name, as transformers 5 saves it. If it has "{}", which stands for the layer
            number, then ours stacks the layers on dim 0.
        ours: path in the "params" collection, joined by "/".
        transform: how their tensor relates to ours, or to one layer of ours in a stack.
    """

    theirs: str
    ours: str
    transform: Transform = dataclasses.field(default_factory=Transform)

    @property
    def stacked(self) -> bool:
        """Whether they have one tensor for each layer."""
        return "{}" in self.theirs

    def names(self, shape: Shape) -> list[str]:
        """Returns the names of their tensors, in layer order, given our shape."""
        return [self.theirs.format(i) for i in range(shape[0])] if self.stacked else [self.theirs]

    def their_shape(self, shape: Shape) -> Shape:
        """Returns the shape of each of their tensors, given ours."""
        return self.transform.their_shape(shape[1:] if self.stacked else shape)

    @property
    def slow_dims(self) -> tuple[int, ...]:
        """The dims of ours along which a part is one range of bytes in each of their tensors."""
        dim = self.transform.row_dim
        return (0, 1 + dim) if self.stacked else (dim,)


def _linear(theirs: str, ours: str, names: Sequence[str], bias: bool) -> Iterator[Row]:
    for name in names:
        yield Row(f"{theirs}.{name}.weight", f"{ours}/{name}/kernel", Transposed())
        if bias:
            yield Row(f"{theirs}.{name}.bias", f"{ours}/{name}/bias")


def _numbered(theirs: str, ours: str, numbers: Sequence[int]) -> Iterator[Row]:
    for number in numbers:
        yield Row(f"{theirs}{number}.weight", f"{ours}{number}/kernel", Transposed())
        yield Row(f"{theirs}{number}.bias", f"{ours}{number}/bias")


def _layer_norm(theirs: str, ours: str) -> list[Row]:
    return [
        Row(f"{theirs}.weight", f"{ours}/norm/scale"),
        Row(f"{theirs}.bias", f"{ours}/norm/bias"),
    ]


def _rms_norm(name: str, inside: str = "") -> Row:
    return Row(f"{_LLAMA}.{inside}{name}.weight", f"language/layers/{name}/scale")


_EMBEDDINGS = "vision_tower.embeddings"
_PATCHES = f"{_EMBEDDINGS}.patch_embeddings.projection"
_TOWER = "vision_tower.encoder.layers.{}"
_INTERN = "vision_tower.encoder.layer.{}"
_BLOCK = "visual.blocks.{}"
_MERGER, _DEEP = "visual.merger", "visual.deepstack_merger_list.{}"
_LLAMA = "language_model.model.layers.{}"
_QKV = ("q_proj", "k_proj", "v_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")
_QWEN_MLP = ("linear_fc1", "linear_fc2")

TABLE: tuple[Row, ...] = (
    Row(f"{_EMBEDDINGS}.class_embedding", "vision/class_embedding"),
    Row(f"{_EMBEDDINGS}.position_embedding.weight", "vision/position_embedding"),
    Row(f"{_EMBEDDINGS}.patch_embedding.weight", "vision/patch_embedding/kernel", PatchKernel()),
    Row(f"{_EMBEDDINGS}.patch_embedding.bias", "vision/patch_embedding/bias"),  # SigLIP
    *_layer_norm("vision_tower.pre_layrnorm", "vision/pre_layernorm"),  # their spelling
    *_layer_norm(f"{_TOWER}.layer_norm1", "vision/layers/layer_norm1"),
    *_linear(f"{_TOWER}.self_attn", "vision/layers", (*_QKV, "out_proj"), bias=True),
    *_layer_norm(f"{_TOWER}.layer_norm2", "vision/layers/layer_norm2"),
    *_linear(f"{_TOWER}.mlp", "vision/layers", ("fc1", "fc2"), bias=True),
    # InternViT.
    Row(f"{_EMBEDDINGS}.cls_token", "vision/cls_token", Leading(2)),
    Row(f"{_EMBEDDINGS}.position_embeddings", "vision/position_embeddings", Leading(1)),
    Row(f"{_PATCHES}.weight", "vision/patch_embeddings/kernel", PatchKernel()),
    Row(f"{_PATCHES}.bias", "vision/patch_embeddings/bias"),
    *_layer_norm(f"{_INTERN}.layernorm_before", "vision/layers/layernorm_before"),
    *_linear(
        f"{_INTERN}.attention", "vision/layers/attention", (*_QKV, "projection_layer"), bias=True
    ),
    Row(f"{_INTERN}.attention.q_norm.weight", "vision/layers/attention/q_norm/scale"),
    Row(f"{_INTERN}.attention.k_norm.weight", "vision/layers/attention/k_norm/scale"),
    Row(f"{_INTERN}.lambda_1", "vision/layers/lambda_1"),
    *_layer_norm(f"{_INTERN}.layernorm_after", "vision/layers/layernorm_after"),
    *_linear(f"{_INTERN}.mlp", "vision/layers/mlp", ("fc1", "fc2"), bias=True),
    Row(f"{_INTERN}.lambda_2", "vision/layers/lambda_2"),
    *_layer_norm("multi_modal_projector.layer_norm", "projector/layer_norm"),
    *_linear("multi_modal_projector", "projector", ("linear_1", "linear_2"), bias=True),
    Row("image_newline", "projector/image_newline"),
    # Qwen-VL's towers and mergers.
    Row("visual.patch_embed.proj.weight", "vision/patch_kernel", FramesKernel()),
    Row("visual.patch_embed.proj.bias", "vision/patch_bias"),
    Row("visual.pos_embed.weight", "vision/position_grid"),
    *(
        row
        for name in ("norm1", "norm2")
        for row in (
            *_layer_norm(f"{_BLOCK}.{name}", f"vision/layers/{name}"),
            Row(f"{_BLOCK}.{name}.weight", f"vision/layers/{name}/scale"),
        )
    ),
    *_linear(f"{_BLOCK}.attn", "vision/layers", ("qkv", "proj"), bias=True),
    *_linear(f"{_BLOCK}.mlp", "vision/layers", (*_QWEN_MLP, *_MLP), bias=True),
    *_numbered(f"{_BLOCK}.mlp.fc", "vision/layers/mlp_fc", (1, 2)),
    *_layer_norm(f"{_MERGER}.ln_q", "projector/merger/ln_q"),
    Row(f"{_MERGER}.ln_q.weight", "projector/merger/ln_q/scale"),
    *_numbered(f"{_MERGER}.mlp.", "projector/merger/mlp_", (0, 2)),
    *_layer_norm(f"{_MERGER}.norm", "projector/merger/norm"),
    *_linear(_MERGER, "projector/merger", _QWEN_MLP, bias=True),
    *_layer_norm(f"{_DEEP}.norm", "projector/deep_mergers/norm"),
    *_linear(_DEEP, "projector/deep_mergers", _QWEN_MLP, bias=True),
    Row("language_model.model.embed_tokens.weight", "language/embedding"),
    _rms_norm("input_layernorm"),
    *_linear(f"{_LLAMA}.self_attn", "language/layers", _QKV, bias=True),
    _rms_norm("q_norm", "self_attn."),
    _rms_norm("k_norm", "self_attn."),
    *_linear(f"{_LLAMA}.self_attn", "language/layers", ("o_proj",), bias=False),
    _rms_norm("post_attention_layernorm"),
    *_linear(f"{_LLAMA}.mlp", "language/layers", _MLP, bias=False),
    Row("language_model.model.norm.weight", "language/norm/scale"),
    Row("language_model.lm_head.weight", "language/head", Transposed()),
)

_OF_INTERN = (
    "vision_tower.encoder.layer.",
    *(f"{_EMBEDDINGS}.{name}" for name in ("cls_token", "position_embeddings", "patch_embeddings")),
)
EMBEDDING, HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"

# Three spellings of Hugging Face's layout are in circulation: the Hub's (transformers 4:
# "vision_tower.vision_model.", "language_model.model."), that of modules in memory since 4.52
# ("model.language_model.", "lm_head."), and that of transformers 5, which `TABLE` uses.
# transformers reads any mixture of them, also without "model" after "language_model". The last
# group is the original LLaVA's layout, which may include its tower. The first match counts.
_PREFIXES = (
    ("model.vision_tower.vision_tower.vision_model.", "vision_tower."),
    ("model.vision_tower.vision_model.", "vision_tower."),
    ("model.vision_tower.", "vision_tower."),
    ("vision_tower.vision_model.", "vision_tower."),
    ("model.visual.", "visual."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("model.image_newline", "image_newline"),
    ("model.language_model.", "language_model.model."),
    ("language_model.lm_head.", "language_model.lm_head."),
    ("language_model.model.", "language_model.model."),
    ("language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
    ("model.mm_projector.0.", "multi_modal_projector.linear_1."),
    ("model.mm_projector.2.", "multi_modal_projector.linear_2."),
    ("model.layers.", "language_model.model.layers."),
    ("model.embed_tokens.", "language_model.model.embed_tokens."),
    ("model.norm.", "language_model.model.norm."),
)
_TO_ORIGINAL = (
    ("language_model.model.", "model."),
    ("language_model.", ""),
    ("multi_modal_projector.linear_1.", "model.mm_projector.0."),
    ("multi_modal_projector.linear_2.", "model.mm_projector.2."),
    ("vision_tower.", "vision_model."),
)

_UNUSED = re.compile(
    r"vision_tower\.post_layernorm\.(weight|bias)"  # after the last layer whose features we use
    r"|vision_tower\.head\..+"  # SigLIP's pooling
    r"|vision_tower\.embeddings\.mask_token"  # InternViT's, for training it
    r"|vision_tower\.embeddings\.position_ids"  # 0, 1, 2, ...
    r"|language_model\.model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"  # from the config
)
_TOWER_LAYER = re.compile(r"vision_tower\.encoder\.layers?\.(\d+)\.")


def canonical(name: str) -> str:
    """Returns a tensor's name in the spelling of `TABLE`.

    >>> canonical("model.language_model.norm.weight")
    'language_model.model.norm.weight'
    >>> canonical("multi_modal_projector.linear_1.bias")
    'multi_modal_projector.linear_1.bias'
    """
    return respelled(name, _PREFIXES)


def canonical_of_tower(name: str) -> str:
    """Returns the name of a tensor of a CLIP or SigLIP directory in the spelling of `TABLE`.

    CLIPModel and transformers 4 write the prefix "vision_model.", CLIPVisionModel of transformers 5
    writes none. Tensors of the text side keep their names.

    >>> canonical_of_tower("vision_model.pre_layrnorm.bias")
    'vision_tower.pre_layrnorm.bias'
    >>> canonical_of_tower("pre_layrnorm.bias")
    'vision_tower.pre_layrnorm.bias'
    """
    if name.startswith(("text_", "visual_projection.", "logit_")):
        return name
    return "vision_tower." + name.removeprefix("vision_model.")


def original(name: str) -> str:
    """Returns a name of `TABLE` in the original LLaVA's spelling, or in CLIP's for the tower.

    >>> original("language_model.model.norm.weight")
    'model.norm.weight'
    >>> original("language_model.lm_head.weight")
    'lm_head.weight'
    """
    return respelled(name, _TO_ORIGINAL)


def in_memory(name: str) -> str:
    """Returns a name of `TABLE` as modules of transformers 4.52 and later call it, and so peft.

    In transformers 5 the towers' modules have lost "vision_model.", and peft converts these names.

    >>> in_memory("language_model.model.norm.weight")
    'model.language_model.norm.weight'
    >>> in_memory("vision_tower.encoder.layers.0.mlp.fc1.weight")
    'model.vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight'
    """
    whole = ("language_model.lm_head.", "lm_head."), ("language_model.model.", "language_model.")
    name = respelled(hub(name), whole)
    return name if name.startswith("lm_head.") else f"model.{name}"


def hub(name: str) -> str:
    """Returns a name of `TABLE` in the Hub's spelling, which transformers 4 and 5 read.

    transformers 4 looks for the tensors of CLIP and SigLIP below "vision_model." and initialises
    all others at random, with a warning. InternViT has no such level.

    >>> hub("vision_tower.pre_layrnorm.bias")
    'vision_tower.vision_model.pre_layrnorm.bias'
    >>> hub("vision_tower.encoder.layer.0.lambda_1")
    'vision_tower.encoder.layer.0.lambda_1'
    >>> hub("language_model.lm_head.weight")
    'language_model.lm_head.weight'
    """
    if name.startswith(_OF_INTERN):
        return name
    return respelled(name, (("vision_tower.", "vision_tower.vision_model."),))


def respelled(name: str, prefixes: Sequence[tuple[str, str]]) -> str:
    """Returns the name with the first of the old prefixes that it has replaced by the new one."""
    for old, new in prefixes:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def is_unused(name: str, tower_depth: int, tower_layers: int) -> bool:
    """Returns whether a tensor outside the table is a known one that the model does not use.

    Args:
        name: its name, in the spelling of `TABLE`.
        tower_depth: tower layers that run.
        tower_layers: tower layers of the checkpoint.
    """
    layer = _TOWER_LAYER.match(name)
    if layer:
        return tower_depth <= int(layer[1]) < tower_layers
    return _UNUSED.fullmatch(name) is not None
