"""Goodput: the share of the time since a run was first started that went into work it kept.

What lives here: `RunTimes`, which follows a run and keeps `starts.jsonl`, and `Goodput`, computed
from that file and the rows of metrics. What does not: the time of single steps
(`seva_jax/training/step_times.py`).

Exactly, by the clock of process 0:

- The *total* is the time from the first start (when it opened the work directory) to the end of the
  run, down time after a kill included; to now, while it runs. Time between a finished run and a
  later start with other report options, say, does not count.
- *Kept work* is productive time. In training it is the time of the steps whose rows of metrics are
  kept, except compiling and saving ("time/input", "time/host" and "time/device" of the rows);
  steps that a kill lost count when they are trained again. In other stages it is the time from the
  first unit of work (an answer, a batch) to the last one kept, except compiling; all of the stage
  if it has no units.
- *Start-up* is the time of a start, or of a stage, before its first unit of work, except compiling:
  loading data and weights, restoring a checkpoint.
- *Compiling* and *saving* are what the main thread spent on them (`overhead.py`).
- *Lost to restarts* is the rest: down time, and work that a kill lost. A kill also loses what the
  numbers of `starts.jsonl` gained since they were last written. That happens when a stage ends and,
  at most once a minute, when a unit of work or a row of metrics is kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from seva_jax.runtime import shutdown
from seva_jax.runtime.files import append_lines, read_lines
from seva_jax.runtime.overhead import overhead
from seva_jax.runtime.run_records import read_metrics

STARTS = "starts.jsonl"  # in the work directory: a line for each start, and what it spent
_EVERY_S = 60.0  # between lines about what a start has spent

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Goodput:
    """Where the time of a run went, over all of its starts; seconds.

    Attributes:
        starts: how often it was started.
        total_s: time since the first start.
        trained_s: kept work of training, by stage.
        passed_s: other kept work, by stage.
        start_up_s: start-up.
        compile_s: compiling.
        save_s: saving.
    """

    starts: int
    total_s: float
    trained_s: Mapping[str, float]
    passed_s: Mapping[str, float]
    start_up_s: float
    compile_s: float
    save_s: float

    @property
    def kept_s(self) -> float:
        """All kept work."""
        return sum(self.trained_s.values()) + sum(self.passed_s.values())

    @property
    def lost_s(self) -> float:
        """What restarts cost: down time, and work that was lost."""
        known_s = self.kept_s + self.start_up_s + self.compile_s + self.save_s
        return max(self.total_s - known_s, 0.0)

    @property
    def share(self) -> float:
        """The goodput: kept work over total; 0 at the very start."""
        return self.kept_s / self.total_s if self.total_s > 0 else 0.0


def goodput_of(path: Path) -> Goodput | None:
    """Returns where the time of a run went, up to what it wrote last; None if it never started.

    Args:
        path: the work directory.

    Raises:
        DataError: see `read_lines`.
    """
    lines = read_lines(path / STARTS)
    return _goodput(lines, _trained_s(read_metrics(path))) if lines else None


def _trained_s(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Returns the productive seconds of rows of metrics, by stage."""
    seconds: dict[str, float] = {}
    for row in rows:
        kept = sum(row.get(f"time/{part}", 0.0) for part in ("input", "host", "device"))
        seconds[row["stage"]] = seconds.get(row["stage"], 0.0) + kept
    return seconds


def _goodput(lines: Iterable[Mapping[str, Any]], trained_s: Mapping[str, float]) -> Goodput:
    """Adds up what every start has spent.

    Args:
        lines: those of `starts.jsonl`, in order.
        trained_s: see `_trained_s`.
    """
    total_s, begun_s, last_s = 0.0, None, 0.0
    starts: list[Mapping[str, Any]] = []  # of each, its last line about what it spent
    for line in lines:
        last_s = line["time"]
        if line["event"] == "start":
            begun_s = last_s if begun_s is None else begun_s
            starts.append({})
        elif line["event"] == "spent":
            starts[-1] = line
        elif begun_s is not None:
            total_s, begun_s = total_s + last_s - begun_s, None
    if begun_s is not None:
        total_s += last_s - begun_s
    passed_s: dict[str, float] = {}
    for spent in starts:
        for stage, seconds in spent.get("kept", {}).items():
            passed_s[stage] = passed_s.get(stage, 0.0) + seconds
    start_up_s, compile_s, save_s = (
        sum(spent.get(name, 0.0) for spent in starts) for name in ("start-up", "compile", "save")
    )
    return Goodput(len(starts), total_s, trained_s, passed_s, start_up_s, compile_s, save_s)


