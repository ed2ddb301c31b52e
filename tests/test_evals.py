"""Evaluations: scores computed by hand, intervals, files, tables."""

from __future__ import annotations

import dataclasses
import json
import math
import time

import numpy as np
import pytest

from seva_jax.evals import (
    SHORT_ANSWER_SUFFIX,
    Chair,
    EvalResult,
    Evaluator,
    ExactAnswer,
    LlavaParser,
    Metric,
    Pope,
    Ratio,
    Row,
    WordParser,
    bootstrap,
    comparison_rows,
    format_markdown,
    format_table,
    load_pope,
    paired_difference,
    read_records,
    read_result,
    write_records,
    write_summary,
)
from seva_jax.types import DataError, Prompt


def make_prompts(*metas: dict) -> list[Prompt]:
    return [
        Prompt(id=f"p{i}", question=f"question {i}?", images=(f"{i}.png",), meta=meta)
        for i, meta in enumerate(metas)
    ]


def saying(*answers: str):
    return lambda prompts: list(answers)


def values(result: EvalResult) -> dict[str, float]:
    return {name: metric.value for name, metric in result.metrics.items()}


def mean(sums: np.ndarray) -> np.ndarray:
    return (sums[..., 0] / sums[..., 1])[..., None]


def accuracy_result(correct_N: np.ndarray, name: str = "exact") -> EvalResult:
    records = [
        {"id": str(i), "question": "q", "truth": "t", "count": 1, "correct": int(correct)}
        for i, correct in enumerate(correct_N)
    ]
    return EvalResult.from_records(
        name, records, {"accuracy": Ratio("higher", ("correct",), ("count",))}
    )


# Intervals


def test_bootstrap_covers_the_true_rate_95_percent_of_the_time():
    rng = np.random.default_rng(0)
    rate, num_examples, num_trials, covered = 0.3, 200, 500, 0
    for trial in range(num_trials):
        rows = np.stack([rng.random(num_examples) < rate, np.ones(num_examples)], -1)
        _, low, high = bootstrap(mean, rows, num_samples=1000, seed=trial)
        covered += low[0] <= rate <= high[0]
    # Four standard errors of a proportion around 0.95.
    assert abs(covered / num_trials - 0.95) < 4 * math.sqrt(0.95 * 0.05 / num_trials)


def test_bootstrap_of_a_ratio_equals_drawing_indices():
    rng = np.random.default_rng(1)
    bottom = rng.integers(0, 6, 300)
    rows = np.stack([rng.binomial(bottom, 0.4), bottom], -1)
    value, low, high = bootstrap(mean, rows, num_samples=20_000, seed=2)
    drawn = rows[rng.integers(0, 300, (20_000, 300))].sum(1)
    expected = np.percentile(drawn[:, 0] / drawn[:, 1], [2.5, 97.5])
    assert value[0] == pytest.approx(rows[:, 0].sum() / rows[:, 1].sum())
    np.testing.assert_allclose([low[0], high[0]], expected, atol=1.5e-3)
    assert high[0] - low[0] > 0.04


def test_bootstrap_depends_on_the_seed_only():
    rows = np.stack([np.arange(50) % 3, np.ones(50)], -1)
    first, second, other = (bootstrap(mean, rows, seed=seed) for seed in (3, 3, 4))
    assert first == second
    assert first[0] == other[0]
    assert first[1:] != other[1:]


def test_bootstrap_draws_all_samples_across_blocks(monkeypatch):
    monkeypatch.setattr("seva_jax.evals.base._BLOCK_ELEMENTS", 70)
    shapes = []

    def stat(sums):
        shapes.append(sums.shape)
        return mean(sums)

    bootstrap(stat, np.stack([np.arange(10), np.ones(10)], -1), num_samples=33)
    assert shapes == [(2,), (33, 2)]


def test_bootstrap_is_fast_when_every_example_is_distinct():
    rows = np.stack([np.random.default_rng(0).normal(size=5000), np.ones(5000)], -1)
    start = time.perf_counter()
    bootstrap(mean, rows)
    assert time.perf_counter() - start < 10  # about 0.7 s on one quiet core


