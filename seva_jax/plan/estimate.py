"""Makes one plan: compiles a run's programs and compares what they need with the chip's limits."""

from __future__ import annotations

import dataclasses
import re

import jax

from seva_jax.batches.trees import RowShape
from seva_jax.config import Experiment
from seva_jax.models import LlavaConfig
from seva_jax.plan.chips import Chip, Topology
from seva_jax.plan.hlo import collective_bytes
from seva_jax.plan.program import lower_rollout, lower_step
from seva_jax.sharding import check_batch
from seva_jax.training.flops import forward, hardware_flops, model_flops


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
class Plan:
    """What a run needs on a slice.

    Attributes:
        topology: the slice.
        mesh: devices along data, fsdp, tensor.
        batch_size: pairs in a step.
        chip: one chip of the slice.
        step: memory of the alignment step.
        rollout: memory of prefill or decode, whichever needs more; None without rollouts.
        model_flops: operations that a step needs, over all chips.
        hardware_flops: operations that it executes, with those that `remat` repeats.
        sent: bytes that each chip sends in a step, by kind of collective; empty if the step does
            not fit.
        seconds: the least time of a step that each limit allows: "compute", "HBM", "ICI".
    """

    topology: str
    mesh: tuple[int, int, int]
    batch_size: int
    chip: Chip
    step: Memory
    rollout: Memory | None
    model_flops: float
    hardware_flops: float
    sent: dict[str, float]
    seconds: dict[str, float]

    @property
    def num_chips(self) -> int:
        """Number of chips, over all slices."""
        data, fsdp, tensor = self.mesh
        return data * fsdp * tensor

    @property
    def fits(self) -> bool:
        """Whether every program fits."""
        return self.step.fits and (self.rollout is None or self.rollout.fits)

    @property
    def binding(self) -> str:
        """The limit that allows the slowest step."""
        return max(self.seconds, key=lambda name: self.seconds[name])

    @property
    def step_seconds(self) -> float:
        """Roofline time of a step, a lower bound: as if the other limits hid behind the longest."""
        return max(self.seconds.values())


def plan(
    experiment: Experiment,
    config: LlavaConfig,
    topology: str,
    shape: RowShape,
    with_rollout: bool,
) -> Plan:
    """Compiles a run's programs for a slice and reads what they need.

    Args:
        experiment: the run; its mesh is laid over the slice.
        config: architecture.
        topology: the slice, such as "v5e:8x8", or slices, "2xv5e:8x8".
        shape: sizes of a row.
        with_rollout: whether to compile prefill and decode too.

    Raises:
        DataError: the slice does not exist, the mesh does not fit it, or the batch does not divide.
    """
    slices = Topology.parse(topology)
    chip, mesh = slices.chip, experiment.mesh.make(slices.devices())
    size, trained = experiment.train.batch_size, experiment.train.trained
    check_batch(mesh, size, experiment.train.micro_batches)
    memory, text = _compile(lower_step(experiment, config, mesh, shape), chip)
    rollout = None
    if with_rollout:
        prompt = shape.length - shape.targets
        programs = lower_rollout(experiment, config, mesh, prompt)
        rollout = max((_compile(x, chip)[0] for x in programs), key=lambda memory: memory.needed)
    once = forward(config, experiment.lora, shape)
    needed = size * model_flops(once, trained)
    executed = size * hardware_flops(once, trained, experiment.compute.remat)
    sent = collective_bytes(text) if text else {}
    seconds = {
        "compute": executed / mesh.size / chip.flops,
        "HBM": _hbm_bytes(experiment, config, mesh, memory) / chip.hbm,
        "ICI": sum(sent.values()) / chip.ici,
    }
    axes = (mesh.shape["data"], mesh.shape["fsdp"], mesh.shape["tensor"])
    return Plan(topology, axes, size, chip, memory, rollout, needed, executed, sent, seconds)


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


def _hbm_bytes(
    experiment: Experiment, config: LlavaConfig, mesh: jax.sharding.Mesh, memory: Memory
) -> float:
    """Returns a lower bound on the bytes a chip moves to and from its memory in a step.

    The language model's weights are read in every pass of every micro-batch (forward, backward, and
    forward again with `remat`), and also written where they are gathered from other chips. The
    arguments are read and the state is written; temporaries are written and read.
    """
    text, compute = config.text, experiment.compute
    wide = (2 * text.num_heads + 2 * text.num_kv_heads) * text.head_dim
    weights = text.num_layers * text.hidden_size * (wide + 3 * text.mlp_size)
    width = {"float": 2, "int8": 1, "nf4": 0.56}[compute.base_weights]
    passes = (3 if compute.remat == "layers" else 2) * experiment.train.micro_batches
    moved = weights * width / mesh.shape["tensor"] * passes * (2 if mesh.shape["fsdp"] > 1 else 1)
    return moved + 2 * memory.arguments + 2 * memory.temporaries
