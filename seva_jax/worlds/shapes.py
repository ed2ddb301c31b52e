"""A world of coloured shapes whose training images have a misleading prior on colours.

In the supervised split most circles are red, most squares blue, and so on. A model trained on it
learns to see, but also learns the prior, and answers with it where a colour is hard to see. That is
the hallucination SeVa is meant to reduce, and here it can be counted, because the truth of every
image is known. Nothing is stored: image i of a split is a function of (seed, split, i).

What lives here: `ShapeWorld`, `WorldPrompts`. What does not: pairs (`pairs.py`), sequences
(`sequences.py`), trajectories (`trajectories.py`) and masks (`regions.py`) of the world.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from PIL import Image
from typing_extensions import override

from seva_jax.data.sources import PromptSet, PromptSource
from seva_jax.ranges import ADDED, FROM_0, FROM_1
from seva_jax.types import DataError, Prompt, Size

SHAPES = ("circle", "square", "triangle", "cross", "ring", "diamond")
COLORS = {
    "red": (230, 50, 50),
    "blue": (60, 90, 235),
    "green": (50, 190, 70),
    "yellow": (235, 215, 50),
    "purple": (165, 70, 205),
    "cyan": (60, 205, 215),
}
Kind = Literal["color", "presence", "describe"]
Scene = tuple[tuple[str, str, int], ...]  # (color, shape, cell) of each object
CELL = 16  # pixels; the image is a 2 x 2 grid of cells
_BACKGROUND = 20.0


def world_vocabulary() -> tuple[str, ...]:
    """Returns every word that occurs in a question or an answer of the world."""
    questions = ("What color is the ?", "Is there a", "Describe the image .", "USER : ASSISTANT")
    words = " ".join((*questions, "and in yes no")).split()
    return tuple(dict.fromkeys((*words, *SHAPES, *COLORS)))


def prior_color(shape: str) -> str:
    """Returns the colour that most objects of a shape have in a skewed split."""
    return list(COLORS)[SHAPES.index(shape)]


def wrong_color(color: str, shape: str, rng: np.random.Generator) -> str:
    """Returns the prior colour of a shape or, where that is the true one, any other colour."""
    wrong = [c for c in COLORS if c != color]
    prior = prior_color(shape)
    return prior if prior != color else wrong[int(rng.integers(len(wrong)))]


def absent_shape(present: Sequence[str], rng: np.random.Generator) -> str:
    """Returns one of the other shapes."""
    absent = [shape for shape in SHAPES if shape not in present]
    return absent[int(rng.integers(len(absent)))]


def describe(objects: Sequence[tuple[str, str]]) -> str:
    """Returns the answer that names objects, each (color, shape)."""
    return " and ".join(f"a {shape} in {color}" for color, shape in objects)


def _mask(shape: str) -> np.ndarray:
    """Returns the pixels of a cell that a centred shape covers, float32 [16, 16]."""
    y, x = np.mgrid[:CELL, :CELL] - (CELL - 1) / 2
    radius = 5.5
    distance = np.hypot(x, y)
    masks = {
        "circle": distance <= radius,
        "square": np.maximum(abs(x), abs(y)) <= 4.5,
        "triangle": (y <= 4.5) & (y >= -5.5) & (abs(x) <= (y + 6.0) / 1.9),
        "cross": (np.minimum(abs(x), abs(y)) <= 1.5) & (np.maximum(abs(x), abs(y)) <= radius),
        "ring": (distance <= radius) & (distance >= 2.5),
        "diamond": abs(x) + abs(y) <= 6.0,
    }
    return masks[shape].astype(np.float32)


_MASKS = {shape: _mask(shape) for shape in SHAPES}


@dataclasses.dataclass(frozen=True)
class ShapeWorld:
    """How scenes are sampled and drawn.

    Attributes:
        seed: determines every scene and image.
        skew: probability that an object of a skewed split has the prior colour of its shape.
        color_noise: standard deviation of the random cast on each object's colour, for each of
            red, green and blue, in levels of 255. It makes colours ambiguous, so that a model that
            has learnt the prior answers with it where it should not.
        pixel_noise: standard deviation of the noise on every pixel, in levels of 255.
        max_objects: a scene has 1 to this many objects (at most 4), each of a different shape.
    """

    seed: Annotated[int, FROM_0] = 0
    skew: float = 0.8
    color_noise: Annotated[float, FROM_0] = 35.0
    pixel_noise: Annotated[float, FROM_0] = 8.0
    max_objects: int = 3

    def __post_init__(self) -> None:
        if not 1 <= self.max_objects <= 4:
            raise DataError(f"ShapeWorld.max_objects is {self.max_objects}; give 1 to 4")
        if not 0 <= self.skew <= 1:
            raise DataError(f"ShapeWorld.skew is {self.skew}; it is a probability, give 0 to 1")

    def rng(self, *key: object) -> np.random.Generator:
        """Returns a generator seeded by the world's seed and a key."""
        digest = hashlib.sha256(repr((self.seed, *key)).encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8], "little"))

    def scene(self, split: str, index: int, skewed: bool) -> Scene:
        """Returns the objects of one image, in the order of their cells."""
        rng = self.rng("scene", split, index)
        num = int(rng.integers(1, self.max_objects + 1))
        shapes = rng.permutation(len(SHAPES))[:num]
        cells = rng.permutation(4)[:num]
        objects = []
        for shape, cell in zip(shapes, cells, strict=True):
            name = SHAPES[shape]
            others = [c for c in COLORS if c != prior_color(name)]
            is_prior = rng.random() < (self.skew if skewed else 1 / len(COLORS))
            color = prior_color(name) if is_prior else others[int(rng.integers(len(others)))]
            objects.append((color, name, int(cell)))
        return tuple(sorted(objects, key=lambda o: o[2]))

    def draw(self, split: str, index: int, skewed: bool) -> np.ndarray:
        """Returns the image of a scene, uint8 [32, 32, 3]."""
        rng = self.rng("draw", split, index)
        image = np.full((2 * CELL, 2 * CELL, 3), _BACKGROUND, np.float32)
        for color, shape, cell in self.scene(split, index, skewed):
            cast = rng.normal(0, self.color_noise, 3)
            paint = (np.array(COLORS[color], np.float32) + cast).clip(0, 255)
            mask = np.roll(_MASKS[shape], tuple(rng.integers(-1, 2, 2)), (0, 1))[..., None]
            y, x = divmod(cell, 2)
            area = image[y * CELL : (y + 1) * CELL, x * CELL : (x + 1) * CELL]
            area += mask * (paint - area)
        image += rng.normal(0, self.pixel_noise, image.shape)
        return image.clip(0, 255).round().astype(np.uint8)

    def prompt(self, split: str, index: int, skewed: bool, kind: Kind) -> Prompt:
        """Returns a question about one image, with the true answer in `meta`."""
        rng = self.rng("ask", split, index, kind)
        scene = self.scene(split, index, skewed)
        color, shape, _ = scene[int(rng.integers(len(scene)))]
        prior = category = ""
        if kind == "color":
            question, answer, prior = f"What color is the {shape} ?", color, prior_color(shape)
        elif kind == "presence":
            # The answer to half the questions is yes. The others name an absent shape ("random"),
            # or a present shape in a wrong colour, the prior's if that is wrong ("adversarial").
            answer = "yes" if rng.random() < 0.5 else "no"
            category = "random" if rng.random() < 0.5 else "adversarial"
            if category == "random":
                present = [name for _, name, _ in scene]
                thing = shape if answer == "yes" else absent_shape(present, rng)
            else:
                named = color if answer == "yes" else wrong_color(color, shape, rng)
                thing = f"{named} {shape}"
            question = f"Is there a {thing} ?"
        else:
            question = "Describe the image ."
            answer = describe([(color, shape) for color, shape, _ in scene])
        meta = {
            "kind": kind,
            "answer": answer,
            "prior": prior,
            "category": category,
            "objects": [[color, shape] for color, shape, _ in scene],
        }
        name = f"{split}/{index:06d}"
        return Prompt(f"{name}/{kind}", question, (name,), meta)


