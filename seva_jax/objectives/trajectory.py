"""Preferences between trajectories: one loss of the log-ratios of several steps (GRAPE)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import jax
import jax.numpy as jnp
from typing_extensions import override

from seva_jax.objectives.base import Metrics, Objective, mean_existing
from seva_jax.objectives.dpo import DPO
from seva_jax.objectives.pairs import PairObjective
from seva_jax.ranges import FROM_1
from seva_jax.types import BranchLogps, Comparison, DataError


@dataclasses.dataclass(frozen=True)
class Trajectory(Objective):
    """A preference objective applied to windows of steps (GRAPE, arXiv 2411.19309).

    `-log sigmoid(sum_t beta * (log-ratio of chosen step t - log-ratio of rejected step t))`, summed
    over a window: the answers of its steps are concatenated and treated as one. With windows of
    one step, every step has its own DPO loss.

    The branches of a comparison are chosen step 1, rejected step 1, chosen step 2, and so on. A
    step has its own observation, so it is usually its own tree (`Comparison.more`). The loss of a
    comparison is the mean over its windows; the last may be shorter. The release makes an example
    of every 8 successive steps, and so does `seva_jax.data.TrajectoryPairs`. An action is any text
    here; the release writes actions as 256 bins, the last ids of the vocabulary.

    Attributes:
        window: number of steps in a window.
        objective: the loss of a window; it must need log-probs only.
    """

    window: Annotated[int, FROM_1] = 8
    objective: PairObjective = DPO()

    def __post_init__(self) -> None:
        if self.objective.needs or self.objective.whole_batch:
            raise DataError(
                "Trajectory: its objective may use only the log-probs of one window; give another"
            )

    @override
    def check(self, comparisons: Sequence[Comparison]) -> None:
        for comparison in comparisons:
            if len(comparison.all_answers) % 2:
                raise DataError(
                    f"Trajectory: comparison {comparison.prompt.id!r} has "
                    f"{len(comparison.all_answers)} answers; give as many chosen as rejected steps"
                )

    @override
    def __call__(
        self, policy: BranchLogps, reference: BranchLogps | None
    ) -> tuple[jax.Array, Metrics]:
        assert reference is not None, "preference objectives compare with a reference"
        num, branches, length = policy.mask_NKT.shape

        def windows(x_NKT: jax.Array) -> jax.Array:  # [N * windows, 2, steps * T]
            padded = jnp.pad(x_NKT, ((0, 0), (0, -branches % (2 * self.window)), (0, 0)))
            steps = padded.reshape(-1, self.window, 2, length).swapaxes(1, 2)
            return steps.reshape(-1, 2, self.window * length)

        def joined(logps: BranchLogps) -> BranchLogps:
            return BranchLogps(windows(logps.logp_NKT), windows(logps.mask_NKT))

        policy, reference = joined(policy), joined(reference)
        exists = policy.exists_NK[:, 1].reshape(num, -1)  # [N, windows]
        loss_and_metrics = self.objective(policy, reference)  # of each window
        return jax.tree.map(lambda x: mean_existing(x.reshape(num, -1), exists), loss_and_metrics)
