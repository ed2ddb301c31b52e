"""The default run with LLaVA-OneVision: tiles whose features are made fewer, SigLIP and Qwen2.

python -m seva_jax.train --config configs/tiny_llava_onevision.py
"""

import dataclasses

from seva_jax.images import LlavaOnevisionProcessing
from seva_jax.models import LlavaConfig, SiglipConfig
from seva_jax.recipes import tiny, tiny_llava_next


def get_config():
    """LLaVA-OneVision with 0.7 M parameters; more than 32 features of a picture are made fewer."""
    base = tiny.get_config().base.model
    model = LlavaConfig(
        vision=SiglipConfig(
            image_size=32, patch_size=8, hidden_size=96, num_layers=3, num_heads=2, mlp_size=256
        ),
        text=dataclasses.replace(base.text, qkv_bias=True),
        feature_layer=-1,
        feature_select="full",
        newline=True,
    )
    processing = LlavaOnevisionProcessing(size=32, resolutions=tiny_llava_next.GRIDS, anyres_max=2)
    return tiny_llava_next.with_family(
        "runs/tiny_llava_onevision", model, processing, max_length=160
    )
