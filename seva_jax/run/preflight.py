"""What a run needs, checked before its first stage and before its work directory is claimed.

What lives here: `prepared`, which opens a run and goes from what is known at once (devices, paths)
to what takes seconds (tokenizer, data, memory), so that a mistake is answered as early as can be.
What does not: the ranges of numbers and what crosses sections of a config
(`seva_jax/config/experiment.py`), every text and image (`seva_jax/data/check.py`), what a
checkpoint says about its template (`own_template.py`), memory (`enough_memory.py`).

A resumed run looks only at what its unfinished stages need. On several processes, all of them end
with the problems of any.
"""

from __future__ import annotations

import collections
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import jax

from seva_jax.config import Checkpoint, Experiment, PriorRun, ReducedBase, TrainedBase
from seva_jax.config.prior_run import base_fingerprint, continuation_problems
from seva_jax.convert import tower_directory
from seva_jax.convert.families import family_of_fields
from seva_jax.convert.original import read_json, refuse_adapters
from seva_jax.data import PreferenceSet, PromptSet
from seva_jax.data.check import check as check_data
from seva_jax.data.check import trees_of_each
from seva_jax.data.collect import counted
from seva_jax.evals import Questions
from seva_jax.inference.answering_layout import require_tensor
from seva_jax.run.abstract_state import abstract_base
from seva_jax.run.context import RunContext
from seva_jax.run.enough_memory import memory_problems
from seva_jax.run.outputs import Outputs
from seva_jax.run.own_template import early_text_problems, template_warnings, used_templates
from seva_jax.run.used_data import open_scorable, used_data
from seva_jax.run.workdir import Workdir
from seva_jax.runtime import lock
from seva_jax.runtime.processes import on_first_process, require_none, say
from seva_jax.runtime.progress import Progress
from seva_jax.runtime.run_records import read_stages
from seva_jax.runtime.stores import as_path, is_remote, require_bucket
from seva_jax.sharding import check_batch, process_row_share
from seva_jax.text import Encoder, Template
from seva_jax.types import Comparison, DataError, ExampleError

SAMPLE = 200  # examples of each kind whose lengths are looked at before a run

_Value = TypeVar("_Value")


def prepared(config: Experiment, siblings: Sequence[Path] = ()) -> tuple[RunContext, Outputs]:
    """Opens a run after checking what can be checked; `RunContext.begin` starts to write.

    Prints a warning where something is likely but not certain to be a mistake.

    Args:
        config: the run's config.
        siblings: see `RunContext.open`.

    Raises:
        DataError: lists all problems of one kind; the same on every process.
    """
    path = as_path(config.workdir)
    on_first_process(lambda: require_bucket(path))
    on_first_process(lambda: lock.require_free(path))
    require_none(_layout_problems(config))
    require_none(_base_problems(config))
    finished = _finished(config, path)
    problems, workdir = list[str](), None
    if not _continues_adapters(config):  # their rank may replace that of the config
        workdir = _attempt(lambda: Workdir.of(config, siblings), problems)
        require_none(problems)
    problems += _folder_problems(config)
    prompts = None
    if "report" not in finished:
        prompts = _attempt(config.prompts.open, problems)
        if prompts is not None and "pairs" not in finished:
            problems += early_text_problems(config, prompts)
    suites = dict[str, Questions]()
    if not {"evaluate base", "evaluate aligned"} <= finished.keys():
        for suite in config.evals:
            questions = _attempt(partial(open_scorable, suite), problems, f"{suite.name}: ")
            if questions is not None:
                suites[suite.name] = questions
    require_none(problems)
    if jax.process_count() > 1:  # a host that lacks a file must not leave the others waiting
        _attempt(config.base.assets, problems)
        require_none(problems)
    ctx = _attempt(lambda: RunContext.of(config, siblings, workdir), problems)
    require_none(problems)
    assert ctx is not None
    out = Outputs(ctx)
    if prompts is not None:
        out.prompts = prompts
        _mention_drops(prompts)
    require_none(_text_problems(ctx, prompts if "pairs" not in finished else None, suites))
    if "align" not in finished:
        require_none([*memory_problems(ctx.config, ctx.assets.config, ctx.mesh)])
    if "report" not in finished:
        require_none(_answering_problems(ctx))
    if config.strict:
        require_all_examples(ctx, out)
    return ctx, out


