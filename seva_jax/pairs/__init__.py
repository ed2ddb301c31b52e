"""From rollouts to comparisons: builders, and the files they are kept in."""

from seva_jax.pairs.builders import CorruptionPairs, PairBuilder

__all__ = ["CorruptionPairs", "PairBuilder"]