def test_pairing_narrows_the_interval():
    rng = np.random.default_rng(0)
    base_N = rng.random(1000) < 0.6
    # The second model changes 5 % of the answers only.
    other_N = np.where(rng.random(1000) < 0.05, rng.random(1000) < 0.8, base_N)
    base, other = accuracy_result(base_N), accuracy_result(other_N)
    paired = paired_difference(base, other, "accuracy")
    stderr = math.hypot(
        *(m.metrics["accuracy"].high - m.metrics["accuracy"].value for m in (base, other))
    )
    assert paired.value == pytest.approx(other_N.mean() - base_N.mean())
    assert paired.high - paired.low < 0.5 * 2 * stderr
    exact = 1.96 * np.std(other_N.astype(float) - base_N) / math.sqrt(1000)
    assert (paired.high - paired.low) / 2 == pytest.approx(exact, rel=0.1)
    assert paired.n == 1000


def test_identical_results_differ_by_exactly_zero():
    result = accuracy_result(np.arange(20) % 2)
    assert paired_difference(result, result, "accuracy") == Metric(0.0, 0.0, 0.0, 20)


def test_pairing_goes_by_id_not_by_order():
    base = accuracy_result(np.arange(40) < 20)
    shuffled = dataclasses.replace(base, records=base.records[::-1])
    assert paired_difference(base, shuffled, "accuracy") == Metric(0.0, 0.0, 0.0, 40)


def test_pairing_refuses_results_that_do_not_match():
    base = accuracy_result(np.array([1, 0, 1]))
    with pytest.raises(DataError, match=r"1 ids are in only one .*for example 3.*same prompts"):
        paired_difference(base, accuracy_result(np.array([1, 0, 1, 1])), "accuracy")
    moved = dataclasses.replace(base, records=[{**r, "truth": "u"} for r in base.records])
    with pytest.raises(DataError, match="example '0' differs in 'truth' between"):
        paired_difference(base, moved, "accuracy")
    with pytest.raises(DataError, match="no metric 'recall'; choose from accuracy"):
        paired_difference(base, base, "recall")
    twice = dataclasses.replace(base, records=[base.records[0]] * 3)
    with pytest.raises(DataError, match="the id '0' appears twice"):
        paired_difference(twice, twice, "accuracy")
    with pytest.raises(DataError, match="define their metrics differently"):
        paired_difference(base, dataclasses.replace(base, definitions={}), "accuracy")
    bare = EvalResult("bare", {}, base.records)
    with pytest.raises(DataError, match="no metric definitions"):
        paired_difference(bare, bare, "accuracy")


def test_a_record_without_a_number_is_named():
    with pytest.raises(DataError, match="record 'a' has no number in field 'correct'"):
        EvalResult.from_records(
            "exact", [{"id": "a", "count": 1}], {"x": Ratio("higher", ("correct",), ("count",))}
        )


# The base class


def test_evaluator_checks_before_it_generates():
    def generate(prompts):
        raise AssertionError("generated before checking")

    red = {"answer": "red"}
    with pytest.raises(DataError, match="no prompts"):
        ExactAnswer()(generate, [])
    with pytest.raises(DataError, match="'p0' appears twice"):
        ExactAnswer()(generate, make_prompts(red) * 2)
    with pytest.raises(DataError, match=r"'p1' has no text in meta\['answer'\]"):
        ExactAnswer()(generate, make_prompts(red, {}))
    with pytest.raises(DataError, match="returned 1 answers for 2 prompts"):
        ExactAnswer()(saying("red"), make_prompts(red, red))


def test_a_new_evaluation_is_one_small_class():
    @dataclasses.dataclass(frozen=True)
    class Politeness(Evaluator):
        name: str = "polite"

        def truth(self, prompt):
            return "please"

        def definitions(self, prompts):
            return {"polite": Ratio("higher", ("polite",), ("count",))}

        def score(self, prompt, answer):
            return {"polite": int("please" in answer)}

    result = Politeness()(saying("please", "no", "yes please", ""), make_prompts({}, {}, {}, {}))
    assert values(result) == {"polite": 0.5}
    assert result.records[1] == {
        "id": "p1",
        "question": "question 1?",
        "images": ["1.png"],
        "answer": "no",
        "truth": "please",
        "count": 1,
        "polite": 0,
    }


# Exact answers


