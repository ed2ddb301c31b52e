"""Answers many prompts with a model, on clean images and on corrupted copies.

Preparation (decode, corrupt, resize, tokenise) runs in Grain's reading threads while the device
answers. Rows with complete answers take the next prompts while the others continue. A prompt that
cannot be prepared is reported with its reason, and the others are still answered.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from seva_jax.corrupt import Corruption
from seva_jax.corrupt.base import corruption_keys, key_words
from seva_jax.images import ImageProcessing
from seva_jax.inference.answering import AnsweringForm, answering_form
from seva_jax.inference.answering_layout import answering_needs, fitting_tensor, is_crowded
from seva_jax.inference.corrupted import corrupted_prompt, prompt_pixels
from seva_jax.inference.prefill_shapes import Prefills, PrefillShape
from seva_jax.inference.rollout_rows import RolloutRows, rollout_rows, row_pairs
from seva_jax.inference.sampler import PromptBatch, Sampler, decode, empty_state, refill
from seva_jax.models import CacheKind, Llava, restack
from seva_jax.runtime import shutdown
from seva_jax.runtime.processes import gather, say
from seva_jax.runtime.profiler import profiler
from seva_jax.runtime.read_ahead import READERS
from seva_jax.sharding import process_row_share, put_batch, replicated, row_multiple
from seva_jax.text import Encoder, Sampling
from seva_jax.types import ExampleError, Prompt

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
    trunks: list[np.ndarray]  # variant 0 is clean, variant 1 + c has corruption c
    pixels: list[np.ndarray]  # [I, H, W, 3] of each; a changed sequence may have fewer images
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

    def prefills(
        self, prompts: Sequence[Prompt], corruptions: Sequence[Corruption] = ()
    ) -> Prefills:
        """Returns the shapes in which `answer` prefills prompts.

        Every process tokenises its share of the prompts.
        """
        me, everyone = jax.process_index(), jax.process_count()
        gathered = gather(self._lengths(prompts[me::everyone], corruptions))
        lengths = [0] * len(prompts)
        for process, part in enumerate(gathered):
            lengths[process::everyone] = part
        variants = 1 + len(corruptions)
        at_once = max(self.batch_size // self.refill, variants) / variants
        return Prefills.of(lengths, [len(p.images) for p in prompts], at_once)

    def answer(
        self,
        prompts: Sequence[Prompt],
        load_image: Callable[[str], np.ndarray],
        sampling: Sampling,
        corruptions: Sequence[Corruption] = (),
        start: int = 0,
        remote: bool = False,
        prefills: Prefills | None = None,
    ) -> Iterator[list[AnsweredPrompt]]:
        """Answers prompts from index `start`, and yields them in order as they complete.

        Every process prepares its share of the prompts and receives all answers.

        Args:
            prompts: all prompts.
            load_image: gives an image by name.
            sampling: how answers are sampled.
            corruptions: each adds a variant of every prompt.
            start: index of the first prompt to answer.
            remote: whether images come from an object store, so that many are read at a time.
            prefills: `self.prefills(prompts, corruptions)`, computed here if it is not given.
        """
        try:
            yield from self._answer(
                prompts, load_image, sampling, corruptions, start, remote, prefills
            )
        finally:
            self._give_back()

    def _answer(
        self,
        prompts: Sequence[Prompt],
        load_image: Callable[[str], np.ndarray],
        sampling: Sampling,
        corruptions: Sequence[Corruption],
        start: int,
        remote: bool,
        prefills: Prefills | None,
    ) -> Iterator[list[AnsweredPrompt]]:
        """Does the work of `answer`; afterwards, rows and caches are gone."""
        if start >= len(prompts):
            return
        variants = 1 + len(corruptions)
        if prefills is None:
            prefills = self.prefills(prompts, corruptions)
        model, variables, mesh = self._form(prefills.shapes[-1], sampling, variants)
        share, num_shares = process_row_share(mesh)
        layout = rollout_rows(self.batch_size, self.refill, variants, mesh, num_shares)
        firsts = range(start + share * layout.group, len(prompts), layout.group * num_shares)
        mine = [i for first in firsts for i in range(len(prompts))[first : first + layout.group]]
        phase_N = prefills.phases(_WINDOW * layout.group * num_shares)
        mine = sorted(mine, key=lambda i: int(phase_N[i]))
        prepared = self._prepare(prompts, mine, load_image, corruptions, layout.group, remote)
        eos: Any = self.encoder.tokenizer.eos_token_id
        sampler = Sampler(model, sampling, (eos,), self.encoder.pad_id, self.cache)
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
                    arrays = self._arrays(taken, prompts, layout, prefills.shapes[shape or 0])
                    *batch, words, tags, places = put_batch(mesh, arrays)
                    state = refill(
                        sampler, variables, state, PromptBatch(*batch),
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

    def _form(self, prompt: PrefillShape, sampling: Sampling, variants: int) -> AnsweringForm:
        """Returns the model in the layout in which it answers, moved there if it is not.

        The engine keeps it for further calls. The choice depends on no prompts but those of the
        call, so a resumed run makes the same one.
        """
        rows = max(self.batch_size, variants)
        fresh = max(rows // self.refill, variants)
        needs = answering_needs(
            self.model, self.mesh.size, rows, fresh, prompt.width, sampling.max_new_tokens,
            prompt.images, self.cache,
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

    def _lengths(self, prompts: Sequence[Prompt], corruptions: Sequence[Corruption]) -> list[int]:
        """Returns the tokens of each prompt's longest trunk; 0 for one that is not answered."""
        all_asked = list[list[Prompt]]()
        for prompt in prompts:
            try:
                changed = self._asked(prompt, corruptions)[1:]
                all_asked.append([prompt, *(asked for asked in changed if asked is not prompt)])
            except ExampleError:
                all_asked.append([])
        encoded = self.encoder.trunks(itertools.chain(*all_asked))
        lengths = []
        for asked in all_asked:
            trunks = list(itertools.islice(encoded, len(asked)))
            try:
                lengths.append(max((len(self._fitting(trunk)) for trunk in trunks), default=0))
            except ExampleError:
                lengths.append(0)
        return lengths

    def _asked(self, prompt: Prompt, corruptions: Sequence[Corruption]) -> list[Prompt]:
        """Returns the prompt, and what is asked under each corruption."""
        return [
            prompt,
            *(corrupted_prompt(prompt, c, i, self.seed) for i, c in enumerate(corruptions)),
        ]

    def _fitting(self, trunk: np.ndarray | ExampleError) -> np.ndarray:
        """Returns a trunk; raises the error in its place, or if it leaves no room to answer."""
        if isinstance(trunk, ExampleError):
            raise trunk
        self.encoder.fit(len(trunk), trunk[:1])
        return trunk

    def _prepare(
        self,
        prompts: Sequence[Prompt],
        mine: Sequence[int],
        load_image: Callable[[str], np.ndarray],
        corruptions: Sequence[Corruption],
        ahead: int,
        remote: bool,
    ) -> Iterator[_Prepared]:
        import grain

        def prepare(index: int) -> _Prepared:
            prompt = prompts[index]
            try:
                asked = self._asked(prompt, corruptions)
                trunks = [self._fitting(trunk) for trunk in self.encoder.trunks(asked)]
                pixels = prompt_pixels(prompt, load_image, self.processing, corruptions, self.seed)
            except ExampleError as error:
                return _Prepared(index, [], [], error.reason)
            return _Prepared(index, trunks, pixels, "")

        dataset = grain.MapDataset.source(mine).map(lambda index: prepare(int(index)))
        threads = READERS if remote else min(max(os.cpu_count() or 1, 4), READERS)
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
        self, taken: _Taken, prompts: Sequence[Prompt], layout: RolloutRows, shape: PrefillShape
    ) -> tuple[np.ndarray, ...]:
        """Returns tokens, mask, patch, pixels, words of keys, tags and from_B for `refill`."""
        rows, size = layout.fresh, self.processing.size
        tokens = np.full((rows, shape.width), self.encoder.pad_id, np.int32)
        mask = np.zeros((rows, shape.width), bool)
        mask[:, 0] = True  # empty rows still need one real token
        pixels = np.zeros((rows, shape.images, size, size, 3), np.float32)
        words = np.zeros((rows, 3), np.uint32)
        tags = np.full(rows, -1, np.int32)
        places = np.full(layout.rows, -1, np.int32)
        pairs = iter(taken.pairs)
        for item in taken.items:
            name = f"{prompts[item.index].id}/answer"
            for variant, (trunk, images) in enumerate(zip(item.trunks, item.pixels, strict=True)):
                row, place = next(pairs)
                tokens[row, : len(trunk)] = trunk
                mask[row, : len(trunk)] = True
                pixels[row, : len(images)] = images
                words[row] = key_words(name, variant)
                tags[row] = item.index * len(item.trunks) + variant
                places[place] = row % (rows // layout.parts)
        is_image = tokens == self.encoder.image_token_id
        patch = np.where(is_image, np.cumsum(is_image, axis=1) - 1, -1).astype(np.int32)
        return tokens, mask, patch, pixels, words, tags, places

    def _text(self, prompt: Prompt, ids: np.ndarray) -> str:
        stop = np.flatnonzero(ids == self.encoder.tokenizer.eos_token_id)
        trunk = ()
        if prompt.start:
            trunk = self.encoder.trunk(prompt.question, len(prompt.images), prompt.start)
        return self.encoder.decode(ids[: stop[0]] if len(stop) else ids, trunk)
