"""Small Hugging Face LLaVA directories: written by our table, or by transformers with torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from seva_jax.base_model import Checkpoint
from seva_jax.checkpoint import Checkpoints
from seva_jax.cli import to_source
from seva_jax.convert import read_llava_config
from seva_jax.convert.table import TABLE
from seva_jax.experiment import Experiment, TrainOptions
from seva_jax.models import (
    Llava,
    LlavaConfig,
    LoraConfig,
    TextConfig,
    VisionConfig,
    abstract_params,
    abstract_variables,
)
from seva_jax.step import TrainState

IMAGE_TOKEN, PAD, EOS, VOCAB = 500, 501, 2, 512


CONFIG = LlavaConfig(
    vision=VisionConfig(
        image_size=28, hidden_size=16, num_layers=3, num_heads=2, mlp_size=24, patch_size=14
    ),
    text=TextConfig(
        vocab_size=40,
        hidden_size=16,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=4,
        mlp_size=32,
        rope_base=500.0,
    ),
    image_token_id=39,
)
# The layout transformers 4 wrote, with as many fields left out as its defaults allow.
CONFIG_V4 = {
    "model_type": "llava",
    "image_token_index": 39,
    "torch_dtype": "float16",
    "text_config": {
        "model_type": "llama",
        "vocab_size": 40,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 32,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500.0,
        "rope_scaling": None,
    },
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "image_size": 28,
        "patch_size": 14,
    },
}


def random_params(config):
    """Our parameters, as NumPy arrays."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32),
        abstract_params(Llava(config)),
    )


def their_tensors(params):
    """Their checkpoint from our parameters: the table, backwards."""
    ours = {
        "/".join(key.key for key in path): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
    }
    return {
        name: row.transform.write(part)
        for row in TABLE
        if row.ours in ours
        for name, part in zip(
            row.names(ours[row.ours].shape),
            ours[row.ours] if row.stacked else [ours[row.ours]],
            strict=True,
        )
    }


def write_llava(directory, params=None):
    """Writes `CONFIG_V4` and weights in the layout transformers 5 saves; returns `directory`."""
    (directory / "config.json").write_text(json.dumps(CONFIG_V4))
    tensors = their_tensors(random_params(CONFIG) if params is None else params)
    save_file(tensors, directory / "model.safetensors")
    return directory


def write_run(workdir, directory, rank=4, parts=("lora", "projector"), seed=1):
    """A finished run's work directory, as far as exports read it, with random trained variables.

    Returns the trained variables, {"params": ..., "lora": ...}, NumPy float32.
    """
    lora = LoraConfig(rank=rank, alpha=2.0 * rank, targets=("q_proj", "o_proj", "down_proj"))
    experiment = Experiment(
        workdir=str(workdir),
        base=Checkpoint(str(directory)),
        lora=lora,
        train=TrainOptions(trained=parts),
    )
    model = Llava(read_llava_config(directory), lora=lora if rank else None)
    shapes = jax.tree.map(
        lambda x: x.value.shape,
        dict(abstract_variables(model)),
        is_leaf=lambda x: hasattr(x, "names"),
    )
    rng = np.random.default_rng(seed)
    chosen = {"params": {p: shapes["params"][p] for p in parts if p != "lora"}}
    if "lora" in parts:
        chosen["lora"] = shapes["lora"]
    trained = jax.tree.map(
        lambda shape: rng.normal(0, 0.2, shape).astype(np.float32),
        chosen,
        is_leaf=lambda x: isinstance(x, tuple),
    )
    workdir.mkdir()
    (workdir / "config.py").write_text(to_source(experiment))
    (workdir / "stages.json").write_text(json.dumps({"align": {}}))
    state = TrainState(jnp.int32(7), jax.tree.map(jnp.asarray, trained), {"mu": jnp.zeros(3)})
    checkpoints = Checkpoints(workdir / "checkpoints" / "align")
    checkpoints.save(state, {})
    checkpoints.close()
    return trained


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
