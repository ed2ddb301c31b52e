"""Training on pairs made by others: no rollouts, and the same stages after that."""

import dataclasses
import json
import re

import helpers_formats
import jax
import numpy as np
import pytest
from helpers_train import opened, replaced, table
from PIL import Image

from seva_jax import train
from seva_jax.batches import encoded
from seva_jax.batches.fitting import fitting
from seva_jax.config.command_line import load_experiment
from seva_jax.config.experiment import check
from seva_jax.corrupt import DiffusionNoise
from seva_jax.data import json_records
from seva_jax.data.changed import ChangedImages
from seva_jax.data.messages import TrlPairs
from seva_jax.data.mixed import Concatenated
from seva_jax.objectives import DPO, Inherent, ScoreGap
from seva_jax.report.__main__ import main as report
from seva_jax.run.outputs import Outputs
from seva_jax.run.rollouts import RECORDS, read_rollouts
from seva_jax.run.stages import run_pairs, run_rollouts
from seva_jax.runtime import files
from seva_jax.types import DataError
from seva_jax.worlds import ShapeWorld

SMALL = """
--base.steps 2 --base.batch-size 4 --base.prompts.num 8 --lora.rank 2 --seed 3
--base.model.vision.hidden-size 16 --base.model.text.hidden-size 16 --base.model.text.head-dim 8
--base.model.vision.num-layers 2 --base.model.text.num-layers 1 --compute.row-shapes 1
--train.batch-size 4 --train.epochs 2 --train.max-steps 4 --train.save-every 2 --train.log-every 1
"""


pytestmark = pytest.mark.usefixtures("one_device")


def experiment(tmp_path, num=8):
    """Writes pairs in TRL's format: one has two images, one a broken one, one is no pair."""
    images = tmp_path / "images"
    images.mkdir(exist_ok=True)
    world = ShapeWorld(seed=0)
    for i in range(num):
        Image.fromarray(world.draw("x", i, False)).save(images / f"{i}.png")
    (images / "3.png").write_bytes(b"<html>not found</html>")
    lines = [
        {
            "images": [f"{i}.png"] + ["0.png"] * (i == 1),
            "prompt": [{"role": "user", "content": "What color is the circle ?"}],
            "chosen": [{"role": "assistant", "content": "red"}],
            "rejected": [{"role": "assistant", "content": "blue and blue" if i % 2 else "green"}],
        }
        for i in range(num)
    ]
    lines.append(lines[0] | {"rejected": lines[0]["chosen"]})
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found, _ = load_experiment("test", [*SMALL.split(), "--workdir", str(tmp_path / "run")])
    source = TrlPairs(str(path), str(images))
    return dataclasses.replace(found, prompts=source, corrupt=(), evals=())


def test_stages_of_preferences(tmp_path, capsys):
    """They run in order, with heavy ones replaced, and the pairs stage leaves its files."""
    stages = table(instead=replaced("base", "reference", "align", "report"))
    check(experiment(tmp_path))  # without corruptions, which pairs do not need
    run = train.run(experiment(tmp_path), table=stages)
    assert list(run.ctx.workdir.stages()) == ["base", "pairs", "reference", "align", "report"]
    assert not (run.ctx.workdir.path / RECORDS).exists()
    index = json.loads((run.ctx.workdir.path / "pairs.json").read_text())
    assert index == {
        "pairs": 8, "prompts": 9, "answers cut to fit": 0, "drops": {"equal answers": 1},
        "left out inside pairs": {},
    }  # fmt: skip
    pairs = json_records.read_comparisons(run.ctx.workdir.path / "pairs.array_record")
    assert pairs == list(run.prompts.comparisons)
    assert "pairs: 8 kept of 9; dropped: 1 equal answers" in capsys.readouterr().out
    train.run(experiment(tmp_path), table=stages)
    assert capsys.readouterr().out.count("done before") == 5


def test_a_run_encodes_its_pairs_once(tmp_path, monkeypatch):
    """From the pairs stage to rows for training; a resumed run encodes what it has stored once."""
    texts = []

    def counted(comparisons, encoder):
        texts.extend(comparison.prompt.id for comparison in comparisons)
        return fitting(comparisons, encoder)

    monkeypatch.setattr(encoded, "fitting", counted)
    e = experiment(tmp_path)
    e = dataclasses.replace(
        e, train=dataclasses.replace(e.train, reference="in_step", eval_fraction=0.25)
    )
    out = opened(e)
    run_pairs(out.ctx, out)
    resumed = Outputs(out.ctx)
    for outputs in (out, resumed):
        assert outputs.held_out_rows is not None
        assert len(outputs.training_rows) + len(outputs.held_out_rows) == 8
        assert sorted(texts) == sorted(prompt.id for prompt in out.prompts.prompts)
        texts.clear()
    assert resumed.comparisons.comparisons == out.comparisons.comparisons


def test_pairs_that_do_not_fit_are_counted(tmp_path):
    """`build_pairs` is one function for rollouts and for preferences."""
    e = experiment(tmp_path)
    long = dataclasses.replace(e, text=dataclasses.replace(e.text, max_length=30))
    out = opened(long)
    out.prompts.notes["later turns not used"] = 3
    said = run_pairs(out.ctx, out)
    assert said == (
        "7 kept of 9; dropped: 1 equal answers, 1 too long; "  # two images
        "left out inside: 3 later turns not used"
    )
    none = dataclasses.replace(e.text, max_length=8)
    out = opened(dataclasses.replace(e, text=none, workdir=str(tmp_path / "none")))
    with pytest.raises(DataError, match=r"no pairs are left of 8 prompts \(8 too long, 1 equal"):
        run_pairs(out.ctx, out)


