"""Stopping on request: SIGTERM (preemption, a time limit, `kubectl delete`) and SIGINT (Ctrl-C).

What lives here: the exit statuses, `watch`, which handles the signals, and `stop_agreed` and
`raise_if_stopping`, which loops call between two units of work. What does not: saving, which is up
to each loop (rollouts and evaluations have every finished example on disk anyway). Read next:
`seva_jax/training/loop.py`.

A thread waits for signals, because the main thread may be inside a compilation for minutes. With
several processes, the one that receives a signal tells the others through JAX's key-value store.
Every process counts its calls of `stop_agreed`, and all agree on the first call that none of them
has made yet: they stop at the same step, without waiting for a device. There they wait for each
other, so that either all save or none does. JAX's own preemption notice is not used: it ignores
SIGINT, and Orbax queries it with step numbers of its own.
"""

from __future__ import annotations

import contextlib
import enum
import math
import os
import select
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from jax._src import distributed  # the key-value store has no public name

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_KEY = "seva_jax/stop"
_POLL_S = 0.5  # between checks whether another process has requested a stop
_AGREE_S = 10  # for processes to agree; they only have to notice the request
_LAST_S = 2.0  # process 0 leaves last: without it JAX aborts the others


class Status(enum.IntEnum):
    """Exit statuses of the commands, in addition to 0 (finished) and 2 (unknown option).

    Attributes:
        ERROR: bad input or a fault; the last lines printed say which.
        NOT_FINITE: too many consecutive steps had a loss or gradient that is not finite; the same
            command would fail again.
        STOPPED: stopped by a signal with everything finished saved; the same command resumes.
        AT_ONCE: ended by a second Ctrl-C without saving; the same command resumes from the last
            checkpoint.
    """

    ERROR = 1
    NOT_FINITE = 65  # EX_DATAERR of sysexits.h
    STOPPED = 75  # EX_TEMPFAIL of sysexits.h: try again
    AT_ONCE = 130  # as a shell reports SIGINT


HELP = (
    f"Exit status: 0 finished; {Status.ERROR:d} error; {Status.NOT_FINITE:d} loss or gradient not "
    f"finite in too many consecutive steps; {Status.STOPPED:d} stopped by SIGTERM or Ctrl-C with "
    f"everything saved, run the same command again to resume; {Status.AT_ONCE:d} ended at once by "
    "a second Ctrl-C."
)


class Stopped(SystemExit):
    """Ends the process with `Status.STOPPED`; everything is saved."""

    def __init__(self) -> None:
        super().__init__(int(Status.STOPPED))


