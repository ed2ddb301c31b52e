"""Comparisons as token ids, encoded once for the whole run.

What lives here: which comparisons fit the model, and their ids. What does not: text to tokens
(`seva_jax/text/encode.py`), rows and batches (`pipeline.py`, read next).
"""

from __future__ import annotations

import array
import collections
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from typing_extensions import override

from seva_jax.batches.packing import Sizes
from seva_jax.batches.trees import RowShape, rounded
from seva_jax.text import EncodedTree, Encoder
from seva_jax.types import Comparison, ExampleError


class ImageTokens(NamedTuple):
    """What a row needs to know about the tokens of a model.

    Attributes:
        image_token_id: the id that holds the place of image features.
        tokens_per_image: how many of them an image takes.
        pad_id: the id for places that hold nothing.
    """

    image_token_id: int
    tokens_per_image: int
    pad_id: int

    @classmethod
    def of(cls, encoder: Encoder) -> ImageTokens:
        """Returns those of an encoder."""
        return cls(encoder.image_token_id, encoder.tokens_per_image, encoder.pad_id)

    def collapse(self, trunk: np.ndarray) -> np.ndarray:
        """Returns a trunk with one image token for each image, which is what memory keeps."""
        is_image = trunk == self.image_token_id
        return trunk[~is_image | (np.cumsum(is_image) % self.tokens_per_image == 0)]

    def expand(self, collapsed: np.ndarray) -> np.ndarray:
        """Inverts `collapse`."""
        counts = np.where(collapsed == self.image_token_id, self.tokens_per_image, 1)
        return np.repeat(collapsed, counts)


@dataclasses.dataclass(frozen=True)
class EncodedComparison:
    """One comparison and the ids of its trees.

    Attributes:
        comparison: the comparison.
        trees: for each of its views, the trunk as `ImageTokens.collapse` leaves it, and the
            branches: int32.
        spans: for each answer, 1 at tokens inside marked phrases; None where none are marked.
    """

    comparison: Comparison
    trees: tuple[tuple[np.ndarray, tuple[np.ndarray, ...]], ...]
    spans: tuple[np.ndarray, ...] | None


class _Ids(NamedTuple):
    """Arrays of token ids, one after another: an object for each would take more than its ids.

    Attributes:
        flat: all ids, uint16 or int32.
        bounds: int64, where each array begins, and where the last one ends.
    """

    flat: np.ndarray
    bounds: np.ndarray

    def array(self, number: int) -> np.ndarray:
        """Returns one of the arrays, int32."""
        first, last = self.bounds[number : number + 2]
        return self.flat[first:last].astype(np.int32)


class EncodedList(Sequence[EncodedComparison]):
    """Comparisons with their token ids, which are kept in one flat array.

    Args:
        comparisons: the comparisons.
        ids: trunk and branches of every tree, tree by tree.
        firsts: for each comparison, the number of its first array in `ids`.
        spans: see `EncodedComparison`, for those that have some.
    """

    def __init__(
        self,
        comparisons: list[Comparison],
        ids: _Ids,
        firsts: np.ndarray,
        spans: dict[int, tuple[np.ndarray, ...]],
    ) -> None:
        self.comparisons = comparisons
        self._ids, self._firsts, self._spans = ids, firsts, spans

    @override
    def __len__(self) -> int:
        return len(self.comparisons)

    @override
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.select(range(*index.indices(len(self))))
        index = range(len(self))[index]
        comparison, at = self.comparisons[index], int(self._firsts[index])
        trees = []
        for view in comparison.views:
            trunk, *branches = map(self._ids.array, range(at, at + 1 + len(view.answers)))
            trees.append((trunk, tuple(branches)))
            at += 1 + len(branches)
        return EncodedComparison(comparison, tuple(trees), self._spans.get(index))

    def select(self, indices: Sequence[int]) -> EncodedList:
        """Returns some of the comparisons; the ids are not copied."""
        spans = {new: self._spans[old] for new, old in enumerate(indices) if old in self._spans}
        chosen = [self.comparisons[i] for i in indices]
        return EncodedList(chosen, self._ids, self._firsts[list(indices)], spans)


@dataclasses.dataclass(frozen=True)
class EncodedComparisons:
    """The comparisons that fit the model, and why others do not.

    Attributes:
        encoded: those that fit, in order.
        tokens: the model's image tokens.
        drops: how many do not fit, by reason.
        num_cut: how many answers were cut to fit.
        shape: a row shape that holds each of them; None if there are none.
        sizes: what each of them needs of a row.
    """

    encoded: EncodedList
    tokens: ImageTokens
    drops: collections.Counter[str]
    num_cut: int
    shape: RowShape | None
    sizes: Sizes

    @property
    def comparisons(self) -> list[Comparison]:
        """The comparisons that fit, in order."""
        return self.encoded.comparisons

    def select(self, indices: Sequence[int]) -> EncodedComparisons:
        """Returns some of the comparisons, in rows of the same shape."""
        sizes = Sizes(*(x[list(indices)] for x in self.sizes))
        return dataclasses.replace(self, encoded=self.encoded.select(indices), sizes=sizes)


