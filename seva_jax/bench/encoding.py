"""Pairs encoded per second on one core: ours compared with transformers, text by text.

Both encode a question and two answers behind it, as a run does; the ids have to agree. The words of
the texts are drawn as often as those of a language are, so some come again and many do not.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Annotated

import numpy as np

from seva_jax.bench.timing import in_turns, machine, one_core, table
from seva_jax.images import ImageLayouts, ImageProcessing
from seva_jax.ranges import FROM_1
from seva_jax.text import VICUNA_V1, EncodedTree, Encoder
from seva_jax.text.tokenizer import load_tokenizer
from seva_jax.types import IMAGE_MARKER, DataError, Prompt, View


@dataclasses.dataclass(frozen=True)
class EncodingBench:
    """Pairs encoded per second on one core: ours, and transformers text by text.

    Attributes:
        tokenizer: folder of a LLaVA in the original layout, or its tokenizer files alone.
        pairs: number of pairs in a round.
        words: number of different words in all texts.
        rounds: timed rounds of each side.
    """

    tokenizer: str = ""
    pairs: Annotated[int, FROM_1] = 5000
    words: Annotated[int, FROM_1] = 50_000
    rounds: Annotated[int, FROM_1] = 5


@one_core()
def run_encoding(bench: EncodingBench) -> None:
    """Measures both sides in turns and prints a table.

    Raises:
        DataError: there is no tokenizer, or the ids of the two sides differ.
    """
    if not bench.tokenizer:
        raise DataError("give --tokenizer, a folder with Llama's tokenizer.model")
    tokenizer = load_tokenizer(bench.tokenizer, original=True)
    image = tokenizer.convert_tokens_to_ids(IMAGE_MARKER)
    assert isinstance(image, int)
    views, template = _views(bench), VICUNA_V1

    def ours() -> list[EncodedTree]:
        layouts = ImageLayouts(ImageProcessing(), 1)
        trees = Encoder(tokenizer, template, image, layouts, 2048).trees(views)
        return [tree for tree in trees if isinstance(tree, EncodedTree)]

    def transformers() -> list[list[list[int]]]:
        out = []
        for view in views:
            prompt = template.prompt(view.prompt.question)
            texts = [prompt, *(prompt + template.before_answer + x for x in view.answers)]
            out.append([list(tokenizer(text).input_ids) for text in texts])
        return out

    end = tokenizer.eos_token_id
    together = [
        [tree.trunk.tolist(), *([*tree.trunk.tolist(), *b.tolist()] for b in tree.branches)]
        for tree in ours()
    ]
    if together != [[before, *([*ids, end] for ids in joint)] for before, *joint in transformers()]:
        raise DataError("the ids of the two sides differ; please report this")
    times = in_turns({"ours": ours, "transformers": transformers}, bench.rounds)
    print(f"{bench.pairs:,} pairs of {bench.words:,} different words, equal ids, one core")
    print(machine(["transformers", "tokenizers"], bench.rounds))
    print(table(times, 16, "pairs", bench.pairs, "transformers", 0))


def _views(bench: EncodingBench) -> list[View]:
    """Draws questions of 5 to 20 words and answers of 15 to 60; the k-th word has weight 1 / k."""
    rng = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfw"))
    words = np.array(
        ["".join(rng.choice(letters, rng.integers(2, 10))) for _ in range(bench.words)]
    )
    weights = 1 / np.arange(1, bench.words + 1)
    drawn = iter(rng.choice(words, 140 * bench.pairs, p=weights / weights.sum()).tolist())

    def text(least: int, most: int) -> str:
        num = int(rng.integers(least, most + 1))
        return " ".join(itertools.islice(drawn, num)) + "."

    return [
        View(Prompt(str(i), text(5, 20), ("image",)), (text(15, 60), text(15, 60)))
        for i in range(bench.pairs)
    ]
