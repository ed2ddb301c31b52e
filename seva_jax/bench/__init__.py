"""Measurements: `python -m seva_jax.bench evidence` repeats the study behind the README's table."""

from seva_jax.bench.evidence import ShuffledPairs
