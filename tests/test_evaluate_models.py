"""Models side by side: a run's own, an export and an adapter, with labels and a questions file."""

import contextlib
import json
import shutil

import pytest
from helpers_devices import limited_devices
from PIL import Image

from seva_jax import evaluate
from seva_jax.convert.__main__ import open_source
from seva_jax.convert.peft import to_peft
from seva_jax.convert.rewrite import to_hf
from seva_jax.evals import stored_evaluations
from seva_jax.worlds import ShapeWorld

WORLD, NUM = ShapeWorld(), 12


@pytest.fixture(scope="module")
def folder(whole_run, tmp_path_factory):
    """Returns a folder with a copy of the finished tiny run, two exports of it, and questions."""
    folder = tmp_path_factory.mktemp("models")
    shutil.copytree(whole_run / "run", folder / "run", ignore=shutil.ignore_patterns("base-hf"))
    to_hf(open_source(folder / "run"), folder / "merged")
    to_peft(open_source(folder / "run"), folder / "adapter")
    lines = []
    for i in range(NUM):
        Image.fromarray(WORLD.draw("e", i, False)).save(folder / f"{i}.png")
        prompt = WORLD.prompt("e", i, False, "color")
        lines.append(
            {"image": f"{i}.png", "question": prompt.question}
            | {k: prompt.meta[k] for k in ("answer", "prior") if prompt.meta.get(k)}
        )
    (folder / "colors.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def command(monkeypatch, folder, capsys):
    """Returns the command, which takes the place of its output; run on one device."""
    monkeypatch.setattr(evaluate, "joined", lambda options: contextlib.nullcontext())
    monkeypatch.chdir(folder)

    def call(text):
        capsys.readouterr()
        with limited_devices(1):
            evaluate.main(text.split())
        return capsys.readouterr().out

    return call


def content(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_run_is_asked_its_own_questions_again(command, folder):
    """Nothing is asked and no file changes; options of training have no effect, and are named."""
    before = content(folder / "run" / "evals")
    shown = command("--models base run --train.epochs 3 --optim.lr 0.5 --rollout.batch-size 8")
    assert "base: without effect on an evaluation: optim.lr, train.epochs\n" in shown
    assert "aligned: without effect on an evaluation: optim.lr, train.epochs\n" in shown
    assert "prompts (100%)" not in shown
    assert content(folder / "run" / "evals") == before
    assert "answers and scores: run/evals/base, run/evals/aligned" in shown


def test_a_run_its_export_and_its_adapter_answer_alike(command, folder):
    """They are the same model, so no difference is seen; each has its template and tokenizer."""
    shown = command("--models run merged adapter --questions colors.jsonl --out compared")
    stored = stored_evaluations(folder / "compared", ["aligned", "merged", "adapter"])
    (colors,) = stored
    answers = [[r["answer"] for r in colors.results[x].records] for x in colors.results]
    assert answers[0] == answers[1] == answers[2]
    assert len(answers[0]) == NUM
    assert shown.count("difference") == 2
    assert shown.count("+0.000 [+0.000, +0.000]") >= 2
    assert colors.about["merged"]["source"] == "merged"
    assert "source" not in colors.about["aligned"]


def test_two_labels_and_what_is_missing_is_asked(command, folder):
    """With one run among the models its folder has the results; the rest resumes by label."""
    text = "--model base merged --labels before after --questions colors.jsonl"
    own = " --config run/config.py --workdir run"
    with pytest.raises(SystemExit, match="give --out DIR"):
        command(text.replace("base", "adapter"))
    shown = command(text + own)
    assert "answers and scores: run/evals/before, run/evals/after" in shown
    header = next(line for line in shown.splitlines() if line.startswith("evaluation"))
    assert header.split() == [
        "evaluation", "metric", "wanted", "n", "before", "after", "difference",
    ]  # fmt: skip
    (colors,) = stored_evaluations(folder / "run", ["before", "after"])
    assert colors.results["before"].records != colors.results["after"].records
    before = content(folder / "run" / "evals" / "before")
    shutil.rmtree(folder / "run" / "evals" / "after")
    again = command(text + own)
    assert again.splitlines()[-7:] == shown.splitlines()[-7:]
    assert "after: colors: 12 of 12 prompts (100%)" in again
    assert "before: colors: 12 of 12 prompts (100%)" not in again
    assert content(folder / "run" / "evals" / "before") == before
