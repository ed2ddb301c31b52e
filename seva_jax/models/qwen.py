"""Vision tower and merger of Qwen2-VL, Qwen2.5-VL and Qwen3-VL, for images of native resolution.

An image is cut into tiles of 2 x 2 patches, as many as its size asks for, and the tiles of all
images of a row are one sequence. Where each tile lies is an argument (`ImageLayout.place_I5`):
patches attend to their own picture, or in most layers of Qwen2.5-VL to their own window of it.
A tile becomes one feature. In this file P counts the patches of a row, four for each tile.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from seva_jax.models.clip import cut_patches, tower_linear
from seva_jax.models.config import LlavaConfig, LoraConfig, VisionTarget
from seva_jax.models.layers import (
    PROJECTOR_ADAPTERS,
    LayerNorm,
    Linear,
    Remat,
    RMSNorm,
    drawing,
    place_keys,
    rematerialised,
)
from seva_jax.models.llama import rotate
from seva_jax.models.qwen_config import QwenVisionConfig
from seva_jax.models.rope import Rope
from seva_jax.models.segments import attend_segments, attend_windows
from seva_jax.sharding import constrain

_Map = Callable[[jax.Array], jax.Array]

_ROPE_BASE = 10000.0  # of the tower; no config names it


class QwenTower(nn.Module):
    """Maps tiles of all images of a row to one feature each."""

    config: LlavaConfig
    dtype: jnp.dtype
    remat: Remat
    lora: LoraConfig | None = None

    @nn.compact
    def __call__(
        self, pixels_BIHWC: jax.Array, place_BI5: jax.Array, keys_BI: jax.Array | None = None
    ) -> jax.Array:
        """Maps tiles to features.

        Args:
            pixels_BIHWC: normalised pixels; of a video, of two frames one under the other.
            place_BI5: where each tile lies, see `ImageLayout.place_I5`; picture 0 is padding.
            keys_BI: see `Llava.features`.

        Returns:
            [B, I, E]: for each tile its patches after the last layer, side by side, and then those
            after each of the layers `deep_layers`.
        """
        cfg = self._tower
        rows, tiles = pixels_BIHWC.shape[:2]
        side = cfg.image_size
        # [N, frames, height, width, 3]
        frames = pixels_BIHWC.reshape(rows * tiles, -1, side, side, 3)
        patches = jax.vmap(lambda x: cut_patches(x, cfg), in_axes=1)(frames)
        x = self._embed(patches.reshape(len(patches), rows, -1, patches.shape[-1]))
        where = _places(place_BI5, cfg)
        if cfg.learned_grid:
            x = x + self._learned_positions(where)
        x = x.astype(self.dtype)
        picture_BP = jnp.repeat(place_BI5[..., 0], cfg.num_patches, axis=1)
        window_BP = jnp.repeat(_windows(place_BI5, cfg), cfg.num_patches, axis=1)
        rope = _rotary(where, cfg.hidden_size // cfg.num_heads)
        room = len(cfg.deep_layers) + 1 if cfg.deep_layers else 0
        deep = jnp.zeros((room, *x.shape), x.dtype)
        stack = nn.scan(
            rematerialised(QwenVisionLayer, self.remat),
            variable_axes={"params": 0, "lora": 0},
            split_rngs={"params": True},
            in_axes=(0, *[nn.broadcast] * 4),  # pyright: ignore[reportArgumentType]
            length=cfg.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        keys_BP = None
        if keys_BI is not None:
            keys_BP = place_keys(keys_BI.reshape(-1), cfg.num_patches).reshape(picture_BP.shape)
        (x, deep), _ = stack(cfg, self.dtype, self.lora, name="layers")(
            (x, deep), jnp.arange(cfg.num_layers), rope, picture_BP, window_BP, keys_BP
        )
        every = [x, *deep[:-1]]
        return jnp.concatenate([y.reshape(rows, tiles, -1) for y in every], axis=-1)

    @property
    def _tower(self) -> QwenVisionConfig:
        assert isinstance(self.config.vision, QwenVisionConfig)
        return self.config.vision

    def _embed(self, patches: jax.Array) -> jax.Array:
        """Embeds patches [1 or 2, B, P, F] of one frame or two; one counts as two equal ones."""
        cfg = self._tower
        frames, width = 2, patches.shape[-1]
        kernel: Any = self.param(
            "patch_kernel",
            nn.with_logical_partitioning(
                nn.initializers.lecun_normal(in_axis=(0, 1), out_axis=2),
                ("position", "patch", "vision_embed"),
            ),
            (frames, width, cfg.hidden_size),
        )
        if len(patches) == 1:
            # The product with the sum of both, which is in float32 so as to be rounded once.
            kernel = kernel.astype(jnp.float32).sum(0, keepdims=True)
        x = jnp.einsum("tbpf,tfe->bpe", patches.astype(self.dtype), kernel.astype(self.dtype))
        if cfg.patch_bias:
            init = nn.with_logical_partitioning(nn.initializers.zeros, ("vision_embed",))
            bias: Any = self.param("patch_bias", init, (cfg.hidden_size,))
            x = x + bias.astype(self.dtype)
        return x

    def _learned_positions(self, where: tuple[jax.Array, ...]) -> jax.Array:
        """Returns the learned positions, interpolated bilinearly to each picture: [B, P, E]."""
        cfg = self._tower
        init = nn.with_logical_partitioning(
            nn.initializers.normal(0.02), ("position", "vision_embed")
        )
        table: Any = self.param("position_grid", init, (cfg.learned_grid**2, cfg.hidden_size))
        row_BP, column_BP, rows_BP, columns_BP = where

        def along(at_BP: jax.Array, num_BP: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            last = cfg.learned_grid - 1
            place = at_BP * (last / jnp.maximum(num_BP - 1, 1).astype(jnp.float32))
            low = jnp.clip(jnp.floor(place).astype(jnp.int32), 0, last)
            return low, jnp.minimum(low + 1, last), place - low

        top, bottom, down = along(row_BP, rows_BP)
        left, right, over = along(column_BP, columns_BP)
        corners = (
            (top, left, (1 - down) * (1 - over)),
            (top, right, (1 - down) * over),
            (bottom, left, down * (1 - over)),
            (bottom, right, down * over),
        )
        parts = [
            weight[..., None] * jnp.take(table, row * cfg.learned_grid + column, axis=0)
            for row, column, weight in corners
        ]
        return functools.reduce(jnp.add, parts)


class QwenVisionLayer(nn.Module):
    """Pre-norm transformer layer with rotary positions of two axes."""

    config: QwenVisionConfig
    dtype: jnp.dtype
    lora: LoraConfig | None

    @nn.compact
    def __call__(
        self,
        carry: tuple[jax.Array, jax.Array],
        layer: jax.Array,
        rope: tuple[jax.Array, jax.Array],
        picture_BP: jax.Array,
        window_BP: jax.Array,
        keys_BP: jax.Array | None,
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        """Applies the layer.

        Args:
            carry: the patches [B, P, E]; and room for those of `deep_layers`, and once more.
            layer: which layer this is.
            rope: cosines and sines of the places of patches.
            picture_BP: the picture of each patch.
            window_BP: the window of each patch.
            keys_BP: a random key for each patch, from which the dropout of adapters draws; None
                drops nothing.

        Returns:
            The updated carry and None, as `nn.scan` expects.
        """
        x_BPE, deep = carry
        cfg = self.config
        x_BPE = constrain(x_BPE, "batch", "length", "width")

        def linear(
            name: VisionTarget, features: int, dims: tuple[str, str], module: str = ""
        ) -> _Map:
            return tower_linear(
                module or name, name, features, dims, True, self.dtype, self.lora, layer, keys_BP
            )

        y = linear("qkv", 3 * cfg.hidden_size, ("vision_embed", "vision_qkv"))(
            self._norm("norm1")(x_BPE)
        )
        heads = (*x_BPE.shape[:2], cfg.num_heads, cfg.hidden_size // cfg.num_heads)
        q, k, v = (
            constrain(z.reshape(heads), "batch", "length", "heads", "head_dim")
            for z in jnp.split(y, 3, axis=-1)
        )
        q, k = rotate(q, *rope), rotate(k, *rope)
        y = self._attend(q, k, v, layer, picture_BP, window_BP).reshape(x_BPE.shape)
        x = x_BPE + linear("proj", cfg.hidden_size, ("vision_heads", "vision_embed"))(y)
        x = x + self._mlp(linear, self._norm("norm2")(x))
        x = constrain(x, "batch", "length", "width")
        if cfg.deep_layers:  # what a layer after the last of them writes is not read
            place = jnp.searchsorted(jnp.array(cfg.deep_layers, jnp.int32), layer)
            deep = jax.lax.dynamic_update_index_in_dim(deep, x, place, 0)
        return (x, deep), None

    def _norm(self, name: str) -> nn.Module:
        norm = RMSNorm if self.config.gated else LayerNorm
        return norm(self.config.norm_eps, self.dtype, name=name)

    def _attend(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        layer: jax.Array,
        picture_BP: jax.Array,
        window_BP: jax.Array,
    ) -> jax.Array:
        cfg = self.config
        if not cfg.windows:
            return attend_segments(q, k, v, picture_BP)
        longest = cfg.windows**2 * cfg.num_patches
        full = jnp.isin(layer, jnp.array(cfg.whole_layers, jnp.int32))
        return jax.lax.cond(
            full,
            lambda: attend_segments(q, k, v, picture_BP),
            lambda: attend_windows(q, k, v, window_BP, longest),
        )

    def _mlp(self, linear: Callable[..., _Map], y: jax.Array) -> jax.Array:
        cfg = self.config
        inwards, outwards = ("vision_embed", "vision_mlp"), ("vision_mlp", "vision_embed")
        if cfg.gated:
            gate = linear("gate_proj", cfg.mlp_size, inwards)(y)
            up = linear("up_proj", cfg.mlp_size, inwards)(y)
            return linear("down_proj", cfg.hidden_size, outwards)(nn.silu(gate) * up)
        (first, second), modules = cfg.mlp_targets, cfg.mlp_names
        y = linear(first, cfg.mlp_size, inwards, modules[0])(y)
        y = y * nn.sigmoid(1.702 * y) if cfg.quick_gelu else nn.gelu(y)
        return linear(second, cfg.hidden_size, outwards, modules[1])(y)


class QwenMerger(nn.Module):
    """Maps features of the tower to the width of the language model, those of deep layers too."""

    config: LlavaConfig
    dtype: jnp.dtype
    lora: LoraConfig | None = None

    def setup(self) -> None:
        """Declares a merger for the last layer, and one for each of the deep layers."""
        assert isinstance(self.config.vision, QwenVisionConfig)
        lora = self.lora and self.lora.of("connector")
        options = (self.config.vision, self.config.text.hidden_size, self.dtype, lora)
        self.merger = _Merger(*options)
        self.deep_layers = self.config.vision.deep_layers
        if self.deep_layers:
            each = nn.vmap(
                _Merger,
                in_axes=(0, None, 0),  # pyright: ignore[reportArgumentType]
                variable_axes={"params": 0, "lora": 0},
                split_rngs={"params": True},
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            self.deep_mergers = each(*options, joined_norm=True)

    def __call__(self, features_BPE: jax.Array, keys_BI: jax.Array | None = None) -> jax.Array:
        """Maps features of tiles to what takes the place of image tokens, [B, P, D].

        Args:
            features_BPE: what the tower returns.
            keys_BI: see `Llava.features`.
        """
        return self.merger(self._split(features_BPE)[0], keys_BI, PROJECTOR_ADAPTERS)

    def deep(self, features_BPE: jax.Array, keys_BI: jax.Array | None = None) -> jax.Array | None:
        """Returns what is added after the first layers of the language model, [N, B, P, D].

        Args:
            features_BPE: what the tower returns.
            keys_BI: see `Llava.features`.

        Returns:
            None for towers without deep layers.
        """
        if not self.deep_layers:
            return None
        numbers = PROJECTOR_ADAPTERS + 2 + 2 * jnp.arange(len(self.deep_layers))
        return self.deep_mergers(jnp.stack(self._split(features_BPE)[1:]), keys_BI, numbers)

    def _split(self, features_BPE: jax.Array) -> list[jax.Array]:
        return jnp.split(features_BPE, 1 + len(self.deep_layers), axis=-1)


class _Merger(nn.Module):
    """Norm, and two linear layers with exact GELU between them, over the patches of a tile."""

    config: QwenVisionConfig
    width: int
    dtype: jnp.dtype
    lora: LoraConfig | None
    joined_norm: bool = False  # whether the norm is over all patches of a tile, or over each

    @nn.compact
    def __call__(
        self, features: jax.Array, keys: jax.Array | None, number: jax.Array | int
    ) -> jax.Array:
        """Maps [..., E] to [..., D].

        Args:
            features: of tiles.
            keys: see `layers.drawing`.
            number: of the first adapter, likewise.
        """
        cfg = self.config
        norm_name, first, second = cfg.merger_names
        norm = (RMSNorm if cfg.gated else LayerNorm)(cfg.norm_eps, self.dtype, name=norm_name)
        joined = features.shape
        parts = joined if self.joined_norm else (*joined[:-1], cfg.num_patches, cfg.hidden_size)
        x = norm(features.reshape(parts)).reshape(joined)
        dims = ("vision_embed", "embed_in"), ("embed_in", "embed")
        inner = Linear(joined[-1], dims[0], True, self.lora, self.dtype, name=first)
        outer = Linear(self.width, dims[1], True, self.lora, self.dtype, name=second)
        x = drawing(inner, keys, number)(x)
        x = constrain(nn.gelu(x, approximate=False), "batch", "length", "width")
        x = drawing(outer, keys, number + 1)(x)
        return constrain(x, "batch", "length", "width")


_Where = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


def _places(place_BI5: jax.Array, config: QwenVisionConfig) -> _Where:
    """Returns row and column of each patch in its picture, and its numbers of rows and columns."""
    side = config.merged

    def each(at_BI: jax.Array, inside: Sequence[int]) -> jax.Array:
        patches_BIP = at_BI[..., None] * side + jnp.array(inside, jnp.int32)
        return patches_BIP.reshape(len(at_BI), -1)

    down = [i for i in range(side) for _ in range(side)]
    over = [j for _ in range(side) for j in range(side)]
    none = [0] * side**2
    _, row, column, rows, columns = jnp.moveaxis(place_BI5, -1, 0)
    return each(row, down), each(column, over), each(rows, none), each(columns, none)


def _windows(place_BI5: jax.Array, config: QwenVisionConfig) -> jax.Array:
    """Returns a number for each tile's window, [B, I]; 0 for padding.

    Windows of a picture are counted, and those of different pictures are told apart by a factor.
    """
    if not config.windows:
        return place_BI5[..., 0]
    picture, row, column, _, columns = jnp.moveaxis(place_BI5, -1, 0)
    across = -(-columns // config.windows)
    window = (row // config.windows) * across + column // config.windows
    return jnp.where(picture > 0, picture + window * (2**12), 0)


def _rotary(where: _Where, width: int) -> tuple[jax.Array, jax.Array]:
    """Returns cosines and sines [B, P, 1, Q]; half of a head turns by rows, half by columns.

    Args:
        where: see `_places`.
        width: width of a head, Q.
    """
    frequency = jnp.asarray(Rope().frequencies(_ROPE_BASE, width // 2))
    angles = [place[..., None].astype(jnp.float32) * frequency for place in where[:2]]
    angle = jnp.concatenate(angles * 2, axis=-1)[:, :, None]
    return jnp.cos(angle), jnp.sin(angle)
