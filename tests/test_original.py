"""LLaVA-NeXT, OneVision and LLaVA-Video in the layout of LLaVA's own code: configs and exports."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from helpers_families import SIDE, TOWER
from helpers_llava import EOS, IMAGE_TOKEN, VOCAB, random_params, their_tensors, write_run
from helpers_original import VIDEO_TOKEN, write_original_of
from safetensors.numpy import load_file

import seva_jax
from seva_jax.config.base_models import Checkpoint
from seva_jax.convert import original_config, read_llava_config, tower_directory
from seva_jax.convert.__main__ import open_source
from seva_jax.convert.chat_template import read_template
from seva_jax.convert.original import llava_name_problem
from seva_jax.convert.peft import to_llava_lora, to_peft
from seva_jax.convert.processor import image_processing
from seva_jax.convert.rewrite import require_llava_opens, to_hf, to_llava
from seva_jax.images import LlavaNextProcessing, LlavaOnevisionProcessing
from seva_jax.models import LlavaConfig, SiglipConfig, TextConfig
from seva_jax.plan.published import PUBLISHED
from seva_jax.text import MISTRAL, QWEN_1_5, VICUNA_V1
from seva_jax.text.tokenizer import load_tokenizer
from seva_jax.types import FRAME, NEWLINE, DataError

SIGLIP = "google/siglip-so400m-patch14-384"
ONEVISION = LlavaConfig(
    SiglipConfig(SIDE, 14, 32, 3, 4, 48),
    TextConfig(VOCAB, 32, 2, 4, 2, 8, 56, 1e-6, qkv_bias=True),
    feature_layer=-1,
    feature_select="full",
    image_token_id=IMAGE_TOKEN,
    newline=True,
    video_token_id=VIDEO_TOKEN,
)
# Of lmms-lab/LLaVA-Video-7B-Qwen2, as far as our code or LLaVA's reads it.
LLAVA_VIDEO = {
    "add_faster_video": False,
    "add_time_instruction": True,
    "architectures": ["LlavaQwenForCausalLM"],
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "faster_token_stride": 10,
    "force_sample": True,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "image_aspect_ratio": "anyres_max_9",
    "image_grid_pinpoints": "(1x1),...,(6x6)",
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "mm_hidden_size": 1152,
    "mm_newline_position": "grid",
    "mm_patch_merge_type": "spatial_unpad",
    "mm_projector_type": "mlp2x_gelu",
    "mm_resampler_type": None,
    "mm_spatial_pool_mode": "bilinear",
    "mm_spatial_pool_stride": 2,
    "mm_use_im_start_end": False,
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": SIGLIP,
    "model_type": "llava_qwen",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "use_mm_proj": True,
    "use_sliding_window": False,
    "vocab_size": 152064,
}
QWEN_TOKENS = {"151643": "<|endoftext|>", "151644": "<|im_start|>", "151645": "<|im_end|>"}


def small(directory, **fields):
    """Writes a small LLaVA-OneVision with a tokenizer."""
    tensors = their_tensors(random_params(ONEVISION))
    write_original_of("llava_onevision", tensors, directory, **fields)
    config = json.loads((directory / "config.json").read_text())
    del config["image_token_index"], config["video_token_index"]  # their code has no such tokens
    (directory / "config.json").write_text(json.dumps(config))
    tokenizer_of_bytes().save_pretrained(directory)
    return directory


def tokenizer_of_bytes():
    """Returns a tokenizer like Qwen2's: pieces of bytes, and three special tokens after them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: id_ for id_, letter in enumerate(alphabet)} | {"Ġa": 256, "Ġat": 257}
    inner = Tokenizer(models.BPE(vocabulary, [("Ġ", "a"), ("Ġa", "t")]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )


def test_the_released_config(tmp_path):
    """The tower's weights are in the checkpoint, so its name alone gives its sizes."""
    (tmp_path / "config.json").write_text(json.dumps(LLAVA_VIDEO))
    added = {"added_tokens_decoder": {id_: {"content": x} for id_, x in QWEN_TOKENS.items()}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(added))
    with pytest.raises(DataError, match=rf"mm_vision_tower is '{SIGLIP}', which is not there"):
        read_llava_config(tmp_path)
    names = {"model.vision_tower.vision_tower.vision_model.post_layernorm.bias": "a.safetensors"}
    index = {"weight_map": names}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "a.safetensors").touch()
    published = PUBLISHED["llava-video-7b-qwen2"]
    assert read_llava_config(tmp_path) == published.config
    assert (published.config.vision.num_layers, published.config.feature_layer) == (26, -1)
    assert published.config.text.vocab_size == 152064
    assert published.config.image_token_id == 151646
    assert published.processing == LlavaOnevisionProcessing(video_newline="grid")
    processing = image_processing(tmp_path, tower_directory(tmp_path))
    assert isinstance(processing, LlavaOnevisionProcessing)
    grids = published.processing.resolutions
    assert sorted(processing.resolutions) == sorted(grids)
    assert dataclasses.replace(processing, resolutions=grids) == published.processing
    (layout,) = published.processing.layouts([FRAME] * 16, 729)
    assert layout.num_tokens == 16 * 14 * 15
    # mm_spatial_pool_mode of evaluations of LLaVA-Video: 13 rows of 13 features and a newline.
    averaged = dataclasses.replace(published.processing, video_pool="average")
    (layout,) = averaged.layouts([FRAME] * 2, 729)
    assert layout.num_tokens == 2 * 13 * 14
    rows = layout.patch_N.reshape(2, 13, 14)
    assert (rows[..., -1] == NEWLINE).all()
    assert (rows[..., :-1] >= 0).all()
    index = layout.blend.index_BSM.reshape(2, 13, 14, 4)
    np.testing.assert_array_equal(index[1, 12, 12], 729 + 27 * 24 + 24 + np.array([0, 1, 27, 28]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"add_faster_video": True}, "add_faster_video is True, supported: False"),
        ({"mm_newline_position": "row"}, "mm_newline_position is 'row', supported: 'one_token', "),
        ({"mm_spatial_pool_mode": "max"}, "mm_spatial_pool_mode is 'max', supported: 'bilinear', "),
        ({"mm_spatial_pool_stride": 4}, "mm_spatial_pool_stride is 4, supported: 2"),
        ({"mm_projector_type": "pooler"}, "mm_projector_type is 'pooler', supported: 'mlp2x_"),
        ({"mm_resampler_type": "spatial_pool"}, "mm_resampler_type is 'spatial_pool'"),
        ({"mm_patch_merge_type": "flat"}, "mm_patch_merge_type is 'flat', supported: 'spatial_"),
        ({"mm_patch_merge_type": "spatial"}, "mm_patch_merge_type is 'spatial', supported: "),
        ({"s2": True}, "s2 is True"),
        ({"model_type": "llava_gemma"}, "model_type is 'llava_gemma', supported in the layout of"),
        ({"image_grid_pinpoints": "all"}, "image_grid_pinpoints is 'all', supported: pairs of"),
        ({"image_grid_pinpoints": [[384]]}, "image_grid_pinpoints is '[[384]]', supported: pairs"),
        ({"image_grid_pinpoints": "(1x1),(9x999999)"}, "supported: pairs of widths and"),
        ({"image_grid_pinpoints": [[57, 56]]}, "supported: pairs of multiples of"),
        ({"vocab_size": "many"}, "vocab_size is 'many', supported: an integer"),
        ({"model_type": ["llava_qwen"]}, "model_type is ['llava_qwen'], supported in the layout"),
        ({"image_aspect_ratio": "anyres"}, "model_type is 'siglip_vision_model', expected a CLIP"),
        ({"image_aspect_ratio": "highres"}, "image_aspect_ratio is 'highres', supported: 'pad'"),
    ],
)
def test_configs_that_are_not_supported(tmp_path, fields, message):
    directory = small(tmp_path / "llava", **fields)
    with pytest.raises(DataError) as caught:
        read_llava_config(directory)
    assert message in str(caught.value)


