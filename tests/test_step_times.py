"""Time of training steps: its parts, memory, and the process that the others wait for."""

import json
import re
import types

import jax
import numpy as np
import pytest
from helpers_fit import fit, tiny_run
from helpers_run import lines

from seva_jax.runtime.overhead import Overhead
from seva_jax.training import memory, step_times
from seva_jax.training.step_times import PARTS, StepTimes, straggler


class Clock:
    """A clock that is set by hand, with what compiling and saving took."""

    def __init__(self, monkeypatch):
        self.now, self.compile_s, self.save_s = 100.0, 7.0, 3.0
        monkeypatch.setattr(step_times, "overhead", lambda: Overhead(self.compile_s, self.save_s))

    def __call__(self):
        return self.now


class Output:
    """An output of a step on a device that finishes at a time of the clock."""

    def __init__(self, clock, finished):
        self.clock, self.finished = clock, finished

    def is_ready(self):
        return self.clock.now >= self.finished

    def block_until_ready(self):
        self.clock.now = max(self.clock.now, self.finished)
        return self


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def run_steps(clock, times, num, input_s, host_s, device_s):
    """Runs steps on a made-up device, which begins one when it is given and the last is done."""
    finished = clock.now
    for _ in range(num):
        with times.input():
            clock.now += input_s
        clock.now += host_s
        with times.step():
            pass
        finished = max(finished, clock.now) + device_s
        times.started(Output(clock, finished))


def test_the_parts_of_a_row(clock):
    """Each is what was done meanwhile, and rows follow each other without a gap."""
    times = StepTimes("align", clock)
    with times.input():
        clock.now += 3
    clock.now += 1
    with times.step():
        clock.compile_s += 2
        clock.now += 2 + 0.5  # half a second around compiling
    times.started(Output(clock, clock.now + 4))
    clock.now += 0.25
    everyone = times.exchange()
    clock.now += 0.25
    row = times.row(everyone)
    assert row == {
        "seconds": 10.75, "time/input": 3, "time/host": 2, "time/device": 3.75, "time/compile": 2,
        "time/save": 0,
    }  # fmt: skip
    clock.save_s += 5
    clock.now += 5 + 0.5
    run_steps(clock, times, 2, input_s=1, host_s=0.5, device_s=2)
    with times.step():
        clock.now += 0.125  # until the devices accept the step
    times.started(Output(clock, clock.now))
    row = times.row(times.exchange())
    assert [row[f"time/{part}"] for part in PARTS] == [2, 1.5, 0.125, 0, 5]
    assert row["seconds"] == clock.now - 110.75


def test_a_row_that_a_checkpoint_cuts(clock):
    """The seconds before it are kept with it, as JSON keeps them, and added after a restart."""
    times = StepTimes("align", clock)
    run_steps(clock, times, 2, input_s=1, host_s=2, device_s=0.5)
    saved = json.loads(json.dumps(times.so_far()))
    clock.now += 1000
    again = StepTimes("align", clock)
    again.start(saved)
    run_steps(clock, again, 1, input_s=0, host_s=4, device_s=0.5)
    row = again.row(again.exchange())
    assert [row[f"time/{part}"] for part in PARTS] == [2, 8, 0.5, 0, 0]
    run_steps(clock, again, 1, input_s=0, host_s=4, device_s=0)
    assert again.row(again.exchange())["seconds"] == 4


@pytest.mark.parametrize(
    ("input_s", "device_s", "late_s"),
    [
        (0.25, 1.0, 0.25 + 0.125),  # only before the first step: later ones find them busy
        (2.0, 1.0, 10 * (2.0 + 0.125)),  # input is slower than the devices
    ],
)
def test_only_time_for_which_devices_stood_idle_counts(clock, input_s, device_s, late_s):
    """A loop that keeps its devices busy delays no other process, however slow its input is."""
    times = StepTimes("align", clock)
    run_steps(clock, times, 10, input_s, 0.125, device_s)
    (mine,) = times.exchange()
    assert sum(mine["late"].values()) == pytest.approx(late_s, abs=2e-3)
    assert mine["late"]["host"] < mine["late"]["input"]
    times.row([mine])
    run_steps(clock, times, 1, 0.5, 0, 1.0)
    assert times.exchange()[0]["late"] == {"input": 0.5, "host": 0.0}  # of this row alone


def process(name, input_s, host_s):
    return {"host name": name, "late": {"input": input_s, "host": host_s}, "memory": None}


