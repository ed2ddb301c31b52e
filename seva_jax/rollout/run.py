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
from seva_jax.rollout.sampler import PromptBatch, Sampling, generate
from seva_jax.sharding import batch_sharding, replicated
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
    prompt: Prompt
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
        """Answers prompts in order, batch by batch, from prompt `start` on."""
        variants = 1 + len(corruptions)
        group = max(self.batch_size // variants, 1)
        split = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        rows = -(-group * variants // split) * split

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
                return _Prepared(prompt, np.zeros(0, np.int32), np.zeros(0), error.reason)
            return _Prepared(prompt, trunk, np.stack(pixels), "")

        dataset = grain.MapDataset.range(start, len(prompts)).map(prepare)
        options = grain.ReadOptions(num_threads=4, prefetch_buffer_size=2 * group)
        batches = dataset.to_iter_dataset(options).batch(group, batch_fn=list)
        for batch in batches:
            yield self._answer(batch, rows, variants, sampling)

    def _answer(
        self, batch: Sequence[_Prepared], rows: int, variants: int, sampling: Sampling
    ) -> list[Answered]:
        good = [p for p in batch if not p.dropped]
        if not good:
            return [Answered(p.prompt, (), p.dropped) for p in batch]
        # Widths are rounded up, so that few distinct shapes are compiled.
        width = -(-max(len(p.trunk) for p in good) // 32) * 32
        images = max(p.pixels_VIHWC.shape[1] for p in good)
        size, image_id = self.processing.size, self.encoder.image_token_id
        pad_id = self.encoder.pad_id
        tokens = np.full((rows, width), pad_id, np.int32)
        mask = np.zeros((rows, width), bool)
        mask[:, 0] = True  # rows nobody asked for still need one real token
        pixels = np.zeros((rows, images, size, size, 3), np.float32)
        keys = [jax.random.key(self.seed)] * rows
        for i, prepared in enumerate(good):
            for v in range(variants):
                row, length = i * variants + v, len(prepared.trunk)
                tokens[row, :length] = prepared.trunk
                mask[row, :length] = True
                pixels[row, : prepared.pixels_VIHWC.shape[1]] = prepared.pixels_VIHWC[v]
                keys[row] = corruption_key(self.seed, f"{prepared.prompt.id}/answer", v)
        is_image = tokens == image_id
        patch = np.where(is_image, np.cumsum(is_image, axis=1) - 1, -1).astype(np.int32)

        sharding = batch_sharding(self.mesh)
        place = lambda x: jax.make_array_from_callback(x.shape, sharding, lambda at: x[at])  # noqa: E731
        key_data = place(np.stack([np.asarray(jax.random.key_data(k)) for k in keys]))
        eos = self.encoder.tokenizer.eos_token_id
        out = generate(
            self.model,
            self.variables,
            PromptBatch(*map(place, (tokens, mask, patch, pixels))),
            jax.random.wrap_key_data(key_data),
            sampling,
            (eos,),
            pad_id,
        )
        # Every process needs the text, and token ids are small: copy them everywhere.
        out = np.asarray(jax.device_put(out, replicated(self.mesh)))
        texts = []
        for ids in out:
            stop = np.flatnonzero(ids == eos)
            texts.append(self.encoder.decode(ids[: stop[0]] if len(stop) else ids))
        answers = iter(range(0, len(good) * variants, variants))
        return [
            Answered(p.prompt, (), p.dropped)
            if p.dropped
            else Answered(p.prompt, tuple(texts[(at := next(answers)) : at + variants]), "")
            for p in batch
        ]
