"""The nouns of the package: the records that its parts exchange.

What lives here: `Prompt`, `Rollout`, `Comparison`, `TreeBatch`, `BranchLogps`. What does not:
anything that computes. Read next: `seva_jax/training/step.py`, which turns a `TreeBatch` into a
loss.

Shape suffixes: the name of an array ends in one letter for each dim, and a letter means the same
in every file. A digit stands for a dim of that size.

    A  answer tokens of a row, or a part of them
    B  rows of a batch
    C  comparisons of a row
    D  width of the language model
    E  width of the vision tower
    F  inputs of a linear layer
    G  key and value heads
    H  query heads (after G: those that share a key and value head)
    I  tiles of a row: an image is one tile, or several
    J  rejected answers of a comparison, K - 1
    K  branches (answers) of a comparison
    L  layers
    M  features that an image token is a weighted sum of
    N  items of a flat list, such as the comparisons of all rows (B * C)
    O  outputs of a linear layer
    P  features of a tile, or of all tiles of a row (I * P)
    Q  width of an attention head
    R  rank of an adapter
    S  tokens of a row, or of a text
    T  tokens of an answer
    U  keys that a query may attend to: tokens of a row or slots of a cache
    V  vocabulary
    X  a tile as the model takes it: pixels [H, W, 3] or features [P, E]

    HW, HWC, CHW  height, width and the 3 colour channels of an image; only as such a group do
                  these letters have that meaning
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax

Array = Any  # jax.Array inside a step, np.ndarray on the host: both have the same notation

IMAGE_MARKER = "<image>"  # where an image goes in a question
SECONDS = "seconds_per_frame"  # in `Prompt.meta`
VIDEO_MARKER = "<video>"  # in a question whose images are the frames of one video

# What `patch_BS` says of a position that no feature of an image takes.
TEXT, NEWLINE = -1, -2  # a token of text; the model's learned end of a row of an image


class DataError(ValueError):
    """Bad input from outside. The message names the file or field and says what to do."""


class ExampleError(DataError):
    """One bad example among many: callers count it by `reason` and continue with the next.

    Attributes:
        reason: the key it is counted by: short, from a small fixed set, such as "empty answer".
    """

    def __init__(self, message: str, reason: str):
        super().__init__(message)
        self.reason = reason

    def __reduce__(self):
        # Worker processes pickle their exceptions to send them to the parent process.
        return type(self), (str(self), self.reason)


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One unlabelled question about zero or more images.

    Attributes:
        id: unique and stable; every random choice made for this prompt is derived from it.
        question: the text, without template and image tokens. With `VIDEO_MARKER` in it, the
            images are the frames of one video, see `about_video`.
        images: names that the prompt source can load, in order of appearance.
        meta: ground truth and provenance; strings, numbers and lists only. See also
            `seconds_per_frame`.
        start: the beginning of the answer. It belongs to the trunk: answers continue it, and
            training does not learn it.
    """

    id: str
    question: str
    images: tuple[str, ...]
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)
    start: str = ""

    @property
    def about_video(self) -> bool:
        """Whether the images are the frames of one video, which the model sees as one thing.

        The video goes in front of the question, wherever its marker is. Without images, the marker
        is a word of the question.
        """
        return bool(self.images) and VIDEO_MARKER in self.question

    @property
    def seconds_per_frame(self) -> float:
        """How far apart the frames of its video are, of which some models know the times.

        Raises:
            ExampleError: `meta` has something else than a positive number.
        """
        value = self.meta.get(SECONDS, 0.5)
        if type(value) not in (int, float) or not 0 < value < 1e6:
            raise ExampleError(
                f"{SECONDS} is {value!r}; give a positive number, or leave it out for 0.5",
                "seconds per frame",
            )
        return float(value)


