"""GAPO's weights (AnimeReward): a pair counts by how much better its chosen answer was rated.

    python -m seva_jax.train --config configs/gapo.py \
        --base.path DIR --prompts.path FILE --prompts.image-root DIR --mesh.fsdp 8

GAPO trains a diffusion model with beta 5000 on differences of denoising losses. Only the weight of
a pair carries over to log-probs of text, so beta and everything else is that of
`llava15_7b_seva.py`. Three forms of the weight are published, all for scores divided by their
maximum:

- `2^chosen - 2^rejected`, in the paper and the release: this file;
- `3^chosen - 3^rejected`, in a comment of the release: `--objective.weighting.base 3`;
- `1 - 2^(rejected - chosen)`, in another comment: `--objective.weighting.relative`.

VLFeedback's ratings go up to 5.
"""

import dataclasses

from seva_jax.data import VLFeedbackPairs
from seva_jax.objectives import DPO, ScoreGap
from seva_jax.recipes import llava15_7b_seva


def get_config():
    """Trains on the best rated answer against the worst rated one."""
    config = llava15_7b_seva.get_config()
    return dataclasses.replace(
        config,
        workdir="runs/gapo",
        prompts=VLFeedbackPairs("data/vlfeedback_80k.jsonl", "data/vlfeedback_images"),
        corrupt=(),
        objective=DPO(beta=0.1, weighting=ScoreGap(scale=5.0, base=2.0)),
        train=dataclasses.replace(config.train, repeat=1),
    )
