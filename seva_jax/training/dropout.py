"""Random keys for the dropout of adapters, which depend on no layout.

What lives here: `token_keys` for the language model, `tile_keys` for tower and projector. What does
not: drawing from the keys (`seva_jax/models/layers.py`), and which passes drop anything: only those
of `TrainStep` in `step.py` that have a gradient.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from seva_jax.types import TreeBatch

_TILES = 2**31 - 1  # tells tiles from tokens, whose places are smaller


def token_keys(seed: int, step: jax.Array, batch: TreeBatch) -> jax.Array:
    """Returns a random key for every token of a batch, [B, S].

    It follows from the seed, the step, the index of the token's comparison in the data set, and
    the token's place among those of the comparison. So a step drops the same inputs on every mesh,
    in any number of micro-batches, however comparisons share rows, and after an interruption.

    Args:
        seed: seed of the run.
        step: int32 scalar, optimiser steps before this one.
        batch: leaves [B, ...].
    """
    key = jax.random.fold_in(jax.random.key(seed), step)
    index_BS, place_BS = token_places(batch)

    def one(index: jax.Array, place: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(key, index), place)

    return jax.vmap(jax.vmap(one))(index_BS, place_BS)


def tile_keys(seed: int, step: jax.Array, batch: TreeBatch, tile_features: int) -> jax.Array:
    """Returns a random key for every tile of a batch, [B, I].

    It follows from the seed, the step, the index of the tile's comparison in the data set, and the
    tile's place among those of the comparison. A tile that no token shows may have any key.

    Args:
        seed: see `token_keys`.
        step: see `token_keys`.
        batch: leaves [B, ...].
        tile_features: features of a tile, P.
    """
    key = jax.random.fold_in(jax.random.key(seed), step)
    index_BI, place_BI = tile_places(batch, tile_features)

    def one(index: jax.Array, place: jax.Array) -> jax.Array:
        tiles = jax.random.fold_in(jax.random.fold_in(key, index), _TILES)
        return jax.random.fold_in(tiles, place)

    return jax.vmap(jax.vmap(one))(index_BI, place_BI)


def tile_places(batch: TreeBatch, tile_features: int) -> tuple[jax.Array, jax.Array]:
    """Returns the comparison of each tile, and the tile's place among its tiles, both [B, I].

    Args:
        batch: leaves [B, ...].
        tile_features: features of a tile, P.
    """
    num = batch.images_BIX.shape[1]
    index_BS, _ = token_places(batch)
    shows_BSM = batch.patch_BS[..., None] >= 0
    feature_BSM = batch.patch_BS[..., None]
    if batch.blend is not None:
        feature_BSM = batch.blend.index_BSM
        shows_BSM = shows_BSM & (batch.blend.weight_BSM > 0)
    tile_BSM = jnp.where(shows_BSM, feature_BSM // tile_features, num)  # num: none
    none = jnp.iinfo(jnp.int32).max

    def owners(tile_SM: jax.Array, index_S: jax.Array) -> jax.Array:
        owner_I = jnp.full(num, none, jnp.int32)
        return owner_I.at[tile_SM].min(index_S[:, None], mode="drop")

    owner_BI = jax.vmap(owners)(tile_BSM, index_BS)
    same_BIJ = owner_BI[:, :, None] == owner_BI[:, None]
    return owner_BI, jnp.arange(num) - jnp.argmax(same_BIJ, axis=-1)


def token_places(batch: TreeBatch) -> tuple[jax.Array, jax.Array]:
    """Returns the comparison of each token, and the token's place among its tokens, both [B, S].

    A row holds comparisons one after another. A comparison without answer tokens has no gradient;
    its tokens may be counted with those of the one before it.
    """
    rows, length = batch.tree_BS.shape
    first_BCK = batch.slot_BCKT[..., 0]
    at = jnp.take_along_axis(batch.source_BA, first_BCK.reshape(rows, -1), axis=1)
    tree_BCK = jnp.take_along_axis(batch.tree_BS, at, axis=1).reshape(first_BCK.shape)
    none = jnp.iinfo(jnp.int32).max
    tree_BC = jnp.where(batch.mask_BCKT[..., 0] > 0, tree_BCK, none).min(-1)  # its first tree
    tree_BS1 = batch.tree_BS[..., None]
    start_BC = ((tree_BS1 > 0) & (tree_BS1 < tree_BC[:, None])).sum(1)
    begun_BSC = tree_BS1 >= tree_BC[:, None]
    number_BS = jnp.where(begun_BSC, jnp.arange(tree_BC.shape[1]), 0).max(-1)
    index_BS = jnp.take_along_axis(batch.index_BC, number_BS, axis=1)
    return index_BS, jnp.arange(length) - jnp.take_along_axis(start_BC, number_BS, axis=1)
