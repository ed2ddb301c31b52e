"""Exports: files that stay identical, tensors that change, and output that appears as a whole."""

import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest
from helpers_llava import random_params, their_tensors, write_llava, write_run
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tiny_models import TINY_HF

from seva_jax.convert import __main__ as command
from seva_jax.convert.__main__ import open_source
from seva_jax.convert.files import SafetensorsWriter, new_directory
from seva_jax.convert.peft import to_peft
from seva_jax.convert.rewrite import to_hf
from seva_jax.convert.table import canonical, hub
from seva_jax.types import DataError

# Tensors that `write_run` changes, by a part of their canonical name.
CHANGED = ("q_proj", "o_proj", "down_proj", "multi_modal_projector")


@pytest.fixture
def checkpoint(tmp_path):
    """Writes a small Hugging Face directory with a tokenizer file and files that stay behind."""
    (tmp_path / "model").mkdir()
    directory = write_llava(tmp_path / "model")
    (directory / "tokenizer.json").write_text("{}")
    (directory / "pytorch_model.bin").write_bytes(b"old")
    (directory / "pytorch_model.bin.index.json").write_text("{}")
    (directory / ".cache").mkdir()
    return directory


def shard(directory, spell=lambda name: name, dtype=None):
    """Rewrites model.safetensors as two files with an index, in another spelling or dtype."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {"model-00001-of-00002.safetensors": names[::2]}
    files["model-00002-of-00002.safetensors"] = names[1::2]
    for file, part in files.items():
        values = {spell(n): tensors[n].astype(dtype or tensors[n].dtype) for n in part}
        save_file(values, directory / file, metadata={"format": "pt"})
    weight_map = {spell(n): file for file, part in files.items() for n in part}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def hub_spelling(name):
    return name.replace("vision_tower.", "vision_tower.vision_model.")


def memory_spelling(name):
    if name.startswith("language_model.lm_head"):
        return name.removeprefix("language_model.")
    name = name.replace("language_model.model.", "language_model.")
    return "model." + name


@pytest.mark.parametrize("sharded", [False, True])
def test_without_a_run_every_byte_is_copied(checkpoint, tmp_path, sharded):
    shard(checkpoint, hub_spelling)
    if not sharded:
        tensors = {}
        for path in sorted(checkpoint.glob("*.safetensors")):
            tensors |= load_file(path)
            path.unlink()
        (checkpoint / "model.safetensors.index.json").unlink()
        save_file(tensors, checkpoint / "model.safetensors")
    to_hf(open_source(checkpoint), tmp_path / "out")
    copied = {p.name for p in checkpoint.iterdir()} - {
        *("pytorch_model.bin", "pytorch_model.bin.index.json", ".cache"),
    }
    assert {p.name for p in (tmp_path / "out").iterdir()} == copied
    for name in copied:
        assert (tmp_path / "out" / name).read_bytes() == (checkpoint / name).read_bytes(), name


@pytest.mark.parametrize("spell", [None, hub_spelling, memory_spelling])
def test_merging_changes_what_was_trained_and_nothing_else(checkpoint, tmp_path, spell):
    if spell:
        shard(checkpoint, spell, ml_dtypes.bfloat16)
    trained = write_run(tmp_path / "run", checkpoint)
    to_hf(open_source(tmp_path / "run"), tmp_path / "out")
    files = sorted(p.name for p in checkpoint.glob("*.safetensors"))
    assert files == sorted(p.name for p in (tmp_path / "out").glob("*.safetensors"))
    num = 0
    for file in files:
        old, new = load_file(checkpoint / file), load_file(tmp_path / "out" / file)
        old = {hub(canonical(name)): x for name, x in old.items()}
        assert list(old) == list(new)
        with safe_open(checkpoint / file, "np") as a, safe_open(tmp_path / "out" / file, "np") as b:
            assert spell is None or a.metadata() == b.metadata()
        for name in old:
            trained_one = any(x in name for x in CHANGED) and "vision_tower" not in name
            same = old[name].tobytes() == new[name].tobytes()
            assert same != trained_one, name
            assert old[name].dtype == new[name].dtype
            num += not same
            if "layers.1.mlp.down_proj" in name:
                part = {
                    k: v[1] for k, v in trained["lora"]["language"]["layers"]["down_proj"].items()
                }
                merged = old[name].astype(np.float32) + (part["a"] @ part["b"] * np.float32(2)).T
                np.testing.assert_array_equal(new[name], merged.astype(old[name].dtype))
            if canonical(name) == "multi_modal_projector.linear_1.weight":
                kernel = trained["params"]["projector"]["linear_1"]["kernel"]
                np.testing.assert_array_equal(new[name], kernel.T.astype(old[name].dtype))
    assert num == 2 * 3 + 4


def test_fully_trained_parts_and_the_copy_of_a_tied_head(tmp_path):
    (tmp_path / "model").mkdir()
    directory = write_llava(tmp_path / "model")
    config = json.loads((directory / "config.json").read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True
    (directory / "config.json").write_text(json.dumps(config))
    tensors = their_tensors(random_params(TINY_HF))
    embedding, head = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
    save_file(tensors | {head: tensors[embedding]}, directory / "model.safetensors")
    trained = write_run(tmp_path / "run", directory, rank=0, parts=("language", "vision"))
    to_hf(open_source(tmp_path / "run"), tmp_path / "out")
    new = load_file(tmp_path / "out" / "model.safetensors")
    np.testing.assert_array_equal(new[embedding], trained["params"]["language"]["embedding"])
    np.testing.assert_array_equal(new[head], new[embedding])
    ours = trained["params"]["vision"]["layers"]["q_proj"]["kernel"][1]
    np.testing.assert_array_equal(
        new["vision_tower.vision_model.encoder.layers.1.self_attn.q_proj.weight"], ours.T
    )
    np.testing.assert_array_equal(
        new["multi_modal_projector.linear_1.weight"],
        tensors["multi_modal_projector.linear_1.weight"],
    )
    with pytest.raises(DataError, match="nothing was trained with adapters"):
        to_peft(open_source(tmp_path / "run"), tmp_path / "adapter")


def test_adapter_files(checkpoint, tmp_path):
    trained = write_run(tmp_path / "run", checkpoint)
    to_peft(open_source(tmp_path / "run"), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 8.0)
    assert config["base_model_name_or_path"] == str(checkpoint)
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert len(tensors) == 2 * 3 * 2 + 4
    a = tensors["base_model.model.model.language_model.layers.1.mlp.down_proj.lora_A.weight"]
    np.testing.assert_array_equal(a, trained["lora"]["language"]["layers"]["down_proj"]["a"][1].T)
    bias = tensors["base_model.model.model.multi_modal_projector.linear_2.bias"]
    np.testing.assert_array_equal(bias, trained["params"]["projector"]["linear_2"]["bias"])


def test_an_adapter_cannot_hold_a_fully_trained_part(checkpoint, tmp_path):
    write_run(tmp_path / "run", checkpoint, parts=("lora", "vision"))
    with pytest.raises(DataError, match=r"trained vision fully.*to-hf"):
        to_peft(open_source(tmp_path / "run"), tmp_path / "out")


def test_sources_that_cannot_be_exported(checkpoint, tmp_path):
    with pytest.raises(DataError, match="not a directory"):
        open_source(tmp_path / "nothing")
    write_run(tmp_path / "run", checkpoint)
    with pytest.raises(DataError, match=r"run is a run.*leave out --vision-tower"):
        open_source(tmp_path / "run", vision_tower="clip")
    (tmp_path / "run" / "stages.json").write_text(json.dumps({"base": {}}))
    with pytest.raises(DataError, match="alignment has not finished"):
        open_source(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"config\.json does not exist"):
        open_source(tmp_path / "empty")


def full_disk(names):
    raise OSError("disk full")


def test_nothing_half_written(checkpoint, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("keep")
    with pytest.raises(DataError, match="exists and is not empty"):
        to_hf(open_source(checkpoint), out)
    assert [p.name for p in out.iterdir()] == ["mine"]
    write_run(tmp_path / "run", checkpoint)
    source = open_source(tmp_path / "run")
    source = dataclasses.replace(source, read=full_disk)
    for write in (to_hf, to_peft):
        with pytest.raises(DataError, match="disk"):
            write(source, tmp_path / "other")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "out", "run"]


def test_no_room_and_no_permission(tmp_path):
    with pytest.raises(DataError, match="to be written"), new_directory(tmp_path / "x", 1 << 60):
        pass
    (tmp_path / "file").write_text("")
    inside = tmp_path / "file" / "x"
    with pytest.raises(DataError, match="cannot be written"), new_directory(inside, 1):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_values_that_do_not_fit_the_dtype_are_refused(checkpoint, tmp_path):
    shard(checkpoint, dtype=np.float16)
    write_run(tmp_path / "run", checkpoint)
    source = open_source(tmp_path / "run")
    object.__setattr__(
        source, "read", lambda names: [np.full(source.trained[n], 1e6) for n in names]
    )
    with pytest.raises(DataError, match=r"not finite in F16.*diverge"):
        to_hf(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_writer_equals_the_library(tmp_path):
    values = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a": np.ones(5, ml_dtypes.bfloat16),
    }
    shapes = {"b": ("F32", (2, 3)), "a": ("BF16", (5,))}
    with SafetensorsWriter(tmp_path / "x.safetensors", shapes) as writer:
        for name in ("a", "b"):
            writer.write(name, values[name])
    loaded = load_file(tmp_path / "x.safetensors")
    for name, value in values.items():
        np.testing.assert_array_equal(loaded[name], value)


def test_the_command(checkpoint, tmp_path, monkeypatch, capsys):
    write_run(tmp_path / "run", checkpoint)
    for name in ("to-hf", "to-peft"):
        monkeypatch.setattr(
            "sys.argv", ["convert", name, str(tmp_path / "run"), str(tmp_path / name)]
        )
        command.main()
    assert "10 of" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="exists and is not empty"):
        command.main()
