"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: images of native resolution, and positions of three axes."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import override

from seva_jax.convert.families.base import Family
from seva_jax.convert.hf_text import read_text_config, text_fields, text_problems
from seva_jax.convert.original import read_json, unsupported
from seva_jax.convert.table import respelled
from seva_jax.images.preprocess import ImageProcessing
from seva_jax.images.qwen import QwenProcessing
from seva_jax.images.qwen_layouts import FRAMES, MERGE, WINDOW
from seva_jax.models import (
    LlavaConfig,
    Qwen2VisionConfig,
    Qwen3VisionConfig,
    Qwen25VisionConfig,
    QwenVisionConfig,
)
from seva_jax.types import DataError

# Ids that text has around an image; every released model has these.
_VISION_START, _VISION_END = 151652, 151653


@dataclasses.dataclass(frozen=True)
class QwenVl(Family, abc.ABC):
    """What the three share: tiles of 2 x 2 patches, one token each, in a row of one sequence.

    Attributes:
        text_type: how config.json names the language model.
        hub_prefixes: prefixes of names of tensors in `TABLE`, and those on the Hub.
        processor: the processor's class of transformers.
        timestamps: see `QwenProcessing`.
        counts_seconds: whether positions in time count seconds, or pairs of frames.
        activation: activation of the tower's MLP.
    """

    text_type: ClassVar[str]
    hub_prefixes: ClassVar[tuple[tuple[str, str], ...]] = (
        ("language_model.lm_head.", "lm_head."),
        ("language_model.model.", "model."),
    )
    processor: ClassVar[str]
    timestamps: ClassVar[bool] = False
    counts_seconds: ClassVar[bool] = False
    activation: ClassVar[str]
    token_field = "image_token_id"
    video_field = "video_token_id"
    image_text = "<|vision_start|><|image_pad|><|vision_end|>"
    chat_image = "<|vision_start|><|image_pad|><|vision_end|>"
    processing = QwenProcessing
    image_arrays = (
        *("image_grid_thw", "mm_token_type_ids"),
        *("pixel_values_videos", "video_grid_thw", "second_per_grid_ts"),
    )
    chat_video = "<|vision_start|><|video_pad|><|vision_end|>"

    @override
    def problems(self, hf: Any) -> list[str]:
        vision = hf.vision_config
        problems = unsupported([
            ("quantization_config", getattr(hf, "quantization_config", None), (None,)),
            ("vision_config.model_type", vision.model_type, (self.tower_type,)),
        ])  # fmt: skip
        if problems:
            return problems
        problems += self.tower_problems(vision) + self.size_problems(vision, self.sizes)
        problems += text_problems(hf.text_config, (self.text_type,))
        return problems or self.layout_problems(hf)

    @property
    def sizes(self) -> tuple[str, ...]:
        """The fields of the tower's config that are sizes."""
        return (self.width_field, "depth", "num_heads", "patch_size")

    @property
    def width_field(self) -> str:
        """The field of the tower's config with its width."""
        return "hidden_size"

    @override
    def tower_problems(self, vision: Any) -> list[str]:
        return unsupported([
            ("vision_config.hidden_act", vision.hidden_act, (self.activation,)),
            ("vision_config.in_channels", getattr(vision, "in_channels", 3), (3,)),
            ("vision_config.spatial_merge_size", vision.spatial_merge_size, (MERGE,)),
            ("vision_config.temporal_patch_size", vision.temporal_patch_size, (FRAMES,)),
        ])  # fmt: skip

    @override
    def layout_problems(self, hf: Any) -> list[str]:
        vision = hf.vision_config
        width, heads = getattr(vision, self.width_field), vision.num_heads
        if width % (4 * heads):
            return [
                f"vision_config.num_heads is {heads}, supported: a divisor of the width, {width}, "
                "with heads whose width is a multiple of 4"
            ]
        out = getattr(vision, self.out_field)
        return unsupported(
            [(f"vision_config.{self.out_field}", out, (hf.text_config.hidden_size,))]
        )

    @property
    def out_field(self) -> str:
        """The field of the tower's config with the width of the language model."""
        return "out_hidden_size"

    @override
    def config(self, hf: Any, tied_head: bool) -> LlavaConfig:
        vision = hf.vision_config
        return LlavaConfig(
            vision=self.tower_config(
                vision,
                image_size=MERGE * vision.patch_size,
                patch_size=vision.patch_size,
                hidden_size=getattr(vision, self.width_field),
                num_layers=vision.depth,
                num_heads=vision.num_heads,
            ),
            text=read_text_config(hf.text_config, tied_head),
            feature_layer=-1,
            feature_select="full",
            image_token_id=hf.image_token_id,
            video_token_id=hf.video_token_id,
        )

    @abc.abstractmethod
    def tower_config(self, vision: Any, **common: Any) -> QwenVisionConfig:
        """Returns our config of the tower.

        Args:
            vision: transformers' config of the tower.
            common: the fields that all towers of Qwen-VL have.
        """

    @override
    def fields(
        self, config: LlavaConfig, processing: ImageProcessing, context_length: int | None
    ) -> dict[str, Any]:
        self.require_processing(processing)
        tower, text = config.vision, text_fields(config.text, context_length)
        assert isinstance(tower, QwenVisionConfig)
        return {
            "model_type": self.model_type,
            "architectures": [self.architecture],
            "image_token_id": config.image_token_id,
            "video_token_id": config.video_token_id,
            "vision_start_token_id": _VISION_START,
            "vision_end_token_id": _VISION_END,
            "tie_word_embeddings": config.text.tied_head,
            "vision_config": {
                "model_type": self.tower_type,
                "depth": tower.num_layers,
                "hidden_act": self.activation,
                "num_heads": tower.num_heads,
                "in_channels": 3,
                "patch_size": tower.patch_size,
                "spatial_merge_size": MERGE,
                "temporal_patch_size": FRAMES,
                **self.tower_fields_of(tower, config.text.hidden_size),
            },
            "text_config": text | {"model_type": self.text_type},
        }

    @override
    def hub_name(self, name: str) -> str:
        return respelled(name, self.hub_prefixes)

    @abc.abstractmethod
    def tower_fields_of(self, tower: QwenVisionConfig, width: int) -> dict[str, Any]:
        """Returns the fields of the tower's config that only this family has.

        Args:
            tower: our config.
            width: that of the language model.
        """

    @override
    def layouts(self, hf: Any) -> ImageProcessing:
        return QwenProcessing(
            size=MERGE * hf.vision_config.patch_size,
            min_pixels=(MERGE * hf.vision_config.patch_size) ** 2,
            min_video_pixels=(MERGE * hf.vision_config.patch_size) ** 2,
            positions_per_second=self.positions_per_second(vars(hf.vision_config)),
            timestamps=self.timestamps,
        )

    @override
    def read_processing(self, directory: Path, pad_to_square: bool | None) -> ImageProcessing:
        processing = super().read_processing(directory, pad_to_square)
        assert isinstance(processing, QwenProcessing)
        vision = read_json(directory / "config.json").get("vision_config") or {}
        return dataclasses.replace(
            processing,
            positions_per_second=self.positions_per_second(vision),
            timestamps=self.timestamps,
        )

    def positions_per_second(self, vision: Mapping[str, Any]) -> int:
        """Returns how fast positions in time grow in a video, see `QwenProcessing`.

        Args:
            vision: fields of the tower's config.
        """
        # The default is that of transformers; released models have 2.
        return vision.get("tokens_per_second", 4) if self.counts_seconds else 0

    @override
    def require_processing(self, processing: ImageProcessing) -> None:
        super().require_processing(processing)
        assert isinstance(processing, QwenProcessing)
        found = processing.timestamps, bool(processing.positions_per_second)
        if found != (self.timestamps, self.counts_seconds):
            raise DataError(
                f"base.processing has timestamps {processing.timestamps} and positions_per_second "
                f"{processing.positions_per_second}, but a model of the family {self.model_type} "
                f"has timestamps {self.timestamps} and "
                f"{'above 0' if self.counts_seconds else '0'}; change base.processing"
            )

    @override
    def processor_fields(self, config: LlavaConfig) -> dict[str, Any]:
        return {"processor_class": self.processor}


