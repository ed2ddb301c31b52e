"""Reads config.json and generation_config.json of a model directory, in any layout.

The config classes of transformers fill missing fields and understand the layouts of its versions 4
and 5; they need neither torch nor network. Whatever our modules do not implement is refused, by
field and value. What does not live here: what a family's fields mean (`families/`), the language
model's part (`hf_text.py`), and weights (`load.py`).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from seva_jax.convert.families import Family, family_of, family_of_fields
from seva_jax.convert.original import is_original, read_json, refuse, refuse_adapters
from seva_jax.convert.original_config import as_hf_fields, tower_directory
from seva_jax.images.preprocess import ImageProcessing
from seva_jax.models import LlavaConfig
from seva_jax.runtime.stores import as_path
from seva_jax.types import DataError


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
    """Tokens that generation treats specially.

    Attributes:
        stop_ids: tokens that end an answer; empty if the directory names none.
        pad_id: token that fills a row after its answer; None if the directory names none.
    """

    stop_ids: tuple[int, ...]
    pad_id: int | None


def read_family(directory: str | Path) -> Family:
    """Returns the family of the model in a directory.

    Raises:
        DataError: config.json is missing, or its family is not supported.
    """
    path = as_path(directory) / "config.json"
    return family_of_fields(path, read_json(path))


def read_llava_config(directory: str | Path, vision_tower: str | Path | None = None) -> LlavaConfig:
    """Reads the architecture of a model from its Hugging Face or original LLaVA directory.

    Args:
        directory: holds config.json, as `save_pretrained` of transformers 4 and 5 writes it for a
            family that is supported (`families/`), or as the original LLaVA does.
        vision_tower: that of an original LLaVA, see `original_config.tower_directory`.

    Returns:
        The architecture; fields that the file leaves out take the defaults of transformers.

    Raises:
        DataError: the file is missing or is not the config of a supported family, or has fields
            with unsupported values; all of them are named, with their values. Or the directory
            holds an adapter.
    """
    path = as_path(directory) / "config.json"
    refuse_adapters(path.parent)
    family, hf = _hf_config(path, vision_tower)
    refuse(path, family.problems(hf))
    config = family.config(hf, family.tied_head(hf, path.parent))
    if not 0 <= config.tower_depth <= config.vision.num_layers:
        raise DataError(
            f"{path}: vision_feature_layer is {config.feature_layer}, but the tower has "
            f"{config.vision.num_layers} layers"
        )
    return config


def read_layouts(
    directory: str | Path, vision_tower: str | Path | None = None
) -> ImageProcessing | None:
    """Returns an image pipeline that lays out images as config.json says, see `Family.layouts`.

    Args:
        directory: see `read_llava_config`.
        vision_tower: see `read_llava_config`.
    """
    family, hf = _hf_config(as_path(directory) / "config.json", vision_tower)
    return family.layouts(hf)


def read_context_length(directory: Path, vision_tower: Path | None = None) -> int:
    """Returns `max_position_embeddings` of the language model, which vLLM takes as its limit.

    Args:
        directory: see `read_llava_config`.
        vision_tower: see `read_llava_config`.
    """
    _, hf = _hf_config(directory / "config.json", vision_tower)
    return hf.text_config.max_position_embeddings


def llava_config_fields(
    config: LlavaConfig,
    context_length: int | None = None,
    processing: ImageProcessing | None = None,
) -> dict[str, Any]:
    """Returns the fields of a config.json that `read_llava_config` reads back as `config`.

    They are spelled as on the Hub, which transformers 4 and 5 read.

    Args:
        config: the architecture.
        context_length: see `text_fields`.
        processing: the image pipeline, for families whose config says how images are laid out.

    Raises:
        DataError: see `text_fields`.
    """
    family = family_of(config)
    processing = processing or family.processing(size=config.vision.image_size)
    return family.fields(config, processing, context_length)


def read_special_tokens(directory: str | Path) -> SpecialTokens:
    """Reads the stop and pad tokens from where generation in transformers takes them.

    They are in generation_config.json or, only if there is no such file, in config.json. Without a
    pad token, the first stop token pads.

    Raises:
        DataError: a file cannot be read, or an id is not an integer.
    """
    path = as_path(directory) / "generation_config.json"
    if path.exists():
        fields = read_json(path)
        eos, pad = fields.get("eos_token_id"), fields.get("pad_token_id")
    else:
        path = as_path(directory) / "config.json"
        fields = read_json(path)
        if is_original(fields):
            eos, pad = fields.get("eos_token_id", 2), fields.get("pad_token_id")
        else:
            text = _hf_config(path)[1].text_config
            eos = fields.get("eos_token_id", text.eos_token_id)
            pad = fields.get("pad_token_id", text.pad_token_id)
    stop_ids = tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,)
    pad_ids = () if pad is None else (pad,)
    for name, value in (("eos_token_id", stop_ids), ("pad_token_id", pad_ids)):
        if any(type(token) is not int for token in value):
            raise DataError(f"{path}: {name} holds {list(value)}, expected integers")
    return SpecialTokens(stop_ids, stop_ids[0] if pad is None and stop_ids else pad)


def _hf_config(path: Path, vision_tower: str | Path | None = None) -> tuple[Family, Any]:
    """Returns the family of a config.json, and its fields as the config class of transformers."""
    raw = read_json(path)
    family = family_of_fields(path, raw)
    tower = tower_directory(path.parent, vision_tower)
    if tower:
        raw = as_hf_fields(path, raw, tower)
    try:
        return family, family.hf_config(raw)
    # Whatever transformers raises for a hostile or damaged config is bad input, not a bug.
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"{path} is not a valid {family.model_type} config: {reason}") from error
