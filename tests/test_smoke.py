"""`seva_jax.train --smoke`: what is made small and what stays, the directory, and whole runs."""

import collections
import dataclasses
import json
import os
import re
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from helpers_llava import write_llava, write_original
from PIL import Image

from seva_jax.config import (
    Checkpoint,
    Experiment,
    Iterations,
    ReducedBase,
    TrainOptions,
    check,
    flatten,
    read_config,
    read_configs,
    runs_of,
    to_source,
)
from seva_jax.config.command_line import load_experiments
from seva_jax.config.config_files import config_directory
from seva_jax.config.smoke import SmokePairs, SmokePrompts, checked, not_shown, reduced, smoke
from seva_jax.data import Concatenated, ImageFolder
from seva_jax.models import LLAVA_15, LlavaConfig, LoraConfig, TextConfig, VisionConfig
from seva_jax.pairs import CorruptionPairs, InjectedPairs
from seva_jax.run import smoke as smoke_run
from seva_jax.runtime import TensorBoard
from seva_jax.runtime.run_records import read_metrics, read_stages
from seva_jax.sharding import MeshShape, check_batch
from seva_jax.text import VICUNA_V1
from seva_jax.text.tokenizer import word_tokenizer
from seva_jax.types import DataError, Prompt, Rollout
from seva_jax.worlds import WorldPairs, WorldPrompts

RECIPES = sorted(config_directory().glob("*.py"))
TEN = WorldPrompts(num=10)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_has_a_small_version(path, tmp_path):
    """It passes the checks, fits eight devices, takes two steps, and keeps what makes the run."""
    for experiment in read_configs(path):
        real = runs_of(experiment)[0]
        small = smoke(real, 8)
        check(small)
        assert runs_of(small) == (small,)
        assert small.workdir == f"{real.workdir}-smoke"
        check_batch(small.mesh.make(jax.devices()), *batches(small))
        assert small.train.max_steps == 2
        assert (small.train.micro_batches > 1) == (real.train.micro_batches > 1)
        assert small.rollout.sampling.max_new_tokens <= 8
        assert len(small.evals) == len(real.evals)
        for name in ("objective", "text", "corrupt", "mesh", "optim", "compute", "seed"):
            assert getattr(small, name) == getattr(real, name)
        file = tmp_path / "recorded.py"
        file.write_text(to_source(small))
        assert read_config(file) == small


def batches(config):
    return config.train.batch_size, config.train.micro_batches


@pytest.mark.parametrize(
    ("mesh", "num_devices", "micro_batches", "wanted"),
    [
        (MeshShape(), 1, 1, (4, 1)),
        (MeshShape(), 1, 16, (4, 2)),
        (MeshShape(), 8, 16, (16, 2)),
        (MeshShape(data=2, fsdp=2, tensor=2), 8, 4, (8, 2)),
        (MeshShape(fsdp=-1, data=1, tensor=2), 8, 1, (4, 1)),
        (MeshShape(data=-1, fsdp=4), 8, 1, (8, 1)),
    ],
)
def test_batches_divide_by_the_mesh(mesh, num_devices, micro_batches, wanted):
    train = TrainOptions(batch_size=128, micro_batches=micro_batches)
    small = smoke(Experiment(mesh=mesh, train=train), num_devices)
    assert batches(small) == wanted
    check_batch(mesh.make(jax.devices()[:num_devices]), *wanted)


def test_the_7b_model_is_reduced_but_makes_the_same_tokens():
    """Layers and widths shrink; image, tokens, vocabulary and the width of a head stay."""
    full = LLAVA_15["7b"]
    small = reduced(full)
    assert small.tile_features == full.tile_features == 576
    assert (small.vision.num_layers, small.text.num_layers) == (2, 2)
    assert small.tower_depth == 1
    for kept in ("vocab_size", "head_dim", "rope_base", "tied_head"):
        assert getattr(small.text, kept) == getattr(full.text, kept)
    assert (small.vision.image_size, small.vision.patch_size) == (336, 14)
    assert small.vision.hidden_size // small.vision.num_heads == 1024 // 16
    assert reduced(full, heads=8).text.num_heads == 8  # for eight devices along `tensor`
    assert reduced(small) == small


