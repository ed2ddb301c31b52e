"""Batches prepared by worker processes, for data whose decoding keeps the device waiting."""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import jax

from seva_jax.types import DataError

if TYPE_CHECKING:
    import grain


class ProcessIterator:
    """Yields elements of a data set in order, prepared by processes. Its state is the next index.

    Grain's own state depends on the number of processes; this one does not, and equals that of
    Grain's iterators over threads.

    Args:
        dataset: the data set, sent to the processes by cloudpickle.
        processes: number of processes.
        ahead: elements that each process prepares before they are needed.
    """

    def __init__(self, dataset: grain.MapDataset, processes: int, ahead: int) -> None:
        import grain

        self._dataset, self._next = dataset, 0
        self._options = grain.MultiprocessingOptions(processes, ahead)
        self._iterator: Any = None

    def __iter__(self) -> ProcessIterator:
        return self

    def __next__(self) -> Any:
        """Returns the next element; the first call starts the processes, which takes seconds.

        Raises:
            DataError: a process was killed.
        """
        try:
            element = self._first() if self._iterator is None else next(self._iterator)
        except RuntimeError as error:
            if "terminated unexpectedly" not in str(error):
                raise
            self.close()
            raise DataError(
                "a process that prepares batches was killed, often because memory ran out; use "
                f"fewer train.read_processes ({error})"
            ) from error
        self._next += 1
        return element

    def _first(self) -> Any:
        from absl import flags

        if not flags.FLAGS.is_parsed():  # Grain reads absl's flags, and we have none
            flags.FLAGS.mark_as_parsed()
        rest = self._dataset.slice(slice(self._next, None)).to_iter_dataset()
        begin = functools.partial(_begin, os.getpid())
        self._iterator = iter(rest.mp_prefetch(self._options, begin))
        return next(self._iterator)

    def get_state(self) -> dict[str, int]:
        """Returns the next index."""
        return {"next_index": self._next}

    def set_state(self, state: dict[str, int]) -> None:
        """Continues from an index."""
        self.close()
        self._next = state["next_index"]

    def close(self) -> None:
        """Ends the processes."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None


def _begin(parent: int, index: int, count: int) -> None:
    """Keeps a process off the accelerators, and ends it when the run ends, however it ends.

    It does not end earlier: signals sent to the whole process group are for the run to handle,
    which may need further batches until it has saved.
    """
    del index, count
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    jax.config.update("jax_platforms", "cpu")
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
