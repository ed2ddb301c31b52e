"""The original LLaVA's layout: read, written, and converted to Hugging Face's layout and back."""

import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers_llava import random_params, write_llava, write_original, write_run
from safetensors.numpy import load_file, save_file
from tiny_models import TINY_HF

import seva_jax
from seva_jax.config.base_models import Checkpoint
from seva_jax.convert import __main__ as command
from seva_jax.convert import load_params, read_llava_config, tower_directory
from seva_jax.convert.__main__ import open_source
from seva_jax.convert.original import llava_name_problem
from seva_jax.convert.peft import to_llava_lora
from seva_jax.convert.rewrite import to_hf, to_llava
from seva_jax.images.preprocess import ImageProcessing
from seva_jax.types import DataError

# Written by goldens/make_llava_names.py with transformers 4.57.
GOLDEN = json.loads((Path(__file__).parent / "goldens" / "llava_names.json").read_text())


@pytest.fixture
def clip(tmp_path):
    return tmp_path / "clip"


@pytest.fixture
def checkpoint(tmp_path, clip):
    return write_original(tmp_path / "llava", clip)


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def same_tensors(a, b):
    """Asserts that both hold the same names and bytes, however they are split into files."""
    a, b = (
        {k: v for f in d.glob("*.safetensors") for k, v in load_file(f).items()} for d in (a, b)
    )
    assert a.keys() == b.keys()
    for name, values in a.items():
        assert values.dtype == b[name].dtype
        assert values.tobytes() == b[name].tobytes(), name


def test_reading(checkpoint, clip):
    config = read_llava_config(checkpoint, clip)
    assert config.image_token_id == config.text.vocab_size == 40
    assert config.text == TINY_HF.text
    assert config.vision == TINY_HF.vision
    equal(load_params(checkpoint, config, tower=clip), random_params(TINY_HF))


def test_tower_inside_the_checkpoint(tmp_path):
    directory = write_original(tmp_path / "llava")
    tower = tower_directory(directory)
    assert tower == directory / "vision_tower"  # only its config is there
    equal(
        load_params(directory, read_llava_config(directory), tower=tower),
        random_params(TINY_HF),
    )


def test_assets_and_answers(checkpoint, clip):
    assets = Checkpoint(str(checkpoint), vision_tower=str(clip)).assets()
    assert assets.tokenizer("w1<image>w2", add_special_tokens=False).input_ids == [6, 40, 7]
    assert assets.processing.pad_to_square
    assert assets.processing.size == 28
    model = seva_jax.from_pretrained(checkpoint, vision_tower=clip)
    assert model.processing.pad_to_square
    pixels = np.random.default_rng(0).normal(size=(1, 3, 28, 28)).astype(np.float32)
    out = model.generate(np.array([[1, 40, 40, 40, 40, 9, 8]]), pixels, max_new_tokens=4)
    assert out.shape[1] > 7
    assert np.isfinite(model.logits(out[:, :8], pixels)).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mm_projector_type": "linear"}, "mm_projector_type is 'linear', supported: 'mlp2x_gelu'"),
        ({"mm_projector_type": None}, "mm_projector_type is None"),
        ({"image_aspect_ratio": "highres"}, "image_aspect_ratio is 'highres'"),
        ({"image_aspect_ratio": "anyres"}, "mm_patch_merge_type is None"),
        ({"mm_resampler_type": "qformer"}, "mm_resampler_type is 'qformer'"),
        ({"model_type": "llava_mpt"}, "model_type is 'llava_mpt', supported in the layout of"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end is True"),
        ({"mm_vision_select_feature": "cls"}, "mm_vision_select_feature is 'cls'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"vocab_size": -1}, "vocab_size is -1"),
    ],
)
def test_configs_that_are_not_supported(tmp_path, clip, fields, message):
    directory = write_original(tmp_path / "llava", clip, **fields)
    with pytest.raises(DataError) as caught:
        read_llava_config(directory, clip)
    assert message in str(caught.value)


def test_towers_that_are_not_there(checkpoint, clip, tmp_path):
    with pytest.raises(DataError, match=r"'openai/clip-vit-tiny', .*--base\.vision-tower"):
        read_llava_config(checkpoint)
    with pytest.raises(DataError, match=r"no config\.json there"):
        read_llava_config(checkpoint, tmp_path / "nothing")
    (clip / "config.json").write_text(json.dumps({"model_type": "siglip"}))
    with pytest.raises(DataError, match="model_type is 'siglip', expected a CLIP"):
        read_llava_config(checkpoint, clip)
    (tmp_path / "hf").mkdir()
    with pytest.raises(DataError, match="leave out the vision tower"):
        read_llava_config(write_llava(tmp_path / "hf"), clip)


def test_copying_changes_no_byte(checkpoint, clip, tmp_path):
    to_llava(open_source(checkpoint, str(clip)), tmp_path / "out")
    names = {p.name for p in checkpoint.iterdir()}
    assert {p.name for p in (tmp_path / "out").iterdir()} == names
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (checkpoint / name).read_bytes()
    # A tower inside the directory is copied too.
    inside = write_original(tmp_path / "inside")
    to_llava(open_source(inside), tmp_path / "out2")
    assert (tmp_path / "out2" / "vision_tower" / "config.json").exists()
    same_tensors(inside, tmp_path / "out2")


