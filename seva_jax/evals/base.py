"""What every evaluation shares: records, ratio metrics and bootstrap intervals.

What lives here: `Evaluator` (the extension point), `Ratio` (how a metric follows from records),
`Metric`, `EvalResult`, `bootstrap`, `paired_difference`. What does not: any particular score
(`exact.py`, `chair.py`, `pope.py`), files (`files.py`), tables (`table.py`), or code that runs a
model (`seva_jax/run/evaluations.py`). Read next: `exact.py`, the smallest evaluator.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from seva_jax.types import DataError, Prompt

Better = Literal["higher", "lower", "neither"]
Generate = Callable[[Sequence[Prompt]], list[str]]
Record = dict[str, Any]
_Stat = Callable[[np.ndarray], np.ndarray]

# Size of one block of bootstrap counts: 2 million int64 values take 16 MB.
_BLOCK_ELEMENTS = 2_000_000


@dataclasses.dataclass(frozen=True)
class Metric:
    """One measured number with its 95 % percentile bootstrap interval.

    Attributes:
        value: the metric on the examples themselves; NaN where undefined (zero denominator).
        low: 2.5th percentile over bootstrap samples; NaN where undefined.
        high: 97.5th percentile over bootstrap samples; NaN where undefined.
        n: how many examples contribute to the denominator.
    """

    value: float
    low: float
    high: float
    n: int


@dataclasses.dataclass(frozen=True)
class Ratio:
    """How a metric follows from records: sum(numerator) / sum(denominator) over examples.

    F1 is such a ratio too: (tp + tp) / (tp + tp + fp + fn).

    Attributes:
        better: which direction is an improvement.
        numerator: numeric record fields to add up; a field named twice counts twice.
        denominator: the fields to add up for the denominator.
        categories: empty to use all records at once; otherwise the metric is the unweighted mean
            of the ratios within each of these categories.
        within: the record field that holds a record's category (a string) or categories (a list).
    """

    better: Better
    numerator: tuple[str, ...]
    denominator: tuple[str, ...]
    categories: tuple[str, ...] = ()
    within: str = "category"


def each_category(
    ratios: Mapping[str, Ratio], prompts: Sequence[Prompt], field: str
) -> dict[str, Ratio]:
    """Returns the ratios within every category that occurs, named `category/name`.

    Args:
        ratios: the ratios by name.
        prompts: the prompts, whose `meta[field]`, if any, is a category or a list of several.
        field: the field of `meta`; the records hold the categories in a field of the same name.
    """
    labels = [prompt.meta.get(field, ()) for prompt in prompts]
    names = {n for x in labels for n in ([x] if isinstance(x, str) else x) if n}
    return {
        f"{category}/{name}": dataclasses.replace(ratio, categories=(category,), within=field)
        for category in sorted(names)
        for name, ratio in ratios.items()
    }


def meta_fields(prompt: Prompt, *names: str) -> Record:
    """Returns those of the named fields that the prompt's `meta` has, in this order."""
    return {name: prompt.meta[name] for name in names if name in prompt.meta}


