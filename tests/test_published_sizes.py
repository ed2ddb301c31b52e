"""Published architectures that the planner knows by name: their numbers, and layouts of images."""

import typing

import pytest

from seva_jax.convert.families import FAMILIES
from seva_jax.images import QwenProcessing
from seva_jax.models import Llava, num_parameters
from seva_jax.plan.options import PlanOptions, image_layout
from seva_jax.plan.published import PUBLISHED, PublishedSize

VICUNA = {"model_type": "llama", "vocab_size": 32064, "rms_norm_eps": 1e-5}
QWEN2 = {"model_type": "qwen2", "rms_norm_eps": 1e-6, "rope_theta": 1e6}
QWEN_05B = QWEN2 | {
    "hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14,
    "num_key_value_heads": 2, "intermediate_size": 4864,
}  # fmt: skip
QWEN_15B = QWEN2 | {
    "hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12,
    "num_key_value_heads": 2, "intermediate_size": 8960,
}  # fmt: skip
QWEN_7B = QWEN2 | {
    "hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28,
    "num_key_value_heads": 4, "intermediate_size": 18944,
}  # fmt: skip
INTERNVL3 = {
    "vocab_size": 151674,
    "max_position_embeddings": 32768,
    "rope_scaling": {"type": "dynamic", "rope_type": "dynamic", "factor": 2.0},
}
QWEN2_VL = QWEN2 | {
    "vocab_size": 151936,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e6,
        "mrope_section": [16, 24, 24],
    },
}
QWEN3_VL = QWEN2_VL | {
    "model_type": "qwen3_vl_text",
    "head_dim": 128,
    "num_key_value_heads": 8,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 5e6,
        "mrope_section": [24, 20, 20],
        "mrope_interleaved": True,
    },
}
TOWER_25 = {"hidden_size": 1280}  # transformers' default is another one
SMALL_TOWER = {
    "depth": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "deepstack_visual_indexes": [5, 11, 17],
}
UNTIED = {"tie_word_embeddings": False, "vision_config": {"attention_bias": True}}
# Fields of config.json, by family. What is not said is transformers' default: the towers of
# LLaVA-NeXT, LLaVA-OneVision and InternVL3-1B, Llama 7B, Mistral 7B.
HUB = {
    "llava-v1.6-vicuna-7b": ("llava_next", VICUNA, {}),
    "llava-v1.6-vicuna-13b": (
        "llava_next",
        VICUNA
        | {"hidden_size": 5120, "num_hidden_layers": 40, "num_attention_heads": 40,
           "num_key_value_heads": 40, "intermediate_size": 13824},
        {},
    ),
    "llava-v1.6-mistral-7b": (
        "llava_next",
        {"model_type": "mistral", "vocab_size": 32064, "rms_norm_eps": 1e-5, "rope_theta": 1e6,
         "sliding_window": None},
        {},
    ),
    "llama3-llava-next-8b": (
        "llava_next",
        {"model_type": "llama", "vocab_size": 128320, "rms_norm_eps": 1e-5, "rope_theta": 5e5,
         "num_key_value_heads": 8, "intermediate_size": 14336},
        {"image_token_index": 128256},
    ),
    "llava-onevision-qwen2-0.5b": (
        "llava_onevision",
        QWEN_05B | {"vocab_size": 152000, "tie_word_embeddings": True},
        {"tie_word_embeddings": True},
    ),
    "llava-onevision-qwen2-7b": ("llava_onevision", QWEN_7B | {"vocab_size": 152128}, {}),
    "llava-video-7b-qwen2": (
        "llava_onevision",
        QWEN_7B | {"vocab_size": 152064},
        {"mm_newline_position": "grid"},
    ),
    "internvl3-1b": ("internvl", QWEN_05B | INTERNVL3, UNTIED),
    "internvl3-2b": ("internvl", QWEN_15B | INTERNVL3, UNTIED),
    "internvl3-8b": ("internvl", QWEN_7B | INTERNVL3, UNTIED),
    "qwen2-vl-2b": (
        "qwen2_vl",
        QWEN_15B | QWEN2_VL | {"model_type": "qwen2_vl_text"},
        {"tie_word_embeddings": True, "vision_config": {"hidden_size": 1536}},
    ),
    "qwen2-vl-7b": (
        "qwen2_vl",
        QWEN_7B | QWEN2_VL | {"model_type": "qwen2_vl_text", "vocab_size": 152064},
        {"tie_word_embeddings": False},
    ),
    "qwen2.5-vl-3b": (
        "qwen2_5_vl",
        QWEN2_VL
        | {"model_type": "qwen2_5_vl_text", "hidden_size": 2048, "num_hidden_layers": 36,
           "num_attention_heads": 16, "num_key_value_heads": 2, "intermediate_size": 11008},
        {"tie_word_embeddings": True, "vision_config": TOWER_25 | {"out_hidden_size": 2048}},
    ),
    "qwen2.5-vl-7b": (
        "qwen2_5_vl",
        QWEN_7B | QWEN2_VL | {"model_type": "qwen2_5_vl_text", "vocab_size": 152064},
        {"tie_word_embeddings": False, "vision_config": TOWER_25 | {"out_hidden_size": 3584}},
    ),
    "qwen3-vl-2b": (
        "qwen3_vl",
        QWEN3_VL
        | {"hidden_size": 2048, "num_hidden_layers": 28, "num_attention_heads": 16,
           "intermediate_size": 6144},
        {"tie_word_embeddings": True, "vision_config": SMALL_TOWER | {"out_hidden_size": 2048}},
    ),
    "qwen3-vl-4b": (
        "qwen3_vl",
        QWEN3_VL
        | {"hidden_size": 2560, "num_hidden_layers": 36, "num_attention_heads": 32,
           "intermediate_size": 9728},
        {"tie_word_embeddings": True, "vision_config": SMALL_TOWER | {"out_hidden_size": 2560}},
    ),
    "qwen3-vl-8b": (
        "qwen3_vl",
        QWEN3_VL
        | {"hidden_size": 4096, "num_hidden_layers": 36, "num_attention_heads": 32,
           "intermediate_size": 12288},
        {"tie_word_embeddings": False, "vision_config": {"out_hidden_size": 4096}},
    ),
}  # fmt: skip


