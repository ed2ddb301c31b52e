"""The root config: one frozen dataclass per section, and the checks that cross sections.

A config file is Python with `get_config() -> Experiment`. Implementations of extension points are
chosen by values (`objective=DPO(beta=0.1)`), never by names to look up. Reading config files is in
`config_files.py`, the command line in `command_line.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Annotated

from typing_extensions import override

from seva_jax.config.base_models import BaseModel, Checkpoint
from seva_jax.config.options import ComputeOptions, ReportOptions, RolloutOptions, TextOptions
from seva_jax.corrupt import Corruption, DiffusionNoise
from seva_jax.data import PromptSource
from seva_jax.evals import Evaluator, ExactAnswer, Questions, Suite
from seva_jax.models import LoraConfig, require_qwix
from seva_jax.objectives import DPO, Objective
from seva_jax.pairs import CorruptionPairs, PairBuilder
from seva_jax.ranges import FROM_0, NO_EFFECT, out_of_range
from seva_jax.runtime import Logger, ProcessOptions
from seva_jax.runtime.profiler import traced_steps
from seva_jax.runtime.stores import as_path
from seva_jax.sharding import MeshShape
from seva_jax.text import Template
from seva_jax.training import Optim, TrainOptions
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
    @override
    def name(self) -> str:
        """The name of the evaluator."""
        return self.evaluator.name

    @override
    def open(self) -> Questions:
        data = self.prompts.open()
        return Questions(
            data.prompts, data.load_image, data.drops, left_out=data.left_out,
            remote=data.remote, read_size=data.read_size, evaluator=self.evaluator,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Curriculum:
    """Base class: which runs a config stands for."""

    def __call__(self, experiment: Experiment) -> tuple[Experiment, ...]:
        """Returns the runs in order, each with its own work directory and without a curriculum.

        A run that continues an earlier one has a `PriorRun` as its base.
        """
        raise NotImplementedError(f"{type(self).__name__} must define __call__")


@dataclasses.dataclass(frozen=True)
class Once(Curriculum):
    """A single run."""

    @override
    def __call__(self, experiment: Experiment) -> tuple[Experiment, ...]:
        return (experiment,)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One run, from images to an aligned model.

    Attributes:
        workdir: output directory, for everything that the run writes, on a disk or in a bucket
            (gs://BUCKET/PATH); the same command resumes it.
        take_from: work directories of other runs. Of each, the finished stages that this run's
            config does not change (the base model, rollouts, pairs, reference log-probs,
            alignment, answers of the base model) are copied instead of made again; a line says why
            a stage does not fit.
        take_training: if the alignment of a run in `take_from` is the same except that it is
            shorter (`train.epochs`, `train.max_steps`), continue its training from its last
            checkpoint, with the learning rates of this run's schedule; a line says which. Otherwise
            training begins at step 1.
        seed: determines every random choice.
        strict: check every text and image before the first stage, including those of evaluations,
            and stop if one cannot be used. Otherwise they are counted and left out, see
            `seva_jax.data check`. Pairs that the method itself leaves out, such as equal answers
            of the model, are no error.
        base: the model to align.
        prompts: unlabelled images and questions; or pairs of given answers, for which corrupt,
            rollout and pairs are not used.
        corrupt: corruptions; each gives one rejected answer to every prompt.
        rollout: how the model answers prompts.
        pairs: which answers become comparisons.
        text: templates and lengths.
        objective: the loss that alignment minimises.
        lora: adapters; rank 0 means none. Where a base's own adapters are trained further
            (`base.merge`), theirs.
        optim: the optimiser.
        train: batches, length of training, and which parts are trained.
        compute: precision and memory.
        mesh: devices along each axis.
        processes: failure detection and shutdown of the processes of a run.
        evals: evaluations of base and aligned model, from a few prompts (`Evaluation`) to the
            benchmarks in `seva_jax/evals/suites`.
        report: content of the report page.
        profile: steps of each training that are traced for TensorBoard, xprof and Perfetto, such as
            10:13 for the steps 10, 11 and 12; a summary is printed and goes into the report. Traces
            are in WORKDIR/profiles. SIGUSR1 to a process takes one of its work at any time.
        loggers: where metrics and a few pairs go in addition to metrics.jsonl, such as
            `(TensorBoard(), WandB(project="mine"))` or, for a local dashboard, `(Trackio(),)`.
        curriculum: which runs the config stands for, one after another; see
            `seva_jax/config/rounds.py`.
    """

    workdir: Annotated[str, NO_EFFECT] = "runs/default"
    take_from: Annotated[tuple[str, ...], NO_EFFECT] = ()
    take_training: Annotated[bool, NO_EFFECT] = True
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
    profile: Annotated[str, NO_EFFECT] = ""
    loggers: Annotated[tuple[Logger, ...], NO_EFFECT] = ()
    curriculum: Annotated[Curriculum, NO_EFFECT] = Once()

    @property
    def prompt_template(self) -> Template:
        """The template of the prompts: that of training if they have answers already."""
        return self.text.train if self.prompts.has_answers else self.text.generate


