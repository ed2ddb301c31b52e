"""How much host memory it takes to load a checkpoint: the result, and what is needed above it.

Writes a checkpoint of LLaVA-1.5-7B's shapes with random bfloat16 values in several files, loads it
in a fresh process with the code that the trainer uses, and samples that process's memory. Mapped
pages of the files count as resident but can be dropped at any time, so anonymous memory is what
is judged; both are printed.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from seva_jax.convert import load_params, read_llava_config
from seva_jax.convert.files import SafetensorsWriter
from seva_jax.convert.hf_config import llava_config_fields
from seva_jax.convert.table import TABLE
from seva_jax.models import Llava, LlavaConfig, abstract_params, abstract_variables
from seva_jax.sharding import MeshShape, variable_shardings
from seva_jax.types import DataError

_SHARD_BYTES = 5 * 10**9
_LIMIT_GIB = 3.0
_CHILD = "SEVA_JAX_BENCH_LOAD"


@dataclasses.dataclass(frozen=True)
class LoadBench:
    """Host memory of loading a checkpoint; fails if the peak is over 3 GiB above the result.

    Attributes:
        dir: where the checkpoint is written; kept and used again if given, else a temporary
            directory. LLaVA-1.5-7B takes 14 GB.
        layers: language layers; fewer make a quick check of the same code.
        devices: fake CPU devices to shard over ("fsdp").
    """

    dir: Path | None = None
    layers: int = 32
    devices: int = 1


def run_load(bench: LoadBench) -> None:
    """Writes the checkpoint if needed, loads it in a child process, prints what that took."""
    directory = bench.dir or Path(tempfile.mkdtemp(prefix="seva_jax_load_"))
    try:
        if not (directory / "config.json").exists():
            default = LlavaConfig()
            text = dataclasses.replace(default.text, num_layers=bench.layers)
            write_checkpoint(directory, dataclasses.replace(default, text=text))
        flag = f"--xla_force_host_platform_device_count={bench.devices}"
        environment = os.environ | {_CHILD: str(directory), "JAX_PLATFORMS": "cpu"}
        environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
        command = [sys.executable, "-m", "seva_jax.bench.load"]
        result = subprocess.run(command, env=environment, check=False)
    finally:
        if bench.dir is None:
            shutil.rmtree(directory, ignore_errors=True)
    if result.returncode:
        sys.exit(result.returncode)


def write_checkpoint(directory: Path, config: LlavaConfig) -> None:
    """A Hugging Face LLaVA directory of random bfloat16 values, one tensor at a time.

    Raises:
        DataError: the disk has no room for it.
    """
    shapes = {}
    leaves = jax.tree_util.tree_flatten_with_path(abstract_params(Llava(config)))[0]
    ours = {"/".join(str(key.key) for key in path): leaf.shape for path, leaf in leaves}
    for row in [row for row in TABLE if row.ours in ours]:
        for name in row.names(ours[row.ours]):
            shapes[name] = row.their_shape(ours[row.ours])
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
    (directory / "config.json").write_text(
        json.dumps(llava_config_fields(config)), encoding="utf-8"
    )


def _memory() -> tuple[float, float]:
    """Anonymous and total resident memory of this process, bytes."""
    fields = dict(
        line.split(":", 1) for line in Path("/proc/self/status").read_text("utf-8").splitlines()
    )
    kib = {name: int(fields[name].split()[0]) for name in ("RssAnon", "RssShmem", "VmRSS")}
    return 1024.0 * (kib["RssAnon"] + kib["RssShmem"]), 1024.0 * kib["VmRSS"]


def _load_and_measure(directory: Path) -> int:
    """Runs in the child: loads, prints, and returns the exit status."""
    config = read_llava_config(directory)
    mesh = MeshShape(fsdp=len(jax.devices())).make()
    shardings = variable_shardings(mesh, abstract_variables(Llava(config))["params"])
    before, _ = _memory()
    peaks = [before, 0.0]
    done = threading.Event()

    def sample() -> None:
        while not done.wait(0.01):
            peaks[:] = [max(x) for x in zip(peaks, _memory(), strict=True)]

    sampler = threading.Thread(target=sample)
    sampler.start()
    start = time.monotonic()
    params = jax.block_until_ready(load_params(directory, config, jnp.bfloat16, shardings))
    seconds = time.monotonic() - start
    done.set()
    sampler.join()
    shards = [shard for leaf in jax.tree.leaves(params) for shard in leaf.addressable_shards]
    result = sum(shard.data.nbytes for shard in shards)  # a replicated leaf counts on each device
    above = (peaks[0] - before - result) / 2**30
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, jax "
        f"{jax.__version__}, {len(jax.devices())} CPU devices\n"
        f"result {result / 2**30:.2f} GiB (bfloat16), loaded in {seconds:.0f} s "
        f"({result / 1e9 / seconds:.2f} GB/s)\n"
        f"peak of anonymous memory above the result: {above:.2f} GiB (limit {_LIMIT_GIB})\n"
        f"peak resident with mapped file pages: {peaks[1] / 2**30:.2f} GiB"
    )
    return int(above > _LIMIT_GIB)


if __name__ == "__main__":
    sys.exit(_load_and_measure(Path(os.environ[_CHILD])))
