"""Checkpoints: a thin wrapper around Orbax that defines their content and verifies every file.

What lives here: saving in the background, restoring, refusing a checkpoint of another run. What
does not: finding the newest intact checkpoint (`digests.py`), when to save (`save_schedule.py`).
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from seva_jax.runtime.overhead import saving
from seva_jax.runtime.processes import barrier, gather, say
from seva_jax.runtime.store_client import StoreError, reason_of
from seva_jax.runtime.stores import is_remote, remove
from seva_jax.training.digests import damage, is_unfinished, newest, write_digests
from seva_jax.training.step import TrainState
from seva_jax.types import DataError

ASIDE = "set-aside"  # where directories are moved that are not intact checkpoints


class Checkpoints:
    """Checkpoints of one training stage; the newest two are kept, and one more step (`keep`).

    Each holds the `TrainState` (parameters, optimiser state, step), the position in the data as
    JSON, and facts about the run, also JSON. Training has no other random state: shuffling follows
    from the seed, and corruptions and sampling are keyed by seed and example.

    Directories whose name is a number but that are not intact checkpoints are moved to
    `set-aside/`, so that Orbax neither takes them for checkpoints nor fails to write one of that
    number; a line is printed for each. In an object store, where Orbax writes under the final name,
    a checkpoint without its last object is what a kill during a save leaves, and is removed.

    Args:
        directory: where the checkpoints are.
        facts: plain values by name that a checkpoint must have in common with this run.

    Raises:
        DataError: there are checkpoints, but none is intact.
    """

    def __init__(self, directory: Path, facts: Mapping[str, Any]) -> None:
        import orbax.checkpoint as ocp

        self._directory, self._facts = directory.absolute(), dict(facts)
        self._newest, passed_over = newest(self._directory)
        for name, why in passed_over:
            say(f"{directory}/{name} is not used: {why}; it is {self._put_away(name)}")
        barrier(f"checkpoints {directory}")
        self._saving, self._kept = 0, _OneStep()
        self._took_s: float | None = None
        self._pending: concurrent.futures.Future[None] | None = None
        self._worker = concurrent.futures.ThreadPoolExecutor(1, "checkpoints")
        options = ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy(
                [ocp.checkpoint_managers.LatestN(2), self._kept]
            ),
            # In a store Orbax takes every folder without its last object for an unfinished save,
            # also `set-aside/`.
            cleanup_tmp_directories=not is_remote(self._directory),
            async_options=ocp.options.AsyncOptions(
                post_finalization_callback=self._digest,
                # Otherwise threads wait minutes for a directory that cannot be created.
                create_directories_asynchronously=False,
            ),
        )
        try:
            self._manager = ocp.CheckpointManager(self._directory, options=options)
        except Exception as error:  # as in `save`
            raise self._failure(self._directory, error) from error

    def keep(self, step: int | None) -> None:
        """Keeps the checkpoint of a step, apart from the newest two, until another one is named.

        It is deleted only when a checkpoint that was saved after that is finished.
        """
        self._kept.step = step

    def _put_away(self, name: str) -> str:
        """Removes an unfinished checkpoint, or moves a damaged one; returns which, for people."""
        path, aside = self._directory / name, self._directory / ASIDE / name
        unfinished = gather(is_unfinished(path))[0]
        if jax.process_index() == 0:
            if unfinished:
                remove(path)
                return "removed"
            number = 1
            while aside.exists():
                number += 1
                aside = aside.with_name(f"{name}.{number}")
            try:
                aside.parent.mkdir(exist_ok=True)
                path.rename(aside)
            except OSError as error:
                raise DataError(f"{path} cannot be moved to {aside}: {error}") from error
        return "removed" if unfinished else f"now {aside}"

    def _digest(self) -> None:
        """Adds the digests before Orbax publishes a step, on process 0, in Orbax's thread.

        Step and digests thus appear by the same rename, and a kill leaves both or neither.
        """
        name = str(self._saving)
        written = [*self._directory.glob(f"{name}.orbax-checkpoint-tmp*"), self._directory / name]
        write_digests(next(path for path in written if path.is_dir()))

    def save(self, state: TrainState, data: dict[str, Any]) -> None:
        """Starts saving; returns before the bytes are on disk.

        Raises:
            DataError: this save or the previous one failed; see `check`.
        """
        with saving():
            self._save(state, data)

    def _save(self, state: TrainState, data: dict[str, Any]) -> None:
        import orbax.checkpoint as ocp

        self.wait()
        step = int(state.step)
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            data=ocp.args.JsonSave(data),
            facts=ocp.args.JsonSave(self._facts),
        )
        self._saving, start = step, time.monotonic()
        try:
            self._manager.save(step, args=items)
        except Exception as error:  # tensorstore and Orbax raise many types
            raise self._failure(self._directory / str(step), error) from error
        self._pending = self._worker.submit(self._finish, start)

    def _finish(self, start: float) -> None:
        self._manager.wait_until_finished()
        self._took_s = max(time.monotonic() - start, self._took_s or 0.0)

    @property
    def saving(self) -> bool:
        """Whether a checkpoint is still being written."""
        return self._pending is not None and not self._pending.done()

    @property
    def took_s(self) -> float | None:
        """The longest time from `save` until a checkpoint was finished; None before the first."""
        return self._took_s

    def check(self) -> None:
        """Checks whether the last save failed, without waiting for one in progress.

        Raises:
            DataError: it failed, for example because the disk is full.
        """
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Waits until the last save is on disk, with its digests.

        Raises:
            DataError: it failed.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            with saving():
                pending.result()
        except Exception as error:  # as in `save`
            raise self._failure(self._directory / str(self._saving), error) from error

    @staticmethod
    def _failure(path: Path, error: Exception) -> DataError:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        return DataError(
            f"checkpoint {path} cannot be saved: {first_line}; make sure that there is space and "
            "that the directory can be written, then run the same command again: it resumes from "
            "the previous checkpoint"
        )

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """Returns the newest intact checkpoint, sharded like `like`, or None if there is none.

        Args:
            like: arrays or `jax.ShapeDtypeStruct`s with shardings.

        Raises:
            DataError: the checkpoint is of another run, or has other names or shapes.
            StoreError: the store does not answer.
        """
        import orbax.checkpoint as ocp

        if self._newest is None:
            return None
        path = self._directory / str(self._newest)
        with _reading(path):
            facts = ocp.args.Composite(facts=ocp.args.JsonRestore())
            stored = self._manager.restore(self._newest, args=facts)["facts"]
        _refuse_other_facts(path, stored, self._facts)
        _refuse_other_shapes(path, like)
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
        )
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore()
        )
        with _reading(path):
            restored = self._manager.restore(self._newest, args=items)
        return restored["state"], restored["data"]

    def close(self) -> None:
        """Waits until everything is on disk.

        Raises:
            DataError: the last save failed.
        """
        self.wait()
        with saving():
            self._manager.close()
            self._worker.shutdown()


class _OneStep:
    """A preservation policy of Orbax: keeps one step, which may change."""

    step: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Returns whether to keep each of the checkpoints."""
        return [info.step == self.step for info in checkpoints]


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns what Orbax and tensorstore raise while they read a checkpoint into one line.

    Raises:
        DataError: the checkpoint is not what was expected.
        StoreError: the checkpoint is in a store, which does not answer or refuses to.
    """
    try:
        yield
    except Exception as error:
        if is_remote(path):  # many types; the checkpoint was found intact a moment ago
            raise StoreError(
                f"checkpoint {path} cannot be read: {reason_of(error, str(path))}"
            ) from error
        if not isinstance(error, ValueError | KeyError | FileNotFoundError):
            raise
        raise DataError(f"checkpoint {path} cannot be read: {error}") from error


def _refuse_other_facts(path: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    differing = [
        f"{name} is {stored.get(name, 'absent')!r} there and {wanted.get(name, 'absent')!r} here"
        for name in sorted(stored.keys() | wanted.keys())
        if stored.get(name) != wanted.get(name)
    ]
    if differing:
        raise DataError(
            f"checkpoint {path} is of another run: {', '.join(differing)}; "
            "choose another --workdir, or put back what the run started with"
        )


def _refuse_other_shapes(path: Path, like: Any) -> None:
    """Checks that a checkpoint holds the names and shapes that are to be read."""
    import orbax.checkpoint as ocp

    with _reading(path), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        metadata = checkpointer.metadata(path / "state")
    held = {leaf.name: leaf.shape for leaf in jax.tree.leaves(metadata.item_metadata.tree)}
    for at, leaf in jax.tree_util.tree_leaves_with_path(like):
        name = jax.tree_util.keystr(at, simple=True, separator=".")
        if name not in held:
            raise DataError(
                f"checkpoint {path} is of another model: it has no {name}, "
                f"which has shape {leaf.shape} here"
            )
        if held[name] != leaf.shape:
            raise DataError(
                f"checkpoint {path} is of another model: {name} has shape {held[name]} there "
                f"and {leaf.shape} here"
            )


def read_facts(checkpoint: Path) -> dict[str, Any]:
    """Returns the facts about its run that a checkpoint holds.

    Raises:
        DataError: they cannot be read.
        StoreError: the store does not answer.
    """
    return _read_json(checkpoint, "facts")


def read_position(checkpoint: Path) -> dict[str, Any]:
    """Returns the position in the data that a checkpoint holds, and what else the loop kept there.

    Raises:
        DataError: it cannot be read.
        StoreError: the store does not answer.
    """
    return _read_json(checkpoint, "data")


def _read_json(checkpoint: Path, item: str) -> dict[str, Any]:
    import orbax.checkpoint as ocp

    with _reading(checkpoint), ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
        return checkpointer.restore(checkpoint.absolute() / item)


def last_checkpoint(
    directory: Path, last: int | None = None, facts: Mapping[str, Any] | None = None
) -> Path:
    """Returns the checkpoint of a stage's last step, after comparing its files with their digests.

    Args:
        directory: the checkpoints of a training stage.
        last: the last step; None takes the number of steps that the checkpoints themselves record.
        facts: what the checkpoint must share with the run; None compares nothing.

    Raises:
        DataError: there is no checkpoint, or that of the last step is damaged or missing, or is of
            another run.
    """
    step, passed_over = newest(directory)
    if step is None:
        raise DataError(
            f"{directory} holds no checkpoint; put back a copy, or remove {directory.name!r} from "
            "stages.json in the work directory and run seva_jax.train again"
        )
    path = directory.absolute() / str(step)
    if last is None:
        last = read_facts(path).get("steps", step)
    if step != last:
        reasons = "; ".join(f"{name}: {why}" for name, why in passed_over) or "it is not there"
        raise DataError(
            f"{directory} has no intact checkpoint of step {last}, the last one ({reasons}), only "
            f"of step {step}; put back a copy, or remove {directory.name!r} from stages.json in "
            "the work directory and run seva_jax.train again, which trains the missing steps "
            f"(seva_jax.convert exports the earlier model with --step {step})"
        )
    for name, why in passed_over:
        say(f"{directory}/{name} is not used: {why}; step {step} is")
    if facts is not None:
        _refuse_other_facts(path, read_facts(path), facts)
    return path


def checkpoint_of(directory: Path, step: int, facts: Mapping[str, Any] | None = None) -> Path:
    """Returns the checkpoint of a step, after comparing its files with their digests.

    Args:
        directory: the checkpoints of a training stage.
        step: the step.
        facts: see `last_checkpoint`.

    Raises:
        DataError: it is missing or damaged, or is of another run.
    """
    path = directory.absolute() / str(step)
    if why := damage(path) if path.exists() else "it is not there":
        kept = sorted((p.name for p in directory.glob("*") if p.name.isdecimal()), key=int)
        raise DataError(
            f"{directory} has no intact checkpoint of step {step} ({why}); it holds "
            f"{', '.join(kept) or 'none'}"
        )
    if facts is not None:
        _refuse_other_facts(path, read_facts(path), facts)
    return path


def read_trained(
    directory: Path, like: Any, last: int | None = None, facts: Mapping[str, Any] | None = None
) -> Any:
    """Reads some of the trained variables of a stage's last checkpoint, and nothing else.

    Args:
        directory: the checkpoints of a training stage.
        like: any part of the tree of trained variables, as `jax.ShapeDtypeStruct`s with
            shardings.
        last: see `last_checkpoint`.
        facts: see `last_checkpoint`.

    Raises:
        DataError: see `last_checkpoint`; or the checkpoint is of another model.
    """
    return read_variables(last_checkpoint(directory, last, facts), like)


def read_variables(path: Path, like: Any) -> Any:
    """Reads some of the trained variables of a checkpoint that has been found intact.

    Args:
        path: the checkpoint.
        like: see `read_trained`.

    Raises:
        DataError: the checkpoint is of another model.
    """
    import orbax.checkpoint as ocp

    item = {"trainable": like}
    _refuse_other_shapes(path, item)
    args = ocp.args.PyTreeRestore(
        item=item,
        partial_restore=True,
        restore_args=ocp.checkpoint_utils.construct_restore_args(item),
    )
    with _reading(path), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        return checkpointer.restore(path / "state", args=args)["trainable"]


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
    """Returns one number per parameter, which changes with any bit of it, for every sharding.

    Integer sums wrap around and do not depend on their order, so the same weights give the same
    numbers on every mesh. Not cryptographic.
    """
    return [int(x) for x in jax.device_get(_checksum(params))]
