"""`python -m seva_jax.data check FILE` says which source reads a file, by the file's fields."""

from __future__ import annotations

import dataclasses
import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers_formats import FORMATS, encoded, pair_sources, prompt_sources
from helpers_fuzz import picture

import seva_jax.data
from seva_jax.data.__main__ import main
from seva_jax.data.answered import AnsweredPrompts
from seva_jax.data.captions import CaptionedPrompts
from seva_jax.data.columns import Columns
from seva_jax.data.detect import FORMATS as CANDIDATES
from seva_jax.data.detect import config_line, detect
from seva_jax.data.embedded import HfParquet, TfdsPrompts
from seva_jax.data.files import ImageFolder, LlavaJson, QuestionsJsonl, SevaJson
from seva_jax.data.marked import MarkedPhrases
from seva_jax.data.messages import TrlPairs
from seva_jax.data.preferences import (
    HaDpoPairs,
    PovidPairs,
    RlaifVPairs,
    SevaPairs,
    VLFeedbackPairs,
)
from seva_jax.data.records import ArrayRecordPairs, ArrayRecordPrompts
from seva_jax.data.scores import ScoredPairs
from seva_jax.data.sources import PromptSource
from seva_jax.data.trajectories import TrajectoryPairs
from seva_jax.types import DataError

STEPS = {"steps": [{"images": ["a"], "action": "go"}], "score": 1}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(picture())
    (tmp_path / "images" / "VG_100K").mkdir()
    (tmp_path / "images" / "VG_100K" / "1.jpg").write_bytes(picture())
    return tmp_path


def written(folder, records, name="d.json"):
    lines = name.endswith(".jsonl")
    text = "\n".join(map(json.dumps, records)) if lines else json.dumps(records)
    (folder / name).write_text(text)
    return str(folder / name)


def run(lines):
    """Executes a config line as Python and returns the source."""
    names: dict = {}
    exec(lines, names)
    return names["prompts"]


# --- every format ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["d.json", "d.jsonl"])
@pytest.mark.parametrize("kind", FORMATS, ids=lambda kind: kind.__name__)
def test_every_format_is_known_by_its_fields(folder, kind, name):
    """The record of each format, read by the source that is named, gives an example.

    All formats may come as a JSON list (POPE's questions about GQA) or as JSON lines.
    """
    path, root = written(folder, [FORMATS[kind]], name), str(folder / "images")
    detected = detect(path, root)
    assert detected.sources == (kind(path, root),)
    assert run(config_line(detected.sources[0])) == kind(path, root)
    options = {"aspects": ("Helpfulness",)} if kind is VLFeedbackPairs else {}
    assert len(dataclasses.replace(detected.sources[0], **options).open().prompts) == 1


@pytest.mark.parametrize("fields", [{"trajectories": [STEPS, STEPS]},
                                    {"chosen": STEPS, "rejected": STEPS}])  # fmt: skip
def test_trajectories(folder, fields):
    path = written(folder, [{"id": "1", "task": "go", **fields}])
    assert detect(path).sources == (TrajectoryPairs(path, str(folder)),)


def test_written_files_of_every_format(tmp_path, tiny_pictures):
    """What is found for a file or folder reads the same examples as the source named for it."""
    sources = (*pair_sources(tmp_path), *prompt_sources(tmp_path, tiny_pictures))
    kinds = set()
    for source in sources:
        # A TFDS data set and a folder of images are folders; the rest have a path.
        path = getattr(source, "path", "") or getattr(source, "root", "") or tiny_pictures
        detected = detect(path, getattr(source, "image_root", ""))
        (best,) = detected.sources
        assert type(best) is type(source)
        options = {"limit": 2} if isinstance(source, ImageFolder | TfdsPrompts) else {}
        options |= {"questions": source.questions} if isinstance(source, ImageFolder) else {}
        best, expected = dataclasses.replace(best, **options).open(), source.open()
        if not isinstance(source, TfdsPrompts):  # which was given other questions
            assert best.prompts == expected.prompts
        assert getattr(best, "comparisons", ()) == getattr(expected, "comparisons", ())
        kinds.add(type(source))
    assert kinds >= {ArrayRecordPairs, ArrayRecordPrompts, HfParquet, TfdsPrompts, ImageFolder}
    with pytest.raises(DataError, match=r"no split 'test'; it has train"):
        detect(tiny_pictures, split="test")


