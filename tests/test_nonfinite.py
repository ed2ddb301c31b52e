"""Losses and gradients that are not finite, loss spikes, examples without a token to train on."""

import contextlib
import dataclasses
import itertools
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers_devices import MODEL, placed
from helpers_fit import ARGS, fit, tiny_run
from helpers_trees import OPTIONS, example, pack, shape_of
from tiny_models import random_variables
from typing_extensions import override

from seva_jax import ranges, train
from seva_jax.objectives import DPO, Objective
from seva_jax.run.fitting import checkpoint_facts
from seva_jax.runtime import shutdown
from seva_jax.sharding import put_batch
from seva_jax.training.health import Health, NotFinite, trainable_share
from seva_jax.training.loop import init_state, jit_step
from seva_jax.training.optimizer import Optim
from seva_jax.training.task import Task
from seva_jax.types import Comparison, DataError, Prompt, View


@pytest.fixture(scope="module")
def variables():
    """Returns random weights of `MODEL`, as NumPy arrays that can be put on any mesh."""
    return jax.tree.map(np.asarray, random_variables(MODEL))


@dataclasses.dataclass(frozen=True)
class Fragile(Objective):
    """An objective that is finite where reference log-probs are; at 0 only its gradient is not."""

    @override
    def __call__(self, policy, reference):
        assert reference is not None
        zero = 0.0 * policy.sums_NK[:, 0]
        loss_N = -policy.sums_NK[:, 0] + jnp.sqrt(zero + reference.sums_NK[:, 0] ** 2)
        return loss_N, {"half": loss_N / 2}


BAD = {"loss NaN": np.nan, "loss infinite": np.inf, "gradient": 0.0}


@pytest.mark.parametrize(
    ("shape", "micro_batches"),
    [((1, 1, 1), 2), pytest.param((2, 2, 2), 1, marks=pytest.mark.slow)],
    ids=str,
)
def test_the_state_is_kept(shape, micro_batches, variables):
    """Bit for bit, in a jitted step with donated buffers; the next step continues from it."""
    mesh, on_mesh = placed(shape, variables)
    optimizer = Optim(lr=1e-2, warmup_ratio=0.0, clip_norm=1.0).make(10)
    trainable = {"lora": on_mesh["lora"], "params": {"projector": on_mesh["params"]["projector"]}}
    frozen = {"params": {k: v for k, v in on_mesh["params"].items() if k != "projector"}}
    rng = np.random.default_rng(0)
    examples = [example(rng, num_images=1, index=i) for i in range(8)]
    rows = pack([[e] for e in examples], shape_of(examples))

    def batch(value, number):
        """Sets the reference of one comparison to a value."""
        reference = np.full_like(rows.ref_BCKT, -2.0)
        reference[number] = value
        batch = rows._replace(ref_BCKT=np.where(rows.mask_BCKT > 0, reference, 0))
        batch = jax.tree.map(lambda x: x.reshape(micro_batches, -1, *x.shape[1:]), batch)
        return put_batch(mesh, batch, leading=1)

    shardings = jax.tree.map(lambda x: x.sharding, init_state(optimizer, mesh, trainable))
    step = jit_step(MODEL, Fragile(), optimizer, OPTIONS, False, shardings)

    def trained(batches):
        """Returns the state after each batch, and whether that was not finite."""
        state, states, bad = init_state(optimizer, mesh, jax.tree.map(jnp.copy, trainable)), [], []
        with jax.set_mesh(mesh):
            for values in batches:
                old = state
                state, metrics = step(state, frozen, batch(*values))
                assert all(x.is_deleted() for x in jax.tree.leaves(old))
                states.append(jax.tree.map(np.array, state))  # copies: views prevent donation
                bad.append(bool(metrics["nonfinite"]))
                assert np.isfinite(metrics["loss"]) == (values[0] in (-1.0, 0.0)), values
        return states, bad

    good = (-1.0, 0)
    states, bad = trained([good, *((value, i) for i, value in enumerate(BAD.values())), good])
    assert bad == [False, True, True, True, False]
    for kept in states[1:4]:
        jax.tree.map(np.testing.assert_array_equal, kept[1:], states[0][1:])
    assert [int(s.step) for s in states] == [1, 2, 3, 4, 5]
    unbroken, _ = trained([good, good])
    jax.tree.map(np.testing.assert_array_equal, unbroken[1][1:], states[4][1:])
    assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, unbroken), strict=True))
    assert step._cache_size() == 1


