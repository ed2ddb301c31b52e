"""The loop of every pass over batches that does not train.

What lives here: `run_pass`, and the batches of a pass over comparisons. What does not: what a pass
computes (`answer_logps.py`, `answer_stats.py`, `features.py`); sampling, whose batches depend on
the answers (`rollouts.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax

from seva_jax.batches.pipeline import Batches, ComparisonRows, RowShapes, in_order
from seva_jax.runtime import shutdown
from seva_jax.runtime.profiler import profiler
from seva_jax.sharding import process_row_share, put_batch, replicated, row_multiple
from seva_jax.training.step import Variables
from seva_jax.types import TreeBatch


@dataclasses.dataclass(frozen=True)
class PassLayout:
    """How a pass over comparisons is laid out.

    Attributes:
        mesh: where the model lives.
        batch_size: comparisons computed together, over all devices.
        shapes: how the shapes of rows are chosen.
    """

    mesh: jax.sharding.Mesh
    batch_size: int
    shapes: RowShapes

    def batches(
        self, rows: ComparisonRows, first: int = 0
    ) -> Iterator[tuple[Sequence[int], TreeBatch]]:
        """Yields the indices of the comparisons of each batch, and this process's share of it.

        Shapes come from all comparisons, so a resumed pass computes the same numbers.

        Args:
            rows: the comparisons.
            first: the first batch wanted.
        """
        schedule = in_order(rows, self.batch_size)
        batches = Batches.chosen(
            rows, schedule, self.batch_size, process_row_share(self.mesh), row_multiple(self.mesh),
            self.shapes,
        )  # fmt: skip
        if first == len(batches):
            return
        data = batches.iterate()
        data.set_state({"next_index": first})
        for number in range(first, len(batches)):
            with profiler.waiting_for_input():
                batch = next(data)
            yield schedule[number], batch


def run_pass(
    compute: Callable[[Variables, Any], Any],
    variables: Variables,
    batches: Iterable[tuple[Sequence[Any], Any]],
    mesh: jax.sharding.Mesh,
) -> Iterator[tuple[Sequence[Any], Any]]:
    """Yields what `compute` makes of every batch, on the host of every process.

    Args:
        compute: from variables and a batch to arrays; it is compiled here.
        variables: the variables of the model.
        batches: what is in each batch, and this process's share of it; the first is passed on.
        mesh: where the model lives.

    Raises:
        Stopped: a stop was requested. What was yielded before is the caller's to keep.
    """
    compiled = jax.jit(compute, out_shardings=replicated(mesh))
    for members, batch in batches:
        shutdown.raise_if_stopping()
        profiler.next_unit()
        with jax.set_mesh(mesh):
            yield members, jax.device_get(compiled(variables, put_batch(mesh, batch)))
