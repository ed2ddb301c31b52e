"""Training a finished run further: what it promises, and that it is resumed like any other."""

import dataclasses
import itertools
import json
import shlex
import shutil
from collections import Counter

import jax.numpy as jnp
import numpy as np
import pytest
from helpers_run import parameters, rows
from test_taken import begin, change, config_of, stages

from seva_jax.batches.pipeline import Schedule, num_steps
from seva_jax.config.command_line import load_experiment
from seva_jax.objectives import DPO, Supervised
from seva_jax.run.further import RECORD, recorded
from seva_jax.run.leaves import Leaves
from seva_jax.run.opened import find_model
from seva_jax.run.weights import aligned_checkpoint
from seva_jax.run.workdir import StageMetrics, Workdir
from seva_jax.training.held_out import Watch, read_held_out
from seva_jax.training.optimizer import Optim
from seva_jax.types import DataError

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def mine(whole_run):
    """Returns the directory of a finished run."""
    return whole_run / "run"


def epochs(mine, workdir, num, *sources, objective=None, optim=None, **train):
    """Returns the config of a run on the same pairs, of 12 steps an epoch.

    With a constant learning rate, unless there is another `optim`.
    """
    config = config_of(mine, workdir=str(workdir), take_from=(*map(str, sources), str(mine)))
    config = dataclasses.replace(
        config,
        objective=objective or config.objective,
        optim=optim or Optim(lr=1e-3, schedule="constant", warmup_ratio=0.0),
    )
    return change(config, "train", epochs=num, max_steps=0, log_every=2, **train)


def assert_same(folder, expected):
    """Asserts that two alignments end with the same state and wrote the same rows."""
    for one, other in zip(parameters(folder, "align"), parameters(expected, "align"), strict=True):
        np.testing.assert_array_equal(one, other)
    assert rows(folder, "align") == rows(expected, "align")


# --- the promise ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "train"),
    [
        (DPO(), {}),
        (DPO(beta=0.3), {"reference": "in_step"}),
        (Supervised(), {"micro_batches": 2}),
    ],
)
def test_one_epoch_and_one_more_are_two(mine, tmp_path, objective, train, capsys):
    """With a constant learning rate bit for bit, with moments and rows of metrics."""
    one = begin(epochs(mine, tmp_path / "one", 1, objective=objective, **train), "align")
    config = epochs(mine, tmp_path / "more", 2, one, objective=objective, **train)
    more = begin(config, "align")
    assert f"continues the training of {one}: steps 13 to 24 of 24" in capsys.readouterr().out
    whole = dataclasses.replace(config, workdir=str(tmp_path / "two"), take_training=False)
    two = begin(whole, "align")
    assert "continues" not in capsys.readouterr().out
    assert_same(more, two)
    assert [row["step"] for row in rows(more, "align")] == list(range(2, 25, 2))
    # It is not taken for the uninterrupted run, nor the other way round.
    assert stages(more)["align"]["fingerprint"] != stages(two)["align"]["fingerprint"]
    assert not (more / "checkpoints" / "earlier").exists()


def test_a_cosine_is_that_of_all_steps_from_where_training_continues(
    mine, tmp_path, monkeypatch, capsys
):
    """As a run in which the schedule is exchanged after 12 steps; the line names both rates."""
    optim = Optim(lr=1e-3, warmup_ratio=0.1)
    one = begin(epochs(mine, tmp_path / "one", 1, optim=optim), "align")
    config = epochs(mine, tmp_path / "more", 2, one, optim=optim)
    more = begin(config, "align")
    # Warm-up takes 2 of 12, and 3 of 24 steps; the rate of a step counts the steps before it.
    at, ended = (
        1e-3 * 0.5 * (1 + np.cos(np.pi * done / steps)) for done, steps in ((9, 21), (9, 10))
    )
    line = f"a cosine schedule of 24 steps, {at:.3g} at step 13 ({one} had ended at {ended:.3g})"
    assert line in capsys.readouterr().out
    assert rows(more, "align")[5]["lr"] == pytest.approx(ended)

    def exchanged(self, num):
        first, second = rate(self, 12), rate(self, num)
        return lambda done: jnp.where(done < 12, first(done), second(done))

    rate = Optim.learning_rate
    monkeypatch.setattr(Optim, "learning_rate", exchanged)
    two = begin(
        dataclasses.replace(config, workdir=str(tmp_path / "two"), take_training=False), "align"
    )
    assert_same(more, two)


