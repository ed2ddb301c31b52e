"""Held-out pairs: which they are, their losses, the best checkpoint, early stopping."""

import dataclasses
import itertools
import math
import random

import jax
import numpy as np
import pytest
from helpers_fit import fit, random_base, tiny_run
from helpers_run import TIMING, lines, saved_steps

from seva_jax.batches.encoded import encode_comparisons
from seva_jax.config.command_line import load_experiment
from seva_jax.config.experiment import check
from seva_jax.inference.answer_logps import answer_logps
from seva_jax.objectives import DPO
from seva_jax.run.weights import aligned_checkpoint
from seva_jax.runtime import shutdown
from seva_jax.training.checkpoint import Checkpoints
from seva_jax.training.held_out import (
    Watch,
    read_held_out,
    split_by_image,
    weighted_means,
)
from seva_jax.training.options import TrainOptions
from seva_jax.types import Comparison, DataError, Prompt, View

HELD = 4  # of the 12 pairs of `fit`
OPTIONS = ("--train.eval-fraction", "0.3")  # `fit` takes the last `HELD`


def pair(number, *images):
    return Comparison(Prompt(f"p{number}", "?", images), ("a", "b"))


def many(seed=0, num=60):
    """Returns pairs of one to three images, some of which several pairs have."""
    draw = random.Random(seed)
    return [pair(i, *(f"{draw.randrange(300)}.png" for _ in range(1 + i % 3))) for i in range(num)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.3])
def test_no_image_is_on_both_sides(seed, fraction):
    pairs = many(seed)
    train, held = split_by_image(pairs, fraction, seed)
    assert sorted(train + held) == list(range(60))
    sides = [{image for i in part for image in pairs[i].images} for part in (train, held)]
    assert not sides[0] & sides[1]
    assert 1 <= len(held) <= round(fraction * 60)


def test_all_trees_and_equal_prompts_stay_together():
    """Images of further trees join pairs, and so do prompts of one id, also without images."""
    changed = dataclasses.replace(pair(0, "a"), more=(View(Prompt("x", "?", ("b",)), ("c",)),))
    pairs = [changed, pair(1, "b"), pair(2), pair(2), pair(3, "e"), pair(4, "f")]
    for seed in range(20):
        held = split_by_image(pairs, 0.4, seed)[1]
        for together in ({0, 1}, {2, 3}):
            assert len(together & set(held)) in (0, 2)


def test_the_share_is_exact_where_images_differ():
    pairs = [pair(i, f"{i}.png") for i in range(177)]
    for fraction, expected in ((0.1, 18), (0.001, 1), (0.5, 88), (0.9, 159)):
        assert len(split_by_image(pairs, fraction, 3)[1]) == expected
    assert split_by_image(pairs, 0.0, 3) == (list(range(177)), [])


def test_the_choice_depends_on_the_seed_and_not_on_the_order():
    pairs = many()

    def chosen(order, seed):
        held = split_by_image([pairs[i] for i in order], 0.2, seed)[1]
        return {pairs[order[i]].prompt.id for i in held}

    order = list(range(60))
    expected = chosen(order, 1)
    for number in range(5):
        random.Random(number).shuffle(order)
        assert chosen(order, 1) == expected
    assert chosen(order, 2) != expected


def test_pairs_of_one_image_cannot_be_split():
    with pytest.raises(DataError, match=r"0\.2 of 10 pairs is 2, .* 1 such groups, the smallest"):
        split_by_image([pair(i, "same.png") for i in range(10)], 0.2, 0)
    with pytest.raises(DataError, match="set another fraction"):
        split_by_image([pair(0, "a.png")], 0.5, 0)


def watch(losses, steps=10, **options):
    """Returns the watch after evaluations, and the step at which training would have ended."""
    seen = Watch.of(TrainOptions(batch_size=4, **options), steps, num=6)
    for step, loss in losses:
        if seen.exhausted:
            break
        assert seen.due(step), step
        seen = seen.saw(step, loss)
    return seen


def due(**options):
    return [s for s in range(11) if Watch.of(TrainOptions(batch_size=4, **options), 10, 6).due(s)]


