"""Texts in which the model rewrites some sentences, while the others stay.

What lives here: splitting a text into sentences, and the calls of the model, which the builders in
`injection.py` and `retrieval.py` share. What does not: choosing the sentences and how the new ones
begin, which those builders do.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from seva_jax.pairs.model import PairModel, Reply
from seva_jax.text.sampling import Sampling
from seva_jax.types import Comparison, Prompt

EMPTY = "empty completion"


def split(text: str, separator: str = "") -> list[str]:
    """Splits a text into sentences.

    A sentence ends with ".", "!" or "?" before white space. So "3.5 m" is not split, but "Mr. X"
    is: abbreviations are not recognised.

    Args:
        text: the text, which is equal to the joined parts.
        separator: separates sentences in texts of another kind; "" for the rule above.

    Returns:
        Sentences and separators alternately, an odd number of parts.

    >>> split("A cat. It sleeps.")
    ['A cat.', ' ', 'It sleeps.']
    >>> split("a ring and a cross", " and ")
    ['a ring', ' and ', 'a cross']
    """
    return re.split(f"({re.escape(separator)})" if separator else r"((?<=[.!?])\s+)", text)


class Draft(NamedTuple):
    """A text with some sentences to replace.

    Attributes:
        prompt: the question to the model, with the images it sees.
        parts: the text, split by `split`.
        leads: beginnings of the new sentences, by the number of the sentence to replace, from 0.
    """

    prompt: Prompt
    parts: Sequence[str]
    leads: Mapping[int, str]


def rewrite(
    name: str, drafts: Sequence[Draft], model: PairModel, sampling: Sampling, separator: str = ""
) -> list[Reply]:
    """Replaces sentences of texts, each text from its beginning to its end.

    The model continues the text before a sentence (new sentences included) and the sentence's lead.
    Its reply is cut before the first "." that white space or the end follows. The stop is put back
    only if the replaced sentence had an end mark: an answer of one word, or one cut by its length,
    has none, and a stop would tell the two texts apart. With a separator, the reply is cut before
    the first separator instead.

    Args:
        name: name of the model's calls; the number of the call follows it.
        drafts: the texts.
        model: is called as often as the text with the most leads has leads.
        sampling: how the model answers.
        separator: see `split`.

    Returns:
        The new texts, or why there is none, in order.
    """
    texts, dropped = [list(draft.parts) for draft in drafts], ["" for _ in drafts]
    for turn in range(max((len(draft.leads) for draft in drafts), default=0)):
        replaced = [
            (i, sorted(draft.leads)[turn])
            for i, draft in enumerate(drafts)
            if turn < len(draft.leads) and not dropped[i]
        ]
        prompts = [_continued(drafts[i], texts[i], number) for i, number in replaced]
        replies = model.answer(f"{name} {turn + 1}", prompts, sampling)
        for (i, number), reply in zip(replaced, replies, strict=True):
            sentence = _sentence(drafts[i].leads[number], reply.text, separator)
            has_stop = texts[i][2 * number].endswith((".", "!", "?"))
            texts[i][2 * number] = sentence + "." * (has_stop and not separator)
            dropped[i] = reply.dropped or ("" if sentence else EMPTY)
    return [
        Reply("" if reason else "".join(text), reason)
        for text, reason in zip(texts, dropped, strict=True)
    ]


def rewritten(
    name: str,
    chosen: Sequence[tuple[Comparison, Draft]],
    model: PairModel,
    sampling: Sampling,
    separator: str,
) -> Iterator[Comparison | str]:
    """Adds to each comparison, which has the chosen answer only, its rewritten text as rejected.

    Args:
        name: see `rewrite`.
        chosen: comparisons, and the drafts made from their answers.
        model: see `rewrite`.
        sampling: see `rewrite`.
        separator: see `rewrite`.

    Yields:
        The comparison with both answers; or why there is none.
    """
    replies = rewrite(name, [draft for _, draft in chosen], model, sampling, separator)
    for (pair, _), reply in zip(chosen, replies, strict=True):
        both = (*pair.answers, reply.text)
        same = "equal answers" if reply.text in pair.answers else ""
        yield reply.dropped or same or dataclasses.replace(pair, answers=both)


def _continued(draft: Draft, text: Sequence[str], number: int) -> Prompt:
    """Returns the prompt for the rest of a sentence, given the text before it and its lead."""
    before = "".join((*text[: 2 * number], draft.leads[number]))
    # Tokenizers put spaces before words, not after them.
    return dataclasses.replace(draft.prompt, start=before.rstrip())


def _sentence(lead: str, reply: str, separator: str) -> str:
    """Returns a lead with the model's reply up to the end of the sentence, on one line."""
    reply = reply.replace("</s>", "") + " "
    end = re.escape(separator) if separator else r"\.(?=\s)"
    return re.sub(r"\s+", " ", lead + re.split(end, reply)[0]).strip()
