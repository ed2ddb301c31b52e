"""The language model in a config.json: what is read, written, and refused."""

import dataclasses
import json

import pytest
from helpers_llava import CONFIG_V4
from tiny_models import TINY_HF

from seva_jax.convert import read_llava_config
from seva_jax.convert.hf_config import llava_config_fields
from seva_jax.convert.rewrite import require_llava_opens
from seva_jax.convert.source import Source
from seva_jax.models import DynamicRope, LinearRope, Llama3Rope, Rope, YarnRope
from seva_jax.types import DataError

WINDOWS = {"use_sliding_window": True, "sliding_window": 6}


def read(directory, **text):
    """Reads a config.json like `CONFIG_V4`, whose language model has other fields."""
    fields = CONFIG_V4 | {"text_config": CONFIG_V4["text_config"] | text}
    (directory / "config.json").write_text(json.dumps(fields))
    return read_llava_config(directory).text


def like(**options):
    return dataclasses.replace(TINY_HF.text, **options)


LLAMA3 = {
    "rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4,
    "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"model_type": "mistral"}, like(window=4096)),  # the default of transformers
        ({"model_type": "mistral", "sliding_window": None}, like()),
        ({"model_type": "mistral", "sliding_window": 5, "head_dim": 6}, like(window=5, head_dim=6)),
        ({"model_type": "qwen2"}, like(qkv_bias=True)),
        ({"model_type": "qwen2", "sliding_window": 5}, like(qkv_bias=True)),
        (
            {"model_type": "qwen2", "max_window_layers": 1} | WINDOWS,
            like(qkv_bias=True, window=6, full_layers=(0,)),
        ),
        ({"model_type": "qwen2", "max_window_layers": 2} | WINDOWS, like(qkv_bias=True)),
        (
            {"model_type": "qwen3", "head_dim": 8, "max_window_layers": 0} | WINDOWS,
            like(qk_norm=True, head_dim=8, window=6),
        ),
        (
            {"model_type": "qwen3", "head_dim": 4} | WINDOWS
            | {"layer_types": ["sliding_attention", "full_attention"]},
            like(qk_norm=True, window=6, full_layers=(1,)),
        ),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, like(rope=LinearRope(2.0))),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2}, "max_position_embeddings": 64},
            like(rope=DynamicRope(2.0, 64)),
        ),
        ({"rope_scaling": LLAMA3}, like(rope=Llama3Rope(8.0, 1.0, 4.0, 64))),
        ({"rope_scaling": YARN}, like(rope=YarnRope(4.0, 64))),
        (
            {"rope_scaling": {"type": "yarn", "factor": 4.0}, "max_position_embeddings": 128},
            like(rope=YarnRope(4.0, 128)),
        ),
        (
            {"rope_scaling": YARN | {"attention_factor": 0.9, "beta_fast": 16, "beta_slow": 2}
             | {"truncate": False}},
            like(rope=YarnRope(4.0, 64, 0.9, 16.0, 2.0, False)),
        ),
    ],
)  # fmt: skip
def test_what_is_read_is_written_as_it_was(tmp_path, fields, expected):
    """The fields that are written are those of the Hub, and read back as the same config."""
    assert read(tmp_path, **fields) == expected
    config = dataclasses.replace(TINY_HF, text=expected)
    for context in (None, 256):
        written = llava_config_fields(config, context)
        text = written["text_config"]
        assert "rope_parameters" not in text
        assert text["rope_theta"] == 500.0
        (tmp_path / "config.json").write_text(json.dumps(written))
        assert read_llava_config(tmp_path) == config
        if context is not None and not isinstance(expected.rope, DynamicRope):
            assert text["max_position_embeddings"] == context
    if expected.window or expected.qkv_bias or expected.qk_norm:
        assert text["model_type"] == fields["model_type"]


def test_a_number_of_layers_takes_no_memory(tmp_path):
    """A hostile one is compared with the weights later, before anything is listed by layer."""
    for kind in ("llama", "mistral"):
        assert read(tmp_path, model_type=kind, num_hidden_layers=2**31 - 1).num_layers == 2**31 - 1


