"""Weights of Hugging Face LLaVA directories: what is read, and how the rest is refused."""

import contextlib
import dataclasses
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from helpers_damage import DAMAGES, entry, header
from helpers_llava import random_params, their_tensors, write_llava
from safetensors.numpy import save_file
from tiny_models import TINY_HF

from seva_jax.convert import load, load_params, placing, read_llava_config
from seva_jax.convert.load import shapes_by_path
from seva_jax.convert.table import (
    TABLE,
    Leading,
    PatchKernel,
    Transform,
    Transposed,
    canonical,
)
from seva_jax.convert.tensors import assign
from seva_jax.models import (
    InternConfig,
    Llava,
    LlavaConfig,
    Qwen2VisionConfig,
    Qwen3VisionConfig,
    Qwen25VisionConfig,
    SiglipConfig,
    abstract_params,
    abstract_variables,
)
from seva_jax.sharding import MeshShape, variable_shardings
from seva_jax.types import DataError

EMBEDDING = "language_model.model.embed_tokens.weight"


@pytest.fixture(scope="module")
def params():
    return random_params(TINY_HF)


@pytest.fixture
def tensors(params):
    return their_tensors(params)


@pytest.fixture
def directory(tmp_path, params):
    return write_llava(tmp_path, params)


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


def refused(directory, config=TINY_HF):
    with pytest.raises(DataError) as caught:
        load_params(directory, config)
    return str(caught.value)


def equal(ours, expected):
    jax.tree.map(np.testing.assert_array_equal, ours, expected)


# --- the table ---


@pytest.mark.parametrize(
    ("transform", "shape"),
    [
        (Transform(), (6, 5)),
        (Transposed(), (6, 5)),
        (PatchKernel(), (12, 5)),
        (Leading(1), (6, 5)),
        (Leading(2), (6,)),
    ],
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
        # Of an object store, only these rows of theirs are there.
        rows = transform.their_rows(index)
        fetched = np.zeros_like(theirs)
        fetched[rows] = theirs[rows]
        np.testing.assert_array_equal(transform.read(fetched, index), ours[index])


def test_patch_kernel_order():
    theirs = np.arange(2 * 3 * 4 * 4).reshape(2, 3, 4, 4)
    ours = PatchKernel().read(theirs, (slice(0, 48), slice(0, 2)))
    row, column, channel, width = 3, 1, 2, 1
    assert ours[(row * 4 + column) * 3 + channel, width] == theirs[width, channel, row, column]


def test_table_covers_the_models():
    """Every parameter of every family has one row, and every row is a parameter of one."""
    biased = dataclasses.replace(TINY_HF.text, qkv_bias=True)
    normed = dataclasses.replace(TINY_HF.text, qk_norm=True)
    sizes = {"image_size": 28, "hidden_size": 16, "num_heads": 2}
    models = [
        TINY_HF,
        LlavaConfig(SiglipConfig(**sizes), biased, -1, "full", newline=True),
        LlavaConfig(InternConfig(**sizes, qk_norm=True), normed, -1, projector_norm=True),
        *(
            LlavaConfig(tower(hidden_size=16, num_heads=2), biased, -1, "full")
            for tower in (Qwen2VisionConfig, Qwen25VisionConfig, Qwen3VisionConfig)
        ),
    ]
    paths = [shapes_by_path(abstract_params(Llava(model))).keys() for model in models]
    ours = [row.ours for row in TABLE]
    assert len(ours) == len({*ours})
    assert {*ours} == set().union(*paths)
    assert all(canonical(row.theirs) == row.theirs for row in TABLE)


# --- weights ---


def test_round_trip(directory, params):
    loaded = load_params(directory, TINY_HF)
    equal(loaded, params)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(loaded))


@pytest.mark.parametrize("stored", [np.float16, ml_dtypes.bfloat16, np.float64])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dtypes(directory, tensors, params, stored, dtype):
    save_file({k: v.astype(stored) for k, v in tensors.items()}, directory / "model.safetensors")
    loaded = load_params(directory, TINY_HF, dtype)
    equal(loaded, jax.tree.map(lambda x: x.astype(stored).astype(jnp.dtype(dtype)), params))
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {jnp.dtype(dtype)}


