"""LLaVA-OneVision: SigLIP over up to 37 tiles of an image, which are made fewer, and Qwen2."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from typing_extensions import override

from seva_jax.convert.families.base import Family
from seva_jax.convert.families.llava_next import grid_problems, resolutions
from seva_jax.convert.original import unsupported
from seva_jax.images.llava_onevision import LlavaOnevisionProcessing
from seva_jax.images.preprocess import ImageProcessing
from seva_jax.models import LlavaConfig, SiglipConfig
from seva_jax.types import VIDEO_MARKER

_ANYRES_MAX = re.compile(r"anyres_max_([1-9]\d{0,3})")


@dataclasses.dataclass(frozen=True)
class LlavaOnevision(Family):
    """LLaVA-OneVision with images and videos."""

    model_type = "llava_onevision"
    architecture = "LlavaOnevisionForConditionalGeneration"
    tower = SiglipConfig
    tower_type = "siglip_vision_model"
    tower_fields: ClassVar[Mapping[str, str]] = {**Family.tower_fields, "activation": "hidden_act"}
    selects = ("full",)  # "default" would drop the first patch, as there is no class token
    newline = True
    processing = LlavaOnevisionProcessing
    video_field = "video_token_index"
    chat_video = VIDEO_MARKER
    image_arrays = ("image_sizes", "batch_num_images", "pixel_values_videos")

    @override
    def hf_config(self, fields: dict[str, Any]) -> Any:
        from transformers import LlavaOnevisionConfig

        return LlavaOnevisionConfig.from_dict(fields)

    @override
    def tower_problems(self, vision: Any) -> list[str]:
        activations = ("gelu_pytorch_tanh", "gelu")
        return super().tower_problems(vision) + unsupported(
            [("vision_config.hidden_act", vision.hidden_act, activations)]
        )

    @override
    def layout_problems(self, hf: Any) -> list[str]:
        problems, ratio = grid_problems(hf), hf.vision_aspect_ratio
        if not _ANYRES_MAX.fullmatch(str(ratio)):
            problems.append(f"vision_aspect_ratio is {ratio!r}, supported: 'anyres_max_N'")
        return problems

    @override
    def fields(
        self, config: LlavaConfig, processing: ImageProcessing, context_length: int | None
    ) -> dict[str, Any]:
        fields = super().fields(config, processing, context_length)
        assert isinstance(processing, LlavaOnevisionProcessing)
        del fields["image_seq_length"]
        if config.video_token_id is not None:
            fields["video_token_index"] = config.video_token_id
        fields["vision_config"] |= {"vision_use_head": False}
        return fields | {
            "image_grid_pinpoints": [list(size) for size in processing.resolutions],
            "vision_aspect_ratio": f"anyres_max_{processing.anyres_max}",
        }

    @override
    def layouts(self, hf: Any) -> ImageProcessing | None:
        most = _ANYRES_MAX.fullmatch(hf.vision_aspect_ratio)
        assert most is not None
        return LlavaOnevisionProcessing(
            size=hf.vision_config.image_size,
            resolutions=resolutions(hf),
            anyres_max=int(most[1]),
            # Only models in the layout of LLaVA's own code have these.
            video_pool=getattr(hf, "mm_spatial_pool_mode", "bilinear"),
            video_newline=getattr(hf, "mm_newline_position", "one_token"),
        )

    @override
    def processor_fields(self, config: LlavaConfig) -> dict[str, Any]:
        return {
            "processor_class": "LlavaOnevisionProcessor",
            "image_token": self.image_text,
            "num_image_tokens": config.tile_features,
            "vision_feature_select_strategy": config.feature_select,
        }
