"""The main command: from images to an aligned model, stage by stage, top to bottom.

    python -m seva_jax.train --config configs/tiny.py --optim.lr 1e-4

`stages` is the whole run as a table: base -> rollouts -> pairs -> reference -> align -> evaluate ->
report. Pairs that are given (a `PreferenceSource` as prompts) need no rollouts. Every stage reads
what earlier ones left in the work directory and is skipped if it has finished before, so running
the same command again resumes; SIGTERM and Ctrl-C save first (`seva_jax/runtime/shutdown.py`).
Read next: `seva_jax/run/context.py`, then `seva_jax/training/step.py` for the maths.
"""

from __future__ import annotations

import dataclasses
import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax

from seva_jax.config import (
    Experiment,
    Once,
    PriorRun,
    TrainedBase,
    fingerprint,
    load_experiments,
    runs_of,
    to_source,
)
from seva_jax.config.prior_run import base_fingerprint
from seva_jax.config.smoke import smoke
from seva_jax.data.show import spread
from seva_jax.report import write_figures
from seva_jax.report.cards import logged_pairs
from seva_jax.report.closing import closing_summary, how_to_open
from seva_jax.report.compare import compare
from seva_jax.report.run_report import page_size, results_and_verdict, write_run_report
from seva_jax.report.shown import Shown, facts_of_run
from seva_jax.run import further, reference, rollouts
from seva_jax.run import smoke as smoke_run
from seva_jax.run.alignment import caches_reference
from seva_jax.run.context import RunContext
from seva_jax.run.evaluations import left_by_evaluations
from seva_jax.run.further import continued_alignment
from seva_jax.run.margins import reward_margins
from seva_jax.run.outputs import Outputs
from seva_jax.run.own_prompts import own_answers
from seva_jax.run.preflight import prepared
from seva_jax.run.stage import Stage
from seva_jax.run.stages import (
    evaluate_aligned,
    evaluate_base,
    run_alignment,
    run_base,
    run_pairs,
    run_reference,
    run_rollouts,
    run_takeover,
)
from seva_jax.runtime.paths import hide_home
from seva_jax.runtime.processes import (
    joined,
    on_first_process,
    one_line_errors,
    say,
    use_compile_cache,
)
from seva_jax.runtime.shutdown import Status
from seva_jax.runtime.stores import as_path
from seva_jax.training.health import NotFinite
from seva_jax.types import DataError

DESCRIPTION = """Aligns a LLaVA-style model with its own answers (SeVa): the model answers
questions about images, clean (chosen) and corrupted (rejected); where the answers differ, it is
trained to prefer the first with DPO. Without arguments, runs the whole method on a small
procedural world in a few minutes on a CPU."""

StageTable = Callable[[RunContext, Outputs], Iterator[Stage]]


def stages(ctx: RunContext, out: Outputs) -> Iterator[Stage]:
    """Yields the stages of a run in order: name, what it depends on, what runs, what it leaves."""
    config = ctx.config
    base = base_fingerprint(config)
    if isinstance(config.base, TrainedBase):
        yield Stage(
            "base", base, lambda: run_base(ctx, out), ["checkpoints/base"], trains=["base"]
        )  # fmt: skip
    if isinstance(config.base, PriorRun):
        yield Stage("base", base, lambda: run_takeover(ctx, out))

    if config.prompts.has_answers:
        pairs = fingerprint(base, config.prompts, config.text)
    else:
        answers = fingerprint(
            base, config.prompts, [*map(fingerprint, config.corrupt)], config.rollout,
            config.text.generate,
        )  # fmt: skip
        yield Stage(
            "rollouts", answers, lambda: run_rollouts(ctx, out),
            [rollouts.RECORDS, rollouts.INDEX], journal=rollouts.LINES, needs=["base"],
        )  # fmt: skip
        pairs = fingerprint(answers, config.pairs, config.text)
    yield Stage(
        "pairs", pairs, lambda: run_pairs(ctx, out), ["pairs.array_record", "pairs.json"],
        needs=["rollouts"], if_missing="make",
    )  # fmt: skip

    if caches_reference(ctx):
        yield Stage(
            "reference", pairs, lambda: run_reference(ctx, out),
            [reference.RECORDS], journal=reference.LINES, needs=["base", "pairs"],
        )  # fmt: skip
    aligned = fingerprint(
        pairs, config.objective, config.lora, config.optim, config.train,
        *continued_alignment(ctx, pairs),
    )  # fmt: skip
    held_out = ["held_out.json"] if config.train.eval_fraction else []
    yield Stage(
        "align", aligned, lambda: log_pairs_and_align(ctx, out), ["checkpoints/align", *held_out],
        [further.RECORD], needs=["base", "pairs", "reference"], trains=["align", "held-out"],
        if_missing="require",
    )  # fmt: skip

    evals = [*map(fingerprint, config.evals)]
    scores = fingerprint(aligned, evals)
    if config.evals:
        how = (config.text.generate, config.text.max_length, config.rollout.cache)
        before = fingerprint(base, evals, *how)
        yield Stage(
            "evaluate base", before, lambda: evaluate_base(ctx, out),
            *left_by_evaluations("base", config.evals), needs=["base"], if_missing="require",
        )  # fmt: skip
        yield Stage(
            "evaluate aligned", scores, lambda: evaluate_aligned(ctx, out),
            *left_by_evaluations("aligned", config.evals), needs=["base", "pairs"],
            if_missing="require",
        )  # fmt: skip
    yield Stage(
        "report", fingerprint(scores, config.report), lambda: write_page(ctx, out),
        ["report.html"], needs=["base", "pairs"], if_missing="require", shared=False,
    )  # fmt: skip


