"""LLaVA-NeXT (LLaVA-1.6): CLIP over several tiles of an image, with a newline after every row."""

from __future__ import annotations

import dataclasses
from typing import Any

from typing_extensions import override

from seva_jax.convert.families.llava import Llava
from seva_jax.images.llava_next import LlavaNextProcessing
from seva_jax.images.preprocess import ImageProcessing
from seva_jax.models import LlavaConfig
from seva_jax.types import Size


@dataclasses.dataclass(frozen=True)
class LlavaNext(Llava):
    """LLaVA-NeXT with Vicuna, Mistral or Llama 3."""

    model_type = "llava_next"
    architecture = "LlavaNextForConditionalGeneration"
    selects = ("default",)  # with the class token, the features of a tile are no square
    newline = True
    processing = LlavaNextProcessing
    image_arrays = ("image_sizes",)
    processor = "LlavaNextProcessor"

    @override
    def hf_config(self, fields: dict[str, Any]) -> Any:
        from transformers import LlavaNextConfig

        return LlavaNextConfig.from_dict(fields)

    @override
    def layout_problems(self, hf: Any) -> list[str]:
        return grid_problems(hf)

    @override
    def fields(
        self, config: LlavaConfig, processing: ImageProcessing, context_length: int | None
    ) -> dict[str, Any]:
        fields = super().fields(config, processing, context_length)
        assert isinstance(processing, LlavaNextProcessing)
        return fields | {"image_grid_pinpoints": [list(size) for size in processing.resolutions]}

    @override
    def layouts(self, hf: Any) -> ImageProcessing | None:
        return LlavaNextProcessing(size=hf.vision_config.image_size, resolutions=resolutions(hf))


def resolutions(hf: Any) -> tuple[Size, ...]:
    """Returns the heights and widths that images are fitted into."""
    return tuple((height, width) for height, width in hf.image_grid_pinpoints)


def grid_problems(hf: Any) -> list[str]:
    """Returns the problems of `image_grid_pinpoints`, see `Family.problems`."""
    side, given = hf.vision_config.image_size, hf.image_grid_pinpoints
    sizes = [x for pair in given for x in pair] if all(map(_is_pair, given)) else []
    if sizes and all(type(x) is int and x > 0 and x % side == 0 for x in sizes):
        return []
    return [
        f"image_grid_pinpoints is {str(given)[:80]}, supported: pairs of multiples of "
        f"vision_config.image_size, {side}"
    ]


def _is_pair(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2