@pytest.mark.slow
def test_training_on_preferences(tmp_path, capsys):
    """It reaches the report; the pair whose image does not decode has weight 0 and is counted."""
    e = experiment(tmp_path)
    run = train.run(e)
    shown = capsys.readouterr().out
    assert "1 pairs left out, whose images do not decode" in shown
    assert "2 times an image did not decode and its pair counted 0" in shown
    rows = [r for r in run.ctx.workdir.read_metrics() if r["stage"] == "align"]
    assert [r["step"] for r in rows] == [1, 2, 3, 4]
    assert rows[0]["loss"] == pytest.approx(np.log(2), abs=1e-5)
    assert sum(r["unreadable"] for r in rows) == 2  # once an epoch
    assert sum(r["pairs"] for r in rows) == 14
    changed = [np.abs(np.asarray(x)).max() for x in train.jax.tree.leaves(run.aligned["lora"])]
    assert min(changed) > 0  # b begins at 0
    path = run.ctx.workdir.path
    page = (path / "report.html").read_text(encoding="utf-8")
    assert "blue and blue" in page

    # Without an evaluation it still asks the prompts before and after, and makes no claim.
    assert "Did it help? Not known: there is no evaluation. " in shown
    asked = json.loads((path / "report.json").read_text())
    # Eight prompts, of which one has no image that decodes; all others were trained on.
    assert [one["id"] for one in asked["own"]] == [
        p.id for i, p in enumerate(run.prompts.prompts) if i != 3
    ]
    assert {one["seen"] for one in asked["own"]} == {"pair"}
    assert sum(asked["left_out"].values()) == 1
    assert asked["margins"][3] == [3, None, None]
    sections = re.findall(r'<section id="(\w+)"', page)
    assert sections[:3] == ["verdict", "own", "glance"]
    report([str(path), "--out", str(tmp_path / "again.html")])
    # Everything but how long the run took is the same when the page is made again.
    again = (tmp_path / "again.html").read_text(encoding="utf-8")
    assert again.partition("<h3>Goodput")[0] == page.partition("<h3>Goodput")[0]

    # The stages used what was computed; it is what the files have.
    for kept, read in zip(run.reference_logps, Outputs(run.ctx).reference_logps, strict=True):
        assert isinstance(kept, tuple)
        jax.tree.map(np.testing.assert_array_equal, kept, read)
    stored = files.read_records(run.ctx.workdir.path / "reference.array_record")[1:]
    assert [len(r["logps"]) for r in stored] == [2, 2, 2, 0, 2, 2, 2, 2]


@pytest.mark.slow
def test_training_with_changed_images(tmp_path):
    """POVID's second stage reaches the report; what does not go together is refused."""
    e = experiment(tmp_path)
    changed = ChangedImages(e.prompts)
    options = dataclasses.replace(e.train, reference="in_step")
    compute = dataclasses.replace(e.compute, row_shapes=4)
    e = dataclasses.replace(e, prompts=changed, objective=Inherent(beta=0.5), compute=compute)
    with pytest.raises(DataError, match=r"set --train\.reference in_step"):
        check(e)
    e = dataclasses.replace(e, train=options)
    check(e)
    run = train.run(e)
    rows = [r for r in run.ctx.workdir.read_metrics() if r["stage"] == "align"]
    assert rows[0]["loss"] == pytest.approx(np.log(2), abs=1e-5)
    assert rows[-1]["loss"] != rows[0]["loss"]


def test_scores_that_are_missing_are_named_before_training(tmp_path):
    """The objective is the first to ask for them."""
    e = experiment(tmp_path)
    out = opened(dataclasses.replace(e, objective=DPO(weighting=ScoreGap())))
    run_pairs(out.ctx, out)
    with pytest.raises(DataError, match="has 0 scores for 2 answers"):
        out.ctx.rows(out.comparisons, out.images, out.ctx.config.objective)


@pytest.mark.slow
def test_every_format_through_training_and_rollouts(tmp_path, tiny_pictures):
    """All pairs reach the aligned weights, and all prompts their answers."""
    e = dataclasses.replace(experiment(tmp_path), prompts=helpers_formats.all_pairs(tmp_path))
    run = train.run(e)
    index = json.loads((run.ctx.workdir.path / "pairs.json").read_text())
    assert (index["pairs"], index["drops"]) == (18, {})
    rows = [r for r in run.ctx.workdir.read_metrics() if r["stage"] == "align"]
    assert [r["unreadable"] for r in rows] == [0] * 4

    sources = helpers_formats.prompt_sources(tmp_path, tiny_pictures)
    asked = dataclasses.replace(
        e, workdir=str(tmp_path / "asked"), prompts=Concatenated(sources),
        corrupt=(DiffusionNoise(900),),
    )  # fmt: skip
    run = opened(asked)
    run.base = opened(e).base  # restored, not trained again
    assert run_rollouts(run.ctx, run) == "14 prompts, 2 answers each"
    records = read_rollouts(run.ctx.workdir.path)
    assert [r["id"] for r in records] == [p.id for p in run.prompts.prompts]
    assert not any("dropped" in r for r in records)