def run(config: Experiment, siblings: Sequence[Path] = (), table: StageTable = stages) -> Outputs:
    """Runs what is left to run, then prints what was measured and where the files are.

    Args:
        config: the run; one run, not a curriculum of several.
        siblings: work directories of runs whose finished stages may serve this one.
        table: yields the stages; a caller may wrap `stages` to watch, replace or skip some.

    Returns:
        What the stages made.
    """
    if not isinstance(config.curriculum, Once):
        raise DataError(
            "this config stands for several runs: run_all(runs_of(experiment)) runs them "
            "(seva_jax.train, seva_jax.config)"
        )
    ctx, out = prepared(config, siblings)
    ctx.begin()
    if isinstance(config.base, PriorRun):
        why = f"{config.base.workdir} has another result now"
        ctx.workdir.start_over("base", base_fingerprint(config), why)
    for stage in table(ctx, out):
        ctx.workdir.run_stage(stage)
    ctx.workdir.times.finish()
    path = ctx.workdir.path
    say("\n" + on_first_process(lambda: results_and_verdict(path, config)))
    say("\n" + closing_summary(path, config.report))
    ctx.workdir.close()
    return out


def log_pairs_and_align(ctx: RunContext, out: Outputs) -> str:
    """Shows a few pairs to the loggers, then trains the policy with the objective."""
    processing, load_image = ctx.assets.processing, out.prompts.load_image
    pairs = out.comparisons.comparisons  # on all processes
    ctx.workdir.log_pairs(lambda: logged_pairs(ctx.config, processing, load_image, pairs))
    return run_alignment(ctx, out)


def write_page(ctx: RunContext, out: Outputs) -> str:
    """Records what only the models can tell, then writes report.html from the work directory.

    All processes compute margins of pairs and answers to a few prompts; process 0 writes.
    """
    config, encoded, (of_training, _) = ctx.config, out.comparisons, out.split
    trained = [encoded.comparisons[i] for i in of_training]
    places = [of_training[i] for i in spread(len(of_training), config.report.num_pairs)]
    margins: list[tuple[int, float | None, float | None]] = []
    if places:
        rows = ctx.rows(encoded.select(places), out.images, config.objective)
        after = reward_margins(ctx, out.reference, out.aligned, rows)
        before: list[float | None] = [None if margin is None else 0.0 for margin in after]
        if out.start is not out.reference:  # the adapters of an earlier run are trained further
            before = reward_margins(ctx, out.reference, out.start, rows)
        margins = list(zip(places, before, after, strict=True))
    own, left_out = own_answers(out, trained, config.report.num_prompts)
    facts = facts_of_run(config, ctx.mesh, ctx.assets)
    shown = Shown(
        trained=len(trained), margins=tuple(margins), own=tuple(own), left_out=left_out, **facts
    )

    def write() -> str:
        shown.write(ctx.workdir.path)
        return page_size(write_run_report(ctx.workdir.path, config))

    return on_first_process(write)


def run_all(
    runs: Sequence[Experiment], others: Sequence[Path] = (), table: StageTable = stages
) -> None:
    """Runs what `runs_of` gives, in order; what has finished before is skipped.

    Args:
        runs: one run, or the rounds of a curriculum.
        others: work directories of runs that may share stages with these.
        table: see `run`.
    """
    for number, config in enumerate(runs, start=1):
        if len(runs) > 1:
            gc.collect()  # the round before has released its memory
            say(f"\n=== round {number} of {len(runs)}: {config.workdir} ===")
        run(config, [path for path in others if path != as_path(config.workdir)], table)
    if len(runs) > 1:
        page = as_path(runs[0].workdir).parent / "rounds.html"
        if jax.process_index() == 0:
            write_figures(compare([as_path(config.workdir) for config in runs], "round"), page)
        say(f"\nall rounds: {page}{how_to_open(page)}")


def try_small(config: Experiment, workdir: str, num_runs: int) -> None:
    """Takes the path of a run with a small random model, a few examples and two steps.

    Args:
        config: the run.
        workdir: the directory next to which its own will be.
        num_runs: the number of runs that the command line stands for.
    """
    config = dataclasses.replace(config, workdir=workdir)
    small = smoke(config, jax.device_count())
    smoke_run.begin(config, small)
    run(small)
    smoke_run.end(config, small, num_runs)


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    use_compile_cache()
    try:
        experiments, flags = load_experiments(DESCRIPTION, argv, smoke=True)
        plans = list(map(runs_of, experiments))
        chosen = experiments if flags.only is None else [experiments[flags.only]]
        if flags.print_config:
            shown = [smoke(chosen[0])] if flags.smoke else chosen
            print("\n".join(map(to_source, shown)))
            return
        with joined(chosen[0].processes):
            if flags.smoke:
                try_small(plans[flags.only or 0][0], chosen[0].workdir, sum(map(len, plans)))
                return
            others = [as_path(config.workdir) for runs in plans for config in runs]
            for runs in plans if flags.only is None else [plans[flags.only]]:
                if len(chosen) > 1 and len(runs) == 1:
                    say(f"\n=== {runs[0].workdir} ===")
                run_all(runs, others)
    except NotFinite as error:
        print(hide_home(f"error: {error}"), file=sys.stderr)
        sys.exit(Status.NOT_FINITE)


if __name__ == "__main__":
    main()
