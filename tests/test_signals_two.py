"""SIGTERM to one of two processes: both save at the same step, and nothing is lost."""

import contextlib
import os
import runpy
import signal
import sys
import time
from pathlib import Path

import pytest
from helpers_run import ROOT, assert_same_run, lines, rows, train
from helpers_signals import compiling, started

from seva_jax.runtime.shutdown import Status

free_port = runpy.run_path(str(ROOT / "launch" / "local.py"))["free_port"]


def children(pid):
    """Returns the processes that a process has started, in order."""
    return sorted(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def two(cache, workdir, *options):
    """Starts the command in two processes with one device each."""
    local = (sys.executable, str(ROOT / "launch" / "local.py"), "--devices", "1", "--grace", "60")
    mesh = ("--mesh.data", 2, "--mesh.fsdp", 1)
    return train(cache, workdir, *mesh, *options, launcher=(*local, "--"))


# What is looked for, and which of the two processes gets SIGTERM.
OF_TWO = (
    (compiling, 1),
    (lambda _, w: lines(w / "rollouts.jsonl"), 1),
    (lambda _, w: rows(w, "align"), 0),
)


@pytest.mark.slow
def test_one_of_two_processes(tmp_path):
    """Both stop at the same step, with the same status, and resume there."""
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


def start(stack, address, number, asks, grace_s):
    """Starts one of two processes of the script and waits until it is ready."""
    who = {"JAX_PROCESS_ID": str(number), "JAX_NUM_PROCESSES": "2"}
    process = started(stack, grace_s, asks, JAX_COORDINATOR_ADDRESS=address, **who)
    assert process.stdout.readline() == "ready\n"
    return process


def statuses(processes, timeout_s=20):
    """Returns their exit statuses, which come soon."""
    return [process.wait(timeout_s) for process in processes]


@pytest.mark.parametrize("asks", [("asks", "busy"), ("busy", "asks")])
def test_all_save_or_none(asks):
    """If one finds no safe point within the grace, the other one does not continue alone.

    It would save without the other one, and wait for it.
    """
    address = f"127.0.0.1:{free_port()}"
    with contextlib.ExitStack() as stack:
        both = [start(stack, address, number, asks[number], 2) for number in range(2)]
        for process in both:
            assert process.stdout.readline() == "joined\n"
        both[1].send_signal(signal.SIGTERM)
        assert statuses(both) == [Status.STOPPED] * 2
        assert not any("everything finished is saved" in p.stdout.read() for p in both)


@pytest.mark.parametrize("waits", [0, 1])
def test_one_ends_while_the_other_waits_for_it(waits):
    """What the other waits for fails, and it ends as if it had reached its own deadline."""
    address = f"127.0.0.1:{free_port()}"
    with contextlib.ExitStack() as stack:
        both = [
            start(stack, address, number, "waits" if number == waits else "gathers", 2)
            for number in range(2)
        ]
        for process in both:
            assert process.stdout.readline() == "joined\n"
        time.sleep(2)  # one waits for the other
        both[1 - waits].send_signal(signal.SIGTERM)
        assert statuses(both) == [Status.STOPPED] * 2


@pytest.mark.parametrize("first", [0, 1])
def test_a_signal_while_processes_join(first):
    """It is not forgotten, and the process that joins later is told."""
    address = f"127.0.0.1:{free_port()}"
    with contextlib.ExitStack() as stack:
        early = start(stack, address, first, "asks", 60)
        time.sleep(1)  # it waits for the other
        early.send_signal(signal.SIGTERM)
        late = start(stack, address, 1 - first, "asks", 60)
        assert statuses([early, late], 40) == [Status.STOPPED] * 2
