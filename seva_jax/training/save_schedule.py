"""When to save by the clock, so that a kill costs at most one interval of training.

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
        save: start to save the current state.
        wait: pause training until the save in progress is finished.
    """

    save: bool
    wait: bool


class SaveSchedule:
    """Keeps training at most one interval ahead of the last finished checkpoint.

    A checkpoint is written while training continues, and a kill before it is finished loses it. So
    a save starts early enough to finish within the interval. How long writing takes is known only
    from the first save of a run, which therefore starts after half an interval. If writing takes
    too long, training waits for it.

    Args:
        every_s: the interval, seconds of training.
        clock: returns the time, seconds.
    """

    def __init__(self, every_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._every_s, self._clock, self._paused_s = every_s, clock, 0.0
        # Times of the states in the last finished checkpoint and in the last one started.
        self._held_s = self._begun_s = self._now()
        self._row_at_s = self._begun_s

    def _now(self) -> float:
        """Returns the seconds of training."""
        return self._clock() - self._paused_s

    def due(self, took_s: float | None, saving: bool) -> SaveDecision:
        """Decides whether to save now; must be called at every row of metrics.

        The next row is assumed to take as long as the last one.

        Args:
            took_s: the longest time that writing a checkpoint took; None before the first.
            saving: whether a checkpoint is being written.
        """
        if not saving:
            self._held_s = self._begun_s
        now_s = self._now()
        next_s, self._row_at_s = 2 * now_s - self._row_at_s, now_s
        took_s = self._every_s / 2 if took_s is None else took_s
        save = not saving and next_s + took_s - self._begun_s >= self._every_s
        return SaveDecision(save, (save or saving) and next_s - self._held_s >= self._every_s)

    def begin(self) -> None:
        """Records that the current state is saved next, once the save before is finished."""
        self._held_s, self._begun_s = self._begun_s, self._now()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock while the body runs, in which nothing is trained."""
        start = self._clock()
        yield
        self._paused_s += self._clock() - start