def test_no_reader_is_forgotten():
    """Every exported source that reads a path is a candidate, and only those say what they need."""
    exported = {x for x in vars(seva_jax.data).values() if isinstance(x, type)}
    sources = {x for x in exported if issubclass(x, PromptSource)}
    with_path = {x for x in sources if "path" in {f.name for f in dataclasses.fields(x)}}
    by_other_means = {Columns, HfParquet, ArrayRecordPairs, ArrayRecordPrompts}
    assert set(CANDIDATES) == with_path - by_other_means - {seva_jax.data.PairsFile}
    assert {x for x in sources if "recognizes" in vars(x)} == {*CANDIDATES, PromptSource}


# --- what is ambiguous, or more than one thing ----------------------------------------------------


def test_an_ambiguous_file_lists_the_candidates(folder, capsys):
    """An `image_id` of digits may be the name of a file (SeVa), or an image of Visual Genome."""
    record = {"image_id": "1", "question": "Q?", "chosen": "yes", "reject": "no"}
    path = written(folder, [record])
    assert detect(path).sources == (SevaPairs(path, str(folder)), HaDpoPairs(path, str(folder)))
    for command in ("check", "show"):
        with pytest.raises(SystemExit) as caught:
            main([command, path])
        message = str(caught.value.code)
        assert "may be in several formats" in message
        for kind in (SevaPairs, HaDpoPairs):
            assert f"prompts={kind.__name__}(path={path!r}, image_root={str(folder)!r})" in message
    for image_id, kind in ((1, HaDpoPairs), ("1.jpg", SevaPairs)):
        written(folder, [record | {"image_id": image_id}])
        assert detect(path).sources == (kind(path, str(folder)),)


def test_most_of_the_first_records_decide(folder):
    """A few records of another kind do not: LLaVA's mixture has some without an image."""
    good = FORMATS[LlavaJson]
    path = written(folder, [{"id": 0}, good, good, "broken", None])
    assert detect(path).sources == (LlavaJson(path, str(folder)),)
    path = written(folder, [good] + [{"id": 0}] * 2)
    with pytest.raises(DataError, match=r"no format has its fields \(id, image, conversations\)"):
        detect(path)


def test_captions_scores_answers_and_marks(folder):
    root = str(folder / "images")
    question = FORMATS[QuestionsJsonl] | {"captions": ["a red ball"], "answer": "red"}
    path = written(folder, [question], "q.jsonl")
    plain = QuestionsJsonl(path, root)
    assert detect(path, root).sources == (plain,)
    assert detect(path, root).also == (CaptionedPrompts(plain), AnsweredPrompts(plain))
    for source in detect(path, root).also:
        assert len(source.open().prompts) == 1
    talk = written(folder, [FORMATS[LlavaJson]])
    (answered,) = detect(talk, root).also
    assert answered == AnsweredPrompts(LlavaJson(talk, root, remove=(), answers=True))
    assert run(config_line(answered)) == answered
    assert isinstance(answered, AnsweredPrompts)
    assert answered.open().comparisons[0].answers == ("yes",)
    for kind in (PovidPairs, TrlPairs):  # MMedPO's files are in POVID's layout
        pair = FORMATS[kind] | {"weighted_score": 0.5}
        path = written(folder, [pair])
        (scored,) = detect(path, root).also
        assert scored == ScoredPairs(kind(path, root), "weighted_score")
        assert run(config_line(scored)) == scored
        assert isinstance(scored, ScoredPairs)
        assert scored.open().comparisons[0].scores == (0, 0.5)
    pair = FORMATS[TrlPairs]
    path = written(folder, [pair | {"chosen": "a <MASK>red</MASK> ball"}])
    assert detect(path, root).sources == (MarkedPhrases(TrlPairs(path, root)),)


