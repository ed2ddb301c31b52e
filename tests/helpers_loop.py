"""What one pass of a decode loop copies and reads, from the text of a compiled program.

Memory is main memory: HBM on a TPU, whose compiler brings arrays to its on-chip memory (S(1) in a
layout) before they are used. Bringing one there reads it, and counts as reading; what is read from
there does not.
"""

import dataclasses
import re

from seva_jax.plan.hlo import _INSTRUCTION, _arrays, _split

# Instructions that only move, cut, spread or convert what they get.
_MOVES = {
    "copy", "transpose", "convert", "bitcast", "bitcast-convert", "reshape", "broadcast", "slice",
    "dynamic-slice", "concatenate", "pad", "tuple", "get-tuple-element", "parameter", "constant",
    "copy-start", "copy-done", "reverse",
}  # fmt: skip
_FREE = {
    "bitcast", "tuple", "get-tuple-element", "parameter", "constant", "copy-done", "slice-done",
    "iota", "partition-id", "after-all", "opt-barrier",
}  # fmt: skip
_PARTS = {"dynamic-slice": 0, "gather": 0, "slice": 0}  # read of operand 0 what they return
_ARRAY = re.compile(r"\w+\[[\d,]*\](?:\{[^{}]*\})?")


@dataclasses.dataclass(frozen=True)
class Loop:
    """One pass of a loop.

    Attributes:
        read: bytes read from main memory.
        copies: bytes and text of every instruction that copies to main memory without computing.
        entry_copies: the same of the instructions before and after the loop.
    """

    read: float
    copies: list
    entry_copies: list


@dataclasses.dataclass(frozen=True)
class _Line:
    name: str
    shape: str
    operation: str
    operands: list
    text: str
    root: bool


def token_loop(text):
    """Returns what the loop of a program's entry does, of which there has to be one."""
    computations, entry = _split(text)
    lines = {name: _parsed(body) for name, body in computations.items()}
    loops = [x for x in lines[entry] if x.operation == "while"]
    assert len(loops) == 1, [x.text[:80] for x in loops]
    body = re.search(r"body=%?([\w.\-]+)", loops[0].text)[1]
    reading, copies = _visit(lines, body)
    return Loop(reading, copies, _visit(lines, entry, follow=False)[1])


def _parsed(body):
    out = []
    for line in body:
        match = _INSTRUCTION.match(line)
        if match:
            name, shape, operation, rest = match.groups()
            names = re.findall(r"%([\w.\-]+)", rest.split("), ")[0])
            out.append(_Line(name, shape, operation, names, line, line.startswith("ROOT")))
    return out


def _in_main_memory(shape):
    """Returns the bytes of those arrays of a shape that are in main memory."""
    return [sum(_arrays(x)) for x in _ARRAY.findall(shape) if "S(1)" not in x and "S(6)" not in x]


def _visit(lines, name, follow=True):
    by_name = {x.name: x for x in lines[name]}
    reading, copies = 0.0, []
    for line in lines[name]:
        if line.operation in _FREE:
            continue
        called = re.search(r"(?:calls|to_apply|body)=%?([\w.\-]+)", line.text)
        if line.operation in ("while", "call", "conditional"):
            inner = re.findall(r"(?:to_apply|body)=%?([\w.\-]+)", line.text)
            branches = re.search(r"branch_computations=\{([^}]*)\}", line.text)
            if branches:
                inner += re.findall(r"%([\w.\-]+)", branches[1])
            for one in inner if follow else ():
                more, others = _visit(lines, one)
                reading, copies = reading + more, copies + others
            continue
        before = reading
        fused = lines[called[1]] if called and line.operation == "fusion" else None
        for i, operand in enumerate(line.operands):
            if operand in by_name and by_name[operand].operation != "constant":
                size = sum(_in_main_memory(by_name[operand].shape))
                reading += min(size, _read_of(fused, i) if fused else _part(line, i, size))
        if line.operation.endswith("-start"):
            # Of the source, the destination and a flag, only a copy within main memory counts.
            sizes = _in_main_memory(line.shape)
            moved = line.operation == "copy-start" and len(sizes) > 2
            size = sizes[0] if moved else 0.0
        else:
            operations = {x.operation for x in fused} if fused else {line.operation}
            # What is made of constants, or was in the chip, is not in memory twice.
            moves = operations <= _MOVES and reading > before
            size = sum(_in_main_memory(line.shape)) if moves else 0.0
        if size:
            copies.append((size, line.text))
    return reading, copies


def _part(line, i, size):
    """Returns the bytes that an instruction that is not fused reads of operand i."""
    if i == 0 and line.operation == "dynamic-update-slice":
        return 0.0
    if i == 0 and line.operation in _PARTS:
        return sum(_arrays(line.shape))
    if line.operation == "slice-start":
        return sum(sorted(_arrays(line.shape))[:-1])
    return size


def _read_of(fused, i):
    """Returns the most bytes that a fusion reads of parameter i."""
    parameter = next(
        x.name for x in fused if x.operation == "parameter" and f"parameter({i})" in x.text
    )
    names, total = {parameter}, 0.0
    for line in fused:  # in order: operands come first
        uses = [at for at, name in enumerate(line.operands) if name in names]
        if not uses:
            continue
        if line.operation == "bitcast":
            names.add(line.name)
        elif uses == [0] and line.operation in _PARTS:
            total += sum(_arrays(line.shape))
        elif uses == [0] and line.operation == "dynamic-update-slice":
            if not line.root:
                names.add(line.name)  # whoever reads the updated array reads it whole
        else:
            return float("inf")
    return total
