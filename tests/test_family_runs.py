"""Checkpoints of every family from files to an export: a run, and the answers of transformers.

Photographs have mixed sizes. What a tiny model learns is not looked at; that answers, log-probs and
exports belong to the model is.
"""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")

from helpers_devices import limited_devices  # noqa: E402
from helpers_families import GRID, SIDE, random_model, tokens_of  # noqa: E402
from helpers_llava import save  # noqa: E402
from helpers_qwen import MOST, QWEN, image_processor, patch_of, random_qwen  # noqa: E402
from helpers_tokenizer import llama_style_tokenizer, qwen2_style_tokenizer  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForImageTextToText,
    GotOcr2ImageProcessorPil,
    LlavaNextImageProcessorPil,
    LlavaOnevisionImageProcessorPil,
)

import seva_jax  # noqa: E402
from seva_jax import train  # noqa: E402
from seva_jax.config import (  # noqa: E402
    Checkpoint,
    ComputeOptions,
    Evaluation,
    Experiment,
    ReportOptions,
    RolloutOptions,
    TextOptions,
    TrainOptions,
)
from seva_jax.convert.__main__ import main as convert  # noqa: E402
from seva_jax.convert.processor import write_chat_template, write_processor  # noqa: E402
from seva_jax.convert.table import canonical  # noqa: E402
from seva_jax.corrupt import DiffusionNoise, RandomResizedCrop  # noqa: E402
from seva_jax.data import QuestionsJsonl, TrlPairs  # noqa: E402
from seva_jax.evals import ExactAnswer  # noqa: E402
from seva_jax.images import (  # noqa: E402
    InternvlProcessing,
    LlavaNextProcessing,
    LlavaOnevisionProcessing,
    QwenProcessing,
)
from seva_jax.models import LoraConfig, is_quantised  # noqa: E402
from seva_jax.run.rollouts import read_rollouts  # noqa: E402
from seva_jax.runtime.run_records import read_metrics  # noqa: E402
from seva_jax.text import CHATML, MISTRAL, ONEVISION, QWEN2_VL, QWEN3_VL, Sampling  # noqa: E402
from seva_jax.training import Optim  # noqa: E402

QUESTION = "What is it?"
CORPUS = [f"[INST] user assistant system {QUESTION} [/INST] It is a red car </s>"] * 4
SIZES = [(60, 60), (40, 150), (170, 50), (90, 100), (56, 112), (30, 31)]
GRIDS = tuple((height, width) for height, width in GRID)


@dataclasses.dataclass(frozen=True)
class Made:
    """What differs between the families.

    Attributes:
        tokenizer: makes a small tokenizer of the family's kind.
        image: the image token.
        template: conversation template.
        processing: image pipeline.
        theirs: the same pipeline of transformers.
    """

    tokenizer: object
    image: str
    template: object
    processing: object
    theirs: object


def internvl_tokenizer(corpus):
    return qwen2_style_tokenizer(corpus, ("<img>", "</img>", "<IMG_CONTEXT>"))


def qwen_tokenizer(corpus):
    vision = (f"<|{name}|>" for name in ("vision_start", "vision_end", "image_pad", "video_pad"))
    return qwen2_style_tokenizer(corpus, tuple(vision))


def qwen(family):
    theirs, third = image_processor(family), family == "qwen3_vl"
    mean, std = tuple(theirs.image_mean), tuple(theirs.image_std)
    return Made(
        qwen_tokenizer,
        "<|image_pad|>",
        QWEN3_VL if third else QWEN2_VL,
        QwenProcessing(size=2 * patch_of(family), mean=mean, std=std, **MOST),
        theirs,
    )


FAMILIES = {
    **{family: qwen(family) for family in QWEN},
    "llava_next": Made(
        lambda corpus: llama_style_tokenizer(corpus, 400),
        "<image>",
        MISTRAL,
        LlavaNextProcessing(size=SIDE, resolutions=GRIDS),
        LlavaNextImageProcessorPil(
            size={"shortest_edge": SIDE},
            crop_size={"height": SIDE, "width": SIDE},
            image_grid_pinpoints=GRID,
        ),
    ),
    "llava_onevision": Made(
        qwen2_style_tokenizer,
        "<image>",
        ONEVISION,
        LlavaOnevisionProcessing(size=SIDE, resolutions=GRIDS, anyres_max=2),
        LlavaOnevisionImageProcessorPil(
            size={"height": SIDE, "width": SIDE},
            image_grid_pinpoints=GRID,
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
        ),
    ),
    "internvl": Made(
        internvl_tokenizer,
        "<IMG_CONTEXT>",
        CHATML,
        InternvlProcessing(size=SIDE, max_tiles=6),
        GotOcr2ImageProcessorPil(
            size={"height": SIDE, "width": SIDE},
            max_patches=6,
            crop_to_patches=True,
            image_mean=[0.485, 0.456, 0.406],
            image_std=[0.229, 0.224, 0.225],
        ),
    ),
}


