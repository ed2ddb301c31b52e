"""Rematerialisation: the cheapest kind that fits is chosen, said, and kept when a run resumes."""

import dataclasses
import itertools
import math
import re

import jax
import numpy as np
import pytest
from helpers_devices import mesh_of
from helpers_fit import fit, tiny_run
from helpers_plan import SHAPE, experiment
from helpers_run import saved_steps
from tiny_models import PLANNED

from seva_jax.config import make_model
from seva_jax.config.options import ComputeOptions
from seva_jax.plan.program import lower_step
from seva_jax.run.fitting import remat_in_words
from seva_jax.runtime import overhead, shutdown
from seva_jax.training import compiled_step, loop, memory
from seva_jax.training.checkpoint import read_position
from seva_jax.training.memory import compile_if_it_fits
from seva_jax.training.remat import REMATS, cheapest
from seva_jax.types import DataError

GIB = 2**30


def chosen(limit, needs, least=(0, 0, 0), **more):
    """Returns what is chosen, why, and what was compiled, for sizes in GiB."""
    compiled = []

    def compile_(remat):
        compiled.append(remat)
        return f"program {remat}", needs[REMATS.index(remat)] * GIB

    bound = lambda remat: least[REMATS.index(remat)] * GIB  # noqa: E731
    size = None if limit is None else limit * GIB
    choice = cheapest(REMATS, bound, compile_, size, **more)
    assert choice.program == f"program {choice.remat}"
    assert choice.needed == needs[REMATS.index(choice.remat)] * GIB
    return choice.remat, choice.fits, choice.why, compiled


def test_the_first_that_fits():
    """Those that a bound rules out are not compiled; all but the last leave a twentieth free."""
    assert chosen(80, (70, 50, 20)) == ("none", True, "", ["none"])
    assert chosen(70, (70, 66.4, 20)) == (
        "matmuls", True, "none needs 70.0 GiB", ["none", "matmuls"],
    )  # fmt: skip
    assert chosen(70, (70, 66.6, 70), least=(90, 60, 10)) == (
        "layers", True, "none needs at least 90.0 GiB, matmuls needs 66.6 GiB",
        ["matmuls", "layers"],
    )  # fmt: skip
    why = "none needs at least 90.0 GiB, matmuls needs more than that"
    assert chosen(69, (0, math.inf, 70), least=(90, 60, 10)) == (
        "layers", False, why, ["matmuls", "layers"],
    )  # fmt: skip
    assert chosen(70, (70, 0, 0), room=0.0) == ("none", True, "", ["none"])
    silent = "these devices do not say how much memory they have"
    assert chosen(None, (1, 1, 1)) == ("layers", True, silent, ["layers"])


def test_smaller_devices_get_more_recomputation():
    """XLA's own numbers for the trainer's step, of four layers so that there is much to keep."""
    text = dataclasses.replace(PLANNED.text, num_layers=4)
    config, mesh = dataclasses.replace(PLANNED, text=text), mesh_of(1, 1, 1)
    kinds = {remat: experiment(("language", "projector"), remat) for remat in REMATS}
    programs = {
        remat: compile_if_it_fits(lower_step(kind, config, mesh, SHAPE))
        for remat, kind in kinds.items()
    }
    needs = [programs[remat][1] for remat in REMATS]
    assert needs[0] > needs[1] > needs[2] > 0
    limits = needs[0] / 0.94, needs[1] / 0.94, needs[2], needs[2] - 1
    found = [cheapest(REMATS, lambda _: 0.0, programs.__getitem__, limit) for limit in limits]
    assert [choice.remat for choice in found] == [*REMATS, "layers"]
    assert [choice.fits for choice in found] == [True, True, True, False]


def test_answering_needs_no_choice():
    """The modules of a run that leaves it open, and of one that stores little, are the same."""
    models = [make_model(PLANNED, ComputeOptions(remat=x)) for x in ("auto", "layers", "none")]
    assert models[0] == models[1] != models[2]


class Machine:
    """Devices of a made-up size, and a compiler that gives made-up sizes of programs.

    Attributes:
        limit: bytes of a device.
        needs: bytes of a step, by remat; one that is larger than the device is not compiled.
        compiled: the kinds of steps that it was asked to compile.
    """

    def __init__(self, monkeypatch):
        self.limit, self.needs, self.compiled = 0.0, {}, []
        jit_step, kind = loop.jit_step, []

        def watched(model, *rest):
            kind[:] = [model.remat]
            return jit_step(model, *rest)

        def compiling(lowered):
            needed = self.needs[kind[0]]
            self.compiled += kind
            return (lowered.compile() if needed <= self.limit else None), needed

        monkeypatch.setattr(loop, "jit_step", watched)
        monkeypatch.setattr(compiled_step, "compile_if_it_fits", compiling)
        monkeypatch.setattr(compiled_step, "device_limit", lambda: self.limit)


@pytest.fixture
def machine(monkeypatch):
    return Machine(monkeypatch)


