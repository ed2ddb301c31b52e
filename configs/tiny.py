"""The default run: SeVa on a procedural world, a few minutes on a CPU.

python -m seva_jax.train --config configs/tiny.py
"""

from seva_jax.config import (
    ComputeOptions,
    Evaluation,
    Experiment,
    RolloutOptions,
    TextOptions,
    TrainedBase,
    TrainOptions,
)
from seva_jax.corrupt import DiffusionNoise
from seva_jax.evals import Chair, ExactAnswer, Pope
from seva_jax.images import ImageProcessing
from seva_jax.models import LlavaConfig, LoraConfig, TextConfig, VisionConfig
from seva_jax.objectives import DPO
from seva_jax.text import PLAIN, Sampling
from seva_jax.training import Optim
from seva_jax.worlds import ShapeWorld, WorldPrompts
from seva_jax.worlds.shapes import COLORS, SHAPES

WORLD = ShapeWorld(seed=0, skew=0.8, color_noise=35.0)
OBJECTS = tuple((f"{shape} in {color}", f"{color} {shape}") for color in COLORS for shape in SHAPES)
# Yes/no questions count twice: a yes or a no teaches least, so they are learnt last.
KINDS = ("color", "presence", "presence", "describe")


def evaluation(kind, skewed, evaluator, num=400):
    """Returns questions of one kind about held-out images.

    The images are balanced, or as skewed as the training images.
    """
    split = "eval-skewed" if skewed else "eval-balanced"
    prompts = WorldPrompts(WORLD, split, skewed, (kind,), num)
    return Evaluation(evaluator, prompts, max_new_tokens=16)


def get_config():
    """LLaVA with 0.7 M parameters, 32 x 32 images, one-word colour questions for alignment."""
    vision = VisionConfig(
        image_size=32, patch_size=8, hidden_size=96, num_layers=3, num_heads=2, mlp_size=256
    )
    text = TextConfig(
        hidden_size=128, num_layers=3, num_heads=2, num_kv_heads=2, head_dim=64, mlp_size=256
    )
    return Experiment(
        workdir="runs/tiny",
        seed=0,
        base=TrainedBase(
            model=LlavaConfig(vision=vision, text=text),
            processing=ImageProcessing(size=32),
            prompts=WorldPrompts(WORLD, "train", True, KINDS, 24000),
            steps=1150,
            batch_size=32,
            optim=Optim(lr=1e-3, warmup_ratio=0.05, weight_decay=0.05, clip_norm=1.0),
        ),
        prompts=WorldPrompts(WORLD, "unlabelled", False, ("color",), 4000),
        corrupt=(DiffusionNoise(step=700),),
        rollout=RolloutOptions(Sampling(max_new_tokens=4), batch_size=256),
        text=TextOptions(generate=PLAIN, train=PLAIN, max_length=96),
        objective=DPO(beta=0.5),
        lora=LoraConfig(rank=32, alpha=64.0),
        optim=Optim(lr=2e-4, warmup_ratio=0.1),
        # Adapters only. The pairs are about colours alone: training the projector on them too makes
        # descriptions lose recall (`python -m seva_jax.bench evidence`).
        train=TrainOptions(
            batch_size=64,
            epochs=10,
            max_steps=100,
            trained=("lora",),
            save_every_s=30.0,
            log_every=5,
        ),
        compute=ComputeOptions(param_dtype="float32", dtype="float32", remat="none"),
        evals=(
            evaluation("color", False, ExactAnswer("color-balanced"), num=1000),
            evaluation("color", True, ExactAnswer("color-skewed")),
            evaluation("describe", False, Chair("describe-balanced", synonyms=OBJECTS)),
            evaluation("describe", True, Chair("describe-skewed", synonyms=OBJECTS)),
            evaluation("presence", False, Pope("presence-balanced")),
        ),
    )