@dataclasses.dataclass(frozen=True)
class Rollout:
    """The model's answers to one prompt.

    Attributes:
        prompt: the prompt.
        clean: the answer to the clean image, as decoded.
        corrupted: the answers to the same question about each corruption of the image, as decoded.
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

    Where the answers belong to different images, a comparison has several trees: the answers of
    `more` follow its own. Two examples: the same answer to the image (chosen) and to a changed
    image (rejected), as in MMedPO; the steps of two trajectories, as in GRAPE.

    Attributes:
        prompt: the trunk.
        answers: K texts; answers[0] is chosen, the others are rejected.
        weight: weight in the mean over comparisons, at least 0.
        corruptions: for each rejected answer, the index of the corruption it came from.
        scores: a judge's score of each answer of all trees, higher is better, in any unit; empty
            without a judge. Only objectives that ask for scores read them
            (`seva_jax/objectives/weighting.py`).
        more: further trees of the comparison.
        spans: for each answer, its marked phrases as [start, end) in characters; empty where
            nothing is marked. Only objectives of phrases read them
            (`seva_jax/objectives/phrases.py`).
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
        """Names of the images of all trees, in order; a name may occur more than once."""
        return tuple(name for view in self.views for name in view.prompt.images)

    @property
    def all_answers(self) -> tuple[str, ...]:
        """The answers of all trees, in the order of branches."""
        return tuple(answer for view in self.views for answer in view.answers)

    @property
    def texts(self) -> tuple[str, ...]:
        """The answers of all trees, each with the start that its prompt gives it."""
        return tuple(view.prompt.start + answer for view in self.views for answer in view.answers)


class Blend(NamedTuple):
    """Image tokens that are weighted sums of several features, as of a picture made smaller.

    Attributes:
        index_BSM: int32, indices into the row's features.
        weight_BSM: float32, their weights; 0 where `patch_BS` is negative.
    """

    index_BSM: Array
    weight_BSM: Array


Size = tuple[int, int]  # height and width of an image in pixels


class Frame(NamedTuple):
    """What the layout of a video depends on, for each of its frames, in place of a size.

    Attributes:
        height: height of the video in pixels; 0 for models that give all frames one size.
        width: its width; likewise.
        seconds: when the frame is shown, counted from the first; likewise.
        total: how many frames the video has; likewise.
    """

    height: int = 0
    width: int = 0
    seconds: float = 0.0
    total: int = 0


FRAME = Frame()
ImageSize = Size | Frame


def frames_of(size: Size, num: int, seconds: float) -> tuple[Frame, ...]:
    """Returns the frames of a video.

    Args:
        size: height and width of the first one, which all count as having.
        num: how many there are.
        seconds: how far apart they are, see `Prompt.seconds_per_frame`.
    """
    return tuple(Frame(*size, number * seconds, num) for number in range(num))


class Native(NamedTuple):
    """Where the tiles and tokens of an image lie that keeps its own size, as in Qwen-VL.

    Attributes:
        place_I5: int32, for each tile the picture that it belongs to (1, 2, ...; a frame of a video
            is one), its row and column in the grid of tiles, and that grid's rows and columns.
        position_N3: int32, for each token its position in time, its row and its column, counted
            from the position of the image.
        advance: by how much the position of what follows the image is larger than the image's.
    """

    place_I5: Array
    position_N3: Array
    advance: int


class ImageLayout(NamedTuple):
    """How one image of a size becomes tiles for the vision tower and tokens of a trunk.

    A video is laid out like an image: its tiles are its frames, or show two of them (Qwen-VL). One
    with text between its frames has several layouts (Qwen3-VL).

    Attributes:
        tiles: how many inputs of the vision tower it becomes.
        patch_N: int32, for each of its tokens, the index of the feature that it is among the
            features of all its tiles, or `NEWLINE`.
        blend: where tokens are sums of several features, these and their weights, [N, M]; M is the
            same for all images of a model.
        native: for images that keep their own size, where tiles and tokens lie in it.
    """

    tiles: int
    patch_N: Array
    blend: Blend | None = None
    native: Native | None = None

    @property
    def num_tokens(self) -> int:
        """Positions that it takes in a trunk."""
        return len(self.patch_N)


class Layouts(Protocol):
    """Gives the layouts of images for one model."""

    @property
    def one_layout(self) -> bool:
        """Whether all images have the same layout, whatever their sizes."""
        ...

    @property
    def tile_features(self) -> int:
        """Features that the vision tower makes of a tile, P."""
        ...

    @property
    def blended(self) -> int:
        """Features that an image token is a sum of, M; with 1, layouts have no `blend`."""
        ...

    @property
    def native(self) -> bool:
        """Whether images keep their own size: layouts have `native`, positions three axes."""
        ...

    @property
    def videos(self) -> bool:
        """Whether the model takes the frames of a video as one thing."""
        ...

    def captions(self, frames: Sequence[Frame]) -> tuple[str, ...]:
        """Returns the text in front of each layout of a video."""
        ...

    def __call__(self, sizes: Sequence[ImageSize]) -> tuple[ImageLayout, ...]:
        """Returns the layout of each image of a prompt, or those of its video.

        Args:
            sizes: heights and widths of the images; or the frames of a video.

        Raises:
            ExampleError: the model cannot take an image of this size.
        """
        ...


class TreeBatch(NamedTuple):
    """Rows of packed trees. A token attends to its own trunk and its own branch, causally.

    A row is `[trunk | branch 1 | ... | branch K | next trunk | ...]`; the positions of every
    branch continue those of its trunk. An example is a comparison, with one tree or several. A row
    contains everything that it needs, so sharding dim 0 needs no communication.

    Attributes:
        tokens_BS: int32 token ids; the image token at image positions.
        positions_BS: int32 rotary positions; [B, S, 3] for models of three axes: time, row, column.
        tree_BS: int32, the tree (1, 2, ...) of each token; 0 for padding.
        branch_BS: int32, the branch of each token, unique within the row; 0 for the trunk.
        patch_BS: int32, index of each image position into the row's I * P image features; `TEXT`
            or `NEWLINE` where no feature goes.
        images_BIX: float32 preprocessed tiles [H, W, 3], or their features from the frozen vision
            tower, [P, E].
        source_BA: int32, position in the row whose hidden state predicts each answer token.
        target_BA: int32 answer tokens of the row, one after another.
        slot_BCKT: int32, index of each answer token into A.
        mask_BCKT: float32, 1 where there is an answer token.
        weight_BC: float32, weight of each comparison; 0 where there is none.
        ref_BCKT: float32 reference log-probs of the answer tokens; zeros when not cached.
        index_BC: int32, index of each comparison in its data set; -1 where there is none.
        scores_BCK: float32, see `Comparison.scores`; zeros where there are none.
        spans_BCKT: float32, see `BranchLogps.spans_NKT`; zeros unless an objective needs them.
        blend: the features of image tokens that are sums of several; None where each is one.
        place_BI5: where each tile lies, see `Native.place_I5`, with pictures counted over the row
            and 0 for no tile; None for models whose images do not keep their own size.
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
    blend: Blend | None = None
    place_BI5: Array | None = None


