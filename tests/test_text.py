"""Templates, tokenizers, and the encoding of trunks and branches."""

from __future__ import annotations

import dataclasses
import json
import pickle
import socket

import numpy as np
import pytest
from helpers_tokenizer import asked, llama_style_tokenizer, one_layout
from tokenizers import processors
from transformers import CLIPImageProcessorPil, LlavaProcessor

from seva_jax.text.encode import EncodedTree, Encoder, clean_answer, expand_images
from seva_jax.text.templates import LLAVA_V0, LLAVA_V1, PLAIN, VICUNA_V1, Template
from seva_jax.text.tokenizer import SPECIALS, check_tokenizer, load_tokenizer, word_tokenizer
from seva_jax.types import DataError, ExampleError, ImageLayout, Prompt, Size, View

WORDS = ["USER", "ASSISTANT", ":", "a", "red", "blue", "circle", "square", "and", "is", "the"]
WORDS += ["there", "?", ".", ",", "yes", "no"]
CORPUS = [
    VICUNA_V1.prompt("What colour is the circle in the picture?") + " The circle is red.</s>",
    LLAVA_V1.prompt("Is there a blue square?\nAnswer using a single word.") + " Yes, there is.</s>",
] * 4


@pytest.fixture(scope="module")
def llama():
    return llama_style_tokenizer(CORPUS, vocab_size=500)


@pytest.fixture(scope="module")
def words():
    return word_tokenizer(WORDS)


def make_encoder(tokenizer, template=VICUNA_V1, **changes) -> Encoder:
    settings = {
        "tokenizer": tokenizer,
        "template": template,
        "image_token_id": tokenizer.image_token_id,
        "layouts": one_layout(4),
        "max_length": 512,
    }
    return Encoder(**{**settings, **changes})


# --- templates


def test_templates_are_worded_as_the_original():
    assert VICUNA_V1.prompt("Q?") == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the user's questions. "
        "USER: <image>\nQ? ASSISTANT:"
    )
    assert LLAVA_V1.prompt("Q?") == VICUNA_V1.prompt("Q?").replace("user", "human")
    # LLaVA's conversation.py, `conv_templates["llava_v0"]`.
    assert LLAVA_V0.prompt("Q?") == (
        "A chat between a curious human and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the human's questions.###Human: <image>\n"
        "Q?###Assistant:"
    )
    assert [t.before_answer for t in (VICUNA_V1, LLAVA_V0, PLAIN)] == [" "] * 3
    assert Template("", sep="###").before_answer == "###"
    assert {t.end for t in (VICUNA_V1, LLAVA_V0, LLAVA_V1, PLAIN)} == {"</s>"}


@pytest.mark.parametrize(
    ("question", "num_images", "user_turn"),
    [
        ("Q", 0, "Q"),
        ("Q", 2, "<image>\n<image>\nQ"),
        ("Q\n<image>", 1, "Q\n<image>"),
        ("Is <image> like <image>?", 2, "Is <image> like <image>?"),
    ],
)
def test_image_markers(question, num_images, user_turn):
    assert PLAIN.prompt(question, num_images) == f"USER: {user_turn} ASSISTANT:"


@pytest.mark.parametrize("question", ["", " \n\t", "<image>", " <image>\n"])
def test_empty_question_is_refused(question):
    with pytest.raises(DataError, match="empty question"):
        PLAIN.prompt(question)


@pytest.mark.parametrize(("question", "num_images"), [("<image> Q", 2), ("<image> Q", 0)])
def test_differing_number_of_markers_is_refused(question, num_images):
    with pytest.raises(ExampleError, match=f"has 1 <image> markers .* {num_images} images") as info:
        PLAIN.prompt(question, num_images)
    assert info.value.reason == "image markers"


# --- tokenizers


def test_word_tokenizer_round_trips_and_has_stable_ids(words):
    assert [words.convert_tokens_to_ids(token) for token in SPECIALS] == [0, 1, 2, 3, 4]
    assert words.convert_tokens_to_ids(WORDS[0]) == 5
    for text in ("a red circle and a blue square", "is there a circle, a square? yes.", "do"):
        again = words.decode(words.encode(text), skip_special_tokens=True)
        assert again == ("" if text == "do" else text)
    assert words("USER: <image>\na circle. zebra").input_ids == [
        *[1, 5, 7, 4, 8],
        *[words.convert_tokens_to_ids(token) for token in ("circle", ".")],
        3,
    ]


