"""Everything that RESULTS.md says of a GPU, in one command that takes less than six minutes.

Each part is another command of `seva_jax.bench` in a process of its own with a time limit, the most
important ones first, and prints its result when it has it. A part that fails or takes too long does
not stop the others. Programs that several parts run are compiled once. Nothing is read from the
network or from a checkpoint.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

from seva_jax.types import DataError

# Reads a layer's slice out of the stacked weights inside of the product that uses it.
_SLICE_FUSION = "--xla_gpu_enable_dynamic_slice_fusion"
_SECONDS = 350.0
_SHORTEST_S = 15.0  # a part is not started with less time left


class Part(NamedTuple):
    """One command.

    Attributes:
        name: what it measures.
        arguments: of `python -m seva_jax.bench`.
        limit_s: it is stopped after this many seconds, if all parts have 350.
        flags: added to XLA_FLAGS.
    """

    name: str
    arguments: str
    limit_s: float
    flags: str = ""


@dataclasses.dataclass(frozen=True)
class GpuBench:
    """All measurements on one GPU, in order of importance, in less than six minutes.

    Attributes:
        size: architecture; "tiny" tries the command on a CPU.
        seconds: time for all parts; each part's own limit is in proportion, and what is left when
            it is over is not started.
        parts: names of parts to run, such as "attention" or "step"; empty for all.
    """

    size: Literal["tiny", "7b"] = "7b"
    seconds: float = _SECONDS
    parts: tuple[str, ...] = ()


def run_gpu(bench: GpuBench) -> None:
    """Runs the parts and prints what each prints, then how each ended."""
    parts = list(parts_of(bench.size))
    if unknown := {*bench.parts} - {part.name for part in parts}:
        names = ", ".join(part.name for part in parts)
        raise DataError(f"--parts: there is no {', '.join(sorted(unknown))}; there are: {names}")
    end = time.monotonic() + bench.seconds
    ended = dict[str, str]()
    with tempfile.TemporaryDirectory(prefix="seva_jax_gpu_") as cache:
        environment = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        for part in parts:
            if not bench.parts or part.name in bench.parts:
                left = end - time.monotonic()
                ended[part.name] = _run(part, environment, left, bench.seconds / _SECONDS)
    print("\n" + "\n".join(f"{name:<24}{how}" for name, how in ended.items()))


def parts_of(size: str) -> Iterator[Part]:
    """Yields the parts, the most important ones first."""
    large = size != "tiny"
    kind = f"--size {size} --dtype {'bfloat16' if large else 'float32'}"
    pairs, few, many = (8, 32, 128) if large else (2, 2, 4)
    # The batch of the published config: 16 micro-batches of 8 pairs.
    published = "--pairs 128 --micro-batches 16" if large else "--pairs 4 --micro-batches 2"
    question = "--answer 128" if large else "--question 8 --answer 16"
    ours = f"step {kind} {question} --no-trl"
    wide, narrow = ("1024", "128") if large else ("8", "4")
    has_trl, has_hf = (importlib.util.find_spec(name) is not None for name in ("trl", "torch"))
    yield Part("attention", f"attention {kind} {question} --pairs {pairs}", 45)
    step = f"{ours} --pairs {pairs} --rank {narrow} --rounds 3"
    yield Part("step", f"{step} --remat auto --sides cached in-step", 90)
    sample = f"sample {kind} {question}"
    yield Part("decode", f"{sample} --rows {few} --rounds 2 --no-hf", 80)
    batch = f"{ours} {published} --sides cached --rounds 1"
    yield Part("micro-batches", f"{batch} --remat matmuls --rank {narrow}", 80)
    if has_trl:
        trl = f"step {kind} {question} --pairs {pairs} --rank {narrow} --rounds 3 --sides --trl"
        yield Part("trl", trl, 70)
    if has_hf:
        hf = f"{sample} --rows {few} --rounds 2 --caches --hf"
        yield Part("transformers", hf, 60)
    rows = f"{sample} --rows {many} --rounds 1 --no-hf --caches int8 exact"
    yield Part("decode-many", rows, 80)
    yield Part("micro-batches-wide", f"{batch} --remat layers --rank {wide}", 80)
    for state in ("true", "false"):
        name = f"slice-fusion-{state}"
        flags = f"{_SLICE_FUSION}={state}"
        yield Part(name, f"{step} --remat layers --sides cached", 45, flags)


def _run(part: Part, environment: Mapping[str, str], left_s: float, scale: float) -> str:
    """Runs a part, and returns how it ended.

    Args:
        part: the part.
        environment: its environment variables, without its own flags.
        left_s: seconds that are left for all parts.
        scale: what its own limit is multiplied by.
    """
    if left_s < _SHORTEST_S:
        return "not started: no time left"
    flags = f"XLA_FLAGS={part.flags} " if part.flags else ""
    print(f"\n== {part.name}: {flags}python -m seva_jax.bench {part.arguments}", flush=True)
    command = [sys.executable, "-m", "seva_jax.bench", *shlex.split(part.arguments)]
    both = f"{environment.get('XLA_FLAGS', '')} {part.flags}".strip()
    given = {**environment, "XLA_FLAGS": both} if both else dict(environment)
    start = time.monotonic()
    # A session of its own, so that processes that it starts end with it.
    child = subprocess.Popen(command, env=given, start_new_session=True)
    try:
        code = child.wait(min(part.limit_s * scale, left_s))
        how = "done" if code == 0 else f"failed with status {code}"
    except subprocess.TimeoutExpired:
        how = "stopped, it took too long"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    seconds = time.monotonic() - start
    print(f"-- {part.name}: {how} after {seconds:.0f} s", flush=True)
    return f"{how}, {seconds:.0f} s"
