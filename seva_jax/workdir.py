"""The work directory of a run: its config, its finished stages, its log of metrics.

A finished stage is skipped when its fingerprint (a hash of what it depends on) is the recorded
one. A work directory belongs to one config: another is refused, naming the fields that differ.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from tensorboardX import SummaryWriter

from seva_jax.cli import flatten, to_source
from seva_jax.data.store import append_lines, read_lines, write_json
from seva_jax.experiment import Experiment
from seva_jax.processes import barrier, say
from seva_jax.types import DataError

# Fields that change neither results nor files, so they may change between runs.
_FREE_FIELDS = ("workdir", "mesh", "processes", "report", "train.log_every", "train.save_every")


def fingerprint(*parts: Any) -> str:
    """A short hash of configs and plain values.

    >>> fingerprint("a", 1) == fingerprint("a", 1) != fingerprint("a", 2)
    True
    """
    plain = [flatten(p) if dataclasses.is_dataclass(p) else p for p in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


@dataclasses.dataclass
class Workdir:
    """Paths and records of one run. Only process 0 writes.

    Attributes:
        path: the directory.
        writes: whether this process writes.
    """

    path: Path
    writes: bool

    @classmethod
    def open(cls, experiment: Experiment) -> Workdir:
        """Creates the directory or returns to it.

        Raises:
            DataError: it belongs to another config; names the fields with both values.
        """
        path = Path(experiment.workdir)
        self = cls(path, jax.process_index() == 0)
        wanted = json.loads(json.dumps(flatten(experiment)))
        config = path / "config.json"
        if config.exists():
            found = json.loads(config.read_text(encoding="utf-8"))
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
            # Stages without a config are what `seva_jax.bench` shares between runs.
            if path.is_dir() and any(path.iterdir()) and not (path / "stages.json").exists():
                raise DataError(f"{path} is not empty and holds no run; choose another --workdir")
            try:
                path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise DataError(f"workdir {path} cannot be created: {error}") from None
        if self.writes:
            write_json(config, wanted)  # first: it is what makes the directory a run's
            (path / "config.py").write_text(to_source(experiment), encoding="utf-8")
        return self

    def stages(self) -> dict[str, dict[str, Any]]:
        """Finished stages by name: fingerprint, seconds, summary."""
        path = self.path / "stages.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def stage(self, name: str, depends_on: str, run: Callable[[], str]) -> None:
        """Runs a stage unless it has finished with the same fingerprint.

        Args:
            name: the stage.
            depends_on: fingerprint of its inputs.
            run: does the work and returns a one-line summary.
        """
        done = self.stages().get(name)
        if done and done["fingerprint"] == depends_on:
            say(f"■ {name}: done before ({done['summary']})")
            return
        say(f"▶ {name}")
        start = time.monotonic()
        summary = run()
        seconds = time.monotonic() - start
        if self.writes:
            record = {"fingerprint": depends_on, "seconds": seconds, "summary": summary}
            write_json(self.path / "stages.json", self.stages() | {name: record})
        barrier(name)
        say(f"■ {name}: {summary} ({seconds:.0f} s)")

    def read_metrics(self) -> list[dict[str, Any]]:
        """All rows of metrics.jsonl, later rows of a repeated step replacing earlier ones."""
        rows = {(r["stage"], r["step"]): r for r in read_lines(self.path / "metrics.jsonl")}
        return [rows[key] for key in sorted(rows)]

    @contextlib.contextmanager
    def metrics(self, stage: str) -> Iterator[Callable[[int, dict[str, float]], None]]:
        """Gives write(step, values): one JSON line and TensorBoard scalars; process 0 only."""
        if not self.writes:
            yield lambda step, values: None
            return
        board = SummaryWriter(str(self.path / "tensorboard" / stage))

        def write(step: int, values: dict[str, float]) -> None:
            append_lines(self.path / "metrics.jsonl", [{"stage": stage, "step": step, **values}])
            for name, value in values.items():
                board.add_scalar(name, value, step)

        try:
            yield write
        finally:
            board.close()