def require_all_examples(ctx: RunContext, out: Outputs) -> None:
    """Raises `DataError` unless all texts and images can be used; see `Experiment.strict`."""

    def bar(name: str, total: int, unit: str) -> Progress:
        return Progress(name, total, unit, shown=ctx.workdir.writes)

    for used in used_data(ctx.config):
        data = out.prompts if used.name == "prompts" else used.open()
        encoder = ctx.encoder(used.template, data.image_size)
        check_data(data, encoder, bar).require_all(used.prefix)


def _attempt(call: Callable[[], _Value], problems: list[str], prefix: str = "") -> _Value | None:
    """Returns what a call returns, or None, and adds the message of its `DataError`."""
    try:
        return call()
    except DataError as error:
        message = str(error)
        problems.append(message if message.startswith(prefix) else prefix + message)
    return None


def _finished(config: Experiment, path: Path) -> Mapping[str, object]:
    """Returns the finished stages; none if the base has changed, because they are set aside."""
    stages = read_stages(path)
    if isinstance(config.base, PriorRun) and "base" in stages:
        same = stages["base"]["fingerprint"] == base_fingerprint(config)
        return stages if same else {}
    return stages


def _continues_adapters(config: Experiment) -> bool:
    return isinstance(config.base, Checkpoint | PriorRun) and not config.base.merge


def _layout_problems(config: Experiment) -> list[str]:
    """Returns why devices, mesh and batches do not fit together."""
    problems = list[str]()
    mesh = _attempt(config.mesh.make, problems)
    if mesh is not None:
        train, base = config.train, config.base
        _attempt(lambda: process_row_share(mesh), problems)
        batches = {"train.batch_size": (train.batch_size, train.micro_batches)}
        if isinstance(base, TrainedBase):
            batches["base.batch_size"] = (base.batch_size, 1)
        for name, (size, parts) in batches.items():
            _attempt(partial(check_batch, mesh, size, parts), problems, f"{name}: ")
    return problems


def _answering_problems(ctx: RunContext) -> list[str]:
    """Returns why the model cannot answer on the devices that `rollout.tensor` asks for."""
    config, model, problems = ctx.config, ctx.assets.config, list[str]()
    if tensor := config.rollout.tensor:
        shapes = {"params": abstract_base(config, model, ctx.mesh)}
        _attempt(lambda: require_tensor(ctx.base_model, shapes, ctx.mesh, tensor), problems)
    return problems


def _base_problems(config: Experiment) -> list[str]:
    """Returns what is missing of the base, as far as names of files and small ones tell."""
    base, problems = config.base, list[str]()
    if isinstance(base, ReducedBase):
        base = base.of
    if isinstance(base, PriorRun):
        earlier = _attempt(base.earlier, problems)
        if earlier is not None:
            _attempt(base.aligned, problems)
            problems += [f"base.workdir: {x}" for x in continuation_problems(config, earlier)]
    if isinstance(base, Checkpoint) and base.path:
        path = as_path(base.path)
        _attempt(lambda: refuse_adapters(path), problems)
        fields = _attempt(lambda: read_json(path / "config.json"), problems)
        if fields is not None and not problems:
            _attempt(lambda: family_of_fields(path / "config.json", fields), problems)
            _attempt(lambda: tower_directory(path, base.vision_tower), problems)
        if base.adapter and not as_path(base.adapter).is_dir():
            problems.append(f"base.adapter {base.adapter}: no such directory; check the path")
    return problems


def _folder_problems(config: Experiment) -> Iterator[str]:
    """Yields why a folder that the run will write to cannot be made."""
    for name, folder in (
        ("workdir", config.workdir),
        ("train.feature_cache", config.train.feature_cache),
    ):
        path = as_path(folder) if folder else None
        if path is None or is_remote(path):
            continue
        there = next(each for each in (path, *path.absolute().parents) if each.exists())
        if not there.is_dir():
            yield f"{name} {folder} cannot be created: {there} is a file; choose another one"
        elif not os.access(there, os.W_OK | os.X_OK):
            yield f"{name} {folder} cannot be written: no permission in {there}; choose another one"


