"""Objectives: pure functions of the log-probs of branches.

What lives here: the public names. README.md has a table of all objectives. What does not: the
log-probs (`seva_jax/training/token_stats.py`). Read next: `base.py`, the contract.
"""

from seva_jax.objectives.base import NOTHING, Metrics, Need, Objective
from seva_jax.objectives.divergences import AlphaDivergence, Divergence, ForwardKL, JensenShannon
from seva_jax.objectives.dpo import DPO
from seva_jax.objectives.margin import (
    IPO,
    DiscoPOP,
    ExoPair,
    Hinge,
    MarginObjective,
    Robust,
    SigmoidNorm,
)
from seva_jax.objectives.mixed import Mixed, Part, mpo
from seva_jax.objectives.pairs import PairObjective, Pairs
from seva_jax.objectives.phrases import RRPO
from seva_jax.objectives.pointwise import (
    APODown,
    APOZero,
    BCOPair,
    NCAPair,
    PointwiseObjective,
    SPPOHard,
)
from seva_jax.objectives.supervised import Supervised
from seva_jax.objectives.trajectory import Trajectory
from seva_jax.objectives.transport import AOT, AOTUnpaired
from seva_jax.objectives.visual import Inherent, ReAlign, TwoImages
from seva_jax.objectives.weighting import (
    ClippedZScore,
    OnPolicy,
    RawScore,
    Scored,
    ScoreGap,
    Weighting,
)
