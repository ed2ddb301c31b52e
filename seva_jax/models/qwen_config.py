"""Configs of Qwen-VL's vision towers, with the defaults of released models where they have one.

What does not live here: the tower (`qwen.py`), reading a config from a checkpoint directory
(`seva_jax/convert/families/qwen_vl.py`).
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Annotated

from typing_extensions import override

from seva_jax.models.config import TowerConfig, VisionTarget
from seva_jax.ranges import FROM_1, Range


@dataclasses.dataclass(frozen=True)
class QwenVisionConfig(TowerConfig, abc.ABC):
    """Vision transformer of Qwen-VL, for images of native resolution.

    A tile is a square of 2 x 2 patches, and becomes one feature.
    """

    image_size: Annotated[int, FROM_1] = 28
    hidden_size: Annotated[int, FROM_1] = 1280
    num_layers: Annotated[int, FROM_1] = 32
    mlp_size: Annotated[int, FROM_1] = 5120
    norm_eps: Annotated[float, Range(0, 1, above=True)] = 1e-6

    @property
    @override
    def class_token(self) -> bool:
        return False

    @property
    @override
    def merged(self) -> int:
        return 2

    @property
    @override
    def native(self) -> bool:
        return True

    @property
    @override
    def norm_parameters(self) -> int:
        return 0

    @property
    def gated(self) -> bool:
        """Whether norms are RMSNorm and the MLP is gated by SiLU."""
        return False

    @property
    def quick_gelu(self) -> bool:
        """Whether the activation of an MLP without a gate is quick GELU, or GELU with tanh."""
        return False

    @property
    def windows(self) -> int:
        """Side of the windows in tiles; 0 for none."""
        return 0

    @property
    def whole_layers(self) -> tuple[int, ...]:
        """Layers in which a patch sees its whole picture, where there are windows."""
        return ()

    @property
    def learned_grid(self) -> int:
        """Side of the square of learned positions; 0 for none."""
        return 0

    @property
    def patch_bias(self) -> bool:
        """Whether the embedding of patches has a bias."""
        return False

    @property
    def mlp_names(self) -> tuple[str, str]:
        """Names of the linear layers of an MLP without a gate."""
        return "mlp_fc1", "mlp_fc2"

    @property
    def merger_names(self) -> tuple[str, str, str]:
        """Names of the merger's norm and linear layers."""
        return "ln_q", "mlp_0", "mlp_2"

    @property
    @override
    def linear_sizes(self) -> Mapping[VisionTarget, int]:
        sizes: dict[VisionTarget, int] = {
            "qkv": 4 * self.hidden_size,
            "proj": 2 * self.hidden_size,
        }
        return sizes | dict.fromkeys(self.mlp_targets, self.hidden_size + self.mlp_size)

    @property
    def mlp_targets(self) -> tuple[VisionTarget, ...]:
        """What `LoraConfig.vision_targets` calls the linear layers of the MLP."""
        return "fc1", "fc2"


@dataclasses.dataclass(frozen=True)
class Qwen2VisionConfig(QwenVisionConfig):
    """Tower of Qwen2-VL."""

    @property
    @override
    def quick_gelu(self) -> bool:
        return True


@dataclasses.dataclass(frozen=True)
class Qwen25VisionConfig(QwenVisionConfig):
    """Tower of Qwen2.5-VL, with attention inside windows.

    Attributes:
        window: side of a window in tiles.
        full_layers: layers without windows, counted from 0.
    """

    mlp_size: Annotated[int, FROM_1] = 3420
    window: Annotated[int, FROM_1] = 4
    full_layers: tuple[int, ...] = (7, 15, 23, 31)

    @property
    @override
    def gated(self) -> bool:
        return True

    @property
    @override
    def mlp_targets(self) -> tuple[VisionTarget, ...]:
        return "gate_proj", "up_proj", "down_proj"

    @property
    @override
    def windows(self) -> int:
        return self.window

    @property
    @override
    def whole_layers(self) -> tuple[int, ...]:
        return self.full_layers

    @property
    @override
    def layer_parameters(self) -> int:
        width, mlp = self.hidden_size, self.mlp_size
        return 4 * (width * width + width) + 3 * width * mlp + 2 * mlp + width + 2 * width


@dataclasses.dataclass(frozen=True)
class Qwen3VisionConfig(QwenVisionConfig):
    """Tower of Qwen3-VL, with learned positions, some of whose layers go into DeepStack.

    Attributes:
        position_grid: side of the square of learned positions.
        deep: layers whose features are added after the first layers of the language model (arXiv
            2406.04334), ascending, counted from 0.
    """

    image_size: Annotated[int, FROM_1] = 32
    patch_size: Annotated[int, FROM_1] = 16
    hidden_size: Annotated[int, FROM_1] = 1152
    num_layers: Annotated[int, FROM_1] = 27
    mlp_size: Annotated[int, FROM_1] = 4304
    position_grid: Annotated[int, FROM_1] = 48
    deep: tuple[int, ...] = (8, 16, 24)

    @property
    @override
    def deep_layers(self) -> tuple[int, ...]:
        return self.deep

    @property
    @override
    def mlp_targets(self) -> tuple[VisionTarget, ...]:
        return "linear_fc1", "linear_fc2"

    @property
    @override
    def learned_grid(self) -> int:
        return self.position_grid

    @property
    @override
    def patch_bias(self) -> bool:
        return True

    @property
    @override
    def mlp_names(self) -> tuple[str, str]:
        return "linear_fc1", "linear_fc2"

    @property
    @override
    def merger_names(self) -> tuple[str, str, str]:
        return "norm", "linear_fc1", "linear_fc2"