def test_exact_answers_by_hand():
    prompts = make_prompts(
        {"answer": "red", "prior": "blue"},  # right
        {"answer": "red", "prior": "blue"},  # the prior's answer
        {"answer": "red", "prior": "blue"},  # wrong in another way
        {"answer": "red", "prior": "blue"},  # right, badly formatted
        {"answer": "red", "prior": "red"},  # wrong where the prior is right
        {"answer": "red", "prior": ""},  # no prior
        {"answer": "red"},
        {"answer": "red", "prior": "Red."},  # the same answer after normalisation
    )
    answers = ("red", "Blue.", "green", "  RED. ", "blue", "red", "a red", "red..")
    result = ExactAnswer()(saying(*answers), prompts)
    assert values(result) == {"accuracy": 3 / 8, "prior_errors": 1 / 4, "other_errors": 1 / 4}
    assert result.metrics["accuracy"].n == 8
    assert result.metrics["prior_errors"].n == 4
    assert result.definitions["prior_errors"].better == "lower"
    assert result.metrics["accuracy"].low < 3 / 8 < result.metrics["accuracy"].high


def test_exact_answers_without_conflict_have_no_prior_metrics():
    result = ExactAnswer()(saying("red"), make_prompts({"answer": "red", "prior": "red"}))
    assert list(result.metrics) == ["accuracy"]


# CHAIR

VOCABULARY = (
    ("red circle", "red circle"),
    ("crimson disc", "red circle"),
    ("circle", "circle"),
    ("blue square", "blue square"),
    ("big blue square", "blue square"),
    ("square dance", "square dancing"),
    ("circle of chairs", "seating"),
)


def test_chair_by_hand():
    prompts = make_prompts(
        {"objects": [["red", "circle"], ["blue", "square"]]},
        {"objects": [["red", "circle"], ["red", "circle"]]},
        {"objects": [["blue", "square"]]},
        {"objects": []},
    )
    answers = (
        "A Red-circle, and a big blue square.",  # 2 mentions, both true
        "A crimson disc, a blue square, a blue square.",  # 3 mentions, 2 hallucinated
        "Nothing here.",  # no mention
        "circle",  # 1 mention, hallucinated
    )
    result = Chair(synonyms=VOCABULARY)(saying(*answers), prompts)
    assert values(result) == {
        "chair_i": 3 / 6,
        "chair_s": 2 / 4,
        "recall": 3 / 4,  # distinct true names: 2 + 1 + 1 + 0
        "length": (8 + 9 + 2 + 1) / 4,
    }
    assert {name: metric.n for name, metric in result.metrics.items()} == {
        "chair_i": 3,  # answers with a mention
        "chair_s": 4,
        "recall": 3,  # prompts with an object
        "length": 4,
    }
    assert result.records[1]["hallucinations"] == ["blue square", "blue square"]
    assert result.records[2]["missed"] == ["blue square"]
    assert result.records[1]["truth"] == ["red circle"]


@pytest.mark.parametrize(
    ("text", "mentions"),
    [
        ("red circle", ["red circle"]),  # the longest phrase, not "circle"
        ("a red red circle circle", ["red circle", "circle"]),
        ("blue square dance", ["blue square"]),  # no overlap: "square" is taken
        ("a square dance", ["square dancing"]),
        ("a circle of chairs", ["seating"]),  # the longest phrase, not its beginning
        ("a circle of", ["circle"]),
        ("circles, encircle", []),  # whole words only
        ("square dancing", ["square dancing"]),  # a canonical name needs no phrase of its own
        ("big blue", []),
        ("", []),
    ],
)
def test_chair_mentions(text, mentions):
    assert Chair(synonyms=VOCABULARY).mentions(text) == mentions


def test_chair_of_silent_answers_is_undefined_but_recall_is_zero():
    result = Chair(synonyms=VOCABULARY)(saying(""), make_prompts({"objects": [["circle"]]}))
    chair_i = result.metrics["chair_i"]
    assert all(math.isnan(x) for x in (chair_i.value, chair_i.low, chair_i.high))
    assert chair_i.n == 0
    assert result.metrics["recall"].value == 0


def test_chair_refuses_bad_vocabularies_and_truths():
    prompts = make_prompts({"objects": [["green", "circle"]]})
    with pytest.raises(DataError, match="'p0' shows 'green circle', which is no canonical name"):
        Chair(synonyms=VOCABULARY)(saying(""), prompts)
    for meta in ({}, {"objects": "red circle"}, {"objects": ["red circle"]}):
        with pytest.raises(DataError, match=r"'p0' has no list of word lists in meta\['objects'\]"):
            Chair(synonyms=VOCABULARY)(saying(""), make_prompts(meta))
    for synonyms, message in (
        ((("a b", "x"), ("A  b", "y")), "two meanings, 'x' and 'y'"),
        ((("!", "x"),), "phrase without a word"),
        ((), "synonyms is empty"),
    ):
        with pytest.raises(DataError, match=message):
            Chair(synonyms=synonyms)(saying(""), make_prompts({"objects": []}))


