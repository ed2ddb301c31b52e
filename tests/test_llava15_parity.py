"""The published run end to end, on real photos and a small random LLaVA from transformers.

Only sizes, paths, precision and the learning rate differ from `configs/llava15_7b_seva.py`.
"""

from __future__ import annotations

import json
import math
import types

import numpy as np
import pytest

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")

import jax  # noqa: E402
import skimage.data  # noqa: E402
from helpers_llava import random_llava, save  # noqa: E402
from helpers_tokenizer import llama_style_tokenizer  # noqa: E402
from helpers_train import opened  # noqa: E402
from PIL import Image  # noqa: E402
from transformers import CLIPImageProcessorPil, LlavaProcessor  # noqa: E402

from seva_jax import train  # noqa: E402
from seva_jax.config.command_line import load_experiment  # noqa: E402
from seva_jax.images.preprocess import ImageProcessing  # noqa: E402
from seva_jax.run.rollouts import read_rollouts  # noqa: E402
from seva_jax.run.stages import run_rollouts  # noqa: E402
from seva_jax.text.encode import Encoder  # noqa: E402
from seva_jax.text.templates import LLAVA_V1, VICUNA_V1  # noqa: E402
from seva_jax.types import DataError  # noqa: E402

# Photographs inside scikit-image's wheel; the others would be fetched.
PHOTOS = (
    "astronaut", "brick", "camera", "chelsea", "clock", "coffee", "coins", "grass",
    "hubble_deep_field", "moon", "retina", "rocket",
)  # fmt: skip
QUESTIONS = ("Describe this image in detail.", "What is in the middle of the picture?")
SIZE, PATCH, NEW = 56, 14, 12
NUM_PATCHES = (SIZE // PATCH) ** 2
WIDTHS = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 3}

CONFIG = """
import dataclasses
from seva_jax.config.config_files import config_directory, read_config
from seva_jax.data.files import ImageFolder

def get_config():
    published = read_config(config_directory() / {name!r})
    prompts = ImageFolder({photos!r}, questions={questions!r}, limit={limit})
    return dataclasses.replace(published, prompts=prompts)
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Returns checkpoint directory, transformers' model and processor, and a photo folder."""
    root = tmp_path_factory.mktemp("llava15")
    corpus = [template.prompt(q) for q in QUESTIONS for template in (LLAVA_V1, VICUNA_V1)]
    tokenizer = llama_style_tokenizer(corpus, vocab_size=400)
    model = random_llava(
        text=WIDTHS | {"vocab_size": len(tokenizer), "intermediate_size": 96},
        vision=WIDTHS | {"image_size": SIZE, "patch_size": PATCH, "intermediate_size": 96},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=NUM_PATCHES,
    )
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    # Bytes decode to half characters, so they get no say, and the end token more than its share:
    # then answers are pieces of words, of several lengths, and some are empty or equal.
    with torch.no_grad():
        silent = {id_ for name, id_ in tokenizer.get_vocab().items() if name.startswith("<")}
        model.lm_head.weight[sorted(silent - {tokenizer.eos_token_id})] = 0
        model.lm_head.weight[tokenizer.eos_token_id] *= 2
    directory = save(model, root / "checkpoint")
    # As in `llava-hf`: the file does not say that LLaVA pads; the published config does.
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}
    )
    processor = LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # CLS, which "default" drops
    )
    processor.save_pretrained(directory)
    photos = root / "photos"
    photos.mkdir()
    for number, name in enumerate(PHOTOS):
        photo = Image.fromarray(getattr(skimage.data, name)())
        photo.save(photos / f"{name}.{'jpg' if number % 2 else 'png'}")
    return types.SimpleNamespace(
        root=root, model=model, processor=processor, directory=directory, photos=photos
    )


def load(world, name, *overrides, workdir="run", limit=0):
    """Loads a published config, shrunk as a user would do it: a config file and options."""
    path = world.root / f"{workdir}_{name}"
    path.write_text(
        CONFIG.format(name=name, photos=str(world.photos), questions=QUESTIONS, limit=limit)
    )
    options = {
        "config": path,
        "workdir": world.root / workdir,
        "base.path": world.directory,
        "rollout.sampling.max-new-tokens": NEW,
        "rollout.batch-size": 16,
        "lora.rank": 4,
        "lora.alpha": 8,
        "optim.lr": 1e-3,
        "train.batch-size": 8,
        "train.log-every": 1,
        "compute.param-dtype": "float32",
        "compute.dtype": "float32",
        "report.num-pairs": 4,
    }
    argv = [text for key, value in options.items() for text in (f"--{key}", str(value))]
    return load_experiment("", [*argv, *overrides])[0]


@pytest.fixture(scope="module")
def decoded():
    """Returns the token ids of every answer of `finished`, in order of completion."""
    return []


@pytest.fixture(scope="module")
def finished(world, decoded):
    """Runs everything once."""
    decode = Encoder.decode

    def spy(self, ids, trunk=()):
        decoded.append(list(ids))
        return decode(self, ids, trunk)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Encoder, "decode", spy)
        return train.run(load(world, "llava15_7b_seva.py"))


