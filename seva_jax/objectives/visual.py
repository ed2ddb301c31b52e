"""Objectives that compare answers to two images: Re-Align's rDPO and POVID's second stage.

Their comparisons have two trees: the chosen and the rejected answer to the image, and the chosen
answer again, to another image (`Comparison.more`). What does not live here: MMedPO's visual pairs,
whose rejected side is the chosen answer to a changed image; for them, plain `DPO` is enough.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from typing_extensions import override

from seva_jax.objectives.base import NOTHING, Metrics, Need
from seva_jax.objectives.margin import MarginObjective
from seva_jax.objectives.pairs import Pairs
from seva_jax.types import BranchLogps, Comparison, DataError


@dataclasses.dataclass(frozen=True)
class TwoImages(MarginObjective):
    """Base class: the branches are chosen, rejected, and chosen with another image.

    As in the releases of POVID and Re-Align, `rewards/chosen`, `rewards/rejected`,
    `rewards/margins`, `rewards/accuracies` and `logps/rejected` are those of the rejected answer
    to the same image. `rewards/image_rejected`, `rewards/image_margins`,
    `rewards/image_accuracies` and `logps/image_rejected` are those of the third branch (Re-Align
    calls them `imageless_...`, POVID reports none). `rewards/all_rejected` and
    `rewards/all_margins` are means over both, and `rewards/all_accuracies` is 1 where the chosen
    answer beats both.
    """

    @override
    def check(self, comparisons: Sequence[Comparison]) -> None:
        super().check(comparisons)
        for comparison in comparisons:
            again = [view.answers for view in comparison.more]
            if len(comparison.answers) != 2 or again != [comparison.answers[:1]]:
                raise DataError(
                    f"{type(self).__name__}: comparison {comparison.prompt.id!r} needs a chosen "
                    "and a rejected answer, and one more view with the chosen answer and another "
                    "image"
                )

    @override
    def pair_loss(self, pairs: Pairs) -> jax.Array:
        return jax.nn.softplus(-self.margin(pairs))

    @override
    def metrics(self, policy: BranchLogps, pairs: Pairs) -> Metrics:
        text, image, both = (
            super(TwoImages, self).metrics(policy, some)
            for some in (_columns(pairs, slice(0, 1)), _columns(pairs, slice(-1, None)), pairs)
        )
        of_image = {f"rewards/image_{x}": image[f"rewards/{x}"] for x in _OF_REJECTED}
        of_both = {f"rewards/all_{x}": both[f"rewards/{x}"] for x in _OF_REJECTED}
        return text | of_image | of_both | {"logps/image_rejected": image["logps/rejected"]}


_OF_REJECTED = ("rejected", "margins", "accuracies")


def _columns(pairs: Pairs, some: slice) -> Pairs:
    """Returns the pairs with some of the rejected answers."""
    by_pair = [name for name in pairs._fields if name.endswith("_NJ")]
    return pairs._replace(**{name: getattr(pairs, name)[:, some] for name in by_pair})


@dataclasses.dataclass(frozen=True)
class ReAlign(TwoImages):
    """rDPO: the chosen answer above the rejected one, and above itself with a retrieved image.

    `-log sigmoid(beta (D(y_w|x) - D(y_l|x))) - log sigmoid(beta (D(y_w|x) - D(y_w|x_ret)))`, D
    the log-ratio of policy and reference (Re-Align, arXiv 2502.13146).

    Attributes:
        form: "label" is the paper's formula, above. "top" is the released code: for the rejected
            answer and for the retrieved image, D is not that of the answer's tokens but, at each
            position, that of the likeliest other token (`best_other`). Policy and reference each
            choose their own.
    """

    form: Literal["label", "top"] = "label"

    @property
    @override
    def needs(self) -> frozenset[Need]:
        extra: frozenset[Need] = frozenset({"best_other"}) if self.form == "top" else NOTHING
        return super().needs | extra

    @property
    @override
    def computes_reference(self) -> bool:
        return self.form == "top"

    @override
    def pairs(self, policy: BranchLogps, reference: BranchLogps) -> Pairs:

        def scored(logps: BranchLogps) -> BranchLogps:
            if self.form == "label":
                return logps
            assert logps.best_other_NKT is not None, "the step gives what `needs` names"
            tokens = (logps.logp_NKT[:, :1], logps.best_other_NKT[:, 1:])
            return logps._replace(logp_NKT=jnp.concatenate(tokens, axis=1))

        return super().pairs(scored(policy), scored(reference))

    @override
    def loss(self, pairs: Pairs, weight_NJ: jax.Array) -> jax.Array:
        """Returns the sum of both terms, not their mean."""
        return (weight_NJ * self.pair_loss(pairs) * pairs.exists_NJ).sum(-1)


@dataclasses.dataclass(frozen=True)
class Inherent(TwoImages):
    """POVID's second stage: half against the rejected answer, half against the model's own error.

    `(DPO(y_w, y_l) + DPO(y_w, y_own)) / 2` (POVID, arXiv 2402.11411). The step computes y_own,
    which consists of the likeliest token at each position of y_w under a noised image (the
    comparison's other image; published: diffusion noise at t = 500). Its log-probs are those of
    these tokens at the same positions with the clean image (`last_argmax`). Policy and reference
    each choose their own tokens, without gradient.
    """

    @property
    @override
    def needs(self) -> frozenset[Need]:
        return super().needs | frozenset[Need]({"last_argmax"})

    @property
    @override
    def computes_reference(self) -> bool:
        return True

    @override
    def pairs(self, policy: BranchLogps, reference: BranchLogps) -> Pairs:

        def scored(logps: BranchLogps) -> BranchLogps:
            assert logps.last_argmax_NT is not None, "the step gives what `needs` names"
            return logps._replace(logp_NKT=logps.logp_NKT.at[:, -1].set(logps.last_argmax_NT))

        return super().pairs(scored(policy), scored(reference))