def test_a_damaged_tokenizer(tmp_path):
    directory = small(tmp_path / "llava")
    settings = {"added_tokens_decoder": {"first": {"content": "<image>"}}}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(DataError, match="the added tokens of its tokenizer cannot be read"):
        read_llava_config(directory)


@pytest.mark.parametrize(
    "given",
    [
        "(1x1),...,(2x3)",
        [[56, 56], [56, 112], [56, 168], [112, 56], [112, 112], [112, 168]],
        "[[56, 56], [56, 112], [56, 168], [112, 56], [112, 112], [112, 168]]",
    ],
)
def test_grids_have_widths_first(tmp_path, given):
    directory = small(tmp_path / "llava", image_grid_pinpoints=given)
    processing = image_processing(directory, tower_directory(directory))
    assert processing.resolutions == (
        (56, 56), (112, 56), (168, 56), (56, 112), (112, 112), (168, 112)
    )  # fmt: skip
    assert processing.grid((300, 60)) == (3, 1)


def test_assets_and_answers(tmp_path):
    """The image token is the first that the tokenizer has free, and videos are as in the config."""
    directory = small(tmp_path / "llava", mm_newline_position="grid")
    assets = Checkpoint(str(directory)).assets()
    assert (assets.config.image_token_id, assets.config.video_token_id) == (261, 262)
    assert assets.processing.video_newline == "grid"
    # LLaVA encodes the texts between images one by one.
    text = "at a <image>\n at<image> a at<|im_end|>\n"
    pieces = [tokenizer_of_bytes()(piece).input_ids for piece in text.split("<image>")]
    expected = [*pieces[0], 261, *pieces[1], 261, *pieces[2]]
    assert assets.tokenizer(text).input_ids == expected
    model = seva_jax.from_pretrained(directory)
    assert model.processing == assets.processing
    frames = np.random.default_rng(0).normal(size=(1, 2, 3, SIDE, SIDE)).astype(np.float32)
    ids = np.array([[5, *[262] * (2 * 2 * 3), 9, 8]])
    out = model.generate(ids, pixel_values_videos=frames, max_new_tokens=3)
    np.testing.assert_array_equal(out[:, : ids.shape[1]], ids)
    assert np.isfinite(model.logits(ids, pixel_values_videos=frames)).all()


