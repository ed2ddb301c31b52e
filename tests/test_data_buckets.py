"""Data in a bucket of a real emulator: the same examples, drops and images as on a disk."""

import dataclasses
import itertools
import json
import pickle
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers_formats import all_batches, encoded, pair_sources, prompt_sources

from seva_jax.batches.image_inputs import FeatureCache
from seva_jax.data import HfParquet, ImageFolder, MapFolder, QuestionsJsonl, TfdsPrompts
from seva_jax.data.__main__ import main
from seva_jax.data.detect import detect
from seva_jax.images.folder import ImageFiles
from seva_jax.runtime.copies import upload
from seva_jax.runtime.read_ahead import read_ahead
from seva_jax.runtime.store_client import StoreError
from seva_jax.types import DataError, ExampleError


def moved(source, folder, there):
    """Returns a source whose files are those of another place."""
    if hasattr(source, "sources"):
        parts = tuple(moved(part, folder, there) for part in source.sources)
        return dataclasses.replace(source, sources=parts)
    texts = {f.name: getattr(source, f.name) for f in dataclasses.fields(source)}
    changed = {
        name: f"{there}{text.removeprefix(str(folder))}"
        for name, text in texts.items()
        if isinstance(text, str) and text.startswith(str(folder))
    }
    assert changed
    return dataclasses.replace(source, **changed)


def assert_equal(here, there):
    """Asserts that two data sets have the same examples, drops and images."""
    assert there.prompts == here.prompts
    assert getattr(there, "comparisons", None) == getattr(here, "comparisons", None)
    assert (there.drops, there.notes) == (here.drops, here.notes)
    examples = getattr(here, "comparisons", here.prompts)
    names = {name for example in examples for name in example.images}
    assert names
    for name in names:
        assert there.read_image(name) == here.read_image(name)
        np.testing.assert_array_equal(there.load_image(name), here.load_image(name))
        assert there.image_size(name) == here.load_image(name).shape[:2]


@pytest.fixture
def staged(tmp_path):
    """Returns the folder with copies of a bucket's objects; see the fixture `bucket`."""
    return tmp_path / "staged"


def test_every_format_is_read_as_from_a_disk(tmp_path, bucket, staged, tiny_pictures):
    """Only TFDS is refused, with what to do; ArrayRecord alone is copied to the disk."""
    folder = tmp_path / "data"
    folder.mkdir()
    sources = [*pair_sources(folder), *prompt_sources(folder, str(tiny_pictures))]
    upload(folder, bucket)
    for source in sources:
        if not isinstance(source, TfdsPrompts):
            there = moved(source, folder, bucket).open()
            assert_equal(source.open(), there)
            assert there.remote == (not type(source).__name__.startswith("ArrayRecord"))
    names = {path.name for path in staged.rglob("*") if path.is_file()}
    assert names == {"images.array_record", "examples.array_record"}


def test_tfds_is_refused_with_what_to_do():
    """TFDS would read ArrayRecord where it is, which works on disks only."""
    with pytest.raises(DataError, match="gcloud storage cp -r gs://b/tfds DIR"):
        TfdsPrompts("pictures", data_dir="gs://b/tfds").open()


ODD = ("a b.png", "c#1.png", "d%20.png", "e?x=1.png", "f[1]*.png", "g ü.png")


def test_names_are_found_by_the_rules_for_disks(tmp_path, bucket):
    """Other extensions, odd characters, and ways out."""
    names = (*ODD, "x/1.gif", "x/2.JPG", "x/3", "y/deep/4.png", "5.txt")
    for number, name in enumerate(names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes([number]))
    upload(tmp_path, bucket)
    here, there = ImageFiles(tmp_path), ImageFiles(bucket)
    assert there.names() == here.names() != []
    asked = ("x/1.jpg", "x/2.png", "x/3.jpg", "x/1.gif.jpg", "./x//1.gif", "y/deep/4.png", *ODD)
    for name in asked:
        assert there.find(name) == here.find(name)
        assert there.read(name) == here.read(name)
    for name in ("../a b.png", "/etc/passwd", "x\0", "no.png", "", "x", "n" * 5000, "\ud800.png"):
        reasons = []
        for files in (here, there):
            with pytest.raises(ExampleError) as caught:
                files.read(name)
            reasons.append(caught.value.reason)
            with pytest.raises(ExampleError) as caught:
                files.size(name)
            assert caught.value.reason == reasons[-1]
        assert reasons[0] == reasons[1], name


def image_folder(folder, num, level=0):
    """Writes images in folders of ten, and returns their names."""
    names = [f"{i // 10}/{i}.png" for i in range(num)]
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(level + i))
    return names


