"""Prompt sources on disk: each format as users have it, and every bad case."""

from __future__ import annotations

import collections
import itertools
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seva_jax.batches.pipeline import num_steps
from seva_jax.config.config_files import config_directory, read_config
from seva_jax.config.experiment import check
from seva_jax.data.files import (
    SHORT_ANSWER,
    ImageFolder,
    LlavaJson,
    QuestionsJsonl,
    SevaJson,
)
from seva_jax.data.mixed import Concatenated
from seva_jax.data.tables import json_lines
from seva_jax.types import DataError, ExampleError, Prompt


def paint(path: Path, level: int) -> Path:
    """Draws a grey image; its level tells it from others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), (level,) * 3).save(path)
    return path


@pytest.fixture
def images(tmp_path) -> Path:
    """Writes `a.png` (10), `sub/b.gif` (20), `secret.png` (30) outside, and a link to it."""
    root = tmp_path / "images"
    paint(root / "a.png", 10)
    paint(root / "sub" / "b.gif", 20)
    (root / "link.png").symlink_to(paint(tmp_path / "secret.png", 30))
    return root


def written(path: Path, value) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    path.write_text(text, encoding="utf-8")
    return str(path)


def talk(*values, **fields):
    """Makes a LLaVA record whose human turns are `values`."""
    turns = []
    for value in values:
        turns += [{"from": "human", "value": value}, {"from": "gpt", "value": "Yes."}]
    return {"id": "r", "image": "a.png", "conversations": turns} | fields


# --- image folders --------------------------------------------------------------------------------


def test_folder_asks_every_question_about_every_image(images):
    paint(images / "Z.JPG", 40)
    (images / "notes.txt").write_text("no image")
    (images / "folder.png").mkdir()
    found = ImageFolder(str(images), questions=("What?", "Where?")).open()
    assert list(found.prompts) == [
        Prompt("Z.JPG#0", "What?", ("Z.JPG",)),
        Prompt("Z.JPG#1", "Where?", ("Z.JPG",)),
        Prompt("a.png#0", "What?", ("a.png",)),
        Prompt("a.png#1", "Where?", ("a.png",)),
        Prompt("sub/b.gif#0", "What?", ("sub/b.gif",)),
        Prompt("sub/b.gif#1", "Where?", ("sub/b.gif",)),
    ]
    assert found.drops == {"unsafe image path": 2}  # link.png leads outside
    assert found.load_image("sub/b.gif").tolist() == np.full((3, 4, 3), 20).tolist()


def test_folder_limit_counts_good_images(images):
    paint(images / "m.png", 0)
    found = ImageFolder(str(images), questions=("What?", "Where?"), limit=2).open()
    assert [p.id for p in found.prompts] == ["a.png#0", "a.png#1", "m.png#0", "m.png#1"]


def test_folder_names_that_are_not_unicode_are_counted(images):
    try:
        (images / "a.png").rename(images / "\udcff.png")
    except OSError:
        pytest.skip("this file system takes no such name")
    found = ImageFolder(str(images)).open()
    assert [p.id for p in found.prompts] == ["sub/b.gif#0"]
    assert found.drops["invalid text"] == 1


def test_folder_decodes_later(images):
    (images / "broken.png").write_bytes(b"not an image")
    found = ImageFolder(str(images)).open()
    assert "broken.png#0" in [p.id for p in found.prompts]
    with pytest.raises(ExampleError, match=r"broken\.png") as caught:
        found.load_image("broken.png")
    assert caught.value.reason == "unreadable image"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: ImageFolder(str(root / "nowhere")), "nowhere: no such image folder"),
        (lambda root: ImageFolder(str(root / "a.png")), "a.png: no such image folder"),
        (lambda root: ImageFolder(), "image folder is not set"),
        (lambda root: ImageFolder(str(root), questions=()), "no questions to ask"),
        (lambda root: ImageFolder(str(root), questions=(" ",)), "empty question"),
        (lambda root: ImageFolder(str(root), limit=-1), "limit must be 0"),
    ],
)
def test_folder_that_cannot_be_used(images, make, message):
    with pytest.raises(DataError, match=message):
        make(images).open()


def test_folder_without_images(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match="no image files below"):
        ImageFolder(str(tmp_path)).open()


# --- LLaVA's conversations ------------------------------------------------------------------------


def test_llava_questions(images, tmp_path):
    ocr = talk(
        f"<image>\nWho wrote this book?\n{SHORT_ANSWER}",
        "What is the title?",
        "What is the genre?",
        id="1002",
        image="a.png",
    )
    chat = talk("What is this?\n<image>", id=7, image="sub/b.jpg")  # OCR-VQA's GIF under a .jpg
    path = written(tmp_path / "mix.json", [ocr, chat])
    found = LlavaJson(path, str(images), questions_per_image=2).open()
    assert list(found.prompts) == [
        Prompt("1002#0", "Who wrote this book?", ("a.png",)),
        Prompt("1002#1", "What is the title?", ("a.png",)),
        Prompt("7#0", "What is this?", ("sub/b.jpg",)),
    ]
    assert not found.drops
    assert found.load_image("sub/b.jpg")[0, 0].tolist() == [20, 20, 20]


@pytest.mark.parametrize(
    ("remove", "value", "question"),
    [
        ((SHORT_ANSWER,), f"<image>\nWho?\n{SHORT_ANSWER}", "Who?"),
        ((SHORT_ANSWER,), f"{SHORT_ANSWER} Who?", "Who?"),
        ((SHORT_ANSWER,), f"First.\n{SHORT_ANSWER} Then?", "First. Then?"),
        ((), f"<image>\nWho?\n{SHORT_ANSWER}", f"Who?\n{SHORT_ANSWER}"),
        (("(a)", "b."), "Is (a) or b. right?", "Is or right?"),
        (("the book",), "About the book:\n<image> Who?", "About:\n Who?"),
        ((), "<image>\nOne.\nTwo?", "One.\nTwo?"),
    ],
)
def test_llava_question_text(images, tmp_path, remove, value, question):
    path = written(tmp_path / "mix.json", [talk(value)])
    assert LlavaJson(path, str(images), remove=remove).open().prompts[0].question == question


@pytest.mark.parametrize(("num", "ids"), [(1, 1), (2, 2), (0, 3), (9, 3)])
def test_llava_questions_per_image(images, tmp_path, num, ids):
    """What becomes of the other turns of a conversation is counted."""
    gone = talk("A?", "B?", "C?", id="s", image="gone.png")
    path = written(tmp_path / "mix.json", [talk("A?", "B?", "C?"), gone])
    found = LlavaJson(path, str(images), questions_per_image=num).open()
    assert [p.id for p in found.prompts] == ["r#0", "r#1", "r#2"][:ids]
    left, alone = 3 - ids, ids - 1
    assert found.notes == collections.Counter(
        {"later turns not asked": left, "later turns asked without earlier ones": alone}
    )
    assert all(found.notes.values())


def drawn_questions(path, images, records, **options):
    """Returns the numbers of the questions drawn of each record, by its id."""
    source = LlavaJson(
        written(path, records), str(images), questions_per_image=2, which_questions="random",
        **options,
    )  # fmt: skip
    drawn = collections.defaultdict(list)
    for prompt in source.open().prompts:
        id_, _, number = prompt.id.partition("#")
        assert prompt.question == "ABCD"[int(number)] + "?"
        drawn[id_].append(int(number))
    return drawn


def test_llava_random_questions(images, tmp_path):
    """As SeVa's make_ocrvqa_data.py does, 2 are drawn of each record: about 2,000 of each of 4."""
    records = [talk("A?", "B?", "C?", "D?", id=str(i)) for i in range(4000)]
    drawn = drawn_questions(tmp_path / "mix.json", images, records, seed=42)
    assert len(drawn) == 4000
    counts = collections.Counter(map(tuple, drawn.values()))
    pairs = list(itertools.combinations(range(4), 2))  # two different ones, in order
    assert set(counts) == set(pairs)
    for pair in pairs:  # 4.5 standard deviations of a binomial
        assert counts[pair] == pytest.approx(4000 / 6, abs=106)
    assert sum(n for pair, n in counts.items() if 0 in pair) == pytest.approx(2000, abs=143)


