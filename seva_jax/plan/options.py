"""The options of the planner, and the combinations that they stand for."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Annotated, Literal

import tyro

from seva_jax.batches.trees import RowShape, joint_layout
from seva_jax.config import Checkpoint, Experiment, runs_of
from seva_jax.images import ImageProcessing, QwenProcessing
from seva_jax.models import LlavaConfig
from seva_jax.plan.answering import padded_prompt
from seva_jax.plan.estimate import Plan, plan
from seva_jax.plan.published import PUBLISHED, PublishedSize
from seva_jax.plan.whole_run import Amounts
from seva_jax.sharding import MeshShape
from seva_jax.types import DataError, ImageLayout, Size, frames_of


@dataclasses.dataclass(frozen=True)
class PlanOptions:
    """The slices, models and sizes to plan for.

    Attributes:
        topology: slices as CHIP:SHAPE, such as v5e:4x4 (16 chips), v5p:2x2x2 (8 chips) or
            v6e:16x16 (256 chips), 2xv5e:16x16 means two slices; or GPUs of one machine as
            GPU:NUMBER, such as h100:1 or a100-80:8 (h100, h200, a100-80, a100-40).
        fsdp: sizes of the mesh axis fsdp to try; without any, --mesh.fsdp.
        tensor: sizes of the mesh axis tensor to try; without any, --mesh.tensor.
        batch: batch sizes to try, in pairs; without any, --train.batch-size.
        rollout_tensor: numbers of chips to try that share the weights when prompts are answered; 0
            is the number that the run chooses. Without any, --rollout.tensor.
        rows: numbers of rows to try that are answered together; without any,
            --rollout.batch-size.
        size: architectures: LLaVA-1.5 (7b, 13b) and other published models by their names, which
            need no files, or that of the config's base model (base).
        tune: what is trained: the parts that the config names, or language model and projector
            in full.
        question: tokens of a question, with its template.
        answer: tokens of an answer, on average; rows of training have this many for each answer.
        image: height and width of an image in pixels, on which its tiles and tokens depend in
            families that cut images; in Qwen-VL on --base.max-pixels, too.
        frames: frames of the video that each row has instead of an image, in families that take
            videos; 0 for an image.
        compile: compile the programs for TPU slices; --no-compile counts their memory and network
            from shapes, as on GPUs: less exact, but in seconds and without libtpu.
        rollout: plan how prompts are answered, too: rollouts and evaluations.
        prompts: prompts that the model answers, each on the clean image and on every corrupted one.
        pairs: pairs that the rollouts give, or that the data have; --train.repeat and
            --train.epochs say how often each is trained on.
        eval_questions: questions that evaluations ask the model before and after alignment, such
            as POPE's 9,000.
        eval_answer: tokens of an answer to such a question, on average.
        csv: file to write the table to.
        html: page to write, with charts and the table.
    """

    topology: Annotated[tuple[str, ...], tyro.conf.arg(metavar="CHIP:SHAPE ...")]
    fsdp: tuple[int, ...] = ()
    tensor: tuple[int, ...] = ()
    batch: tuple[int, ...] = ()
    rollout_tensor: tuple[int, ...] = ()
    rows: tuple[int, ...] = ()
    size: tuple[PublishedSize | Literal["base"], ...] = ("7b",)
    tune: tuple[Literal["config", "full"], ...] = ("config",)
    question: int = 64
    answer: int = 128
    image: tuple[int, int] = (480, 640)
    frames: int = 0
    compile: bool = True
    rollout: bool = True
    prompts: int = 16000
    pairs: int = 10800
    eval_questions: int = 9000
    eval_answer: int = 4
    csv: str = ""
    html: str = ""

    @property
    def amounts(self) -> Amounts:
        """How much the run has of everything."""
        asked = (self.eval_questions, self.eval_answer)
        return Amounts(self.prompts, self.pairs, self.answer, *asked)

    def check(self) -> None:
        """Raises `DataError` if a number is not possible."""
        for name, least in (
            *((name, 1) for name in ("fsdp", "tensor", "batch", "rows", "question", "answer")),
            ("image", 1),
            *((name, 1) for name in ("prompts", "pairs", "eval_answer")),
            *((name, 0) for name in ("frames", "rollout_tensor", "eval_questions")),
        ):
            value = getattr(self, name)
            low = [x for x in (value if isinstance(value, tuple) else (value,)) if x < least]
            if low:
                option = name.replace("_", "-")
                raise DataError(f"--{option} must be at least {least}, not {low[0]}")


@dataclasses.dataclass(frozen=True)
class Variant:
    """One combination of a sweep.

    Attributes:
        name: the model and what is trained.
        topology: the slice.
        config: architecture.
        image: layout of an image, or of a video.
        experiment: the run.
    """

    name: str
    topology: str
    config: LlavaConfig
    image: ImageLayout
    experiment: Experiment


def row_shape(image: ImageLayout, options: PlanOptions, branches: int) -> RowShape:
    """Returns the sizes of a row with one image or video, one question and the answers."""
    targets = branches * options.answer
    length = 1 + image.num_tokens + options.question + targets
    return RowShape(-(-length // 64) * 64, 1, branches, options.answer, image.tiles, targets)


def processing_of(size: PublishedSize, experiment: Experiment) -> ImageProcessing:
    """Returns the image pipeline of a published model, in Qwen-VL with the run's `max_pixels`."""
    processing, base = PUBLISHED[size].processing, experiment.base
    if isinstance(processing, QwenProcessing) and isinstance(base, Checkpoint):
        return base.narrowed(processing)
    return processing


