"""What answering prompts needs, counted from shapes: memory, a token step, prefill, rows that fit.

What lives here: the layout of answering and its work. What does not: compiling its programs
(`program.py`), which gives memory and network of TPU slices, and the times (`whole_run.py`).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax.numpy as jnp

from seva_jax.batches.trees import RowShape
from seva_jax.config import Experiment
from seva_jax.inference.rollouts import RolloutRows, rollout_rows
from seva_jax.models import LlavaConfig, LoraConfig
from seva_jax.plan.chips import Topology
from seva_jax.plan.roofline import Work
from seva_jax.run.abstract_state import abstract_base, abstract_training
from seva_jax.sharding import MeshShape
from seva_jax.training.flops import forward
from seva_jax.training.memory import bytes_on_a_device

_PROMPT_MULTIPLE = 32  # prompts are padded to it


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
        cache: bytes of a row's cache on each of its chips.
        resident: bytes that the run keeps on a chip beside what answering needs: the weights in
            their training layout.
        weights: bytes of the weights in the layout of answering, on a chip.
        temporaries: bytes of intermediate results of prefill, on a chip.
        token: work of a chip in a token step.
        prefill: work of a chip to start `fresh` rows.
        adapters: work that adapters add to a token step, and to a prefill.
    """

    data: int
    tensor: int
    rows: int
    fresh: int
    prompt: int
    slots: int
    cache: float
    resident: float
    weights: float
    temporaries: float
    token: Work
    prefill: Work
    adapters: tuple[Work, Work]

    @property
    def needed(self) -> float:
        """Bytes on a chip, the caches of new rows before they join the others included."""
        rows = self.rows / self.data * self.cache
        fresh = self.fresh / self.data * self.cache * self.prompt / self.slots
        return self.resident + self.weights + rows + fresh + self.temporaries

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


