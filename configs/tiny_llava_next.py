"""The default run with LLaVA-NeXT: pictures of mixed sizes, cut into tiles.

python -m seva_jax.train --config configs/tiny_llava_next.py
"""

import dataclasses

from seva_jax.images import LlavaNextProcessing
from seva_jax.recipes import tiny

SIZES = ((32, 32), (32, 60), (64, 36), (50, 64))  # heights and widths
GRIDS = ((32, 64), (64, 32), (64, 64))  # of pixels, in tiles of 32 x 32


def with_family(workdir, model, processing, max_length):
    """Varies `tiny.py`: another model, and pictures of mixed sizes.

    Args:
        workdir: the work directory.
        model: the architecture.
        processing: image pipeline.
        max_length: longest question with answer, tokens.
    """
    config = tiny.get_config()

    def resized(prompts):
        return dataclasses.replace(prompts, sizes=SIZES)

    return dataclasses.replace(
        config,
        workdir=workdir,
        base=dataclasses.replace(
            config.base,
            model=model,
            processing=processing,
            prompts=resized(config.base.prompts),
        ),
        prompts=resized(config.prompts),
        text=dataclasses.replace(config.text, max_length=max_length),
        evals=tuple(dataclasses.replace(x, prompts=resized(x.prompts)) for x in config.evals),
    )


def get_config():
    """LLaVA-NeXT with 0.7 M parameters and up to five tiles of 32 x 32 pixels an image."""
    model = dataclasses.replace(tiny.get_config().base.model, newline=True)
    processing = LlavaNextProcessing(size=32, resolutions=GRIDS)
    return with_family("runs/tiny_llava_next", model, processing, max_length=192)