def questions(folder, names):
    """Writes a question about every image, and returns the file."""
    lines = [{"id": i, "question": "Q?", "image": name} for i, name in enumerate(names)]
    (folder / "q.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder / "q.jsonl"


def test_a_folder_is_listed_once_and_no_name_is_asked_for(tmp_path, proxied, proxy):
    """Looking up 200 images takes a listing for each of 16 folders, and then one of all."""
    names = image_folder(tmp_path / "images", 200)
    upload(tmp_path / "images", proxied / "images")
    file = questions(tmp_path, [*names, "0/missing.png"])
    proxy.seen.clear()
    data = QuestionsJsonl(str(file), str(proxied / "images")).open()
    assert data.drops == {"missing image": 1}
    assert len(proxy.seen) <= 2 * 17 + 4
    proxy.seen.clear()
    loader = pickle.loads(pickle.dumps(data.read_image))  # as for a process that prepares batches
    assert loader(names[7]) == (tmp_path / "images" / names[7]).read_bytes()
    assert len(proxy.seen) == 1
    proxy.seen.clear()
    assert data.image_size(names[8]) == (32, 32)
    assert len(proxy.seen) == 1


def test_an_object_that_is_gone_is_a_missing_image(tmp_path, bucket):
    """It was there when the data was opened."""
    names = image_folder(tmp_path / "images", 2)
    upload(tmp_path / "images", bucket)
    data = ImageFolder(str(bucket)).open()
    (bucket / names[0]).unlink()
    with pytest.raises(ExampleError) as caught:
        data.load_image(names[0])
    assert caught.value.reason == "missing image"
    assert data.load_image(names[1]).shape == (32, 32, 3)


def test_refused_images_end_the_command_with_one_line(tmp_path, proxied, proxy, capsys):
    """They are not counted as unreadable."""
    names = image_folder(tmp_path / "images", 3)
    upload(tmp_path / "images", proxied)
    proxy.inject(403, times=100, match=r"alt=media")
    with pytest.raises(SystemExit) as caught:
        main(["check", str(questions(tmp_path, names)), "--image-root", str(proxied)])
    said = str(caught.value) + capsys.readouterr().err
    assert "these credentials may not do this" in said
    assert "Traceback" not in said


def test_overload_is_waited_for(tmp_path, proxied, proxy):
    """A few 503 and cut connections change nothing."""
    names = image_folder(tmp_path / "images", 3)
    upload(tmp_path / "images", proxied)
    data = ImageFolder(str(proxied)).open()
    proxy.inject(503, times=2, match=r"alt=media")
    proxy.inject("cut", times=1, match=r"alt=media")
    assert data.read_image is not None
    for name in names:
        assert data.read_image(name) == (tmp_path / "images" / name).read_bytes()


def test_the_command_checks_converts_and_builds_in_a_bucket(tmp_path, bucket, staged, capsys):
    """Results are whole objects that can be read again."""
    names = image_folder(tmp_path / "images", 3)
    upload(tmp_path / "images", bucket / "images")
    upload(questions(tmp_path, names), bucket / "q.jsonl")
    file, root = str(bucket / "q.jsonl"), ("--image-root", str(bucket / "images"))
    main(["check", file, *root])
    said = capsys.readouterr().out
    assert "prompts  3 usable of 3" in said
    assert f"path={file!r}" in said
    main(["show", file, *root])
    assert "32 x 32" in capsys.readouterr().out
    out = bucket / "out"
    main(["convert", file, str(out / "p.parquet"), "--to", "trl", *root])
    images = ("--images", str(out / "images"))
    main(["convert", file, str(out / "l.jsonl"), "--to", "jsonl", *images, *root])
    main(["build", file, str(out / "built"), *root])
    assert sorted((out / "images").below()) == [f"0000000{i}.png" for i in range(3)]
    for path in ("l.jsonl", "built"):
        found = detect(str(out / path), str(out / "images")).sources[0].open()
        assert found.read_image is not None
        assert [found.read_image(p.images[0]) for p in found.prompts] == [
            (tmp_path / "images" / name).read_bytes() for name in names
        ]
    with pytest.raises(SystemExit, match="exists"):
        main(["build", file, str(out / "built"), *root])


def test_features_are_kept_in_a_bucket(tmp_path, proxied, proxy):
    """One listing says what is lacking; a damaged object is named."""
    cache = FeatureCache(proxied, (2, 3), np.float32)
    features = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    keys = ["aa11", "ab22", "cc33"]
    for key in keys[:2]:
        cache.write(key, features)
    proxy.seen.clear()
    assert cache.lacking(keys) == ["cc33"]
    assert not proxy.count(r"(aa/11|ab/22|cc/33)\.npz")
    np.testing.assert_array_equal(cache.read("aa11"), features)
    (proxied / "ab" / "22.npz").write_bytes(b"x")
    with pytest.raises(DataError, match=r"ab/22\.npz: not the features"):
        cache.read("ab22")
    with pytest.raises(DataError, match=r"cc/33\.npz"):
        cache.read("cc33")


def test_maps_are_read_from_a_bucket(tmp_path, bucket):
    """Arrays and grey images."""
    np.save(tmp_path / "a.npy", np.eye(4))
    (tmp_path / "b.png").write_bytes(encoded(255))
    (tmp_path / "c.npy").write_bytes(b"no array")
    upload(tmp_path, bucket)
    here, there = MapFolder(str(tmp_path)), MapFolder(str(bucket))
    for name in ("a.jpg", "b.jpg"):
        np.testing.assert_array_equal(there.load(name), here.load(name))
    for name, reason in (("c.png", "unreadable mask"), ("d.png", "missing mask")):
        with pytest.raises(ExampleError) as caught:
            there.load(name)
        assert caught.value.reason == reason


# --- reading ahead --------------------------------------------------------------------------------


def test_reading_ahead_keeps_order_and_bounds():
    """Reads several items at a time, and begins no more than `ahead` before they are needed."""
    begun, together = [], threading.Barrier(4)

    def read(item):
        begun.append(item)
        if item < 4:
            together.wait(10)
        return -item

    read_items = read_ahead(read, itertools.count(), 4, 6)
    assert [next(read_items) for _ in range(10)] == [-i for i in range(10)]
    read_items.close()
    assert max(begun) <= 10 + 6


def test_an_error_comes_at_its_item():
    """What was read before it is yielded."""

    def read(item):
        if item == 3:
            raise StoreError("item 3")
        return item

    read_items = read_ahead(read, range(10), 4, 8)
    assert [next(read_items) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(StoreError, match="item 3"):
        next(read_items)


@pytest.mark.parametrize("processes", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_batches_are_those_of_a_disk(tmp_path, bucket, staged, processes):
    """Also if other processes read them."""

    def to_bucket(source):
        upload(tmp_path / "b", bucket)
        return moved(source, tmp_path / "b", bucket)

    for name in "ab":
        (tmp_path / name).mkdir()
    here = all_batches(tmp_path / "a")
    there = all_batches(tmp_path / "b", to_bucket)
    assert there.rows.images.remote
    reader = there.iterate(processes)
    for a, b in zip(list(reader), list(here.iterate()), strict=True):
        for name, x, y in zip(a._fields, a, b, strict=True):
            np.testing.assert_array_equal(x, y, err_msg=name)
    reader.close()


@pytest.mark.parametrize("processes", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_batches_whose_images_are_refused(tmp_path, proxied, proxy, staged, processes):
    """An error of the store reaches the caller as it is: no example is left out."""

    def to_bucket(source):
        upload(tmp_path / "b", proxied)
        return moved(source, tmp_path / "b", proxied)

    (tmp_path / "b").mkdir()
    reader = all_batches(tmp_path / "b", to_bucket).iterate(processes)
    proxy.inject(403, times=1000, match="alt=media")
    with pytest.raises(StoreError, match="these credentials may not do this") as caught:
        list(reader)
    assert "\n" not in str(caught.value)
    reader.close()


def test_parquet_that_is_refused_is_not_taken_for_damage(tmp_path, proxied, proxy, staged):
    """Neither when the file is opened, nor when its rows or an image are read."""
    file = tmp_path / "p.parquet"
    images = [{"bytes": encoded(i), "path": None} for i in range(3)]
    rows = {"image": images, "question": ["Q?"] * 3}
    pq.write_table(pa.table(rows), file, row_group_size=1)
    upload(file, proxied / "p.parquet")
    source = HfParquet(str(proxied / "p.parquet"), "image", "question")
    data = source.open()
    read_image = data.read_image
    assert read_image is not None
    for passed in range(4):
        proxy.inject(None, times=passed, match="alt=media")
        proxy.inject(403, times=1000, match="alt=media")
        with pytest.raises(StoreError, match="these credentials may not do this"):
            source.open()
        proxy.forgive()
    source.open()
    proxy.inject(403, times=1000, match="alt=media")
    with pytest.raises(StoreError, match="these credentials may not do this"):
        read_image(data.prompts[1].images[0])
