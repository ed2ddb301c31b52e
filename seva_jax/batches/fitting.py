"""Which comparisons fit the model, and the trees of those that do.

What lives here: the reasons that only show in the ids: what is cut, and words that the tokenizer
lacks. What does not: text to tokens (`seva_jax/text/encode.py`), all comparisons of a run
(`encoded.py`, read next).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from seva_jax.text import EncodedTree, Encoder
from seva_jax.types import Comparison, ExampleError


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
        encoder.marked(prompt, text, phrases)[: len(ids)]
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
    unknown = encoder.unknown_id
    if unknown is None or not (ids == unknown).any():
        return []
    tokenizer = encoder.tokenizer
    words = [
        word
        for word in dict.fromkeys(text.split())
        if unknown in tokenizer(word, add_special_tokens=False).input_ids
    ]
    return words or [str(tokenizer.unk_token)]