def test_when_pairs_are_evaluated():
    """6 pairs in batches of 4: passes end at steps 2 (of 1.5), 3, 5 (of 4.5), 6, ..."""
    assert due(epochs=4) == [0, 2, 3, 5, 6, 10]
    assert due(epochs=2, repeat=2) == [0, 3, 6, 10]
    assert due(epochs=99, eval_every=4) == [0, 4, 8, 10]
    seen = watch([(0, 1.0), (4, 1.0)], eval_every=4)
    assert [seen.due(s) for s in (4, 5, 8)] == [False, False, True]


def test_the_best_step_and_patience():
    up_and_down = [(0, 0.1), (1, 0.9), (2, 0.8), (3, 0.8), (4, 0.85), (5, 0.7), (6, 0.9), (7, 0.9)]
    every = {"eval_every": 1}
    assert watch(up_and_down, **every).best == 5  # before training does not count
    assert watch(up_and_down[:5], **every).best == 2  # the first of equals
    for patience, last in ((1, 3), (2, 4), (3, 7)):
        assert watch(up_and_down, patience=patience, **every).values[-1][0] == last
    nan = [(0, 0.1), (1, math.nan), (2, 0.5), (3, math.nan), (4, math.inf)]
    assert watch(nan, **every).best == 2
    assert watch(nan[:2], **every).best is None
    assert watch(nan, patience=2, **every).exhausted


def test_the_watch_of_a_continued_training():
    """6 pairs in batches of 4: step 2 has 2 of them, and steps 3 to 5 the other 12 visits."""
    options = TrainOptions(batch_size=4, epochs=3, patience=2)
    seen = Watch.of(options, 5, 6, done=(2, 6))
    assert [step for step in range(1, 6) if seen.due(step)] == [4, 5]
    # Stopped within a pass, after 4 of 18 pairs: steps 2 to 5 end after 8, 12, 16 and 18 of them.
    assert Watch.of(options, 5, 6, done=(1, 4)).ends == {2, 3, 5}
    before = dataclasses.replace(seen, values=((0, 0.7), (1, 0.2), (2, 0.3)))
    assert (before.best, before.exhausted) == (None, False)
    assert not before.due(2)
    after = before.saw(4, 0.6)
    assert (after.best, after.saw(5, 0.9).best, after.saw(5, 0.9).exhausted) == (4, 4, False)
    assert before.saw(4, math.nan).saw(5, math.nan).exhausted


def test_means_are_weighted():
    """Batches count by their weights; those of weight 0 do not, whatever they say."""
    batches = [
        {"loss": 1.0, "weight": 3.0, "pairs": 3},
        {"loss": 2.0, "weight": 1.0, "pairs": 1},
        {"loss": math.nan, "weight": 0.0, "pairs": 0},
    ]
    assert weighted_means(batches) == {"loss": 1.25, "pairs": 4.0}
    with pytest.raises(DataError, match="none of the held-out pairs can be evaluated"):
        weighted_means(batches[2:])


def rows(run, stage="held-out"):
    """Returns the rows of a stage in file order, without timing."""
    return [
        {k: v for k, v in row.items() if k not in TIMING}
        for row in lines(run.workdir.path / "metrics.jsonl")
        if row["stage"] == stage
    ]


