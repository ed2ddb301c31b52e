"""The evaluation command: answers survive a kill, changes are noticed, two models are compared."""

import contextlib
import dataclasses
import json
import re
import types
from typing import cast

import numpy as np
import process_worker
import pytest
from helpers_suites import every_suite
from PIL import Image

from seva_jax import evaluate, train
from seva_jax.config import (
    Checkpoint,
    Evaluation,
    Experiment,
    TextOptions,
    evaluation_config,
    read_suites,
)
from seva_jax.config.command_line import load_experiment
from seva_jax.data.files import QuestionsJsonl
from seva_jax.evals import ExactAnswer, stored_evaluations, stored_labels
from seva_jax.evals.suites import GQA, PopeSets
from seva_jax.images.preprocess import ImageProcessing
from seva_jax.inference.rollouts import AnsweredPrompt
from seva_jax.run import evaluations
from seva_jax.run.opened import FoundModel
from seva_jax.run.workdir import Workdir
from seva_jax.runtime.journal import Journal
from seva_jax.sharding import MeshShape
from seva_jax.text.templates import PLAIN
from seva_jax.types import DataError
from seva_jax.worlds import ShapeWorld, WorldPrompts

NUM = 12
WORLD = ShapeWorld()


class Killed(Exception):
    """Stands for the end of the process."""


def write_files(folder):
    """Writes POPE's and GQA's files about images and words of the procedural world."""
    (folder / "images").mkdir(parents=True)
    gqa, pope = {}, []
    for i in range(NUM):
        Image.fromarray(WORLD.draw("e", i, False)).save(folder / f"images/{i}.jpg", "PNG")
        color, there = (WORLD.prompt("e", i, False, kind) for kind in ("color", "presence"))
        gqa[f"g{i}"] = {
            "imageId": str(i), "question": color.question, "answer": color.meta["answer"],
            "types": {"structural": "query" if i % 2 else "choose"},
        }  # fmt: skip
        label = there.meta["answer"]
        pope.append({"question_id": i, "image": f"{i}.jpg", "text": there.question, "label": label})
    (folder / "gqa.json").write_text(json.dumps(gqa))
    lines = "".join(json.dumps(line) + "\n" for line in pope)
    (folder / "coco_pope_random.json").write_text(lines)
    return folder


@pytest.fixture
def files(tmp_path):
    return write_files(tmp_path / "files")


def gqa_suite(files):
    images = str(files / "images")
    return GQA(path=str(files / "gqa.json"), image_root=images, suffix="", max_new_tokens=4)


def suite_file(files):
    """Writes a suite file as users do."""
    path = files / "suites.py"
    path.write_text(
        "from seva_jax.evals.suites import GQA, PopeSets\n\n\n"
        "def get_suites():\n"
        f"    images = {str(files / 'images')!r}\n"
        f"    common = dict(image_root=images, suffix='', max_new_tokens=4)\n"
        f"    return [GQA(path={str(files / 'gqa.json')!r}, **common),\n"
        f"            PopeSets(folder={str(files)!r}, sets=('random',), **common)]\n"
    )
    return path


@dataclasses.dataclass
class Parrot:
    """An `RolloutEngine` that answers "red", three questions at a time.

    The image of question g4 is missing; for `unable`, another question is too long instead.
    """

    seed: int = 0
    unable: str = ""
    asked: list = dataclasses.field(default_factory=list)

    processing = ImageProcessing(size=32)
    cache = "exact"
    word = "red"

    @property
    def variables(self):
        return {"params": np.full(3, self.seed, np.float32)}

    @property
    def encoder(self):
        tokenizer = types.SimpleNamespace(get_vocab=lambda: {"a": 1})
        return types.SimpleNamespace(template=PLAIN, max_length=9, tokenizer=tokenizer)

    def answer(self, data, sampling, start=0):
        prompts = data.prompts
        for first in range(start, len(prompts), 3):
            batch = prompts[first : first + 3]
            self.asked += [p.id for p in batch]
            yield [
                AnsweredPrompt(p, (), "too long" if self.unable else "missing image")
                if p.id == (self.unable or "g4")
                else AnsweredPrompt(p, (self.word,), "")
                for p in batch
            ]


