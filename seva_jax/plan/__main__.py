"""`python -m seva_jax.plan`: estimates what a run needs on a TPU slice, without one."""

from __future__ import annotations

import dataclasses
import itertools
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Literal

import tyro

from seva_jax.batches.trees import RowShape
from seva_jax.config import Experiment, load_experiment, runs_of
from seva_jax.config.command_line import program
from seva_jax.models import LLAVA_15, LlavaConfig
from seva_jax.plan.estimate import Plan, plan
from seva_jax.plan.table import HOW, Row, describe, table, write_csv, write_page
from seva_jax.runtime.processes import one_line_errors, set_libtpu_flags
from seva_jax.runtime.stores import as_path
from seva_jax.sharding import MeshShape
from seva_jax.types import DataError

DESCRIPTION = f"""Estimates what a run needs on a TPU slice, before one is rented. Needs libtpu (the
extra "tpu"), no TPU. {HOW}

Several sizes, tunings, topologies, --fsdp, --tensor or --batch values are combined into a sweep;
combinations that do not divide are left out and named. All options of seva_jax.train follow, such
as --config configs/llava15_7b_seva.py and --mesh.fsdp. The exit status is 1 if nothing fits."""


@dataclasses.dataclass(frozen=True)
class PlanOptions:
    """The slices, models and sizes to plan for.

    Attributes:
        topology: slices as CHIP:SHAPE, such as v5e:4x4 (16 chips), v5p:2x2x2 (8 chips) or
            v6e:16x16 (256 chips); 2xv5e:16x16 means two slices.
        fsdp: sizes of the mesh axis fsdp to try; without any, --mesh.fsdp.
        tensor: sizes of the mesh axis tensor to try; without any, --mesh.tensor.
        batch: batch sizes to try, in pairs; without any, --train.batch-size.
        size: architectures: LLaVA-1.5-7B, LLaVA-1.5-13B, or that of the config's base model.
        tune: what is trained: the parts that the config names, or language model and projector
            in full.
        question: tokens of a question, with its template.
        answer: tokens of an answer.
        rollout: compile prefill and decode too, if the model answers the prompts itself.
        pairs: pairs in the whole run, for chip-hours.
        csv: file to write the table to.
        html: page to write, with charts and the table.
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
    csv: str = ""
    html: str = ""


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
    """Returns the sizes of a row with one image, one question and the answers."""
    targets = branches * options.answer
    length = 1 + config.tokens_per_image + options.question + targets
    return RowShape(-(-length // 64) * 64, 1, branches, options.answer, 1, targets)


def distinct_rounds(experiment: Experiment) -> list[tuple[str, Experiment]]:
    """Returns the runs that a config stands for, named, without those whose programs repeat."""
    named: list[tuple[str, Experiment]] = []
    first, *_ = runs = runs_of(experiment)
    for number, run in enumerate(runs, start=1):
        # Only whether answers are given changes the programs, not which prompts they belong to.
        same_kind = run.prompts.has_answers == first.prompts.has_answers
        prompts = first.prompts if same_kind else run.prompts
        run = dataclasses.replace(run, workdir="", base=experiment.base, prompts=prompts)
        if run not in [before for _, before in named]:
            named.append((f", round {number}" * (len(runs) > 1), run))
    return named


def variants(experiment: Experiment, options: PlanOptions) -> list[Variant]:
    """Returns every combination of the options, for every round of a curriculum."""
    combinations = []
    for round_name, run in distinct_rounds(experiment):
        data = run.mesh.data if not (options.fsdp or options.tensor) else -1
        for size, tune, topology, fsdp, tensor, batch in itertools.product(
            options.size,
            options.tune,
            options.topology,
            options.fsdp or (run.mesh.fsdp,),
            options.tensor or (run.mesh.tensor,),
            options.batch or (run.train.batch_size,),
        ):
            config = run.base.assets().config if size == "base" else LLAVA_15[size]
            train = dataclasses.replace(run.train, batch_size=batch)
            lora = run.base.lora(run.lora) if size == "base" else run.lora
            if tune == "full":
                train = dataclasses.replace(train, trained=("language", "projector"))
                lora = dataclasses.replace(lora, rank=0)
            mesh = MeshShape(data, fsdp, tensor)
            planned = dataclasses.replace(run, mesh=mesh, train=train, lora=lora)
            tuned = f"LoRA r={lora.rank}" if lora.rank else "full"
            combinations.append(Variant(f"{size} {tuned}{round_name}", topology, config, planned))
    return combinations


def plan_variant(variant: Variant, options: PlanOptions) -> Plan:
    """Plans one combination.

    Raises:
        DataError: as `seva_jax.plan.estimate.plan`.
    """
    experiment = variant.experiment
    has_answers = experiment.prompts.has_answers  # then there is nothing to roll out
    branches = 2 if has_answers else 1 + len(experiment.corrupt)
    shape = row_shape(variant.config, options, branches)
    with_rollout = options.rollout and not has_answers
    return plan(experiment, variant.config, variant.topology, shape, with_rollout)


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line; the exit status is 1 if nothing fits."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the TPUs are only described
    options, rest = tyro.cli(
        PlanOptions, prog=program("plan"), description=DESCRIPTION, args=argv,
        return_unknown_args=True,
    )  # fmt: skip
    own = [field.name for field in dataclasses.fields(options)]
    experiment, _ = load_experiment(DESCRIPTION, rest, "plan", own)
    set_libtpu_flags(experiment.processes)
    rows: list[Row] = []
    skipped: list[str] = []
    combinations = variants(experiment, options)
    for variant in combinations:
        try:
            row = Row(variant.name, plan_variant(variant, options), options.pairs)
        except DataError as error:
            if len(combinations) == 1:
                raise
            skipped.append(f"Left out: {variant.name} on {variant.topology}: {error}")
            print(skipped[-1], flush=True)
        else:
            rows.append(row)
            print(describe(row), flush=True)
    if not rows:
        sys.exit("error: none of the combinations can be planned; see above")
    if len(rows) > 1:
        print(table(rows))
    if options.csv:
        write_csv(rows, as_path(options.csv))
    if options.html:
        write_page(rows, skipped, as_path(options.html))
    fitting = [row for row in rows if row.plan.fits]
    if not fitting:
        sys.exit("error: does not fit; more chips, a larger mesh.fsdp or more train.micro-batches")
    if len(rows) > 1:
        for name in dict.fromkeys(row.model for row in fitting):
            best = min((r for r in fitting if r.model == name), key=lambda row: row.chip_hours)
            print(f"fewest chip-hours that fit, {name}: {best.plan.topology}, mesh {best.mesh}")


if __name__ == "__main__":
    main()