def test_shared_keys_and_counted_feature_layers_stay_possible():
    grouped = TextConfig(num_heads=32, num_kv_heads=8)
    model = LlavaConfig(VisionConfig(num_layers=24), grouped, feature_layer=22)
    small = reduced(model)
    assert (small.text.num_heads, small.text.num_kv_heads) == (4, 2)
    assert small.feature_layer == 2  # the last layer that is left
    assert 0 <= reduced(dataclasses.replace(model, feature_layer=-20)).tower_depth <= 2


def test_adapters_keep_their_scale():
    lora = LoraConfig(
        1024, 2048.0, rank_pattern=(("q_proj", 4),), alpha_pattern=(("o_proj", 16.0),)
    )
    small = smoke(Experiment(lora=lora)).lora
    assert (small.rank, small.of("q_proj").rank) == (8, 4)
    for target in ("q_proj", "o_proj", "v_proj"):
        assert small.of(target).scale == pytest.approx(lora.of(target).scale)


def test_examples_come_from_every_source():
    """Ids keep the number of their source, which `most_per_source` reads."""
    both = smoke(Experiment(prompts=Concatenated((TEN, WorldPrompts(num=3))))).prompts.open()
    assert [prompt.id[:2] for prompt in both.prompts] == ["0/"] * 4 + ["1/"] * 3
    pairs = smoke(Experiment(prompts=WorldPairs(num=12))).prompts
    assert pairs.has_answers
    opened = pairs.open()
    assert [pair.prompt for pair in opened.comparisons] == list(opened.prompts)
    assert len(opened.prompts) == 8


def test_examples_are_about_different_images_if_possible(tmp_path):
    """Of 3 images with 4 questions each, every first question, then others in order."""
    write_photos(tmp_path / "photos", 3)
    asked = ImageFolder(str(tmp_path / "photos"), questions=("a", "b", "c", "d"))
    prompts = asked.open().prompts
    kept = SmokePrompts(asked, 5).open().prompts
    assert [p.images[0] for p in prompts] == ["0.png"] * 4 + ["1.png"] * 4 + ["2.png"] * 4
    assert kept == [prompts[i] for i in (0, 1, 2, 4, 8)]
    assert list(SmokePrompts(asked, 99).open().prompts) == list(prompts)


def test_held_out_pairs_and_stages_of_others():
    """Some of the pairs are held out at each step, and nothing is taken from other runs."""
    train = TrainOptions(eval_fraction=0.01, patience=3, keep="best")
    small = smoke(Experiment(train=train, take_from=("runs/other",)))
    check(small)
    assert (small.train.eval_fraction, small.train.eval_every) == (0.5, 1)
    assert small.train.keep == "best"
    assert small.take_from == ()
    check(smoke(Experiment()))


@pytest.mark.parametrize("name", ["runs/mine", "runs/mine/", "gs://bucket/runs/mine/"])
def test_the_directory_is_beside_that_of_the_run(name):
    small = smoke(Experiment(workdir=name, train=TrainOptions(feature_cache="features")))
    assert small.workdir == f"{name.rstrip('/')}-smoke"
    assert small.train.feature_cache == f"{small.workdir}/features"


def test_a_builder_without_pairs_is_replaced_by_swapped_answers(capsys):
    """What the random model says has no objects in it; the message gives the builder's reasons."""
    prompts = [Prompt(str(i), "what?", (f"{i}.png",)) for i in range(3)]
    answers = ("one", "", "two")
    rollouts = [Rollout(p, a, ()) for p, a in zip(prompts, answers, strict=True)]
    builder = SmokePairs(InjectedPairs(objects=("cat",)))
    assert not builder.uses_corruptions
    assert SmokePairs(CorruptionPairs()).uses_corruptions
    model = collections.namedtuple("Model", "seed")(0)
    pairs, drops = builder.build(rollouts, TEN.open(), model)
    assert [pair.answers for pair in pairs] == [("one", "two"), ("two", "one")]
    assert not drops
    assert "InjectedPairs makes no pair of a random model's answers" in capsys.readouterr().out
    differ = [Rollout(prompts[0], "one", ("two",))]
    (pair,), _ = SmokePairs(CorruptionPairs()).build(differ, TEN.open(), model)
    assert pair.corruptions == (0,)  # the builder's own


