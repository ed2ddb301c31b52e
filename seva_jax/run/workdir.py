"""The work directory of a run: its config, its finished stages, its log of metrics.

A finished stage is skipped when its fingerprint (a hash of what it depends on) is the recorded
one. A work directory belongs to one config: another is refused, naming the fields that differ.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from seva_jax.config.experiment import Experiment
from seva_jax.config.source import flatten, to_source
from seva_jax.runtime import lock, shutdown
from seva_jax.runtime.files import append_lines, read_json, read_lines, write_json, write_lines
from seva_jax.runtime.loggers import LoggedPair, LoggedRun, Logger, LogWriter
from seva_jax.runtime.paths import hide_home
from seva_jax.runtime.processes import barrier, gather, say
from seva_jax.runtime.progress import Progress
from seva_jax.runtime.run_records import read_metrics, read_stages
from seva_jax.training.health import NOTES
from seva_jax.types import DataError

# Fields that change neither results nor files, so they may change between runs.
_FREE_FIELDS = (
    "workdir",
    "base.workdir",
    "curriculum",
    "strict",
    "mesh",
    "processes",
    "report",
    "loggers",
    "train.log_every",
    "train.max_nonfinite",
    "train.save_every",
    "train.save_every_s",
    "train.read_processes",
)


def instead_of(path: Path) -> str:
    """What to say where a directory of several stages was named in place of one run's."""
    numbers = [int(p.name) for p in path.glob("*") if p.name.isdecimal()]
    found = [n for n in numbers if (path / str(n) / "config.py").is_file()]
    return f"; it holds several stages, give one, such as {path}/{max(found)}" if found else ""


