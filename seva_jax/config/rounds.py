"""Curricula: configs that stand for several runs, each of which starts from the one before.

What lives here: `Rounds`, `Iterations`, and `runs_of`, which checks all runs of a config. What does
not: how a run starts from another one (`prior_run.py`), running them (`seva_jax/train.py`).

    curriculum=Rounds((Round(), Round(objective=Inherent(), prompts=...)))
    curriculum=Iterations(3)
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

from typing_extensions import override

from seva_jax.config.experiment import Curriculum, Experiment, Once, check
from seva_jax.config.options import RolloutOptions
from seva_jax.config.prior_run import PriorRun, continuation_problems
from seva_jax.corrupt import Corruption
from seva_jax.data import PromptSource
from seva_jax.models import LoraConfig
from seva_jax.objectives import Objective
from seva_jax.pairs import PairBuilder
from seva_jax.ranges import FROM_1
from seva_jax.training import Optim, TrainOptions
from seva_jax.types import DataError


@dataclasses.dataclass(frozen=True)
class Round:
    """Changes to the config for one round.

    None keeps the value of the round before; in the first round, that of the config.

    Attributes:
        prompts: data to train on: prompts, or pairs of given answers.
        corrupt: corruptions, which determine how far rejected answers are from chosen ones.
        rollout: how the model answers prompts.
        pairs: which answers become comparisons.
        objective: the loss that the round minimises.
        lora: adapters.
        optim: the optimiser, whose state is new in every round.
        train: batches, length of training, and which parts are trained.
        refresh: make the model of the round before the reference and train new adapters; see
            `PriorRun.merge`. Has no effect in the first round.
    """

    prompts: PromptSource | None = None
    corrupt: tuple[Corruption, ...] | None = None
    rollout: RolloutOptions | None = None
    pairs: PairBuilder | None = None
    objective: Objective | None = None
    lora: LoraConfig | None = None
    optim: Optim | None = None
    train: TrainOptions | None = None
    refresh: bool = True


@dataclasses.dataclass(frozen=True)
class Rounds(Curriculum):
    """Several runs, one after another, each starting from the model of the one before.

    Their work directories are WORKDIR/1, WORKDIR/2 and so on. Answers that come from the model are
    those of the model that the round starts from.

    Attributes:
        rounds: the changes of each round.
    """

    rounds: tuple[Round, ...] = (Round(), Round())

    @override
    def __call__(self, experiment: Experiment) -> tuple[Experiment, ...]:
        if not self.rounds:
            raise DataError("curriculum.rounds is empty; give at least one Round")
        runs: list[Experiment] = []
        for number, this in enumerate(self.rounds, start=1):
            before = runs[-1] if runs else experiment
            fields = {field.name: getattr(this, field.name) for field in dataclasses.fields(this)}
            refresh = fields.pop("refresh")
            changed = {name: value for name, value in fields.items() if value is not None}
            if runs:
                changed["base"] = PriorRun(before.workdir, refresh)
            workdir = f"{experiment.workdir}/{number}"
            runs.append(dataclasses.replace(before, workdir=workdir, curriculum=Once(), **changed))
        return tuple(runs)


@dataclasses.dataclass(frozen=True)
class Iterations(Curriculum):
    """The same run several times, each time with answers of the model trained so far.

    Attributes:
        num: number of runs.
        refresh: make the model of the iteration before the reference and train new adapters; see
            `PriorRun.merge`.
        prompts: the prompts of each iteration; () takes those of the config in all of them.
    """

    num: Annotated[int, FROM_1] = 2
    refresh: bool = True
    prompts: tuple[PromptSource, ...] = ()

    @override
    def __call__(self, experiment: Experiment) -> tuple[Experiment, ...]:
        if self.prompts and len(self.prompts) != self.num:
            raise DataError(
                f"curriculum.prompts has {len(self.prompts)} sources for {self.num} iterations; "
                "give one for each, or none"
            )
        prompts = self.prompts or (None,) * self.num
        rounds = tuple(Round(prompts=source, refresh=self.refresh) for source in prompts)
        return Rounds(rounds)(experiment)


def runs_of(experiment: Experiment) -> tuple[Experiment, ...]:
    """Returns the runs that a config stands for, in order, all checked.

    Raises:
        DataError: lists every problem, with its round.
    """
    check(experiment)
    runs = experiment.curriculum(experiment)
    problems: list[str] = []
    for number, run in enumerate(runs, start=1):
        where = f"round {number}: " if len(runs) > 1 else ""
        try:
            check(run)
        except DataError as error:
            problems += [where + line for line in str(error).split("\n  ")[1:]]
        if isinstance(run.base, PriorRun):
            before = {one.workdir: one for one in runs[: number - 1]}
            earlier = before.get(run.base.workdir) or run.base.earlier()
            problems += [where + problem for problem in continuation_problems(run, earlier)]
    if len({run.workdir for run in runs}) < len(runs):
        problems.append("two runs of the curriculum have the same workdir")
    if problems:
        raise DataError("the config has problems:\n  " + "\n  ".join(problems))
    return runs
