"""Benchmarks: small files as their authors write them, and what comes out."""

import base64
import csv
import dataclasses
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from helpers_suites import every_suite
from PIL import Image
from scorers import SCORERS, answered

from seva_jax.evals import (
    Answer,
    Suite,
    format_results,
    read_result,
    suites,
    write_records,
    write_summary,
)
from seva_jax.evals import suite as suite_module
from seva_jax.evals.choice import FreeParser
from seva_jax.evals.judge import Case, LocalJudge, Verdict
from seva_jax.evals.suites import (
    GQA,
    CocoChair,
    LlavaBench,
    MMBench,
    MMVet,
    PopeSets,
    ScienceQA,
    SeedBench,
    Shr,
    TextVQA,
)
from seva_jax.evals.suites.described import read_synonyms
from seva_jax.evals.vqa import vqa_accuracy
from seva_jax.types import DataError, ExampleError


def png(color=(200, 30, 30)):
    """Returns the bytes of a small picture."""
    file = io.BytesIO()
    Image.new("RGB", (6, 4), color).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def images(tmp_path):
    """Returns an image folder whose names become pictures when they are asked for."""
    folder = tmp_path / "images"
    folder.mkdir()
    return folder


def lines(path, records):
    """Writes JSON lines."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def dump(path, value):
    """Writes JSON."""
    path.write_text(json.dumps(value))
    return str(path)


def outcome(suite: Suite, texts, folder, picture=None):
    """Opens a suite, answers its questions and scores them: (questions, metrics, records)."""
    questions = suite.open()
    assert len(questions.prompts) == len(texts)
    if picture:
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_bytes(png())
        assert questions.load_image(questions.prompts[0].images[0]).shape == (4, 6, 3)
    folder.mkdir(exist_ok=True)
    answers = [Answer(p, t) for p, t in zip(questions.prompts, texts, strict=True)]
    suite.write_answers(folder, "tiny", answers)
    result = questions.evaluator(lambda prompts: list(texts), list(questions.prompts))
    write_records(folder / "records.jsonl", result.records)
    write_summary(folder / "summary.json", result)
    again = read_result(folder / "summary.json", folder / "records.jsonl")
    assert repr(again.metrics) == repr(result.metrics)  # NaN differs from itself
    assert (again.records, again.definitions) == (result.records, result.definitions)
    assert suite.name in format_results([result], "tiny")
    return questions, {k: m.value for k, m in result.metrics.items()}, result.records


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_table(path):
    """Returns rows as other programs read them."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file, dialect="excel-tab"))


def pope_file(folder, category, num):
    question = {"question_id": 1, "image": "COCO_val2014_1.jpg", "label": "yes"}
    records = [
        question | {"question_id": i + 1, "text": f"Is there a {category} {i} in the image?"}
        | {"label": "no" if i % 2 else "yes"}
        for i in range(num)
    ]  # fmt: skip
    lines(folder / f"coco_pope_{category}.json", records)


def test_pope_sets(tmp_path, images):
    """Every set has its own labels, both parsers, hashes, and the files of two scorers."""
    for category in ("random", "popular"):
        pope_file(tmp_path, category, 2)
    suite = PopeSets(folder=str(tmp_path), sets=("random", "popular"), image_root=str(images))
    texts = ["Yes", "No, it is not", "NO", "no"]
    questions, metrics, records = outcome(
        suite, texts, tmp_path / "out", images / "COCO_val2014_1.jpg"
    )
    assert questions.prompts[0].question == (
        "Is there a random 0 in the image?\nAnswer the question using a single word or phrase."
    )
    assert len(questions.files) == 2
    assert all(len(digest) == 64 for digest in questions.files.values())
    assert (metrics["accuracy"], metrics["words: accuracy"]) == (1.0, 0.75)
    assert metrics["words: popular/accuracy"] == 0.5
    answers = read_lines(tmp_path / "out" / "answers.jsonl")
    assert list(answers[3]) == [
        "question_id", "prompt", "text", "answer_id", "model_id", "metadata",
    ]  # fmt: skip
    assert [a["question_id"] for a in answers] == [0, 1, 2, 3]
    asked = {q["question_id"]: q for q in read_lines(tmp_path / "out" / "questions.jsonl")}
    assert [asked[a["question_id"]]["category"] for a in answers] == ["random"] * 2 + [
        "popular"
    ] * 2
    assert [a["answer"] for a in read_lines(tmp_path / "out" / "pope_popular.jsonl")] == [
        "NO",
        "no",
    ]
    table = read_table(tmp_path / "out" / "tiny_POPE.tsv")
    assert list(table[0]) == ["index", "question", "answer", "category", "prediction"]
    assert [row["prediction"] for row in table] == texts
    assert [row["answer"] for row in table] == ["Yes", "No"] * 2
    assert records[0]["parsed"] == "yes"