def test_word_tokenizer_does_not_rewrite_words():
    tokenizer = word_tokenizer(["I", "do", "not", "see"])
    assert tokenizer.decode(tokenizer("I do not see").input_ids[1:]) == "I do not see"


@pytest.mark.parametrize("word", ["two words", "", "a.", "<image>", " a"])
def test_word_tokenizer_refuses_what_no_text_can_produce(word):
    with pytest.raises(DataError, match="single word"):
        word_tokenizer(["a", word])


@pytest.mark.parametrize("which", ["llama", "words"])
def test_saved_tokenizer_reloads_without_network_or_differences(
    which, request, tmp_path, monkeypatch
):
    calls = []

    def refuse(*args, **kwargs):
        calls.append(args)
        raise OSError("no network here")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    original = request.getfixturevalue(which)
    original.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    assert calls == []
    assert again.get_vocab() == original.get_vocab()
    assert again.special_tokens_map == original.special_tokens_map
    assert again.image_token_id == original.image_token_id
    for text in (VICUNA_V1.prompt("a red circle, é?"), " a  blue\n\nsquare </s>", "", "<image>"):
        ids = original(text).input_ids
        assert again(text).input_ids == ids
        assert again.decode(ids) == original.decode(ids)


def test_load_tokenizer_names_what_is_missing(tmp_path):
    with pytest.raises(DataError, match="nowhere: no such directory"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"tokenizer\.json: no such file"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{broken")
    with pytest.raises(DataError, match="does not load"):
        load_tokenizer(tmp_path)


def test_load_tokenizer_never_runs_code_from_the_directory(words, tmp_path):
    words.save_pretrained(tmp_path)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": [None, "evil.Evil"]}}
    path.write_text(json.dumps(config))
    with pytest.raises(DataError, match="does not load"):
        load_tokenizer(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_check_tokenizer_reports_every_problem(words, llama):
    check_tokenizer(words, len(words), 4)
    check_tokenizer(llama, len(llama) + 12, llama.image_token_id)
    broken = word_tokenizer(WORDS)
    broken.eos_token = None
    with pytest.raises(DataError) as info:
        check_tokenizer(broken, 7, 9)
    message = str(info.value)
    assert f"{len(words) - 7} token ids are outside" in message
    assert "no end token" in message
    assert "image token id 9 is outside" in message
    assert "<image> becomes [4]" in message


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("bos_token", "there is no start token: set bos_token"),
        ("eos_token", "there is no end token: set eos_token"),
        ("pad_token", None),
    ],
)
def test_missing_special_tokens_are_named(tmp_path, missing, message):
    """The error has the directory; only padding may be missing."""
    tokenizer = word_tokenizer(WORDS)
    setattr(tokenizer, missing, None)
    if missing == "bos_token":
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A")
    tokenizer.save_pretrained(tmp_path)
    found = load_tokenizer(tmp_path)
    if message is None:
        check_tokenizer(found, len(found), 4)
        assert Encoder(found, PLAIN, 4, one_layout(1), 50).pad_id == 0
        return
    with pytest.raises(DataError, match=f"the tokenizer of {tmp_path} does not fit.*\n  {message}"):
        check_tokenizer(found, len(found), 4)


def test_check_tokenizer_notices_added_end_tokens():
    tokenizer = word_tokenizer(WORDS)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 2)]
    )
    with pytest.raises(DataError, match="add_eos_token"):
        check_tokenizer(tokenizer, len(tokenizer), 4)


# --- trunks


@pytest.mark.parametrize("which", ["llama", "words"])
@pytest.mark.parametrize(
    ("question", "num_images"),
    [
        ("What colour is the circle?", 1),
        ("What colour is the circle?", 0),
        ("Why <image>\n<image>?", 2),
        ("Compare", 2),
        ("Is <image> like<image>é \U0001f600?", 2),
        ("a\n<image>", 1),
        ("  a  b\n", 1),
    ],
)
@pytest.mark.parametrize("template", [VICUNA_V1, LLAVA_V0, LLAVA_V1, PLAIN])
def test_trunk_equals_llava_processor(which, question, num_images, template, request):
    tokenizer = request.getfixturevalue(which)
    if which == "words":
        template = PLAIN
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
    )
    processor = LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    text = template.prompt(question, num_images)
    images = [np.zeros((30, 20, 3), np.uint8)] * num_images
    expected = processor(images=images or None, text=text, return_tensors="np")["input_ids"][0]

    trunk = make_encoder(tokenizer, template).trunk(asked(question, num_images))
    assert trunk.dtype == np.int32
    np.testing.assert_array_equal(trunk, expected)
    assert (trunk == tokenizer.image_token_id).sum() == 4 * num_images
    assert trunk[0] == tokenizer.bos_token_id