def test_llava_random_questions_depend_on_seed_and_record_only(images, tmp_path):
    records = [talk("A?", "B?", "C?", "D?", id=str(i)) for i in range(60)]
    path = tmp_path / "mix.json"
    drawn = drawn_questions(path, images, records, seed=1)
    assert drawn_questions(path, images, records, seed=2) != drawn
    some = drawn_questions(path, images, records[:10:-3], seed=1)
    assert some == {id_: drawn[id_] for id_ in some}
    limited = drawn_questions(path, images, records, seed=1, limit=20)
    assert limited == {id_: drawn[id_] for id_ in limited}
    assert len(limited) == 20


def test_llava_random_questions_of_a_short_record(images, tmp_path):
    records = [talk("A?", id="1"), talk("A?", "B?", id="2"), talk("A?", "", id="3")]
    drawn = drawn_questions(tmp_path / "mix.json", images, records)
    assert drawn == {"1": [0], "2": [0, 1], "3": [0]}  # the empty one is counted


def test_llava_several_images_in_a_record(images, tmp_path):
    path = written(tmp_path / "mix.json", [talk("Same?", image=["a.png", "sub/b.gif"])])
    assert LlavaJson(path, str(images)).open().prompts[0].images == ("a.png", "sub/b.gif")


SYSTEM = {"from": "system", "value": "Be brief."}
BAD_LLAVA = [
    ("text only", "not an object"),
    (talk("Q?", image=None), "no image"),
    ({"id": "x", "conversations": []}, "no image"),
    (talk("Q?", image=[1]), "no image"),
    (talk("Q?", id=None), "no id"),
    (talk("Q?", id=True), "no id"),
    (talk("Q?", id=""), "no id"),
    (talk("Q?", conversations=None), "no question"),
    (talk("Q?", conversations=["Q?"]), "no question"),
    (talk("Q?", conversations=[{"from": "gpt", "value": "Yes."}]), "no question"),
    (talk("Q?", conversations=[SYSTEM, {"from": "human", "value": "Q?"}]), "system message"),
    (talk("<image>\n"), "empty question"),
    (talk("<image><image>\nSame?"), "image markers"),
    (talk(f"<image>\n{SHORT_ANSWER}"), "empty question"),
    (talk({"text": "Q?"}), "empty question"),
    (talk("half a pair: \ud800"), "invalid text"),
    (talk("Q?", image="b.png"), "missing image"),
    (talk("Q?", image="nul\0.png"), "unsafe image path"),
    (talk("Q?", image="../secret.png"), "unsafe image path"),
    (talk("Q?", image="sub/../../secret.png"), "unsafe image path"),
    (talk("Q?", image="link.png"), "unsafe image path"),
    (talk("Q?", image="/etc/passwd"), "unsafe image path"),
]


