"""Takes traces of a run: of training steps (`--profile 10:13`) or of what runs now (SIGUSR1).

Loops call `next_unit` between two units of work: a training step, a batch of a pass, a round of
rollouts. A trace begins and ends there, after the devices have finished what they were given, so it
holds whole units. It is written to WORKDIR/profiles/NAME in the layout that TensorBoard and xprof
open, with the file that https://ui.perfetto.dev opens and a summary (`trace_summary.py`).

Nothing here needs the other processes: `--profile` traces each of them at the same steps, a signal
traces the process that receives it. A trace that cannot be taken or written does not end a run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import json
import re
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from seva_jax.runtime.files import write_json
from seva_jax.runtime.paths import hide_home
from seva_jax.runtime.run_records import SUMMARY
from seva_jax.runtime.stores import make_folder
from seva_jax.runtime.trace_events import DETAILS, EVENTS, WAITING, read_trace
from seva_jax.runtime.trace_summary import summarise
from seva_jax.runtime.trace_table import trace_table
from seva_jax.types import DataError

_UNITS = 3  # traced after a signal
_STEPS = re.compile(r"(\d+):(\d+)")


def traced_steps(text: str) -> range:
    """Returns the steps to trace; empty if the text is.

    >>> traced_steps("10:13")
    range(10, 13)

    Raises:
        DataError: the text has another form, or names no step.
    """
    match = _STEPS.fullmatch(text)
    steps = range(int(match[1]), int(match[2])) if match else range(0)
    if text and (not steps or steps.start < 1):
        raise DataError(
            f"profile must be FIRST:END, such as 10:13 for the steps 10, 11 and 12, not {text!r}"
        )
    return steps


class Profiler:
    """Traces units of work of this process when asked to; there is one, `profiler`."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._steps = range(0)
        self._stage = ""
        self._number = 0  # of the unit, counted from the beginning of the stage or by its loop
        self._trained = range(0)  # steps of the stage that this process has begun
        self._signals = 0
        self._trace: _Trace | None = None
        self._traced_steps = False

    def use(self, folder: Path, steps: range) -> None:
        """Sets where traces go, and which steps of each training are traced."""
        self._folder, self._steps = folder, steps

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Takes a trace whenever SIGUSR1 arrives while the body runs."""
        # The handler only counts: Python calls it in the middle of anything, such as a print.
        before = signal.signal(signal.SIGUSR1, self._count_signal)
        try:
            yield
        finally:
            signal.signal(signal.SIGUSR1, before)

    def _count_signal(self, *_: object) -> None:
        self._signals += 1

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Names what the body does; a trace that is being taken ends with it, also on errors."""
        self._stage, self._number = name, 0
        self._trained, self._traced_steps = range(0), False
        try:
            yield
        except BaseException:
            self._end(summary=False)  # there may be seconds left before a kill
            raise
        self._end()
        if self._steps and self._trained and not self._traced_steps:
            _say(
                f"{name}: nothing was traced: steps {self._trained.start:,} to "
                f"{self._trained[-1]:,} were trained, and profile is "
                f"{self._steps.start}:{self._steps.stop}"
            )

    def next_unit(self, step: int | None = None) -> None:
        """Begins or ends a trace between two units of work, if it is time to.

        Args:
            step: the step that begins, in training; None elsewhere.
        """
        self._number = self._number + 1 if step is None else step
        if step is not None:
            self._trained = range(self._trained.start or step, step + 1)
        if self._trace and self._number not in self._trace.units:
            self._end()
        if self._signals and self._trace:
            _say("SIGUSR1: a trace is being taken already; the signal is ignored", every=True)
        elif self._signals and self._folder is None:
            _say("SIGUSR1: no run is open whose work could be traced", every=True)
        elif self._signals:
            when = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
            self._begin(range(self._number, self._number + _UNITS), when, alone=True)
        elif not self._trace and step is not None and step in self._steps:
            self._traced_steps = True
            self._begin(self._steps, f"{self._steps.start}-{self._steps.stop}")
        self._signals = 0
        if self._trace:
            self._trace.mark(self._stage, self._number)

    def waiting_for_input(self) -> contextlib.AbstractContextManager[Any]:
        """Marks in the trace that the loop waits for its next batch while the body runs."""
        return jax.profiler.TraceAnnotation(WAITING)

    def _begin(self, units: range, suffix: str, alone: bool = False) -> None:
        assert self._folder is not None
        folder = self._folder / f"{self._stage or 'run'}-{suffix}".replace(" ", "-")
        with _problems():
            self._trace = _Trace(folder, units, alone)
            if alone:
                what = f"{self._stage}, {_UNITS} units of work"
                _say(f"SIGUSR1: tracing {what}: {folder}", every=True)

    def _end(self, summary: bool = True) -> None:
        trace, self._trace = self._trace, None
        if trace is not None:
            with _problems():
                trace.end(summary)