def stopped_after_2(run, monkeypatch):
    """Trains two of four steps; the loop asks after every step whether to stop."""
    asked = itertools.count(1)
    with monkeypatch.context() as patch:
        patch.setattr(shutdown, "stop_agreed", lambda: next(asked) == 2)
        with pytest.raises(shutdown.Stopped):
            fit(run, 4)


def test_a_resumed_run_keeps_what_it_chose(tmp_path, machine, monkeypatch, capsys):
    """It ends with the bits of an uninterrupted run, though all would fit when it resumes."""
    machine.needs = {"none": 100 * GIB, "matmuls": 70 * GIB, "layers": 30 * GIB}
    machine.limit = 80 * GIB
    run = tiny_run(tmp_path / "run", "--compute.remat", "auto")
    stopped_after_2(run, monkeypatch)
    assert machine.compiled == ["none", "matmuls"]
    said = re.findall("align: step with .*", capsys.readouterr().out)
    assert len(said) == 1
    assert re.fullmatch(
        r"align: step with 4 rows of \d+ (compiled|read from the compile cache) in \d+\.\d s; "
        r"planned memory 70\.0 GiB of 80\.0 GiB on each device, with remat matmuls, because none "
        r"needs 100\.0 GiB",
        said[0],
    )
    assert remat_in_words(run, "align") == "; remat matmuls"
    checkpoint = tmp_path / "run" / "checkpoints" / "align" / "2"
    assert read_position(checkpoint)["remat"] == "matmuls"

    machine.limit, machine.compiled[:] = 200 * GIB, []
    resumed = fit(run, 4)
    assert machine.compiled == ["matmuls"]
    assert max(saved_steps(tmp_path / "run", "align")) == 4
    given = tiny_run(tmp_path / "given", "--compute.remat", "matmuls")
    whole = fit(given, 4)
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    assert remat_in_words(given, "align") == ""


def test_a_checkpoint_without_a_choice_is_resumed_with_layers(
    tmp_path, machine, monkeypatch, capsys
):
    """Version 0.4 wrote such checkpoints, as does a run that gives it, which may need too much."""
    machine.needs, machine.limit = dict.fromkeys(REMATS, 30 * GIB), 30 * GIB
    monkeypatch.setattr(compiled_step, "resident_besides", lambda tree: GIB)
    stopped_after_2(tiny_run(tmp_path / "run", "--compute.remat", "layers"), monkeypatch)
    assert (
        "warning: align: the step needs 31.0 GiB on each device with remat layers, and it has "
        "30.0 GiB: --train.micro-batches 2 may fit (seva-jax plan computes what fits)\n"
    ) in capsys.readouterr().out
    machine.compiled.clear()
    fit(tiny_run(tmp_path / "run", "--compute.remat", "auto"), 4)
    assert machine.compiled == ["layers"]


def test_none_fits(tmp_path, machine, monkeypatch):
    """One line says what may help; the processes of a run agree, whose devices may differ."""
    machine.needs = {"none": math.inf, "matmuls": 400 * GIB, "layers": 300 * GIB}
    machine.limit = 200 * GIB

    def smaller_elsewhere(mine):
        return [mine, [25 * GIB, 2 * GIB]] if mine[0] == machine.limit else [mine, mine]

    monkeypatch.setattr(compiled_step, "gather", smaller_elsewhere)
    with pytest.raises(DataError) as caught:
        fit(tiny_run(tmp_path / "run", "--compute.remat", "auto"), 2)
    assert str(caught.value) == (
        "align: the step needs 302.0 GiB on each device with remat layers, and it has 25.0 GiB: "
        "more devices along --mesh.fsdp or --mesh.tensor, or --compute.base-weights nf4, may fit "
        "(seva-jax plan computes what fits)"
    )
    assert machine.compiled == ["none", "matmuls", "layers"]


def test_what_a_device_has_beside_the_step(monkeypatch):
    """Arrays that training does not use, such as a second copy of the weights, count."""

    class Device:
        platform = "gpu"

        def __init__(self, in_use):
            self.memory_stats = lambda: {"bytes_in_use": in_use, "bytes_limit": 10 * GIB}

    kept = jax.device_put(np.zeros(1000, np.float32), jax.devices()[0])
    monkeypatch.setattr(memory.jax, "local_devices", lambda: [Device(5000), Device(7000)])
    assert memory.resident_besides({"kept": kept}) == 7000 - 4000
    assert memory.device_limit() == 10 * GIB
    assert memory.machine_limit() is None


def test_a_program_that_is_read_from_the_compile_cache_counts(tmp_path):
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = [getattr(jax.config, name) for name in names]

    def compiled():
        return jax.jit(lambda x: x * 3 + 1).lower(np.ones(7)).compile()

    from jax.experimental.compilation_cache import compilation_cache

    compilation_cache.reset_cache()
    try:
        for name, value in zip(names, (str(tmp_path), 0.0), strict=True):
            jax.config.update(name, value)
        hits = overhead.cache_hits()
        compiled()
        assert overhead.cache_hits() == hits
        compiled()
        assert overhead.cache_hits() == hits + 1
    finally:
        for name, value in zip(names, before, strict=True):
            jax.config.update(name, value)
        compilation_cache.reset_cache()