def test_llava_bad_records_are_counted_and_the_others_used(images, tmp_path):
    good = talk("Good?", id="good")
    path = written(tmp_path / "mix.json", [good, *(record for record, _ in BAD_LLAVA)])
    found = LlavaJson(path, str(images)).open()
    assert list(found.prompts) == [Prompt("good#0", "Good?", ("a.png",))]
    assert found.drops == collections.Counter(reason for _, reason in BAD_LLAVA)


@pytest.mark.parametrize(("record", "reason"), BAD_LLAVA)
def test_llava_nothing_left_says_why(images, tmp_path, record, reason):
    path = written(tmp_path / "mix.json", [record])
    with pytest.raises(DataError, match=rf"mix.json.*\(1 {reason}\); the first: record 1: "):
        LlavaJson(path, str(images)).open()


def test_llava_records_with_one_id_are_told_apart(images, tmp_path):
    """llava_instruct_150k has three tasks about one image under one id."""
    path = written(tmp_path / "mix.json", [talk("A?"), talk("Other?", id="s"), talk("B?", "C?")])
    found = LlavaJson(path, str(images), questions_per_image=0).open()
    assert [p.id for p in found.prompts] == ["r@1#0", "s#0", "r@3#0", "r@3#1"]
    records = [{"question_id": record.pop("id"), **record} for record in (talk("A?"), talk("B?"))]
    found = LlavaJson(written(tmp_path / "mix.json", records), str(images)).open()
    assert [p.id for p in found.prompts] == ["r@1#0", "r@2#0"]
    assert not found.notes  # both are first turns


def test_llava_prefix_picks_a_part_of_the_mix(images, tmp_path):
    records = [talk("A?", id="a"), talk("B?", id="b", image="sub/b.jpg"), {"id": "text only"}]
    path = written(tmp_path / "mix.json", records)
    found = LlavaJson(path, str(images), prefix="sub/").open()
    assert [p.id for p in found.prompts] == ["b#0"]
    assert not found.drops
    with pytest.raises(DataError, match=r"no record's image starts with 'ocr_vqa/'"):
        LlavaJson(path, str(images), prefix="ocr_vqa/").open()


def test_llava_a_bad_turn_leaves_the_others(images, tmp_path):
    path = written(tmp_path / "mix.json", [talk("A?", "", "C?")])
    found = LlavaJson(path, str(images), questions_per_image=0).open()
    assert [p.id for p in found.prompts] == ["r#0", "r#2"]
    assert found.drops == {"empty question": 1}


