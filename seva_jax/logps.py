"""A pass over comparisons: the log-prob of every answer token under a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from seva_jax import stopping
from seva_jax.data.pipeline import Batches, ComparisonRows, RowShapes, in_order
from seva_jax.models import Llava
from seva_jax.sharding import put_batch, replicated, row_shard, row_unit
from seva_jax.step import StepOptions, Variables, make_logps
from seva_jax.types import DataError, TreeBatch


def answer_logps(
    model: Llava,
    variables: Variables,
    rows: ComparisonRows,
    mesh: jax.sharding.Mesh,
    batch_size: int,
    shapes: RowShapes,
    options: StepOptions,
    progress: Callable[[int], Any],
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

    Raises:
        DataError: none of the images decodes.
    """
    logps = make_logps(model, options)

    def everything(variables: Variables, batch: TreeBatch) -> tuple[jax.Array, ...]:
        return logps(variables, batch), batch.mask_BCKT.sum(-1), batch.index_BC

    pass_fn = jax.jit(everything, out_shardings=replicated(mesh))
    schedule, unit = in_order(rows, batch_size), row_unit(mesh)
    batches = Batches.chosen(rows, schedule, batch_size, row_shard(mesh), unit, shapes)
    found: dict[int, list[np.ndarray]] = {}
    for batch in batches.iterate():
        stopping.check()  # a pass is not saved in parts
        before = len(found)
        with jax.set_mesh(mesh):
            out = jax.device_get(pass_fn(variables, put_batch(mesh, batch)))
        logps_NKT, lengths_NK, index_N = (x.reshape(-1, *x.shape[2:]) for x in out)
        for logps_KT, lengths_K, index in zip(logps_NKT, lengths_NK, index_N, strict=True):
            if index >= 0:
                branches = zip(logps_KT, lengths_K.astype(int), strict=True)
                found[int(index)] = [x[:n] for x, n in branches if n]
        progress(len(found) - before)
    if not found:
        raise DataError(f"the images of all {len(rows)} pairs are unreadable; check where they are")
    return [found.get(i, []) for i in range(len(rows))]