def image_layout(
    processing: ImageProcessing, config: LlavaConfig, size: Size, frames: int = 0
) -> ImageLayout:
    """Returns the layout of a prompt's only image, or of its video.

    Args:
        processing: the image pipeline.
        config: architecture.
        size: height and width of the image.
        frames: frames of the video; 0 for an image.

    Raises:
        DataError: the model takes no image of this size, or no videos.
    """
    if frames and not processing.videos:
        raise DataError(
            f"--frames {frames} plans for videos, which only LLaVA-OneVision and Qwen-VL take; "
            "give the --size of one of them"
        )
    sizes = frames_of(size, frames, 0.5) if frames else (size,)
    parts = processing.layouts(sizes, config.tile_features)
    if len(parts) == 1:
        return parts[0]
    return joint_layout(parts, config.tile_features, processing.blended)


def distinct_rounds(experiment: Experiment) -> list[tuple[str, Experiment]]:
    """Returns the runs that a config stands for, named, without those whose programs repeat."""
    named: list[tuple[str, Experiment]] = []
    first, *_ = runs = runs_of(experiment)
    for number, run in enumerate(runs, start=1):
        # Only whether answers are given changes the programs, not which prompts they belong to.
        same_kind = run.prompts.has_answers == first.prompts.has_answers
        prompts = first.prompts if same_kind else run.prompts
        run = dataclasses.replace(run, workdir="", base=experiment.base, prompts=prompts)
        if run not in [before for _, before in named]:
            named.append((f", round {number}" * (len(runs) > 1), run))
    return named


def variants(experiment: Experiment, options: PlanOptions) -> list[Variant]:
    """Returns every combination of the options, for every round of a curriculum."""
    combinations = []
    for round_name, run in distinct_rounds(experiment):
        data = run.mesh.data if not (options.fsdp or options.tensor) else -1
        for size, tune, topology, fsdp, tensor, batch, shared, rows in itertools.product(
            options.size,
            options.tune,
            options.topology,
            options.fsdp or (run.mesh.fsdp,),
            options.tensor or (run.mesh.tensor,),
            options.batch or (run.train.batch_size,),
            options.rollout_tensor or (run.rollout.tensor,),
            options.rows or (run.rollout.batch_size,),
        ):
            if size == "base":
                assets = run.base.assets()
                config, processing = assets.config, assets.processing
            else:
                config, processing = PUBLISHED[size].config, processing_of(size, run)
            image = image_layout(processing, config, options.image, options.frames)
            train = dataclasses.replace(run.train, batch_size=batch)
            lora = run.base.lora(run.lora) if size == "base" else run.lora
            if tune == "full":
                train = dataclasses.replace(train, trained=("language", "projector"))
                lora = dataclasses.replace(lora, rank=0)
            planned = dataclasses.replace(
                run, mesh=MeshShape(data, fsdp, tensor), train=train, lora=lora,
                rollout=dataclasses.replace(run.rollout, batch_size=rows, tensor=shared),
            )  # fmt: skip
            tuned = f"LoRA r={lora.rank}" if lora.rank else "full"
            name = f"{size} {tuned}{round_name}"
            combinations.append(Variant(name, topology, config, image, planned))
    return combinations


def plan_variant(variant: Variant, options: PlanOptions) -> Plan:
    """Plans one combination.

    Raises:
        DataError: as `seva_jax.plan.estimate.plan`.
    """
    experiment, amounts = variant.experiment, options.amounts
    has_answers = experiment.prompts.has_answers  # then there is nothing to roll out
    branches = 2 if has_answers else 1 + len(experiment.corrupt)
    shape = row_shape(variant.image, options, branches)
    if has_answers:
        amounts = dataclasses.replace(amounts, prompts=0)
    asks = options.rollout and (amounts.prompts or amounts.questions)
    prompt = padded_prompt(variant.image, options.question) if asks else None
    return plan(
        experiment, variant.config, variant.topology, shape, amounts, prompt, options.compile
    )