def rows_of(run):
    return [r for r in run.workdir.read_metrics() if r["stage"] == "align"]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_one_bad_example(tmp_path, capsys):
    """Its steps are counted and its batches recorded; no mean and no parameter becomes NaN."""
    run = tiny_run(tmp_path / "run")
    reference = [-2.0] * 12
    reference[5] = np.nan
    trained = fit(run, 6, reference, epochs=2)
    rows = rows_of(run)
    assert sum(r["nonfinite"] for r in rows) == 2  # once an epoch
    notes = lines(run.workdir.path / "nonfinite.jsonl")
    assert [(len(n["ids"]), n["loss"]) for n in notes] == [(4, "nan")] * 2
    assert all(run.config.prompts.open().prompts[5].id in n["ids"] for n in notes)
    per_row = {r["step"]: sum(n["step"] in (r["step"] - 1, r["step"]) for n in notes) for r in rows}
    assert [r["nonfinite"] for r in rows] == list(per_row.values())
    for row in rows:
        if row["nonfinite"] < 2:
            assert all(np.isfinite(v) for v in row.values() if not isinstance(v, str)), row
        assert row["pairs"] == 8
        assert row["unreadable"] == 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(trained))
    said = capsys.readouterr().out
    assert "align: 1 of the steps" in said
    assert "12 examples, each with answer tokens to train on" in said


def test_too_many_end_the_run(tmp_path):
    """The third in a row ends it; what is saved is the finite state before them."""
    run = tiny_run(tmp_path / "run", "--train.log-every", "4", "--train.save-every", "1")
    with pytest.raises(NotFinite, match="4 consecutive steps had a loss or gradient that is"):
        fit(run, 6, np.nan)
    assert [(r["step"], r["nonfinite"]) for r in rows_of(run)] == [(4, 4)]
    assert [n["step"] for n in lines(run.workdir.path / "nonfinite.jsonl")] == [1, 2, 3, 4]
    again = tiny_run(tmp_path / "run", "--train.log-every", "4", "--train.max-nonfinite", "31")
    trained = fit(again, 6, np.nan)  # resumes at step 3, and may continue
    ups = [x for at, x in jax.tree_util.tree_leaves_with_path(trained) if at[-1].key == "b"]
    assert len(ups) > 3
    assert not any(x.any() for x in ups)  # as they were before the first step