def written(folder):
    """Returns every file and its content."""
    return {
        str(p.relative_to(folder)): p.read_bytes().replace(str(folder).encode(), b"")
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def dying(num):
    """Returns a replacement for `Journal.append` that dies after some batches of answers."""
    left, append = [num], Journal.append

    def append_or_die(self, records):
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        append(self, records)

    return append_or_die


def test_answers_survive_a_kill(tmp_path, files, monkeypatch):
    """The second run asks for the rest, and leaves the files of an undisturbed run."""
    suite = gqa_suite(files)
    evaluations.evaluate_all(Parrot(), [suite], "base", Workdir(tmp_path / "one" / "run", True))
    workdir, parrot = Workdir(tmp_path / "two" / "run", True), Parrot()
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", dying(2))
        with pytest.raises(Killed):
            evaluations.evaluate_all(parrot, [suite], "base", workdir)
    asked = workdir.path / "evals" / "base" / "gqa" / "asked.jsonl"
    asked.write_text(asked.read_text() + '{"id": "g6", "an')  # cut by the kill
    parrot.asked.clear()
    assert evaluations.evaluate_all(parrot, [suite], "base", workdir) == "12 questions"
    assert parrot.asked == [f"g{i}" for i in range(6, NUM)]
    assert written(tmp_path / "two") == written(tmp_path / "one")
    parrot.asked.clear()
    evaluations.evaluate_all(parrot, [suite], "base", workdir)
    assert not parrot.asked


def test_what_cannot_be_asked_is_left_out(tmp_path, files, capsys):
    """It is counted, and empty in files for scorers, some of which align by order."""
    workdir = Workdir(tmp_path / "run", True)
    evaluations.evaluate_all(Parrot(), [gqa_suite(files)], "base", workdir)
    assert "1 prompts left out: {'missing image': 1}" in capsys.readouterr().out
    folder = workdir.path / "evals" / "base"
    summary = json.loads((folder / "gqa.json").read_text())
    assert summary["num_examples"] == NUM - 1
    assert summary["about"]["left_out"] == {"missing image": 1}
    predictions = json.loads((folder / "gqa" / "gqa.json").read_text())
    assert predictions[4] == {"questionId": "g4", "prediction": ""}


def test_changes_are_noticed(tmp_path, files):
    """Answers to other questions, or of another model or file, are not mixed."""
    workdir, suite = Workdir(tmp_path / "run", True), gqa_suite(files)
    evaluations.evaluate_all(Parrot(), [suite], "base", workdir)
    with pytest.raises(DataError, match="a change of the model or how it is asked; delete"):
        evaluations.evaluate_all(Parrot(seed=1), [suite], "base", workdir)
    other = dataclasses.replace(suite, suffix=" Say.")
    with pytest.raises(DataError, match="a change of the questions; delete"):
        evaluations.evaluate_all(Parrot(), [other], "base", workdir)
    path = files / "gqa.json"
    path.write_text(path.read_text().replace('"query"', '"verify"'))
    with pytest.raises(DataError, match=r"of .*gqa\.json \(SHA-256 \w{12} then, \w{12} now\)"):
        evaluations.evaluate_all(Parrot(), [suite], "base", workdir)


def test_nothing_is_asked_that_cannot_be_scored(tmp_path, files):
    """A question without truth is found before the model has worked for hours."""
    parrot, prompts = Parrot(), QuestionsJsonl(str(files / "q.jsonl"), str(files / "images"))
    (files / "q.jsonl").write_text('{"id": 1, "question": "q?", "image": "0.jpg"}\n')
    with pytest.raises(DataError, match="has no text in meta"):
        evaluations.evaluate_all(
            parrot, [Evaluation(ExactAnswer("mine"), prompts)], "base", Workdir(tmp_path, True)
        )
    assert not parrot.asked


def test_two_models_are_compared(tmp_path, files):
    """They are next to each other, with paired intervals, and categories have their own table."""
    workdir, suite = Workdir(tmp_path / "run", True), gqa_suite(files)
    evaluations.evaluate_all(Parrot(), [suite], "aligned", workdir)
    alone, refused = evaluate.tables(workdir.path, ["aligned"], ["gqa"])
    assert "aligned" in alone.splitlines()[0]
    assert "base" not in alone
    evaluations.evaluate_all(Parrot(), [suite], "base", workdir)
    text, _ = evaluate.tables(workdir.path, ["base"], ["gqa"])
    metrics, categories = text.split("\n\n")
    assert "+0.000 [+0.000, +0.000]" in metrics
    assert "query/accuracy" in categories
    assert "query/accuracy" not in metrics
    assert not refused


def test_any_models_are_compared_with_the_first(tmp_path, files):
    """Three models make two comparisons, and one model of three is shown alone."""
    out, gqa = Workdir(tmp_path / "out", True), gqa_suite(files)
    pope = PopeSets(folder=str(files), sets=("random",), image_root=str(files / "images"))
    for label in "abc":
        evaluations.evaluate_all(Parrot(), [gqa, pope], label, out, source=f"models/{label}")
    text, refused = evaluate.tables(out.path, ["a", "b", "c"], ["gqa", "pope"])
    assert not refused
    headings = [
        block.splitlines()[0].split()[4:] for block in text.split("\n\n") if block[0] != "("
    ]
    first, second = ["a", "b", "difference"], ["a", "c", "difference"]
    assert headings == [first, first, second, second]
    # POPE's only set repeats its five metrics of two parsers, which read "red" in different ways.
    assert text.count("(rows that only repeat these numbers are left out: 10)") == 2
    assert "words: f1" in text
    assert "random/f1" not in text
    assert stored_evaluations(out.path, ["b"])[0].about["b"]["source"] == "models/b"
    text, _ = evaluate.tables(out.path, ["b"], ["gqa"])
    assert text.splitlines()[0].split()[4:] == ["b"]


def test_answers_of_a_trained_model_record_its_training(tmp_path, files):
    """So that they are noticed when it has been trained again; the base is not trained."""
    workdir, suite = Workdir(tmp_path / "run", True), gqa_suite(files)
    workdir.path.mkdir()
    (workdir.path / "stages.json").write_text(json.dumps({"align": {"fingerprint": "first"}}))
    for label in ("base", "aligned"):
        evaluations.evaluate_all(Parrot(), [suite], label, workdir)
    (gqa,) = stored_evaluations(workdir.path)
    assert [gqa.about[label].get("trained") for label in ("base", "aligned")] == [None, "first"]
    assert evaluate.tables(workdir.path, ["base"], ["gqa"])[1] == []
    (workdir.path / "stages.json").write_text("{}")  # it is being trained again
    (reason,) = evaluate.tables(workdir.path, ["base"], ["gqa"])[1]
    assert "gqa was asked of an earlier aligned model" in reason


def test_what_two_parsers_read_alike_is_one_row(tmp_path, files, monkeypatch):
    """Also of a single model."""
    out = Workdir(tmp_path / "out", True)
    pope = PopeSets(folder=str(files), sets=("random",), image_root=str(files / "images"))
    for answer, label in (("Yes", "a"), ("No.", "b")):
        monkeypatch.setattr(Parrot, "word", answer)
        evaluations.evaluate_all(Parrot(), [pope], label, out)
    for labels in (["a"], ["a", "b"]):
        text, _ = evaluate.tables(out.path, labels, ["pope"])
        table, note = text.split("\n\n")
        names = [line.split()[1] for line in table.splitlines()[2:]]
        assert names[:5] == ["accuracy", "precision", "recall", "f1", "yes_ratio"]
        # Of answers that could not be read only the parser of words knows.
        assert [" ".join(line.split()[1:3]) for line in table.splitlines()[7:]] == [
            "words: unparsed"
        ]
        assert note == "(rows that only repeat these numbers are left out: 15)"


def test_models_that_are_asked_differently_are_named():
    """A line says how; what is asked alike needs none."""

    def model(template, **processing):
        config = Experiment(text=TextOptions(generate=template))
        assets = types.SimpleNamespace(processing=ImageProcessing(size=32, **processing))
        return cast(FoundModel, types.SimpleNamespace(config=config, assets=assets))

    models = {"a": model(PLAIN), "b": model(PLAIN)}
    assert evaluate.asked_differently(models) == []
    models["c"] = model(dataclasses.replace(PLAIN, user="HUMAN"), pad_to_square=False)
    assert evaluate.asked_differently(models) == [
        f"c is asked differently than a: template (user {PLAIN.user!r} / 'HUMAN'), image "
        "processing (pad_to_square True / False)"
    ]


def test_help_lists_the_options_of_the_command(monkeypatch, capsys):
    """Each has a line of its own, before those of the config."""
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as end:
        evaluate.main(["--help"])
    assert end.value.code == 0
    own, config = capsys.readouterr().out.split("--config FILE picks")
    options = ("models", "labels", "suite", "questions", "image-root", "suffix", "out",
               "batch-size", "base", "vision-tower", "same-base")  # fmt: skip
    assert re.findall(r"^  --([a-z-]+)", own, re.MULTILINE) == list(options)
    assert "--rollout.batch-size" in config


def test_other_questions_are_not_compared(tmp_path, files):
    """Both results are shown alone, and the reason names what a model could not be asked."""
    out, suite = Workdir(tmp_path / "out", True), gqa_suite(files)
    evaluations.evaluate_all(Parrot(), [suite], "a", out)
    evaluations.evaluate_all(Parrot(unable="g7"), [suite], "b", out)
    text, (reason,) = evaluate.tables(out.path, ["a", "b"], ["gqa"])
    headings = [
        block.splitlines()[0].split()[4:] for block in text.split("\n\n") if block[0] != "("
    ]
    assert headings == [["a"], ["a"], ["b"], ["b"]]
    assert reason.startswith("a and b are not compared: gqa: 2 ids are in only one of the two")
    assert reason.endswith(
        "of the questions, a could not be asked {'missing image': 1}, b could not be asked "
        "{'too long': 1}"
    )


def test_what_is_known_before_a_model_is_loaded(tmp_path, files):
    """Questions that changed, and images that are not there; not if all answers are there."""
    workdir, suite = Workdir(tmp_path / "run", True), gqa_suite(files)
    evaluations.require_askable([suite], ["a"], workdir.path)
    evaluations.evaluate_all(Parrot(), [suite], "a", workdir)
    other = dataclasses.replace(suite, suffix=" Say.")
    with pytest.raises(DataError, match=r"a/gqa/asked\.jsonl has answers from before a change of "):
        evaluations.require_askable([other], ["b", "a"], workdir.path)
    evaluations.require_askable([other], ["b"], workdir.path)
    evaluations.require_askable([suite], ["a"], workdir.path)
    for image in (files / "images").iterdir():
        image.unlink()
    evaluations.require_askable([suite], ["a"], workdir.path)
    with pytest.raises(
        DataError,
        match=r"gqa: no image of its 12 questions can be read \(the first: .*0\.jpg.*--image-root",
    ):
        evaluations.require_askable([suite], ["a", "b"], workdir.path)


def test_only_what_concerns_the_model_is_compared():
    """Training may differ and is named; devices and batches are taken; the model may not differ."""
    stored = Experiment(workdir="runs/mine")
    given = dataclasses.replace(
        stored,
        train=dataclasses.replace(stored.train, epochs=3, log_every=7),
        optim=dataclasses.replace(stored.optim, lr=0.5),
        text=dataclasses.replace(stored.text, train=PLAIN),
        mesh=MeshShape(data=2, fsdp=1),
        rollout=dataclasses.replace(stored.rollout, batch_size=5, refill=1, tensor=2),
        compute=dataclasses.replace(stored.compute, attention="plain", remat="matmuls"),
        workdir="elsewhere",
    )
    asked, ignored = evaluation_config(stored, given, "aligned")
    assert {"train.epochs", "optim.lr", "compute.remat"} <= set(ignored)
    assert not [x for x in ignored if x.startswith(("mesh", "rollout.b", "workdir"))]
    assert (asked.train, asked.optim, asked.text) == (stored.train, stored.optim, stored.text)
    assert (asked.mesh, asked.rollout) == (given.mesh, given.rollout)
    assert asked.compute == dataclasses.replace(stored.compute, attention="plain")
    assert asked.workdir == "runs/mine"
    lora = dataclasses.replace(stored, lora=dataclasses.replace(stored.lora, rank=9))
    assert evaluation_config(stored, lora, "base")[1] == ["lora.rank"]
    for changed, which, expected in (
        (lora, "aligned", "lora.rank: 1024 there, 9 now"),
        (dataclasses.replace(stored, seed=7), "base", "seed: 42 there, 7 now"),
        (
            dataclasses.replace(stored, base=Checkpoint(path="other")),
            "base", "base.path: '' there, 'other' now",
        ),
        (
            dataclasses.replace(stored, text=dataclasses.replace(stored.text, max_length=9)),
            "base", "text.max_length: 2048 there, 9 now",
        ),
        (
            dataclasses.replace(stored, text=dataclasses.replace(stored.text, generate=PLAIN)),
            "aligned", "text.generate.system: ",
        ),
    ):  # fmt: skip
        with pytest.raises(
            DataError, match=f"^runs/mine holds the model of another.*\n.*{expected}"
        ):
            evaluation_config(stored, changed, which)


def test_results_are_read_without_their_suites(tmp_path, files):
    """A report needs no suite file: names, order, metrics, records and images are recorded."""
    run = Workdir(tmp_path / "run", True)
    gqa, own = gqa_suite(files), Evaluation(ExactAnswer("own"), WorldPrompts(num=3))
    pope = PopeSets(folder=str(files), sets=("random",), image_root=str(files / "images"))
    evaluations.evaluate_all(Parrot(), [own], "base", run)
    evaluations.evaluate_all(Parrot(), [pope, gqa], "base", run)
    evaluations.evaluate_all(Parrot(seed=1), [pope], "aligned", run)
    assert stored_labels(run.path) == ["aligned", "base"]
    stored = stored_evaluations(run.path, first=("own",))
    assert [x.name for x in stored] == ["own", "pope", "gqa"]
    assert stored_evaluations(run.path, first=("gqa", "other"))[0].name == "gqa"
    assert [list(x.results) for x in stored] == [["base"], ["base", "aligned"], ["base"]]
    popes = stored[1]
    assert popes.results["base"].definitions["f1"].better == "higher"
    assert len(popes.results["aligned"].records) == NUM
    assert popes.about["base"]["model"] == stored[2].about["base"]["model"]
    assert popes.about["base"]["model"] != popes.about["aligned"]["model"]
    assert stored[2].about["base"]["left_out"] == {"missing image": 1}
    for evaluation, suite in zip(stored, (own, pope, gqa), strict=True):
        assert read_suites(str(evaluation.suite_file)) == [suite]
    image = stored[2].results["base"].records[3]["images"][0]
    (again,) = read_suites(str(stored[2].suite_file))
    assert (again.open().load_image(image) == WORLD.draw("e", 3, False)).all()


def test_results_of_version_0_4_are_read(tmp_path, files):
    """They lack the suite and the order, and come in the order of their names."""
    run = Workdir(tmp_path / "run", True)
    for name in ("b", "a"):
        suite = dataclasses.replace(gqa_suite(files), name=name)
        evaluations.evaluate_all(Parrot(), [suite], "base", run)
        (run.path / "evals" / "base" / name / "suite.py").unlink()
        file = run.path / "evals" / "base" / f"{name}.json"
        summary = json.loads(file.read_text())
        del summary["about"]["order"], summary["about"]["model"]
        file.write_text(json.dumps(summary))
    stored = stored_evaluations(run.path)
    assert [(x.name, x.suite_file) for x in stored] == [("a", None), ("b", None)]


def test_suite_files(tmp_path, files, monkeypatch):
    """It may be a file or a module; what is wrong with one is said in a line."""
    assert [type(s) for s in read_suites(str(suite_file(files)))] == [GQA, PopeSets]
    monkeypatch.syspath_prepend(files)
    (files / "my_suites.py").write_text((files / "suites.py").read_text())
    assert [type(s) for s in read_suites("my_suites")] == [GQA, PopeSets]
    path = tmp_path / "suites.py"
    for text, expected in (
        ("x = 1", "defines get_suites"),
        ("def get_suites():\n    return [3]", "gave int, which is no Suite"),
        ("def get_suites():\n    return nothing", "NameError"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=f"suites.py: .*{expected}"):
            read_suites(str(path))
    for name in (str(tmp_path / "no.py"), "no_such.module"):
        with pytest.raises(DataError, match="no suite file and no module"):
            read_suites(name)


@pytest.fixture
def command(monkeypatch):
    """Returns the command without what belongs to a process of its own."""
    monkeypatch.setattr(evaluate, "joined", lambda options: contextlib.nullcontext())
    return evaluate.main


def run_record(folder):
    """Writes what a finished run has, but for its weights."""
    experiment, _ = load_experiment("test", ["--workdir", str(folder)])
    Workdir.open(experiment).close()
    (folder / "stages.json").write_text('{"base": {}, "align": {}}')
    return str(folder)


def test_errors_are_one_line(tmp_path, files, command):
    """Bad input gives no traceback, before any weights are read."""
    twice = files / "twice.py"
    suites = str(suite_file(files))
    twice.write_text(
        "from seva_jax.config.experiment import Evaluation\n"
        "from seva_jax.evals import ExactAnswer\n\n\n"
        "def get_suites():\n    return [Evaluation(ExactAnswer('color-skewed'))]\n"
    )
    one, two = run_record(tmp_path / "one"), run_record(tmp_path / "two")
    for argv, expected in (
        (["--model", str(tmp_path / "files")], "holds no model .neither config.py nor config.json"),
        (["--model", str(tmp_path / "no")], "no does not exist; give the work directory of a run"),
        (["--suite", suites, suites], "two suites are named 'gqa'"),
        (["--model", one, "--suite", str(twice)], "another suite named 'color-skewed'"),
        (["--suite", suites, "--workdir", str(tmp_path / "new")], "no trained base model yet"),
        (["--model", one, "--labels", "a", "b"], "2 labels for 1 models; give one for each"),
        (["--model", one, "--labels", "a/b"], "'a/b' cannot be the label of a model"),
        (["--model", one, "--labels", ".."], "'..' cannot be the label of a model"),
        (["--models", one, two], "give --out DIR, .* there are 2 runs among the models"),
        (["--models", one, one], "two models have the label 'aligned'; give each its own with --l"),
        (["--models", "base", one, two], "of one run, and there are 2"),
        (["--models", one, "--image-root", "x"], "are for --questions FILE, which is missing"),
        (["--models", one, "--config", one + "/config.py"], "one has a config of its own"),
        (
            ["--models", one, "--base.steps", "9"],
            "one holds the model of another config:\n  base.s",
        ),
        (["--models", one, "--batch-size", "0"], "--batch-size must be at least 1, not 0"),
        (
            ["--models", two, "--out", one],
            "own models have the labels base and aligned; give .*two",
        ),
        (
            ["--models", "base", one, "--labels", "aligned", "base"],
            "own models have the labels base and aligned; give base another label",
        ),
    ):
        with pytest.raises(SystemExit, match=f"error: .*{expected}"):
            command(argv)


@pytest.mark.slow
def test_base_and_aligned_end_to_end(tmp_path, files, command, monkeypatch, capsys):
    """Two suites on a real, small model are killed, resumed and compared."""
    folder = tmp_path / "run"
    argv = [*process_worker.SMALL.split(), "--train.max-steps", "2", "--workdir", str(folder)]
    experiment, _ = load_experiment("test", argv)
    train.run(dataclasses.replace(experiment, pairs=process_worker.MadeUpPairs(), evals=()))
    base = ["--config", str(folder / "config.py"), "--suite", str(suite_file(files))]
    base += ["--batch-size", "8"]
    command([*base, "--model", "base", "--out", str(tmp_path / "whole" / "run")])
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", dying(1))
        with pytest.raises(Killed):
            command([*base, "--model", "base"])
    command([*base, "--model", "base"])
    whole, resumed = tmp_path / "whole" / "run" / "evals", folder / "evals"
    assert written(whole) == written(resumed)
    assert {p.name for p in (resumed / "base").iterdir()} >= {"gqa", "pope", "pope.json"}
    (tmp_path / "every").mkdir()
    (tmp_path / "every.py").write_text(
        f"import pathlib\nfrom helpers_suites import every_suite\n\n\ndef get_suites():\n"
        f"    return every_suite(pathlib.Path({str(tmp_path / 'every')!r}))\n"
    )
    command(
        [*base[:2], *base[4:], "--suite", str(tmp_path / "every.py"), "--out", str(folder / "x")]
    )
    named = {p.stem for p in (folder / "x" / "evals" / "base").glob("*.json")}
    assert named == {suite.name for suite in every_suite(tmp_path / "names")}
    capsys.readouterr()
    command(["--model", str(folder), "--suite", str(suite_file(files))])
    shown = capsys.readouterr().out
    assert "difference" in shown
    assert "words: accuracy" in shown
    assert "random/accuracy" not in shown  # the only set, which repeats the rows of all
    (folder / "stages.json").write_text("{}")
    with pytest.raises(SystemExit, match="base model is not trained yet"):
        command(["--model", str(folder), "--suite", str(suite_file(files))])
