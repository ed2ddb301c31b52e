"""Stopping on request: SIGTERM (preemption, a time limit, `kubectl delete`) and SIGINT (Ctrl-C).

What lives here: the exit statuses, `watch`, which takes the signals, and `stop_agreed` and `raise_if_stopping`,
which loops ask between two units of work. What does not: saving, which is the loops' own
(`loop.py`; rollouts and evaluations have every finished example on disk anyway). Read next:
`loop.py`.

A thread waits for signals, because the main thread may be inside a compilation for minutes. With
several processes the one that gets a signal tells the others through JAX's key-value store, and
all agree on the next question that none of them has asked yet: they stop at the same step,
without waiting for a device. There they wait for each other, so that all save or none. JAX's own
preemption notice is not used: it knows no SIGINT, and Orbax asks it with step numbers of its own.
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
_EVERY_S = 0.5  # between looks at what other processes ask for
_AGREE_S = 10  # for processes to agree; they only have to notice
_LAST_S = 2.0  # process 0 leaves last: without it JAX aborts the others


class Status(enum.IntEnum):
    """Exit statuses of the commands, beside 0 (finished) and 2 (unknown option).

    Attributes:
        ERROR: bad input, or a fault; the last lines say what.
        NOT_FINITE: too many steps in a row had a loss or gradient that is not finite; the same
            command would end so again.
        STOPPED: ended by a signal, everything finished is saved; the same command goes on.
        AT_ONCE: ended by a second Ctrl-C without saving; the same command goes on from the last
            checkpoint.
    """

    ERROR = 1
    NOT_FINITE = 65  # EX_DATAERR of sysexits.h
    STOPPED = 75  # EX_TEMPFAIL of sysexits.h: try again
    AT_ONCE = 130  # as a shell reports SIGINT


HELP = (
    f"Exit status: 0 finished; {Status.ERROR:d} error; {Status.NOT_FINITE:d} the loss was not "
    f"finite again and again; {Status.STOPPED:d} stopped by SIGTERM or Ctrl-C with everything "
    f"saved, run the same command again to go on; {Status.AT_ONCE:d} ended at once by a second "
    "Ctrl-C."
)


class Stopped(SystemExit):
    """Ends the process with `Status.STOPPED`; everything is saved."""

    def __init__(self) -> None:
        super().__init__(int(Status.STOPPED))


class Watch:
    """Waits for signals and tells the main thread at which question to stop.

    Args:
        grace_s: how long the main thread may take to ask; then the process is ended.
    """

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._lock = threading.Lock()  # held while processes agree: nobody asks meanwhile
        self._asked = 0
        self._stop_at = math.inf
        self._reached = threading.Event()
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
        """To be called when processes have joined: JAX took SIGTERM, and they can talk now."""
        self._take_signals()
        with self._lock:
            self._client = distributed.global_state.client
            early = self._client is not None and self._stop_at == 0
            if early:  # a signal came while they joined: the others do not know
                self._stop_at = math.inf
        if early:
            self._start_to_agree()

    def _take_signals(self) -> None:
        for number in _SIGNALS:
            signal.signal(number, lambda *_: None)

    def stop_agreed(self) -> bool:
        """See `stop_agreed` below."""
        with self._lock:
            self._asked += 1
            if self._asked < self._stop_at:
                return False
        if not self._reached.is_set():
            self._meet()
            self._reached.set()
        return True

    def _meet(self) -> None:
        """Waits for all processes; where one does not come, the thread ends this one."""
        if self._client is None:
            return
        ends_ms = int(1000 * (self._grace_s + _LAST_S))
        try:
            self._client.wait_at_barrier(f"{_KEY}/reached", ends_ms)
        except Exception:  # one has ended, or it is late: so is this one
            threading.Event().wait()

    def end(self) -> None:
        """Gives the signals back."""
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
            if deadline == math.inf and (received or self._asked_by_another()):
                deadline = time.monotonic() + self._grace_s
                self._notice(received)
            late = _LAST_S if distributed.global_state.service is not None else 0.0
            if not self._reached.is_set() and time.monotonic() > deadline + late:
                print(
                    f"no stopping point within {self._grace_s:g} s (a compilation, or a long "
                    "step): ending; the last checkpoint and all finished examples are on disk",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(Status.STOPPED)

    def _receive(self) -> bytes:
        """Signal numbers, one a byte; empty after a while without any."""
        ready, _, _ = select.select([self._reader], [], [], _EVERY_S)
        received = self._reader.recv(64) if ready else b""
        return bytes(number for number in received if number in _SIGNALS)

    def _notice(self, received: bytes) -> None:
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
        # In a thread of its own, so that a second Ctrl-C is seen meanwhile.
        self._threads.append(threading.Thread(target=self._agree, daemon=True))
        self._threads[-1].start()

    def _asked_by_another(self) -> bool:
        try:
            return self._client is not None and any(
                key.endswith("/wanted") for key, _ in self._client.key_value_dir_get(_KEY)
            )
        except Exception:  # the coordinator is gone: JAX itself ends this process
            return False

    def _agree(self) -> None:
        """Sets the first question that no process has asked yet as the one to stop at."""
        client = self._client
        try:
            client.key_value_set(f"{_KEY}/wanted", "yes", allow_overwrite=True)
            with self._lock:
                client.wait_at_barrier(f"{_KEY}/noticed", _AGREE_S * 1000)
                client.key_value_set(f"{_KEY}/asked/{uuid.uuid4()}", str(self._asked))
                client.wait_at_barrier(f"{_KEY}/told", _AGREE_S * 1000)
                told = client.key_value_dir_get(f"{_KEY}/asked")
                self._stop_at = 1 + max(int(asked) for _, asked in told)
        except Exception as error:  # XlaRuntimeError has no stable name
            print(f"the processes could not agree where to stop: {error}", file=sys.stderr)


_watch: Watch | None = None


@contextlib.contextmanager
def watch(grace_s: float) -> Iterator[Watch]:
    """Takes SIGTERM and SIGINT while the body runs; to be called from the main thread.

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
    """Whether to save and stop here. All processes of a run ask equally often, and get one answer.

    Costs microseconds. Always False where no signals are taken, as in a notebook.
    """
    return _watch is not None and _watch.stop_agreed()


def raise_if_stopping() -> None:
    """For places where everything finished is on disk already.

    Raises:
        Stopped: see `stop_agreed`.
    """
    if stop_agreed():
        raise Stopped
