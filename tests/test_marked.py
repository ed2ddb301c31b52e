"""Phrases that data mark with tags, as marked tokens."""

import dataclasses
import json

import numpy as np
import pytest
from helpers_pipeline import rows, single_row
from helpers_tokenizer import asked, llama_style_tokenizer, one_layout
from PIL import Image

from seva_jax.batches.encoded import encode_comparisons
from seva_jax.batches.trees import differing
from seva_jax.data import json_records
from seva_jax.data.files import ImageFolder
from seva_jax.data.marked import MarkedPhrases, unmarked
from seva_jax.data.messages import TrlPairs
from seva_jax.text.encode import Encoder
from seva_jax.text.templates import PLAIN, VICUNA_V1
from seva_jax.text.tokenizer import word_tokenizer
from seva_jax.types import Comparison, DataError, ExampleError, Prompt

CORPUS = ["a red ball and a blue cat sit on the mat", "USER: What is there? ASSISTANT: A dog."]
LLAMA = llama_style_tokenizer(CORPUS, 330)
WORDS = word_tokenizer(
    ["USER", "ASSISTANT", ":", "a", "red", "blue", "ball", ".", ",", "in", "What", "?"]
)


def encoder(tokenizer=LLAMA, template=VICUNA_V1, max_length=400):
    """Makes an encoder with two tokens an image."""
    image = tokenizer.convert_tokens_to_ids("<image>")
    return Encoder(tokenizer, template, image, one_layout(2), max_length)


@pytest.mark.parametrize(
    ("text", "plain", "phrases"),
    [
        ("A <MASK>red</MASK> ball.", "A red ball.", ["red"]),
        ("<MASK> red </MASK>ball <MASK>in</MASK>", "red ball in", ["red ", "in"]),
        ("  <MASK></MASK>red ball", "red ball", []),
        ("red", "red", []),
        ("<MASK>é 🙂</MASK>x<MASK>y</MASK>", "é 🙂xy", ["é 🙂", "y"]),
    ],
)
def test_marks_are_taken_out(text, plain, phrases):
    """Spans refer to the text without marks and without surrounding spaces."""
    found, spans = unmarked(text)
    assert found == plain
    assert [found[a:b] for a, b in spans] == phrases


@pytest.mark.parametrize(
    "text", ["<MASK>red", "red</MASK>", "</MASK>red<MASK>", "<MASK>a<MASK>b</MASK></MASK>"]
)
def test_marks_that_do_not_pair_up(text):
    with pytest.raises(ExampleError, match="do not come in pairs") as caught:
        unmarked(text)
    assert caught.value.reason == "broken marks"


# From the release for VideoChat2, `get_diff_signs(chosen, rejected, min_match_size=1)`, where it
# gives the numbers of phrases instead of ones.
ALIGNED = [
    ([10, 11, 12, 13, 2], [10, 11, 50, 12, 13, 2], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]),
    ([5, 6, 7, 2], [5, 8, 9, 7, 2], [0, 1, 0, 0], [0, 1, 1, 0, 0]),
    ([5, 6, 7, 8, 9, 2], [5, 9, 6, 7, 4, 4, 2], [0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 1, 1, 0]),
    ([3, 4, 5, 6, 7, 8, 2], [3, 9, 5, 6, 10, 11, 8, 2],
     [0, 1, 0, 0, 1, 0, 0], [0, 1, 0, 0, 1, 1, 0, 0]),
    ([7, 8, 9, 2], [4, 5, 2], [1, 1, 1, 0], [1, 1, 0]),
    ([5, 2], [5, 6, 2], [0, 0], [0, 0, 0]),
    ([5, 6, 5, 6, 7, 2], [6, 5, 7, 7, 2], [0, 0, 0, 1, 0, 0], [0, 0, 1, 0, 0]),
]  # fmt: skip


@pytest.mark.parametrize(("chosen", "rejected", "first", "second"), ALIGNED)
def test_phrases_that_replace_one_another_are_marked(chosen, rejected, first, second):
    """What only one of the answers has is not marked."""
    found = differing(np.array(chosen), np.array(rejected))
    assert [x.tolist() for x in found] == [first, second]
    assert [x.tolist() for x in differing(np.array(rejected), np.array(chosen))] == [second, first]


def by_bytes(tokenizer, ids, text, spans):
    """Returns which tokens touch a span, computed from the bytes of each token."""
    marks = np.zeros(len(text.encode()), bool)
    for start, end in spans:
        marks[len(text[:start].encode()) : len(text[:end].encode())] = True
    found, at = [], 0
    for token in tokenizer.convert_ids_to_tokens(ids):
        if token.startswith("<0x"):
            size = 1
        else:
            piece = token.replace("▁", " ")
            # The prompt ends before the space that the first piece begins with.
            size = len(piece.encode()) - (at == 0 and piece.startswith(" "))
        found.append(bool(marks[at : at + size].any()))
        at += size
    assert at == len(marks)
    return found


def whole_characters(tokenizer, ids, found):
    """Marks all bytes of a character if one is marked."""
    tokens, out = tokenizer.convert_ids_to_tokens(ids), list(found)
    begin = 0
    for i, token in enumerate(tokens):
        is_byte = token.startswith("<0x")
        if not (is_byte and 0x80 <= int(token[3:5], 16) < 0xC0):
            begin = i
        if is_byte and any(found[begin : i + 1]):
            out[begin : i + 1] = [True] * (i + 1 - begin)
    return out


