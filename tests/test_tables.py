"""Parquet as it lies around: columns of every type, images in several forms, messages that help."""

from __future__ import annotations

import datetime
import decimal
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers_formats import encoded

from seva_jax.data.embedded import HfParquet
from seva_jax.data.files import QuestionsJsonl
from seva_jax.data.messages import TrlPairs
from seva_jax.data.preferences import RlaifVPairs
from seva_jax.data.scores import ScoredPairs
from seva_jax.types import DataError, ExampleError

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
NOW = datetime.datetime(2026, 1, 2, 3, 4, 5)
NOT_UTF8 = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff\xfe"]).buffers())

# Columns that no reader asks for: type and value.
ODD = {
    "times": (pa.list_(pa.timestamp("us")), [NOW]),
    "blobs": (pa.list_(pa.binary()), [b"\xff", None]),
    "parts": (pa.list_(pa.struct([("raw", pa.binary())])), [{"raw": b"\xff"}, None]),
    "nested": (pa.list_(pa.list_(pa.struct([("at", pa.time64("us"))]))), [[{"at": None}], None]),
    "nan": (pa.float64(), float("nan")),
    "nans": (pa.list_(pa.float32()), [float("inf")]),
    "half": (pa.float16(), float("nan")),
    "raw": (pa.binary(), b"\xff\xfe"),
    "large": (pa.large_binary(), None),
    "fixed": (pa.binary(2), b"\xff\xfe"),
    "when": (pa.timestamp("ns", "UTC"), NOW),
    "day": (pa.date32(), NOW.date()),
    "long": (pa.duration("us"), datetime.timedelta(1)),
    "price": (pa.decimal128(5, 2), decimal.Decimal("1.50")),
    "map": (pa.map_(pa.string(), pa.timestamp("us")), [("a", NOW)]),
    "maps": (pa.list_(pa.map_(pa.string(), pa.string())), [[("a", "b")], None]),
    "none": (pa.null(), None),
    "nones": (pa.list_(pa.null()), [None]),
    "tensor": (pa.list_(pa.list_(pa.float32(), 2), 2), [[1.0, float("nan")], [0.0, 0.0]]),
    "second": (IMAGE, {"bytes": b"<html>", "path": "/etc/passwd"}),
    "others": (pa.list_(IMAGE), [None, {"bytes": None, "path": None}]),
    "huge": (pa.string(), "x" * 1_100_000),
    "a.b": (pa.timestamp("us"), NOW),
}


def rows_of(num):
    """Returns columns that are used, in the types that Arrow has for them."""
    images = [{"bytes": encoded(i), "path": f"{i}.png"} for i in range(num)]
    return {
        "image": pa.array(images, IMAGE),
        "question": pa.array([f"Q{i}?" for i in range(num)], pa.large_string()),
        "chosen": pa.array(["yes"] * num).dictionary_encode(),
        "rejected": pa.array(["no"] * num, pa.string_view()),
        "tags": pa.array([["a"]] * num, pa.large_list(pa.string())),
        "score": pa.array([0.5] * num, pa.float32()),
    }


def write(path, columns, size=2):
    pq.write_table(pa.table(columns), path, row_group_size=size)
    return str(path)


def levels(data):
    return [[int(data.load_image(n)[0, 0, 0]) for n in p.images] for p in data.prompts]


@pytest.mark.parametrize("name", [*ODD, "not_utf8", "all"])
@pytest.mark.parametrize("kind", [HfParquet, RlaifVPairs], ids=lambda kind: kind.__name__)
def test_columns_that_no_reader_uses(tmp_path, kind, name):
    """They neither end a run nor cost a row, whatever is in them."""
    odd = ODD if name == "all" else {name: ODD[name]} if name in ODD else {}
    columns = rows_of(3) | {
        key: pa.array([value] * 3, type_) for key, (type_, value) in odd.items()
    }
    if name in ("not_utf8", "all"):
        columns["bad"] = pa.chunked_array([NOT_UTF8] * 3)
    data = kind(write(tmp_path / "a.parquet", columns)).open()
    assert not data.drops
    assert levels(data) == [[0], [1], [2]]
    assert [p.question for p in data.prompts] == ["Q0?", "Q1?", "Q2?"]
    meta = data.prompts[0].meta
    assert meta["tags"] == ["a"]
    assert meta["score"] == 0.5
    assert meta.keys() - {"nones", "parts", "nested", "map"} <= {*rows_of(1), "nones"}
    json.dumps(meta, allow_nan=False)


@pytest.mark.parametrize("size", [1, 2, 1000])
def test_row_groups_of_any_size(tmp_path, size):
    """Rows and images keep their numbers across row groups and files, read in any order."""
    for shard in range(2):
        columns = {k: v[3 * shard : 3 * shard + 3] for k, v in rows_of(6).items()}
        write(tmp_path / f"part_{shard}.parquet", columns, size)
    data = HfParquet(str(tmp_path)).open()
    assert levels(data) == [[i] for i in range(6)]
    for i in (5, 0, 3, 2, 4, 1):
        (name,) = data.prompts[i].images
        assert int(data.load_image(name)[0, 0, 0]) == i


