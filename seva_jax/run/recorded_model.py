"""The model as pair builders may ask it, with every answer kept in the work directory.

What lives here: `RecordedModel`, which continues interrupted calls from WORKDIR/calls. What does
not: the contract (`seva_jax/pairs/model.py`), the passes themselves (`seva_jax/inference`).
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from typing_extensions import override

from seva_jax.batches.encoded import encode_together
from seva_jax.batches.pipeline import ComparisonRows
from seva_jax.config import fingerprint
from seva_jax.data import PromptSet
from seva_jax.images.compose import Box
from seva_jax.images.shown import shown_tokens
from seva_jax.inference.answer_stats import TokenStats, answer_stats
from seva_jax.inference.features import mean_features
from seva_jax.inference.rollouts import RolloutEngine
from seva_jax.pairs import AnswerStats, PairModel, Reply
from seva_jax.run.context import RunContext
from seva_jax.runtime.journal import Journal, Record
from seva_jax.runtime.processes import say
from seva_jax.text import Encoder, Sampling
from seva_jax.training.step import Variables
from seva_jax.types import SECONDS, Comparison, DataError, ExampleError, ImageSize, Prompt, View


@dataclasses.dataclass(frozen=True)
class RecordedModel(PairModel):
    """The model to be aligned; see `PairModel`.

    Attributes:
        ctx: the run.
        data: the prompts, and the way to their images.
        variables: returns the policy before alignment; called when the model is first asked.
        reference: returns the reference policy, likewise.
    """

    ctx: RunContext
    data: PromptSet
    variables: Callable[[], Variables]
    reference: Callable[[], Variables]
    _names: set[str] = dataclasses.field(default_factory=set, repr=False)

    @functools.cached_property
    def _engine(self) -> RolloutEngine:
        """What answers: for all calls, weights move to its layout once."""
        return self.ctx.engine(self.variables(), self.reference())

    @functools.cached_property
    def _encoder(self) -> Encoder:
        """Encodes views as prompts are asked."""
        return self.ctx.encoder(self.ctx.config.text.generate, self.data.image_size)

    @property
    @override
    def seed(self) -> int:
        return self.ctx.config.seed

    @override
    def answer(self, name: str, prompts: Sequence[Prompt], sampling: Sampling) -> list[Reply]:
        asked = [[p.id, *_prompt_key(p)] for p in prompts]
        journal = self._journal(name, fingerprint("answer", asked, sampling))
        replies = [Reply(r["text"], r["dropped"]) for r in journal.resume()]
        if len(replies) == len(prompts):
            return replies
        # With the name, a prompt that is asked twice at a temperature is answered differently.
        named = [dataclasses.replace(p, id=f"{name}/{p.id}") for p in prompts]
        data = dataclasses.replace(self.data, prompts=named)
        batches = self._engine.answer(data, sampling, start=len(replies))
        with self.ctx.workdir.bar(name, len(prompts), "prompt", len(replies)) as bar:
            for batch in batches:
                fresh = [Reply(a.answers[0] if a.answers else "", a.dropped) for a in batch]
                journal.append(reply._asdict() for reply in fresh)
                replies += fresh
                bar.update(len(fresh))
        return replies

    @override
    def measure(
        self,
        name: str,
        views: Sequence[View],
        layer: int | None = None,
        targets: Sequence[np.ndarray] = (),
    ) -> list[AnswerStats | None]:
        self._check_measure(views, layer, targets)
        asked = [[*_prompt_key(v.prompt), v.answers[0]] for v in views]
        bits = [np.packbits(target).tobytes().hex() for target in targets]
        journal = self._journal(name, fingerprint("measure", asked, layer, bits))
        done = journal.resume()
        comparisons = [Comparison(view.prompt, view.answers[:1]) for view in views]
        encoded = encode_together(comparisons, self._encoder)
        fitting = set(map(id, encoded.comparisons))
        which = [i for i, comparison in enumerate(comparisons) if id(comparison) in fitting]
        if len(done) < len(which):
            rows, variables = ComparisonRows(encoded, self.ctx.pixels(self.data)), self.variables()
            batches = answer_stats(
                self.ctx.model_of(variables), variables, rows, self.ctx.pass_layout,
                self.ctx.step_options, layer, len(done),
            )  # fmt: skip
            with self.ctx.workdir.bar(name, len(rows), "answer", len(done)) as bar:
                for batch in batches:
                    begun = which[len(done) :]
                    fresh = [
                        _stats_record(stats, targets[i] if layer is not None else None)
                        for i, stats in zip(begun, batch, strict=False)
                    ]
                    journal.append(fresh)
                    done += fresh
                    bar.update(len(fresh))
        measured: list[AnswerStats | None] = [None] * len(views)
        for i, record in zip(which, done, strict=True):
            measured[i] = _stats(record)
        return measured

    @override
    def image_tokens(self, prompt: Prompt, image: int, box: Box | None = None) -> np.ndarray:
        config, processing = self.ctx.assets.config, self.ctx.assets.processing
        sizes: tuple[ImageSize, ...] = self._encoder.sizes(prompt)
        if processing.one_layout and box is not None:
            # The padding, and with it the place of the box, is that of the shape that it gives.
            sizes = ((box.height, box.width),) * len(prompt.images)
        return shown_tokens(processing, config.tile_features, sizes, image, box)

    @override
    def features(self, name: str, images: Sequence[str]) -> np.ndarray:
        ctx = self.ctx
        journal = self._journal(name, fingerprint("features", list(images)))
        rows = [_features(record) for record in journal.resume()]
        if len(rows) < len(images):
            variables = self.variables()
            batches = mean_features(
                ctx.model_of(variables), variables, images[len(rows) :], ctx.pixels(self.data),
                ctx.mesh, ctx.config.rollout.batch_size,
            )  # fmt: skip
            with ctx.workdir.bar(name, len(images), "image", len(rows)) as bar:
                for batch in batches:
                    journal.append(_features_record(row) for row in batch)
                    rows += list(batch)
                    bar.update(len(batch))
        width = ctx.base_model.config.feature_width
        features = np.stack(rows) if rows else np.zeros((0, width), np.float32)
        missing = int((~features.any(axis=1)).sum())
        if missing:
            say(f"{name}: {missing:,} of {len(images):,} images cannot be read")
        return features

    def _check_measure(
        self, views: Sequence[View], layer: int | None, targets: Sequence[np.ndarray]
    ) -> None:
        config = self.ctx.base_model.config
        if layer is None:
            return
        if not 0 <= layer < config.text.num_layers:
            raise DataError(
                f"attention is asked for at layer {layer}, and the model's are 0 to "
                f"{config.text.num_layers - 1}; choose one of them"
            )
        for view, target in zip(views, targets, strict=True):
            try:
                sizes = self._encoder.sizes(view.prompt)
            except ExampleError:
                continue  # it is not measured
            layouts = self.ctx.assets.processing.layouts(sizes, config.tile_features)
            num = sum(layout.num_tokens for layout in layouts)
            if target.shape != (num,):
                raise DataError(
                    f"prompt {view.prompt.id!r} has {num} image tokens, and its target is for "
                    f"{target.shape}; give one bool for each"
                )

    def _journal(self, name: str, key: str) -> Journal:
        """Returns the journal of a call.

        Args:
            name: name of the call.
            key: fingerprint of its arguments.
        """
        if not re.fullmatch(r"[\w -]+", name):
            raise DataError(f"{name!r} cannot name a call: use letters, digits, '-', '_' and ' '")
        if name in self._names:
            raise DataError(f"two calls of a pair builder are named {name!r}; give each its own")
        self._names.add(name)
        return Journal(self.ctx.workdir.path / "calls" / f"{name}.jsonl", {"call": key})


def _prompt_key(prompt: Prompt) -> list[Any]:
    """Returns everything that an answer depends on."""
    times = [prompt.meta[SECONDS]] if prompt.about_video and SECONDS in prompt.meta else []
    return [prompt.question, list(prompt.images), prompt.start, *times]


def _stats_record(stats: TokenStats | None, target_P: np.ndarray | None) -> Record:
    """Returns what is kept of an answer's statistics; nothing if its images do not decode."""
    if stats is None:
        return {}
    share = None
    if target_P is not None and len(target_P):
        total = stats.attention_P.sum()  # 0 if the answer has one token
        share = float(stats.attention_P[target_P].sum() / total) if total else None
    return {
        "tokens": [float(x) for x in stats.logp_T],
        "best": [float(x) for x in stats.best_logp_T],
        "attention": share,
    }


def _stats(record: Record) -> AnswerStats | None:
    if not record:
        return None
    logp_T, best_logp_T = (np.array(record[name], np.float32) for name in ("tokens", "best"))
    share = record["attention"]
    return AnswerStats(logp_T, best_logp_T, float("nan") if share is None else share)


def _features_record(row: np.ndarray) -> Record:
    """Returns the bytes of little-endian float32, a third as long as digits."""
    return {"features": base64.b64encode(row.astype("<f4").tobytes()).decode()}


def _features(record: Record) -> np.ndarray:
    return np.frombuffer(base64.b64decode(record["features"]), "<f4").astype(np.float32)
