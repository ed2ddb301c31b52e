"""SIGTERM to one of two processes: both save at the same step, and nothing is lost."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from helpers_run import ROOT, assert_same_run, lines, rows, train
from test_signals import answers, compiling

from seva_jax.stopping import Status


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
    assert max(took) < 10, took
    for where in (workdir, whole):
        with two(cache, where) as run:
            assert run.status() == 0, run.output[-3000:]
    assert_same_run(workdir, whole)