def test_other_dtypes_are_refused(directory, tensors):
    tensors[EMBEDDING] = tensors[EMBEDDING].astype(np.int8)
    save_file(tensors, directory / "model.safetensors")
    assert f"{EMBEDDING} [40, 16] in model.safetensors is I8" in refused(directory)


def test_shards(directory, tensors, params):
    split(directory, tensors)
    equal(load_params(directory, TINY_HF), params)


def test_shardings(directory, params):
    mesh = jax.make_mesh((len(jax.devices()),), ("x",))

    def place(leaf):
        axes = [None] * leaf.ndim
        for dim, size in enumerate(leaf.shape):
            if size % mesh.size == 0:
                axes[dim] = "x"
                break
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))

    shardings = jax.tree.map(place, abstract_params(Llava(TINY_HF)))
    loaded = load_params(directory, TINY_HF, "float32", shardings)
    equal(loaded, params)
    assert jax.tree.map(lambda leaf: leaf.sharding, loaded) == shardings


@pytest.mark.parametrize("mesh", [None, {"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_accelerators_transpose_kernels(directory, tensors, monkeypatch, mesh):
    """The same bits on the same devices, and the host copies no kernel that it reads."""
    save_file(
        {k: v.astype(jnp.bfloat16) for k, v in tensors.items()}, directory / "model.safetensors"
    )
    boxed = abstract_variables(Llava(TINY_HF))["params"]
    shardings = mesh and variable_shardings(MeshShape(**mesh).make(), boxed)
    expected = load_params(directory, TINY_HF, "bfloat16", shardings)
    copied, reader = [], load._reader

    def recording(row, *arguments):
        copied.append(row)
        return reader(row, *arguments)

    monkeypatch.setattr(load, "transposes", lambda sharding, shape: True)
    monkeypatch.setattr(load, "_reader", recording)
    loaded = load_params(directory, TINY_HF, "bfloat16", shardings)
    rows = [row for row in TABLE if row.ours in shapes_by_path(boxed)]
    assert set(copied) == {row for row in rows if not isinstance(row.transform, Transposed)}

    def same(ours, theirs):
        assert (ours.dtype, ours.sharding) == (theirs.dtype, theirs.sharding)
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()

    jax.tree.map(same, loaded, expected)
    # Values that have to be cast are, on the host.
    equal(
        load_params(directory, TINY_HF, "float32", shardings),
        jax.tree.map(lambda x: x.astype(jnp.float32), expected),
    )


def test_transposed_stacks_reuse_their_memory():
    """A device holds a layer in addition to the stack, whatever the number of layers."""
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    stack = jax.ShapeDtypeStruct((16, 64, 128), jnp.bfloat16, sharding=sharding)
    layer = jax.ShapeDtypeStruct((128, 64), jnp.bfloat16, sharding=sharding)
    memory = placing._with_layer(sharding).lower(stack, layer, 3).compile().memory_analysis()
    assert memory.alias_size_in_bytes == 16 * 64 * 128 * 2
    assert memory.temp_size_in_bytes <= 2 * 64 * 128 * 2


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (5, 16), (7, 33), (64, 48), (3, 15), (0, 5), (5, 0)])
def test_transposed_values_are_assigned(dtype, shape):
    values = np.random.default_rng(0).normal(size=shape[::-1]).astype(dtype)
    wider = np.concatenate([values, values], axis=1)[:, : shape[0]]  # its rows are no neighbours
    for theirs in (values, wider):
        stack = np.zeros((2, shape[0], shape[1] + 3), dtype)
        assign(stack[1, :, : shape[1]], theirs.T)
        assert stack[1, :, : shape[1]].tobytes() == theirs.T.tobytes()
        assert not stack[0].any()
        cast = np.zeros(shape, np.float32)
        assign(cast, theirs.T)
        np.testing.assert_array_equal(cast, theirs.T.astype(np.float32))


@pytest.mark.parametrize(
    "change",
    [
        {"feature_layer": 0},
        {"projector_bias": False},
        {"text": dataclasses.replace(TINY_HF.text, tied_head=True)},
    ],
)
def test_models_with_fewer_parameters(tmp_path, change):
    config = dataclasses.replace(TINY_HF, **change)
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
    equal(load_params(directory, TINY_HF), params)

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
    config = dataclasses.replace(TINY_HF, text=dataclasses.replace(TINY_HF.text, num_kv_heads=4))
    message = refused(directory, config)
    assert message.count("misshapen") == 4  # two layers, keys and values
    assert "k_proj.weight [8, 16] in model.safetensors, expected [16, 16]" in message


def test_one_tensor_under_two_names(directory, tensors):
    tensors["lm_head.weight"] = tensors["language_model.lm_head.weight"]
    save_file(tensors, directory / "model.safetensors")
    assert "is the same tensor as" in refused(directory)


def test_a_tied_head_has_to_be_the_embedding(directory, tensors):
    config = dataclasses.replace(TINY_HF, text=dataclasses.replace(TINY_HF.text, tied_head=True))
    tensors["language_model.lm_head.weight"] = tensors[EMBEDDING].copy()
    save_file(tensors, directory / "model.safetensors")
    assert "head" not in load_params(directory, config)["language"]
    tensors["language_model.lm_head.weight"][-1, -1] += 1
    save_file(tensors, directory / "model.safetensors")
    assert "set tie_word_embeddings to false" in refused(directory, config)
    tensors["language_model.lm_head.weight"] = np.ones((8, 16), np.float32)
    save_file(tensors, directory / "model.safetensors")
    assert "[8, 16] in model.safetensors, expected [40, 16]" in refused(directory, config)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_and_hostile_files(directory, damage):
    path = directory / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    message = refused(directory)
    assert message.startswith(f"{path} is not a complete safetensors file (")
    assert "\n" not in message


def test_a_file_made_to_flood(directory):
    fields = {f"t{i}": entry([0], 0, 0) for i in range(20_000)}
    (directory / "model.safetensors").write_bytes(header(fields))
    message = refused(directory)
    assert message.count("\n") < 6000
    assert message.endswith("more")


@pytest.mark.parametrize(
    ("section", "fields", "message"),
    [
        (
            "text_config",
            {"num_hidden_layers": 10**9},
            "num_hidden_layers of config.json is 1000000",
        ),
        ("text_config", {"vocab_size": 2**31 - 1}, "expected [2147483647, 16]"),
        ("text_config", {"intermediate_size": 10**12}, "intermediate_size is 1000000000000"),
        ("text_config", {"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ("vision_config", {"num_hidden_layers": 10**9}, "num_hidden_layers of config.json is 1000"),
        ("vision_config", {"image_size": 2**30}, "image_size is 1073741824, too large"),
        (
            "vision_config",
            {"image_size": 2**30, "patch_size": 2**30},
            "[16, 3, 1073741824, 10737418",
        ),
    ],
)
def test_absurd_sizes_are_refused_before_anything_is_allocated(directory, section, fields, message):
    config = json.loads((directory / "config.json").read_text())
    config[section] |= fields
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError) as caught:
        load_params(directory, read_llava_config(directory))
    assert message in str(caught.value)


@pytest.mark.parametrize("seed", range(8))
def test_random_damage_is_refused_or_harmless(directory, tensors, params, seed):
    """Bytes of the header, the index or config.json are flipped, cut or repeated."""
    split(directory, tensors, parts=2)
    files = [p for p in sorted(directory.iterdir()) if p.is_file()]
    good = {p: p.read_bytes() for p in files}
    rng = np.random.default_rng(seed)
    for _ in range(15):
        path = files[rng.integers(len(files))]
        data = bytearray(good[path])
        size = len(data)
        if path.suffix == ".safetensors":
            size = 8 + int.from_bytes(data[:8], "little")
        at, num = int(rng.integers(size)), int(rng.integers(1, 9))
        match rng.integers(3):
            case 0:
                data[at] ^= 1 << int(rng.integers(8))
            case 1:
                del data[at : at + num]
            case 2:
                data[at:at] = data[at : at + num]
        path.write_bytes(data)
        with contextlib.suppress(DataError):
            config = read_llava_config(directory)
            loaded = load_params(directory, config)
            if config == TINY_HF:
                equal(jax.tree.map(jnp.shape, loaded), jax.tree.map(jnp.shape, params))
        path.write_bytes(good[path])


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
    assert "python -m seva_jax.convert from-bin" in message


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
