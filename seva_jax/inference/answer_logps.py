"""A pass over comparisons: the log-prob of every answer token under a model.

A pass with a `Journal` that is interrupted goes on after its last finished batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from seva_jax.batches.pipeline import Batches, ComparisonRows, RowShapes, in_order
from seva_jax.models import Llava
from seva_jax.runtime import files, shutdown
from seva_jax.runtime.processes import barrier, gather
from seva_jax.sharding import process_row_share, put_batch, replicated, row_multiple
from seva_jax.training.step import StepOptions, Variables, make_logps
from seva_jax.types import DataError, TreeBatch


@dataclasses.dataclass(frozen=True)
class Journal:
    """What a pass has computed, a line of JSON a batch; the first line says of what.

    Attributes:
        path: the file; all processes see it, process 0 writes it.
        key: fingerprint of all that the numbers depend on.
    """

    path: Path
    key: str

    def begin(self, batch_size: int) -> list[dict[int, list[np.ndarray]]]:
        """The batches that are there; begins anew where they are of something else."""
        head = {"fingerprint": self.key, "batch_size": batch_size}
        if jax.process_index() == 0 and files.read_lines(self.path)[:1] != [head]:
            files.write_lines(self.path, [head])
        barrier("journal")  # what a kill left unfinished is cut off now
        lines = files.read_lines(self.path)[1:]
        lines = lines[: gather(len(lines))[0]]
        return [
            {i: [np.array(b, np.float32) for b in branches] for i, branches in line["logps"]}
            for line in lines
        ]

    def add(self, batch: Mapping[int, list[np.ndarray]]) -> None:
        """Appends a batch; float32 survives JSON exactly."""
        if jax.process_index() == 0:
            logps = [[i, [b.tolist() for b in branches]] for i, branches in batch.items()]
            files.append_lines(self.path, [{"logps": logps}])


def answer_logps(
    model: Llava,
    variables: Variables,
    rows: ComparisonRows,
    mesh: jax.sharding.Mesh,
    batch_size: int,
    shapes: RowShapes,
    options: StepOptions,
    progress: Callable[[int], Any],
    journal: Journal | None = None,
) -> list[list[np.ndarray]]:
    """Per-token log-probs of every branch of every comparison, in order, on every process.

    A comparison whose images do not decode has none: an empty list.

    Args:
        model: the module.
        variables: its variables.
        rows: the comparisons.
        mesh: where the model lives.
        batch_size: comparisons computed together, over all devices.
        shapes: of the rows.
        options: of the computation.
        progress: called with the number of comparisons that a batch added.
        journal: keeps every batch, and has those of an interrupted pass.

    Raises:
        DataError: none of the images decodes.
    """
    logps = make_logps(model, options)

    def everything(variables: Variables, batch: TreeBatch) -> tuple[jax.Array, ...]:
        return logps(variables, batch), batch.mask_BCKT.sum(-1), batch.index_BC

    pass_fn = jax.jit(everything, out_shardings=replicated(mesh))
    schedule, unit = in_order(rows, batch_size), row_multiple(mesh)
    batches = Batches.chosen(rows, schedule, batch_size, process_row_share(mesh), unit, shapes)
    done = journal.begin(batch_size) if journal else []
    found = {index: branches for batch in done for index, branches in batch.items()}
    progress(len(found))
    # The shapes are those of the whole pass, so that who resumes computes as who does not.
    left = dataclasses.replace(batches, schedule=batches.schedule[len(done) :])
    for batch in left.iterate() if len(left) else ():
        shutdown.raise_if_stopping()  # with a journal, what was computed is on disk
        with jax.set_mesh(mesh):
            out = jax.device_get(pass_fn(variables, put_batch(mesh, batch)))
        logps_NKT, lengths_NK, index_N = (x.reshape(-1, *x.shape[2:]) for x in out)
        added = {
            int(index): [x[:n] for x, n in zip(logps_KT, lengths_K.astype(int), strict=True) if n]
            for logps_KT, lengths_K, index in zip(logps_NKT, lengths_NK, index_N, strict=True)
            if index >= 0
        }
        if journal:
            journal.add(added)
        found |= added
        progress(len(added))
    if not found:
        raise DataError(f"the images of all {len(rows)} pairs are unreadable; check where they are")
    return [found.get(i, []) for i in range(len(rows))]
