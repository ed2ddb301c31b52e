"""A run's page is made from its work directory, without a model, and says whether it helped."""

import dataclasses
import json
import math
import re
from typing import cast

import pytest
from helpers_report import Page, write_run

from seva_jax import evaluate
from seva_jax.config import Checkpoint, ComputeOptions, Evaluation, Experiment, make_model
from seva_jax.config.source import suite_source
from seva_jax.data.json_records import write_comparisons
from seva_jax.evals import (
    EvalResult,
    ExactAnswer,
    Pope,
    Ratio,
    StoredEvaluation,
    comparison_rows,
    without_repeats,
    write_records,
    write_summary,
)
from seva_jax.evals.base import Better
from seva_jax.images import ImageProcessing
from seva_jax.models import LLAVA_15, num_parameters
from seva_jax.objectives import DPO, IPO
from seva_jax.report.__main__ import main as report
from seva_jax.report.cards import Pictures, logged_pairs, pair_card
from seva_jax.report.closing import row_speeds
from seva_jax.report.compare import compare
from seva_jax.report.results import Results, read_results
from seva_jax.report.settings import brief, changed_settings
from seva_jax.report.shown import Shown
from seva_jax.report.verdict import did_it_help
from seva_jax.run.own_prompts import choose_prompts
from seva_jax.run.workdir import Workdir
from seva_jax.runtime.files import append_lines, write_json
from seva_jax.types import Comparison, DataError, Prompt, View
from seva_jax.worlds import ShapeWorld, WorldPrompts

PROMPTS = WorldPrompts(ShapeWorld(seed=0), "unlabelled", False, ("color",), 6)
SUITE = Evaluation(
    ExactAnswer("colours"), WorldPrompts(PROMPTS.world, "eval", False, ("color",), 9)
)


# Did it help?


def result(name, right, metric="accuracy", better="higher"):
    """Returns a result of one metric from the answers that are right, 1 or 0 each."""
    records = [{"id": i, "correct": x, "count": 1} for i, x in enumerate(right)]
    ratio = Ratio(cast(Better, better), ("correct",), ("count",))
    return EvalResult.from_records(name, records, {metric: ratio})


def results(*evaluations, alone=()):
    """Returns the results of evaluations, each given as (base, aligned)."""
    both = [StoredEvaluation(a.name, {"base": a, "aligned": b}, {}, None) for a, b in evaluations]
    rows = [row for a, b in evaluations for row in comparison_rows([a], [b])]
    return Results(tuple(rows), tuple(both), tuple(alone))


WRONG, RIGHT, MIXED = [0] * 40, [1] * 40, [1, 0] * 20
UP = (result("pope", WRONG), result("pope", RIGHT))
DOWN = (result("gqa", RIGHT, "score"), result("gqa", WRONG, "score"))
ERRORS_DOWN = (
    result("e", RIGHT, "prior_errors", "lower"),
    result("e", WRONG, "prior_errors", "lower"),
)
SAME = (result("vqa", MIXED), result("vqa", MIXED))


@pytest.mark.parametrize(
    ("evaluations", "expected"),
    [
        (
            (UP, SAME),
            "Yes, on these questions: accuracy on pope rose by 1.000 [1.000, 1.000]. No metric got "
            "clearly worse. Without a clear change: accuracy on vqa 0.000 [0.000, 0.000].",
        ),
        (
            (ERRORS_DOWN,),
            "Yes, on these questions: prior_errors (wrong answers that follow the "
            "prior) on e fell by 1.000 [1.000, 1.000]. No metric "
            "got clearly worse.",
        ),
        (
            (DOWN,),
            "No: score on gqa fell by 1.000 [1.000, 1.000]. No metric got clearly better.",
        ),
        (
            (UP, DOWN),
            "In part. Better: accuracy on pope rose by 1.000 [1.000, 1.000]. Worse: score on gqa "
            "fell by 1.000 [1.000, 1.000].",
        ),
        (
            (SAME,),
            "No clear change in 1 metric of 1 evaluation: accuracy on vqa 0.000 [0.000, 0.000].",
        ),
    ],
)  # fmt: skip
def test_the_sentence_follows_from_the_intervals(evaluations, expected):
    verdict = did_it_help("runs/a", results(*evaluations), Shown(), True)
    assert verdict.sentence == expected
    num = 40 * len(evaluations)
    assert verdict.caveat.startswith(f"One run with one seed, {num} questions in ")
    assert "another seed may give another result" in verdict.caveat
    assert ("needs more questions" in verdict.caveat) == (evaluations == (SAME,))
    assert verdict.commands == ()


