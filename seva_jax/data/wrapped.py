"""Sources that change the examples of another source, one by one.

What lives here: opening the other source, and counting examples that cannot be changed. What does
not: any change (`answered.py`, `captions.py`, `composed.py` for prompts; `marked.py`, `scores.py`,
`regions.py`, `changed.py` for pairs).
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable
from typing import TypeVar

from seva_jax.data.collect import NAMED, counted
from seva_jax.data.sources import PreferenceSet, PromptSet, PromptSource
from seva_jax.types import Comparison, DataError, ExampleError, Prompt

_Example = TypeVar("_Example", Prompt, Comparison)
_Changed = TypeVar("_Changed")


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


def opened_prompts(source: PromptSource, name: str) -> PromptSet:
    """The prompts of a source.

    Args:
        source: what to open.
        name: of the class that wants prompts.

    Raises:
        DataError: it is a source of pairs.
    """
    if source.has_answers:
        raise DataError(
            f"{name}.source is {type(source).__name__}, which has answers already; give a source "
            "of prompts"
        )
    return source.open()


def changed(
    data: PromptSet, examples: Iterable[_Example], change: Callable[[_Example], _Changed]
) -> tuple[list[_Changed], collections.Counter[str], list[str]]:
    """What `change` makes of every example; those that it refuses are left out and counted.

    Args:
        data: where the examples are from.
        examples: its prompts, or its comparisons.
        change: gives the new one, or raises `ExampleError`.

    Returns:
        the new ones; `drops` and `left_out` of a `PromptSet` of them.
    """
    kept, drops, left_out = list[_Changed](), data.drops.copy(), list(data.left_out)
    for example in examples:
        try:
            kept.append(change(example))
        except ExampleError as error:
            drops[error.reason] += 1
            if len(left_out) < NAMED:
                pair = isinstance(example, Comparison)
                where = f"pair {example.prompt.id!r}" if pair else f"prompt {example.id!r}"
                left_out.append(f"{where}: {error.reason}: {error}")
    return kept, drops, left_out


def rewritten(data: PreferenceSet, change: Callable[[Comparison], Comparison]) -> PreferenceSet:
    """Pairs with every one changed; see `changed`.

    Raises:
        DataError: none is left.
    """
    kept, drops, left_out = changed(data, data.comparisons, change)
    if not kept:
        raise DataError(
            f"no usable pair is left ({counted(drops)})"
            + (f"; the first: {left_out[0]}" if left_out else "")
        )
    prompts = [c.prompt for c in kept]
    return dataclasses.replace(
        data, prompts=prompts, comparisons=kept, drops=drops, left_out=left_out
    )
