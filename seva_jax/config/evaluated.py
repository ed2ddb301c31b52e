"""What of a config concerns an evaluation of a run's model.

What lives here: `evaluation_config`, which compares a given config with that of a run. What
does not: the comparison before training, where every field counts (`seva_jax/run/workdir.py`).
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from seva_jax.config.experiment import Experiment
from seva_jax.config.source import differing_fields, flatten, is_within, without_effect
from seva_jax.types import DataError

# What the base model is, and how it is asked.
_MODEL = (
    *("base", "seed", "compute.param_dtype", "compute.base_weights", "compute.dtype"),
    *("text.generate", "text.max_length", "rollout.cache"),
)
# How the work is done; no answer depends on it but for rounding.
_WORK = ("mesh", "processes", "profile", "rollout.batch_size", "rollout.refill")
_WORK += ("rollout.tensor", "compute.attention")
# These are checked elsewhere: what is asked, and where.
_ELSEWHERE = ("evals", "workdir", "curriculum")


def evaluation_config(
    stored: Experiment, given: Experiment, which: Literal["base", "aligned"]
) -> tuple[Experiment, list[str]]:
    """Returns the config by which a run's model is evaluated.

    It is the run's own, with devices and batches of the given one.

    Args:
        stored: the config of the run.
        given: the config file with the options of the command line.
        which: the model.

    Returns:
        The config, and the names of the fields that the given one changes without any effect on
        an evaluation, such as those of training.

    Raises:
        DataError: the given config is about another model, or asks it in another way; the message
            names the fields with both values.
    """
    differing = differing_fields(flatten(stored), flatten(given))
    free = (*without_effect(given.base, "base"), *_WORK, *_ELSEWHERE)
    changed = [name for name in differing if not is_within(name, free)]
    model = (*_MODEL, "lora") if which == "aligned" else _MODEL
    if others := [name for name in changed if is_within(name, model)]:
        raise DataError(
            f"{stored.workdir} holds the model of another config:\n  "
            + "\n  ".join(differing[name] for name in others)
            + "\nleave these as they are there, or give another model"
        )
    asked = dataclasses.replace(
        stored,
        mesh=given.mesh,
        processes=given.processes,
        profile=given.profile,
        compute=dataclasses.replace(stored.compute, attention=given.compute.attention),
        rollout=dataclasses.replace(
            stored.rollout,
            batch_size=given.rollout.batch_size,
            refill=given.rollout.refill,
            tensor=given.rollout.tensor,
        ),
    )
    return asked, changed