def test_neutral_undefined_and_many_metrics():
    """A ratio of yes is no improvement; what cannot be computed is no result."""
    yes = [result("pope", x, "yes_ratio", "neither") for x in (WRONG, RIGHT)]
    verdict = did_it_help("a", results(yes), Shown(), True)
    assert (
        verdict.sentence == "Not known: no metric that tells better from worse could be computed."
    )
    parts = [result("e", x, "dogs/recall") for x in (WRONG, RIGHT)]
    assert "dogs/recall on e rose by" in did_it_help("a", results(parts), Shown(), True).sentence
    with_whole = did_it_help("a", results(parts, SAME), Shown(), True).sentence
    assert "dogs/recall on e rose by" in with_whole
    ratio = {f"m{i}": Ratio("higher", ("correct",), ("count",)) for i in range(12)}
    many = [
        EvalResult.from_records("e", [{"id": i, "correct": x, "count": 1} for i in range(9)], ratio)
        for x in (0, 1)
    ]
    verdict = did_it_help("a", results(many), Shown(), True)
    named = "; ".join(f"m{i} on e rose by 1.000 [1.000, 1.000]" for i in range(3))
    assert f": {named}; and 9 more metrics. No metric" in verdict.sentence
    # Not the first three, but one of each evaluation.
    others = [[result(name, x) for x in (WRONG, RIGHT)] for name in ("f", "g")]
    sentence = did_it_help("a", results(many, *others), Shown(), True).sentence
    assert re.findall(r"(\S+ on \S) rose", sentence) == [
        "m0 on e",
        "accuracy on f",
        "accuracy on g",
    ]
    assert "; and 11 more metrics." in sentence
    assert "of 12 metrics about one in twenty changes clearly by luck" in verdict.caveat


OWN = tuple({"base": "red", "aligned": after} for after in ("red", "blue", "green"))
ASK = (
    "seva-jax evaluate --models base runs/a --questions QUESTIONS.jsonl",
    "seva-jax report runs/a",
)


@pytest.mark.parametrize(
    ("alone", "margins", "expected"),
    [
        ((), (0.5, 1.5, -0.2), "there is no evaluation. 2 of 3 answers to the run's own prompts "
         "changed. The mean reward margin of 3 trained pairs rose to +0.60; it rose for 2 of "
         "them."),
        ((), (-0.5, None, -1.5), "there is no evaluation. 2 of 3 answers to the run's own prompts "
         "changed. The mean reward margin of 2 trained pairs fell to −1.00; it rose for 0 of "
         "them."),
        ((("aligned", UP[1]),), (), "only the aligned model has been evaluated (pope). 2 of 3 "
         "answers to the run's own prompts changed."),
        ((("base", UP[0]), ("base", DOWN[0])), (), "only the base model has been evaluated "
         "(pope, gqa). 2 of 3 answers to the run's own prompts changed."),
        ((("base", UP[0]), ("aligned", DOWN[1])), (), "the two models were asked different "
         "evaluations. 2 of 3 answers to the run's own prompts changed."),
    ],
)  # fmt: skip
def test_without_a_comparison_the_answer_is_not_known(alone, margins, expected):
    shown = Shown(own=OWN, margins=tuple((i, 0.0, x) for i, x in enumerate(margins)))
    verdict = did_it_help("runs/a", results(alone=alone), shown, True)
    assert verdict.sentence == f"Not known: {expected}"
    assert verdict.commands == ASK
    assert ("not whether answers are better" in verdict.caveat) == (not alone)
    assert verdict.lines().splitlines()[-1] == f"        {ASK[1]}"


def test_margins_of_a_model_that_is_trained_further():
    """They are not 0 before, as the reference is that of the earlier run."""
    shown = Shown(margins=((0, 1.0, 0.5), (1, 1.0, 2.0), (4, 1.0, 0.25)))
    verdict = did_it_help("a", Results(), shown, True)
    told = (
        "The mean reward margin of 3 trained pairs fell from +1.00 to +0.92; it rose for 1 of them."
    )
    assert verdict.sentence.endswith(told)


