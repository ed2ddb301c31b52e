"""The default run with InternVL3: tiles whose patches are joined four by four, and Qwen2.

python -m seva_jax.train --config configs/tiny_internvl.py
"""

import dataclasses

from seva_jax.images import InternvlProcessing
from seva_jax.models import InternConfig, LlavaConfig
from seva_jax.recipes import tiny, tiny_llava_next


def get_config():
    """InternVL3 with 0.7 M parameters and up to five tiles of 32 x 32 pixels an image."""
    base = tiny.get_config().base.model
    model = LlavaConfig(
        vision=InternConfig(
            image_size=32, patch_size=4, hidden_size=96, num_layers=3, num_heads=2, mlp_size=256
        ),
        text=dataclasses.replace(base.text, qkv_bias=True),
        feature_layer=-1,
        projector_norm=True,
    )
    processing = InternvlProcessing(size=32, max_tiles=4)
    return tiny_llava_next.with_family("runs/tiny_internvl", model, processing, max_length=160)
