"""SIGTERM and Ctrl-C: saved, the documented status, and nothing lost, with one process and two."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers_run import ROOT, assert_same_run, lines, rows, saved_steps, train

from seva_jax.stopping import Status

SCRIPT = """
import sys, time
from seva_jax import stopping

with stopping.watch(float(sys.argv[1])):
    print("ready", flush=True)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if sys.argv[2] == "asks":
            stopping.check()
        time.sleep(0.02)  # a handler does not end this, as it does not end a compilation
"""


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
    """A loop that asks stops there; one that does not is ended after the grace, or by Ctrl-C."""
    with contextlib.ExitStack() as stack:
        processes = []
        for grace, asks, _, _ in CASES:
            command = [sys.executable, "-c", SCRIPT, str(grace), asks]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            processes.append(stack.enter_context(process))
            stack.callback(process.kill)
        for process in processes:
            assert process.stdout.readline() == "ready\n"
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


def compiling(run, workdir):
    """The first step has not been logged yet."""
    return "base: at most" in run.output


# What is looked for, the signals that come then, and the status.
MOMENTS = (
    (compiling, [signal.SIGTERM], Status.STOPPED),
    (compiling, [signal.SIGINT, signal.SIGINT], Status.AT_ONCE),
    (lambda _, w: lines(w / "rollouts.jsonl"), [signal.SIGTERM], Status.STOPPED),
    (lambda _, w: rows(w, "align"), [signal.SIGTERM], Status.STOPPED),
    (lambda _, w: len(answers(w, "base")) > 2, [signal.SIGINT], Status.STOPPED),
    (lambda _, w: len(answers(w, "aligned")) > 2, [signal.SIGTERM], Status.STOPPED),
)


def answers(workdir, who):
    """Lines of answers to the first evaluation."""
    return lines(workdir / "evals" / who / "color-balanced" / "asked.jsonl")


@pytest.mark.slow
def test_one_process(tmp_path):
    """One run, stopped in every stage that has something to save, against one that was not."""
    cache, whole, workdir = (tmp_path / name for name in ("cache", "whole/run", "stopped/run"))
    took = []
    for number, (condition, signals, status) in enumerate(MOMENTS):
        grace = 2 if number == 0 else 60
        # A cold cache where a compilation is wanted.
        where = tmp_path / f"cold{number}" if condition is compiling else cache
        with train(where, workdir, "--processes.grace-s", grace) as run:
            run.when(lambda: condition(run, workdir))  # noqa: B023
            start = time.monotonic()
            for number in signals:
                run.send(number)
                time.sleep(0.3)
            assert run.status() == status, run.output[-3000:]
            took.append(time.monotonic() - start)
            if status == Status.STOPPED and condition is not compiling:
                assert "run the same command again to go on" in run.output
        if condition is MOMENTS[3][0]:
            (saved,) = saved_steps(workdir, "align")  # no other save was due
            assert 2 <= saved < 24
        assert not (workdir / "lock.json").exists() or condition is compiling
    assert max(took) < 60, took
    for where in (workdir, whole):
        with train(cache, where) as run:
            assert run.status() == 0, run.output[-3000:]
    assert_same_run(workdir, whole)


def children(pid):
    """Processes that a process has started, in order."""
    return sorted(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def two(cache, workdir, *options):
    """The command in two processes, one device each, started."""
    local = (sys.executable, str(ROOT / "launch" / "local.py"), "--devices", "1", "--grace", "60")
    mesh = ("--mesh.data", 2, "--mesh.fsdp", 1)
    return train(cache, workdir, *mesh, *options, launcher=(*local, "--"))


# What is looked for, and which of the two processes gets SIGTERM.
OF_TWO = (
    (compiling, 1),
    (lambda _, w: lines(w / "rollouts.jsonl"), 1),
    (lambda _, w: rows(w, "align"), 0),
    (lambda _, w: len(answers(w, "base")) > 2, 1),
)


@pytest.mark.slow
def test_one_of_two_processes(tmp_path):
    """Both stop at the same step, with the same status, and go on from there."""
    cache, whole, workdir = (tmp_path / name for name in ("cache", "whole/run", "stopped/run"))
    took = []
    for condition, rank in OF_TWO:
        cold = condition is compiling
        grace = 2 if cold else 60
        with two(
            tmp_path / "cold" if cold else cache, workdir, "--processes.grace-s", grace
        ) as run:
            run.when(lambda: condition(run, workdir))  # noqa: B023
            start = time.monotonic()
            os.kill(children(run.process.pid)[rank], signal.SIGTERM)
            assert run.status() == Status.STOPPED, run.output[-3000:]
            took.append(time.monotonic() - start)
            assert run.output.count("SIGTERM: stopping") == 1
    assert max(took) < 60, took
    for where in (workdir, whole):
        with two(cache, where) as run:
            assert run.status() == 0, run.output[-3000:]
    assert_same_run(workdir, whole)
