"""What the stages of a run share: model, work directory, rows, the loop with the run's settings.

The stages themselves are in `seva_jax/train.py`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seva_jax.batches.image_inputs import ImageInput, Pixels
from seva_jax.batches.pipeline import ComparisonRows, RowShapes, encodable
from seva_jax.batches.trees import RowShape
from seva_jax.config.experiment import Experiment
from seva_jax.config.options import make_model
from seva_jax.config.source import fingerprint, flatten
from seva_jax.data.sources import PromptSet
from seva_jax.inference.answer_logps import Journal, answer_logps
from seva_jax.inference.rollouts import RolloutEngine
from seva_jax.models import (
    Llava,
)
from seva_jax.objectives import Objective
from seva_jax.run.workdir import Workdir
from seva_jax.text.encode import Encoder
from seva_jax.text.templates import Template
from seva_jax.training.checkpoint import checksum
from seva_jax.training.flops import forward, model_flops
from seva_jax.training.health import Health
from seva_jax.training.loop import Loop, fit
from seva_jax.training.optimizer import Optim
from seva_jax.training.step import StepOptions, Variables
from seva_jax.types import Comparison, DataError


class Parts:
    """One experiment in its work directory.

    Args:
        experiment: the run.
        siblings: work directories of runs whose finished stages may serve this one.
    """

    def __init__(self, experiment: Experiment, siblings: Sequence[Path] = ()) -> None:
        self.experiment = experiment
        self.mesh = experiment.mesh.make()
        platform = self.mesh.devices.flat[0].platform
        if experiment.compute.attention == "cudnn" and platform != "gpu":
            raise DataError(
                f"compute.attention cudnn is for NVIDIA GPUs; these devices are {platform}s: set "
                "--compute.attention auto"
            )
        self.assets = experiment.base.assets()
        self.workdir = Workdir.open(experiment, siblings)
        lora = experiment.lora if experiment.lora.rank else None
        self.base_model = make_model(self.assets.config, experiment.compute)
        self.model = make_model(self.assets.config, experiment.compute, lora)

    @property
    def step_options(self) -> StepOptions:
        """How every step computes."""
        return StepOptions(head_chunk=self.experiment.compute.head_chunk)

    @property
    def row_shapes(self) -> RowShapes:
        """A row costs what it takes to train on it."""
        e, config = self.experiment, self.assets.config

        def cost(shape: RowShape) -> float:
            return model_flops(forward(config, e.lora, shape), e.train.trained)

        return RowShapes(e.compute.row_shapes, cost)

    def encoder(self, template: Template) -> Encoder:
        """Text to tokens with one of the run's templates."""
        return self.assets.encoder(template, self.experiment.text.max_length)

    def engine(self, variables: Variables, model: Llava) -> RolloutEngine:
        """A model of this run, ready to answer prompts."""
        e = self.experiment
        return RolloutEngine(
            model=model,
            variables=variables,
            encoder=self.encoder(e.text.generate),
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
        encoder = self.encoder(self.experiment.text.train)
        fits = encodable(comparisons, encoder)
        if fits.shape is None or len(fits.comparisons) < len(comparisons):
            raise DataError(f"examples that do not fit the model: {dict(fits.drops)}")
        spans = "spans" in self.experiment.objective.needs
        return ComparisonRows(
            comparisons, encoder, images, fits.shape, fits.sizes, reference, spans
        )

    def fit_rows(
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
        """Runs the training loop to its end, with checkpoints and metrics under `name`.

        Args:
            name: of the stage.
            model: the module.
            objective: what is minimised.
            optim: the optimiser.
            rows: the data.
            frozen: variables that do not change.
            trainable: variables at step 0, float32.
            batch_size: comparisons in a step.
            steps: optimiser steps.
            epochs: passes over the data.
            micro_batches: parts a batch is computed in.
            repeat: see `TrainOptions`.
            in_step: see `make_train_step`.

        Returns:
            The trained variables.
        """
        e = self.experiment
        stage_facts = {"batch_size": batch_size, "steps": steps, "repeat": repeat, "seed": e.seed}
        loop = Loop(
            name=name,
            directory=self.workdir.path / "checkpoints" / name,
            facts=stage_facts | self._facts(model, rows.comparisons, frozen),
            mesh=self.mesh,
            model=model,
            objective=objective,
            optimizer=optim.make(steps),
            options=self.step_options,
            reference_in_step=in_step,
            rows=rows,
            shapes=self.row_shapes,
            batch_size=batch_size,
            micro_batches=micro_batches,
            steps=steps,
            epochs=epochs,
            repeat=repeat,
            seed=e.seed,
            save_every=e.train.save_every,
            save_every_s=e.train.save_every_s,
            log_every=e.train.log_every,
            processes=e.train.read_processes,
            learning_rate=optim.learning_rate(steps),
        )
        past = self.workdir.read_metrics() if self.workdir.writes else []
        past = [row for row in past if row["stage"] == name]
        health = Health(name, self.workdir.path, e.train.max_nonfinite, past)
        with self.workdir.metrics(name) as write:
            forget = functools.partial(self.workdir.forget_steps, name)
            return fit(loop, frozen, trainable, write, forget, health)

    def _facts(
        self, model: Llava, comparisons: Sequence[Comparison], frozen: Variables
    ) -> dict[str, Any]:
        """What a checkpoint depends on and config.json does not show, such as files by content."""
        tokenizer = self.assets.tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        facts = flatten(model.config, "model") | {
            "tokenizer": fingerprint(tokenizer.get_vocab(), backend.to_str() if backend else ""),
            "examples": fingerprint([dataclasses.asdict(c) for c in comparisons]),
            "frozen weights": fingerprint(checksum(frozen)) if frozen else "none",
        }
        return facts | (flatten(model.lora, "lora") if model.lora else {"lora": "none"})

    def logps(
        self,
        model: Llava,
        variables: Variables,
        rows: ComparisonRows,
        name: str,
        journal: Journal | None = None,
    ) -> list[list[np.ndarray]]:
        """Per-token log-probs of every branch of every row, in order; see `answer_logps`."""
        train = self.experiment.train
        with self.workdir.bar(name, len(rows), "pair") as bar:
            return answer_logps(
                model, variables, rows, self.mesh, train.batch_size // train.micro_batches,
                self.row_shapes, self.step_options, bar.update, journal,
            )  # fmt: skip

    def pixels(self, data: PromptSet) -> Pixels:
        """Images of prompts, decoded and preprocessed."""
        return Pixels(data.load_image, self.assets.processing)
