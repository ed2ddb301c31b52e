"""Re-Align's pairs: a chosen answer refilled in view of a similar image, and that image itself.

What lives here: `nearest`, the search for the most similar other image, and `RetrievedPairs`. What
does not: features of images (`seva_jax/run/recorded_model.py`), the completion of sentences (`rewrite.py`), the
objective (`seva_jax/objectives/visual.py`).
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar, Literal, NamedTuple

import numpy as np
from typing_extensions import override

from seva_jax.data.sources import PromptSet
from seva_jax.pairs.builders import PairBuilder
from seva_jax.pairs.model import PairModel
from seva_jax.pairs.rewrite import Draft, generator, rewrite, split
from seva_jax.ranges import FROM_1, Range
from seva_jax.runtime.processes import say
from seva_jax.text.encode import clean_answer
from seva_jax.text.sampling import Sampling
from seva_jax.types import Comparison, ExampleError, Prompt, Rollout, View

_SAME = 0.999  # cosine above which two images are looked at: they may be one


class Nearest(NamedTuple):
    """The most similar other image of each image. N images.

    Attributes:
        index_N: its number, -1 where there is none.
        cosine_N: float32, how similar it is.
    """

    index_N: np.ndarray
    cosine_N: np.ndarray


def nearest(
    features_ND: np.ndarray, rows: np.ndarray, group_N: np.ndarray, block: int = 2048
) -> Nearest:
    """The most similar image of another group, for some images.

    Costs N multiplications of length D for each row, and memory for `block` squared cosines.

    Args:
        features_ND: float32, each of length 1; a row of zeros is no image and never found.
        rows: the images that ask.
        group_N: int, images of one group are not found for each other.
        block: how many images are compared with how many at a time.

    Returns:
        For every row; of equally similar images the first.
    """
    index = np.full(len(rows), -1)
    cosine = np.full(len(rows), -np.inf, np.float32)
    is_image_N = np.asarray(features_ND.any(axis=1))
    for first in range(0, len(rows), block):
        asking = rows[first : first + block]
        best, at = cosine[first : first + block], index[first : first + block]  # views
        for start in range(0, len(features_ND), block):
            others = slice(start, start + block)
            cosines = features_ND[asking] @ features_ND[others].T
            allowed = np.not_equal.outer(group_N[asking], group_N[others])
            allowed &= np.logical_and.outer(is_image_N[asking], is_image_N[others])
            cosines[~allowed] = -np.inf
            found = cosines.argmax(axis=1)
            value = cosines[np.arange(len(asking)), found]
            better = value > best
            at[better], best[better] = start + found[better], value[better]
    return Nearest(index, cosine)


def nearest_other(
    features_ND: np.ndarray, same_image: Callable[[int, int], bool], block: int = 2048
) -> tuple[Nearest, np.ndarray]:
    """`nearest` of all images, where one image under several names is never its own neighbour.

    Args:
        features_ND: see `nearest`.
        same_image: whether two images have equal content; asked only of very similar ones.
        block: see `nearest`.

    Returns:
        The neighbours, and for every image how many others have its content, int [N].
    """
    group_N = np.arange(len(features_ND))
    found = nearest(features_ND, group_N, group_N, block)
    rows = np.flatnonzero(found.cosine_N > _SAME)
    while len(rows):
        joined = set[int]()
        for i in rows:
            j = found.index_N[i]
            if group_N[i] != group_N[j] and same_image(int(i), int(j)):
                group_N[group_N == group_N[j]] = group_N[i]
            if group_N[i] == group_N[j]:
                joined.add(group_N[i])
        rows = np.flatnonzero(np.isin(group_N, list(joined)))
        again = nearest(features_ND, rows, group_N, block)
        found.index_N[rows], found.cosine_N[rows] = again
        rows = rows[again.cosine_N > _SAME]
    return found, np.bincount(group_N, minlength=len(group_N))[group_N] - 1


@dataclasses.dataclass(frozen=True)
class RetrievedPairs(PairBuilder):
    """Rejected is the chosen answer with parts refilled while the model sees a similar image.

    The similar image is the nearest of the run's other images by the cosine of their features under
    the frozen vision tower. It is also the second view that `ReAlign` compares with (Re-Align,
    arXiv 2502.13146). The paper has segments masked that name objects, attributes or relations; no
    model finds them here: some sentences, drawn by seed and prompt id, keep their first words, and
    what follows up to their end is written anew.

    Only prompts with one image are used. Images of equal content are never retrieved for each
    other; their number is printed. The second view's `meta` says how similar its image is
    ("cosine") and how many others have the first image's content ("copies").

    Attributes:
        chosen: "rollout" is the model's answer to the image; "answer" is `meta["answer"]` of the
            prompt, where the source has it. Rollouts are made, and not used, for the latter.
        rate: share of the sentences that are masked, rounded up.
        keep: share of the words of a masked sentence that stay at its beginning, rounded down.
        separator: what stands between sentences; empty for full stops, see `rewrite.split`.
        sampling: how sentences are refilled.
        block: see `nearest`.
    """

    uses_corruptions: ClassVar[bool] = False
    chosen: Literal["rollout", "answer"] = "rollout"
    rate: Annotated[float, Range(0, 1, above=True)] = 0.5
    keep: Annotated[float, Range(0, 1, below=True)] = 0.5
    separator: str = ""
    sampling: Sampling = Sampling(max_new_tokens=64)
    block: Annotated[int, FROM_1] = 2048

    @override
    def build(
        self, rollouts: Sequence[Rollout], data: PromptSet, model: PairModel
    ) -> tuple[list[Comparison], collections.Counter[str]]:
        drops: collections.Counter[str] = collections.Counter()
        kept: list[tuple[Prompt, str]] = []
        for rollout in rollouts:
            text = rollout.clean
            if self.chosen == "answer":
                text = str(rollout.prompt.meta.get("answer", ""))
            answer = clean_answer(text)
            if len(rollout.prompt.images) != 1:
                drops["not one image"] += 1
            elif not answer:
                drops["empty chosen answer"] += 1
            else:
                kept.append((rollout.prompt, answer))
        found: list[tuple[Prompt, str, Prompt]] = []
        views = self._similar([prompt for prompt, _ in kept], data, model)
        for (prompt, answer), view in zip(kept, views, strict=True):
            if isinstance(view, str):
                drops[view] += 1
            else:
                found.append((prompt, answer, view))
        drafts = [self._draft(view, answer, model.seed) for _, answer, view in found]
        replies = rewrite("refill", drafts, model, self.sampling, self.separator)
        comparisons = []
        for (prompt, answer, view), reply in zip(found, replies, strict=True):
            if reason := reply.dropped or ("equal answers" if reply.text == answer else ""):
                drops[reason] += 1
                continue
            again = View(view, (answer,))
            comparisons.append(Comparison(prompt, (answer, reply.text), more=(again,)))
        return comparisons, drops

    def _similar(
        self, prompts: Sequence[Prompt], data: PromptSet, model: PairModel
    ) -> list[Prompt | str]:
        """Each prompt with the most similar other image instead of its own; or why not."""
        names = list(dict.fromkeys(prompt.images[0] for prompt in prompts))

        def same_image(i: int, j: int) -> bool:
            try:
                return np.array_equal(data.load_image(names[i]), data.load_image(names[j]))
            except ExampleError:
                return False

        features_ND = model.features("images", names)
        found, copies_N = nearest_other(features_ND, same_image, self.block)
        if num_copies := int((copies_N > 0).sum()):
            say(f"{num_copies:,} of {len(names):,} images are one picture under several names")
        number = {name: i for i, name in enumerate(names)}
        similar: list[Prompt | str] = []
        for prompt in prompts:
            i = number[prompt.images[0]]
            j = int(found.index_N[i])
            about = {"cosine": round(float(found.cosine_N[i]), 4), "copies": int(copies_N[i])}
            if j >= 0:
                again = dataclasses.replace(prompt, images=(names[j],), meta=prompt.meta | about)
                similar.append(again)
            else:
                similar.append("no other image" if features_ND[i].any() else "unreadable image")
        return similar

    def _draft(self, prompt: Prompt, answer: str, seed: int) -> Draft:
        """Which sentences are masked, and what of them stays."""
        parts = split(answer, self.separator)
        num = len(parts) // 2 + 1
        rng = generator(seed, "refill", prompt.id)
        places = sorted(rng.permutation(num)[: int(np.ceil(self.rate * num))].tolist())
        return Draft(prompt, parts, {place: self._lead(parts[2 * place]) for place in places})

    def _lead(self, sentence: str) -> str:
        words = sentence.split()
        return " ".join(words[: int(self.keep * len(words))])
