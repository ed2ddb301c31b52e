"""A model family: what of its configs, processors and checkpoints differs from other families.

What lives here: `Family`, and what all families share. What does not: the families (a file each),
reading a directory (`seva_jax/convert/hf_config.py`, `load.py`), names of tensors (`table.py`).
Read next: `llava_next.py`.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from seva_jax.convert.original import unsupported
from seva_jax.images.preprocess import ImageProcessing
from seva_jax.models import LlavaConfig, TextConfig, TowerConfig

_SIZES = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "vocab_size", "image_size", "patch_size"),
)
# Fields of our configs, and their names in transformers.
_TOWER = {
    "image_size": "image_size",
    "patch_size": "patch_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "mlp_size": "intermediate_size",
    "norm_eps": "layer_norm_eps",
}
_TEXT = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "mlp_size": "intermediate_size",
    "norm_eps": "rms_norm_eps",
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
        selects: supported values of `vision_feature_select_strategy`.
        newline: see `LlavaConfig`.
        projector_norm: see `LlavaConfig`.
        image_text: how text spells one image; of its tokens, the image token is repeated.
        image_arrays: arrays besides `pixel_values` that its processor returns for images.
    """

    model_type: ClassVar[str]
    architecture: ClassVar[str]
    tower: ClassVar[type[TowerConfig]]
    tower_type: ClassVar[str]
    tower_fields: ClassVar[Mapping[str, str]] = _TOWER
    token_field: ClassVar[str] = "image_token_index"
    selects: ClassVar[tuple[str, ...]] = ("default",)
    newline: ClassVar[bool] = False
    projector_norm: ClassVar[bool] = False
    image_text: ClassVar[str] = "<image>"
    image_arrays: ClassVar[tuple[str, ...]] = ()

    @abc.abstractmethod
    def hf_config(self, fields: dict[str, Any]) -> Any:
        """Returns the fields of a config.json as the config class of transformers."""

    def describes(self, config: LlavaConfig) -> bool:
        """Returns whether models of this architecture belong to this family."""
        return type(config.vision) is self.tower and config.newline == self.newline

    def problems(self, hf: Any) -> list[str]:
        """Returns a line 'NAME is VALUE, supported: ...' for each field that is not supported."""
        text, vision = hf.text_config, hf.vision_config
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
        problems += _text_problems(text)
        if vision.model_type == self.tower_type:
            problems += self.tower_problems(vision)
        if not isinstance(hf.vision_feature_layer, int):
            problems.append(
                f"vision_feature_layer is {hf.vision_feature_layer!r}, supported: one integer"
            )
        for section, fields in (("vision_config", vision), ("text_config", text)):
            for name in _SIZES:
                size = self.length(getattr(fields, name, 1))
                if type(size) is not int or not 1 <= size < 2**31:
                    problems.append(f"{section}.{name} is {size!r}, supported: a positive integer")
        if problems:
            return problems
        image_size, patch_size = self.length(vision.image_size), self.length(vision.patch_size)
        if (image_size // patch_size) ** 2 >= 2**31:
            problems.append(
                f"vision_config.image_size is {image_size}, too large for patches of "
                f"{patch_size} pixels"
            )
        return problems + self.layout_problems(hf)

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

    def config(self, hf: Any) -> LlavaConfig:
        """Returns the architecture of a config without problems."""
        text, vision = hf.text_config, hf.vision_config
        tower = {
            ours: self.length(getattr(vision, name)) for ours, name in self.tower_fields.items()
        }
        return LlavaConfig(
            vision=self.tower(**tower),
            text=TextConfig(
                **{ours: getattr(text, name) for ours, name in _TEXT.items()},
                rope_base=text.rope_parameters["rope_theta"],
                tied_head=bool(hf.tie_word_embeddings),
            ),
            feature_layer=hf.vision_feature_layer,
            feature_select=hf.vision_feature_select_strategy,
            projector_bias=getattr(hf, "multimodal_projector_bias", True),
            image_token_id=getattr(hf, self.token_field),
            newline=self.newline,
            projector_norm=self.projector_norm,
        )

    def fields(
        self, config: LlavaConfig, processing: ImageProcessing, context_length: int | None
    ) -> dict[str, Any]:
        """Returns the fields of a config.json that `config` reads, spelled as on the Hub.

        Args:
            config: the architecture.
            processing: the image pipeline.
            context_length: `max_position_embeddings` of the language model; None leaves it out.
        """
        del processing
        text, tower = config.text, config.vision
        context = {} if context_length is None else {"max_position_embeddings": context_length}
        return {
            "model_type": self.model_type,
            "architectures": [self.architecture],
            self.token_field: config.image_token_id,
            "image_seq_length": config.tile_features,
            "vision_feature_layer": config.feature_layer,
            "vision_feature_select_strategy": config.feature_select,
            "multimodal_projector_bias": config.projector_bias,
            "tie_word_embeddings": text.tied_head,
            "vision_config": {
                "model_type": self.tower_type,
                **{name: getattr(tower, ours) for ours, name in self.tower_fields.items()},
            },
            "text_config": {
                "model_type": "llama",
                **{name: getattr(text, ours) for ours, name in _TEXT.items()},
                **context,
                "rope_theta": text.rope_base,
                "tie_word_embeddings": text.tied_head,
            },
        }

    @abc.abstractmethod
    def read_processing(self, directory: Path, pad_to_square: bool | None) -> ImageProcessing:
        """Reads the image pipeline of a checkpoint.

        Args:
            directory: holds the processor files.
            pad_to_square: see `ImageProcessing.from_processor_config`.

        Raises:
            DataError: the processor file is missing or not supported.
        """

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


def _text_problems(text: Any) -> list[str]:
    allowed: list[tuple[str, Any, tuple]] = [
        ("text_config.model_type", text.model_type, ("llama",)),
    ]
    if text.model_type == "llama":
        rope, field = text.rope_parameters, "text_config.rope_parameters"
        allowed += [
            ("text_config.hidden_act", text.hidden_act, ("silu",)),
            ("text_config.attention_bias", text.attention_bias, (False,)),
            ("text_config.mlp_bias", text.mlp_bias, (False,)),
            (f"{field}.rope_type", rope.get("rope_type"), ("default",)),
            (f"{field}.partial_rotary_factor", rope.get("partial_rotary_factor", 1.0), (1.0,)),
        ]
    problems = unsupported(allowed)
    heads, kv_heads = text.num_attention_heads, text.num_key_value_heads
    whole = all(type(x) is int and x > 0 for x in (heads, kv_heads))
    if not problems and whole and heads % kv_heads:
        problems.append(
            f"text_config.num_key_value_heads is {kv_heads}, which does not "
            f"divide num_attention_heads, {heads}"
        )
    return problems