def photograph(number):
    """Returns a smooth picture, so that resizing by other code gives nearly the same pixels."""
    height, width = SIZES[number % len(SIZES)]
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request, tmp_path_factory):
    """Returns the family, its parts, transformers' model, tokenizer and directory."""
    family, made = request.param, FAMILIES[request.param]
    tokenizer = made.tokenizer(CORPUS)
    token = tokenizer.convert_tokens_to_ids(made.image)
    options = {"image_token_index" if family.startswith("llava") else "image_token_id": token}
    if family == "internvl":
        options["tie_word_embeddings"] = False
    if family == "llava_onevision":
        options |= {
            "vision_aspect_ratio": "anyres_max_2",
            "video_token_index": tokenizer.convert_tokens_to_ids("<video>"),
        }
    end = tokenizer.eos_token_id
    text = {"vocab_size": len(tokenizer), "eos_token_id": end}
    make = random_qwen if family in QWEN else random_model
    theirs = make(family, text=text, **options)
    theirs.generation_config.eos_token_id = end
    directory = save(theirs, tmp_path_factory.mktemp(family) / "model")
    tokenizer.save_pretrained(directory)
    write_processor(directory, seva_jax.from_pretrained(directory).config, made.processing)
    write_chat_template(directory, made.template)
    return family, made, theirs, tokenizer, directory


def their_answer(family, made, theirs, tokenizer, picture, num_new):
    """Answers with transformers alone: its tiles, its number of tokens, its generation."""
    arrays = made.theirs(images=[picture], return_tensors="pt")
    height, width = picture.height, picture.width
    if family == "internvl":
        count = 4 * len(arrays["pixel_values"])
        image = f"<img>{made.image * count}</img>"
        inputs = {"pixel_values": arrays["pixel_values"]}
    elif family in QWEN:
        count = int(arrays["image_grid_thw"].prod()) // 4
        image = f"<|vision_start|>{made.image * count}<|vision_end|>"
        inputs = dict(arrays)
    else:
        (count,) = tokens_of(theirs, [(height, width)], True)
        image = made.image * count
        inputs = {
            "pixel_values": arrays["pixel_values"],
            "image_sizes": torch.tensor([[height, width]]),
        }
        if family == "llava_onevision":
            inputs["batch_num_images"] = torch.tensor([1])
    prompt = made.template.prompt(QUESTION).replace("<image>", image)
    ids = torch.tensor([tokenizer(prompt).input_ids])
    inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if family in QWEN:
        image_id = tokenizer.convert_tokens_to_ids(made.image)
        inputs["mm_token_type_ids"] = (ids == image_id).long()
    out = theirs.generate(**inputs, max_new_tokens=num_new, do_sample=False)[0, ids.shape[1] :]
    return tokenizer.decode(out, skip_special_tokens=True).strip()


def test_answers_about_photographs_of_mixed_sizes(checkpoint):
    """What users see: the words about a picture, with everything of the directory's own."""
    family, made, theirs, tokenizer, directory = checkpoint
    ours = seva_jax.open(directory, dtype="float32")
    answers = set()
    for number in range(len(SIZES)):
        picture = photograph(number)
        expected = their_answer(family, made, theirs, tokenizer, picture, 6)
        assert ours.answer(picture, QUESTION, max_new_tokens=6) == expected
        answers.add(expected)
    assert len(answers) > 1


@pytest.mark.slow
def test_a_run_from_files_to_an_export(checkpoint, tmp_path, capsys):
    """Rollouts, pairs, reference, training, evaluation, report; the export answers as the run."""
    family, made, _, _, directory = checkpoint
    folder = tmp_path / "images"
    folder.mkdir()
    records = []
    for number in range(24):
        photograph(number).save(folder / f"{number}.png")
        record = {"question_id": number, "image": f"{number}.png", "text": QUESTION}
        records.append(record | {"answer": "red", "category": "conv"})
    (folder / "broken.png").write_bytes(b"no picture")
    records.append({"question_id": 99, "image": "broken.png", "text": QUESTION})
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(json.dumps(record) + "\n" for record in records))
    prompts = QuestionsJsonl(path=str(questions), image_root=str(folder))
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text("".join(json.dumps(record) + "\n" for record in records[:6]))
    asked = QuestionsJsonl(path=str(held_out), image_root=str(folder))
    run = Experiment(
        workdir=str(tmp_path / "run"),
        base=Checkpoint(str(directory)),
        prompts=prompts,
        corrupt=(DiffusionNoise(500), RandomResizedCrop(size=64)),
        rollout=RolloutOptions(Sampling(8, temperature=1.0), batch_size=24, refill=2),
        text=TextOptions(generate=made.template, train=made.template, max_length=320),
        lora=LoraConfig(rank=2, alpha=4.0),
        train=TrainOptions(
            batch_size=8, max_steps=3, trained=("lora", "projector"),
            feature_cache=str(tmp_path / "features"), log_every=1,
        ),
        compute=ComputeOptions(param_dtype="float32", dtype="float32", row_shapes=2),
        evals=(Evaluation(ExactAnswer("exact"), asked, max_new_tokens=4),),
    )  # fmt: skip
    train.run(run)
    shown = capsys.readouterr().out
    assert "prefill program" in shown
    assert "at most" in shown  # how many training steps are compiled
    rows = [row for row in read_metrics(tmp_path / "run") if row["stage"] == "align"]
    assert len(rows) == 3
    assert np.isfinite([row["loss"] for row in rows]).all()
    rollouts = read_rollouts(tmp_path / "run")
    assert [r["dropped"] for r in rollouts if "dropped" in r] == ["unreadable image"]
    assert (tmp_path / "run" / "report.html").exists()
    assert len(list((tmp_path / "features").rglob("*.npz"))) > 0

    convert(["to-hf", str(tmp_path / "run"), str(tmp_path / "out")])
    theirs = AutoModelForImageTextToText.from_pretrained(tmp_path / "out").eval()
    opened = seva_jax.open(tmp_path / "run", dtype="float32")
    exported = seva_jax.open(tmp_path / "out", dtype="float32")
    for number in range(3):
        picture = photograph(number)
        expected = opened.answer(picture, QUESTION, max_new_tokens=6)
        assert exported.answer(picture, QUESTION, max_new_tokens=6) == expected
        tokenizer = opened.found.assets.tokenizer
        assert their_answer(family, made, theirs, tokenizer, picture, 6) == expected


