"""A small version of a run that takes the same path through the code: `seva_jax.train --smoke`.

What lives here: `smoke`, which makes an experiment small, the classes it wraps parts of a config
in, and what such a run does not show. What does not: its work directory (`seva_jax/run/smoke.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, cast

from typing_extensions import override

from seva_jax.config.base_models import Assets, BaseModel, Checkpoint, TrainedBase
from seva_jax.config.experiment import Experiment, Once
from seva_jax.config.prior_run import PriorRun
from seva_jax.convert import tower_directory
from seva_jax.convert.load import check_weights
from seva_jax.data import Concatenated, PreferenceSet, PromptSet, PromptSource
from seva_jax.evals import Questions, Suite
from seva_jax.evals.answers import Answer
from seva_jax.models import LlavaConfig, LoraConfig
from seva_jax.pairs import CorruptionPairs, PairBuilder
from seva_jax.pairs.builders import Built
from seva_jax.pairs.model import PairModel
from seva_jax.pairs.retrieval import RetrievedPairs
from seva_jax.ranges import FROM_1
from seva_jax.runtime.processes import say
from seva_jax.runtime.stores import as_path
from seva_jax.sharding import MeshShape
from seva_jax.text import Sampling
from seva_jax.text.encode import clean_answer
from seva_jax.types import Comparison, Rollout, View

SUFFIX = "-smoke"  # of work directories
NUM_PROMPTS, NUM_QUESTIONS, NUM_STEPS, NUM_TOKENS = 8, 4, 2, 8
_LAYERS, _WIDTH, _MLP, _HEADS, _RANK = 2, 128, 256, 2, 8


@dataclasses.dataclass(frozen=True)
class SmokePrompts(PromptSource):
    """The first examples of a source, those about different images before others.

    Attributes:
        source: prompts, or pairs.
        num: number of examples that are kept, of those that can be used.
    """

    source: PromptSource = PromptSource()
    num: Annotated[int, FROM_1] = NUM_PROMPTS

    @property
    @override
    def has_answers(self) -> bool:
        return self.source.has_answers

    @override
    def open(self) -> PromptSet:
        data = self.source.open()
        first: dict[Any, int] = {}  # index of the first prompt about its images
        for index, prompt in enumerate(data.prompts):
            first.setdefault(prompt.images or prompt.id, index)
            if len(first) == self.num:
                break
        others = sorted(set(range(min(self.num, len(data.prompts)))) - set(first.values()))
        return _chosen(data, sorted([*first.values(), *others][: self.num]))


@dataclasses.dataclass(frozen=True)
class SmokeSuite(Suite):
    """The first questions of an evaluation.

    Attributes:
        suite: the evaluation.
        num: number of questions that are asked.
    """

    suite: Suite = Suite()
    num: Annotated[int, FROM_1] = NUM_QUESTIONS

    @property
    @override
    def name(self) -> str:
        return self.suite.name

    @override
    def open(self) -> Questions:
        data = self.suite.open()
        return cast(Questions, _chosen(data, range(min(self.num, len(data.prompts)))))

    @override
    def write_answers(self, folder: Path, model_id: str, answers: Sequence[Answer]) -> None:
        self.suite.write_answers(folder, model_id, answers)


def _chosen(data: PromptSet, indices: Sequence[int]) -> PromptSet:
    some = dataclasses.replace(data, prompts=[data.prompts[i] for i in indices])
    if isinstance(some, PreferenceSet):
        return dataclasses.replace(some, comparisons=[some.comparisons[i] for i in indices])
    return some


@dataclasses.dataclass(frozen=True)
class SmokePairs(PairBuilder):
    """The pairs of another builder, or others if the answers of a random model give it none.

    A builder may look for objects or for known answers, which random words do not contain. Then the
    answer to a prompt is chosen, and the answer to another prompt rejected.

    Attributes:
        builder: the builder.
    """

    builder: PairBuilder = CorruptionPairs()

    def __post_init__(self) -> None:
        # It belongs to the builder, not to the class; the dataclass is frozen.
        object.__setattr__(self, "uses_corruptions", self.builder.uses_corruptions)

    @override
    def build(self, rollouts: Sequence[Rollout], data: PromptSet, model: PairModel) -> Built:
        comparisons, drops = self.builder.build(rollouts, data, model)
        if comparisons:
            return comparisons, drops
        why = ", ".join(f"{num} {reason}" for reason, num in drops.items())
        say(
            f"  smoke: {type(self.builder).__name__} makes no pair of a random model's answers "
            f"({why}); instead, each answer is chosen over the answer to another prompt"
        )
        pairs = _swapped(rollouts, isinstance(self.builder, RetrievedPairs))
        return list(pairs), type(drops)()


def _swapped(rollouts: Sequence[Rollout], two_views: bool) -> Iterator[Comparison]:
    """Yields for each answer that is not empty a pair with a different one.

    Args:
        rollouts: the answers.
        two_views: whether pairs also have the chosen answer to the other prompt's images.
    """
    answers = [(rollout.prompt, clean_answer(rollout.clean)) for rollout in rollouts]
    for index, (prompt, answer) in enumerate(answers):
        others = answers[index + 1 :] + answers[:index]
        for other, rejected in others:
            if answer and rejected and rejected != answer:
                again = View(dataclasses.replace(prompt, images=other.images), (answer,))
                yield Comparison(prompt, (answer, rejected), more=(again,) if two_views else ())
                break


def _sampled(sampling: Sampling) -> Sampling:
    """Returns short answers that differ by chance.

    Greedily, a random model may say the same on clean and on corrupted images, or nothing.
    """
    tokens = min(sampling.max_new_tokens, NUM_TOKENS)
    return dataclasses.replace(sampling, max_new_tokens=tokens, temperature=1.0, top_p=1.0)


def _small_pairs(builder: PairBuilder) -> SmokePairs:
    """Returns the pairs of a builder, which asks the model for short answers, if it does."""
    if isinstance(sampling := getattr(builder, "sampling", None), Sampling):
        builder = dataclasses.replace(builder, **{"sampling": _sampled(sampling)})
    return SmokePairs(builder)


@dataclasses.dataclass(frozen=True)
class ReducedBase(BaseModel):
    """The model of another base with fewer and narrower layers, and with random weights.

    Tokenizer, image pipeline, vocabulary, image size and tokens of an image are those of the base.

    Attributes:
        of: the base.
        heads: attention heads; a multiple of the devices along the axis `tensor` of the mesh.
    """

    of: BaseModel = Checkpoint()
    heads: Annotated[int, FROM_1] = _HEADS

    @override
    def assets(self) -> Assets:
        assets = self.of.assets()
        return dataclasses.replace(assets, config=reduced(assets.config, self.heads))


def reduced(model: LlavaConfig, heads: int = _HEADS) -> LlavaConfig:
    """Returns an architecture with fewer and narrower layers that makes as many tokens.

    The width of an attention head and whether query heads share keys stay, so attention runs in the
    same kernel.

    Args:
        model: the architecture.
        heads: attention heads of each layer, if there are more.
    """
    vision, text = model.vision, model.text
    vision_heads, kv_heads = min(vision.num_heads, heads), min(text.num_kv_heads, heads)
    layers = min(vision.num_layers, _LAYERS)
    shares_keys = text.num_heads > text.num_kv_heads
    return dataclasses.replace(
        model,
        vision=dataclasses.replace(
            vision,
            num_layers=layers,
            num_heads=vision_heads,
            hidden_size=vision.hidden_size // vision.num_heads * vision_heads,
            mlp_size=min(vision.mlp_size, _MLP),
        ),
        text=dataclasses.replace(
            text,
            num_layers=min(text.num_layers, _LAYERS),
            num_heads=2 * kv_heads if shares_keys else kv_heads,
            num_kv_heads=kv_heads,
            hidden_size=min(text.hidden_size, _WIDTH),
            mlp_size=min(text.mlp_size, _MLP),
        ),
        feature_layer=max(min(model.feature_layer, layers), -layers - 1),
    )


def smoke(experiment: Experiment, num_devices: int = 1) -> Experiment:
    """Returns a run that takes the same path as another one and is over in about a minute.

    Args:
        experiment: the run; one of them if its curriculum has several.
        num_devices: all devices of the run, which its batches are split over.
    """
    config, mesh = experiment, experiment.mesh
    rows = _shares(mesh, num_devices)
    parts = min(config.train.micro_batches, 2)
    batch_size = parts * rows * -(-4 // (parts * rows))
    heads = max(_HEADS, mesh.tensor, config.rollout.tensor)
    workdir = config.workdir.rstrip("/") + SUFFIX
    return dataclasses.replace(
        config,
        workdir=workdir,
        base=_small_base(config.base, heads, batch_size),
        prompts=_few(config.prompts),
        rollout=dataclasses.replace(
            config.rollout,
            batch_size=NUM_PROMPTS,
            sampling=_sampled(config.rollout.sampling),
        ),
        pairs=_small_pairs(config.pairs),
        lora=_small_lora(config.lora),
        train=dataclasses.replace(
            config.train,
            batch_size=batch_size,
            micro_batches=parts,
            epochs=NUM_STEPS * batch_size,  # enough even for a single pair
            max_steps=NUM_STEPS,
            log_every=1,
            feature_cache=f"{workdir}/features" if config.train.feature_cache else "",
            # Half: pairs that share an image are held out together.
            eval_fraction=0.5 if config.train.eval_fraction else 0.0,
            eval_every=1 if config.train.eval_fraction else 0,
        ),
        evals=tuple(
            SmokeSuite(suite, max_new_tokens=min(suite.max_new_tokens, NUM_TOKENS))
            for suite in config.evals
        ),
        take_from=(),
        profile="",
        loggers=(),
        curriculum=Once(),
    )


def _shares(mesh: MeshShape, num_devices: int) -> int:
    """Returns the number of parts that the rows of a batch are split into."""
    if mesh.data == -1 or mesh.fsdp == -1:
        return max(num_devices // max(mesh.tensor, 1), 1)
    return max(mesh.data, 1) * max(mesh.fsdp, 1)


def _few(prompts: PromptSource) -> SmokePrompts:
    """Returns the first examples of a source, of each of several that are concatenated."""
    if isinstance(prompts, Concatenated) and prompts.sources:
        each = -(-NUM_PROMPTS // len(prompts.sources))
        sources = tuple(SmokePrompts(source, each) for source in prompts.sources)
        prompts = dataclasses.replace(prompts, sources=sources)
        return SmokePrompts(prompts, each * len(sources))
    return SmokePrompts(prompts)


def _small_base(base: BaseModel, heads: int, batch_size: int) -> BaseModel:
    if not isinstance(base, TrainedBase):
        return ReducedBase(base, heads)
    return dataclasses.replace(
        base,
        model=reduced(base.model, heads),
        prompts=SmokePrompts(base.prompts),
        steps=NUM_STEPS,
        batch_size=batch_size,
    )


def _small_lora(lora: LoraConfig) -> LoraConfig:
    """Returns adapters of a low rank whose output is scaled by the same factor."""

    def alpha(name: str) -> float:
        one = lora.of(name)
        return one.scale * min(one.rank, _RANK)

    if not lora.rank:
        return lora
    return dataclasses.replace(
        lora,
        rank=min(lora.rank, _RANK),
        alpha=lora.scale * min(lora.rank, _RANK),
        rank_pattern=tuple((name, min(rank, _RANK)) for name, rank in lora.rank_pattern),
        alpha_pattern=tuple(
            (name, alpha(name)) for name in dict(lora.rank_pattern + lora.alpha_pattern)
        ),
    )


def checked(base: BaseModel) -> str:
    """Checks what can be checked of a base without reading its weights, and says what that was.

    Raises:
        DataError: files do not fit together.
    """
    if isinstance(base, TrainedBase):
        return "the base model is trained for 2 steps; no checkpoint is read"
    if isinstance(base, PriorRun):
        return f"config, tokenizer and image pipeline of {base.workdir}"
    assets = base.assets()
    said = "config.json, tokenizer and image processor"
    if not isinstance(base, Checkpoint):
        return said
    said = f"{said} of {base.path}"
    if base.adapter:
        said += f"; names and shapes of the tensors of {base.adapter}"
    tower = tower_directory(as_path(base.path), base.vision_tower)
    num = check_weights(base.path, assets.config, tower)
    if num is None:
        return f"{said}; the folder has no weights yet"
    return f"{said}; names and shapes of its {num:,} tensors"


def not_shown(real: Experiment, small: Experiment, num_runs: int = 1) -> list[str]:
    """Returns what a smoke run leaves open, one sentence each.

    Args:
        real: the run.
        small: what `smoke` made of it.
        num_runs: the number of runs that the config stands for.
    """

    def layers(model: Any) -> str:
        return f"{model.vision.num_layers} + {model.text.num_layers} layers"

    lines = list[str]()
    if not isinstance(real.base, TrainedBase):
        full, less = real.base.assets().config, small.base.assets().config
        lines += [
            f"the weights: these were random, in {layers(less)} of width "
            f"{less.vision.hidden_size} and {less.text.hidden_size}; the model has {layers(full)} "
            f"of width {full.vision.hidden_size} and {full.text.hidden_size}",
            "memory and speed: seva-jax plan computes both for the full shapes",
        ]
    else:
        lines.append("memory and speed of the full model, and the training of the base")
    train, sampling = real.train, real.rollout.sampling
    lines.append(
        f"learning: {NUM_STEPS} steps with batches of {small.train.batch_size} instead of "
        f"{train.batch_size}; numbers in its report mean nothing"
    )
    if not real.prompts.has_answers:
        lines.append(
            f"the number of pairs: answers were {small.rollout.sampling.max_new_tokens} tokens, "
            "sampled at temperature 1, so that clean and corrupted images get different ones by "
            f"chance; the run samples up to {sampling.max_new_tokens} tokens at temperature "
            f"{sampling.temperature:g}"
        )
    lines.append(
        f"the rest of the data: {NUM_PROMPTS} examples were used; seva-jax data check --config "
        "reads all texts and images"
    )
    if real.lora.rank > small.lora.rank:
        lines.append(f"adapters of rank {real.lora.rank}: these had {small.lora.rank}")
    if real.evals:
        lines.append(f"evaluations of more than {NUM_QUESTIONS} questions each")
    if real.loggers:
        names = ", ".join(type(logger).__name__ for logger in real.loggers)
        lines.append(f"loggers: {names} were off")
    if num_runs > 1:
        lines.append(f"the other runs of this config, {num_runs - 1} in number")
    return lines
