"""Answers many prompts with a model, on clean images and on corrupted copies.

Preparation (decode, corrupt, resize, tokenise) runs in Grain's reading threads while the device
answers. Rows with complete answers take the next prompts while the others continue. A prompt that
cannot be prepared is reported with its reason, and the others are still answered.
"""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from seva_jax.corrupt import Corruption
from seva_jax.corrupt.base import corruption_keys, key_words
from seva_jax.data import PromptSet
from seva_jax.images import ImageProcessing
from seva_jax.inference.answering import AnsweringForm, answering_form
from seva_jax.inference.answering_layout import answering_needs, fitting_tensor, is_crowded
from seva_jax.inference.prefill_shapes import Prefills, PrefillShape
from seva_jax.inference.prompt_variants import PromptVariants, Variant
from seva_jax.inference.rollout_rows import RolloutRows, rollout_rows, row_pairs
from seva_jax.inference.sampler import PromptBatch, Sampler, decode, empty_state, refill
from seva_jax.models import CacheKind, Llava, restack
from seva_jax.runtime import shutdown
from seva_jax.runtime.processes import gather, say
from seva_jax.runtime.profiler import profiler
from seva_jax.runtime.read_ahead import READERS
from seva_jax.sharding import process_row_share, put_batch, replicated, row_multiple
from seva_jax.text import Encoder, Sampling
from seva_jax.types import TEXT, Blend, ExampleError, Prompt

# Times the prompts that are answered together: how far a prompt may move, and what an interrupted
# run may have to answer again.
_WINDOW = 8


class AnsweredPrompt(NamedTuple):
    """One prompt with its answers.

    Attributes:
        prompt: the prompt.
        answers: raw decoded text on the clean image, then on each corrupted one; empty if dropped.
        dropped: why it was not answered, or "".
    """

    prompt: Prompt
    answers: tuple[str, ...]
    dropped: str


class _Prepared(NamedTuple):
    index: int
    variants: list[Variant]
    dropped: str


class _Taken(NamedTuple):
    """The prompts that this process starts next.

    Attributes:
        items: the prompts.
        pairs: a fresh row and a free row of the same device for every answer, in order.
        dropped: index and reason of prompts that are dropped.
        hungry: whether more prompts can start at once.
    """

    items: list[_Prepared]
    pairs: list[tuple[int, int]]
    dropped: list[tuple[int, str]]
    hungry: bool


