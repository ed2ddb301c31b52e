"""Reading Hugging Face LLaVA directories: what is read, and what is refused and how."""

import dataclasses
import json
import pickle
import struct
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import seva_jax
from seva_jax.convert import (
    SpecialTokens,
    abstract_params,
    load_params,
    read_llava_config,
    read_special_tokens,
)
from seva_jax.convert.table import TABLE, PatchKernel, Transform, Transposed, canonical
from seva_jax.models import LlavaConfig, TextConfig, VisionConfig
from seva_jax.pretrained import to_rows
from seva_jax.types import DataError

CONFIG = LlavaConfig(
    vision=VisionConfig(
        image_size=28, hidden_size=16, num_layers=3, num_heads=2, mlp_size=24, patch_size=14
    ),
    text=TextConfig(
        vocab_size=40,
        hidden_size=16,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=4,
        mlp_size=32,
        rope_base=500.0,
    ),
    image_token_id=39,
)
EMBEDDING = "language_model.model.embed_tokens.weight"
# The layout transformers 4 wrote, with as many fields left out as its defaults allow.
CONFIG_V4 = {
    "model_type": "llava",
    "image_token_index": 39,
    "torch_dtype": "float16",
    "text_config": {
        "model_type": "llama",
        "vocab_size": 40,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 32,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500.0,
        "rope_scaling": None,
    },
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "image_size": 28,
        "patch_size": 14,
    },
}


def changed(fields, **changes):
    """A copy of a JSON object with fields replaced; "a__b" is field b of field a."""
    fields = json.loads(json.dumps(fields))
    for name, value in changes.items():
        *outer, last = name.split("__")
        target = fields
        for part in outer:
            target = target[part]
        target[last] = value
    return fields


def random_params(config):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), abstract_params(config)
    )


def their_tensors(params):
    """Their checkpoint from our parameters: the table, backwards."""
    ours = {
        "/".join(key.key for key in path): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
    }
    return {
        name: row.transform.write(part)
        for row in TABLE
        if row.ours in ours
        for name, part in zip(
            row.names(ours[row.ours].shape),
            ours[row.ours] if row.stacked else [ours[row.ours]],
            strict=True,
        )
    }


@pytest.fixture(scope="module")
def params():
    return random_params(CONFIG)


@pytest.fixture
def tensors(params):
    return their_tensors(params)


@pytest.fixture
def directory(tmp_path, tensors):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG_V4))
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


def split(directory, tensors, parts=3):
    """Replaces the single file by several and an index, and returns the index."""
    (directory / "model.safetensors").unlink()
    names, weight_map = sorted(tensors), {}
    for i in range(parts):
        file = f"model-{i + 1:05}-of-{parts:05}.safetensors"
        save_file({name: tensors[name] for name in names[i::parts]}, directory / file)
        weight_map |= dict.fromkeys(names[i::parts], file)
    write_index(directory, weight_map)
    return weight_map


def write_index(directory, weight_map):
    text = json.dumps({"metadata": {}, "weight_map": weight_map})
    (directory / "model.safetensors.index.json").write_text(text)


def refused(directory, config=CONFIG):
    with pytest.raises(DataError) as caught:
        load_params(directory, config)
    return str(caught.value)


def equal(ours, expected):
    jax.tree.map(np.testing.assert_array_equal, ours, expected)


# --- the table ---


@pytest.mark.parametrize(
    ("transform", "shape"),
    [(Transform(), (6, 5)), (Transposed(), (6, 5)), (PatchKernel(), (12, 5))],
)
def test_transforms_read_slices_and_undo_themselves(transform, shape):
    ours = np.arange(np.prod(shape)).reshape(shape)
    theirs = transform.write(ours)
    assert theirs.shape == transform.their_shape(shape)
    rng = np.random.default_rng(0)
    for _ in range(10):
        starts = [int(rng.integers(size)) for size in shape]
        index = tuple(
            slice(start, int(rng.integers(start, size)) + 1)
            for start, size in zip(starts, shape, strict=True)
        )
        np.testing.assert_array_equal(transform.read(theirs, index), ours[index])


