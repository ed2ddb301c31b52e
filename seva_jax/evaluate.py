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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
from seva_jax.evals import Suite
from seva_jax.evals.side_by_side import OWN, tables
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
models and writes answer files for other scorers. Run it again to resume after a kill. Options of
training have no effect here."""


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
    parser = _parser()
    flags, rest = parser.parse_known_args(argv)
    if flags.batch_size is not None and flags.batch_size < 1:
        raise DataError(f"--batch-size must be at least 1, not {flags.batch_size}")
    runs = list(dict.fromkeys(n for n in flags.models if n != "base" and is_run(as_path(n))))
    others = [name.replace("_", "-") for name in vars(flags)]
    given = {run: _config_of_run(run, rest, others) for run in runs}
    if "base" in flags.models and len(runs) > 1:
        raise DataError(
            f'"base" is the base model of one run, and there are {len(runs)}; give its directory'
        )
    default = None if runs or "base" in flags.models else Experiment()
    first = given[runs[0]] if runs else _load(rest, others, default)
    config = runs_of(first)[0]  # the base of several rounds is the first one's
    suites = _suites(flags)
    models = [
        _Model(name, label, *_find(name, flags, given.get(name, config), default))
        for name, label in zip(flags.models, _labels(flags, runs), strict=True)
    ]
    out = _out(flags.out, models)
    suites = suites or list(config.evals)
    if not suites:
        raise DataError("there is nothing to ask: give --suite FILE or --questions FILE")
    _check(suites, read_config(out / "config.py") if is_run(out) else config)
    with joined(config.processes):
        _evaluate(models, suites, out, flags.batch_size)


def _parser() -> argparse.ArgumentParser:
    """Returns what reads the options that are not those of a run."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, usage=argparse.SUPPRESS)
    add = parser.add_argument_group("Models, questions and results").add_argument
    add(
        "--models", nargs="+", default=["base"], metavar="MODEL",
        help="work directories of finished runs (their aligned models), LLaVA directories in "
        "Hugging Face's or the original layout, exports, or directories of LoRA adapters; and "
        '"base", the model that the run among them, or the run of --config FILE, started from. '
        "The others are compared with the first. --model is the same option. (default: base)",
    )  # fmt: skip
    add("--model", nargs="+", dest="models", help=argparse.SUPPRESS, default=argparse.SUPPRESS)
    add(
        "--labels", nargs="+", default=[], metavar="NAME",
        help="names of the models in tables and folders (default: base, aligned, or the name of "
        "the directory)",
    )  # fmt: skip
    add(
        "--suite", nargs="+", default=[], metavar="FILE",
        help="Python files (or modules) that define get_suites(). Without --suite and --questions, "
        "the evals of the config are asked.",
    )  # fmt: skip
    add("--questions", nargs="+", default=[], metavar="FILE", help="JSON files of questions")
    add(
        "--image-root", default="", metavar="DIR",
        help="folder of the images of --questions (default: that of the file)",
    )  # fmt: skip
    add(
        "--suffix",
        default="",
        metavar="TEXT",
        help="put after every question of --questions, such as a request for a short answer",
    )
    add(
        "--out", metavar="DIR",
        help="where evals/LABEL are written (default: the work directory of the run, if there is "
        "exactly one)",
    )  # fmt: skip
    add(
        "--batch-size", type=int, metavar="N",
        help="questions answered together (default: as in the rollouts of the run)",
    )  # fmt: skip
    add(
        "--base",
        default="",
        metavar="DIR",
        help="the model that an adapter was trained on, if its adapter_config.json names none",
    )
    add(
        "--vision-tower",
        default="",
        metavar="DIR",
        help="the CLIP directory of a model in the original layout",
    )
    add(
        "--same-base",
        action="store_true",
        help="trust that the base of a run is what it was trained on",
    )
    return parser


def _load(
    argv: Sequence[str], others: Sequence[str], default: Experiment | None = None
) -> Experiment:
    about = f"{DESCRIPTION}\n\n{_parser().format_help().rstrip()}"
    return load_experiment(about, argv, "evaluate", others, default)[0]


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
    names, labels = flags.models, list(map(safe_label, flags.labels))
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
        if is_run(out) and model.label in OWN and not own:
            raise DataError(
                f"{out} is a run, whose own models have the labels {' and '.join(OWN)}; give "
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
    for line in asked_differently({model.label: model.found for model in models}):
        say(line)
    labels = [model.label for model in models]
    on_first_process(lambda: require_askable(suites, labels, out))
    for model in models:
        config = model.found.config
        opened = model.found.load(config.mesh.make())
        engine = opened.engine(batch_size or config.rollout.batch_size)
        with profiler.stage(f"evaluate {model.label}"):
            source = "" if model.label in OWN else str(model.found.path)
            run = model.found.path if model.found.is_run else None
            summary = evaluate_all(engine, suites, model.label, workdir, source=source, run=run)
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


def asked_differently(models: Mapping[str, FoundModel]) -> list[str]:
    """Returns a line for each way in which not all models are asked as the first one is.

    Args:
        models: the models by label.
    """
    (first, one), *others = models.items()
    lines = []
    for label, other in others:
        ways = {
            "template": (one.config.text.generate, other.config.text.generate),
            "max_length": (one.config.text.max_length, other.config.text.max_length),
            "image processing": (one.assets.processing, other.assets.processing),
        }
        texts = [
            f"{way} {_differing(here, there)}" for way, (here, there) in ways.items()
            if here != there
        ]  # fmt: skip
        if texts:
            lines.append(f"{label} is asked differently than {first}: {', '.join(texts)}")
    return lines


def _differing(first: Any, other: Any) -> str:
    """Returns how two values differ, as (a of the first, b of the other) with their fields."""
    before, after = flatten(first, ""), flatten(other, "")
    names = [name for name in sorted(before) if before[name] != after.get(name)]
    texts = (f"{name} {before[name]!r} / {after.get(name)!r}".lstrip() for name in names)
    return f"({', '.join(texts)})"


if __name__ == "__main__":
    main()
