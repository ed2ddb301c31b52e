"""Summarises a trace: what devices did with their time, and the operations that took most of it.

Every moment of a device counts once: as the first in the order of `PARTS` that it did then, or as
idle. Collectives that run beside computation are therefore counted as computation, and those that
count as collectives are *exposed*: the device had nothing else to do. All functions are pure. Read
next: `trace_events.py`, which reads traces.
"""

from __future__ import annotations

import bisect
import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from seva_jax.runtime.paths import short_path
from seva_jax.runtime.trace_events import Op, Span, Trace

MATMULS, ATTENTION, COMPUTE = "matrix products", "attention kernels", "other compute"
COLLECTIVES, COPIES, IDLE = "collectives", "copies", "idle"
PARTS = (ATTENTION, MATMULS, COMPUTE, COLLECTIVES, COPIES, IDLE)

NUM_OPS = 10

# Kinds of collectives as HLO, NCCL's kernels and JAX spell them, in lower case without separators.
# XLA names an instruction after the JAX operation it comes from, so "psum.3" may be an all-reduce.
_COLLECTIVES = {
    "reduce-scatter": ("reducescatter", "psumscatter"),  # first: TPUs have an all-reduce-scatter
    "all-reduce": ("allreduce", "psum", "pmax", "pmin"),
    "all-gather": ("allgather",),
    "all-to-all": ("alltoall",),
    "collective-permute": ("collectivepermute", "ppermute"),
    "broadcast": ("collectivebroadcast", "ncclbroadcast", "nccldevkernelbroadcast"),
    "send and receive": ("sendrecv",),
}
_SEND = re.compile(r"(send|recv)(-done)?(\.\d+)?")
_OPCODE = re.compile(r" ([a-z][a-z0-9-]*)\(")  # of an HLO instruction; layouts have capitals
_WORD = re.compile(r"[A-Za-z]+")
_CONTAINERS = {"while", "conditional", "cond", "call"}  # their bodies are events of their own
_ATTENTION = ("flash", "splash", "attention", "fmha", "sdpa", "mosaic_gpu")  # the last: tokamax
_MATMULS = {"dot", "convolution", "conv", "matmul", "ynn"}  # ynn: XLA's matrix products on CPUs
_GEMM = re.compile(r"gemm|cutlass|nvjet|xmma")
_MEMORY = re.compile(r"mem(cpy|set)")
_COPY = {"copy", "infeed", "outfeed"}
_AROUND_COPY = {"fusion", "wrapped", "loop", "start", "done", "bitcast", "transpose"}


@dataclasses.dataclass(frozen=True)
class TopOp:
    """An operation that took much time.

    Attributes:
        name: its HLO name, or its kernel's.
        part: the part of `PARTS` it belongs to.
        origin: the JAX operation or source line it comes from, else the program.
        seconds: time of one device in it, without operations inside it; mean over devices.
        count: executions on all devices.
        share: `seconds` over the traced time.
    """

    name: str
    part: str
    origin: str
    seconds: float
    count: int
    share: float


@dataclasses.dataclass(frozen=True)
class Summary:
    """What devices did while some steps were traced. Shares are means over devices.

    Attributes:
        loop: name of the loop, such as the stage of a run; empty if no steps are marked.
        first: number of the first step.
        last: number of the last step.
        steps: how many steps.
        seconds: traced time, from the first step to the end of the last.
        processes: number of processes whose traces are summarised.
        devices: number of devices.
        shares: share of the time by part, in the order of `PARTS`; they add up to 1.
        collectives: share of the time in which collectives of each kind ran, also behind
            computation; several can run at once.
        hidden: share of the time in which collectives ran behind computation.
        waiting: share of the time that the loop waited for input.
        waiting_idle: share of the time in which a device was idle meanwhile.
        ops: the operations that took most time.
    """

    loop: str
    first: int
    last: int
    steps: int
    seconds: float
    processes: int
    devices: int
    shares: dict[str, float]
    collectives: dict[str, float]
    hidden: float
    waiting: float
    waiting_idle: float
    ops: tuple[TopOp, ...]

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Summary:
        """Returns the summary that `dataclasses.asdict` made these values of."""
        return cls(**{**values, "ops": tuple(TopOp(**op) for op in values["ops"])})


