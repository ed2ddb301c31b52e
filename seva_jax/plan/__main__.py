"""`python -m seva_jax.plan`: what a run needs on a TPU slice, without one."""

from __future__ import annotations

import dataclasses
import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from seva_jax.batches.trees import RowShape
from seva_jax.config.command_line import load_experiment
from seva_jax.config.experiment import Experiment
from seva_jax.config.rounds import runs_of
from seva_jax.models import LLAVA_15, LlavaConfig
from seva_jax.plan.estimate import plan
from seva_jax.plan.table import HOW, Row, describe, table, write_csv, write_page
from seva_jax.runtime.processes import one_line_errors, set_libtpu_flags
from seva_jax.sharding import MeshShape
from seva_jax.types import DataError

DESCRIPTION = f"""What a run needs on a TPU slice, before one is rented. Needs libtpu (the extra
"tpu"), no TPU. {HOW}

Several sizes, tunings, topologies, --fsdp, --tensor or --batch values are all combined (a sweep);
combinations that do not divide are left out and named. All options of seva_jax.train follow, such
as --config configs/llava15_7b_seva.py and --mesh.fsdp. The status is 1 if nothing fits."""


@dataclasses.dataclass(frozen=True)
class PlanOptions:
    """What to plan for.

    Attributes:
        topology: slices, CHIP:SHAPE, as v5e:4x4 (16 chips), v5p:2x2x2 (8), v6e:16x16 (256); two
            slices are 2xv5e:16x16.
        fsdp: sizes of the mesh axis fsdp to try; none takes --mesh.fsdp.
        tensor: sizes of the mesh axis tensor to try; none takes --mesh.tensor.
        batch: batch sizes to try, pairs; none takes --train.batch-size.
        size: architectures: LLaVA-1.5-7B, -13B, or that of the config's base model.
        tune: what is trained: as the config says, or language model and projector in full.
        question: tokens of a question with its template.
        answer: tokens of an answer.
        rollout: compile prefill and decode too.
        pairs: pairs of the whole run, for chip-hours.
        csv: file to write the table to.
        html: page to draw the sweep on.
    """

    topology: Annotated[tuple[str, ...], tyro.conf.arg(metavar="CHIP:SHAPE ...")]
    fsdp: tuple[int, ...] = ()
    tensor: tuple[int, ...] = ()
    batch: tuple[int, ...] = ()
    size: tuple[Literal["7b", "13b", "base"], ...] = ("7b",)
    tune: tuple[Literal["config", "full"], ...] = ("config",)
    question: int = 64
    answer: int = 128
    rollout: bool = True
    pairs: int = 16000
    csv: Path | None = None
    html: Path | None = None


@dataclasses.dataclass(frozen=True)
class Variant:
    """One combination of a sweep.

    Attributes:
        name: the model and what is trained.
        topology: the slice.
        config: architecture.
        experiment: the run.
    """

    name: str
    topology: str
    config: LlavaConfig
    experiment: Experiment


def row_shape(config: LlavaConfig, options: PlanOptions, branches: int) -> RowShape:
    """One image, one question and the answers."""
    targets = branches * options.answer
    length = 1 + config.tokens_per_image + options.question + targets
    return RowShape(-(-length // 64) * 64, 1, branches, options.answer, 1, targets)


def stages(experiment: Experiment) -> list[tuple[str, Experiment]]:
    """The runs that a config stands for, with a name; of those whose programs are equal, one."""
    named: list[tuple[str, Experiment]] = []
    first, *_ = runs = runs_of(experiment)
    for number, run in enumerate(runs, start=1):
        asked = run.prompts.has_answers == first.prompts.has_answers
        prompts = first.prompts if asked else run.prompts
        alike = dataclasses.replace(run, workdir="", base=experiment.base, prompts=prompts)
        if alike not in [before for _, before in named]:
            named.append((f", stage {number}" * (len(runs) > 1), alike))
    return named


def variants(experiment: Experiment, options: PlanOptions) -> list[Variant]:
    """Every combination, for every stage of a curriculum."""
    return [v for name, run in stages(experiment) for v in _variants(name, run, options)]


def _variants(stage: str, experiment: Experiment, options: PlanOptions) -> list[Variant]:
    out = []
    for size, tune, topology, fsdp, tensor, batch in itertools.product(
        options.size,
        options.tune,
        options.topology,
        options.fsdp or (experiment.mesh.fsdp,),
        options.tensor or (experiment.mesh.tensor,),
        options.batch or (experiment.train.batch_size,),
    ):
        config = experiment.base.assets().config if size == "base" else LLAVA_15[size]
        data = experiment.mesh.data if not (options.fsdp or options.tensor) else -1
        train = dataclasses.replace(experiment.train, batch_size=batch)
        e = dataclasses.replace(experiment, mesh=MeshShape(data, fsdp, tensor), train=train)
        if tune == "full":
            train = dataclasses.replace(train, trained=("language", "projector"))
            e = dataclasses.replace(e, lora=dataclasses.replace(e.lora, rank=0), train=train)
        what = f"LoRA r={e.lora.rank}" if e.lora.rank else "full"
        out.append(Variant(f"{size} {what}{stage}", topology, config, e))
    return out


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """The command line; a status of 1 means that nothing fits."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the TPUs are only described
    rows: list[Row] = []
    skipped: list[str] = []
    options, rest = tyro.cli(
        PlanOptions, description=DESCRIPTION, args=argv, return_unknown_args=True
    )
    experiment, _ = load_experiment(DESCRIPTION, rest)
    set_libtpu_flags(experiment.processes)
    combinations = variants(experiment, options)
    for v in combinations:
        answered = v.experiment.prompts.has_answers  # pairs need no rollouts
        branches = 2 if answered else 1 + len(v.experiment.corrupt)
        shape = row_shape(v.config, options, branches)
        rollout = options.rollout and not answered
        try:
            found = plan(v.experiment, v.config, v.topology, shape, rollout)
        except DataError as error:
            if len(combinations) == 1:
                raise
            skipped.append(f"Left out: {v.name} on {v.topology}: {error}")
            print(skipped[-1], flush=True)
            continue
        rows.append(Row(v.name, found, options.pairs))
        print(describe(rows[-1]), flush=True)
    if not rows:
        sys.exit("error: none of the combinations can be planned; see above")
    if len(rows) > 1:
        print(table(rows))
    if options.csv:
        write_csv(rows, options.csv)
    if options.html:
        write_page(rows, skipped, options.html)
    fitting = [row for row in rows if row.plan.fits]
    if not fitting:
        sys.exit("error: does not fit; more chips, a larger mesh.fsdp or more train.micro-batches")
    if len(rows) > 1:
        for name in dict.fromkeys(row.model for row in fitting):
            best = min((r for r in fitting if r.model == name), key=lambda row: row.chip_hours)
            mesh = " x ".join(map(str, best.plan.mesh))
            print(f"fewest chip-hours that fit, {name}: {best.plan.topology}, mesh {mesh}")


if __name__ == "__main__":
    main()
