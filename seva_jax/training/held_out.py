"""Pairs that are never trained on: their loss at intervals, the best step, early stopping.

What lives here: which pairs these are, when they are evaluated, what follows for training, and the
record of it in the work directory. What does not: evaluating them (`evaluation.py`), where
checkpoints are kept (`checkpoint.py`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seva_jax.runtime.files import read_json
from seva_jax.training.options import TrainOptions
from seva_jax.types import Comparison, DataError

STAGE = "held-out"  # of the rows of metrics
RECORD = "held_out.json"  # in the work directory


def split_by_image(
    comparisons: Sequence[Comparison], fraction: float, seed: int
) -> tuple[list[int], list[int]]:
    """Returns the indices of the pairs to train on, and of those that are held out.

    Pairs that share an image, by its name, or have a prompt of the same id stay together. Groups
    are drawn by a hash of the seed and their names, so the choice does not depend on the order of
    the pairs. Of the drawn groups, those count that still fit into the fraction.

    Args:
        comparisons: the pairs.
        fraction: share of the pairs that is held out, rounded to whole pairs, at least one; 0 holds
            out none.
        seed: seed of the draw.

    Raises:
        DataError: there is no group small enough, or no pair would be left to train on.
    """
    everything = list(range(len(comparisons)))
    if not fraction:
        return everything, []
    groups = _groups(
        [{("id", c.prompt.id), *(("image", i) for i in c.images)} for c in comparisons]
    )
    wanted = max(round(fraction * len(comparisons)), 1)

    def drawn(name: tuple[str, str]) -> str:
        return hashlib.sha256(f"{seed} {name[0]} {name[1]}".encode()).hexdigest()

    held: list[int] = []
    for name in sorted(groups, key=drawn):
        if len(held) + len(groups[name]) <= wanted:
            held += groups[name]
    if not held or len(held) == len(comparisons):
        smallest = min(map(len, groups.values()), default=0)
        raise DataError(
            f"train.eval_fraction {fraction:g} of {len(comparisons):,} pairs is {wanted:,}, but "
            f"pairs that share an image stay together: there are {len(groups):,} such groups, the "
            f"smallest of {smallest:,}; set another fraction, or 0 to train on all pairs"
        )
    return sorted(set(everything) - set(held)), sorted(held)


def _groups(keys: Sequence[set[tuple[str, str]]]) -> dict[tuple[str, str], list[int]]:
    """Returns the members of the groups that common keys join, by each group's smallest key."""
    parent: dict[tuple[str, str], tuple[str, str]] = {}

    def root(key: tuple[str, str]) -> tuple[str, str]:
        while parent.setdefault(key, key) != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for several in keys:
        roots = {root(key) for key in several}
        parent |= dict.fromkeys(roots, min(roots))
    groups = defaultdict(list)
    for index, several in enumerate(keys):
        groups[root(min(several))].append(index)
    return groups