def collective_kind(op: Op) -> str:
    """Returns the kind of collective that an operation is; empty if it is none."""
    # Not the operands in `text`: what uses the result of a collective is none.
    names = (op.name, op.category, _opcode(op.text), _kernel(op.text))
    if any(_SEND.fullmatch(name) for name in names):
        return "send and receive"
    plain = " ".join(re.sub(r"[^a-z ]", "", name.lower()) for name in names)
    for kind, spellings in _COLLECTIVES.items():
        if any(spelling in plain for spelling in spellings):
            return kind
    return ""


def part_of(op: Op) -> str:
    """Returns the part of `PARTS` that an operation belongs to, by its names and its category."""
    if collective_kind(op):
        return COLLECTIVES
    name = f"{op.name} {_kernel(op.text)}".lower()
    if any(word in name for word in _ATTENTION):
        return ATTENTION
    words = set(_WORD.findall(f"{name} {op.category} {_opcode(op.text)}".lower()))
    if words & _MATMULS or _GEMM.search(name) or "kind=kOutput" in op.text:
        return MATMULS
    words = set(_WORD.findall(f"{op.name} {op.category}".lower()))
    only_copies = words & _COPY and words <= _COPY | _AROUND_COPY
    if only_copies or op.category == "data formatting" or _MEMORY.match(name.split()[-1]):
        return COPIES
    return COMPUTE


def _opcode(text: str) -> str:
    match = _OPCODE.search(text) if " = " in text else None
    return match[1] if match else ""


def _kernel(text: str) -> str:
    """Returns the name of a GPU's kernel without its arguments; empty for an HLO instruction."""
    return "" if " = " in text else text.partition("(")[0]


def summarise(traces: Sequence[Trace]) -> Summary:
    """Summarises the traces that some processes took of the same steps.

    Args:
        traces: one for each process; their clocks may differ.
    """
    devices = [
        _Device(ops, *_window(trace), trace.waits) for trace in traces for ops in _by_device(trace)
    ]
    windows = [end - start for start, end in map(_window, traces)]
    steps = [step for trace in traces[:1] for step in trace.steps]
    num = max(len(devices), 1)
    shares = {part: sum(device.shares[part] for device in devices) / num for part in PARTS}
    kinds = {kind: sum(device.kinds.get(kind, 0.0) for device in devices) / num
             for kind in _COLLECTIVES}  # fmt: skip
    waiting = sum(
        length(clipped(trace.waits, *_window(trace))) / max(window, 1)
        for trace, window in zip(traces, windows, strict=True)
    )
    return Summary(
        loop=steps[0].name if steps else "",
        first=steps[0].number if steps else 0,
        last=steps[-1].number if steps else 0,
        steps=len(steps),
        seconds=sum(windows) / max(len(windows), 1) / 1e9,
        processes=len(traces),
        devices=len(devices),
        shares=shares if devices else {part: float(part == IDLE) for part in PARTS},
        collectives={kind: share for kind, share in kinds.items() if share},
        hidden=sum(device.hidden for device in devices) / num,
        waiting=waiting / max(len(traces), 1),
        waiting_idle=sum(device.waiting_idle for device in devices) / num,
        ops=_top(devices),
    )


def _window(trace: Trace) -> Span:
    """Returns the time of the steps; of all operations if no steps are marked."""
    ends = [*(op.end for op in trace.ops), *(step.end for step in trace.steps)]
    starts = [step.start for step in trace.steps] or [op.start for op in trace.ops]
    return (min(starts), max(ends)) if starts else (0, 0)


def _by_device(trace: Trace) -> list[list[Op]]:
    groups: dict[str, list[Op]] = collections.defaultdict(list)
    for op in trace.ops:
        groups[op.device].append(op)
    return [_without_containers(groups[device]) for device in sorted(groups)]


def _without_containers(ops: list[Op]) -> list[Op]:
    """Leaves out loops and calls during which other operations of the device began."""
    inner = [op for op in ops if not _is_container(op)]
    starts = sorted(op.start for op in inner)

    def has_body(op: Op) -> bool:
        return bisect.bisect_left(starts, op.start) < bisect.bisect_left(starts, op.end)

    return inner + [op for op in ops if _is_container(op) and not has_body(op)]


def _is_container(op: Op) -> bool:
    first = _WORD.match(op.name)
    return _opcode(op.text) in _CONTAINERS or (first is not None and first[0] in _CONTAINERS)


