"""Saves by the clock: what a kill costs at the worst moment."""

import time

import numpy as np
import pytest
from helpers_fit import fit, tiny_run
from helpers_run import saved_steps

from seva_jax.config.config_files import config_directory, read_configs
from seva_jax.training import checkpoint
from seva_jax.training.save_schedule import SaveSchedule

EVERY_S = 100.0


def simulated(write_s, row_s, first_s=None, until_s=3000.0):
    """Training with a clock of its own.

    Args:
        write_s: how long each checkpoint is written.
        row_s: seconds between rows of metrics.
        first_s: until the first row.
        until_s: when it ends.

    Returns:
        The most training that a kill would ever have cost, seconds; what share of the time was
        training; checkpoints begun.
    """
    now = trained = 0.0
    save_schedule = SaveSchedule(EVERY_S, lambda: now)
    finished = begun = 0.0  # training that checkpoints hold
    ready, took, worst, saves = None, None, 0.0, 0

    def settle():
        """Finishes the checkpoint in progress when its time has come."""
        nonlocal finished, ready, took
        if ready is not None and now >= ready:
            finished, ready, took = begun, None, write_s

    row = first_s or row_s
    while now < until_s:
        for part in np.diff(np.linspace(0, row, 10)):
            now, trained = now + part, trained + part
            worst = max(worst, trained - finished)  # a kill just before the commit
            settle()
        row = row_s
        due = save_schedule.due(took, ready is not None)
        if due.save:
            save_schedule.begin()
            with save_schedule.paused():
                now = max(now, ready or 0.0)
                settle()
            begun, ready, saves = trained, now + write_s, saves + 1
        if due.wait:
            with save_schedule.paused():
                now = max(now, ready or 0.0)
                settle()
    return worst, trained / now, saves


@pytest.mark.parametrize("write_s", [0.5, 20.0, 49.0, 60.0, 99.0, 400.0])
@pytest.mark.parametrize("row_s", [0.5, 3.0, 17.0, 49.0])
def test_never_more_than_an_interval(write_s, row_s):
    """It holds however long writing takes, also during a write; little time is spent waiting."""
    worst, share, saves = simulated(write_s, row_s)
    assert worst <= EVERY_S + 1e-6
    assert share > 0.9 * min(1, (EVERY_S - 3 * row_s) / (2 * write_s))
    # No more than needed: an interval apart, but for what writing and looking ahead take.
    assert saves <= 2 + 3000 * share / max(EVERY_S - write_s - 2 * row_s, row_s)


def test_a_slow_first_row():
    """A compilation longer than the interval costs nothing more."""
    worst, _, _ = simulated(20.0, 1.0, first_s=250.0)
    assert worst <= 250 + 1 + 20


@pytest.mark.parametrize(
    ("options", "ahead"),
    [
        (
            ("--train.save-every", "3", "--train.save-every-s", "600"),
            [1, 2, 3, 1, 2, 3, 1, 2, 3, 1],
        ),
        (("--train.save-every", "0", "--train.save-every-s", "1e-3"), [1] * 10),
    ],
    ids=["by steps", "by the clock"],
)
def test_training_waits_for_slow_disks(tmp_path, monkeypatch, options, ahead):
    """Checkpoints are published late here; a kill still costs at most an interval."""
    write_digests = checkpoint.write_digests

    def slowly(step):
        write_digests(step)
        time.sleep(0.3)

    monkeypatch.setattr(checkpoint, "write_digests", slowly)
    run, found = tiny_run(tmp_path / "run", *options, "--train.log-every", "1"), []

    def write(step, _):
        found.append(step - max(saved_steps(run.workdir.path, "align"), default=0))

    fit(run, 10, write=write)
    assert found == ahead


def test_saves_are_by_the_clock_unless_told_otherwise():
    """Every shipped config saves at least every ten minutes."""
    for path in config_directory().glob("*.py"):
        for experiment in read_configs(path):
            options = experiment.train
            assert (options.save_every, 0 < options.save_every_s <= 600) == (0, True), path.name
