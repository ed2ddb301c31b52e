"""Masks of the objects in images of a world.

What lives here: `AskedObject`. What does not: the world (`shapes.py`), and the pairs that use masks
(`seva_jax/data/regions.py`).
"""

from __future__ import annotations

import dataclasses

import numpy as np
from typing_extensions import override

from seva_jax.data.regions import Maps
from seva_jax.types import ExampleError, Prompt
from seva_jax.worlds.shapes import CELL, SHAPES, ShapeWorld


@dataclasses.dataclass(frozen=True)
class AskedObject(Maps):
    """Masks that are 1 in the cell of the object a question names, and 0 elsewhere.

    Attributes:
        world: the world of the images.
        skewed: the same as in the source of the prompts.
    """

    world: ShapeWorld = ShapeWorld()
    skewed: bool = False

    @override
    def name(self, prompt: Prompt, image: str) -> str:
        named = [word for word in prompt.question.split() if word in SHAPES]
        split, index = image.rsplit("/", 1)
        scene = self.world.scene(split, int(index), self.skewed)
        cells = [cell for _, shape, cell in scene if shape in named]
        if not cells:
            raise ExampleError("the question names no object of the image", "missing mask")
        return str(cells[0])

    @override
    def load(self, name: str) -> np.ndarray:
        map_HW = np.zeros((2 * CELL, 2 * CELL), np.float32)
        y, x = divmod(int(name), 2)
        map_HW[y * CELL : (y + 1) * CELL, x * CELL : (x + 1) * CELL] = 1
        return map_HW