def _mention_drops(prompts: PromptSet) -> None:
    """Says before the first stage what of the data is not used."""
    if prompts.drops:
        first = f", the first: {prompts.left_out[0]}" if prompts.left_out else ""
        total = len(prompts.prompts) + prompts.drops.total()
        say(
            f"prompts: {prompts.drops.total():,} of {total:,} are left out "
            f"({counted(prompts.drops)}){first}; seva_jax.data check lists them"
        )


def _text_problems(
    ctx: RunContext, prompts: PromptSet | None, suites: Mapping[str, Questions]
) -> list[str]:
    """Returns why templates and lengths fit no example; warns where they do not fit some.

    Args:
        ctx: the run.
        prompts: its prompts, or pairs; None if no stage needs their texts any more.
        suites: its evaluations by name, as far as they are still to be asked.
    """
    text, problems = ctx.config.text, list[str]()
    templates = used_templates(ctx.config)
    encoders = dict[Template, Encoder]()
    for name, template in templates.items():
        encoder = _attempt(partial(ctx.encoder, template), problems, f"{name}: ")
        if encoder is not None:
            encoders[template] = encoder
    if problems:
        return list(dict.fromkeys(problems))
    for warning in template_warnings(ctx.config.base, ctx.assets.tokenizer, templates):
        say(f"warning: {warning}")
    if prompts is not None:
        encoder = encoders[text.train].sized(prompts.image_size)
        problems += _room("prompts", prompts, encoder)
        problems += _objective_problems(ctx, prompts, encoder)
    for name, questions in suites.items():
        encoder = encoders[text.generate].sized(questions.image_size)
        problems += _room(name, questions, encoder)
    return problems


def _room(name: str, data: PromptSet, encoder: Encoder) -> Iterator[str]:
    """Yields why no example can be used; warns if some of the first ones cannot.

    Images and questions are never cut, so what they leave of `text.max_length` is the answer's.
    """
    examples = data.comparisons if isinstance(data, PreferenceSet) else data.prompts
    reasons = collections.Counter[str]()
    first, num = "", 0
    for num, trees in enumerate(trees_of_each(examples, encoder), start=1):
        if isinstance(trees, ExampleError):
            reasons[trees.reason] += 1
            first = first or str(trees)
        if num >= SAMPLE and reasons.total() < num:
            break  # all are looked at only while none fits
    long, limit = reasons["too long"], f"text.max_length {encoder.max_length}"
    if 0 < long == num:
        prompts = data.prompts[:SAMPLE]
        trunks = encoder.trunks(prompts)
        least = min(len(trunk) for trunk in trunks if not isinstance(trunk, ExampleError))
        yield (
            f"{name}: none of {num:,} has room for an answer within {limit}: images, template and "
            f"question take {least:,} tokens or more; raise it with --text.max-length"
        )
    elif num and reasons.total() == num:
        yield f"{name}: none of {num:,} can be used ({counted(reasons)}); the first: {first}"
    elif long:
        say(
            f"warning: {name}: {long:,} of the first {num:,} have no room for an answer within "
            f"{limit} and will be left out; raise it with --text.max-length"
        )


def _objective_problems(ctx: RunContext, data: PromptSet, encoder: Encoder) -> Iterator[str]:
    """Yields what the objective needs and the pairs, if they are given, or the tokenizer lack."""
    objective, tokenizer = ctx.config.objective, ctx.assets.tokenizer
    if "spans" in objective.needs and not tokenizer.is_fast:
        yield (
            f"objective {type(objective).__name__} needs a tokenizer that reports which "
            f"characters a token comes from, and {type(tokenizer).__name__} does not; save it as "
            "a fast tokenizer (tokenizer.json)"
        )
    if isinstance(data, PreferenceSet):
        fit = [pair for pair in data.comparisons[:SAMPLE] if _fits(pair, encoder)]
        problems = list[str]()
        _attempt(lambda: objective.check(fit), problems)
        yield from problems


def _fits(pair: Comparison, encoder: Encoder) -> bool:
    try:
        (trees,) = trees_of_each([pair], encoder)
    except DataError:
        return False
    return not isinstance(trees, ExampleError)