def test_held_out_pairs_are_drawn_and_counted(tmp_path, capsys):
    """Their lines are beside those of training, and the verdict tells the kept step's margin."""
    path, _ = made(tmp_path)
    shown = Shown.read(path)
    dataclasses.replace(shown, trained=2).write(path)
    rows = [
        {"stage": "held-out", "step": step, "loss": 0.7, "rewards/margins": margin, "pairs": 1.0}
        for step, margin in ((0, 0.0), (1, 0.75), (2, 0.5))
    ]
    append_lines(path / "metrics.jsonl", rows)
    write_json(path / "held_out.json", {"kept_step": 1})
    report([str(path)])
    told = "The mean reward margin of 1 held-out pair rose to +0.75."
    assert told in capsys.readouterr().out
    text = Page((path / "report.html").read_text("utf-8")).text
    assert "held-out pairs" in text
    assert "training pairs" in text
    assert "3 of 6 prompts, 1 of them held out" in text
    assert "Showing 1 of the 2 pairs trained on." in text


def test_an_unfinished_run_has_no_verdict():
    verdict = did_it_help("a", Results(problems=("why",)), Shown(), False)
    assert verdict.sentence == "Not known yet: the alignment has not finished."
    assert verdict.caveat.endswith("resumes it. why")


def test_metrics_are_named_as_in_the_table_with_what_they_are():
    chair = [result("describe", x, "chair_i", "lower") for x in (WRONG, RIGHT)]
    words = [result("pope", x, "words: cats/unparsed", "lower") for x in (RIGHT, WRONG)]
    assert did_it_help("a", results(chair, words), Shown(), True).sentence == (
        "In part. Better: words: cats/unparsed (answers that could not be read) on pope "
        "fell by 1.000 [1.000, 1.000]. Worse: chair_i (hallucinated objects) on describe "
        "rose by 1.000 [1.000, 1.000]."
    )


def test_answers_of_a_model_before_it_was_trained_again(tmp_path, capsys):
    """They are no result of the run as it is now, on no page and in no table."""
    path, config = made(tmp_path)
    evaluate_later(path, "base", "purple")
    evaluate_later(path, "aligned", "purple", {"trained": "a"})
    assert [one.name for one in read_results(path, config).both] == ["colours"]
    assert not evaluate.tables(path, ["base"], ["colours"])[1]
    row = {"stage": "align", "step": 1, "loss": 0.5, "pairs": 8, "seconds": 1.0, "chips": 1}
    (path / "metrics.jsonl").unlink()
    append_lines(path / "metrics.jsonl", [row | {"pairs/s": 8.0}])

    def compared():
        return [line[0] for line in compare([path]).more[1].rows]

    assert "colours accuracy" in compared()

    stages = json.loads((path / "stages.json").read_text())
    stages["align"]["fingerprint"] = "b"
    write_json(path / "stages.json", stages)
    report([str(path)])
    shown = " ".join(capsys.readouterr().out.split())
    assert "colours was asked of an earlier aligned model: the run has been trained again" in shown
    assert "mine/evals/aligned/colours to ask it again" in shown
    read = read_results(path, config)
    assert (read.both, [who for who, _ in read.alone]) == ((), ["base"])
    text, (reason,) = evaluate.tables(path, ["base"], ["colours"])
    assert text.splitlines()[0].split()[4:] == ["base"]
    assert "asked of an earlier aligned model" in reason
    assert compared() == []


def test_what_only_one_model_was_asked_is_in_the_caveat():
    verdict = did_it_help("a", results(UP, alone=[("base", DOWN[0])]), Shown(), True)
    assert verdict.sentence.startswith("Yes")
    assert verdict.caveat.endswith("Only the base model was asked gqa.")


