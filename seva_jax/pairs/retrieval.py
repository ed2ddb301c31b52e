"""Re-Align's pairs: the chosen answer with parts rewritten for a similar image, and that image.

What lives here: `nearest`, the search for the most similar other image, and `RetrievedPairs`. What
does not: features of images (`seva_jax/inference/features.py`), rewriting sentences (`rewrite.py`),
the objective (`seva_jax/objectives/visual.py`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, ClassVar, Literal, NamedTuple

import numpy as np
from typing_extensions import override

from seva_jax.data.sources import PromptSet, generator
from seva_jax.pairs.builders import Built, PairBuilder, sift
from seva_jax.pairs.model import PairModel
from seva_jax.pairs.rewrite import Draft, rewritten, split
from seva_jax.ranges import FROM_1, Range
from seva_jax.runtime.processes import say
from seva_jax.text.encode import clean_answer
from seva_jax.text.sampling import Sampling
from seva_jax.types import Comparison, ExampleError, Prompt, Rollout, View

_SAME = 0.999  # cosine above which the contents of two images are compared: they may be copies
# Numbers this close count as equal: the last bits of a cosine depend on the CPU and the block, and
# 0.28 * 25 is slightly above 7.
_ROUNDING = 1e-6


class Nearest(NamedTuple):
    """The most similar other image of each image. N images.

    Attributes:
        index_N: index of that image, -1 if there is none.
        cosine_N: float32, cosine of the features of both.
    """

    index_N: np.ndarray
    cosine_N: np.ndarray


def nearest(
    features_NE: np.ndarray, rows: np.ndarray, group_N: np.ndarray, block: int = 2048
) -> Nearest:
    """Returns the most similar image of another group, for some images.

    Each row costs two passes of N dot products of length E: one for the greatest cosine, one for
    the first image within 1e-6 of it, so that rounding does not choose between equal images.
    Memory holds `block` squared cosines.

    Args:
        features_NE: float32, each of length 1; a row of zeros is no image and is never returned.
        rows: indices of the images to find neighbours of.
        group_N: int; images of the same group are not neighbours.
        block: number of images on each side of one matrix product.

    Returns:
        One neighbour for every row; the first of equally similar images.
    """
    index = np.full(len(rows), -1)
    cosine = np.full(len(rows), -np.inf, np.float32)
    is_image_N = np.asarray(features_NE.any(axis=1))

    def cosines_of(queries: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        for start in range(0, len(features_NE), block):
            others = slice(start, start + block)
            cosines = features_NE[queries] @ features_NE[others].T
            allowed = np.not_equal.outer(group_N[queries], group_N[others])
            allowed &= np.logical_and.outer(is_image_N[queries], is_image_N[others])
            cosines[~allowed] = -np.inf
            yield start, cosines

    for first in range(0, len(rows), block):
        queries = rows[first : first + block]
        best, at = cosine[first : first + block], index[first : first + block]  # views
        for _, cosines in cosines_of(queries):
            np.maximum(best, cosines.max(axis=1), out=best)
        for start, cosines in cosines_of(queries):
            equal = (cosines >= best[:, None] - _ROUNDING) & (cosines > -np.inf)
            new = equal.any(axis=1) & (at < 0)
            at[new] = start + equal[new].argmax(axis=1)
    return Nearest(index, cosine)


def nearest_other(
    features_NE: np.ndarray, same_image: Callable[[int, int], bool], block: int = 2048
) -> tuple[Nearest, np.ndarray]:
    """Returns `nearest` of all images, where copies of an image are not its neighbours.

    Args:
        features_NE: see `nearest`.
        same_image: whether two images have equal content; called only for very similar ones.
        block: see `nearest`.

    Returns:
        The neighbours, and for every image the number of other images of equal content, int [N].
    """
    group_N = np.arange(len(features_NE))
    neighbours = nearest(features_NE, group_N, group_N, block)
    rows = np.flatnonzero(neighbours.cosine_N > _SAME)
    while len(rows):
        joined = set[int]()
        for i in rows:
            j = neighbours.index_N[i]
            if group_N[i] != group_N[j] and same_image(int(i), int(j)):
                group_N[group_N == group_N[j]] = group_N[i]
            if group_N[i] == group_N[j]:
                joined.add(group_N[i])
        rows = np.flatnonzero(np.isin(group_N, list(joined)))
        again = nearest(features_NE, rows, group_N, block)
        neighbours.index_N[rows], neighbours.cosine_N[rows] = again
        rows = rows[again.cosine_N > _SAME]
    return neighbours, np.bincount(group_N, minlength=len(group_N))[group_N] - 1


@dataclasses.dataclass(frozen=True)
class RetrievedPairs(PairBuilder):
    """Rejected is the chosen answer with parts rewritten while the model sees a similar image.

    The similar image is the nearest of all other images of the prompts, by the cosine of their
    features under the frozen vision tower. It is also the second view that `ReAlign` compares with
    (Re-Align, arXiv 2502.13146). The paper masks segments that name objects, attributes or
    relations. Here no model finds such segments: some sentences, drawn by seed and prompt id, keep
    their first words, and the model writes the rest.

    Only prompts with one image are used. Images of equal content are never retrieved for each
    other; their number is printed. The second view's `meta` has the similarity of its image
    ("cosine") and the number of copies of the first image ("copies").

    Attributes:
        chosen: "rollout" is the model's answer to the image; "answer" is the known answer, which
            the source has put into the prompt's `meta["answer"]`. Rollouts are then made, but not
            used.
        rate: share of the sentences that are masked, rounded up.
        keep: share of the words of a masked sentence that stay at its beginning, rounded down.
        separator: separates sentences; empty for the rule of full stops, see `rewrite.split`.
        sampling: how the model rewrites sentences.
        block: how many images are compared with how many at a time; larger takes more memory.
    """

    uses_corruptions: ClassVar[bool] = False
    chosen: Literal["rollout", "answer"] = "rollout"
    rate: Annotated[float, Range(0, 1, above=True)] = 0.5
    keep: Annotated[float, Range(0, 1, below=True)] = 0.5
    separator: str = ""
    sampling: Sampling = Sampling(max_new_tokens=64)
    block: Annotated[int, FROM_1] = 2048

    @override
    def build(self, rollouts: Sequence[Rollout], data: PromptSet, model: PairModel) -> Built:
        usable, drops = sift(map(self._chosen, rollouts))
        chosen, without_other = sift(self._drafts(usable, data, model))
        pairs = rewritten("refill", chosen, model, self.sampling, self.separator)
        comparisons, dropped = sift(pairs)
        return comparisons, drops + without_other + dropped

    def _chosen(self, rollout: Rollout) -> Comparison | str:
        """Returns a comparison with the chosen answer only; or why there is none."""
        if len(rollout.prompt.images) != 1:
            return "not one image"
        known = str(rollout.prompt.meta.get("answer", ""))
        answer = clean_answer(known if self.chosen == "answer" else rollout.clean)
        return Comparison(rollout.prompt, (answer,)) if answer else "empty chosen answer"

    def _drafts(
        self, pairs: Sequence[Comparison], data: PromptSet, model: PairModel
    ) -> Iterator[tuple[Comparison, Draft] | str]:
        """Yields each pair with its answer to the most similar other image, and a draft of it.

        Where there is no such image, yields the reason.
        """
        names = list(dict.fromkeys(pair.prompt.images[0] for pair in pairs))

        def same_image(i: int, j: int) -> bool:
            try:
                return np.array_equal(data.load_image(names[i]), data.load_image(names[j]))
            except ExampleError:
                return False

        features_NE = model.features("images", names)
        neighbours, copies_N = nearest_other(features_NE, same_image, self.block)
        if num_copies := int((copies_N > 0).sum()):
            say(f"{num_copies:,} of {len(names):,} images are one picture under several names")
        number = {name: i for i, name in enumerate(names)}
        for pair in pairs:
            i = number[pair.prompt.images[0]]
            j = int(neighbours.index_N[i])
            if j < 0:
                yield "no other image" if features_NE[i].any() else "unreadable image"
                continue
            cosine = round(float(neighbours.cosine_N[i]), 4)
            meta = pair.prompt.meta | {"cosine": cosine, "copies": int(copies_N[i])}
            other = dataclasses.replace(pair.prompt, images=(names[j],), meta=meta)
            draft = self._draft(other, pair.answers[0], model.seed)
            yield dataclasses.replace(pair, more=(View(other, pair.answers),)), draft

    def _draft(self, prompt: Prompt, answer: str, seed: int) -> Draft:
        """Draws the sentences to mask, and keeps the first words of each."""
        parts = split(answer, self.separator)
        num = len(parts) // 2 + 1
        rng = generator(seed, "refill", prompt.id)
        num_masked = max(math.ceil(self.rate * num - _ROUNDING), 1)
        places = sorted(rng.permutation(num)[:num_masked].tolist())
        return Draft(prompt, parts, {place: self._lead(parts[2 * place]) for place in places})

    def _lead(self, sentence: str) -> str:
        words = sentence.split()
        return " ".join(words[: int(self.keep * len(words) + _ROUNDING)])
