"""Configs of the families beside LLaVA-1.5: what is read, refused by name, and written back."""

import json

import pytest
from helpers_llava import CONFIG_V4

from seva_jax.convert import read_llava_config
from seva_jax.convert.families import FAMILIES, family_of
from seva_jax.convert.hf_config import llava_config_fields, read_layouts
from seva_jax.images.internvl import InternvlProcessing
from seva_jax.images.llava_next import LlavaNextProcessing
from seva_jax.images.llava_onevision import LlavaOnevisionProcessing
from seva_jax.models import InternConfig, SiglipConfig, VisionConfig
from seva_jax.types import DataError

TEXT = CONFIG_V4["text_config"]
QWEN = {"model_type": "qwen2", **{k: v for k, v in TEXT.items() if k != "model_type"}}
TOWER = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 56,
    "patch_size": 14,
}
# As transformers 4 wrote them, with as many fields left out as its defaults allow.
NEXT = {
    "model_type": "llava_next",
    "image_grid_pinpoints": [[56, 112], [112, 56]],
    "image_token_index": 39,
    "use_image_newline_parameter": True,
    "text_config": TEXT,
    "vision_config": {"model_type": "clip_vision_model", **TOWER},
}
ONEVISION = {
    "model_type": "llava_onevision",
    "image_grid_pinpoints": [[56, 112], [112, 56]],
    "image_token_index": 39,
    "vision_aspect_ratio": "anyres_max_4",
    "text_config": QWEN,
    "vision_config": {"model_type": "siglip_vision_model", "vision_use_head": False, **TOWER},
}
INTERN = {
    "model_type": "internvl",
    "image_token_id": 39,
    "text_config": QWEN,
    "vision_config": {
        "model_type": "internvl_vision",
        **TOWER,
        "attention_bias": True,
        "image_size": [56, 56],
        "patch_size": [14, 14],
    },
}


def write(directory, fields):
    (directory / "config.json").write_text(json.dumps(fields))
    return directory


def changed(fields, **changes):
    """Returns a copy with other values; "a__b" stands for field b in section a."""
    fields = json.loads(json.dumps(fields))
    for name, value in changes.items():
        *sections, field = name.split("__")
        place = fields
        for section in sections:
            place = place[section]
        place[field] = value
    return fields


def test_next(tmp_path):
    config = read_llava_config(write(tmp_path, NEXT))
    assert config.vision == VisionConfig(56, 14, 16, 3, 2, 24)
    assert (config.newline, config.projector_norm, config.feature_layer) == (True, False, -2)
    assert (config.tile_features, config.feature_width, config.image_token_id) == (16, 16, 39)
    expected = LlavaNextProcessing(size=56, resolutions=((56, 112), (112, 56)))
    assert read_layouts(tmp_path) == expected


def test_onevision(tmp_path):
    config = read_llava_config(write(tmp_path, ONEVISION))
    assert config.vision == SiglipConfig(56, 14, 16, 3, 2, 24)
    assert (config.newline, config.feature_layer, config.feature_select) == (True, -1, "full")
    assert (config.tile_features, config.tower_depth, config.text.qkv_bias) == (16, 3, True)
    layouts = read_layouts(tmp_path)
    assert isinstance(layouts, LlavaOnevisionProcessing)
    assert (layouts.anyres_max, layouts.size) == (4, 56)
    # The smallest model says so in its language model's part only.
    tied = changed(ONEVISION, text_config__tie_word_embeddings=True)
    assert read_llava_config(write(tmp_path, tied)).text.tied_head


def test_internvl(tmp_path):
    config = read_llava_config(write(tmp_path, INTERN))
    assert config.vision == InternConfig(56, 14, 16, 3, 2, 24)
    assert (config.newline, config.projector_norm, config.feature_select) == (
        False,
        True,
        "default",
    )
    assert (config.tile_features, config.feature_width, config.image_token_id) == (4, 64, 39)
    assert read_layouts(tmp_path) is None
    quarter = changed(INTERN, downsample_ratio=0.25)
    assert read_llava_config(write(tmp_path, quarter)).feature_width == 256


