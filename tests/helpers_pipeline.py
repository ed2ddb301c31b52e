"""Comparisons with made-up images, as rows and as batches of a run."""

import numpy as np

from seva_jax.batches.encoded import encode_comparisons
from seva_jax.batches.image_inputs import Pixels
from seva_jax.batches.pipeline import Batches, ComparisonRows, RowShapes, num_steps, shuffled
from seva_jax.images import ImageLayouts, ImageProcessing
from seva_jax.text.encode import Encoder
from seva_jax.text.templates import PLAIN
from seva_jax.text.tokenizer import word_tokenizer
from seva_jax.types import Comparison, Prompt

WORDS = ("USER", "ASSISTANT", ":", "what", "is", "it", *"abcdefgh")
TOKENIZER = word_tokenizer(WORDS)
IMAGE = TOKENIZER.convert_tokens_to_ids("<image>")
PATCHES = 3
SIZE = 4
LAYOUTS = ImageLayouts(ImageProcessing(size=SIZE), PATCHES)
ONE = (0, 1)  # all of a batch, on one process


def encoder(**options):
    """Makes an encoder of words, with `PATCHES` tokens an image."""
    return Encoder(TOKENIZER, PLAIN, IMAGE, LAYOUTS, **{"max_length": 64} | options)


def comparison(index, images=1, answers=("a", "b c"), weight=1.0):
    """Makes a comparison; its prompt's id tells it from others."""
    names = tuple(f"{index}/{i}" for i in range(images))
    return Comparison(Prompt(f"p{index}", "what is it", names), tuple(answers), weight)


def load_image(name):
    """Returns an image of one grey level, other for every name."""
    index, number = map(int, name.split("/"))
    return np.full((SIZE, SIZE, 3), 10 * index + number, np.uint8)


def rows(comparisons, load=load_image, reference=None, **options):
    """Makes rows of comparisons, of the smallest shape."""
    encoded = encode_comparisons(comparisons, encoder(**options))
    return ComparisonRows(encoded, Pixels(load, ImageProcessing(size=SIZE)), reference)


def single_row(data, index):
    """Returns a row that holds one comparison."""
    return data.row([index], data.shape)


def indices(batch):
    """Returns the index in the data of every row; -1 for rows without a comparison."""
    return batch.index_BC[:, 0].tolist()


def iterate(data, share, batch_size, steps, epochs=1, repeat=1, seed=0, most=1, unit=1):
    """Iterates over a run's batches; by default every comparison has a row of its own."""
    members = shuffled(data, batch_size, steps, epochs, repeat, seed)
    shapes = RowShapes(most, lambda shape: shape.length)
    return Batches.chosen(data, members, batch_size, share, unit, shapes).iterate()


def run(data, batch_size, epochs=1, repeat=1, seed=0, max_steps=0, **options):
    """Returns all batches of a run."""
    steps = num_steps(len(data), batch_size, epochs, repeat, max_steps)
    iterator = iterate(data, ONE, batch_size, steps, epochs, repeat, seed, **options)
    found = list(iterator)
    iterator.close()
    assert len(found) == steps
    return found


def assert_equal(one, other):
    """Compares two batches field by field."""
    for name, a, b in zip(one._fields, one, other, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)
