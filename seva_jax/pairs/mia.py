"""MIA-DPO's pairs (arXiv 2410.17637): wrong answers of a model that looked at the wrong image.

What lives here: the choice of answers to keep. What does not: prompts about one of several images
(`seva_jax/data/composed.py`), and measuring attention (`seva_jax/inference/answer_stats.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, ClassVar

import numpy as np
from typing_extensions import override

from seva_jax.data.composed import target_of, without_noise
from seva_jax.data.sources import PromptSet
from seva_jax.images.compose import Box
from seva_jax.pairs.builders import Built, PairBuilder, sift
from seva_jax.pairs.model import AnswerStats, PairModel
from seva_jax.ranges import FROM_0, FROM_1, Range
from seva_jax.text.encode import clean_answer
from seva_jax.types import Comparison, DataError, Prompt, Rollout, View


@dataclasses.dataclass(frozen=True)
class AttentionLimit:
    """The largest share of attention on the target image, for one number of images.

    Attributes:
        num_images: number of images of the prompt.
        share: the limit, as a share of the attention to all images.
    """

    num_images: Annotated[int, FROM_1] = 2
    share: Annotated[float, Range(0, 1)] = 0.8


@dataclasses.dataclass(frozen=True)
class MiaPairs(PairBuilder):
    """Chosen is the known answer; rejected is the model's, if the model looked elsewhere.

    A wrong answer is kept if the model was unsure of it, that is if `exp(-mean log p of the
    likeliest tokens)` is above `min_perplexity`, and if little of its attention to images falls on
    the target image: at most the limit for a sequence, less than the limit for a grid or an inset.
    The answer and its attention are those to the image with noise, where `Composed` adds it; the
    pair is about the image without. The part of a grid that counts as its target is that of the
    square that the grid is padded to, padding included; where the model does not pad but cuts the
    image into tiles, it is the target's own part, in every tile. The defaults and these rules are
    those of the released code, but for tiles, which it lacks. The paper also names filters by the
    ratio of lengths and by edit distance, which the released code lacks; they are off.

    Attributes:
        layer: the layer whose attention is measured, from 0.
        max_truth: known answers must be shorter than this, in characters.
        min_perplexity: an answer must have a higher perplexity than this, see above.
        sequence: limits for sequences of images, one for each number of images.
        grid: limits for grids, one for each number of images.
        inset: limit for a picture in a picture.
        max_length_ratio: the largest ratio of the longer to the shorter answer, in characters; None
            allows any.
        min_edit_distance: the smallest edit distance of the two answers, in characters; None allows
            any.
    """

    uses_corruptions: ClassVar[bool] = False
    layer: Annotated[int, FROM_0] = 16
    max_truth: Annotated[int, FROM_1] = 512
    min_perplexity: Annotated[float, FROM_0] = 1.1
    sequence: tuple[AttentionLimit, ...] = (
        AttentionLimit(2, 0.8),
        AttentionLimit(3, 0.7),
        AttentionLimit(4, 0.6),
        AttentionLimit(5, 0.6),
    )
    grid: tuple[AttentionLimit, ...] = (
        AttentionLimit(2, 0.7),
        AttentionLimit(3, 0.6),
        AttentionLimit(4, 0.5),
        AttentionLimit(6, 0.4),
        AttentionLimit(9, 0.3),
    )
    inset: Annotated[float, Range(0, 1)] = 0.8
    max_length_ratio: float | None = None
    min_edit_distance: int | None = None

    @override
    def build(self, rollouts: Sequence[Rollout], data: PromptSet, model: PairModel) -> Built:
        pairs, drops = sift(map(self._pair, rollouts))
        views = [View(pair.prompt, pair.answers[1:]) for pair in pairs]
        targets = [_target(pair.prompt, model) for pair in pairs]
        all_stats = model.measure("attention", views, self.layer, targets)
        kept, dropped = sift(
            self._not_misled(pair.prompt, stats)
            or dataclasses.replace(pair, prompt=without_noise(pair.prompt))
            for pair, stats in zip(pairs, all_stats, strict=True)
        )
        return kept, drops + dropped

    def _pair(self, rollout: Rollout) -> Comparison | str:
        """Returns the known answer with the model's; or why the texts make no pair."""
        target_of(rollout.prompt)  # raises for a prompt of another kind
        truth = clean_answer(str(rollout.prompt.meta["answer"]))
        answer = clean_answer(rollout.clean)
        return self._unfit(truth, answer) or Comparison(rollout.prompt, (truth, answer))

    def _unfit(self, truth: str, answer: str) -> str:
        """Returns why the texts make no pair, or ""."""
        if not answer:
            return "empty answer"
        if answer == truth:
            return "right answer"
        if len(truth) >= self.max_truth:
            return "long ground truth"
        short, long = sorted((len(truth), len(answer)))
        if self.max_length_ratio is not None and long > self.max_length_ratio * short:
            return "lengths differ"
        fewest = self.min_edit_distance
        if fewest is not None and edit_distance(truth, answer) < fewest:
            return "similar answers"
        return ""

    def _not_misled(self, prompt: Prompt, stats: AnswerStats | None) -> str:
        """Returns why an answer is no hallucination from the wrong image, or ""."""
        if stats is None:
            return "unreadable answer or image"
        if not np.exp(-stats.best_logp_T.mean(dtype=np.float64)) > self.min_perplexity:
            return "low perplexity"
        arrangement, num, _, _ = target_of(prompt)
        if arrangement == "sequence":
            low = stats.attention <= self._limit("sequence", self.sequence, num)
        elif arrangement == "grid":
            low = stats.attention < self._limit("grid", self.grid, num)
        else:
            low = stats.attention < self.inset
        return "" if low else "attention on the target"

    def _limit(self, field: str, limits: tuple[AttentionLimit, ...], num: int) -> float:
        for limit in limits:
            if limit.num_images == num:
                return limit.share
        raise DataError(
            f"MiaPairs.{field} has no limit for {num} images; add AttentionLimit({num}, ...)"
        )


def _target(prompt: Prompt, model: PairModel) -> np.ndarray:
    """Returns which image tokens of a prompt show the target, bool [N]."""
    _, _, target, box = target_of(prompt)
    if box is None:
        return model.image_tokens(prompt, target)
    side = max(box.width, box.height)  # the place in the square is the same share of each side
    x, y = side / box.width, side / box.height
    left, right = round(box.left * x), round(box.right * x)
    top, bottom = round(box.top * y), round(box.bottom * y)
    return model.image_tokens(prompt, 0, Box(left, top, right, bottom, side, side))


def edit_distance(one: str, other: str) -> int:
    """Returns Levenshtein's distance: how many characters to insert, delete or replace.

    >>> edit_distance("kitten", "sitting")
    3
    """
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]