@pytest.mark.parametrize(
    ("header", "options"),
    [
        ("image,question,chosen,rejected", {"chosen": "chosen", "rejected": "rejected"}),
        ("images,prompt,chosen,rejected",
         {"image": "images", "question": "prompt", "chosen": "chosen", "rejected": "rejected"}),
        ("image,question,id,answer", {}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("separator", [",", ";"])
def test_csv_is_read_by_columns_whatever_they_are_called(folder, header, options, separator):
    """Names that JSON of other formats has, too, do not make a CSV file one of those."""
    lines = (header, "a.png,Which?,yes,no")
    (folder / "train.csv").write_text("\r\n".join(lines).replace(",", separator), "utf-8-sig")
    path, root = str(folder / "train.csv"), str(folder / "images")
    for split in ("", "train"):
        (source,) = detect(path, root, split).sources
        assert source == Columns(path, root, **options, split=split)
        assert run(config_line(source)) == source
        assert [p.question for p in source.open().prompts] == ["Which?"]
    with pytest.raises(DataError, match="no split 'test'; it has train"):
        detect(path, root, "test")


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "yes"}]},
        {"prompt": [{"role": "user", "content": "Q?"}], "completion": "yes"},
    ],
)
def test_supervised_chats_are_named_as_such(folder, record):
    path = written(folder, [record | {"images": ["images/a.png"]}])
    field = next(iter(record))
    with pytest.raises(DataError, match=rf"\. {field} holds chat messages: for pairs, it needs"):
        detect(path)
    asked = {"id": "1", "question": "Q?", "answer": "yes", "images": ["images/a.png"]}
    source = AnsweredPrompts(QuestionsJsonl(written(folder, [asked]), str(folder)))
    assert source.open().comparisons[0].answers == ("yes",)  # what the message proposes


def test_trl_as_plain_strings(folder):
    """TRL's standard form, `{"prompt": "The sky is", "chosen": " blue.", ...}`, with images.

    See "Standard" in TRL's docs/source/dataset_formats.md.
    """
    record = {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}
    path = written(folder, [record | {"images": ["images/a.png"]}, record], "d.jsonl")
    (source,) = detect(path).sources
    assert source == TrlPairs(path, str(folder))
    data = TrlPairs(path, str(folder)).open()
    assert [c.answers for c in data.comparisons] == [("blue.", "green.")] * 2
    assert [c.prompt.question for c in data.comparisons] == ["The sky is"] * 2
    assert [c.prompt.images for c in data.comparisons] == [("images/a.png",), ()]


# --- images, parquet, folders ---------------------------------------------------------------------


def test_where_images_are_looked_for(folder):
    """In the folder of the file, unless another one is given; embedded ones need none."""
    path = written(folder, [FORMATS[SevaJson]])
    assert detect(path).sources == (SevaJson(path, str(folder)),)
    images = str(folder / "images")
    assert detect(path, images).sources == (SevaJson(path, images),)
    with pytest.raises(DataError, match="gone: no such image folder"):
        detect(path, str(folder / "gone"))
    inside = [{"image": {"bytes": encoded(9), "path": None}, "question": "Q?"}]
    pairs = [x | {"chosen": "yes", "rejected": "no"} for x in inside]
    named = [{"image": "a.png", "question": "Q?"}]
    for rows, expected in (
        (inside, lambda path: HfParquet(path)),
        (pairs, lambda path: RlaifVPairs(path)),
        (named, lambda path: HfParquet(path, image_root=str(folder))),
    ):
        pq.write_table(pa.Table.from_pylist(rows), folder / "d.parquet")
        path = str(folder / "d.parquet")
        assert detect(path).sources == (expected(path),)


