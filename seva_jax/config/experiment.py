"""The root config: one frozen dataclass per section, and the checks that cross sections.

A config file is Python with `get_config() -> Experiment`. What implements an extension point is
a value (`objective=DPO(beta=0.1)`), never a name to look up. TokenStats files and the command line
is in `seva_jax/config/command_line.py`.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

from seva_jax.config.base_models import BaseModel, Checkpoint
from seva_jax.config.options import ComputeOptions, ReportOptions, RolloutOptions, TextOptions
from seva_jax.corrupt import Corruption, DiffusionNoise
from seva_jax.data.sources import PromptSource
from seva_jax.evals import Evaluator, ExactAnswer, Questions, Suite
from seva_jax.models import (
    LoraConfig,
    require_qwix,
)
from seva_jax.objectives import DPO, Objective
from seva_jax.pairs import CorruptionPairs, PairBuilder
from seva_jax.ranges import FROM_0, NO_EFFECT, out_of_range
from seva_jax.runtime.loggers import Logger
from seva_jax.runtime.processes import ProcessOptions
from seva_jax.sharding import MeshShape
from seva_jax.text.templates import Template
from seva_jax.training.optimizer import Optim
from seva_jax.training.options import TrainOptions
from seva_jax.types import DataError
from seva_jax.worlds import WorldPrompts


@dataclasses.dataclass(frozen=True)
class Evaluation(Suite):
    """One evaluator on one set of prompts with known answers.

    Attributes:
        evaluator: how answers are scored.
        prompts: the questions.
    """

    evaluator: Evaluator = ExactAnswer()
    prompts: PromptSource = WorldPrompts()

    @property
    def name(self) -> str:
        """The evaluator's."""
        return self.evaluator.name

    def open(self) -> Questions:
        """See `Suite.open`."""
        data = self.prompts.open()
        return Questions(
            data.prompts, data.load_image, data.drops, left_out=data.left_out,
            evaluator=self.evaluator,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Curriculum:
    """Base class: the runs that a config stands for."""

    def __call__(self, experiment: Experiment) -> tuple[Experiment, ...]:
        """The runs in order, each with a work directory of its own and without a curriculum.

        A run that goes on from the one before has a `PriorRun` as its base.

        Args:
            experiment: the config.
        """
        raise NotImplementedError(f"{type(self).__name__} must define __call__")


@dataclasses.dataclass(frozen=True)
class Once(Curriculum):
    """The run itself."""

    def __call__(self, experiment: Experiment) -> tuple[Experiment, ...]:
        """See `Curriculum.__call__`."""
        return (experiment,)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One run, from images to an aligned model.

    Attributes:
        workdir: everything the run writes goes here; run again to resume.
        seed: every random choice follows from it.
        strict: look at every text and image before the first stage, those of evaluations too,
            and stop if one cannot be used. Otherwise those are counted and left out, see
            `seva_jax.data check`. What the method itself leaves out, such as equal answers of the
            model, is no error.
        base: the model to align.
        prompts: unlabelled images and questions; or pairs of answers that are there already, then
            corrupt, rollout and pairs are not used.
        corrupt: corruptions; each gives one rejected answer to every prompt.
        rollout: how prompts are answered.
        pairs: which answers become comparisons.
        text: templates and lengths.
        objective: what alignment minimises.
        lora: adapters; rank 0 means none.
        optim: the optimiser.
        train: how long, on what, and what is trained.
        compute: precision and memory.
        mesh: devices along each axis.
        processes: how the processes of a run look after each other.
        evals: evaluations of base and aligned model, from a few prompts (`Evaluation`) to the
            benchmarks of `seva_jax/evals/suites`.
        report: what the report page shows.
        loggers: where metrics and a few pairs go beside metrics.jsonl, such as
            `(TensorBoard(), WandB(project="mine"))`.
        curriculum: which runs the config stands for, one after another; see `seva_jax/config/rounds.py`.
    """

    workdir: Annotated[str, NO_EFFECT] = "runs/default"
    seed: Annotated[int, FROM_0] = 42
    strict: Annotated[bool, NO_EFFECT] = False
    base: BaseModel = Checkpoint()
    prompts: PromptSource = WorldPrompts()
    corrupt: tuple[Corruption, ...] = (DiffusionNoise(step=500),)
    rollout: RolloutOptions = RolloutOptions()
    pairs: PairBuilder = CorruptionPairs()
    text: TextOptions = TextOptions()
    objective: Objective = DPO()
    lora: LoraConfig = LoraConfig()
    optim: Optim = Optim()
    train: TrainOptions = TrainOptions()
    compute: ComputeOptions = ComputeOptions()
    mesh: Annotated[MeshShape, NO_EFFECT] = MeshShape()
    processes: Annotated[ProcessOptions, NO_EFFECT] = ProcessOptions()
    evals: tuple[Suite, ...] = ()
    report: Annotated[ReportOptions, NO_EFFECT] = ReportOptions()
    loggers: Annotated[tuple[Logger, ...], NO_EFFECT] = ()
    curriculum: Annotated[Curriculum, NO_EFFECT] = Once()

    @property
    def prompt_template(self) -> Template:
        """How the prompts are put: as in training where they have answers already."""
        return self.text.train if self.prompts.has_answers else self.text.generate


def check(experiment: Experiment) -> None:
    """Checks what crosses sections.

    Raises:
        DataError: lists every problem at once.
    """
    e, problems = experiment, list(out_of_range(experiment))
    if any("number, not" in problem for problem in problems):
        raise _problems(problems)  # nothing below could be computed
    if e.train.micro_batches > 0 and e.train.batch_size % e.train.micro_batches:
        problems.append(
            f"train.batch_size {e.train.batch_size} does not divide into "
            f"train.micro_batches {e.train.micro_batches}"
        )
    if not e.corrupt and not e.prompts.has_answers and e.pairs.uses_corruptions:
        problems.append("corrupt is empty; without a corruption there are no rejected answers")
    if not e.train.trained:
        problems.append("train.trained is empty; nothing would be trained")
    if "vision" in e.train.trained and e.train.feature_cache:
        problems.append(
            "train.feature_cache needs a frozen vision tower; leave vision out of train.trained"
        )
    if e.objective.computes_reference and e.train.reference == "cached":
        problems.append(
            f"objective {type(e.objective).__name__} needs the reference itself in the step, not "
            "only its log-probs; set --train.reference in_step"
        )
    if "lora" in e.train.trained and not e.lora.rank:
        problems.append("train.trained names lora but lora.rank is 0")
    if "lora" not in e.train.trained and e.lora.rank:
        problems.append("lora.rank is not 0 but train.trained lacks lora; set --lora.rank 0")
    if e.compute.attention == "cudnn" and e.compute.dtype != "bfloat16":
        problems.append(
            f"compute.attention cudnn computes in bfloat16, but compute.dtype is {e.compute.dtype}"
        )
    if e.compute.base_weights != "float":
        if "language" in e.train.trained:
            problems.append(
                f"compute.base_weights {e.compute.base_weights} freezes the language model but "
                "train.trained names language; train adapters (lora), or set it to float"
            )
        try:
            require_qwix()
        except DataError as error:
            problems.append(str(error))
    for logger in e.loggers:
        try:
            logger.check()
        except DataError as error:
            problems.append(str(error))
    names = [x.name for x in e.evals]
    twice = sorted({name for name in names if names.count(name) > 1})
    problems += [f"two evals are named {name!r}" for name in twice]
    problems += [
        f"an eval is named {name!r}, but names become files: no '/', and no '.' in front"
        for name in names
        if not name or "/" in name or "\0" in name or name.startswith(".")
    ]
    if problems:
        raise _problems(problems)


def _problems(problems: list[str]) -> DataError:
    return DataError("the config has problems:\n  " + "\n  ".join(problems))
