"""The processes of one run, one per host: joining them, barriers, and exchanging small values.

`one_line_errors`, which wraps every command, and `join` also set what has to be in the environment
before JAX looks for devices: libtpu's flags and XLA's share of a GPU's memory.

Which process holds which rows follows from the mesh (`seva_jax.sharding.process_row_share`). Only
process 0 writes files and prints; the work directory must be visible to all processes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import select
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import jax
import numpy as np
from jax._src import distributed  # what it waits for has no public name

from seva_jax.ranges import ABOVE_0, FROM_1
from seva_jax.runtime import lock, shutdown
from seva_jax.runtime.paths import hide_home
from seva_jax.runtime.profiler import profiler
from seva_jax.runtime.quiet import quiet_libraries
from seva_jax.runtime.store_client import StoreError
from seva_jax.types import DataError

_Value = TypeVar("_Value")

_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")

_PATIENCE_S = 10.0  # before a process that waits for others says so

_PIECE = 2**20  # bytes of a process that are exchanged at a time

GPU_MEMORY_SHARE = 0.92  # of each GPU is XLA's; the rest is for CUDA's and NCCL's own buffers
# With any of these, the user decides what XLA takes.
_MEMORY_VARIABLES = (
    *("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"),
    *("XLA_PYTHON_CLIENT_PREALLOCATE", "XLA_PYTHON_CLIENT_ALLOCATOR"),
)

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
        join_timeout_s: a process that has not joined all others within this many seconds, because
            the coordinator's address is wrong or a process does not start, ends with an error.
        grace_s: after SIGTERM or Ctrl-C, the run finishes its current step or batch, saves and
            ends. If this takes longer than this many seconds on any process, as a compilation may,
            the run ends at once and resumes from its last save. Kubernetes and Slurm kill after
            30 s by default.
        libtpu_flags: "overlap" hides collectives behind compute where XLA can, which helps large
            fsdp meshes and may cost memory; compare with seva_jax.plan. LIBTPU_INIT_ARGS overrides
            these flags.
    """

    peer_timeout_s: Annotated[int, FROM_1] = 100
    join_timeout_s: Annotated[int, FROM_1] = 300
    grace_s: Annotated[float, ABOVE_0] = 25.0
    libtpu_flags: Literal["none", "overlap"] = "none"


def set_libtpu_flags(options: ProcessOptions) -> None:
    """Puts the chosen flags into LIBTPU_INIT_ARGS, in front of what it has.

    Must be called before anything asks JAX for a device, which loads libtpu.
    """
    if options.libtpu_flags == "overlap":
        own = os.environ.get("LIBTPU_INIT_ARGS", "")
        os.environ["LIBTPU_INIT_ARGS"] = " ".join((*_OVERLAP, own)).strip()


def set_gpu_memory_share() -> None:
    """Lets XLA take 92 % of each GPU's memory, not 75 %, unless the user's environment decides.

    Must be called before anything asks JAX for a device.
    """
    if not any(name in os.environ for name in _MEMORY_VARIABLES):
        os.environ["XLA_CLIENT_MEM_FRACTION"] = str(GPU_MEMORY_SHARE)


def join(options: ProcessOptions) -> None:
    """Joins the other processes of the run; does nothing for a single process.

    Cloud TPU, GKE, Slurm and Open MPI are recognised. Elsewhere (`launch/local.py`) three
    environment variables describe the processes: JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
    JAX_PROCESS_ID. Must be called before anything else asks JAX for a device.

    Raises:
        DataError: the variables do not describe the processes, or these cannot be joined.
        SystemExit: they did not all join in time; ends the process itself, with a line.
    """
    set_libtpu_flags(options)
    set_gpu_memory_share()
    given = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    where = _described(given) if given else {}
    with _limited_wait(options.join_timeout_s):
        try:
            jax.distributed.initialize(
                **where,
                # JAX's own limit, which aborts the process with a C++ stack trace, comes later.
                initialization_timeout=options.join_timeout_s + 60,
                heartbeat_timeout_seconds=options.peer_timeout_s,
                shutdown_timeout_seconds=options.peer_timeout_s,  # others may hang in a collective
            )
        except ValueError as error:
            if given or "coordinator_address" not in str(error):
                raise DataError(f"the processes of the run cannot be joined: {error}") from None


