"""Procedural worlds with ground truth, which make the default run self-contained."""

from seva_jax.worlds.pairs import WorldPairs
from seva_jax.worlds.shapes import ShapeWorld, WorldPrompts, world_vocabulary

__all__ = ["ShapeWorld", "WorldPairs", "WorldPrompts", "world_vocabulary"]