def padded_prompt(config: LlavaConfig, question: int) -> int:
    """Returns the positions of a prompt with one image, its first token and a question."""
    length = 1 + config.tokens_per_image + question
    return -(-length // _PROMPT_MULTIPLE) * _PROMPT_MULTIPLE


def answering(
    experiment: Experiment,
    config: LlavaConfig,
    slices: Topology,
    training: Any,
    tensor: int,
    prompt: int,
) -> Answering:
    """Counts what answering needs in one layout.

    Args:
        experiment: the run; `rollout.batch_size` rows are answered together.
        config: architecture.
        slices: the chips.
        training: the mesh of training, on which the weights stay.
        tensor: chips that share the weights.
        prompt: padded tokens of a prompt.

    Raises:
        DataError: the weights, or the chips, do not divide.
    """
    mesh: Any = slices.abstract_mesh(MeshShape(-1, 1, tensor))
    data = mesh.shape["data"]
    layout = _rows(experiment, mesh)
    slots = prompt + experiment.rollout.sampling.max_new_tokens
    params = abstract_base(experiment, config, mesh)
    weights = bytes_on_a_device(params)
    resident = bytes_on_a_device(abstract_base(experiment, config, training))
    cache = cache_bytes(experiment, config, slots) / tensor
    start = forward(config, LoraConfig(rank=0), RowShape(prompt, 1, 1, 1, 1, 1))
    rows, fresh = layout.rows / data, layout.fresh / data
    read = bytes_on_a_device(params["language"]) - bytes_on_a_device(
        params["language"]["embedding"]
    )
    token = Work(
        flops=rows * token_flops(config, slots) / tensor,
        hbm=read + rows * cache,
        sent=_exchanged(config, experiment, rows, tensor),
    )
    started = fresh * cache * prompt / slots
    prefill = Work(
        flops=fresh * (start.tower + start.projector + start.language) / tensor,
        hbm=weights + 3 * started,  # written, then copied to the place of a finished row
        sent=_exchanged(config, experiment, fresh * prompt, tensor),
    )
    return Answering(
        data, tensor, layout.rows, layout.fresh, prompt, slots, cache, resident, weights,
        _temporaries(config, experiment, fresh, prompt, tensor), token, prefill,
        _adapters(experiment, config, mesh, rows, fresh * prompt),
    )  # fmt: skip


def choose_tensor(
    experiment: Experiment, config: LlavaConfig, slices: Topology, training: Any, prompt: int
) -> int:
    """Returns the fewest chips that can share the weights and hold what answering needs.

    If no number suffices, the largest that divides what tensor splits.

    Raises:
        DataError: the weights cannot be laid out for training.
    """
    text = config.text
    split = math.gcd(text.num_heads, text.num_kv_heads, text.mlp_size, text.vocab_size)
    split = math.gcd(split, config.vision.num_heads, config.vision.mlp_size)
    sizes = [
        n for n in range(1, slices.num_chips + 1) if math.gcd(slices.num_chips, split) % n == 0
    ]
    for tensor in sizes:
        counted = answering(experiment, config, slices, training, tensor, prompt)
        if counted.needed <= slices.chip.hbm_gib * 2**30:
            return tensor
    return sizes[-1]


def rows_that_fit(
    experiment: Experiment, config: LlavaConfig, counted: Answering, needed: float, limit: float
) -> int:
    """Returns the most rows that can be answered together, counted from shapes.

    Args:
        experiment: the run.
        config: architecture.
        counted: its answering.
        needed: bytes on a chip for the rows that `counted` has.
        limit: bytes that a program may use on a chip.
    """
    one = _temporaries(config, experiment, 1, counted.prompt, counted.tensor)
    begun = counted.cache * counted.prompt / counted.slots + one
    row = counted.cache + begun * counted.fresh / counted.rows
    variants = 1 + len(experiment.corrupt)
    rows = max(counted.rows + math.floor((limit - needed) / row) * counted.data, 0)
    return rows // variants * variants


def cache_bytes(experiment: Experiment, config: LlavaConfig, slots: int) -> float:
    """Returns the bytes of a row's KV cache, over all chips."""
    text = config.text
    if experiment.rollout.cache == "int8":
        head = text.head_dim + 4  # a float32 scale
    else:
        head = text.head_dim * jnp.dtype(experiment.compute.dtype).itemsize
    return 2.0 * text.num_layers * text.num_kv_heads * slots * head


def token_flops(config: LlavaConfig, slots: int) -> float:
    """Returns the operations of one token of one row, over all chips."""
    text = config.text
    once = forward(config, LoraConfig(rank=0), RowShape(1, 1, 1, 1, 0, 1))
    attention = 4 * slots * text.num_heads * text.head_dim * text.num_layers
    return once.linear + once.head + attention


def _rows(experiment: Experiment, mesh: Any) -> RolloutRows:
    options, variants = experiment.rollout, 1 + len(experiment.corrupt)
    return rollout_rows(options.batch_size, options.refill, variants, mesh, 1)


def _exchanged(config: LlavaConfig, experiment: Experiment, positions: float, tensor: int) -> float:
    """Returns the bytes a chip sends where tensor splits layers: two all-reduces in each."""
    text, width = config.text, jnp.dtype(experiment.compute.dtype).itemsize
    reduced = positions * text.hidden_size * width
    return 2 * text.num_layers * reduced * 2 * (tensor - 1) / tensor


def _temporaries(
    config: LlavaConfig, experiment: Experiment, fresh: float, prompt: int, tensor: int
) -> float:
    """Returns the bytes of what prefill has at the same time in one layer, roughly.

    The residual stream and its normalised copy are whole on every chip; queries, keys, values,
    attention's result and the three products of the MLP are split.
    """
    text, v = config.text, config.vision
    width = jnp.dtype(experiment.compute.dtype).itemsize
    split = 4 * text.num_heads * text.head_dim + 3 * text.mlp_size
    position = (3 * text.hidden_size + split / tensor) * width
    pixels = 3 * v.image_size**2 * 4
    return fresh * (prompt * position + pixels)


def _adapters(
    experiment: Experiment, config: LlavaConfig, mesh: Any, rows: float, positions: float
) -> tuple[Work, Work]:
    """Returns what adapters add to a token step, and to a prefill of this many positions."""
    lora = experiment.lora
    if not lora.rank:
        return Work(0, 0, 0), Work(0, 0, 0)
    kept = abstract_training(experiment, config, mesh).state.trainable["lora"]
    read = bytes_on_a_device(kept)
    once = forward(config, lora, RowShape(1, 1, 1, 1, 0, 1)).lora / mesh.shape["tensor"]
    return Work(rows * once, read, 0), Work(positions * once, read, 0)
