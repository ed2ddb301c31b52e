"""The optimiser: AdamW with warm-up and a cosine, linear or constant schedule."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Any, Literal

import jax
import optax

from seva_jax.ranges import DECAY, FROM_0, Range


@dataclasses.dataclass(frozen=True)
class Optim:
    """AdamW.

    Attributes:
        lr: peak learning rate.
        projector_lr: peak learning rate of the projector, and of adapters on it; 0 means `lr`.
        schedule: learning rate after warm-up: cosine or linear decay to 0, or constant.
        warmup_ratio: share of all steps in which the learning rate rises linearly from 0, rounded
            up to whole steps.
        weight_decay: decoupled weight decay. Biases and scales of norms do not decay, as in the
            Trainer of transformers.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root of the second moment.
        clip_norm: clip the global gradient norm to this; 0 means no clipping.
    """

    lr: Annotated[float, Range(0, 100, above=True)] = 2e-6
    projector_lr: Annotated[float, Range(0, 100)] = 0.0
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: Annotated[float, DECAY] = 0.03
    weight_decay: Annotated[float, Range(0, 100)] = 0.0
    b1: Annotated[float, DECAY] = 0.9
    b2: Annotated[float, DECAY] = 0.999
    eps: Annotated[float, Range(0, 1, above=True)] = 1e-8
    clip_norm: Annotated[float, FROM_0] = 0.0

    def learning_rate(self, num_steps: int) -> optax.Schedule:
        """Returns the learning rate as a function of completed steps."""
        warmup = math.ceil(self.warmup_ratio * num_steps)
        if self.schedule == "cosine":
            after = optax.cosine_decay_schedule(self.lr, max(num_steps - warmup, 1))
        elif self.schedule == "linear":
            after = optax.linear_schedule(self.lr, 0.0, max(num_steps - warmup, 1))
        else:
            after = optax.constant_schedule(self.lr)
        if not warmup:
            return after
        return optax.join_schedules([optax.linear_schedule(0.0, self.lr, warmup), after], [warmup])

    def make(self, num_steps: int) -> optax.GradientTransformation:
        """Returns the gradient transformation for a run of `num_steps` steps."""
        parts = [optax.clip_by_global_norm(self.clip_norm)] if self.clip_norm else []
        parts += [
            optax.adamw(
                self.learning_rate(num_steps), self.b1, self.b2, self.eps,
                weight_decay=self.weight_decay, mask=decays,
            )
        ]  # fmt: skip
        if self.projector_lr:
            # The last factor of an update of AdamW is the learning rate.
            parts += [scale_projector(self.projector_lr / self.lr)]
        return optax.chain(*parts) if len(parts) > 1 else parts[0]


def decays(trainable: Any) -> Any:
    """Returns which of the trained variables weight decay applies to, a tree of booleans."""
    return jax.tree.map_with_path(lambda path, _: _names(path)[-1] not in _NO_DECAY, trainable)


def scale_projector(factor: float) -> optax.GradientTransformation:
    """Returns a transformation that multiplies the updates of the projector by a factor.

    Those of its adapters, too, as in LLaVA and ms-swift, which go by the names of parameters.
    """

    def scaled(updates: Any, _: Any) -> Any:
        return jax.tree.map_with_path(
            lambda path, x: x * factor if "projector" in _names(path) else x, updates
        )

    return optax.stateless(scaled)


_NO_DECAY = ("bias", "scale")


def _names(path: tuple[Any, ...]) -> list[str]:
    return [str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey)]
