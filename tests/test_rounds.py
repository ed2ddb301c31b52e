"""Several runs, each starting from the one before: curricula and `PriorRun`."""

import contextlib
import dataclasses
import io
import itertools
import re
import shutil
from pathlib import Path

import helpers_run
import jax
import numpy as np
import pytest
from helpers_devices import limited_devices
from helpers_train import opened

from seva_jax import evaluate, train
from seva_jax.config.base_models import Checkpoint
from seva_jax.config.config_files import config_directory, read_config
from seva_jax.config.experiment import Experiment, Once
from seva_jax.config.options import ComputeOptions
from seva_jax.config.prior_run import PriorRun
from seva_jax.config.rounds import Iterations, Round, Rounds, runs_of
from seva_jax.convert import load_params
from seva_jax.convert.__main__ import open_source
from seva_jax.convert.peft import to_peft
from seva_jax.convert.rewrite import to_hf
from seva_jax.corrupt import DiffusionNoise
from seva_jax.inference.answer_logps import answer_logps
from seva_jax.models import LoraConfig
from seva_jax.objectives import DPO
from seva_jax.plan.options import PlanOptions, variants
from seva_jax.run.margins import reward_margins
from seva_jax.run.workdir import StageMetrics, Workdir
from seva_jax.runtime.run_records import read_metrics, read_stages
from seva_jax.training.options import TrainOptions
from seva_jax.types import DataError
from seva_jax.worlds import WorldPairs, WorldPrompts

# --- which runs a config stands for ---------------------------------------------------------------


def test_rounds_change_what_they_name():
    """Other fields keep the previous round's value; each round starts from the previous one."""
    other, lora = TrainOptions(batch_size=4, trained=("lora",)), LoraConfig(rank=2)
    rounds = (
        Round(),
        Round(objective=DPO(beta=0.5), train=other),
        Round(corrupt=(DiffusionNoise(step=800),), lora=lora, refresh=False),
    )
    e = Experiment(workdir="runs/x", base=Checkpoint("somewhere"))
    first, second, third = Rounds(rounds)(dataclasses.replace(e, curriculum=Rounds(rounds)))
    assert first == dataclasses.replace(e, workdir="runs/x/1")
    assert second == dataclasses.replace(
        e, workdir="runs/x/2", base=PriorRun("runs/x/1"), objective=DPO(beta=0.5), train=other
    )
    assert third == dataclasses.replace(
        second, workdir="runs/x/3", base=PriorRun("runs/x/2", merge=False), lora=lora,
        corrupt=(DiffusionNoise(step=800),),
    )  # fmt: skip


def test_iterations_ask_again():
    """They ask about the same prompts, or about those of each iteration."""
    e = Experiment(workdir="runs/x", base=Checkpoint("somewhere"))
    same = Iterations(3)(e)
    assert [run.base for run in same[1:]] == [PriorRun("runs/x/1"), PriorRun("runs/x/2")]
    assert {run.prompts for run in same} == {e.prompts}
    asked = tuple(WorldPrompts(split=str(i)) for i in range(2))
    further = Iterations(2, refresh=False, prompts=asked)(e)
    assert tuple(run.prompts for run in further) == asked
    assert further[1].base == PriorRun("runs/x/1", merge=False)
    assert Once()(e) == (e,)


def runs_in(*rounds, **changes):
    """Returns the runs of a small config with these rounds."""
    e = helpers_run.get_config()
    return runs_of(dataclasses.replace(e, curriculum=Rounds(rounds), **changes))


PROBLEMS = {
    "round 2: train.batch_size 10 does not divide": (
        Round(),
        Round(train=TrainOptions(batch_size=10, micro_batches=4)),
    ),
    "round 2: train.trained lacks lora, which the run before trained": (
        Round(),
        Round(lora=LoraConfig(rank=0), train=TrainOptions(trained=("language",)), refresh=False),
    ),
    r"round 3: lora is LoraConfig\(rank=4": (
        Round(),
        Round(),
        Round(lora=LoraConfig(rank=4), refresh=False),
    ),
}


