"""The processes of one run, one a host: joining them, what they tell each other and keep.

Which process holds which rows follows from the mesh (`sharding.process_row_share`). Process 0 alone writes
files and prints; the work directory has to be one that all processes see.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
from jax.experimental import multihost_utils

from seva_jax.ranges import ABOVE_0, FROM_1
from seva_jax.runtime import shutdown
from seva_jax.runtime.paths import hide_home
from seva_jax.types import DataError

_GIVEN = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")

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
    """How processes look after each other, and how their TPUs are set up.

    Attributes:
        peer_timeout_s: a process without a sign of life for so many seconds counts as dead, and
            the others end with a non-zero status.
        grace_s: after SIGTERM or Ctrl-C a run saves at its next safe point; where it finds none
            for so many seconds, in a compilation for instance, it ends with what was saved
            before. Kubernetes and Slurm kill after 30 s unless told otherwise.
        libtpu_flags: "overlap" hides collectives behind compute where XLA can, which helps large
            fsdp meshes and may cost memory; compare with seva_jax.plan. They go in front of what
            LIBTPU_INIT_ARGS holds, so that can overrule them.
    """

    peer_timeout_s: Annotated[int, FROM_1] = 100
    grace_s: Annotated[float, ABOVE_0] = 25.0
    libtpu_flags: Literal["none", "overlap"] = "none"


def set_libtpu_flags(options: ProcessOptions) -> None:
    """Puts the preset where libtpu looks when it is loaded; before anything asks for a device."""
    if options.libtpu_flags == "overlap":
        own = os.environ.get("LIBTPU_INIT_ARGS", "")
        os.environ["LIBTPU_INIT_ARGS"] = " ".join((*_OVERLAP, own)).strip()


def join(options: ProcessOptions) -> None:
    """Joins the other processes of the run; does nothing for a process on its own.

    Cloud TPU, GKE, Slurm and Open MPI are recognised. Elsewhere (`launch/local.py`) three
    environment variables say who is who: JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
    JAX_PROCESS_ID. To be called before anything else asks JAX for a device.

    Raises:
        DataError: some of the variables are missing or not numbers, or the others do not answer.
    """
    set_libtpu_flags(options)
    found = {name: os.environ[name] for name in _GIVEN if name in os.environ}
    where: dict[str, Any] = {}
    if found:
        try:
            where = {
                "coordinator_address": found[_GIVEN[0]],
                "num_processes": int(found[_GIVEN[1]]),
                "process_id": int(found[_GIVEN[2]]),
            }
        except (KeyError, ValueError):
            raise DataError(
                f"the environment has {found}; set all of {', '.join(_GIVEN)} (an address with "
                "port, and two whole numbers), or none of them"
            ) from None
    try:
        jax.distributed.initialize(
            **where,
            heartbeat_timeout_seconds=options.peer_timeout_s,
            shutdown_timeout_seconds=options.peer_timeout_s,  # others may hang in a collective
        )
    except ValueError as error:
        if found or "coordinator_address" not in str(error):
            raise DataError(f"the processes of the run cannot be joined: {error}") from None


@contextlib.contextmanager
def joined(options: ProcessOptions) -> Iterator[None]:
    """Joins the other processes; SIGTERM and Ctrl-C stop the body at its next safe point.

    Raises:
        DataError: as `join`.
    """
    with shutdown.watch(options.grace_s) as watch:
        join(options)
        watch.joined()
        try:
            yield
        except shutdown.Stopped:
            say("stopped, everything finished is saved; run the same command again to go on")
            raise


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Bad input, or a disk that takes no more, ends the command with one line and status 1."""
    try:
        yield
    except DataError as error:
        sys.exit(hide_home(f"error: {error}"))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG):
            raise
        problem = f"error: {error}; make room or make it writable, then run the same command again"
        sys.exit(hide_home(problem))


def say(text: str) -> None:
    """Prints a line, on process 0 only; paths at home begin with `~`."""
    if jax.process_index() == 0:
        print(hide_home(text), flush=True)


def barrier(name: str) -> None:
    """Waits for all processes; what process 0 wrote before is there for the others after."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def gather(value: Any) -> list[Any]:
    """What every process has, on every process, in process order.

    Args:
        value: anything JSON can hold.
    """
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.int32(len(data)))).reshape(-1)
    width = 1 << int(sizes.max()).bit_length()  # few distinct sizes, so few compilations
    padded = np.zeros(width, np.uint8)
    padded[: len(data)] = data
    everyone = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(sizes), width)
    return [json.loads(row[:size].tobytes()) for row, size in zip(everyone, sizes, strict=True)]


def use_compile_cache() -> None:
    """Keeps compiled programs between runs, in a directory only this user can write.

    Who can write the cache can run code, so it is never in a shared place. JAX's own
    JAX_COMPILATION_CACHE_DIR takes precedence.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        directory = Path.home() / ".cache" / "seva_jax" / "compiled"
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        jax.config.update("jax_compilation_cache_dir", str(directory))
