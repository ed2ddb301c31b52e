"""config.json and generation_config.json of Hugging Face LLaVA directories."""

import dataclasses
import json

import pytest
from helpers_llava import CONFIG_V4
from tiny_models import TINY_HF

import seva_jax
from seva_jax.convert import SpecialTokens, read_llava_config, read_special_tokens
from seva_jax.models import LlavaConfig
from seva_jax.types import DataError


def changed(fields, **changes):
    """Returns a copy of a JSON object with fields replaced; "a__b" is field b of field a."""
    fields = json.loads(json.dumps(fields))
    for name, value in changes.items():
        *outer, last = name.split("__")
        target = fields
        for part in outer:
            target = target[part]
        target[last] = value
    return fields


def read(tmp_path, fields):
    text = fields if isinstance(fields, str) else json.dumps(fields)
    (tmp_path / "config.json").write_text(text)
    return read_llava_config(tmp_path)


def test_both_layouts_of_config(tmp_path):
    assert read(tmp_path, CONFIG_V4) == TINY_HF
    v5 = changed(CONFIG_V4, dtype="float16")
    del v5["torch_dtype"], v5["text_config"]["rope_theta"], v5["text_config"]["rope_scaling"]
    v5["text_config"]["rope_parameters"] = {"rope_theta": 500.0, "rope_type": "default"}
    v5["text_config"]["head_dim"] = 8
    assert read(tmp_path, v5) == dataclasses.replace(
        TINY_HF, text=dataclasses.replace(TINY_HF.text, head_dim=8)
    )


def test_defaults_are_those_of_transformers(tmp_path):
    config = read(
        tmp_path,
        {"model_type": "llava", "text_config": {"vocab_size": 32064, "rms_norm_eps": 1e-5}},
    )
    assert config == LlavaConfig()  # LLaVA-1.5-7B


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"tie_word_embeddings": True}, lambda c: c.text.tied_head),
        ({"text_config__tie_word_embeddings": True}, lambda c: c.text.tied_head),
        ({"vision_feature_layer": -1}, lambda c: c.tower_depth == 3),
        ({"vision_feature_layer": 0}, lambda c: c.tower_depth == 0),
        ({"vision_feature_select_strategy": "full"}, lambda c: c.tile_features == 5),
        ({"multimodal_projector_bias": False}, lambda c: not c.projector_bias),
        ({"vision_config__hidden_act": "gelu"}, lambda c: c.vision.activation == "gelu"),
        ({"vision_config__layer_norm_eps": 1e-3}, lambda c: c.vision.norm_eps == 1e-3),
        ({"image_token_id": 7, "image_token_index": 7}, lambda c: c.image_token_id == 7),
        ({"text_config__num_key_value_heads": None}, lambda c: c.text.num_kv_heads == 4),
    ],
)
def test_fields_of_config(tmp_path, change, expected):
    assert expected(read(tmp_path, changed(CONFIG_V4, **change)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llava_next_video"}, "model_type is 'llava_next_video', supported: "),
        ({"mm_vision_tower": "openai/clip"}, "'openai/clip', which is not there"),
        ({"text_config__model_type": "gemma"}, "text_config.model_type is 'gemma'"),
        ({"text_config__model_type": "made_up"}, "made_up"),
        ({"vision_config__model_type": "siglip_vision_model"}, "is 'siglip_vision_model'"),
        ({"text_config__hidden_act": "gelu"}, "text_config.hidden_act is 'gelu'"),
        ({"text_config__attention_bias": True}, "text_config.attention_bias is True"),
        ({"text_config__mlp_bias": True}, "text_config.mlp_bias is True"),
        (
            {"text_config__rope_scaling": {"type": "ntk", "factor": 2.0}},
            "rope_type is 'ntk', supported: 'default', 'linear', 'dynamic', 'llama3', 'yarn'",
        ),
        ({"text_config__num_key_value_heads": 3}, "num_key_value_heads is 3"),
        ({"text_config__hidden_size": "wide"}, "hidden_size"),
        ({"vision_config__hidden_act": "silu"}, "vision_config.hidden_act is 'silu'"),
        ({"vision_config__num_channels": 4}, "vision_config.num_channels is 4"),
        ({"vision_config__image_size": [28, 42]}, "vision_config.image_size is [28, 42]"),
        ({"projector_hidden_act": "relu"}, "projector_hidden_act is 'relu'"),
        ({"vision_feature_layer": [-2, -5]}, "vision_feature_layer is [-2, -5]"),
        ({"vision_feature_layer": -5}, "vision_feature_layer is -5, but the tower has 3"),
        ({"vision_feature_select_strategy": "some"}, "vision_feature_select_strategy"),
        ({"quantization_config": {"load_in_8bit": True}}, "quantization_config is"),
    ],
)
def test_configs_that_are_not_supported(tmp_path, change, message):
    with pytest.raises(DataError) as caught:
        read(tmp_path, changed(CONFIG_V4, **change))
    assert message in str(caught.value)
    assert str(tmp_path / "config.json") in str(caught.value)


def test_every_field_that_is_not_supported_is_named(tmp_path):
    fields = changed(CONFIG_V4, text_config__mlp_bias=True, projector_hidden_act="relu")
    with pytest.raises(DataError, match=r"projector_hidden_act is 'relu'.*\n.*mlp_bias is True"):
        read(tmp_path, fields)


@pytest.mark.parametrize("text", ["", "{", "[1]", '"llava"', "\x00"])
def test_config_that_is_not_json(tmp_path, text):
    with pytest.raises(DataError, match=r"config\.json (cannot be read as JSON|holds a)"):
        read(tmp_path, text)


def test_missing_config(tmp_path):
    for directory in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError, match=r"config\.json does not exist"):
            seva_jax.from_pretrained(directory)


# --- generation_config.json ---


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": 5, "pad_token_id": 6}, {}, SpecialTokens((5,), 6)),
        ({"eos_token_id": [5, 4]}, {}, SpecialTokens((5, 4), 5)),
        ({}, {"eos_token_id": 5}, SpecialTokens((), None)),
        (None, {"eos_token_id": 5, "pad_token_id": 0}, SpecialTokens((5,), 0)),
        (None, {"text_config__eos_token_id": 5}, SpecialTokens((5,), 5)),
        (None, {}, SpecialTokens((2,), 2)),
    ],
)
def test_special_tokens(tmp_path, generation, config, expected):
    (tmp_path / "config.json").write_text(json.dumps(changed(CONFIG_V4, **config)))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert read_special_tokens(tmp_path) == expected


def test_special_tokens_that_are_not_ids(tmp_path):
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": "</s>"}')
    with pytest.raises(DataError, match=r"generation_config\.json: eos_token_id holds \['</s>'\]"):
        read_special_tokens(tmp_path)
