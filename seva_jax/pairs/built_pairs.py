"""The pairs stage: all comparisons to train on, and how many others were dropped for which reason.

What lives here: `build_pairs` and its result. What does not: the choice of pairs from rollouts
(`builders.py` and the other builders), the record format (`seva_jax/data/json_records.py`).
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from seva_jax.batches.encoded import EncodedComparisons, encode_together
from seva_jax.data import json_records
from seva_jax.data.collect import counted
from seva_jax.data.sources import PreferenceSet, PromptSet
from seva_jax.pairs.builders import PairBuilder
from seva_jax.pairs.model import PairModel
from seva_jax.runtime import files
from seva_jax.text.encode import Encoder
from seva_jax.types import Comparison, DataError

_ADVICE = {
    "equal answers": "the corruption changes no answer: choose a stronger one",
    "too long": "raise --text.max-length",
    "missing image": "check the image folder of the prompts",
    "unreadable image": "check the image files of the prompts",
}
"""What to do if the commonest reason leaves no pair at all."""


class BuiltPairs(NamedTuple):
    """Comparisons that can be trained on.

    Attributes:
        encoded: the comparisons that fit the model, with their token ids.
        num_prompts: number of prompts before any were dropped, or of pairs if the data has pairs.
        drops: how many of them gave no comparison, by reason.
        notes: counts of what was left out inside examples that are used, see `PromptSet`.
    """

    encoded: EncodedComparisons
    num_prompts: int
    drops: collections.Counter[str]
    notes: collections.Counter[str]

    @property
    def comparisons(self) -> list[Comparison]:
        """Returns the comparisons as texts."""
        return self.encoded.comparisons

    def describe(self) -> str:
        """Returns one line for the terminal."""
        reasons = counted(self.drops) or "none"
        line = f"{len(self.comparisons):,} kept of {self.num_prompts:,}; dropped: {reasons}"
        return line + (f"; left out inside: {counted(self.notes)}" if self.notes else "")

    def write(self, directory: Path) -> None:
        """Writes the comparisons to pairs.array_record, and the counts to pairs.json."""
        json_records.write_comparisons(directory / "pairs.array_record", self.comparisons)
        index = {
            "pairs": len(self.comparisons),
            "prompts": self.num_prompts,
            "answers cut to fit": self.encoded.num_cut,
            "drops": dict(self.drops),
            "left out inside pairs": dict(self.notes),
        }
        files.write_json(directory / "pairs.json", index)


def build_pairs(
    data: PromptSet,
    rollouts: Sequence[dict[str, Any]],
    builder: PairBuilder,
    encoder: Encoder,
    model: PairModel,
) -> BuiltPairs:
    """Returns the comparisons of a preference set, or those that a builder makes from rollouts.

    All processes call it, and each encodes its share.

    Args:
        data: the prompts; a `PreferenceSet` has its comparisons already.
        rollouts: records as `data.json_records.rollout_from` reads them, or with a "dropped"
            reason instead; not used for a `PreferenceSet`.
        builder: makes comparisons from rollouts.
        encoder: decides which comparisons fit the model.
        model: answers the builder's questions.

    Raises:
        DataError: no comparison is left; says why.
    """
    drops = data.drops.copy()
    advice = "use other prompts"
    if isinstance(data, PreferenceSet):
        built, num = data.comparisons, len(data.comparisons)
        advice = "use other pairs"
    else:
        num = len(rollouts)
        drops.update(r["dropped"] for r in rollouts if "dropped" in r)
        answered = [json_records.rollout_from(r) for r in rollouts if "dropped" not in r]
        built, builder_drops = builder.build(answered, data, model)
        drops += builder_drops
    fits = encode_together(built, encoder)
    drops += fits.drops
    if not fits.encoded:
        commonest = max(drops, key=drops.__getitem__, default="")
        advice = _ADVICE.get(commonest, advice)
        raise DataError(f"no pairs are left of {num} prompts ({counted(drops)}); {advice}")
    kept = dataclasses.replace(fits, drops=collections.Counter())
    return BuiltPairs(kept, num + data.drops.total(), drops, data.notes)
