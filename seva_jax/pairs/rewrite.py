"""Texts of which the model writes some sentences anew, while the others stay as they are.

What lives here: where sentences end, and the calls of the model, which the builders of
`injection.py` and `retrieval.py` share. What does not: which sentences are chosen, and how the new
ones begin.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from seva_jax.pairs.model import PairModel, Reply
from seva_jax.text.sampling import Sampling
from seva_jax.types import Prompt

EMPTY = "empty completion"


def split(text: str, separator: str = "") -> list[str]:
    """Cuts a text into sentences.

    A sentence ends with ".", "!" or "?" where white space follows: "3.5 m" is no end, "Mr. X" is
    one. Abbreviations are not known.

    Args:
        text: joined again, the parts are this text.
        separator: stands between sentences, for texts of another kind; "" for the rule above.

    Returns:
        Sentences, and what stands between them, in turn: an odd number of parts.

    >>> split("A cat. It sleeps.")
    ['A cat.', ' ', 'It sleeps.']
    >>> split("a ring and a cross", " and ")
    ['a ring', ' and ', 'a cross']
    """
    return re.split(f"({re.escape(separator)})" if separator else r"((?<=[.!?])\s+)", text)


def generator(seed: int, purpose: str, prompt_id: str) -> np.random.Generator:
    """Random numbers of one prompt; they depend on nothing but the arguments."""
    digest = hashlib.sha256(repr((seed, purpose, prompt_id)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


class Draft(NamedTuple):
    """A text that is to be written anew in places.

    Attributes:
        prompt: what the model is asked: its images are those in view.
        parts: see `split`.
        leads: for each sentence that is replaced, by its number from 0, how the new one begins.
    """

    prompt: Prompt
    parts: Sequence[str]
    leads: Mapping[int, str]


def rewrite(
    name: str,
    drafts: Sequence[Draft],
    model: PairModel,
    sampling: Sampling,
    separator: str = "",
) -> list[Reply]:
    """Replaces sentences of texts, the first ones first.

    The model goes on from all that stands before, new sentences included, and from the lead. What
    it says is cut before its first "." that white space or the end follows. It gets that back where
    the sentence that it replaces has an end mark: an answer cut by its length, or of one word, has
    none, and a stop would tell the texts apart. With a separator, it is cut before the first of
    those.

    Args:
        name: of the calls; their number follows.
        drafts: the texts.
        model: is asked once for each sentence of the text that has most to replace.
        sampling: how it answers.
        separator: see `split`.

    Returns:
        The texts; or why there is none, in order.
    """
    texts, dropped = [list(draft.parts) for draft in drafts], ["" for _ in drafts]
    for turn in range(max((len(draft.leads) for draft in drafts), default=0)):
        asked = [
            (i, sorted(draft.leads)[turn])
            for i, draft in enumerate(drafts)
            if turn < len(draft.leads) and not dropped[i]
        ]
        prompts = [_go_on(drafts[i], texts[i], number) for i, number in asked]
        replies = model.answer(f"{name} {turn + 1}", prompts, sampling)
        for (i, number), reply in zip(asked, replies, strict=True):
            written = _written(drafts[i].leads[number], reply.text, separator)
            has_stop = texts[i][2 * number].endswith((".", "!", "?"))
            texts[i][2 * number] = written + "." * (has_stop and not separator)
            dropped[i] = reply.dropped or ("" if written else EMPTY)
    return [
        Reply("" if reason else "".join(text), reason)
        for text, reason in zip(texts, dropped, strict=True)
    ]


def _go_on(draft: Draft, text: Sequence[str], number: int) -> Prompt:
    """Asks for the rest of a sentence, after what stands before it and its lead."""
    before = "".join((*text[: 2 * number], draft.leads[number]))
    # Tokenizers put blanks in front of words, not behind.
    return dataclasses.replace(draft.prompt, start=before.rstrip())


def _written(lead: str, said: str, separator: str) -> str:
    """A lead and what the model said after it, up to the sentence's end, on one line."""
    said = said.replace("</s>", "") + " "
    end = re.escape(separator) if separator else r"\.(?=\s)"
    return re.sub(r"\s+", " ", lead + re.split(end, said)[0]).strip()
