"""The nouns everything else is made of.

What lives here: `Prompt`, `Rollout`, `Comparison`, `TreeBatch`, `BranchLogps`. What does not:
anything that computes. Read next: `seva_jax/training/step.py`, which turns a `TreeBatch` into a loss.

Shape suffixes used across the package: B rows, S row length, C comparisons per row, K branches
per comparison, T answer tokens per branch, A answer tokens per row, I images per row, X what an
image is to the model, P patches per image, H/W image height and width, D model width, V
vocabulary, L layers.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax

Array = Any  # jax.Array inside a step, np.ndarray on the host: NumPy and JAX share the notation

IMAGE_MARKER = "<image>"  # where an image goes in a question


class DataError(ValueError):
    """Bad input from outside. The message names the file or field and says what to do."""


class ExampleError(DataError):
    """One bad example among many: callers count it by `reason` and go on.

    Attributes:
        reason: short and from a small fixed set, such as "empty answer"; the key of a counter.
    """

    def __init__(self, message: str, reason: str):
        super().__init__(message)
        self.reason = reason

    def __reduce__(self):
        # Data workers send their exceptions to the parent process by pickle.
        return type(self), (str(self), self.reason)


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One unlabelled question about zero or more images.

    Attributes:
        id: unique and stable; keys every random choice made for this prompt.
        question: text without template or image token.
        images: names the prompt source can load, in order of appearance.
        meta: ground truth or provenance; strings, numbers and lists only.
        start: the beginning of the answer. It belongs to the trunk: answers go on from there, and
            nothing of it is learnt.
    """

    id: str
    question: str
    images: tuple[str, ...]
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)
    start: str = ""


