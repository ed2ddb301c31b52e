"""The default experiment, shrunk for runs in this process, and rollouts that give it pairs."""

import dataclasses

from seva_jax import train
from seva_jax.config.command_line import load_experiment
from seva_jax.corrupt import DiffusionNoise
from seva_jax.run.context import RunContext
from seva_jax.run.outputs import Outputs
from seva_jax.run.rollouts import RECORDS, read_rollouts
from seva_jax.runtime import files

SMALL = """
--base.steps 12 --base.batch-size 16 --base.prompts.num 96 --prompts.num 48
--rollout.batch-size 32 --train.batch-size 8 --train.max-steps 6 --train.save-every 2
--train.log-every 1 --lora.rank 4 --seed 3 --mesh.data 1 --mesh.fsdp 2 --mesh.tensor 2
--base.model.vision.hidden-size 32 --base.model.text.hidden-size 32
--base.model.text.head-dim 16 --base.vocab-multiple 8 --base.optim.lr 3e-3
"""


def small(workdir, *extra):
    """Returns the default experiment, shrunk, for 4 of the 8 fake devices."""
    sizes = [x for i in range(5) for x in (f"--evals.{i}.prompts.num", "12")]
    argv = [*SMALL.split(), *sizes, "--workdir", str(workdir), *extra]
    experiment, _ = load_experiment("test", argv)
    # Untrained models answer alike on clean and noised images; two corruptions find more pairs.
    return dataclasses.replace(experiment, corrupt=(DiffusionNoise(999), DiffusionNoise(900)))


def answers(ctx):
    """Writes rollouts that surely differ: stands in for a model that has learned something."""
    path = ctx.workdir.path
    records = read_rollouts(path)
    for i, record in enumerate(records):
        record["clean"], record["corrupted"] = "red", ["blue" if i % 2 else "red", "a green ring"]
    files.write_records(path / RECORDS, records)


def opened(config, siblings=()):
    """Opens the work directory of a run; returns what its stages have made."""
    return Outputs(RunContext.open(config, siblings))


def table(before=None, instead=None, after=None):
    """Returns a table of stages for `train.run` and `train.run_all`, some watched or replaced.

    Args:
        before: by stage, a function of the context that is called just before the stage.
        instead: by stage, a function of the context that replaces it and returns its summary.
        after: by stage, a function of the context that is called just after the stage.
    """
    before, instead, after = before or {}, instead or {}, after or {}

    def stages(ctx, out):
        for stage in train.stages(ctx, out):

            def run(stage=stage):
                if stage.name in before:
                    before[stage.name](ctx)
                summary = instead[stage.name](ctx) if stage.name in instead else stage.run()
                if stage.name in after:
                    after[stage.name](ctx)
                return summary

            missing = "note" if stage.name in instead else stage.if_missing  # it may leave nothing
            yield dataclasses.replace(stage, run=run, if_missing=missing)

    return stages


def replaced(*names):
    """Returns what `table` takes as `instead`: stages that do nothing."""
    return dict.fromkeys(names, lambda ctx: "replaced")