@pytest.mark.parametrize(("num", "words"), [(2910, "LLaVA-1.5 was published"), (2, "neither")])
def test_pope_says_which_variant_it_is(tmp_path, images, num, words):
    pope_file(tmp_path, "random", num)
    suite = PopeSets(folder=str(tmp_path), sets=("random",), image_root=str(images))
    assert words in suite.open().notes[1]


def test_gqa(tmp_path, images):
    """Answers are lower case without a final dot, and there is a table by type."""
    question = {"imageId": "n1", "types": {"structural": "query", "semantic": "attr"}}
    path = dump(
        tmp_path / "testdev_balanced_questions.json",
        {
            "201": question | {"question": "What color?", "answer": "red"},
            "202": {"question": "Is it?", "imageId": "n2", "answer": "no", "types": {}},
        },
    )
    suite = GQA(path=path, image_root=str(images))
    _, metrics, _ = outcome(suite, ["Red.", "Yes"], tmp_path / "out", images / "n1.jpg")
    assert metrics == {"accuracy": 0.5, "attr/accuracy": 1.0, "query/accuracy": 1.0}
    assert json.loads((tmp_path / "out" / "gqa.json").read_text()) == [
        {"questionId": "201", "prediction": "red"},
        {"questionId": "202", "prediction": "yes"},
    ]


TEXTVQA = {
    "question": "What is the brand?",
    "image_id": "0054c91397f2fe05",
    "question_id": 34602,
    "answers": ["nokia"] * 2 + ["Nokia."] + ["toshiba"] * 7,
}


def test_textvqa(tmp_path, images):
    """LLaVA's questions find annotations by image and words; the score is the VQA accuracy."""
    path = dump(tmp_path / "TextVQA_0.5.1_val.json", {"data": [TEXTVQA]})
    asked = "What is the brand?\nReference OCR token: NOKIA\nAnswer with one word."
    image = {"question_id": TEXTVQA["image_id"], "image": "0054c91397f2fe05.jpg", "text": asked}
    questions_path = lines(tmp_path / "llava_textvqa_val_v051_ocr.jsonl", [image])
    suite = TextVQA(path=path, questions_path=questions_path, image_root=str(images))
    _, metrics, _ = outcome(suite, ["the nokia"], tmp_path / "out", images / "0054c91397f2fe05.jpg")
    assert metrics["accuracy"] == pytest.approx(0.9)
    (answer,) = read_lines(tmp_path / "out" / "answers.jsonl")
    assert (answer["question_id"], answer["prompt"]) == (TEXTVQA["image_id"], asked)
    plain = dataclasses.replace(suite, questions_path="").open()
    assert plain.prompts[0].question.startswith("What is the brand?\nAnswer")
    assert plain.notes == ("plain questions, without recognised text",)
    lines(tmp_path / "llava_textvqa_val_v051_ocr.jsonl", [image | {"text": "Else?\nx"}])
    with pytest.raises(DataError, match=r"question 'Else\?' .* is not in .*TextVQA_0"):
        suite.open()


def test_vqa_accuracy_by_hand():
    """Each of ten people is left out in turn."""
    people = ["2"] * 3 + ["3"] * 7
    # Three people each see two others who agree, seven see three.
    assert vqa_accuracy("Two.", people) == pytest.approx((3 * 2 / 3 + 7) / 10)
    assert vqa_accuracy("dont", ["don't"] * 10) == 1.0
    assert vqa_accuracy("10:30", ["10:30"] * 10) == 1.0
    assert vqa_accuracy("1,000", ["1000"] * 10) == 1.0


