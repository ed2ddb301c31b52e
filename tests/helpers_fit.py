"""The smallest training stage: a random base, made-up pairs, and the ordinary loop."""

import contextlib
from unittest import mock

import numpy as np
from helpers_devices import limited_devices

from seva_jax.config.command_line import load_experiment
from seva_jax.models import abstract_variables, init_variables
from seva_jax.objectives import DPO
from seva_jax.sharding import variable_shardings
from seva_jax.train import Run
from seva_jax.types import Comparison

ARGS = """
--base.steps 4 --base.batch-size 4 --base.prompts.num 16 --prompts.num 12 --seed 3
--rollout.batch-size 4 --train.batch-size 4 --train.log-every 2 --train.save-every 2
--lora.rank 2 --lora.alpha 4 --compute.row-shapes 1
--base.model.vision.hidden-size 16 --base.model.vision.num-layers 2
--base.model.vision.mlp-size 32 --base.model.text.hidden-size 16 --base.model.text.num-layers 1
--base.model.text.num-heads 2 --base.model.text.head-dim 8 --base.model.text.mlp-size 32
"""


def tiny_run(workdir, *argv):
    """Makes a run of the default config, shrunk, on one device."""
    experiment, _ = load_experiment("test", [*ARGS.split(), "--workdir", str(workdir), *argv])
    with limited_devices(1):
        return Run(experiment)


def random_base(run):
    """Returns parameters of a base model that was not trained."""
    shardings = variable_shardings(run.mesh, abstract_variables(run.base_model))["params"]
    return init_variables(run.base_model, "params", shardings, 0)


def fit(run, steps, reference=-2.0, weights=None, epochs=1000, write=None):
    """Trains adapters with DPO on made-up pairs.

    Args:
        run: see `tiny_run`.
        steps: how many.
        reference: of all answer tokens, or a list with a number for each pair.
        weights: of the pairs, by default 1.
        epochs: at least as many as the steps need.
        write: called after every row of metrics, with step and values.
    """
    prompts = run.prompts.prompts
    weights = weights or [1.0] * len(prompts)
    pairs = [Comparison(p, ("red", "blue"), w) for p, w in zip(prompts, weights, strict=True)]
    encoder = run.encoder(run.experiment.text.train)
    values = np.broadcast_to(np.asarray(reference, np.float32), len(pairs))
    logps = [
        tuple(np.full(len(b), value) for b in encoder.encode(p.prompt.question, 1, p.answers)[1])
        for p, value in zip(pairs, values, strict=True)
    ]
    shardings = variable_shardings(run.mesh, abstract_variables(run.model))
    base = random_base(run)
    lora = init_variables(run.model, "lora", shardings["lora"], 0)
    metrics = run.workdir.metrics

    @contextlib.contextmanager
    def telling(stage):
        with metrics(stage) as append:

            def both(step, values):
                append(step, values)
                if write:
                    write(step, values)

            yield both

    rows = run.rows(pairs, run.pixels(run.prompts), logps)
    with mock.patch.object(run.workdir, "metrics", telling):
        return run.fit_rows(
            "align", run.model, DPO(), run.experiment.optim, rows, {"params": base}, {"lora": lora},
            batch_size=4, steps=steps, epochs=epochs,
        )  # fmt: skip
