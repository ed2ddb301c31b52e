"""Bytes that several processes read when they load a checkpoint from an object store together.

Every process counts what it asks the store for. The sum is compared with what the shardings say:
each byte once, and again for each further process that needs it because no dim of its parameter
can be divided among all devices. Ours is the code that the trainer uses.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seva_jax.bench.load import write_checkpoint
from seva_jax.bench.timing import machine
from seva_jax.convert import load_params, read_llava_config
from seva_jax.convert.load import leaves_by_path, read_headers
from seva_jax.convert.placing import num_read
from seva_jax.convert.table import TABLE
from seva_jax.convert.tensors import num_bytes
from seva_jax.models import Llava, LlavaConfig, abstract_variables
from seva_jax.runtime.copies import upload
from seva_jax.runtime.processes import ProcessOptions, joined
from seva_jax.runtime.stores import StorePath, as_path, is_remote
from seva_jax.sharding import MeshShape, variable_shardings
from seva_jax.types import DataError

_SMALL = LlavaConfig()
_SMALL = dataclasses.replace(
    _SMALL,
    vision=dataclasses.replace(_SMALL.vision, num_layers=4),
    text=dataclasses.replace(
        _SMALL.text, hidden_size=1024, mlp_size=2816, num_layers=8, num_heads=16, num_kv_heads=16,
        head_dim=64,
    ),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class StoreBench:
    """Bytes that processes read to load one checkpoint from an object store together.

    Attributes:
        source: the checkpoint, gs://BUCKET/NAME. Where there is none, one of 0.4 GB is written.
        processes: processes that load it, all on this machine.
        devices: CPU devices of each process.
        mesh: how parameters are split over all these devices.
    """

    source: str
    processes: int = 4
    devices: int = 1
    mesh: MeshShape = MeshShape(data=1, fsdp=-1)


class Read(NamedTuple):
    """What one process read.

    Attributes:
        num_bytes: bytes that it asked for.
        requests: how many requests for bytes it made.
        seconds: time to load all parameters.
        expected: bytes that all processes should read of tensors.
        size: bytes of the tensors of the model.
    """

    num_bytes: int
    requests: int
    seconds: float
    expected: int
    size: int


def run_store(bench: StoreBench) -> None:
    """Loads the checkpoint in several processes and prints a table."""
    source = as_path(bench.source)
    if not is_remote(source):
        raise DataError(f"{bench.source} is on a disk; give a place in a store, gs://BUCKET/NAME")
    if not (source / "config.json").exists():
        with tempfile.TemporaryDirectory() as folder:
            write_checkpoint(Path(folder), _SMALL)
            upload(Path(folder), source)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    flag = f"--xla_force_host_platform_device_count={bench.devices}"
    mesh = dataclasses.astuple(bench.mesh)
    command = [sys.executable, "-m", "seva_jax.bench.store", bench.source, *map(str, mesh)]
    children = []
    for number in range(bench.processes):
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip(),
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": str(bench.processes),
            "JAX_PROCESS_ID": str(number),
        }
        children.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        )
    outputs = [child.communicate()[0] for child in children]
    if any(child.returncode for child in children):
        raise DataError("a process failed, see above")
    reads = [Read(*json.loads(output.splitlines()[-1])) for output in outputs]
    print(machine([], 1))
    print(f"{bench.processes} processes with {bench.devices} CPU devices each; {bench.mesh}")
    for number, read in enumerate(reads):
        print(
            f"process {number}  {read.num_bytes:>14,} bytes  {read.requests:>5} requests  "
            f"{read.seconds:>7.1f} s"
        )
    total, size, expected = sum(r.num_bytes for r in reads), reads[0].size, reads[0].expected
    print(f"in sum     {total:>14,} bytes  {total / size:.4f} of the tensors' {size:,}")
    print(f"expected   {expected:>14,} bytes of tensors; the rest are the headers of the files")


def measure(source: str, mesh: MeshShape) -> Read:
    """Loads a checkpoint in this process, together with the others, and counts its requests."""
    asked: list[int] = []
    read_range = StorePath.read_range

    def counting(self: StorePath, start: int, stop: int) -> bytes:
        asked.append(stop - start)
        return read_range(self, start, stop)

    StorePath.read_range = counting
    config = read_llava_config(source)
    boxed = abstract_variables(Llava(config))["params"]
    shardings = variable_shardings(mesh.make(), boxed)
    start = time.monotonic()
    params = load_params(source, config, jnp.bfloat16, shardings)
    jax.block_until_ready(params)
    seconds = time.monotonic() - start
    num, requests = sum(asked), len(asked)
    tensors = read_headers(as_path(source))
    ours, rows = leaves_by_path(params), {row.ours: row for row in TABLE}
    expected = size = 0
    for path, sharding in leaves_by_path(shardings).items():
        shape, row = ours[path].shape, rows[path]
        of_one = sum(
            num_bytes(tensors[name].dtype, tensors[name].shape) for name in row.names(shape)
        )
        size += of_one
        expected += of_one * num_read(sharding, shape, row.slow_dims) // math.prod(shape)
    return Read(num, requests, seconds, expected, size)


def _main(source: str, *mesh: Any) -> None:
    with joined(ProcessOptions()):
        read = measure(source, MeshShape(*map(int, mesh)))
    print(json.dumps(read))


if __name__ == "__main__":
    _main(*sys.argv[1:])