def mmbench_table(path, rows):
    """Writes a table with MMBench's columns."""
    columns = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image"]
    columns += ["source", "l2-category", "comment", "split"]
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, columns, dialect="excel-tab", lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    return str(path)


def test_mmbench(tmp_path):
    """Base64 images, hints, circular copies that repeat an image, and both answer files work."""
    row = {"question": "Which\nis it?", "hint": "A hint.", "A": "cat", "B": "dog", "answer": "A"}
    rows = [
        row
        | {"index": 241, "image": base64.b64encode(png()).decode(), "category": "identity"}
        | {"split": "dev"},
        row | {"index": 1_000_241, "image": "241", "A": "dog", "B": "cat", "answer": "B"},
        row | {"index": 5, "image": "241", "hint": "", "C": "ram", "category": "identity"},
    ]
    path = mmbench_table(tmp_path / "mmbench_dev.tsv", rows)
    suite = MMBench(path=path, vlmeval_dataset="MMBench_DEV_EN")
    questions, metrics, _ = outcome(suite, ["A", "A", "(A)"], tmp_path / "out")
    np.testing.assert_array_equal(questions.load_image("1000241"), questions.load_image("241"))
    assert questions.prompts[0].question == (
        "A hint.\nWhich\nis it?\nA. cat\nB. dog\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert metrics["accuracy"] == pytest.approx(2 / 3)
    assert metrics["circular_accuracy"] == 0.5
    assert metrics["identity/accuracy"] == 1.0
    first, second, third = read_lines(tmp_path / "out" / "answers.jsonl")
    assert first["prompt"] == "A hint.\nWhich\nis it?\nA. cat\nB. dog"
    assert (second["question_id"], second["round_id"]) == (1_000_241, 1)
    assert third["options"] == ["cat", "dog", "ram"]
    assert third["option_char"] == ["A", "B", "C"]
    for name in ("submission.tsv", "tiny_MMBench_DEV_EN.tsv"):
        table = read_table(tmp_path / "out" / name)
        split = ["split"] if name != "submission.tsv" else []
        columns = ["index", "question", "A", "B", "C", "answer", "category", *split, "prediction"]
        assert list(table[0]) == columns
        assert [row["index"] for row in table] == ["241", "1000241", "5"]
        assert table[0]["question"] == "Which\nis it?"
    without = [{k: v for k, v in row.items() if k != "answer"} for row in rows]
    suite = MMBench(path=mmbench_table(tmp_path / "test.tsv", without))
    questions, metrics, _ = outcome(suite, ["A", "A", "A"], tmp_path / "out2")
    assert metrics == {"length": 1.0}
    assert "no answers" in questions.notes[0]


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"), ("(B)", "B"), ("B.", "B"), ("B. dog", "B"), ("(B) dog", "B"), ("B) dog", "B"),
        ("The answer is (B).", "B"), ("Answer: B", "B"), ("DOG.", "B"), ("b", ""), ("E", ""),
        ("A dog", ""), ("B is it", ""), ("", ""), ("none of them", ""), ("Because it is", ""),
    ],
)  # fmt: skip
def test_letters(text, letter):
    """The documented rules hold, and other texts are not read."""
    assert FreeParser()(text, ["cat", "dog", "ram", "cow"]) == letter


def test_seed(tmp_path, images):
    """Only questions about images count, and there is a table by dimension."""
    question = {
        "answer": "B", "choice_a": "One", "choice_b": "Two", "choice_c": "Three",
        "choice_d": "Four", "data_id": "1454426_2591111986", "data_type": "image",
        "question": "How many towels?", "question_id": "101669", "question_type_id": 5,
        "segment": [],
    }  # fmt: skip
    path = dump(
        tmp_path / "SEED-Bench.json",
        {
            "question_type": {"Scene Understanding": 1, "Instances Counting": 5},
            "questions": [
                question,
                question | {"data_type": "video", "question_id": "7"},
                question | {"question_id": "v_8", "question_type_id": 1, "answer": "D"},
            ],
        },
    )
    suite = SeedBench(path=path, image_root=str(images))
    questions, metrics, _ = outcome(
        suite, ["B", "A"], tmp_path / "out", images / "1454426_2591111986.png"
    )
    assert metrics["Instances Counting/accuracy"] == 1.0
    assert metrics["accuracy"] == 0.5
    assert "1 questions on videos" in questions.notes[0]
    ids = [a["question_id"] for a in read_lines(tmp_path / "out" / "answers.jsonl")]
    assert ids == [101669, "v_8"]
    assert read_lines(tmp_path / "out" / "seed.jsonl")[0]["prediction"] == "B"