def test_what_is_checked_of_a_checkpoint(tmp_path):
    """Names and shapes of its tensors, if it has any; a tensor that is missing is an error."""
    directory = write_llava(tmp_path)
    (directory / "tokenizer.json").write_text(words(35).backend_tokenizer.to_str())
    base = Checkpoint(str(directory))
    with pytest.raises(DataError, match="does not fit the model"):  # no start token
        checked(base)
    words(35).save_pretrained(directory)
    config = json.loads((directory / "config.json").read_text())
    config |= {"image_token_index": 4}
    (directory / "config.json").write_text(json.dumps(config))
    assert re.search(r"names and shapes of its \d+ tensors$", checked(base))
    config["text_config"]["intermediate_size"] += 8
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match=r"misshapen: .*mlp"):
        checked(base)
    (directory / "model.safetensors").unlink()
    assert checked(base).endswith("the folder has no weights yet")


def words(num):
    """Returns a tokenizer of `num` words and five special tokens."""
    return word_tokenizer([f"w{i}" for i in range(num)])


def test_another_directory_is_not_removed(tmp_path):
    """Only what a smoke run wrote is; one that is running is not disturbed."""
    real = Experiment(workdir=str(tmp_path / "run"), base=Checkpoint("nowhere"), prompts=TEN)
    small = smoke(real)
    folder = tmp_path / "run-smoke"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"run-smoke is where the smoke run would be, but holds"):
        smoke_run.begin(real, small)
    assert (folder / "notes.txt").read_text() == "mine"
    config = folder / "config.json"
    config.write_text(json.dumps({"prompts": "seva_jax.worlds.WorldPrompts"}))
    with pytest.raises(DataError, match="holds something else"):
        smoke_run.begin(real, small)
    config.write_text(json.dumps(flatten(small)))
    with pytest.raises(DataError, match="nowhere"):  # then the base is checked
        smoke_run.begin(real, small)
    assert not folder.exists()


def test_what_was_not_shown():
    real = Experiment(
        base=read_config(config_directory() / "tiny.py").base, loggers=(TensorBoard(),),
        curriculum=Iterations(3),
    )  # fmt: skip
    text = "\n".join(not_shown(real, smoke(real), len(runs_of(real))))
    for said in (
        "memory and speed",
        "2 steps with batches of 4 instead of 128",
        "rank 1024",
        "TensorBoard were off",
        "the other runs of this config, 2",
        "up to 512 tokens at temperature 0",
    ):
        assert said in text


def test_the_option_is_for_training_only(capsys):
    assert load_experiments("x", ["--smoke"], smoke=True)[1].smoke
    assert not load_experiments("x", [])[1].smoke
    with pytest.raises(SystemExit):
        load_experiments("x", ["--smoke"])
    assert "--smoke" in capsys.readouterr().err


CONFIG = """
import dataclasses
from seva_jax.config.config_files import config_directory, read_config
from seva_jax.config import Evaluation
from seva_jax.data import ImageFolder, QuestionsJsonl
from seva_jax.evals import ExactAnswer
from seva_jax.runtime import TensorBoard


def get_config():
    published = read_config(config_directory() / "llava15_7b_seva.py")
    questions = QuestionsJsonl("questions.jsonl", "photos")
    return dataclasses.replace(
        published,
        prompts=ImageFolder("photos", questions=("Describe this image in detail.",)),
        evals=(Evaluation(ExactAnswer("exact"), questions),),
        loggers=(TensorBoard(),),
    )
"""
SIZES = {
    "text_config": {
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
        "vocab_size": 32064, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
    },
    "vision_config": {
        "model_type": "clip_vision_model", "hidden_size": 1024, "image_size": 336,
        "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24,
        "patch_size": 14,
    },
}  # fmt: skip