@dataclasses.dataclass
class Workdir:
    """Paths and records of one run. Only process 0 writes.

    Attributes:
        path: the directory.
        writes: whether this process writes.
        siblings: work directories of runs that may share stages with this one.
        loggers: where metrics go beside metrics.jsonl.
        config: of the run, for the loggers: dotted field names and plain values.
    """

    path: Path
    writes: bool
    siblings: tuple[Path, ...] = ()
    loggers: tuple[Logger, ...] = ()
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    _writers: list[LogWriter] | None = dataclasses.field(default=None, compare=False)

    @classmethod
    def open(cls, experiment: Experiment, siblings: Sequence[Path] = ()) -> Workdir:
        """Creates the directory or returns to it.

        Args:
            experiment: its run.
            siblings: see the attribute.

        Raises:
            DataError: it belongs to another config, and the fields are named with both values;
                or another process is writing there.
        """
        path = Path(experiment.workdir)
        wanted = json.loads(json.dumps(flatten(experiment)))
        self = cls(path, jax.process_index() == 0, tuple(siblings), experiment.loggers, wanted)
        config = path / "config.json"
        if config.exists():
            found = read_json(config)
            changed = [
                f"{k}: {found.get(k, 'absent')!r} there, {wanted.get(k, 'absent')!r} now"
                for k in sorted(found.keys() | wanted.keys())
                if found.get(k) != wanted.get(k)
                and not any(k == f or k.startswith(f + ".") for f in _FREE_FIELDS)
            ]
            if changed:
                raise DataError(
                    f"{path} holds a run with another config:\n  "
                    + "\n  ".join(changed)
                    + "\nchoose another --workdir, or delete that one"
                )
        elif self.writes:
            left = {lock.NAME, "config.json.tmp"}  # by a kill in the lines below
            if path.is_dir() and any(found.name not in left for found in path.iterdir()):
                raise DataError(f"{path} is not empty and holds no run; choose another --workdir")
            try:
                path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise DataError(f"workdir {path} cannot be created: {error}") from None
        self.claim()
        if self.writes:
            write_json(config, wanted)  # first: it is what makes the directory a run's
            (path / "config.py").write_text(to_source(experiment), encoding="utf-8")
        return self

    def claim(self) -> None:
        """Makes this run the one that writes here, see `lock.claim`; process 0 for all.

        Raises:
            DataError: another process is writing here; the same on every process.
        """
        problem, news = "", ""
        if self.writes:
            try:
                news = lock.claim(self.path)
            except DataError as error:
                problem = str(error)
        problem, news = gather((problem, news))[0]
        if problem:
            raise DataError(problem)
        if news:
            say(news)

    def stages(self) -> dict[str, dict[str, Any]]:
        """Finished stages by name: fingerprint, seconds, devices, summary.

        One that was taken from another run also has "source", that run's directory.
        """
        return read_stages(self.path)

    def stage(
        self, name: str, depends_on: str, run: Callable[[], str], files: Sequence[str] = ()
    ) -> None:
        """Runs a stage unless it has finished with the same fingerprint, here or in a sibling.

        Args:
            name: the stage.
            depends_on: fingerprint of its inputs.
            run: does the work and returns a one-line summary.
            files: what the stage leaves and a sibling may use; none keeps it to this run.
        """
        done = self.stages().get(name)
        if done and done["fingerprint"] == depends_on:
            say(f"■ {name}: done before ({done['summary']})")
            return
        if self._adopt(name, depends_on, files):
            return
        shutdown.raise_if_stopping()
        say(f"▶ {name}")
        start = time.monotonic()
        summary = hide_home(run())
        seconds = time.monotonic() - start
        record = {"fingerprint": depends_on, "seconds": seconds, "devices": jax.device_count()}
        self._finish(name, record | {"summary": summary})
        say(f"■ {name}: {summary} ({seconds:.0f} s)")

    def _finish(self, name: str, record: dict[str, Any]) -> None:
        if self.writes:
            write_json(self.path / "stages.json", self.stages() | {name: record})
        barrier(name)

    def _adopt(self, name: str, depends_on: str, files: Sequence[str]) -> bool:
        """Copies a stage from a sibling that finished it from the same inputs, if one did."""
        if not files or any((self.path / file).exists() for file in files):
            return False
        found = (
            (str(sibling), record)
            for sibling in self.siblings
            if (record := read_stages(sibling).get(name))
            and record["fingerprint"] == depends_on
            # One that an earlier version wrote may have other files.
            and all((sibling / file).exists() for file in files)
        )
        source, record = gather(next(found, ("", {})))[0]  # process 0 decides
        if not source:
            return False
        if self.writes:
            for file in files:
                target = self.path / file
                aside = target.with_name(f".{target.name}.tmp")
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.rmtree(aside, ignore_errors=True)  # of a copy that was killed
                copy = shutil.copytree if (Path(source) / file).is_dir() else shutil.copy
                copy(Path(source) / file, aside)
                aside.rename(target)
        self._finish(name, record | {"source": hide_home(source)})
        say(f"■ {name}: taken from {source} ({record['summary']})")
        return True

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
        aside = self.path / "set-aside"
        aside /= str(1 + sum(1 for _ in aside.glob("*")))
        if self.writes:
            aside.mkdir(parents=True)
            kept = {aside.parent.name, lock.NAME, "config.json", "config.py", "stages.json"}
            for found in [path for path in self.path.iterdir() if path.name not in kept]:
                found.rename(aside / found.name)
            # Last, so that a kill in between is noticed, and the rest goes aside, too.
            (self.path / "stages.json").rename(aside / "stages.json")
        barrier("start over")
        say(f"{self.path}: {why}; what it held is now in {aside}, and all is done again")

    def read_metrics(self) -> list[dict[str, Any]]:
        """See `read_metrics`."""
        return read_metrics(self.path)

    def forget_steps(self, stage: str, after: int) -> None:
        """Drops what is written of steps that were lost with an interrupted process.

        Args:
            stage: the stage.
            after: its last step that is not reported again.
        """
        if not self.writes:
            return
        for name in ("metrics.jsonl", *NOTES):
            rows = read_lines(self.path / name)
            kept = [row for row in rows if row["stage"] != stage or row["step"] <= after]
            if len(kept) < len(rows):
                write_lines(self.path / name, kept)

    def replaced(self, journal: str, file: str) -> None:
        """Deletes a stage's journal when the stage has finished and all of it is in a file."""
        if self.writes and (self.path / file).exists():
            (self.path / journal).unlink(missing_ok=True)

    def bar(self, name: str, total: int, unit: str, initial: int = 0) -> Progress:
        """Progress; silent on all processes but the first. See `Progress`."""
        return Progress(name, total, unit, initial, self.writes)

    @contextlib.contextmanager
    def metrics(self, stage: str) -> Iterator[Callable[[int, dict[str, float]], None]]:
        """Gives write(step, values): one JSON line, and a row for every logger; process 0 only."""
        if not self.writes:
            yield lambda step, values: None
            return
        writers = self._open_writers()

        def write(step: int, values: dict[str, float]) -> None:
            append_lines(self.path / "metrics.jsonl", [{"stage": stage, "step": step, **values}])
            for writer in writers:
                writer.scalars(stage, step, values)

        yield write

    def log_pairs(self, pairs: Callable[[], Sequence[LoggedPair]]) -> None:
        """Shows a few pairs to the loggers, once in a run; process 0 only.

        Args:
            pairs: makes them; not called when nobody would see them.
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