def _described(given: dict[str, str]) -> dict[str, Any]:
    """Returns the arguments of `jax.distributed.initialize` that the variables stand for.

    Args:
        given: those of the three variables that are set.

    Raises:
        DataError: they cannot be meant, or this process cannot be the coordinator.
    """
    try:
        address, num = given[_VARIABLES[0]], int(given[_VARIABLES[1]])
        number, port = int(given[_VARIABLES[2]]), int(address.rpartition(":")[2])
        if ":" not in address or not (0 <= number < num and 0 < port < 2**16):
            raise ValueError
    except (KeyError, ValueError):
        raise DataError(
            f"the environment has {given}; set all of {', '.join(_VARIABLES)} (HOST:PORT of "
            "process 0, the number of processes, and that of this one, from 0), or none of them"
        ) from None
    if number == 0 and "JAX_COORDINATOR_BIND_ADDRESS" not in os.environ:
        _require_free(port)
    return {"coordinator_address": address, "num_processes": num, "process_id": number}


def _require_free(port: int) -> None:
    """Raises `DataError` if the coordinator could not listen; JAX would crash."""
    try:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        socket.create_server(("", port), family=family, dualstack_ipv6=both).close()
    except OSError as error:
        raise DataError(
            f"process 0 cannot listen at port {port} of this host ({_reason(error)}): another "
            "process has it, perhaps one of an earlier start; end that one, or set another port in "
            "JAX_COORDINATOR_ADDRESS of all processes"
        ) from None


@contextlib.contextmanager
def _limited_wait(limit_s: float) -> Iterator[None]:
    """Ends the process with one line if the body, which waits for the others, takes too long.

    What it waits for is said earlier, once. JAX itself would say nothing and abort.
    """
    joined = threading.Event()

    def watch() -> None:
        early_s = min(_PATIENCE_S, limit_s)
        if joined.wait(early_s):
            return
        if early_s < limit_s:
            _complain(f"{_unjoined()} (waiting up to {limit_s} s, --processes.join-timeout-s)")
            if joined.wait(limit_s - early_s):
                return
        _complain(f"error: {_unjoined()}")
        os._exit(shutdown.Status.ERROR)

    threading.Thread(target=watch, name="joining", daemon=True).start()
    try:
        yield
    finally:
        joined.set()


def _complain(line: str) -> None:
    print(hide_home(line), file=sys.stderr, flush=True)


def _unjoined() -> str:
    """Returns why this process has not joined the others yet, as far as it can find out."""
    state = distributed.global_state
    address = state.coordinator_address
    if address is None:
        return "the launcher's environment names a coordinator whose host has no address yet"
    host, _, port = address.rpartition(":")
    me = f"process {state.process_id}"
    remedy = "set JAX_COORDINATOR_ADDRESS of all processes to HOST:PORT of process 0"
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except socket.gaierror:
        return (
            f"{me} cannot find the coordinator {address}, because no host has that name; {remedy}"
        )
    except OSError as error:
        no = f"no answer from the coordinator {address} ({_reason(error)})"
        return f"{me} gets {no}: start it, or {remedy}"
    return (
        f"{me} has reached the coordinator {address}, but not all of {state.num_processes} "
        "processes have: start each of them once, with JAX_PROCESS_ID from 0 on"
    )


def _reason(error: OSError) -> str:
    """Returns what the system says about an error, without what Python adds."""
    return os.strerror(error.errno) if error.errno else str(error)


