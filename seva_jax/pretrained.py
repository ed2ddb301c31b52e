"""A model directory as an object that answers questions about images.

What lives here: `from_pretrained`, and the model that it returns, which takes and returns NumPy
arrays as the family's processor in transformers makes them (`return_tensors="np"`). What does not:
how these arrays become rows (`seva_jax/inference/processor_arrays.py`), reading the files
(`seva_jax/convert`), the model itself (`seva_jax/models`) and decoding
(`seva_jax/inference/sampler.py`). The shape suffixes are those of `seva_jax/types.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from seva_jax.convert import (
    SpecialTokens,
    load_params,
    read_adapter,
    read_llava_config,
    read_special_tokens,
    tower_directory,
)
from seva_jax.convert.families import LLAVA, Family
from seva_jax.convert.hf_config import read_family, read_layouts
from seva_jax.convert.processor import image_processing
from seva_jax.images import ImageProcessing
from seva_jax.inference.processor_arrays import to_rows
from seva_jax.inference.qwen_arrays import ImageArrays
from seva_jax.inference.sampler import PromptBatch, generate
from seva_jax.models import Llava, LlavaConfig, unstack
from seva_jax.runtime.stores import as_path
from seva_jax.text import Sampling
from seva_jax.text.tokenizer import load_tokenizer
from seva_jax.types import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class PretrainedLlava:
    """A model read from a directory, with its `tokenizer` and image `processing`.

    `logits` and `generate` take what the processor of the model's family returns; an array that
    the family does not have is an error.

    Attributes:
        directory: the directory it was read from.
        config: the architecture.
        params: the "params" collection of `model`, whose decoder layers are not stacked.
        special: stop and pad tokens for generation.
        dtype: dtype of parameters and computation.
        tower: the tower's directory, where the model is in the original LLaVA's layout, see
            `original_config.tower_directory`; else None.
        family: the model's family.
        layouts: an image pipeline that lays out images as config.json says; None where an image
            is one tile.
    """

    directory: Path
    config: LlavaConfig
    params: dict[str, Any]
    special: SpecialTokens
    dtype: str
    tower: Path | None = None
    family: Family = LLAVA
    layouts: ImageProcessing | None = None

    @functools.cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The directory's transformers tokenizer, read on first use; see `load_tokenizer`.

        Raises:
            DataError: it is missing or cannot be read.
        """
        return load_tokenizer(self.directory, original=self.tower is not None)

    @functools.cached_property
    def processing(self) -> ImageProcessing:
        """The directory's processing of decoded images to `pixel_values`, read on first use.

        Raises:
            DataError: the processor file is missing or not supported.
        """
        return image_processing(self.directory, self.tower)

    @property
    def model(self) -> Llava:
        """The Flax module; `model.apply({"params": params}, ...)`."""
        return Llava(self.config, dtype=jnp.dtype(self.dtype), stacked=False)

    def logits(
        self,
        input_ids: np.ndarray,
        pixel_values: np.ndarray | None = None,
        attention_mask: np.ndarray | None = None,
        image_sizes: np.ndarray | None = None,
        batch_num_images: np.ndarray | None = None,
        pixel_values_videos: np.ndarray | None = None,
        image_grid_thw: np.ndarray | None = None,
        video_grid_thw: np.ndarray | None = None,
        second_per_grid_ts: np.ndarray | Sequence[float] | None = None,
        mm_token_type_ids: np.ndarray | None = None,
    ) -> np.ndarray:
        """Returns the next-token logits at every position.

        Args:
            input_ids: [B, S] token ids, every image expanded to its image tokens.
            pixel_values: processed images of all rows, in order of appearance; rows may have
                different numbers of images. [N, 3, H, W], N being tiles (LLaVA-1.5 has one for
                each image); of LLaVA-NeXT and LLaVA-OneVision [N, tiles, 3, H, W], N being images
                and those with fewer tiles padded. None when there is no image.
            attention_mask: [B, S], 1 for real tokens; None if all are real.
            image_sizes: [N, 2] heights and widths of the images (LLaVA-NeXT and LLaVA-OneVision).
            batch_num_images: numbers of images that belong together, which sum to N
                (LLaVA-OneVision); None for 1 each.
            pixel_values_videos: processed videos of all rows, in order of appearance,
                [N, frames, 3, H, W], all with the same number of frames (LLaVA-OneVision); a list
                of [frames, 3, H, W] may have different ones. None when there is no video.
            image_grid_thw: [N, 3] frames (1), rows and columns of patches of each image (Qwen-VL,
                whose pixel_values are the patches of all images, [patches, values]).
            video_grid_thw: [N, 3] pairs of frames, rows and columns of patches of each video
                (Qwen-VL, likewise).
            second_per_grid_ts: [N], how long two frames of each video take (Qwen2.5-VL); None for
                1 second each.
            mm_token_type_ids: [B, S], which tokens are of images (Qwen-VL); `input_ids` say it too.

        Returns:
            [B, S, V] float32, meaningless where the mask is 0.

        Raises:
            DataError: the arrays do not fit each other or the model.
        """
        batch = self._rows(
            input_ids, attention_mask,
            ImageArrays(
                pixel_values, image_sizes, batch_num_images, pixel_values_videos, image_grid_thw,
                video_grid_thw, second_per_grid_ts, mm_token_type_ids,
            ),
        )  # fmt: skip
        with self._precision():
            return np.asarray(_logits(self.model, self.params, batch))

    def generate(
        self,
        input_ids: np.ndarray,
        pixel_values: np.ndarray | None = None,
        attention_mask: np.ndarray | None = None,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        image_sizes: np.ndarray | None = None,
        batch_num_images: np.ndarray | None = None,
        pixel_values_videos: np.ndarray | None = None,
        image_grid_thw: np.ndarray | None = None,
        video_grid_thw: np.ndarray | None = None,
        second_per_grid_ts: np.ndarray | Sequence[float] | None = None,
        mm_token_type_ids: np.ndarray | None = None,
    ) -> np.ndarray:
        """Generates answers and returns them as transformers' `generate` does.

        Only the stop and pad tokens of the directory's generation settings are used.

        Args:
            input_ids: [B, S] prompts, see `logits`.
            pixel_values: images or None, see `logits`.
            attention_mask: [B, S], 1 for real tokens; padding may be on either side and does not
                change the answer. None masks pad tokens, unless they are also stop tokens.
            max_new_tokens: see `Sampling`.
            temperature: see `Sampling`.
            top_p: see `Sampling`.
            seed: seed of the sampling; row i uses the i-th key derived from it.
            image_sizes: see `logits`.
            batch_num_images: see `logits`.
            pixel_values_videos: see `logits`.
            image_grid_thw: see `logits`.
            video_grid_thw: see `logits`.
            second_per_grid_ts: see `logits`.
            mm_token_type_ids: see `logits`.

        Returns:
            [B, S + T] int64: the prompts as given, then the new tokens including the stop token,
            then the pad token. T is the longest answer of the batch.

        Raises:
            DataError: the arrays do not fit each other or the model, an option is out of range,
                or all tokens of a row are masked.
        """
        if max_new_tokens < 1:
            raise DataError(f"max_new_tokens is {max_new_tokens}, expected at least 1")
        if not temperature >= 0:
            raise DataError(f"temperature is {temperature}, expected at least 0 (0 is greedy)")
        if not 0 < top_p <= 1:
            raise DataError(f"top_p is {top_p}, expected above 0 and at most 1")
        stop_ids = self.special.stop_ids or self._tokenizer_stop_ids()
        pad_id = self.special.pad_id
        if pad_id is None:
            pad_id = stop_ids[0] if stop_ids else 0
        elif attention_mask is None and pad_id not in stop_ids:
            attention_mask = np.asarray(input_ids) != pad_id

        batch = self._rows(
            input_ids, attention_mask,
            ImageArrays(
                pixel_values, image_sizes, batch_num_images, pixel_values_videos, image_grid_thw,
                video_grid_thw, second_per_grid_ts, mm_token_type_ids,
            ),
        )  # fmt: skip
        rows = len(batch.tokens_BS)
        empty = np.flatnonzero(~np.asarray(batch.mask_BS).any(axis=1))
        if len(empty):
            raise DataError(f"attention_mask: all tokens of row {empty[0]} are masked")
        keys_B = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(rows))
        with self._precision():
            new_BT = np.asarray(
                generate(
                    self.model,
                    {"params": self.params},
                    batch,
                    keys_B,
                    Sampling(max_new_tokens, temperature, top_p),
                    stop_ids,
                    pad_id,
                )
            )
        stopped_BT = np.isin(new_BT, stop_ids)
        length_B = np.where(stopped_BT.any(1), stopped_BT.argmax(1) + 1, max_new_tokens)
        new_BT = new_BT[:, : length_B.max()]
        return np.concatenate([np.asarray(input_ids, np.int64), new_BT], axis=1)

    def _rows(
        self, input_ids: np.ndarray, attention_mask: np.ndarray | None, given: ImageArrays
    ) -> PromptBatch:
        """Returns the rows of a processor's arrays; raises if there is one too many."""
        for name, array in given._asdict().items():
            if array is not None and name not in ("pixel_values", *self.family.image_arrays):
                raise DataError(
                    f"{name}: models of the family {self.family.model_type} take no such array; "
                    "use the processor of this model"
                )
        return to_rows(self.config, input_ids, attention_mask, given, self.layouts)

    def _tokenizer_stop_ids(self) -> tuple[int, ...]:
        eos = self.tokenizer.eos_token_id
        return () if eos is None else (int(eos),)  # pyright: ignore[reportArgumentType]

    def _precision(self) -> contextlib.AbstractContextManager:
        # By default accelerators multiply float32 matrices in fewer bits, but callers who choose
        # float32 want logits that agree with transformers.
        if self.dtype == "float32":
            return jax.default_matmul_precision("highest")
        return contextlib.nullcontext()