def test_scienceqa(tmp_path, images):
    """Questions may have an image or none; both files' categories are read."""
    problem = {"choices": ["yes", "no"], "subject": "natural science"}
    problems = dump(
        tmp_path / "problems.json",
        {
            "4": problem | {"answer": 1, "grade": "grade8"},
            "5": problem | {"answer": 0, "grade": "grade2"},
        },
    )
    turn = {"from": "human", "value": "<image>\nIs it?\nA. yes\nB. no"}
    path = dump(
        tmp_path / "llava_test_CQM-A.json",
        [
            {"id": "4", "image": "4/image.png", "conversations": [turn]},
            {"id": "5", "conversations": [turn | {"value": "Is it?\nA. yes\nB. no"}]},
        ],
    )
    suite = ScienceQA(path=path, problems=problems, image_root=str(images))
    questions, metrics, _ = outcome(
        suite, ["B", "The answer is B."], tmp_path / "out", images / "4" / "image.png"
    )
    assert questions.prompts[1].images == ()
    assert metrics["with image/accuracy"] == 1.0
    assert metrics["grades 1-6/accuracy"] == 0.0
    assert metrics["natural science/accuracy"] == 0.5
    first, second = read_lines(tmp_path / "out" / "answers.jsonl")
    assert first["prompt"].startswith("<image>\nIs it?")
    assert "<image>" not in second["prompt"]


def half_right(case: Case) -> Verdict:
    """Scores an answer by its number of words, and fails on a broken one."""
    if "broken" in case.answers[0]:
        raise ExampleError("cannot say", "no idea")
    return Verdict(tuple(float(len(a.split())) for a in case.answers), "by length")


def test_mm_vet(tmp_path, images):
    """MM-Vet's evaluator gets its answers; a judge gives a score for every capability."""
    record = {"imagename": "v1_0.png", "question": "What is x?", "imagesource": "x"}
    path = dump(
        tmp_path / "mm-vet.json",
        {
            "v1_0": record | {"answer": "-1 <AND> -5", "capability": ["ocr", "math"]},
            "v1_1": record | {"answer": "a", "capability": ["ocr"]},
        },
    )
    suite = MMVet(path=path, image_root=str(images))
    texts = ["word", "broken"]
    _, metrics, _ = outcome(suite, texts, tmp_path / "out", images / "v1_0.png")
    assert metrics == {"length": 1.0}
    saved = json.loads((tmp_path / "out" / "mm-vet.json").read_text())
    assert saved == {"v1_0": "word", "v1_1": "broken"}
    table = (tmp_path / "out" / "tiny_MMVet.tsv").read_text().splitlines()
    assert table[0].split("\t") == ["index", "question", "answer", "category", "prediction"]
    assert table[1].split("\t")[3] == "ocr,math"
    judged = dataclasses.replace(suite, judge=LocalJudge(half_right))
    _, metrics, records = outcome(judged, texts, tmp_path / "out")
    assert (metrics["score"], metrics["unjudged"]) == (1.0, 0.5)
    assert (metrics["math/score"], metrics["ocr/score"]) == (1.0, 1.0)
    assert records[1]["why"] == "no idea"