def test_patch_kernel_order():
    theirs = np.arange(2 * 3 * 4 * 4).reshape(2, 3, 4, 4)
    ours = PatchKernel().read(theirs, (slice(0, 48), slice(0, 2)))
    row, column, channel, width = 3, 1, 2, 1
    assert ours[(row * 4 + column) * 3 + channel, width] == theirs[width, channel, row, column]


def test_table_covers_the_model():
    paths = jax.tree_util.tree_flatten_with_path(abstract_params(CONFIG))[0]
    assert sorted("/".join(key.key for key in path) for path, _ in paths) == sorted(
        row.ours for row in TABLE
    )
    assert all(canonical(row.theirs) == row.theirs for row in TABLE)


# --- weights ---


def test_round_trip(directory, params):
    loaded = load_params(directory, CONFIG)
    equal(loaded, params)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(loaded))


@pytest.mark.parametrize("stored", [np.float16, ml_dtypes.bfloat16, np.float64])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dtypes(directory, tensors, params, stored, dtype):
    save_file({k: v.astype(stored) for k, v in tensors.items()}, directory / "model.safetensors")
    loaded = load_params(directory, CONFIG, dtype)
    equal(loaded, jax.tree.map(lambda x: x.astype(stored).astype(jnp.dtype(dtype)), params))
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {jnp.dtype(dtype)}


def test_other_dtypes_are_refused(directory, tensors):
    tensors[EMBEDDING] = tensors[EMBEDDING].astype(np.int8)
    save_file(tensors, directory / "model.safetensors")
    assert f"{EMBEDDING} [40, 16] in model.safetensors is I8" in refused(directory)


def test_shards(directory, tensors, params):
    split(directory, tensors)
    equal(load_params(directory, CONFIG), params)


def test_shardings(directory, params):
    mesh = jax.make_mesh((len(jax.devices()),), ("x",))

    def place(leaf):
        axes = [None] * leaf.ndim
        for dim, size in enumerate(leaf.shape):
            if size % mesh.size == 0:
                axes[dim] = "x"
                break
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))

    shardings = jax.tree.map(place, abstract_params(CONFIG))
    loaded = load_params(directory, CONFIG, "float32", shardings)
    equal(loaded, params)
    assert jax.tree.map(lambda leaf: leaf.sharding, loaded) == shardings


@pytest.mark.parametrize(
    "change",
    [
        {"feature_layer": 0},
        {"projector_bias": False},
        {"text": dataclasses.replace(CONFIG.text, tied_head=True)},
    ],
)
def test_models_with_fewer_parameters(tmp_path, change):
    config = dataclasses.replace(CONFIG, **change)
    params = random_params(config)
    save_file(their_tensors(params), tmp_path / "model.safetensors")
    equal(load_params(tmp_path, config), params)


def test_unused_tensors_are_skipped(directory, tensors, params):
    layer = "vision_tower.encoder.layers"
    unused = {
        f"{layer}.2.mlp.fc1.weight": np.ones(3, np.float32),
        "vision_tower.post_layernorm.weight": np.ones(16, np.float32),
        "vision_tower.vision_model.embeddings.position_ids": np.arange(5)[None],
        "language_model.model.layers.1.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32),
        "model.language_model.rotary_emb.inv_freq": np.ones(2, np.float32),
    }
    save_file(tensors | unused, directory / "model.safetensors")
    equal(load_params(directory, CONFIG), params)

    save_file(
        tensors | {f"{layer}.3.mlp.fc1.weight": np.ones(3, np.float32)},
        directory / "model.safetensors",
    )
    assert f"unexpected: {layer}.3.mlp.fc1.weight [3]" in refused(directory)