def test_a_tokenizer_without_tokenizer_json(tmp_path):
    """AutoTokenizer finds the class that tokenizer_config.json names."""
    inner = json.loads(tokenizer_of_bytes().backend_tokenizer.to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(inner["vocab"]))
    merges = "".join(f"{a} {b}\n" for a, b in inner["merges"])
    (tmp_path / "merges.txt").write_text(merges)
    settings = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load_tokenizer(tmp_path, original=True)
    assert tokenizer(" at").input_ids == [257]
    assert "<image>" in tokenizer.get_vocab()


@pytest.mark.parametrize(
    ("model_type", "template"),
    [("llava_qwen", QWEN_1_5), ("llava_mistral", MISTRAL), ("llava_llama", VICUNA_V1)],
)
def test_templates(tmp_path, model_type, template):
    directory = small(tmp_path / "llava", model_type=model_type)
    assert read_template(directory, tokenizer_of_bytes(), original=True) == template


def test_the_template_of_qwen():
    assert QWEN_1_5.prompt("What?") == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<image>\nWhat?<|im_end|>\n<|im_start|>assistant\n"
    )


def same_bytes(a, b):
    names = {p.relative_to(a) for p in a.rglob("*") if p.is_file()}
    assert names == {p.relative_to(b) for p in b.rglob("*") if p.is_file()}
    for name in names:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


