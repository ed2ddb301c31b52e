"""CSV and tables with columns of any names, and LLaMA-Factory's preferences."""

from __future__ import annotations

import collections
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers_formats import encoded
from helpers_fuzz import clean, damaged, inputs, picture

from seva_jax.data.columns import Columns, csv_rows
from seva_jax.data.detect import detect
from seva_jax.data.llamafactory import LlamaFactoryPairs
from seva_jax.data.sources import PreferenceSet
from seva_jax.types import DataError


@pytest.fixture
def folder(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(picture())
    return tmp_path


def pairs(folder, content, name="d.csv", **columns):
    (folder / name).write_bytes(content)
    columns = columns or {"image": "img", "question": "q", "chosen": "a", "rejected": "b"}
    data = Columns(str(folder / name), str(folder), **columns).open()
    assert isinstance(data, PreferenceSet)
    return data


ROWS = [
    {"img": "a.png", "q": "Q?", "a": "yes, it is", "b": 'a "no"', "n": "1"},
    {"img": "b.png", "q": "Two\nlines?", "a": "yes", "b": "no", "n": "2"},
]
CSV = 'img,q,a,b,n\na.png,Q?,"yes, it is","a ""no""",1\nb.png,"Two\nlines?",yes,no,2\n'


@pytest.mark.parametrize(
    "content",
    [
        CSV.encode(),
        b"\xef\xbb\xbf" + CSV.encode(),
        b"\r\n\r\n" + CSV.replace(",1\n", ",1\r\n\r\n").encode(),
        CSV.replace(",", ";").replace("yes; it", "yes, it").encode(),
        CSV.replace(",", "\t").replace("yes\t it", "yes, it").encode(),
        "\n".join(map(json.dumps, ROWS)).encode(),
        json.dumps(ROWS).encode(),
        "parquet",
    ],
    ids=["csv", "bom", "crlf", "semicolons", "tabs", "lines", "list", "parquet"],
)
def test_one_table_in_every_kind_of_file(folder, content):
    """The content says what kind of file it is, not the name."""
    if content == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), folder / "p")
        content = (folder / "p").read_bytes()
    data = pairs(folder, content)
    assert [c.answers for c in data.comparisons] == [("yes, it is", 'a "no"'), ("yes", "no")]
    assert [p.question for p in data.prompts] == ["Q?", "Two\nlines?"]
    assert [(p.id, p.images, p.meta) for p in data.prompts] == [
        ("0", ("a.png",), {"n": "1"}), ("1", ("b.png",), {"n": "2"}),
    ]  # fmt: skip
    assert not data.drops


def test_prompts_without_answers(folder):
    (folder / "d.csv").write_text(CSV)
    source = Columns(str(folder / "d.csv"), str(folder), image="img", question="q", limit=1)
    assert not source.has_answers
    (prompt,) = source.open().prompts
    assert prompt.meta == {"a": "yes, it is", "b": 'a "no"', "n": "1"}
    rows = [{"shown": [{"bytes": encoded(1), "path": None}] * 2, "q": "Q?"}]
    pq.write_table(pa.Table.from_pylist(rows), folder / "d.parquet")
    data = Columns(str(folder / "d.parquet"), image="shown", question="q").open()
    assert len(data.prompts[0].images) == 2
    assert data.load_image(data.prompts[0].images[1]).shape == (32, 32, 3)