@dataclasses.dataclass(frozen=True)
class WorldPrompts(PromptSource):
    """Prompts about images of a world.

    Attributes:
        world: how images are drawn.
        split: name of the split; splits of different names have different images.
        skewed: whether colours follow the skewed prior; otherwise they are uniform.
        kinds: kinds of question, used in turn.
        num: number of prompts, with one image each.
        sizes: heights and widths that images are stretched to, in turn; empty leaves all as drawn.
    """

    world: ShapeWorld = ShapeWorld()
    split: str = "unlabelled"
    skewed: bool = False
    kinds: tuple[Kind, ...] = ("color",)
    num: Annotated[int, FROM_1] = 1000
    sizes: Annotated[tuple[Size, ...], ADDED] = ()

    @override
    def open(self) -> PromptSet:
        if any(side < 1 for size in self.sizes for side in size):
            raise DataError(f"WorldPrompts.sizes is {self.sizes}; give heights and widths from 1")
        prompts = [
            self.world.prompt(self.split, i, self.skewed, self.kinds[i % len(self.kinds)])
            for i in range(self.num)
        ]

        def load_image(name: str) -> np.ndarray:
            split, index = name.rsplit("/", 1)
            drawn = self.world.draw(split, int(index), self.skewed)
            if not self.sizes:
                return drawn
            height, width = read_size(name)
            return np.asarray(
                Image.fromarray(drawn).resize((width, height), Image.Resampling.BILINEAR)
            )

        def read_size(name: str) -> Size:
            index = int(name.rsplit("/", 1)[1])
            return self.sizes[index % len(self.sizes)] if self.sizes else (2 * CELL, 2 * CELL)

        return PromptSet(prompts, load_image, read_size=read_size)