class BranchLogps(NamedTuple):
    """Log-probs of answer tokens under one model, and what else an objective needs.

    All fields are float32. Those from `scores_NK` on are None unless `Objective.needs` names them.
    Fields with a T are 0 where there is no answer token.

    Attributes:
        logp_NKT: log-prob of each answer token, given its trunk and the answer up to it.
        mask_NKT: 1 where there is an answer token.
        weight_N: weight of each comparison in the mean, 0 where there is none; None for all 1.
            Only objectives of whole batches use it; for the others the step weights the losses.
        scores_NK: see `Comparison.scores`.
        log_sum_sq_NKT: `log sum_v p(v)^2` over the vocabulary, p the distribution that predicts
            the answer token; without gradient.
        best_other_NKT: log-prob of the likeliest token other than the answer token, in the same
            distribution.
        last_argmax_NT: log-prob, where the first branch predicts its token t, of the token that
            is likeliest where the last branch predicts its token t. The two branches are the same
            answer to different images. The choice of the token has no gradient, its log-prob has.
        kl_NKT: KL divergence `sum_v p_ref(v) (log p_ref(v) - log p_policy(v))` over the
            vocabulary, from the distributions that predict the answer token; in the policy's
            record only.
        spans_NKT: 1 for answer tokens inside marked phrases (`Comparison.spans`); where nothing is
            marked, for those that differ between the chosen and the rejected answer.
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
        """Log-prob of each whole answer, `log p(answer | trunk)`."""
        return (self.logp_NKT * self.mask_NKT).sum(-1)

    @property
    def exists_NK(self) -> jax.Array:
        """1 for branches with at least one answer token, 0 for padding."""
        return self.mask_NKT.max(-1)