@dataclasses.dataclass(frozen=True)
class Watch:
    """What the losses of held-out pairs say so far.

    Attributes:
        options: when to evaluate, and when to stop.
        steps: planned optimiser steps.
        ends: steps at which a pass over the training pairs ends.
        values: evaluated steps and their losses, in order. Step 0 is before training.
        first: the step after which this training began: 0, or the last step of the training that
            it continues, of whose checkpoints there is no copy.
    """

    options: TrainOptions
    steps: int
    ends: frozenset[int]
    values: tuple[tuple[int, float], ...] = ()
    first: int = 0

    @classmethod
    def of(
        cls, options: TrainOptions, steps: int, num: int, done: tuple[int, int] = (0, 0)
    ) -> Watch:
        """Returns the watch of a training that has not begun.

        Args:
            options: see the attribute.
            steps: see the attribute.
            num: pairs that are trained on.
            done: of a training that is continued, the last step and the pairs trained on by then.
        """
        in_a_pass, (first, begin) = num * options.repeat, done
        passes = (number * in_a_pass - begin for number in range(1, options.epochs + 1))
        ends = (first - (-pairs // options.batch_size) for pairs in passes if pairs > 0)
        return cls(options, steps, frozenset(ends), first=first)

    def due(self, step: int) -> bool:
        """Returns whether held-out pairs are to be evaluated after a step, and were not yet."""
        if self.values and self.values[-1][0] >= step:
            return False
        every = self.options.eval_every
        regular = step % every == 0 if every else step in self.ends
        return regular or step in (0, self.steps)

    def saw(self, step: int, loss: float) -> Watch:
        """Returns the watch after an evaluation."""
        return dataclasses.replace(self, values=(*self.values, (step, loss)))

    @property
    def best(self) -> int | None:
        """The step with the lowest loss, the first of equals; None before any.

        Steps up to `first` do not count, as they have no checkpoint here; nor does a loss that is
        not finite.
        """
        trained = [
            (loss, step) for step, loss in self.values if step > self.first and math.isfinite(loss)
        ]
        return min(trained)[1] if trained else None

    @property
    def exhausted(self) -> bool:
        """Whether as many evaluations as `train.patience` brought no lower loss."""
        since = [step for step, _ in self.values if step > (self.best or self.first)]
        return 0 < self.options.patience <= len(since)

    def result(self, pairs: int) -> HeldOutResult:
        """Returns what is recorded when training has ended.

        Args:
            pairs: number of held-out pairs.
        """
        losses, best = dict(self.values), self.best
        last = self.values[-1][0]
        kept = last if best is None or self.options.keep == "last" else best
        return HeldOutResult(
            pairs, self.steps, losses.get(0), last, losses[last], best,
            None if best is None else losses[best], kept,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class HeldOutResult:
    """What held-out pairs said about a finished training, as `held_out.json` has it.

    Attributes:
        pairs: number of held-out pairs.
        steps: planned optimiser steps.
        start_loss: their loss before training.
        last_step: the last step; below `steps` if training stopped early.
        last_loss: their loss after it.
        best_step: the step after which the loss was lowest; None if it never was finite.
        best_loss: the loss after it.
        kept_step: the step whose model is the aligned one, see `TrainOptions.keep`.
    """

    pairs: int
    steps: int
    start_loss: float | None
    last_step: int
    last_loss: float
    best_step: int | None
    best_loss: float | None
    kept_step: int

    def __str__(self) -> str:
        at = f" at step {self.last_step}, where training stopped early"
        last = f"last {self.last_loss:.3g}" + at * (self.last_step < self.steps)
        if self.best_step is None:
            return f"held-out loss never finite; {last}"
        text = f"best at step {self.best_step} of {self.steps}, held-out loss {self.best_loss:.3g}"
        text += f"; {last}"
        if self.start_loss is not None:
            text += f"; {self.start_loss:.3g} before training"
        return text + "; the best is the aligned model" * (self.kept_step != self.last_step)


def read_held_out(workdir: Path) -> HeldOutResult:
    """Returns the record of a finished training that held out pairs.

    Raises:
        DataError: it is missing or damaged.
    """
    path = workdir / RECORD
    with contextlib.suppress(TypeError):
        if path.exists():
            return HeldOutResult(**read_json(path))
    raise DataError(
        f"{path} is missing or damaged; put it back, or remove 'align' from stages.json and run "
        "seva_jax.train again, which writes it from the checkpoints"
    )


def weighted_means(batches: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Returns the means of metrics over the comparisons of all batches, and their number, "pairs".

    Args:
        batches: what `TrainStep.evaluate` returned, on the host.

    Raises:
        DataError: no comparison has a weight above 0 and an image that decodes.
    """
    weights = np.array([float(batch["weight"]) for batch in batches])
    if not weights.sum():
        raise DataError(
            "none of the held-out pairs can be evaluated: their weights are 0 or their images "
            "unreadable; look at them, or set another --train.eval-fraction"
        )
    used = [batch for batch in batches if batch["weight"]]
    means = {
        name: float(
            np.average([float(batch[name]) for batch in used], weights=weights[weights > 0])
        )
        for name in batches[0]
        if name not in ("weight", "pairs")
    }
    return means | {"pairs": float(sum(int(batch["pairs"]) for batch in batches))}