def test_everything_that_does_not_fit_is_listed_at_once(directory, tensors):
    del tensors["language_model.model.layers.1.mlp.up_proj.weight"]
    del tensors["multi_modal_projector.linear_2.bias"]
    tensors["language_model.model.layers.2.mlp.up_proj.weight"] = np.ones((32, 16), np.float32)
    tensors["image_newline"] = np.ones(16, np.float32)
    tensors[EMBEDDING] = np.ones((48, 16), np.float32)  # a padded vocabulary
    name = "vision_tower.embeddings.patch_embedding.weight"
    tensors[name] = tensors[name][:, :, :7, :7].copy()
    save_file(tensors, directory / "model.safetensors")
    message = refused(directory)
    assert message.startswith(f"{directory}: 6 tensors do not fit config.json")
    for line in (
        "missing: language_model.model.layers.1.mlp.up_proj.weight [32, 16]",
        "missing: multi_modal_projector.linear_2.bias [16]",
        "unexpected: language_model.model.layers.2.mlp.up_proj.weight [32, 16]",
        "unexpected: image_newline [16]",
        f"misshapen: {EMBEDDING} [48, 16] in model.safetensors, expected [40, 16]",
        f"misshapen: {name} [16, 3, 7, 7] in model.safetensors, expected [16, 3, 14, 14]",
    ):
        assert line in message


def test_config_that_disagrees(directory):
    config = dataclasses.replace(CONFIG, text=dataclasses.replace(CONFIG.text, num_kv_heads=4))
    message = refused(directory, config)
    assert message.count("misshapen") == 4  # two layers, keys and values
    assert "k_proj.weight [8, 16] in model.safetensors, expected [16, 16]" in message


def test_one_tensor_under_two_names(directory, tensors):
    tensors["lm_head.weight"] = tensors["language_model.lm_head.weight"]
    save_file(tensors, directory / "model.safetensors")
    assert "is the same tensor as" in refused(directory)


def test_a_tied_head_has_to_be_the_embedding(directory, tensors):
    config = dataclasses.replace(CONFIG, text=dataclasses.replace(CONFIG.text, tied_head=True))
    tensors["language_model.lm_head.weight"] = tensors[EMBEDDING].copy()
    save_file(tensors, directory / "model.safetensors")
    assert "head" not in load_params(directory, config)["language"]
    tensors["language_model.lm_head.weight"][-1, -1] += 1
    save_file(tensors, directory / "model.safetensors")
    assert "set tie_word_embeddings to false" in refused(directory, config)
    tensors["language_model.lm_head.weight"] = np.ones((8, 16), np.float32)
    save_file(tensors, directory / "model.safetensors")
    assert "[8, 16] in model.safetensors, expected [40, 16]" in refused(directory, config)


def header(fields, data=b""):
    text = json.dumps(fields).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape, start, end):
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "damage",
    [
        lambda good: good[:-4],
        lambda good: good + b"more",
        lambda good: b"",
        lambda good: pickle.dumps({"weight": list(range(100))}),
        lambda good: b"PK\x03\x04" + bytes(100),  # a torch .bin, renamed
        lambda good: struct.pack("<Q", 2**62) + b"{}",
        lambda good: header({"a": entry([4], 0, 16), "b": entry([4], 8, 24)}, bytes(24)),
        lambda good: header({"a": entry([4], -16, 0)}, bytes(16)),
        lambda good: header({"a": entry([400], 0, 16)}, bytes(16)),
        lambda good: header({"a": entry([4], 0, 1600)}, bytes(16)),
        lambda good: struct.pack("<Q", 8) + b"\xff" * 8,
    ],
)
def test_damaged_and_hostile_files(directory, damage):
    path = directory / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    message = refused(directory)
    assert message.startswith(f"{path} is not a complete safetensors file (")
    assert "\n" not in message


def test_git_lfs_pointer(directory):
    (directory / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    )
    assert "run `git lfs pull`" in refused(directory)


def test_no_weights(directory):
    (directory / "model.safetensors").unlink()
    assert "holds neither model.safetensors nor" in refused(directory)
    (directory / "pytorch_model.bin").write_bytes(b"")
    message = refused(directory)
    assert "pytorch_model.bin" in message
    assert "can run code" in message
    assert "save_pretrained" in message


