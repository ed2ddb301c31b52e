"""Comparisons as token ids, encoded once for the whole run.

What lives here: which comparisons fit the model, and their ids. What does not: text to tokens
(`seva_jax/text/encode.py`), rows and batches (`pipeline.py`, read next).
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from seva_jax.batches.packing import Sizes
from seva_jax.batches.trees import RowShape, TreeExample
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

    encoded: Sequence[EncodedComparison]
    tokens: ImageTokens
    drops: collections.Counter[str]
    num_cut: int
    shape: RowShape | None
    sizes: Sizes

    @property
    def comparisons(self) -> list[Comparison]:
        """The comparisons that fit, in order."""
        return [x.comparison for x in self.encoded]

    def select(self, indices: Sequence[int]) -> EncodedComparisons:
        """Returns some of the comparisons, in rows of the same shape."""
        chosen = [self.encoded[i] for i in indices]
        sizes = Sizes(*(x[list(indices)] for x in self.sizes))
        return dataclasses.replace(self, encoded=chosen, sizes=sizes)


def encode_comparisons(comparisons: Sequence[Comparison], encoder: Encoder) -> EncodedComparisons:
    """Encodes comparisons, leaving out and counting those whose text does not fit."""
    tokens = ImageTokens.of(encoder)
    encoded, examples, num_cut = [], [], 0
    drops: collections.Counter[str] = collections.Counter()
    for comparison in comparisons:
        try:
            trees, spans = fitting_trees(comparison, encoder)
        except ExampleError as error:
            drops[error.reason] += 1
            continue
        num_cut += sum(tree.truncated for tree in trees)
        first, *more = (
            TreeExample(tree.trunk, tree.branches, np.empty((len(view.prompt.images), 0)))
            for view, tree in zip(comparison.views, trees, strict=True)
        )
        examples.append(dataclasses.replace(first, more=tuple(more)))
        kept = tuple((tokens.collapse(tree.trunk), tree.branches) for tree in trees)
        encoded.append(EncodedComparison(comparison, kept, spans))
    shape = RowShape.covering(examples) if examples else None
    return EncodedComparisons(encoded, tokens, drops, num_cut, shape, Sizes.of(examples))


def fitting_trees(
    comparison: Comparison, encoder: Encoder
) -> tuple[list[EncodedTree], tuple[np.ndarray, ...] | None]:
    """Returns the trees of a comparison, and which tokens its marked phrases hold.

    Raises:
        ExampleError: see `Encoder.encode`; or an answer has a word that the tokenizer lacks; or
            cutting made two answers of a tree equal, or left no marked phrase.
    """
    trees = [
        encoder.encode(p.question, len(p.images), view.answers, p.start)
        for view in comparison.views
        for p in [view.prompt]
    ]
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
        return trees, None
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
    return trees, spans


def unknown_words(text: str, ids: np.ndarray, encoder: Encoder) -> list[str]:
    """Returns the words of a text that a tokenizer encodes as its unknown token, such as `<unk>`.

    Args:
        text: the text.
        ids: the ids that stand for it; without the unknown token there, nothing is looked up.
        encoder: has the tokenizer.
    """
    tokenizer = encoder.tokenizer
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown not in ids:
        return []
    words = [
        word
        for word in dict.fromkeys(text.split())
        if unknown in tokenizer(word, add_special_tokens=False).input_ids
    ]
    return words or [str(tokenizer.unk_token)]
