"""Procedural worlds with ground truth, which make the default run self-contained."""

from seva_jax.worlds.pairs import WorldPairs
from seva_jax.worlds.regions import AskedObject
from seva_jax.worlds.sequences import WorldSequences
from seva_jax.worlds.shapes import ShapeWorld, WorldPrompts, world_vocabulary
from seva_jax.worlds.trajectories import WorldTrajectories

__all__ = [
    "AskedObject",
    "ShapeWorld",
    "WorldPairs",
    "WorldPrompts",
    "WorldSequences",
    "WorldTrajectories",
    "world_vocabulary",
]
