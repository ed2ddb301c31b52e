"""Answers prompts of several shapes for `test_prefill_shapes.py`, in one of several processes.

Writes the answers, and the shapes of the prefills, to a file in the directory that is the argument.
"""

import itertools
import json
import sys
from pathlib import Path

import jax
from helpers_rollout import MIXED, MODEL, engine, prompt_set
from tiny_models import noisy_variables

from seva_jax.corrupt import DiffusionNoise, Drop
from seva_jax.inference import rollouts
from seva_jax.runtime.processes import ProcessOptions, joined
from seva_jax.sharding import replicated
from seva_jax.text.sampling import Sampling

shapes = set()


def noted(sampler, variables, state, batch, *rest, refill=rollouts.refill):
    """Notes tokens and images of a prefill."""
    shapes.add((batch.tokens_BS.shape[1], batch.pixels_BIHWC.shape[1]))
    return refill(sampler, variables, state, batch, *rest)


if __name__ == "__main__":
    rollouts.refill = noted
    with joined(ProcessOptions()):
        one = engine(None, 8, (2, 1, 1), refill=4)
        variables = jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(replicated(one.mesh), x),
            jax.device_get(noisy_variables(MODEL)),
        )
        one = engine(variables, 8, (2, 1, 1), refill=4)
        corrupt = (DiffusionNoise(500), Drop(of="captions"))
        sampling = Sampling(5, temperature=1.5)
        answers = [
            (a.prompt.id, a.answers, a.dropped)
            for a in itertools.chain(*one.answer(prompt_set(MIXED), sampling, corrupt))
        ]
        text = json.dumps({"answers": answers, "shapes": sorted(shapes)})
        Path(sys.argv[1], f"{jax.process_index()}.json").write_text(text)