@pytest.mark.parametrize("expected", PROBLEMS)
def test_problems_name_the_round(expected):
    """They are found before anything starts."""
    with pytest.raises(DataError, match=expected):
        runs_in(*PROBLEMS[expected])


def test_adapters_and_quantised_weights(monkeypatch):
    """They cannot be merged, but their training can continue."""
    monkeypatch.setattr("seva_jax.config.experiment.require_qwix", lambda: None)
    compute = ComputeOptions(param_dtype="float32", base_weights="nf4")
    with pytest.raises(
        DataError, match=r"round 2: the adapters .* cannot be merged into quantised"
    ):
        runs_in(Round(), Round(), compute=compute)
    assert len(runs_in(Round(), Round(refresh=False), compute=compute)) == 2


def test_what_is_wrong_with_a_curriculum():
    """The config itself is checked too."""
    e = helpers_run.get_config()
    for curriculum, expected in (
        (Iterations(0), r"curriculum\.num must be at least 1"),
        (Iterations(3, prompts=(e.prompts,)), "has 1 sources for 3 iterations"),
        (Rounds(()), r"curriculum\.rounds is empty"),
    ):
        with pytest.raises(DataError, match=expected):
            runs_of(dataclasses.replace(e, curriculum=curriculum))


def test_a_run_that_is_not_there(tmp_path):
    """One that is missing, unfinished or a directory of rounds gives an error of one line."""
    e = dataclasses.replace(helpers_run.get_config(), workdir=str(tmp_path / "now"))
    for path, expected in (
        ("", "base.workdir '' is not the work directory of a run"),
        (str(tmp_path / "no"), "it has no config.py"),
    ):
        with pytest.raises(DataError, match=expected):
            runs_of(dataclasses.replace(e, base=PriorRun(path)))
    before = Workdir.open(dataclasses.replace(e, workdir=str(tmp_path / "before" / "1")))
    before.close()
    now = dataclasses.replace(e, base=PriorRun(str(before.path)))
    with pytest.raises(DataError, match="before/1: its alignment is not finished"):
        train.run(now)
    with pytest.raises(DataError, match="before/1: its alignment is not finished"):
        _ = opened(now).base
    for call in (
        lambda: open_source(tmp_path / "before"),
        lambda: evaluate.main.__wrapped__(["--model", str(tmp_path / "before")]),
    ):
        with pytest.raises(DataError, match=r"it holds several rounds, give one, such as .*/1"):
            call()


def test_the_command_shows_and_refuses(tmp_path, capsys):
    """`--print-config` shows one config with its curriculum, whose fields are options."""
    path = config_directory() / "tiny_seva_iterated.py"
    train.main(["--config", str(path), "--curriculum.num", "3", "--print-config"])
    (tmp_path / "c.py").write_text(capsys.readouterr().out)
    assert read_config(tmp_path / "c.py") == read_config(path)
    with pytest.raises(SystemExit, match="has 3 sources for 2 iterations"):
        train.main(["--config", str(path), "--curriculum.num", "2", "--print-config"])
    with pytest.raises(DataError, match="stands for several runs"):
        train.run(dataclasses.replace(read_config(path), workdir=str(tmp_path / "x")))


def test_every_round_is_planned():
    """Rounds with other programs are planned, though nothing was trained."""
    e = read_config(config_directory() / "tiny_seva_iterated.py")
    options = PlanOptions(("v5e:4x4",), size=("base",))
    (alone,) = variants(e, options)
    assert alone.config == e.base.assets().config
    rounds = Rounds((Round(), Round(lora=LoraConfig(rank=8)), Round(prompts=WorldPrompts(num=3))))
    found = variants(dataclasses.replace(e, curriculum=rounds), options)
    assert [v.name for v in found] == ["base LoRA r=32, round 1", "base LoRA r=8, round 2"]


