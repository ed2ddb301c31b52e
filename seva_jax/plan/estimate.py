"""One plan: compile, read memory and collectives, and put them against the chip's limits."""

from __future__ import annotations

import dataclasses
import re

import jax

from seva_jax.batches.trees import RowShape
from seva_jax.config.experiment import Experiment
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
        arguments: weights, optimiser state, batch.
        temporaries: everything in between; with outputs that do not take an argument's place.
        needed: the total; where it exceeds the chip, what XLA says it would need.
        fits: whether XLA could compile it.
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
        chip: the hardware.
        step: memory of the alignment step.
        rollout: memory of prefill and decode; None where not asked.
        model_flops: operations of a step over all chips, nothing counted twice.
        hardware_flops: with what `remat` repeats.
        sent: bytes each chip sends in a step, by kind of collective; empty if it does not fit.
        seconds: lower bounds of a step by limit: "compute", "HBM", "ICI".
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
        """Chips of the slice."""
        data, fsdp, tensor = self.mesh
        return data * fsdp * tensor

    @property
    def fits(self) -> bool:
        """Whether every program fits."""
        return self.step.fits and (self.rollout is None or self.rollout.fits)

    @property
    def binding(self) -> str:
        """The limit that takes longest."""
        return max(self.seconds, key=lambda name: self.seconds[name])

    @property
    def step_seconds(self) -> float:
        """Roofline time of a step: the longest limit, as if the others hid behind it."""
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
        topology: the slice, "v5e:8x8", or slices, "2xv5e:8x8".
        shape: sizes of a row.
        with_rollout: also prefill and decode.

    Raises:
        DataError: no such slice, a mesh that does not fit it, a batch that does not divide.
    """
    slices = Topology.parse(topology)
    chip, mesh = slices.chip, experiment.mesh.make(slices.devices())
    check_batch(mesh, experiment.train.batch_size, experiment.train.micro_batches)
    size = experiment.train.batch_size
    memory, text = _compile(lower_step(experiment, config, mesh, shape), chip)
    rollout = None
    if with_rollout:
        prompt = shape.length - shape.targets
        programs = lower_rollout(experiment, config, mesh, prompt)
        rollout = max((_compile(x, chip)[0] for x in programs), key=lambda memory: memory.needed)
    once = forward(config, experiment.lora, shape)
    trained = experiment.train.trained
    needed = size * model_flops(once, trained)
    computed = size * hardware_flops(once, trained, experiment.compute.remat)
    sent = collective_bytes(text) if text else {}
    seconds = {
        "compute": computed / mesh.size / chip.flops,
        "HBM": _hbm_bytes(experiment, config, mesh, memory) / chip.hbm,
        "ICI": sum(sent.values()) / chip.ici,
    }
    axes = (mesh.shape["data"], mesh.shape["fsdp"], mesh.shape["tensor"])
    return Plan(
        topology, axes, size, chip, memory, rollout, needed, computed, sent, seconds
    )  # fmt: skip


def _compile(lowered: jax.stages.Lowered, chip: Chip) -> tuple[Memory, str]:
    """Memory of a program, and its text if it fits."""
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        found = re.search(r"\(([\d.]+)G\) exceeds available HBM \(([\d.]+)G\)", str(error))
        if "RESOURCE_EXHAUSTED" not in str(error) or not found:
            raise
        needed = float(found[1]) * 2**30
        return Memory(0.0, needed, needed, False), ""
    stats = compiled.memory_analysis()
    assert stats is not None
    arguments = stats.argument_size_in_bytes
    extra = stats.output_size_in_bytes - stats.alias_size_in_bytes
    temporaries = stats.temp_size_in_bytes + extra
    needed = arguments + temporaries
    return Memory(
        arguments, temporaries, needed, needed <= chip.hbm_gib * 2**30
    ), compiled.as_text() or ""


def _hbm_bytes(
    experiment: Experiment, config: LlavaConfig, mesh: jax.sharding.Mesh, memory: Memory
) -> float:
    """Bytes a chip moves to and from its memory in a step, at least.

    The language model's weights are read in every pass of every micro-batch (forward, again with
    `remat`, backward), and written once more where they are gathered from other chips; arguments
    are read and the state is written; temporaries are written and read.
    """
    text, compute = config.text, experiment.compute
    wide = (2 * text.num_heads + 2 * text.num_kv_heads) * text.head_dim
    weights = text.num_layers * text.hidden_size * (wide + 3 * text.mlp_size)
    width = {"float": 2, "int8": 1, "nf4": 0.56}[compute.base_weights]
    passes = (3 if compute.remat == "layers" else 2) * experiment.train.micro_batches
    moved = weights * width / mesh.shape["tensor"] * passes * (2 if mesh.shape["fsdp"] > 1 else 1)
    return moved + 2 * memory.arguments + 2 * memory.temporaries