def test_no_start_token_where_the_tokenizer_adds_none():
    tokenizer = word_tokenizer(WORDS)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A")
    encoder = make_encoder(tokenizer, PLAIN)
    with_start = make_encoder(word_tokenizer(WORDS), PLAIN)
    question = "is there a circle?"
    np.testing.assert_array_equal(
        encoder.trunk(asked(question)), with_start.trunk(asked(question))[1:]
    )
    np.testing.assert_array_equal(
        encoder.answer(asked(question), "yes"), with_start.answer(asked(question), "yes")
    )


@pytest.mark.parametrize("literal", ["</s>", "<s>", "<pad>"])
def test_special_token_in_question_is_refused(llama, literal):
    with pytest.raises(ExampleError, match=literal) as info:
        make_encoder(llama).trunk(asked(f"What {literal} is this?"))
    assert info.value.reason == "special token in question"


# --- answers


@pytest.mark.parametrize("text", ["The circle is red.", "Yes", "é \U0001f600", "two\nlines", "1"])
def test_trunk_and_answer_make_the_whole_conversation(llama, text):
    encoder = make_encoder(llama)
    trunk, answer = encoder.trunk(asked("Why?")), encoder.answer(asked("Why?"), text)
    whole = VICUNA_V1.prompt("Why?").replace("<image>", "<image>" * 4) + f" {text}</s>"
    assert [*trunk, *answer] == llama(whole).input_ids
    assert answer.dtype == np.int32
    assert list(answer).count(llama.eos_token_id) == 1
    assert answer[-1] == llama.eos_token_id
    assert encoder.decode(answer) == text


@pytest.mark.parametrize("text", ["", " \n\t "])
def test_empty_answer(llama, text):
    with pytest.raises(ExampleError) as info:
        make_encoder(llama).answer(asked("Why?"), text)
    assert info.value.reason == "empty answer"


@pytest.mark.parametrize("literal", ["</s>", "<image>", "<s>", "<pad>"])
def test_special_token_in_answer_is_refused(llama, literal):
    with pytest.raises(ExampleError, match=literal) as info:
        make_encoder(llama).answer(asked("Why?"), f"A {literal} cat")
    assert info.value.reason == "special token in answer"


def test_unknown_words_stay_labels_even_where_unk_is_the_padding():
    tokenizer = word_tokenizer(WORDS)
    tokenizer.pad_token = "<unk>"
    answer = make_encoder(tokenizer, PLAIN).answer(asked("is there a zebra?"), "no zebra")
    np.testing.assert_array_equal(answer, [tokenizer.convert_tokens_to_ids("no"), 3, 2])


def test_answer_that_merges_with_the_prompt_is_refused(llama):
    # Without a separator "ASSISTANT:" and "USER:" have nothing to keep the pieces apart.
    template = dataclasses.replace(PLAIN, sep="")
    tokenizer = llama_style_tokenizer(["ASSISTANT::::"] * 9, vocab_size=400)
    with pytest.raises(ExampleError, match="merges") as info:
        make_encoder(tokenizer, template).answer(asked("Why?"), "::: yes")
    assert info.value.reason == "answer merges with prompt"


def test_encoder_refuses_parts_that_do_not_belong_together(llama, words):
    with pytest.raises(DataError, match="closes answers with '<end>'"):
        make_encoder(llama, Template("", end="<end>"))
    with pytest.raises(DataError, match="as image token 7"):
        make_encoder(llama, image_token_id=7)
    with pytest.raises(DataError, match="every word of the template"):
        make_encoder(words, VICUNA_V1)


# --- beginnings of answers


