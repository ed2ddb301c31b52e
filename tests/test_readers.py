"""Batches from processes: the same ones, resumable either way, and no process outlives its run."""

import subprocess
import sys
import time
from pathlib import Path

import grain
import helpers_formats
import numpy as np
import pytest

from seva_jax.cli import load_experiment
from seva_jax.data.inputs import Pixels
from seva_jax.data.pipeline import Batches, ComparisonRows, RowShapes, encodable, shuffled
from seva_jax.data.readers import ProcessIterator
from seva_jax.text.encode import Encoder

READING = """
import multiprocessing, sys, time
import grain
from seva_jax.data.readers import ProcessIterator

if __name__ == "__main__":
    numbers = grain.MapDataset.range(50).map(lambda x: x * x)
    iterator = ProcessIterator(numbers, 2, 2)
    print(next(iterator), *(c.pid for c in multiprocessing.active_children()), flush=True)
    time.sleep(100)
"""


def batches(folder):
    """Pairs of every format: parquet, ArrayRecord and folders go to the processes."""
    e, _ = load_experiment("test", [])
    assets, data = e.base.assets(), helpers_formats.all_pairs(folder).open()
    config = assets.config
    encoder = Encoder(
        assets.tokenizer, e.text.train, config.image_token_id, config.tokens_per_image, 96
    )
    fits = encodable(data.comparisons, encoder)
    assert fits.shape is not None
    rows = ComparisonRows(
        fits.comparisons,
        encoder,
        Pixels(data.load_image, assets.processing),
        fits.shape,
        fits.sizes,
    )
    shapes = RowShapes(2, lambda shape: shape.length)
    return Batches.chosen(rows, shuffled(rows, 4, 8, 2, 1, 5), 4, (0, 1), 1, shapes)


@pytest.mark.slow
def test_processes_give_what_threads_give(tmp_path):
    """Same batches, and a state that either continues from."""
    found = batches(tmp_path)
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
    """Processes start with the first element."""
    iterator = ProcessIterator(grain.MapDataset.range(5), 2, 1)
    iterator.set_state({"next_index": 3})
    assert iterator.get_state() == {"next_index": 3}
    iterator.close()


@pytest.mark.slow
def test_processes_end_with_a_killed_run(tmp_path):
    (tmp_path / "reading.py").write_text(READING)
    argv = [sys.executable, "-W", "ignore", str(tmp_path / "reading.py")]
    run = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    first, *pids = map(int, run.stdout.readline().split())
    assert first == 0
    assert len(pids) == 2
    assert all(alive(pid) for pid in pids)
    run.kill()
    run.wait()
    deadline = time.monotonic() + 30
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline, "processes outlive their run"
        time.sleep(0.2)
    run.stdout.close()


def alive(pid):
    """Whether a process runs; one that ended and was not waited for does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
