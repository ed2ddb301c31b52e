"""Answers are read as the benchmarks' own scorers read them.

The expected values were read off the scorers themselves, which `scorers_parsing.py` also compares
on 40,000 made-up answers each.
"""

import pytest
from helpers_suites import every_suite

from seva_jax.evals import Pope
from seva_jax.evals.choice import BareParser, FreeParser, MultipleChoice, ScienceParser
from seva_jax.evals.suites import MMBench, PopeSets
from seva_jax.evals.suites.short_answers import GqaAnswer, gqa_prediction
from seva_jax.evals.vqa import clean
from seva_jax.types import DataError, Prompt

OPTIONS = ["cat", "dog", "ram"]


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A", "A"), ("E", ""), ("C. ram", "C"), ("D. cow", ""), ("A.", ""), ("(A)", ""),
        ("cat", ""),
        ("The answer is B.", "B"), ("The answer is B", ""), ("The answer is A dog.", "A"),
        ("The answer is A. The answer is B.", ""), ("the answer is C.", ""), ("A: cat", ""),
        ("A . cat", ""), ("", ""),
    ],
)  # fmt: skip
def test_scienceqa(text, letter):
    """As LLaVA's eval_science_qa.py reads them."""
    assert ScienceParser()(text, OPTIONS) == letter


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("It's a dog's bone", "it 's dog 's bone"), ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"), ("none", "0"), ("The a an", ""),
        ("black-and-white", "black and white"), ("a - b-c", "bc"), ("U.S.A.", "usa"),
        ("3.5.", "3.5"), ("$1,000?", "$1000"), ("somebody'd", "somebodyd"), ("Lets go", "lets go"),
        ("(two)", "2"), ("12:30 p.m.", "12:30 pm"), ("." * 40 + "x", "........x"), ("n/a", "n"),
        ("yall'd've", "y'all'd've"), (" Ten\nmen ", "10 men"),
    ],
)  # fmt: skip
def test_textvqa(text, cleaned):
    """As m4c_evaluator.py cleans them, which LLaVA's eval_textvqa.py uses."""
    assert clean(text) == cleaned


@pytest.mark.parametrize(
    ("text", "prediction"),
    [
        ("Red.", "red"), ("red..", "red"), ("Red .", "red "), ("yes", "yes"), ("NO.", "no"),
        ("a.b.", "a.b"),
    ],
)  # fmt: skip
def test_gqa(text, prediction):
    """As LLaVA's convert_gqa_for_eval.py writes them; GQA's eval.py compares with ==."""
    assert gqa_prediction(text) == prediction
    for truth in ("red", "no"):
        record = GqaAnswer().score(Prompt("1", "?", ("i",), {"answer": truth}), text)
        assert record["correct"] == (prediction == truth)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is A dog.", ""), ("Answer: A dog", ""), ("The answer is I think B", ""),
        ("The answer is A.", "A"), ("The answer is A", "A"), ("The answer is (A) cat", "A"),
        ("The answer is B because it barks", "B"), ("The answer is Because", ""),
    ],
)  # fmt: skip
def test_an_article_is_no_letter(text, letter):
    """`FreeParser` takes A and I for words unless something sets them off."""
    assert FreeParser()(text, OPTIONS) == letter


def test_two_parsers_are_reported_under_two_names():
    """The scorer's own rule gives `accuracy`, the free one `free: accuracy`."""
    prompts = [Prompt(str(i), "?", ("i",), {"answer": "A", "options": OPTIONS}) for i in range(4)]
    answers = ["A", "A.", "The answer is A dog.", "B"]
    for parser, accuracy in [(ScienceParser(), 0.5), (BareParser(), 0.25), (FreeParser(), 0.5)]:
        result = MultipleChoice("x", (), parser)(lambda _: answers, prompts)
        assert result.metrics["accuracy"].value == accuracy
        free = result.metrics.get("free: accuracy")
        assert (free is None) if parser == FreeParser() else free.value == 0.5


HEADER = "index\tquestion\thint\tA\tB\tC\tD\tanswer\timage\n"


@pytest.mark.parametrize("none", ["None", "NA", "N/A", "nan", "null", "none"])
def test_an_option_may_say_none(tmp_path, none):
    """Only an empty cell is no option; pandas, which the originals use, drops such texts.

    A hint that says so is none, as there.
    """
    table = tmp_path / "t.tsv"
    table.write_text(
        HEADER
        + f"1\tWhich?\t\tcat\tdog\t{none}\tram\tD\tAAAA\n"
        + f"2\tWhich?\t\tcat\t{none}\t\t\tB\tAAAA\n"
        + f"3\tWhich?\t{none}\tcat\tdog\t\t\tB\tAAAA\n"
    )
    first, second, third = MMBench(path=str(table)).open().prompts
    assert first.meta["options"] == ["cat", "dog", none, "ram"]
    assert f"\nC. {none}\nD. ram" in first.question
    assert second.meta["options"] == ["cat", none]
    assert third.question.startswith("Which?")


def test_options_with_a_gap_are_refused(tmp_path):
    """What stands behind an empty cell is not dropped."""
    table = tmp_path / "t.tsv"
    table.write_text(HEADER + "1\tWhich?\t\tcat\tdog\t\tram\tD\tAAAA\n")
    with pytest.raises(DataError, match=r"t\.tsv, row 2: has the options A, B, D; .*without a gap"):
        MMBench(path=str(table)).open()


@pytest.mark.parametrize("source", ["gqa", "aokvqa"])
def test_pope_of_other_sources(tmp_path, source):
    """POPE's files for GQA and A-OKVQA are indented JSON arrays with other names."""
    images = tmp_path / "images"
    images.mkdir()
    for category in ("random", "popular", "adversarial"):
        (tmp_path / f"{source}_pope_seem_{category}.json").write_text(
            '[\n    {\n        "question_id": 1,\n        "image": "2405722.jpg",\n'
            '        "text": "Is there a bird in the image?",\n        "label": "yes"\n    },\n'
            '    {\n        "question_id": 2,\n        "image": "2405722.jpg",\n'
            '        "text": "Is there a wall in the image?",\n        "label": "no"\n    }\n]\n'
        )
    questions = PopeSets(folder=str(tmp_path), image_root=str(images)).open()
    assert [p.id for p in questions.prompts][:3] == ["random-1", "random-2", "popular-1"]
    assert isinstance(questions.evaluator, Pope)
    assert [p.meta["answer"] for p in questions.prompts] == ["yes", "no"] * 3
    (tmp_path / "coco_pope_random.json").write_text("{}")
    with pytest.raises(DataError, match=r"there are: .*coco_pope_random\.json"):
        PopeSets(folder=str(tmp_path), image_root=str(images)).open()


def test_a_broken_array_is_named(tmp_path):
    """So is an entry that is no object."""
    path = tmp_path / "coco_pope_random.json"
    for text, message in [('[{"a": 1}', "not JSON"), ("[1]", "entry 0: expected a JSON object")]:
        path.write_text(text)
        with pytest.raises(DataError, match=rf"coco_pope_random\.json.*{message}"):
            PopeSets(folder=str(tmp_path), sets=("random",), image_root=str(tmp_path)).open()


def test_parsers_are_named_in_the_result(tmp_path):
    """Readers of a number see which rule read the letters."""
    notes = {suite.name: suite.open().notes for suite in every_suite(tmp_path, 2)}
    assert "letters read by ScienceParser; free: FreeParser" in notes["scienceqa"]
    assert "letters read by BareParser; free: FreeParser" in notes["seed"]