def test_llava_bench(tmp_path, images):
    """Answers are in the order of the questions; scores are relative to the reference answers."""
    question = {"image": "001.jpg", "category": "conv"}
    lines(
        tmp_path / "questions.jsonl",
        [question | {"question_id": i, "text": f"Q{i}?"} for i in (1, 0)],
    )
    lines(tmp_path / "context.jsonl", [{"id": "001", "image": "001.jpg", "caption": "A volcano."}])
    lines(
        tmp_path / "answers_gpt4.jsonl",
        [{"question_id": i, "text": "four words are here"} for i in (0, 1)],
    )
    suite = LlavaBench(folder=str(tmp_path), image_root=str(images), judge=LocalJudge(half_right))
    _, metrics, _ = outcome(suite, ["one two", "one"], tmp_path / "out", images / "001.jpg")
    assert metrics["score"] == metrics["conv/score"] == 3 / 8
    ids = [a["question_id"] for a in read_lines(tmp_path / "out" / "answers.jsonl")]
    assert ids == [1, 0]
    assert read_table(tmp_path / "out" / "tiny_LLaVABench.tsv")[0] == {
        "index": "0",
        "question": "Q1?",
        "category": "conv",
        "caption": "A volcano.",
        "gpt4_ans": "four words are here",
        "prediction": "one two",
    }


def test_coco_chair(tmp_path, images):
    """Synonyms are data, plurals count, captions add to the truth, the draw is reproducible."""
    synonyms = tmp_path / "synonyms.txt"
    synonyms.write_text("person, man, policeman\ndog, puppy\nhot dog\n")
    instances = dump(
        tmp_path / "instances.json",
        {
            "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(5)],
            "annotations": [{"image_id": i, "category_id": 18} for i in range(5)],
            "categories": [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}],
        },
    )
    captions = dump(
        tmp_path / "captions.json",
        {"annotations": [{"image_id": i, "caption": "Two men."} for i in range(5)]},
    )
    suite = CocoChair(
        instances=instances, synonyms=str(synonyms), num_images=2, image_root=str(images)
    )
    texts = ["Puppies and policemen.", "A dog"]
    first, metrics, _ = outcome(suite, texts, tmp_path / "out")
    assert metrics["chair_i"] == pytest.approx(1 / 3)
    assert metrics["chair_s"] == 0.5
    with_captions = dataclasses.replace(suite, captions=captions)
    second, metrics, _ = outcome(with_captions, texts, tmp_path / "out")
    assert metrics["chair_i"] == 0.0
    assert [p.id for p in first.prompts] == [p.id for p in second.prompts]
    assert read_lines(tmp_path / "out" / "captions.jsonl")[0]["caption"] == texts[0]
    synonyms.write_text("dog, pup\nseal, pup\n")
    with pytest.raises(DataError, match="'pup' stands for 'dog' and for 'seal'"):
        read_synonyms(str(synonyms))


def second_sentence_is_wrong(case: Case) -> Verdict:
    """Judges the second sentence, and no other, to be wrong."""
    assert "a red car (1, 2, 3, 4)\nIt is day." in case.reference
    return Verdict(tuple(float(i == 1) for i in range(len(case.answers))))


def test_shr(tmp_path, images):
    """Sentences are judged against region descriptions and facts; a silent model has none."""
    dump(tmp_path / "val_images_final.json", [{"image_id": 5}, {"image_id": "6"}])
    lines(tmp_path / "shr_factual_part1.jsonl", [{"5": ["It is day."]}])
    lines(tmp_path / "shr_factual_part2.jsonl", [{"6": ["x"]}])
    dump(
        tmp_path / "image_data.json",
        [
            {"image_id": i, "url": f"https://cs.stanford.edu/people/rak248/VG_100K_2/{i}.jpg"}
            for i in (5, 6)
        ],
    )
    region = {"image_id": 5, "phrase": "a red car", "x": 1, "y": 2, "width": 3, "height": 4}
    dump(tmp_path / "region_descriptions.json", [{"id": 5, "regions": [region]}])
    suite = Shr(
        folder=str(tmp_path),
        vg_folder=str(tmp_path),
        judge=LocalJudge(second_sentence_is_wrong),
        image_root=str(images),
    )
    _, metrics, records = outcome(
        suite, ["A car. A dog! Day.", ""], tmp_path / "out", images / "VG_100K_2" / "5.jpg"
    )
    assert metrics["score"] == pytest.approx(1 / 3)
    assert records[1]["sentences"] == 0


