"""Many texts at once: the ids, answers and errors of each of them encoded on its own.

`test_tokens.py` compares single texts with sentencepiece; here, what is expected comes from
sentencepiece and from transformers, text by text.
"""

from __future__ import annotations

import dataclasses
import json
import random

import jax
import numpy as np
import pytest
import sentencepiece
from helpers_pipeline import comparison, encoder
from helpers_tokenizer import asked, one_layout, train_sentencepiece
from test_tokens import CORPUS, NAMES, PROMPTS, TEXTS, reference
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

from seva_jax.batches import encoded
from seva_jax.batches.encoded import encode_comparisons
from seva_jax.batches.fitting import fitting, fitting_trees
from seva_jax.data.check import trees_of_each
from seva_jax.data.json_records import fields, plain
from seva_jax.text.encode import Encoder
from seva_jax.text.templates import LLAVA_V0, PLAIN, VICUNA_V1
from seva_jax.text.tokenizer import load_tokenizer
from seva_jax.text.words import WordIds
from seva_jax.types import Comparison, DataError, ExampleError, Prompt, View


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    return train_sentencepiece(tmp_path_factory.mktemp("words") / "tokenizer.model", CORPUS)


@pytest.fixture(scope="module")
def pieces(model_file):
    return sentencepiece.SentencePieceProcessor(model_file=str(model_file))


@pytest.fixture(scope="module")
def original(model_file):
    return load_tokenizer(model_file.parent, original=True)


def metaspace(model_file, scheme):
    """Returns transformers' own tokenizer of the model, with one of its ways to begin a text."""
    tokenizer = LlamaTokenizer.from_pretrained(model_file.parent, add_bos_token=True)
    tokenizer.add_tokens("<image>", special_tokens=True)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement="▁", prepend_scheme=scheme, split=False
    )
    return tokenizer


def drawn(num):
    """Draws texts of what may go wrong: spaces, images, special tokens and halves of them."""
    parts = [
        " ", " ", " ", "  ", "<image>", "<image>", "\n", "\t", "a", "is", "What", "3rd", "car.",
        "▁", "<", "image>", "</s>", "<s>", "<unk>", "é", "中文", "\U0001f600", "\u3000", "x" * 70,
    ]  # fmt: skip
    rng = random.Random(0)
    return ["".join(rng.choices(parts, k=rng.randint(0, 12))) for _ in range(num)]


@pytest.mark.parametrize("kind", ["original", "first", "always"])
def test_words_have_the_ids_of_their_text(kind, original, model_file):
    """For every text, the ids are those that transformers gives the whole of it, or none."""
    tokenizer = original if kind == "original" else metaspace(model_file, kind)
    words = WordIds.of(tokenizer)
    assert words is not None
    texts = [*PROMPTS, *drawn(2000)]
    apart = 0
    for text in texts:
        ids = words(text)
        if ids is not None:
            apart += 1
            assert ids.tolist() == tokenizer(text).input_ids, text
    assert apart > len(PROMPTS)


def test_a_prompt_of_an_ordinary_kind_is_encoded_by_its_words(original):
    words = WordIds.of(original)
    assert words is not None
    for template in (VICUNA_V1, LLAVA_V0, PLAIN):
        for question in ("What is this?", "Is <image> like <image>?", "One\ntwo, three."):
            text = template.prompt(question, question.count("<image>") or 1)
            assert words(text) is not None, text


def test_words_are_forgotten_before_they_fill_the_memory(original, monkeypatch):
    monkeypatch.setattr("seva_jax.text.words._MOST", 8)
    words = WordIds.of(original)
    assert words is not None
    for text in PROMPTS:
        ids = words(text)
        assert ids is None or ids.tolist() == original(text).input_ids
        assert len(words._words) <= 8


