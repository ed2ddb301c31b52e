"""What the pairs stage does: the comparisons of a run, and an index of why others are not there."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from seva_jax.batches.encoded import EncodedComparisons, encode_comparisons
from seva_jax.data import json_records
from seva_jax.data.collect import counted
from seva_jax.data.sources import PreferenceSet, PromptSet
from seva_jax.pairs.builders import PairBuilder
from seva_jax.pairs.model import PairModel
from seva_jax.runtime import files
from seva_jax.text.encode import Encoder
from seva_jax.types import Comparison, DataError


class BuiltPairs(NamedTuple):
    """Comparisons that can be trained on.

    Attributes:
        encoded: the comparisons, as token ids.
        num_prompts: prompts, or pairs, that there were.
        drops: how many have no comparison, by reason.
        notes: what was left out inside pairs, see `PreferenceSet`.
    """

    encoded: EncodedComparisons
    num_prompts: int
    drops: collections.Counter[str]
    notes: collections.Counter[str]

    @property
    def comparisons(self) -> list[Comparison]:
        """The comparisons."""
        return self.encoded.comparisons

    def describe(self) -> str:
        """One line."""
        reasons = counted(self.drops) or "none"
        return f"{len(self.comparisons):,} kept of {self.num_prompts:,}; dropped: {reasons}"

    def write(self, directory: Path) -> None:
        """Writes pairs.array_record, and pairs.json for people."""
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
    """The comparisons of preferences, or those that a builder makes of rollouts.

    Args:
        data: the prompts; a `PreferenceSet` has its comparisons already.
        rollouts: see `data.rollouts.read_rollouts`; not used for a `PreferenceSet`.
        builder: makes comparisons of rollouts.
        encoder: tells which comparisons fit the model.
        model: what the builder may ask.

    Raises:
        DataError: none is left; says why.
    """
    drops, notes = data.drops.copy(), collections.Counter()
    advice = "use a stronger corruption or other prompts"
    if isinstance(data, PreferenceSet):
        built, num, notes = data.comparisons, len(data.comparisons), data.notes
        advice = "raise text.max_length or use other pairs"
    else:
        num = len(rollouts)
        drops.update(r["dropped"] for r in rollouts if "dropped" in r)
        answered = [json_records.rollout_from(r) for r in rollouts if "dropped" not in r]
        built, unused = builder.build(answered, data, model)
        drops += unused
    fits = encode_comparisons(built, encoder)
    drops += fits.drops
    if not fits.encoded:
        raise DataError(f"no pairs are left of {num} prompts ({counted(drops)}); {advice}")
    kept = dataclasses.replace(fits, drops=collections.Counter())
    return BuiltPairs(kept, num + data.drops.total(), drops, notes)