def test_a_newline_after_every_row_stays_in_its_layout(tmp_path, monkeypatch):
    tiny = {"model_type": "siglip_vision_model", **TOWER, "num_hidden_layers": 4}
    monkeypatch.setitem(original_config._TOWERS, SIGLIP, tiny)
    directory = small(tmp_path / "llava", mm_newline_position="grid", mm_vision_tower=SIGLIP)
    for path in (directory / "vision_tower").iterdir():
        path.unlink()
    (directory / "vision_tower").rmdir()
    assert tower_directory(directory) == directory
    source = open_source(directory)
    with pytest.raises(DataError, match=r"mm_newline_position 'grid', .* to-llava exports"):
        to_hf(source, tmp_path / "hf")
    with pytest.raises(DataError, match=r"contains llava and qwen, and not .*, such as \S+qwen$"):
        require_llava_opens(source, tmp_path / "llava-merged")
    out = tmp_path / "llava-qwen"
    require_llava_opens(source, out)
    to_llava(source, out)
    same_bytes(directory, out)

    trained = write_run(tmp_path / "run", directory, parts=("lora", "projector"))
    run = open_source(tmp_path / "run")
    to_llava(run, tmp_path / "llava-qwen-run")
    assert (tmp_path / "llava-qwen-run" / "config.json").read_bytes() == (
        directory / "config.json"
    ).read_bytes()
    new = load_file(tmp_path / "llava-qwen-run" / "model.safetensors")
    newline = trained["params"]["projector"]["image_newline"]
    np.testing.assert_array_equal(new["model.image_newline"], newline)
    with pytest.raises(DataError, match="mm_newline_position 'grid'"):
        to_peft(run, tmp_path / "peft")
    pytest.importorskip("torch")
    with pytest.raises(DataError, match=r"is no LLaVA-1\.5, and LLaVA's loader"):
        to_llava_lora(run, tmp_path / "llava-qwen-lora")


def test_one_newline_in_the_layout_of_transformers(tmp_path):
    directory = small(tmp_path / "llava")
    to_hf(open_source(directory), tmp_path / "hf")
    fields = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert fields["model_type"] == "llava_onevision"
    assert fields["vision_aspect_ratio"] == "anyres_max_9"
    assert "mm_newline_position" not in fields
    old, new = (
        Checkpoint(str(x), pad_to_square=None).assets() for x in (directory, tmp_path / "hf")
    )
    assert new.processing == old.processing
    assert new.config == old.config
    assert (new.config.image_token_id, new.config.video_token_id) == (261, 262)
    assert new.tokenizer.convert_tokens_to_ids("<video>") == 262
    text = "at<image> a<|im_end|>"
    assert new.tokenizer(text).input_ids == old.tokenizer(text).input_ids
    generation = json.loads((tmp_path / "hf" / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": [EOS], "pad_token_id": 258}
    assert read_template(tmp_path / "hf", new.tokenizer) == QWEN_1_5


@pytest.mark.parametrize(
    ("text", "name", "good"),
    # What load_pretrained_model in LLaVA-NeXT's llava/model/builder.py does with the name.
    [
        ("qwen2", "llava-qwen-rrpo", True),
        ("qwen2", "LLaVA-Video-7B-Qwen2-rrpo", True),
        ("qwen2", "llava-video", False),
        ("qwen2", "llava-qwen-mistral", False),
        ("qwen2", "llava-qwen-lora", False),
        ("qwen2", "llava-v1.5-qwen", False),
        ("mistral", "llava-v1.6-mistral-7b", True),
        ("mistral", "llava-v1.6", False),
        ("mistral", "llava-mixtral-mistral", False),
        ("llama", "llava-v1.6-vicuna", True),
    ],
)
def test_names_that_lead_the_loader(name, text, good):
    problem = llava_name_problem(Path("/x") / name, text=text)
    assert (problem is None) == good
    if problem:
        suggested = re.search(r"such as (\S+)$", problem)
        assert suggested
        assert llava_name_problem(Path(suggested[1]), text=text) is None


def test_pixels_of_next_are_those_of_its_tower(tmp_path):
    """Mean and deviation are in the processor file of the CLIP directory."""
    tensors = their_tensors(random_params(ONEVISION))
    directory = write_original_of("llava_next", tensors, tmp_path / "llava")
    file = directory / "vision_tower" / "preprocessor_config.json"
    fields = json.loads(file.read_text()) | {"image_mean": [0.25] * 3, "image_std": [0.5] * 3}
    file.write_text(json.dumps(fields))
    processing = image_processing(directory, tower_directory(directory))
    assert isinstance(processing, LlavaNextProcessing)
    assert (processing.mean, processing.std) == ((0.25,) * 3, (0.5,) * 3)
    assert processing.size == SIDE
