"""The filter controls above a gallery.

What lives here: `Facet`, `filter_form`, and the facets computed from answers. What does not: the
filtering itself (`script.js`) and the cards (`gallery.py`).
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Sequence

from seva_jax.report.markup import esc

LENGTHS = ((3, "up to 3 words"), (20, "4 to 20 words"), (60, "21 to 60 words"))
DIFFERENCES = ((0.25, "up to a quarter"), (0.5, "up to a half"))


@dataclasses.dataclass(frozen=True)
class Facet:
    """A property of the cards of a gallery by which they can be filtered.

    Attributes:
        key: name of the cards' data attribute; lower-case letters.
        label: name shown on the page.
        words: text of each value, in the order shown.
        values: the values of each card, which its HTML has as `data-key="value value"`.
    """

    key: str
    label: str
    words: dict[str, str]
    values: tuple[tuple[str, ...], ...]

    def attribute(self, card: int) -> str:
        """Returns the HTML attribute of one card, with a leading space."""
        return f' data-{self.key}="{esc(" ".join(self.values[card]))}"'

    def counts(self) -> dict[str, int]:
        """Returns how many cards have each value, without values that no card has."""
        counts = {value: sum(value in held for held in self.values) for value in self.words}
        return {value: count for value, count in counts.items() if count}


def length_facet(num_words: Sequence[int]) -> Facet:
    """Returns the facet of the length of chosen answers, in words."""
    words = [*(text for _, text in LENGTHS), f"over {LENGTHS[-1][0]} words"]
    return _range_facet("length", "Chosen answer", words, [end for end, _ in LENGTHS], num_words)


def difference_facet(shares: Sequence[float]) -> Facet:
    """Returns the facet of the share of words in which answers differ, 0 to 1."""
    words = [*(f"{text} of the words" for _, text in DIFFERENCES), "most words"]
    ends = [end for end, _ in DIFFERENCES]
    return _range_facet("difference", "Answers differ in", words, ends, shares)


def _range_facet(
    key: str, label: str, words: Sequence[str], ends: Sequence[float], numbers: Sequence[float]
) -> Facet:
    """Returns the facet of the range a number is in: up to each of `ends`, or above all."""
    held = tuple((str(bisect.bisect_left(ends, number)),) for number in numbers)
    return Facet(key, label, {str(index): text for index, text in enumerate(words)}, held)


def label_facet(key: str, label: str, labels: Sequence[Sequence[str]]) -> Facet:
    """Returns the facet of labels that come with the data, in order of appearance."""
    index = {text: str(i) for i, text in enumerate(dict.fromkeys(t for one in labels for t in one))}
    held = tuple(tuple(index[text] for text in one) for one in labels)
    return Facet(key, label, {value: text for text, value in index.items()}, held)


def filter_form(group: str, main: Facet, others: Sequence[Facet]) -> str:
    """Returns the controls as HTML, hidden until the script runs; nothing for a single card.

    Args:
        group: name of the gallery, unique on the page.
        main: the facet shown as buttons.
        others: facets shown as menus; those in which all cards are alike are left out.
    """
    if len(main.values) < 2:
        return ""
    counts = main.counts()
    buttons = "".join(
        f'<label><input type="radio" name="{group}" data-facet="{main.key}" value="{value}"'
        f"{'' if value else ' checked'}>{word} <span>{count:,}</span></label>"
        for value, word, count in [
            ("", "All", len(main.values)),
            *((value, main.words[value], count) for value, count in counts.items()),
        ]
    )
    menus = "".join(_menu(facet) for facet in others if len(facet.counts()) > 1)
    # Options carry their facet as radio buttons do: the script reads it from what is checked.
    return (
        f'<form class="filters" role="search" aria-label="Filter {group}" hidden>'
        f'<fieldset><legend>Show</legend>{buttons}</fieldset><div class="menus">{menus}'
        '<label class="menu">Text <input type="search" placeholder="question, answer or id">'
        "</label>"
        '<button type="reset">Clear</button><output></output></div></form>'
    )


def _menu(facet: Facet) -> str:
    options = "".join(
        f'<option data-facet="{facet.key}" value="{value}">{esc(facet.words[value])} '
        f"({count:,})</option>"
        for value, count in facet.counts().items()
    )
    return (
        f'<label class="menu">{esc(facet.label)} <select><option value="">any</option>'
        f"{options}</select></label>"
    )