# --- runs that continue each other ----------------------------------------------------------------

FIRST = WorldPairs(kinds=("color",), num=16)
CURRICULUM = (
    Round(),
    Round(refresh=False),
    Round(prompts=WorldPrompts(num=24)),  # asks the model; merges adapters
)


def experiment(workdir, rounds=CURRICULUM):
    """Returns a config with sixteen pairs, all of them in every step."""
    e = helpers_run.get_config()
    small = dataclasses.replace
    sizes = small(e.train, batch_size=16, max_steps=4, log_every=1, save_every=1, epochs=4)
    suite = small(e.evals[0], prompts=small(e.evals[0].prompts, num=20))
    return small(
        e,
        workdir=str(workdir),
        prompts=FIRST,
        pairs=helpers_run.MadeUpPairs(0.0),
        optim=small(e.optim, lr=3e-3, warmup_ratio=0.0),
        train=small(sizes, trained=("lora", "projector")),
        evals=(suite,),
        curriculum=Rounds(rounds),
    )


@pytest.fixture(scope="module")
def one_device():
    """Limits runs to one device; the process joins no others."""
    with limited_devices(1), pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "joined", lambda options: contextlib.nullcontext())
        yield


@pytest.fixture(scope="module")
def done(tmp_path_factory, one_device):
    """Runs all rounds; returns their configs and what was printed."""
    runs = runs_of(experiment(tmp_path_factory.mktemp("rounds") / "done"))
    with contextlib.redirect_stdout(io.StringIO()) as said:
        train.run_all(runs)
    return runs, said.getvalue()


def first_row(run):
    """Returns the metrics of the first step of an alignment."""
    return next(row for row in read_metrics(Path(run.workdir)) if row["stage"] == "align")


def assert_equal(found, expected, **tolerance):
    """Compares two trees of arrays, bit for bit unless told otherwise."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        if tolerance:
            np.testing.assert_allclose(a, b, **tolerance)
        else:
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.slow
def test_adapters_are_trained_further(done):
    """They continue bit for bit, and DPO starts at the margin with which it had ended."""
    first, second = map(opened, done[0][:2])
    assert_equal(second.start, first.aligned)
    assert_equal(second.base, first.base)
    margins = reward_margins(first.ctx, first.reference, first.aligned, first.training_rows)
    begun = first_row(second.ctx.config)
    assert begun["rewards/margins"] == pytest.approx(np.mean(margins), rel=1e-4)
    assert abs(begun["rewards/margins"]) > 1e-3
    assert abs(begun["loss"] - np.log(2)) > 1e-4
    assert first_row(first.ctx.config)["loss"] == pytest.approx(np.log(2), abs=1e-6)


@pytest.mark.slow
def test_the_reference_is_refreshed(done):
    """It is the model of the previous run, and DPO starts at log 2 again."""
    second, third = map(opened, done[0][1:])
    assert first_row(third.ctx.config)["loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert first_row(third.ctx.config)["rewards/margins"] == pytest.approx(0, abs=1e-6)

    def logps(out, variables):
        ctx = out.ctx
        return answer_logps(
            ctx.model_of(variables), variables, second.training_rows, ctx.pass_layout,
            ctx.step_options, lambda num: None,
        )  # fmt: skip

    merged = logps(third, {"params": third.base})
    adapted = logps(second, second.aligned)
    assert_equal(merged, adapted, rtol=0, atol=1e-5)
    before = logps(second, {"params": second.base})
    assert max(np.abs(a - b).max() for a, b in zip(map(np.concatenate, before),
               map(np.concatenate, adapted), strict=True)) > 1e-2  # fmt: skip
    assert_equal(third.base["projector"], second.aligned["params"]["projector"])


@pytest.mark.slow
def test_answers_are_not_asked_for_twice(done):
    """The aligned model's answers are those of the next base; one page shows all rounds."""
    runs, said = done
    assert said.count("20 answers taken from") == 2
    assert said.count("=== round ") == 3
    name = runs[0].evals[0].name
    for before, after in itertools.pairwise(runs):
        asked = Path(before.workdir) / "evals" / "aligned" / name / "asked.jsonl"
        taken = Path(after.workdir) / "evals" / "base" / name / "asked.jsonl"
        assert asked.read_text().splitlines()[1:] == taken.read_text().splitlines()[1:]
    folder = Path(runs[0].workdir).parent
    page = (folder / "rounds.html").read_text("utf-8")
    assert "3 rounds compared" in page
    assert "Differences to round 1</h2>" in page
    assert "the result of" in (folder / "3" / "report.html").read_text("utf-8")
    for run in runs:
        assert read_config(Path(run.workdir) / "config.py") == run


