"""Sources that change the pairs of another source, one by one.

What lives here: opening the other source, and counting pairs that cannot be changed. What does not:
any change (`marked.py`, `scores.py`, `regions.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from seva_jax.data.collect import NAMED, counted
from seva_jax.data.sources import PreferenceSet, PromptSource
from seva_jax.types import Comparison, DataError, ExampleError


def opened_pairs(source: PromptSource, name: str) -> PreferenceSet:
    """The pairs of a source.

    Args:
        source: what to open.
        name: of the class that wants pairs.

    Raises:
        DataError: it is a source of prompts without answers.
    """
    if not source.has_answers:
        raise DataError(
            f"{name}.source is {type(source).__name__}, which has no answers; give one of pairs"
        )
    data = source.open()
    assert isinstance(data, PreferenceSet)  # what `has_answers` means
    return data


def rewritten(data: PreferenceSet, change: Callable[[Comparison], Comparison]) -> PreferenceSet:
    """Pairs with every one changed; those that `change` refuses are left out and counted.

    Args:
        data: the pairs.
        change: gives the new pair, or raises `ExampleError`.

    Raises:
        DataError: none is left.
    """
    drops, left_out, kept = data.drops.copy(), list(data.left_out), list[Comparison]()
    for comparison in data.comparisons:
        try:
            kept.append(change(comparison))
        except ExampleError as error:
            drops[error.reason] += 1
            if len(left_out) < NAMED:
                left_out.append(f"pair {comparison.prompt.id!r}: {error.reason}: {error}")
    if not kept:
        raise DataError(
            f"no usable pair is left ({counted(drops)})"
            + (f"; the first: {left_out[0]}" if left_out else "")
        )
    prompts = [c.prompt for c in kept]
    return dataclasses.replace(
        data, prompts=prompts, comparisons=kept, drops=drops, left_out=left_out
    )