def config_of(name):
    """Returns the family of a published model, and its config as transformers reads it."""
    model_type, text, top = HUB[name]
    (family,) = (x for x in FAMILIES if x.model_type == model_type)
    return family, family.hf_config({"model_type": model_type, "text_config": text, **top})


def test_every_name_has_an_architecture():
    assert typing.get_args(PublishedSize) == tuple(PUBLISHED)
    assert set(PUBLISHED) == {"7b", "13b", *HUB}


@pytest.mark.parametrize("name", HUB)
def test_the_architecture_is_that_of_the_config(name):
    family, hf = config_of(name)
    published = PUBLISHED[name]
    assert not family.problems(hf)
    assert published.config == family.config(hf, hf.tie_word_embeddings)
    assert type(published.processing) is family.processing
    layouts = family.layouts(hf)
    if isinstance(layouts, QwenProcessing):
        assert published.processing.size == layouts.size
    elif layouts is not None:
        assert published.processing.resolutions == layouts.resolutions


@pytest.mark.parametrize("name", HUB)
def test_as_many_parameters_as_transformers_makes(name):
    import torch
    from transformers import AutoModelForImageTextToText

    _, hf = config_of(name)
    with torch.device("meta"):
        theirs = AutoModelForImageTextToText.from_config(hf)
    config = PUBLISHED[name].config
    counted = num_parameters(Llava(config)) + config.unused_parameters
    assert counted == sum(x.numel() for x in theirs.parameters())


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("qwen2-vl-2b", 2.21),
        ("qwen2-vl-7b", 8.29),
        ("qwen2.5-vl-3b", 3.75),
        ("qwen2.5-vl-7b", 8.29),
        ("qwen3-vl-2b", 2.13),
        ("qwen3-vl-4b", 4.44),
        ("qwen3-vl-8b", 8.77),
    ],
)
def test_as_many_parameters_as_the_hub_shows(name, billions):
    """Its pages count those of the files, in which a tied head is not stored."""
    assert round(num_parameters(Llava(PUBLISHED[name].config)) / 1e9, 2) == billions


@pytest.mark.parametrize(
    ("name", "tiles", "tokens"),
    [
        ("7b", 1, 576),
        # 2 x 2 tiles of 24 x 24 features, of which a picture of 3 : 4 covers 36 rows.
        ("llava-v1.6-vicuna-7b", 5, 576 + 36 * 49),
        # 2 x 2 tiles of 27 x 27 features, of which a picture of 3 : 4 covers 40 rows.
        ("llava-onevision-qwen2-7b", 5, 729 + 40 * 55),
        # A grid of 3 x 4 tiles, and the whole picture.
        ("internvl3-8b", 13, 13 * 256),
        # Resized to 476 x 644 pixels, and with larger patches not at all.
        ("qwen2.5-vl-7b", 17 * 23, 17 * 23),
        ("qwen3-vl-8b", 15 * 20, 15 * 20),
    ],
)
def test_layouts_of_a_photograph(name, tiles, tokens):
    """It has 480 x 640 pixels, the planner's default."""
    published = PUBLISHED[name]
    image = image_layout(published.processing, published.config, PlanOptions(("h100",)).image)
    assert (image.tiles, image.num_tokens) == (tiles, tokens)
