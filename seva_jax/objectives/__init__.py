"""Objectives: pure functions of branch log-probs. `base.py` has the contract."""

from seva_jax.objectives.base import Metrics, Objective
from seva_jax.objectives.dpo import DPO
from seva_jax.objectives.supervised import Supervised

__all__ = ["DPO", "Metrics", "Objective", "Supervised"]
