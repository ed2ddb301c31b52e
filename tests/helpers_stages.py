"""Runs with some stages watched or replaced, by the table of stages that `train.run` takes."""

import dataclasses

from seva_jax import train
from seva_jax.run.rollouts import RECORDS, read_rollouts
from seva_jax.runtime import files


def table(before=None, instead=None):
    """Returns a table of stages for `train.run` and `train.run_all`.

    Args:
        before: by stage, a function of the context that is called just before the stage.
        instead: by stage, a function of the context that replaces it and returns its summary.
    """
    before, instead = before or {}, instead or {}

    def stages(ctx, out):
        for stage in train.stages(ctx, out):

            def run(stage=stage):
                if stage.name in before:
                    before[stage.name](ctx)
                return instead[stage.name](ctx) if stage.name in instead else stage.run()

            yield dataclasses.replace(stage, run=run)

    return stages


def replaced(*names):
    """Returns what `table` takes as `instead`: stages that do nothing."""
    return dict.fromkeys(names, lambda ctx: "replaced")


def answers(ctx):
    """Writes rollouts that surely differ: stands in for a model that has learned something."""
    folder = ctx.workdir.path
    records = read_rollouts(folder)
    for i, record in enumerate(records):
        record["clean"], record["corrupted"] = "red", ["blue" if i % 2 else "red", "a green ring"]
    files.write_records(folder / RECORDS, records)
