"""A run's pairs as objects, and each as a card in a notebook or as text in a terminal.

What lives here: `Pairs`, `Pair` and `show`. What does not: the gallery of a run's page
(`gallery.py`), opening a run (`seva_jax/notebook.py`).
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from typing_extensions import override

from seva_jax.config import Experiment
from seva_jax.data import PromptSet
from seva_jax.data.json_records import comparison_from
from seva_jax.images import ImageProcessing
from seva_jax.inference.corrupted import corrupted_views
from seva_jax.report.diff import differing_pieces, mark_differences
from seva_jax.report.markup import esc, shorten
from seva_jax.report.pictures import MAX_IMAGE_CHARS, Thumbnails, is_tiny
from seva_jax.report.terminal import printable
from seva_jax.runtime.files import Records
from seva_jax.types import Comparison, DataError, Prompt

_STYLE = {  # a notebook has no style sheet of ours; these colours are readable on dark pages, too
    "card": "border:1px solid #8886;border-radius:6px;padding:12px;margin:6px 0;max-width:760px",
    "pictures": "display:flex;flex-wrap:wrap;gap:12px",
    "figure": "margin:0",
    "caption": "font-size:85%;opacity:.75",
    "question": "font-weight:600;margin:8px 0",
    "label": "font-size:85%;opacity:.75;margin-top:6px",
    "answer": "white-space:pre-wrap",
    "mark": "background:#2da44e55;color:inherit",
    "del": "background:#cf222e44;color:inherit;text-decoration:none",
}


@dataclasses.dataclass(frozen=True)
class _Run:
    """What the pictures of pairs are made from; `data` opens the run's prompts."""

    config: Experiment
    processing: ImageProcessing
    data: Callable[[], PromptSet]


@dataclasses.dataclass(frozen=True)
class Pair:
    """One comparison that a run was trained on.

    In a notebook, a cell that ends with a pair shows it as a card; `str(pair)` is plain text.

    Attributes:
        comparison: the record itself.
    """

    comparison: Comparison
    _run: _Run = dataclasses.field(repr=False, compare=False)

    @property
    def id(self) -> str:
        """The id of the prompt."""
        return self.comparison.prompt.id

    @property
    def question(self) -> str:
        """The question."""
        return self.comparison.prompt.question

    @property
    def images(self) -> tuple[str, ...]:
        """The names of the images of the question."""
        return self.comparison.prompt.images

    @property
    def chosen(self) -> str:
        """The chosen answer."""
        return self.comparison.texts[0]

    @property
    def rejected(self) -> tuple[str, ...]:
        """The rejected answers; most pairs have one."""
        return self.comparison.texts[1:]

    def load_images(self) -> list[np.ndarray]:
        """Returns the images as they are stored, uint8 [H, W, 3].

        Raises:
            DataError: the run's data or an image are not there.
        """
        return [self._run.data().load_image(name) for name in self.images]

    def corrupted_images(self) -> list[tuple[str, np.ndarray]]:
        """Returns the corruption of each rejected answer, and the image as the model saw it.

        Of several images, only the first is returned: uint8, at the size of the model's input.
        Pairs that were not made by corruptions have none.

        Raises:
            DataError: the run's data or an image are not there.
        """
        config, processing = self._run.config, self._run.processing
        if not self.images or not self.comparison.corruptions:
            return []  # the run's data need not be there
        load = self._run.data().load_image
        views = corrupted_views(self.comparison, load, processing, config.corrupt, config.seed)
        return [(name, processing.denormalise(images[0])) for name, images in views if images]

    def show(self) -> None:
        """Shows the pair, see `show`."""
        show(self)

    def _pictures(self) -> tuple[list[tuple[str, np.ndarray]], str]:
        """Returns captions and images, and why there are none where they cannot be made."""

        def seen(prompt: Prompt) -> list[np.ndarray]:
            """The images of a prompt as the model saw them."""
            processing, load = self._run.processing, self._run.data().load_image
            return [processing.denormalise(processing(load(name))) for name in prompt.images]

        try:
            pictures = [("clean", image) for image in seen(self.comparison.prompt)]
            for view in self.comparison.more:
                pictures += [("other image", image) for image in seen(view.prompt)]
            pictures += self.corrupted_images()
        except DataError as error:
            return [], str(error)
        return pictures, ""

    def _repr_html_(self) -> str:
        """Returns a card: images, question, and answers with the words marked that differ."""
        pictures, problem = self._pictures()
        encode = Thumbnails(MAX_IMAGE_CHARS).data_url
        figures = "".join(_figure(caption, image, encode(image)) for caption, image in pictures)
        if problem:
            figures = f"<p>{esc(f'no images: {problem}')}</p>"
        chosen, rejected = mark_differences(self.chosen, self.rejected)
        answers = [("chosen", chosen), *(("rejected", answer) for answer in rejected)]
        rows = "".join(
            f'<div style="{_STYLE["label"]}">{label}</div>'
            f'<div style="{_STYLE["answer"]}" dir="auto">{_styled(answer)}</div>'
            for label, answer in answers
        )
        return (
            f'<div style="{_STYLE["card"]}"><div style="{_STYLE["pictures"]}">{figures}</div>'
            f'<div style="{_STYLE["question"]}" dir="auto">{esc(self.question)}</div>{rows}'
            f'<div style="{_STYLE["caption"]}">{esc(self.id)}</div></div>'
        )

    @override
    def __str__(self) -> str:
        """Returns the pair as text; words that only one of two answers has are in [brackets]."""
        answers = [("chosen", [(self.chosen, False)])]
        answers += [("rejected", [(answer, False)]) for answer in self.rejected]
        if len(answers) == 2:
            pieces = differing_pieces(self.chosen, self.rejected[0])
            answers = [(name, piece) for (name, _), piece in zip(answers, pieces, strict=True)]
        corruptions = [str(self._run.config.corrupt[i]) for i in self.comparison.corruptions]
        lines = [
            ("pair", self.id),
            ("images", ", ".join((*self.images, *corruptions)) or "none"),
            ("question", self.question),
            *((name, "".join(f"[{x}]" if m else x for x, m in p)) for name, p in answers),
        ]
        return "\n".join(f"{name + ':':<10}{printable(text).strip()}" for name, text in lines)