def test_llava_limit_draws_records_at_random(images, tmp_path):
    records = [talk("A?", "B?", id=i, image="a.png" if i % 2 else "gone") for i in range(40)]
    path = written(tmp_path / "mix.json", records)

    def drawn(seed):
        source = LlavaJson(path, str(images), questions_per_image=2, limit=5, seed=seed)
        return [p.id for p in source.open().prompts]

    assert len(drawn(0)) == 10
    assert len({id_.split("#")[0] for id_ in drawn(0)}) == 5
    assert drawn(0) == drawn(0) != drawn(1)
    assert drawn(0) != [f"{i}#{turn}" for i in range(1, 10, 2) for turn in range(2)]


# --- questions as JSON lines ----------------------------------------------------------------------


def test_jsonl_fields(images, tmp_path):
    records = [
        {"id": "a", "image": "a.png", "question": "What?", "answer": "grey", "objects": [["x"]]},
        {"question_id": 4, "images": ["a.png", "sub/b.gif"], "text": "Same?\nSay.", "extra": None},
        {"id": "t", "images": [], "question": "Without image?"},
    ]
    text = "\ufeff" + "\n".join(json.dumps(r) for r in records[:2])
    text += "\r\n\n" + json.dumps(records[2], ensure_ascii=False)
    found = QuestionsJsonl(written(tmp_path / "q.jsonl", text), str(images)).open()
    assert list(found.prompts) == [
        Prompt("a", "What?", ("a.png",), {"answer": "grey", "objects": [["x"]]}),
        Prompt("4", "Same?\nSay.", ("a.png", "sub/b.gif"), {"question_id": 4}),
        Prompt("t", "Without image?", ()),
    ]
    assert not found.drops


BAD_LINES = [
    ('{"id": "x", "image": "a.png", "quest', "broken line"),
    ('[{"id": "x"}', "broken line"),
    ("[" * 100_000, "broken line"),
    ('["x"]', "not an object"),
    ('{"image": "a.png", "question": "Q?"}', "no id"),
    ('{"id": 1.5, "image": "a.png", "question": "Q?"}', "no id"),
    ('{"id": "x", "question": "Q?"}', "no image"),
    ('{"id": "x", "image": null, "question": "Q?"}', "no image"),
    ('{"id": "x", "image": "a.png"}', "no question"),
    ('{"id": "x", "image": "a.png", "question": ["Q?"]}', "no question"),
    ('{"id": "x", "image": "a.png", "question": " \\n"}', "empty question"),
    ('{"id": "x", "image": "a.png", "question": "<image>\\n"}', "empty question"),
    ('{"id": "x", "image": "a.png", "question": "\\udcff"}', "invalid text"),
    ('{"id": "\\udcff", "image": "a.png", "question": "Q?"}', "invalid text"),
    ('{"id": "x", "image": "", "question": "Q?"}', "missing image"),
    ('{"id": "x", "image": "sub", "question": "Q?"}', "missing image"),
    ('{"id": "x", "images": ["a.png", "../secret.png"], "question": "Q?"}', "unsafe image path"),
    ('{"id": "good", "image": "a.png", "question": "Good?"}', "repeated"),
]


def test_jsonl_bad_lines_are_counted_and_the_others_used(images, tmp_path):
    good = '{"id": "good", "image": "a.png", "question": "Good?"}'
    text = "\n".join([good, *(line for line, _ in BAD_LINES)])
    path = Path(written(tmp_path / "q.jsonl", text))
    path.write_bytes(path.read_bytes() + b'\n{"id": "\xff"}')  # not UTF-8
    found = QuestionsJsonl(str(path), str(images)).open()
    assert list(found.prompts) == [Prompt("good", "Good?", ("a.png",))]
    expected = collections.Counter(reason for _, reason in BAD_LINES)
    assert found.drops == expected + collections.Counter({"broken line": 1})


def test_jsonl_nothing_left_names_the_first_line(images, tmp_path):
    path = written(tmp_path / "q.jsonl", "\n1\n{")
    with pytest.raises(DataError, match=r"q.jsonl.*1 not an object, 1 broken line.*line 2: "):
        QuestionsJsonl(path, str(images)).open()


# --- SeVa's pairs ---------------------------------------------------------------------------------


def test_seva_questions(images, tmp_path):
    pair = {"chosen": "A cat.", "reject": "A dog.", "question": "What?", "image_id": "a.png"}
    gif = pair | {"question": "Who?", "image_id": "sub/b.jpg"}
    bad = [
        (3, "not an object"),
        (pair | {"question": None}, "no question"),
        (pair | {"question": ""}, "empty question"),
        (pair | {"image_id": 3}, "no image"),
        (pair | {"image_id": "../secret.png"}, "unsafe image path"),
        (pair | {"image_id": "gone.jpg"}, "missing image"),
    ]
    path = written(tmp_path / "step3.json", [pair, pair, gif, *(record for record, _ in bad)])
    found = SevaJson(path, str(images)).open()
    assert list(found.prompts) == [
        Prompt("a.png#0", "What?", ("a.png",)),
        Prompt("a.png#1", "What?", ("a.png",)),
        Prompt("sub/b.jpg#2", "Who?", ("sub/b.jpg",)),
    ]
    assert found.drops == collections.Counter(reason for _, reason in bad)