@dataclasses.dataclass(frozen=True)
class EvalResult:
    """The result of one evaluation of one model.

    Attributes:
        name: name of the evaluation.
        metrics: the metrics, by name.
        records: one JSON-ready dict per example, with `id, question, images, answer, truth` and
            the numeric fields that `definitions` names.
        definitions: how each metric follows from the records, by metric name.
    """

    name: str
    metrics: dict[str, Metric]
    records: list[Record]
    definitions: dict[str, Ratio] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_records(
        cls, name: str, records: list[Record], definitions: Mapping[str, Ratio]
    ) -> EvalResult:
        """Computes every metric in `definitions`, with its interval, from the records.

        Raises:
            DataError: a record lacks a numeric field that a definition names.
        """
        terms = _terms(name, records, definitions.values())
        stat, sums = _stat(definitions.values()), terms.reshape(len(records), -1)
        metrics = _metrics(definitions, stat, sums, terms)
        return cls(name, metrics, records, dict(definitions))


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Asks a model every prompt, scores the answers and computes metrics.

    Subclass it to add an evaluation. A subclass defines `truth`, `definitions` and `score`. It
    overrides `scores` if an answer cannot be scored on its own, and `__call__` if there is not one
    answer per prompt.

    Attributes:
        name: names the evaluation in tables and files; unique within a run.
    """

    name: str

    def truth(self, prompt: Prompt) -> Any:
        """Returns the right answer to one prompt, JSON-ready.

        Raises:
            DataError: the prompt's `meta` lacks what this evaluation needs.
        """
        raise NotImplementedError

    def definitions(self, prompts: Sequence[Prompt]) -> dict[str, Ratio]:
        """Returns the metrics to report; they depend on prompts only, so models are comparable."""
        raise NotImplementedError

    def score(self, prompt: Prompt, answer: str) -> Record:
        """Returns the fields to add to a record; those that `definitions` names are numbers."""
        raise NotImplementedError

    def scores(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[Record]:
        """Returns `score` of every answer, in order."""
        return [self.score(p, a) for p, a in zip(prompts, answers, strict=True)]

    def __call__(self, generate: Generate, prompts: Sequence[Prompt]) -> EvalResult:
        """Evaluates one model.

        Args:
            generate: answers prompts; returns one text per prompt, in order.
            prompts: the examples, with unique ids.

        Returns:
            Metrics with intervals, and one record per prompt, in order. Every record also has
            `count` = 1, the denominator of a plain mean.

        Raises:
            DataError: there are no prompts, an id is repeated or a prompt has no ground truth (all
                checked before anything is generated); or `generate` returned the wrong number of
                answers.
        """
        if not prompts:
            raise DataError(f"{self.name}: there are no prompts to evaluate; pass at least one")
        _check_unique(self.name, [prompt.id for prompt in prompts])
        truths = [self.truth(prompt) for prompt in prompts]
        definitions = self.definitions(prompts)
        answers = generate(prompts)
        if len(answers) != len(prompts):
            raise DataError(
                f"{self.name}: generate returned {len(answers)} answers for {len(prompts)} "
                "prompts; it must return one for each"
            )
        records = [
            {
                "id": prompt.id,
                "question": prompt.question,
                "images": list(prompt.images),
                "answer": answer,
                "truth": truth,
                "count": 1,
                **scored,
            }
            for prompt, answer, truth, scored in zip(
                prompts, answers, truths, self.scores(prompts, answers), strict=True
            )
        ]
        return EvalResult.from_records(self.name, records, definitions)


def bootstrap(
    stat: Callable[[np.ndarray], np.ndarray],
    sums_per_example: np.ndarray,
    num_samples: int = 2000,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Computes 95 % percentile bootstrap intervals for functions of sums over examples.

    Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), section 13.3. Examples are
    resampled independently, even those that share an image.

    Args:
        stat: maps sums [..., num sums] to values [..., num values]; NaN where undefined. Samples
            where it is undefined are left out of the interval.
        sums_per_example: [N, num sums], what each example adds to each sum.
        num_samples: how many times N examples are resampled.
        seed: seed of the resampling; the same seed gives the same interval.

    Returns:
        (values, lows, highs), each [num values]: the values on the examples themselves, and the
        2.5th and 97.5th percentiles, which are NaN wherever the value is.
    """
    sums = np.asarray(sums_per_example, np.float64)
    distinct, repeats = np.unique(sums, axis=0, return_counts=True)
    # If N examples are drawn with replacement, the counts of the *distinct* rows follow a
    # multinomial distribution. Sampling the counts is cheaper, because few rows are distinct.
    rng = np.random.default_rng(seed)
    num_examples = int(repeats.sum())
    block = max(1, _BLOCK_ELEMENTS // len(distinct))
    sizes = [min(block, num_samples - start) for start in range(0, num_samples, block)]
    shares = repeats / num_examples
    resampled = np.concatenate([rng.multinomial(num_examples, shares, n) @ distinct for n in sizes])
    values = np.asarray(stat(repeats @ distinct))
    lows, highs = np.full_like(values, np.nan), np.full_like(values, np.nan)
    for m, sample in enumerate(np.asarray(stat(resampled)).T):
        defined = sample[~np.isnan(sample)]
        if defined.size and not np.isnan(values[m]):
            lows[m], highs[m] = np.percentile(defined, [2.5, 97.5])
    return values, lows, highs


def paired_difference(base: EvalResult, other: EvalResult, metric: str) -> Metric:
    """Returns `other` minus `base` in one metric, resampling the same examples for both.

    Raises:
        DataError: as `paired_differences`; or the results do not have this metric.
    """
    differences = paired_differences(base, other)
    if metric not in differences:
        raise DataError(
            f"{base.name}: there is no metric {metric!r}; choose from {', '.join(differences)}"
        )
    return differences[metric]


def paired_differences(base: EvalResult, other: EvalResult) -> dict[str, Metric]:
    """Returns `other` minus `base` in every metric, resampling the same examples for both.

    Records are matched by id. The `n` of a difference counts the examples that contribute to the
    denominator of either result.

    Raises:
        DataError: the two results are not about the same examples and metrics.
    """
    if base.definitions != other.definitions:
        raise DataError(
            f"{base.name}: the two results define their metrics differently "
            f"({', '.join(base.definitions)} against {', '.join(other.definitions)}); "
            "evaluate both models with the same evaluator"
        )
    definitions = base.definitions.values()
    aligned = _match(base, other)
    base_terms = _terms(base.name, base.records, definitions)
    other_terms = _terms(other.name, aligned, definitions)
    num_examples, num_terms, _ = base_terms.shape
    both = np.concatenate([base_terms, other_terms], axis=1).reshape(num_examples, -1)
    stat = _stat(definitions)

    def difference(sums: np.ndarray) -> np.ndarray:
        return stat(sums[..., 2 * num_terms :]) - stat(sums[..., : 2 * num_terms])

    return _metrics(base.definitions, difference, both, base_terms + other_terms)


def _check_unique(name: str, ids: Sequence[Any]) -> None:
    seen = set()
    for id_ in ids:
        if id_ in seen:
            raise DataError(f"{name}: the id {id_!r} appears twice; give each example its own")
        seen.add(id_)


def _match(base: EvalResult, other: EvalResult) -> list[Record]:
    """Returns the records of `other` in the order of `base`; both must have the same examples."""
    ids, other_ids = ([record.get("id") for record in r.records] for r in (base, other))
    _check_unique(base.name, ids)
    _check_unique(other.name, other_ids)
    unmatched = set(ids) ^ set(other_ids)
    if unmatched:
        shown = ", ".join(sorted(map(str, unmatched))[:3])
        raise DataError(
            f"{base.name}: {len(unmatched)} ids are in only one of the two results "
            f"(for example {shown}); evaluate both models on the same prompts"
        )
    others = dict(zip(other_ids, other.records, strict=True))
    for record, field in itertools.product(base.records, ("question", "images", "truth")):
        if record.get(field) != others[record["id"]].get(field):
            raise DataError(
                f"{base.name}: example {record['id']!r} differs in {field!r} between the two "
                "results; evaluate both models on the same prompts"
            )
    return [others[id_] for id_ in ids]


def _terms(name: str, records: Sequence[Record], definitions: Collection[Ratio]) -> np.ndarray:
    """Returns what each example adds to (numerator, denominator) of each term: [N, num terms, 2].

    A definition has one term, or one for each of its categories.
    """
    if not records or not definitions:
        raise DataError(
            f"{name}: {'no metric definitions' if records else 'no records'} to compute metrics "
            "from; evaluate again"
        )
    used = {field for d in definitions for field in d.numerator + d.denominator}
    for field, record in itertools.product(used, records):
        if not isinstance(record.get(field), int | float):
            raise DataError(
                f"{name}: record {record.get('id')!r} has no number in field {field!r}; "
                "evaluate again"
            )
    columns = {f: np.array([record[f] for record in records], np.float64) for f in used}

    def inside(definition: Ratio, category: str) -> np.ndarray:
        labels = [record.get(definition.within, "") for record in records]
        return np.array([category in x if isinstance(x, list) else category == x for x in labels])

    terms = [
        [sum(columns[f] * mask for f in fields) for fields in (d.numerator, d.denominator)]
        for d in definitions
        for mask in [inside(d, c) for c in d.categories] or [np.ones(len(records))]
    ]
    return np.array(terms, np.float64).transpose(2, 0, 1)


def _stat(definitions: Collection[Ratio]) -> _Stat:
    """Returns a function from sums [..., num terms * 2] to metrics [..., num metrics]."""
    spans = _spans(definitions)

    def stat(sums: np.ndarray) -> np.ndarray:
        top, bottom = sums[..., 0::2], sums[..., 1::2]
        ratios = np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom != 0)
        return np.stack([ratios[..., a:b].mean(-1) for a, b in spans], axis=-1)

    return stat


def _spans(definitions: Collection[Ratio]) -> list[tuple[int, int]]:
    """Returns the half-open range of terms that belongs to each definition."""
    sizes = (max(1, len(d.categories)) for d in definitions)
    return list(itertools.pairwise(itertools.accumulate(sizes, initial=0)))


def _metrics(
    definitions: Mapping[str, Ratio], stat: _Stat, sums: np.ndarray, terms: np.ndarray
) -> dict[str, Metric]:
    """Returns `stat` of the sums with intervals; `n` counts examples with a denominator."""
    spans = _spans(definitions.values())
    counts = [int((terms[:, a:b, 1] != 0).any(-1).sum()) for a, b in spans]
    numbers = zip(definitions, *bootstrap(stat, sums), counts, strict=True)
    return {name: Metric(*map(float, interval), n=n) for name, *interval, n in numbers}