def test_lmms_log(tmp_path, images):
    """The file has what lmms-eval's from_log reads."""
    pope_file(tmp_path, "random", 2)
    suite = PopeSets(
        folder=str(tmp_path), sets=("random",), image_root=str(images), lmms_task="pope"
    )
    outcome(suite, ["Yes", "No"], tmp_path / "out")
    log = json.loads((tmp_path / "out" / "lmms_eval.json").read_text())
    assert log["args"] == {"model": "tiny", "model_args": "", "limit": None}
    assert log["model_configs"]["task"] == "pope"
    assert {d["doc_id"]: d["resps"][0][0] for d in log["logs"]} == {0: "Yes", 1: "No"}


@pytest.mark.parametrize(
    ("suite", "expected"),
    [
        (GQA(path="nowhere.json"), r"nowhere\.json: cannot be read"),
        (GQA(), "the path of the data is not set; give the file"),
        (MMVet(path="broken"), r"broken: not JSON"),
        (GQA(path="list"), "list: expected an object, found list"),
        (ScienceQA(path="list", problems="ids"), r"problem 4: field 'choices' is None"),
        (MMVet(path="ids"), "question 4: ids have the form v1_0"),
        (MMBench(path="table"), r"table, row 2: not as many cells"),
        (SeedBench(path="seed"), "seed, entry 0 of questions: field 'question_id' is None"),
        (GQA(path="gqa"), "image_root '' is not a folder"),
        (MMBench(path="twice"), "question '1' is in twice twice"),
    ],
)
def test_bad_files_are_named(tmp_path, monkeypatch, suite, expected):
    """The error has the place and says what to do."""
    monkeypatch.chdir(tmp_path)
    dump(tmp_path / "list", [{"id": "4", "conversations": [{"value": "Q"}]}])
    dump(tmp_path / "ids", {"4": {}})
    dump(tmp_path / "seed", {"questions": [{"data_type": "image"}]})
    dump(tmp_path / "gqa", {"1": {"answer": "a", "question": "q", "imageId": "1"}})
    (tmp_path / "broken").write_text("{")
    row = {"index": 1, "question": "q", "A": "a", "B": "b", "answer": "A", "image": "x"}
    mmbench_table(tmp_path / "twice", [row, row])
    (tmp_path / "table").write_text("index\tquestion\n1\n")
    with pytest.raises(DataError, match=expected):
        suite.open()


def test_limit_is_noted(tmp_path, images):
    """A part of a benchmark is not the benchmark."""
    pope_file(tmp_path, "random", 5)
    suite = PopeSets(folder=str(tmp_path), sets=("random",), image_root=str(images), limit=3)
    questions = suite.open()
    assert len(questions.prompts) == 3
    assert questions.notes[-1] == "only the first 3 of 5 questions"


def test_scorers_are_given_what_they_ask_for(tmp_path):
    """`python tests/scorers.py` needs other packages; preparing files for them does not."""
    suites = {suite.name: suite for suite in every_suite(tmp_path, 12)}
    for name in dict.fromkeys(name for _, name in SCORERS):
        task = answered(suites[name], tmp_path, spoil=True)
        kept, given = (read_lines(path / "answers.jsonl") for path in (task.kept, task.given))
        assert all(a["text"] != b["text"] for a, b in zip(kept, given, strict=True))
        assert name in ("textvqa", "mm-vet") or task.ours["accuracy"] == pytest.approx(2 / 3)


def test_the_readme_names_suites_that_exist():
    """Its suite file runs, and every config line of its table has only known fields."""
    text = (Path(suite_module.__file__).parent / "README.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert code
    scope = {}
    exec(code[1], scope)
    assert len(scope["get_suites"]()) == 4
    shown = re.findall(r"`(\w+)\(([\w=…, ]*)\)` \|", text)
    kinds = {name: value for name, value in vars(suites).items() if isinstance(value, type)}
    known = {name: kind for name, kind in kinds.items() if issubclass(kind, Suite)}
    assert {name for name, _ in shown} == set(known)
    for name, arguments in shown:
        fields = {f.name for f in dataclasses.fields(known[name])}
        assert {a.split("=")[0].strip() for a in arguments.split(",")} <= fields, name