@pytest.mark.parametrize(
    ("top", "text", "tied"),
    [(None, None, False), (None, True, True), (False, True, False), (True, True, True)],
)
def test_heads_of_internvl(tmp_path, top, text, tied):
    """Version 4 asked the language model's config; version 5 writes its default at the top."""
    fields = dict(INTERN) if top is None else changed(INTERN, tie_word_embeddings=top)
    if text is not None:
        fields = changed(fields, text_config__tie_word_embeddings=text)
    assert read_llava_config(write(tmp_path, fields)).text.tied_head == tied


@pytest.mark.parametrize(
    ("fields", "change", "message"),
    [
        (NEXT, {"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy is 'f"),
        (NEXT, {"projector_hidden_act": "relu"}, "projector_hidden_act is 'relu'"),
        (NEXT, {"vision_config__model_type": "siglip_vision_model"}, "is 'siglip_vision_model'"),
        (NEXT, {"image_grid_pinpoints": [[56, 100]]}, "image_grid_pinpoints is [[56, 100]], supp"),
        (NEXT, {"image_grid_pinpoints": [56]}, "image_grid_pinpoints is [56]"),
        (NEXT, {"image_grid_pinpoints": []}, "image_grid_pinpoints is []"),
        (NEXT, {"text_config__model_type": "gemma"}, "text_config.model_type is 'gemma'"),
        (ONEVISION, {"vision_feature_select_strategy": "default"}, "strategy is 'default'"),
        (ONEVISION, {"vision_aspect_ratio": "pad"}, "vision_aspect_ratio is 'pad'"),
        (ONEVISION, {"vision_config__hidden_act": "quick_gelu"}, "hidden_act is 'quick_gelu'"),
        (ONEVISION, {"vision_feature_layer": [-1, -2]}, "vision_feature_layer is [-1, -2]"),
        (INTERN, {"vision_config__norm_type": "rms_norm"}, "vision_config.norm_type is 'rms_norm'"),
        (INTERN, {"vision_config__use_mean_pooling": False}, "use_mean_pooling is False"),
        (INTERN, {"vision_config__image_size": [56, 28]}, "image_size is [56, 28]"),
        (
            INTERN,
            {"vision_config__use_absolute_position_embeddings": False},
            "use_absolute_position_embeddings is False",
        ),
        (INTERN, {"downsample_ratio": 0.3}, "downsample_ratio is 0.3, supported: 1 / N"),
        (INTERN, {"vision_config__image_size": 42}, "divides the 3 patches"),
        (INTERN, {"vision_feature_select_strategy": "full"}, "strategy is 'full'"),
        (INTERN, {"vision_feature_layer": -5}, "but the tower has 3 layers"),
    ],
)
def test_fields_that_are_not_supported_are_named(tmp_path, fields, change, message):
    with pytest.raises(DataError) as caught:
        read_llava_config(write(tmp_path, changed(fields, **change)))
    assert message in str(caught.value)
    assert str(tmp_path / "config.json") in str(caught.value)


def test_other_families_are_refused_in_one_line(tmp_path):
    with pytest.raises(DataError) as caught:
        read_llava_config(write(tmp_path, {"model_type": "gemma3"}))
    assert "\n" not in str(caught.value)
    assert "model_type is 'gemma3'" in str(caught.value)
    for family in FAMILIES:
        assert f'"{family.model_type}"' in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "processing"),
    [
        (NEXT, LlavaNextProcessing(size=56, resolutions=((56, 112),))),
        (
            ONEVISION,
            LlavaOnevisionProcessing(size=56, resolutions=((112, 56),), anyres_max=2),
        ),
        (INTERN, InternvlProcessing(size=56)),
        (changed(INTERN, downsample_ratio=0.25), InternvlProcessing(size=56)),
    ],
)
def test_what_is_written_reads_back(tmp_path, fields, processing):
    config = read_llava_config(write(tmp_path, fields))
    written = llava_config_fields(config, 4096, processing)
    assert read_llava_config(write(tmp_path, written)) == config
    assert family_of(config).model_type == written["model_type"] == fields["model_type"]
    layouts = read_layouts(tmp_path)
    if layouts is not None:
        sizes = [(61, 200), (333, 47)]
        for size in sizes:
            (ours,), (given,) = (x.layouts([size], 16) for x in (layouts, processing))
            assert ours.tiles == given.tiles
            assert ours.patch_N.tolist() == given.patch_N.tolist()