def test_index_and_files_that_contradict_each_other(directory, tensors):
    weight_map = split(directory, tensors)
    first, second, third = sorted(set(weight_map.values()))
    at = next(name for name, file in weight_map.items() if file == second)
    write_index(
        directory, {k: v for k, v in weight_map.items() if k != at} | {"made.up.weight": first}
    )
    message = refused(directory)
    assert f"{at} in {second} is not listed in model.safetensors.index.json" in message
    assert f"promises made.up.weight in {first}, which does not hold it" in message

    write_index(directory, weight_map)
    (directory / third).unlink()
    assert f"lacks 1 of the 3 files model.safetensors.index.json names: {third}" in refused(
        directory
    )


@pytest.mark.parametrize(
    ("weight_map", "reason"),
    [
        (None, "has no weight_map"),
        ({}, "has no weight_map"),
        ({"a": "../other/model.safetensors"}, "not in its own directory"),
        ({"a": "/etc/model.safetensors"}, "not in its own directory"),
        ({"a": 1}, "not in its own directory"),
        ({"a": "pytorch_model.bin"}, "only safetensors files are read"),
    ],
)
def test_bad_index(tmp_path, weight_map, reason):
    write_index(tmp_path, weight_map)
    assert reason in refused(tmp_path)


# --- config.json ---


def read(tmp_path, fields):
    text = fields if isinstance(fields, str) else json.dumps(fields)
    (tmp_path / "config.json").write_text(text)
    return read_llava_config(tmp_path)


