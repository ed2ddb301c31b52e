"""Small models in the layout of LLaVA's own code: tensors of transformers' layout, renamed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from helpers_families import GRID, SIDE, TEXT, TOWER
from helpers_llava import EOS, IMAGE_TOKEN
from safetensors.numpy import save_file

from seva_jax.convert.table import canonical

VIDEO_TOKEN = IMAGE_TOKEN + 4
_THEIRS = (
    ("vision_tower.", "model.vision_tower.vision_tower.vision_model."),
    ("multi_modal_projector.linear_1.", "model.mm_projector.0."),
    ("multi_modal_projector.linear_2.", "model.mm_projector.2."),
    ("image_newline", "model.image_newline"),
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
)
# Of the released files (lmms-lab/llava-onevision-qwen2-7b-ov, liuhaotian/llava-v1.6-vicuna-7b).
_SAME = {
    "bos_token_id": 1,
    "eos_token_id": EOS,
    "hidden_act": "silu",
    "image_crop_resolution": None,
    "image_split_resolution": None,
    "max_position_embeddings": 32768,
    "mm_hidden_size": TOWER["hidden_size"],
    "mm_patch_merge_type": "spatial_unpad",
    "mm_projector_type": "mlp2x_gelu",
    "mm_resampler_type": None,
    "mm_tunable_parts": "mm_vision_tower,mm_mlp_adapter,mm_language_model",
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": "vision_tower",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "tokenizer_model_max_length": 32768,
    "torch_dtype": "float32",
    "use_mm_proj": True,
    "use_pos_skipping": False,
}
_OWN = {
    "llava_onevision": {
        "architectures": ["LlavaQwenForCausalLM"],
        "model_type": "llava_qwen",
        "image_aspect_ratio": "anyres_max_9",
        "mm_spatial_pool_mode": "bilinear",
        "mm_spatial_pool_stride": None,
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "linear", "factor": 8.0},  # their code ignores it
        "sliding_window": 131072,
        "use_sliding_window": False,
    },
    "llava_next": {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava_llama",
        "image_aspect_ratio": "anyres",
    },
}


def original_tensors(tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns tensors of transformers' layout by the names of LLaVA's own code."""
    named = {}
    for name, values in tensors.items():
        plain = canonical(name)
        old, new = next(pair for pair in _THEIRS if plain.startswith(pair[0]))
        named[new + plain.removeprefix(old)] = np.ascontiguousarray(values)
    return named


def write_original_of(
    family: str, tensors: Mapping[str, Any], directory: Path, **fields: Any
) -> Path:
    """Writes a model of `helpers_families.random_model` in the layout of LLaVA's own code.

    The tower's weights are in the checkpoint, and `directory`/vision_tower has its config only.

    Args:
        family: llava_next or llava_onevision.
        tensors: its tensors in transformers' layout.
        directory: made here.
        fields: of config.json.
    """
    directory.mkdir()
    save_file(original_tensors(tensors), directory / "model.safetensors")
    # Their files have widths first, and name a tower with one more layer than OneVision takes.
    config = _SAME | TEXT | _OWN[family] | {"image_grid_pinpoints": [[w, h] for h, w in GRID]}
    tokens = {"image_token_index": IMAGE_TOKEN, "video_token_index": VIDEO_TOKEN}
    (directory / "config.json").write_text(json.dumps(config | tokens | fields))
    (directory / "vision_tower").mkdir()
    tower: dict[str, Any] = {"model_type": "clip_vision_model", **TOWER}
    if family == "llava_onevision":
        layers = TOWER["num_hidden_layers"] + 1
        tower |= {"model_type": "siglip_vision_model", "num_hidden_layers": layers}
    (directory / "vision_tower" / "config.json").write_text(json.dumps(tower))
    square = {"height": SIDE, "width": SIDE}
    clip = {"size": {"shortest_edge": SIDE}, "crop_size": square}
    clip |= {"image_processor_type": "CLIPImageProcessor"}
    (directory / "vision_tower" / "preprocessor_config.json").write_text(json.dumps(clip))
    return directory
