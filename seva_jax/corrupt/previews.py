"""One picture under every corruption: what the model sees, with the line for a config.

What lives here: the corruptions and strengths that are shown, `preview`, and contact sheets. What
does not: the page of the command (`seva_jax/report/corruptions.py`), and which strength helps
(`README.md`).

    from seva_jax.corrupt import preview
    preview("cat.jpg")  # the last line of a notebook's cell
"""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from seva_jax.corrupt import auto, colour, diffusion, geometry, recipes, sharpness
from seva_jax.corrupt.base import (
    Compose,
    Corruption,
    apply_jitted,
    apply_pixels,
    corruption_key,
    numpy_generator,
)
from seva_jax.corrupt.region import RegionNoise
from seva_jax.corrupt.sequence import Drop, Reverse, SequenceCorruption, Shuffle
from seva_jax.images import ImageProcessing
from seva_jax.images.load import decode_image
from seva_jax.runtime.files import read_bytes
from seva_jax.runtime.stores import make_folder

Shown = Corruption | RegionNoise
_FRAMES = 6  # that stand for a sequence

# Title, what to know, and the corruptions. Those that act by chance always do here (p=1).
SECTIONS: tuple[tuple[str, str, tuple[Shown, ...]], ...] = (
    (
        "Diffusion noise",
        "SeVa's: added to the normalised image, at the model's size. 500 and 800 are published.",
        tuple(diffusion.DiffusionNoise(t) for t in (*range(100, 1000, 100), 999)),
    ),
    (
        "Noise on pixels",
        "POVID's: added before padding and resizing, and stronger at the same step.",
        (
            *(diffusion.PixelNoise(t) for t in (100, 300, 500, 700, 900)),
            diffusion.PixelNoise(500, overflow="wrap"),
        ),
    ),
    (
        "Chains of augmentations",
        "Crop, flip, colours and blur as in contrastive learning; MoCo's is published with SeVa.",
        (
            recipes.moco(),
            recipes.byol(),
            recipes.simclr(),
            Compose((geometry.RandomCrop(160), sharpness.GaussianBlur((2.0, 4.0)))),
        ),
    ),
    (
        "Geometry",
        "Sizes are pixels of the photograph. What is outside becomes black.",
        (
            geometry.Pad(),
            geometry.CenterCrop(),
            geometry.RandomCrop(),
            geometry.RandomResizedCrop(),
            geometry.RandomResizedCrop(scale=(0.08, 0.2)),
            geometry.RandomHorizontalFlip(p=1.0),
            geometry.RandomPerspective(),
            geometry.RandomRotation(),
            geometry.RandomRotation((90.0, 90.0)),
            geometry.RandomAffine(),
        ),
    ),
    (
        "Colour",
        "Shapes stay; questions about colours become hard.",
        (
            colour.Grayscale(),
            colour.RandomGrayscale(p=1.0),
            colour.ColorJitter(),
            colour.ColorJitter(0.8, 0.8, 0.8, 0.4),
            colour.RandomInvert(p=1.0),
            colour.RandomPosterize(p=1.0),
            colour.RandomPosterize(1, p=1.0),
            colour.RandomSolarize(p=1.0),
            colour.RandomEqualize(p=1.0),
            colour.RandomAutocontrast(p=1.0),
        ),
    ),
    (
        "Blur and sharpness",
        "Standard deviations are pixels of the photograph, so large photographs need more.",
        (
            sharpness.GaussianBlur(),
            sharpness.GaussianBlur((5.0, 5.0)),
            sharpness.GaussianBlur((15.0, 15.0)),
            sharpness.RandomAdjustSharpness(p=1.0),
        ),
    ),
    (
        "Random operations",
        "One or two operations of a list, drawn for each image.",
        (auto.RandAugment(), auto.RandAugment(4, 25), auto.AutoAugment()),
    ),
    (
        "A region",
        "MMedPO's: noise inside a mask or a heat map, here an ellipse, and nowhere else. It makes "
        "pairs of two images: prompts=NoisedRegions(PAIRS, MapFolder(DIR), noise=...).",
        (
            RegionNoise("mask"),
            RegionNoise("mask", overflow="wrap"),
            RegionNoise("mask", "diffusion"),
            RegionNoise("mask", "diffusion", step=900),
            RegionNoise(),
        ),
    ),
    (
        "A sequence",
        "TEMPLE's: the images of a prompt, such as frames, in another order or fewer of them. "
        f"Here {_FRAMES} frames with their numbers.",
        (Drop(), Drop(3), Shuffle(3), Shuffle(6), Reverse(), Reverse(6)),
    ),
)


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture as the model sees it under one corruption.

    Attributes:
        line: Python for a config that makes this corruption; "" for the picture itself.
        image_HWC: uint8; values that noise puts outside of black and white are clipped.
    """

    line: str
    image_HWC: np.ndarray


@dataclasses.dataclass(frozen=True)
class Preview:
    """One picture under many corruptions; a notebook shows it.

    Attributes:
        original: the picture as the model sees it.
        sections: (title, what to know, pictures) in order.
    """

    original: Picture
    sections: tuple[tuple[str, str, tuple[Picture, ...]], ...]

    def _repr_html_(self) -> str:
        body = _figure(self.original.image_HWC, "not corrupted")
        for title, about, pictures in self.sections:
            figures = "".join(_figure(x.image_HWC, x.line) for x in pictures)
            body += f"<h3>{html.escape(title)}</h3><p>{html.escape(about)}</p><div>{figures}</div>"
        return f'<div style="max-width:1100px">{body}</div>'

    def sheet(self, side: int = 144, columns: int = 7) -> Image.Image:
        """Returns all pictures in a table, each with its line under it.

        Args:
            side: longest side of a picture in pixels.
            columns: number of pictures in a row.
        """
        head, foot, gap = 22, 26, 6
        blocks = [("", (self.original,)), *((title, shown) for title, _, shown in self.sections)]
        from PIL import ImageDraw

        cell = side + gap
        heights = [bool(t) * head + -(-len(x) // columns) * (cell + foot) for t, x in blocks]
        sheet = Image.new("RGB", (columns * cell + gap, sum(heights) + gap), "white")
        draw, top = ImageDraw.Draw(sheet), gap
        for (title, pictures), height in zip(blocks, heights, strict=True):
            if title:
                draw.text((gap, top + 3), title, "black", font_size=13)
            for index, picture in enumerate(pictures):
                row, column = divmod(index, columns)
                x, y = gap + column * cell, top + bool(title) * head + row * (cell + foot)
                image = Image.fromarray(picture.image_HWC)
                image.thumbnail((side, side), Image.Resampling.LANCZOS)
                sheet.paste(image, (x, y))
                for number, words in enumerate(_wrapped(picture.line or "not corrupted", side)):
                    draw.text((x, y + side + 1 + 11 * number), words, "black", font_size=9)
            top += height
        return sheet

    def save_sheet(self, path: Path) -> None:
        """Writes `sheet` to a file; a name that ends in .jpg makes a small one."""
        buffer = io.BytesIO()
        if path.suffix.lower() == ".jpg":
            self.sheet().save(buffer, "JPEG", quality=55, optimize=True)
        else:
            self.sheet().save(buffer, "PNG")
        make_folder(path.parent)
        path.write_bytes(buffer.getvalue())


def _wrapped(line: str, width: int) -> list[str]:
    """Returns at most two lines of small print that fit into a number of pixels."""
    num = max(width * 2 // 9, 8)  # characters; small print is about 4.5 pixels wide
    if len(line) <= num:
        return [line]
    cut = max(line.rfind(mark, 0, num) for mark in "(, ") + 1 or num
    rest = line[cut:].strip()
    return [line[:cut], rest if len(rest) <= num else rest[: num - 1] + "…"]


def _figure(image_HWC: np.ndarray, caption: str) -> str:
    buffer = io.BytesIO()
    image = Image.fromarray(image_HWC)
    image.save(buffer, "JPEG", quality=80)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return (
        '<figure style="display:inline-block;vertical-align:top;margin:0 10px 10px 0;'
        f'width:224px"><img alt="{html.escape(caption, quote=True)}" style="width:100%" '
        f'src="data:image/jpeg;base64,{data}"><figcaption style="font:11px monospace;'
        f'overflow-wrap:anywhere">{html.escape(caption)}</figcaption></figure>'
    )


def preview(
    image: np.ndarray | Image.Image | str | os.PathLike[str],
    corruptions: Iterable[Shown] = (),
    *,
    processing: ImageProcessing | None = None,
    seed: int = 0,
    tick: Callable[[], object] = lambda: None,
) -> Preview:
    """Returns one picture under every corruption of this package, and under others.

    Args:
        image: uint8 RGB [H, W, 3], a picture of Pillow, or the path of a file.
        corruptions: shown first, such as the `corrupt` of a config.
        processing: image pipeline of the model; None is that of LLaVA-1.5.
        seed: what is random differs by seed.
        tick: called after each picture, `num_pictures` times in all.

    Raises:
        DataError: the array is not an image.
        ExampleError: the file cannot be read or does not decode.
    """
    if isinstance(image, str | os.PathLike):
        image_HWC = decode_image(read_bytes(image), name=str(image))
    elif isinstance(image, Image.Image):
        image_HWC = np.asarray(image.convert("RGB"))
    else:
        image_HWC = image
    processing = processing or ImageProcessing()
    own = tuple(corruptions)
    sections = (("Yours", "The corruptions of the config.", own), *SECTIONS) if own else SECTIONS
    original = Picture("", processing.denormalise(processing(image_HWC)))

    def one(corruption: Shown) -> Picture:
        picture = _shown(corruption, image_HWC, processing, seed)
        tick()
        return picture

    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        return Preview(original, tuple((t, x, tuple(map(one, some))) for t, x, some in sections))


def num_pictures(corruptions: Iterable[Shown] = ()) -> int:
    """Returns the number of pictures that `preview` makes, without the original."""
    return len(tuple(corruptions)) + sum(len(some) for _, _, some in SECTIONS)


def _shown(
    corruption: Shown, image_HWC: np.ndarray, processing: ImageProcessing, seed: int
) -> Picture:
    line = config_line(corruption)
    key = corruption_key(seed, line, 0)
    if isinstance(corruption, SequenceCorruption):
        return Picture(line, _frames(corruption, key, image_HWC, processing))
    if isinstance(corruption, RegionNoise):
        height, width, _ = image_HWC.shape
        changed = processing(corruption(key, image_HWC, _ellipse(height, width)))
    elif corruption.space == "pixels":
        changed = processing(apply_pixels(corruption, key, image_HWC))
    else:
        changed = np.asarray(apply_jitted(corruption, key, processing(image_HWC)))
    return Picture(line, processing.denormalise(changed))


def _ellipse(height: int, width: int) -> np.ndarray:
    """Returns a map that is 1 inside an ellipse in the middle, 0 elsewhere."""
    y, x = np.mgrid[:height, :width]
    inside = ((y / height - 0.5) / 0.25) ** 2 + ((x / width - 0.5) / 0.25) ** 2 <= 1
    return inside.astype(np.float32)


def _frames(
    corruption: SequenceCorruption,
    key: jax.Array,
    image_HWC: np.ndarray,
    processing: ImageProcessing,
) -> np.ndarray:
    """Returns the frames that a corruption of sequences keeps, three in a row."""
    from PIL import ImageDraw

    image = Image.fromarray(processing.denormalise(processing(image_HWC)))
    image.thumbnail((112, 112), Image.Resampling.LANCZOS)
    frames = []
    for index in corruption.order(numpy_generator(key), _FRAMES):
        frame = image.copy()
        draw = ImageDraw.Draw(frame)
        draw.rectangle((0, 0, 26, 26), "black")
        draw.text((8, 2), str(index + 1), "white", font_size=20)
        frames.append(np.asarray(frame))
    frames += [np.full_like(frames[0], 255)] * (-len(frames) % 3)
    rows = [np.concatenate(frames[i : i + 3], axis=1) for i in range(0, len(frames), 3)]
    return np.concatenate(rows)


def config_line(corruption: Any) -> str:
    """Returns Python that makes a corruption, without what is its default.

    >>> config_line(diffusion.DiffusionNoise(800)), config_line(recipes.moco())
    ('DiffusionNoise(step=800)', 'moco()')
    """
    for recipe in (recipes.moco, recipes.byol, recipes.simclr):
        if corruption == recipe():
            return f"{recipe.__name__}()"
    if isinstance(corruption, Compose):
        steps = ", ".join(map(config_line, corruption.steps))
        return f"Compose(({steps}{',' * (len(corruption.steps) == 1)}))"
    given = [
        f"{field.name}={getattr(corruption, field.name)!r}"
        for field in dataclasses.fields(corruption)
        if field.default is dataclasses.MISSING or getattr(corruption, field.name) != field.default
    ]
    # What a reader most wants to change is written out, also where it is the default.
    if isinstance(corruption, diffusion.DiffusionNoise) and corruption.step == 500:
        given.insert(0, "step=500")
    return f"{type(corruption).__name__}({', '.join(given)})"


def corruption_classes(sections: Sequence[Any] = SECTIONS) -> set[type]:
    """Returns the classes of all corruptions that are shown, also inside chains."""
    classes: set[type] = set()
    todo = [corruption for _, _, some in sections for corruption in some]
    while todo:
        corruption = todo.pop()
        classes.add(type(corruption))
        todo += getattr(corruption, "steps", ())
    return classes
