"""Batches from worker processes: those of threads, resumable, and no process outlives its run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import grain
import numpy as np
import pytest
from helpers_formats import all_batches
from helpers_run import assert_same_run, rows, stages, train

from seva_jax.batches.worker_processes import ProcessIterator

READING = """
import multiprocessing, sys, time
import grain
from seva_jax.batches.worker_processes import ProcessIterator

if __name__ == "__main__":
    numbers = grain.MapDataset.range(10**6).map(lambda x: x * x)
    iterator = ProcessIterator(numbers, 2, 2)
    print(next(iterator), *(c.pid for c in multiprocessing.active_children()), flush=True)
    print(next(iterator), flush=True)  # of the other one, which has begun too then
    for number in iterator:
        time.sleep(0.05)
        print(number, flush=True)
"""


@pytest.mark.slow
def test_processes_give_what_threads_give(tmp_path):
    """Batches are equal, and either continues from the other's state."""
    found = all_batches(tmp_path)
    whole = list(found.iterate())
    assert len(whole) == 8
    reader = found.iterate(processes=2)
    first = [next(reader) for _ in range(3)]
    state = reader.get_state()
    reader.close()
    threads = found.iterate()
    threads.set_state(state)
    assert threads.get_state() == state
    again = found.iterate(processes=1)
    again.set_state(threads.get_state())
    for continued in (first + list(threads), first + list(again)):
        for a, b in zip(continued, whole, strict=True):
            for name, x, y in zip(a._fields, a, b, strict=True):
                np.testing.assert_array_equal(x, y, err_msg=name)
    again.close()


def test_an_iterator_without_processes_yet_has_a_state():
    """Processes only start with the first element."""
    iterator = ProcessIterator(grain.MapDataset.range(5), 2, 1)
    iterator.set_state({"next_index": 3})
    assert iterator.get_state() == {"next_index": 3}
    iterator.close()


@pytest.fixture
def reading(tmp_path):
    """Starts a process that reads with two others; yields it and the ids of these."""
    (tmp_path / "reading.py").write_text(READING)
    argv = [sys.executable, "-W", "ignore", str(tmp_path / "reading.py")]
    pipe = subprocess.PIPE
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    with subprocess.Popen(argv, stdout=pipe, stderr=subprocess.STDOUT, text=True, env=env) as run:
        assert run.stdout is not None
        first, *pids = map(int, run.stdout.readline().split())
        assert first == 0
        assert len(pids) == 2
        assert all(alive(pid) for pid in pids)
        assert run.stdout.readline() == "1\n"
        yield run, pids
        run.kill()
    deadline = time.monotonic() + 5
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline, "processes outlive their run"
        time.sleep(0.2)


@pytest.mark.slow
def test_processes_end_with_a_killed_run(reading):
    """They end within five seconds."""
    run, _ = reading
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_a_killed_process_ends_the_run(reading):
    """The error says so; a Ctrl-C does not end it, as the run has to answer that."""
    run, pids = reading
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(pids[0], number)
    for _ in range(20):
        assert int(run.stdout.readline()) > 0
    start = time.monotonic()
    os.kill(pids[0], signal.SIGKILL)
    text = run.stdout.read()
    assert time.monotonic() - start < 5
    assert "DataError: a process that prepares batches was killed" in text
    assert run.wait() == 1


@pytest.mark.slow
def test_the_command_with_reading_processes(whole_run, tmp_path):
    """Killed with two of them and finished with one, it equals the run that reads in threads."""
    workdir, cache = tmp_path / "run", whole_run / "cache"
    options = ("--train.save-every", 1, "--train.read-processes", 2)
    with train(cache, workdir, *options, env={"COMMIT_S": "0.3"}) as run:
        run.when(lambda: rows(workdir, "base"))
        pids = descendants(run.process.pid)
        assert sum("spawn_main" in command_of(pid) for pid in pids) == 2
        assert run.kill() == -signal.SIGKILL, run.output[-3000:]
    deadline = time.monotonic() + 5
    while any(map(alive, pids)):
        assert time.monotonic() < deadline, "processes outlive their run"
        time.sleep(0.1)
    assert not stages(workdir)
    with train(cache, workdir, "--train.read-processes", 1) as run:
        assert run.status() == 0, run.output[-3000:]
    assert_same_run(workdir, whole_run / "run")


def descendants(pid):
    """Returns the processes that a process has started, directly or not."""
    found = Path(f"/proc/{pid}/task").glob("*/children")
    children = [int(child) for path in found for child in path.read_text().split()]
    return children + [pid for child in children for pid in descendants(child)]


def command_of(pid):
    """Returns a process's command line."""
    return Path(f"/proc/{pid}/cmdline").read_text()


def alive(pid):
    """Returns whether a process runs; one that ended and was not waited for does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
