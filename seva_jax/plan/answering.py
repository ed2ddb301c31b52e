"""What answering prompts needs, counted from shapes: memory, a token step, prefill, rows that fit.

What lives here: the layout of answering and its work. What does not: compiling its programs
(`program.py`), which gives memory and network of TPU slices, and the times (`whole_run.py`).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from seva_jax.batches.trees import RowShape
from seva_jax.config import Experiment, make_model
from seva_jax.inference.answering_layout import (
    SPARE,
    AnsweringNeeds,
    answering_needs,
    choose_tensor,
    possible_tensors,
    require_tensor,
)
from seva_jax.inference.prefill_shapes import PrefillShape
from seva_jax.inference.rollout_rows import rollout_rows
from seva_jax.models import LlavaConfig, LoraConfig
from seva_jax.plan.roofline import Kind, Work
from seva_jax.run.abstract_state import abstract_base, abstract_training
from seva_jax.sharding import answering_mesh
from seva_jax.training.flops import forward
from seva_jax.training.memory import bytes_on_a_device
from seva_jax.types import ImageLayout

_PROMPT_MULTIPLE = 32  # prompts are padded to it
_SHORT = 16  # tokens of the longest answer to a question with a short one


@dataclasses.dataclass(frozen=True)
class Answering:
    """Rows that are answered together on a slice, and what a chip has to do for them.

    Attributes:
        data: groups of chips; each answers its own rows.
        tensor: chips of a group, which share the weights.
        rows: rows answered together, over all chips.
        fresh: rows that are started together.
        prompt: tokens of a prompt, image included, padded.
        slots: positions of the cache of a row.
        resident: bytes that the run keeps on a chip beside what answering needs: the weights in
            their training layout, but for layers that a single chip has no room for.
        freeable: bytes of layers that a single chip would not keep beside more rows.
        weights: bytes on a chip of the weights that are made for answering.
        shared: bytes on a chip of weights that are in place already, and part of `resident`.
        needs: what answering needs of memory beside the weights.
        evaluated: bytes that evaluations after alignment need on a chip, with both layouts of
            weights and adapters.
        token: work of a chip in a token step.
        prefill: work of a chip to start `fresh` rows.
        adapters: work that adapters add to a token step, and to a prefill.
        kind: what kind of work a token step is.
    """

    data: int
    tensor: int
    rows: int
    fresh: int
    prompt: int
    slots: int
    resident: float
    freeable: float
    weights: float
    shared: float
    needs: AnsweringNeeds
    evaluated: float
    token: Work
    prefill: Work
    adapters: tuple[Work, Work]
    kind: Kind

    @property
    def kept(self) -> float:
        """Bytes on a chip of weights and of all caches."""
        cache = self.rows / self.data * self.needs.row / self.tensor
        return self.resident + self.weights + cache

    @property
    def needed(self) -> float:
        """Bytes on a chip, with what starting rows needs."""
        return self.resident + self.weights + self.needs.on_a_device(self.tensor)

    @property
    def busy(self) -> float:
        """Share of the rows that have a question while tokens are made.

        Rows are refilled when `fresh` of them are done: until then the busy ones become fewer by
        about equal steps.
        """
        return 1 - self.fresh / self.rows / 2

    def token_steps(self, answers: int, tokens: int) -> float:
        """Returns how many token steps answers of this length take, without the last rows' wait."""
        return max(answers * tokens / (self.rows * self.busy), tokens)

    def prefills(self, answers: int) -> int:
        """Returns how many times `fresh` rows are started for these answers."""
        return -(-answers // self.fresh)

    def rows_that_fit(self, needed: float, limit: float, variants: int, refill: int) -> int:
        """Returns the most rows that can be answered together, counted from shapes.

        Args:
            needed: bytes on a chip for `rows` of them.
            limit: bytes that a program may use on a chip.
            variants: rows of a prompt.
            refill: one in this many rows is started together.
        """
        needs = self.needs
        begun = needs.fresh_row / self.tensor + needs.fresh_row_whole
        free = limit - needed + self.freeable + needs.on_a_device(self.tensor)
        rows = int(free / (needs.row / self.tensor + begun / refill)) * self.data
        return max(rows, 0) // variants * variants


def padded_prompt(image: ImageLayout, question: int) -> PrefillShape:
    """Returns the size of a prompt with one image, its first token and a question."""
    length = 1 + image.num_tokens + question
    return PrefillShape(-(-length // _PROMPT_MULTIPLE) * _PROMPT_MULTIPLE, image.tiles)


def answering(
    experiment: Experiment,
    config: LlavaConfig,
    mesh: jax.sharding.Mesh,
    prompt: PrefillShape,
    limit: float,
) -> Answering:
    """Counts what answering needs.

    Args:
        experiment: the run; `rollout.batch_size` rows are answered together.
        config: architecture.
        mesh: of training, over described devices; the weights stay there.
        prompt: size of a prompt.
        limit: bytes that a program may use on a chip.

    Raises:
        DataError: the weights, or the chips, do not divide.
    """
    options, variants = experiment.rollout, 1 + len(experiment.corrupt)
    model = make_model(config, experiment.compute)
    training = abstract_base(experiment, config, mesh)
    resident = bytes_on_a_device(training)
    possible = possible_tensors(model, {"params": training}, mesh)

    def needs(new: int) -> AnsweringNeeds:
        one = rollout_rows(options.batch_size, options.refill, variants, mesh, 1)
        return answering_needs(
            model, mesh.size, one.rows, one.fresh, prompt.width, new, prompt.tiles, options.cache
        )

    new = options.sampling.max_new_tokens
    tensor = options.tensor or choose_tensor(possible, needs(new), resident, limit)
    require_tensor(model, {"params": training}, mesh, tensor)
    there = answering_mesh(mesh, tensor)
    layout = rollout_rows(options.batch_size, options.refill, variants, there, 1)
    data, slots, weights = there.shape["data"], prompt.width + new, possible[tensor]
    needed = needs(new)._replace(rows=layout.rows, fresh=layout.fresh)
    rows, fresh = layout.rows / data, layout.fresh / data
    params = abstract_base(experiment, config, there)
    whole = bytes_on_a_device(params)
    language = params["language"]
    # Of the embedding table only a row for each token is read.
    read = bytes_on_a_device(language) - bytes_on_a_device(language["embedding"])
    token = Work(
        flops=rows * token_flops(config, slots) / tensor,
        hbm=read + rows * needed.row / tensor,
        sent=_exchanged(config, experiment, rows, tensor),
    )
    start = forward(config, LoraConfig(rank=0), RowShape(prompt.width, 1, 1, 1, prompt.tiles, 1))
    started = fresh * needed.row / tensor * prompt.width / slots
    prefill = Work(
        flops=fresh * (start.tower + start.projector + start.language) / tensor,
        hbm=whole + 3 * started,  # written, then copied to a finished row
        sent=_exchanged(config, experiment, fresh * prompt.width, tensor),
    )
    short = max((suite.max_new_tokens for suite in experiment.evals), default=_SHORT)
    evaluated = needs(short)._replace(rows=layout.rows, fresh=layout.fresh).on_a_device(tensor)
    adapters, adapter_bytes = _adapters(experiment, config, mesh, there, rows, fresh, prompt)
    evaluated += resident + weights + adapter_bytes
    # A single chip keeps layers, and adapters, in one form if both do not fit.
    both, room = resident + weights + needed.on_a_device(tensor), limit * (1 - SPARE)
    twice = weights if mesh.size == 1 else 0
    freed = twice if both > room else 0
    if mesh.size == 1 and evaluated > room:
        evaluated -= weights + adapter_bytes / 2
    kind: Kind = "decoding_int8" if options.cache == "int8" else "decoding"
    return Answering(
        data, tensor, layout.rows, layout.fresh, prompt.width, slots, resident - freed,
        twice - freed, weights, whole - weights, needed, evaluated, token, prefill, adapters, kind,
    )  # fmt: skip


def token_flops(config: LlavaConfig, slots: int) -> float:
    """Returns the operations of one token of one row, over all chips."""
    text = config.text
    once = forward(config, LoraConfig(rank=0), RowShape(1, 1, 1, 1, 0, 1))
    attention = 4 * slots * text.num_heads * text.head_dim * text.num_layers
    return once.linear + once.head + attention


def _exchanged(config: LlavaConfig, experiment: Experiment, positions: float, tensor: int) -> float:
    """Returns the bytes a chip sends where tensor splits layers: two all-reduces in each."""
    text, width = config.text, jnp.dtype(experiment.compute.dtype).itemsize
    reduced = positions * text.hidden_size * width
    return 2 * text.num_layers * reduced * 2 * (tensor - 1) / tensor


def _adapters(
    experiment: Experiment,
    config: LlavaConfig,
    training: jax.sharding.Mesh,
    answering: jax.sharding.Mesh,
    rows: float,
    started: float,
    prompt: PrefillShape,
) -> tuple[tuple[Work, Work], float]:
    """Returns what adapters add to the work of a chip, and their bytes in both layouts.

    Args:
        experiment: the run.
        config: architecture.
        training: the mesh of training.
        answering: the mesh on which the model answers.
        rows: rows on a chip in a token step.
        started: rows on a chip in a prefill.
        prompt: size of a prompt.
    """
    lora = experiment.lora
    if not lora.rank:
        return (Work(0, 0, 0), Work(0, 0, 0)), 0.0
    made, kept = (
        abstract_training(experiment, config, mesh).state.trainable["lora"]
        for mesh in (answering, training)
    )
    there, here = bytes_on_a_device(made), bytes_on_a_device(kept)
    read = bytes_on_a_device(made.get("language", {}))  # for a token; images come with the prompt
    tensor = answering.shape["tensor"]
    flops = forward(config, lora, RowShape(1, 1, 1, 1, 0, 1)).lora / tensor
    once = forward(config, lora, RowShape(1, 1, 1, 1, prompt.tiles, 1))
    images = started * (once.tower_lora + once.projector_lora) / tensor
    token, prefill = Work(rows * flops, read, 0), Work(started * prompt.width * flops, there, 0)
    return (token, dataclasses.replace(prefill, flops=prefill.flops + images)), here + there