@pytest.mark.parametrize("start", ["The", "The circle", "The circle is red."])
def test_a_start_belongs_to_the_trunk(llama, start):
    """Trunk and answer together equal those without a start; only the border moves."""
    encoder = make_encoder(llama)
    text = "The circle is red. The square is blue."
    rest = text.removeprefix(start)
    plain = [*encoder.trunk(asked("Why?")), *encoder.answer(asked("Why?"), text)]
    trunk, answer = (
        encoder.trunk(asked("Why?", 1, start)),
        encoder.answer(asked("Why?", 1, start), rest),
    )
    assert [*trunk, *answer] == plain
    assert len(trunk) > len(encoder.trunk(asked("Why?")))
    tree = encoder.encode(View(asked("Why?", 1, start), (rest, " , yes")))
    np.testing.assert_array_equal(tree.trunk, trunk)
    np.testing.assert_array_equal(tree.branches[0], answer)
    # Decoded after the trunk, the blank before the first word is there.
    assert encoder.decode(answer, trunk) == rest
    assert encoder.decode(answer) == rest.strip()
    assert encoder.decode([], trunk) == ""


@pytest.mark.parametrize(
    ("start", "rest"), [("The ", "circle is red."), ("The cir", "cle is red.")]
)
def test_a_start_that_merges_with_the_answer_is_refused(llama, start, rest):
    """A word, or the blank before it, is one token of the whole: there is no border."""
    advice = "end the start of the answer at the end of a word"
    with pytest.raises(ExampleError, match=advice) as info:
        make_encoder(llama).answer(asked("Why?", 1, start), rest)
    assert info.value.reason == "answer merges with prompt"


def test_what_a_start_may_not_hold(llama):
    """The end token would end the answer before it starts; text has to follow a start."""
    encoder = make_encoder(llama)
    with pytest.raises(ExampleError, match="</s>") as info:
        encoder.trunk(asked("Why?", 1, "A </s> cat"))
    assert info.value.reason == "special token in answer"
    with pytest.raises(ExampleError) as info:
        encoder.answer(asked("Why?", 1, "The circle"), " ")
    assert info.value.reason == "empty answer"


# --- trees and truncation


def test_tree_shares_the_trunk_and_cuts_branches_one_by_one(words):
    encoder = make_encoder(words, PLAIN)
    trunk = encoder.trunk(asked("is there a circle?"))
    short, long = "yes", "yes, there is a red circle and a blue square."
    full = encoder.answer(asked("is there a circle?"), long)

    tree = encoder.encode(View(asked("is there a circle?"), (short, long)))
    np.testing.assert_array_equal(tree.trunk, trunk)
    np.testing.assert_array_equal(tree.branches[1], full)
    assert tree.truncated == 0

    for room in range(1, len(full) + 1):
        fitting = dataclasses.replace(encoder, max_length=len(trunk) + room)
        tree = fitting.encode(View(asked("is there a circle?"), (short, long)))
        np.testing.assert_array_equal(tree.trunk, trunk)
        np.testing.assert_array_equal(tree.branches[1], full[:room])
        assert len(tree.branches[0]) == min(2, room)
        assert (tree.branches[1][-1] == words.eos_token_id) == (room == len(full))
        assert tree.truncated == (room < 2) + (room < len(full))


def test_no_room_for_one_answer_token(words):
    encoder = make_encoder(words, PLAIN)
    trunk_len = len(encoder.trunk(asked("is there a circle?")))
    for max_length in (1, trunk_len - 1, trunk_len):
        with pytest.raises(ExampleError, match="max_length") as info:
            dataclasses.replace(encoder, max_length=max_length).encode(
                View(asked("is there a circle?"), ("yes",))
            )
        assert info.value.reason == "too long"


def test_decode_keeps_spacing_and_drops_special_tokens(llama):
    encoder = make_encoder(llama)
    ids = [*llama("A cat , really ?", add_special_tokens=False).input_ids, llama.eos_token_id]
    assert encoder.decode(np.asarray(ids)) == "A cat , really ?"
    assert encoder.decode([]) == ""


@pytest.mark.parametrize(
    ("raw", "space", "delete"),
    [
        (" A cat.</s>", "A cat.", "A cat."),
        ("A\nB", "A B", "AB"),
        ("1. A\n\n  2. B\n", "1. A 2. B", "1. A  2. B"),
        ("A\r\nB", "A B", "A\rB"),
        ("\n</s>", "", ""),
    ],
)
def test_clean_answer(raw, space, delete):
    assert clean_answer(raw) == space
    assert clean_answer(raw, newline="delete") == delete


