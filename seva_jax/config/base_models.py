"""Where the model to align comes from: a checkpoint, or a small model trained from scratch.

Both give an architecture, a tokenizer and an image pipeline (`Assets`). Weights are loaded by
`seva_jax/convert`, or trained by the ordinary loop in `seva_jax/train.py`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

from typing_extensions import override

from seva_jax.convert import read_llava_config, tower_directory
from seva_jax.convert.processor import image_processing
from seva_jax.data import PromptSource
from seva_jax.images import ImageProcessing
from seva_jax.models import LlavaConfig
from seva_jax.ranges import FROM_1
from seva_jax.text import Encoder, Template
from seva_jax.text.tokenizer import check_tokenizer, load_tokenizer, word_tokenizer
from seva_jax.training import Optim
from seva_jax.types import DataError
from seva_jax.worlds import WorldPrompts, world_vocabulary


@dataclasses.dataclass(frozen=True)
class Assets:
    """Everything that comes with the weights of a model.

    Attributes:
        config: architecture.
        tokenizer: a transformers tokenizer.
        processing: image pipeline.
    """

    config: LlavaConfig
    tokenizer: Any
    processing: ImageProcessing

    def encoder(self, template: Template, max_length: int) -> Encoder:
        """Returns the encoder of text to tokens of this model.

        Args:
            template: template of questions and answers.
            max_length: longest trunk plus longest answer, tokens.
        """
        return Encoder(
            tokenizer=self.tokenizer,
            template=template,
            image_token_id=self.config.image_token_id,
            tokens_per_image=self.config.tokens_per_image,
            max_length=max_length,
        )


@dataclasses.dataclass(frozen=True)
class BaseModel:
    """Base class: where the model to align comes from."""

    def assets(self) -> Assets:
        """Returns architecture, tokenizer and image pipeline.

        Raises:
            DataError: files are missing or do not fit together.
        """
        raise NotImplementedError(f"{type(self).__name__} must define assets")


@dataclasses.dataclass(frozen=True)
class Checkpoint(BaseModel):
    """A local directory with a LLaVA-1.5 model (config, tokenizer, safetensors).

    Attributes:
        path: the directory, for example a download of llava-hf/llava-1.5-7b-hf or, in the
            original layout, liuhaotian/llava-v1.5-7b.
        vision_tower: the CLIP directory that the original layout needs; empty takes the one that
            its config.json names.
        pad_to_square: pad images to a square before resizing, as the original LLaVA does.
            Hugging Face's processors crop instead by default; None follows the checkpoint's own
            processor, in the original layout `image_aspect_ratio` of its config.json.
    """

    path: str = ""
    vision_tower: str = ""
    pad_to_square: bool | None = True

    @override
    def assets(self) -> Assets:
        if not self.path:
            raise DataError("base.path is empty; give the checkpoint directory, --base.path DIR")
        config = read_llava_config(self.path, self.vision_tower)
        tower = tower_directory(Path(self.path), self.vision_tower)
        tokenizer = load_tokenizer(self.path, original=tower is not None)
        check_tokenizer(tokenizer, config.text.vocab_size, config.image_token_id)
        processing = image_processing(self.path, tower, self.pad_to_square)
        if processing.size != config.vision.image_size:
            raise DataError(
                f"{self.path}: the processor makes images of {processing.size} pixels but the "
                f"vision tower takes {config.vision.image_size}; use the processor files that "
                "belong to the weights"
            )
        return Assets(config, tokenizer, processing)


@dataclasses.dataclass(frozen=True)
class TrainedBase(BaseModel):
    """A small model trained from scratch on prompts with known answers.

    Attributes:
        model: architecture; its vocabulary size is set from `words`.
        words: vocabulary of the word-level tokenizer.
        vocab_multiple: the vocabulary is padded with unused ids to a multiple of this number, which
            must be a multiple of the devices along the axis `tensor` of the mesh.
        processing: image pipeline.
        prompts: training questions; their answers are in `meta["answer"]`.
        steps: optimiser steps.
        batch_size: examples in a step.
        optim: the optimiser.
    """

    model: LlavaConfig = LlavaConfig()
    words: tuple[str, ...] = world_vocabulary()
    vocab_multiple: Annotated[int, FROM_1] = 1
    processing: ImageProcessing = ImageProcessing()
    prompts: PromptSource = WorldPrompts()
    steps: Annotated[int, FROM_1] = 1000
    batch_size: Annotated[int, FROM_1] = 64
    optim: Optim = Optim(lr=1e-3)

    @override
    def assets(self) -> Assets:
        tokenizer = word_tokenizer(self.words)
        rows = -(-len(tokenizer) // self.vocab_multiple) * self.vocab_multiple
        text = dataclasses.replace(self.model.text, vocab_size=rows)
        image_id = tokenizer.convert_tokens_to_ids("<image>")
        config = dataclasses.replace(self.model, text=text, image_token_id=image_id)
        return Assets(config, tokenizer, self.processing)
