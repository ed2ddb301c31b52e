"""The work directory of a run: its config, its finished stages, its metrics.

A finished stage is skipped when its fingerprint (a hash of what it depends on) equals the recorded
one. If files that it left are missing, they are made again as soon as a stage that has to run needs
them; results of the run are made again at once, and checkpoints never. A work directory belongs to
one config; another one is refused, and the fields that differ are named.

What lives here: `Workdir`. What does not: what a stage is (`stage.py`), which stages there are
(`seva_jax/train.py`), what is taken of other runs (`taken.py`).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import jax

from seva_jax.config import (
    Experiment,
    flatten,
    to_source,
)
from seva_jax.run.leaves import Leaves
from seva_jax.run.other_config import ANSWERS, answers_fit, changed_fields
from seva_jax.run.stage import FORMAT, Stage, instead_of
from seva_jax.run.taken import (
    OtherRuns,
    Taken,
    copy_stage,
    named_runs,
    remove_files,
)
from seva_jax.runtime import LoggedPair, LoggedRun, Logger, LogWriter, lock, shutdown
from seva_jax.runtime.files import (
    append_lines,
    read_json,
    read_lines,
    replace_lines,
    write_json,
    write_text,
)
from seva_jax.runtime.goodput import RunTimes
from seva_jax.runtime.paths import hide_home
from seva_jax.runtime.processes import barrier, gather, on_first_process, say
from seva_jax.runtime.profiler import profiler
from seva_jax.runtime.progress import Progress
from seva_jax.runtime.run_records import read_metrics, read_stages
from seva_jax.runtime.stores import as_path, remove, require_bucket
from seva_jax.training.health import NOTES
from seva_jax.types import DataError

TAKING = "taking.json"  # there while the files of a stage are being copied from another run
LOGS = "logs"  # folder for what launch/worker.py keeps of what the processes print


@dataclasses.dataclass
class Workdir:
    """Paths and records of one run. Only process 0 writes.

    Attributes:
        path: the directory.
        writes: whether this process writes.
        others: runs whose stages may serve this one; None if there are none.
        loggers: where metrics go in addition to metrics.jsonl.
        config: the run's config for the loggers: dotted field names and plain values.
        times: where the time goes, see `runtime/goodput.py`.
    """

    path: Path
    writes: bool
    others: OtherRuns | None = dataclasses.field(default=None, compare=False)
    loggers: tuple[Logger, ...] = ()
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    _writers: list[LogWriter] | None = dataclasses.field(default=None, compare=False)
    times: RunTimes = dataclasses.field(init=False, compare=False, repr=False)
    _changed: Sequence[str] = dataclasses.field(default=(), compare=False)
    # Stages that were done before but whose files are missing, and which files.
    _lost: dict[str, tuple[Stage, str]] = dataclasses.field(
        default_factory=dict, init=False, compare=False, repr=False
    )

    def __post_init__(self) -> None:
        self.times = RunTimes(self.path if self.writes else None)

    @classmethod
    def open(cls, experiment: Experiment, siblings: Sequence[Path] = ()) -> Workdir:
        """Creates the directory or returns to it, and claims it; see `of` and `begin`."""
        self = cls.of(experiment, siblings)
        self.begin(experiment)
        return self

    @classmethod
    def of(cls, experiment: Experiment, siblings: Sequence[Path] = ()) -> Workdir:
        """Returns the directory of a run, which may not be there yet; writes nothing.

        Args:
            experiment: the run's config.
            siblings: work directories of runs of the same sweep, whose finished stages may serve
                this one, like those that `take_from` names.

        Raises:
            DataError: the directory belongs to another config that has finished a stage, and the
                differing fields are named with both values; or to version 0.1; or another process
                is writing there.
        """
        path = as_path(experiment.workdir)
        on_first_process(lambda: require_bucket(path))
        wanted = json.loads(json.dumps(flatten(experiment)))
        named = on_first_process(lambda: [str(x) for x in named_runs(experiment)])
        others = OtherRuns(experiment, wanted, [as_path(x) for x in named], siblings)
        self = cls(path, jax.process_index() == 0, others, experiment.loggers, wanted)
        on_first_process(lambda: lock.require_free(path))
        file = path / "config.json"
        if file.exists():
            there = read_json(file)
            changed = changed_fields(path, there, wanted, experiment)
            if changed and self.stages():
                raise DataError(
                    f"{path} holds a run with another config:\n  "
                    + "\n  ".join(changed)
                    + "\nchoose another --workdir, or delete that one"
                )
            self._changed = changed
        elif self.writes:
            # Of a kill in `begin`; logs of a start that failed before it got here.
            leftovers = {lock.NAME, "config.json.tmp", LOGS}
            if path.is_dir() and any(x.name not in leftovers for x in path.iterdir()):
                raise DataError(
                    f"{path} is not empty and holds no run; choose another --workdir"
                    f"{instead_of(path)}"
                )
        return self

    def begin(self, experiment: Experiment) -> None:
        """Creates the directory if need be, claims it, and records the config.

        If what is there belongs to another config and no stage has finished, it is set aside; only
        answers that do not depend on what has changed are kept.

        Args:
            experiment: the run's config.

        Raises:
            DataError: it cannot be created, or another process is writing there.
        """
        if self.writes:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise DataError(f"workdir {self.path} cannot be created: {error}") from None
        self.claim()
        if self._changed:
            self._take_over()
        if self.writes:
            # First, because it makes the directory a run's.
            write_json(self.path / "config.json", {"format": FORMAT} | self.config)
            write_text(self.path / "config.py", to_source(experiment))

    def _take_over(self) -> None:
        """Makes room for a changed config where no stage has finished."""
        kept = {lock.NAME, LOGS, "config.json", "config.py"}
        aside = self._set_aside(kept | {ANSWERS} if answers_fit(self._changed) else kept)
        begun = f"; what it had begun is in {aside}" if aside else ""
        changed = "; ".join(self._changed[:3]) + "; ..." * (len(self._changed) > 3)
        say(f"{self.path}: no stage had finished there, so its config changes ({changed}){begun}")

    def _set_aside(self, kept: Collection[str], last: str = "") -> Path | None:
        """Moves what is in the directory to a new folder in it, and returns that folder.

        Args:
            kept: names of the files and folders that stay.
            last: name of the one that is moved last, so that the rest is moved, too, after a kill
                in between.

        Returns:
            The same on every process; None if there was nothing to move.
        """
        aside = self.path / "set-aside"
        stay = {aside.name, *kept}

        def move() -> str:
            entries = [entry for entry in self.path.iterdir() if entry.name not in stay]
            if not entries:
                return ""
            folder = aside / str(1 + sum(1 for _ in aside.glob("*")))
            folder.mkdir(parents=True)
            for entry in sorted(entries, key=lambda entry: entry.name == last):
                entry.rename(folder / entry.name)
            return str(folder)

        moved = on_first_process(move)
        return as_path(moved) if moved else None

    def claim(self) -> None:
        """Makes this run the one that writes here, see `lock.claim`; process 0 does it for all.

        Raises:
            DataError: another process is writing here; the same on every process.
        """
        if news := on_first_process(lambda: lock.claim(self.path)):
            say(news)

    def stages(self) -> dict[str, dict[str, Any]]:
        """Returns finished stages by name: fingerprint, seconds, devices, summary.

        One that was taken from another run also has "source", that run's directory.
        """
        return read_stages(self.path)

    def run_stage(self, stage: Stage) -> None:
        """Runs a stage unless it has finished with the same fingerprint, here or in another run.

        Raises:
            DataError: it trained before, and its checkpoint is missing.
        """
        done = self.stages().get(stage.name)
        if done and done["fingerprint"] == stage.depends_on:
            self._look_for_files(stage, done)
        elif not self._take(stage):
            self._run(stage)
        if stage.journal and self.writes and all((self.path / x).exists() for x in stage.leaves):
            remove(self.path / stage.journal)

    def _run(self, stage: Stage) -> None:
        for name in stage.needs:
            if name in self._lost:
                self._make_again(*self._lost.pop(name), f" and {stage.name} needs it")
        shutdown.raise_if_stopping()
        say(f"▶ {stage.name}")
        start = time.monotonic()
        with self.times.stage(stage.name), profiler.stage(stage.name):
            summary = hide_home(stage.run())
        seconds = time.monotonic() - start
        record = {"seconds": seconds, "devices": jax.device_count(), "summary": summary}
        if stage.trains and self.writes:
            record["step"] = max(Leaves(self.path).steps(stage.leaves[0]), default=None)
        self._finish(stage.name, {"fingerprint": stage.depends_on} | record)
        say(f"■ {stage.name}: {summary} ({seconds:.0f} s)")

    def _look_for_files(self, stage: Stage, done: dict[str, Any]) -> None:
        """Does what is needed if files of a finished stage are missing."""
        missing = on_first_process(lambda: self._leaves.missing(stage.leaves, done.get("step")))
        line = f"■ {stage.name}: done before ({done['summary']})"
        if not missing:
            say(line)
            return
        also = [] if stage.trains else self._missing_inputs(stage)
        if stage.if_missing == "require" and also:
            raise DataError(
                f"{self.path / missing} is missing, and it is made from {also[0][1]}, which is "
                f"missing, too; put back a copy of one of them, or remove {also[0][0]!r} from "
                "stages.json in the work directory and run the same command again, which makes both"
            )
        if stage.if_missing != "note" and not also:
            self._make_again(stage, missing, "")
            return
        more = f" and so is {also[0][1]}" if also else ""
        again = f"if a stage needs it, or if you remove {stage.name!r} from stages.json"
        again = "put back a copy" if stage.trains else f"it is made again {again}"
        say(f"{line}, but {missing} is missing{more}; {again}")
        self._lost[stage.name] = (stage, missing)

    @functools.cached_property
    def _leaves(self) -> Leaves:
        """The files of stages that were done before this process started."""
        return Leaves(self.path)

    def _missing_inputs(self, stage: Stage) -> list[tuple[str, str]]:
        """Returns the stages before this one that took long and whose files are missing."""
        names, inputs = list(stage.needs), []
        while names:
            before, lost = self._lost.get(names.pop(), (None, ""))
            if before is not None:
                inputs += [(before.name, lost)] * bool(before.journal or before.trains)
                names += before.needs
        return inputs

    def _make_again(self, stage: Stage, missing: str, why: str) -> None:
        if stage.trains:
            raise DataError(
                f"{self.path / missing} is missing, which {stage.name!r} left{why}; put back a "
                f"copy, or remove {stage.name!r} from stages.json in the work directory and run "
                "the same command again, which trains what is missing"
            )
        say(f"  {stage.name}: {missing} is missing{why}; it is made again")
        self._run(stage)

    def _finish(self, name: str, record: dict[str, Any]) -> None:
        if self.writes:
            write_json(self.path / "stages.json", self.stages() | {name: record})
        barrier(name)

    def _take(self, stage: Stage) -> bool:
        """Copies a stage from another run that finished it from the same inputs, if one did."""
        others = self.others
        if others is None or not stage.leaves or not stage.shared:
            return False
        taken, note = on_first_process(lambda: self._copy_from(others, stage))
        taken = Taken(**taken)
        for line in taken.lines:
            say(line)
        if note:
            say(note)
        if not taken.source:
            return False
        self._finish(stage.name, {**taken.record, "source": hide_home(taken.source)})
        line = f"■ {stage.name}: taken from {taken.source} ({taken.record['summary']})"
        if taken.missing:
            self._lost[stage.name] = (stage, taken.missing)
            line += f", but {taken.missing} is missing there; it is made again if a stage needs it"
        say(line)
        return True

    def _copy_from(self, others: OtherRuns, stage: Stage) -> tuple[dict[str, Any], str]:
        """Copies a stage if it fits; on process 0. Returns what was found, and a note."""
        marker = self.path / TAKING
        if marker.exists() and read_json(marker)["stage"] == stage.name:
            remove_files(self.path, stage)  # of a copy that was killed
        elif any((self.path / file).exists() for file in stage.leaves):
            return dataclasses.asdict(Taken()), ""
        own = self.stages()
        taken, note = others.find(stage, own), ""
        if taken.source and not taken.missing:
            write_json(marker, {"stage": stage.name, "source": hide_home(taken.source)})
            copy_stage(as_path(taken.source), self.path, stage)
        remove(marker)
        if not taken.source:
            note = others.take_journal(stage, self.path, own)
        return dataclasses.asdict(taken), note

    def start_over(self, name: str, depends_on: str, why: str) -> None:
        """Sets everything aside if a stage, the first one, has finished with another fingerprint.

        Args:
            name: the stage.
            depends_on: fingerprint of its inputs now.
            why: what may have changed, for people.
        """
        done = self.stages().get(name)
        again = done is not None and done["fingerprint"] != depends_on
        if not gather(again)[0]:
            return
        records = {lock.NAME, LOGS, "config.json", "config.py"}
        aside = self._set_aside(records, last="stages.json")
        say(f"{self.path}: {why}; its files are now in {aside}, and every stage runs again")

    def read_metrics(self) -> list[dict[str, Any]]:
        """Returns the rows of metrics.jsonl, see `run_records.read_metrics`."""
        return read_metrics(self.path)

    def bar(self, name: str, total: int, unit: str, initial: int = 0) -> Progress:
        """Returns the progress of work whose finished units are kept; shown by process 0 alone."""
        self.times.units()
        return Progress(name, total, unit, initial, self.writes, self.times.kept)

    def metrics(self, stage: str) -> StageMetrics:
        """Returns the rows of metrics of a stage, and opens the loggers."""
        return StageMetrics(self, stage, self._open_writers() if self.writes else ())

    def log_pairs(self, pairs: Callable[[], Sequence[LoggedPair]]) -> None:
        """Shows a few pairs to the loggers, once in a run; process 0 only.

        Args:
            pairs: makes them; called only if a logger will show them.
        """
        if not self.writes or not self.loggers:
            return
        if not any(row["stage"] == "align" for row in self.read_metrics()):
            shown = pairs()
            for writer in self._open_writers():
                writer.pairs(shown)

    def _open_writers(self) -> list[LogWriter]:
        if self._writers is None:
            rows = read_lines(self.path / "metrics.jsonl") if self.loggers else []
            run = LoggedRun(self.path, self.config, len(rows))
            self._writers = [logger.open(run) for logger in self.loggers]
        return self._writers

    def close(self) -> None:
        """Ends logging, and lets other processes write here."""
        for writer in self._writers or ():
            writer.close()
        self._writers = None
        lock.release(self.path)


class StageMetrics:
    """The rows of metrics of one stage: a JSON line each, and a row for every logger.

    Attributes:
        workdir: where they are written.
        stage: name of the stage.
        past: rows written by an earlier attempt; on process 0 only.
    """

    def __init__(self, workdir: Workdir, stage: str, writers: Sequence[LogWriter]) -> None:
        self.workdir, self.stage, self._writers = workdir, stage, writers
        rows = workdir.read_metrics() if workdir.writes else []
        self.past = [row for row in rows if row["stage"] == stage]

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes the row of a step, with the goodput so far; on process 0 only."""
        if not self.workdir.writes:
            return
        at = {"stage": self.stage, "step": step}
        values = values | self.workdir.times.row(at | values)
        append_lines(self.workdir.path / "metrics.jsonl", [at | values])
        for writer in self._writers:
            writer.scalars(self.stage, step, values)

    def forget_after(self, step: int) -> None:
        """Drops what was written of later steps, which an interrupted process lost."""
        if not self.workdir.writes:
            return
        for name in ("metrics.jsonl", *NOTES):
            path = self.workdir.path / name
            rows = read_lines(path)
            kept = [row for row in rows if row["stage"] != self.stage or row["step"] <= step]
            if len(kept) < len(rows):
                replace_lines(path, kept)
        self.workdir.times.training(self.workdir.read_metrics())
