"""Rotary frequencies of the language model, one class for each way to stretch the context.

What lives here: configs, and the frequencies that transformers computes from the same numbers
(`modeling_rope_utils.py`), on the host. What does not: turning queries and keys (`llama.py`), and
the names of these numbers in a checkpoint's config.json (`seva_jax/convert/hf_text.py`).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated

import numpy as np
from typing_extensions import override

from seva_jax.ranges import ABOVE_0, FROM_0, FROM_1


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary frequencies as they are in RoFormer (arXiv 2104.09864), without scaling."""

    @property
    def most_positions(self) -> int | None:
        """Number of positions for which the frequencies hold; None without a limit."""
        return None

    @property
    def amplitude(self) -> float:
        """Factor of all cosines and sines."""
        return 1.0

    def frequencies(self, base: float, head_dim: int) -> np.ndarray:
        """Returns the angle between two neighbouring positions for each half of a head, radians.

        Args:
            base: base of the frequencies.
            head_dim: width of a head, Q.

        Returns:
            [Q / 2] in float32. Each operation is rounded to float32, as in transformers: at
            position 4000 one more digit would move an angle by 1e-4.
        """
        exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
        power = base ** exponent.astype(np.float64)  # NumPy's float32 powers vary with the CPU
        return np.float32(1) / power.astype(np.float32)


@dataclasses.dataclass(frozen=True)
class LinearRope(Rope):
    """All positions are divided by a factor (arXiv 2306.15595).

    Attributes:
        factor: the factor.
    """

    factor: Annotated[float, ABOVE_0] = 1.0

    @override
    def frequencies(self, base: float, head_dim: int) -> np.ndarray:
        return super().frequencies(base, head_dim) / np.float32(self.factor)


@dataclasses.dataclass(frozen=True)
class DynamicRope(Rope):
    """The base grows with the length of a sequence that is longer than the context.

    Such a sequence is refused: the branches of a tree, which share their trunk, would each need
    other frequencies for it, and so would every further token of an answer. Up to the length of the
    context the frequencies are not scaled.

    Attributes:
        factor: by how much a longer sequence would stretch the context.
        context: tokens of the context.
    """

    factor: Annotated[float, ABOVE_0] = 1.0
    context: Annotated[int, FROM_1] = 4096

    @property
    @override
    def most_positions(self) -> int:
        return self.context


@dataclasses.dataclass(frozen=True)
class Llama3Rope(Rope):
    """Long wavelengths are stretched and short ones are not (Llama 3.1).

    Attributes:
        factor: by how much long wavelengths are stretched.
        low_factor: wavelengths above context / low_factor are stretched by the whole factor.
        high_factor: wavelengths below context / high_factor are not stretched.
        context: tokens of the context before it was extended.
    """

    factor: Annotated[float, ABOVE_0] = 8.0
    low_factor: Annotated[float, ABOVE_0] = 1.0
    high_factor: Annotated[float, ABOVE_0] = 4.0
    context: Annotated[int, FROM_1] = 8192

    @override
    def frequencies(self, base: float, head_dim: int) -> np.ndarray:
        plain = super().frequencies(base, head_dim)
        factor, low, high = (
            np.float32(x) for x in (self.factor, self.low_factor, self.high_factor)
        )
        wavelength = np.float32(2 * math.pi) / plain
        smooth = (np.float32(self.context) / wavelength - low) / (high - low)
        between = (np.float32(1) - smooth) * plain / factor + smooth * plain
        stretched = np.where(wavelength > self.context / self.low_factor, plain / factor, between)
        return np.where(wavelength < self.context / self.high_factor, plain, stretched)


@dataclasses.dataclass(frozen=True)
class YarnRope(Rope):
    """Low frequencies are divided by a factor, high ones are not (YaRN, arXiv 2309.00071).

    Attributes:
        factor: the factor.
        context: tokens of the context before it was extended.
        attention_factor: factor of all cosines and sines; 0 takes 0.1 log(factor) + 1.
        beta_fast: rotations within the context from which on a frequency is not divided.
        beta_slow: rotations within the context up to which a frequency is divided by the whole
            factor.
        truncate: whether both bounds are widened to whole dims of a head.
    """

    factor: Annotated[float, ABOVE_0] = 1.0
    context: Annotated[int, FROM_1] = 4096
    attention_factor: Annotated[float, FROM_0] = 0.0
    beta_fast: Annotated[float, ABOVE_0] = 32.0
    beta_slow: Annotated[float, ABOVE_0] = 1.0
    truncate: bool = True

    @property
    @override
    def amplitude(self) -> float:
        return self.attention_factor or yarn_amplitude(self.factor)

    @override
    def frequencies(self, base: float, head_dim: int) -> np.ndarray:
        def bound(rotations: float) -> float:
            """Returns the dim of a head that rotates so often within the context."""
            ratio = self.context / (rotations * 2 * math.pi)
            return head_dim * math.log(ratio) / (2 * math.log(base))

        first, last = bound(self.beta_fast), bound(self.beta_slow)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, head_dim - 1)
        width = last - first or 0.001
        dims = np.arange(head_dim // 2, dtype=np.float32)
        divided = np.clip((dims - np.float32(first)) / np.float32(width), 0, 1)
        plain = super().frequencies(base, head_dim)
        return plain / np.float32(self.factor) * divided + plain * (np.float32(1) - divided)


def yarn_amplitude(factor: float, weight: float = 1.0) -> float:
    """Returns YaRN's factor of cosines and sines for a context that is stretched by a factor.

    Args:
        factor: the factor.
        weight: of its logarithm.
    """
    return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0
