"""Symbolic links in image folders: refused by default, followed where a config allows it."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import inspect
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_formats import FORMATS, LISTS, encoded
from helpers_suites import every_suite
from test_config import config_classes

from seva_jax.config.config_files import read_config
from seva_jax.data.embedded import HfParquet
from seva_jax.data.files import ImageFolder, QuestionsJsonl
from seva_jax.data.preferences import HaDpoPairs, VLFeedbackPairs
from seva_jax.data.regions import MapFolder
from seva_jax.data.trajectories import TrajectoryPairs
from seva_jax.evals.suites.multiple_choice import MMBench
from seva_jax.types import DataError, ExampleError, Prompt

STEPS = [
    {"steps": [{"image": "x/a.png", "action": action}] * 8, "score": score}
    for action, score in (("up", 1), ("down", 0))
]
KINDS = FORMATS | {TrajectoryPairs: {"id": "1", "task": "lift", "trajectories": STEPS}}


@pytest.fixture
def folder(tmp_path):
    """Writes `images`, whose folder `x` is a link to `disk/coco`; `disk/secret.png` is near it."""
    (tmp_path / "images").mkdir()
    (tmp_path / "disk" / "coco").mkdir(parents=True)
    (tmp_path / "disk" / "coco" / "a.png").write_bytes(encoded(7))
    (tmp_path / "disk" / "secret.png").write_bytes(encoded(9))
    (tmp_path / "images" / "x").symlink_to(tmp_path / "disk" / "coco")
    return tmp_path


def allowance(message):
    """Returns the setting that an error proposes."""
    proposed = re.search(r"set link_roots=(\(.*?\))", str(message))
    assert proposed
    return ast.literal_eval(proposed.group(1))


def source_of(kind, folder, name):
    """Writes a file of one record that names an image, and returns its source."""
    record: dict[str, Any] = dict(KINDS[kind])
    options: dict[str, Any] = {}
    if kind is VLFeedbackPairs:
        options, field = {"aspects": ("Helpfulness",)}, "img_path"
    elif kind is HaDpoPairs:
        options, field = {"folders": ("",)}, "image_id"
    else:
        field = next((f for f in ("image_id", "image", "images") if f in record), "")
    if field:
        record[field] = [name] if field == "images" else name
    (folder / "d.json").write_text(json.dumps([record] if kind in LISTS else record))
    return kind(str(folder / "d.json"), str(folder / "images"), **options)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_reader_follows_links_only_where_allowed(folder, kind):
    """The error proposes exactly what is needed, and it opens no more than that."""
    source = source_of(kind, folder, "x/a.png")
    with pytest.raises(DataError, match=r"\(1 unsafe image path\).*but x is a symbolic") as caught:
        source.open()
    allowed = allowance(caught.value)
    assert allowed == (str(folder / "disk" / "coco"),)
    data = dataclasses.replace(source, link_roots=allowed).open()
    names = [
        name for view in getattr(data, "comparisons", data.prompts)[:1] for name in view.images
    ]
    assert {int(data.load_image(name)[0, 0, 0]) for name in names} == {7}
    (folder / "disk" / "coco" / "a.png").unlink()
    (folder / "disk" / "coco" / "a.png").symlink_to(folder / "disk" / "secret.png")
    with pytest.raises(DataError, match=r"\(1 unsafe image path\).*x/a.png is a symbolic link"):
        dataclasses.replace(source, link_roots=allowed).open()
    for missing in ("", str(folder / "nowhere")):
        with pytest.raises(DataError, match=f"link_roots: '{missing}' is not a folder"):
            dataclasses.replace(source, link_roots=(missing,)).open()


def test_every_config_with_an_image_folder_has_the_allowance():
    kinds = {kind for kind in config_classes() if inspect.signature(kind).parameters}
    fields = {kind: {f.name for f in dataclasses.fields(kind)} for kind in kinds}
    readers = [kind for kind in kinds if "image_root" in fields[kind]]
    assert len(readers) > 15
    assert [
        kind for kind in [*readers, ImageFolder, MapFolder] if "link_roots" not in fields[kind]
    ] == []


def test_a_folder_of_images(folder):
    """Linked folders are walked where allowed, once; others are counted, not passed over."""
    (folder / "images" / "b.png").write_bytes(encoded(8))
    (folder / "images" / "self").symlink_to(folder / "images")
    (folder / "disk" / "coco" / "again").symlink_to(folder / "disk" / "coco")
    found = ImageFolder(str(folder / "images")).open()
    assert [p.images for p in found.prompts] == [("b.png",)]
    assert found.drops == {"unsafe image path": 1}
    roots = allowance(found.left_out[0])
    found = ImageFolder(str(folder / "images"), link_roots=roots).open()
    assert [p.images for p in found.prompts] == [("b.png",), ("x/a.png",)]
    assert not found.drops


def hub_cache(folder, files):
    """Writes files as huggingface_hub's cache holds a data set, and returns the snapshot."""
    repository = folder / "datasets--someone--something"
    snapshot = repository / "snapshots" / ("0" * 40)
    (repository / "blobs").mkdir(parents=True)
    for name, data in files.items():
        path = snapshot / name
        path.parent.mkdir(parents=True, exist_ok=True)
        blob = hashlib.sha256(data).hexdigest()
        (repository / "blobs" / blob).write_bytes(data)
        up = "../" * (len(Path(name).parts) + 1)
        path.symlink_to(f"{up}blobs/{blob}")
    return snapshot


