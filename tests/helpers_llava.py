"""Small Hugging Face LLaVA directories: written by our table, or by transformers with torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file
from tiny_models import TINY_HF

from seva_jax.config.base_models import Checkpoint
from seva_jax.config.experiment import Experiment
from seva_jax.config.source import to_source
from seva_jax.convert import read_llava_config
from seva_jax.convert.table import TABLE
from seva_jax.models import (
    Llava,
    LoraConfig,
    abstract_params,
    abstract_variables,
)
from seva_jax.text.tokenizer import word_tokenizer
from seva_jax.training.checkpoint import Checkpoints
from seva_jax.training.options import TrainOptions
from seva_jax.training.step import TrainState

IMAGE_TOKEN, PAD, EOS, VOCAB = 500, 501, 2, 512


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
    """Draws our parameters, as NumPy arrays."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32),
        abstract_params(Llava(config)),
    )


def their_tensors(params):
    """Returns a Hugging Face checkpoint of our parameters: the table, backwards."""
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


# That of llava-hf models, made smaller: it crops.
PROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": 28},
    "crop_size": {"height": 28, "width": 28},
}


def write_llava(directory, params=None):
    """Writes `CONFIG_V4` and weights in the layout transformers 5 saves; returns `directory`."""
    (directory / "config.json").write_text(json.dumps(CONFIG_V4))
    (directory / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    tensors = their_tensors(random_params(TINY_HF) if params is None else params)
    save_file(tensors, directory / "model.safetensors")
    return directory


def write_run(
    workdir,
    directory,
    rank=4,
    parts=("lora", "projector"),
    seed=1,
    vision_tower="",
    steps=(7,),
    facts=None,
    **fields,
):
    """Writes what exports read of a finished run, with random trained variables.

    Its checkpoints, one for each of `steps`, hold the same variables and the facts. Further fields
    are those of the experiment. Returns the trained variables, {"params": ..., "lora": ...}, NumPy
    float32.
    """
    lora = LoraConfig(rank=rank, alpha=2.0 * rank, targets=("q_proj", "o_proj", "down_proj"))
    experiment = Experiment(
        **{
            "workdir": str(workdir),
            "base": Checkpoint(str(directory), vision_tower),
            "lora": lora,
            "train": TrainOptions(trained=parts),
        }
        | fields
    )
    model = Llava(read_llava_config(directory, vision_tower), lora=lora if rank else None)
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
    checkpoints = Checkpoints(workdir / "checkpoints" / "align", facts or {})
    for step in steps:
        values = jax.tree.map(jnp.asarray, trained)
        checkpoints.save(TrainState(jnp.int32(step), values, {"mu": jnp.zeros(3)}), {})
    checkpoints.close()
    return trained


def random_llava(
    text: dict[str, Any] | None = None,
    vision: dict[str, Any] | None = None,
    seed: int = 0,
    **top: Any,
) -> Any:
    """Makes a `LlavaForConditionalGeneration` in float32 with random weights everywhere.

    transformers initialises with a standard deviation of 0.02, zero biases and unit norm scales.
    Then attention is uniform, every residual branch vanishes next to the embedding, and a wrong
    activation, mask, position, bias or norm changes the logits by less than rounding does. With 0.2
    and random biases and scales, each of them shows.
    """
    import torch
    from transformers import (
        AutoConfig,
        CLIPVisionConfig,
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
    text_config = AutoConfig.for_model(
        **{
            "model_type": "llama",
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


def padded_ids(rows: list[list[int]], padding: str = "left") -> tuple[np.ndarray, np.ndarray]:
    """Pads rows of token ids with `PAD` on the side `padding`, "left" or "right".

    Returns ids and attention mask, both int64 [B, S].
    """
    width = max(map(len, rows))
    ids_BS = np.full((len(rows), width), PAD, np.int64)
    mask_BS = np.zeros((len(rows), width), np.int64)
    for i, row in enumerate(rows):
        at = slice(width - len(row), None) if padding == "left" else slice(len(row))
        ids_BS[i, at], mask_BS[i, at] = row, 1
    return ids_BS, mask_BS


def save(model: Any, directory: Path, **options: Any) -> Path:
    """Calls `save_pretrained` without a progress bar; returns `directory`."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    model.save_pretrained(directory, **options)
    return directory


CONFIG_ORIGINAL = {
    "_name_or_path": "somewhere",
    "architectures": ["LlavaLlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "freeze_mm_mlp_adapter": False,
    "head_dim": 4,
    "hidden_act": "silu",
    "hidden_size": 16,
    "image_aspect_ratio": "pad",
    "intermediate_size": 32,
    "max_position_embeddings": 4096,
    "mm_hidden_size": 16,
    "mm_projector_type": "mlp2x_gelu",
    "mm_resampler_type": None,
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": "openai/clip-vit-tiny",
    "model_type": "llava_llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 500.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "use_mm_proj": True,
    "vocab_size": 40,
}


def write_original(directory: Path, tower: Path | None = None, **fields: Any) -> Path:
    """Writes `TINY_HF`'s model in the original LLaVA's layout, its tower as a CLIP directory.

    Args:
        directory: made here.
        tower: CLIP directory to make; None puts the tower's weights into the checkpoint and
            `directory`/vision_tower holds config.json only.
        fields: of config.json.
    """
    model, clip = {}, {}
    for name, values in their_tensors(random_params(TINY_HF)).items():
        if name.startswith("vision_tower."):
            clip["vision_model." + name.removeprefix("vision_tower.")] = values
        elif name.startswith("multi_modal_projector"):
            _, layer, kind = name.split(".")
            at = {"linear_1": 0, "linear_2": 2}[layer]
            model[f"model.mm_projector.{at}.{kind}"] = values
        else:
            model[name.removeprefix("language_model.")] = values
    rng = np.random.default_rng(7)
    clip["vision_model.post_layernorm.weight"] = rng.normal(size=16).astype(np.float32)
    directory.mkdir()
    place = tower or directory / "vision_tower"
    place.mkdir()
    vision = CONFIG_V4["vision_config"]
    (place / "config.json").write_text(
        json.dumps({"model_type": "clip", "vision_config": vision, "text_config": {}})
    )
    size = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    (place / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "CLIPImageProcessor", **size})
    )
    if tower:
        clip["text_model.final_layer_norm.weight"] = np.ones(3, np.float32)
        clip["logit_scale"] = np.ones((), np.float32)
        clip["vision_model.embeddings.position_ids"] = np.arange(5)[None]
        save_file(clip, tower / "model.safetensors")
    else:
        fields = {"mm_vision_tower": "vision_tower", **fields}
        inside = "model.vision_tower.vision_tower."
        model |= {inside + name: values for name, values in clip.items()}
    save_file(model, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(CONFIG_ORIGINAL | fields))
    words = [f"w{i}" for i in range(35)]
    tokenizer = word_tokenizer(words)  # 5 special tokens: 40 ids
    text = tokenizer.backend_tokenizer.to_str().replace("<image>", "w35").replace("<pad>", "w36")
    (directory / "tokenizer.json").write_text(text)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}))
    return directory
