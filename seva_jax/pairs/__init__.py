"""From rollouts to comparisons: builders, and the files they are kept in."""

from seva_jax.pairs.builders import CorruptionPairs, PairBuilder
from seva_jax.pairs.found import FoundPairs, find_pairs

__all__ = ["CorruptionPairs", "FoundPairs", "PairBuilder", "find_pairs"]
