"""config.json of Qwen-VL: read as transformers means it, written so that it reads back, refused."""

import dataclasses
import json

import pytest
from helpers_qwen import QWEN

from seva_jax.convert import read_llava_config
from seva_jax.convert.hf_config import llava_config_fields, read_layouts
from seva_jax.models import Llava, LoraConfig, abstract_params
from seva_jax.types import DataError

# As on the Hub: the first two have the language model's fields on the top level.
_TEXT = {
    "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 512, "rms_norm_eps": 1e-6, "hidden_act": "silu",
    "rope_theta": 1e6, "max_position_embeddings": 32768,
}  # fmt: skip
_SECTIONS = {"type": "mrope", "mrope_section": [2, 1, 1]}
_IDS = {"image_token_id": 500, "video_token_id": 504}
FIELDS = {
    "qwen2_vl": {
        "model_type": "qwen2_vl", **_TEXT, **_IDS, "rope_scaling": _SECTIONS,
        "vision_config": {
            "model_type": "qwen2_vl", "depth": 4, "embed_dim": 32, "hidden_size": 32,
            "mlp_ratio": 2, "num_heads": 4, "patch_size": 14,
        },
    },
    "qwen2_5_vl": {
        "model_type": "qwen2_5_vl", **_TEXT, **_IDS, "rope_scaling": _SECTIONS,
        "vision_config": {
            "model_type": "qwen2_5_vl", "depth": 4, "hidden_size": 32, "out_hidden_size": 32,
            "intermediate_size": 48, "num_heads": 4, "patch_size": 14, "window_size": 112,
            "fullatt_block_indexes": [1, 3],
        },
    },
    "qwen3_vl": {
        "model_type": "qwen3_vl", **_IDS,
        "text_config": {
            "model_type": "qwen3_vl_text", **_TEXT, "head_dim": 8,
            "rope_scaling": {
                "rope_type": "default", "mrope_section": [2, 1, 1], "mrope_interleaved": True,
            },
        },
        "vision_config": {
            "model_type": "qwen3_vl", "depth": 4, "hidden_size": 32, "out_hidden_size": 32,
            "intermediate_size": 48, "num_heads": 4, "patch_size": 16,
            "num_position_embeddings": 36, "deepstack_visual_indexes": [0, 2],
        },
    },
}  # fmt: skip


def write(folder, fields):
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


def changed(family, changes):
    """Returns the fields of a family with some changed; `vision__x` is `vision_config.x`."""
    fields = json.loads(json.dumps(FIELDS[family]))
    for name, value in changes.items():
        section, _, inner = name.partition("__")
        if section == "vision":
            fields["vision_config"][inner] = value
        elif "text_config" in fields:
            fields["text_config"][name] = value
        else:
            fields[name] = value
    return fields


@pytest.mark.parametrize("family", QWEN)
def test_what_is_written_reads_back(tmp_path, family):
    config = read_llava_config(write(tmp_path, FIELDS[family]))
    assert config.text.rope_sections == (2, 1, 1)
    assert config.text.rope_interleaved == (family == "qwen3_vl")
    assert config.text.qkv_bias == (family != "qwen3_vl")
    assert config.text.rope_base == 1e6
    processing = read_layouts(tmp_path)
    assert processing.timestamps == (family == "qwen3_vl")
    # transformers' default where config.json does not say
    assert processing.positions_per_second == (4 if family == "qwen2_5_vl" else 0)
    with pytest.raises(DataError, match=rf"the family {family} has timestamps .*; change base"):
        llava_config_fields(
            config, 32768, dataclasses.replace(processing, timestamps=not processing.timestamps)
        )
    fields = llava_config_fields(config, 32768, processing)
    assert read_llava_config(write(tmp_path, fields)) == config
    assert fields["text_config"]["model_type"] == f"{family}_text"


@pytest.mark.parametrize("family", QWEN)
def test_axes_of_the_rotary_frequencies(tmp_path, family):
    config = read_llava_config(write(tmp_path, FIELDS[family]))
    expected = (0, 1, 2, 0) if family == "qwen3_vl" else (0, 0, 1, 2)
    assert config.text.rope_axes == expected


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("qwen2_vl", {"vision__hidden_act": "gelu"}, "hidden_act is 'gelu', supported: 'quick"),
        ("qwen2_vl", {"vision__spatial_merge_size": 4}, "spatial_merge_size is 4, supported: 2"),
        ("qwen2_vl", {"vision__temporal_patch_size": 1}, "temporal_patch_size is 1, supported: 2"),
        ("qwen2_vl", {"vision__num_heads": 5}, "num_heads is 5, supported: a divisor of the width"),
        ("qwen2_vl", {"vision__hidden_size": 64}, "vision_config.hidden_size is 64, supported: 32"),
        (
            "qwen2_vl",
            {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 1]}},
            "mrope_section is [1, 1, 1], supported: 3 positive integers whose sum is half of "
            "head_dim, 4",
        ),
        (
            "qwen2_vl",
            {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1},
            "has 'sliding_attention', supported with three axes: 'full_attention'",
        ),
        ("qwen2_5_vl", {"vision__window_size": 56}, "window_size is 56, supported: 112"),
        ("qwen2_5_vl", {"vision__out_hidden_size": 64}, "out_hidden_size is 64, supported: 32"),
        ("qwen3_vl", {"vision__num_position_embeddings": 35}, "35, supported: the square of"),
        (
            "qwen3_vl",
            {"vision__deepstack_visual_indexes": [2, 0]},
            "deepstack_visual_indexes is [2, 0], supported: ascending numbers of layers, below 4",
        ),
        (
            "qwen3_vl",
            {"vision__deepstack_visual_indexes": [0, 1, 2, 3]},
            "has 4 layers, more than the language model, 3",
        ),
    ],
)
def test_fields_that_are_not_supported_are_named(tmp_path, family, changes, words):
    with pytest.raises(DataError) as caught:
        read_llava_config(write(tmp_path, changed(family, changes)))
    assert words in str(caught.value)


def test_mixtures_of_experts_are_refused(tmp_path):
    with pytest.raises(DataError, match="model_type is 'qwen3_vl_moe', supported"):
        read_llava_config(write(tmp_path, FIELDS["qwen3_vl"] | {"model_type": "qwen3_vl_moe"}))


def test_adapters_on_layers_that_the_tower_lacks_are_refused(tmp_path):
    config = read_llava_config(write(tmp_path, FIELDS["qwen2_5_vl"]))
    lora = LoraConfig(rank=2, vision=True, vision_targets=("q_proj", "fc1"))
    message = (
        "vision_targets names q_proj, fc1, but .* are qkv, proj, gate_proj, up_proj, down_proj"
    )
    with pytest.raises(DataError, match=message):
        abstract_params(Llava(config, lora))
