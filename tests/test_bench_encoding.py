"""`seva_jax.bench encoding` compares the ids of both sides and times them."""

import re

import pytest
from helpers_tokenizer import train_sentencepiece

from seva_jax.bench.encoding import EncodingBench, run_encoding
from seva_jax.text.encode import Encoder
from seva_jax.types import DataError


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoding")
    train_sentencepiece(folder / "tokenizer.model", ["USER: the cat sat. ASSISTANT: on a mat"] * 9)
    return str(folder)


def test_both_sides_get_a_line(tokenizer, capsys):
    run_encoding(EncodingBench(tokenizer, pairs=20, words=50, rounds=1))
    out = capsys.readouterr().out
    assert "20 pairs of 50 different words, equal ids" in out
    for side in ("ours", "transformers"):
        assert re.search(rf"^{side} +[\d.]+", out, re.MULTILINE)


def test_different_ids_are_an_error(tokenizer, monkeypatch):
    right = Encoder._ids_of
    monkeypatch.setattr(Encoder, "_ids_of", lambda self, texts: [x + 1 for x in right(self, texts)])
    with pytest.raises(DataError, match="ids of the two sides differ"):
        run_encoding(EncodingBench(tokenizer, pairs=2, words=50, rounds=1))


def test_a_tokenizer_is_needed():
    with pytest.raises(DataError, match="give --tokenizer"):
        run_encoding(EncodingBench())
