"""A model to ask from Python: answers, log-probs of answers, and the pairs of a run.

What lives here: `open_model`, which `seva_jax.open` is, and the `Model` that it returns. What does
not: what a path names (`seva_jax/run/opened.py`), showing pairs (`seva_jax/report/pair_view.py`),
arrays in and out as transformers has them (`seva_jax/pretrained.py`).
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, overload

import jax
import numpy as np

from seva_jax.batches.encoded import encode_comparisons
from seva_jax.batches.fitting import fitting_trees
from seva_jax.batches.image_inputs import Pixels
from seva_jax.batches.pipeline import ComparisonRows, RowShapes
from seva_jax.config import ComputeOptions
from seva_jax.data import PromptSet
from seva_jax.images.load import as_rgb
from seva_jax.inference.passes import PassLayout
from seva_jax.ranges import out_of_range
from seva_jax.report.pair_view import Pairs
from seva_jax.run.opened import (
    FoundModel,
    ModelOptions,
    OpenedModel,
    find_model,
    first_devices,
    is_run,
)
from seva_jax.run.weights import Step
from seva_jax.runtime.quiet import quiet_libraries
from seva_jax.runtime.stores import as_path
from seva_jax.sharding import put_batch, replicated, row_multiple
from seva_jax.text import Sampling, Template
from seva_jax.training.step import StepOptions, make_logps
from seva_jax.types import Comparison, DataError, Prompt

if TYPE_CHECKING:
    from PIL.Image import Image

    OneImage = str | os.PathLike[str] | Image | np.ndarray
    Images = OneImage | Sequence[OneImage] | None

_TOGETHER = 16  # questions that are answered together


@dataclasses.dataclass(frozen=True, eq=False)
class ScoredAnswer:
    """The log-probs of one answer.

    Attributes:
        answer: the answer.
        tokens: its tokens as the tokenizer spells them; the last one is the end token, unless the
            answer was cut to fit.
        logps: float32 [T], the log-prob in nats of each token, given image, question and the tokens
            before it.
        cut: whether it was cut to fit the longest row (`text.max_length`), as training does it.
    """

    answer: str
    tokens: tuple[str, ...]
    logps: np.ndarray
    cut: bool

    @property
    def total(self) -> float:
        """The log-prob of the whole answer in nats, the sum over its tokens."""
        return float(self.logps.sum(dtype=np.float64))


class Model:
    """A model that answers questions about images and scores answers.

    The weights are read when they are first needed. Of a run this is the aligned model; `base` is
    the model before alignment, which shares the frozen weights.

    Attributes:
        found: what was found at the path.
    """

    def __init__(
        self, found: FoundModel, mesh: jax.sharding.Mesh, other: Callable[[], Model] | None
    ) -> None:
        self.found, self._mesh, self._other = found, mesh, other

    def __repr__(self) -> str:
        """Returns the label."""
        return f"<{type(self).__name__} {self.label}>"

    @property
    def label(self) -> str:
        """Its name: the path, and which model of a run it is."""
        return self.found.label

    @functools.cached_property
    def opened(self) -> OpenedModel:
        """The loaded model: module, variables, tokenizer, mesh.

        Raises:
            DataError: files are missing, damaged or changed, or the alignment is not finished.
        """
        beside = None
        if self._other is not None and "opened" in vars(self._other()):
            beside = self._other().opened
        return self.found.load(self._mesh, beside, self._mesh.shape["tensor"])

    @property
    def base(self) -> Model:
        """The model of a run before its alignment.

        Raises:
            DataError: this is no run.
        """
        return self._of_run("base")

    @property
    def aligned(self) -> Model:
        """The aligned model of a run.

        Raises:
            DataError: this is no run.
        """
        return self._of_run("aligned")

    def _of_run(self, which: Literal["base", "aligned"]) -> Model:
        if self._other is None:
            raise DataError(f"{self.found.path} is not a run but one model; ask that itself")
        return self if self.found.which == which else self._other()

    @overload
    def answer(
        self, image: Images, question: str, max_new_tokens: int = ..., temperature: float = ...,
        top_p: float = ..., seed: int = ...,
    ) -> str: ...  # fmt: skip
    @overload
    def answer(
        self, image: Images, question: Sequence[str], max_new_tokens: int = ...,
        temperature: float = ..., top_p: float = ..., seed: int = ...,
    ) -> list[str]: ...  # fmt: skip
    def answer(
        self,
        image: Images,
        question: str | Sequence[str],
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> str | list[str]:
        """Answers a question about an image, or several questions, each asked alone.

        Args:
            image: path, PIL image, or uint8 [H, W, 3]; several in a list, in the order in which the
                question means them; None for a question without an image.
            question: the question, without template; or several about the same image.
            max_new_tokens: see `Sampling`.
            temperature: see `Sampling`; 0 always takes the likeliest token.
            top_p: see `Sampling`.
            seed: of the sampling. At a temperature, another seed gives another answer.

        Returns:
            The answer; a list of them for several questions.

        Raises:
            DataError: an image cannot be read, a question is empty or too long, or an option is out
                of range.
        """
        sampling = Sampling(max_new_tokens, temperature, top_p)
        if problems := list(out_of_range(sampling)):
            raise DataError("; ".join(problems))
        asked = [question] if isinstance(question, str) else list(question)
        names, load = _named(image)
        prompts = [Prompt(str(i), text, names) for i, text in enumerate(asked)]
        engine = self.opened.engine(min(len(prompts), _TOGETHER) or 1, seed)
        data = PromptSet(prompts, load)
        encoder = engine.encoder.sized(data.image_size)
        for prompt in prompts:
            trunk = encoder.trunk(prompt)
            encoder.fit(trunk, trunk[:1])  # room for at least one token
        for name in names:
            engine.processing(load(name))
        batches = engine.answer(data, sampling)
        texts = [answered.answers[0].strip() for batch in batches for answered in batch]
        return texts[0] if isinstance(question, str) else texts

    @overload
    def score(self, image: Images, question: str, answers: str) -> ScoredAnswer: ...
    @overload
    def score(self, image: Images, question: str, answers: Sequence[str]) -> list[ScoredAnswer]: ...
    def score(
        self, image: Images, question: str, answers: str | Sequence[str]
    ) -> ScoredAnswer | list[ScoredAnswer]:
        """Returns the log-probs of answers: those that training and the reference pass compute.

        Question and answers get the template of training, as tokens one after another, and every
        answer ends with the end token.

        Args:
            image: see `answer`.
            question: the question.
            answers: an answer, or several to the same question.

        Returns:
            One for each answer; not in a list for one answer that is not in a list.

        Raises:
            DataError: an image cannot be read, or a question or an answer cannot be encoded.
        """
        texts = (answers,) if isinstance(answers, str) else tuple(answers)
        if not texts:
            return []
        model, (names, load) = self.opened, _named(image)
        config, mesh = model.config, model.mesh
        comparison = Comparison(Prompt("0", question, names), texts)
        data = PromptSet([comparison.prompt], load)
        encoder = model.assets.encoder(config.text.train, config.text.max_length, data.image_size)
        (tree,), _ = fitting_trees(comparison, encoder)
        for name in names:
            model.assets.processing(load(name))  # says why it cannot be read
        rows = ComparisonRows(
            encode_comparisons([comparison], encoder), Pixels(load, model.assets.processing)
        )
        layout = PassLayout(mesh, row_multiple(mesh), RowShapes(1, lambda shape: shape.length))
        ((_, batch),) = layout.batches(rows)
        compute = _logps(
            cast(Any, model.model), StepOptions(head_chunk=config.compute.head_chunk), mesh
        )
        with jax.set_mesh(mesh):
            logps_KT = jax.device_get(compute(model.variables, put_batch(mesh, batch)))[0, 0]
        end = encoder.end_id
        scored = [
            ScoredAnswer(
                text,
                tuple(encoder.tokenizer.convert_ids_to_tokens(ids.tolist())),
                np.asarray(logps_T[: len(ids)], np.float32),
                bool(ids[-1] != end),
            )
            for text, ids, logps_T in zip(texts, tree.branches, logps_KT, strict=False)
        ]
        return scored[0] if isinstance(answers, str) else scored

    def pairs(self) -> Pairs:
        """Returns the pairs that the run was trained on; each is read when it is asked for.

        Raises:
            DataError: this is no run, or it has no pairs yet.
        """
        if not self.found.is_run:
            raise DataError(f"{self.found.path} is not a run, and only a run has pairs")
        path = self.found.path / "pairs.array_record"
        if not path.exists():
            raise DataError(f"{self.found.path}: its stage pairs is not finished, so it has none")
        return Pairs(path, self.found.config, self.found.assets.processing)


def open_model(
    path: str | os.PathLike[str],
    *,
    step: Step | None = None,
    base: str | Path = "",
    vision_tower: str | Path = "",
    template: Template | None = None,
    pad_to_square: bool | None = None,
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    devices: int | None = 1,
    same_base: bool = False,
) -> Model:
    """Opens a run, a checkpoint, an export or an adapter, to be asked.

    Nothing is written, and a run may be training meanwhile: then its `base` can be asked. Of a run
    neither images nor evaluations have to be there.

    Args:
        path: work directory of a run; directory of a LLaVA-1.5 model in Hugging Face's or the
            original layout; or directory of a LoRA adapter.
        step: the training step of a run's aligned model, of those that are kept, or the "best" by
            held-out loss, or the "last"; None takes what `TrainOptions.keep` says.
        base: of an adapter, see `ModelOptions`.
        vision_tower: see `ModelOptions`.
        template: see `ModelOptions`.
        pad_to_square: see `ModelOptions`.
        dtype: of a checkpoint or an adapter, the dtype of parameters and computation; a run has its
            own.
        devices: how many of the devices share the weights; None takes all of them.
        same_base: see `ModelOptions`.

    Returns:
        The model. Its weights are read when they are first needed.

    Raises:
        DataError: the path names no model, and what it is instead; or an option does not fit.
    """
    quiet_libraries()
    options = ModelOptions(
        str(base), str(vision_tower), template, pad_to_square,
        ComputeOptions(param_dtype=dtype, dtype=dtype), same_base,
    )  # fmt: skip
    path, mesh = as_path(path).expanduser(), first_devices(devices)
    if not is_run(path):
        return Model(find_model(path, step=step, options=options), mesh, None)
    before = find_model(path, "base", options=options)
    models = [
        Model(before.aligned(step), mesh, lambda: models[1]),
        Model(before, mesh, lambda: models[0]),
    ]
    return models[0]


@functools.lru_cache(maxsize=8)
def _logps(model: Any, options: StepOptions, mesh: jax.sharding.Mesh) -> Callable[..., Any]:
    """Returns the compiled pass over log-probs; one for each model, so that it compiles once."""
    return jax.jit(make_logps(model, options), out_shardings=replicated(mesh))


def _named(image: Images) -> tuple[tuple[str, ...], Callable[[str], np.ndarray]]:
    """Returns names for the images of a question, and the function that gives each."""
    several: list[Any] = list(image) if isinstance(image, list | tuple) else [image]
    decoded = {f"image {i + 1}": as_rgb(x) for i, x in enumerate(several) if x is not None}
    return tuple(decoded), decoded.__getitem__