# POPE


@pytest.mark.parametrize(
    ("text", "llava", "word"),
    [
        ("Yes", "yes", "yes"),
        ("no", "no", "no"),
        ("No.", "no", "no"),
        ("No, there is no dog in the image.", "no", "no"),
        ("No, there isn't", "no", "no"),
        ("There is not a dog.", "no", "unparsed"),
        ("Yes. But not a dog.", "yes", "yes"),  # only the first sentence counts
        ("I think so. No", "yes", "no"),
        ("It is, no,w", "yes", "no"),  # removing the comma glues "no,w" to "now"
        ("NO", "yes", "no"),  # LLaVA knows three spellings
        ("Not at all", "yes", "unparsed"),
        ("There isn't", "yes", "unparsed"),
        ("nothing", "yes", "unparsed"),
        ("well:\nno", "yes", "no"),  # only blanks split words
        ("  no  ", "no", "no"),
        ("yes and no", "no", "yes"),
        ("", "yes", "unparsed"),
    ],
)
def test_pope_parsers(text, llava, word):
    assert LlavaParser()(text) == llava
    assert WordParser()(text) == word


def test_pope_by_hand():
    truths = ["yes"] * 4 + ["no"] * 4
    prompts = make_prompts(*({"answer": truth} for truth in truths))
    answers = saying("yes", "yes", "yes", "no", "yes", "no", "no", "no")
    result = Pope()(answers, prompts)
    # tp 3, fn 1, fp 1, tn 3
    assert values(result) == {
        "accuracy": 6 / 8,
        "precision": 3 / 4,
        "recall": 3 / 4,
        "f1": 3 / 4,
        "yes_ratio": 4 / 8,
    }
    assert result.definitions["yes_ratio"].better == "neither"
    assert result.metrics["precision"].n == 4


def test_pope_unparsed_answers_are_wrong_and_not_a_yes():
    truths = ("yes", "yes", "no", "no", "yes")
    prompts = make_prompts(*({"answer": truth} for truth in truths))
    result = Pope(parser=WordParser())(saying("yes", "hm", "hm", "yes", "yes"), prompts)
    # tp 2, fn 1 (unparsed), fp 1; one unparsed answer to a "no" is in no cell
    assert values(result) == pytest.approx(
        {
            "accuracy": 2 / 5,
            "precision": 2 / 3,
            "recall": 2 / 3,
            "f1": 2 / 3,
            "yes_ratio": 3 / 5,
            "unparsed": 2 / 5,
        }
    )


