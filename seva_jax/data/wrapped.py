"""Helpers of sources that change each example of another source.

What lives here: opening the other source, and counting examples that cannot be changed. What does
not: the changes themselves (`answered.py`, `captions.py`, `composed.py` for prompts; `marked.py`,
`scores.py`, `regions.py`, `changed.py` for pairs).
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable
from typing import TypeVar

from seva_jax.data.collect import leave_out, none_left
from seva_jax.data.sources import PreferenceSet, PromptSet, PromptSource
from seva_jax.types import Comparison, DataError, ExampleError, Prompt

_Example = TypeVar("_Example", Prompt, Comparison)
_Changed = TypeVar("_Changed")


def opened_pairs(source: PromptSource, name: str) -> PreferenceSet:
    """Opens a source of pairs.

    Args:
        source: the source.
        name: the class that needs pairs, for errors.

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
    """Opens a source of prompts.

    Args:
        source: the source.
        name: the class that needs prompts, for errors.

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
    """Changes every example; those that `change` refuses are left out and counted.

    Args:
        data: the set that the examples come from.
        examples: its prompts, or its comparisons.
        change: returns the new example, or raises `ExampleError`.

    Returns:
        The new examples, and `drops` and `left_out` for a `PromptSet` of them.
    """
    kept, drops, left_out = list[_Changed](), data.drops.copy(), list(data.left_out)
    for example in examples:
        try:
            kept.append(change(example))
        except ExampleError as error:
            pair = isinstance(example, Comparison)
            where = f"pair {example.prompt.id!r}" if pair else f"prompt {example.id!r}"
            leave_out(where, error, drops, left_out)
    return kept, drops, left_out


def rewritten(data: PreferenceSet, change: Callable[[Comparison], Comparison]) -> PreferenceSet:
    """Returns the set with every pair changed; see `changed`.

    Raises:
        DataError: no pair is left.
    """
    kept, drops, left_out = changed(data, data.comparisons, change)
    if not kept:
        raise none_left("no usable pair is left", drops, left_out)
    prompts = [c.prompt for c in kept]
    return dataclasses.replace(
        data, prompts=prompts, comparisons=kept, drops=drops, left_out=left_out
    )


def require_single_view(pair: Comparison, purpose: str) -> None:
    """Raises `ExampleError` unless a second view with other images can be added to a pair."""
    if not pair.prompt.images:
        raise ExampleError(f"there is no image to {purpose}", "no image")
    if pair.more:
        raise ExampleError("the pair has a second view already", "several views")
