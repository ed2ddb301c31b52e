"""Progress of long work: a bar in a terminal, plain lines everywhere else.

What lives here: `Progress`. What does not: the banners of stages (`seva_jax/run/workdir.py`) and
single lines (`processes.say`).
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from tqdm import tqdm

EVERY_S = 30.0  # between plain lines, so that the log of a long run stays readable


class Progress:
    """Counts finished units and shows them with rate and remaining time.

    A terminal shows one line that is redrawn. A file or a pipe gets a whole line every
    `EVERY_S` seconds and one at the end, without carriage returns.

    Args:
        name: name of the work.
        total: number of units in all.
        unit: what is counted, in the singular.
        initial: units finished before; they do not count towards the rate.
        shown: False shows nothing, for all processes but the first.
        on_update: called after every update.
    """

    def __init__(
        self,
        name: str,
        total: int,
        unit: str,
        initial: int = 0,
        shown: bool = True,
        on_update: Callable[[], None] = lambda: None,
    ) -> None:
        self.name, self.total, self.unit, self.initial = name, total, unit, initial
        self.done = initial
        self._values: dict[str, float] = {}
        self._shown, self._on_update = shown, on_update
        self._start = self._printed_s = time.monotonic()
        self._printed_at = -1
        self._bar = None
        if shown and sys.stdout.isatty():
            # Not measured by tqdm: terminals in containers may report a size of 0 by 0.
            columns, lines = shutil.get_terminal_size()
            self._bar = tqdm(
                total=total, initial=initial, desc=name, unit=unit, file=sys.stdout,
                mininterval=0.5, ncols=columns - 1, nrows=lines,
            )  # fmt: skip

    def update(self, count: int = 1, **values: float) -> None:
        """Counts more finished units.

        Args:
            count: how many.
            **values: numbers shown after the progress until they are replaced.
        """
        self.done += count
        self._values |= values
        if self._bar is not None:
            if values:
                shown = {name: f"{value:.3f}" for name, value in self._values.items()}
                self._bar.set_postfix(shown, refresh=False)
            self._bar.update(count)
        elif self._shown and time.monotonic() - self._printed_s >= EVERY_S:
            self._print()
        self._on_update()

    def line(self) -> str:
        """Returns the current state as a plain line."""
        seconds = time.monotonic() - self._start
        rate = (self.done - self.initial) / seconds if seconds > 0 else 0.0
        share = f" ({100 * self.done // self.total}%)" if self.total else ""
        parts = [f"{self.name}: {self.done:,} of {self.total:,} {self.unit}s{share}"]
        parts.append(f"{tqdm.format_interval(seconds)} so far")
        if rate > 0 and self.done < self.total:
            parts.append(f"{tqdm.format_interval((self.total - self.done) / rate)} left")
        if rate > 0:
            slow = rate < 1
            parts.append(
                f"{1 / rate:.1f} s a {self.unit}" if slow else f"{rate:,.1f} {self.unit}s/s"
            )
        return ", ".join(parts + [f"{name} {value:.3f}" for name, value in self._values.items()])

    def _print(self) -> None:
        print(self.line(), flush=True)
        self._printed_s, self._printed_at = time.monotonic(), self.done

    def close(self) -> None:
        """Shows the final state; further calls do nothing."""
        if self._bar is not None:
            self._bar.close()
        elif self._shown and self.done != self._printed_at and self.done > self.initial:
            self._print()
        self._shown, self._bar = False, None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