@pytest.mark.parametrize("place", ["disk", "bucket"])
@pytest.mark.parametrize("at", [14, 20])
def test_a_killed_continuation_is_resumed(mine, tmp_path, request, monkeypatch, place, at):
    """Before its first checkpoint and after; it no longer needs the other run."""
    one = begin(epochs(mine, tmp_path / "one", 1), "align")
    config = epochs(mine, tmp_path / "more", 2, one)
    more = begin(config, "align")
    target = request.getfixturevalue("bucket") if place == "bucket" else tmp_path
    killed = dataclasses.replace(
        change(config, "train", save_every=4), workdir=str(target / "killed")
    )
    write = StageMetrics.write

    def write_or_die(self, step, values):
        write(self, step, values)
        if (self.stage, step) == ("align", at):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StageMetrics, "write", write_or_die)
        with pytest.raises(KeyboardInterrupt):
            begin(killed, "align")
    shutil.rmtree(one)
    folder = begin(killed, "align")
    assert_same(folder, more)
    assert begin(killed, "align") == folder  # done before


LOSSES = {0: 0.7, 2: 0.6, 4: 0.5, 5: 0.1, 6: 0.4, 8: 0.3, 10: 0.35}  # of held-out pairs


def test_held_out_pairs_of_a_continued_training(mine, tmp_path, monkeypatch, capsys):
    """The best step is one that was trained here; patience counts from where training continues."""

    def saw(self, step, loss):
        return dataclasses.replace(self, values=(*self.values, (step, LOSSES[step])))

    monkeypatch.setattr(Watch, "saw", saw)
    options = {
        "eval_fraction": 0.25, "eval_every": 2, "patience": 2, "keep": "best", "batch_size": 16,
        "save_every": 1,
    }  # fmt: skip
    one = begin(epochs(mine, tmp_path / "one", 1, **options), "align")
    assert (read_held_out(one).best_step, read_held_out(one).last_step) == (5, 5)
    more = begin(epochs(mine, tmp_path / "more", 2, one, **options), "align")
    # 72 pairs in batches of 16: the 5th is of 8.
    assert f"continues the training of {one}: steps 6 to 10 of 10" in capsys.readouterr().out
    result = read_held_out(more)
    assert (result.best_step, result.best_loss, result.last_step) == (8, 0.3, 10)
    assert (result.kept_step, result.start_loss) == (8, 0.7)
    assert [row["step"] for row in rows(more, "held-out")] == list(LOSSES)
    chosen = [find_model(more, step=step) for step in (None, "best", "last")]
    names = [aligned_checkpoint(model.config, model.step).name for model in chosen]
    assert names == ["8", "8", "10"]
    assert chosen[1].label == f"{more} (best step)"
    # It is taken with both checkpoints, and neither is missed in silence.
    kept = more / "checkpoints" / "align" / "8"
    config = epochs(mine, tmp_path / "again", 2, more, **options)
    again = begin(config, "align")
    assert f"■ align: taken from {more}" in capsys.readouterr().out
    assert (again / "held_out.json").read_bytes() == (more / "held_out.json").read_bytes()
    shutil.rmtree(again / "checkpoints" / "align" / "8")
    with pytest.raises(DataError, match="checkpoints/align/8 is missing, which 'align' left"):
        begin(config, "align")
    with (kept / "state" / "manifest.ocdbt").open("ab") as file:
        file.write(b"?")
    assert Leaves(more).damage(["checkpoints/align", "held_out.json"], 10).startswith(str(kept))


# --- when, and what is said -----------------------------------------------------------------------


def test_the_refusal_of_a_longer_config_leads_to_the_command(mine, tmp_path, capsys):
    """The command in the message works as it stands."""
    short = begin(epochs(mine, tmp_path / "short", 1), "align")
    with pytest.raises(DataError, match=r"train\.epochs: 1 there, 2 now") as caught:
        Workdir.open(epochs(mine, short, 2))
    command = shlex.split(str(caught.value).splitlines()[-1])
    assert command[:2] == ["seva-jax", "train"]
    config, _ = load_experiment("test", command[2:])
    assert config.workdir == f"{short}-longer"
    begin(config, "align")
    assert f"continues the training of {short}: steps 13 to 24" in capsys.readouterr().out
    with pytest.raises(DataError, match=rf"--take-from {short} copies the stages that") as caught:
        Workdir.open(epochs(mine, short, 2, objective=Supervised()))
    assert "seva-jax train" not in str(caught.value)


