"""LLaVA-1.5: CLIP, one tile for each image, Llama or Vicuna."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from typing_extensions import override

from seva_jax.convert.families.base import Family
from seva_jax.convert.original import unsupported
from seva_jax.models import LlavaConfig, VisionConfig


@dataclasses.dataclass(frozen=True)
class Llava(Family):
    """LLaVA-1.5, whose images may be cropped or padded to a square."""

    model_type = "llava"
    architecture = "LlavaForConditionalGeneration"
    tower = VisionConfig
    tower_type = "clip_vision_model"
    tower_fields: ClassVar[Mapping[str, str]] = {**Family.tower_fields, "activation": "hidden_act"}
    selects = ("default", "full")
    processor: ClassVar[str] = "LlavaProcessor"

    @override
    def hf_config(self, fields: dict[str, Any]) -> Any:
        from transformers import LlavaConfig as HFConfig

        return HFConfig.from_dict(fields)

    @override
    def tower_problems(self, vision: Any) -> list[str]:
        activation = ("vision_config.hidden_act", vision.hidden_act, ("quick_gelu", "gelu"))
        return super().tower_problems(vision) + unsupported([activation])

    @override
    def processor_fields(self, config: LlavaConfig) -> dict[str, Any]:
        return {
            "processor_class": self.processor,
            "image_token": "<image>",
            "patch_size": config.vision.patch_size,
            "num_additional_image_tokens": 1,  # CLS
            "vision_feature_select_strategy": config.feature_select,
        }
