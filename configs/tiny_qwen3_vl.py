"""The default run with Qwen3-VL: pictures of native resolution, learned positions, and DeepStack.

python -m seva_jax.train --config configs/tiny_qwen3_vl.py
"""

import dataclasses

from seva_jax.images import QwenProcessing
from seva_jax.models import LlavaConfig, Qwen3VisionConfig
from seva_jax.recipes import tiny, tiny_llava_next


def get_config():
    """Qwen3-VL with 0.7 M parameters and 16 to 64 tokens of 8 x 8 pixels an image."""
    base = tiny.get_config().base.model
    model = LlavaConfig(
        vision=Qwen3VisionConfig(
            image_size=8,
            patch_size=4,
            hidden_size=96,
            num_layers=3,
            num_heads=2,
            mlp_size=256,
            position_grid=4,
            deep=(0, 1),
        ),
        text=dataclasses.replace(
            base.text, qk_norm=True, rope_sections=(8, 12, 12), rope_interleaved=True
        ),
        feature_layer=-1,
        feature_select="full",
    )
    processing = QwenProcessing(
        size=8,
        min_pixels=32 * 32,
        max_pixels=64 * 64,
        min_video_pixels=32 * 32,
        max_video_pixels=4 * 32 * 32,
        timestamps=True,
    )
    return tiny_llava_next.with_family("runs/tiny_qwen3_vl", model, processing, max_length=160)
