"""`python -m seva_jax.evaluate`: benchmarks of one model, or of several side by side.

    python -m seva_jax.evaluate --models base runs/mine --suite my_suites.py
    python -m seva_jax.evaluate --models llava-1.5-7b-hf merged/ --labels before after \
        --questions mine.jsonl --out compared

What benchmarks there are, and how a suite file looks, is in `seva_jax/evals/README.md`. What a path
may name is in `seva_jax/run/opened.py`; this module decides under which labels and in which folder
results are kept, and compares them.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from seva_jax.config import (
    Experiment,
    TrainedBase,
    differing_fields,
    evaluation_config,
    fingerprint,
    flatten,
    is_within,
    load_experiment,
    read_config,
    read_suites,
    runs_of,
)
from seva_jax.evals import (
    EvalResult,
    StoredEvaluation,
    Suite,
    comparison_rows,
    format_results,
    format_table,
    stored_evaluations,
)
from seva_jax.evals.stored import EVALS, safe_label
from seva_jax.evals.suites import question_suite
from seva_jax.run.evaluations import evaluate_all, require_askable
from seva_jax.run.opened import FoundModel, ModelOptions, find_model, is_run
from seva_jax.run.workdir import Workdir
from seva_jax.runtime.processes import (
    joined,
    on_first_process,
    one_line_errors,
    say,
    use_compile_cache,
)
from seva_jax.runtime.profiler import profiler, traced_steps
from seva_jax.runtime.run_records import PROFILES
from seva_jax.runtime.stores import as_path, make_folder
from seva_jax.types import DataError

DESCRIPTION = """Asks models every question of the chosen suites, scores the answers, compares the
models and writes answer files for other scorers. Run it again to resume after a kill.

