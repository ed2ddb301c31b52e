"""The main command: from images to an aligned model, stage by stage, top to bottom.

    python -m seva_jax.train --config configs/tiny.py --optim.lr 1e-4

base -> rollouts -> pairs -> reference -> align -> evaluate -> report; pairs that are there already
(a `PreferenceSource` as prompts) need no rollouts. Every stage reads what the earlier ones left in
the work directory and is skipped when it has finished before, so running the same command again
resumes; SIGTERM and Ctrl-C save first (`seva_jax/runtime/shutdown.py`). What the stages share is in
`seva_jax/run/context.py`; the inner loop is `seva_jax/training/loop.py`, the maths `seva_jax/training/step.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from seva_jax.batches.image_inputs import FeatureCache, ImageInput
from seva_jax.batches.pipeline import num_steps
from seva_jax.config.base_models import TrainedBase
from seva_jax.config.command_line import load_experiments
from seva_jax.config.experiment import Experiment, Once
from seva_jax.config.prior_run import (
    PriorRun,
    base_fingerprint,
    continuation_problems,
    prior_answers,
)
from seva_jax.config.rounds import runs_of
from seva_jax.config.source import fingerprint, to_source
from seva_jax.data import json_records
from seva_jax.data.check import check as check_data
from seva_jax.data.sources import PromptSet
from seva_jax.evals import EvalResult, comparison_rows, format_table
from seva_jax.evals.suite import open_suite
from seva_jax.inference.answer_logps import Journal
from seva_jax.inference.features import cached_features
from seva_jax.models import (
    Llava,
    abstract_params,
    abstract_stored,
    abstract_variables,
    init_variables,
    quantise_all,
)
from seva_jax.objectives import Supervised
from seva_jax.pairs import build_pairs
from seva_jax.report.compare import compare
from seva_jax.report.figures import write_figures
from seva_jax.report.run_report import closing_summary, logged_pairs, write_run_report
from seva_jax.run.context import Parts
from seva_jax.run.evaluations import evaluate_all, read_results
from seva_jax.run.recorded_model import RecordedModel
from seva_jax.run.reference import read_reference, write_reference
from seva_jax.run.rollout_files import INDEX, LINES, RECORDS, read_rollouts, write_rollouts
from seva_jax.run.weights import reference_params, trained_variables
from seva_jax.runtime import files
from seva_jax.runtime.paths import hide_home
from seva_jax.runtime.processes import gather, joined, one_line_errors, say, use_compile_cache
from seva_jax.runtime.shutdown import Status
from seva_jax.sharding import variable_shardings
from seva_jax.training.checkpoint import checksum
from seva_jax.training.health import NotFinite
from seva_jax.training.step import Variables, merge, split_params
from seva_jax.types import Comparison, DataError, Rollout

DESCRIPTION = """Aligns a LLaVA-style model with its own answers (SeVa): the model answers
questions about images, clean (chosen) and corrupted (rejected); where the answers differ, it is
trained to prefer the first with DPO. Without arguments, runs the whole method on a small
procedural world in a few minutes on a CPU."""


class Run(Parts):
    """One experiment in its work directory. `stages` is the whole run in order."""

    def stages(self) -> None:
        """Runs what is left to run, then prints what was measured and where the files are."""
        e, stage = self.experiment, self.workdir.stage
        if e.strict:
            self.require_all_prompts()
        if not isinstance(e.curriculum, Once):
            raise DataError(
                "this config stands for several runs: run_all(runs_of(experiment)) runs them "
                "(seva_jax.train, seva_jax.config.rounds)"
            )
        base = base_fingerprint(e)
        if isinstance(e.base, TrainedBase):
            stage("base", base, self.train_base, ["checkpoints/base"])
        if isinstance(e.base, PriorRun):
            self.workdir.start_over("base", base, f"{e.base.workdir} has another result now")
            stage("base", base, self.take_over)
        if e.prompts.has_answers:
            pairs = fingerprint(base, e.prompts, e.text)
        else:
            rollouts = fingerprint(
                base, e.prompts, list(map(fingerprint, e.corrupt)), e.rollout, e.text.generate
            )
            stage("rollouts", rollouts, self.roll_out, [RECORDS, INDEX])
            self.workdir.replaced(LINES, RECORDS)
            pairs = fingerprint(rollouts, e.pairs, e.text)
        stage("pairs", pairs, self.build_pairs, ["pairs.array_record", "pairs.json"])
        if self.caches_reference:
            stage("reference", pairs, self.cache_reference, ["reference.array_record"])
            self.workdir.replaced("reference.jsonl", "reference.array_record")
        what = dataclasses.replace(
            e.train, log_every=1, save_every=0, save_every_s=1.0, max_nonfinite=1, read_processes=0
        )  # free to change
        align = fingerprint(pairs, e.objective, e.lora, e.optim, what)
        stage("align", align, self.align)
        evaluations = list(map(fingerprint, e.evals))
        evals = fingerprint(align, evaluations)
        if e.evals:
            asked = (e.text.generate, e.text.max_length, e.rollout.cache)
            before = fingerprint(base, evaluations, *asked)
            stage("evaluate base", before, self.evaluate_base, ["evals/base"])
            stage("evaluate aligned", evals, self.evaluate_aligned)
        stage("report", fingerprint(evals, e.report), self.report)
        if e.evals:
            say("\n" + format_table(comparison_rows(*self.results())))
        say("\n" + closing_summary(self))
        self.workdir.close()

    # --- base ---------------------------------------------------------------------------------

    def train_base(self) -> str:
        """Trains a small base model from scratch, supervised, by the ordinary loop."""
        assert isinstance(self.experiment.base, TrainedBase)
        jax.block_until_ready(self.base_params)
        num = sum(x.size for x in jax.tree.leaves(abstract_params(self.base_model)))
        return f"{num:,} parameters, {self.experiment.base.steps} supervised steps"

    def take_over(self) -> str:
        """Takes what an earlier run made."""
        base = self.experiment.base
        assert isinstance(base, PriorRun)
        if found := continuation_problems(self.experiment, base.earlier()):
            raise DataError("this run cannot start from " + "\n  ".join([base.workdir, *found]))
        jax.block_until_ready(self.base_params)
        what = "merged: the reference" if base.merge else "going on, with its reference"
        return f"what {base.workdir} trained, {what}"

    @functools.cached_property
    def base_params(self) -> Any:
        """The reference policy's parameters, sharded: loaded, or trained, or restored."""
        base, seed, compute = self.experiment.base, self.experiment.seed, self.experiment.compute
        if not isinstance(base, TrainedBase):
            return reference_params(self.experiment, self.assets.config, self.mesh)
        boxed = abstract_variables(self.base_model)["params"]
        stored = variable_shardings(
            self.mesh, abstract_stored(boxed, compute.base_weights, compute.param_dtype)
        )
        data = base.prompts.open()
        answered = [Comparison(p, (p.meta["answer"],)) for p in data.prompts]
        epochs = -(-base.steps * base.batch_size // len(answered))
        shardings = variable_shardings(self.mesh, boxed)
        fresh = {"params": init_variables(self.base_model, "params", shardings, seed)}
        rows = self.rows(answered, self.pixels(data))
        trained = self.fit_rows(
            "base", self.base_model, Supervised(), base.optim, rows, {}, fresh,
            batch_size=base.batch_size, steps=base.steps, epochs=epochs,
        )["params"]  # fmt: skip
        return quantise_all(trained, compute.base_weights, stored)

    @functools.cached_property
    def start(self) -> Variables:
        """The policy before alignment: what answers prompts, and is evaluated as base.

        These are the reference's variables, but where an earlier run's adapters go on.
        """
        base, reference = self.experiment.base, {"params": self.base_params}
        if not isinstance(base, PriorRun) or base.merge:
            return reference
        return merge(reference, trained_variables(base.earlier(), self.assets.config, self.mesh))

    @property
    def start_model(self) -> Llava:
        """The module of `start`."""
        return self.model if "lora" in self.start else self.base_model

    # --- rollouts and pairs -------------------------------------------------------------------

    @functools.cached_property
    def prompts(self) -> PromptSet:
        """The prompts; a `PreferenceSet` if they have answers already."""
        return self.experiment.prompts.open()

    def require_all_prompts(self) -> None:
        """Raises `DataError` unless all texts and images can be used; see `Experiment.strict`."""
        e = self.experiment
        found = [("", self.prompts, e.prompt_template)]
        if isinstance(e.base, TrainedBase):
            found.append(("base: ", e.base.prompts.open(), e.text.train))
        found += [(f"{x.name}: ", open_suite(x), e.text.generate) for x in e.evals]
        for what, data, template in found:
            check_data(data, self.encoder(template), self.workdir.bar).require_all(what)

    def roll_out(self) -> str:
        """Answers every prompt on its clean image and on every corrupted copy."""
        e, prompts = self.experiment, self.prompts.prompts
        path = self.workdir.path / LINES
        start = gather(len(files.read_lines(path)) if self.workdir.writes else 0)[0]
        engine = self.engine(self.start, self.start_model)
        batches = engine.answer(
            prompts, self.prompts.load_image, e.rollout.sampling, e.corrupt, start
        )
        with self.workdir.bar("rollouts", len(prompts), "prompt", start) as bar:
            for batch in batches:
                records = [
                    json_records.rollout_record(Rollout(a.prompt, a.answers[0], a.answers[1:]))
                    if not a.dropped
                    else {"id": a.prompt.id, "dropped": a.dropped}
                    for a in batch
                ]
                if self.workdir.writes:
                    files.append_lines(path, records)
                bar.update(len(batch))
        if self.workdir.writes:
            write_rollouts(self.workdir.path, files.read_lines(path), list(map(repr, e.corrupt)))
        return f"{len(prompts):,} prompts, {1 + len(e.corrupt)} answers each"

    def build_pairs(self) -> str:
        """Keeps the comparisons that can be trained on, and counts why others are dropped."""
        rollouts = [] if self.experiment.prompts.has_answers else read_rollouts(self.workdir.path)
        encoder = self.encoder(self.experiment.text.train)
        builder = self.experiment.pairs
        calls = RecordedModel(self, self.prompts, lambda: self.start)
        found = build_pairs(self.prompts, rollouts, builder, encoder, calls)
        if self.workdir.writes:
            found.write(self.workdir.path)
        return found.describe()

    @functools.cached_property
    def comparisons(self) -> list[Comparison]:
        """The pairs, with all that the objective needs of them."""
        comparisons = json_records.read_comparisons(self.workdir.path / "pairs.array_record")
        self.experiment.objective.check(comparisons)
        return comparisons

    @functools.cached_property
    def images(self) -> ImageInput:
        """Images of the pairs as the model gets them."""
        pixels, config = self.pixels(self.prompts), self.assets.config
        if not self.experiment.train.feature_cache:
            return pixels
        tower = fingerprint(
            checksum(self.base_params["vision"]), config.vision, config.feature_layer,
            config.feature_select, self.experiment.compute.dtype,
        )  # fmt: skip
        cache = FeatureCache(
            Path(self.experiment.train.feature_cache) / tower, *self.base_model.feature_kind
        )
        names = sorted({name for c in self.comparisons for name in c.images})
        with self.workdir.bar("image features", len(names), "image") as bar:
            return cached_features(
                cache, self.base_model, {"params": self.base_params}, names, pixels, self.mesh,
                self.experiment.rollout.batch_size, bar.update,
            )  # fmt: skip

    # --- reference and alignment --------------------------------------------------------------

    @property
    def caches_reference(self) -> bool:
        """Whether reference log-probs are computed before training."""
        return (
            self.experiment.objective.needs_reference
            and self.experiment.train.reference == "cached"
        )

    @functools.cached_property
    def reference_key(self) -> str:
        """Fingerprint of all that reference log-probs depend on."""
        return fingerprint(
            checksum(self.base_params),
            self.experiment.text.train,
            self.assets.processing,
            self.assets.tokenizer.get_vocab(),
            [dataclasses.asdict(c) for c in self.comparisons],
            self.experiment.compute.dtype,
        )

    def cache_reference(self) -> str:
        """Computes per-token log-probs of every answer under the base model, once."""
        rows = self.rows(self.comparisons, self.images)
        ids, key = [c.prompt.id for c in self.comparisons], self.reference_key  # on all processes
        journal = Journal(self.workdir.path / "reference.jsonl", key)
        base = {"params": self.base_params}
        logps = self.logps(self.base_model, base, rows, "reference", journal)
        if self.workdir.writes:
            path = self.workdir.path / "reference.array_record"
            write_reference(path, ids, logps, key)
        missing = sum(not branches for branches in logps)
        return (
            f"{sum(len(x) for branches in logps for x in branches):,} answer tokens"
            + f"; {missing:,} pairs left out, whose images do not decode" * (missing > 0)
        )

    def align(self) -> str:
        """Trains the adapters and the other trained parts with the objective."""
        self.workdir.log_pairs(lambda: logged_pairs(self))
        _ = self.aligned
        rows = (r for r in self.workdir.read_metrics() if r["stage"] == "align")
        missing = round(sum(r.get("unreadable", 0) for r in rows))
        return (
            f"{self._align_steps} steps on {len(self.comparisons):,} pairs"
            + f"; {missing:,} times an image did not decode and its pair counted 0" * (missing > 0)
        )

    @property
    def _align_steps(self) -> int:
        t = self.experiment.train
        return num_steps(len(self.comparisons), t.batch_size, t.epochs, t.repeat, t.max_steps)

    @functools.cached_property
    def aligned(self) -> Variables:
        """The aligned model's variables: trained, or restored after training."""
        e = self.experiment
        in_step = e.objective.needs_reference and not self.caches_reference
        frozen, _ = split_params(self.base_params, e.train.trained, in_step)
        _, parts = split_params(self.start["params"], e.train.trained, in_step)
        # Copies: the training state is donated step by step, the base model stays.
        to_float32 = jax.jit(lambda x: jax.tree.map(lambda y: y.astype(jnp.float32) + 0.0, x))
        trainable: dict[str, Any] = {"params": to_float32(parts)}
        if "lora" in e.train.trained:
            shardings = variable_shardings(self.mesh, abstract_variables(self.model)["lora"])
            trainable["lora"] = (
                to_float32(self.start["lora"])
                if "lora" in self.start
                else init_variables(self.model, "lora", shardings, e.seed)
            )
        reference = None
        if self.caches_reference:
            ids = [c.prompt.id for c in self.comparisons]
            path = self.workdir.path / "reference.array_record"
            reference = read_reference(path, ids, self.reference_key)
        rows = self.rows(self.comparisons, self.images, reference)
        trained = self.fit_rows(
            "align", self.model, e.objective, e.optim, rows, {"params": frozen}, trainable,
            batch_size=e.train.batch_size, steps=self._align_steps, epochs=e.train.epochs,
            micro_batches=e.train.micro_batches, repeat=e.train.repeat, in_step=in_step,
        )  # fmt: skip
        return merge({"params": frozen}, trained)

    # --- evaluation and report ----------------------------------------------------------------

    def evaluate_base(self) -> str:
        """Asks the model before alignment every evaluation question."""
        e = self.experiment
        return self._evaluate_all("base", self.start_model, self.start, prior_answers(e))

    def evaluate_aligned(self) -> str:
        """Asks the aligned model every evaluation question."""
        return self._evaluate_all("aligned", self.model, self.aligned)

    def _evaluate_all(
        self, who: str, model: Llava, variables: Variables, same: Path | None = None
    ) -> str:
        engine = self.engine(variables, model)
        return evaluate_all(engine, self.experiment.evals, who, self.workdir, same)

    def results(self) -> tuple[list[EvalResult], list[EvalResult]]:
        """Evaluation results of base and aligned model, read back from the work directory."""
        evals, path = self.experiment.evals, self.workdir.path
        return read_results(path, "base", evals), read_results(path, "aligned", evals)

    def report(self) -> str:
        """Writes report.html."""
        return write_run_report(self)


def run_all(runs: Sequence[Experiment], others: Sequence[Path] = ()) -> None:
    """Runs what `runs_of` gives, in order; what has finished before is skipped.

    Args:
        runs: one run, or several that go on from each other.
        others: work directories of runs that may share stages with these.
    """
    for number, run in enumerate(runs, start=1):
        if len(runs) > 1:
            gc.collect()  # the one before has let go of its memory
            say(f"\n=== stage {number} of {len(runs)}: {run.workdir} ===")
        Run(run, [path for path in others if path != Path(run.workdir)]).stages()
    if len(runs) > 1:
        page = Path(runs[0].workdir).parent / "stages.html"
        if jax.process_index() == 0:
            write_figures(compare([Path(run.workdir) for run in runs], "stage"), page)
        say(f"\nall stages: {page}")


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    use_compile_cache()
    try:
        experiments, flags = load_experiments(DESCRIPTION, argv)
        plans = list(map(runs_of, experiments))
        chosen = experiments if flags.only is None else [experiments[flags.only]]
        if flags.print_config:
            print("\n".join(map(to_source, chosen)))
            return
        with joined(chosen[0].processes):
            others = [Path(run.workdir) for runs in plans for run in runs]
            for runs in plans if flags.only is None else [plans[flags.only]]:
                if len(chosen) > 1 and len(runs) == 1:
                    say(f"\n=== {runs[0].workdir} ===")
                run_all(runs, others)
    except NotFinite as error:
        print(hide_home(f"error: {error}"), file=sys.stderr)
        sys.exit(Status.NOT_FINITE)


if __name__ == "__main__":
    main()
