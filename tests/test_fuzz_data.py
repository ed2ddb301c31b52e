"""Every parser of outside input accepts made-up input or refuses it in clear words.

Each parser gets at least 500 inputs, drawn by hypothesis and the same in every run. Whatever a file
holds, its reader returns, or raises `DataError` (or its subclass `ExampleError`) with a message.
What is read is also used: ids and texts are stored, images loaded, questions put into a template.
"""

from __future__ import annotations

import io
import json
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers_formats import FORMATS, LISTS
from helpers_fuzz import (
    HOSTILE,
    NAMES,
    anything,
    clean,
    damaged,
    inputs,
    picture,
    value,
)
from helpers_tokenizer import asked, one_layout

from seva_jax.data import messages, preferences
from seva_jax.data.embedded import HfParquet
from seva_jax.data.files import LlavaJson, QuestionsJsonl
from seva_jax.images.load import decode_image, resolve_image
from seva_jax.runtime import files
from seva_jax.text.encode import Encoder
from seva_jax.text.templates import VICUNA_V1, Template
from seva_jax.text.tokenizer import word_tokenizer
from seva_jax.types import View


def used(source):
    """Opens a source and uses everything that it gives."""
    with clean():
        data = source.open()
        assert data.prompts
        for prompt in data.prompts:
            json.dumps(prompt.meta, allow_nan=False)
            put_into_a_template(prompt.question, len(prompt.images))
            for name in prompt.images:
                with clean():
                    assert data.load_image(name).dtype == np.uint8


def put_into_a_template(question, num_images):
    with clean():
        assert question.strip() in VICUNA_V1.prompt(question, num_images)


# --- data -----------------------------------------------------------------------------------------


def changed(rng, good):
    """Replaces, removes or adds some fields of a record, at its top or one level down."""
    record = dict(good)
    for key in rng.choices([*good, *good, *NAMES], k=rng.randrange(4)):
        found = record.get(key)
        if isinstance(found, list) and found and isinstance(found[0], dict) and rng.random() < 0.7:
            name = rng.choice([*found[0], *NAMES])
            record[key] = [found[0] | {name: value(rng)}, *found[1:]]
        elif rng.random() < 0.8:
            record[key] = value(rng)
        else:
            record.pop(key, None)
    return record


@pytest.mark.parametrize("kind", FORMATS, ids=lambda kind: kind.__name__)
def test_records_of_every_format(fuzz_folder, kind):
    path = fuzz_folder / f"{kind.__name__}.json"
    options = {"aspects": ("Helpfulness",)} if kind is preferences.VLFeedbackPairs else {}
    source = kind(str(path), str(fuzz_folder), **options)

    @inputs(lambda rng: [changed(rng, FORMATS[kind]), value(rng)])
    def run(records):
        if kind in LISTS:
            path.write_text(json.dumps(records))
        else:
            path.write_text("\n".join(map(json.dumps, records)))
        used(source)

    run()


@pytest.mark.parametrize("kind", [QuestionsJsonl, preferences.SevaPairs, LlavaJson])
def test_damaged_json(fuzz_folder, kind):
    path = fuzz_folder / "damaged.json"
    good = json.dumps([FORMATS[kind]] if kind in LISTS else FORMATS[kind]).encode() + b"\n"

    @inputs(lambda rng: damaged(rng, good * 2))
    def run(data):
        path.write_bytes(data)
        used(kind(str(path), str(fuzz_folder)))

    run()


IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
CELLS = {
    pa.string(): [None, "a", "../x", "yes", "no", "Q?", "", "a.parquet/image/0/0",
                  "a.parquet/image/²/0"],
    pa.binary(): [None, b"", b"\xff\xfe", b"yes"],
    pa.int64(): [None, 0, -1],
    pa.float64(): [None, 0.5, float("nan")],
    pa.bool_(): [None, True],
    pa.null(): [None],
    pa.date32(): [None, 1],
    pa.list_(pa.string()): [None, [], ["a", None], ["yes"]],
    pa.large_list(pa.int8()): [None, [1]],
    pa.map_(pa.string(), pa.string()): [None, [("a", "b")]],
    IMAGE: [None, {"bytes": picture(), "path": None}, {"bytes": None, "path": "a.png"},
            {"bytes": b"<html>", "path": "\0"}, {"bytes": None, "path": None}],
    pa.list_(IMAGE): [None, [], [None], [{"bytes": picture(), "path": None}] * 2,
                      [{"bytes": None, "path": "/etc/passwd"}]],
    pa.struct([("bytes", pa.int64()), ("path", pa.string())]): [None, {"bytes": 1, "path": "a"}],
    pa.struct([("bytes", pa.string()), ("path", pa.int64())]): [None, {"bytes": "x", "path": 1}],
    pa.struct([("path", pa.string())]): [{"path": "a"}],
    pa.dictionary(pa.int32(), pa.string()): [None, "yes"],
}  # fmt: skip
COLUMNS = ("image", "images", "question", "chosen", "rejected", "prompt", "a.b", "label", "text")
GOOD_COLUMNS = {
    "image": IMAGE, "question": pa.string(), "chosen": pa.string(), "rejected": pa.string(),
}  # fmt: skip


def table(rng) -> bytes:
    """Writes parquet with columns of any type, often with good ones under the names that matter."""
    kinds = {name: rng.choice(list(CELLS)) for name in rng.sample(COLUMNS, rng.randrange(4))}
    if rng.random() < 0.7:
        kinds = GOOD_COLUMNS | kinds
    num = rng.randrange(4)
    columns = {
        name: pa.array([rng.choice(CELLS[kind]) for _ in range(num)], kind)
        for name, kind in kinds.items()
    }
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, row_group_size=2)
    return file.getvalue() if rng.random() < 0.6 else damaged(rng, file.getvalue())


@pytest.mark.parametrize(
    "kind", [HfParquet, preferences.RlaifVPairs, messages.TrlPairs], ids=lambda k: k.__name__
)
def test_parquet_of_any_schema(fuzz_folder, kind):
    path = fuzz_folder / "a.parquet"
    source = kind(str(path), image_root=str(fuzz_folder))

    @inputs(table)
    def run(data):
        path.write_bytes(data)
        used(source)

    run()


def test_names_of_images(fuzz_folder):
    @inputs(lambda rng: "/".join(rng.choices([*HOSTILE, "..", anything(rng)], k=3)))
    def run(name):
        with clean():
            found = resolve_image(fuzz_folder, name).resolve()
            assert found.is_relative_to(fuzz_folder.resolve())

    run()


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "JPEG2000"])
def test_damaged_images(format_):
    @inputs(lambda rng: damaged(rng, picture(format_)))
    def run(data):
        with clean(), warnings.catch_warnings():
            decoded = decode_image(data)
            assert decoded.dtype == np.uint8
            assert decoded.shape[-1] == 3

    run()


def test_runs_own_files(fuzz_folder):
    """Rollouts may be as a kill, a disk or a hand leaves them."""
    path = fuzz_folder / "rollouts.jsonl"

    @inputs(lambda rng: damaged(rng, b'{"id": "a", "clean": "x"}\n' * 3))
    def run(data):
        path.write_bytes(data)
        with clean():
            assert len(files.read_lines(path)) <= data.count(b"\n")

    run()


# --- text -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer(["USER", "ASSISTANT", ":", "What", "is", "this", "?", "A", "chat", "."])


def test_templates_and_encoder(tokenizer):
    words = [*HOSTILE, "What", "is", "this", "<image>", "\n", "<unk>"]

    def text(rng):
        return " ".join(rng.choices(words, k=rng.randrange(4)))

    @inputs(
        text, lambda rng: rng.randrange(3), lambda rng: [text(rng)] * 2,
        lambda rng: rng.randrange(1, 60),
    )  # fmt: skip
    def run(question, num_images, answers, length):
        with clean():
            tree = Encoder(tokenizer, Template(""), 4, one_layout(3), length).encode(
                View(asked(question, num_images), tuple(answers))
            )
            assert (tree.trunk == 4).sum() == 3 * num_images
            assert all(len(tree.trunk) + len(b) <= length for b in tree.branches)

    run()


def test_templates_of_any_words(tokenizer):
    words = [*HOSTILE, "USER", "A chat.", "</s>", "</s>", "<image>"]

    @inputs(lambda rng: rng.choices(words, k=5))
    def run(parts):
        with clean():
            coder = Encoder(tokenizer, Template(*parts), 4, one_layout(3), 50)
            coder.encode(View(asked("What is this?"), ("A",)))

    run()
