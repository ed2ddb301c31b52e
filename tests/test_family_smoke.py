"""`seva_jax.train --smoke` on the recipes of the other families, in their shapes of images."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from helpers_tokenizer import llama_style_tokenizer, qwen2_style_tokenizer
from PIL import Image

from seva_jax.config import ReducedBase, read_config
from seva_jax.config.config_files import config_directory
from seva_jax.config.smoke import reduced
from seva_jax.convert.families import family_of
from seva_jax.convert.hf_config import llava_config_fields
from seva_jax.convert.processor import write_chat_template, write_processor
from seva_jax.images import QwenProcessing
from seva_jax.images.any_resolution import AnyResolution
from seva_jax.plan.published import PUBLISHED, Published
from seva_jax.runtime.run_records import read_metrics, read_stages

QUESTION = "Describe this image in detail."
RECIPES = {
    "llava_next_7b_seva": "llava-v1.6-vicuna-7b",
    "llava_onevision_7b_seva": "llava-onevision-qwen2-7b",
    "internvl3_8b_seva": "internvl3-8b",
    "qwen2_5_vl_7b_seva": "qwen2.5-vl-7b",
}
CONFIG = f"""
import dataclasses
from seva_jax.config.config_files import config_directory, read_config
from seva_jax.data import ImageFolder


def get_config():
    published = read_config(config_directory() / "RECIPE.py")
    prompts = ImageFolder("photos", questions=("{QUESTION}",))
    return dataclasses.replace(published, prompts=prompts, evals=())
"""


@pytest.mark.parametrize("name", [*RECIPES.values(), "qwen2-vl-7b", "qwen3-vl-8b"])
def test_a_reduced_model_makes_the_same_tokens(name):
    """Layers and widths shrink; what an image becomes and what the family is made of stay."""
    full, processing = PUBLISHED[name].config, PUBLISHED[name].processing
    small = reduced(full)
    assert type(small.vision) is type(full.vision)
    assert (small.vision.num_layers, small.text.num_layers) == (2, 2)
    assert small.text.hidden_size < full.text.hidden_size
    for kept in ("tile_features", "newline", "projector_norm", "feature_select", "image_token_id"):
        assert getattr(small, kept) == getattr(full, kept)
    for kept in ("vocab_size", "head_dim", "qkv_bias", "rope", "tied_head", "rope_axes"):
        assert getattr(small.text, kept) == getattr(full.text, kept)
    assert family_of(small) is family_of(full)
    layouts = processing.layouts([(480, 640)], full.tile_features)
    (layout,) = processing.layouts([(480, 640)], small.tile_features)
    np.testing.assert_array_equal(layout.patch_N, layouts[0].patch_N)


def smaller(published):
    """Returns a model with tiles of 112 x 112 pixels, and as many of them for an image.

    Qwen-VL has small tiles already.
    """
    if isinstance(published.processing, QwenProcessing):
        return published
    vision = dataclasses.replace(published.config.vision, image_size=112)
    processing, more = published.processing, {}
    if isinstance(processing, AnyResolution):
        old = processing.size
        more = {
            "resolutions": tuple(
                (h // old * 112, w // old * 112) for h, w in processing.resolutions
            )
        }
    processing = dataclasses.replace(processing, size=112, **more)
    return Published(dataclasses.replace(published.config, vision=vision), processing)


def write_model(directory, recipe):
    """Writes a directory without weights of a recipe's model, its tiles and vocabulary smaller."""
    published = smaller(PUBLISHED[RECIPES[recipe]])
    template = read_config(config_directory() / f"{recipe}.py").text.generate
    corpus = [template.prompt(QUESTION)] * 4
    image = "<image>"
    if recipe.startswith("llava_next"):
        tokenizer = llama_style_tokenizer(corpus, 400)
    elif recipe.startswith("llava_onevision"):
        tokenizer = qwen2_style_tokenizer(corpus)
    elif recipe.startswith("qwen"):
        image = "<|image_pad|>"
        names = (image, "<|vision_start|>", "<|vision_end|>", "<video>")
        tokenizer = qwen2_style_tokenizer(corpus, names)
    else:
        image = "<IMG_CONTEXT>"
        tokenizer = qwen2_style_tokenizer(corpus, ("<img>", "</img>", image))
    video = tokenizer.convert_tokens_to_ids("<video>")
    config = dataclasses.replace(
        published.config,
        text=dataclasses.replace(published.config.text, vocab_size=len(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids(image),
        video_token_id=None if published.config.video_token_id is None else video,
    )
    directory.mkdir()
    fields = llava_config_fields(config, processing=published.processing)
    (directory / "config.json").write_text(json.dumps(fields))
    tokenizer.save_pretrained(directory)
    write_processor(directory, config, published.processing)
    family = family_of(config)
    write_chat_template(directory, template, family.chat_image, family.chat_video)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["llava_onevision_7b_seva", "qwen2_5_vl_7b_seva"])
def test_a_recipe_without_weights(recipe, tmp_path, monkeypatch):
    """All stages run, with as many tiles of an image as the published model has.

    Evaluations are left out, since nearly all of the time is that of compiling; those of the
    families are in `test_family_runs.py`.
    """
    monkeypatch.chdir(tmp_path)  # paths of the config are relative
    write_model(tmp_path / "model", recipe)
    (tmp_path / "photos").mkdir()
    for i in range(9):
        shape = (40, 40, 3) if i % 2 else (60, 40, 3)
        pixels = np.random.default_rng(i).integers(0, 255, shape, np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"photos/{i}.png")
    (tmp_path / "mine.py").write_text(CONFIG.replace("RECIPE", recipe))
    options = ("--config", "mine.py", "--base.path", "model", "--workdir", "runs/mine",
               "--train.micro-batches", "2", "--report.num-prompts", "0")  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "seva_jax.train", "--smoke", *options], cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "XLA_FLAGS"},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "the folder has no weights yet" in done.stdout
    assert "rollouts: 8 prompts, 2 answers each" in done.stdout
    full = PUBLISHED[RECIPES[recipe]].config
    assert f"the model has {full.vision.num_layers} + {full.text.num_layers}" in done.stdout
    assert "smoke run finished" in done.stdout
    workdir = tmp_path / "runs/mine-smoke"
    assert list(read_stages(workdir)) == ["rollouts", "pairs", "reference", "align", "report"]
    assert [row["step"] for row in read_metrics(workdir)] == [1, 2]
    config = read_config(workdir / "config.py")
    assert isinstance(config.base, ReducedBase)
    assert (
        config.base.assets().config.tile_features
        == smaller(PUBLISHED[RECIPES[recipe]]).config.tile_features
    )
