"""Objectives with the image changed: Re-Align's rDPO and POVID's second stage.

Both have comparisons of two trees: chosen and rejected answer to the image, and the chosen answer
once more to another image (`Comparison.more`). What does not live here: MMedPO's pairs, whose
rejected side is the chosen answer to a changed image; they are a plain `DPO` of two trees.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from seva_jax.objectives.base import NOTHING, Metrics, Need
from seva_jax.objectives.margin import MarginObjective
from seva_jax.objectives.pairs import Pairs
from seva_jax.types import BranchLogps, Comparison, DataError


@dataclasses.dataclass(frozen=True)
class TwoImages(MarginObjective):
    """Base class: branches are chosen, rejected, and chosen with another image."""

    def check(self, comparisons: Sequence[Comparison]) -> None:
        """See `Objective.check`."""
        super().check(comparisons)
        for comparison in comparisons:
            again = [view.answers for view in comparison.more]
            if len(comparison.answers) != 2 or again != [comparison.answers[:1]]:
                raise DataError(
                    f"{type(self).__name__}: comparison {comparison.prompt.id!r} needs a chosen "
                    "and a rejected answer, and one more view with the chosen answer and another "
                    "image"
                )

    def pair_loss(self, pairs: Pairs) -> jax.Array:
        """See `PairObjective.pair_loss`."""
        return jax.nn.softplus(-self.margin(pairs))


@dataclasses.dataclass(frozen=True)
class ReAlign(TwoImages):
    """rDPO: the chosen answer above the rejected one, and above itself with a retrieved image.

    `-log sigmoid(beta (D(y_w|x) - D(y_l|x))) - log sigmoid(beta (D(y_w|x) - D(y_w|x_ret)))`, D
    the log-ratio of policy and reference (Re-Align, arXiv 2502.13146).

    Attributes:
        form: "label" is the paper's formula, above. "top" is the released code, in which D of the
            rejected answer and of the retrieved image is that of other tokens: at each position
            the likeliest token, or the second where the first is the answer's own. Policy and
            reference each choose theirs.
    """

    form: Literal["label", "top"] = "label"

    @property
    def needs(self) -> frozenset[Need]:
        """See `Objective.needs`."""
        extra: frozenset[Need] = frozenset({"best_other"}) if self.form == "top" else NOTHING
        return super().needs | extra

    @property
    def computes_reference(self) -> bool:
        """See `Objective.computes_reference`."""
        return self.form == "top"

    def pairs(self, policy: BranchLogps, reference: BranchLogps) -> Pairs:
        """See `PairObjective.pairs`."""

        def scored(logps: BranchLogps) -> BranchLogps:
            if self.form == "label":
                return logps
            assert logps.best_other_NKT is not None, "the step gives what `needs` names"
            tokens = (logps.logp_NKT[:, :1], logps.best_other_NKT[:, 1:])
            return logps._replace(logp_NKT=jnp.concatenate(tokens, axis=1))

        return super().pairs(scored(policy), scored(reference))

    def loss(self, pairs: Pairs, weight_NJ: jax.Array) -> jax.Array:
        """See `PairObjective.loss`; the sum of both terms."""
        return (weight_NJ * self.pair_loss(pairs) * pairs.exists_NJ).sum(-1)

    def metrics(self, policy: BranchLogps, pairs: Pairs) -> Metrics:
        """See `PairObjective.metrics`; and each term's own margin."""
        margin_NJ = self.beta * (pairs.chosen_ratio_NJ - pairs.rejected_ratio_NJ)
        own = {"rewards/text_margins": margin_NJ[:, 0], "rewards/image_margins": margin_NJ[:, -1]}
        return super().metrics(policy, pairs) | own


@dataclasses.dataclass(frozen=True)
class Inherent(TwoImages):
    """POVID's second stage: half against the rejected answer, half against the model's own error.

    `(DPO(y_w, y_l) + DPO(y_w, y_own)) / 2`. The own negative is found in the step: y_w is read
    with a noised image (diffusion noise at t = 500, the other image of the comparison), at each
    position the likeliest token is taken, and its log-prob at the same position with the clean
    image is what counts (POVID, arXiv 2402.11411). Policy and reference each take theirs. The
    tokens are chosen without gradient.
    """

    @property
    def needs(self) -> frozenset[Need]:
        """See `Objective.needs`."""
        return super().needs | frozenset[Need]({"last_argmax"})

    @property
    def computes_reference(self) -> bool:
        """See `Objective.computes_reference`."""
        return True

    def pairs(self, policy: BranchLogps, reference: BranchLogps) -> Pairs:
        """See `PairObjective.pairs`."""

        def scored(logps: BranchLogps) -> BranchLogps:
            assert logps.last_argmax_NT is not None, "the step gives what `needs` names"
            return logps._replace(logp_NKT=logps.logp_NKT.at[:, -1].set(logps.last_argmax_NT))

        return super().pairs(scored(policy), scored(reference))
