"""From rollouts to comparisons: builders, and the files they are kept in."""

from seva_jax.pairs.builders import CorruptionPairs, PairBuilder
from seva_jax.pairs.built_pairs import BuiltPairs, build_pairs
from seva_jax.pairs.cooccurrence import Cooccurrence
from seva_jax.pairs.injection import InjectedPairs
from seva_jax.pairs.mia import MiaPairs
from seva_jax.pairs.model import AnswerStats, PairModel, Reply
from seva_jax.pairs.retrieval import RetrievedPairs
from seva_jax.pairs.temple import TemplePairs

__all__ = [
    "AnswerStats",
    "BuiltPairs",
    "Cooccurrence",
    "CorruptionPairs",
    "InjectedPairs",
    "MiaPairs",
    "PairBuilder",
    "PairModel",
    "Reply",
    "RetrievedPairs",
    "TemplePairs",
    "build_pairs",
]
