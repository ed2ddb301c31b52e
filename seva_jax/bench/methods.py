"""Compares all systems on the procedural world, under one budget.

Each seed has its own world and base model. Methods share the base model, except those whose prompts
need one that knows more, such as several images. Every `configs/tiny_*.py` of one run with the
model of `tiny.py` trains on the same number of comparisons (over all its rounds together) and is
asked the same questions. Two controls are supervised: on the model's own clean answers, and on the
known answers that methods for given preferences start from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated

from seva_jax.bench.study import (
    Values,
    difference_table,
    num_pairs,
    read_metrics,
    reseed,
)
from seva_jax.config.base_models import TrainedBase
from seva_jax.config.config_files import config_directory, read_configs
from seva_jax.config.experiment import Experiment
from seva_jax.config.rounds import runs_of
from seva_jax.models import LlavaConfig
from seva_jax.objectives import Supervised
from seva_jax.ranges import FROM_1
from seva_jax.runtime.files import write_json, write_text
from seva_jax.runtime.stores import as_path
from seva_jax.train import run_all
from seva_jax.types import DataError
from seva_jax.worlds import WorldPairs

_KNOWN = " (known answers)"


@dataclasses.dataclass(frozen=True)
class MethodsStudy:
    """The study behind the table of all systems.

    Attributes:
        out: work directories and results go here; run again to resume.
        seeds: which seeds to run; each has its own world and base model.
        comparisons: how many every method is trained on, over all its rounds.
        methods: names of configs/tiny_NAME.py to run; none means all.
        tables_only: only read finished cells and print the table.
    """

    out: str = "runs/methods"
    seeds: tuple[int, ...] = (1, 2, 3)
    comparisons: Annotated[int, FROM_1] = 6400
    methods: tuple[str, ...] = ()
    tables_only: bool = False


def cells(study: MethodsStudy, seed: int) -> dict[str, tuple[Experiment, ...]]:
    """Returns the runs of one seed by name of the method, the base's own config first."""
    (tiny,) = read_configs(config_directory() / "tiny.py")
    pairs = WorldPairs(num=2000)
    methods = {
        "seva": tiny,
        "control: supervised": dataclasses.replace(tiny, objective=Supervised()),
        "control: supervised" + _KNOWN: dataclasses.replace(
            tiny, objective=Supervised(), prompts=pairs, corrupt=()
        ),
    }
    for path in sorted(config_directory().glob("tiny_*.py")):
        experiments = read_configs(path)
        # Neither a sweep nor the same method with another model is a method.
        if len(experiments) == 1 and _model(experiments[0]) == _model(tiny):
            known = _KNOWN if experiments[0].prompts.has_answers else ""
            methods[path.stem.removeprefix("tiny_") + known] = experiments[0]
    return {
        name: _budgeted(study, seed, name, config, tiny)
        for name, config in methods.items()
        if not study.methods or name == "seva" or name.removesuffix(_KNOWN) in study.methods
    }


def _model(experiment: Experiment) -> LlavaConfig | None:
    base = experiment.base
    return base.model if isinstance(base, TrainedBase) else None


def _budgeted(
    study: MethodsStudy, seed: int, name: str, experiment: Experiment, tiny: Experiment
) -> tuple[Experiment, ...]:
    """Returns the runs of one cell: base and questions of the default run, steps for the budget."""
    folder = name.replace(_KNOWN, "-known").replace(": ", "-")
    workdir = str(as_path(study.out) / f"seed{seed}" / folder)
    shared = dataclasses.replace(
        experiment, evals=tiny.evals, compute=tiny.compute, workdir=workdir
    )
    rounds = runs_of(reseed(shared, seed))

    def limited(config: Experiment) -> Experiment:
        steps = max(study.comparisons // len(rounds) // config.train.batch_size, 1)
        train = dataclasses.replace(config.train, max_steps=steps, epochs=1000, repeat=1)
        return dataclasses.replace(config, train=train)

    return tuple(map(limited, rounds))


def run_methods(study: MethodsStudy) -> None:
    """Runs the cells that are not finished, then prints and writes the table."""
    values: dict[int, dict[str, dict[str, float]]] = {}
    bases: dict[str, str] = {}
    without: list[str] = []
    for seed in study.seeds:
        values[seed] = {}
        methods = cells(study, seed)
        shared = methods["seva"][0].base
        for name, runs in methods.items():
            if not study.tables_only:
                print(f"\n=== seed {seed}: {name} ===", flush=True)
                # Finished stages of other cells of the seed may serve this one.
                stages = as_path(study.out).glob(f"seed{seed}/**/stages.json")
                try:
                    run_all(runs, sorted(file.parent for file in stages))
                except DataError as error:
                    without.append(f"{name}, seed {seed}: {error}")
                    print(f"not run: {error}", flush=True)
                    continue
            last = as_path(runs[-1].workdir)
            if (last / "report.html").exists():
                first = runs[0]
                if name == "seva":
                    values[seed]["base"] = read_metrics(first.workdir, "base")
                elif first.base != shared:
                    bases[name] = f"base of {name}"
                    values[seed][bases[name]] = read_metrics(first.workdir, "base")
                pairs = sum(num_pairs(run.workdir) for run in runs)
                values[seed][name] = read_metrics(last, "aligned") | {"pairs": pairs}
    text = table(study, values, bases) + "".join(f"\n- not run: {line}" for line in without)
    print("\n" + text)
    out = as_path(study.out)
    write_text(out / "methods.md", text + "\n")
    write_json(out / "methods.json", values)


def table(
    study: MethodsStudy, values: Mapping[int, Values], bases: Mapping[str, str] | None = None
) -> str:
    """Returns a Markdown table of methods that finished for all seeds; see `difference_table`."""
    everywhere = [n for n in next(iter(values.values())) if all(n in v for v in values.values())]
    if "base" not in everywhere:
        return "the default run has not finished for every seed yet\n"
    kept = {seed: {name: v[name] for name in everywhere} for seed, v in values.items()}
    lines = [f"{study.comparisons:,} comparisons for each method.", *difference_table(kept, bases)]
    return "\n".join(lines) + "\n"