@pytest.mark.parametrize("seed", range(40))
def test_spans_fall_on_the_right_tokens(seed):
    """It holds for random texts, whose letters may be several tokens or bytes."""
    rng = np.random.default_rng(seed)
    letters = [*"abcredlu tsi  n.,?'", "é", "🙂", "ß", "中", "\n"]
    text = "".join(rng.choice(letters, int(rng.integers(1, 30)))).strip() or "a"
    ends = np.sort(rng.integers(0, len(text) + 1, 4))
    spans = [(int(a), int(b)) for a, b in (ends[:2], ends[2:]) if a < b]
    coder = encoder()
    ids = coder.answer(asked("What is there?"), text)
    found = coder.marked(asked("What is there?"), text, spans)
    assert found.dtype == np.int32
    assert len(found) == len(ids)
    assert found[-1] == 0
    body = ids[:-1].tolist()
    expected = whole_characters(LLAMA, body, by_bytes(LLAMA, body, text, spans))
    assert found[:-1].astype(bool).tolist() == expected


def test_spans_of_words():
    """It also holds for a tokenizer of words, with spaces around the text."""
    coder = encoder(WORDS, PLAIN)
    assert coder.marked(asked("What ?"), " a red ball . ", [(3, 6)]).tolist() == [0, 1, 0, 0, 0]
    assert coder.marked(asked("What ?", 0), "a red ball", [(0, 1), (6, 10)]).tolist() == [
        1,
        0,
        1,
        0,
    ]
    assert coder.marked(asked("What ?", 0), "a red ball", []).tolist() == [0, 0, 0, 0]
    assert coder.marked(asked("What ?", 0, "a"), " red ball", [(1, 4)]).tolist() == [1, 0, 0]


def write(tmp_path, answers):
    """Writes pairs in TRL's format."""
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    lines = [
        {"images": ["0.png"], "prompt": "What ?", "chosen": chosen, "rejected": rejected}
        for chosen, rejected in answers
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return TrlPairs(str(path), str(tmp_path))


ANSWERS = [
    ("a <MASK>red</MASK> ball", "a <MASK>blue</MASK> ball"),
    ("a red ball", "a blue ball"),
    ("a <MASK></MASK>red ball", "a blue ball"),
    ("a <MASK>red ball", "a blue ball"),
    ("a <MASK>red</MASK> ball", "a red ball"),
    ("a red ball", "a <MASK>blue</MASK> ball"),
]


@pytest.mark.parametrize("rule", ["align", "leave out"])
def test_pairs_with_marks(tmp_path, rule):
    """Good pairs are used, and the others are counted by reason."""
    data = MarkedPhrases(write(tmp_path, ANSWERS), rule).open()
    kept = {c.prompt.id: c for c in data.comparisons}
    assert kept["0"].answers == ("a red ball", "a blue ball")
    assert kept["0"].spans == (((2, 5),), ((2, 6),))
    drops = {"no marked phrase": 1, "broken marks": 1, "equal answers": 1}
    if rule == "align":
        assert kept.keys() == {"0", "1", "5"}
        assert kept["1"].spans == ()
        assert kept["5"].spans == ((), ((2, 6),))
    else:  # of 5, one answer has no mark, which RRPO's release skips too
        assert kept.keys() == {"0"}
        drops = {"no marked phrase": 4, "broken marks": 1}
    assert data.drops == drops
    assert [p.id for p in data.prompts] == list(kept)
    assert any("broken marks" in line for line in data.left_out)


def test_a_source_without_pairs(tmp_path):
    """It is named in the error, as is a source of which nothing is left."""
    with pytest.raises(DataError, match="ImageFolder, which has no answers"):
        MarkedPhrases(ImageFolder(str(tmp_path))).open()
    with pytest.raises(DataError, match="no usable pair is left"):
        MarkedPhrases(write(tmp_path, ANSWERS[2:4])).open()


def test_rows_and_files_have_the_marks(tmp_path):
    """Marks are used where they exist, alignment elsewhere; files keep them."""
    plain = Comparison(Prompt("p", "what is it", ("1/0",)), ("a b c", "a c c"))
    marks = dataclasses.replace(plain, spans=(((4, 5),), ()))
    data = dataclasses.replace(rows([plain, marks]), spans=True)
    assert single_row(data, 0).spans_BCKT[0, :2, :4].tolist() == [[0, 1, 0, 0], [0, 1, 0, 0]]
    assert single_row(data, 1).spans_BCKT[0, :2, :4].tolist() == [[0, 0, 1, 0], [0, 0, 0, 0]]
    json_records.write_comparisons(tmp_path / "pairs", [plain, marks])
    assert json_records.read_comparisons(tmp_path / "pairs") == [plain, marks]


def test_marks_that_are_cut_off_are_counted():
    """They are lost when an answer is cut to fit; the other pair keeps its mark."""
    coder = encoder(WORDS, PLAIN, 4 + 2 + 2 + 3)
    prompt = Prompt("p", "What ?", ("0.png",))
    answers = ("red ball a a a . .", "blue ball a a a . .")
    pairs = [
        Comparison(prompt, answers, spans=(((0, 3),), ())),
        Comparison(prompt, answers, spans=(((15, 16),), ((16, 17),))),
    ]
    found = encode_comparisons(pairs, coder)
    assert found.comparisons == pairs[:1]
    assert found.drops == {"no marked phrase": 1}
