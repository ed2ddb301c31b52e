"""Cards with images: answers before and after, and preference pairs.

What lives here: the markup of both galleries. What does not: their filters (`filters.py`), image
encoding (`pictures.py`), word marking (`diff.py`), the page around them (`page.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from seva_jax.report import charts
from seva_jax.report.data import ExampleCard, PairCard
from seva_jax.report.diff import difference, mark_differences, num_words
from seva_jax.report.filters import (
    Facet,
    difference_facet,
    filter_form,
    label_facet,
    length_facet,
)
from seva_jax.report.markup import breakable, count_of, esc, number, shorten
from seva_jax.report.pictures import Album, is_tiny

# In the order shown.
VERDICT_WORDS = {"better": "Better", "worse": "Worse", "changed": "Changed", "same": "Unchanged"}
MOVE_WORDS = {
    "up": "Margin rose",
    "down": "Margin fell",
    "flat": "Margin did not move",
    "unknown": "Margin not measured",
}
LONG_ANSWER = 420  # characters; longer answers scroll inside their card


def examples_gallery(examples: Sequence[ExampleCard], album: Album, group: str) -> str:
    """Returns filters and cards of the examples, those changed for better or worse first.

    Args:
        examples: questions with the answers before and after.
        album: collects their images.
        group: name of the gallery, unique on the page.
    """
    order = list(VERDICT_WORDS)
    ranked = sorted(examples, key=lambda card: order.index(card.verdict))
    verdicts = Facet("verdict", "Verdict", VERDICT_WORDS, tuple((c.verdict,) for c in ranked))
    others = (
        label_facet("evaluation", "Evaluation", [(c.evaluation,) for c in ranked]),
        label_facet("seen", "Training", [(c.seen,) for c in ranked]),
    )
    cards = "".join(
        example_card(card, album, _attributes((verdicts, *others), index))
        for index, card in enumerate(ranked)
    )
    filters = filter_form(group, verdicts, others)
    return f'{filters}<div class="cards examples">{cards}</div>'


def _attributes(facets: Sequence[Facet], card: int) -> str:
    return "".join(facet.attribute(card) for facet in facets)


def example_card(card: ExampleCard, album: Album, attributes: str) -> str:
    """Returns the card of a question with both answers; `attributes` are for the filters."""
    after, (before,) = mark_differences(card.aligned_answer, (card.base_answer,))
    alt = f"Picture asked about: {shorten(card.question, 100)}"
    seen = f"<small>{esc(card.seen)}</small>" if card.seen else ""
    where = f"{card.evaluation}: {card.id}" if card.evaluation else card.id
    answers = _answers(card.truth, [("Before", before, "rejected"), ("After", after, "chosen")])
    return (
        f'<article class="card {card.verdict}"{attributes}>'
        f"<figure>{_image(card.image, alt, album)}</figure>"
        f'<div class="body"><p class="badge {card.verdict}">{VERDICT_WORDS[card.verdict]}{seen}</p>'
        f"{_question(card.question)}{answers}"
        f'<p class="id">{esc(where)}</p></div></article>'
    )


def pairs_gallery(pairs: Sequence[PairCard], album: Album) -> str:
    """Returns filters and cards of the pairs, in the given order."""
    moves = Facet("move", "Margin", MOVE_WORDS, tuple((move(card),) for card in pairs))
    facets = (
        label_facet("corruption", "Corruption", [card.corruptions for card in pairs]),
        length_facet([num_words(card.chosen) for card in pairs]),
        difference_facet([difference(card.chosen, card.rejected) for card in pairs]),
    )
    margins = [abs(m) for card in pairs for m in (card.margin_before, card.margin_after)]
    extent = charts.round_up(max((m for m in margins if math.isfinite(m)), default=0.0))
    decimals = 3 if extent < 0.1 else 2
    cards = "".join(
        pair_card(card, album, extent, decimals, _attributes((moves, *facets), index))
        for index, card in enumerate(pairs)
    )
    return f'{filter_form("pairs", moves, facets)}<div class="cards pairs">{cards}</div>'


def pair_card(card: PairCard, album: Album, extent: float, decimals: int, attributes: str) -> str:
    """Returns the card of a preference pair.

    Args:
        card: the pair.
        album: collects its images.
        extent: ends of the margin axis, the same for every card of a page.
        decimals: decimals of the printed margins.
        attributes: HTML attributes for the filters.
    """
    chosen, rejected = mark_differences(card.chosen, card.rejected)
    asked = shorten(card.question, 100)
    clean = (card.clean, "Clean", f"Clean, for: {asked}")
    pictures: list[tuple[np.ndarray | None, str, str]] = [clean]
    for index, image_HWC in enumerate(card.corrupted):
        name = _numbered("Corrupted", index, len(card.corrupted))
        how = f"{name}: {card.corruptions[index]}" if card.corruptions else name
        pictures.append((image_HWC, how, f"{how}, for: {asked}"))
    figures = "".join(
        f"<figure>{_image(image_HWC, alt, album)}"
        f"<figcaption>{breakable(name)}</figcaption></figure>"
        for image_HWC, name, alt in pictures
    )
    layout = "pictures many" if len(pictures) > 2 else "pictures"
    answers = [("Chosen", chosen, "chosen")]
    for index, answer in enumerate(rejected):
        answers.append((_numbered("Rejected", index, len(rejected)), answer, "rejected"))
    before = number(card.margin_before, decimals, signed=True)
    after = number(card.margin_after, decimals, signed=True)
    strip = charts.margin_strip(card.margin_before, card.margin_after, extent)
    return (
        f'<article class="card"{attributes}><div class="{layout}">{figures}</div>'
        f'<div class="body">{_question(card.question)}{_answers(card.truth, answers)}'
        f'<div class="margins"><p>Reward margin <b>{before}</b> before, <b>{after}</b> after</p>'
        f"{strip}</div>"
        f'<p class="id">{esc(card.id)}</p></div></article>'
    )


def move(card: PairCard) -> str:
    """Returns how the margin changed, a key of `MOVE_WORDS`."""
    change = card.margin_after - card.margin_before
    if math.isnan(change):
        return "unknown"
    return "up" if change > 0 else "down" if change < 0 else "flat"


def _question(question: str) -> str:
    return f'<h3 class="question" dir="auto">{esc(question)}</h3>'


def _answers(truth: str, answers: Sequence[tuple[str, str, str]]) -> str:
    """Returns a description list of the truth, if known, and each (label, HTML, class)."""
    if truth:
        answers = [("Truth", esc(truth), "truth"), *answers]
    stacked = any(len(answer) > LONG_ANSWER for _, answer, _ in answers)
    rows = []
    for label, answer, style in answers:
        # A scrolling region must be reachable by keyboard.
        scroll = f' tabindex="0" aria-label="{label}"' if len(answer) > LONG_ANSWER else ""
        shown = answer or '<span class="empty">(empty)</span>'
        rows.append(
            f'<div class="{style}{" long" if stacked else ""}"><dt>{label}</dt>'
            f'<dd dir="auto"{scroll}>{shown}</dd></div>'
        )
    return f"<dl>{''.join(rows)}</dl>"


def _image(image_HWC: np.ndarray | None, alt: str, album: Album) -> str:
    if image_HWC is None:
        return '<p class="missing">picture missing</p>'
    style = ' class="tiny"' if is_tiny(image_HWC) else ""
    height, width = image_HWC.shape[:2]
    return (  # a button, so that the keyboard reaches it; the script enables and enlarges it
        '<button type="button" class="zoom" aria-haspopup="dialog" disabled>'
        f'<img src="{album.add(image_HWC)}" alt="{esc(alt)}" width="{width}" '
        f'height="{height}" loading="lazy" decoding="async"{style}></button>'
    )


def _numbered(word: str, index: int, count: int) -> str:
    return word if count <= 1 else f"{word} {index + 1}"


def shown_of(shown: int, total: int) -> str:
    """Returns a sentence that says how many of all pairs the gallery shows."""
    if shown < total:
        return f"Showing {shown:,} of the {count_of(total, 'pair')} trained on."
    return f"Showing {'all ' if shown > 1 else ''}{count_of(shown, 'pair')} trained on."
