"""`python -m seva_jax.plan`: estimates what a run needs on a TPU slice or GPUs, without them."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence

import tyro

from seva_jax.config import load_experiment
from seva_jax.config.command_line import plain_errors, program
from seva_jax.plan.options import PlanOptions, plan_variant, variants
from seva_jax.plan.table import HOW, Row, describe, table, write_csv, write_page
from seva_jax.runtime.processes import one_line_errors, set_libtpu_flags
from seva_jax.runtime.stores import as_path
from seva_jax.types import DataError

DESCRIPTION = f"""Estimates what a run needs on a TPU slice or on GPUs, before they are rented:
memory, and the time of rollouts, reference, training and evaluation. TPU slices need libtpu (the
extra "tpu"), no TPU; GPUs need nothing. {HOW}

Several sizes, tunings, topologies, --fsdp, --tensor, --batch, --rollout-tensor or --rows values are
combined into a sweep; combinations that do not divide are left out and named. All options of
seva_jax.train follow, such as --config configs/llava15_7b_seva.py and --mesh.fsdp. The exit status
is 1 if nothing fits."""


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line; the exit status is 1 if nothing fits."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the chips are only described
    prog = program("plan")
    with plain_errors(prog):
        options, rest = tyro.cli(
            PlanOptions, prog=prog, description=DESCRIPTION, args=argv, return_unknown_args=True
        )
    options.check()
    own = [field.name for field in dataclasses.fields(options)]
    experiment, _ = load_experiment(DESCRIPTION, rest, "plan", own)
    set_libtpu_flags(experiment.processes)
    rows: list[Row] = []
    skipped: list[str] = []
    combinations = variants(experiment, options)
    for variant in combinations:
        try:
            row = Row(variant.name, plan_variant(variant, options), options.amounts)
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
        sys.exit(
            "error: does not fit; more chips, a larger mesh.fsdp, more train.micro-batches or fewer"
            " rows answered together (rollout.batch-size)"
        )
    if len(rows) > 1:
        for name in dict.fromkeys(row.model for row in fitting):
            best = min((r for r in fitting if r.model == name), key=lambda row: row.chip_hours)
            print(
                f"fewest chip-hours that fit, {name}: {best.plan.topology}, mesh {best.mesh}, "
                f"{best.plan.batch_size} pairs a step{best.answering_words}"
            )


if __name__ == "__main__":
    main()