# --- files that cannot be read --------------------------------------------------------------------


@pytest.mark.parametrize("source", [LlavaJson, SevaJson])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"id": "x"', "f.json: not JSON"),
        ('{"id": "x"}', r"f.json: no usable prompt is left \(1 no (image|question)\)"),
        ("[]", "f.json: no usable prompt is left"),
        ("[" * 100_000, "f.json: not JSON"),
    ],
)
def test_broken_json(images, tmp_path, source, text, message):
    with pytest.raises(DataError, match=message):
        source(written(tmp_path / "f.json", text), str(images)).open()


@pytest.mark.parametrize("source", [LlavaJson, SevaJson, QuestionsJsonl])
def test_missing_files(images, tmp_path, source):
    with pytest.raises(DataError, match=r"none.json: cannot be read \(No such file"):
        source(str(tmp_path / "none.json"), str(images)).open()
    with pytest.raises(DataError, match="path of the data is not set"):
        source("", str(images)).open()
    path = written(tmp_path / "f.json", [talk("Q?")])
    with pytest.raises(DataError, match="nowhere: no such image folder"):
        source(path, str(images / "nowhere")).open()
    with pytest.raises(DataError, match="image folder is not set"):
        source(path, "").open()


# --- several sources ------------------------------------------------------------------------------


def test_concatenated_keeps_equal_names_apart(tmp_path):
    for folder, level in (("one", 50), ("two", 60)):
        paint(tmp_path / folder / "sub" / "a.png", level)
        (tmp_path / folder / "gone.png").symlink_to("nowhere")
    one, two = (ImageFolder(str(tmp_path / folder)) for folder in ("one", "two"))
    found = Concatenated((one, Concatenated((two, one)))).open()
    assert [p.id for p in found.prompts] == [
        "0/sub/a.png#0",
        "1/0/sub/a.png#0",
        "1/1/sub/a.png#0",
    ]
    levels = [found.load_image(p.images[0])[0, 0, 0] for p in found.prompts]
    assert levels == [50, 60, 50]
    assert found.drops == {"missing image": 3}


def test_loading_checks_the_path_again(images):
    found = Concatenated((ImageFolder(str(images)),)).open()
    for name in ("0/../secret.png", "0//etc/passwd", "0/link.png"):
        with pytest.raises(ExampleError) as caught:
            found.load_image(name)
        assert caught.value.reason == "unsafe image path"


def test_concatenated_needs_every_source(images):
    with pytest.raises(DataError, match="at least one source"):
        Concatenated().open()
    with pytest.raises(DataError, match="nowhere"):
        Concatenated((ImageFolder(str(images)), ImageFolder("nowhere"))).open()


# --- the published run ----------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["", "_t800", "_moco", "_faithful"])
def test_published_configs_load(variant):
    experiment = read_config(config_directory() / f"llava15_7b_seva{variant}.py")
    check(experiment)
    assert experiment.workdir == f"runs/llava15_7b_seva{variant}"


def test_published_run_has_the_published_number_of_steps():
    experiment = read_config(config_directory() / "llava15_7b_seva.py")
    train = experiment.train
    steps = num_steps(10_800, train.batch_size, train.epochs, train.repeat, train.max_steps)
    assert steps == 169
    rate = experiment.optim.learning_rate(steps)
    assert [float(rate(6)), float(rate(steps))] == pytest.approx([2e-6, 0.0], abs=1e-12)
    assert float(rate(5)) < 2e-6  # 6 steps of warm-up


def test_lines_are_read_one_at_a_time(tmp_path):
    """Of a file of 20 MB, no more than some lines are in memory."""
    path = tmp_path / "large.jsonl"
    line = json.dumps({"text": "x" * 100_000})
    path.write_text("\n".join([line] * 200), encoding="utf-8")
    tracemalloc.start()
    try:
        records = [len(record["text"]) for _, record in json_lines(str(path))]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert records == [100_000] * 200
    assert peak < 2_000_000
    with pytest.raises(DataError, match=r"no\.jsonl: cannot be read"):
        json_lines(str(tmp_path / "no.jsonl"))
