"""A few of many examples: which ones, and as text for a terminal."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence

import numpy as np

from seva_jax.data.sources import PreferenceSet, PromptSet
from seva_jax.types import ExampleError


def spread(total: int, shown: int) -> list[int]:
    """Returns at most `shown` indices, evenly spread over `total`."""
    return sorted(set(np.linspace(0, total - 1, min(shown, total)).astype(int).tolist()))


def describe(data: PromptSet, indices: Sequence[int], width: int = 100) -> str:
    """Returns examples as text: id, images with their sizes, question, answers, meta.

    Args:
        data: the examples.
        indices: which examples to show.
        width: length of a line in characters.
    """
    return "\n\n".join(_example(data, i, width) for i in indices)


def _example(data: PromptSet, index: int, width: int) -> str:
    prompt = data.prompts[index]
    fields = [(f"[{index}]", prompt.id)]
    fields += [("image", f"{name} ({_size(data, name)})") for name in prompt.images]
    fields.append(("question", prompt.question))
    if isinstance(data, PreferenceSet):
        chosen, *rejected = data.comparisons[index].answers
        fields += [("chosen", chosen), *(("rejected", text) for text in rejected)]
    if prompt.meta:
        meta = json.dumps(prompt.meta, ensure_ascii=False)
        fields.append(("meta", textwrap.shorten(meta, 2 * width, placeholder=" ...")))
    return "\n".join(_field(name, text, width) for name, text in fields)


def _field(name: str, text: str, width: int) -> str:
    lines = [part for line in text.splitlines() for part in textwrap.wrap(line, width - 10) or [""]]
    first, *rest = lines or [""]
    return "\n".join([f"{name:<9} {first}", *(" " * 10 + line for line in rest)])


def _size(data: PromptSet, name: str) -> str:
    try:
        height, width, _ = data.load_image(name).shape
    except ExampleError as error:
        return error.reason
    return f"{width} x {height}"
