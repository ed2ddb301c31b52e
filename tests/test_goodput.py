"""Goodput: where the time of a run went, over restarts, with made-up clocks."""

import contextlib
import json
import time

import jax
import numpy as np
import pytest

from seva_jax.config.experiment import Experiment
from seva_jax.config.options import ReportOptions
from seva_jax.report import ReportData, TimeShare, render
from seva_jax.report.closing import closing_summary, goodput_line, time_parts
from seva_jax.run.workdir import Stage, Workdir
from seva_jax.runtime import goodput, overhead, shutdown
from seva_jax.runtime.files import append_lines, read_lines
from seva_jax.runtime.goodput import STARTS, RunTimes, goodput_of
from seva_jax.runtime.overhead import Overhead


class Machine:
    """A clock and what was lost to compiling and saving, all set by hand."""

    def __init__(self, monkeypatch):
        self.now, self.compile_s, self.save_s = 0.0, 0.0, 0.0
        monkeypatch.setattr(goodput, "overhead", lambda: Overhead(self.compile_s, self.save_s))

    def at(self, now, compile_s=0.0, save_s=0.0):
        """Lets time pass until `now`; of it, so much went into compiling and saving."""
        self.now = now
        self.compile_s += compile_s
        self.save_s += save_s


@pytest.fixture
def machine(monkeypatch):
    return Machine(monkeypatch)


def row(step, **parts):
    return {"stage": "align", "step": step, **{f"time/{name}": s for name, s in parts.items()}}


def killed_twice(path, machine):
    """Runs rollouts, alignment and a report; returns the goodput at the last row of metrics.

    The first kill comes in the rollouts, the second in alignment, which resumes after its first
    row. A body that never ends stands for a kill.
    """
    never = contextlib.ExitStack()
    machine.at(1000)
    times = RunTimes(path, lambda: machine.now)
    machine.at(1010)
    never.enter_context(times.stage("rollouts"))
    machine.at(1030)
    times.units()
    machine.at(1075, compile_s=15)
    times.kept()
    machine.at(1100)
    times.kept()
    machine.at(1200)
    times = RunTimes(path, lambda: machine.now)
    machine.at(1205)
    with times.stage("rollouts"):
        machine.at(1215)
        times.units()
        machine.at(1255)
        times.kept()
        machine.at(1260)
    never.enter_context(times.stage("align"))
    machine.at(1280)
    times.training([])
    machine.at(1300, compile_s=5)
    times.row(row(1, input=1, host=2, device=12, compile=5, save=0))
    machine.at(1360, save_s=10)
    times.row(row(2, input=1, host=2, device=47, compile=0, save=10))
    machine.at(1500)
    times = RunTimes(path, lambda: machine.now)
    rows = [row(1, input=1, host=2, device=12, compile=5, save=0)]
    with times.stage("align"):
        machine.at(1520)
        times.training(rows)
        for step, now in ((2, 1560), (3, 1600)):
            machine.at(now)
            rows.append(row(step, input=0, host=0, device=40, compile=0, save=0))
            last = times.row(rows[-1])
        machine.at(1602)
    with times.stage("report"):
        machine.at(1612)
    times.finish()
    append_lines(path / "metrics.jsonl", rows)
    return last["goodput"]


@pytest.mark.parametrize("where", ["tmp_path", "bucket"])
def test_a_run_that_was_killed_twice(request, machine, where):
    """Every second since the first start counts once, on a disk and in a bucket."""
    path = request.getfixturevalue(where)
    last_row = killed_twice(path, machine)
    result = goodput_of(path)
    assert result is not None
    assert result.starts == 3
    assert result.total_s == 1612 - 1000
    assert result.trained_s == {"align": 15 + 40 + 40}
    # Of the first start, what was on disk: the first 30 s. Then from 1215 to the stage's end.
    assert result.passed_s == {"rollouts": 30 + 45, "report": 10}
    assert result.start_up_s == (10 + 20) + (5 + 10 + 20) + (20 + 2)
    assert (result.compile_s, result.save_s) == (15 + 5, 10)
    # From the last word of a killed start to the next start, and the second row of metrics.
    assert result.lost_s == (1200 - 1075) + (1500 - 1360) + 50
    assert result.share == pytest.approx((95 + 75 + 10) / 612)
    assert last_row == pytest.approx((95 + 75) / 600)


def test_a_kill_while_the_journal_is_written(tmp_path, machine):
    """What is left of the line is cut off."""
    killed_twice(tmp_path, machine)
    complete = (tmp_path / STARTS).read_bytes()
    (tmp_path / STARTS).write_bytes(complete + b'{"event": "spe')
    assert goodput_of(tmp_path).total_s == 612
    assert (tmp_path / STARTS).read_bytes() == complete


def test_a_finished_run_may_wait(tmp_path, machine):
    """Starting it again changes nothing; the days before a new report do not count."""
    killed_twice(tmp_path, machine)
    before = (tmp_path / STARTS).read_bytes()
    machine.at(50_000)
    RunTimes(tmp_path, lambda: machine.now).finish()
    assert (tmp_path / STARTS).read_bytes() == before
    times = RunTimes(tmp_path, lambda: machine.now)
    with times.stage("report"):
        machine.at(50_008)
    times.finish()
    result = goodput_of(tmp_path)
    assert (result.total_s, result.passed_s["report"], result.lost_s) == (620, 18, 315)


def test_a_stop_keeps_what_was_counted(tmp_path, machine):
    """A stop on request writes at once; only the time until the next start is lost."""
    times = RunTimes(tmp_path, lambda: machine.now)

    def stage():
        with times.stage("rollouts"):
            machine.at(2)
            times.units()
            machine.at(32)
            times.kept()
            raise shutdown.Stopped

    with pytest.raises(shutdown.Stopped):
        stage()
    assert goodput_of(tmp_path).passed_s == {"rollouts": 30}


