"""LoRA adapters as peft and the original LLaVA write them, made of random tensors with NumPy."""

import json

import numpy as np
from helpers_llava import random_params, their_tensors, write_llava
from safetensors.numpy import save_file
from tiny_models import TINY_HF

LAYERS = range(TINY_HF.text.num_layers)
TARGETS = ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj")
LANGUAGE = tuple(f"language_model.model.layers.{i}.{t}" for i in LAYERS for t in TARGETS)

# The names that modules have had in memory, and so in adapters, by where they were trained; from
# the spelling of `convert/table.py`.
SPELLINGS = {
    "transformers before 4.52": [("vision_tower.", "vision_tower.vision_model.")],
    "transformers 4.52": [
        ("language_model.model.", "model.language_model."),
        ("language_model.lm_head", "lm_head"),
        ("multi_modal_projector.", "model.multi_modal_projector."),
        ("vision_tower.", "model.vision_tower.vision_model."),
    ],
    "transformers 5": [
        ("language_model.model.", "model.language_model."),
        ("language_model.lm_head", "lm_head"),
        ("multi_modal_projector.", "model.multi_modal_projector."),
        ("vision_tower.", "model.vision_tower."),
    ],
    "LLaVA": [
        ("language_model.model.", "model."),
        ("language_model.lm_head", "lm_head"),
        ("multi_modal_projector.linear_1.", "model.mm_projector.0."),
        ("multi_modal_projector.linear_2.", "model.mm_projector.2."),
        ("vision_tower.", "model.vision_tower.vision_tower.vision_model."),
    ],
}


def spelled(name, where):
    """Returns a name of `convert/table.py` as it is where an adapter was trained."""
    for old, new in SPELLINGS[where]:
        if (name + ".").startswith(old):
            return (new + (name + ".").removeprefix(old)).removesuffix(".")
    return name


def base_tensors():
    """Returns the tensors of `helpers_llava.write_llava`, by the names of `convert/table.py`."""
    return their_tensors(random_params(TINY_HF))


PROJECTOR = tuple(name for name in base_tensors() if name.startswith("multi_modal_projector"))


def write_base(directory):
    """Writes a small Hugging Face directory with a processor; returns it."""
    directory.mkdir()
    size = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    processor = {"image_processor_type": "CLIPImageProcessor", **size}
    (directory / "preprocessor_config.json").write_text(json.dumps(processor))
    return write_llava(directory)


def pair(module, rank, seed=0):
    """Returns A [rank, inputs] and B [outputs, rank] of an adapter on a module."""
    shape = base_tensors()[f"{module}.weight"].shape
    rng = np.random.default_rng([seed, *module.encode()])
    if module.endswith("embed_tokens"):
        shape = shape[::-1]
    a, b = rng.normal(0, 0.3, (rank, shape[1])), rng.normal(0, 0.3, (shape[0], rank))
    return a.astype(np.float32), b.astype(np.float32)


def write_adapter(
    directory,
    modules=LANGUAGE,
    where="transformers 5",
    ranks=lambda module: 2,
    whole=(),
    prefix="base_model.model.",
    middle="",
    seed=0,
    more=None,
    **fields,
):
    """Writes a PEFT directory; returns A and B by module, in the names of `convert/table.py`.

    Args:
        directory: made here.
        modules: adapted modules.
        where: a key of `SPELLINGS`.
        ranks: the rank of a module's adapter.
        whole: names of tensors that are stored whole, random.
        prefix: in front of every name.
        middle: the adapter's name inside of names, such as ".default".
        seed: of the random values.
        more: further tensors by their names in the file.
        fields: of adapter_config.json.
    """
    pairs = {module: pair(module, ranks(module), seed) for module in modules}
    tensors = {}
    for module, (a, b) in pairs.items():
        name = prefix + spelled(module, where)
        if module.endswith("embed_tokens"):
            sides = f"{name}.lora_embedding_A{middle}", f"{name}.lora_embedding_B{middle}"
        else:
            sides = f"{name}.lora_A{middle}.weight", f"{name}.lora_B{middle}.weight"
        tensors |= dict(zip(sides, (a, b), strict=True))
    tensors |= {prefix + spelled(name, where): values for name, values in wholes(whole).items()}
    directory.mkdir()
    save_file(tensors | (more or {}), directory / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "somewhere",
        "r": 2,
        "lora_alpha": 3,
        "lora_dropout": 0.05,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": sorted({module.rpartition(".")[2] for module in modules}),
        "modules_to_save": None,
        "use_dora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    (directory / "adapter_config.json").write_text(json.dumps(config | fields))
    return pairs


def wholes(names):
    """Returns the tensors that `write_adapter` stores whole."""
    shapes = {name: values.shape for name, values in base_tensors().items()}
    return {
        name: np.random.default_rng([7, *name.encode()]).normal(0, 0.3, shapes[name]).astype("f4")
        for name in names
    }


def expected_tensors(pairs, scales, whole=()):
    """Returns the base's tensors with an adapter merged, by peft's rule: W + scale * B A.

    Args:
        pairs: A and B by module.
        scales: function from a module to alpha / rank, or alpha / sqrt(rank) for rsLoRA.
        whole: names of tensors that the adapter stores whole.
    """
    tensors = base_tensors() | wholes(whole)
    for module, (a, b) in pairs.items():
        change = scales(module) * (b.astype("f8") @ a)
        if module.endswith("embed_tokens"):
            change = change.T
        tensors[f"{module}.weight"] = tensors[f"{module}.weight"] + change
    return tensors
