"""Asks a model many prompts, on clean images and on corrupted copies.

Preparation (decode, corrupt, resize, tokenise) runs in Grain's reading threads while the device
answers the batch before. A prompt that cannot be prepared is reported with its reason; the
others go on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import grain
import jax
import numpy as np

from seva_jax.corrupt import Corruption, apply_pixels, corruption_key
from seva_jax.corrupt.base import apply_jitted
from seva_jax.images.preprocess import ImageProcessing
from seva_jax.models import Llava
from seva_jax.processes import gather
from seva_jax.rollout.sampler import PromptBatch, Sampling, generate
from seva_jax.sharding import put_batch, replicated, row_shard, row_unit
from seva_jax.text.encode import Encoder
from seva_jax.types import ExampleError, Prompt


class Answered(NamedTuple):
    """What became of one prompt.

    Attributes:
        prompt: the prompt.
        answers: raw decoded text on the clean image, then on each corrupted one; empty if dropped.
        dropped: reason, or "" if it was answered.
    """

    prompt: Prompt
    answers: tuple[str, ...]
    dropped: str


class _Prepared(NamedTuple):
    index: int
    trunk: np.ndarray
    pixels_VIHWC: np.ndarray  # variant 0 is clean, variant 1 + c has corruption c
    dropped: str


def corrupted_pixels(
    prompt: Prompt,
    load_image: Callable[[str], np.ndarray],
    processing: ImageProcessing,
    corruption: Corruption,
    index: int,
    seed: int,
) -> np.ndarray:
    """Preprocessed images of a prompt under corruption `index`, [I, H, W, 3] float32.

    Runs on the host's CPU, so the same images come out on every platform.
    """
    pixels = []
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        for number, name in enumerate(prompt.images):
            key = corruption_key(seed, f"{prompt.id}/{number}", index)
            image = load_image(name)
            if corruption.space == "pixels":
                pixels.append(processing(apply_pixels(corruption, key, image)))
            else:
                pixels.append(np.asarray(apply_jitted(corruption, key, processing(image))))
    size = processing.size
    return np.stack(pixels) if pixels else np.zeros((0, size, size, 3), np.float32)


def rows_of_batch(
    batch_size: int, variants: int, mesh: jax.sharding.Mesh, num_shares: int
) -> tuple[int, int]:
    """How a batch of rollouts is laid out: prompts and rows of each process's share.

    Args:
        batch_size: rows wanted over all devices.
        variants: rows of a prompt, clean and corrupted.
        mesh: the rows are split over; they are filled up to divide.
        num_shares: see `seva_jax.sharding.row_shard`.
    """
    group = max(batch_size // variants // num_shares, 1)
    split = row_unit(mesh) // num_shares
    return group, -(-group * variants // split) * split


@dataclasses.dataclass(frozen=True)
class Asker:
    """A model that answers prompts.

    Attributes:
        model: the module.
        variables: its variables.
        encoder: text to tokens, with the generation template.
        processing: image pipeline.
        mesh: where the model lives.
        batch_size: rows answered together, over all devices.
        seed: of corruptions and of sampling; every prompt has its own keys.
    """

    model: Llava
    variables: Any
    encoder: Encoder
    processing: ImageProcessing
    mesh: jax.sharding.Mesh
    batch_size: int
    seed: int

    def ask(
        self,
        prompts: Sequence[Prompt],
        load_image: Callable[[str], np.ndarray],
        sampling: Sampling,
        corruptions: Sequence[Corruption] = (),
        start: int = 0,
    ) -> Iterator[list[Answered]]:
        """Answers prompts in order, batch by batch, from prompt `start` on.

        Every process prepares its share of each batch and gets all of its answers.
        """
        variants = 1 + len(corruptions)
        share, num_shares = row_shard(self.mesh)
        group, rows = rows_of_batch(self.batch_size, variants, self.mesh, num_shares)

        def prepare(index: int) -> _Prepared:
            prompt = prompts[index]
            try:
                trunk = self.encoder.trunk(prompt.question, len(prompt.images))
                self.encoder.fit(len(trunk), trunk[:1])  # room for at least one answer token
                clean = [self.processing(load_image(name)) for name in prompt.images]
                shape = (0, self.processing.size, self.processing.size, 3)
                pixels = [np.stack(clean) if clean else np.zeros(shape, np.float32)]
                pixels += [
                    corrupted_pixels(prompt, load_image, self.processing, c, i, self.seed)
                    for i, c in enumerate(corruptions)
                ]
            except ExampleError as error:
                return _Prepared(index, np.zeros(0, np.int32), np.zeros(0), error.reason)
            return _Prepared(index, trunk, np.stack(pixels), "")

        firsts = range(start, len(prompts), group * num_shares)  # of each batch

        def prepare_place(i: int) -> list[_Prepared]:
            index = firsts[i // group] + share * group + i % group
            return [prepare(index)] if index < len(prompts) else []

        dataset = grain.MapDataset.range(len(firsts) * group).map(prepare_place)
        options = grain.ReadOptions(num_threads=4, prefetch_buffer_size=2 * group)
        batches = dataset.to_iter_dataset(options).batch(group, batch_fn=list)
        for first, batch in zip(firsts, batches, strict=True):
            mine = [prepared for place in batch for prepared in place]
            asked = prompts[first : first + group * num_shares]
            yield self._answer(mine, asked, first, rows, variants, sampling)

    def _answer(
        self,
        mine: Sequence[_Prepared],
        asked: Sequence[Prompt],
        first: int,
        rows: int,
        variants: int,
        sampling: Sampling,
    ) -> list[Answered]:
        """Answers one batch: `asked`, from prompt `first` on; `mine` of them were prepared here."""
        good = [p for p in mine if not p.dropped]
        width = max((len(p.trunk) for p in good), default=0)
        images = max((p.pixels_VIHWC.shape[1] for p in good), default=0)
        drops = [(p.index, p.dropped) for p in mine if p.dropped]
        told = gather((width, images, drops))
        # Widths are rounded up, so that few distinct shapes are compiled.
        width = -(-max(t[0] for t in told) // 32) * 32
        images = max(t[1] for t in told)
        dropped = {index: reason for t in told for index, reason in t[2]}
        texts: dict[tuple[int, int], str] = {}
        if len(dropped) < len(asked):
            size, image_id = self.processing.size, self.encoder.image_token_id
            pad_id = self.encoder.pad_id
            tokens = np.full((rows, width), pad_id, np.int32)
            mask = np.zeros((rows, width), bool)
            mask[:, 0] = True  # rows nobody asked for still need one real token
            pixels = np.zeros((rows, images, size, size, 3), np.float32)
            keys = [jax.random.key(self.seed)] * rows
            who = np.full((rows, 2), -1, np.int32)
            for i, prepared in enumerate(good):
                for v in range(variants):
                    row, length = i * variants + v, len(prepared.trunk)
                    tokens[row, :length] = prepared.trunk
                    mask[row, :length] = True
                    pixels[row, : prepared.pixels_VIHWC.shape[1]] = prepared.pixels_VIHWC[v]
                    prompt_id = asked[prepared.index - first].id
                    keys[row] = corruption_key(self.seed, f"{prompt_id}/answer", v)
                    who[row] = prepared.index, v
            is_image = tokens == image_id
            patch = np.where(is_image, np.cumsum(is_image, axis=1) - 1, -1).astype(np.int32)
            key_data = np.stack([np.asarray(jax.random.key_data(k)) for k in keys])
            batch = put_batch(self.mesh, (tokens, mask, patch, pixels, key_data, who))
            eos = self.encoder.tokenizer.eos_token_id
            with jax.set_mesh(self.mesh):
                out = generate(
                    self.model,
                    self.variables,
                    PromptBatch(*batch[:4]),
                    jax.random.wrap_key_data(batch[4]),
                    sampling,
                    (eos,),
                    pad_id,
                )
            # Every process needs the text, and token ids are small: copy them everywhere.
            out, who = jax.device_get(jax.device_put((out, batch[5]), replicated(self.mesh)))
            for ids, (index, v) in zip(out, who.tolist(), strict=True):
                stop = np.flatnonzero(ids == eos)
                if index >= 0:
                    texts[index, v] = self.encoder.decode(ids[: stop[0]] if len(stop) else ids)
        return [
            Answered(prompt, (), dropped[i])
            if i in dropped
            else Answered(prompt, tuple(texts[i, v] for v in range(variants)), "")
            for i, prompt in enumerate(asked, first)
        ]