def test_a_start_says_on_what(tmp_path, machine):
    with RunTimes(tmp_path, lambda: machine.now).stage("pairs"):
        pass
    start = read_lines(tmp_path / STARTS)[0]
    machine_keys = {"processes": 1, "devices": 8, "kind": "cpu"}
    assert {key: start[key] for key in machine_keys} == machine_keys
    assert start.keys() - machine_keys.keys() <= {"event", "time", "version"}


def test_stages_of_a_work_directory_are_followed(tmp_path, machine, monkeypatch):
    """Bars begin the units of a stage, rows of metrics are training; skipped stages add nothing."""
    workdir = Workdir.open(Experiment(workdir=str(tmp_path / "run")))
    workdir.times = RunTimes(workdir.path, lambda: machine.now)
    assert not (workdir.path / STARTS).exists()

    def answer():
        machine.at(4)
        with workdir.bar("rollouts", 2, "prompt") as bar:
            machine.at(10)
            bar.update(2)
        return "answered"

    def train():
        log = workdir.metrics("align")
        machine.at(11)
        log.forget_after(0)
        machine.at(19)
        log.write(1, {"time/input": 0.0, "time/host": 1.0, "time/device": 7.0})
        return "trained"

    for _ in range(2):
        workdir.run_stage(Stage("rollouts", "a", answer))
        workdir.run_stage(Stage("align", "a", train))
    workdir.times.finish()
    result = goodput_of(workdir.path)
    assert result.passed_s == {"rollouts": 6}
    assert result.trained_s == {"align": 8}
    assert (result.start_up_s, result.lost_s, result.total_s) == (5, 0, 19)
    assert workdir.read_metrics()[0]["goodput"] == pytest.approx(14 / 19)


def test_a_run_that_starts_over_forgets_its_starts(tmp_path):
    """Its files are set aside, the journal of starts with them."""
    workdir = Workdir.open(Experiment(workdir=str(tmp_path / "run")))
    workdir.run_stage(Stage("base", "a", lambda: "first"))
    again = Workdir.open(Experiment(workdir=str(tmp_path / "run")))
    again.start_over("base", "b", "the base changed")
    again.run_stage(Stage("base", "b", lambda: "second"))
    assert goodput_of(again.path).starts == 1
    assert (again.path / "set-aside" / "1" / STARTS).exists()


def test_saving_counts_once(monkeypatch):
    """A save that first waits for the one before is one pause; compiling in it is compiling."""
    now = [0.0]
    monkeypatch.setattr(overhead.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(overhead, "_compiling", [])
    before = overhead.overhead()
    with overhead.saving():
        with overhead.saving():
            now[0] += 2
        now[0] += 0.5
        overhead._count("/jax/core/compile/backend_compile_duration", 0.5)
        overhead._count("/jax/checkpoint/write/async/blocking_duration_secs", 0.5)
        now[0] += 1
    after = overhead.overhead()
    assert after.save_s - before.save_s == pytest.approx(3)
    assert after.compile_s - before.compile_s == pytest.approx(0.5)


def test_compiling_counts_once(monkeypatch):
    """Tracing a function includes that of the functions it calls, which end first."""
    now = [0.0]
    monkeypatch.setattr(overhead.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(overhead, "_compiling", [])
    before = overhead.overhead().compile_s
    for end, event, seconds in (
        (3, "jaxpr_trace_duration", 1),
        (5, "jaxpr_trace_duration", 1),
        (6, "jaxpr_trace_duration", 6),
        (8, "jaxpr_to_mlir_module_duration", 1),
        (20, "backend_compile_duration", 10),
    ):
        now[0] = end
        overhead._count(f"/jax/core/compile/{event}", seconds)
    assert overhead.overhead().compile_s - before == pytest.approx(6 + 1 + 10)


def test_what_jax_calls_compiling():
    """The events of the installed version are those that are counted."""
    before, start = overhead.overhead().compile_s, time.monotonic()
    jax.jit(lambda x: jax.jit(lambda y: y * 3)(x) + 1)(np.ones(7))
    compiled_s = overhead.overhead().compile_s - before
    assert 0 < compiled_s < time.monotonic() - start
    again = jax.jit(lambda x: x - 1)
    again(np.ones(7))
    before = overhead.overhead().compile_s
    again(np.ones(7))
    assert overhead.overhead().compile_s == before


def test_what_people_see(tmp_path, machine):
    """The terminal's last lines and the page give the same parts; they add up."""
    killed_twice(tmp_path, machine)
    (tmp_path / "stages.json").write_text(
        json.dumps({"align": {"seconds": 102, "devices": 1, "summary": ""}})
    )
    result = goodput_of(tmp_path)
    line = goodput_line(result)
    assert line == (
        "29.4 % of 10 min 12 s in 3 starts: training 15.5 %, answering 12.3 %, other stages 1.6 %, "
        "start-up 14.2 %, compiling 3.3 %, saving 1.6 %, lost to restarts 51.5 %"
    )
    rows = [{"pairs/s": 1.0} | r for r in read_lines(tmp_path / "metrics.jsonl")]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert f"        goodput {line}\n" in closing_summary(tmp_path, ReportOptions())
    parts = time_parts(result)
    assert sum(seconds for _, seconds, _ in parts) == result.total_s
    page = render(ReportData("title", "", times=tuple(TimeShare(*part) for part in parts)))
    assert "29.4 % of the 10 min 12 s since the run was first started" in page
    assert page.index("Training</th>") < page.index("Other stages</th>") < page.index("Start-up<")
    assert "Evaluating" not in page  # it took no time
    assert "goodput" not in render(ReportData("title", "")).lower()