def test_pope_mean_is_over_categories():
    prompts = make_prompts(
        {"answer": "yes", "category": "random"},
        {"answer": "no", "category": "random"},
        {"answer": "no", "category": "random"},
        {"answer": "yes", "category": "popular"},
        {"answer": "yes", "category": "popular"},
    )
    found = values(Pope()(saying("yes", "yes", "no", "no", "yes"), prompts))
    assert found["random/precision"] == 1 / 2
    assert found["popular/precision"] == 1
    assert found["precision"] == 3 / 4  # pooled it would be 2 / 3
    assert found["random/f1"] == pytest.approx(2 / 3)
    assert found["popular/f1"] == pytest.approx(2 / 3)
    assert found["accuracy"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found["popular/yes_ratio"] == 1 / 2
    assert len(found) == 15
    assert Pope()(saying("no"), prompts[:1]).metrics["random/recall"].n == 1


def test_pope_refuses_bad_truths():
    with pytest.raises(DataError, match=r"'p0' has 'maybe' in meta\['answer'\]"):
        Pope()(saying("yes"), make_prompts({"answer": "maybe"}))
    mixed = make_prompts({"answer": "no", "category": "random"}, {"answer": "no"})
    with pytest.raises(DataError, match=r"'p1' has no meta\['category'\]"):
        Pope()(saying("yes", "no"), mixed)


POPE_LINES = (
    '{"question_id": 1, "image": "a.jpg", "text": "Is there a dog?", "label": "yes"}\n'
    "\n"
    '{"question_id": 2, "image": "b.jpg", "text": "Is there a cat?", "label": "No"}\n'
)


def test_a_second_parser_reads_the_same_answers():
    """Its metrics are listed with the first one's and equal those of the parser alone."""
    prompts = make_prompts(*({"answer": a, "category": c} for a in ("yes", "no") for c in "ab"))
    answers = ("NO!", "Yes", "Nothing", "No, it is not")
    both = values(Pope(also_words=True)(saying(*answers), prompts))
    first = values(Pope()(saying(*answers), prompts))
    second = values(Pope(parser=WordParser())(saying(*answers), prompts))
    np.testing.assert_equal(both, first | {f"words: {k}": v for k, v in second.items()})
    assert both["f1"] != both["words: f1"]


def test_load_pope(tmp_path):
    path = tmp_path / "coco_pope_random.json"
    path.write_text(POPE_LINES)
    assert load_pope(path, "val", category="random", suffix=SHORT_ANSWER_SUFFIX) == [
        Prompt(
            id="random-1",
            question="Is there a dog?\nAnswer the question using a single word or phrase.",
            images=("val/a.jpg",),
            meta={"question_id": 1, "answer": "yes", "category": "random"},
        ),
        Prompt(
            id="random-2",
            question="Is there a cat?\nAnswer the question using a single word or phrase.",
            images=("val/b.jpg",),
            meta={"question_id": 2, "answer": "no", "category": "random"},
        ),
    ]
    assert load_pope(path)[0] == Prompt(
        "1", "Is there a dog?", ("a.jpg",), {"question_id": 1, "answer": "yes"}
    )
    path.write_text(POPE_LINES.replace('"label"', '"category": "popular", "label"'))
    assert [p.id for p in load_pope(path, category="random")] == ["popular-1", "popular-2"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not valid JSON"),
        ("[1]", "expected a JSON object, found list"),
        ('{"question_id": 3, "image": "a", "text": "q"}', "field 'label' is None"),
        ('{"question_id": 3, "image": "a", "text": "q", "label": "maybe"}', "must be yes or no"),
        ('{"question_id": 3, "image": "a", "text": " ", "label": "no"}', "field 'text' is ' '"),
        ('{"question_id": 3, "image": 7, "text": "q", "label": "no"}', "field 'image' is 7"),
        ('{"image": "a", "text": "q", "label": "no"}', "field 'question_id' is None"),
        ('{"question_id": 2, "image": "a", "text": "q", "label": "no"}', "'2' appears twice"),
        (b"\xff", "not valid JSON"),
    ],
)
def test_load_pope_names_file_and_line(tmp_path, line, message):
    path = tmp_path / "pope.json"
    path.write_bytes(POPE_LINES.encode() + (line if isinstance(line, bytes) else line.encode()))
    with pytest.raises(DataError, match=rf"pope\.json, line 4: .*{message}"):
        load_pope(path)


def test_load_pope_names_missing_and_empty_files(tmp_path):
    with pytest.raises(DataError, match=r"none\.json: cannot be read \(No such file"):
        load_pope(tmp_path / "none.json")
    (tmp_path / "empty.json").write_text("\n")
    with pytest.raises(DataError, match=r"empty\.json: has no questions"):
        load_pope(tmp_path / "empty.json")


# Files


def test_a_result_survives_a_round_trip(tmp_path):
    prompts = make_prompts({"objects": [["circle"]]}, {"objects": [["blue", "square"]]})
    # U+2028 ends a line for str.splitlines, not in a JSON lines file.
    result = Chair(synonyms=VOCABULARY)(saying("a \u2028 circle\n圆", "a circle"), prompts)
    write_records(tmp_path / "r.jsonl", result.records)
    write_summary(tmp_path / "s.json", result)
    assert read_records(tmp_path / "r.jsonl") == result.records
    again = read_result(tmp_path / "s.json", tmp_path / "r.jsonl")
    assert again == result
    recomputed = EvalResult.from_records(again.name, again.records, again.definitions)
    assert recomputed == result
    summary = json.loads((tmp_path / "s.json").read_text())
    assert summary["num_examples"] == 2
    assert summary["metrics"]["chair_i"]["value"] == 0.5
    assert summary["metrics"]["chair_i"]["better"] == "lower"


def test_undefined_numbers_are_null_in_the_summary(tmp_path):
    result = Pope()(saying("no"), make_prompts({"answer": "yes"}))
    write_records(tmp_path / "r.jsonl", result.records)
    write_summary(tmp_path / "s.json", result)
    assert json.loads((tmp_path / "s.json").read_text())["metrics"]["precision"]["low"] is None
    again = read_result(tmp_path / "s.json", tmp_path / "r.jsonl")
    assert math.isnan(again.metrics["precision"].value)
    assert again.metrics["recall"] == result.metrics["recall"]


