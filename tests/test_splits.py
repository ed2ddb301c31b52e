"""Which split a file of a folder belongs to, and that several are not read as one by accident."""

from __future__ import annotations

import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers_formats import encoded

from seva_jax.data.columns import Columns
from seva_jax.data.detect import FORMATS
from seva_jax.data.embedded import HfParquet
from seva_jax.data.files import ImageFolder
from seva_jax.data.preferences import RlaifVPairs
from seva_jax.data.splits import shard_split
from seva_jax.data.trajectories import TrajectoryPairs
from seva_jax.types import DataError

# Names as the Hub's data sets have them. `datasets.data_files.get_data_patterns` of the library
# `datasets` 5.2 takes each for the same split (it calls "val" and "dev_small" validation), except
# that the Hub's automatic conversion (the branch `refs/convert/parquet`) names folders by splits,
# that case matters there, and that a lone file of no split is "train".
LAYOUTS = {
    "data/train-00000-of-00002.parquet": "train",
    "data/train-00001-of-00002-0a1b2c3d4e5f6a7b.parquet": "train",
    "data/test_sft-00000-of-00001.parquet": "test_sft",
    "data/test_sft-00000-of-00001-0a1b2c3d4e5f6a7b.parquet": "test_sft",
    "default/train/0000.parquet": "train",
    "default/partial-train/0011.parquet": "partial-train",
    "subset/dev_small/0000.parquet": "dev_small",
    "train.parquet": "train",
    "my_test_file.parquet": "test",
    "test-3.parquet": "test",
    "validation2.parquet": "validation",
    "val/part.parquet": "val",
    "some/Train/a.parquet": "Train",
    "RLAIF-V-Dataset_000.parquet": "",
    "latest.parquet": "",
    "trained/a.parquet": "",
    "0000.parquet": "",
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_names_of_files(name):
    assert shard_split(name) == LAYOUTS[name]


def rows(split):
    return pa.table(
        {
            "image": [[]] * 2,
            "question": [f"{split}?"] * 2,
            "chosen": ["a"] * 2,
            "rejected": ["b"] * 2,
        }
    )


def write(folder, files):
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows(shard_split(name)), folder / name)


@pytest.mark.parametrize("kind", [HfParquet, RlaifVPairs], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    "pattern",
    ["{}-00000-of-00001.parquet", "data/{}-00000-of-00001.parquet", "default/{}/0000.parquet",
     "{}.parquet", "{}/a.parquet"],
)  # fmt: skip
def test_several_splits_are_not_read_as_one(tmp_path, pattern, kind):
    """The refusal names them; one can be chosen, or several."""
    write(tmp_path, [pattern.format(x) for x in ("train", "validation", "test")])
    with pytest.raises(DataError, match=r"several splits \(test, train, validation\); choose one"):
        kind(str(tmp_path)).open()
    read = kind(str(tmp_path), split="train").open()
    assert [p.question for p in read.prompts] == ["train?"] * 2
    both = kind(str(tmp_path), split="train+test").open()
    assert sorted(p.question for p in both.prompts) == ["test?"] * 2 + ["train?"] * 2
    with pytest.raises(DataError, match=r"no split 'dev'; it has test, train, validation"):
        kind(str(tmp_path), split="dev").open()


@pytest.mark.parametrize("kind", [*FORMATS, Columns, HfParquet], ids=lambda kind: kind.__name__)
def test_every_reader_of_records_asks_for_the_split(tmp_path, kind):
    write(tmp_path, ["train-00000-of-00001.parquet", "test-00000-of-00001.parquet"])
    with pytest.raises(DataError, match=r"several splits \(test, train\); choose one"):
        kind(str(tmp_path)).open()
    with pytest.raises(DataError, match="no split 'dev'; it has test, train"):
        kind(str(tmp_path), split="dev").open()


def test_one_split_needs_no_choice(tmp_path):
    write(tmp_path, [f"data/train-0000{i}-of-00002.parquet" for i in range(2)])
    assert len(HfParquet(str(tmp_path)).open().prompts) == 4
    file = tmp_path / "data" / "train-00000-of-00002.parquet"
    assert len(HfParquet(str(file), split="train").open().prompts) == 2
    with pytest.raises(DataError, match="no split 'test'; it has train"):
        HfParquet(str(file), split="test").open()
    write(tmp_path / "plain", ["a.parquet", "b.parquet"])
    assert len(HfParquet(str(tmp_path / "plain")).open().prompts) == 4
    with pytest.raises(DataError, match="no split 'train'; no name says one"):
        HfParquet(str(tmp_path / "plain"), split="train").open()


def test_splits_of_trajectories(tmp_path):
    for name in ("train", "test"):
        step = [{"images": ["a.png"], "action": name}]
        both = {"steps": step, "score": 1.0}, {"steps": [{**step[0], "action": "x"}], "score": 0.0}
        table = pa.Table.from_pylist([{"id": "1", "task": "lift", "trajectories": list(both)}])
        pq.write_table(table, tmp_path / f"{name}.parquet")
    (tmp_path / "a.png").write_bytes(encoded(0))
    with pytest.raises(DataError, match=r"several splits \(test, train\)"):
        TrajectoryPairs(str(tmp_path), str(tmp_path)).open()
    read = TrajectoryPairs(str(tmp_path), str(tmp_path), split="test", window=1).open()
    assert read.comparisons[0].answers == ("test", "x")


def test_folders_of_images(tmp_path):
    """COCO's folders are splits; the names of files and of classes are not."""
    for name in ("train2017/1.jpg", "val2017/2.jpg", "vg/3.jpg", "vg/train.jpg", "vg/test.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(encoded(0))
    with pytest.raises(DataError, match=r"several splits \(train, val\)"):
        ImageFolder(str(tmp_path)).open()
    read = ImageFolder(str(tmp_path), split="train").open()
    assert [p.images for p in read.prompts] == [("train2017/1.jpg",)]
    assert len(ImageFolder(str(tmp_path / "vg")).open().prompts) == 3
    (tmp_path / "val2017" / "2.jpg").unlink()
    assert len(ImageFolder(str(tmp_path)).open().prompts) == 4  # one split, and images of none


def test_a_file_of_records_may_be_of_the_split(tmp_path):
    pair = {"images": [], "prompt": "Q?", "question": "Q?", "chosen": "a", "rejected": "b"}
    (tmp_path / "train.jsonl").write_text(json.dumps(pair | {"image": []}))
    (tmp_path / "test.jsonl").write_text(json.dumps(pair | {"image": []}))
    source = RlaifVPairs(str(tmp_path / "train.jsonl"), str(tmp_path), split="train")
    assert len(source.open().prompts) == 1
    with pytest.raises(DataError, match=re.escape("train.jsonl: there is no split 'test'")):
        RlaifVPairs(str(tmp_path / "train.jsonl"), str(tmp_path), split="test").open()
    with pytest.raises(DataError, match=r"no \.parquet files below this folder; give a file"):
        RlaifVPairs(str(tmp_path), str(tmp_path)).open()