class Pairs(Sequence[Pair]):
    """The pairs of a run; each is read when it is asked for.

    Args:
        path: pairs.array_record of the run.
        config: the run's config.
        processing: the image pipeline.

    Raises:
        DataError: the file is damaged.
    """

    def __init__(self, path: Path, config: Experiment, processing: ImageProcessing) -> None:
        self._records = Records(path)
        data: list[PromptSet] = []

        def opened() -> PromptSet:
            if not data:
                data.append(config.prompts.open())
            return data[0]

        self._run = _Run(config, processing, opened)

    @override
    def __len__(self) -> int:
        return len(self._records)

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> list[Pair]: ...
    @override
    def __getitem__(self, index: int | slice) -> Pair | list[Pair]:
        records: Any = self._records[index]
        if isinstance(index, slice):
            return [Pair(comparison_from(record), self._run) for record in records]
        return Pair(comparison_from(records), self._run)

    @override
    def __iter__(self) -> Iterator[Pair]:
        return (self[index] for index in range(len(self)))

    @override
    def __repr__(self) -> str:
        return f"<{len(self):,} pairs>"


def show(*pairs: Pair) -> None:
    """Shows pairs: as cards in a notebook, as text elsewhere.

    A card has the images as the model saw them, clean and corrupted, the question, and the answers
    with the words marked that differ. Where the run's images are not there, it says so.

    Args:
        pairs: of `Model.pairs`.
    """
    for pair in pairs:
        if _in_notebook():
            sys.modules["IPython"].display.display(pair)
        else:
            print(pair, end="\n\n")


def _in_notebook() -> bool:
    """Returns whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def _figure(caption: str, image_HWC: np.ndarray, url: str) -> str:
    width = 160 if is_tiny(image_HWC) else 240
    pixels = "image-rendering:pixelated" if is_tiny(image_HWC) else ""
    return (
        f'<figure style="{_STYLE["figure"]}"><img src="{url}" width="{width}" style="{pixels}" '
        f'alt="{esc(shorten(caption, 100))}"><figcaption style="{_STYLE["caption"]}">'
        f"{esc(caption)}</figcaption></figure>"
    )


def _styled(answer: str) -> str:
    """Returns the HTML of `mark_differences` with colours of its own; texts in it are escaped."""
    for tag in ("mark", "del"):
        answer = answer.replace(f"<{tag}>", f'<{tag} style="{_STYLE[tag]}">')
    return answer or "(empty)"
