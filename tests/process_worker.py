"""A whole small run for `test_processes.py`, in one of several processes.

Arguments are those of `seva_jax.train`. With KILL_AT=N in the environment the process KILL_PROCESS
gets KILL_SIGNAL (by default SIGKILL) when alignment has reached step N. With SLOW_PROCESS the input
of this process takes SLOW_S seconds for every batch.
"""

import dataclasses
import os
import signal
import sys
import threading
import time
from collections import Counter

import jax
import numpy as np
from typing_extensions import override

from seva_jax import train
from seva_jax.batches.pipeline import Batches
from seva_jax.config.command_line import load_experiment
from seva_jax.pairs import PairBuilder
from seva_jax.run.workdir import StageMetrics
from seva_jax.runtime.files import write_text
from seva_jax.runtime.processes import joined
from seva_jax.text.sampling import Sampling
from seva_jax.types import Comparison, View

SMALL = """
--base.steps 4 --base.batch-size 16 --base.prompts.num 64 --prompts.num 40
--rollout.batch-size 32 --train.batch-size 8 --train.max-steps 20 --train.save-every 5
--compute.row-shapes 1
--train.log-every 1 --lora.rank 4 --seed 3 --base.vocab-multiple 8 --base.optim.lr 3e-3
--base.model.vision.hidden-size 32 --base.model.text.hidden-size 32
--base.model.text.head-dim 16 --report.num-pairs 4
"""


@dataclasses.dataclass(frozen=True)
class MadeUpPairs(PairBuilder):
    """Pairs whose answers differ whatever the untrained model said; asks the model as well."""

    @override
    def build(self, rollouts, data, model):
        """Asks the model as well; what the calls gave is in their files."""
        prompts = [rollout.prompt for rollout in rollouts]
        model.answer("answers", prompts[:9], Sampling(4, repetition_penalty=1.2))
        views = [View(prompt, ("red", "blue")[:1]) for prompt in prompts[:10]]
        whole = [model.image_tokens(prompt, 0) for prompt in prompts[:10]]
        targets = [tokens & (np.arange(len(tokens)) < 8) for tokens in whole]
        model.measure("measures", views, 1, targets)
        model.features("features", [prompt.images[0] for prompt in prompts])
        return self(rollouts)

    @override
    def __call__(self, rollouts):
        answers = (("red", "blue"), ("a green ring", "a red circle"))
        return [Comparison(r.prompt, answers[i % 2]) for i, r in enumerate(rollouts)], Counter()


def write_or_die(self, at, values, write=StageMetrics.write):
    """Writes a row of metrics, and dies at a step."""
    write(self, at, values)
    killed = int(os.environ.get("KILL_PROCESS", "-1")) == jax.process_index()
    if self.stage == "align" and killed and at == int(os.environ["KILL_AT"]):
        write_text(self.workdir.path / "died", "")
        os.kill(os.getpid(), signal.Signals[os.environ.get("KILL_SIGNAL", "SIGKILL")])


def read_slowly(self, index, read=Batches.__getitem__, lock=threading.Lock()):  # noqa: B008
    """Reads a batch, one at a time although several threads read ahead."""
    with lock:
        if int(os.environ.get("SLOW_PROCESS", "-1")) == jax.process_index():
            time.sleep(float(os.environ["SLOW_S"]))
    return read(self, index)


if __name__ == "__main__":
    StageMetrics.write = write_or_die
    Batches.__getitem__ = read_slowly
    experiment, _ = load_experiment("test", [*SMALL.split(), *sys.argv[1:]])
    experiment = dataclasses.replace(experiment, pairs=MadeUpPairs(), evals=experiment.evals[:1])
    evals = dataclasses.replace(
        experiment.evals[0], prompts=dataclasses.replace(experiment.evals[0].prompts, num=12)
    )
    with joined(experiment.processes):
        train.run(dataclasses.replace(experiment, evals=(evals,)))
