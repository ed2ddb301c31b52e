"""The step of a training stage, compiled ahead of its first use for each shape of batches.

Compiling it ahead tells how much memory it needs before it runs, which is how the cheapest
rematerialisation that fits is chosen; the program that was compiled for this is the one that
trains. What does not live here: the step itself (`step.py`), the choice (`remat.py`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from seva_jax.batches.packing import Layout, Packer
from seva_jax.batches.pipeline import ComparisonRows
from seva_jax.models import Llava, Remat
from seva_jax.runtime.overhead import cache_hits
from seva_jax.runtime.processes import gather, say
from seva_jax.sharding import batch_sharding
from seva_jax.training.memory import (
    advice,
    compile_if_it_fits,
    device_limit,
    gib,
    least_of_step,
    machine_limit,
    resident_besides,
)
from seva_jax.training.remat import REMATS, ROOM, Choice, cheapest
from seva_jax.training.step import TrainState, Variables
from seva_jax.training.task import Site, Task
from seva_jax.types import DataError, TreeBatch

_Step = Callable[..., Any] | None  # None if it is too large to be compiled
_RECORD = "remat"  # in the position of a checkpoint


def abstract_batch(
    rows: ComparisonRows, layout: Layout, micro_batches: int, mesh: jax.sharding.Mesh
) -> TreeBatch:
    """Returns the batches of a layout as shapes with shardings, leaves [M, B, ...]."""
    sharding, split = batch_sharding(mesh, 1), (micro_batches, layout.rows // micro_batches)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((*split, *x.shape), x.dtype, sharding=sharding),
        rows.row([], layout.shape),
    )


def chosen_remat(position: Mapping[str, Any]) -> str:
    """Returns the rematerialisation that a training chose; "" if it was given.

    Args:
        position: what its last checkpoint holds, see `read_position`.
    """
    return position.get(_RECORD, "")


class CompiledStep:
    """The step (state, frozen, batch) -> (state, metrics) of a training stage.

    Where the stage leaves the rematerialisation open (`Site.remat`), the first call chooses it, for
    the largest of the batches that may come. A training that resumes keeps what its checkpoint was
    computed with, unless that no longer fits, so that it ends with the same bits.

    Args:
        task: what is trained.
        site: where.
        jitted: returns the jitted step of a module; it donates the state.
        packer: lays out the batches.
    """

    def __init__(
        self, task: Task, site: Site, jitted: Callable[[Llava], Any], packer: Packer
    ) -> None:
        self._task, self._site, self._jitted = task, site, jitted
        self._largest = max(packer.layouts, key=lambda layout: layout.rows * layout.shape.length)
        self._remats: tuple[Remat, ...] = REMATS if site.remat == "auto" else (site.remat,)
        self._room = ROOM
        self._steps: dict[Any, Any] = {}

    def resume(self, position: dict[str, Any]) -> None:
        """Takes back out of a saved position what `pending` put in."""
        # Checkpoints without it are from before there was a choice, or of a run that made none:
        # with "auto", a run can resume only what was trained with "layers".
        kept = position.pop(_RECORD, REMATS[-1])
        if self._site.remat == "auto":
            self._remats, self._room = REMATS[REMATS.index(kept) :], 0.0

    def pending(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps: the rematerialisation, if it was chosen."""
        return {_RECORD: self._remats[0]} if self._site.remat == "auto" else {}

    def __call__(self, state: TrainState, frozen: Variables, batch: TreeBatch) -> Any:
        """Computes a step, after compiling it if it is the first with batches of this shape.

        Raises:
            DataError: it does not fit the devices.
        """
        shapes = _shapes(batch)
        if not self._steps:
            resident = resident_besides((state, frozen, batch))
            known = [device_limit() or machine_limit(), resident]
            limits, besides = zip(*gather(known), strict=True)
            self._limit = None if None in limits else min(limits)
            self._besides = max(besides)
        if len(self._remats) > 1:
            options, mesh = self._task.options, self._site.mesh
            largest = abstract_batch(self._task.rows, self._largest, options.micro_batches, mesh)
            self._compile(state, frozen, largest)
        if shapes not in self._steps:
            self._compile(state, frozen, batch)
        # JAX calls the program that was compiled for these shapes. Calling that one ourselves fails
        # where it came from the compile cache and takes uint4: JAX finds that layouts differ.
        with jax.set_mesh(self._site.mesh):
            return self._steps[shapes](state, frozen, batch)

    def _compile(self, state: TrainState, frozen: Variables, batch: TreeBatch) -> None:
        """Compiles the step for batches of a shape; chooses the rematerialisation if it is open.

        Args:
            state: training state.
            frozen: frozen variables.
            batch: a batch, or its shapes with shardings.
        """
        how, is_open = "", len(self._remats) > 1

        def compiled(remat: Remat) -> tuple[_Step, float]:
            nonlocal how
            start, hits = time.monotonic(), cache_hits()
            step = self._jitted(self._task.model.clone(remat=remat))
            with jax.set_mesh(self._site.mesh):
                lowered = step.lower(state, frozen, batch)
            program, needed = compile_if_it_fits(lowered)
            how = "read from the compile cache" if cache_hits() > hits else "compiled"
            how += f" in {time.monotonic() - start:.1f} s"
            everyone = gather([program is not None, needed])
            needed = max(needed for _, needed in everyone) + self._besides
            if all(done for done, _ in everyone):
                return step, needed
            # What XLA takes for the memory of a device may be less than what the device says.
            return None, needed if needed > (self._limit or 0) else math.inf

        def least(remat: Remat) -> float:
            model = self._task.model.clone(remat=remat)
            return least_of_step(model, state, frozen, batch) + self._besides

        choice = cheapest(self._remats, least, compiled, self._limit, self._room)
        self._remats = (choice.remat,)
        if not choice.fits or choice.program is None:
            problem = self._problem(choice, state, frozen, batch)
            if is_open or choice.program is None:
                raise DataError(f"{self._task.name}: {problem}")
            say(f"warning: {self._task.name}: {problem}")
        micro_batches, rows, length = batch.tokens_BS.shape
        why = f", because {choice.why}" if choice.why else ""
        say(
            f"{self._task.name}: step with {micro_batches * rows:,} rows of {length:,} {how}; "
            f"planned memory {choice.memory} on each device, with remat {choice.remat}{why}"
        )
        self._steps[_shapes(batch)] = choice.program

    def _problem(
        self, choice: Choice[_Step], state: TrainState, frozen: Variables, batch: TreeBatch
    ) -> str:
        """Returns that a step does not fit, and what to do, in words."""
        limit, besides = choice.limit or math.inf, self._besides
        also = "" if choice.remat == REMATS[-1] else f"--compute.remat {REMATS[-1]} or "
        hint = advice(state, frozen, batch, choice.needed - besides, limit - besides)
        return (
            f"the step needs {gib(choice.needed)} on each device with remat {choice.remat}, and "
            f"it has {gib(limit)}: {also}{hint} (seva-jax plan computes what fits)"
        )


def _shapes(batch: TreeBatch) -> tuple[tuple[int, ...], ...]:
    return tuple(x.shape for x in jax.tree.leaves(batch))