def test_a_stop_does_not_start_the_count_again(tmp_path, monkeypatch):
    """A broken run that is preempted repeatedly ends all the same."""
    options = ("--train.log-every", "2", "--train.max-nonfinite", "6")
    for steps in (2, 3):  # it stops at a row of metrics, then between two
        asked = itertools.count(1)
        with monkeypatch.context() as patch:
            patch.setattr(shutdown, "stop_agreed", lambda asked=asked, n=steps: next(asked) == n)
            with pytest.raises(shutdown.Stopped):
                fit(tiny_run(tmp_path / "run", *options), 12, np.nan)
    run = tiny_run(tmp_path / "run", *options)
    with pytest.raises(NotFinite, match="6 consecutive steps"):
        fit(run, 12, np.nan)
    assert [r["step"] for r in rows_of(run)] == [2, 4, 6]
    assert [n["step"] for n in lines(run.workdir.path / "nonfinite.jsonl")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_the_exit_code(tmp_path, capsys, monkeypatch):
    """With a learning rate that no model survives the command ends with 65 and one line."""
    # The test has asked for devices, so it cannot join others.
    monkeypatch.setattr(train, "joined", lambda options: contextlib.nullcontext())
    # Such a large rate is refused otherwise.
    monkeypatch.setattr(ranges, "bounds", lambda config_class: {})
    argv = [
        *ARGS.split(),
        *("--train.batch-size", "8", "--base.batch-size", "8"),
        *("--base.steps", "20", "--base.optim.lr", "1e30"),
    ]
    with pytest.raises(SystemExit) as caught:
        train.main([*argv, "--workdir", str(tmp_path / "run")])
    assert caught.value.code == 65
    error = capsys.readouterr().err
    assert error.startswith("error: base: ")
    assert error.count("\n") == 1
    steps = [r["step"] for r in lines(tmp_path / "run" / "metrics.jsonl")]
    assert steps[-1] < 20


# --- spikes ---------------------------------------------------------------------------------------


def watched(folder, losses, every=2, past=()):
    """Returns the metrics of steps with these losses."""
    watch, found = Health("align", folder, 3, past), []
    first = past[-1]["step"] if past else 0
    watch.resume(first)
    for last in range(first + every, len(losses) + 1, every):
        steps = range(last - every + 1, last + 1)
        rows = [{"loss": losses[s - 1], "grad_norm": 1.0, "nonfinite": False} for s in steps]
        of = lambda step: [Comparison(Prompt(f"id{step}", "?", ()), ("a", "b"))]  # noqa: E731
        found.append({"step": last, **watch.averages(steps, rows, of)})
    return found


def test_a_spike_is_reported_once(tmp_path, capsys):
    """Its step and examples are reported; a run resumed after a kill reports the same."""
    rng = np.random.default_rng(0)
    losses = list(0.7 + 0.02 * rng.normal(size=80))
    losses[60] = 1.2
    found = watched(tmp_path, losses)
    assert [r["step"] for r in found if r["spikes"]] == [62]
    (note,) = lines(tmp_path / "spikes.jsonl")
    assert (note["step"], note["ids"], note["loss"]) == (61, ["id61"], 1.2)
    assert "align: the loss of step 61, 1.2, is a spike" in capsys.readouterr().out
    resumed = watched(tmp_path, losses, past=found[:20])
    assert resumed == found[20:]


@pytest.mark.parametrize("kind", ["falling", "flat", "rising slowly", "noisy"])
def test_usual_losses_are_no_spikes(tmp_path, kind):
    rng, steps = np.random.default_rng(1), np.arange(400)
    losses = {
        "falling": 4 * np.exp(-steps / 40) + 0.1 * np.abs(rng.normal(size=400)),
        "flat": np.log(2) + np.where(steps < 100, 0.0, 0.003) * rng.normal(size=400),
        "rising slowly": 0.5 + steps / 1000,
        "noisy": 0.3 + rng.gamma(3.0, 0.1, size=400),
    }[kind]
    assert not any(r["spikes"] for r in watched(tmp_path, [float(x) for x in losses]))


# --- nothing to train on --------------------------------------------------------------------------


def test_examples_without_a_token(tmp_path):
    """They are counted before training; a stage that has only such examples is refused."""
    run = tiny_run(tmp_path / "run")
    with pytest.raises(DataError, match="none of the 12 examples has a token to train on"):
        fit(run, 2, weights=[0.0] * 12)
    assert not list((run.workdir.path / "checkpoints" / "align").glob("[0-9]*"))

    class Rows:
        """The part of `ComparisonRows` that is looked at."""

        comparisons = tuple(
            Comparison(Prompt("a", "?", ()), ("x",), w) for w in (1.0, 0.0, 1.0, 1.0)
        )
        reference = ((np.zeros(2),), (np.zeros(2),), (), (np.zeros(2),))
        sizes = type("Sizes", (), {"targets_N": np.array([2, 2, 2, 0])})

        def __len__(self):
            return 4

    assert trainable_share(Rows()) == (
        "1 examples to train on; 3 more are skipped: weight 0, an empty answer, or an unreadable "
        "image"
    )


def test_facts_cover_all_of_the_examples(tmp_path):
    """Every field of a comparison counts, and every field of its further trees."""
    run = tiny_run(tmp_path / "run")
    prompt = Prompt("a", "?", ("a.png",))
    pair = Comparison(prompt, ("x", "y"), more=(View(prompt, ("z",)),))
    other = Prompt("a", "?", ("b.png",))
    changed = [
        dataclasses.replace(pair, **change)
        for change in (
            {"prompt": other}, {"answers": ("x", "z")}, {"weight": 2.0}, {"corruptions": (1,)},
            {"scores": (1.0, 0.0)}, {"more": ()}, {"more": (View(prompt, ("y",)),)},
            {"more": (View(other, ("z",)),)},
        )
    ]  # fmt: skip
    found = set()
    for c in [pair, *changed]:
        rows = SimpleNamespace(comparisons=[c])
        task = Task("align", run.policy_model, DPO(), run.config.optim, run.config.train, 1, rows)
        found.add(checkpoint_facts(run, task, {})["examples"])
    assert len(found) == 1 + len(changed)


@pytest.mark.slow
def test_checkpoints_of_another_run(tmp_path):
    """The facts are those of the files: another tokenizer, other examples or rank are refused."""
    run = tiny_run(tmp_path / "run")
    fit(run, 2)
    directory = run.workdir.path / "checkpoints" / "align"
    for argv, expected in (
        (["--lora.rank", "4"], r"lora\.rank is 2 there and 4 here"),
        (["--base.model.text.hidden-size", "32"], r"model\.text\.hidden_size is 16 there and 32"),
        (["--base.vocab-multiple", "64"], r"model\.text\.vocab_size is \d+ there and \d+ here"),
        (["--prompts.num", "11"], "examples is '[0-9a-f]+' there and '[0-9a-f]+' here"),
    ):
        other = tiny_run(tmp_path / argv[-1], *argv)
        target = other.workdir.path / "checkpoints" / "align"
        target.parent.mkdir()
        target.symlink_to(directory)
        with pytest.raises(DataError, match=expected):
            fit(other, 2)
    run.assets.tokenizer.add_tokens("changed")
    with pytest.raises(DataError, match=r"is of another run: tokenizer is '[0-9a-f]+' there and '"):
        fit(run, 2)
