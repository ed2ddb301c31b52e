"""Curricula: configs that stand for several runs, each going on from the one before.

What lives here: `Rounds`, `Iterations`, and the runs of a config with all checks. What does not:
how a run takes over what another one made (`prior.py`), running them (`train.py`).

    curriculum=Rounds((Round(), Round(objective=Inherent(), prompts=...)))
    curriculum=Iterations(3)
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

from seva_jax.config.experiment import Curriculum, Experiment, Once, check
from seva_jax.config.options import RolloutOptions
from seva_jax.config.prior_run import PriorRun, problems
from seva_jax.corrupt import Corruption
from seva_jax.data.sources import PromptSource
from seva_jax.models import LoraConfig
from seva_jax.objectives import Objective
from seva_jax.pairs import PairBuilder
from seva_jax.ranges import FROM_1
from seva_jax.training.optimizer import Optim
from seva_jax.training.options import TrainOptions
from seva_jax.types import DataError


@dataclasses.dataclass(frozen=True)
class Round:
    """What a round changes. None keeps what the round before had, in the first one the config's.

    Attributes:
        prompts: what it is trained on: prompts, or pairs of answers that are there already.
        corrupt: corruptions, and by them how far rejected answers are from chosen ones.
        rollout: how prompts are answered.
        pairs: which answers become comparisons.
        objective: what it minimises.
        lora: adapters.
        optim: the optimiser, which starts anew in every round.
        train: how long, and which parts are trained.
        refresh: whether the reference becomes the model of the round before and adapters start
            anew; see `PriorRun.merge`. Means nothing in the first round.
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
    """Several runs, one after another, each starting from what the one before made.

    They are in WORKDIR/1, WORKDIR/2 and so on. Where answers come from the model, each round asks
    the model as it is then.

    Attributes:
        rounds: what each changes.
    """

    rounds: tuple[Round, ...] = (Round(), Round())

    def __call__(self, experiment: Experiment) -> tuple[Experiment, ...]:
        """See `Curriculum.__call__`."""
        if not self.rounds:
            raise DataError("curriculum.rounds is empty; give at least one Round")
        runs: list[Experiment] = []
        for number, round in enumerate(self.rounds, start=1):
            before = runs[-1] if runs else experiment
            found = {f.name: getattr(round, f.name) for f in dataclasses.fields(round)}
            refresh = found.pop("refresh")
            changed = {name: value for name, value in found.items() if value is not None}
            if runs:
                changed["base"] = PriorRun(before.workdir, refresh)
            workdir = f"{experiment.workdir}/{number}"
            runs.append(dataclasses.replace(before, workdir=workdir, curriculum=Once(), **changed))
        return tuple(runs)


@dataclasses.dataclass(frozen=True)
class Iterations(Curriculum):
    """The same run again and again: the model as it is then answers, and is trained on that.

    Attributes:
        num: how many runs.
        refresh: whether the reference becomes the model of the iteration before and adapters start
            anew; see `PriorRun.merge`.
        prompts: what each iteration is asked; () asks all of them what the config says.
    """

    num: Annotated[int, FROM_1] = 2
    refresh: bool = True
    prompts: tuple[PromptSource, ...] = ()

    def __call__(self, experiment: Experiment) -> tuple[Experiment, ...]:
        """See `Curriculum.__call__`."""
        if self.prompts and len(self.prompts) != self.num:
            raise DataError(
                f"curriculum.prompts has {len(self.prompts)} sources for {self.num} iterations; "
                "give one for each, or none"
            )
        asked = self.prompts or (None,) * self.num
        return Rounds(tuple(Round(prompts=p, refresh=self.refresh) for p in asked))(experiment)


def runs_of(experiment: Experiment) -> tuple[Experiment, ...]:
    """The runs that a config stands for, in order, all of them checked.

    Raises:
        DataError: lists every problem, with the round that has it.
    """
    check(experiment)
    runs = experiment.curriculum(experiment)
    found: list[str] = []
    for number, run in enumerate(runs, start=1):
        where = f"round {number}" if len(runs) > 1 else ""
        try:
            check(run)
        except DataError as error:
            found += [f"{where}: {line}" for line in str(error).split("\n  ")[1:]]
        if isinstance(run.base, PriorRun):
            made = {e.workdir: e for e in runs[: number - 1]}
            earlier = made.get(run.base.workdir) or run.base.earlier()
            found += [f"{where}: {text}".removeprefix(": ") for text in problems(run, earlier)]
    if len({run.workdir for run in runs}) < len(runs):
        found.append("two runs of the curriculum have the same workdir")
    if found:
        raise DataError("the config has problems:\n  " + "\n  ".join(found))
    return runs