def trained(folder, *options, steps=9, **kwargs):
    """Trains, or resumes; returns the run and its variables."""
    argv = (*OPTIONS, "--train.eval-every", "2", "--optim.lr", "0.01", *options)
    run = tiny_run(folder, *argv)
    return run, fit(run, steps, held_out=HELD, **kwargs)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Returns an undisturbed run and its variables."""
    return trained(tmp_path_factory.mktemp("held_out") / "run")


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_the_numbers_are_those_of_separate_passes(whole):
    """Loss, margin and accuracy at the end are DPO written out over log-probs of a pass."""
    run, variables = whole
    found = rows(run)
    assert [row["step"] for row in found] == [0, 2, 4, 6, 8, 9]
    assert found[0]["loss"] != found[-1]["loss"]
    prompts = run.config.prompts.open()
    pairs = [Comparison(p, ("red", "blue")) for p in prompts.prompts[-HELD:]]
    encoded = encode_comparisons(pairs, run.encoder(run.config.text.train))
    policy = {"params": random_base(run), **variables}
    logps = answer_logps(
        run.policy_model, policy, run.rows(encoded, run.pixels(prompts), DPO()), run.pass_layout,
        run.step_options, lambda _: None,
    )  # fmt: skip
    rewards = np.array([[0.1 * (x.sum() + 2.0 * len(x)) for x in pair] for pair in logps])
    margin = rewards[:, 0] - rewards[:, 1]
    np.testing.assert_allclose(found[-1]["loss"], np.log1p(np.exp(-margin)).mean(), rtol=1e-5)
    np.testing.assert_allclose(found[-1]["rewards/margins"], margin.mean(), rtol=1e-4, atol=1e-6)
    assert found[-1]["rewards/accuracies"] == (margin > 0).mean()
    assert found[-1]["pairs"] == HELD


def test_training_does_not_notice(whole, tmp_path):
    """The same pairs without evaluations give the same parameters and rows, bit for bit."""
    run = tiny_run(tmp_path / "run", "--optim.lr", "0.01")
    variables = fit(run, 9, held_out=HELD)
    assert_equal(variables, whole[1])
    assert rows(run, "align") == rows(whole[0], "align")
    assert not rows(run)
    assert not (run.workdir.path / "held_out.json").exists()


class Killed(Exception):
    """Stands for the end of the process."""


def kill_at(step):
    def write(at, _):
        if at == step:
            raise Killed

    return write


@pytest.mark.parametrize("step", [0, 2, 4, 8], ids=str)
def test_a_killed_run_ends_with_the_same_rows(whole, tmp_path, step):
    """Killed after an evaluation, also the one before training, or between two."""
    folder = tmp_path / "run"
    with pytest.raises(Killed):
        trained(folder, write=kill_at(step))
    run, variables = trained(folder)
    assert_equal(variables, whole[1])
    for stage in ("align", "held-out"):
        assert rows(run, stage) == rows(whole[0], stage)
    assert read_held_out(folder) == read_held_out(whole[0].workdir.path)


@pytest.mark.parametrize("call", range(1, 14, 4))
def test_a_stopped_run_ends_with_the_same_rows(whole, tmp_path, monkeypatch, call):
    """A stop before, in and after evaluations saves at once; the resumed run makes up for them."""
    calls = itertools.count(1)
    with monkeypatch.context() as patch:
        patch.setattr(shutdown, "stop_agreed", lambda: next(calls) >= call)
        with pytest.raises(shutdown.Stopped):
            trained(tmp_path / "run")
    run, variables = trained(tmp_path / "run")
    assert_equal(variables, whole[1])
    for stage in ("align", "held-out"):
        assert rows(run, stage) == rows(whole[0], stage)


SCRIPT = {0: 0.69, 2: 0.6, 4: 0.5, 6: 0.55, 8: 0.56, 9: 0.57}


@pytest.fixture
def scripted(monkeypatch):
    """Makes the held-out losses those of `SCRIPT`: lowest at step 4."""

    def saw(self, step, loss):
        return dataclasses.replace(self, values=(*self.values, (step, SCRIPT[step])))

    monkeypatch.setattr(Watch, "saw", saw)


@pytest.mark.usefixtures("scripted")
@pytest.mark.parametrize("keep", ["last", "best"])
def test_the_best_checkpoint_is_kept_beside_the_last(tmp_path, monkeypatch, keep):
    """Which one becomes the model is an option; both can be told apart and read."""
    states, save = {}, Checkpoints.save

    def noted(self, state, data):
        states[int(state.step)] = jax.device_get(state.trainable)
        save(self, state, data)

    monkeypatch.setattr(Checkpoints, "save", noted)
    saving = ("--train.save-every", "1", "--train.keep", keep)
    run, variables = trained(tmp_path / "run", *saving)
    assert saved_steps(run.workdir.path, "align") == [4, 8, 9]
    result = read_held_out(run.workdir.path)
    expected = {"best_step": 4, "best_loss": 0.5, "last_step": 9, "last_loss": 0.57, "steps": 9}
    assert expected.items() <= dataclasses.asdict(result).items()
    assert result.kept_step == (4 if keep == "best" else 9)
    assert str(result).startswith("best at step 4 of 9, held-out loss 0.5; last 0.57; 0.69 before")
    assert ("the best is the aligned model" in str(result)) == (keep == "best")
    chosen = {s: aligned_checkpoint(run.config, s).name for s in ("best", "last", 8, None)}
    assert chosen == {"best": "4", "last": "9", 8: "8", None: str(result.kept_step)}
    assert_equal(jax.device_get(variables), states[result.kept_step])
    assert np.abs(states[4]["lora"]["language"]["layers"]["q_proj"]["b"]).max() > 0


@pytest.mark.usefixtures("scripted")
@pytest.mark.parametrize("kill", [None, 4, 6])
def test_patience_ends_training(tmp_path, capsys, kill):
    """Two evaluations without a lower loss; resumed equals uninterrupted."""
    patient = ("--train.patience", "2", "--train.log-every", "5")
    if kill is not None:
        with pytest.raises(Killed):
            trained(tmp_path / "run", *patient, write=kill_at(kill))
    run, variables = trained(tmp_path / "run", *patient)
    assert [row["step"] for row in rows(run)] == [0, 2, 4, 6, 8]
    assert [row["step"] for row in rows(run, "align")] == [5, 8]
    assert "align: stopped early at step 8 of 9: 2 evaluations in a row" in capsys.readouterr().out
    assert saved_steps(run.workdir.path, "align")[-1] == 8
    assert str(read_held_out(run.workdir.path)).endswith(
        "last 0.56 at step 8, where training stopped early; 0.69 before training"
    )
    assert aligned_checkpoint(run.config).name == "8"
    again, others = trained(tmp_path / "run", *patient)  # as when the stage was not recorded
    assert_equal(variables, others)
    assert rows(again, "align") == rows(run, "align")
    assert rows(again) == rows(run)


@pytest.mark.usefixtures("scripted")
def test_a_stop_where_patience_ends(tmp_path, monkeypatch):
    """The evaluation that would have ended training is made up for; no row is lost."""
    patient = ("--train.patience", "2", "--train.log-every", "5")
    expected, _ = trained(tmp_path / "expected", *patient)
    # Calls: one before each batch of an evaluation (one batch), and one after each step.
    calls = itertools.count(1)
    step_8 = 1 + 8 + 3  # after the evaluations of the steps 0, 2, 4 and 6, and steps 1 to 8
    with monkeypatch.context() as patch:
        patch.setattr(shutdown, "stop_agreed", lambda: next(calls) >= step_8)
        with pytest.raises(shutdown.Stopped):
            trained(tmp_path / "run", *patient)
    assert saved_steps(tmp_path / "run", "align")[-1] == 8
    run, _ = trained(tmp_path / "run", *patient)
    for stage in ("align", "held-out"):
        assert rows(run, stage) == rows(expected, stage)


def test_options_that_need_held_out_pairs():
    config, _ = load_experiment("test", [])
    for option in ({"eval_every": 5}, {"patience": 2}, {"keep": "best"}):
        train = dataclasses.replace(config.train, **option)
        (name,) = option
        with pytest.raises(DataError, match=rf"train\.{name} \w+ needs held-out pairs"):
            check(dataclasses.replace(config, train=train))


def test_there_is_no_best_without_held_out_pairs(tmp_path):
    config, _ = load_experiment("test", ["--workdir", str(tmp_path)])
    with pytest.raises(DataError, match="held out no pairs"):
        aligned_checkpoint(config, "best")
    held = dataclasses.replace(config, train=dataclasses.replace(config.train, eval_fraction=0.1))
    for text in (None, "{}", '{"pairs": 3}'):
        if text is not None:
            (tmp_path / "held_out.json").write_text(text)
        with pytest.raises(DataError, match=r"held_out\.json is missing or damaged; put it back"):
            aligned_checkpoint(held)
