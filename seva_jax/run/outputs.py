"""What the stages of a run have made, for later stages and for notebooks.

What lives here: `Outputs`. What does not: making any of it (`seva_jax/train.py` lists the stages).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from seva_jax.batches.encoded import EncodedComparisons, encode_together
from seva_jax.batches.image_inputs import FeatureCache, ImageInput, image_uses
from seva_jax.batches.pipeline import ComparisonRows
from seva_jax.config import fingerprint
from seva_jax.data import PromptSet
from seva_jax.data.json_records import read_comparisons
from seva_jax.evals import EvalResult
from seva_jax.inference.features import cached_features
from seva_jax.run.alignment import caches_reference, load_aligned
from seva_jax.run.base import load_base, load_reference, load_start
from seva_jax.run.context import RunContext
from seva_jax.run.evaluations import read_results
from seva_jax.run.reference import read_reference
from seva_jax.runtime.stores import as_path
from seva_jax.training.checkpoint import checksum
from seva_jax.training.held_out import split_by_image
from seva_jax.training.step import Variables
from seva_jax.types import DataError


@dataclasses.dataclass
class Outputs:
    """What the stages of one run have made.

    A stage that runs in this process assigns its result. Otherwise a result is read from the work
    directory when it is first asked for; nothing is trained or answered for it.

    Attributes:
        ctx: the run.
    """

    ctx: RunContext

    @functools.cached_property
    def prompts(self) -> PromptSet:
        """The prompts; a `PreferenceSet` if they have answers already."""
        return self.ctx.config.prompts.open()

    @functools.cached_property
    def base(self) -> Any:
        """The "params" collection of the reference policy, sharded."""
        return load_base(self.ctx)

    @functools.cached_property
    def reference(self) -> Variables:
        """The variables of the reference policy: `base`, and adapters if it has its own."""
        return load_reference(self.ctx, self.base)

    @functools.cached_property
    def start(self) -> Variables:
        """The policy before alignment, which answers prompts and is evaluated as base."""
        return load_start(self.ctx, self.reference)

    @functools.cached_property
    def comparisons(self) -> EncodedComparisons:
        """The pairs as token ids; all processes ask for them, and each encodes its share."""
        pairs = read_comparisons(self.ctx.workdir.path / "pairs.array_record")
        template = self.ctx.config.text.train
        encoder = self.ctx.encoder(template, lambda name: self.prompts.image_size(name))
        return encode_together(pairs, encoder)

    @functools.cached_property
    def images(self) -> ImageInput:
        """Images of the pairs as the model gets them: pixels, or cached features."""
        ctx, pixels = self.ctx, self.ctx.pixels(self.prompts)
        if not ctx.config.train.feature_cache:
            return pixels
        model = ctx.assets.config
        tower = fingerprint(
            checksum(self.base["vision"]), model.vision, model.feature_layer,
            model.feature_select, ctx.config.compute.dtype,
        )  # fmt: skip
        folder = as_path(ctx.config.train.feature_cache) / tower
        cache = FeatureCache(folder, *ctx.base_model.feature_kind)
        views = (view for c in self.comparisons.comparisons for view in c.views)
        uses = sorted({use for view in views for use in image_uses(view.prompt)})
        with ctx.workdir.bar("image features", len(uses), "image") as bar:
            return cached_features(
                cache, ctx.base_model, {"params": self.base}, uses, pixels, ctx.mesh,
                ctx.config.rollout.batch_size, bar.update,
            )  # fmt: skip

    @functools.cached_property
    def split(self) -> tuple[list[int], list[int]]:
        """Indices of the pairs that alignment is trained on, and of those that are held out."""
        config = self.ctx.config
        return split_by_image(self.comparisons.comparisons, config.train.eval_fraction, config.seed)

    @functools.cached_property
    def training_rows(self) -> ComparisonRows:
        """The pairs as alignment is trained on them, with reference log-probs if these are cached.

        Raises:
            DataError: the pairs lack something that the objective needs, or none can be held out.
        """
        return self._rows(self.split[0])

    @functools.cached_property
    def held_out_rows(self) -> ComparisonRows | None:
        """The pairs that alignment is not trained on, likewise; None if it is trained on all."""
        return self._rows(self.split[1]) if self.split[1] else None

    @functools.cached_property
    def reference_logps(self) -> Sequence[tuple[np.ndarray, ...]]:
        """Log-probs of all pairs under the reference, if they are cached."""
        return read_reference(self.ctx, self.reference, self.comparisons.comparisons)

    def _rows(self, indices: Sequence[int], reference: bool = True) -> ComparisonRows:
        ctx, logps = self.ctx, None
        if reference and caches_reference(ctx):
            logps = [self.reference_logps[i] for i in indices]
        chosen = self.comparisons.select(indices)
        return ctx.rows(chosen, self.images, ctx.config.objective, logps)

    @functools.cached_property
    def aligned(self) -> Variables:
        """The aligned model's variables.

        Raises:
            DataError: the alignment is not finished.
        """
        if "align" not in self.ctx.workdir.stages():
            path = self.ctx.workdir.path
            raise DataError(f"{path}: its alignment is not finished; run seva_jax.train first")
        # Log-probs of the reference, which may have been deleted, do not matter any more.
        training, held_out = self.split
        others = self._rows(held_out, reference=False) if held_out else None
        rows = self._rows(training, reference=False)
        return load_aligned(self.ctx, self.reference, rows, others)

    def results(self, who: str) -> list[EvalResult]:
        """Returns the evaluation results of "base" or "aligned"."""
        return read_results(self.ctx.workdir.path, who, self.ctx.config.evals)