def encode_comparisons(comparisons: Sequence[Comparison], encoder: Encoder) -> EncodedComparisons:
    """Encodes comparisons, leaving out and counting those whose text does not fit."""
    tokens = ImageTokens.of(encoder)
    kept, spans = list[Comparison](), dict[int, tuple[np.ndarray, ...]]()
    dtype = np.uint16 if encoder.largest_id < 2**16 else np.int32
    # Arrays of numbers, not lists: there may be millions.
    flat, lengths, firsts, sizes = bytearray(), array.array("q"), array.array("q"), array.array("q")
    drops: collections.Counter[str] = collections.Counter()
    num_cut = most_branches = longest = 0
    for comparison, fitted in zip(comparisons, fitting(comparisons, encoder), strict=True):
        if isinstance(fitted, ExampleError):
            drops[fitted.reason] += 1
            continue
        if fitted.spans is not None:
            spans[len(kept)] = fitted.spans
        kept.append(comparison)
        firsts.append(len(lengths))
        answers = list[int]()
        for tree in fitted.trees:
            answers += map(len, tree.branches)
            for ids in (tokens.collapse(tree.trunk), *tree.branches):
                lengths.append(len(ids))
                flat += ids.astype(dtype).tobytes()
            num_cut += tree.truncated
        targets, images = sum(answers), len(comparison.images)
        sizes.extend((sum(len(x.trunk) for x in fitted.trees) + targets, targets, images))
        most_branches, longest = max(most_branches, len(answers)), max(longest, *answers)
    size_of = Sizes(*np.array(sizes, np.int64).reshape(-1, 3).T)
    shape = None
    if kept:
        shape = RowShape(
            length=rounded(int(size_of.length_N.max())),
            comparisons=1,
            branches=most_branches,
            answer=rounded(longest),
            images=int(size_of.images_N.max()),
            targets=rounded(int(size_of.targets_N.max())),
        )
    bounds = np.concatenate([[0], np.cumsum(np.array(lengths, np.int64))])
    ids = _Ids(np.frombuffer(flat, dtype), bounds)
    encoded = EncodedList(kept, ids, np.array(firsts, np.int64), spans)
    return EncodedComparisons(encoded, tokens, drops, num_cut, shape, size_of)


class Fitted(NamedTuple):
    """The trees of a comparison that fits the model.

    Attributes:
        trees: one for each of its views.
        spans: see `EncodedComparison`.
    """

    trees: Sequence[EncodedTree]
    spans: tuple[np.ndarray, ...] | None


def fitting(comparisons: Sequence[Comparison], encoder: Encoder) -> Iterator[Fitted | ExampleError]:
    """Encodes comparisons, many at a time.

    Yields:
        For each of them, in order, what `fitting_trees` returns, or the error that it raises.
    """
    encoded = encoder.trees(view for comparison in comparisons for view in comparison.views)
    for comparison in comparisons:
        trees = [next(encoded) for _ in comparison.views]
        try:
            yield _fitted(comparison, trees, encoder)
        except ExampleError as error:
            yield error.with_traceback(None)


def fitting_trees(comparison: Comparison, encoder: Encoder) -> Fitted:
    """Returns the trees of a comparison, and which tokens its marked phrases hold.

    Raises:
        ExampleError: see `Encoder.encode`; or an answer has a word that the tokenizer lacks; or
            cutting made two answers of a tree equal, or left no marked phrase.
    """
    (fitted,) = fitting([comparison], encoder)
    if isinstance(fitted, ExampleError):
        raise fitted
    return fitted


def _fitted(
    comparison: Comparison, encoded: Sequence[EncodedTree | ExampleError], encoder: Encoder
) -> Fitted:
    trees = list[EncodedTree]()
    for tree in encoded:
        if isinstance(tree, ExampleError):
            raise tree
        trees.append(tree)
    for view, tree in zip(comparison.views, trees, strict=True):
        for text, ids in zip(view.answers, tree.branches, strict=True):
            if words := unknown_words(text, ids, encoder):
                raise ExampleError(
                    f"{comparison.prompt.id}: the tokenizer has no token for {words[0]!r}, and "
                    f"{encoder.tokenizer.unk_token} must not be learnt; reword the answer or add "
                    "the word to the vocabulary",
                    "unknown word in answer",
                )
    if any(t.truncated and len({b.tobytes() for b in t.branches}) < len(t.branches) for t in trees):
        reason = "equal answers after cutting"
        raise ExampleError(f"{comparison.prompt.id}: {reason}", reason)
    if not comparison.spans:
        return Fitted(trees, None)
    prompt = comparison.prompt
    spans = tuple(
        encoder.marked(prompt.question, len(prompt.images), text, phrases, prompt.start)[: len(ids)]
        for text, phrases, ids in zip(
            comparison.answers, comparison.spans, trees[0].branches, strict=True
        )
    )
    if not any(x.any() for x in spans):
        reason = "no marked phrase"  # they were cut off
        raise ExampleError(f"{comparison.prompt.id}: {reason}", reason)
    return Fitted(trees, spans)


def unknown_words(text: str, ids: np.ndarray, encoder: Encoder) -> list[str]:
    """Returns the words of a text that a tokenizer encodes as its unknown token, such as `<unk>`.

    Args:
        text: the text.
        ids: the ids that stand for it; without the unknown token there, nothing is looked up.
        encoder: has the tokenizer.
    """
    tokenizer = encoder.tokenizer
    unknown = tokenizer.unk_token_id
    if unknown is None or not (ids == unknown).any():
        return []
    words = [
        word
        for word in dict.fromkeys(text.split())
        if unknown in tokenizer(word, add_special_tokens=False).input_ids
    ]
    return words or [str(tokenizer.unk_token)]