@pytest.mark.parametrize("parts", [("lora", "projector"), ("lora", "vision")])
def test_a_run_in_the_layout_it_came_in(checkpoint, clip, tmp_path, parts):
    trained = write_run(tmp_path / "run", checkpoint, parts=parts, vision_tower=str(clip))
    before = {p: p.read_bytes() for p in clip.iterdir()}
    to_llava(open_source(tmp_path / "run"), tmp_path / "out")
    assert before == {p: p.read_bytes() for p in clip.iterdir()}
    moved = "vision" in parts  # the tower changed: it is written too, and named
    assert (tmp_path / "out" / "vision_tower").exists() == moved
    loaded = seva_jax.from_pretrained(tmp_path / "out", vision_tower=None if moved else clip)
    params = random_params(TINY_HF) | trained["params"]
    for name, adapter in trained["lora"]["language"]["layers"].items():
        kernel = params["language"]["layers"][name]["kernel"]
        kernel += np.einsum("lir,lro->lio", adapter["a"], adapter["b"]) * np.float32(2)
    layers = params["language"].pop("layers")
    for i in range(TINY_HF.text.num_layers):
        params["language"][f"layers_{i}"] = jax.tree.map(lambda x: x[i], layers)  # noqa: B023
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), loaded.params, params)


def test_to_hugging_face_and_back(checkpoint, clip, tmp_path):
    to_hf(open_source(checkpoint, str(clip)), tmp_path / "hf")
    config = read_llava_config(tmp_path / "hf")
    assert (config.text.vocab_size, config.image_token_id) == (64, 40)
    new = load_params(tmp_path / "hf", config)
    old = random_params(TINY_HF)
    embedding = np.asarray(new["language"]["embedding"])
    np.testing.assert_array_equal(embedding[:40], old["language"]["embedding"])
    np.testing.assert_allclose(
        embedding[40:], old["language"]["embedding"].mean(0)[None].repeat(24, 0), atol=1e-6
    )
    np.testing.assert_array_equal(
        np.asarray(new["language"]["head"])[:, :40], old["language"]["head"]
    )
    for tree in (new, old):
        del tree["language"]["embedding"], tree["language"]["head"]
    equal(new, old)
    assets = Checkpoint(str(tmp_path / "hf"), pad_to_square=None).assets()
    assert assets.processing == ImageProcessing(size=28, pad_to_square=True)
    assert assets.tokenizer.pad_token_id == 41
    # And back: nothing is lost, and the tower has a directory of its own.
    to_llava(open_source(tmp_path / "hf"), tmp_path / "back")
    config_back = read_llava_config(tmp_path / "back")
    assert config_back == config
    tower = tower_directory(tmp_path / "back")
    equal(
        load_params(tmp_path / "back", config_back, tower=tower),
        load_params(tmp_path / "hf", config),
    )
    names = load_file(tmp_path / "back" / "model.safetensors").keys()
    assert names == load_file(checkpoint / "model.safetensors").keys()
    to_hf(open_source(tmp_path / "back"), tmp_path / "again")
    same_tensors(tmp_path / "hf", tmp_path / "again")
    shutil.rmtree(tmp_path / "hf")
    same_tensors(tmp_path / "again", tmp_path / "again")


def test_a_run_in_the_other_layout(tmp_path, checkpoint, clip, monkeypatch):
    """It equals an export in the run's own layout that is converted afterwards."""
    monkeypatch.setattr("seva_jax.convert.rewrite._SHARD_BYTES", 5000)
    (tmp_path / "hf").mkdir()
    directory = write_llava(tmp_path / "hf")
    shutil.copy(clip / "preprocessor_config.json", directory)
    for source, there, back in ((directory, to_llava, to_hf), (checkpoint, to_hf, to_llava)):
        name = there.__name__
        tower = "" if source == directory else str(clip)
        write_run(tmp_path / f"run_{name}", source, parts=("lora", "projector"), vision_tower=tower)
        run = open_source(tmp_path / f"run_{name}")
        there(run, tmp_path / f"a_{name}")
        back(run, tmp_path / f"b_{name}")
        there(open_source(tmp_path / f"b_{name}", tower), tmp_path / f"c_{name}")
        files = sorted((tmp_path / f"a_{name}").rglob("*.safetensors"))
        assert len(files) > 2
        same_tensors(tmp_path / f"a_{name}", tmp_path / f"c_{name}")
        if there is to_llava:
            same_tensors(*(tmp_path / x / "vision_tower" for x in (f"a_{name}", f"c_{name}")))