def require_devices() -> None:
    """Raises `DataError` unless JAX has a device to compute on; says why and what to do."""
    try:
        jax.devices()
    # JAX raises the second for JAX_PLATFORMS=cuda where it sees no GPU.
    except (RuntimeError, AssertionError) as error:
        config: Any = jax.config  # whose fields are made when it is imported
        wanted = config.jax_platforms or ""
        said = (str(error).splitlines() or [""])[0].partition(" (set JAX_PLATFORMS")[0]
        why = f" ({said})" if said else ""
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        kind = wanted.partition(",")[0]
        how = {
            "cuda": "see whether nvidia-smi lists one and pip install 'seva_jax[cuda12]'"
            + f", and CUDA_VISIBLE_DEVICES is {hidden!r}" * (hidden is not None),
            "gpu": "see whether nvidia-smi lists one and pip install 'seva_jax[cuda12]'",
            "tpu": "see whether this is a TPU VM that no other process uses, and pip install "
            "'seva_jax[tpu]'",
        }.get(kind, "known are cpu, cuda and tpu")
        raise DataError(
            f"JAX_PLATFORMS={wanted}, but JAX has no such device here{why}: {how}; without "
            "JAX_PLATFORMS, or with cpu, the command uses what this machine has"
        ) from None


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
        require_devices()
        try:
            yield
        except shutdown.Stopped:
            say("stopped, everything finished is saved; run the same command again to resume")
            raise
        except (DataError, StoreError):
            raise
        except Exception as error:
            watch.failed(error)
            raise
        finally:
            lock.release_all()


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the command with one line and status 1 on bad input or an unwritable disk.

    It also prepares the environment for JAX, see `quiet_libraries` and `set_gpu_memory_share`.
    """
    quiet_libraries()
    set_gpu_memory_share()
    try:
        yield
    except (DataError, StoreError) as error:
        sys.exit(hide_home(f"error: {error}"))
    except (RuntimeError, AssertionError):  # as JAX raises without a device
        try:
            require_devices()
        except DataError as error:
            sys.exit(hide_home(f"error: {error}"))
        raise
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        sys.exit(1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG):
            raise
        problem = f"error: {error}; make room or make it writable, then run the same command again"
        sys.exit(hide_home(problem))


def _reader_is_gone() -> bool:
    """Returns whether what reads the output of this process has ended, such as `head`."""
    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), 0)
    except (OSError, ValueError):  # no file, as in a notebook
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))


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
    return [json.loads(data) for data in gather_bytes(json.dumps(value).encode())]


def gather_bytes(data: bytes) -> list[bytes]:
    """Returns the bytes of every process, in process order, on every process.

    Args:
        data: this process's, less than 2 GiB.
    """
    if jax.process_count() == 1:
        return [data]
    from jax.experimental import multihost_utils

    sizes = np.asarray(multihost_utils.process_allgather(np.int32(len(data)))).reshape(-1)
    largest = int(sizes.max())
    # Few distinct widths, so few compilations; each device holds a piece of every process's.
    width = min(1 << largest.bit_length(), _PIECE)
    padded = np.zeros(-(-largest // width) * width, np.uint8)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    pieces = [
        np.asarray(multihost_utils.process_allgather(piece)).reshape(len(sizes), width)
        for piece in padded.reshape(-1, width)
    ]
    everyone = np.concatenate([np.empty((len(sizes), 0), np.uint8), *pieces], axis=1)
    return [row[:size].tobytes() for row, size in zip(everyone, sizes, strict=True)]


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


def require_none(problems: Sequence[str]) -> None:
    """Raises an error on every process if any of them has problems.

    Args:
        problems: those of this process.

    Raises:
        DataError: lists the problems of all processes; the same on every process.
    """
    everyone = gather(list(problems))
    lines = list[str]()
    for line in dict.fromkeys(line for each in everyone for line in each):
        having = [number for number, each in enumerate(everyone) if line in each]
        where = f"process {having[0]}: " if len(having) < len(everyone) else ""
        lines.append(where + line)
    if lines:
        raise DataError("\n  ".join([f"{len(lines)} problems:", *lines] if lines[1:] else lines))


def use_compile_cache() -> None:
    """Keeps compiled programs between runs, in a directory that only this user can write.

    Anyone who can write to the cache can run code as this user, so it is never in a shared place.
    JAX's own JAX_COMPILATION_CACHE_DIR takes precedence.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        directory = Path.home() / ".cache" / "seva_jax" / "compiled"
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        jax.config.update("jax_compilation_cache_dir", str(directory))
