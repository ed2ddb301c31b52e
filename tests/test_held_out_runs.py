"""Whole runs with held-out pairs and dropout: what they say and leave, and who reads it."""

import dataclasses
import json

import numpy as np
import pytest
from helpers_devices import limited_devices
from helpers_run import TIMING
from helpers_train import opened, replaced, small, table

from seva_jax import train
from seva_jax.convert.__main__ import open_source
from seva_jax.convert.peft import to_peft
from seva_jax.run.weights import held_out_result
from seva_jax.worlds import WorldPairs

OPTIONS = """
--train.eval-fraction 0.25 --train.eval-every 2 --train.keep best --train.max-steps 9
--train.epochs 3 --train.trained lora --lora.dropout 0.1 --optim.lr 1e-2 --base.steps 2
--compute.row-shapes 1
"""
STAGES = table(instead=replaced("report"))


def experiment(folder, *extra):
    """Returns a run on 24 given pairs, 6 of them held out."""
    config = small(folder, *OPTIONS.split(), *extra)
    return dataclasses.replace(config, prompts=WorldPairs(num=24), corrupt=(), evals=())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Returns the folder of a run on four devices, with the reference cached."""
    folder = tmp_path_factory.mktemp("held_out") / "run"
    with limited_devices(4):
        train.run(experiment(folder), table=STAGES)
    return folder


def rows(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    found = [row for row in map(json.loads, lines) if row["stage"] == "held-out"]
    return [{k: v for k, v in row.items() if k not in TIMING} for row in found]


def test_what_a_run_says_and_leaves(finished, four_devices, capsys):
    """A finished run is skipped; its summary says the best and the last step."""
    result = held_out_result(experiment(finished))
    losses = {row["step"]: row["loss"] for row in rows(finished)}
    assert list(losses) == [0, 2, 4, 6, 7]
    best = min(list(losses)[1:], key=losses.get)
    assert (result.pairs, result.steps, result.last_step) == (6, 7, 7)
    assert (result.best_step, result.best_loss, result.kept_step) == (best, losses[best], best)
    assert rows(finished)[0]["rewards/margins"] == pytest.approx(0, abs=1e-5)
    capsys.readouterr()
    train.run(experiment(finished), table=STAGES)
    shown = capsys.readouterr().out
    assert f"align: done before (7 steps on 18 pairs, 6 held out: best at step {best} of 7" in shown
    assert f"model:  best at step {best} of 7, held-out loss {losses[best]:.3g}; last " in shown


def test_the_number_of_steps_is_said_before_training(finished, tmp_path, four_devices, capsys):
    """With the reason, and with what would reach `max_steps`."""
    order = []

    def note(name):
        return lambda ctx: order.append((name, capsys.readouterr().out)) or "replaced"

    stages = table(before={"align": note("before")}, instead=replaced("report"))
    train.run(experiment(tmp_path / "run", "--train.max-steps", "4"), [finished], stages)
    shown = capsys.readouterr().out
    said = "align: 18 pairs (6 held out), so 4 steps: 1.78 of 3 epochs, up to train.max_steps in"
    assert shown.index(said) < shown.index("align: at most 1 compilation")


def test_any_mesh_and_the_reference_in_the_step(finished, tmp_path):
    """One device, two micro-batches and the reference in the step give the same rows."""
    options = ("--train.reference", "in_step", "--train.micro-batches", "2")
    one = ("--mesh.data", "1", "--mesh.fsdp", "1", "--mesh.tensor", "1")
    with limited_devices(1):
        train.run(experiment(tmp_path / "run", *options, *one), [finished], STAGES)
    for found, expected in zip(rows(tmp_path / "run"), rows(finished), strict=True):
        assert found.keys() == expected.keys()
        # Before training, margins are rounding errors, and the accuracy counts their signs.
        left_out = {"stage", *["rewards/accuracies"] * (expected["step"] == 0)}
        for name, value in expected.items():
            if name not in left_out:
                np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=1e-4, err_msg=name)


def test_the_aligned_model_is_the_best_one(finished, tmp_path, four_devices):
    """Notebooks and exports read it; the last one can be exported, too."""
    result = held_out_result(experiment(finished))
    name = "lora/language/layers/q_proj/b"
    by_step = {s: open_source(finished, step=s).read([name])[0] for s in (None, "best", "last")}
    np.testing.assert_array_equal(by_step[None], by_step["best"])
    assert (result.best_step != 7) == bool(np.abs(by_step["best"] - by_step["last"]).max() > 0)
    aligned = opened(experiment(finished)).aligned["lora"]["language"]["layers"]["q_proj"]["b"]
    np.testing.assert_array_equal(np.asarray(aligned), by_step[None])
    to_peft(open_source(finished), tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["lora_dropout"] == 0.1
