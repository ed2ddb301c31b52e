"""`python -m seva_jax.plan`: what a run needs on a TPU slice, without one."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from seva_jax.cli import load_experiment
from seva_jax.data.trees import RowShape
from seva_jax.experiment import Experiment
from seva_jax.models import LlavaConfig
from seva_jax.models.config import TextConfig
from seva_jax.plan.estimate import Memory, Plan, plan
from seva_jax.sharding import MeshShape
from seva_jax.types import DataError

_GIB = 2**30
_13B = TextConfig(hidden_size=5120, num_layers=40, num_heads=40, num_kv_heads=40, mlp_size=13824)
DESCRIPTION = """What a run needs on a TPU slice, before one is rented. Compiles the very programs
the trainer runs, for the slice, with abstract arrays (libtpu, no TPU): memory per chip and
collectives are XLA's own, operations are counted from the architecture, and the time of a step is
a roofline estimate, the longest of compute, HBM and ICI as if the others hid behind it; real
steps take longer, often half as long again or twice.

Several topologies, --fsdp, --tensor or --batch values are all combined (a sweep). All options of
seva_jax.train follow, such as --config configs/llava15_7b_seva.py and --mesh.fsdp."""


@dataclasses.dataclass(frozen=True)
class PlanOptions:
    """What to plan for.

    Attributes:
        topology: slices, CHIP:SHAPE, as v5e:4x4 (16 chips), v5p:2x2x2 (8), v6e:16x16 (256).
        fsdp: sizes of the mesh axis fsdp to try; none takes --mesh.fsdp.
        tensor: sizes of the mesh axis tensor to try; none takes --mesh.tensor.
        batch: batch sizes to try, pairs; none takes --train.batch-size.
        size: architecture: LLaVA-1.5-7B, -13B, or that of the config's base model.
        question: tokens of a question with its template.
        answer: tokens of an answer.
        rollout: compile prefill and decode too.
        pairs: pairs of the whole run, for chip-hours.
        csv: file to write the table to.
    """

    topology: Annotated[tuple[str, ...], tyro.conf.arg(metavar="CHIP:SHAPE ...")]
    fsdp: tuple[int, ...] = ()
    tensor: tuple[int, ...] = ()
    batch: tuple[int, ...] = ()
    size: Literal["7b", "13b", "base"] = "7b"
    question: int = 64
    answer: int = 128
    rollout: bool = True
    pairs: int = 16000
    csv: Path | None = None


def row_shape(config: LlavaConfig, options: PlanOptions, branches: int) -> RowShape:
    """One image, one question and the answers."""
    length = 1 + config.tokens_per_image + options.question + branches * options.answer
    return RowShape(-(-length // 64) * 64, 1, branches, options.answer, 1)


def variants(experiment: Experiment, options: PlanOptions) -> list[tuple[str, Experiment]]:
    """(topology, experiment) of every combination."""
    out = []
    for topology, fsdp, tensor, batch in itertools.product(
        options.topology,
        options.fsdp or (experiment.mesh.fsdp,),
        options.tensor or (experiment.mesh.tensor,),
        options.batch or (experiment.train.batch_size,),
    ):
        data = experiment.mesh.data if not (options.fsdp or options.tensor) else -1
        mesh = MeshShape(data, fsdp, tensor)
        train = dataclasses.replace(experiment.train, batch_size=batch)
        out.append((topology, dataclasses.replace(experiment, mesh=mesh, train=train)))
    return out


_COLUMNS = (
    *("topology", "chips", "data x fsdp x tensor", "pairs/step", "fits", "step GiB/chip"),
    *("of HBM", "rollout GiB/chip", "GiB sent/chip", "binds", "s/step", "pairs/s", "chip-hours"),
)


def table_row(found: Plan, pairs: int) -> tuple[str, ...]:
    """A plan as text, by `_COLUMNS`."""

    def gib(memory: Memory | None) -> str:
        return "-" if memory is None else f"{memory.needed / _GIB:.2f}"

    rate = found.batch_size / found.step_seconds
    timed = ("-",) * 5
    if found.step.fits:
        hours = pairs / rate * found.num_chips / 3600
        sent = f"{sum(found.sent.values()) / _GIB:.1f}"
        timed = (sent, found.binding, f"{found.step_seconds:.2f}", f"{rate:.0f}", f"{hours:.1f}")
    return (
        found.topology,
        str(found.num_chips),
        " x ".join(map(str, found.mesh)),
        str(found.batch_size),
        "yes" if found.fits else "NO",
        gib(found.step),
        f"{found.step.needed / _GIB / found.chip.hbm_gib:.0%}",
        gib(found.rollout),
        *timed,
    )


def describe(found: Plan, pairs: int) -> str:
    """A plan in full."""
    step, chips = found.step, found.num_chips
    lines = [
        f"{found.topology}: {chips} chips, mesh {' x '.join(map(str, found.mesh))} (data x fsdp x "
        f"tensor), {found.batch_size} pairs a step",
        f"  step     {step.needed / _GIB:6.2f} GiB of {found.chip.hbm_gib} GiB a chip "
        f"({step.needed / _GIB / found.chip.hbm_gib:.0%}): "
        + (
            f"arguments {step.arguments / _GIB:.2f}, temporaries {step.temporaries / _GIB:.2f}"
            if step.fits
            else "DOES NOT FIT"
        ),
    ]
    if found.rollout:
        state = "" if found.rollout.fits else ": DOES NOT FIT"
        lines.append(f"  rollout  {found.rollout.needed / _GIB:6.2f} GiB a chip{state}")
    lines.append(
        f"  compute  {found.model_flops / 1e12:,.0f} TFLOP a step, "
        f"{found.hardware_flops / 1e12:,.0f} with what is computed twice"
    )
    if step.fits:
        kinds = ", ".join(f"{kind} {size / _GIB:.2f}" for kind, size in found.sent.items())
        limits = ", ".join(f"{name} {s:.2f} s" for name, s in found.seconds.items())
        rate = found.batch_size / found.step_seconds
        lines += [
            f"  network  {sum(found.sent.values()) / _GIB:.2f} GiB sent a chip and step: {kinds}",
            f"  roofline {limits}; {found.binding} binds: {found.step_seconds:.2f} s a step",
            f"  run      {rate:.0f} pairs/s, {pairs / rate * chips / 3600:.1f} chip-hours for "
            f"{pairs:,} pairs",
        ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; a status of 1 means that nothing fits."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the TPUs are only described
    try:
        options, rest = tyro.cli(
            PlanOptions, description=DESCRIPTION, args=argv, return_unknown_args=True
        )
        experiment, _ = load_experiment(DESCRIPTION, rest)
        config = LlavaConfig()
        if options.size == "13b":
            config = dataclasses.replace(config, text=_13B)
        elif options.size == "base":
            config = experiment.base.assets().config
        shape = row_shape(config, options, 1 + len(experiment.corrupt))
        found = []
        for topology, variant in variants(experiment, options):
            found.append(plan(variant, config, topology, shape, options.rollout))
            print(describe(found[-1], options.pairs), flush=True)
    except DataError as error:
        sys.exit(f"error: {error}")
    rows = [table_row(x, options.pairs) for x in found]
    if len(found) > 1:
        widths = [max(map(len, column)) for column in zip(_COLUMNS, *rows, strict=True)]
        for row in (_COLUMNS, *rows):
            print("  ".join(x.ljust(w) for x, w in zip(row, widths, strict=True)).rstrip())
    if options.csv:
        with options.csv.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([_COLUMNS, *rows])
    fitting = [x for x in found if x.fits]
    if not fitting:
        sys.exit("error: does not fit; more chips, a larger mesh.fsdp or more train.micro-batches")
    if len(found) > 1:
        cheapest = min(fitting, key=lambda x: x.step_seconds / x.batch_size * x.num_chips)
        print(f"fewest chip-hours of those that fit: {cheapest.topology}, mesh {cheapest.mesh}")


if __name__ == "__main__":
    main()