def test_two_parsers_that_read_alike_are_one_row():
    """So are a single category and the mean over it; numbers that differ stay."""
    prompts = [
        Prompt(str(i), "Is there a dog?", (), {"answer": "yes" if i % 2 else "no", "category": "x"})
        for i in range(6)
    ]
    evaluator = Pope(also_words=True)
    alike, differ = (
        evaluator(lambda prompts, text=text: [text] * len(prompts), prompts)
        for text in ("Yes.", "Nothing")
    )
    kept = without_repeats(comparison_rows([alike], [alike]))
    assert [row.metric for row, _ in kept] == [
        "accuracy", "precision", "recall", "f1", "yes_ratio", "words: unparsed"
    ]  # fmt: skip
    assert kept[0][1] == ("x/accuracy", "words: accuracy", "words: x/accuracy")
    kept = without_repeats(comparison_rows([differ], [differ]))
    assert {"accuracy", "words: accuracy"} <= {row.metric for row, _ in kept}


# Settings, speed, parameters


def test_only_settings_that_differ_are_named():
    config = Experiment(
        objective=IPO(beta=0.1, ld_alpha=0.5), base=Checkpoint("/a"), corrupt=(), seed=42
    )
    assert changed_settings(config) == {"objective", "objective.ld_alpha", "base.path", "corrupt"}
    assert changed_settings(Experiment()) == frozenset()
    assert brief(DPO()) == "DPO(beta=0.1)"
    assert brief(IPO(ld_alpha=0.5)) == "IPO(beta=0.1, ld_alpha=0.5)"
    assert brief((DPO(),)) == "(DPO(beta=0.1),)"


def test_speed_is_without_compiling():
    rows = [
        {"pairs/s": pairs / 10, "seconds": 10.0, "time/compile": compile_s}
        for pairs, compile_s in ((10, 9.0), (40, 0.0), (20, 5.0))
    ]
    assert [rate for _, rate in row_speeds(rows)] == [4.0, 4.0]
    assert [rate for _, rate in row_speeds(rows[:1])] == pytest.approx([10.0])


def test_parameters_are_those_that_transformers_counts():
    """The published LLaVA-1.5 7B has 7,063,427,072, with a part of the tower that is not used."""
    config = LLAVA_15["7b"]
    built = num_parameters(make_model(config, ComputeOptions()))
    assert built + config.unused_parameters == 7_063_427_072


def test_unused_parameters_of_other_towers():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from tiny_models import TINY_HF

    config = dataclasses.replace(TINY_HF, feature_layer=1)
    text = transformers.LlamaConfig(
        vocab_size=config.text.vocab_size, hidden_size=16, intermediate_size=config.text.mlp_size,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=4,
        tie_word_embeddings=False,
    )  # fmt: skip
    vision = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
        image_size=28, patch_size=14,
    )  # fmt: skip
    with torch.device("meta"):
        theirs = transformers.LlavaForConditionalGeneration(
            transformers.LlavaConfig(vision_config=vision, text_config=text)
        ).num_parameters()
    built = num_parameters(make_model(config, ComputeOptions()))
    assert config.tower_depth == 1
    assert built + config.unused_parameters == theirs


# The run's own prompts


def test_prompts_that_training_has_not_seen_come_first():
    def prompt(number, picture="", question="what?"):
        return Prompt(str(number), question, (picture or f"{number}.png",))

    prompts = [prompt(i) for i in range(10)]
    prompts += [prompt(10, "2.png", "where?"), prompt("same as 3", "3.png")]
    pairs = [Comparison(prompts[i], ("a", "b")) for i in (2, 3)]
    pairs.append(Comparison(prompts[4], ("a",), more=(View(prompts[5], ("b",)),)))

    def chosen(num, pairs=pairs):
        return [(p.id, seen) for p, seen in choose_prompts(prompts, pairs, num)]

    assert chosen(3) == [("0", "new"), ("6", "new"), ("9", "new")]
    new = [(str(i), "new") for i in (0, 1, 6, 7, 8, 9)]
    picture = [("10", "picture")]
    trained = [(x, "pair") for x in ("2", "3", "4", "5", "same as 3")]
    assert chosen(7) == new + picture
    assert chosen(100) == new + picture + trained
    assert chosen(0) == []
    everything = [Comparison(p, ("a", "b")) for p in prompts]
    assert [seen for _, seen in chosen(4, everything)] == ["pair"] * 4


# The page, made again


