"""Makes one plan: what the programs of a run need, against the limits of the chip.

For TPU slices the programs are compiled, unless that is not wanted; for GPUs they are counted from
shapes (`step.py`, `answering.py`).
"""

from __future__ import annotations

import dataclasses
import functools
import re

import jax

from seva_jax.batches.trees import RowShape
from seva_jax.config import Experiment
from seva_jax.config.options import RolloutOptions
from seva_jax.inference.prefill_shapes import PrefillShape
from seva_jax.models import LlavaConfig, LoraConfig, Remat
from seva_jax.plan import whole_run
from seva_jax.plan.answering import Answering, answering
from seva_jax.plan.chips import Chip, Topology
from seva_jax.plan.hlo import collective_bytes
from seva_jax.plan.program import lower_rollout, lower_step
from seva_jax.plan.roofline import Work
from seva_jax.plan.step import (
    counted_memory,
    counted_network,
    least_memory,
    num_passes,
    step_flops,
    step_weights,
)
from seva_jax.plan.whole_run import Amounts, Stage
from seva_jax.sharding import answering_mesh, check_batch
from seva_jax.training import TrainOptions
from seva_jax.training.flops import forward, model_flops
from seva_jax.training.remat import REMATS, cheapest


@dataclasses.dataclass(frozen=True)
class Memory:
    """Memory of one program on one chip, bytes.

    Attributes:
        arguments: weights, optimiser state and batch.
        temporaries: intermediate results, and outputs that do not reuse the memory of an argument.
        needed: the total; for a program too large to compile, the total that XLA reports.
        fits: whether the total is within the chip's memory.
    """

    arguments: float
    temporaries: float
    needed: float
    fits: bool


@dataclasses.dataclass(frozen=True)
class Step:
    """What an alignment step needs.

    Attributes:
        remat: what its backward pass recomputes.
        memory: of a chip.
        sent: bytes that each chip sends, by kind of collective; empty if the step does not fit.
        work: what it asks of a chip.
        model_flops: operations that it needs, over all chips.
        hardware_flops: operations that it executes, with those that `remat` repeats.
    """

    remat: Remat
    memory: Memory
    sent: dict[str, float]
    work: Work
    model_flops: float
    hardware_flops: float