def from_pretrained(
    directory: str | Path,
    dtype: str = "float32",
    vision_tower: str | Path | None = None,
    adapter: str | Path | None = None,
) -> PretrainedLlava:
    """Opens the directory of a model of one of the families (`seva_jax/models/README.md`).

    All are read in the layout of transformers, those of LLaVA, with LLaVA-Video, also in that of
    LLaVA's own code.

    Needs neither torch nor, for a local directory, the network.

    Args:
        directory: holds config.json, the weights as safetensors (one file, or several with an
            index), and usually generation_config.json, tokenizer and processor files. This and the
            other two directories are on a disk or in an object store (gs://BUCKET/NAME).
        dtype: dtype of parameters and computation: "float32", "bfloat16" or "float16". The
            weights are converted to it.
        vision_tower: the CLIP or SigLIP directory that the original layout needs where the
            checkpoint does not hold its tower; None takes the one that config.json names.
        adapter: directory of a LoRA adapter that was trained on the model, peft's or LLaVA's; it is
            merged into the weights.

    Returns:
        The model, with the weights on the first device.

    Raises:
        DataError: a file is missing, damaged or not supported, or config and weights disagree.
            The message names the file or field and says what to do.
    """
    if dtype not in _DTYPES:
        raise DataError(f"dtype is {dtype!r}, expected one of {', '.join(_DTYPES)}")
    directory = as_path(directory)
    config = read_llava_config(directory, vision_tower)
    special = read_special_tokens(directory)
    tower = tower_directory(directory, vision_tower)
    change = read_adapter(adapter, config) if adapter else None
    params = load_params(directory, config, dtype, tower=tower, adapter=change)
    _, variables = unstack(Llava(config), {"params": params}, free=True)
    return PretrainedLlava(
        directory, config, variables["params"], special, dtype, tower, read_family(directory),
        read_layouts(directory, vision_tower),
    )  # fmt: skip


@functools.partial(jax.jit, static_argnames="model")
def _logits(model: Llava, params: dict[str, Any], batch: PromptBatch) -> jax.Array:
    # Positions count masked tokens too, as transformers' forward does: rotary attention depends
    # only on differences of positions.
    rows, length = batch.tokens_BS.shape
    positions_BS = jnp.broadcast_to(jnp.arange(length), (rows, length))
    if batch.positions_BS3 is not None:
        positions_BS = batch.positions_BS3
    causal_SU = jnp.arange(length)[:, None] >= jnp.arange(length)
    # Padding attends to itself: a query without keys would divide by zero.
    mask_BSU = (causal_SU & jnp.asarray(batch.mask_BS)[:, None]) | jnp.eye(length, dtype=bool)
    return model.apply(
        {"params": params},
        batch.tokens_BS,
        positions_BS,
        mask_BSU,
        batch.patch_BS,
        batch.pixels_BIHWC,
        batch.blend,
        batch.place_BI5,
    )  # pyright: ignore[reportReturnType]
