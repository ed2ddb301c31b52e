"""A procedural world with ground truth, which makes the default experiment self-contained.

What lives here: the public names. Read next: `shapes.py`, the world itself.
"""

from seva_jax.worlds.pairs import WorldPairs
from seva_jax.worlds.regions import AskedObject
from seva_jax.worlds.sequences import WorldSequences
from seva_jax.worlds.shapes import COLORS, SHAPES, ShapeWorld, WorldPrompts, world_vocabulary
from seva_jax.worlds.trajectories import WorldTrajectories
