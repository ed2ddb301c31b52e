"""What a pair builder asks of the model, kept in the work directory (`pairs.PairModel`).

What lives here: the calls themselves, and how each is kept under WORKDIR/calls and gone on with
after an interruption. What does not: the contract (`pairs/model.py`), the sampler
(`rollout/run.py`).
"""

from __future__ import annotations

import base64
import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seva_jax.batches.pipeline import ComparisonRows, encodable
from seva_jax.config.source import fingerprint
from seva_jax.data.sources import PromptSet
from seva_jax.images.compose import Box, box_patches
from seva_jax.inference.answer_stats import Reader, TokenStats
from seva_jax.inference.features import mean_features
from seva_jax.models import Llava
from seva_jax.pairs import AnswerStats, Reply
from seva_jax.runtime import files
from seva_jax.runtime.processes import gather, say
from seva_jax.text.sampling import Sampling
from seva_jax.training.step import Variables
from seva_jax.types import Comparison, DataError, Prompt, View

if TYPE_CHECKING:
    from seva_jax.run.context import Parts


@dataclasses.dataclass(frozen=True)
class RecordedModel:
    """See `pairs.PairModel`.

    Attributes:
        parts: of the run.
        data: the prompts, and the way to their images.
        variables: gives those of the model to be aligned, with adapters where an earlier run's go
            on; called when the model is first asked something.
    """

    parts: Parts
    data: PromptSet
    variables: Callable[[], Variables]
    _names: set[str] = dataclasses.field(default_factory=set, repr=False)

    @property
    def seed(self) -> int:
        """Of the run."""
        return self.parts.experiment.seed

    def answer(self, name: str, prompts: Sequence[Prompt], sampling: Sampling) -> list[Reply]:
        """See `PairModel.answer`."""
        asked = [[p.id, *_prompt_key(p)] for p in prompts]
        path, done = self._kept(name, fingerprint("answer", asked, sampling))
        replies = [Reply(r["text"], r["dropped"]) for r in done]
        if len(replies) == len(prompts):
            return replies
        # With the name, a prompt that is asked twice at a temperature is answered differently.
        named = [dataclasses.replace(p, id=f"{name}/{p.id}") for p in prompts]
        engine = self.parts.engine(*self._loaded())
        batches = engine.answer(named, self.data.load_image, sampling, start=len(replies))
        with self.parts.workdir.bar(name, len(prompts), "prompt", len(replies)) as bar:
            for batch in batches:
                fresh = [Reply(a.answers[0] if a.answers else "", a.dropped) for a in batch]
                self._append(path, [reply._asdict() for reply in fresh])
                replies += fresh
                bar.update(len(fresh))
        return replies

    def measure(
        self,
        name: str,
        views: Sequence[View],
        layer: int | None = None,
        targets: Sequence[np.ndarray] = (),
    ) -> list[AnswerStats | None]:
        """See `PairModel.measure`."""
        self._check_measure(views, layer, targets)
        asked = [[*_prompt_key(v.prompt), v.answers[0]] for v in views]
        bits = [np.packbits(target).tobytes().hex() for target in targets]
        path, done = self._kept(name, fingerprint("measure", asked, layer, bits))
        e, parts = self.parts.experiment, self.parts
        encoder = parts.encoder(e.text.generate)  # as it was asked
        comparisons = [Comparison(view.prompt, view.answers[:1]) for view in views]
        fits = encodable(comparisons, encoder)
        kept = set(map(id, fits.comparisons))
        which = [i for i, comparison in enumerate(comparisons) if id(comparison) in kept]
        if len(done) < len(which):
            assert fits.shape is not None
            pixels = parts.pixels(self.data)
            rows = ComparisonRows(fits.comparisons, encoder, pixels, fits.shape, fits.sizes)
            size = e.train.batch_size // e.train.micro_batches
            variables, model = self._loaded()
            reader = Reader(
                model, variables, parts.mesh, size, parts.row_shapes, parts.step_options
            )
            with parts.workdir.bar(name, len(rows), "answer", len(done)) as bar:
                for token_stats in reader(rows, layer, len(done)):
                    begun = which[len(done) :]
                    fresh = [
                        _record(reading, targets[i] if layer is not None else None)
                        for i, reading in zip(begun, token_stats, strict=False)
                    ]
                    self._append(path, fresh)
                    done += fresh
                    bar.update(len(fresh))
        measured: list[AnswerStats | None] = [None] * len(views)
        for i, record in zip(which, done, strict=True):
            measured[i] = _measured(record)
        return measured

    def patches(self, box: Box | None = None) -> np.ndarray:
        """See `PairModel.patches`."""
        config = self.parts.assets.config
        if box is None:
            return np.ones(config.tokens_per_image, bool)
        side = config.vision.image_size // config.vision.patch_size
        found = box_patches(self.parts.assets.processing, box, side).ravel()
        # A tower that keeps its class token has that first: it shows no part.
        return np.pad(found, (config.tokens_per_image - len(found), 0))

    def features(self, name: str, images: Sequence[str]) -> np.ndarray:
        """See `PairModel.features`."""
        parts = self.parts
        path, done = self._kept(name, fingerprint("features", list(images)))
        rows = [_row(record) for record in done]
        if len(rows) < len(images):
            params = {"params": self.variables()["params"]}
            groups = mean_features(
                parts.base_model, params, images[len(rows) :], parts.pixels(self.data),
                parts.mesh, parts.experiment.rollout.batch_size,
            )  # fmt: skip
            with parts.workdir.bar(name, len(images), "image", len(rows)) as bar:
                for group in groups:
                    self._append(path, [_features_record(row) for row in group])
                    rows += list(group)
                    bar.update(len(group))
        width = self.parts.base_model.config.vision.hidden_size
        found = np.stack(rows) if rows else np.zeros((0, width), np.float32)
        missing = int((~found.any(axis=1)).sum())
        if missing:
            say(f"{name}: {missing:,} of {len(images):,} images cannot be read")
        return found

    def _check_measure(
        self, views: Sequence[View], layer: int | None, targets: Sequence[np.ndarray]
    ) -> None:
        config = self.parts.base_model.config
        if layer is None:
            return
        if not 0 <= layer < config.text.num_layers:
            raise DataError(
                f"attention is asked for at layer {layer}, and the model's are 0 to "
                f"{config.text.num_layers - 1}; choose one of them"
            )
        for view, target in zip(views, targets, strict=True):
            num = len(view.prompt.images) * config.tokens_per_image
            if target.shape != (num,):
                raise DataError(
                    f"prompt {view.prompt.id!r} has {num} image tokens, and its target is for "
                    f"{target.shape}; give one bool for each"
                )

    def _loaded(self) -> tuple[Variables, Llava]:
        variables = self.variables()
        return variables, self.parts.model if "lora" in variables else self.parts.base_model

    # --- files ----------------------------------------------------------------------------------

    def _kept(self, name: str, key: str) -> tuple[Path, list[dict[str, Any]]]:
        """Where a call is kept, and what is there of it, on every process.

        Args:
            name: of the call.
            key: fingerprint of its arguments.
        """
        if not re.fullmatch(r"[\w -]+", name):
            raise DataError(f"{name!r} cannot name a call: use letters, digits, '-', '_' and ' '")
        if name in self._names:
            raise DataError(f"two calls of a pair builder are named {name!r}; give each its own")
        self._names.add(name)
        path, kept = self.parts.workdir.path / "calls" / f"{name}.jsonl", []
        if self.parts.workdir.writes:
            path.parent.mkdir(exist_ok=True)
            header, *kept = files.read_lines(path) or [{}]
            if header.get("call") != key:
                if header:
                    say(f"{path} holds a call with other arguments; started again")
                kept = []
                files.write_lines(path, [{"call": key}])
        return path, gather(kept)[0]

    def _append(self, path: Path, records: Sequence[dict[str, Any]]) -> None:
        if self.parts.workdir.writes:
            files.append_lines(path, records)


def _prompt_key(prompt: Prompt) -> list[Any]:
    """All that an answer depends on."""
    return [prompt.question, list(prompt.images), prompt.start]


def _record(reading: TokenStats | None, target_P: np.ndarray | None) -> dict[str, Any]:
    """What is kept of a reading; nothing of one whose images do not decode."""
    if reading is None:
        return {}
    share = None
    if target_P is not None and len(target_P):
        share = float(reading.attention_P[target_P].sum() / reading.attention_P.sum())
    return {
        "tokens": [float(x) for x in reading.logp_T],
        "best": [float(x) for x in reading.best_logp_T],
        "attention": share,
    }


def _measured(record: dict[str, Any]) -> AnswerStats | None:
    if not record:
        return None
    logp_T, best_logp_T = (np.array(record[name], np.float32) for name in ("tokens", "best"))
    share = record["attention"]
    return AnswerStats(logp_T, best_logp_T, float("nan") if share is None else share)


def _features_record(row: np.ndarray) -> dict[str, Any]:
    """As the bytes of little-endian float32, a third as long as digits."""
    return {"features": base64.b64encode(row.astype("<f4").tobytes()).decode()}


def _row(record: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(record["features"]), "<f4").astype(np.float32)
