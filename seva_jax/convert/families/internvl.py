"""InternVL3 in the layout of transformers: InternViT over the tiles of an image, and Qwen2."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import override

from seva_jax.convert.families.base import Family
from seva_jax.convert.load import tensor_names
from seva_jax.convert.original import unsupported
from seva_jax.convert.table import HEAD
from seva_jax.images.internvl import InternvlProcessing
from seva_jax.images.preprocess import ImageProcessing
from seva_jax.models import InternConfig, LlavaConfig


@dataclasses.dataclass(frozen=True)
class Internvl(Family):
    """InternVL3, whose tokens of an image are the features of its tiles, one after another."""

    model_type = "internvl"
    architecture = "InternVLForConditionalGeneration"
    tower = InternConfig
    tower_type = "internvl_vision"
    tower_fields: ClassVar[Mapping[str, str]] = {
        **Family.tower_fields,
        "attention_bias": "attention_bias",
        "qk_norm": "use_qk_norm",
    }
    token_field = "image_token_id"
    projector_norm = True
    image_text = "<img><IMG_CONTEXT></img>"
    chat_image = "<IMG_CONTEXT>"
    processing = InternvlProcessing

    @override
    def hf_config(self, fields: dict[str, Any]) -> Any:
        from transformers import InternVLConfig

        hf: Any = InternVLConfig.from_dict(fields)
        if "tie_word_embeddings" not in fields:  # transformers 4 asks the language model's config
            hf.tie_word_embeddings = hf.text_config.tie_word_embeddings
        return hf

    @override
    def tied_head(self, hf: Any, directory: Path) -> bool:
        # transformers 5 writes true by default, also for a model with a head of its own.
        doubtful = hf.tie_word_embeddings and not hf.text_config.tie_word_embeddings
        return hf.tie_word_embeddings and not (doubtful and HEAD in tensor_names(directory))

    @override
    def length(self, value: Any) -> Any:
        if isinstance(value, list | tuple) and len(value) == 2 and value[0] == value[1]:
            return value[0]
        return value

    @override
    def tower_problems(self, vision: Any) -> list[str]:
        supported = {
            "hidden_act": "gelu",
            "norm_type": "layer_norm",
            "use_mean_pooling": True,  # otherwise the last layer is followed by a norm
            "use_absolute_position_embeddings": True,
        }
        return super().tower_problems(vision) + unsupported(
            (f"vision_config.{name}", getattr(vision, name), (value,))
            for name, value in supported.items()
        )

    @override
    def layout_problems(self, hf: Any) -> list[str]:
        side = self.length(hf.vision_config.image_size) // self.length(hf.vision_config.patch_size)
        ratio, pool = hf.downsample_ratio, _pool(hf)
        if pool and side % pool == 0:
            return []
        return [
            f"downsample_ratio is {ratio!r}, supported: 1 / N where N divides the {side} patches "
            "along a side of a tile"
        ]

    @override
    def config(self, hf: Any, tied_head: bool) -> LlavaConfig:
        config = super().config(hf, tied_head)
        assert isinstance(config.vision, InternConfig)
        vision = dataclasses.replace(config.vision, pool=_pool(hf))
        return dataclasses.replace(config, vision=vision)

    @override
    def fields(
        self, config: LlavaConfig, processing: ImageProcessing, context_length: int | None
    ) -> dict[str, Any]:
        fields = super().fields(config, processing, context_length)
        del fields["multimodal_projector_bias"]
        return fields | {"downsample_ratio": 1 / config.vision.merged}

    @override
    def processor_fields(self, config: LlavaConfig) -> dict[str, Any]:
        return {
            "processor_class": "InternVLProcessor",
            "image_seq_length": config.tile_features,
        }


def _pool(hf: Any) -> int:
    """Returns how many neighbouring patches along a side are joined; 0 for no whole number."""
    ratio = hf.downsample_ratio
    if not isinstance(ratio, int | float) or not 0 < ratio <= 1 or round(1 / ratio) * ratio != 1:
        return 0
    return round(1 / ratio)