@dataclasses.dataclass(frozen=True)
class Rollout:
    """What answering needs.

    Attributes:
        layout: the layout, and the work of a chip in it.
        memory: of prefill or decode, whichever needs more, and of what the run keeps beside them.
        rows_that_fit: the most rows that can be answered together.
        evaluation_fits: whether evaluations after alignment fit with as many rows.
        evaluates: whether the run has evaluations; others are made by a command of their own.
    """

    layout: Answering
    memory: Memory
    rows_that_fit: int
    evaluation_fits: bool
    evaluates: bool

    @property
    def fits(self) -> bool:
        """Whether what the run answers fits."""
        return self.memory.fits and (self.evaluation_fits or not self.evaluates)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run needs on a slice.

    Attributes:
        topology: the slice.
        mesh: devices along data, fsdp, tensor in training.
        batch_size: pairs in a step.
        chip: one chip of the slice.
        compiled: whether memory and network are those of compiled programs; otherwise they are
            counted from shapes.
        step: the alignment step.
        rollout: how prompts are answered; None if that is not planned.
        stages: the stages of the run; empty if a program does not fit.
    """

    topology: str
    mesh: tuple[int, int, int]
    batch_size: int
    chip: Chip
    compiled: bool
    step: Step
    rollout: Rollout | None
    stages: tuple[Stage, ...]

    @property
    def num_chips(self) -> int:
        """Number of chips, over all slices."""
        data, fsdp, tensor = self.mesh
        return data * fsdp * tensor

    @property
    def fits(self) -> bool:
        """Whether every program fits."""
        return self.step.memory.fits and (self.rollout is None or self.rollout.fits)

    @property
    def binding(self) -> str:
        """The limit that allows the slowest step."""
        return self.step.work.binds(self.chip)

    @property
    def step_seconds(self) -> float:
        """Roofline time of a step, a lower bound."""
        return self.step.work.seconds(self.chip)

    @property
    def seconds(self) -> float:
        """Roofline time of all stages, a lower bound."""
        return sum(stage.seconds(self.chip) for stage in self.stages)

    @property
    def measured_seconds(self) -> float | None:
        """Time of all stages at the rates that were measured on the chip; None without any."""
        times = [stage.measured_seconds(self.chip) for stage in self.stages]
        known = [time for time in times if time is not None]
        return sum(known) if known and len(known) == len(times) else None


def plan(
    experiment: Experiment,
    config: LlavaConfig,
    topology: str,
    shape: RowShape,
    amounts: Amounts,
    prompt: PrefillShape | None,
    compiled: bool = True,
) -> Plan:
    """Plans a run on a slice.

    Args:
        experiment: the run; its mesh is laid over the slice.
        config: architecture.
        topology: the slice, such as "v5e:8x8", slices, "2xv5e:8x8", or GPUs, "h100:1".
        shape: sizes of a row of training.
        amounts: how much the run has of everything.
        prompt: size of a prompt; None does not plan answering.
        compiled: whether to compile what can be compiled.

    Raises:
        DataError: the slice does not exist, a mesh does not fit it, or the batch does not divide.
    """
    slices = Topology.parse(topology)
    compiled = compiled and not slices.is_gpu
    mesh = _mesh(experiment, slices, compiled)
    check_batch(mesh, experiment.train.batch_size, experiment.train.micro_batches)
    step = plan_step(_without_rollout(experiment), config, topology, shape, compiled)
    rollout = None
    if prompt is not None:
        rollout = plan_rollout(experiment, config, topology, prompt, compiled)
    axes = (mesh.shape["data"], mesh.shape["fsdp"], mesh.shape["tensor"])
    made = Plan(
        topology, axes, experiment.train.batch_size, slices.chip, compiled, step, rollout,
        (),
    )  # fmt: skip
    if not made.fits:
        return made
    stages = [
        whole_run.reference(experiment, config, mesh, shape, amounts.pairs),
        whole_run.training(step.work, step.remat, experiment, amounts.pairs),
    ]
    if rollout:
        answers = amounts.prompts * (1 + len(experiment.corrupt))
        stages.insert(0, whole_run.rollouts(rollout.layout, answers, amounts.answer))
        stages.append(whole_run.evaluation(rollout.layout, amounts))
    return dataclasses.replace(made, stages=tuple(x for x in stages if x and x.parts))


@functools.cache
def plan_step(
    experiment: Experiment, config: LlavaConfig, topology: str, shape: RowShape, compiled: bool
) -> Step:
    """Plans the alignment step; a sweep of how prompts are answered plans it once.

    With `compute.remat` "auto", it is the one that a run chooses.
    """
    slices, wanted = Topology.parse(topology), experiment.compute.remat
    mesh = _mesh(experiment, slices, compiled)

    def of(remat: Remat) -> Experiment:
        compute = dataclasses.replace(experiment.compute, remat=remat)
        return dataclasses.replace(experiment, compute=compute)

    def least(remat: Remat) -> float:
        return least_memory(of(remat), config, mesh, shape)

    def planned(remat: Remat) -> tuple[tuple[Memory, dict[str, float]], float]:
        run = of(remat)
        if not compiled:
            memory = _counted(*counted_memory(run, config, mesh, shape), slices.chip)
            sent = counted_network(run, config, mesh, shape) if memory.fits else {}
        else:
            memory, text = _compile(lower_step(run, config, mesh, shape), slices.chip)
            sent = collective_bytes(text) if text else {}
        return (memory, sent), memory.needed

    kinds = REMATS if wanted == "auto" else (wanted,)
    choice = cheapest(kinds, least, planned, slices.chip.hbm_gib * 2**30)
    memory, sent = choice.program
    run = of(choice.remat)
    executed = step_flops(run, config, shape)
    once = forward(config, run.lora, shape)
    needed = run.train.batch_size * model_flops(once, run.train.trained)
    # Weights are read in every pass, the arguments once, the state is written as often, and
    # temporaries are written and read.
    moved = step_weights(run, config, mesh) * num_passes(run)
    moved += 2 * memory.arguments + 2 * memory.temporaries
    work = Work(executed / mesh.size, moved, sum(sent.values()))
    return Step(choice.remat, memory, sent, work, needed, executed)


def plan_rollout(
    experiment: Experiment, config: LlavaConfig, topology: str, prompt: PrefillShape, compiled: bool
) -> Rollout:
    """Plans how prompts are answered.

    Args:
        experiment: the run.
        config: architecture.
        topology: the slice.
        prompt: size of a prompt.
        compiled: whether to compile its programs.
    """
    slices = Topology.parse(topology)
    limit = slices.chip.hbm_gib * 2**30
    mesh = _mesh(experiment, slices, compiled)
    layout = answering(experiment, config, mesh, prompt, limit)
    if not compiled:
        memory = _counted(layout.kept, layout.needed - layout.kept, slices.chip)
    else:
        # What is compiled does not depend on how the run trains.
        asked = dataclasses.replace(experiment, train=TrainOptions(), lora=LoraConfig())
        memory, token, prefill = _compiled_rollout(asked, config, topology, layout.tensor, prompt)
        beside = layout.resident - layout.shared
        needed = memory.needed + beside
        memory = Memory(
            memory.arguments + beside, memory.temporaries, needed, memory.fits and needed <= limit
        )
        layout = dataclasses.replace(
            layout,
            token=dataclasses.replace(layout.token, sent=token),
            prefill=dataclasses.replace(layout.prefill, sent=prefill),
        )
    variants = 1 + len(experiment.corrupt)
    rows = layout.rows_that_fit(memory.needed, limit, variants, experiment.rollout.refill)
    return Rollout(layout, memory, rows, layout.evaluated <= limit, bool(experiment.evals))


@functools.cache
def _compiled_rollout(
    experiment: Experiment, config: LlavaConfig, topology: str, tensor: int, prompt: PrefillShape
) -> tuple[Memory, float, float]:
    """Returns memory, and the bytes that a chip sends in a token step and in a prefill."""
    slices = Topology.parse(topology)
    mesh = answering_mesh(_mesh(experiment, slices, compiled=True), tensor)
    programs = lower_rollout(experiment, config, mesh, prompt)
    (first, prefill), (second, decode) = (_compile(x, slices.chip) for x in programs)
    memory = max(first, second, key=lambda memory: memory.needed)
    # What is outside of the loop is sent once for several tokens, so it counts as prefill.
    outside = _sent(decode, trips=0)
    return memory, _sent(decode, trips=1) - outside, _sent(prefill) + outside


def _mesh(experiment: Experiment, slices: Topology, compiled: bool) -> jax.sharding.Mesh:
    """Returns the mesh of training, to compile for or to count with."""
    return experiment.mesh.make(slices.devices() if compiled else slices.stand_ins())


def _without_rollout(experiment: Experiment) -> Experiment:
    """Returns a run with the same step for any layout of answering."""
    return dataclasses.replace(experiment, rollout=RolloutOptions())


def _sent(text: str, trips: int | None = None) -> float:
    return sum(collective_bytes(text, trips).values()) if text else 0.0


def _counted(arguments: float, temporaries: float, chip: Chip) -> Memory:
    needed = arguments + temporaries
    return Memory(arguments, temporaries, needed, needed <= chip.hbm_gib * 2**30)


def _compile(lowered: jax.stages.Lowered, chip: Chip) -> tuple[Memory, str]:
    """Returns the memory of a program and, if XLA can compile it, its HLO text."""
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        message = str(error)
        match = re.search(r"\(([\d.]+)G\) exceeds available HBM \(([\d.]+)G\)", message)
        if "RESOURCE_EXHAUSTED" not in message or not match:
            raise
        needed = float(match[1]) * 2**30
        return Memory(0.0, needed, needed, False), ""
    stats = compiled.memory_analysis()
    assert stats is not None
    arguments = stats.argument_size_in_bytes
    extra = stats.output_size_in_bytes - stats.alias_size_in_bytes
    temporaries = stats.temp_size_in_bytes + extra
    needed = arguments + temporaries
    memory = Memory(arguments, temporaries, needed, needed <= chip.hbm_gib * 2**30)
    return memory, compiled.as_text() or ""