class RunTimes:
    """Follows one start of a run and writes what it spends to `starts.jsonl`.

    Nothing is written until a stage runs, so starting a finished run again changes nothing.

    Args:
        path: the work directory; None, on processes other than 0, writes nothing.
        clock: returns the time, seconds since the epoch.
    """

    def __init__(self, path: Path | None, clock: Callable[[], float] = time.time) -> None:
        self._path, self._clock = path, clock
        self._opened_s = self._mark_s = self._written_s = clock()  # the mark: counted up to here
        self._mark_overhead = overhead()
        self._lines: list[Record] = []  # once the start is on record
        self._spent = {"start-up": 0.0, "compile": 0.0, "save": 0.0}
        self._kept_s: dict[str, float] = {}
        self._trained_s: dict[str, float] = {}
        self._stage, self._in_units, self._training = "", False, False

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Counts the time of the body as that of a stage."""
        if not self._lines:
            self._start()
        self._count("start-up")
        self._stage, self._in_units, self._training = name, False, False
        try:
            yield
        except shutdown.Stopped:
            self._write()
            raise
        finally:
            self._stage = ""
        self._count("start-up" if self._training else name)
        self._write()

    def _start(self) -> None:
        earlier = read_lines(self._path / STARTS) if self._path else []
        start: Record = {
            "event": "start",
            "time": self._opened_s,
            "processes": jax.process_count(),
            "devices": jax.device_count(),
            "kind": jax.devices()[0].device_kind,
        }
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # from a source tree
            start["version"] = importlib.metadata.version("seva_jax")
        if self._path:
            append_lines(self._path / STARTS, [start])
        # Of lines about what one start spent, the last suffices.
        followed = itertools.pairwise([*earlier, start])
        kept = [x for x, after in followed if (x["event"], after["event"]) != ("spent", "spent")]
        self._lines = [*kept, start]

    def _count(self, what: str) -> None:
        """Counts the time since the mark, without overhead, as start-up or kept work of a stage.

        Args:
            what: "start-up"; or the stage; "" for training, where rows of metrics have the time.
        """
        now_s, total = self._clock(), overhead()
        compile_s = total.compile_s - self._mark_overhead.compile_s
        save_s = total.save_s - self._mark_overhead.save_s
        seconds = max(now_s - self._mark_s - compile_s - save_s, 0.0)
        self._mark_s, self._mark_overhead = now_s, total
        self._spent["compile"] += compile_s
        self._spent["save"] += save_s
        if what == "start-up":
            self._spent[what] += seconds
        elif what:
            self._kept_s[what] = self._kept_s.get(what, 0.0) + seconds

    def units(self) -> None:
        """Records that a stage begins with its units of work; does nothing outside of stages."""
        if self._stage and not self._in_units:
            self._in_units = True
            self._count("start-up")

    def kept(self) -> None:
        """Records that all units of work so far are on disk; does nothing outside of stages."""
        if self._stage:
            self._count(self._stage)
            self._write_if_due()

    def training(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Records that a stage begins to train; does nothing outside of stages.

        Args:
            rows: the rows of metrics that are kept.
        """
        if self._stage:
            self._training = True
            self._count("start-up")
            self._trained_s = _trained_s(rows)

    def row(self, row: Mapping[str, Any]) -> dict[str, float]:
        """Counts a row of metrics and returns what is added to it: the goodput of the run so far.

        Returns nothing outside of stages.
        """
        if not self._stage:
            return {}
        self._count("")
        for stage, seconds in _trained_s([row]).items():
            self._trained_s[stage] = self._trained_s.get(stage, 0.0) + seconds
        self._write_if_due()
        return {"goodput": _goodput([*self._lines, self._line()], self._trained_s).share}

    def _line(self) -> Record:
        return {"event": "spent", "time": self._mark_s, **self._spent, "kept": dict(self._kept_s)}

    def _write_if_due(self) -> None:
        if self._mark_s - self._written_s >= _EVERY_S:
            self._write()

    def _write(self) -> None:
        self._written_s = self._mark_s
        if self._path:
            append_lines(self._path / STARTS, [self._line()])

    def finish(self) -> None:
        """Records that the run is finished; does nothing if no stage ran."""
        if self._lines and self._path:
            self._count("start-up")
            end = {"event": "finished", "time": self._mark_s}
            append_lines(self._path / STARTS, [self._line(), end])
            self._lines = []
