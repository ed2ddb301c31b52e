"""A stage of a run, as a plain value; which ones there are is in `seva_jax/train.py`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

FORMAT = 3  # of work directories; 0.1 wrote none


@dataclasses.dataclass(frozen=True)
class Stage:
    """One row of the table of stages.

    Attributes:
        name: name of the stage.
        depends_on: fingerprint of its inputs.
        run: does the work and returns a one-line summary.
        leaves: the files and folders it leaves; () if it leaves none. They are looked for when the
            stage was done before.
        beside: what it leaves besides and nothing in the run reads, such as files for other
            programs; may be missing.
        journal: a file that is deleted when the stage has finished, as `leaves` holds all of it.
        needs: names of earlier stages whose files `run` reads.
        trains: names of the rows of metrics that it writes if it trains, in which case the first of
            `leaves` are checkpoints; () otherwise. Missing checkpoints are not made again, because
            another machine would train other weights; where they are needed, an error says what to
            do.
        if_missing: what happens when `leaves` are missing although the stage was done before.
            "note" says so; they are made again when a stage that has to run needs them. "make"
            makes them again at once, unless that takes files that are missing, too. "require" does
            the same for results of the run, and raises an error where it cannot.
        shared: whether another run may take the stage.
    """

    name: str
    depends_on: str
    run: Callable[[], str]
    leaves: Sequence[str] = ()
    beside: Sequence[str] = ()
    journal: str = ""
    needs: Sequence[str] = ()
    trains: Sequence[str] = ()
    if_missing: Literal["note", "make", "require"] = "note"
    shared: bool = True


def instead_of(path: Path) -> str:
    """Returns advice for where a directory of several rounds was named instead of one run's."""
    numbers = [int(p.name) for p in path.glob("*") if p.name.isdecimal()]
    rounds = [n for n in numbers if (path / str(n) / "config.py").is_file()]
    return f"; it holds several rounds, give one, such as {path}/{max(rounds)}" if rounds else ""
