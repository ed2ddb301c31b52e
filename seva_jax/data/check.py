"""The preflight check of a data set: which examples a run can use, and why it cannot use others.

What lives here: encoding every text, decoding every image, and the summary in words. What does not:
the checks that `open()` makes already (`collect.py`); the command (`__main__.py`).
"""

from __future__ import annotations

import array
import collections
import concurrent.futures
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from seva_jax.batches.fitting import fitting, unknown_words
from seva_jax.data.collect import counted, leave_out
from seva_jax.data.sources import PreferenceSet, PromptSet
from seva_jax.runtime.garbage import no_search_for_cycles
from seva_jax.runtime.progress import Progress
from seva_jax.runtime.read_ahead import READERS
from seva_jax.text.encode import EncodedTree, Encoder
from seva_jax.types import Comparison, DataError, ExampleError, Prompt, View


@dataclasses.dataclass(frozen=True)
class Checked:
    """The result of a check.

    Attributes:
        kind: "pairs", or "prompts" (also those with one answer each).
        num_examples: number of examples in the source, including those it left out.
        num_usable: number of examples whose texts fit and whose images decode.
        drops: counts of examples that cannot be used, by reason.
        notes: what was left out inside examples, see `PromptSet`.
        num_images: number of distinct images.
        bad_images: name -> reason of each image that does not decode.
        sizes: width and height of the other images, [N, 2].
        trunk_tokens: length of the trunk (images, template and question) of each tree, for examples
            whose texts fit.
        answer_tokens: length of each answer in all trees of those examples.
        num_cut: number of answers that would be cut to fit.
        unknown: words of questions that the tokenizer lacks, each with the number of examples that
            have it; the model sees its unknown token there.
        max_length: tokens that a trunk and an answer may have; 0 if no text was encoded.
        left_out: where each of the first examples that cannot be used is, and why.
    """

    kind: str
    num_examples: int
    num_usable: int
    drops: collections.Counter[str]
    notes: collections.Counter[str]
    num_images: int
    bad_images: dict[str, str]
    sizes: np.ndarray
    trunk_tokens: np.ndarray
    answer_tokens: np.ndarray
    num_cut: int
    unknown: collections.Counter[str]
    max_length: int
    left_out: Sequence[str] = ()

    def describe(self) -> str:
        """Returns the summary as lines of text."""
        bad = collections.Counter(self.bad_images.values())
        lines = [
            f"{self.kind:8} {self.num_usable:,} usable of {self.num_examples:,}",
            f"dropped  {counted(self.drops) or 'none'}",
            *_some(self.left_out),
            f"images   {self.num_images:,} different ones; {counted(bad) or 'all decode'}",
        ]
        lines += _some(list(self.bad_images))
        if len(self.sizes):
            width, height = np.median(self.sizes, axis=0)
            lines.append(
                f"sizes    median {width:.0f} x {height:.0f} pixels, "
                f"sides {self.sizes.min():,} to {self.sizes.max():,}"
            )
        if self.max_length:
            spread = _spread(self.trunk_tokens)
            lines.append(f"trunks   {spread}; text.max_length {self.max_length:,}")
        if len(self.answer_tokens):
            lines.append(f"answers  {_spread(self.answer_tokens)}; {self.num_cut:,} cut to fit")
        if self.unknown:
            words = ", ".join(f"{word!r} in {n:,}" for word, n in self.unknown.most_common(5))
            lines.append(
                f"unknown  {len(self.unknown):,} words of questions that the tokenizer lacks: "
                f"{words}" + ", ..." * (len(self.unknown) > 5)
            )
        if self.notes:
            lines.append(f"left out inside {self.kind}: {counted(self.notes)}")
        return "\n".join(lines)

    def require_all(self, what: str = "") -> None:
        """Raises an error if any example cannot be used, for `Experiment.strict`.

        Args:
            what: says in the message which data it is about; empty for a run's prompts.

        Raises:
            DataError: the message counts all unusable examples and names the first ones.
        """
        if self.drops:
            raise DataError(
                f"strict: {what}{self.drops.total():,} of {self.num_examples:,} {self.kind} cannot "
                f"be used ({counted(self.drops)}); fix or remove them, or leave out --strict:\n"
                + "\n".join(_some(self.left_out))
            )


