"""A model family: what of its configs, processors and checkpoints differs from other families.

What lives here: `Family`, and what all families share. What does not: the families (a file each),
reading a directory (`seva_jax/convert/hf_config.py`, `load.py`), names of tensors (`table.py`).
Read next: `llava_next.py`.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from seva_jax.convert.hf_text import read_text_config, text_fields, text_problems
from seva_jax.convert.original import unsupported
from seva_jax.convert.table import hub
from seva_jax.images.preprocess import ImageProcessing
from seva_jax.models import LlavaConfig, TowerConfig
from seva_jax.types import IMAGE_MARKER, DataError

_SIZES = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("image_size", "patch_size"),
)
# Fields of our towers' configs, and their names in transformers.
_TOWER = {
    "image_size": "image_size",
    "patch_size": "patch_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "mlp_size": "intermediate_size",
    "norm_eps": "layer_norm_eps",
}


@dataclasses.dataclass(frozen=True)
class Family(abc.ABC):
    """Base class of model families. A config of transformers is `hf` here, already parsed.

    Attributes:
        model_type: how config.json names the family.
        architecture: the class of transformers.
        tower: our config of the vision tower.
        tower_type: how config.json names the tower.
        tower_fields: our names of the tower's fields, and those of transformers.
        token_field: field of config.json with the id of the image token.
        video_field: field of config.json with the id of the video token; None without videos.
        selects: supported values of `vision_feature_select_strategy`.
        newline: see `LlavaConfig`.
        projector_norm: see `LlavaConfig`.
        image_text: how text spells one image; of its tokens, the image token is repeated.
        chat_image: what chat templates write for one image, before the processor.
        processing: class of the image pipeline.
        chat_video: what chat templates write for one video; empty without videos.
        image_arrays: arrays besides `pixel_values` that its processor returns for images and
            videos.
    """

    model_type: ClassVar[str]
    architecture: ClassVar[str]
    tower: ClassVar[type[TowerConfig]]
    tower_type: ClassVar[str]
    tower_fields: ClassVar[Mapping[str, str]] = _TOWER
    token_field: ClassVar[str] = "image_token_index"
    video_field: ClassVar[str | None] = None
    selects: ClassVar[tuple[str, ...]] = ("default",)
    newline: ClassVar[bool] = False
    projector_norm: ClassVar[bool] = False
    image_text: ClassVar[str] = IMAGE_MARKER
    chat_image: ClassVar[str] = IMAGE_MARKER
    processing: ClassVar[type[ImageProcessing]] = ImageProcessing
    image_arrays: ClassVar[tuple[str, ...]] = ()
    chat_video: ClassVar[str] = ""

    @abc.abstractmethod
    def hf_config(self, fields: dict[str, Any]) -> Any:
        """Returns the fields of a config.json as the config class of transformers."""

    def describes(self, config: LlavaConfig) -> bool:
        """Returns whether models of this architecture belong to this family."""
        return type(config.vision) is self.tower and config.newline == self.newline

    def problems(self, hf: Any) -> list[str]:
        """Returns a line 'NAME is VALUE, supported: ...' for each field that is not supported."""
        vision = hf.vision_config
        problems = unsupported([
            ("projector_hidden_act", hf.projector_hidden_act, ("gelu",)),
            (
                "vision_feature_select_strategy",
                hf.vision_feature_select_strategy,
                self.selects,
            ),
            ("quantization_config", getattr(hf, "quantization_config", None), (None,)),
            ("vision_config.model_type", vision.model_type, (self.tower_type,)),
        ])  # fmt: skip
        if vision.model_type == self.tower_type:
            problems += self.tower_problems(vision)
        if not isinstance(hf.vision_feature_layer, int):
            problems.append(
                f"vision_feature_layer is {hf.vision_feature_layer!r}, supported: one integer"
            )
        problems += self.size_problems(vision, _SIZES)
        problems += text_problems(hf.text_config)
        if problems:
            return problems
        image_size, patch_size = self.length(vision.image_size), self.length(vision.patch_size)
        if (image_size // patch_size) ** 2 >= 2**31:
            problems.append(
                f"vision_config.image_size is {image_size}, too large for patches of "
                f"{patch_size} pixels"
            )
        return problems + self.layout_problems(hf)

    def size_problems(self, vision: Any, names: Sequence[str]) -> list[str]:
        """Returns the problems of sizes in the tower's config, see `problems`."""
        sizes = {name: self.length(getattr(vision, name, 1)) for name in names}
        return [
            f"vision_config.{name} is {size!r}, supported: a positive integer"
            for name, size in sizes.items()
            if type(size) is not int or not 1 <= size < 2**31
        ]

    def tower_problems(self, vision: Any) -> list[str]:
        """Returns the problems of the tower's config, see `problems`."""
        return unsupported([("vision_config.num_channels", vision.num_channels, (3,))])

    def layout_problems(self, hf: Any) -> list[str]:
        """Returns the problems of what lays out images, see `problems`; all others are solved."""
        del hf
        return []

    def length(self, value: Any) -> Any:
        """Returns a size of the tower's config as one number where it is one."""
        return value

    def tied_head(self, hf: Any, directory: Path) -> bool:
        """Returns whether the head of the model in a directory is its embedding table."""
        return bool(hf.tie_word_embeddings)

    def config(self, hf: Any, tied_head: bool) -> LlavaConfig:
        """Returns the architecture of a config without problems."""
        tower = {
            ours: self.length(getattr(hf.vision_config, name))
            for ours, name in self.tower_fields.items()
        }
        return LlavaConfig(
            vision=self.tower(**tower),
            text=read_text_config(hf.text_config, tied_head),
            feature_layer=hf.vision_feature_layer,
            feature_select=hf.vision_feature_select_strategy,
            projector_bias=getattr(hf, "multimodal_projector_bias", True),
            image_token_id=getattr(hf, self.token_field),
            newline=self.newline,
            projector_norm=self.projector_norm,
            video_token_id=getattr(hf, self.video_field) if self.video_field else None,
        )

    def fields(
        self, config: LlavaConfig, processing: ImageProcessing, context_length: int | None
    ) -> dict[str, Any]:
        """Returns the fields of a config.json that `config` reads, spelled as on the Hub.

        Args:
            config: the architecture.
            processing: the image pipeline.
            context_length: see `text_fields`.

        Raises:
            DataError: see `text_fields`; or the pipeline is that of another family.
        """
        self.require_processing(processing)
        return {
            "model_type": self.model_type,
            "architectures": [self.architecture],
            self.token_field: config.image_token_id,
            "image_seq_length": config.tile_features,
            "vision_feature_layer": config.feature_layer,
            "vision_feature_select_strategy": config.feature_select,
            "multimodal_projector_bias": config.projector_bias,
            "tie_word_embeddings": config.text.tied_head,
            "vision_config": {
                "model_type": self.tower_type,
                **{name: getattr(config.vision, ours) for ours, name in self.tower_fields.items()},
            },
            "text_config": text_fields(config.text, context_length),
        }

    def require_processing(self, processing: ImageProcessing) -> None:
        """Raises `DataError` unless an image pipeline is that of this family."""
        if type(processing) is not self.processing:
            raise DataError(
                f"a model of the family {self.model_type} takes images as "
                f"{self.processing.__name__} makes them, not {type(processing).__name__}; change "
                "base.processing"
            )

    def read_processing(self, directory: Path, pad_to_square: bool | None) -> ImageProcessing:
        """Reads the image pipeline of a checkpoint.

        Args:
            directory: holds the processor files.
            pad_to_square: see `ImageProcessing.from_processor_config`; of no effect on families
                that have no such choice.

        Raises:
            DataError: the processor file is missing or not supported.
        """
        pads = pad_to_square if self.processing is ImageProcessing else None
        return self.processing.from_processor_config(directory, pads)

    def hub_name(self, name: str) -> str:
        """Returns a name of `TABLE` in the Hub's spelling, which transformers 4 and 5 read."""
        return hub(name)

    def layouts(self, hf: Any) -> ImageProcessing | None:
        """Returns an image pipeline that lays out images as the model of a config does.

        How it changes pixels means nothing. None where the tokens of images are the features of
        their tiles, in order, so that the sizes of images do not matter to the model.
        """
        del hf
        return None

    @abc.abstractmethod
    def processor_fields(self, config: LlavaConfig) -> dict[str, Any]:
        """Returns the fields of processor_config.json, without the image processor."""
