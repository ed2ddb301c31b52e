"""The default experiment, shrunk for runs in this process, and rollouts that give it pairs."""

import dataclasses

from seva_jax.config.command_line import load_experiment
from seva_jax.corrupt import DiffusionNoise
from seva_jax.run.rollout_files import RECORDS, read_rollouts
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


def answers(workdir):
    """Replaces rollouts by ones that differ, as of a model that has learned something."""
    records = read_rollouts(workdir)
    for i, record in enumerate(records):
        record["clean"], record["corrupted"] = "red", ["blue" if i % 2 else "red", "a green ring"]
    files.write_records(workdir / RECORDS, records)
