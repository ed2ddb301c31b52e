"""Made-up checkpoints, model configs, answers and benchmarks; see `test_fuzz_data.py`."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from helpers_fuzz import (
    HOSTILE,
    LEAVES,
    anything,
    clean,
    damaged,
    fields,
    inputs,
    value,
)
from helpers_llava import CONFIG_V4

from seva_jax.convert import read_llava_config, read_special_tokens
from seva_jax.convert.load import read_headers
from seva_jax.evals import ExactAnswer, suites
from seva_jax.evals.choice import FreeParser
from seva_jax.evals.endpoint import _verdict
from seva_jax.evals.exact import normalise
from seva_jax.evals.files import read_json_lines, read_result
from seva_jax.evals.judge import Case
from seva_jax.evals.pope import LlavaParser, WordParser, load_pope
from seva_jax.evals.suite import open_suite
from seva_jax.images.preprocess import ImageProcessing
from seva_jax.text.encode import clean_answer
from seva_jax.types import DataError

# --- checkpoints ----------------------------------------------------------------------------------


def tensors(**entries):
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + bytes(32)


GOOD_HEADER = tensors(
    a={"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
    b={"dtype": "F16", "shape": [8], "data_offsets": [16, 32]},
)
NUMBERS = [0, 1, -1, 2, 4, 8, 16, 32, 2**31, 2**62, 2**64, 0.5, None, "4"]


def number_or_value(rng):
    return rng.choice(NUMBERS) if rng.random() < 0.5 else value(rng)


def test_safetensors_headers(fuzz_folder):
    directory = fuzz_folder / "weights"
    directory.mkdir()
    path = directory / "model.safetensors"

    def header(rng):
        if rng.random() < 0.4:
            return damaged(rng, GOOD_HEADER)
        entries = {
            name: {
                "dtype": rng.choice(["F32", "F16", "I8", "X9", None]),
                "shape": rng.choices(NUMBERS, k=rng.randrange(3)),
                "data_offsets": rng.choices(NUMBERS, k=2),
            }
            for name in rng.choices("abc", k=2)
        }
        return tensors(**entries | fields(rng, "abc", 1))

    @inputs(header)
    def run(data):
        path.write_bytes(data)
        with clean():
            found = read_headers(directory)
            assert all(
                np.prod(t.shape, dtype=float) <= len(data) for t in found.values()
            )  # no shape beyond the file

    run()


def test_safetensors_index(fuzz_folder):
    directory = fuzz_folder / "shards"
    directory.mkdir()
    (directory / "one.safetensors").write_bytes(GOOD_HEADER)
    path = directory / "model.safetensors.index.json"
    good = {"a": "one.safetensors", "b": "one.safetensors"}
    names = [*HOSTILE, "../weights/model.safetensors", "a.bin", "b.safetensors"]

    def index(rng):
        kinds = (value, lambda rng: rng.choice(names))
        weight_map = good | fields(rng, "abc", 2, rng.choice(kinds))
        return damaged(rng, json.dumps({"weight_map": weight_map}).encode())

    @inputs(index)
    def run(data):
        path.write_bytes(data)
        with clean():
            assert {t.path.parent for t in read_headers(directory).values()} <= {directory}

    run()


FIELDS = [
    *(("text_config", name) for name in CONFIG_V4["text_config"]),
    *(("vision_config", name) for name in CONFIG_V4["vision_config"]),
    *(("", name) for name in CONFIG_V4),
    ("text_config", "rope_parameters"), ("text_config", "head_dim"), ("", "vision_feature_layer"),
    ("", "vision_feature_select_strategy"), ("text_config", "tie_word_embeddings"),
    ("", "quantization_config"), ("", "eos_token_id"), ("", "mm_vision_tower"),
]  # fmt: skip


def test_model_configs(fuzz_folder):
    directory = fuzz_folder / "model"
    directory.mkdir()
    path = directory / "config.json"

    @inputs(
        lambda rng: [(rng.choice(FIELDS), number_or_value(rng)) for _ in range(rng.randrange(4))]
    )
    def run(changes):
        config = json.loads(json.dumps(CONFIG_V4))
        for (section, name), other in changes:
            (config.get(section) if isinstance(config.get(section), dict) else config)[name] = other
        path.write_text(json.dumps(config))
        with clean():
            found = read_llava_config(directory)
            assert 0 <= found.tower_depth <= found.vision.num_layers
            assert all(type(x) is int for x in read_special_tokens(directory).stop_ids)

    run()


PROCESSOR = {
    "image_processor_type": "CLIPImageProcessor", "do_resize": True, "do_rescale": True,
    "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5] * 3, "do_pad": False,
    "image_std": [0.5] * 3, "do_center_crop": True, "resample": 3,
    "size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28},
}  # fmt: skip


def test_processor_configs(fuzz_folder):
    path = fuzz_folder / "preprocessor_config.json"

    @inputs(lambda rng: fields(rng, list(PROCESSOR), 3, number_or_value))
    def run(changes):
        path.write_text(json.dumps(PROCESSOR | changes))
        with clean():
            found = ImageProcessing.from_processor_config(fuzz_folder)
            if found.size <= 64 and (found.shortest_edge or 0) <= 128:
                shape = (found.size, found.size, 3)
                assert found(np.zeros((5, 7, 3), np.uint8)).shape == shape

    run()


# --- evaluation -----------------------------------------------------------------------------------


def test_parsers_of_answers():
    case = Case("Judge.", "Q?", "truth", ("a", "b"), 0.0, 1.0)
    words = [*HOSTILE, "Yes", "no", "not", "A", "(B)", "C.", "Answer:", ",", "."]

    @inputs(lambda rng: " ".join(rng.choices([*words, anything(rng)], k=4)))
    def run(text):
        assert LlavaParser()(text) in ("yes", "no")
        assert WordParser()(text) in ("yes", "no", "unparsed")
        assert FreeParser()(text, ["a cat", "a dog"]) in ("", "A", "B")
        assert isinstance(normalise(text), str)
        assert clean_answer(clean_answer(text)) == clean_answer(text)
        _verdict(text, case)

    run()


def test_replies_of_judges():
    case = Case("Judge.", "Q?", "truth", ("a", "b"), 0.0, 1.0)

    def reply(rng):
        scores = [rng.choice(LEAVES), rng.choice(LEAVES)]
        good = json.dumps(rng.choice([{"scores": scores}, fields(rng, ["scores", "explanation"])]))
        return damaged(rng, b"Sure! " + good.encode()).decode(errors="replace")

    @inputs(reply)
    def run(reply):
        found = _verdict(reply, case)
        assert isinstance(found, DataError) or all(0 <= score <= 1 for score in found.scores)

    run()


POPE = {"question_id": 1, "image": "a.png", "text": "Is it?", "label": "yes"}
SUITES = {
    "gqa": {"1": {"imageId": "a", "question": "Q?", "answer": "x", "types": {"semantic": "rel"}}},
    "seed": {"questions": [{
        "data_type": "image", "question_id": "1", "data_id": "a", "question": "Q?", "answer": "A",
        "choice_a": "1", "choice_b": "2", "choice_c": "3", "choice_d": "4", "question_type_id": 1,
    }], "question_type": {"Scene": 1}},
    "mmvet": {"v1_0": {"imagename": "a.png", "question": "Q?", "answer": "x", "capability": ["o"]}},
    "pope": POPE,
}  # fmt: skip


@pytest.mark.parametrize("name", SUITES)
def test_files_of_benchmarks(fuzz_folder, name):
    path = fuzz_folder / ("coco_pope_random.json" if name == "pope" else f"{name}.json")
    root = {"image_root": str(fuzz_folder)}
    suite = {
        "gqa": suites.GQA(path=str(path), **root),
        "seed": suites.SeedBench(path=str(path), **root),
        "mmvet": suites.MMVet(path=str(path), **root),
        "pope": suites.PopeSets(folder=str(fuzz_folder), sets=("random",), **root),
    }[name]
    good = SUITES[name]

    def inside(rng, found):
        """Changes one thing somewhere inside a value."""
        if isinstance(found, dict) and found and rng.random() < 0.8:
            key = rng.choice(list(found))
            return found | {key: inside(rng, found[key])}
        if isinstance(found, list) and found and rng.random() < 0.8:
            return [inside(rng, found[0]), *found[1:]]
        return value(rng)

    @inputs(lambda rng: inside(rng, good))
    def run(content):
        path.write_text(json.dumps(content))
        with clean():
            questions = open_suite(suite)
            prompts = list(questions.prompts)
            questions.evaluator(lambda asked: ["yes"] * len(asked), prompts)

    run()


def test_results_of_evaluations(fuzz_folder):
    records, summary = fuzz_folder / "records.jsonl", fuzz_folder / "summary.json"
    metric = {"value": 1.0, "low": None, "high": 1.0, "n": 1, "better": "higher",
              "numerator": ["a"], "denominator": ["b"], "categories": []}  # fmt: skip
    good = {"name": "x", "num_examples": 1, "metrics": {"m": metric}}

    @inputs(
        lambda rng: fields(rng, [*good, "x"], 2),
        lambda rng: fields(rng, list(metric), 2),
        lambda rng: damaged(rng, b'{"id": "a"}\n'),
    )
    def run(top, below, lines):
        summary.write_text(json.dumps(good | {"metrics": {"m": metric | below}} | top))
        records.write_bytes(lines)
        with clean():
            list(read_json_lines(records))
        with clean():
            load_pope(records)
        records.write_bytes(b'{"id": "a"}\n')
        with clean():
            assert read_result(summary, records).records
        with clean():
            ExactAnswer()(lambda prompts: ["x"] * len(prompts), [])

    run()
