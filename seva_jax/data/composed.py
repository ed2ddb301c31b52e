"""Prompts about one of several images, made of prompts about one: MIA-DPO (arXiv 2410.17637).

What lives here: `Composed`, which wraps a source. What does not: drawing (`images/compose.py`), and
which answers are kept (`pairs/mia.py`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np

from seva_jax.data.collect import counted
from seva_jax.data.sources import PromptSet, PromptSource
from seva_jax.data.wrapped import changed, opened_prompts
from seva_jax.images.compose import GRIDS, Box, draw_grid, draw_inset, grid_box, inset_box
from seva_jax.ranges import FROM_0, FROM_1, Range
from seva_jax.types import IMAGE_MARKER, DataError, ExampleError, Prompt

Arrangement = Literal["sequence", "grid", "inset"]
_PREFIX = "composed:"


@dataclasses.dataclass(frozen=True)
class Composed(PromptSource):
    """Each prompt of a source with other images of it around, about which nothing is asked.

    The images come one after the other ("sequence"), as labelled tiles of one image ("grid"), or as
    a picture in a picture ("inset"). The prompt's own image is the target, at a random place. Its
    place is in `meta`: `arrangement`, `num_images`, `target` (which image, from 0) and, for one
    image made of several, `box` (see `images.compose.Box`).

    Of the source, prompts with one image, without markers in the question and with a
    `meta["answer"]` are used; the others are counted. A made image is drawn when it is loaded, from
    a name that says all.

    Attributes:
        source: the prompts, with answers.
        arrangements: taken in turn.
        sequence_sizes: images of a sequence, taken in turn.
        grid_sizes: tiles of a grid, taken in turn; see `images.compose.GRIDS`.
        tile: side of a tile, and of an image with an inset, in pixels.
        inset: side of the inset as a share of that of the whole.
        label: what stands on tile {number}.
        numbered: how sequences and grids ask {question} about image {number}, from 1.
        centred: how an inset asks {question}; its own image is the inner one. The papers' words
            are not published; these are ours.
        seed: of the other images and of places.
    """

    source: PromptSource = PromptSource()
    arrangements: tuple[Arrangement, ...] = ("sequence", "grid", "inset")
    sequence_sizes: tuple[int, ...] = (2, 3, 4, 5)
    grid_sizes: tuple[int, ...] = tuple(GRIDS)
    tile: Annotated[int, FROM_1] = 448
    inset: Annotated[float, Range(0, 1, above=True, below=True)] = 0.7
    label: str = "Image{number}"
    numbered: str = "In Image{number}, {question}"
    centred: str = "In the image in the centre, {question}"
    seed: Annotated[int, FROM_0] = 0

    def open(self) -> PromptSet:
        """See `PromptSource.open`."""
        if not self.arrangements:
            raise DataError("Composed.arrangements is empty; give at least one")
        for field, sizes in (
            ("sequence_sizes", self.sequence_sizes),
            ("grid_sizes", self.grid_sizes),
        ):
            if min(sizes, default=0) < 2:
                raise DataError(f"Composed.{field} is {sizes}; give numbers of 2 or more")
        self._check_words()
        data = opened_prompts(self.source, "Composed")
        usable, drops, left_out = changed(data, data.prompts, _usable)
        names = sorted({prompt.images[0] for prompt in usable})
        most = max(2, *self.sequence_sizes, *self.grid_sizes)
        if len(names) < most:
            raise DataError(
                f"Composed.source has {len(names)} images with an answered question "
                f"(left out: {counted(drops) or 'none'}), and {most} are put together; give "
                "more, or fewer in sequence_sizes and grid_sizes"
            )

        def load_image(name: str) -> np.ndarray:
            if not name.startswith(_PREFIX):
                return data.load_image(name)
            kind, tile, extra, *parts = json.loads(name.removeprefix(_PREFIX))
            images = [data.load_image(part) for part in parts]
            if kind == "grid":
                return draw_grid(images, tile, extra)
            return draw_inset(*images, share=extra, side=tile)

        return PromptSet(
            [self._composed(i, prompt, names) for i, prompt in enumerate(usable)],
            load_image,
            drops,
            left_out=left_out,
        )

    def _check_words(self) -> None:
        """Raises `DataError` where a question or a label could not be written."""
        number, question = {"number": 1}, {"question": ""}
        for field, given, needed in (
            ("label", number, ()),
            ("numbered", number | question, ("{number}", "{question}")),
            ("centred", question, ("{question}",)),
        ):
            text = getattr(self, field)
            try:
                text.format(**given)
            except (LookupError, ValueError, AttributeError) as error:
                names = " and ".join(f"{{{name}}}" for name in given)
                raise DataError(
                    f"Composed.{field} {text!r} cannot be filled in ({type(error).__name__}: "
                    f"{error}); use no braces but {names}"
                ) from error
            if missing := [word for word in needed if word not in text]:
                raise DataError(f"Composed.{field} {text!r} lacks {' and '.join(missing)}; add it")

    def _composed(self, index: int, prompt: Prompt, names: Sequence[str]) -> Prompt:
        turn, kind = divmod(index, len(self.arrangements))
        arrangement = self.arrangements[kind]
        num = 2
        if arrangement != "inset":
            sizes = self.sequence_sizes if arrangement == "sequence" else self.grid_sizes
            num = sizes[turn % len(sizes)]
        digest = hashlib.sha256(f"{self.seed}/{prompt.id}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
        images = _others(rng, names, prompt.images[0], num - 1)
        target = int(rng.integers(num))
        box, question = None, self.centred.format(question=prompt.question)
        if arrangement == "inset":
            target = 1  # the inner one
            box, extra = inset_box(self.inset, self.tile), self.inset
        else:
            question = self.numbered.format(number=target + 1, question=prompt.question)
            extra = self.label
            if arrangement == "grid":
                box = grid_box(num, target, self.tile)
        images.insert(target, prompt.images[0])
        if box is not None:
            parts = [arrangement, self.tile, extra, *images]
            images = [_PREFIX + json.dumps(parts, ensure_ascii=False)]
        meta: dict[str, Any] = {"arrangement": arrangement, "num_images": num, "target": target}
        meta |= {"box": list(box)} if box else {}
        return Prompt(prompt.id, question, tuple(images), prompt.meta | meta)


def _usable(prompt: Prompt) -> Prompt:
    """The prompt.

    Raises:
        ExampleError: no other images can be put around its own.
    """
    answer = prompt.meta.get("answer")
    if not isinstance(answer, str) or not answer.strip():
        raise ExampleError("meta has no answer; give one", "no answer")
    if len(prompt.images) != 1 or IMAGE_MARKER in prompt.question:
        raise ExampleError("needs one image, and no marker in the question", "not one image")
    return prompt


def _others(rng: np.random.Generator, names: Sequence[str], own: str, num: int) -> list[str]:
    """Different images, none of them the prompt's own."""
    drawn = rng.choice(len(names), num + 1, replace=False)
    return [name for name in (names[int(i)] for i in drawn) if name != own][:num]


def target_of(prompt: Prompt) -> tuple[str, int, int, Box | None]:
    """Arrangement, number of images, which of them is the target, and where in a made image.

    Raises:
        DataError: the prompt is not one of `Composed`.
    """
    meta = prompt.meta
    if "arrangement" not in meta:
        raise DataError(
            f"prompt {prompt.id!r} is not about one of several images; wrap the prompts' source in "
            "seva_jax.data.composed.Composed"
        )
    box = Box(*meta["box"]) if "box" in meta else None
    return meta["arrangement"], meta["num_images"], meta["target"], box
