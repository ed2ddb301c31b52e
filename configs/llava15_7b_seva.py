"""The published run: LLaVA-1.5-7B aligned with SeVa, diffusion noise t = 500 (arXiv 2404.10501).

    python -m seva_jax.train --config configs/llava15_7b_seva.py \
        --base.path DIR --prompts.sources.0.path FILE --prompts.sources.0.image-root DIR \
        --prompts.sources.1.path FILE --prompts.sources.1.image-root DIR --mesh.fsdp 8

FILE is llava_v1_5_mix665k.json both times, DIR the folder with its `ocr_vqa` and `textvqa` folders.
Every number and the choice of prompts are the release's, read in the scripts that configs/README.md
lists; defaults that are part of the method are written out. Where the release has an oddity, this
file does the sensible thing; `llava15_7b_seva_faithful.py` has the oddities. Variants:
`llava15_7b_seva_t800.py`, `llava15_7b_seva_moco.py`.
"""

from seva_jax.config import (
    Checkpoint,
    ComputeOptions,
    Experiment,
    RolloutOptions,
    TextOptions,
    TrainOptions,
)
from seva_jax.corrupt import DiffusionNoise
from seva_jax.data import Concatenated, LlavaJson
from seva_jax.data.files import SHORT_ANSWER
from seva_jax.models import LoraConfig
from seva_jax.objectives import DPO
from seva_jax.pairs import CorruptionPairs
from seva_jax.text import VICUNA_V1, Sampling
from seva_jax.training import Optim

# 4,000 records, 2 of the questions of each.
OCR_VQA = LlavaJson(
    path="data/llava_v1_5_mix665k.json",
    image_root="data",
    prefix="ocr_vqa/",
    remove=(SHORT_ANSWER,),
    questions_per_image=2,
    which_questions="random",
    limit=4000,
    seed=42,
)
# 8,000 records, up to 2 of the questions of each; most have one.
TEXT_VQA = LlavaJson(
    path="data/llava_v1_5_mix665k.json",
    image_root="data",
    prefix="textvqa/",
    remove=(),
    questions_per_image=2,
    which_questions="random",
    limit=8000,
    seed=42,
)


def get_config():
    """Set the paths of the checkpoint and of the data here or on the command line."""
    return Experiment(
        workdir="runs/llava15_7b_seva",
        seed=42,
        base=Checkpoint(path="checkpoints/llava-1.5-7b-hf", pad_to_square=True),
        prompts=Concatenated((OCR_VQA, TEXT_VQA)),
        corrupt=(DiffusionNoise(step=500),),
        rollout=RolloutOptions(Sampling(max_new_tokens=512, temperature=0.0)),
        pairs=CorruptionPairs(newline="space", compare="clean"),
        text=TextOptions(generate=VICUNA_V1, train=VICUNA_V1, max_length=2048),
        objective=DPO(beta=0.1),
        lora=LoraConfig(rank=1024, alpha=2048.0),  # all 7 linear layers of every decoder layer
        optim=Optim(lr=2e-6, schedule="cosine", warmup_ratio=0.03, weight_decay=0.0, clip_norm=0.0),
        train=TrainOptions(
            batch_size=128,
            epochs=1,
            # SeVa: the list of pairs is doubled and shuffled, then seen once. Two epochs would show
            # every pair once before showing any a second time. We keep this because the number of
            # steps depends on it: the 10,800 pairs for t = 800 make 169.
            repeat=2,
            # SeVa: the projector is trained too, at the same learning rate.
            trained=("lora", "projector"),
        ),
        compute=ComputeOptions(param_dtype="bfloat16", dtype="bfloat16", remat="auto"),
    )