def test_bad_result_files_are_named(tmp_path):
    records, summary = tmp_path / "r.jsonl", tmp_path / "s.json"
    result = accuracy_result(np.array([1, 0]))
    write_records(records, result.records)
    write_summary(summary, result)
    good = summary.read_text()
    for bad in ("{", "[]", "{}", good.replace('"higher"', '"up"'), good.replace('"n"', '"m"')):
        summary.write_text(bad)
        with pytest.raises(DataError, match=r"s\.json: not an evaluation summary"):
            read_result(summary, records)
    summary.write_text(good)
    records.write_text('{"id": "0"}\nnull\n')
    with pytest.raises(DataError, match=r"r\.jsonl, line 2: expected a JSON object"):
        read_records(records)
    write_records(records, result.records[:1])
    with pytest.raises(DataError, match=r"r\.jsonl: has 1 records, but .*s\.json .* from 2"):
        read_result(summary, records)
    with pytest.raises(DataError, match=r"t\.json: cannot be read"):
        read_result(tmp_path / "t.json", records)


# Tables


@pytest.mark.parametrize(
    ("better", "low", "high", "verdict"),
    [
        ("higher", 0.01, 0.2, "better"),
        ("higher", -0.2, -0.01, "worse"),
        ("lower", 0.01, 0.2, "worse"),
        ("lower", -0.2, -0.01, "better"),
        ("neither", 0.01, 0.2, "higher"),
        ("neither", -0.2, -0.01, "lower"),
        ("higher", -0.01, 0.2, ""),
        ("higher", 0.0, 0.2, ""),
        ("lower", -0.2, 0.0, ""),
        ("higher", math.nan, math.nan, ""),
    ],
)
def test_verdict_needs_an_interval_without_zero(better, low, high, verdict):
    metric = Metric(0.5, 0.4, 0.6, 10)
    row = Row("e", "m", better, metric, metric, Metric((low + high) / 2, low, high, 10))
    assert row.verdict == verdict


ROWS = [
    Row(
        "exact",
        "prior_errors",
        "lower",
        Metric(0.161, 0.14, 0.18, 400),
        Metric(0.128, 0.11, 0.15, 400),
        Metric(-0.033, -0.05, -0.02, 400),
    ),
    Row(
        "describe",
        "length",
        "neither",
        Metric(12.5, 12.0, 13.0, 50),
        Metric(math.nan, math.nan, math.nan, 0),
        Metric(math.nan, math.nan, math.nan, 50),
    ),
]


def test_terminal_table():
    assert format_table(ROWS).splitlines() == [
        "evaluation  metric        wanted  n    base                     "
        "aligned               difference",
        "----------  ------------  ------  ---  -----------------------  "
        "--------------------  -----------------------  ------",
        "exact       prior_errors  lower   400  0.161 [0.140, 0.180]     "
        "0.128 [0.110, 0.150]  -0.033 [-0.050, -0.020]  better",
        "describe    length                50   12.500 [12.000, 13.000]  n/a                   n/a",
    ]


def test_markdown_table():
    lines = format_markdown(ROWS).splitlines()
    assert lines[1] == "| --- | --- | --- | --- | --- | --- | --- | --- |"
    assert lines[2] == (
        "| exact | prior_errors | lower | 400 | 0.161 [0.140, 0.180] | 0.128 [0.110, 0.150] | "
        "-0.033 [-0.050, -0.020] | **better** |"
    )
    assert len({line.count("|") for line in lines}) == 1


def test_comparison_rows():
    rng = np.random.default_rng(0)
    base_N = rng.random(400) < 0.5
    other_N = base_N | (rng.random(400) < 0.2)
    base = [accuracy_result(base_N, "one"), accuracy_result(base_N, "two")]
    aligned = [accuracy_result(base_N, "two"), accuracy_result(other_N, "one")]
    one, two = comparison_rows(base, aligned)
    assert (one.evaluation, one.metric, one.verdict) == ("one", "accuracy", "better")
    assert (two.evaluation, two.verdict) == ("two", "")
    assert one.difference == paired_difference(base[0], aligned[1], "accuracy")
    assert one.aligned == aligned[1].metrics["accuracy"]
    with pytest.raises(DataError, match=r"base has the evaluations one, two and aligned has two"):
        comparison_rows(base, aligned[:1])
    with pytest.raises(DataError, match="two evaluations have the same name"):
        comparison_rows(base[:1] * 2, aligned)
