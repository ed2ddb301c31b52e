"""Several sources as one: concatenated, or mixed by weights.

Ids and image names get the number of their source and "/" in front, so that equal names in
different sources remain distinct. Either all sources have prompts, or all have pairs.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from typing_extensions import override

from seva_jax.data.sources import PreferenceSet, PromptSet, PromptSource
from seva_jax.ranges import FROM_0
from seva_jax.types import DataError, Prompt, Size, View


@dataclasses.dataclass(frozen=True)
class _Several:
    """Several sources.

    Attributes:
        sources: the sources; all must be readable.
    """

    sources: tuple[PromptSource, ...] = ()

    @property
    def has_answers(self) -> bool:
        """Whether all sources have answers."""
        return bool(self.sources) and all(source.has_answers for source in self.sources)

    def _open_all(self) -> list[PromptSet]:
        name = type(self).__name__
        if not self.sources:
            raise DataError(f"{name}.sources is empty; give at least one source")
        if len({source.has_answers for source in self.sources}) > 1:
            kinds = ", ".join(type(s).__name__ + " (pairs)" * s.has_answers for s in self.sources)
            raise DataError(
                f"{name}.sources has both prompts and pairs ({kinds}); prompts are answered by the "
                "model first, so make two runs"
            )
        return [source.open() for source in self.sources]


@dataclasses.dataclass(frozen=True)
class Concatenated(_Several, PromptSource):
    """Several sources, one after the other."""

    @override
    def open(self) -> PromptSet:
        opened = self._open_all()
        order = [(n, i) for n, part in enumerate(opened) for i in range(len(part.prompts))]
        return _joined(opened, order)


@dataclasses.dataclass(frozen=True)
class Mixture(_Several, PromptSource):
    """Several sources in given shares, spread evenly over the examples.

    The examples of each source are drawn at random, each at most once. The same sources, weights,
    number and seed give the same examples in the same order.

    Attributes:
        weights: one for each source, above 0; the share of a source is its weight over their sum.
        num: number of examples; 0 means as many as the shares allow before a source runs out.
        seed: seed of the draw.
    """

    weights: tuple[float, ...] = ()
    num: Annotated[int, FROM_0] = 0
    seed: Annotated[int, FROM_0] = 0

    @override
    def open(self) -> PromptSet:
        weights = np.asarray(self.weights, float)
        if len(weights) != len(self.sources) or not (np.isfinite(weights) & (weights > 0)).all():
            raise DataError(
                f"Mixture.weights {self.weights} must be one number above 0 for each of "
                f"{len(self.sources)} sources; leave out a source you do not want"
            )
        if self.num < 0:
            raise DataError(f"Mixture.num must be 0 (all) or more, not {self.num}")
        opened = self._open_all()
        sizes = [len(part.prompts) for part in opened]
        rng = np.random.default_rng(self.seed)
        drawn = [rng.permutation(size).tolist() for size in sizes]
        order: list[tuple[int, int]] = []
        taken = np.zeros(len(sizes), int)
        while not self.num or len(order) < self.num:
            # The source that would be furthest behind its share after one more example.
            number = int(np.argmax(weights / weights.sum() * (len(order) + 1) - taken))
            if taken[number] == sizes[number]:
                if self.num:
                    raise DataError(
                        f"Mixture.num {self.num} needs more examples of source {number} than its "
                        f"{sizes[number]}; lower num or its weight, or set num 0"
                    )
                break
            order.append((number, drawn[number][taken[number]]))
            taken[number] += 1
        return _joined(opened, order)


def _joined(opened: Sequence[PromptSet], order: Sequence[tuple[int, int]]) -> PromptSet:
    """Returns examples of several sets, chosen by the number of the set and the index in it."""

    def renamed(prompt: Prompt, number: int) -> Prompt:
        images = tuple(f"{number}/{name}" for name in prompt.images)
        return dataclasses.replace(prompt, id=f"{number}/{prompt.id}", images=images)

    def load_image(name: str) -> np.ndarray:
        number, _, rest = name.partition("/")
        return opened[int(number)].load_image(rest)

    def read_size(name: str) -> Size:
        number, _, rest = name.partition("/")
        return opened[int(number)].image_size(rest)

    def read_image(name: str) -> bytes:
        number, _, rest = name.partition("/")
        read = opened[int(number)].read_image
        assert read is not None  # otherwise this function is not used
        return read(rest)

    prompts = [renamed(opened[number].prompts[i], number) for number, i in order]
    drops = sum((part.drops for part in opened), collections.Counter())
    stored = all(part.read_image for part in opened)
    fields: dict[str, Any] = {
        "read_image": read_image if stored else None,
        "left_out": [f"{number}/{x}" for number, part in enumerate(opened) for x in part.left_out],
        "notes": sum((part.notes for part in opened), collections.Counter()),
        "remote": any(part.remote for part in opened),
        "read_size": read_size,
    }
    pairs = [part for part in opened if isinstance(part, PreferenceSet)]
    if not pairs:
        return PromptSet(prompts, load_image, drops, **fields)
    comparisons = []
    for (number, i), prompt in zip(order, prompts, strict=True):
        pair = pairs[number].comparisons[i]
        more = tuple(View(renamed(v.prompt, number), v.answers) for v in pair.more)
        comparisons.append(dataclasses.replace(pair, prompt=prompt, more=more))
    return PreferenceSet(prompts, load_image, drops, comparisons=comparisons, **fields)
