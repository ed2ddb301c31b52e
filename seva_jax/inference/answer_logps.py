"""The log-prob of every answer token of comparisons under a model, such as the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from seva_jax.batches.pipeline import ComparisonRows
from seva_jax.inference.passes import PassLayout, run_pass
from seva_jax.models import Llava
from seva_jax.runtime.journal import Journal
from seva_jax.training.step import StepOptions, Variables, make_logps
from seva_jax.types import DataError, TreeBatch


def answer_logps(
    model: Llava,
    variables: Variables,
    rows: ComparisonRows,
    layout: PassLayout,
    options: StepOptions,
    progress: Callable[[int], Any],
    journal: Journal | None = None,
) -> list[list[np.ndarray]]:
    """Returns per-token log-probs of every branch of every comparison, on every process.

    A comparison whose images do not decode has an empty list. float32 survives JSON exactly.

    Args:
        model: the module.
        variables: its variables.
        rows: the comparisons.
        layout: the layout of the pass.
        options: of the computation.
        progress: called with the number of comparisons that a batch added.
        journal: keeps every finished batch, a record each.

    Raises:
        DataError: none of the images decodes.
    """
    logps = make_logps(model, options)

    def compute(variables: Variables, batch: TreeBatch) -> tuple[jax.Array, ...]:
        return logps(variables, batch), batch.mask_BCKT.sum(-1), batch.index_BC

    records = journal.resume() if journal else []
    by_index = {
        index: [np.array(branch, np.float32) for branch in branches]
        for record in records
        for index, branches in record["logps"]
    }
    progress(len(by_index))
    batches = layout.batches(rows, first=len(records))
    for _, out in run_pass(compute, variables, batches, layout.mesh):
        logps_NKT, lengths_NK, index_N = (x.reshape(-1, *x.shape[2:]) for x in out)
        added = {
            int(index): [
                x[:n].copy() for x, n in zip(logps_KT, lengths_K.astype(int), strict=True) if n
            ]
            for logps_KT, lengths_K, index in zip(logps_NKT, lengths_NK, index_N, strict=True)
            if index >= 0
        }
        if journal:
            as_json = [[index, [b.tolist() for b in branches]] for index, branches in added.items()]
            journal.append([{"logps": as_json}])
        by_index |= added
        progress(len(added))
    if not by_index:
        raise DataError(f"the images of all {len(rows)} pairs are unreadable; check where they are")
    return [by_index.get(i, []) for i in range(len(rows))]
