"""Time and host memory of loading a checkpoint: ours compared with `from_pretrained`.

It writes a checkpoint of LLaVA-1.5-7B's shapes with random bfloat16 values in several files. Each
side loads it in fresh processes, in turns, while the memory of that process is sampled. Mapped
pages of the files count as resident memory but can be dropped at any time, so the limit applies to
anonymous memory beyond the result; both are printed. Ours is the code that the trainer uses.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from seva_jax.bench.timing import machine
from seva_jax.convert import load_params, read_llava_config
from seva_jax.convert.files import SafetensorsWriter
from seva_jax.convert.hf_config import llava_config_fields
from seva_jax.convert.load import leaves_by_path
from seva_jax.convert.table import TABLE
from seva_jax.models import Llava, LlavaConfig, abstract_params, abstract_variables
from seva_jax.runtime.stores import as_path, is_remote, remove
from seva_jax.sharding import MeshShape, variable_shardings
from seva_jax.types import DataError

_SHARD_BYTES = 5 * 10**9
_LIMIT_GIB = 3.0


@dataclasses.dataclass(frozen=True)
class LoadBench:
    """Time and host memory of loading a checkpoint; fails if ours peaks 3 GiB above the result.

    Attributes:
        dir: local directory of the checkpoint, which is kept and reused; empty takes a temporary
            one. LLaVA-1.5-7B takes 14 GB.
        layers: language layers; fewer make a quick check of the same code.
        devices: fake CPU devices over which ours shards the parameters ("fsdp").
        rounds: processes of each side.
        hf: measure transformers, too.
    """

    dir: str = ""
    layers: int = 32
    devices: int = 1
    rounds: int = 1
    hf: bool = True


class Loaded(NamedTuple):
    """Measurements of one process.

    Attributes:
        seconds: time to load the checkpoint and read every byte.
        result: bytes of the loaded arrays, including copies on several devices.
        above: peak of anonymous memory beyond that at the start and the result, bytes.
        resident: peak of all resident memory, bytes.
    """

    seconds: float
    result: float
    above: float
    resident: float


def run_load(bench: LoadBench) -> None:
    """Writes the checkpoint if needed, loads it in child processes and prints a table."""
    directory = as_path(bench.dir or tempfile.mkdtemp(prefix="seva_jax_load_"))
    if is_remote(directory):
        raise DataError(f"{bench.dir} is in a store, which `seva_jax.bench store` measures")
    sides = ("ours", "transformers") if bench.hf else ("ours",)
    loads: dict[str, list[Loaded]] = {side: [] for side in sides}
    try:
        if not (directory / "config.json").exists():
            default = LlavaConfig()
            text = dataclasses.replace(default.text, num_layers=bench.layers)
            write_checkpoint(directory, dataclasses.replace(default, text=text))
        flag = f"--xla_force_host_platform_device_count={bench.devices}"
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
        for _ in range(bench.rounds):
            for side in sides:
                command = [sys.executable, "-m", "seva_jax.bench.load", side, str(directory)]
                child = subprocess.run(
                    command, env=environment, stdout=subprocess.PIPE, text=True, check=False
                )
                if child.returncode:
                    raise DataError(f"loading with {side} failed, see above; --no-hf skips it")
                loads[side].append(Loaded(*json.loads(child.stdout.splitlines()[-1])))
    finally:
        if not bench.dir:
            remove(directory)
    print(machine(["torch", "transformers"] if bench.hf else [], bench.rounds))
    gib = loads["ours"][0].result / 2**30
    print(f"bfloat16, {bench.layers} layers, {gib:.2f} GiB on {bench.devices} CPU devices")
    columns = ("median s", "fastest", "slowest", "GB/s", "above, GiB", "resident, GiB")
    print(" " * 14 + "".join(f"{x:>15}" for x in columns))
    for side, measured in loads.items():
        seconds = [x.seconds for x in measured]
        middle = statistics.median(seconds)
        values = [middle, min(seconds), max(seconds), measured[0].result / 1e9 / middle]
        values += [
            max(x.above for x in measured) / 2**30,
            max(x.resident for x in measured) / 2**30,
        ]
        print(f"{side:<14}" + "".join(f"{x:>15.2f}" for x in values))
    if max(x.above for x in loads["ours"]) > _LIMIT_GIB * 2**30:
        sys.exit(f"error: more than {_LIMIT_GIB} GiB above the result")


def write_checkpoint(directory: Path, config: LlavaConfig) -> None:
    """Writes a Hugging Face LLaVA directory of random bfloat16 values, one tensor at a time.

    Raises:
        DataError: there is not enough space on the disk.
    """
    shapes = {}
    ours = leaves_by_path(abstract_params(Llava(config)))
    for row in [row for row in TABLE if row.ours in ours]:
        shape = ours[row.ours].shape
        shapes |= dict.fromkeys(row.names(shape), row.their_shape(shape))
    directory.mkdir(parents=True, exist_ok=True)
    total = sum(2 * math.prod(shape) for shape in shapes.values())
    if total > (free := shutil.disk_usage(directory).free):
        raise DataError(f"{directory}: {total / 1e9:.0f} GB needed, {free / 1e9:.0f} GB free")
    files: list[dict[str, tuple[int, ...]]] = [{}]
    size = 0
    for name, shape in shapes.items():
        num = 2 * math.prod(shape)
        if size + num > _SHARD_BYTES:
            files.append({})
            size = 0
        files[-1][name] = shape
        size += num
    # Random values, repeated: drawing seven billion takes longer than the measurement.
    pool = np.random.default_rng(0).normal(0, 0.02, 1_000_003).astype(jnp.bfloat16)
    weight_map = {}
    for index, part in enumerate(files, 1):
        file = f"model-{index:05d}-of-{len(files):05d}.safetensors"
        layout = {name: ("BF16", shape) for name, shape in part.items()}
        with SafetensorsWriter(directory / file, layout) as writer:
            for name, shape in part.items():
                writer.write(name, np.resize(pool, shape))
                weight_map[name] = file
    index_text = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map})
    (directory / "model.safetensors.index.json").write_text(index_text, encoding="utf-8")
    # Last: it marks the directory as complete.
    fields = json.dumps(llava_config_fields(config))
    (directory / "config.json").write_text(fields, encoding="utf-8")


def _memory() -> tuple[float, float]:
    """Returns anonymous and total resident memory of this process, bytes."""
    fields = dict(
        line.split(":", 1) for line in Path("/proc/self/status").read_text("utf-8").splitlines()
    )
    kib = {name: int(fields[name].split()[0]) for name in ("RssAnon", "RssShmem", "VmRSS")}
    return 1024.0 * (kib["RssAnon"] + kib["RssShmem"]), 1024.0 * kib["VmRSS"]


def measure(side: str, directory: Path) -> Loaded:
    """Loads a checkpoint in this process and measures time and memory.

    Args:
        side: "ours" or "transformers".
        directory: the checkpoint.
    """
    load = {"ours": _ours, "transformers": _theirs}[side](directory)
    before, _ = _memory()
    peaks = [before, 0.0]
    done = threading.Event()

    def sample() -> None:
        while not done.wait(0.01):
            peaks[:] = [max(x) for x in zip(peaks, _memory(), strict=True)]

    sampler = threading.Thread(target=sample)
    sampler.start()
    start = time.monotonic()
    result = load()
    seconds = time.monotonic() - start
    done.set()
    sampler.join()
    return Loaded(seconds, result, peaks[0] - before - result, peaks[1])


def _ours(directory: Path) -> Callable[[], float]:
    config = read_llava_config(directory)
    mesh = MeshShape(fsdp=len(jax.devices())).make()
    shardings = variable_shardings(mesh, abstract_variables(Llava(config))["params"])

    def load() -> float:
        params = jax.block_until_ready(load_params(directory, config, jnp.bfloat16, shardings))
        shards = [shard for leaf in jax.tree.leaves(params) for shard in leaf.addressable_shards]
        return float(sum(shard.data.nbytes for shard in shards))

    return load


def _theirs(directory: Path) -> Callable[[], float]:
    import torch
    import transformers

    def load() -> float:
        model: Any = transformers.LlavaForConditionalGeneration.from_pretrained(
            directory, dtype=torch.bfloat16
        )
        for parameter in model.parameters():
            parameter.data.view(torch.uint8).max()  # mapped pages are read only when used
        return float(sum(p.numel() * p.element_size() for p in model.parameters()))

    return load


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], as_path(sys.argv[2]))))
