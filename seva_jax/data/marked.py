"""Answers with marks around decisive phrases, `a <MASK>red</MASK> ball`, as in RRPO's data.

What lives here: reading the marks in the answers of any source of pairs. What does not: which
tokens they cover (`Encoder.marked` in `seva_jax/text/encode.py`), and the phrases that objectives
get where nothing is marked, by comparing the answers (`differing` in `seva_jax/batches/trees.py`).
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from typing_extensions import override

from seva_jax.data.collect import compared
from seva_jax.data.sources import PreferenceSet, PreferenceSource, PromptSource
from seva_jax.data.wrapped import opened_pairs, rewritten
from seva_jax.types import Comparison, ExampleError

OPEN, CLOSE = "<MASK>", "</MASK>"


def unmarked(text: str) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Returns a text without its marks, and the marked phrases as [start, end) in characters.

    White space around the text and empty phrases are dropped.

    Raises:
        ExampleError: marks are not in pairs, or are nested.

    >>> unmarked("A <MASK>red</MASK> ball.")
    ('A red ball.', ((2, 5),))
    """
    plain, *rest = text.split(OPEN)
    spans, broken = list[tuple[int, int]](), CLOSE in plain
    for part in rest:
        inside, *outside = part.split(CLOSE)
        broken |= len(outside) != 1
        spans.append((len(plain), len(plain) + len(inside)))
        plain += inside + "".join(outside)
    if broken:
        raise ExampleError(
            f"{OPEN} and {CLOSE} do not come in pairs in {text[:60]!r}; fix it", "broken marks"
        )
    lead, end = len(plain) - len(plain.lstrip()), len(plain.rstrip())
    kept = ((max(a, lead) - lead, min(b, end) - lead) for a, b in spans)
    return plain.strip(), tuple((a, b) for a, b in kept if a < b)


@dataclasses.dataclass(frozen=True)
class MarkedPhrases(PreferenceSource):
    """The pairs of a source; marks in the answers are removed and kept as `Comparison.spans`.

    Pairs whose marks are all around nothing ("no marked phrase"), or do not come in pairs ("broken
    marks"), are left out and counted.

    Attributes:
        source: the pairs.
        unmarked: what happens to pairs without any mark: "align" finds their phrases by aligning
            the answers, as RRPO's release does for VideoChat2; "leave out" drops them, and also
            those of which only one answer has a marked phrase, as it does for LLaVA-Video.
    """

    source: PromptSource = PreferenceSource()
    unmarked: Literal["align", "leave out"] = "align"

    @override
    def open(self) -> PreferenceSet:

        def read(comparison: Comparison) -> Comparison:
            answers = [unmarked(text) for text in comparison.answers]
            marks = any(OPEN in text for text in comparison.answers)
            if not marks and self.unmarked == "align":
                return comparison
            enough = all if self.unmarked == "leave out" else any
            if not enough(spans for _, spans in answers):
                raise ExampleError(
                    "an answer has no marked phrase; mark one in each", "no marked phrase"
                )
            pair = compared(comparison.prompt, *(text for text, _ in answers))
            spans = tuple(spans for _, spans in answers)
            return dataclasses.replace(comparison, answers=pair.answers, spans=spans)

        return rewritten(opened_pairs(self.source, "MarkedPhrases"), read)
