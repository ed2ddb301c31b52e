"""Flax modules: vision towers, projector, decoder, LLaVA, LoRA. No other package imports flax.

Read next: `llava.py`, which puts the pieces together and which the rest of the package calls.
"""

from seva_jax.models.attention import Attention, attention_problem
from seva_jax.models.clip import VISION_TARGETS
from seva_jax.models.config import (
    LLAVA_15,
    InternConfig,
    LlavaConfig,
    LoraConfig,
    LoraGroup,
    SiglipConfig,
    Target,
    TextConfig,
    TowerConfig,
    VisionConfig,
    VisionTarget,
)
from seva_jax.models.init import abstract_params, abstract_variables, init_variables, num_parameters
from seva_jax.models.layers import Remat
from seva_jax.models.llama import Cache, window_mask, windowed
from seva_jax.models.llava import CacheKind, Llava
from seva_jax.models.merge import merge_adapters
from seva_jax.models.probe import attention_weights, layer_heads
from seva_jax.models.quant import (
    BaseWeights,
    abstract_stored,
    boxed_as_stored,
    is_quantised,
    quantise,
    quantise_all,
    require_qwix,
)
from seva_jax.models.qwen_config import (
    Qwen2VisionConfig,
    Qwen3VisionConfig,
    Qwen25VisionConfig,
    QwenVisionConfig,
)
from seva_jax.models.rope import DynamicRope, LinearRope, Llama3Rope, Rope, YarnRope
from seva_jax.models.unstacked import restack, unstack