@dataclasses.dataclass(frozen=True)
class Qwen2Vl(QwenVl):
    """Qwen2-VL."""

    model_type = "qwen2_vl"
    architecture = "Qwen2VLForConditionalGeneration"
    tower = Qwen2VisionConfig
    tower_type = "qwen2_vl_vision"
    text_type = "qwen2_vl_text"
    processor = "Qwen2VLProcessor"
    activation = "quick_gelu"

    @override
    def hf_config(self, fields: dict[str, Any]) -> Any:
        from transformers import Qwen2VLConfig

        return Qwen2VLConfig.from_dict(fields)

    @property
    @override
    def width_field(self) -> str:
        return "embed_dim"

    @property
    @override
    def out_field(self) -> str:
        return "hidden_size"

    @override
    def tower_config(self, vision: Any, **common: Any) -> QwenVisionConfig:
        return Qwen2VisionConfig(**common, mlp_size=int(vision.embed_dim * vision.mlp_ratio))

    @override
    def tower_fields_of(self, tower: QwenVisionConfig, width: int) -> dict[str, Any]:
        return {
            "model_type": "qwen2_vl",
            "embed_dim": tower.hidden_size,
            "hidden_size": width,
            "mlp_ratio": tower.mlp_size // tower.hidden_size,
        }


