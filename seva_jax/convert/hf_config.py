"""Reads config.json and generation_config.json of a LLaVA directory, in either layout.

The config classes of transformers fill missing fields and understand the layouts of its versions 4
and 5; they need neither torch nor network. Whatever our modules do not implement is refused here,
by field and value. What does not live here: the language model's part (`hf_text.py`), and weights
(`load.py`).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from seva_jax.convert.hf_text import read_text_config, text_fields, text_problems
from seva_jax.convert.original import (
    as_hf_fields,
    is_original,
    read_json,
    refuse,
    refuse_adapters,
    require_llava,
    tower_directory,
    unsupported,
)
from seva_jax.models import LlavaConfig, VisionConfig
from seva_jax.runtime.stores import as_path
from seva_jax.types import DataError

if TYPE_CHECKING:
    from transformers import LlavaConfig as HFConfig

_SIZES = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("image_size", "patch_size"),
)
# Fields of our config of the tower, and their names in transformers.
_VISION = {
    "image_size": "image_size",
    "patch_size": "patch_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "mlp_size": "intermediate_size",
    "norm_eps": "layer_norm_eps",
    "activation": "hidden_act",
}


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
    """Tokens that generation treats specially.

    Attributes:
        stop_ids: tokens that end an answer; empty if the directory names none.
        pad_id: token that fills a row after its answer; None if the directory names none.
    """

    stop_ids: tuple[int, ...]
    pad_id: int | None


def read_llava_config(directory: str | Path, vision_tower: str | Path | None = None) -> LlavaConfig:
    """Reads the architecture of a model from its Hugging Face or original LLaVA directory.

    Args:
        directory: holds config.json, as `LlavaForConditionalGeneration.save_pretrained` writes
            it (transformers 4 and 5), or as the original LLaVA does.
        vision_tower: the CLIP directory of an original LLaVA, see `original.tower_directory`.

    Returns:
        The architecture; fields that the file leaves out take the defaults of transformers.

    Raises:
        DataError: the file is missing or not a LLaVA config, or has fields with unsupported
            values; all of them are named, with their values. Or the directory holds an adapter.
    """
    path = as_path(directory) / "config.json"
    refuse_adapters(path.parent)
    hf = _hf_config(path, vision_tower)
    text, vision = cast(Any, hf.text_config), cast(Any, hf.vision_config)
    refuse(path, _unsupported(hf, text, vision))
    config = LlavaConfig(
        vision=VisionConfig(**{ours: getattr(vision, name) for ours, name in _VISION.items()}),
        text=read_text_config(text, bool(hf.tie_word_embeddings)),
        feature_layer=cast(int, hf.vision_feature_layer),
        feature_select=hf.vision_feature_select_strategy,
        projector_bias=hf.multimodal_projector_bias,
        image_token_id=hf.image_token_index,
    )
    if not 0 <= config.tower_depth <= config.vision.num_layers:
        raise DataError(
            f"{path}: vision_feature_layer is {config.feature_layer}, but the tower has "
            f"{config.vision.num_layers} layers"
        )
    return config


def read_context_length(directory: Path, vision_tower: Path | None = None) -> int:
    """Returns `max_position_embeddings` of the language model, which vLLM takes as its limit.

    Args:
        directory: see `read_llava_config`.
        vision_tower: see `read_llava_config`.
    """
    text = cast(Any, _hf_config(directory / "config.json", vision_tower).text_config)
    return text.max_position_embeddings


def llava_config_fields(config: LlavaConfig, context_length: int | None = None) -> dict[str, Any]:
    """Returns the fields of a config.json that `read_llava_config` reads back as `config`.

    They are spelled as on the Hub, which transformers 4 and 5 read.

    Args:
        config: the architecture.
        context_length: see `text_fields`.

    Raises:
        DataError: see `text_fields`.
    """
    vision = config.vision
    return {
        "model_type": "llava",
        "architectures": ["LlavaForConditionalGeneration"],
        "image_token_index": config.image_token_id,
        "image_seq_length": config.tile_features,
        "vision_feature_layer": config.feature_layer,
        "vision_feature_select_strategy": config.feature_select,
        "multimodal_projector_bias": config.projector_bias,
        "tie_word_embeddings": config.text.tied_head,
        "vision_config": {
            "model_type": "clip_vision_model",
            **{name: getattr(vision, ours) for ours, name in _VISION.items()},
        },
        "text_config": text_fields(config.text, context_length),
    }


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
            text = cast(Any, _hf_config(path).text_config)
            eos = fields.get("eos_token_id", text.eos_token_id)
            pad = fields.get("pad_token_id", text.pad_token_id)
    stop_ids = tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,)
    pad_ids = () if pad is None else (pad,)
    for name, value in (("eos_token_id", stop_ids), ("pad_token_id", pad_ids)):
        if any(type(token) is not int for token in value):
            raise DataError(f"{path}: {name} holds {list(value)}, expected integers")
    return SpecialTokens(stop_ids, stop_ids[0] if pad is None and stop_ids else pad)


def _hf_config(path: Path, vision_tower: str | Path | None = None) -> HFConfig:
    raw = read_json(path)
    require_llava(path, raw)
    tower = tower_directory(path.parent, vision_tower)
    if tower:
        raw = as_hf_fields(path, raw, tower)
    from transformers import LlavaConfig as HFConfig

    try:
        return cast(HFConfig, HFConfig.from_dict(raw))
    # Whatever transformers raises for a hostile or damaged config is bad input, not a bug.
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"{path} is not a valid LLaVA config: {reason}") from error


def _unsupported(hf: HFConfig, text: Any, vision: Any) -> list[str]:
    """Returns a line 'NAME is VALUE, supported: ...' for each field our modules cannot honour."""
    allowed: list[tuple[str, Any, tuple]] = [
        ("projector_hidden_act", hf.projector_hidden_act, ("gelu",)),
        ("vision_feature_select_strategy", hf.vision_feature_select_strategy, ("default", "full")),
        ("quantization_config", getattr(hf, "quantization_config", None), (None,)),
        ("vision_config.model_type", vision.model_type, ("clip_vision_model",)),
    ]
    if vision.model_type == "clip_vision_model":
        allowed += [
            ("vision_config.hidden_act", vision.hidden_act, ("quick_gelu", "gelu")),
            ("vision_config.num_channels", vision.num_channels, (3,)),
        ]
    problems = unsupported(allowed)
    if not isinstance(hf.vision_feature_layer, int):
        problems.append(
            f"vision_feature_layer is {hf.vision_feature_layer!r}, supported: one integer"
        )
    for name in _SIZES:
        size = getattr(vision, name, 1)
        if type(size) is not int or not 1 <= size < 2**31:
            problems.append(f"vision_config.{name} is {size!r}, supported: a positive integer")
    problems += text_problems(text)
    if problems:
        return problems
    if (vision.image_size // vision.patch_size) ** 2 >= 2**31:
        problems.append(
            f"vision_config.image_size is {vision.image_size}, too large for patches of "
            f"{vision.patch_size} pixels"
        )
    return problems