--models A B ... are work directories of finished runs (their aligned models), LLaVA directories in
Hugging Face's or the original layout, exports, or directories of LoRA adapters; and "base", the
model that the run among them, or the run of --config FILE, started from. --labels a b ... name them
in tables and folders; by default base, aligned, or the name of the directory. The others are
compared with the first. --suite FILE ... names Python files (or modules) that define get_suites();
--questions FILE ... JSON files of questions, with images below --image-root DIR (by default the
file's folder) and --suffix TEXT after every question; without both, the config's evals are asked.
--out DIR is where evals/LABEL are written, by default the work directory of the run, if there is
exactly one. --batch-size N answers N questions together, by default as many as the run's rollouts.
--base DIR is the model that an adapter was trained on, if its adapter_config.json names none;
--vision-tower DIR the CLIP directory of a model in the original layout. --same-base trusts that the
base of a run is what it was trained on. Options of training have no effect here."""

_OWN = ("base", "aligned")  # labels of a run's own models, which its report shows


class _Model(NamedTuple):
    """One model that is asked.

    Attributes:
        name: what the command line calls it: "base", or a path.
        label: names it in tables and folders.
        found: the model, not loaded yet; its config has the devices and batches to ask it with.
        ignored: fields that the command line or config file changes without effect.
    """

    name: str
    label: str
    found: FoundModel
    ignored: Sequence[str]

    def is_of(self, path: Path) -> bool:
        """Returns whether it is the own model, base or aligned, of the run in a directory."""
        return self.found.is_run and self.found.path.resolve() == path.resolve()


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    use_compile_cache()
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--model", "--models", nargs="+", default=["base"])
    parser.add_argument("--labels", nargs="+", default=[])
    parser.add_argument("--suite", nargs="+", default=[])
    parser.add_argument("--questions", nargs="+", default=[])
    parser.add_argument("--image-root", default="")
    parser.add_argument("--suffix", default="")
    parser.add_argument("--out")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--base", default="")
    parser.add_argument("--vision-tower", default="")
    parser.add_argument("--same-base", action="store_true")
    flags, rest = parser.parse_known_args(argv)
    if flags.batch_size is not None and flags.batch_size < 1:
        raise DataError(f"--batch-size must be at least 1, not {flags.batch_size}")
    runs = list(dict.fromkeys(n for n in flags.model if n != "base" and is_run(as_path(n))))
    others = [name.replace("_", "-") for name in vars(flags)]
    given = {run: _config_of_run(run, rest, others) for run in runs}
    if "base" in flags.model and len(runs) > 1:
        raise DataError(
            f'"base" is the base model of one run, and there are {len(runs)}; give its directory'
        )
    default = None if runs or "base" in flags.model else Experiment()
    first = given[runs[0]] if runs else _load(rest, others, default)
    config = runs_of(first)[0]  # the base of several rounds is the first one's
    suites = _suites(flags)
    models = [
        _Model(name, label, *_find(name, flags, given.get(name, config), default))
        for name, label in zip(flags.model, _labels(flags, runs), strict=True)
    ]
    out = _out(flags.out, models)
    suites = suites or list(config.evals)
    if not suites:
        raise DataError("there is nothing to ask: give --suite FILE or --questions FILE")
    _check(suites, read_config(out / "config.py") if is_run(out) else config)
    with joined(config.processes):
        _evaluate(models, suites, out, flags.batch_size)


def _load(
    argv: Sequence[str], others: Sequence[str], default: Experiment | None = None
) -> Experiment:
    return load_experiment(DESCRIPTION, argv, "evaluate", others, default)[0]


def _config_of_run(run: str, rest: Sequence[str], others: Sequence[str]) -> Experiment:
    """Returns the config of a run with the options of the command line."""
    if any(x == "--config" or x.startswith("--config=") for x in rest):
        raise DataError(f"leave out --config: {run} has a config of its own")
    own = [*rest, "--config", f"{run}/config.py", "--workdir", run]
    return _load(own, others)


def _suites(flags: argparse.Namespace) -> list[Suite]:
    """Returns what the options say to ask; nothing asks what the config says."""
    suites = [suite for where in flags.suite for suite in read_suites(where)]
    suites += [question_suite(path, flags.image_root, flags.suffix) for path in flags.questions]
    if not flags.questions and (flags.image_root or flags.suffix):
        raise DataError("--image-root and --suffix are for --questions FILE, which is missing")
    names = [suite.name for suite in suites]
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"two suites are named {name!r}; give one another name")
    return suites


def _check(suites: Sequence[Suite], stored: Experiment) -> None:
    """Raises if a suite has the name of another one, whose results the run itself writes."""
    own = {suite.name: suite for suite in stored.evals}
    for suite in suites:
        if suite.name in own and fingerprint(suite) != fingerprint(own[suite.name]):
            raise DataError(
                f"the config's evals have another suite named {suite.name!r}; give this one "
                "another name"
            )


def _labels(flags: argparse.Namespace, runs: Sequence[str]) -> list[str]:
    """Returns the labels of the models.

    Raises:
        DataError: their number is wrong, one cannot name a folder, or two are the same.
    """
    names, labels = flags.model, list(map(safe_label, flags.labels))
    if labels and len(labels) != len(names):
        raise DataError(
            f"--labels: {len(labels)} labels for {len(names)} models; give one for each"
        )
    for name in names[len(labels) :]:
        own = "base" if name == "base" else "aligned" if list(runs) == [name] else ""
        last = re.sub(r"[^A-Za-z0-9._+-]+", "_", as_path(name).absolute().name)[:100]
        labels.append(own or safe_label(last.lstrip(".-")))
    for label in labels:
        if labels.count(label) > 1:
            raise DataError(f"two models have the label {label!r}; give each its own with --labels")
    return labels


def _find(
    name: str, flags: argparse.Namespace, config: Experiment, default: Experiment | None
) -> tuple[FoundModel, list[str]]:
    """Returns a model with the config to ask it with, and the names of fields without effect.

    Args:
        name: "base", or a path.
        flags: the options of this command.
        config: the config of its run, or of the first run, with the options of the command line.
        default: what the options of the command line change; None if that is the config of a run.
    """
    if name == "base":
        return _find_base(config)
    if is_run(as_path(name)):
        found = find_model(name, "aligned", options=ModelOptions(same_base=flags.same_base))
        asked, ignored = evaluation_config(found.config, config, "aligned")
        return dataclasses.replace(found, config=asked), ignored
    adapter = not (as_path(name) / "config.json").is_file()
    options = ModelOptions(
        base=flags.base if adapter else "", vision_tower=flags.vision_tower, compute=config.compute
    )
    found = find_model(name, options=options)
    asked = dataclasses.replace(
        found.config, mesh=config.mesh, rollout=config.rollout, profile=config.profile
    )
    used = ("mesh", "processes", "profile", "rollout", "compute", "workdir")
    changed = differing_fields(flatten(default or config), flatten(config))
    ignored = [k for k in changed if not is_within(k, used)]
    return dataclasses.replace(found, config=asked), ignored


def _find_base(config: Experiment) -> tuple[FoundModel, list[str]]:
    """Returns `_find` of the base model of the run of a config, which need not have begun."""
    path = as_path(config.workdir)
    if is_run(path):
        found = find_model(path, "base")
        given = dataclasses.replace(config, lora=config.base.lora(config.lora))
        asked, ignored = evaluation_config(found.config, given, "base")
        return dataclasses.replace(found, config=asked), ignored
    if isinstance(config.base, TrainedBase):
        raise DataError(
            f"{path} has no trained base model yet; run seva_jax.train with this config"
        )
    found = FoundModel("base", path, True, "base", None, config, config.base.assets(), False)
    return found, []


def _out(given: str | None, models: Sequence[_Model]) -> Path:
    """Returns the folder for results.

    Raises:
        DataError: it is not clear which; or it is a run's, whose own labels are for its own models.
    """
    paths = list({m.found.path.resolve(): m.found.path for m in models if m.found.is_run}.values())
    if not given and len(paths) != 1:
        raise DataError(
            f"give --out DIR, where results are written: there are {len(paths)} runs among the "
            "models, and only a single run has a place for them"
        )
    out = as_path(given) if given else paths[0]
    for model in models:
        own = model.is_of(out) and model.label == model.found.which
        if is_run(out) and model.label in _OWN and not own:
            raise DataError(
                f"{out} is a run, whose own models have the labels {' and '.join(_OWN)}; give "
                f"{model.name} another label, or choose another --out"
            )
    return out


def _evaluate(
    models: Sequence[_Model], suites: Sequence[Suite], out: Path, batch_size: int | None
) -> None:
    for model in models:
        if model.ignored:
            say(f"{model.label}: without effect on an evaluation: {', '.join(model.ignored)}")
        if model.found.is_run and not is_run(model.found.path):
            Workdir.open(model.found.config).close()  # makes it a run's, which may begin later
    make_folder(out)
    profiler.use(out / PROFILES, traced_steps(models[0].found.config.profile))
    workdir = Workdir(out, jax.process_index() == 0)
    workdir.claim()
    labels = [model.label for model in models]
    on_first_process(lambda: require_askable(suites, labels, out))
    for model in models:
        config = model.found.config
        opened = model.found.load(config.mesh.make())
        engine = opened.engine(batch_size or config.rollout.batch_size)
        with profiler.stage(f"evaluate {model.label}"):
            source = "" if model.label in _OWN else str(model.found.path)
            summary = evaluate_all(engine, suites, model.label, workdir, source=source)
        say(f"{model.label}: {summary}")
        del opened, engine
        gc.collect()  # before the next model needs the memory
    names = [suite.name for suite in suites]
    text, refused = tables(out, labels, names)
    say("\n" + text)
    say("\nanswers and scores: " + ", ".join(str(out / EVALS / label) for label in labels))
    workdir.close()
    if refused:
        raise DataError("\n".join(refused))


def tables(path: Path, labels: Sequence[str], names: Sequence[str]) -> tuple[str, list[str]]:
    """Returns the results of the models side by side.

    Every model is compared with the first. If the base or the aligned model of a run was asked
    alone, it is compared with the other one where that was asked before.

    Args:
        path: holds the folders evals/LABEL.
        labels: labels of the models that were asked.
        names: names of the evaluations.

    Returns:
        The tables, and for each comparison that is refused the reason.
    """
    pairs = [(labels[0], other) for other in labels[1:]]
    pairs = pairs or ([_OWN] if labels[0] in _OWN else [])
    wanted = list(dict.fromkeys([*labels, *(x for pair in pairs for x in pair)]))
    stored = {x.name: x for x in stored_evaluations(path, wanted, only=names)}
    evaluations = [stored[name] for name in names]
    blocks, refused = [], []
    alone = {(label, x.name): x.results[label] for label in labels for x in evaluations}
    for first, other in pairs:
        rows = []
        for evaluation in evaluations:
            if not {first, other} <= evaluation.results.keys():
                continue
            try:
                rows += comparison_rows([evaluation.results[first]], [evaluation.results[other]])
            except DataError as error:
                refused.append(_why_not(evaluation, first, other, str(error)))
                continue
            for label in (first, other):
                alone.pop((label, evaluation.name), None)
        for per_category in (False, True):
            chosen = [row for row in rows if ("/" in row.metric) == per_category]
            blocks += [format_table(chosen, (first, other))] if chosen else []
    for label in labels:
        results = [result for (who, _), result in alone.items() if who == label]
        for per_category in (False, True):
            chosen = [_only(result, per_category) for result in results]
            if any(result.metrics for result in chosen):
                blocks.append(format_results(chosen, label))
    return "\n\n".join(blocks), refused


def _why_not(evaluation: StoredEvaluation, first: str, other: str, reason: str) -> str:
    """Returns why an evaluation of two models is not compared."""
    left_out = {x: evaluation.about[x].get("left_out") or "none" for x in (first, other)}
    if left_out[first] != left_out[other]:
        counts = ", ".join(f"{label} could not be asked {num}" for label, num in left_out.items())
        reason += f"; of the questions, {counts}"
    return f"{first} and {other} are not compared: {reason}"


def _only(result: EvalResult, per_category: bool) -> EvalResult:
    metrics = {k: v for k, v in result.metrics.items() if ("/" in k) == per_category}
    return dataclasses.replace(result, metrics=metrics)


if __name__ == "__main__":
    main()
