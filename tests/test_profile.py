"""Traces of a run: `--profile` and SIGUSR1, what they leave, and that nothing else changes.

How traces are read and summed up is in `test_traces.py`.
"""

import contextlib
import gzip
import json
import os
import re
import signal
import sys

import jax
import jax.numpy as jnp
import pytest
from helpers_run import ROOT, assert_same_run, lines, train

from seva_jax.report.__main__ import main as report
from seva_jax.runtime.profiler import Profiler, traced_steps
from seva_jax.runtime.run_records import read_profiles
from seva_jax.runtime.shutdown import Status
from seva_jax.runtime.trace_events import read_trace, trace_files
from seva_jax.types import DataError


@jax.jit
def work(x):
    return (x @ x).sum()


def steps(profiler, numbers, passes=False):
    """Works as a training loop does, or as a pass that does not count steps."""
    for number in numbers:
        profiler.next_unit(None if passes else number)
        with profiler.waiting_for_input():
            x = jnp.full((64, 64), number)
        work(x)


@pytest.fixture
def profiler(tmp_path):
    """Returns a profiler that writes to tmp_path/profiles, with SIGUSR1 watched."""
    profiler = Profiler()
    profiler.use(tmp_path / "profiles", range(0))
    with profiler.watch():
        yield profiler


def ask():
    os.kill(os.getpid(), signal.SIGUSR1)


def traced(folder):
    """Returns the names and numbers of the steps in a trace."""
    (file,) = trace_files(folder)
    return [(step.name, step.number) for step in read_trace(file).steps]


@pytest.mark.parametrize("text", ["10", "3:2", "3:3", "0:2", "a:b", "-1:2", "1:2:3", "1:2 "])
def test_bad_steps(text):
    with pytest.raises(DataError, match="profile must be FIRST:END"):
        traced_steps(text)


def test_no_steps():
    assert not traced_steps("")


def test_steps_of_a_training(profiler, tmp_path, capsys):
    """Exactly the wanted ones are traced; the files have the names that viewers look for."""
    profiler.use(tmp_path / "profiles", range(3, 5))
    with profiler.stage("align"):
        steps(profiler, range(1, 8))
    folder = tmp_path / "profiles" / "align-3-5"
    assert traced(folder) == [("align", 3), ("align", 4)]
    files = {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()}
    inside = "plugins/profile/align-3-5/process_0"
    assert files == {f"{inside}.xplane.pb", f"{inside}.trace.json.gz", "summary.json"}
    # Perfetto reads Chrome's format, and refuses the profiler's own "metadata" in it.
    events = json.loads(gzip.decompress((folder / f"{inside}.trace.json.gz").read_bytes()))
    assert "metadata" not in events
    marks = [e["args"]["step_num"] for e in events["traceEvents"] if e.get("name") == "align"]
    assert marks == ["3", "4"]
    (summary,) = read_profiles(tmp_path).values()
    assert (summary.loop, summary.first, summary.last) == ("align", 3, 4)
    assert sum(summary.shares.values()) == pytest.approx(1)
    printed = capsys.readouterr().out
    assert printed.startswith("profile of align, steps 3 to 4: ")
    assert printed.count("\n") <= 20
    assert str(folder) in printed
    report(["profile", str(folder)])
    assert printed.startswith(capsys.readouterr().out)  # the same, read again


def test_traces_hold_whole_steps(profiler, tmp_path):
    """Devices are behind the loop: it waits for them where a trace begins and where it ends."""
    profiler.use(tmp_path / "profiles", range(3, 5))
    step = jax.jit(lambda x: x @ x, donate_argnums=0)
    state = step(jnp.full((1500, 1500), 1e-3)).block_until_ready()
    with profiler.stage("align"):
        for number in range(1, 7):
            profiler.next_unit(number)
            state = step(state)
    (summary,) = read_profiles(tmp_path).values()
    (product,) = [op for op in summary.ops if op.part == "matrix products"]
    assert product.count == 2


def test_training_that_ends_or_begins_in_between(profiler, tmp_path, capsys):
    """What there is of the steps is traced, and if there is none, a line says why."""
    profiler.use(tmp_path / "profiles", range(3, 6))
    with profiler.stage("ends"):
        steps(profiler, range(1, 5))
    with profiler.stage("resumed"):
        steps(profiler, range(5, 9))
    assert traced(tmp_path / "profiles" / "ends-3-6") == [("ends", 3), ("ends", 4)]
    assert traced(tmp_path / "profiles" / "resumed-3-6") == [("resumed", 5)]
    capsys.readouterr()
    with profiler.stage("late"):
        steps(profiler, range(7, 9))
    with profiler.stage("rollouts"):
        steps(profiler, range(4), passes=True)
    assert capsys.readouterr().out == (
        "late: nothing was traced: steps 7 to 8 were trained, and profile is 3:6\n"
    )


def test_signal(profiler, tmp_path, capsys):
    """It traces the next units of whatever runs; another one meanwhile is ignored."""
    with profiler.stage("evaluate base"):
        steps(profiler, range(2), passes=True)
        ask()
        assert not (tmp_path / "profiles").exists()
        steps(profiler, range(2), passes=True)
        ask()
        steps(profiler, range(4), passes=True)
    (folder,) = (tmp_path / "profiles").iterdir()
    assert re.fullmatch(r"evaluate-base-\d{8}-\d{6}", folder.name)
    assert traced(folder) == [("evaluate base", number) for number in (3, 4, 5)]
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first == f"SIGUSR1: tracing evaluate base, 3 units of work: {folder}"
    assert second == "SIGUSR1: a trace is being taken already; the signal is ignored"
    assert list(read_profiles(tmp_path)) == [folder.name]


