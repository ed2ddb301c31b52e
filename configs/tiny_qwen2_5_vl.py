"""The default run with Qwen2.5-VL: pictures of native resolution, windows in two of three layers.

python -m seva_jax.train --config configs/tiny_qwen2_5_vl.py
"""

import dataclasses

from seva_jax.images import QwenProcessing
from seva_jax.models import LlavaConfig, Qwen25VisionConfig
from seva_jax.recipes import tiny, tiny_llava_next


def get_config():
    """Qwen2.5-VL with 0.7 M parameters and 16 to 64 tokens of 8 x 8 pixels an image."""
    base = tiny.get_config().base.model
    model = LlavaConfig(
        vision=Qwen25VisionConfig(
            image_size=8,
            patch_size=4,
            hidden_size=96,
            num_layers=3,
            num_heads=2,
            mlp_size=256,
            full_layers=(2,),
        ),
        text=dataclasses.replace(base.text, qkv_bias=True, rope_sections=(8, 12, 12)),
        feature_layer=-1,
        feature_select="full",
    )
    processing = QwenProcessing(
        size=8,
        min_pixels=32 * 32,
        max_pixels=64 * 64,
        min_video_pixels=32 * 32,
        max_video_pixels=32 * 32,
        positions_per_second=2,
    )
    return tiny_llava_next.with_family("runs/tiny_qwen2_5_vl", model, processing, max_length=160)
