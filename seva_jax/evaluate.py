"""`python -m seva_jax.evaluate`: benchmarks of a base model or of an aligned one.

    python -m seva_jax.evaluate --config my_run.py --model base --suite my_suites.py
    python -m seva_jax.evaluate --model runs/mine --suite my_suites.py

What benchmarks there are, and how a suite file looks, is in `seva_jax/evals/README.md`.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from seva_jax.config import (
    Experiment,
    TrainedBase,
    fingerprint,
    load_experiment,
    read_suites,
    runs_of,
)
from seva_jax.evals import EvalResult, Suite, comparison_rows, format_results, format_table
from seva_jax.run.context import RunContext
from seva_jax.run.evaluations import evaluate_all, read_results
from seva_jax.run.outputs import Outputs
from seva_jax.run.workdir import instead_of
from seva_jax.runtime.processes import joined, one_line_errors, say, use_compile_cache
from seva_jax.runtime.profiler import profiler
from seva_jax.runtime.stores import as_path, make_folder
from seva_jax.types import DataError

DESCRIPTION = """Asks a model every question of the chosen suites, scores the answers and writes
answer files for other scorers. Run it again to resume after a kill.

--model base asks the base model of --config FILE; --model WORKDIR asks the aligned model of a
finished run, whose config is its own. --suite FILE ... names Python files (or modules) that define
get_suites(); without it, the config's evals are asked. --out DIR is where evals/base and
evals/aligned are written, by default the run's work directory. --batch-size N answers N questions
together, by default as many as the run's rollouts. If both models have been asked, they are
compared."""


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    use_compile_cache()
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--model", default="base")
    parser.add_argument("--suite", nargs="+", default=[])
    parser.add_argument("--out")
    parser.add_argument("--batch-size", type=int)
    flags, rest = parser.parse_known_args(argv)
    aligned = flags.model != "base"
    if aligned and not (as_path(flags.model) / "config.py").is_file():
        raise DataError(
            f"--model {flags.model}: neither base nor the work directory of a run (it has no "
            f"config.py){instead_of(as_path(flags.model))}"
        )
    if aligned:
        rest += ["--config", f"{flags.model}/config.py", "--workdir", flags.model]
    own = [name.replace("_", "-") for name in vars(flags)]
    experiment, _ = load_experiment(DESCRIPTION, rest, "evaluate", own)
    experiment = runs_of(experiment)[0]  # the base of several rounds is the first one's
    suites = [s for where in flags.suite for s in read_suites(where)] or list(experiment.evals)
    _check(experiment, suites)
    if flags.batch_size is not None and flags.batch_size < 1:
        raise DataError(f"--batch-size must be at least 1, not {flags.batch_size}")
    with joined(experiment.processes):
        ctx, who = RunContext.open(experiment), "aligned" if aligned else "base"
        out = as_path(flags.out) if flags.out else ctx.workdir.path
        _evaluate(ctx, suites, who, out, flags.batch_size)


def _check(experiment: Experiment, suites: Sequence[Suite]) -> None:
    """Raises unless names are unique, also among results that the run itself writes."""
    if not suites:
        raise DataError("there is nothing to ask: give --suite FILE, or a config with evals")
    names = [suite.name for suite in suites]
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"two suites are named {name!r}; give one another name")
    own = {suite.name: suite for suite in experiment.evals}
    for suite in suites:
        if suite.name in own and fingerprint(suite) != fingerprint(own[suite.name]):
            raise DataError(
                f"the config's evals have another suite named {suite.name!r}; give this one "
                "another name"
            )


def _evaluate(
    ctx: RunContext, suites: Sequence[Suite], who: str, out: Path, batch_size: int | None
) -> None:
    missing = isinstance(ctx.config.base, TrainedBase) and "base" not in ctx.workdir.stages()
    if who == "base" and missing:
        raise DataError(
            f"{ctx.workdir.path} has no trained base model yet; run seva_jax.train with this config"
        )
    made = Outputs(ctx)
    workdir = dataclasses.replace(ctx.workdir, path=out)
    make_folder(out)
    workdir.claim()
    engine = ctx.engine(made.start if who == "base" else made.aligned)
    if batch_size:
        engine = dataclasses.replace(engine, batch_size=batch_size)
    with profiler.stage(f"evaluate {who}"):
        summary = evaluate_all(engine, suites, who, workdir)
    say(f"{who}: {summary}")
    say("\n" + tables(workdir.path, who, suites))
    say(f"\nanswers and scores: {workdir.path / 'evals' / who}")
    workdir.close()
    ctx.workdir.close()


def tables(path: Path, who: str, suites: Sequence[Suite]) -> str:
    """Returns the results of one model, or of both side by side if the other was asked, too.

    Args:
        path: holds evals/base and evals/aligned.
        who: the model that was asked now.
        suites: what it was asked.
    """
    other = "base" if who == "aligned" else "aligned"
    both = [s for s in suites if (path / "evals" / other / f"{s.name}.json").is_file()]
    alone = [s for s in suites if s not in both]
    blocks = []
    if both:
        rows = comparison_rows(
            read_results(path, "base", both), read_results(path, "aligned", both)
        )
        for per_category in (False, True):
            chosen = [row for row in rows if ("/" in row.metric) == per_category]
            blocks += [format_table(chosen)] if chosen else []
    results = read_results(path, who, alone)
    for per_category in (False, True):
        chosen = [_only(result, per_category) for result in results]
        if any(result.metrics for result in chosen):
            blocks.append(format_results(chosen, who))
    return "\n\n".join(blocks)


def _only(result: EvalResult, per_category: bool) -> EvalResult:
    metrics = {k: v for k, v in result.metrics.items() if ("/" in k) == per_category}
    return dataclasses.replace(result, metrics=metrics)


if __name__ == "__main__":
    main()