def test_splits(folder):
    """A folder of several splits needs a choice, which the config line has, too."""
    rows = [{"image": {"bytes": encoded(9), "path": None}, "question": "Q?"}]
    (folder / "hub").mkdir()
    for split in ("train", "test"):
        pq.write_table(
            pa.Table.from_pylist(rows), folder / "hub" / f"{split}-00000-of-00001.parquet"
        )
    path = str(folder / "hub")
    with pytest.raises(SystemExit, match=r"holds several splits \(test, train\)"):
        main(["check", path])
    assert detect(path, split="train").sources == (HfParquet(path, split="train"),)
    main(["check", path, "--split", "train"])
    llava = {"id": "1", "conversations": [{"from": "human", "value": "<image>\nQ?"}]}
    for split in ("train", "test"):  # conversations, as in lmms-lab/LLaVA-OneVision-Data
        table = pa.Table.from_pylist([{"image": rows[0]["image"]} | llava])
        pq.write_table(table, folder / "hub" / f"{split}-00000-of-00001.parquet")
    (source,) = detect(path, split="train").sources
    assert source == LlavaJson(path, split="train")
    assert len(source.open().prompts) == 1
    (folder / "hub" / "train" / "x").mkdir(parents=True)
    for each in (folder / "hub").glob("*.parquet"):
        each.unlink()
    (folder / "hub" / "train" / "x" / "a.png").write_bytes(picture())
    assert detect(path, split="train").sources == (ImageFolder(path, split="train"),)


def test_links_are_followed_if_allowed(folder, capsys):
    """The line that `check` prints has the roots that it was given."""
    (folder / "playground").mkdir()
    (folder / "playground" / "coco").symlink_to(folder / "images", target_is_directory=True)
    path = written(folder, [FORMATS[QuestionsJsonl] | {"image": "coco/a.png"}])
    root, images = str(folder / "playground"), str(folder / "images")
    for file, options in ((path, ["--image-root", root]), (root, [])):
        with pytest.raises(SystemExit, match=re.escape(f"set link_roots=({images!r},)")):
            main(["check", file, *options])
        main(["check", file, *options, "--link-roots", images])
        line = next(x for x in capsys.readouterr().out.splitlines()[::-1] if "prompts=" in x)
        assert line.endswith(f", link_roots=({images!r},))")


def test_the_folder_one_is_in(folder, monkeypatch):
    rows = [{"image": {"bytes": encoded(9), "path": None}, "question": "Q?"}]
    (folder / "hub").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "hub" / "train.parquet")
    monkeypatch.chdir(folder / "hub")
    assert detect(".").sources == (HfParquet("."),)


def test_folders_with_files_of_other_programs(folder):
    """`index.json` and `features.json` do not make a folder a copy of ours or of TFDS."""
    (folder / "images" / "index.json").write_text("[1]")
    (folder / "images" / "features.json").write_text("[1]")
    with pytest.raises(DataError, match="holds 2 files of records"):
        detect(str(folder / "images"))
    (folder / "images" / "dataset_info.json").write_text("[1]")
    with pytest.raises(DataError, match="no image feature"):
        detect(str(folder / "images"))


