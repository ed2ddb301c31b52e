"""Counts what the collectives of a compiled program send, from its HLO text.

XLA's own cost analysis counts the body of a loop once. Here it counts as often as the loop runs,
which follows from its condition (counter < constant) and its body (counter + constant).
"""

from __future__ import annotations

import collections
import math
import re
import warnings
from collections.abc import Mapping

_BYTES = {
    "pred": 1, "s8": 1, "u8": 1, "s4": 0.5, "u4": 0.5, "s16": 2, "u16": 2, "bf16": 2, "f16": 2,
    "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "f8e4m3fn": 1, "f8e5m2": 1,
}  # fmt: skip
_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\((.*)$")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|called_computations=\{)=?%([\w.\-]+)")

Computations = Mapping[str, list[str]]


def collective_bytes(text: str, trips: int | None = None) -> dict[str, float]:
    """Returns the bytes that each chip sends when a program runs once, by kind of collective.

    In an all-gather of n bytes over g chips each chip sends n (g - 1) / g, and so it does in a
    reduce-scatter of n bytes. An all-reduce is one of each. A permute sends its operand.

    Args:
        text: `compiled.as_text()` of a partitioned program.
        trips: how often loops run whose number of trips is known at run time only, such as one
            that ends when enough answers do; None counts them once, with a warning.

    Raises:
        ValueError: a collective names its groups of chips in an unknown form.
    """
    computations, entry = _split(text)
    sent: dict[str, float] = collections.defaultdict(float)
    seen: set[tuple[str, str]] = set()

    def visit(name: str, times: int) -> None:
        for line in computations.get(name, ()):
            match = _INSTRUCTION.match(line)
            if not match:
                continue
            name_of_line, shape, operation, rest = match.groups()
            kind = operation.removesuffix("-start")
            if kind in _KINDS:
                # An asynchronous operation appears in several computations, on one channel.
                channel = re.search(r"channel_id=(\d+)", line)
                key = (kind, channel[1] if channel else f"{name}/{name_of_line}")
                if key not in seen:
                    seen.add(key)
                    size = _sent(kind, shape, line, operation.endswith("-start"))
                    if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
                        # On TPUs a reduce-scatter is a fusion of an all-reduce and a slice.
                        kind, size = "reduce-scatter", size / 2
                    sent[kind] += times * size
            inner = times
            if operation == "while":
                known = _trips(computations, line)
                if known is None and trips is None:
                    warnings.warn(
                        f"how often a loop runs cannot be read; what it sends counts once: {line}",
                        stacklevel=2,
                    )
                inner *= known if known is not None else 1 if trips is None else trips
            for called in _CALLED.findall(rest):
                visit(called, inner)

    visit(entry, 1)
    return dict(sent)


def _split(text: str) -> tuple[Computations, str]:
    """Returns the lines of every computation by name, and the name of the entry computation."""
    computations: dict[str, list[str]] = {}
    entry = current = ""
    for line in text.splitlines():
        header = _COMPUTATION.match(line)
        if header:
            current = header[2]
            computations[current] = []
            entry = current if header[1] else entry
        elif line.rstrip() == "}":  # a kernel's metadata spans lines that start with "}"
            current = ""
        elif current:
            computations[current].append(line.strip())
    return computations, entry


def _arrays(shape: str) -> list[float]:
    """Returns the bytes of each array in a shape: "bf16[8,4]{1,0}", or a tuple of such shapes."""
    return [
        _BYTES[dtype] * math.prod(int(d) for d in dims.split(",") if d)
        for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", shape)
        if dtype in _BYTES
    ]


def _group_size(line: str) -> int:
    """Returns how many chips take part in a collective together."""
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]", line)
    if iota:
        return int(iota[2])
    # mesh['a'=4,'b'=16] {'b'}, possibly with device_ids=([16,4]T(1,0)) in between.
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\].*? \{('[^}]*)\}", line)
    if mesh:
        sizes = dict(re.findall(r"'([\w]+)'=(\d+)", mesh[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", mesh[2]))
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    if listed:
        return len(listed[1].split(","))
    if "replica_groups=" in line:
        raise ValueError(f"replica_groups in an unknown form: {line[:300]}")
    return 1


def _sent(kind: str, shape: str, line: str, start: bool) -> float:
    """Returns the bytes that each chip sends in one collective.

    Args:
        kind: one of `_KINDS`.
        shape: its result; of a start operation, operands and results.
        line: the instruction.
        start: whether it is the start of an asynchronous operation.
    """
    arrays = _arrays(shape)
    if start and kind in ("all-gather", "collective-permute"):
        arrays = arrays[len(arrays) // 2 :] if kind == "all-gather" else arrays[:1]
    size, group = sum(arrays), _group_size(line)
    if kind == "collective-permute":
        return size
    if kind == "reduce-scatter":
        return size * (group - 1)  # the result is one part
    return size * (group - 1) / group * (2 if kind == "all-reduce" else 1)


def _trips(computations: Computations, line: str) -> int | None:
    """Returns how often the loop of a `while` line runs, or None if that cannot be read."""
    known = re.search(r'known_trip_count.{0,8}"n":"(\d+)"', line)
    if known:
        return int(known[1])
    names = {k: re.search(rf"{k}=%([\w.\-]+)", line) for k in ("condition", "body")}
    if not all(names.values()):
        return None
    condition, body = (_definitions(computations[match[1]]) for match in names.values() if match)
    compare = next((x for x in condition.values() if x[0] == "compare"), None)
    if compare is None or "direction=LT" not in compare[1]:
        return None
    counter, limit = _operands(compare[1])[:2]
    index = re.search(r"index=(\d+)", condition.get(counter, ("", ""))[1])
    stop, root = _constant(condition, limit), body.get("ROOT")
    if index is None or stop is None or root is None or root[0] != "tuple":
        return None
    step = body.get(_operands(root[1])[int(index[1])], ("", ""))
    amounts = [_constant(body, name) for name in _operands(step[1])] if step[0] == "add" else []
    amount = next((a for a in amounts if a), 1)
    return -(-stop // amount)


def _definitions(lines: list[str]) -> dict[str, tuple[str, str]]:
    """Returns (operation, rest of the line) by name; the root also under "ROOT"."""
    definitions = {}
    for line in lines:
        match = _INSTRUCTION.match(line)
        if match:
            definitions[match[1]] = (match[3], match[4])
            if line.startswith("ROOT"):
                definitions["ROOT"] = definitions[match[1]]
    return definitions


def _operands(rest: str) -> list[str]:
    return re.findall(r"%([\w.\-]+)", rest.split("), ")[0])


def _constant(definitions: Mapping[str, tuple[str, str]], name: str) -> int | None:
    operation, rest = definitions.get(name, ("", ""))
    value = re.match(r"(\d+)\)", rest)
    return int(value[1]) if operation == "constant" and value else None
