"""SIGTERM and Ctrl-C to one process: it saves, ends with the documented status and loses nothing.

`test_signals_two.py` has two processes.
"""

import contextlib
import signal
import time

import pytest
from helpers_run import STEPS, answers, assert_same_run, lines, rows, saved_steps, stages, train
from helpers_signals import compiling, started

from seva_jax.runtime.shutdown import Status

# Arguments of the script, signals a second apart, and the status.
CASES = (
    (30, "asks", [signal.SIGTERM], Status.STOPPED),
    (30, "asks", [signal.SIGINT], Status.STOPPED),
    (1, "busy", [signal.SIGTERM], Status.STOPPED),
    (60, "busy", [signal.SIGINT, signal.SIGINT], Status.AT_ONCE),
    (60, "busy", [signal.SIGTERM, signal.SIGINT], Status.AT_ONCE),
    (3, "busy", [signal.SIGTERM, signal.SIGTERM], Status.STOPPED),
)


def test_what_a_signal_does():
    """A loop that checks stops; one that does not is ended after the grace, or by a Ctrl-C."""
    with contextlib.ExitStack() as stack:
        processes = [started(stack, grace, asks) for grace, asks, _, _ in CASES]
        for process in processes:
            assert process.stdout.readline() == "ready\n"
            assert process.stdout.readline() == "joined\n"
        start = time.monotonic()
        for round_ in range(2):
            for process, (_, _, signals, _) in zip(processes, CASES, strict=True):
                for number in signals[round_ : round_ + 1]:
                    process.send_signal(number)
            time.sleep(1)
        for process, (*_, status) in zip(processes, CASES, strict=True):
            assert process.wait(40) == status
            assert "stopping at the next safe point" in process.stdout.read()
        assert time.monotonic() - start < 40


# The stage, what is looked for, the signals that come then, and the status.
MOMENTS = (
    ("compilation", compiling, [signal.SIGTERM], Status.STOPPED),
    ("compilation", compiling, [signal.SIGINT, signal.SIGINT], Status.AT_ONCE),
    ("base", lambda _, w: rows(w, "base"), [signal.SIGTERM], Status.STOPPED),
    ("rollouts", lambda _, w: lines(w / "rollouts.jsonl"), [signal.SIGTERM], Status.STOPPED),
    ("reference", lambda _, w: len(computed(w)) > 2, [signal.SIGTERM], Status.STOPPED),
    ("align", lambda _, w: rows(w, "align"), [signal.SIGTERM], Status.STOPPED),
    ("evaluation", lambda _, w: len(answers(w, "base")) > 2, [signal.SIGINT], Status.STOPPED),
)


def computed(workdir):
    """Returns the journal of the reference pass: a line for each batch after the first."""
    return lines(workdir / "reference.jsonl")


@pytest.mark.slow
def test_one_process(whole_run, tmp_path):
    """A run that is stopped in every stage with something to save equals one that was not."""
    workdir, took = tmp_path / "run", []
    for number, (stage, condition, signals, status) in enumerate(MOMENTS):
        # A cold cache where a compilation is wanted, and time for a signal in a short pass.
        cold = stage == "compilation"
        cache = tmp_path / f"cold{number}" if cold else whole_run / "cache"
        env = {"COMMIT_S": "0.3"} if stage == "reference" else {}
        # Compiling takes longer than the first grace, and the second one does not end it.
        grace = 0.2 if cold and len(signals) == 1 else 60
        with train(cache, workdir, "--processes.grace-s", grace, env=env) as run:
            run.when(lambda: condition(run, workdir))  # noqa: B023
            start = time.monotonic()
            for signal_ in signals:
                run.send(signal_)
                time.sleep(0.3)
            assert run.status() == status, run.output[-3000:]
            took.append(time.monotonic() - start)
            if status == Status.STOPPED and not cold:
                assert "run the same command again to resume" in run.output
        if stage in ("base", "align"):
            (saved,) = saved_steps(workdir, stage)  # no other save was due
            assert 2 <= saved < STEPS
        if stage == "reference":
            assert 2 < len(computed(workdir)) < 13, "it was over before"
            assert stages(workdir)[-1] == "pairs"
        assert not (workdir / "lock.json").exists() or cold
    assert max(took) < 10, took
    with train(whole_run / "cache", workdir) as run:
        assert run.status() == 0, run.output[-3000:]
    assert_same_run(workdir, whole_run / "run")
