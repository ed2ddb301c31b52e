"""Prompts about several images of a world in order, such as the frames of a clip.

What lives here: `WorldSequences`. What does not: the world, and questions about one image
(`shapes.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated

from typing_extensions import override

from seva_jax.data.sources import PromptSet, PromptSource
from seva_jax.ranges import ADDED, FROM_1
from seva_jax.types import VIDEO_MARKER, Prompt
from seva_jax.worlds.shapes import ShapeWorld, WorldPrompts, describe


@dataclasses.dataclass(frozen=True)
class WorldSequences(PromptSource):
    """Prompts to describe several images in their order; the true answer is in `meta`.

    Attributes:
        world: how images are drawn; by default with one object each.
        split: name of the split; splits of different names have different images.
        skewed: whether colours follow the skewed prior; otherwise they are uniform.
        images: number of images in a prompt.
        num: number of prompts.
        video: whether the images are the frames of a video.
    """

    world: ShapeWorld = ShapeWorld(max_objects=1)
    split: str = "sequences"
    skewed: bool = False
    images: Annotated[int, FROM_1] = 4
    num: Annotated[int, FROM_1] = 1000
    video: Annotated[bool, ADDED] = False

    @override
    def open(self) -> PromptSet:
        num = self.num * self.images
        data = WorldPrompts(self.world, self.split, self.skewed, ("describe",), num).open()
        clips = [data.prompts[i : i + self.images] for i in range(0, num, self.images)]
        prompts = [self._joined(number, clip) for number, clip in enumerate(clips)]
        return PromptSet(prompts, data.load_image)

    def _joined(self, number: int, parts: Sequence[Prompt]) -> Prompt:
        objects = [thing for part in parts for thing in part.meta["objects"]]
        answer = describe([(color, shape) for color, shape in objects])
        meta = parts[0].meta | {"answer": answer, "objects": objects}
        names = tuple(name for part in parts for name in part.images)
        question = f"{VIDEO_MARKER}\n" * self.video + parts[0].question
        return Prompt(f"{self.split}/{number:06d}/sequence", question, names, meta)