def test_transformers_4_reads_the_same_factor_of_yarn():
    """It takes the ratio of both contexts for the factor if both are there."""
    config = dataclasses.replace(TINY_HF, text=like(rope=YarnRope(4.0, 64)))
    text = llava_config_fields(config)["text_config"]
    ratio = (
        text["max_position_embeddings"] / text["rope_scaling"]["original_max_position_embeddings"]
    )
    assert ratio == text["rope_scaling"]["factor"] == 4.0
    text = llava_config_fields(config, 64)["text_config"]
    assert "original_max_position_embeddings" not in text["rope_scaling"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {
                "rope_scaling": {"type": "longrope", "long_factor": [1.0] * 2}
                | {"short_factor": [1.0] * 2}
            },
            "text_config.rope_parameters.rope_type is 'longrope', supported: 'default', 'linear'",
        ),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "rope_parameters.factor is 0, supp"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "rope_parameters.factor is '2'"),
        ({"rope_scaling": LLAMA3 | {"high_freq_factor": 1}}, "high_freq_factor is 1, supported: a"),
        ({"rope_scaling": YARN | {"attention_factor": -1.0}}, "attention_factor is -1.0"),
        (
            {"rope_scaling": YARN, "rope_theta": 1.0},
            "rope_theta is 1.0, supported: a number above 1",
        ),
        ({"rope_theta": -1.0}, "rope_parameters.rope_theta is -1.0"),
        ({"rope_theta": 5.0, "partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"head_dim": 3}, "text_config.head_dim is 3, supported: an even number"),
        ({"model_type": "mistral", "sliding_window": 0}, "text_config.sliding_window is 0"),
        ({"model_type": "mistral", "sliding_window": "8"}, "sliding_window"),
        (
            {"model_type": "mistral", "layer_types": ["full_attention", "sliding_attention"]},
            "all layers of a mistral are alike",
        ),
        (
            {"model_type": "qwen2", "layer_types": ["full_attention", "sliding_attention"]},
            "text_config.sliding_window is None",
        ),
        (
            {"model_type": "qwen2", "layer_types": ["full_attention", "chunked_attention"]},
            "text_config.layer_types is 'chunked_attention', supported: 'full_attention'",
        ),
        ({"model_type": "qwen3", "head_dim": 4, "attention_bias": True}, "attention_bias is True"),
        ({"model_type": "qwen2", "hidden_act": "gelu"}, "text_config.hidden_act is 'gelu'"),
        ({"model_type": "qwen2", "num_key_value_heads": 3}, "num_key_value_heads is 3"),
        (
            {"model_type": "gemma"},
            "model_type is 'gemma', supported: 'llama', 'mistral', 'qwen2', 'qwen3'",
        ),
    ],
)
def test_what_is_not_carried_is_refused_by_name(tmp_path, fields, message):
    with pytest.raises(DataError) as caught:
        read(tmp_path, **fields)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"qkv_bias": True, "qk_norm": True},
        {"window": 5, "full_layers": (0,)},
    ],
)
def test_options_that_no_model_has_are_not_written(options):
    config = dataclasses.replace(TINY_HF, text=like(**options))
    with pytest.raises(DataError, match="no model of transformers has this language model"):
        llava_config_fields(config)
    assert Rope() == TINY_HF.text.rope


@pytest.mark.parametrize(
    "options", [{"window": 5}, {"qkv_bias": True}, {"qk_norm": True}, {"rope": YarnRope(4.0, 64)}]
)
def test_the_original_llava_is_not_offered_what_it_cannot_open(options, tmp_path):
    config = dataclasses.replace(TINY_HF, text=like(**options))
    (tmp_path / "tokenizer.model").touch()
    out = tmp_path / "llava"
    require_llava_opens(Source(tmp_path, None, TINY_HF), out)
    with pytest.raises(DataError, match="original LLaVA cannot open this model: "):
        require_llava_opens(Source(tmp_path, None, config), out)
