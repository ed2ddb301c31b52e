"""The spelling of the checkpoints that are on the Hub, which transformers 4 and 5 read."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from safetensors import safe_open

# Heads of the names in llava-hf's repositories and in OpenGVLab/InternVL3-*-hf.
_TOWER = r"vision_tower\.vision_model\.(embeddings|encoder\.layers|pre_layrnorm|post_layernorm)\."
_INTERN = r"vision_tower\.(embeddings|encoder\.layer)\."
_QWEN2 = r"(visual|model\.(embed_tokens|layers|norm))\.|lm_head\.weight$"
_QWEN3 = r"model\.(visual|language_model\.(embed_tokens|layers|norm))\.|lm_head\.weight$"
_OTHERS = (
    r"multi_modal_projector\.(layer_norm|linear_1|linear_2)\.",
    r"image_newline$",
    r"language_model\.model\.(embed_tokens|layers|norm)\.",
    r"language_model\.lm_head\.",
)


def tensor_names(directory: Path) -> list[str]:
    """Returns the names of all tensors of a directory."""
    names = []
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="np") as file:
            names += [*file.keys()]
    return names


def read(path: Path) -> dict[str, Any]:
    """Returns a JSON file."""
    return json.loads(path.read_text())


def check_hub_spelling(directory: Path, family: str) -> None:
    """Checks names of tensors, index, config.json, processor and tokenizer files.

    Args:
        directory: an export.
        family: its `model_type`.
    """
    names = tensor_names(directory)
    heads = re.compile("|".join([_INTERN if family == "internvl" else _TOWER, *_OTHERS]))
    if family.startswith("qwen"):
        heads = re.compile(_QWEN3 if family == "qwen3_vl" else _QWEN2)
    assert not [name for name in names if not heads.match(name)]
    if (directory / "model.safetensors.index.json").exists():
        weights = read(directory / "model.safetensors.index.json")["weight_map"]
        assert sorted(weights) == sorted(names)
    config = read(directory / "config.json")
    assert config["model_type"] == family
    assert ("image_token_index" if family.startswith("llava") else "image_token_id") in config
    for section in (config, config["text_config"], config["vision_config"]):
        assert not {"rope_parameters", "dtype"} & section.keys()
    assert {"rope_theta", "tie_word_embeddings"} <= config["text_config"].keys()
    assert "tie_word_embeddings" in config
    assert "image_processor_type" in read(directory / "preprocessor_config.json")
    path = directory / "processor_config.json"
    assert not path.exists() or not {"image_processor", "video_processor"} & read(path).keys()
    path = directory / "tokenizer_config.json"
    if path.exists():
        settings = read(path)
        assert settings["tokenizer_class"] != "TokenizersBackend"
        assert isinstance(settings.get("extra_special_tokens", {}), dict)
        assert not {"backend", "is_local"} & settings.keys()
