"""From rollouts to comparisons: the builders of pairs, and the files that keep the pairs.

What lives here: the public names. What does not: pairs that a data set has already
(`seva_jax/data/preferences.py`). Read next: `builders.py`, the contract.
"""

from seva_jax.pairs.builders import CorruptionPairs, PairBuilder
from seva_jax.pairs.built_pairs import BuiltPairs, build_pairs
from seva_jax.pairs.cooccurrence import Cooccurrence
from seva_jax.pairs.injection import InjectedPairs
from seva_jax.pairs.mia import AttentionLimit, MiaPairs
from seva_jax.pairs.model import AnswerStats, PairModel, Reply
from seva_jax.pairs.retrieval import RetrievedPairs
from seva_jax.pairs.temple import TemplePairs