class _Device:
    """What one device did between two moments.

    Attributes:
        shares: share of the time by part.
        kinds: share of the time in which each kind of collective ran.
        hidden: share of the time in which collectives ran behind computation.
        waiting_idle: share of the time in which it was idle while the loop waited for input.
        times: seconds in each operation, by (name, origin, part), without operations inside it.
        counts: executions, likewise.
        window: the time in nanoseconds.
    """

    def __init__(self, ops: list[Op], start: int, end: int, waits: Sequence[Span]) -> None:
        by_part: dict[str, list[Span]] = collections.defaultdict(list)
        by_kind: dict[str, list[Span]] = collections.defaultdict(list)
        inside = (op._replace(start=max(op.start, start), end=min(op.end, end)) for op in ops)
        ops = [op for op in inside if op.start < op.end]
        for op in ops:
            by_part[part_of(op)].append((op.start, op.end))
            if kind := collective_kind(op):
                by_kind[kind].append((op.start, op.end))
        self.window = max(end - start, 1)
        self.shares, taken = {}, []
        for part in PARTS:
            spans = merged(by_part[part]) if part != IDLE else [(start, end)]
            left = without(spans, taken)
            self.shares[part] = length(left) / self.window
            if part == IDLE:
                idle = left
            elif part == COLLECTIVES:
                self.hidden = (length(spans) - length(left)) / self.window
            taken = merged([*taken, *left])
        self.kinds = {k: length(merged(spans)) / self.window for k, spans in by_kind.items()}
        waited = clipped(waits, start, end)
        self.waiting_idle = (length(waited) - length(without(waited, idle))) / self.window
        self.times: collections.Counter[tuple[str, str, str]] = collections.Counter()
        self.counts: collections.Counter[tuple[str, str, str]] = collections.Counter()
        for op, own in _own_times(ops):
            key = (op.name, op.origin, part_of(op))
            self.times[key] += own
            self.counts[key] += 1


def _own_times(ops: Iterable[Op]) -> list[tuple[Op, int]]:
    """Returns each operation with its time without the operations inside it on the same queue."""
    order = sorted(ops, key=lambda op: (op.line, op.start, -op.end))
    own = [op.end - op.start for op in order]
    stack: list[int] = []
    for index, op in enumerate(order):
        while stack and (order[stack[-1]].line != op.line or order[stack[-1]].end <= op.start):
            stack.pop()
        if stack:
            own[stack[-1]] -= max(min(op.end, order[stack[-1]].end) - op.start, 0)
        stack.append(index)
    return list(zip(order, own, strict=True))


def _top(devices: Sequence[_Device]) -> tuple[TopOp, ...]:
    times: collections.Counter[tuple[str, str, str]] = collections.Counter()
    counts: collections.Counter[tuple[str, str, str]] = collections.Counter()
    for device in devices:
        times.update(device.times)
        counts.update(device.counts)
    whole = sum(device.window for device in devices)
    keys = sorted(times, key=lambda key: (-times[key], key))[:NUM_OPS]
    return tuple(
        TopOp(
            name,
            part,
            short_path(origin),  # it may be a file at home, and pages show it
            times[key] / len(devices) / 1e9,
            counts[key],
            times[key] / whole,
        )
        for key in keys
        for name, origin, part in [key]
    )


def clipped(spans: Iterable[Span], start: int, end: int) -> list[Span]:
    """Returns the part of some time that lies between two moments, as disjoint spans in order."""
    return merged((max(a, start), min(b, end)) for a, b in spans)


def merged(spans: Iterable[Span]) -> list[Span]:
    """Returns the same time as disjoint spans in order.

    >>> merged([(5, 7), (0, 3), (2, 4), (9, 9)])
    [(0, 4), (5, 7)]
    """
    out: list[Span] = []
    for start, end in sorted(spans):
        if start >= end:
            continue
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], end))
        else:
            out.append((start, end))
    return out


def without(spans: Iterable[Span], taken: Iterable[Span]) -> list[Span]:
    """Returns the part of some time that is outside of other time.

    Args:
        spans: disjoint and in order.
        taken: likewise.

    >>> without([(0, 10), (20, 30)], [(2, 4), (8, 22)])
    [(0, 2), (4, 8), (22, 30)]
    """
    out: list[Span] = []
    others = list(taken)
    first = 0
    for start, end in spans:
        while first < len(others) and others[first][1] <= start:
            first += 1
        index = first
        while index < len(others) and others[index][0] < end:
            if others[index][0] > start:
                out.append((start, others[index][0]))
            start = max(start, others[index][1])
            index += 1
        if start < end:
            out.append((start, end))
    return out


def length(spans: Iterable[Span]) -> int:
    """Returns the length of disjoint spans."""
    return sum(end - start for start, end in spans)