def crossing(merge):
    """Returns a tokenizer with a piece that reaches from "a" to the next word, if it is joined."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, "▁": 3, "a": 4, "b": 5, "▁a": 6, "a▁": 7}
    merges = [("▁", "a")] + [("a", "▁")] * merge
    inner = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>"))
    inner.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    inner.add_special_tokens(["<unk>", "<s>", "</s>", "<image>"])
    return PreTrainedTokenizerFast(tokenizer_object=inner, **NAMES)


def test_other_tokenizers_encode_whole_texts(model_file):
    """A piece across words, or an image marker that is not cut out as it stands."""
    assert WordIds.of(crossing(merge=True)) is None
    stripping = LlamaTokenizer.from_pretrained(model_file.parent, add_bos_token=True)
    assert WordIds.of(stripping) is None  # it has no image marker
    state = json.loads(metaspace(model_file, "first").backend_tokenizer.to_str())
    for change in ({"lstrip": True}, {"normalized": True}, {"content": "<image>s"}):
        changed = json.loads(json.dumps(state))
        changed["added_tokens"][-1] |= change
        inner = Tokenizer.from_str(json.dumps(changed))
        assert WordIds.of(PreTrainedTokenizerFast(tokenizer_object=inner, **NAMES)) is None
    assert WordIds.of(encoder().tokenizer) is None  # words of another kind


@pytest.fixture(params=["words", "whole"])
def coder(request, original, pieces, monkeypatch):
    """Returns an encoder that encodes word by word, and one that cannot."""
    coder = Encoder(original, VICUNA_V1, pieces.get_piece_size(), one_layout(3), 600)
    if request.param == "whole":
        vars(coder)["_words"] = None
    else:
        assert coder._words is not None
    return coder


BAD = {
    "empty question": View(Prompt("", " ", ()), ("a", "b")),
    "image markers": View(Prompt("", "<image> and <image>", ("x",)), ("a",)),
    "special token in question": View(Prompt("", "What is </s>?", ("x",)), ("a",)),
    "special token in answer": View(Prompt("", "What is it?", ("x",)), ("a", "a <image> b")),
    "empty answer": View(Prompt("", "What is it?", ("x",)), ("a", "  ")),
    "invalid text": View(Prompt("", "What is \ud800?", ("x",)), ("a",)),
    "too long": View(Prompt("", "What? " * 600, ("x",)), ("a",)),
}


def test_many_trees_are_llavas_and_bad_ones_are_told_apart(coder, pieces):
    """One bad text among many is reported with its reason; the others keep their order."""
    image = pieces.get_piece_size()
    good = [
        View(Prompt("", text, ("x",) * number), (other, f"no, {text}"))
        for number, (text, other) in enumerate(zip(TEXTS, reversed(TEXTS), strict=True))
    ]
    views = [view for pair in zip(good, [*BAD.values()] * 4, strict=False) for view in pair]
    trees = list(coder.trees(iter(views)))
    for view, tree in zip(views, trees, strict=True):
        reason = next((reason for reason, bad in BAD.items() if bad is view), "")
        if reason:
            assert isinstance(tree, ExampleError)
            assert tree.reason == reason
            with pytest.raises(ExampleError) as info:  # the words that one text gets, too
                coder.encode(view)
            assert str(info.value) == str(tree)
            continue
        prompt = VICUNA_V1.prompt(view.prompt.question, len(view.prompt.images))
        before = reference(pieces, prompt, image)
        assert tree.trunk.dtype == np.int32
        assert tree.trunk.tolist() == [i for i in before for _ in range(3 if i == image else 1)]
        for text, branch in zip(view.answers, tree.branches, strict=True):
            joint = reference(pieces, f"{prompt} {text.strip()}", image)
            assert branch.tolist() == [*joint[len(before) :], 2][: 600 - len(tree.trunk)]
    trunks = list(coder.trunks(view.prompt for view in views))
    for tree, trunk in zip(trees, trunks, strict=True):
        if isinstance(trunk, ExampleError):  # of errors in answers, prompts know nothing
            assert isinstance(tree, ExampleError)
            assert trunk.reason == tree.reason
        elif not isinstance(tree, ExampleError):
            assert trunk.tolist() == tree.trunk.tolist()


def test_starts_of_answers(coder, pieces):
    image, prompt = pieces.get_piece_size(), VICUNA_V1.prompt("What is it?")
    views = [
        View(Prompt("", "What is it?", ("x",), start=start), (" a red car ",))
        for start in ("It is", "It </s>", "It", "I")
    ]
    trees = list(coder.trees(views))
    assert [x.reason for x in trees if isinstance(x, ExampleError)] == ["special token in answer"]
    for view, tree in zip(views, trees, strict=True):
        if isinstance(tree, ExampleError):
            continue
        before = reference(pieces, f"{prompt} {view.prompt.start}", image)
        assert tree.trunk.tolist() == [i for i in before for _ in range(3 if i == image else 1)]
        joint = reference(pieces, f"{prompt} {view.prompt.start} a red car", image)
        assert tree.branches[0].tolist() == [*joint[len(before) :], 2]


def test_encoded_comparisons_are_those_of_one_by_one():
    """Flat arrays give back every comparison's own ids, also after some have been selected."""
    pairs = [comparison(i, i % 3, tuple("abcdefgh"[: 1 + i % 4])) for i in range(30)]
    more = (View(comparison(9).prompt, ("h g",)),)
    pairs[7] = Comparison(pairs[7].prompt, ("a b", "c"), more=more)
    pairs[3] = Comparison(pairs[3].prompt, ("a b", "c"), spans=(((0, 1),), ((0, 1),)))
    pairs[5] = Comparison(pairs[5].prompt, ("a </s>", "c"))
    coder = encoder()
    encoded = encode_comparisons(pairs, coder)
    assert encoded.drops == {"special token in answer": 1}
    kept = [pair for i, pair in enumerate(pairs) if i != 5]
    assert encoded.comparisons == kept
    chosen = [28, 2, 6, 2]
    some = encoded.select(chosen)
    for ours, pairs_of in ((encoded, kept), (some, [kept[i] for i in chosen])):
        assert len(ours.encoded) == len(pairs_of)
        for i, pair in enumerate(pairs_of):
            one, (trees, spans) = ours.encoded[i], fitting_trees(pair, coder)
            assert one.comparison is pair
            assert [
                ours.tokens.expand(trunk, coder.layouts(sizes)).tolist()
                for (trunk, _), sizes in zip(one.trees, one.sizes, strict=True)
            ] == [tree.trunk.tolist() for tree in trees]
            assert [[x.tolist() for x in branches] for _, branches in one.trees] == [
                [x.tolist() for x in tree.branches] for tree in trees
            ]
            assert (one.spans is None) == (spans is None)
            length = sum(len(tree.trunk) + sum(map(len, tree.branches)) for tree in trees)
            assert ours.sizes.length_N[i] == length
            assert ours.sizes.targets_N[i] == sum(len(x) for t in trees for x in t.branches)
            assert ours.sizes.tiles_N[i] == len(pair.images)
    with pytest.raises(IndexError):
        some.encoded[4]
    assert [x.comparison for x in encoded.encoded] == kept


