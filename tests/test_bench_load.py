"""The loading benchmarks on a small model, and that a process reads only its devices' bytes."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest
from tiny_models import TINY_HF

from seva_jax.bench import load as bench
from seva_jax.bench.store import StoreBench, run_store
from seva_jax.convert import load_params, read_llava_config, tensors
from seva_jax.models import Llava, abstract_variables
from seva_jax.runtime.copies import upload
from seva_jax.sharding import MeshShape, variable_shardings
from seva_jax.types import DataError


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "_SHARD_BYTES", 5000)
    bench.write_checkpoint(tmp_path / "model", TINY_HF)
    return tmp_path / "model"


@pytest.mark.parametrize("tied", [False, True])
def test_the_checkpoint_it_writes_is_a_llava(tmp_path, tied):
    config = dataclasses.replace(TINY_HF, text=dataclasses.replace(TINY_HF.text, tied_head=tied))
    bench.write_checkpoint(tmp_path, config)
    assert read_llava_config(tmp_path) == config
    assert load_params(tmp_path, config)["language"]["embedding"].shape == (40, 16)


def test_measures_and_prints(checkpoint, capsys, monkeypatch):
    """It measures in a process of its own, and more memory than the limit is an error."""
    assert len(list(checkpoint.glob("*.safetensors"))) > 2
    size = sum(f.stat().st_size for f in checkpoint.glob("*.safetensors"))
    found = bench.measure("ours", checkpoint)
    assert found.result > 0.9 * size  # more where devices hold copies
    options = bench.LoadBench(dir=str(checkpoint), hf=False)
    bench.run_load(options)
    assert "above, GiB" in capsys.readouterr().out
    monkeypatch.setattr(bench, "_LIMIT_GIB", -1e9)
    with pytest.raises(SystemExit, match="above the result"):
        bench.run_load(options)


class Counting:
    """A tensor that counts the bytes it is asked for."""

    num_bytes = 0

    def __init__(self, inner):
        self._inner = inner

    def __getitem__(self, index):
        values = self._inner[index]
        Counting.num_bytes += values.nbytes
        return values


def test_a_process_reads_only_the_bytes_of_its_devices(checkpoint, monkeypatch):
    """A process with one of eight devices reads only the slices that JAX asks for."""
    mesh = MeshShape(fsdp=8).make()
    shardings = variable_shardings(mesh, abstract_variables(Llava(TINY_HF))["params"])
    mine = []

    def first_device_only(shape, sharding, read):
        index = sharding.devices_indices_map(shape)[mesh.devices.flat[0]]
        mine.append(read(index).nbytes)
        return jnp.zeros(shape, jnp.bfloat16)

    mapped, Counting.num_bytes = tensors._mapped, 0
    monkeypatch.setattr(tensors, "_mapped", lambda tensor: Counting(mapped(tensor)))
    monkeypatch.setattr(jax, "make_array_from_callback", first_device_only)
    params = load_params(checkpoint, TINY_HF, jnp.bfloat16, shardings)
    assert Counting.num_bytes == sum(mine)
    # The vision tower, whole on every device, is most of this small model.
    assert sum(mine) < 0.75 * sum(x.nbytes for x in jax.tree.leaves(params))


@pytest.mark.slow
def test_counts_what_processes_read_from_a_bucket(checkpoint, bucket, capsys):
    files = list(checkpoint.glob("*.safetensors"))
    headers = sum(8 + int.from_bytes(file.read_bytes()[:8], "little") for file in files)
    tensors = sum(file.stat().st_size for file in files) - headers
    upload(checkpoint, bucket / "model")
    run_store(StoreBench(str(bucket / "model"), processes=2, mesh=MeshShape(1, 2, 1)))
    out = capsys.readouterr().out
    total, expected = (
        int(re.search(rf"^{word} +([\d,]+) bytes", out, re.MULTILINE)[1].replace(",", ""))
        for word in ("in sum", "expected")
    )
    copies = 5 * 16 * 2  # the position embedding, whose five rows two processes do not share
    assert expected == tensors + copies
    assert total == expected + 2 * headers
    with pytest.raises(DataError, match="on a disk"):
        run_store(StoreBench(str(checkpoint)))
