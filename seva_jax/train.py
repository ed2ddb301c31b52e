"""The main command: from images to an aligned model, stage by stage, top to bottom.

    python -m seva_jax.train --config configs/tiny.py --optim.lr 1e-4

base -> rollouts -> pairs -> reference -> align -> evaluate -> report; pairs that are there already
(a `PreferenceSource` as prompts) need no rollouts. Every stage reads what the earlier ones left in
the work directory and is skipped when it has finished before, so running the same command again
resumes. The inner loop is `seva_jax/loop.py`; the maths is
`seva_jax/step.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seva_jax.base_model import Checkpoint, TrainedBase
from seva_jax.checkpoint import checksum
from seva_jax.cli import load_experiments, to_source
from seva_jax.convert import load_params, tower_directory
from seva_jax.data import store
from seva_jax.data.inputs import FeatureCache, ImageInput, Pixels
from seva_jax.data.pipeline import ComparisonRows, RowShapes, encodable, num_steps
from seva_jax.data.sources import PromptSet
from seva_jax.data.trees import RowShape
from seva_jax.evals import EvalResult, comparison_rows, format_table
from seva_jax.examine import evaluate_all, read_results
from seva_jax.experiment import Experiment, make_model
from seva_jax.features import cached_features
from seva_jax.flops import forward, model_flops
from seva_jax.logps import answer_logps
from seva_jax.loop import Loop, fit
from seva_jax.models import (
    Llava,
    abstract_params,
    abstract_stored,
    abstract_variables,
    init_variables,
    quantise_all,
)
from seva_jax.objectives import Objective, Supervised
from seva_jax.optim import Optim
from seva_jax.pairs import find_pairs
from seva_jax.processes import gather, join, say, use_compile_cache
from seva_jax.results import closing_summary, logged_pairs, write_run_report
from seva_jax.rollout.run import Asker
from seva_jax.sharding import variable_shardings
from seva_jax.step import StepOptions, Variables, merge, split_params
from seva_jax.text.encode import Encoder
from seva_jax.text.templates import Template
from seva_jax.types import Comparison, DataError, Rollout
from seva_jax.workdir import Workdir, fingerprint

DESCRIPTION = """Aligns a LLaVA-style model with its own answers (SeVa): the model answers
questions about images, clean (chosen) and corrupted (rejected); where the answers differ, it is
trained to prefer the first with DPO. Without arguments, runs the whole method on a small
procedural world in a few minutes on a CPU."""


class Run:
    """One experiment in its work directory. `stages` is the whole run in order.

    Args:
        experiment: the run.
        siblings: work directories of runs whose finished stages may serve this one.
    """

    def __init__(self, experiment: Experiment, siblings: Sequence[Path] = ()) -> None:
        self.experiment = experiment
        self.mesh = experiment.mesh.make()
        self.assets = experiment.base.assets()
        self.workdir = Workdir.open(experiment, siblings)
        lora = experiment.lora if experiment.lora.rank else None
        self.base_model = make_model(self.assets.config, experiment.compute)
        self.model = make_model(self.assets.config, experiment.compute, lora)

    def stages(self) -> None:
        """Runs what is left to run, then prints what was measured and where the files are."""
        e, stage = self.experiment, self.workdir.stage
        base = fingerprint(e.base, e.seed, e.compute)
        if isinstance(e.base, TrainedBase):
            stage("base", base, self.train_base, ["checkpoints/base"])
        if e.prompts.has_answers:
            pairs = fingerprint(base, e.prompts, e.text)
        else:
            rollouts = fingerprint(
                base, e.prompts, list(map(fingerprint, e.corrupt)), e.rollout, e.text.generate
            )
            stage("rollouts", rollouts, self.roll_out, ["rollouts.jsonl"])
            pairs = fingerprint(rollouts, e.pairs, e.text)
        stage("pairs", pairs, self.build_pairs, ["pairs.array_record", "pairs.json"])
        if self.caches_reference:
            stage("reference", pairs, self.cache_reference, ["reference.array_record"])
        what = dataclasses.replace(
            e.train, log_every=1, save_every=1, read_processes=0
        )  # free to change
        align = fingerprint(pairs, e.objective, e.lora, e.optim, what)
        stage("align", align, self.align)
        evaluations = list(map(fingerprint, e.evals))
        evals = fingerprint(align, evaluations)
        if e.evals:
            before = fingerprint(base, evaluations)
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

    @functools.cached_property
    def base_params(self) -> Any:
        """The base model's parameters, sharded: loaded, trained, or restored after training."""
        base, seed, compute = self.experiment.base, self.experiment.seed, self.experiment.compute
        boxed = abstract_variables(self.base_model)["params"]
        stored = variable_shardings(
            self.mesh, abstract_stored(boxed, compute.base_weights, compute.param_dtype)
        )
        if isinstance(base, Checkpoint):
            tower = tower_directory(Path(base.path), base.vision_tower)
            return load_params(
                base.path, self.assets.config, compute.param_dtype, stored, tower,
                compute.base_weights,
            )  # fmt: skip
        assert isinstance(base, TrainedBase)
        data = base.prompts.open()
        answered = [Comparison(p, (p.meta["answer"],)) for p in data.prompts]
        epochs = -(-base.steps * base.batch_size // len(answered))
        shardings = variable_shardings(self.mesh, boxed)
        fresh = {"params": init_variables(self.base_model, "params", shardings, seed)}
        rows = self.rows(answered, self._pixels(data))
        trained = self._fit(
            "base", self.base_model, Supervised(), base.optim, rows, {}, fresh,
            batch_size=base.batch_size, steps=base.steps, epochs=epochs,
        )["params"]  # fmt: skip
        return quantise_all(trained, compute.base_weights, stored)

    # --- rollouts and pairs -------------------------------------------------------------------

    @functools.cached_property
    def prompts(self) -> PromptSet:
        """The prompts; a `PreferenceSet` if they have answers already."""
        return self.experiment.prompts.open()

    def roll_out(self) -> str:
        """Answers every prompt on its clean image and on every corrupted copy."""
        e, prompts = self.experiment, self.prompts.prompts
        path = self.workdir.path / "rollouts.jsonl"
        start = gather(len(store.read_lines(path)) if self.workdir.writes else 0)[0]
        asker = self.asker({"params": self.base_params}, self.base_model)
        batches = asker.ask(prompts, self.prompts.load_image, e.rollout.sampling, e.corrupt, start)
        with self.workdir.bar("rollouts", len(prompts), "prompt", start) as bar:
            for batch in batches:
                records = [
                    store.rollout_record(Rollout(a.prompt, a.answers[0], a.answers[1:]))
                    if not a.dropped
                    else {"id": a.prompt.id, "dropped": a.dropped}
                    for a in batch
                ]
                if self.workdir.writes:
                    store.append_lines(path, records)
                bar.update(len(batch))
        return f"{len(prompts):,} prompts, {1 + len(e.corrupt)} answers each"

    def build_pairs(self) -> str:
        """Keeps the comparisons that can be trained on, and counts why others are dropped."""
        rollouts = store.read_lines(self.workdir.path / "rollouts.jsonl")
        encoder = self._encoder(self.experiment.text.train)
        found = find_pairs(self.prompts, rollouts, self.experiment.pairs, encoder)
        if self.workdir.writes:
            found.write(self.workdir.path)
        return found.describe()

    @functools.cached_property
    def comparisons(self) -> list[Comparison]:
        """The pairs."""
        return store.read_comparisons(self.workdir.path / "pairs.array_record")

    def _pixels(self, data: PromptSet) -> Pixels:
        return Pixels(data.load_image, self.assets.processing)

    @functools.cached_property
    def images(self) -> ImageInput:
        """Images of the pairs as the model gets them."""
        pixels, config = self._pixels(self.prompts), self.assets.config
        if not self.experiment.train.feature_cache:
            return pixels
        tower = fingerprint(
            checksum(self.base_params["vision"]), config.vision, config.feature_layer,
            config.feature_select, self.experiment.compute.dtype,
        )  # fmt: skip
        cache = FeatureCache(
            Path(self.experiment.train.feature_cache) / tower, *self.base_model.feature_kind
        )
        names = sorted({name for c in self.comparisons for name in c.prompt.images})
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
            [c.answers for c in self.comparisons],
            self.experiment.compute.dtype,
        )

    def cache_reference(self) -> str:
        """Computes per-token log-probs of every answer under the base model, once."""
        rows = self.rows(self.comparisons, self.images)
        logps = self.logps(self.base_model, {"params": self.base_params}, rows, "reference")
        ids, key = [c.prompt.id for c in self.comparisons], self.reference_key  # on all processes
        if self.workdir.writes:
            path = self.workdir.path / "reference.array_record"
            store.write_reference(path, ids, logps, key)
        missing = sum(not branches for branches in logps)
        return (
            f"{sum(len(x) for branches in logps for x in branches):,} answer tokens"
            + f"; {missing:,} pairs left out, whose images do not decode" * (missing > 0)
        )

    def logps(
        self, model: Llava, variables: Variables, rows: ComparisonRows, name: str
    ) -> list[list[np.ndarray]]:
        """Per-token log-probs of every branch of every row, in order."""
        train = self.experiment.train
        with self.workdir.bar(name, len(rows), "pair") as bar:
            return answer_logps(
                model, variables, rows, self.mesh, train.batch_size // train.micro_batches,
                self._row_shapes, self._step_options, bar.update,
            )  # fmt: skip

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
        frozen, parts = split_params(self.base_params, e.train.trained, in_step)
        # Copies: the training state is donated step by step, the base model stays.
        to_float32 = jax.jit(lambda x: jax.tree.map(lambda y: y.astype(jnp.float32) + 0.0, x))
        trainable: dict[str, Any] = {"params": to_float32(parts)}
        if "lora" in e.train.trained:
            shardings = variable_shardings(self.mesh, abstract_variables(self.model)["lora"])
            trainable["lora"] = init_variables(self.model, "lora", shardings, e.seed)
        reference = None
        if self.caches_reference:
            ids = [c.prompt.id for c in self.comparisons]
            path = self.workdir.path / "reference.array_record"
            reference = store.read_reference(path, ids, self.reference_key)
        rows = self.rows(self.comparisons, self.images, reference)
        trained = self._fit(
            "align", self.model, e.objective, e.optim, rows, {"params": frozen}, trainable,
            batch_size=e.train.batch_size, steps=self._align_steps, epochs=e.train.epochs,
            micro_batches=e.train.micro_batches, repeat=e.train.repeat, in_step=in_step,
        )  # fmt: skip
        return merge({"params": frozen}, trained)

    # --- evaluation and report ----------------------------------------------------------------

    def evaluate_base(self) -> str:
        """Asks the base model every evaluation question."""
        return self._evaluate_all("base", self.base_model, {"params": self.base_params})

    def evaluate_aligned(self) -> str:
        """Asks the aligned model every evaluation question."""
        return self._evaluate_all("aligned", self.model, self.aligned)

    def _evaluate_all(self, who: str, model: Llava, variables: Variables) -> str:
        return evaluate_all(self.asker(variables, model), self.experiment.evals, who, self.workdir)

    def results(self) -> tuple[list[EvalResult], list[EvalResult]]:
        """Evaluation results of base and aligned model, read back from the work directory."""
        evals, path = self.experiment.evals, self.workdir.path
        return read_results(path, "base", evals), read_results(path, "aligned", evals)

    def report(self) -> str:
        """Writes report.html."""
        return write_run_report(self)

    # --- shared by the stages -----------------------------------------------------------------

    @property
    def _step_options(self) -> StepOptions:
        return StepOptions(head_chunk=self.experiment.compute.head_chunk)

    @property
    def _row_shapes(self) -> RowShapes:
        """A row costs what it takes to train on it."""
        e, config = self.experiment, self.assets.config

        def cost(shape: RowShape) -> float:
            return model_flops(forward(config, e.lora, shape), e.train.trained)

        return RowShapes(e.compute.row_shapes, cost)

    def _encoder(self, template: Template) -> Encoder:
        config = self.assets.config
        return Encoder(
            tokenizer=self.assets.tokenizer,
            template=template,
            image_token_id=config.image_token_id,
            tokens_per_image=config.tokens_per_image,
            max_length=self.experiment.text.max_length,
        )

    def asker(self, variables: Variables, model: Llava) -> Asker:
        """A model of this run, ready to answer prompts."""
        e = self.experiment
        return Asker(
            model=model,
            variables=variables,
            encoder=self._encoder(e.text.generate),
            processing=self.assets.processing,
            mesh=self.mesh,
            batch_size=e.rollout.batch_size,
            seed=e.seed,
            refill=e.rollout.refill,
            cache=e.rollout.cache,
        )

    def rows(
        self,
        comparisons: Sequence[Comparison],
        images: ImageInput,
        reference: Sequence[tuple[np.ndarray, ...]] | None = None,
    ) -> ComparisonRows:
        """Comparisons as rows of one shape, with the training template."""
        encoder = self._encoder(self.experiment.text.train)
        fits = encodable(comparisons, encoder)
        if fits.shape is None or len(fits.comparisons) < len(comparisons):
            raise DataError(f"examples that do not fit the model: {dict(fits.drops)}")
        return ComparisonRows(comparisons, encoder, images, fits.shape, fits.sizes, reference)

    def _fit(
        self,
        name: str,
        model: Llava,
        objective: Objective,
        optim: Optim,
        rows: ComparisonRows,
        frozen: Variables,
        trainable: Variables,
        *,
        batch_size: int,
        steps: int,
        epochs: int,
        micro_batches: int = 1,
        repeat: int = 1,
        in_step: bool = False,
    ) -> Variables:
        e = self.experiment
        loop = Loop(
            name=name,
            directory=self.workdir.path / "checkpoints" / name,
            mesh=self.mesh,
            model=model,
            objective=objective,
            optimizer=optim.make(steps),
            options=self._step_options,
            reference_in_step=in_step,
            rows=rows,
            shapes=self._row_shapes,
            batch_size=batch_size,
            micro_batches=micro_batches,
            steps=steps,
            epochs=epochs,
            repeat=repeat,
            seed=e.seed,
            save_every=e.train.save_every,
            log_every=e.train.log_every,
            processes=e.train.read_processes,
            learning_rate=optim.learning_rate(steps),
        )
        with self.workdir.metrics(name) as write:
            return fit(loop, frozen, trainable, write)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    use_compile_cache()
    try:
        experiments, flags = load_experiments(DESCRIPTION, argv)
        chosen = experiments if flags.only is None else [experiments[flags.only]]
        if flags.print_config:
            print("\n".join(map(to_source, chosen)))
            return
        join(chosen[0].processes)
        for experiment in chosen:
            if len(chosen) > 1:
                say(f"\n=== {experiment.workdir} ===")
            others = [Path(e.workdir) for e in experiments if e is not experiment]
            Run(experiment, others).stages()
    except DataError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