@pytest.mark.slow
def test_the_result_is_a_model_like_others(done, tmp_path, capsys):
    """It is exported and evaluated; its adapters alone fit no checkpoint."""
    last = opened(done[0][-1])
    to_hf(open_source(last.ctx.workdir.path), tmp_path / "hf")
    found = load_params(tmp_path / "hf", last.ctx.assets.config)
    again = dataclasses.replace(
        last.ctx.config, workdir=str(tmp_path / "next"), base=PriorRun(last.ctx.config.workdir)
    )
    assert_equal(found, opened(again).base, rtol=0, atol=1e-6)
    with pytest.raises(DataError, match="merged model of an earlier run, not a checkpoint"):
        to_peft(open_source(last.ctx.workdir.path), tmp_path / "peft")
    to_peft(open_source(Path(done[0][1].workdir)), tmp_path / "peft")  # was trained further
    out = ["--out", str(tmp_path / "out")]
    evaluate.main(["--model", str(last.ctx.workdir.path), *out])
    evaluate.main(["--config", str(last.ctx.workdir.path / "config.py"), *out])
    shown = capsys.readouterr().out
    assert "aligned: 20 questions" in shown
    assert "base: 20 questions" in shown


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.mark.slow
def test_interrupted_and_changed(done, tmp_path, monkeypatch, capsys):
    """A resumed round 2 ends the same; another round 1 makes round 2 run again."""
    expected = opened(done[0][1])
    runs = runs_of(experiment(tmp_path, CURRICULUM[:2]))
    others = [Path(run.workdir) for run in done[0][:1]]
    write = StageMetrics.write

    def write_or_die(self, step, values):
        write(self, step, values)
        if (self.workdir.path.name, self.stage, step) == ("2", "align", 3):
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(StageMetrics, "write", write_or_die)
        with pytest.raises(Killed):
            train.run_all(runs, others)
    assert "align" not in read_stages(Path(runs[1].workdir))
    capsys.readouterr()
    train.run_all(runs, others)
    shown = capsys.readouterr().out
    # All of round 1 had finished, and of round 2 what comes before the alignment.
    assert shown.count("done before") == len(read_stages(Path(runs[0].workdir))) + 3
    assert_equal(opened(runs[1]).aligned, expected.aligned)
    train.run_all(runs)
    assert "▶" not in capsys.readouterr().out

    shutil.rmtree(runs[0].workdir)
    other = dataclasses.replace(runs[0].optim, lr=1e-3)
    changed = runs_of(
        experiment(tmp_path, (Round(optim=other), Round(optim=runs[1].optim, refresh=False)))
    )
    assert changed[1] == runs[1]
    train.run_all(changed, others)
    shown = capsys.readouterr().out
    assert re.search(r"/2: .*/1 has another result now; its files are now in .*set-aside/1", shown)
    assert shown.count("done before") == 0
    second = opened(changed[1])
    assert_equal(second.start, opened(changed[0]).aligned)
    assert (second.ctx.workdir.path / "set-aside" / "1" / "checkpoints" / "align").is_dir()
    rows = [row for row in read_metrics(second.ctx.workdir.path) if row["stage"] == "align"]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    with pytest.raises(AssertionError):
        assert_equal(second.aligned, expected.aligned)