def test_a_data_set_in_the_cache_of_the_hub(tmp_path):
    """One allowance opens all images of a snapshot; data files need none."""
    lines = [{"id": i, "question": "Q?", "image": f"sub/{i}.png"} for i in range(2)]
    table = "".join(json.dumps(line) + "\n" for line in lines).encode()
    images = {f"images/sub/{i}.png": encoded(i) for i in range(2)}
    snapshot = hub_cache(tmp_path, {"questions.jsonl": table} | images)
    source = QuestionsJsonl(str(snapshot / "questions.jsonl"), str(snapshot / "images"))
    with pytest.raises(DataError) as caught:
        source.open()
    roots = allowance(caught.value)
    assert roots == (str(tmp_path / "datasets--someone--something" / "blobs"),)
    for allowed in (source, ImageFolder(str(snapshot))):
        data = dataclasses.replace(allowed, link_roots=roots).open()
        assert [int(data.load_image(p.images[0])[0, 0, 0]) for p in data.prompts] == [0, 1]


def test_suites(folder):
    """The images of every suite that reads them from files may lie behind a link."""
    suites = every_suite(folder / "disk", num=2)
    tried = 0
    for suite in suites:
        if isinstance(suite, MMBench):
            continue  # its images are in its table
        (folder / suite.name).mkdir()
        for path in Path(suite.image_root).iterdir():
            (folder / suite.name / path.name).symlink_to(path)
        linked = dataclasses.replace(suite, image_root=str(folder / suite.name))
        (name, *_) = next(p.images for p in linked.open().prompts if p.images)
        with pytest.raises(ExampleError, match="is a symbolic link") as caught:
            linked.open().load_image(name)
        assert caught.value.reason == "unsafe image path"
        roots = allowance(caught.value)
        there = suite.open().load_image(name)
        followed = dataclasses.replace(linked, link_roots=roots).open().load_image(name)
        np.testing.assert_array_equal(there, followed)
        tried += 1
    assert tried >= 7


def test_maps(tmp_path):
    """A map keeps its name and kind where the file behind it has no extension."""
    mask = np.eye(3, dtype=np.float32)
    np.save(tmp_path / "m.npy", mask)
    snapshot = hub_cache(tmp_path, {"maps/a.npy": (tmp_path / "m.npy").read_bytes()})
    prompt = Prompt("p", "q", ("a.png",))
    with pytest.raises(ExampleError) as caught:
        MapFolder(str(snapshot / "maps")).name(prompt, "a.png")
    assert caught.value.reason == "unsafe mask path"
    maps = MapFolder(str(snapshot / "maps"), link_roots=allowance(caught.value))
    assert maps.name(prompt, "a.png") == "a.npy"
    np.testing.assert_array_equal(maps.load("a.npy"), mask)
    with pytest.raises(DataError, match="link_roots: 'nowhere' is not a folder"):
        MapFolder(str(tmp_path), link_roots=("nowhere",)).name(prompt, "a.png")


def test_a_config_file_names_the_roots(folder, monkeypatch):
    """`~` stands for the home directory in them, as in every path of a config."""
    monkeypatch.setenv("HOME", str(folder))
    (folder / "q.jsonl").write_text(json.dumps({"id": 1, "question": "Q?", "image": "x/a.png"}))
    (folder / "c.py").write_text(
        "import dataclasses\n"
        "from seva_jax.config import Experiment\n"
        "from seva_jax.config.config_files import config_directory, read_config\n"
        "from seva_jax.data import QuestionsJsonl\n"
        "def get_config():\n"
        "    source = QuestionsJsonl('~/q.jsonl', '~/images', link_roots=('~/disk/coco',))\n"
        "    tiny = read_config(config_directory() / 'tiny.py')\n"
        "    return dataclasses.replace(tiny, prompts=source)\n"
    )
    assert read_config(folder / "c.py").prompts.open().prompts[0].images == ("x/a.png",)


def test_parquet_behind_links(folder):
    """Image names in parquet follow the same rule."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    snapshot = hub_cache(folder, {})
    (folder / "disk" / "t").mkdir()
    pq.write_table(
        pa.table({"image": ["x/a.png"], "question": ["Q?"]}), folder / "disk" / "t" / "t.parquet"
    )
    snapshot.mkdir(parents=True)
    (snapshot / "data").symlink_to(folder / "disk" / "t")
    source = HfParquet(str(snapshot), image_root=str(folder / "images"))
    with pytest.raises(DataError, match=r"\(1 unsafe image path\)") as caught:
        source.open()
    data = dataclasses.replace(source, link_roots=allowance(caught.value)).open()
    assert int(data.load_image("x/a.png")[0, 0, 0]) == 7