def test_the_layout_of_the_library_datasets(tmp_path):
    """Its files say in their metadata which columns are images; an Array2D is an extension type.

    Types and metadata are those that `Dataset.to_parquet` of `datasets` 5.2 writes.
    """
    features = {
        "image": {"_type": "Image"},
        "images": {"feature": {"_type": "Image"}, "_type": "List"},
        "question": {"dtype": "string", "_type": "Value"},
        "boxes": {"shape": [2, 2], "dtype": "float32", "_type": "Array2D"},
        "label": {"names": ["a", "b"], "_type": "ClassLabel"},
    }
    extension = {"ARROW:extension:name": "datasets.features.features.Array2DExtensionType"}
    boxes = pa.field("boxes", pa.list_(pa.list_(pa.float32())), metadata=extension)
    schema = pa.schema(
        [
            ("image", IMAGE), ("images", pa.list_(IMAGE)), ("question", pa.string()), boxes,
            ("label", pa.int64()),
        ],
        {"huggingface": json.dumps({"info": {"features": features}})},
    )  # fmt: skip
    rows = [
        {
            "image": {"bytes": encoded(i), "path": f"{i}.png"},
            "images": [{"bytes": encoded(10 + j), "path": None} for j in range(i)],
            "question": "Q?", "boxes": [[0.0, 1.0]] * 2, "label": 0,
        }
        for i in range(3)
    ]  # fmt: skip
    path = tmp_path / "train-00000-of-00001.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema), path, row_group_size=2)
    assert levels(HfParquet(str(path)).open()) == [[0], [1], [2]]
    assert levels(HfParquet(str(path), "images").open()) == [[], [10], [10, 11]]


