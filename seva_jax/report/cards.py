"""Cards of a run's page: its pairs, its own prompts, and questions of its evaluations.

What lives here: drawing the pictures again and choosing what is shown. What does not: the markup of
cards (`gallery.py`), collecting everything else (`run_report.py`).
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from seva_jax.config import Experiment, read_suites
from seva_jax.data.show import spread
from seva_jax.evals import StoredEvaluation
from seva_jax.evals.base import Record
from seva_jax.images import ImageProcessing
from seva_jax.inference.corrupted import corrupted_views
from seva_jax.report import markup
from seva_jax.report.data import ExampleCard, PairCard
from seva_jax.report.results import ALIGNED, BASE
from seva_jax.runtime.loggers import LoggedPair
from seva_jax.types import Comparison, DataError, ExampleError

_NUM_LOGGED = 8
# What alignment has seen of a prompt; see `run/own_prompts.py`.
_SEEN = {
    "new": "gave no training pair",
    "picture": "gave no training pair, but its picture did",
    "pair": "trained on",
}

LoadImage = Callable[[str], np.ndarray]


@dataclasses.dataclass
class Pictures:
    """Draws pictures as the model sees them, and remembers why some are missing.

    Attributes:
        config: the run's config.
        processing: image pipeline; None if it is not known.
        missing: why pictures are missing, with how many, by reason.
    """

    config: Experiment
    processing: ImageProcessing | None
    missing: dict[str, int] = dataclasses.field(default_factory=dict)

    def first(self, load_image: LoadImage | None, images: Sequence[str]) -> np.ndarray | None:
        """Returns the first image, uint8; None if it is missing, a grey square without any."""
        if not images:
            return np.full((32, 32, 3), 128, np.uint8)
        with self._missing():
            processing = self._ready(load_image)
            assert load_image is not None
            return processing.denormalise(processing(load_image(images[0])))
        return None

    def corrupted(
        self, load_image: LoadImage | None, comparison: Comparison
    ) -> tuple[tuple[np.ndarray, str], ...]:
        """Returns the first image under each corruption of a comparison, with its name."""
        if not comparison.prompt.images:
            return ()
        with self._missing():
            processing = self._ready(load_image)
            assert load_image is not None
            drawn = corrupted_views(
                comparison, load_image, processing, self.config.corrupt, self.config.seed
            )
            return tuple(
                (processing.denormalise(images[0]), markup.shorten(name, 40))
                for name, images in drawn
            )
        return ()

    def _ready(self, load_image: LoadImage | None) -> ImageProcessing:
        if load_image is None:
            raise DataError("their source cannot be opened")
        if self.processing is None:
            raise DataError("the image pipeline of the run is not known")
        return self.processing

    @contextlib.contextmanager
    def _missing(self) -> Iterator[None]:
        """Counts a picture that cannot be drawn in its body."""
        try:
            yield
        except (DataError, LookupError, OSError) as error:
            reason = error.reason if isinstance(error, ExampleError) else str(error)
            self.missing[reason] = self.missing.get(reason, 0) + 1


def pair_card(
    pictures: Pictures,
    load_image: LoadImage | None,
    comparison: Comparison,
    before: float,
    after: float,
) -> PairCard:
    """Returns the gallery card of a comparison with its reward margins before and after."""
    prompt, texts = comparison.prompt, comparison.texts
    clean = pictures.first(load_image, prompt.images)
    corrupted = pictures.corrupted(load_image, comparison) if clean is not None else ()
    truth = str(prompt.meta.get("answer", ""))
    return PairCard(
        prompt.id, prompt.question, clean, tuple(image for image, _ in corrupted), texts[0],
        texts[1:], before, after, truth, tuple(name for _, name in corrupted),
    )  # fmt: skip


def logged_pairs(
    config: Experiment,
    processing: ImageProcessing,
    load_image: LoadImage,
    comparisons: Sequence[Comparison],
) -> list[LoggedPair]:
    """Returns a few pairs, evenly spread, for the loggers; without those that do not decode."""
    pictures, logged = Pictures(config, processing), []
    for index in spread(len(comparisons), _NUM_LOGGED):
        card = pair_card(pictures, load_image, comparisons[index], 0.0, 0.0)
        if card.clean is not None:
            rejected = "".join(f"\nrejected: {answer}" for answer in card.rejected)
            text = f"{card.question}\nchosen: {card.chosen}{rejected}"
            logged.append(LoggedPair(np.concatenate((card.clean, *card.corrupted), axis=1), text))
    return logged


def own_cards(
    pictures: Pictures, load_image: LoadImage | None, answers: Sequence[Mapping[str, Any]]
) -> tuple[ExampleCard, ...]:
    """Returns cards of answers to the run's own prompts."""
    return tuple(
        ExampleCard(
            str(one["id"]), pictures.first(load_image, one["images"]), one["question"], "",
            one["base"], one["aligned"], "same" if one["base"] == one["aligned"] else "changed",
            seen=_SEEN[one["seen"]],
        )
        for one in answers
    )  # fmt: skip


def example_cards(pictures: Pictures, both: Sequence[StoredEvaluation]) -> tuple[ExampleCard, ...]:
    """Returns examples of every evaluation: changes for better or worse first, then others.

    Args:
        pictures: draws the pictures.
        both: evaluations of the base and of the aligned model.
    """
    most = pictures.config.report.num_examples
    cards = []
    for stored in both:
        before, after = stored.results[BASE], stored.results[ALIGNED]
        answers = {record["id"]: record for record in after.records}
        judged = []
        for old in before.records:
            new = answers[old["id"]]
            gain = _goodness(new) - _goodness(old)
            unmoved = "same" if old["answer"] == new["answer"] else "changed"
            verdict = "better" if gain > 0 else "worse" if gain < 0 else unmoved
            judged.append((verdict, old, new))
        quota = max(most // 3, 1)
        picked = []
        # The same number of better and worse ones, so as not to flatter.
        for verdict in ("better", "worse", "changed", "same"):
            of_kind = [x for x in judged if x[0] == verdict]
            picked += [of_kind[i] for i in spread(len(of_kind), quota)]
        load_image = _image_loader(stored, pictures.config) if picked[:most] else None
        for verdict, old, new in picked[:most]:
            image = pictures.first(load_image, old["images"])
            truth = old["truth"] if isinstance(old["truth"], str) else ", ".join(old["truth"])
            asked = (str(old["id"]), image, old["question"], truth)
            answered = (old["answer"], new["answer"], verdict)
            cards.append(ExampleCard(*asked, *answered, before.name))
    return tuple(cards)


def _image_loader(stored: StoredEvaluation, config: Experiment) -> LoadImage | None:
    """Returns the loader of an evaluation's images; None if they are not there any more."""
    suites = [suite for suite in config.evals if suite.name == stored.name]
    try:
        if not suites and stored.suite_file:
            suites = read_suites(str(stored.suite_file))
        return suites[0].open().load_image if suites else None
    except (DataError, LookupError, OSError):
        return None


def _goodness(record: Record) -> float:
    """Returns how good an answer is: exact answers, or CHAIR counts."""
    if "correct" in record:
        return record["correct"]
    return record.get("found", 0) - record.get("hallucinated", 0)
