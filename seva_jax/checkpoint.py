"""Checkpoints: a thin wrapper over Orbax that says what a checkpoint holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from seva_jax.step import TrainState
from seva_jax.types import DataError


class Checkpoints:
    """Checkpoints of one training stage, newest two kept.

    Each holds the `TrainState` (parameters, optimiser state, step) and the data position as
    JSON. Training has no other random state: shuffling follows from the seed, and corruptions
    and sampling are keyed by seed and example.
    """

    def __init__(self, directory: Path) -> None:
        options = ocp.CheckpointManagerOptions(max_to_keep=2, cleanup_tmp_directories=True)
        self._directory = directory
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options)

    def save(self, state: TrainState, data: dict[str, Any]) -> None:
        """Starts saving; returns before the bytes are on disk."""
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data))
        self._manager.save(int(state.step), args=items)

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest checkpoint, placed as `like` says, or None if there is none.

        Args:
            like: arrays or `jax.ShapeDtypeStruct`s with shardings.

        Raises:
            DataError: the checkpoint has other names or shapes.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
        )
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore()
        )
        try:
            restored = self._manager.restore(step, args=items)
        except (ValueError, KeyError, FileNotFoundError) as error:
            raise DataError(
                f"checkpoint {self._directory}/{step} cannot be restored: {error}"
            ) from error
        return restored["state"], restored["data"]

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()


def read_trained(directory: Path, like: Any) -> Any:
    """Some of the trained variables of the newest checkpoint; nothing else is read.

    Args:
        directory: of the training stage.
        like: any part of the tree of trained variables, of `jax.ShapeDtypeStruct`s with
            shardings.

    Raises:
        DataError: there is no checkpoint, or it has other names or shapes.
    """
    manager = ocp.CheckpointManager(directory.absolute())
    step = manager.latest_step()
    manager.close()
    if step is None:
        raise DataError(f"{directory} holds no checkpoint; run the training again")
    path = directory.absolute() / str(step) / "state"
    args = ocp.args.PyTreeRestore(
        item={"trainable": like},
        partial_restore=True,
        restore_args=ocp.checkpoint_utils.construct_restore_args({"trainable": like}),
    )
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            return checkpointer.restore(path, args=args)["trainable"]
    except (ValueError, KeyError, FileNotFoundError) as error:
        raise DataError(f"checkpoint {path} cannot be read: {error}") from error


@jax.jit
def _checksum(params: Any) -> jax.Array:
    def one(x: jax.Array) -> jax.Array:
        if x.dtype == jnp.uint4:
            x = x.astype(jnp.uint8)
        bits = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)
        for dim in range(x.ndim):
            place = jax.lax.broadcasted_iota(jnp.uint32, x.shape, dim)
            bits = (bits ^ (place * jnp.uint32(0x9E3779B1))) * jnp.uint32(0x85EBCA6B)
            bits ^= bits >> 15
        return bits.sum(dtype=jnp.uint32)

    return jnp.stack([one(x) for x in jax.tree.leaves(params)])


def checksum(params: Any) -> list[int]:
    """One number a parameter that changes with any bit of it, whatever its sharding.

    Integer sums wrap and do not depend on their order, so the same weights give the same numbers
    on every mesh. Not cryptographic.
    """
    return [int(x) for x in jax.device_get(_checksum(params))]