def test_every_bad_row_is_counted_and_placed(folder):
    rows = {
        b"img,q,a,b": "",
        b"a.png,Q?,yes,no": "",
        b"a.png,Q?,yes": "broken line",
        b"a.png,Q?,yes,no,5": "broken line",
        b'a.png,Q?,"yes"!,no': "broken line",
        b"a.png,Q\xff?,yes,no": "invalid text",
        b"a.png,Q?,y\0es,no": "invalid text",
        b"a.png,,yes,no": "empty question",
        b",Q?,yes,no": "no image",
        b"gone.png,Q?,yes,no": "missing image",
        b"../x.png,Q?,yes,no": "unsafe image path",
        b"a.png,Q?,,no": "empty chosen answer",
        b"a.png,Q?,yes, yes ": "equal answers",
        b"a.png,Q?,yes," + b"x" * 200_000: "broken line",
        b"b.png,Q?,yes,no": "",
    }
    data = pairs(folder, b"\n".join(rows))
    assert [x.split(": ")[:2] for x in data.left_out] == [
        [f"line {number}", reason] for number, reason in enumerate(rows.values(), 1) if reason
    ]
    assert data.drops == collections.Counter(filter(None, rows.values()))
    assert [p.images for p in data.prompts] == [("a.png",), ("b.png",)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"img,img\n1,2\n", "must name the columns, each once, but is 'img, img'"),
        (b"img,,q\n1,2,3\n", "must name the columns"),
        (b'img,q\n1,"2\n3,4\n5,6\n', "a quoted cell in the row of line 2 has no end"),
        ("img,q\n1,2\n".encode("utf-16"), "neither JSON, parquet nor CSV in UTF-8"),
        (b"\x89PNG\0", "neither JSON, parquet nor CSV in UTF-8"),
        (b'img,"q"q\n1,2\n', "its first line is not CSV"),
    ],
)
def test_files_that_are_not_csv(folder, content, message):
    (folder / "d.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(csv_rows(str(folder / "d.csv")))


def test_columns_that_are_not_there(folder):
    with pytest.raises(DataError, match=r"2 missing column\); the first: line 2: missing column: "
                                        r"there is no 'img'; the row has a, q"):  # fmt: skip
        pairs(folder, b"a,q\n1,2\n3,4\n")
    with pytest.raises(DataError, match="name both columns for pairs, or neither"):
        Columns("d.csv", "", chosen="a").open()
    with pytest.raises(DataError, match="must name columns"):
        Columns("d.csv", "", image="").open()


def test_made_up_csv(fuzz_folder):
    """Whatever the bytes, there are rows or one clear error."""
    path = fuzz_folder / "damaged.csv"
    source = Columns(str(path), str(fuzz_folder), "image", "question", "good", "bad")

    @inputs(lambda rng: damaged(rng, b'image,question,good,bad\na,"Q, really?",yes,no\n' * 2))
    def run(data):
        path.write_bytes(data)
        with clean():
            assert source.open().prompts

    run()


def test_columns_are_guessed_by_their_names(folder):
    path, root = str(folder / "d.csv"), str(folder)
    for header, expected in (
        ("image,question,chosen,rejected", Columns(path, root, chosen="chosen",
                                                   rejected="rejected")),
        ("File_Name,Prompt,good,bad", Columns(path, root, "File_Name", "Prompt", "good", "bad")),
        ("img,instruction,output", Columns(path, root, "img", "instruction")),
        ("img,q,chosen", Columns(path, root, "img", "q")),
    ):  # fmt: skip
        (folder / "d.csv").write_text(f"{header}\n" + ",".join("x" * (1 + header.count(","))))
        assert detect(path).sources == (expected,), header
    (folder / "d.csv").write_text("x,y\n1,2\n")
    with pytest.raises(DataError, match=r"fields \(x, y\).*\n.*\n  prompts=Columns\(path="):
        detect(path)


# --- LLaMA-Factory --------------------------------------------------------------------------------

# The layouts of LLaMA-Factory's data/README.md, "Preference Dataset". What they mean follows its
# src/llamafactory/data/converter.py, SharegptDatasetConverter and AlpacaDatasetConverter.
SHAREGPT = {
    "conversations": [{"from": "human", "value": "<image>Which one?"}],
    "chosen": {"from": "gpt", "value": "the red one"},
    "rejected": {"from": "gpt", "value": "the blue one"},
    "images": ["a.png"],
}
ALPACA = {"instruction": "Which one?", "input": "red or blue", "chosen": "red", "rejected": "blue"}


def factory(folder, *records, **names):
    (folder / "dpo.json").write_text(json.dumps(records))
    return LlamaFactoryPairs(str(folder / "dpo.json"), str(folder), **names).open()


def test_llamafactory_sharegpt(folder):
    data = factory(folder, SHAREGPT, {k: SHAREGPT[k] for k in SHAREGPT if k != "images"} | {
        "conversations": [{"from": "human", "value": "Hi"}], "source": "x"})  # fmt: skip
    assert [c.answers for c in data.comparisons] == [("the red one", "the blue one")] * 2
    assert [p.images for p in data.prompts] == [("a.png",), ()]
    assert data.prompts[0].question.replace("<image>", "") == "Which one?"
    assert (data.prompts[1].question, data.prompts[1].meta) == ("Hi", {"source": "x"})


def test_llamafactory_alpaca(folder):
    r"""The question is "instruction\ninput"; empty ones are left out (AlpacaDatasetConverter)."""
    only = ALPACA | {"input": "", "images": "a.png"}
    data = factory(folder, ALPACA, only, {k: ALPACA[k] for k in ALPACA if k != "input"})
    assert [p.question for p in data.prompts] == ["Which one?\nred or blue"] + ["Which one?"] * 2
    assert [p.images for p in data.prompts] == [(), ("a.png",), ()]
    assert [c.answers for c in data.comparisons] == [("red", "blue")] * 3


def test_llamafactory_with_other_names(folder):
    """`dataset_info.json` may give columns and tags other names; those of "OpenAI Format" here."""
    record = {
        "messages": [{"role": "user", "content": "Which one?"}],
        "good": {"role": "assistant", "content": "red"},
        "bad": {"role": "assistant", "content": "blue"},
        "pictures": ["a.png"],
    }
    names: dict[str, Any] = {
        "messages": "messages", "chosen": "good", "rejected": "bad", "images": "pictures",
        "role_tag": "role", "content_tag": "content", "user_tag": "user",
        "assistant_tag": "assistant", "system_tag": "system",
    }  # fmt: skip
    data = factory(folder, record, **names)
    assert data.comparisons[0].answers == ("red", "blue")
    assert data.prompts[0].images == ("a.png",)
    columns = {k: v for k, v in names.items() if not k.endswith("_tag")}
    tags = {k: v for k, v in names.items() if k.endswith("_tag")}
    entry = {"file_name": "dpo.json", "formatting": "sharegpt", "columns": columns, "tags": tags}
    info = folder / "dataset_info.json"
    path = str(folder / "dpo.json")
    info.write_text(json.dumps({"mine": entry | {"ranking": True}, "other": {"file_name": "x"}}))
    assert detect(path).sources == (LlamaFactoryPairs(path, str(folder), **names),)
    more = {"path": "/etc/passwd", "image_root": "/", "link_roots": "/", "split": "x", "limit": "1"}
    asks = {"ranking": True, "columns": columns | more, "file_name": "../x/dpo.json"}
    info.write_text(json.dumps({"a": entry | asks, "b": entry | asks | {"file_name": "dpo.json"}}))
    assert detect(path).sources == (LlamaFactoryPairs(path, str(folder), **names),)
    info.write_text(json.dumps({"a": entry | {"ranking": True},
                                "b": {"file_name": "dpo.json", "ranking": True}}))  # fmt: skip
    with pytest.raises(DataError, match=r"describes dpo\.json in two ways"):
        detect(path)
    for useless in ("{", "[]", json.dumps({"a": entry})):
        info.write_text(useless)
        with pytest.raises(DataError, match="no format has its fields"):
            detect(path)


def test_llamafactory_bad_records(folder):
    turn = {"from": "human", "value": "Hi"}
    said = {"from": "gpt", "value": "Yes?"}
    bad = {
        "several turns": SHAREGPT | {"conversations": [turn, said, turn]},
        "system message": SHAREGPT | {"conversations": [{"from": "system", "value": "x"}, turn]},
        "no question": SHAREGPT | {"conversations": [said]},
        "wrong role": SHAREGPT | {"rejected": turn},
        "empty chosen answer": SHAREGPT | {"chosen": None},
        "equal answers": SHAREGPT | {"chosen": SHAREGPT["rejected"]},
        "not an object": SHAREGPT | {"conversations": ["Hi"]},
        "no image": SHAREGPT | {"images": [1]},
    }
    alpaca = [ALPACA | {"system": "You are x."}, ALPACA | {"history": [["a", "b"]]}, {"a": 1}]
    data = factory(folder, SHAREGPT, *bad.values(), *alpaca)
    expected = collections.Counter([*bad, "system message", "several turns", "no question"])
    assert data.drops == expected
    assert len(data.comparisons) == 1
