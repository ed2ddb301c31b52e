"""Images inside data files: the Hub's parquet, TFDS without TensorFlow, and our ArrayRecord."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers_formats import encoded

from seva_jax.data.embedded import HfParquet, TfdsPrompts
from seva_jax.data.preferences import SevaPairs
from seva_jax.data.records import ArrayRecordPairs, ArrayRecordPrompts, build
from seva_jax.types import DataError, ExampleError, Prompt
from seva_jax.worlds import WorldPrompts


def levels(found):
    return [[int(found.load_image(n)[0, 0, 0]) for n in p.images] for p in found.prompts]


# --- parquet --------------------------------------------------------------------------------------


def test_parquet_of_the_hub(tmp_path):
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema(
        [("image", image), ("question", pa.string()), ("answers", pa.list_(pa.string()))]
    )
    rows = [
        {"image": {"bytes": encoded(i), "path": "x.png"}, "question": f"Q{i}?", "answers": ["a"]}
        for i in range(5)
    ] + [{"image": None, "question": "Q?", "answers": []}]
    rows += [{"image": {"bytes": encoded(9), "path": None}, "question": None, "answers": []}]
    path = tmp_path / "data" / "train-00000-of-00001.parquet"
    path.parent.mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema), path, row_group_size=3)
    for where in (path, tmp_path):  # the file, or the folder of a downloaded repository
        found = HfParquet(str(where)).open()
        assert levels(found) == [[0], [1], [2], [3], [4]]
        assert found.drops == {"no image": 1, "no question": 1}
    assert found.prompts[1].question == "Q1?"
    assert found.prompts[1].meta == {"answers": ["a"]}
    asked = HfParquet(str(path), question="", questions=("What?", "Where?"), limit=2).open()
    assert [(p.id, p.question) for p in asked.prompts] == [
        ("0#0", "What?"), ("0#1", "Where?"), ("1#0", "What?"), ("1#1", "Where?"),
    ]  # fmt: skip
    with pytest.raises(DataError, match=r"no column 'text'; it has image, question, answers"):
        HfParquet(str(path), question="text").open()
    with pytest.raises(DataError, match="there are no questions"):
        HfParquet(str(path), question="").open()


# --- TFDS -----------------------------------------------------------------------------------------


def test_tfds(tiny_pictures):
    found = TfdsPrompts("pictures", data_dir=tiny_pictures).open()
    assert [p.question for p in found.prompts] == ["Describe this image in detail."] * 3
    assert sorted(levels(found)) == [[0], [10], [20]]
    asked = TfdsPrompts("pictures:1.0.0", "train[:2]", tiny_pictures, question="question").open()
    greys = [grey for (grey,) in levels(asked)]
    assert [p.question for p in asked.prompts] == [f"Wie groß ist {g // 10}?" for g in greys]
    assert "tensorflow" not in sys.modules
    several = TfdsPrompts("pictures", data_dir=tiny_pictures, question="asked", limit=1).open()
    assert [p.id for p in several.prompts] == ["0#0", "0#1"]
    assert several.read_image is not None
    assert several.read_image("0") == encoded(greys[0])
    with pytest.raises(ExampleError) as caught:
        found.load_image("3")
    assert caught.value.reason == "missing image"


@pytest.mark.slow
def test_tfds_images_are_read_by_other_processes(tiny_pictures):
    """`--train.read-processes` sends the function that reads images, by cloudpickle."""
    send = (
        "import cloudpickle, sys; from seva_jax.data import TfdsPrompts; "
        "data = TfdsPrompts('pictures', data_dir=sys.argv[1]).open(); "
        "sys.stdout.buffer.write(cloudpickle.dumps(data.load_image))"
    )
    read = "import cloudpickle, sys; print(cloudpickle.load(sys.stdin.buffer)('1')[0, 0, 0])"
    command = [sys.executable, "-c"]
    sent = subprocess.run([*command, send, tiny_pictures], stdout=subprocess.PIPE, check=True)
    shown = subprocess.run([*command, read], input=sent.stdout, capture_output=True, check=True)
    expected = TfdsPrompts("pictures", data_dir=tiny_pictures).open().load_image("1")[0, 0, 0]
    assert int(shown.stdout) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "nothing"}, "TFDS nothing, split train: .*array_record"),
        ({"split": "test"}, "split test"),
        ({"image": "picture"}, "no feature 'picture'; it has image, question"),
        ({"image": "label"}, "'label' is not an image"),
        ({"questions": ()}, "there are no questions"),
        ({"question": "label"}, "no usable prompt"),
    ],
)
def test_tfds_that_cannot_be_read(tiny_pictures, change, message):
    with pytest.raises(DataError, match=message):
        TfdsPrompts(**{"name": "pictures", "data_dir": tiny_pictures} | change).open()


# --- ArrayRecord ----------------------------------------------------------------------------------


def test_build_and_read_pairs(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for name, data in (("a.png", encoded(1)), ("b.jpg", encoded(2)), ("c.png", b"<html>")):
        (images / name).write_bytes(data)
    pairs = [
        {"chosen": "yes", "reject": "no", "question": f"Q{i}?", "image_id": name}
        for i, name in enumerate(("a.png", "b.jpg", "a.png", "c.png", "gone.png"))
    ]
    (tmp_path / "s.json").write_text(json.dumps(pairs))
    source = SevaPairs(str(tmp_path / "s.json"), str(images))
    before, seen = source.open(), []
    index = build(before, tmp_path / "out", "SevaPairs", seen.append)
    assert index | {"bytes": 0} == {
        "kind": "pairs", "source": "SevaPairs", "examples": 3, "images": 2, "bytes": 0,
        "drops": {"missing image": 1, "unreadable image": 1},
    }  # fmt: skip
    assert json.loads((tmp_path / "out" / "index.json").read_text()) == index
    assert seen == [1] * 4
    (images / "a.png").unlink()
    after = ArrayRecordPairs(str(tmp_path / "out")).open()
    assert list(after.comparisons) == list(before.comparisons)[:3]
    assert levels(after) == [[1], [2], [1]]
    with pytest.raises(DataError, match=r"out holds pairs, not prompts; use ArrayRecordPairs"):
        ArrayRecordPrompts(str(tmp_path / "out")).open()
    with pytest.raises(DataError, match="out exists; give a new folder"):
        build(before, tmp_path / "out", "", seen.append)
    with pytest.raises(DataError, match=r"images: no index.json there"):
        ArrayRecordPairs(str(images)).open()
    with pytest.raises(ExampleError) as caught:
        after.load_image("c.png")
    assert caught.value.reason == "missing image"


def test_build_prompts_that_are_drawn(tmp_path):
    """Prompts without image files and their drawn images can be stored; meta survives."""
    world = WorldPrompts(num=4)
    before = world.open()
    build(before, tmp_path / "out", "world", lambda n: None)
    after = ArrayRecordPrompts(str(tmp_path / "out")).open()
    assert list(after.prompts) == list(before.prompts)
    for prompt in after.prompts:
        (name,) = prompt.images
        np.testing.assert_array_equal(after.load_image(name), before.load_image(name))


def test_build_without_images(tmp_path):
    (tmp_path / "q.parquet").touch()
    pq.write_table(pa.table({"question": ["Why?"], "image": [[]]}), tmp_path / "q.parquet")
    before = HfParquet(str(tmp_path / "q.parquet")).open()
    build(before, tmp_path / "out", "", lambda n: None)
    after = ArrayRecordPrompts(str(tmp_path / "out")).open()
    assert list(after.prompts) == [Prompt("0#0", "Why?", ())]
