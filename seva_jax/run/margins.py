"""Reward margins of comparisons under the aligned model."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from seva_jax.batches.pipeline import ComparisonRows
from seva_jax.inference.answer_logps import answer_logps
from seva_jax.objectives import DPO
from seva_jax.run.context import RunContext
from seva_jax.training.step import Variables
from seva_jax.types import BranchLogps


def reward_margins(
    ctx: RunContext, reference: Variables, aligned: Variables, rows: ComparisonRows
) -> list[float | None]:
    """Returns the reward margin of each comparison under the aligned model.

    It is 0 for the reference itself; None for comparisons whose images do not decode.

    Args:
        ctx: the run.
        reference: variables of the reference policy.
        aligned: the aligned model's variables.
        rows: the comparisons.
    """

    def logps(name: str, variables: Variables) -> list[list[np.ndarray]]:
        with ctx.workdir.bar(f"margins: {name}", len(rows), "pair") as bar:
            return answer_logps(
                ctx.model_of(variables), variables, rows, ctx.pass_layout, ctx.step_options,
                bar.update,
            )  # fmt: skip

    objective = ctx.config.objective
    # Log-ratios in nats, where the objective has no rewards or needs more than log-probs for them.
    if not objective.needs_reference or objective.needs:
        objective = DPO(beta=1.0)
    margins: list[float | None] = []
    for before, after in zip(logps("base", reference), logps("aligned", aligned), strict=True):
        if not before or not after:
            margins.append(None)
            continue
        _, metrics = objective(_branches(after), _branches(before))
        margins.append(float(metrics["rewards/margins"][0]))
    return margins


def _branches(logps: Sequence[np.ndarray]) -> BranchLogps:
    longest = max(map(len, logps))
    logp_NKT = np.stack([np.pad(x, (0, longest - len(x))) for x in logps])[None]
    mask_NKT = np.stack([np.arange(longest) < len(x) for x in logps])[None]
    return BranchLogps(jnp.asarray(logp_NKT), jnp.asarray(mask_NKT, jnp.float32))
