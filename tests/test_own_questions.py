"""Questions of a user's own: every field and format, and errors that name file, line and fields."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from seva_jax.config import Evaluation
from seva_jax.data.files import QuestionsJsonl
from seva_jax.evals import Answer, ExactAnswer, suite
from seva_jax.evals.suites import OwnQuestions, PopeSets, question_suite
from seva_jax.evals.suites.own_questions import FIELDS
from seva_jax.types import DataError


@pytest.fixture
def file(tmp_path):
    """Returns a function that writes records as JSON lines next to the image a.png."""
    Image.new("RGB", (6, 4)).save(tmp_path / "a.png")

    def write(*records, name="mine.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return str(path)

    return write


def asked(question="What?", answer="red", **more):
    return {"image": "a.png", "question": question, "answer": answer} | more


def scored(questions, *answers):
    """Returns the metrics of answers by name, and the questions of a suite."""
    questions = questions.open()
    result = questions.evaluator(lambda prompts: list(answers), list(questions.prompts))
    return {name: metric.value for name, metric in result.metrics.items()}, questions


def test_short_answers_with_prior_and_category(file):
    """Two of four are right; of two that conflict with the prior, one says what the prior says."""
    path = file(
        asked(prior="blue", category="x"),
        asked(answer="Green.", prior="blue", category="x"),
        asked(answer="white", prior="white", category="y"),
        asked(answer=2, id="q9", category=None),
    )
    metrics, questions = scored(question_suite(path), "blue", "green", "White", "3")
    assert [prompt.id for prompt in questions.prompts] == ["1", "2", "3", "q9"]
    assert questions.prompts[0].question == "What?"
    assert questions.load_image("a.png").shape == (4, 6, 3)
    assert metrics == {
        "accuracy": 0.5, "prior_errors": 0.5, "other_errors": 0.0, "x/accuracy": 0.5,
        "y/accuracy": 1.0,
    }  # fmt: skip
    assert questions.notes == ("scored by exact match, ignoring case and a final dot",)
    assert list(questions.files) == [path]


def test_yes_no_questions_are_scored_as_pope(file):
    """By hand: 2 true positives, 1 false positive, 1 false negative, 1 true negative."""
    records = [asked(answer=answer) for answer in ("yes", "Yes.", "no", "yes", "no")]
    metrics, questions = scored(question_suite(file(*records)), "Yes", "yes", "Yes", "No", "no")
    f1 = 2 * (2 / 3) * (2 / 3) / (2 / 3 + 2 / 3)
    expected = {
        "accuracy": 3 / 5, "precision": 2 / 3, "recall": 2 / 3, "f1": f1, "yes_ratio": 3 / 5,
    }  # fmt: skip
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    assert metrics["words: f1"] == pytest.approx(f1)
    assert questions.notes == ("scored as yes/no questions, like POPE",)
    # With a prior, it is counted how often the prior decides.
    records[0]["prior"] = "no"
    metrics, _ = scored(question_suite(file(*records)), "No", "yes", "Yes", "No", "no")
    assert (metrics["accuracy"], metrics["prior_errors"]) == (2 / 5, 1.0)


def test_choices(file):
    """An answer is a letter or the text of a choice, and models may answer with either."""
    record = asked(choices=["red", "blue", "A dog"])
    path = file(
        record | {"category": "x"},
        record | {"answer": "c"},
        {"images": [], "text": "Which?", "label": "blue", "options": ["red", "blue"]},
    )
    metrics, questions = scored(question_suite(path), "A. red", "A dog", "A")
    assert questions.prompts[0].question == (
        "What?\nA. red\nB. blue\nC. A dog\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert [prompt.meta["answer"] for prompt in questions.prompts] == ["A", "C", "B"]
    assert questions.prompts[2].images == ()
    assert (metrics["accuracy"], metrics["x/accuracy"]) == (2 / 3, 1.0)
    own = OwnQuestions(path=path, image_root=".", suffix=" Letter?")
    assert own.open().prompts[2].question.endswith("B. blue Letter?")


def test_a_json_list_and_unused_fields(tmp_path, file):
    """A list is read like lines; a field that is not read is named, for it may be misspelt."""
    path = tmp_path / "list.json"
    path.write_text(json.dumps([asked(categories="x"), asked(author=3)]))
    file()
    questions = question_suite(str(path), suffix=" Say.").open()
    assert questions.notes[1] == "fields not used: author, categories"
    assert questions.prompts[1].question == "What? Say."


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (
            {"id": 1, "prompt": "What?", "image": "a.png", "answer": "red"},
            r"there is no field question \(or text\); the record has id, prompt, image, answer; "
            r"expected: question \(or text\), image \(or images\) and answer \(or label\); "
            "optional: id, choices, prior, category",
        ),
        ({"question": "What?", "answer": "red"}, r"no field image \(or images\)"),
        ({"question": "What?", "image": "a.png"}, r"no field answer \(or label\)"),
        (asked(answer=None), r"no field answer \(or label\)"),
        (asked(answer=True), r"answer \(or label\) is 'True'; it must be a text, not empty"),
        (asked(question=" "), r"question \(or text\) is ' '; it must be a text"),
        (asked(image=3), r"image \(or images\) is '3'"),
        (asked(image=["a.png", 3]), "it must be the name of a file, or a list of names"),
        (asked(prior=["blue"]), "prior is .*; it must be a text"),
        (asked(category=7.5), "category is '7.5'; it must be a text"),
        (asked(id=[1]), r"id \(or question_id\) is \[1\]; it must be a text or a whole number"),
        (asked(choices=["red"]), "must be a list of 2 to 10 texts"),
        (asked(choices="red, blue"), "must be a list of 2 to 10 texts"),
        (asked(choices=["blue", "white"]), "'red'; with choices it must be one of them, or a let"),
        (asked(choices=["red", "red"]), "'red'; with choices it must be one of them, or a letter"),
        (asked(choices=["red", "blue"], prior="blue"), "leave out prior or choices"),
        (asked(choices=["red", "blue"]), "some questions have choices and others not"),
    ],
)
def test_wrong_fields_are_named_with_file_and_line(file, record, expected):
    path = file(asked(), record)
    with pytest.raises(DataError, match=rf"mine\.jsonl, line 2: .*{expected}"):
        question_suite(path).open()


def test_wrong_files(tmp_path, file):
    with pytest.raises(DataError, match=r"mine\.jsonl: has no questions; expected JSON objects"):
        question_suite(file())
    with pytest.raises(DataError, match=r"none\.jsonl: cannot be read"):
        question_suite(str(tmp_path / "none.jsonl"))
    with pytest.raises(DataError, match=r"question '1' is in .*mine\.jsonl twice"):
        question_suite(file(asked(), asked(id=1))).open()
    with pytest.raises(DataError, match=r"a\.png, line 1: not valid JSON"):
        question_suite(str(tmp_path / "a.png"))


def test_single_files_of_pope(tmp_path, file):
    """A file of POPE is one set, asked and scored as in the benchmark of three."""
    records = [
        {"question_id": i, "image": "a.png", "text": f"Is there a {x}?", "label": label}
        for i, (x, label) in enumerate([("cat", "yes"), ("dog", "no"), ("cow", "yes")])
    ]
    path = file(*records, name="coco_pope_popular.json")
    pope = question_suite(path)
    assert pope == PopeSets(name="coco_pope_popular", folder=path, image_root=str(tmp_path))
    metrics, questions = scored(pope, "Yes", "Yes", "no")
    of_folder = PopeSets(folder=str(tmp_path), sets=("popular",), image_root=str(tmp_path))
    same, of_set = scored(of_folder, "Yes", "Yes", "no")
    assert (metrics, questions.prompts) == (same, of_set.prompts)
    assert metrics["popular/precision"] == 0.5
    # Another name does not say which set it is, so there are no categories.
    other = PopeSets(folder=file(*records, name="my_own.json"), image_root=str(tmp_path))
    metrics, questions = scored(other, "Yes", "Yes", "no")
    assert metrics["precision"] == 0.5
    assert not [name for name in metrics if "/" in name]
    assert questions.notes[1] == "3 questions"
    out = tmp_path / "out"
    out.mkdir()
    other.write_answers(out, "tiny", [Answer(p, "yes") for p in questions.prompts])
    assert len((out / "pope.jsonl").read_text().splitlines()) == 3


PAGE = (Path(suite.__file__).parent / "README.md").read_text(encoding="utf-8")


def test_the_examples_of_the_readme(tmp_path):
    """Each is read as the page says, and together they show every field under each of its names."""
    (tmp_path / "garden").mkdir()
    for name in ("kitchen.jpg", "garden/1.jpg"):
        Image.new("RGB", (6, 4)).save(tmp_path / name)
    section = PAGE[PAGE.index("## Your own questions") : PAGE.index("## Answer files")]
    scored_by, fields = [], set()
    for number, text in enumerate(re.findall(r"```jsonl\n(.*?)```", section, re.S)):
        path = tmp_path / f"{number}.jsonl"
        path.write_text(text)
        fields |= {name for line in text.splitlines() for name in json.loads(line)}
        questions = question_suite(str(path)).open()
        assert not [note for note in questions.notes if "not used" in note]
        for prompt in questions.prompts:
            questions.evaluator.truth(prompt)
            for image in prompt.images:
                questions.load_image(image)
        scored_by.append([type(questions.evaluator).__name__, *questions.notes])
    assert [names[0] for names in scored_by] == [
        "CategorisedAnswer", "Pope", "MultipleChoice", "Pope",
    ]  # fmt: skip
    assert "read by LlavaParser; words: WordParser" in scored_by[3]
    shown = set(
        re.findall(r"`(\w+)`", section[section.index("| field |") : section.index("A miss")])
    )
    assert shown == {name for names in FIELDS.values() for name in names}
    assert shown - fields == {"options"}


def test_prompts_of_another_source_keep_the_fields(file, tmp_path):
    """`QuestionsJsonl` gives `ExactAnswer` the answer and the prior of the same file."""
    record = {"id": 1} | asked(prior="blue", category="x")
    own = Evaluation(ExactAnswer("own"), QuestionsJsonl(file(record), str(tmp_path)))
    metrics, questions = scored(own, "blue")
    assert questions.prompts[0].meta == {"answer": "red", "prior": "blue", "category": "x"}
    assert metrics == {"accuracy": 0.0, "prior_errors": 1.0, "other_errors": 0.0}