@pytest.mark.slow
def test_adapters_on_a_quantised_base(checkpoint, tmp_path):
    """They are trained on given pairs; exports add them to the weights of the files."""
    pytest.importorskip("qwix")
    family, made, theirs, tokenizer, directory = checkpoint
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(6):
        photograph(number).save(folder / f"{number}.png")
    # One image, several, and for some families the frames of a video.
    videos = family in ("llava_onevision", *QWEN)
    asked = [QUESTION, QUESTION, f"<video>\n{QUESTION}" if videos else QUESTION]
    records = [
        {"id": str(i), "prompt": asked[i % 3], "chosen": "It is red", "rejected": "a car"}
        | {"images": [f"{(i + j) % 6}.png" for j in range((1, 2, 3)[i % 3])]}
        for i in range(24)
    ]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(record) + "\n" for record in records))
    run = Experiment(
        workdir=str(tmp_path / "run"),
        base=Checkpoint(str(directory)),
        prompts=TrlPairs(str(pairs), str(folder)),
        corrupt=(),
        text=TextOptions(generate=made.template, train=made.template, max_length=600),
        lora=LoraConfig(rank=2, alpha=4.0),
        optim=Optim(lr=1e-2),
        train=TrainOptions(batch_size=8, max_steps=3, trained=("lora",), log_every=1),
        compute=ComputeOptions("float32", "nf4", dtype="float32", row_shapes=1),
        report=ReportOptions(num_prompts=0),
    )
    with limited_devices(1):
        out = train.run(run)
    base, aligned = out.base, out.aligned["params"]
    assert is_quantised(base["language"]["layers"]["q_proj"]["kernel"])
    jax.tree.map(np.testing.assert_array_equal, aligned, base)
    rows = [row["loss"] for row in read_metrics(tmp_path / "run") if row["stage"] == "align"]
    assert rows[0] == pytest.approx(np.log(2), abs=1e-6)
    assert rows[-1] < rows[0]

    convert(["to-hf", str(tmp_path / "run"), str(tmp_path / "merged")])
    convert(["to-peft", str(tmp_path / "run"), str(tmp_path / "adapter")])
    exported, files = (
        {canonical(name): x for name, x in load_file(folder / "model.safetensors").items()}
        for folder in (tmp_path / "merged", directory)
    )
    adapters = jax.tree.map(np.asarray, out.aligned["lora"]["language"]["layers"])
    kernels = {
        f"{block}.{name}.weight": 2 * np.swapaxes(x["a"] @ x["b"], 1, 2)  # alpha / rank is 2
        for name, x in adapters.items()
        for block in ("self_attn", "mlp")
    }
    changed = set()
    for name, values in exported.items():
        *_, layer, block, linear, kind = ("", "", "", *name.split("."))
        change = 0.0
        in_tower = "vision" in name or "visual" in name
        if not in_tower and f"{block}.{linear}.{kind}" in kernels:
            change = kernels[f"{block}.{linear}.{kind}"][int(layer)]
            changed.add(name)
        np.testing.assert_allclose(values, files[name] + change, atol=1e-6)
    assert len(changed) == 7 * theirs.config.text_config.num_hidden_layers
    merged = seva_jax.from_pretrained(tmp_path / "merged")
    adapted = seva_jax.from_pretrained(directory, adapter=tmp_path / "adapter")
    close = functools.partial(np.testing.assert_allclose, atol=1e-6)
    jax.tree.map(close, adapted.params, merged.params)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged").eval()
    opened = seva_jax.open(tmp_path / "merged", dtype="float32")
    expected = their_answer(family, made, model, tokenizer, photograph(1), 6)
    assert opened.answer(photograph(1), QUESTION, max_new_tokens=6) == expected