def _some(lines: Sequence[str]) -> list[str]:
    return [f"         {line}" for line in lines[:5]] + ["         ..."] * (len(lines) > 5)


def _spread(lengths: np.ndarray) -> str:
    if not len(lengths):
        return "none"
    low, middle, high, most = np.percentile(lengths, (0, 50, 95, 100))
    return f"{low:,.0f} to {most:,.0f} tokens, median {middle:,.0f}, 95 % up to {high:,.0f}"


@no_search_for_cycles()
def check(
    data: PromptSet, encoder: Encoder | None, bar: Callable[[str, int, str], Progress]
) -> Checked:
    """Encodes every text and decodes every image, in all trees of a comparison.

    Args:
        data: the opened source.
        encoder: the run's encoder, with the template for these examples; None encodes no text.
        bar: makes a progress bar from its name, the total, and the unit.
    """
    pairs = isinstance(data, PreferenceSet)
    compared = data.comparisons if pairs else []
    examples = compared or data.prompts
    names = dict.fromkeys(name for example in examples for name in example.images)
    bad, sizes = {}, []
    with (
        concurrent.futures.ThreadPoolExecutor(READERS if data.remote else 8) as pool,
        bar("check", len(names), "image") as shown,
    ):
        decoded = pool.map(lambda name: _decode(data, name), names)
        for name, size in zip(names, decoded, strict=True):
            if isinstance(size, str):
                bad[name] = size
            else:
                sizes.append(size)
            shown.update()
    drops, cut, usable = data.drops.copy(), 0, 0
    trunks, answers = array.array("q"), array.array("q")
    unknown: collections.Counter[str] = collections.Counter()
    left_out = list(data.left_out)
    encoded = trees_of_each(examples, encoder) if encoder else itertools.repeat(())
    for prompt, example, trees in zip(data.prompts, examples, encoded, strict=False):
        if isinstance(trees, ExampleError):
            leave_out(prompt.id, trees, drops, left_out)
            continue
        trunks.extend(len(tree.trunk) for tree in trees)
        answers.extend(len(branch) for tree in trees for branch in tree.branches)
        cut += sum(tree.truncated for tree in trees)
        if encoder and trees:
            unknown.update(unknown_words(prompt.question, trees[0].trunk, encoder))
        if broken := [name for name in example.images if name in bad]:
            leave_out(prompt.id, ExampleError(broken[0], bad[broken[0]]), drops, left_out)
        else:
            usable += 1
    return Checked(
        kind="pairs" if any(len(example.all_answers) > 1 for example in compared) else "prompts",
        num_examples=len(data.prompts) + data.drops.total(),
        num_usable=usable,
        drops=drops,
        notes=data.notes,
        num_images=len(names),
        bad_images=bad,
        sizes=np.array(sizes, int).reshape(-1, 2),
        trunk_tokens=np.array(trunks, int),
        answer_tokens=np.array(answers, int),
        num_cut=cut,
        unknown=unknown,
        max_length=encoder.max_length if encoder else 0,
        left_out=left_out,
    )


def trees_of_each(
    examples: Sequence[Prompt | Comparison], encoder: Encoder
) -> Iterator[Sequence[EncodedTree] | ExampleError]:
    """Encodes examples as a run does: the trunks, and the answers that they have.

    Args:
        examples: prompts alone, or comparisons alone.
        encoder: encodes them.

    Yields:
        For each example, in order, its trees, or why it cannot be used, for example because no
        answer has room after a trunk.
    """
    compared = [example for example in examples if isinstance(example, Comparison)]
    if compared:
        for fitted in fitting(compared, encoder):
            yield fitted if isinstance(fitted, ExampleError) else fitted.trees
        return
    prompts = (example for example in examples if isinstance(example, Prompt))
    for tree in encoder.trees(View(prompt, ()) for prompt in prompts):
        try:
            if not isinstance(tree, ExampleError):
                encoder.fit(tree.trunk, tree.trunk[:1])  # room for at least one answer token
            yield tree if isinstance(tree, ExampleError) else [tree]
        except ExampleError as error:
            yield error


def _decode(data: PromptSet, name: str) -> tuple[int, int] | str:
    """Returns width and height of an image, or the reason why it does not decode."""
    try:
        height, width, _ = data.load_image(name).shape
    except ExampleError as error:
        return error.reason
    return width, height
