"""Small random Hugging Face LLaVA directories for parity tests. Needs torch when called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

IMAGE_TOKEN, PAD, EOS, VOCAB = 500, 501, 2, 512


def random_llava(
    text: dict[str, Any] | None = None,
    vision: dict[str, Any] | None = None,
    seed: int = 0,
    **top: Any,
) -> Any:
    """A `LlavaForConditionalGeneration` in float32 with random weights everywhere.

    transformers initialises with a standard deviation of 0.02, zero biases and unit norm scales.
    Then attention is uniform, every residual branch vanishes beside the embedding, and a wrong
    activation, mask, position, bias or norm changes the logits by less than rounding does. With
    0.2 and random biases and scales, each of them shows.
    """
    import torch
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    vision_config = CLIPVisionConfig(
        **{
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": 28,
            "patch_size": 14,
        }
        | (vision or {})
    )
    text_config = LlamaConfig(
        **{
            "hidden_size": 32,
            "intermediate_size": 56,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "vocab_size": VOCAB,
            "eos_token_id": EOS,
        }
        | (text or {})
    )
    config = LlavaConfig(
        vision_config=vision_config,
        text_config=text_config,
        **{"image_token_index": IMAGE_TOKEN, "image_seq_length": 4} | top,
    )
    model = LlavaForConditionalGeneration(config).eval()
    model.generation_config.pad_token_id = PAD
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_scale = "norm" in name and name.endswith("weight")
            parameter.copy_(1 + 0.3 * noise if is_scale else 0.2 * noise)
    return model


def save(model: Any, directory: Path, **options: Any) -> Path:
    """`save_pretrained` without a progress bar."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    model.save_pretrained(directory, **options)
    return directory