def test_signal_that_comes_early(capsys):
    """Before a work directory is open there is nothing to trace."""
    profiler = Profiler()
    with profiler.watch():
        ask()
        steps(profiler, range(2), passes=True)
    assert capsys.readouterr().out == "SIGUSR1: no run is open whose work could be traced\n"


def test_stop_or_error_while_tracing(profiler, tmp_path, capsys):
    """The trace ends and is kept; its summary, which takes time, is left for later."""
    profiler.use(tmp_path / "profiles", range(2, 9))
    with contextlib.suppress(SystemExit), profiler.stage("align"):
        steps(profiler, range(1, 4))
        raise SystemExit(int(Status.STOPPED))
    folder = tmp_path / "profiles" / "align-2-9"
    assert traced(folder) == [("align", 2), ("align", 3)]
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert f"python -m seva_jax.report profile {folder} summarises it" in printed
    assert read_profiles(tmp_path) == {}
    profiler.use(tmp_path / "profiles", range(1, 2))
    with profiler.stage("again"):  # another trace can be taken
        steps(profiler, range(1, 3))
    assert list(read_profiles(tmp_path)) == ["again-1-2"]


def test_trace_that_cannot_be_taken_or_written(profiler, tmp_path, capsys):
    """The run continues."""
    (tmp_path / "profiles").write_text("a file is in the way")
    profiler.use(tmp_path / "profiles", range(2, 3))
    with profiler.stage("align"):
        steps(profiler, range(1, 5))
    printed = capsys.readouterr().out
    assert re.fullmatch(r"profile: \w+Error: .*profiles.*; the run continues\n", printed)
    profiler.use(tmp_path / "more", range(2, 3))
    with jax.profiler.trace(str(tmp_path / "other")), profiler.stage("align"):
        steps(profiler, range(1, 5))
    assert "Only one profile may be run at a time" in capsys.readouterr().out


def test_trace_in_a_bucket(bucket, profiler, capsys):
    """A work directory in an object store gets the same files, which are read from there."""
    profiler.use(bucket / "run" / "profiles", range(2, 4))
    with profiler.stage("align"):
        steps(profiler, range(1, 6))
    folder = bucket / "run" / "profiles" / "align-2-4"
    assert traced(folder) == [("align", 2), ("align", 3)]
    assert list(read_profiles(bucket / "run")) == ["align-2-4"]
    printed = capsys.readouterr().out
    assert f"xprof --logdir {folder} (or tensorboard)" in printed
    report(["profile", str(folder)])
    assert printed.startswith(capsys.readouterr().out)


def test_damaged_summary(tmp_path):
    file = tmp_path / "profiles" / "align-1-2" / "summary.json"
    file.parent.mkdir(parents=True)
    file.write_text('{"loop": "align"}')
    with pytest.raises(DataError, match=r"summary\.json is not a summary of this version"):
        read_profiles(tmp_path)


@pytest.mark.slow
def test_run(whole_run, tmp_path, capsys):
    """The tiny run ends bit for bit as without any trace, and its report has both kinds."""
    workdir = tmp_path / "run"
    with train(whole_run / "cache", workdir, "--profile", "2:4") as run:
        run.when(lambda: "▶ rollouts" in run.output)
        run.send(signal.SIGUSR1)
        assert run.status() == 0, run.output[-3000:]
    assert_same_run(workdir, whole_run / "run")
    profiles = read_profiles(workdir)
    signalled = next(name for name in profiles if name.startswith("rollouts-"))
    assert sorted(profiles) == sorted(["align-2-4", "base-2-4", signalled])
    page = (workdir / "report.html").read_text("utf-8")
    for name, summary in profiles.items():
        assert sum(summary.shares.values()) == pytest.approx(1)
        assert summary.devices == 1
        assert summary.ops
        assert f">{name}</h3>" in page
        report(["profile", str(workdir / "profiles" / name)])
        assert capsys.readouterr().out in run.output
    for stage in ("base", "align"):
        assert profiles[f"{stage}-2-4"].steps == 2
        assert {op.origin for op in profiles[f"{stage}-2-4"].ops} == {"jit_train_step"}
        assert profiles[f"{stage}-2-4"].shares["matrix products"] > 0
    # The same directory resumes without the option, or with another value.
    with train(whole_run / "cache", workdir, "--profile", "5:6") as run:
        assert run.status() == 0, run.output[-3000:]
    assert run.output.count("done before") == 8


@pytest.mark.slow
def test_two_processes(tmp_path):
    """Both are traced, each in files of its own, and summarised together afterwards."""
    local = (sys.executable, str(ROOT / "launch" / "local.py"), "--devices", "1", "--")
    mesh = ("--mesh.data", 2, "--mesh.fsdp", 1)
    with train(
        tmp_path / "cache", tmp_path / "run", *mesh, "--profile", "5:7", launcher=local
    ) as run:
        run.when(lambda: any(r["stage"] == "base" for r in lines(tmp_path / "run/metrics.jsonl")))
        run.when(lambda: (tmp_path / "run/profiles/base-5-7/summary.json").exists())
        run.when(lambda: len(trace_files(tmp_path / "run/profiles")) == 2)
        run.send(signal.SIGTERM)
        run.status()
    files = trace_files(tmp_path / "run/profiles/base-5-7")
    assert [file.name for file in files] == ["process_0.xplane.pb", "process_1.xplane.pb"]
    for file in files:
        assert [step.number for step in read_trace(file).steps] == [5, 6]
    assert run.output.count("profile of base, steps 5 to 6: ") == 1