def test_folders(folder):
    record = written(folder, [FORMATS[SevaPairs]])
    assert detect(str(folder)).sources == (SevaPairs(record, str(folder)),)
    (folder / "d.csv").write_text("img,q\n")
    with pytest.raises(DataError, match=r"holds 2 files of records; give one \(d.csv, d.json\)"):
        detect(str(folder))
    assert detect(str(folder / "images")).sources == (ImageFolder(str(folder / "images")),)
    for name, message in (
        ("a.npy", r"MapFolder\('.*maps'\)"), ("data-00000-of-00001.arrow", "load_from_disk"),
        ("x.txt", "holds no data"),
    ):  # fmt: skip
        maps = folder / name / "maps"
        maps.mkdir(parents=True)
        (maps / name).write_bytes(b"")
        with pytest.raises(DataError, match=message):
            detect(str(maps))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"[]", "has no records that are objects$"),
        (b'["a"]', "has no records that are objects; the first: record 1: a"),
        (b'{\n "a": 1\n}', "the first: line 1: not JSON"),
        (b"[{]", "not JSON"),
        ('["café"]'.encode("cp1252"), "not UTF-8"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"\x1f\x8b\x08\0gzip", "is compressed; unpack it first"),
        (b"PK\x03\x04 a spreadsheet", "is compressed; unpack it first"),
        (b"PAR1 broken", "not readable as parquet"),
        (b"\x89PNG\r\n\x1a\n\0\0", "neither JSON, parquet nor CSV in UTF-8"),
        ("a,b\n1,2".encode("utf-16"), "neither JSON, parquet nor CSV in UTF-8"),
        (b'[{"messages": [{"role": "user"}]}]', r"has its fields \(messages\)"),
        (b"just some text", r"no format has its fields|no records"),
    ],
)
def test_files_that_are_nothing(folder, content, message):
    (folder / "x").write_bytes(content)
    with pytest.raises(DataError, match=message):
        detect(str(folder / "x"))


# --- the command ----------------------------------------------------------------------------------


def test_the_lines_that_check_prints_can_be_executed(folder, capsys):
    record = FORMATS[SevaPairs] | {"image_id": "a.png"}
    path, root = written(folder, [record, record | {"reject": ""}]), str(folder / "images")
    main(["check", path, "--image-root", root])
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("format   SevaPairs: SeVa's pairs, ")
    assert shown[1] == "fields   image_id, question, chosen, reject"
    assert [line[:9] for line in shown[2:4]] == ["config   ", " " * 9]
    source = run("\n".join(line[9:] for line in shown[2:4]))
    assert source == SevaPairs(path, root)
    assert shown[5:] == [
        "pairs    1 usable of 2",
        "dropped  1 empty rejected answer",
        f"         {source.open().left_out[0]}",
        "images   1 different ones; all decode",
        "sizes    median 4 x 4 pixels, sides 4 to 4",
    ]


def test_check_of_a_file_with_the_tokenizer_of_a_config(folder, capsys):
    """With --config, or options of one, texts are encoded, too."""
    record = {"id": "1", "image": "a", "question": "What color is the zebra ?"}
    path = written(folder, [record], "q.jsonl")
    main(["check", path, "--image-root", str(folder / "images"), "--text.max-length", "60"])
    shown = capsys.readouterr().out
    assert "text.max_length 60" in shown
    assert "unknown  1 words of questions that the tokenizer lacks: 'zebra' in 1" in shown
    for argv in (["check", path, path], ["convert"], ["show", path, path]):
        with pytest.raises(SystemExit, match=r"\d files given"):
            main(argv)


def test_show_convert_and_build_of_a_file(folder, capsys):
    path, root = written(folder, [FORMATS[SevaPairs]]), str(folder / "images")
    main(["show", path, "--image-root", root])
    assert capsys.readouterr().out.splitlines()[-2:] == ["chosen    yes", "rejected  no"]
    main(["convert", path, str(folder / "out.jsonl"), "--to", "jsonl", "--image-root", root])
    assert TrlPairs(str(folder / "out.jsonl"), root).open().comparisons[0].answers == ("yes", "no")
    main(["build", path, str(folder / "built"), "--image-root", root])
    assert detect(str(folder / "built")).sources == (ArrayRecordPairs(str(folder / "built")),)
    with pytest.raises(SystemExit, match=r"a file does not have: --prompts\.path x"):
        main(["show", path, "--prompts.path", "x"])
