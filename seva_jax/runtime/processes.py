"""The processes of one run, one per host: joining them, barriers, and exchanging small values.

Which process holds which rows follows from the mesh (`seva_jax.sharding.process_row_share`). Only
process 0 writes files and prints; the work directory must be visible to all processes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import jax
import numpy as np

from seva_jax.ranges import ABOVE_0, FROM_1
from seva_jax.runtime import lock, shutdown
from seva_jax.runtime.paths import hide_home
from seva_jax.runtime.profiler import profiler
from seva_jax.runtime.store_client import StoreError
from seva_jax.types import DataError

_Value = TypeVar("_Value")

_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")

_OVERLAP = (
    "--xla_tpu_enable_async_collective_fusion=true",
    "--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true",
    "--xla_tpu_enable_async_collective_fusion_multiple_steps=true",
    "--xla_tpu_overlap_compute_collective_tc=true",
    "--xla_enable_async_all_gather=true",
    "--xla_tpu_enable_data_parallel_all_reduce_opt=true",
    "--xla_tpu_data_parallel_opt_different_sized_ops=true",
)


@dataclasses.dataclass(frozen=True)
class ProcessOptions:
    """Failure detection, shutdown and TPU flags of the processes of a run.

    Attributes:
        peer_timeout_s: a process that sends no heartbeat for this many seconds counts as dead, and
            the others end with a non-zero status.
        grace_s: after SIGTERM or Ctrl-C a run saves at its next safe point; if it reaches none
            within this many seconds, for example during a compilation, it ends with what was saved
            before. Kubernetes and Slurm kill after 30 s by default.
        libtpu_flags: "overlap" hides collectives behind compute where XLA can, which helps large
            fsdp meshes and may cost memory; compare with seva_jax.plan. LIBTPU_INIT_ARGS overrides
            these flags.
    """

    peer_timeout_s: Annotated[int, FROM_1] = 100
    grace_s: Annotated[float, ABOVE_0] = 25.0
    libtpu_flags: Literal["none", "overlap"] = "none"


def set_libtpu_flags(options: ProcessOptions) -> None:
    """Puts the chosen flags into LIBTPU_INIT_ARGS, in front of what it has.

    Must be called before anything asks JAX for a device, which loads libtpu.
    """
    if options.libtpu_flags == "overlap":
        own = os.environ.get("LIBTPU_INIT_ARGS", "")
        os.environ["LIBTPU_INIT_ARGS"] = " ".join((*_OVERLAP, own)).strip()


def join(options: ProcessOptions) -> None:
    """Joins the other processes of the run; does nothing for a single process.

    Cloud TPU, GKE, Slurm and Open MPI are recognised. Elsewhere (`launch/local.py`) three
    environment variables describe the processes: JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
    JAX_PROCESS_ID. Must be called before anything else asks JAX for a device.

    Raises:
        DataError: some of the variables are missing or are not numbers, or the other processes do
            not answer.
    """
    set_libtpu_flags(options)
    given = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    where: dict[str, Any] = {}
    if given:
        try:
            where = {
                "coordinator_address": given[_VARIABLES[0]],
                "num_processes": int(given[_VARIABLES[1]]),
                "process_id": int(given[_VARIABLES[2]]),
            }
        except (KeyError, ValueError):
            raise DataError(
                f"the environment has {given}; set all of {', '.join(_VARIABLES)} (an address with "
                "port, and two whole numbers), or none of them"
            ) from None
    try:
        jax.distributed.initialize(
            **where,
            heartbeat_timeout_seconds=options.peer_timeout_s,
            shutdown_timeout_seconds=options.peer_timeout_s,  # others may hang in a collective
        )
    except ValueError as error:
        if given or "coordinator_address" not in str(error):
            raise DataError(f"the processes of the run cannot be joined: {error}") from None


@contextlib.contextmanager
def joined(options: ProcessOptions) -> Iterator[None]:
    """Joins the other processes; SIGTERM and Ctrl-C stop the body at its next safe point.

    SIGUSR1 takes a trace of what this process does, see `profiler.py`.

    Raises:
        DataError: as `join`.
    """
    with shutdown.watch(options.grace_s) as watch, profiler.watch():
        join(options)
        watch.joined()
        try:
            yield
        except shutdown.Stopped:
            say("stopped, everything finished is saved; run the same command again to resume")
            raise
        finally:
            lock.release_all()


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the command with one line and status 1 on bad input or an unwritable disk."""
    try:
        yield
    except (DataError, StoreError) as error:
        sys.exit(hide_home(f"error: {error}"))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG):
            raise
        problem = f"error: {error}; make room or make it writable, then run the same command again"
        sys.exit(hide_home(problem))


def say(text: str) -> None:
    """Prints a line, on process 0 only; paths in the home directory begin with `~`."""
    if jax.process_index() == 0:
        print(hide_home(text), flush=True)


def barrier(name: str) -> None:
    """Waits for all processes; afterwards, all see the files that process 0 wrote before."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def gather(value: Any) -> list[Any]:
    """Returns the value of every process, in process order, on every process.

    Args:
        value: this process's; any JSON value.
    """
    if jax.process_count() == 1:
        return [value]
    from jax.experimental import multihost_utils

    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.int32(len(data)))).reshape(-1)
    width = 1 << int(sizes.max()).bit_length()  # few distinct sizes, so few compilations
    padded = np.zeros(width, np.uint8)
    padded[: len(data)] = data
    everyone = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(sizes), width)
    return [json.loads(row[:size].tobytes()) for row, size in zip(everyone, sizes, strict=True)]


def on_first_process(call: Callable[[], _Value]) -> _Value:
    """Calls a function on process 0 alone, and returns its value on every process.

    Args:
        call: returns a JSON value.

    Raises:
        DataError: what the function raised on process 0, on every process; a `StoreError`, too.
    """
    problem, value = "", None
    if jax.process_index() == 0:
        try:
            value = call()
        except (DataError, StoreError) as error:
            problem = str(error)
    problem, value = gather([problem, value])[0]
    if problem:
        raise DataError(problem)
    return value


def use_compile_cache() -> None:
    """Keeps compiled programs between runs, in a directory that only this user can write.

    Anyone who can write to the cache can run code as this user, so it is never in a shared place.
    JAX's own JAX_COMPILATION_CACHE_DIR takes precedence.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        directory = Path.home() / ".cache" / "seva_jax" / "compiled"
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        jax.config.update("jax_compilation_cache_dir", str(directory))