@dataclasses.dataclass(frozen=True)
class Rollout:
    """What the model answered to one prompt.

    Attributes:
        prompt: the prompt answered.
        clean: raw decoded answer on the clean image.
        corrupted: raw decoded answers, one for each corruption, same question.
    """

    prompt: Prompt
    clean: str
    corrupted: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class View:
    """Images and a question, with answers to them.

    Attributes:
        prompt: the trunk.
        answers: the branches.
    """

    prompt: Prompt
    answers: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One trunk (images and question) with K branches (answers), best first.

    Where the sides see different images, a comparison has several trees: the answers of `more`
    follow its own. Two examples: the same answer to the image (chosen) and to a changed image
    (rejected), as in MMedPO; the steps of two trajectories, as in GRAPE.

    Attributes:
        prompt: the trunk.
        answers: K texts; answers[0] is chosen, the others are rejected.
        weight: weight in the mean over comparisons, at least 0.
        corruptions: for each rejected answer, the index of the corruption it came from.
        scores: how good each answer of all trees is, in any unit, where a judge said so; or empty.
            Only objectives that ask for scores read them (`objectives/weighting.py`).
        more: further trees of the comparison.
        spans: for each answer, the phrases that were marked, as [start, end) in characters; or
            empty where nobody marked any. Only objectives of phrases read them.
    """

    prompt: Prompt
    answers: tuple[str, ...]
    weight: float = 1.0
    corruptions: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()
    more: tuple[View, ...] = ()
    spans: tuple[tuple[tuple[int, int], ...], ...] = ()

    @property
    def views(self) -> tuple[View, ...]:
        """All trees."""
        return (View(self.prompt, self.answers), *self.more)

    @property
    def images(self) -> tuple[str, ...]:
        """Names of the images of all trees, in order; some may come twice."""
        return tuple(name for view in self.views for name in view.prompt.images)

    @property
    def all_answers(self) -> tuple[str, ...]:
        """The answers of all trees, in the order of branches."""
        return tuple(answer for view in self.views for answer in view.answers)

    @property
    def texts(self) -> tuple[str, ...]:
        """As `all_answers`, each whole: behind the start that its prompt gives it."""
        return tuple(view.prompt.start + answer for view in self.views for answer in view.answers)


class TreeBatch(NamedTuple):
    """Rows of packed trees. A token sees its own trunk and its own branch, causally.

    A row is `[trunk | branch 1 | ... | branch K | next trunk | ...]`; positions restart after
    the trunk for every branch. One example is one comparison, of one tree or several. Everything
    a row needs is inside the row, so sharding dim 0 needs no communication.

    Attributes:
        tokens_BS: int32 token ids (image positions hold the image token).
        positions_BS: int32 rotary positions.
        tree_BS: int32, 0 for padding, otherwise the tree (1, 2, ...) of each token.
        branch_BS: int32, 0 for trunk, otherwise the branch, unique within the row.
        patch_BS: int32, -1 for text, otherwise an index into the row's I * P image features.
        images_BIX: float32 preprocessed images [H, W, 3], or what the frozen vision tower made of
            them, [P, width of the tower].
        source_BA: int32 row index whose hidden state predicts each answer token of the row.
        target_BA: int32 answer tokens of the row, one after another.
        slot_BCKT: int32 index into A of each answer token.
        mask_BCKT: float32, 1 where there is an answer token.
        weight_BC: float32, 0 where there is no comparison.
        ref_BCKT: float32 reference log-probs of the answer tokens; zeros when not cached.
        index_BC: int32 index of each comparison in its data set; -1 where there is none.
        scores_BCK: float32, see `Comparison.scores`; zeros where there are none.
        spans_BCKT: float32, see `BranchLogps.spans_NKT`; zeros unless asked for.
    """

    tokens_BS: Array
    positions_BS: Array
    tree_BS: Array
    branch_BS: Array
    patch_BS: Array
    images_BIX: Array
    source_BA: Array
    target_BA: Array
    slot_BCKT: Array
    mask_BCKT: Array
    weight_BC: Array
    ref_BCKT: Array
    index_BC: Array
    scores_BCK: Array
    spans_BCKT: Array


class BranchLogps(NamedTuple):
    """Log-probs of answer tokens, in float32, and what else an objective asked for.

    Attributes:
        logp_NKT: log-prob of each answer token; 0 where there is none.
        mask_NKT: 1 where there is an answer token.
        weight_N: weight of each comparison in the mean, 0 where there is none; None: all 1. Only
            objectives of whole batches need it, the step weighs the losses of all others.
        scores_NK: see `Comparison.scores`. This and the following are None unless asked for
            (`Objective.needs`), and 0 where there is no answer token.
        log_sum_sq_NKT: `log sum_v p(v)^2` at each answer token, without gradient.
        best_other_NKT: log-prob of the likeliest token that is not the answer token.
        last_argmax_NT: for each token of the first branch, the log-prob there of the token that is the
            likeliest after the same tokens in the last branch, whose trunk has other images.
        kl_NKT: KL divergence from the reference to the policy, `sum_v p_ref(v) (log p_ref(v) -
            log p_policy(v))`, over the vocabulary; of the policy only.
        spans_NKT: 1 for answer tokens inside marked phrases (`Comparison.spans`); where nobody
            marked any, for those that differ between chosen and rejected answer.
    """

    logp_NKT: jax.Array
    mask_NKT: jax.Array
    weight_N: jax.Array | None = None
    scores_NK: jax.Array | None = None
    log_sum_sq_NKT: jax.Array | None = None
    best_other_NKT: jax.Array | None = None
    last_argmax_NT: jax.Array | None = None
    kl_NKT: jax.Array | None = None
    spans_NKT: jax.Array | None = None

    @property
    def sums_NK(self) -> jax.Array:
        """Summed log-prob of each branch, `log p(answer | trunk)`."""
        return (self.logp_NKT * self.mask_NKT).sum(-1)

    @property
    def exists_NK(self) -> jax.Array:
        """1 for branches with at least one token, 0 for padding branches."""
        return self.mask_NKT.max(-1)