def made(tmp_path, **changes):
    """Writes what a finished run without evaluations leaves, except its weights."""
    config = Experiment(workdir=str(tmp_path / "mine"), prompts=PROMPTS, **changes)
    workdir = Workdir.open(config)
    path = workdir.path
    pairs = [Comparison(p, ("red", "blue"), corruptions=(0,)) for p in PROMPTS.open().prompts[:3]]
    write_comparisons(path / "pairs.array_record", pairs)
    write_json(path / "pairs.json", {"pairs": 3, "prompts": 6, "drops": {"equal answers": 3}})
    row = {"stage": "align", "loss": 0.6, "pairs/s": 3.0, "seconds": 1.0}
    append_lines(path / "metrics.jsonl", [row | {"step": step} for step in (1, 2)])
    stage = {"fingerprint": "a", "seconds": 2.0, "devices": 1, "summary": "fine"}
    write_json(path / "stages.json", {"pairs": stage, "align": stage})
    own = [
        {
            "id": p.id, "question": p.question, "images": list(p.images), "base": "a red one",
            "aligned": "a blue one" if i else "a red one", "seen": "new" if i else "pair",
        }
        for i, p in enumerate(PROMPTS.open().prompts[3:])
    ]  # fmt: skip
    Shown(
        parameters=1000, unused=10, adapters="LoraConfig(rank=2)", devices="7 × TPU v9, 1 process",
        mesh="data 7", software="Python 4", processing=dataclasses.asdict(ImageProcessing(size=32))
        | {"resample": "BICUBIC"}, margins=((0, 0.0, 0.25), (2, None, None)), own=tuple(own),
        left_out={"not found": 2},
    ).write(path)  # fmt: skip
    workdir.close()
    return path, config


def evaluate_later(path, who, answer, about=None):
    """Writes what `seva_jax.evaluate` leaves of a suite that the config does not have."""
    questions = SUITE.open()
    result = questions.evaluator(lambda prompts: [answer] * len(prompts), questions.prompts)
    folder = path / "evals" / who
    (folder / SUITE.name).mkdir(parents=True)
    (folder / SUITE.name / "suite.py").write_text(suite_source(SUITE))
    write_records(folder / f"{SUITE.name}.jsonl", result.records)
    write_summary(folder / f"{SUITE.name}.json", result, {"model": who} | (about or {}))


def test_the_page_again_needs_no_model(tmp_path, capsys):
    path, _ = made(tmp_path)
    report([str(path)])
    shown = capsys.readouterr().out
    assert shown.startswith("Did it help? Not known: there is no evaluation. 2 of 3 answers")
    assert shown.rstrip().endswith("mine/report.html")
    text = (path / "report.html").read_text("utf-8")
    page = Page(text)
    assert f"seva-jax report {path}" in page.text  # as it can be typed, not shortened
    sections = [attrs["id"] for attrs in page.all("section")]
    assert sections[:3] == ["verdict", "own", "glance"]
    assert "results" not in sections
    for words in (
        "1,010 parameters, 10 of them behind the image features and not used",
        "7 × TPU v9, 1 process",  # the run's devices, not those of this machine
        "3.0 pairs/s",
        "Of the run's own prompts, some could not be asked: 2 not found.",
        "gave no training pair",
        "Showing 1 of the 3 pairs trained on.",
    ):
        assert words in page.text, words
    assert len(page.all("img")) == 3 + 2  # own prompts, and a pair's clean and noised image
    first = path / "report.html"
    report([str(path), "--out", str(tmp_path / "again.html")])
    assert (tmp_path / "again.html").read_text("utf-8") == first.read_text("utf-8")


def test_evaluations_that_were_made_later_are_taken_up(tmp_path, capsys):
    path, config = made(tmp_path)
    evaluate_later(path, "aligned", "purple")
    report([str(path)])
    shown = capsys.readouterr().out
    assert "Not known: only the aligned model has been evaluated (colours)." in shown
    page = Page((path / "report.html").read_text("utf-8"))
    assert "Not a comparison" in page.text
    assert "accuracy" in page.text

    evaluate_later(path, "base", "no colour at all")
    report([str(path)])
    shown = capsys.readouterr().out
    truths = [p.meta["answer"] for p in SUITE.open().prompts]
    assert 0 < truths.count("purple") < 9
    assert re.search(r"accuracy on colours (rose by|0)", shown)
    assert re.match(r"evaluation +metric .*\n.*\ncolours +accuracy +higher +9 ", shown)
    page = Page((path / "report.html").read_text("utf-8"))
    sections = [attrs["id"] for attrs in page.all("section")]
    assert sections[:4] == ["verdict", "results", "own", "examples"]
    assert "Not a comparison" not in page.text
    assert "picture missing" not in page.text  # the suite that was stored with the answers has them

    # Answers of another model are no comparison with these.
    summary = path / "evals" / "aligned" / "colours.json"
    other = json.loads(summary.read_text()) | {"about": {"model": "another"}}
    (path / "evals" / "aligned" / "more.json").write_text(json.dumps(other))
    (path / "evals" / "aligned" / "more.jsonl").write_text(
        (path / "evals" / "aligned" / "colours.jsonl").read_text()
    )
    read = read_results(path, config)
    assert [one.name for one in read.both] == ["colours"]
    assert read.problems == (
        "more was asked of another aligned model than the evaluations before it.",
    )
    verdict = did_it_help("a", read, Shown(), True)
    assert read.problems[0] in verdict.caveat


