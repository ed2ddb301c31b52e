"""Where the model to align comes from: a checkpoint, or a small model trained from scratch.

Both give an architecture, a tokenizer and an image pipeline (`Assets`). Weights are loaded by
`seva_jax/convert`, or trained by the ordinary loop in `seva_jax/train.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any

from typing_extensions import override

from seva_jax.convert import Adapter, lora_of, read_adapter, read_llava_config, tower_directory
from seva_jax.convert.hf_config import read_family, read_layouts
from seva_jax.convert.processor import image_processing
from seva_jax.data import PromptSource
from seva_jax.images import ImageLayouts, ImageProcessing, QwenProcessing
from seva_jax.images.any_resolution import AnyResolution
from seva_jax.models import LlavaConfig, LoraConfig
from seva_jax.ranges import ADDED, FROM_1
from seva_jax.runtime.stores import as_path
from seva_jax.text import Encoder, Template
from seva_jax.text.tokenizer import check_tokenizer, load_tokenizer, word_tokenizer
from seva_jax.training import Optim
from seva_jax.types import IMAGE_MARKER, DataError, Size
from seva_jax.worlds import WorldPrompts, world_vocabulary


@dataclasses.dataclass(frozen=True)
class Assets:
    """Everything that comes with the weights of a model.

    Attributes:
        config: architecture.
        tokenizer: a transformers tokenizer.
        processing: image pipeline.
        image_text: see `Encoder`.
    """

    config: LlavaConfig
    tokenizer: Any
    processing: ImageProcessing
    image_text: str = IMAGE_MARKER

    @property
    def layouts(self) -> ImageLayouts:
        """Gives the layouts of images."""
        return ImageLayouts(self.processing, self.config.tile_features)

    def encoder(
        self,
        template: Template,
        max_length: int,
        image_size: Callable[[str], Size] | None = None,
    ) -> Encoder:
        """Returns the encoder of text to tokens of this model.

        Args:
            template: template of questions and answers.
            max_length: longest trunk plus longest answer, tokens.
            image_size: gives the size of an image by name, see `PromptSet.image_size`. It is not
                called where the layouts of all images are the same, and needed elsewhere.
        """
        return Encoder(
            tokenizer=self.tokenizer,
            template=template,
            image_token_id=self.config.image_token_id,
            layouts=self.layouts,
            max_length=max_length,
            image_size=image_size,
            image_text=self.image_text,
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

    def lora(self, wanted: LoraConfig) -> LoraConfig:
        """Returns the config of the adapters of a run that starts from this model.

        Args:
            wanted: what the run's config says; only a base whose own adapters are trained further
                gives another one.

        Raises:
            DataError: there are such adapters, but they cannot be trained further.
        """
        return wanted


@dataclasses.dataclass(frozen=True)
class Checkpoint(BaseModel):
    """A directory with a model (config, tokenizer, safetensors) of one of the families.

    These are LLaVA-1.5, LLaVA-NeXT, LLaVA-OneVision (with LLaVA-Video), InternVL3, Qwen2-VL,
    Qwen2.5-VL and Qwen3-VL, in the layout of transformers; the first three also in that of LLaVA's
    own code.

    It is on a disk, or in an object store (gs://BUCKET/NAME); so are the other two directories.

    Attributes:
        path: the directory, for example a download of llava-hf/llava-1.5-7b-hf,
            llava-hf/llava-v1.6-vicuna-7b-hf, llava-hf/llava-onevision-qwen2-7b-ov-hf,
            OpenGVLab/InternVL3-8B-hf, Qwen/Qwen2.5-VL-7B-Instruct or, in the layout of LLaVA's own
            code, liuhaotian/llava-v1.5-7b, lmms-lab/LLaVA-Video-7B-Qwen2.
        vision_tower: the CLIP or SigLIP directory that the original layout needs where the
            checkpoint does not hold its tower; empty takes the one that its config.json names.
        pad_to_square: pad images to a square before resizing, as the original LLaVA does. Of no
            effect on other families than LLaVA-1.5.
            Hugging Face's processors crop instead by default; None follows the checkpoint's own
            processor, in the original layout `image_aspect_ratio` of its config.json.
        adapter: directory of a LoRA adapter that was trained on this model: what save_pretrained of
            a PeftModel wrote, or LLaVA's training with LoRA. The model with the adapter is the
            reference policy, which answers prompts and is evaluated as base. A projector or other
            weights that the adapter stores whole replace those of this model.
        merge: add the adapter to the weights, so that training starts with new adapters (`lora`).
            Otherwise its training continues, with a new optimiser state; rank, alpha, targets and
            dropout of the run are the adapter's. In both cases the model with the
            adapter as it was loaded is the reference, also where log-probs of the reference are
            computed in the step.
        max_pixels: an image of Qwen-VL is resized to at most this many pixels, which decides how
            many tokens large images take; None takes the number of the checkpoint's processor.
        max_video_pixels: a video of Qwen-VL has at most this many pixels, all frames together;
            Qwen2-VL and Qwen2.5-VL count two frames as one, see `QwenProcessing`.

    To users of TRL, `merge=False` is a PeftModel as the trainer's model: DPOTrainer of TRL 1.10
    keeps a frozen copy of the loaded adapter, "ref", as the reference. (TRL 0.x switched the
    adapter off for the reference, which was then the bare model, unless `ref_adapter_name` was
    given.) LLaMA-Factory's `adapter_name_or_path` continues an adapter, too, but with the bare
    model as the reference; with `create_new_adapter` it does what `merge=True` does.
    """

    path: str = ""
    vision_tower: str = ""
    pad_to_square: bool | None = True
    adapter: str = ""
    merge: bool = True
    max_pixels: Annotated[int | None, FROM_1, ADDED] = None
    max_video_pixels: Annotated[int | None, FROM_1, ADDED] = None

    @override
    def assets(self) -> Assets:
        if not self.path:
            raise DataError("base.path is empty; give the checkpoint directory, --base.path DIR")
        config = read_llava_config(self.path, self.vision_tower)
        self.lora(LoraConfig())  # raises if the adapter cannot be used
        tower = tower_directory(as_path(self.path), self.vision_tower)
        tokenizer = load_tokenizer(self.path, original=tower is not None)
        family = read_family(self.path)
        check_tokenizer(tokenizer, config.text.vocab_size, config.image_token_id, family.image_text)
        processing = image_processing(self.path, tower, self.pad_to_square)
        if processing.size != config.vision.image_size:
            raise DataError(
                f"{self.path}: the processor makes images of {processing.size} pixels but the "
                f"vision tower takes {config.vision.image_size}; use the processor files that "
                "belong to the weights"
            )
        processing = self.narrowed(processing)
        layouts = read_layouts(self.path, self.vision_tower)
        if (
            isinstance(layouts, AnyResolution)
            and isinstance(processing, AnyResolution)
            and layouts.resolutions != processing.resolutions
        ):
            raise DataError(
                f"{self.path}: config.json and the processor's file lay out images differently "
                "(image_grid_pinpoints); use the processor files that belong to the weights"
            )
        return Assets(config, tokenizer, processing, family.image_text)

    def narrowed(self, processing: ImageProcessing) -> ImageProcessing:
        """Returns an image pipeline with `max_pixels` and `max_video_pixels`, if these are set.

        Raises:
            DataError: one is set, and the pipeline is not Qwen-VL's.
        """
        for name in ("max_pixels", "max_video_pixels"):
            most = getattr(self, name)
            if most is None:
                continue
            if not isinstance(processing, QwenProcessing):
                raise DataError(
                    f"base.{name} is {most}, but only Qwen-VL's images keep their own size; leave "
                    f"it unset for {self.path}"
                )
            if name == "max_video_pixels" and not processing.timestamps:
                processing = dataclasses.replace(processing, total_video_pixels=most)
                continue
            at_least = name.replace("max", "min")
            least = min(getattr(processing, at_least), most)
            bounds: dict[str, Any] = {at_least: least, name: most}
            processing = dataclasses.replace(processing, **bounds)
        return processing

    @override
    def lora(self, wanted: LoraConfig) -> LoraConfig:
        if not self.adapter and not self.merge:
            raise DataError(
                "base.merge False trains the adapters of base.adapter further, but base.adapter is "
                "empty; give the adapter's directory, --base.adapter DIR"
            )
        if not self.adapter:
            return wanted
        config = read_llava_config(self.path, self.vision_tower)
        adapter = self.open_adapter(config)
        return wanted if self.merge or adapter is None else lora_of(adapter, config)

    def open_adapter(self, config: LlavaConfig) -> Adapter | None:
        """Returns the adapter, or None without one.

        Args:
            config: the architecture.

        Raises:
            DataError: it cannot be read, or does not fit the model.
        """
        return read_adapter(self.adapter, config) if self.adapter else None

    def merged_adapter(self, config: LlavaConfig) -> Adapter | None:
        """Returns what of the adapter belongs to the weights: all if it is merged.

        Otherwise these are the tensors that it stores whole.

        Args:
            config: the architecture.

        Raises:
            DataError: as `open_adapter`.
        """
        adapter = self.open_adapter(config)
        return adapter if self.merge or adapter is None else adapter.without_low_rank()


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
