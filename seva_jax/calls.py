"""What a pair builder asks of the model, kept in the work directory (`pairs.PairModel`).

What lives here: the calls themselves, and how each is kept under WORKDIR/calls and gone on with
after an interruption. What does not: the contract (`pairs/model.py`), the sampler
(`rollout/run.py`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seva_jax.data import store
from seva_jax.data.sources import PromptSet
from seva_jax.pairs import Measured, Reply
from seva_jax.processes import gather, say
from seva_jax.rollout.sampler import Sampling
from seva_jax.step import Variables
from seva_jax.types import DataError, Prompt, View
from seva_jax.workdir import fingerprint

if TYPE_CHECKING:
    from seva_jax.parts import Parts


@dataclasses.dataclass(frozen=True)
class Calls:
    """See `pairs.PairModel`.

    Attributes:
        parts: of the run.
        data: the prompts, and the way to their images.
        variables: gives the base model's; called when the model is first asked something.
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
        asked = [[p.id, p.question, list(p.images), p.start] for p in prompts]
        path, done = self._kept(name, fingerprint("answer", asked, sampling))
        replies = [Reply(r["text"], r["dropped"]) for r in done]
        if len(replies) == len(prompts):
            return replies
        # With the name, a prompt that is asked twice at a temperature is answered differently.
        named = [dataclasses.replace(p, id=f"{name}/{p.id}") for p in prompts]
        asker = self.parts.asker(self.variables(), self.parts.base_model)
        batches = asker.ask(named, self.data.load_image, sampling, start=len(replies))
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
    ) -> list[Measured | None]:
        """See `PairModel.measure`."""
        raise NotImplementedError

    def features(self, name: str, images: Sequence[str]) -> np.ndarray:
        """See `PairModel.features`."""
        raise NotImplementedError

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
            header, *kept = store.read_lines(path) or [{}]
            if header.get("call") != key:
                if header:
                    say(f"{path} holds a call with other arguments; started again")
                kept = []
                store.write_lines(path, [{"call": key}])
        return path, gather(kept)[0]

    def _append(self, path: Path, records: Sequence[dict[str, Any]]) -> None:
        if self.parts.workdir.writes:
            store.append_lines(path, records)