class _Trace:
    """A trace that is being taken.

    Args:
        folder: where it is written at the end.
        units: numbers of the units that it holds.
        alone: whether only this process takes it.
    """

    def __init__(self, folder: Path, units: range, alone: bool) -> None:
        self.units, self._folder, self._alone = units, folder, alone
        self._mark: Any = None
        _finish_device_work()
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # every Python call: large, and slows the loop down
        self._local = tempfile.TemporaryDirectory(prefix="seva_jax_trace_")
        try:
            jax.profiler.start_trace(self._local.name, profiler_options=options)
        except BaseException:
            self._local.cleanup()
            raise

    def mark(self, name: str, number: int) -> None:
        """Marks in the trace that a unit begins."""
        self._close_mark()
        self._mark = jax.profiler.StepTraceAnnotation(name, step_num=number)
        self._mark.__enter__()

    def _close_mark(self) -> None:
        if self._mark is not None:
            self._mark.__exit__(None, None, None)
            self._mark = None

    def end(self, summary: bool) -> None:
        """Ends the trace and writes its files.

        Args:
            summary: whether to summarise it and to print that.
        """
        with self._local:
            try:
                if summary:
                    _finish_device_work()
            finally:
                self._close_mark()
                jax.profiler.stop_trace()
            name = self._write()
            where = f"xprof --logdir {self._folder} (or tensorboard)"
            if not summary:
                again = f"python -m seva_jax.report profile {self._folder}"
                _say(f"a trace was taken: {again} summarises it, {where} shows it", self._alone)
            elif self._alone or jax.process_index() == 0:
                local = next(Path(self._local.name).rglob(f"*{EVENTS}"))
                result = summarise([read_trace(local)])
                write_json(self._folder / SUMMARY, dataclasses.asdict(result))
                perfetto = f"https://ui.perfetto.dev opens its {name}{DETAILS}"
                _say(f"{trace_table(result)}\n  all of it: {where}; {perfetto}", self._alone)

    def _write(self) -> str:
        """Copies the files of this process to their folder; returns their name without ending."""
        # JAX names the files after hosts, of which several processes may share one.
        name = f"process_{jax.process_index()}"
        folder = self._folder / "plugins" / "profile" / self._folder.name
        make_folder(folder)
        for file in Path(self._local.name).rglob(f"*{EVENTS}"):
            (folder / f"{name}{EVENTS}").write_bytes(file.read_bytes())
        for file in Path(self._local.name).rglob(f"*{DETAILS}"):
            trace = json.loads(gzip.decompress(file.read_bytes()))
            trace.pop("metadata", None)  # Perfetto does not open files with it
            packed = gzip.compress(json.dumps(trace).encode(), 1, mtime=0)
            (folder / f"{name}{DETAILS}").write_bytes(packed)
        return name


def _finish_device_work() -> None:
    """Waits until the devices have computed all arrays, such as the state of a training."""
    jax.block_until_ready([array for array in jax.live_arrays() if not array.is_deleted()])


@contextlib.contextmanager
def _problems() -> Iterator[None]:
    """Prints what goes wrong with a trace: a run does not end because it cannot be watched."""
    try:
        yield
    except Exception as error:  # the profiler raises several kinds without stable names
        _say(f"profile: {type(error).__name__}: {error}; the run continues", every=True)


def _say(text: str, every: bool = False) -> None:
    """Prints a line, on process 0; on every process if it is about this one alone."""
    process = jax.process_index()
    if process == 0 or every:
        print(hide_home(f"process {process}: {text}" if process else text), flush=True)


profiler = Profiler()