def test_a_training_in_three_parts_is_taken_whole(mine, tmp_path, capsys):
    """Every part is recorded, and a run of the same config takes the result."""
    folders = [tmp_path / name for name in ("1", "2", "3")]
    begin(epochs(mine, folders[0], 1, batch_size=36), "align")
    for num, before, folder in zip((2, 3), folders[:2], folders[1:], strict=True):
        begin(epochs(mine, folder, num, before, batch_size=36), "align")
    last = recorded(folders[2])
    assert last is not None
    assert (last.step, list(last.ends)) == (6, [96, 192])  # 36, 36 and 24 of 96 an epoch
    assert last.before == stages(folders[0])["align"]["fingerprint"]
    assert "9 steps" in stages(folders[2])["align"]["summary"]
    capsys.readouterr()
    again = begin(epochs(mine, tmp_path / "again", 3, folders[2], batch_size=36), "align")
    assert f"■ align: taken from {folders[2]}" in capsys.readouterr().out
    assert (again / RECORD).read_bytes() == (folders[2] / RECORD).read_bytes()
    assert_same(again, folders[2])


def test_what_is_not_the_same_training_begins_at_step_1(mine, tmp_path, monkeypatch, capsys):
    """A shorter one, another rate, an unfinished one, or where the user says so."""
    one = begin(epochs(mine, tmp_path / "one", 2), "align")
    monkeypatch.setattr(Workdir, "_run", lambda self, stage: ran.append(stage.depends_on))
    ran: list[str] = []
    config = epochs(mine, tmp_path / "a", 3, one)
    begin(config, "align")
    for number, other in enumerate(
        (
            epochs(mine, tmp_path / "b", 1, one),
            epochs(mine, tmp_path / "c", 3, one, optim=Optim(lr=1e-4)),
            epochs(mine, tmp_path / "d", 3, one, repeat=2),
            dataclasses.replace(config, workdir=str(tmp_path / "e"), take_training=False),
        )
    ):
        begin(other, "align")
        without = dataclasses.replace(other, workdir=f"{tmp_path}/{number}", take_from=(str(mine),))
        begin(without, "align")
        assert ran[-1] == ran[-2]
    assert ran[0] != ran[-1]  # the same config, continued and not
    assert "continues" not in capsys.readouterr().out


def test_a_training_that_cannot_be_continued_is_an_error(mine, tmp_path):
    """Its checkpoint is missing or damaged, or has all steps that are wanted."""
    one = begin(epochs(mine, tmp_path / "one", 1), "align")
    config = epochs(mine, tmp_path / "more", 2, one)
    limited = change(epochs(mine, tmp_path / "limited", 1, one), "train", max_steps=12)
    enough = change(config_of(one, workdir=str(tmp_path / "enough")), "train", max_steps=50)
    begin(dataclasses.replace(limited, workdir=str(tmp_path / "first")), "align")
    enough = dataclasses.replace(enough, take_from=(str(tmp_path / "first"), str(mine)))
    with pytest.raises(DataError, match="12 steps, and this config stops at 12; raise train"):
        begin(enough, "align")
    file = one / "checkpoints" / "align" / "12" / "state" / "manifest.ocdbt"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"?")
    with pytest.raises(DataError, match=r"cannot be continued: .*manifest\.ocdbt has .*no-take-tr"):
        begin(config, "align")
    file.unlink()
    with pytest.raises(DataError, match=r"cannot be continued: .*manifest\.ocdbt; put back a copy"):
        begin(config, "align")
    file.write_bytes(content)
    assert json.loads((begin(config, "align") / RECORD).read_text())["step"] == 12


# --- the order of the data ------------------------------------------------------------------------


def test_no_comparison_is_skipped_or_repeated():
    """An epoch whose last batch is a small one is followed by whole batches of the next."""
    order = list(range(30))
    plain = Schedule(order, 10, 4, 8)
    assert [len(plain[i]) for i in range(8)] == [4, 4, 4, 4, 4, 4, 4, 2]
    parts = Schedule(order, 10, 4, 9, [10, 20])
    assert [len(parts[i]) for i in range(9)] == [4, 4, 2] * 3
    assert list(itertools.chain(*parts[:])) == [i % 10 for i in order]
    assert Counter(itertools.chain(*parts[:])) == Counter(dict.fromkeys(range(10), 3))
    stopped = Schedule(order, 10, 4, 8, [8])  # after two whole batches
    assert [stopped[i] for i in range(8)] == [plain[i] for i in range(8)]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((10, 4, 3, 1, 0), 8),
        ((10, 4, 3, 1, 0, 3, 10), 8),  # 4 4 2, then 20 more in 5 batches
        ((10, 4, 3, 1, 7, 3, 10), 7),
        ((10, 4, 1, 2, 0, 2, 8), 5),
        ((9, 4, 2, 1, 0, 3, 9), 6),  # an uninterrupted run has 5
    ],
)
def test_steps_of_a_continued_training(arguments, expected):
    """Those that were done count, too."""
    assert num_steps(*arguments) == expected


def test_the_message_names_no_option_that_is_not_there(mine):
    """`--no-take-training` is an option of the command."""
    config, _ = load_experiment("test", ["--config", f"{mine}/config.py", "--no-take-training"])
    assert not config.take_training