def command(folder, *options):
    """Runs the command as a user does, on one device; returns what it prints."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-m", "seva_jax.train", "--smoke", *map(str, options)],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def write_photos(folder, num):
    folder.mkdir()
    for i in range(num):
        pixels = np.random.default_rng(i).integers(0, 255, (40, 60, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")


@pytest.mark.slow
def test_a_7b_config_without_weights(tmp_path, monkeypatch):
    """All stages run in the shapes of images and tokens of LLaVA-1.5-7B."""
    monkeypatch.chdir(tmp_path)  # paths of the config are relative
    model = tmp_path / "llava7b"
    model.mkdir()
    asked = re.findall(r"\w+|[^\w\s]", VICUNA_V1.prompt("Describe this image in detail."))
    vocabulary = list(dict.fromkeys([*asked, *(f"w{i}" for i in range(32064))]))
    word_tokenizer(vocabulary[: 32064 - 5]).save_pretrained(model)
    (model / "config.json").write_text(
        json.dumps({"model_type": "llava", "image_token_index": 4, "image_seq_length": 576} | SIZES)
    )
    size = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
    (model / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "CLIPImageProcessor"} | size)
    )
    write_photos(tmp_path / "photos", 10)
    lines = ({"id": str(i), "image": f"{i}.png", "question": "w1 w2?", "answer": "w3"}
             for i in range(6))  # fmt: skip
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    (tmp_path / "mine.py").write_text(CONFIG)
    options = ("--config", "mine.py", "--base.path", "llava7b", "--train.micro-batches", 4,
               "--workdir", "runs/mine")  # fmt: skip
    start = time.monotonic()
    said = command(tmp_path, *options)
    print(f"the smoke run took {time.monotonic() - start:.0f} s")
    assert "the folder has no weights yet" in said
    assert "rollouts: 8 prompts, 2 answers each" in said
    assert "the model has 24 + 32" in said
    assert "TensorBoard were off" in said
    workdir = tmp_path / "runs/mine-smoke"
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["mine-smoke"]
    stages = ["rollouts", "pairs", "reference", "align", "evaluate base", "evaluate aligned",
              "report"]  # fmt: skip
    assert list(read_stages(workdir)) == stages
    assert read_stages(workdir)["align"]["summary"].startswith("2 steps on 8 pairs")
    assert [row["step"] for row in read_metrics(workdir)] == [1, 2]
    assert len((workdir / "evals/aligned/exact.jsonl").read_text().splitlines()) == 4
    config = read_config(workdir / "config.py")
    assert isinstance(config.base, ReducedBase)
    assert config.base.assets().config.tile_features == 576


@pytest.mark.slow
def test_given_pairs_and_the_original_layout(tmp_path):
    """There are no rollouts; names and shapes of the weights are checked, and none is read."""
    write_original(tmp_path / "llava")
    write_photos(tmp_path / "photos", 10)
    pairs = [{"question": "w1 w2", "chosen": f"w{i}", "reject": "w30", "image_id": f"{i}.png"}
             for i in range(10)]  # fmt: skip
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    (tmp_path / "mine.py").write_text(
        "from seva_jax.config import Checkpoint, Experiment, Iterations\n"
        "from seva_jax.data import SevaPairs\n\n\n"
        "def get_config():\n"
        "    return Experiment('runs/mine', base=Checkpoint('llava'), curriculum=Iterations(2),\n"
        "                      prompts=SevaPairs('pairs.json', 'photos'))\n"
    )
    said = command(tmp_path, "--config", "mine.py", "--train.feature-cache", "features",
                   "--train.eval-fraction", 0.1)  # fmt: skip
    assert re.search(r"names and shapes of its \d+ tensors", said)
    assert "the other runs of this config, 1 in number" in said
    stages = read_stages(tmp_path / "runs/mine-smoke")
    assert list(stages) == ["pairs", "reference", "align", "report"]
    assert stages["align"]["summary"].startswith("2 steps on 4 pairs")
    assert not (tmp_path / "features").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny_apasi", "tiny_sweep"])
def test_systems_whose_pairs_need_more_than_random_words(tmp_path, name):
    said = command(tmp_path, "--config", config_directory() / f"{name}.py")
    assert "smoke run finished" in said


@pytest.mark.slow
def test_a_smoke_run_begins_anew(tmp_path):
    """What another one left in its directory is deleted."""
    config = config_directory() / "tiny_gapo.py"
    command(tmp_path, "--config", config)
    (left,) = tmp_path.glob("runs/*-smoke")
    (left / "left.txt").write_text("of the run before")
    assert "smoke run finished" in command(tmp_path, "--config", config)
    assert not (left / "left.txt").exists()
