"""From rollouts to comparisons: builders, and the files they are kept in."""

from seva_jax.pairs.builders import CorruptionPairs, PairBuilder
from seva_jax.pairs.found import FoundPairs, find_pairs
from seva_jax.pairs.model import Measured, PairModel, Reply

__all__ = [
    "CorruptionPairs",
    "FoundPairs",
    "Measured",
    "PairBuilder",
    "PairModel",
    "Reply",
    "find_pairs",
]