class _Sent(Exception):
    """Stops a pretended process where it waits for the others."""


@pytest.mark.parametrize("num", [2, 3, 20])
def test_every_process_encodes_its_share(num, monkeypatch):
    """Together they encode each comparison once, and all have what one process has."""
    pairs = [comparison(i, i % 3, tuple("abcdefgh"[: 1 + i % 4])) for i in range(15)]
    pairs[2] = Comparison(pairs[2].prompt, ("a b", "c"), more=(View(pairs[9].prompt, ("h g",)),))
    for i in (3, 4, 11):
        pairs[i] = Comparison(pairs[i].prompt, ("a b", "c d e"), spans=(((0, 1),), ((2, 5),)))
    for i in (5, 14):
        pairs[i] = Comparison(pairs[i].prompt, ("a </s>", "c"))
    coder = encoder(max_length=len(encoder().trunk(asked("what is it", 2))) + 3)
    expected = encode_comparisons(pairs, coder)
    assert expected.drops == {"special token in answer": 2}
    assert expected.num_cut
    shares, sent = [], []

    def counted(comparisons, encoder):
        shares.append([pairs.index(pair) for pair in comparisons])
        return fitting(comparisons, encoder)

    def send(data):
        sent.append(data)
        raise _Sent

    monkeypatch.setattr(jax, "process_count", lambda: num)
    monkeypatch.setattr(encoded, "require_none", lambda problems: None)
    monkeypatch.setattr(encoded, "fitting", counted)
    monkeypatch.setattr(encoded, "gather_bytes", send)
    for me in range(num):
        monkeypatch.setattr(jax, "process_index", lambda me=me: me)
        with pytest.raises(_Sent):
            encoded.encode_together(pairs, coder)
    assert [i for share in shares for i in share] == list(range(15))
    assert max(map(len, shares)) == -(-15 // num)
    monkeypatch.setattr(encoded, "gather_bytes", lambda data: sent)
    for me in (0, num - 1):
        monkeypatch.setattr(jax, "process_index", lambda me=me: me)
        together = encoded.encode_together(pairs, coder)
        assert together.comparisons == expected.comparisons
        for one, other in zip(together.encoded, expected.encoded, strict=True):
            assert one.comparison is other.comparison
            jax.tree.map(np.testing.assert_array_equal, one.trees, other.trees)
            jax.tree.map(np.testing.assert_array_equal, one.spans, other.spans)
        assert [i for i, one in enumerate(together.encoded) if one.spans is not None] == [3, 4, 10]
        jax.tree.map(np.testing.assert_array_equal, together.sizes, expected.sizes)
        for name in ("tokens", "drops", "num_cut", "shape"):
            assert getattr(together, name) == getattr(expected, name)


def test_an_error_in_a_share_is_every_processes(monkeypatch):
    """A process that raised it alone would leave the others waiting for its ids."""
    told = []

    def require_none(problems):
        told.append(problems)
        raise DataError("of another process")

    def broken(comparisons, encoder):
        raise DataError("not fast")

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(encoded, "require_none", require_none)
    with pytest.raises(DataError, match="of another"):
        encoded.encode_together([comparison(0)], encoder())
    monkeypatch.setattr(encoded, "fitting", broken)
    with pytest.raises(DataError, match="of another"):
        encoded.encode_together([comparison(0)], encoder())
    assert told == [[], ["not fast"]]


def test_what_comes_before_the_image_is_encoded_once(original, pieces, monkeypatch):
    """Texts that begin alike and texts that do not have the ids of sentencepiece."""
    words, image = WordIds.of(original), pieces.get_piece_size()
    assert words is not None
    texts = ["A chat. <image> a car", "A chat. <image>", "A dog. <image>b", "no image", "<image> a"]
    for text in [*texts, *reversed(texts), *texts[:2]]:
        ids = words(text)
        assert ids is not None
        assert ids.tolist() == reference(pieces, text, image)
    calls, segment = [], words._segment
    monkeypatch.setattr(words, "_segment", lambda *x: calls.append(x[0]) or segment(*x))
    for text in ("Two. <image> a", "Two. <image> b", "<image> c"):
        words(text)
    assert calls == ["Two. ", " a", " b", "", " c"]


def test_fields_of_a_comparison_are_those_that_dataclasses_copies():
    """A reference that an earlier version stored keeps its fingerprint."""
    more = (View(Prompt("q", "b", ("y",), {"n": [1, 2.5]}, "so"), ("h g",)),)
    pair = Comparison(
        Prompt("p", "a", ("x", "y"), {"k": "v"}), ("a", "b"), 0.5, (1,), (0.1, 0.2), more,
        (((0, 1),), ()),
    )  # fmt: skip
    assert json.dumps(fields(pair)) == json.dumps(dataclasses.asdict(pair))


def test_stored_comparisons_leave_out_empty_starts():
    """Everything else is stored as `dataclasses` copies it, in the order of the fields."""
    more = (View(Prompt("q", "b", ("y",), {"start": ""}, "so"), ("h g",)),)
    pair = Comparison(Prompt("p", "a", ("x", "y"), {"k": [1]}), ("a", "b"), more=more)
    copied = dataclasses.asdict(pair)
    assert copied["prompt"].pop("start") == ""
    assert json.dumps(plain(pair)) == json.dumps(copied)
    assert json.dumps(plain(pair.prompt)) == json.dumps(copied["prompt"])
    assert json.dumps(plain(more[0].prompt)) == json.dumps(copied["more"][0]["prompt"])


def test_prompts_without_room_for_an_answer(original, pieces):
    short = Encoder(original, PLAIN, pieces.get_piece_size(), one_layout(3), 60)
    prompts = [Prompt("", text, ("x",)) for text in ("What is it?", "What? " * 60, "Why?")]
    first, second, third = trees_of_each(prompts, short)
    assert not isinstance(first, ExampleError)
    assert isinstance(second, ExampleError)
    assert second.reason == "too long"
    assert not isinstance(third, ExampleError)
    assert [len(x[0].branches) for x in (first, third)] == [0, 0]
