"""Where the time of training steps goes, and which process the others wait for.

`StepTimes` splits the seconds of every row of metrics into parts that add up to "seconds":

- "time/input": the loop waited for its next batch;
- "time/device": the loop waited for the devices, or for other processes. It waits when a row needs
  the metrics of its last step, when it is so far ahead that the devices accept no further step, and
  when processes exchange these numbers. Work of the devices that the loop does not wait for is
  hidden behind the other parts, so this is less than the time in which the devices compute;
- "time/compile": JAX traced a program, and XLA compiled it or read it from its cache;
- "time/save": training paused for a checkpoint (most of writing happens meanwhile);
- "time/host": everything else, which is Python: placing batches on devices, starting steps,
  writing metrics.

Nothing here waits for a device between rows. The numbers of a row are those of process 0, apart
from "memory/in_use" and "memory/peak", which are the largest of all devices of all processes.

In synchronous training every process waits for the last one. A process is late with a step if its
devices have finished all earlier steps before its loop starts the step: they stood idle, and the
other processes waited for them. What its loop spent on input and host work since the step before
then counts as late. A slow loop that still keeps its devices busy delays no other process, so its
time does not count. `straggler` names a process that is much later than the others.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from seva_jax.runtime.overhead import overhead
from seva_jax.runtime.processes import gather, say
from seva_jax.training.memory import memory_use

PARTS = ("input", "host", "device", "compile", "save")  # of the seconds of a row
_LATE_SHARE = 0.1  # a straggler makes the others wait for more than this share of a row's time
_LATE_S = 1.0  # and for more than this
_QUIET_ROWS = 20  # rows after a line about a straggler without another line about it


class StepTimes:
    """Measures the steps of one training stage, one row of metrics at a time.

    Args:
        name: name of the stage.
        clock: returns the time, seconds.
    """

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._name, self._clock = name, clock
        self._input_s = self._device_s = 0.0
        self._last: Any = None  # an output of the last step
        self._quiet: dict[int, int] = {}  # rows left without a line about a process
        self.start()

    def start(self, earlier: Sequence[float] = ()) -> None:
        """Starts the first row now.

        Args:
            earlier: what `so_far` returned when a checkpoint was saved between two rows.
        """
        self._row_s = self._step_s = self._total()
        self._earlier_s = np.array(earlier or [0.0] * len(PARTS))
        self._late_s = np.zeros(2)  # input and host time that the other processes waited for

    def _total(self) -> np.ndarray:
        """Returns the seconds of each of `PARTS` so far, all together the clock's time."""
        compile_s, save_s = overhead()
        others = self._input_s + self._device_s + compile_s + save_s
        return np.array([self._input_s, self._clock() - others, self._device_s, compile_s, save_s])

    def so_far(self) -> list[float]:
        """Returns the seconds of each of `PARTS` since the last row, for `start`."""
        return (self._total() - self._row_s + self._earlier_s).tolist()

    @contextlib.contextmanager
    def input(self) -> Iterator[None]:
        """Counts the time of the body as waiting for input."""
        start = self._clock()
        yield
        self._input_s += self._clock() - start

    @contextlib.contextmanager
    def device(self) -> Iterator[None]:
        """Counts the time of the body as waiting for devices; as host work if it compiles."""
        start, compiled_s = self._clock(), overhead().compile_s
        yield
        if overhead().compile_s == compiled_s:
            self._device_s += self._clock() - start

    @contextlib.contextmanager
    def aside(self) -> Iterator[dict[str, float]]:
        """Leaves the time of the body out of the row, and yields a dict that gets it at the end.

        It is split into the same parts. What the devices still have to do for the steps before
        counts to the row.
        """
        if self._last is not None:
            with self.device():
                jax.block_until_ready(self._last)
        before, numbers = self._total(), {}
        yield numbers
        passed_s = self._total() - before
        self._row_s, self._step_s = self._row_s + passed_s, self._step_s + passed_s
        numbers["seconds"] = float(passed_s.sum())
        numbers |= {f"time/{part}": float(s) for part, s in zip(PARTS, passed_s, strict=True)}

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Starts a step in its body; must be followed by `started`."""
        if self._last is None or self._last.is_ready():
            self._late_s += (self._total() - self._step_s)[:2]
        with self.device():
            yield
        self._step_s = self._total()

    def started(self, output: jax.Array) -> None:
        """Takes an output of the step that was started last, to ask later if it has finished."""
        self._last = output

    def exchange(self, **more: Any) -> list[dict[str, Any]]:
        """Waits for the last step and returns the numbers of all processes, in process order.

        Names a straggler, on process 0.

        Args:
            **more: further JSON values that processes tell each other.
        """
        with self.device():
            jax.block_until_ready(self._last)
        row_s = float((self._total() - self._row_s).sum())
        late_s = dict(zip(PARTS[:2], self._late_s.round(3).tolist(), strict=True))
        mine = {"host name": socket.gethostname(), "late": late_s, "memory": memory_use()}
        with self.device():
            everyone = gather(mine | more)
        self._late_s[:] = 0
        self._warn(row_s, everyone)
        return everyone

    def _warn(self, row_s: float, everyone: Sequence[Mapping[str, Any]]) -> None:
        self._quiet = {process: rows - 1 for process, rows in self._quiet.items() if rows > 1}
        named = straggler(row_s, everyone)
        if named is not None and named[0] not in self._quiet:
            self._quiet[named[0]] = _QUIET_ROWS + 1
            say(f"{self._name}: {named[1]}")

    def row(self, everyone: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Ends a row and returns its times and, where devices tell it, memory in GiB.

        Args:
            everyone: what `exchange` returned.
        """
        parts_s = self.so_far()
        self._row_s = self._step_s = self._total()
        self._earlier_s = np.zeros(len(PARTS))
        numbers = {"seconds": sum(parts_s)}
        numbers |= {f"time/{part}": s for part, s in zip(PARTS, parts_s, strict=True)}
        memory = [process["memory"] for process in everyone if process["memory"]]
        if memory:
            numbers["memory/in_use"], numbers["memory/peak"] = map(max, zip(*memory, strict=True))
        return numbers


def straggler(row_s: float, everyone: Sequence[Mapping[str, Any]]) -> tuple[int, str] | None:
    """Returns the process that the others waited for in a row of metrics, and a line about it.

    Returns None unless it was late by more than 1 s and more than 10 % of the row, compared with
    the median of the other processes.

    Args:
        row_s: seconds of the row.
        everyone: see `StepTimes.exchange`.
    """
    if len(everyone) < 2:
        return None
    late = np.array([[process["late"][part] for part in PARTS[:2]] for process in everyone])
    last = int(late.sum(axis=1).argmax())
    others = np.delete(late, last, axis=0)
    if late[last].sum() - np.median(others.sum(axis=1)) <= max(_LATE_S, _LATE_SHARE * row_s):
        return None
    part = int((late[last] - np.median(others, axis=0)).argmax())
    doing = ("waiting for input", "in host work (Python, disk)")[part]
    return last, (
        f"straggler: process {last} (host {everyone[last]['host name']}) spent "
        f"{late[last, part]:.1f} s of {row_s:.1f} s {doing}; the others waited for it"
    )