def check(experiment: Experiment) -> None:
    """Checks the ranges of all numbers, and what crosses sections.

    Raises:
        DataError: lists every problem at once.
    """
    problems = list(out_of_range(experiment))
    if any("number, not" in problem for problem in problems):
        raise _error(problems)  # the checks below could not compute with it
    for find in (_method_problems, _compute_problems, _place_problems, _eval_problems):
        problems += find(experiment)
    problems += _raised(lambda: traced_steps(experiment.profile))
    if problems:
        raise _error(problems)


def _error(problems: list[str]) -> DataError:
    return DataError("the config has problems:\n  " + "\n  ".join(problems))


def _method_problems(config: Experiment) -> Iterator[str]:
    train = config.train
    if train.micro_batches > 0 and train.batch_size % train.micro_batches:
        yield (
            f"train.batch_size {train.batch_size} does not divide into "
            f"train.micro_batches {train.micro_batches}"
        )
    if not config.corrupt and not config.prompts.has_answers and config.pairs.uses_corruptions:
        yield "corrupt is empty; without a corruption there are no rejected answers"
    if not train.trained:
        yield "train.trained is empty; nothing would be trained"
    if train.feature_cache:
        yield from _cache_problems(config)
    if config.objective.computes_reference and train.reference == "cached":
        yield (
            f"objective {type(config.objective).__name__} needs the reference itself in the step, "
            "not only its log-probs; set --train.reference in_step"
        )
    if "lora" in train.trained and not config.lora.rank:
        yield "train.trained names lora but lora.rank is 0"
    if not train.eval_fraction:
        for name, wanted in (
            ("eval_every", train.eval_every), ("patience", train.patience),
            ("keep", train.keep == "best"),
        ):  # fmt: skip
            if wanted:
                yield (
                    f"train.{name} {getattr(train, name)} needs held-out pairs, but "
                    "train.eval_fraction is 0; set --train.eval-fraction 0.1, for example"
                )
    if "lora" not in train.trained and config.lora.rank:
        yield "lora.rank is not 0 but train.trained lacks lora; set --lora.rank 0"
    yield from _lora_problems(config)
    continued = isinstance(config.base, Checkpoint) and not config.base.merge
    if continued and "lora" not in train.trained:
        yield "base.merge False trains base.adapter further, but train.trained lacks lora; add it"


def _cache_problems(config: Experiment) -> Iterator[str]:
    """Yields why image features change while a run trains, so that it cannot cache them."""
    if "vision" in config.train.trained:
        yield "train.feature_cache needs a frozen vision tower; leave vision out of train.trained"
    if config.lora.rank and config.lora.vision:
        yield (
            "train.feature_cache needs a vision tower that does not change, and lora.vision trains "
            "adapters on it; leave one of them out"
        )


def _lora_problems(config: Experiment) -> Iterator[str]:
    lora = config.lora
    for target, rank in lora.rank_pattern:
        if rank < 1:
            yield f"lora.rank_pattern gives {target} the rank {rank}, expected at least 1"
    for target, alpha in lora.alpha_pattern:
        if not alpha > 0:
            yield f"lora.alpha_pattern gives {target} the alpha {alpha}, expected above 0"
    if not lora.rank:
        return
    for name, on, part in (
        ("vision", lora.vision, "vision"), ("connector", lora.connector, "projector"),
    ):  # fmt: skip
        if on and part in config.train.trained:
            yield (
                f"lora.{name} puts adapters on weights that train.trained trains in full; leave "
                f"{part} out of train.trained, or set --lora.no-{name}"
            )
    if lora.vision and not lora.vision_targets:
        yield "lora.vision is on but lora.vision_targets is empty; set --lora.no-vision"
    if not (lora.targets or lora.vision or lora.connector):
        yield "lora.targets is empty, so there is nothing to adapt; set --lora.rank 0"


def _compute_problems(config: Experiment) -> Iterator[str]:
    compute = config.compute
    if compute.attention in ("cudnn", "tokamax") and compute.dtype != "bfloat16":
        yield (
            f"compute.attention {compute.attention} computes in bfloat16, but compute.dtype is "
            f"{compute.dtype}"
        )
    if compute.base_weights != "float":
        if "language" in config.train.trained:
            yield (
                f"compute.base_weights {compute.base_weights} freezes the language model but "
                "train.trained names language; train adapters (lora), or set it to float"
            )
        yield from _raised(require_qwix)


def _place_problems(config: Experiment) -> Iterator[str]:
    yield from _raised(lambda: as_path(config.workdir))
    for logger in config.loggers:
        yield from _raised(logger.check)
        if logger.needs_local_folder and "://" in config.workdir:
            yield (
                f"loggers: {type(logger).__name__} writes below workdir itself, which must be a "
                f"local folder for it, not {config.workdir}; leave it out, or see its options"
            )


def _eval_problems(config: Experiment) -> Iterator[str]:
    names = [suite.name for suite in config.evals]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"two evals are named {name!r}"
    for name in names:
        if not name or "/" in name or "\0" in name or name.startswith("."):
            yield f"an eval is named {name!r}, but names become files: no '/', and no '.' in front"


def _raised(check_part: Callable[[], object]) -> Iterator[str]:
    """Yields the message of the `DataError` that a check raises, if it does."""
    try:
        check_part()
    except DataError as error:
        yield str(error)
