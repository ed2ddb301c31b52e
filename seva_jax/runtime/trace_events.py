"""Reads a trace of JAX's profiler into plain values: device operations, steps, waits for input.

TPUs and GPUs have a plane each in the trace. On CPUs the operations are among the host's own
events. A TPU's plane keeps what is equal for all events of an operation (its HLO category, where it
was written) apart from them, where `jax.profiler.ProfileData` does not reach; the trace.json.gz
beside the trace has it. What does not live here: what the operations are (`trace_summary.py`).
"""

from __future__ import annotations

import gzip
import json
import re
import warnings
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jax.profiler import ProfileData

from seva_jax.types import DataError

WAITING = "wait for input"  # the annotation of a loop that waits for its next batch
EVENTS, DETAILS = ".xplane.pb", ".trace.json.gz"  # endings of a process's two files

_ACCELERATOR = re.compile(r"/device:(?:TPU|GPU):\d+")  # not "/device:TPU:0 SparseCore 0"
_HOST = "/host:CPU"
# A GPU replays kernels that XLA recorded in a CUDA graph: all have its name, and no other origin.
_RECORDED, _NO_ORIGIN = "command_buffer", "XlaModule"

Span = tuple[int, int]  # start and end in nanoseconds since the trace began
Details = Mapping[tuple[str, str], Mapping[str, Any]]  # by plane and short name


class Op(NamedTuple):
    """One execution of an operation on a device.

    Attributes:
        device: the device, such as "/device:TPU:0".
        line: the queue of the device that ran it.
        name: the HLO operation or, on GPUs, the kernel if the HLO operation is unknown.
        text: what else says what it is: the HLO instruction, or the name of the kernel.
        category: the HLO category; empty if the trace has none.
        origin: the JAX operation or source line it comes from, else the compiled program.
        start: nanoseconds since the trace began.
        end: likewise.
    """

    device: str
    line: str
    name: str
    text: str
    category: str
    origin: str
    start: int
    end: int


class Step(NamedTuple):
    """One step, as annotated by the loop (`jax.profiler.StepTraceAnnotation`).

    Attributes:
        name: name of the loop.
        number: number of the step.
        start: nanoseconds since the trace began.
        end: likewise.
    """

    name: str
    number: int
    start: int
    end: int


class Trace(NamedTuple):
    """What one process traced.

    Attributes:
        ops: operations of its devices.
        steps: the steps, in order.
        waits: when the loop waited for input.
    """

    ops: tuple[Op, ...]
    steps: tuple[Step, ...] = ()
    waits: tuple[Span, ...] = ()


def trace_files(folder: Path) -> list[Path]:
    """Returns the files of the newest trace in a folder or below it, one for each process.

    Raises:
        DataError: there is none.
    """
    files = sorted(folder.rglob(f"*{EVENTS}"))
    if not files:
        raise DataError(f"{folder} holds no trace of JAX's profiler (no file *{EVENTS})")
    newest = max(files, key=lambda file: (file.stat().st_mtime, file)).parent
    return [file for file in files if file.parent == newest]


def read_trace(file: Path) -> Trace:
    """Reads the trace of one process.

    Args:
        file: its *.xplane.pb; its *.trace.json.gz is read too if it is there.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        data = ProfileData.from_serialized_xspace(file.read_bytes())
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{file}: not a trace of JAX's profiler ({error})") from None
    beside = file.with_name(file.name.removesuffix(EVENTS) + DETAILS)
    with warnings.catch_warnings():
        # Python 3.12 warns of types that jaxlib makes when they are first used.
        warnings.simplefilter("ignore", DeprecationWarning)
        return trace_of(data, read_details(beside))


def read_details(file: Path) -> dict[tuple[str, str], Mapping[str, Any]]:
    """Returns what a *.trace.json.gz says of each operation of TPUs and GPUs; {} without one."""
    try:
        events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    except (OSError, ValueError, KeyError, EOFError, zlib.error):
        return {}  # it only adds to the trace
    planes = {
        event["pid"]: event["args"]["name"]
        for event in events
        if event.get("name") == "process_name" and _ACCELERATOR.fullmatch(event["args"]["name"])
    }
    return {
        (planes[event["pid"]], short_name(event["name"])): event["args"]
        for event in events
        if event.get("ph") == "X" and event.get("pid") in planes and "args" in event
    }


def trace_of(data: Any, details: Details) -> Trace:
    """Returns the operations, steps and waits of a trace.

    Args:
        data: the trace, a `jax.profiler.ProfileData`.
        details: see `read_details`.
    """
    planes = list(data.planes)
    ops = [
        op for plane in planes if _ACCELERATOR.fullmatch(plane.name)
        for op in _accelerator_ops(plane, details)
    ]  # fmt: skip
    on_host, steps, waits = [], [], []
    for plane in planes:
        for line in plane.lines if plane.name == _HOST else ():
            for event in line.events:
                if event.name == WAITING:
                    waits.append(_span(event))
                    continue
                stats = dict(event.stats)
                if "step_num" in stats:
                    steps.append(Step(event.name, int(stats["step_num"]), *_span(event)))
                elif "hlo_op" in stats and not ops:
                    on_host.append(_op(f"cpu:{stats.get('device_ordinal', 0)}", line, event, stats))
    steps.sort(key=lambda step: (step.start, step.number))
    return Trace(tuple(ops or on_host), tuple(steps), tuple(sorted(waits)))


def _accelerator_ops(plane: Any, details: Details) -> Iterator[Op]:
    for line in plane.lines:
        # Kernels of a GPU are on its streams; other lines repeat them, grouped in another way.
        queues = ("XLA Ops", "Async XLA Ops") if "TPU" in plane.name else ("Stream",)
        if not line.name.startswith(queues):
            continue
        for event in line.events:
            stats = dict(event.stats)
            more = details.get((plane.name, short_name(event.name)), {})
            yield _op(plane.name, line, event, {**more, **stats})


def _op(device: str, line: Any, event: Any, stats: Mapping[str, Any]) -> Op:
    name = str(stats.get("hlo_op") or "")
    if not name or name.startswith(_RECORDED):
        name = short_name(event.name)
    text = event.name if event.name != name else str(stats.get("long_name", ""))
    origins = (str(stats.get(key, "")) for key in ("tf_op", "name", "source", "hlo_module"))
    origin = next((x for x in (x.rstrip(":") for x in origins) if x not in ("", _NO_ORIGIN)), "")
    category = str(stats.get("hlo_category", ""))
    return Op(device, line.name, name, text, category, origin, *_span(event))


def short_name(name: str) -> str:
    """Returns the name of an operation whose event is named by its whole HLO instruction.

    >>> short_name("%fusion.1 = f32[8]{0:T(8)} fusion(%copy.2), kind=kLoop"), short_name("dot.3")
    ('fusion.1', 'dot.3')
    """
    return name.partition(" = ")[0].removeprefix("%")


def _span(event: Any) -> Span:
    return round(event.start_ns), round(event.end_ns)