def test_both_layouts_of_config(tmp_path):
    assert read(tmp_path, CONFIG_V4) == CONFIG
    v5 = changed(CONFIG_V4, dtype="float16")
    del v5["torch_dtype"], v5["text_config"]["rope_theta"], v5["text_config"]["rope_scaling"]
    v5["text_config"]["rope_parameters"] = {"rope_theta": 500.0, "rope_type": "default"}
    v5["text_config"]["head_dim"] = 8
    assert read(tmp_path, v5) == dataclasses.replace(
        CONFIG, text=dataclasses.replace(CONFIG.text, head_dim=8)
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
        ({"vision_feature_select_strategy": "full"}, lambda c: c.tokens_per_image == 5),
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
        ({"model_type": "llava_next"}, "model_type is 'llava_next'"),
        ({"mm_vision_tower": "openai/clip"}, "original LLaVA layout"),
        ({"text_config__model_type": "mistral"}, "text_config.model_type is 'mistral'"),
        ({"text_config__model_type": "made_up"}, "made_up"),
        ({"vision_config__model_type": "siglip_vision_model"}, "is 'siglip_vision_model'"),
        ({"text_config__hidden_act": "gelu"}, "text_config.hidden_act is 'gelu'"),
        ({"text_config__attention_bias": True}, "text_config.attention_bias is True"),
        ({"text_config__mlp_bias": True}, "text_config.mlp_bias is True"),
        (
            {"text_config__rope_scaling": {"type": "linear", "factor": 2.0}},
            "rope_type is 'linear'",
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


# --- arrays ---


def test_images_of_a_batch_become_images_of_rows():
    image, pixels = [39] * 4, np.random.default_rng(0).standard_normal((3, 3, 28, 28))
    ids = np.array([[1] * 10, [1, *image, 2, *image], [0, 0, 1, *image, 2, 3, 4]])
    rows = to_rows(CONFIG, ids, pixels.astype(np.float32), None)
    assert rows.pixels_BIHWC.shape == (3, 2, 28, 28, 3)
    expected = pixels.transpose(0, 2, 3, 1).astype(np.float32)
    np.testing.assert_array_equal(rows.pixels_BIHWC[1], expected[:2])
    np.testing.assert_array_equal(rows.pixels_BIHWC[2, 0], expected[2])
    assert not rows.pixels_BIHWC[0].any()
    assert not rows.pixels_BIHWC[2, 1].any()
    np.testing.assert_array_equal(
        rows.patch_BS,
        [[-1] * 10, [-1, 0, 1, 2, 3, -1, 4, 5, 6, 7], [-1, -1, -1, 0, 1, 2, 3, -1, -1, -1]],
    )
    assert rows.mask_BS.all()
    assert to_rows(CONFIG, ids[:1], None, None).pixels_BIHWC.shape == (1, 0, 28, 28, 3)


PIXELS = np.zeros((1, 3, 28, 28), np.float32)


@pytest.mark.parametrize(
    ("input_ids", "pixels", "mask", "message"),
    [
        ([1, 2], None, None, r"input_ids is int64\[2\]"),
        ([[1.5]], None, None, "input_ids is float64"),
        (np.zeros((1, 0), int), None, None, "not empty"),
        ([[1, 2]], None, [[1]], r"attention_mask is \[1, 1\]"),
        ([[1, 40]], None, None, "input_ids holds 40, but the vocabulary has 40"),
        ([[1, -100]], None, None, "input_ids holds -100"),
        ([[39] * 3], PIXELS, None, "3 image tokens, but pixel_values has 1 images of 4 .*, 4 in"),
        ([[39] * 4], None, None, "4 image tokens, but pixel_values has 0 images"),
        ([[1]], PIXELS, None, "0 image tokens, but pixel_values has 1 images"),
        ([[39], [39]] * 2, PIXELS, None, "row 0 has 1 image tokens, not a multiple of 4"),
        ([[39] * 4], PIXELS[:, :, :14], None, r"pixel_values is \[1, 3, 14, 28\]"),
        ([[39] * 4], PIXELS.transpose(0, 2, 3, 1), None, r"expected \[images, 3, 28, 28\]"),
    ],
)
def test_arrays_that_do_not_fit(input_ids, pixels, mask, message):
    with pytest.raises(DataError, match=message):
        to_rows(CONFIG, np.asarray(input_ids), pixels, mask)


def test_options_out_of_range(directory):
    with pytest.raises(DataError, match="dtype is 'int8'"):
        seva_jax.from_pretrained(directory, dtype="int8")
    llava = seva_jax.from_pretrained(directory)
    ids = np.array([[1, 2]])
    with pytest.raises(DataError, match="max_new_tokens is 0"):
        llava.generate(ids, max_new_tokens=0)
    with pytest.raises(DataError, match=r"temperature is -1\.0"):
        llava.generate(ids, temperature=-1.0)
    with pytest.raises(DataError, match=r"top_p is 0\.0"):
        llava.generate(ids, top_p=0.0)
    with pytest.raises(DataError, match="row 1 has no token"):
        llava.generate(np.array([[1], [2]]), attention_mask=np.array([[1], [0]]))
    with pytest.raises(DataError, match=r"neither tokenizer\.json nor tokenizer\.model"):
        _ = llava.tokenizer


# --- imports ---


def test_importing_the_package_imports_nothing_else():
    code = (
        "import sys, seva_jax; seva_jax.__version__;"
        "assert not {'jax', 'flax', 'transformers', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = seva_jax.nothing


NO_TORCH = """
import importlib.machinery, sys
find = importlib.machinery.PathFinder.find_spec

def find_no_torch(name, path=None, target=None):
    hidden = name.split(".")[0] in ("torch", "torchvision", "tensorflow")
    return None if hidden else find(name, path, target)

importlib.machinery.PathFinder.find_spec = staticmethod(find_no_torch)
import numpy, seva_jax
llava = seva_jax.from_pretrained(sys.argv[1])
ids, pixels = numpy.array([[1, 39, 39, 39, 39, 2]]), numpy.zeros((1, 3, 28, 28))
assert llava.logits(ids, pixels).shape == (1, 6, 40)
answer = llava.generate(ids, pixels, max_new_tokens=3)
assert 7 <= answer.shape[1] <= 9 and (answer[:, :6] == ids).all()
assert not {"torch", "torchvision", "tensorflow"} & set(sys.modules)
"""


@pytest.mark.slow
def test_neither_torch_nor_tensorflow_is_needed(directory):
    subprocess.run([sys.executable, "-c", NO_TORCH, directory], check=True)