def test_pictures_that_are_gone_are_said_to_be(tmp_path):
    gone = PROMPTS.open().load_image

    def load(name):
        raise FileNotFoundError(name)

    pair = Comparison(PROMPTS.open().prompts[0], ("red", "blue"), corruptions=(0,))
    pictures = Pictures(Experiment(), ImageProcessing(size=32))
    assert pair_card(pictures, load, pair, 0.0, math.nan).clean is None
    assert pictures.missing == {pair.images[0]: 1}
    assert pair_card(pictures, gone, pair, 0.0, 0.5).clean is not None
    assert logged_pairs(Experiment(), ImageProcessing(size=32), load, [pair]) == []
    (logged,) = logged_pairs(Experiment(), ImageProcessing(size=32), gone, [pair])
    assert logged.caption == f"{pair.prompt.question}\nchosen: red\nrejected: blue"

    path, _ = made(tmp_path)
    source = (path / "config.py").read_text().replace("seva_jax.worlds.WorldPrompts", "gone")
    source = source.replace(
        "def get_config():",
        "import seva_jax.data\n\ndef gone(**fields):\n"
        "    return seva_jax.data.ImageFolder('/nowhere/photos', ('What is it?',))\n\n"
        "def get_config():",
    )  # fmt: skip
    (path / "config.py").write_text(source)
    report([str(path)])
    page = Page((path / "report.html").read_text("utf-8"))
    assert "The prompts cannot be opened any more, so pictures are missing" in page.text
    assert page.text.count("picture missing") == 3 + 1
    assert not page.all("img")


def test_a_run_of_an_earlier_version_has_a_page(tmp_path):
    """It has recorded neither margins nor answers; pairs are shown all the same."""
    path, _ = made(tmp_path, base=Checkpoint("/nowhere"))
    (path / "report.json").unlink()
    report([str(path)])
    page = Page((path / "report.html").read_text("utf-8"))
    assert "Showing all 3 pairs trained on. The margin was measured for 0 of them" in page.text
    assert "the image pipeline of the run is not known" in page.text


def test_an_unfinished_run_has_a_page(tmp_path, capsys):
    Workdir.open(Experiment(workdir=str(tmp_path / "new"))).close()
    report([str(tmp_path / "new")])
    assert "Not known yet: the alignment has not finished." in capsys.readouterr().out


def test_what_is_no_run_is_one_line(tmp_path):
    for argv, expected in (
        ([], "which run"),
        ([str(tmp_path / "no")], "is not the work directory of a run: it has no config.py"),
    ):
        with pytest.raises(SystemExit, match=expected):
            report(argv)
    path, _ = made(tmp_path)
    (path / "report.json").write_text('{"mesh": 1}')
    with pytest.raises(SystemExit, match=r"report\.json is not a record of this version"):
        report([str(path)])
    with pytest.raises(DataError):
        Shown.read(path)


def test_several_runs_are_compared(tmp_path, capsys):
    runs = [str(write_run(tmp_path, "r", number)) for number in range(2)]
    out = str(tmp_path / "c.html")
    for argv, title in (
        ([*runs, "--out", out], "2 runs compared"),
        (["--runs", *runs, "--out", out], "2 runs compared"),
        (["--runs", runs[0], "--out", out], "1 run"),
    ):
        report(argv)
        assert f'<h1 dir="auto">{title}</h1>' in (tmp_path / "c.html").read_text("utf-8")