class Watch:
    """Waits for signals and tells the main thread where to stop.

    Args:
        grace_s: seconds the main thread has to reach its next call of `stop_agreed` after a
            signal; then the process is ended.
    """

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._lock = threading.Lock()  # held while processes agree: `stop_agreed` waits meanwhile
        self._num_calls = 0
        self._stop_at = math.inf  # the call of `stop_agreed` that answers True
        self._noticed = threading.Event()  # set once a stop was requested, here or elsewhere
        self._stopping = threading.Event()  # set once `stop_agreed` has answered True
        self._ended = threading.Event()
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._before_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._before = {number: signal.getsignal(number) for number in _SIGNALS}
        self._client: Any = None
        self._take_signals()
        self._threads = [threading.Thread(target=self._watch, name="signals", daemon=True)]
        self._threads[0].start()

    def joined(self) -> None:
        """Takes SIGTERM back from JAX, which took it over while the processes joined."""
        self._take_signals()
        with self._lock:
            self._client = distributed.global_state.client
            early = self._client is not None and self._stop_at == 0
            if early:  # a signal arrived while they joined: the others do not know
                self._stop_at = math.inf
        if early:
            self._start_to_agree()

    def _take_signals(self) -> None:
        for number in _SIGNALS:
            signal.signal(number, lambda *_: None)

    def stop_agreed(self) -> bool:
        """Returns whether to save and stop here; see the function `stop_agreed`."""
        with self._lock:
            self._num_calls += 1
            if self._num_calls < self._stop_at:
                return False
        if not self._stopping.is_set():
            self._meet()
            self._stopping.set()
        return True

    def failed(self, error: Exception) -> None:
        """Waits for the end if this process fails while all are stopping.

        One that has ended already breaks the collectives of the others. Leaving with an exception
        would take as long as JAX waits for the processes that ended.
        """
        if self._client is not None and self._noticed.is_set():
            print(f"while stopping: {error}", file=sys.stderr, flush=True)
            threading.Event().wait()  # the thread ends this process

    def _meet(self) -> None:
        """Waits for all processes; if one does not arrive, the thread ends this one."""
        if self._client is None:
            return
        ends_ms = int(1000 * (self._grace_s + _LAST_S))
        try:
            self._client.wait_at_barrier(f"{_KEY}/stopping", ends_ms)
        except Exception:  # another has ended or is late: this one waits for its deadline
            threading.Event().wait()

    def end(self) -> None:
        """Restores the signal handlers from before."""
        self._ended.set()
        self._writer.send(b"\0")  # wakes the thread
        signal.set_wakeup_fd(self._before_fd)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        for thread in self._threads:
            thread.join()
        self._reader.close()
        self._writer.close()

    def _watch(self) -> None:
        deadline = math.inf
        while not self._ended.is_set():
            received = self._receive()
            if received.count(signal.SIGINT) > (deadline == math.inf):
                print("interrupted again: ending without saving", file=sys.stderr, flush=True)
                os._exit(Status.AT_ONCE)
            if deadline == math.inf and (received or self._requested_by_another()):
                deadline = time.monotonic() + self._grace_s
                self._notice(received)
            late = _LAST_S if distributed.global_state.service is not None else 0.0
            if not self._stopping.is_set() and time.monotonic() > deadline + late:
                print(
                    f"the current step did not end within {self._grace_s:g} s (it may be "
                    "compiling): stopping without it; the last checkpoint and all finished "
                    "examples are on disk",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(Status.STOPPED)

    def _receive(self) -> bytes:
        """Returns signal numbers, one per byte; empty if none arrived for a while."""
        ready, _, _ = select.select([self._reader], [], [], _POLL_S)
        received = self._reader.recv(64) if ready else b""
        return bytes(number for number in received if number in _SIGNALS)

    def _notice(self, received: bytes) -> None:
        self._noticed.set()
        if received:
            name = signal.Signals(received[0]).name
            again = "; Ctrl-C again ends at once" if received[0] == signal.SIGINT else ""
            print(f"{name}: stopping at the next safe point{again}", flush=True)
        with self._lock:
            if self._client is None:
                self._stop_at = 0
                return
        self._start_to_agree()

    def _start_to_agree(self) -> None:
        # In a thread of its own, so that a second Ctrl-C is noticed meanwhile.
        self._threads.append(threading.Thread(target=self._agree, daemon=True))
        self._threads[-1].start()

    def _requested_by_another(self) -> bool:
        try:
            return self._client is not None and any(
                key.endswith("/wanted") for key, _ in self._client.key_value_dir_get(_KEY)
            )
        except Exception:  # the coordinator is gone: JAX itself ends this process
            return False

    def _agree(self) -> None:
        """Agrees to stop at the first call of `stop_agreed` that no process has made yet."""
        client = self._client
        try:
            client.key_value_set(f"{_KEY}/wanted", "yes", allow_overwrite=True)
            with self._lock:
                client.wait_at_barrier(f"{_KEY}/noticed", _AGREE_S * 1000)
                client.key_value_set(f"{_KEY}/calls/{uuid.uuid4()}", str(self._num_calls))
                client.wait_at_barrier(f"{_KEY}/told", _AGREE_S * 1000)
                told = client.key_value_dir_get(f"{_KEY}/calls")
                self._stop_at = 1 + max(int(num_calls) for _, num_calls in told)
        except Exception as error:  # XlaRuntimeError has no stable name
            print(f"the processes could not agree where to stop: {error}", file=sys.stderr)


_watch: Watch | None = None


@contextlib.contextmanager
def watch(grace_s: float) -> Iterator[Watch]:
    """Handles SIGTERM and SIGINT while the body runs; must be called from the main thread.

    Args:
        grace_s: see `Watch`.
    """
    global _watch
    before, _watch = _watch, Watch(grace_s)
    try:
        yield _watch
    finally:
        _watch.end()
        _watch = before


def stop_agreed() -> bool:
    """Returns whether to save and stop here.

    All processes of a run must call it equally often; at each call they get the same answer. Costs
    microseconds. Always False outside of `watch`, as in a notebook.
    """
    return _watch is not None and _watch.stop_agreed()


def raise_if_stopping() -> None:
    """Ends the process if a stop was requested, where everything finished is on disk already.

    Raises:
        Stopped: `stop_agreed` is true.
    """
    if stop_agreed():
        raise Stopped
