"""Prompts about one of several images, made from prompts about one: MIA-DPO (arXiv 2410.17637).

What lives here: `Composed`, which wraps a source. What does not: drawing
(`seva_jax/images/compose.py`), and which answers become pairs (`seva_jax/pairs/mia.py`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from typing_extensions import override

from seva_jax.data.collect import counted
from seva_jax.data.sources import PromptSet, PromptSource, generator
from seva_jax.data.wrapped import changed, opened_prompts
from seva_jax.images.compose import (
    GRIDS,
    Box,
    draw_grid,
    draw_inset,
    grid_box,
    inset_box,
    noised,
)
from seva_jax.ranges import FROM_0, FROM_1, Range
from seva_jax.types import IMAGE_MARKER, DataError, ExampleError, Prompt, Size

Arrangement = Literal["sequence", "grid", "inset"]
_PREFIX = "composed:"


@dataclasses.dataclass(frozen=True)
class Composed(PromptSource):
    """Each prompt of a source, its image shown among other images of the source.

    The images are separate ("sequence"), labelled tiles of one image ("grid"), or a picture in a
    picture ("inset"). The prompt's own image is the target. Except in an inset, where it is the
    inner image, it is at a random place. The `meta` of a prompt says where: `arrangement`,
    `num_images`, `target` (the index of the image, from 0) and, where one image is made of several,
    `box` (see `seva_jax.images.compose.Box`).

    Only prompts with one image, no marker in the question, and a `meta["answer"]` are used; the
    others are left out and counted. A grid or an inset is drawn when it is loaded: its name holds
    everything that this needs.

    As in the release, the model is asked about a grid whose target tile is covered by noise, and
    about an inset with noise on the whole image; `MiaPairs` trains on the images without it. For
    other uses, such as an evaluation, set `tile_noise` and `inset_noise` to 0.

    Attributes:
        source: the prompts, with answers.
        arrangements: the arrangements, which prompts use in turn.
        sequence_sizes: numbers of images in a sequence, used in turn.
        grid_sizes: numbers of tiles in a grid, used in turn: 2, 3, 4, 6 or 9.
        tile: side of a tile, and of an image with an inset, in pixels.
        inset: side of the inset as a share of the side of the whole image.
        tile_noise: standard deviation of the noise on the target tile, in levels of 0 to 255; sums
            outside this range become its nearest end. 225 in the release; 0 adds none.
        inset_noise: standard deviation of the noise on an image with an inset; sums outside 0 to
            255 wrap around. 49 in the release; 0 adds none.
        label: text on tile {number}.
        listed: what stands before the question for each image {number} of a sequence, with the
            marker of the image; empty for no markers.
        numbered: how sequences and grids ask {question} about image {number}, counted from 1. The
            first letter of the question becomes small.
        centred: how an inset asks {question} about its inner image. The release draws one of 90
            such wordings.
        seed: seed of the choice of other images and of places.
    """

    source: PromptSource = PromptSource()
    arrangements: tuple[Arrangement, ...] = ("sequence", "grid", "inset")
    sequence_sizes: tuple[int, ...] = (2, 3, 4, 5)
    grid_sizes: tuple[int, ...] = tuple(GRIDS)
    tile: Annotated[int, FROM_1] = 448
    inset: Annotated[float, Range(0, 1, above=True, below=True)] = 0.7
    tile_noise: Annotated[float, FROM_0] = 225.0
    inset_noise: Annotated[float, FROM_0] = 49.0
    label: str = "Image{number}"
    listed: str = "Image{number}:<image>\n"
    numbered: str = "In Image{number}, {question}"
    centred: str = "For the image in the center, {question}"
    seed: Annotated[int, FROM_0] = 0

    @override
    def open(self) -> PromptSet:
        if not self.arrangements:
            raise DataError("Composed.arrangements is empty; give at least one")
        for field in ("sequence_sizes", "grid_sizes"):
            sizes = getattr(self, field)
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
            kind, tile, extra, noise, *parts = json.loads(name.removeprefix(_PREFIX))
            images = [data.load_image(part) for part in parts]
            if kind == "grid":
                image = draw_grid(images, tile, extra)
            else:
                image = draw_inset(*images, share=extra, side=tile)
            return _with_noise(image, *noise) if noise else image

        def read_size(name: str) -> Size:
            if not name.startswith(_PREFIX):
                return data.image_size(name)
            kind, tile, _, _, *parts = json.loads(name.removeprefix(_PREFIX))
            if kind == "inset":
                return tile, tile
            box = grid_box(len(parts), 0, tile)
            return box.height, box.width

        prompts = [self._composed(i, prompt, names) for i, prompt in enumerate(usable)]
        return PromptSet(
            prompts, load_image, drops, left_out=left_out, notes=data.notes, remote=data.remote,
            read_size=read_size,
        )  # fmt: skip

    def _check_words(self) -> None:
        """Raises `DataError` unless the templates of questions and labels can be filled in."""
        number, question = {"number": 1}, {"question": ""}
        for field, given, needed in (
            ("label", number, ()),
            ("listed", number, (IMAGE_MARKER,) if self.listed else ()),
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
        sizes_of = {"sequence": self.sequence_sizes, "grid": self.grid_sizes, "inset": (2,)}
        sizes = sizes_of[arrangement]
        num = sizes[turn % len(sizes)]
        rng = generator(self.seed, "composed", prompt.id)
        images = _others(rng, names, prompt.images[0], num - 1)
        target = int(rng.integers(num))
        asked = prompt.question[:1].lower() + prompt.question[1:]
        box, question = None, self.centred.format(question=asked)
        if arrangement == "inset":
            target = 1  # the inner image
            box, extra = inset_box(self.inset, self.tile), self.inset
            std, part, wrap = self.inset_noise, Box(0, 0, *box[4:], *box[4:]), True
        else:
            question = self.numbered.format(number=target + 1, question=asked)
            extra = self.label
            if arrangement == "grid":
                box = grid_box(num, target, self.tile)
                std, part, wrap = self.tile_noise, box, False
            else:
                listed = (self.listed.format(number=i + 1) for i in range(num))
                question = "".join(listed) + question
        images.insert(target, prompt.images[0])
        meta: dict[str, Any] = {"arrangement": arrangement, "num_images": num, "target": target}
        if box is not None:
            noise = [std, wrap, int(rng.integers(2**32)), *part[:4]] if std else []
            drawing = (arrangement, self.tile, extra)
            plain, asked_about = (_name(*drawing, added, *images) for added in ([], noise))
            images = [asked_about]
            meta |= {"box": list(box)} | ({"plain": plain} if noise else {})
        return Prompt(prompt.id, question, tuple(images), prompt.meta | meta)


def _name(*parts: Any) -> str:
    """Returns the name of a composed image, which `load_image` draws it from."""
    return _PREFIX + json.dumps(parts, ensure_ascii=False)


def _with_noise(
    image_HWC: np.ndarray, std: float, wrap: bool, seed: int, *corners: int
) -> np.ndarray:
    """Returns an image with normal noise on a part of it, see `Box` for the corners."""
    left, top, right, bottom = corners
    image_HWC = image_HWC.copy()
    part = image_HWC[top:bottom, left:right]
    noise_HWC = np.random.default_rng(seed).normal(0, std, part.shape)
    image_HWC[top:bottom, left:right] = noised(part, noise_HWC, wrap)
    return image_HWC


def without_noise(prompt: Prompt) -> Prompt:
    """Returns a prompt of `Composed` about the same image without noise."""
    if "plain" not in prompt.meta:
        return prompt
    meta = {key: value for key, value in prompt.meta.items() if key != "plain"}
    return dataclasses.replace(prompt, images=(prompt.meta["plain"],), meta=meta)


def _usable(prompt: Prompt) -> Prompt:
    """Returns the prompt itself.

    Raises:
        ExampleError: it has no answer, or not exactly one image in front of its question.
    """
    answer = prompt.meta.get("answer")
    if not isinstance(answer, str) or not answer.strip():
        raise ExampleError("meta has no answer; give one", "no answer")
    if len(prompt.images) != 1 or IMAGE_MARKER in prompt.question:
        raise ExampleError("needs one image, and no marker in the question", "not one image")
    return prompt


def _others(rng: np.random.Generator, names: Sequence[str], own: str, num: int) -> list[str]:
    """Draws `num` different images other than the prompt's own."""
    drawn = rng.choice(len(names), num + 1, replace=False)
    return [name for name in (names[int(i)] for i in drawn) if name != own][:num]


def target_of(prompt: Prompt) -> tuple[str, int, int, Box | None]:
    """Returns the arrangement, the number of images, the index of the target, and its box if any.

    Raises:
        DataError: the prompt was not made by `Composed`.
    """
    meta = prompt.meta
    if "arrangement" not in meta:
        raise DataError(
            f"prompt {prompt.id!r} is not about one of several images; wrap the prompts' source in "
            "seva_jax.data.Composed"
        )
    box = Box(*meta["box"]) if "box" in meta else None
    return meta["arrangement"], meta["num_images"], meta["target"], box
