"""Architectures of published models by name, to plan for without their files.

What lives here: the sizes and image pipelines of models on the Hub. What does not: reading those of
a directory (`seva_jax/convert`). The numbers follow from the scripts of transformers that made the
directories (`convert_llava_next_weights_to_hf.py`, `convert_llava_onevision_weights_to_hf.py`,
`convert_internvl_weights_to_hf.py`), the defaults of its configs, and the configs of the language
models and of InternVL3-1B. Those of Qwen2-VL and Qwen2.5-VL were read in copies of config.json and
in the layers that transformers prints, both in public repositories; those of Qwen3-VL 2B and 8B in
torchtitan (`experiments/qwen3_vl/__init__.py`), those of 4B in copies of config.json. `--size base`
reads a checkpoint's own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from seva_jax.images import (
    ImageProcessing,
    InternvlProcessing,
    LlavaNextProcessing,
    LlavaOnevisionProcessing,
    QwenProcessing,
)
from seva_jax.images.llava_onevision import VideoNewline
from seva_jax.models import (
    LLAVA_15,
    DynamicRope,
    InternConfig,
    LlavaConfig,
    Qwen2VisionConfig,
    Qwen3VisionConfig,
    Qwen25VisionConfig,
    QwenVisionConfig,
    SiglipConfig,
    TextConfig,
)

PublishedSize = Literal[
    "7b",
    "13b",
    "llava-v1.6-vicuna-7b",
    "llava-v1.6-vicuna-13b",
    "llava-v1.6-mistral-7b",
    "llama3-llava-next-8b",
    "llava-onevision-qwen2-0.5b",
    "llava-onevision-qwen2-7b",
    "llava-video-7b-qwen2",
    "internvl3-1b",
    "internvl3-2b",
    "internvl3-8b",
    "qwen2-vl-2b",
    "qwen2-vl-7b",
    "qwen2.5-vl-3b",
    "qwen2.5-vl-7b",
    "qwen3-vl-2b",
    "qwen3-vl-4b",
    "qwen3-vl-8b",
]


@dataclasses.dataclass(frozen=True)
class Published:
    """A published model.

    Attributes:
        config: its architecture.
        processing: its image pipeline.
    """

    config: LlavaConfig
    processing: ImageProcessing


def _next(text: TextConfig, image_token_id: int = 32000) -> Published:
    """Returns a LLaVA-NeXT with this language model."""
    config = LlavaConfig(text=text, image_token_id=image_token_id, newline=True)
    return Published(config, LlavaNextProcessing())


def _onevision(text: TextConfig, video_newline: VideoNewline = "one_token") -> Published:
    """Returns a LLaVA-OneVision, or a LLaVA-Video, with this language model."""
    config = LlavaConfig(
        SiglipConfig(),
        text,
        feature_layer=-1,
        feature_select="full",
        image_token_id=151646,
        video_token_id=151647,
        newline=True,
    )
    return Published(config, LlavaOnevisionProcessing(video_newline=video_newline))


def _internvl3(text: TextConfig) -> Published:
    """Returns an InternVL3 with this language model and the tower of 300 M parameters."""
    text = dataclasses.replace(text, vocab_size=151674, rope=DynamicRope(2.0, 32768))
    config = LlavaConfig(
        InternConfig(), text, feature_layer=-1, image_token_id=151667, projector_norm=True
    )
    return Published(config, InternvlProcessing())


def _qwen_vl(vision: QwenVisionConfig, text: TextConfig, vocab_size: int, tied: bool) -> Published:
    """Returns a Qwen-VL with this tower and language model."""
    text = dataclasses.replace(text, vocab_size=vocab_size, tied_head=tied)
    config = LlavaConfig(
        vision,
        text,
        feature_layer=-1,
        feature_select="full",
        image_token_id=151655,
        video_token_id=151656,
    )
    if isinstance(vision, Qwen3VisionConfig):
        half = (0.5, 0.5, 0.5)
        processing = QwenProcessing(
            size=32, mean=half, std=half, min_pixels=256 * 256, max_pixels=4096 * 4096,
            min_video_pixels=4096, max_video_pixels=25165824, timestamps=True,
        )  # fmt: skip
        return Published(config, processing)
    return Published(
        config,
        QwenProcessing(
            max_pixels=16384 * 28 * 28,
            # Without a file for videos, these have the bounds of images.
            min_video_pixels=56 * 56,
            max_video_pixels=16384 * 28 * 28,
            positions_per_second=2 if isinstance(vision, Qwen25VisionConfig) else 0,
        ),
    )


# Qwen2 and Qwen2.5, whose sizes are the same.
_QWEN = TextConfig(num_layers=28, norm_eps=1e-6, rope_base=1e6, qkv_bias=True)
_QWEN_05B = dataclasses.replace(
    _QWEN,
    hidden_size=896,
    num_layers=24,
    num_heads=14,
    num_kv_heads=2,
    head_dim=64,
    mlp_size=4864,
)
_QWEN_15B = dataclasses.replace(
    _QWEN, hidden_size=1536, num_heads=12, num_kv_heads=2, mlp_size=8960
)
_QWEN_7B = dataclasses.replace(
    _QWEN, hidden_size=3584, num_heads=28, num_kv_heads=4, mlp_size=18944
)
# Mistral-7B-Instruct-v0.2, which has no sliding window, with 2 tokens more, padded to 64.
_MISTRAL_7B = TextConfig(mlp_size=14336, num_kv_heads=8, rope_base=1e6)
# Meta-Llama-3-8B-Instruct, whose 128,256 tokens become 128,320 in the same way.
_LLAMA_3_8B = TextConfig(vocab_size=128320, mlp_size=14336, num_kv_heads=8, rope_base=5e5)

# The language models of Qwen-VL: Qwen2 and Qwen2.5, whose frequencies turn by time, rows and
# columns one after another, and Qwen3, where they alternate.
_IN_TURN = (16, 24, 24)
_QWEN_VL_2B = dataclasses.replace(_QWEN_15B, rope_sections=_IN_TURN)
_QWEN_VL_3B = dataclasses.replace(
    _QWEN_VL_2B, hidden_size=2048, num_layers=36, num_heads=16, mlp_size=11008
)
_QWEN_VL_7B = dataclasses.replace(_QWEN_7B, rope_sections=_IN_TURN)
_QWEN3_VL_8B = TextConfig(
    num_layers=36,
    num_kv_heads=8,
    mlp_size=12288,
    norm_eps=1e-6,
    rope_base=5e6,
    qk_norm=True,
    rope_sections=(24, 20, 20),
    rope_interleaved=True,
)
_QWEN3_VL_4B = dataclasses.replace(_QWEN3_VL_8B, hidden_size=2560, mlp_size=9728)
_QWEN3_VL_2B = dataclasses.replace(
    _QWEN3_VL_8B, hidden_size=2048, num_layers=28, num_heads=16, mlp_size=6144
)
_SMALL_TOWER = Qwen3VisionConfig(  # of Qwen3-VL 2B and 4B
    hidden_size=1024, num_layers=24, mlp_size=4096, deep=(5, 11, 17)
)

# By the name of the directory on the Hub, in lower case and without "-ov", "-hf" and "-Instruct";
# LLaVA-1.5 by its size.
PUBLISHED: Mapping[PublishedSize, Published] = {
    "7b": Published(LLAVA_15["7b"], ImageProcessing()),
    "13b": Published(LLAVA_15["13b"], ImageProcessing()),
    "llava-v1.6-vicuna-7b": _next(LLAVA_15["7b"].text),
    "llava-v1.6-vicuna-13b": _next(LLAVA_15["13b"].text),
    "llava-v1.6-mistral-7b": _next(_MISTRAL_7B),
    "llama3-llava-next-8b": _next(_LLAMA_3_8B, 128256),
    # Qwen2's vocabulary of 151,936 or, in 7B, 152,064, with 2 tokens more, padded to 64.
    "llava-onevision-qwen2-0.5b": _onevision(
        dataclasses.replace(_QWEN_05B, vocab_size=152000, tied_head=True)
    ),
    "llava-onevision-qwen2-7b": _onevision(dataclasses.replace(_QWEN_7B, vocab_size=152128)),
    # In the layout of LLaVA's own code, so without padding.
    "llava-video-7b-qwen2": _onevision(
        dataclasses.replace(_QWEN_7B, vocab_size=152064), video_newline="grid"
    ),
    # The config of InternVL3-1B, whose head is not tied either, with the sizes of the others.
    "internvl3-1b": _internvl3(_QWEN_05B),
    "internvl3-2b": _internvl3(_QWEN_15B),
    "internvl3-8b": _internvl3(_QWEN_7B),
    "qwen2-vl-2b": _qwen_vl(Qwen2VisionConfig(), _QWEN_VL_2B, 151936, tied=True),
    "qwen2-vl-7b": _qwen_vl(Qwen2VisionConfig(), _QWEN_VL_7B, 152064, tied=False),
    "qwen2.5-vl-3b": _qwen_vl(Qwen25VisionConfig(), _QWEN_VL_3B, 151936, tied=True),
    "qwen2.5-vl-7b": _qwen_vl(Qwen25VisionConfig(), _QWEN_VL_7B, 152064, tied=False),
    "qwen3-vl-2b": _qwen_vl(_SMALL_TOWER, _QWEN3_VL_2B, 151936, tied=True),
    "qwen3-vl-4b": _qwen_vl(_SMALL_TOWER, _QWEN3_VL_4B, 151936, tied=True),
    "qwen3-vl-8b": _qwen_vl(Qwen3VisionConfig(), _QWEN3_VL_8B, 151936, tied=False),
}