@dataclasses.dataclass(frozen=True)
class Qwen25Vl(QwenVl):
    """Qwen2.5-VL."""

    model_type = "qwen2_5_vl"
    architecture = "Qwen2_5_VLForConditionalGeneration"
    tower = Qwen25VisionConfig
    tower_type = "qwen2_5_vl_vision"
    text_type = "qwen2_5_vl_text"
    processor = "Qwen2_5_VLProcessor"
    counts_seconds = True
    activation = "silu"

    @override
    def hf_config(self, fields: dict[str, Any]) -> Any:
        from transformers import Qwen2_5_VLConfig

        return Qwen2_5_VLConfig.from_dict(fields)

    @property
    @override
    def sizes(self) -> tuple[str, ...]:
        return (*super().sizes, "intermediate_size", "tokens_per_second")

    @override
    def fields(
        self, config: LlavaConfig, processing: ImageProcessing, context_length: int | None
    ) -> dict[str, Any]:
        assert isinstance(processing, QwenProcessing)
        fields = super().fields(config, processing, context_length)
        fields["vision_config"]["tokens_per_second"] = processing.positions_per_second
        return fields

    @override
    def tower_problems(self, vision: Any) -> list[str]:
        window = ("vision_config.window_size", vision.window_size, (_window(vision),))
        return [*super().tower_problems(vision), *unsupported([window])]

    @override
    def tower_config(self, vision: Any, **common: Any) -> QwenVisionConfig:
        layers = tuple(vision.fullatt_block_indexes)
        return Qwen25VisionConfig(
            **common, mlp_size=vision.intermediate_size, window=WINDOW, full_layers=layers
        )

    @override
    def tower_fields_of(self, tower: QwenVisionConfig, width: int) -> dict[str, Any]:
        return {
            "hidden_size": tower.hidden_size,
            "out_hidden_size": width,
            "intermediate_size": tower.mlp_size,
            "window_size": WINDOW * tower.image_size,
            "fullatt_block_indexes": list(tower.whole_layers),
        }


@dataclasses.dataclass(frozen=True)
class Qwen3Vl(QwenVl):
    """Qwen3-VL, the dense models."""

    model_type = "qwen3_vl"
    architecture = "Qwen3VLForConditionalGeneration"
    tower = Qwen3VisionConfig
    tower_type = "qwen3_vl_vision"
    text_type = "qwen3_vl_text"
    hub_prefixes: ClassVar[tuple[tuple[str, str], ...]] = (
        ("language_model.lm_head.", "lm_head."),
        ("language_model.model.", "model.language_model."),
        ("visual.", "model.visual."),
    )
    processor = "Qwen3VLProcessor"
    timestamps = True
    activation = "gelu_pytorch_tanh"

    @override
    def hf_config(self, fields: dict[str, Any]) -> Any:
        from transformers import Qwen3VLConfig

        return Qwen3VLConfig.from_dict(fields)

    @property
    @override
    def sizes(self) -> tuple[str, ...]:
        return (*super().sizes, "intermediate_size", "num_position_embeddings")

    @override
    def layout_problems(self, hf: Any) -> list[str]:
        vision = hf.vision_config
        problems, num = super().layout_problems(hf), vision.num_position_embeddings
        if math.isqrt(num) ** 2 != num:
            problems.append(
                f"vision_config.num_position_embeddings is {num}, supported: the square of a "
                "whole number"
            )
        layers = list(vision.deepstack_visual_indexes)
        if layers != sorted({*layers}) or not all(x in range(vision.depth) for x in layers):
            problems.append(
                f"vision_config.deepstack_visual_indexes is {layers}, supported: ascending "
                f"numbers of layers, below {vision.depth}"
            )
        if len(layers) > hf.text_config.num_hidden_layers:
            problems.append(
                f"vision_config.deepstack_visual_indexes has {len(layers)} layers, more than the "
                f"language model, {hf.text_config.num_hidden_layers}"
            )
        return problems

    @override
    def tower_config(self, vision: Any, **common: Any) -> QwenVisionConfig:
        return Qwen3VisionConfig(
            **common,
            mlp_size=vision.intermediate_size,
            position_grid=math.isqrt(vision.num_position_embeddings),
            deep=tuple(vision.deepstack_visual_indexes),
        )

    @override
    def tower_fields_of(self, tower: QwenVisionConfig, width: int) -> dict[str, Any]:
        return {
            "model_type": "qwen3_vl",
            "hidden_size": tower.hidden_size,
            "out_hidden_size": width,
            "intermediate_size": tower.mlp_size,
            "num_position_embeddings": tower.learned_grid**2,
            "deepstack_visual_indexes": list(tower.deep_layers),
        }


def _window(vision: Any) -> int:
    patch = vision.patch_size if type(vision.patch_size) is int else 1
    return WINDOW * MERGE * patch