def test_example_error_survives_the_way_between_processes():
    again = pickle.loads(pickle.dumps(ExampleError("the file x is bad", "bad")))
    assert (str(again), again.reason) == ("the file x is bad", "bad")
    assert isinstance(again, DataError)


# --- images


class ByWidth:
    """Lays an image out as one token for each pixel of its width."""

    one_layout, tile_features, blended = False, 1, 1

    def __call__(self, sizes) -> tuple[ImageLayout, ...]:
        if any(width > 50 for _, width in sizes):
            raise ExampleError("too wide", "image too elongated")
        return tuple(ImageLayout(1, np.zeros(width, np.int32)) for _, width in sizes)


def size_of(name: str) -> Size:
    if name == "broken":
        raise ExampleError("the file is cut", "unreadable image")
    return 1, int(name)


def test_every_image_takes_its_own_number_of_tokens(llama):
    encoder = make_encoder(llama, PLAIN, layouts=ByWidth(), image_size=size_of)
    prompt = Prompt("", "Is <image> like <image>?", ("3", "7"))
    text = PLAIN.prompt(prompt.question, 2).split("<image>")
    text = text[0] + "<image>" * 3 + text[1] + "<image>" * 7 + text[2]
    tree = encoder.encode(View(prompt, ("Yes.",)))
    assert tree.trunk.tolist() == llama(text).input_ids
    assert tree.sizes == encoder.sizes(prompt) == ((1, 3), (1, 7))
    one = make_encoder(llama, PLAIN)
    assert one.encode(View(prompt, ())).sizes == one.sizes(prompt) == ((0, 0), (0, 0))
    for bad, reason in (("broken", "unreadable image"), ("51", "image too elongated")):
        views = [View(Prompt("", "Why?", (name,)), ()) for name in ("4", bad, "5")]
        first, error, last = encoder.trees(views)
        assert isinstance(error, ExampleError)
        assert error.reason == reason
        for tree, width in ((first, 4), (last, 5)):
            assert isinstance(tree, EncodedTree)
            assert tree.sizes == ((1, width),)


def test_images_that_are_all_alike_are_laid_out_once(llama):
    """For a hundred thousand pairs, one look at each name would take longer than the encoding."""
    calls = []

    class Alike(ByWidth):
        one_layout = True

        def __call__(self, sizes):
            calls.append(sizes)
            return super().__call__([(1, 5)] * len(sizes))

    def size_of_nothing(name):
        raise AssertionError(name)

    encoder = make_encoder(llama, PLAIN, layouts=Alike(), image_size=size_of_nothing)
    prompts = [Prompt("", "Why?", ("a", "b")[: 1 + i % 2]) for i in range(10)]
    trunks = list(encoder.trunks(prompts))
    assert [(x == llama.image_token_id).sum() for x in trunks] == [5, 10] * 5
    assert calls == [((0, 0),), ((0, 0), (0, 0))]


def test_an_image_that_is_too_large_is_told_and_not_cut(llama):
    encoder = make_encoder(llama, PLAIN, layouts=ByWidth(), image_size=size_of, max_length=40)
    text = r"images and question take \d+ tokens \(40 of them the images\).*max_length \(40\)"
    with pytest.raises(ExampleError, match=text) as info:
        encoder.encode(View(Prompt("", "Why?", ("40",)), ("Yes.",)))
    assert info.value.reason == "too long"
    trunk = encoder.trunk(Prompt("", "Why?", ("40",)))
    assert (trunk == llama.image_token_id).sum() == 40
    with pytest.raises(ExampleError, match=text):
        encoder.fit(trunk, trunk[:1])


def test_one_token_for_each_image_expands_to_the_trunk(llama):
    encoder = make_encoder(llama, PLAIN, layouts=ByWidth(), image_size=size_of)
    prompt = Prompt("", "Is <image> like <image>?", ("3", "7"))
    ids = np.array(llama(PLAIN.prompt(prompt.question, 2)).input_ids, np.int32)
    expanded = expand_images(ids, llama.image_token_id, np.array([3, 7]))
    assert expanded.dtype == np.int32
    assert expanded.tolist() == encoder.trunk(prompt).tolist()