def test_the_run_leaves_its_files(finished):
    path = finished.ctx.workdir.path
    names = (
        "config.json", "config.py", "rollouts.json", "rollouts.array_record", "pairs.array_record",
        "reference.array_record", "metrics.jsonl", "report.html", "checkpoints/align",
    )  # fmt: skip
    assert [name for name in names if not (path / name).exists()] == []
    config = json.loads((path / "config.json").read_text())
    published = {
        "corrupt.0.step": 500,
        "objective.beta": 0.1,
        "train.repeat": 2,
        "train.trained": ["lora", "projector"],
        "train.reference": "cached",
        "seed": 42,
    }
    assert {key: config[key] for key in published} == published
    # Pads to a square, though the processor's file says to crop.
    assert finished.ctx.assets.processing == ImageProcessing(size=SIZE)


def test_every_prompt_is_answered_and_every_drop_is_counted(finished):
    prompts = len(PHOTOS) * len(QUESTIONS)
    records = read_rollouts(finished.ctx.workdir.path)
    assert len({record["id"] for record in records}) == len(records) == prompts
    index = json.loads((finished.ctx.workdir.path / "pairs.json").read_text())
    assert index["prompts"] == prompts
    assert index["pairs"] == len(finished.comparisons.encoded)
    assert index["pairs"] + sum(index["drops"].values()) == prompts
    assert index["pairs"] >= prompts // 2  # a random model sees noise as another image


def test_step_1_is_the_reference(finished):
    rows = [row for row in finished.ctx.workdir.read_metrics() if row["stage"] == "align"]
    steps = math.ceil(2 * len(finished.comparisons.encoded) / 8)  # repeat 2, batch 8
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    for name in ("rewards/margins", "rewards/chosen", "rewards/rejected"):
        assert rows[0][name] == pytest.approx(0, abs=1e-5)
    assert rows[0]["logps/chosen"] < 0
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.05
    assert rows[-1]["rewards/margins"] > 0.05


def test_adapters_and_projector_train_and_nothing_else(finished):
    def changed(part):
        before, after = finished.base[part], finished.aligned["params"][part]
        pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
        return any(bool((a != b).any()) for a, b in pairs)

    assert {part: changed(part) for part in finished.base} == {
        "vision": False,
        "projector": True,
        "language": False,
    }
    assert all(bool((x != 0).any()) for x in jax.tree.leaves(finished.aligned["lora"]))


def test_chosen_answers_are_greedy_answers_of_transformers(world, finished, decoded):
    records = read_rollouts(finished.ctx.workdir.path)
    rollouts = decoded[: 2 * len(records)]  # clean and corrupted; then those of the report
    assert len(rollouts) == 2 * len(records)
    tokenizer = world.processor.tokenizer
    lengths = set()
    for record in records[::3]:
        prompt = VICUNA_V1.prompt(record["question"])
        prompt = prompt.replace("<image>", "<image>" * NUM_PATCHES)
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        pixels_HWC = finished.ctx.assets.processing(
            finished.prompts.load_image(record["images"][0])
        )
        with torch.no_grad():
            new = world.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                pixel_values=torch.from_numpy(np.moveaxis(pixels_HWC, -1, 0)[None].copy()),
                max_new_tokens=NEW,
                do_sample=False,
            )[0, ids.shape[1] :].tolist()
        theirs = new[:-1] if new[-1] == tokenizer.eos_token_id else new
        assert theirs in rollouts
        assert record["clean"] == tokenizer.decode(theirs, clean_up_tokenization_spaces=False)
        lengths.add(len(theirs))
    assert len(lengths) > 1
    assert len({record["clean"] for record in records}) > len(records) // 2


def test_a_second_run_skips_every_stage(world, finished, capsys):
    def written():
        files = finished.ctx.workdir.path.rglob("*")
        return {p: p.stat().st_mtime_ns for p in files if p.is_file() and "config." not in p.name}

    before = written()
    again = train.run(load(world, "llava15_7b_seva.py"))
    shown = capsys.readouterr().out
    for name in ("rollouts", "pairs", "reference", "align", "report"):
        assert f"■ {name}: done before" in shown
    assert "▶" not in shown
    assert written() == before
    # Skipping loads no weights and opens no data.
    assert not {"base", "prompts", "aligned"} & set(vars(again))


def test_a_changed_config_is_refused_by_name(world, finished):
    changed = load(world, "llava15_7b_seva.py", "--objective.beta", "0.2")
    with pytest.raises(DataError, match=r"objective\.beta: 0\.1 there, 0\.2 now"):
        opened(changed)


def test_moco_is_a_corruption_of_the_same_photographs(world, finished):
    out = opened(load(world, "llava15_7b_seva_moco.py", workdir="moco", limit=4))
    run_rollouts(out.ctx, out)
    records = read_rollouts(out.ctx.workdir.path)
    noise = read_rollouts(finished.ctx.workdir.path)[: len(records)]
    assert len(records) == 4 * len(QUESTIONS)
    for ours, theirs in zip(records, noise, strict=True):
        assert ours["id"] == theirs["id"]
        assert ours["clean"] == theirs["clean"]
    assert any(a["corrupted"] != b["corrupted"] for a, b in zip(records, noise, strict=True))
    assert any([record["clean"]] != record["corrupted"] for record in records)