@pytest.mark.parametrize(
    "kind",
    [
        pa.binary(), pa.large_binary(), pa.struct([("bytes", pa.binary())]),
        pa.struct([("path", pa.string()), ("bytes", pa.large_binary()), ("size", pa.int32())]),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize(
    "several", [None, pa.list_, pa.large_list], ids=["one", "list", "large_list"]
)
def test_other_forms_of_embedded_images(tmp_path, kind, several):
    """Plain bytes are images, as are structs with other fields than {bytes, path}."""
    cells = [encoded(i) for i in range(3)]
    if pa.types.is_struct(kind):
        cells = [{"bytes": cell} for cell in cells]
    values, expected = [*cells, None], [[0], [1], [2]]
    if several:
        values, expected = [cells[:1], cells[1:], [], None], [[0], [1, 2], []]
        kind = several(kind)
    columns = {"image": pa.array(values, kind), "question": pa.array(["Q?"] * 4)}
    data = HfParquet(write(tmp_path / "a.parquet", columns)).open()
    assert levels(data) == expected
    assert data.drops == {"no image": 1}
    assert data.left_out[0].endswith("list several, and it is empty")


def test_rows_that_name_files_among_rows_that_embed(tmp_path):
    (tmp_path / "b.png").write_bytes(encoded(5))
    cells = [{"bytes": encoded(4), "path": "a.png"}, {"bytes": None, "path": "b.png"}]
    cells += [{"bytes": None, "path": "../secret.png"}, {"bytes": None, "path": None}]
    columns = {"image": pa.array(cells, IMAGE), "question": pa.array(["Q?"] * 4)}
    data = HfParquet(write(tmp_path / "a.parquet", columns, 4), image_root=str(tmp_path)).open()
    names = [name for p in data.prompts for name in p.images]
    assert [int(data.load_image(name)[0, 0, 0]) for name in names[:2]] == [4, 5]
    for name, reason in zip(names[2:], ("unsafe image path", "missing image"), strict=True):
        with pytest.raises(ExampleError) as caught:
            data.load_image(name)
        assert caught.value.reason == reason


def test_text_in_a_column_of_another_type_is_named(tmp_path):
    """The message says what the column holds instead of a text."""
    columns = rows_of(2) | {
        "when": pa.array([NOW] * 2),
        "raw": pa.array([b"Q?"] * 2), "bad": pa.chunked_array([NOT_UTF8] * 2),
    }  # fmt: skip
    path = write(tmp_path / "a.parquet", columns)
    for name, what in (
        ("when", r"2 no question\).*when must be a text, and it is a column of timestamp\[us\]"),
        ("raw", r"2 no question\).*raw must be a text, and it is a column of binary"),
        ("bad", r"2 broken line\).*bad must be a text, and it is not UTF-8"),
        ("score", r"2 no question\).*score must be a text, not float"),
    ):
        with pytest.raises(DataError, match=what):
            HfParquet(path, question=name).open()
    columns["chosen"] = columns["when"]
    path = write(tmp_path / "a.parquet", columns)
    with pytest.raises(DataError, match=r"chosen answer is a column of timestamp"):
        RlaifVPairs(path).open()


def test_messages_beside_times(tmp_path):
    """What JSON can hold of a struct is read, the rest of it not."""
    said = pa.list_(
        pa.struct([("role", pa.string()), ("content", pa.string()), ("at", pa.date64())])
    )
    turns = {
        role: [{"role": role, "content": text, "at": NOW.date()}]
        for role, text in (("user", "Q?"), ("assistant", "yes"))
    }
    no = [{"role": "assistant", "content": "no", "at": None}]
    columns = {
        "images": pa.array([[{"bytes": encoded(3), "path": None}]], pa.list_(IMAGE)),
        "prompt": pa.array([turns["user"]], said), "chosen": pa.array([turns["assistant"]], said),
        "rejected": pa.array([no], said),
    }  # fmt: skip
    data = TrlPairs(write(tmp_path / "a.parquet", columns)).open()
    assert data.comparisons[0].answers == ("yes", "no")
    assert levels(data) == [[3]]


def test_a_number_that_is_used_must_be_one(tmp_path):
    """NaN where nothing uses it costs nothing; as a score it leaves the pair out."""
    columns = rows_of(3) | {"score": pa.array([0.5, float("nan"), 0.25])}
    source = RlaifVPairs(write(tmp_path / "a.parquet", columns))
    assert len(source.open().prompts) == 3
    scored = ScoredPairs(source, "score").open()
    assert [c.scores[1] for c in scored.comparisons] == [0.5, 0.25]
    assert scored.drops == {"no score": 1}


# --- fields of JSON -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"question": "Q?"}, "there is no field image (or images); the record has id, question"),
        ({"image": None}, "image (or images) must name an image file, or list several, and it is "
                          "empty"),
        ({"image": 3}, "image (or images) must name an image file, or list several, not int"),
        ({"images": ["a.png", None]}, "image (or images) must name image files, and an entry does"),
        ({"image": {"bytes": "iVBORw0KGgo=", "path": "a.png"}}, "encoded image, which JSON cannot"),
        ({"image": "data:image/png;base64,iVBORw0KGgo="}, "write it to a file and give the"),
        ({"image": "https://example.org/a.png"}, "is an address on the web, https://example.org/a"),
        ({"image": "iVBORw0KGgo" * 1000}, "no such image"),
        ({"image": "a.png", "question": None}, "question (or text) must be a text, and it is em"),
        ({"image": "a.png", "question": ["Q?"]}, "question (or text) must be a text, not list"),
        ({"image": "a.png", "ask": "Q?"}, "there is no field question (or text); the record has"),
        ({"image": "a.png", "id": ""}, "id (or question_id) must be a text or a whole number, and"),
    ],
)  # fmt: skip
def test_messages_say_what_is_there(tmp_path, record, message):
    (tmp_path / "a.png").write_bytes(encoded(1))
    record = {"id": "1"} | record
    if not {"question", "ask"} & record.keys():
        record["question"] = "Q?"
    (tmp_path / "q.jsonl").write_text(json.dumps(record))
    with pytest.raises(DataError) as caught:
        QuestionsJsonl(str(tmp_path / "q.jsonl"), str(tmp_path)).open()
    assert message in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_values_that_no_run_can_store_are_not_kept(tmp_path):
    """Unused fields cost no example; what can be stored of them becomes meta."""
    (tmp_path / "a.png").write_bytes(encoded(1))
    line = (
        '{"id": 1, "image": "a.png", "question": "Q?", "a": NaN, "b": [1, Infinity], "c": 2, '
        '"d": "\\udcff", "e": "' + "x" * 1_000_001 + '", "f": ["y"]}'
    )
    (tmp_path / "q.jsonl").write_text(line)
    (prompt,) = QuestionsJsonl(str(tmp_path / "q.jsonl"), str(tmp_path)).open().prompts
    assert prompt.meta == {"c": 2, "f": ["y"]}


def test_images_wrapped_as_paths(tmp_path):
    """`datasets` writes an image file to JSON lines as {"bytes": null, "path": name}."""
    (tmp_path / "a.png").write_bytes(encoded(1))
    for image in ({"bytes": None, "path": "a.png"}, [{"path": "a.png"}]):
        (tmp_path / "q.jsonl").write_text(json.dumps({"id": 1, "question": "Q?", "image": image}))
        data = QuestionsJsonl(str(tmp_path / "q.jsonl"), str(tmp_path)).open()
        assert data.prompts[0].images == ("a.png",)


# --- files that are not what they are called ------------------------------------------------------


def test_pointers_of_git_lfs(tmp_path):
    """A clone without Git LFS has small texts in place of files; the message says what to do."""
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 123\n"
    for name in ("a.parquet", "b.json"):
        (tmp_path / name).write_text(pointer)
    for path in (tmp_path, tmp_path / "a.parquet", tmp_path / "b.json"):
        with pytest.raises(DataError, match=r"pointer of Git LFS .* run `git lfs pull`"):
            RlaifVPairs(str(path), str(tmp_path)).open()


def test_a_data_set_saved_to_disk(tmp_path):
    """`Dataset.save_to_disk` writes Arrow files, which are not parquet."""
    (tmp_path / "data-00000-of-00001.arrow").write_bytes(b"ARROW1")
    with pytest.raises(DataError, match=r"no \.parquet files .* with Dataset\.to_parquet"):
        HfParquet(str(tmp_path)).open()
