"""The command that measures everything on a GPU: its parts, and how they end."""

import functools
import operator
import os
import re
import shlex
import time
import types
from typing import Annotated

import pytest
from tyro.conf import subcommand

from seva_jax.bench import attention, gpu
from seva_jax.bench.options import SampleBench, StepBench
from seva_jax.config.command_line import parse_options
from seva_jax.types import DataError


def runs(monkeypatch, tmp_path, script):
    """Makes parts run a shell script instead of Python."""
    path = tmp_path / "program"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr(gpu, "sys", types.SimpleNamespace(executable=str(path)))


@pytest.mark.parametrize("size", ["tiny", "7b"])
def test_every_part_is_a_command(monkeypatch, size):
    """Also where TRL and torch are not installed here."""
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: name)
    parts = list(gpu.parts_of(size))
    kinds = {
        "attention": attention.AttentionBench,
        "sample": SampleBench,
        "step": StepBench,
    }
    union = functools.reduce(
        operator.or_, [Annotated[kind, subcommand(name)] for name, kind in kinds.items()]
    )
    options = {
        part.name: parse_options(union, "bench", shlex.split(part.arguments)) for part in parts
    }
    assert list(options)[:2] == ["attention", "step"]
    assert {x.size for x in options.values()} == {size}
    published, wide = options["micro-batches"], options["micro-batches-wide"]
    assert wide.rank > published.rank
    assert options["trl"].sides == ()
    assert options["trl"].trl
    assert options["transformers"].caches == ()
    if size == "7b":
        assert (published.pairs, published.micro_batches, published.rank) == (128, 16, 128)
        assert wide.rank == 1024
        assert [options[x].rows for x in ("decode", "decode-many")] == [32, 128]


def test_parts_end_within_their_time(monkeypatch, tmp_path, capfd):
    """One that takes too long is stopped with all its processes, and the next ones still run."""
    mark = tmp_path / "mark"
    slow = (
        f"case $3 in step) (sleep 5; touch {mark}) & sleep 5;; sample) exit 3;; esac; echo ran $3"
    )
    runs(monkeypatch, tmp_path, slow)
    monkeypatch.setattr(gpu, "_SHORTEST_S", 0.2)
    start = time.monotonic()
    gpu.run_gpu(gpu.GpuBench("tiny", seconds=7.0))
    assert time.monotonic() - start < 15
    shown = capfd.readouterr().out
    assert re.search(r"^attention +done, \d+ s$", shown, re.MULTILINE)
    assert "ran attention" in shown
    assert re.search(r"^step +stopped, it took too long, \d+ s$", shown, re.MULTILINE)
    assert re.search(r"^decode +failed with status 3, \d+ s$", shown, re.MULTILINE)
    time.sleep(max(0.0, start + 8 - time.monotonic()))
    assert not mark.exists()


def test_flags_are_added_to_those_of_the_user(monkeypatch, tmp_path, capfd):
    runs(monkeypatch, tmp_path, 'echo "flags: $XLA_FLAGS"')
    monkeypatch.setenv("XLA_FLAGS", "--own")
    gpu.run_gpu(gpu.GpuBench("tiny", parts=("slice-fusion-true",)))
    assert "flags: --own --xla_gpu_enable_dynamic_slice_fusion=true\n" in capfd.readouterr().out
    assert os.environ["XLA_FLAGS"] == "--own"


def test_unknown_parts():
    with pytest.raises(DataError, match="there is no walk; there are: attention, step"):
        gpu.run_gpu(gpu.GpuBench(parts=("walk",)))
