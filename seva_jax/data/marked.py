"""Answers whose decisive phrases are marked, `a <MASK>red</MASK> ball`, as RRPO's data has them.

What lives here: reading the marks of any source of pairs. What does not: which tokens they fall on
(`Encoder.marked`), and phrases found by comparing the two answers, which is what objectives of
phrases get where nothing is marked (`trees.differing`).
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from seva_jax.data.collect import compared
from seva_jax.data.sources import PreferenceSet, PreferenceSource, PromptSource
from seva_jax.data.wrapped import opened_pairs, rewritten
from seva_jax.types import Comparison, ExampleError

OPEN, CLOSE = "<MASK>", "</MASK>"


def unmarked(text: str) -> tuple[str, tuple[tuple[int, int], ...]]:
    """A text without its marks, and what they were around, as [start, end) in its characters.

    Spaces around the text are dropped, and marks around nothing.

    Raises:
        ExampleError: marks are not in pairs, or one is inside another.

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
            f"{OPEN} and {CLOSE} do not come in pairs in {text[:60]!r}; mend it", "broken marks"
        )
    lead, end = len(plain) - len(plain.lstrip()), len(plain.rstrip())
    kept = ((max(a, lead) - lead, min(b, end) - lead) for a, b in spans)
    return plain.strip(), tuple((a, b) for a, b in kept if a < b)


@dataclasses.dataclass(frozen=True)
class MarkedPhrases(PreferenceSource):
    """The pairs of a source, with marks taken out of the answers and kept as `Comparison.spans`.

    A pair with marks around nothing, in all its answers, is left out and counted ("no marked
    phrase"), and so is one whose marks do not pair up ("broken marks").

    Attributes:
        source: the pairs.
        unmarked: what becomes of pairs without any mark: their phrases are found by alignment, or
            they are left out as RRPO's release does.
    """

    source: PromptSource = PreferenceSource()
    unmarked: Literal["align", "leave out"] = "align"

    def open(self) -> PreferenceSet:
        """See `PromptSource.open`."""

        def read(comparison: Comparison) -> Comparison:
            found = [unmarked(text) for text in comparison.answers]
            marks = any(OPEN in text for text in comparison.answers)
            if not marks and self.unmarked == "align":
                return comparison
            if not any(spans for _, spans in found):
                raise ExampleError(
                    "no phrase of any answer is marked; mark one", "no marked phrase"
                )
            pair = compared(comparison.prompt, *(text for text, _ in found))
            spans = tuple(spans for _, spans in found)
            return dataclasses.replace(comparison, answers=pair.answers, spans=spans)

        return rewritten(opened_pairs(self.source, "MarkedPhrases"), read)