def test_names_are_those_of_transformers_4(checkpoint, clip, tmp_path):
    """Under other names it initialises tensors at random, and only warns."""
    layer = "vision_model.encoder.layers.2."  # the model does not use it, and the fixture lacks it
    tower = load_file(clip / "model.safetensors")
    unused = {layer + k.partition("layers.1.")[2]: v for k, v in tower.items() if "layers.1." in k}
    tower["vision_model.post_layernorm.bias"] = tower["vision_model.post_layernorm.weight"]
    save_file(
        {k: v for k, v in (tower | unused).items() if k.startswith("vision_model.")},
        clip / "model.safetensors",
    )
    to_hf(open_source(checkpoint, str(clip)), tmp_path / "hf")
    names = load_file(tmp_path / "hf" / "model.safetensors").keys()
    assert names - {"vision_tower.vision_model.embeddings.position_ids"} == set(GOLDEN["tensors"])
    fields = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert fields["text_config"]["rope_theta"] == GOLDEN["rope_theta"] == 500
    assert "rope_parameters" not in fields["text_config"]
    # vLLM takes the length of a context from here; the default is half of LLaVA-1.5's.
    assert fields["text_config"]["max_position_embeddings"] == 4096
    to_llava(open_source(tmp_path / "hf"), tmp_path / "back")
    fields = json.loads((tmp_path / "back" / "config.json").read_text())
    assert (fields["rope_theta"], fields["max_position_embeddings"]) == (500, 4096)


@pytest.mark.parametrize(
    ("name", "whole", "lora"),
    # What load_pretrained_model in LLaVA's llava/model/builder.py does with the name that
    # get_model_name_from_path in llava/mm_utils.py gives.
    [
        ("merged", False, False),
        ("llava-v1.5-7b-seva", True, False),
        ("LLaVA", True, False),
        ("llava-lora", False, True),
        ("lora", False, False),
        ("llava-prompted", False, False),  # "mpt"
        ("llava-mistral", False, False),
        ("llava/checkpoint-3", True, False),
        ("checkpoint-3", False, False),
        ("llava/7b", False, False),
    ],
)
def test_names_that_lead_llavas_loader(tmp_path, name, whole, lora):
    for is_lora, good in ((False, whole), (True, lora)):
        problem = llava_name_problem(Path("/x") / name, is_lora)
        assert (problem is None) == good
        if problem:
            suggested = re.search(r"such as (\S+)$", problem)
            assert suggested
            assert llava_name_problem(Path(suggested[1]), is_lora) is None


def run_command(monkeypatch, *argv):
    monkeypatch.setattr("sys.argv", ["convert", *map(str, argv)])
    command.main()


def test_what_llava_could_not_open_is_refused(tmp_path, monkeypatch, capsys):
    (tmp_path / "model").mkdir()
    directory = write_llava(tmp_path / "model")
    with pytest.raises(SystemExit, match="would not take 'merged' for a whole LLaVA"):
        run_command(monkeypatch, "to-llava", directory, tmp_path / "merged")
    with pytest.raises(SystemExit, match=r"model has no tokenizer\.model, without which"):
        run_command(monkeypatch, "to-llava", directory, tmp_path / "llava-merged")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    (directory / "tokenizer.model").write_bytes(b"")
    run_command(monkeypatch, "to-llava", directory, tmp_path / "llava-merged")
    assert (tmp_path / "llava-merged" / "tokenizer.model").exists()
    assert "original layout" in capsys.readouterr().out


def test_the_tower_is_found_from_everywhere(tmp_path, monkeypatch):
    """LLaVA takes mm_vision_tower as it stands (llava/model/multimodal_encoder/builder.py)."""
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    to_llava(open_source(write_llava(tmp_path / "model")), Path("out"))

    def named(directory):
        return json.loads((directory / "config.json").read_text())["mm_vision_tower"]

    assert named(tmp_path / "out") == str(tmp_path / "out" / "vision_tower")
    # A copy has a tower of its own; a directory that was moved still opens here.
    to_llava(open_source(tmp_path / "out"), tmp_path / "copy")
    assert named(tmp_path / "copy") == str(tmp_path / "copy" / "vision_tower")
    (tmp_path / "copy").rename(tmp_path / "moved")
    assert tower_directory(tmp_path / "moved") == tmp_path / "moved" / "vision_tower"


def test_loras_that_llava_could_not_open_are_refused(tmp_path, checkpoint, clip):
    pytest.importorskip("torch")
    write_run(tmp_path / "run", checkpoint, vision_tower=str(clip))
    with pytest.raises(DataError, match="would not take 'llava' for adapters"):
        to_llava_lora(open_source(tmp_path / "run"), tmp_path / "llava")
    # LLaVA reads the tokenizer of --model-base (load_pretrained_model in llava/model/builder.py).
    with pytest.raises(DataError, match=r"llava has no tokenizer\.model, without which"):
        to_llava_lora(open_source(tmp_path / "run"), tmp_path / "llava-lora")
    (tmp_path / "hf").mkdir()
    write_run(tmp_path / "hf_run", write_llava(tmp_path / "hf"))
    with pytest.raises(DataError, match="is in Hugging Face's layout, on which LLaVA's loader"):
        to_llava_lora(open_source(tmp_path / "hf_run"), tmp_path / "llava-lora")