@dataclasses.dataclass(frozen=True)
class RolloutEngine:
    """Answers prompts with a model.

    Attributes:
        model: the module, with stacked layers.
        variables: its variables, as training lays them out. While it answers, they are without
            their layers if a single device cannot hold these in both forms.
        encoder: text to tokens, with the generation template.
        processing: image pipeline.
        mesh: where they are; the model answers on a mesh of its own over the same devices.
        batch_size: rows answered together, over all devices.
        seed: seed of corruptions and of sampling; every prompt has its own keys.
        refill: see `RolloutOptions`.
        cache: see `RolloutOptions`.
        tensor: see `RolloutOptions`.
        resident: bytes on each device of what stays there besides the variables.
    """

    model: Llava
    variables: Any
    encoder: Encoder
    processing: ImageProcessing
    mesh: jax.sharding.Mesh
    batch_size: int
    seed: int
    refill: int = 1
    cache: CacheKind = "exact"
    tensor: int = 0
    resident: int = 0
    _moved: dict[int, AnsweringForm] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def prefills(self, data: PromptSet, corruptions: Sequence[Corruption] = ()) -> Prefills:
        """Returns the shapes in which `answer` prefills prompts.

        Every process tokenises its share of the prompts.
        """
        prompts = data.prompts
        me, everyone = jax.process_index(), jax.process_count()
        gathered = gather(self._variants(data).sizes(prompts[me::everyone], corruptions))
        sizes = [(0, 0)] * len(prompts)
        for process, part in enumerate(gathered):
            sizes[process::everyone] = part
        lengths, tiles = zip(*sizes, strict=True) if sizes else ((), ())
        variants = 1 + len(corruptions)
        at_once = max(self.batch_size // self.refill, variants) / variants
        return Prefills.of(lengths, tiles, at_once)

    def answer(
        self,
        data: PromptSet,
        sampling: Sampling,
        corruptions: Sequence[Corruption] = (),
        start: int = 0,
        prefills: Prefills | None = None,
    ) -> Iterator[list[AnsweredPrompt]]:
        """Answers prompts from index `start`, and yields them in order as they complete.

        Every process prepares its share of the prompts and receives all answers.

        Args:
            data: all prompts, and the way to their images.
            sampling: how answers are sampled.
            corruptions: each adds a variant of every prompt.
            start: index of the first prompt to answer.
            prefills: what `self.prefills` returns; computed here if it is not given.
        """
        try:
            prefills = prefills or self.prefills(data, corruptions)
            yield from self._answer(data, sampling, corruptions, start, prefills)
        finally:
            self._give_back()

    def _answer(
        self,
        data: PromptSet,
        sampling: Sampling,
        corruptions: Sequence[Corruption],
        start: int,
        prefills: Prefills,
    ) -> Iterator[list[AnsweredPrompt]]:
        """Does the work of `answer`; afterwards, rows and caches are gone."""
        prompts = data.prompts
        if start >= len(prompts):
            return
        variants, tile = 1 + len(corruptions), self.processing.of_prompts(prompts).tile_shape
        model, variables, mesh = self._form(prefills.shapes[-1], sampling, variants)
        share, num_shares = process_row_share(mesh)
        layout = rollout_rows(self.batch_size, self.refill, variants, mesh, num_shares)
        firsts = range(start + share * layout.group, len(prompts), layout.group * num_shares)
        mine = [i for first in firsts for i in range(len(prompts))[first : first + layout.group]]
        phase_N = prefills.phases(_WINDOW * layout.group * num_shares)
        mine = sorted(mine, key=lambda i: int(phase_N[i]))
        prepared = self._prepare(data, mine, corruptions, layout.group)
        stops = self.encoder.stop_ids
        sampler = Sampler(model, sampling, stops, self.encoder.pad_id, self.cache)
        with jax.set_mesh(mesh):
            state = empty_state(sampler, layout.rows * num_shares, prefills.shapes[-1].width)
        free = np.arange(layout.rows)
        texts: dict[int, dict[int, str]] = {}  # by prompt and variant
        dropped: dict[int, str] = {}
        waiting, at = collections.deque(mine), start
        while at < len(prompts):
            shutdown.raise_if_stopping()  # the caller has kept what was yielded
            profiler.next_unit()
            # All processes start one shape, that of the process which has come the least far.
            able = waiting and len(row_pairs(free, layout)) >= variants
            phases = gather(int(phase_N[waiting[0]]) if able else None)
            started = min((phase for phase in phases if phase is not None), default=None)
            shape = None if started is None else prefills.shape_of(started)
            taken = self._take(prepared, waiting, prefills, shape, free, layout, variants)
            told = gather((bool(taken.items), taken.hungry, taken.dropped))
            dropped |= {index: reason for _, _, drops in told for index, reason in drops}
            with jax.set_mesh(mesh):
                if any(some for some, _, _ in told):
                    arrays = self._arrays(taken, prompts, layout, prefills.shapes[shape or 0], tile)
                    batch, words, tags, places = put_batch(mesh, arrays)
                    state = refill(
                        sampler, variables, state, batch,
                        corruption_keys(self.seed, words), tags, places, row_multiple(mesh),
                    )  # fmt: skip
                enough = 0 if any(hungry for _, hungry, _ in told) else layout.fresh * num_shares
                state = decode(sampler, variables, state, np.int32(enough))
            # Every process needs the text, and token ids are small: copy them everywhere.
            small = (state.out_BT, state.done_B, state.tag_B)
            out, done, tags = jax.device_get(jax.device_put(small, replicated(mesh)))
            free = np.flatnonzero(done[share * layout.rows : (share + 1) * layout.rows])
            for row in np.flatnonzero(done & (tags >= at * variants)):
                index, variant = divmod(int(tags[row]), variants)
                answers = texts.setdefault(index, {})
                if variant not in answers:
                    answers[variant] = self._text(prompts[index], out[row])
            answered = []
            while at in dropped or len(texts.get(at, ())) == variants:
                answers = texts.pop(at, {})
                in_order = tuple(answers[v] for v in sorted(answers))
                answered.append(AnsweredPrompt(prompts[at], in_order, dropped.get(at, "")))
                at += 1
            if answered:
                yield answered

    def _variants(self, data: PromptSet) -> PromptVariants:
        processing = self.processing.of_prompts(data.prompts)
        return PromptVariants(self.encoder.sized(data.image_size), processing, self.seed)

    def _form(self, prompt: PrefillShape, sampling: Sampling, variants: int) -> AnsweringForm:
        """Returns the model in the layout in which it answers, moved there if it is not.

        The engine keeps it for further calls. The choice depends on no prompts but those of the
        call, so a resumed run makes the same one.
        """
        rows = max(self.batch_size, variants)
        fresh = max(rows // self.refill, variants)
        needs = answering_needs(
            self.model, self.mesh.size, rows, fresh, prompt.width, sampling.max_new_tokens,
            prompt.tiles, self.cache,
        )  # fmt: skip
        kept = (self.model, self.variables, self.mesh, needs, self.resident)
        free = is_crowded(*kept)
        tensor = self.tensor or fitting_tensor(*kept, free)
        if tensor not in self._moved or free:
            self._moved.clear()  # one layout at a time
            if not self.tensor and self.mesh.size > 1:
                say(f"  {tensor} of {self.mesh.size} devices share the weights (rollout.tensor)")
            form = answering_form(self.model, self.variables, self.mesh, tensor, free)
            self._moved[tensor] = form
        return self._moved[tensor]

    def _give_back(self) -> None:
        """Puts layers back that `_form` has taken out of the variables."""
        leaves = jax.tree.leaves(self.variables)
        if any(isinstance(leaf, jax.Array) and leaf.is_deleted() for leaf in leaves):
            for form in self._moved.values():
                restack(self.variables, form.variables)
            self._moved.clear()

    def _prepare(
        self, data: PromptSet, mine: Sequence[int], corruptions: Sequence[Corruption], ahead: int
    ) -> Iterator[_Prepared]:
        """Prepares prompts in threads, some of them ahead.

        Args:
            data: all prompts.
            mine: indices of those wanted.
            corruptions: see `answer`.
            ahead: how many are needed at a time.
        """
        import grain

        variants_of = self._variants(data)

        def prepare(index: int) -> _Prepared:
            try:
                made = variants_of(data.prompts[index], data.load_image, corruptions)
            except ExampleError as error:
                return _Prepared(index, [], error.reason)
            return _Prepared(index, made, "")

        dataset = grain.MapDataset.source(mine).map(lambda index: prepare(int(index)))
        threads = READERS if data.remote else min(max(os.cpu_count() or 1, 4), READERS)
        ahead = max(2 * ahead, threads)
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
        return iter(dataset.to_iter_dataset(options))

    def _take(
        self,
        prepared: Iterator[_Prepared],
        waiting: collections.deque[int],
        prefills: Prefills,
        shape: int | None,
        free: np.ndarray,
        layout: RolloutRows,
        variants: int,
    ) -> _Taken:
        """Takes as many prompts as there are free rows for, with all variants or none.

        Args:
            prepared: the prompts.
            waiting: their indices; those of prompts that are taken or dropped are removed.
            prefills: the shapes.
            shape: index of the shape that starts, or None.
            free: rows without a prompt.
            layout: the layout of rows.
            variants: rows of a prompt.
        """
        pairs = row_pairs(free, layout)
        items, dropped = [], []
        while len(items) < len(pairs) // variants and waiting:
            if prefills.needed_N[waiting[0]] != shape:
                break
            with profiler.waiting_for_input():
                item = next(prepared)
            waiting.popleft()
            if item.dropped:
                dropped.append((item.index, item.dropped))
            else:
                items.append(item)
        room = len(items) < len(pairs) // variants  # another shape comes next, or nothing
        pairs = pairs[: len(items) * variants]
        rest = np.setdiff1d(free, [row for _, row in pairs])
        hungry = bool(waiting) and (room or len(rest) >= layout.fresh)
        return _Taken(items, pairs, dropped, hungry and len(row_pairs(rest, layout)) >= variants)

    def _arrays(
        self,
        taken: _Taken,
        prompts: Sequence[Prompt],
        layout: RolloutRows,
        shape: PrefillShape,
        tile: tuple[int, ...],
    ) -> tuple[PromptBatch, np.ndarray, np.ndarray, np.ndarray]:
        """Returns the prompts, words of keys, tags and from_B for `refill`.

        Args:
            taken: the prompts that begin.
            prompts: all prompts.
            layout: the rows.
            shape: their sizes.
            tile: the shape of a tile.
        """
        rows = layout.fresh
        tokens = np.full((rows, shape.width), self.encoder.pad_id, np.int32)
        mask = np.zeros((rows, shape.width), bool)
        mask[:, 0] = True  # empty rows still need one real token
        patch = np.full((rows, shape.width), TEXT, np.int32)
        blended = self.encoder.layouts.blended
        weights = np.zeros((rows, shape.width, blended), np.float32)
        blend = Blend(np.zeros_like(weights, np.int32), weights)
        pixels = np.zeros((rows, shape.tiles, *tile), np.float32)
        native = self.encoder.layouts.native
        places_of_tiles = np.zeros((rows, shape.tiles, 5), np.int32)
        positions = np.zeros((rows, shape.width, 3), np.int32)
        words = np.zeros((rows, 3), np.uint32)
        tags = np.full(rows, -1, np.int32)
        places = np.full(layout.rows, -1, np.int32)
        pairs = iter(taken.pairs)
        for item in taken.items:
            name = f"{prompts[item.index].id}/answer"
            for variant, (trunk, tiles, images, at) in enumerate(item.variants):
                row, place = next(pairs)
                tokens[row, : len(trunk)] = trunk
                mask[row, : len(trunk)] = True
                image_at = np.flatnonzero(trunk == self.encoder.image_token_id)
                patch[row, image_at] = images.patch_N
                if images.blend is not None:
                    blend.index_BSM[row, image_at] = images.blend.index_BSM
                    blend.weight_BSM[row, image_at] = images.blend.weight_BSM
                pixels[row, : len(tiles)] = tiles
                if images.native is not None:
                    places_of_tiles[row, : len(tiles)] = images.native.place_I5
                if native:
                    positions[row, : len(trunk)] = at
                words[row] = key_words(name, variant)
                tags[row] = item.index * len(item.variants) + variant
                places[place] = row % (rows // layout.parts)
        batch = PromptBatch(
            tokens, mask, patch, pixels, blend if blended > 1 else None,
            places_of_tiles if native else None, positions if native else None,
        )  # fmt: skip
        return batch, words, tags, places

    def _text(self, prompt: Prompt, ids: np.ndarray) -> str:
        stop = np.flatnonzero(np.isin(ids, self.encoder.stop_ids))
        trunk = self.encoder.trunk(prompt) if prompt.start else ()
        return self.encoder.decode(ids[: stop[0]] if len(stop) else ids, trunk)
