"""When a checkpoint is due by the clock: what a kill costs stays within one interval.

What lives here: `SaveSchedule`. What does not: writing (`checkpoint.py`). Read next: `loop.py`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple


class SaveDecision(NamedTuple):
    """What to do at a row of metrics.

    Attributes:
        save: begin to save the state of this moment.
        wait: then train no further until the checkpoint under way is finished.
    """

    save: bool
    wait: bool


class SaveSchedule:
    """Keeps training from getting further than an interval ahead of what a kill would leave.

    A checkpoint is written while training goes on, and a kill before it is finished falls back to
    the one before. So one is begun before the interval is over: earlier by the time that writing
    takes, which the first one of a run tells, begun after half an interval. Where writing takes
    longer than that, training waits for it.

    Args:
        every_s: the interval, seconds of training.
        clock: tells the time.
    """

    def __init__(self, every_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._every_s, self._clock, self._still_s = every_s, clock, 0.0
        self._held_s = self._begun_s = self._now()  # of the states finished, and saved last
        self._row_at_s = self._begun_s

    def _now(self) -> float:
        return self._clock() - self._still_s

    def due(self, took_s: float | None, saving: bool) -> SaveDecision:
        """To be asked at every row of metrics; looks ahead to the next, which may take as long.

        Args:
            took_s: the longest time that writing a checkpoint took; None before there was one.
            saving: whether one is being written.
        """
        if not saving:
            self._held_s = self._begun_s
        now_s = self._now()
        next_s, self._row_at_s = 2 * now_s - self._row_at_s, now_s
        took_s = self._every_s / 2 if took_s is None else took_s
        save = not saving and next_s + took_s - self._begun_s >= self._every_s
        return SaveDecision(save, (save or saving) and next_s - self._held_s >= self._every_s)

    def begin(self) -> None:
        """The state of this moment is going to be saved, when the one before is finished."""
        self._held_s, self._begun_s = self._begun_s, self._now()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing is trained in the body, so its time does not count."""
        start = self._clock()
        yield
        self._still_s += self._clock() - start