@pytest.mark.parametrize(
    ("late", "row_s", "named"),
    [
        ([(0, 0), (0.1, 0), (0, 0.2), (4.1, 0.1)], 10, "process 3 (host w-3) spent 4.1 s of 10.0 s "
         "waiting for input; the others waited for it"),
        ([(0, 0), (0, 3.0)], 10, "process 1 (host w-1) spent 3.0 s of 10.0 s in host work (Python, "
         "disk); the others waited for it"),
        ([(0, 0), (0, 0), (0, 0.9)], 2, None),  # less than a second
        ([(0, 0), (0, 0), (0, 0.9)], 0.5, None),
        ([(0, 0), (0, 0), (4.1, 0)], 60, None),  # less than a tenth
        ([(5, 1), (5, 1), (5.5, 1)], 10, None),  # all are slow
        ([(5, 0), (5, 0), (5, 4.5)], 10, "process 2 (host w-2) spent 4.5 s of 10.0 s in host work "
         "(Python, disk); the others waited for it"),  # by what it differs in
        ([(9, 9)], 20, None),  # alone
    ],
)  # fmt: skip
def test_who_is_a_straggler(late, row_s, named):
    everyone = [process(f"w-{i}", *seconds) for i, seconds in enumerate(late)]
    result = straggler(row_s, everyone)
    if named is None:
        assert result is None
    else:
        assert result == (int(named.split()[1]), f"straggler: {named}")


def test_a_straggler_is_named_once_in_a_while(clock, monkeypatch, capsys):
    """Another one is named at once."""
    others = [process("w-1", 3.0, 0.0), process("w-2", 0.0, 0.0)]
    monkeypatch.setattr(step_times, "gather", lambda mine: [mine, *others])
    times = StepTimes("align", clock)

    def names(rows):
        for _ in range(rows):
            run_steps(clock, times, 1, 0, 0, 10)
            times.row(times.exchange())
        printed = capsys.readouterr().out.splitlines()
        return [line.partition(" spent")[0] for line in printed]

    first, second = (f"align: straggler: process {i} (host w-{i})" for i in (1, 2))
    assert names(1) == [first]
    assert names(10) == []
    others[:] = [process("w-1", 0.0, 0.0), process("w-2", 3.0, 0.0)]
    assert names(5) == [second]
    others[:] = [process("w-1", 3.0, 0.0), process("w-2", 0.0, 0.0)]
    assert names(5) == []
    assert names(2) == [first]


class Device:
    """A device whose allocator tells these numbers."""

    def __init__(self, **stats):
        self.stats = stats or None

    def memory_stats(self):
        return self.stats


def test_memory(monkeypatch, clock):
    """GiB of the fullest device of any process; unknown on CPUs."""
    assert memory.memory_use() is None
    devices = [
        Device(bytes_in_use=2**30, peak_bytes_in_use=3 * 2**30, bytes_limit=16 * 2**30),
        Device(bytes_in_use=2**31, peak_bytes_in_use=2**31, bytes_limit=16 * 2**30),
    ]
    monkeypatch.setattr(memory.jax, "local_devices", lambda: devices)
    assert memory.memory_use() == (2.0, 3.0)
    times = StepTimes("align", clock)
    run_steps(clock, times, 1, 0, 0, 1)
    (mine,) = times.exchange()
    row = times.row([mine, {**mine, "memory": [2.5, 2.5]}])
    assert (row["memory/in_use"], row["memory/peak"]) == (2.5, 3.0)
    devices.append(Device())
    assert memory.memory_use() is None
    run_steps(clock, times, 1, 0, 0, 1)
    assert not any(name.startswith("memory") for name in times.row(times.exchange()))


def test_rows_of_a_training(tmp_path, monkeypatch):
    """The parts of every row add up; the loop waits for its devices once a row and not more."""
    waits = []

    def wait(output):
        waits.append(output)
        return jax.block_until_ready(output)

    only = types.SimpleNamespace(block_until_ready=wait)
    monkeypatch.setattr(step_times, "jax", only)
    run = tiny_run(tmp_path / "run", "--train.save-every", "4")
    fit(run, 10)
    rows = lines(run.workdir.path / "metrics.jsonl")
    assert len(rows) == len(waits) == 5
    for row in rows:
        assert all(re.fullmatch(r"[-/\w.]+", name) for name in row)  # as TensorBoard's tags must be
        parts = [row[f"time/{part}"] for part in PARTS]
        assert min(parts) >= 0
        assert sum(parts) == pytest.approx(row["seconds"], rel=1e-9)
        assert "memory/peak" not in row
    assert rows[0]["time/compile"] > 0
    # A save after the last step of a row may be counted in this row or in the next one.
    saved = [row["time/save"] > 0 for row in rows]
    assert not saved[0]
    assert saved[2]
    assert saved[4]


def test_a_resumed_row_has_the_time_of_all_its_steps(tmp_path, monkeypatch):
    """Step 3 was trained before the kill, in the middle of a row."""

    class Killed(Exception):
        pass

    def kill(step, _):
        if step == 4:
            raise Killed

    options = ("--train.save-every", "3", "--train.log-every", "2")
    with monkeypatch.context() as patch:
        patch.setattr(StepTimes, "so_far", lambda _: [0.0, 1000.0, 0.0, 0.0, 0.0])
        with pytest.raises(Killed):
            fit(tiny_run(tmp_path / "run", *options), 6, write=kill)
    fit(tiny_run(tmp_path / "run", *options), 6)
    rows = lines(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert rows[1]["time/host"] > 1000 > rows[2]["seconds"]
    assert rows[1]["pairs/s"] == pytest.approx(rows[1]["pairs"] / rows[1]["seconds"])
    assert np.isfinite(rows[1]["loss"])
