"""Token ids of original LLaVA checkpoints, against sentencepiece and LLaVA's rule.

LLaVA's `tokenizer_image_token` (llava/mm_utils.py) encodes each piece of a prompt between image
markers with transformers 4's Python class `LlamaTokenizer`. That class calls sentencepiece and puts
the start token first; of the start tokens only the first is kept. `reference` says the same in
terms of sentencepiece alone.
"""

from __future__ import annotations

import itertools
import json
import shutil

import numpy as np
import pytest
import sentencepiece
from helpers_llava import write_original
from helpers_tokenizer import asked, one_layout, train_sentencepiece
from transformers import AutoTokenizer, CLIPImageProcessorPil, LlamaTokenizer, LlavaProcessor

from seva_jax.config.base_models import Checkpoint
from seva_jax.convert import read_special_tokens
from seva_jax.convert.__main__ import open_source
from seva_jax.convert.rewrite import to_hf, to_llava
from seva_jax.pretrained import PretrainedLlava
from seva_jax.text.encode import Encoder
from seva_jax.text.templates import LLAVA_V0, PLAIN, VICUNA_V1
from seva_jax.text.tokenizer import (
    check_tokenizer,
    load_tokenizer,
    save_tokenizer,
    tokenizer_facts,
)
from seva_jax.types import DataError, ExampleError, View

TEXTS = (
    "What is this?",
    "What colour is the 3rd car?\nAnswer the question using a single word or phrase.",
    "  leading blanks",
    "double  blanks   inside",
    "trailing blank ",
    "\n\nline breaks\n\n\nmany\n",
    "\ttab\tand\r\nreturn",
    "12345 67.89 1,000,000 2024-01-01",
    "这张图片里有什么？",
    "画像には何が写っていますか",
    "이 사진에는 무엇이 있나요?",
    "Что на картинке?",
    "ما الذي في الصورة؟",
    "यह क्या है?",
    "Que voit-on ici, là-bas? ÀÉÎÕÜ ß œ",
    "emoji \U0001f600\U0001f469\u200d\U0001f467 end",
    "e\u0301 combining, ﬁ ligature, Ａ wide",
    "def f(x):\n    return x  # four blanks",
    "▁ underline ▁▁ piece",
    "<0x0A> and < image > and <Image> and <img>",
    "[INST] USER: again ASSISTANT: again",
    "...!!!???",
    "a",
    "zero\u200bwidth no\u00a0break wide\u3000space",
    "x" * 100,
)
PROMPTS = (
    *(VICUNA_V1.prompt(text) for text in TEXTS),  # the image first
    *(f"USER: {text}\n<image> ASSISTANT:" for text in TEXTS),
    *(f"USER: <image>\n<image>\n{text} ASSISTANT:" for text in TEXTS),
    *(f"USER: Is <image> like <image>? {text} ASSISTANT:" for text in TEXTS),
    *(f"<image>{text}<image> {text}<image>" for text in TEXTS),
    *TEXTS,
    "<image>",
    "<image><image>",
    "",
)
CORPUS = [text for prompt in PROMPTS for text in prompt.split("<image>")] * 3

NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
SLOW = NAMES | {"add_bos_token": True, "add_eos_token": False, "tokenizer_class": "LlamaTokenizer"}
CLASSES = ("LlamaTokenizer", "LlamaTokenizerFast", "PreTrainedTokenizerFast")
LAYOUTS = [  # which tokenizer.json, the class that is named, and whether there is tokenizer.model
    ("", "LlamaTokenizer", True),
    *itertools.product(("prepend", "metaspace"), CLASSES, (True, False)),
]


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    return train_sentencepiece(tmp_path_factory.mktemp("llama") / "tokenizer.model", CORPUS)


@pytest.fixture(scope="module")
def pieces(model_file):
    return sentencepiece.SentencePieceProcessor(model_file=str(model_file))


@pytest.fixture(scope="module")
def json_files(model_file, tmp_path_factory):
    """Returns tokenizer.json as transformers 5 writes it, and as 4 does, by name."""
    out = tmp_path_factory.mktemp("json")
    LlamaTokenizer.from_pretrained(model_file.parent, add_bos_token=True).save_pretrained(out)
    new = json.loads((out / "tokenizer.json").read_text())
    assert new["pre_tokenizer"]["prepend_scheme"] == "first"
    prepend = {"type": "Prepend", "prepend": "▁"}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    normalizer = {"type": "Sequence", "normalizers": [prepend, replace]}
    return {
        "metaspace": new,
        "prepend": new | {"pre_tokenizer": None, "normalizer": normalizer},
    }


def reference(pieces, text, image, start=(1,)):
    """Returns LLaVA's ids: sentencepiece on each piece between markers; "</s>" ends the text."""
    ids = [*start]
    for i, piece in enumerate(text.split("<image>")):
        ids += [image] * (i > 0) + pieces.encode(piece.removesuffix("</s>"))
    return ids + [2] * text.endswith("</s>")


def write(directory, settings=None, **files):
    """Writes tokenizer files; those of `files` are JSON, but for a path, which is copied."""
    directory.mkdir(exist_ok=True)
    if settings is not None:
        files["tokenizer_config.json"] = settings
    for name, content in files.items():
        if isinstance(content, dict):
            (directory / name).write_text(json.dumps(content))
        else:
            shutil.copyfile(content, directory / name)
    return directory


@pytest.mark.parametrize("legacy", [True, False, None])
@pytest.mark.parametrize(("kind", "cls", "with_model"), LAYOUTS)
def test_ids_equal_llavas(model_file, pieces, json_files, tmp_path, legacy, kind, cls, with_model):
    """Ids do not depend on which files there are, and decoding equals sentencepiece's."""
    settings = SLOW | {"tokenizer_class": cls} | ({} if legacy is None else {"legacy": legacy})
    files = {"tokenizer.model": model_file} if with_model else {}
    if kind:
        files["tokenizer.json"] = json_files[kind]
    tokenizer = load_tokenizer(write(tmp_path / "llava", settings, **files), original=True)
    check(tokenizer, pieces)


def check(tokenizer, pieces, start=(1,)):
    image = pieces.get_piece_size()
    check_tokenizer(tokenizer, image, image)
    assert len(PROMPTS) > 100
    for prompt in PROMPTS:
        expected = reference(pieces, prompt, image, start)
        assert tokenizer(prompt).input_ids == expected, prompt
    for text in TEXTS:
        ids = pieces.encode(text)
        assert tokenizer.decode(ids) == pieces.decode(ids)


def test_a_sentencepiece_model_alone(model_file, pieces, tmp_path):
    directory = write(tmp_path / "llava", **{"tokenizer.model": model_file})
    tokenizer = load_tokenizer(directory, original=True)
    check(tokenizer, pieces)
    size = pieces.get_piece_size()
    with pytest.raises(DataError, match=f"image token id {size} is outside"):
        check_tokenizer(tokenizer, size - 1, size)


@pytest.mark.parametrize("files", ["tokenizer_config.json", "added_tokens.json"])
def test_added_tokens_keep_their_ids(model_file, pieces, tmp_path, files):
    """As in exports from Hugging Face's layout, where `<image>` is in the vocabulary."""
    size = pieces.get_piece_size()
    names = dict.fromkeys(NAMES.values()) | {"<image>": size, "<pad>": size + 1}
    # Flags as in Vicuna's files: taken literally, no special token would be recognised.
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    decoder = {
        str(pieces.piece_to_id(name) if id_ is None else id_): {"content": name, "special": True}
        | flags
        for name, id_ in names.items()
    }
    settings = SLOW | {"pad_token": {"__type": "AddedToken", "content": "<pad>"} | flags}
    added = {}
    if files == "tokenizer_config.json":
        settings["added_tokens_decoder"] = decoder
    else:
        added["added_tokens.json"] = {"<image>": size, "<pad>": size + 1}
    directory = write(tmp_path / "llava", settings, **{"tokenizer.model": model_file}, **added)
    tokenizer = load_tokenizer(directory, original=True)
    assert tokenizer.pad_token_id == size + 1
    assert tokenizer.convert_tokens_to_ids("<image>") == size
    for prompt in PROMPTS:
        assert tokenizer(prompt).input_ids == reference(pieces, prompt, size)
    added = {"added_tokens.json": {"<image>": size + 5}}
    broken = write(tmp_path / "broken", SLOW, **{"tokenizer.model": model_file}, **added)
    with pytest.raises(DataError, match=f"'<image>' should have id {size + 5}, but gets {size}"):
        load_tokenizer(broken, original=True)


def test_start_and_end_tokens_as_the_settings_say(model_file, pieces, json_files, tmp_path):
    """Without a start token LLaVA's rule adds none; with an end token the model does not fit."""
    size = pieces.get_piece_size()
    model = {"tokenizer.model": model_file}
    directory = write(tmp_path / "a", SLOW | {"add_bos_token": False}, **model)
    check(load_tokenizer(directory, original=True), pieces, start=())
    directory = write(tmp_path / "b", SLOW | {"add_eos_token": True}, **model)
    with pytest.raises(DataError, match="add_eos_token=false"):
        check_tokenizer(load_tokenizer(directory, original=True), size, size)
    # The class that reads tokenizer.json as it is follows that file's template.
    settings = NAMES | {"tokenizer_class": "PreTrainedTokenizerFast"}
    for start, template in (((1,), json_files["prepend"]["post_processor"]), ((), None)):
        stored = json_files["prepend"] | {"post_processor": template}
        directory = write(tmp_path / f"c{len(start)}", settings, **{"tokenizer.json": stored})
        check(load_tokenizer(directory, original=True), pieces, start)


# --- the ways of a token


@pytest.fixture(scope="module")
def tokenizer(model_file, tmp_path_factory):
    directory = write(
        tmp_path_factory.mktemp("llava"),
        SLOW | {"legacy": False},
        **{"tokenizer.model": model_file},
    )
    return load_tokenizer(directory, original=True)


@pytest.mark.parametrize("template", [VICUNA_V1, LLAVA_V0])
@pytest.mark.parametrize("num_images", [0, 1, 3])
def test_trees_have_llavas_ids(tokenizer, pieces, num_images, template):
    """Trunk and answer equal LLaVA's ids of the whole conversation, as it is trained on."""
    image = pieces.get_piece_size()
    encoder = Encoder(tokenizer, template, image, one_layout(4), max_length=2048)
    for text in TEXTS:
        tree = encoder.encode(View(asked(text, num_images), (text, "Yes.")))
        prompt = template.prompt(text, num_images).replace("<image>", "<image>" * 4)
        # `<image><image>` are two neighbours with nothing between: LLaVA's piece "" has no ids.
        np.testing.assert_array_equal(tree.trunk, reference(pieces, prompt, image))
        for branch, answer in zip(tree.branches, (text.strip(), "Yes."), strict=True):
            whole = reference(pieces, f"{prompt} {answer}</s>", image)
            assert [*tree.trunk, *branch] == whole
            assert encoder.decode(branch) == answer.replace("▁", " ")


def test_marked_characters_are_those_of_the_answer(tokenizer, pieces):
    encoder = Encoder(tokenizer, PLAIN, pieces.get_piece_size(), one_layout(1), 2048)
    text = "a 3rd car and another car"
    spans = [(2, 9)]
    marked = encoder.marked(asked("What is this?"), text, spans)
    ids = encoder.answer(asked("What is this?"), text)
    assert tokenizer.decode(ids[marked.astype(bool)]).strip() == "3rd car"


@pytest.mark.parametrize("literal", ["</s>", "<s>", "<unk>"])
def test_a_spelled_special_token_is_refused(tokenizer, pieces, literal):
    """LLaVA would take the text "</s>" for the end of the answer.

    What follows it depends on `legacy`, the only thing that does.
    """
    encoder = Encoder(tokenizer, PLAIN, pieces.get_piece_size(), one_layout(1), 2048)
    with pytest.raises(ExampleError, match=literal) as info:
        encoder.trunk(asked(f"What does {literal} mean?"))
    assert info.value.reason == "special token in question"
    with pytest.raises(ExampleError, match=literal) as info:
        encoder.answer(asked("What is this?"), f"It is {literal} here")
    assert info.value.reason == "special token in answer"


@pytest.fixture
def checkpoint(tmp_path):
    """Returns a small original LLaVA, with a sentencepiece model of 40 pieces alone."""
    directory = write_original(tmp_path / "llava")
    (directory / "tokenizer.json").unlink()
    (directory / "tokenizer_config.json").unlink()
    train_sentencepiece(
        directory / "tokenizer.model",
        ["USER: \nWhat is red? ASSISTANT: red"] * 5,
        byte_fallback=False,
        vocab_size=40,
    )
    return directory


SMALL = ("USER: <image>\nWhat is red? ASSISTANT:", "<image> red<image>", " red  is", "is 日本 red")


def test_a_run_and_an_opened_model_use_llavas_ids(checkpoint):
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(checkpoint / "tokenizer.model"))
    image = pieces.get_piece_size()
    run = Checkpoint(str(checkpoint)).assets()
    assert run.config.image_token_id == image
    tower = checkpoint / "vision_tower"
    special = read_special_tokens(checkpoint)
    opened = PretrainedLlava(checkpoint, run.config, {}, special, "float32", tower)
    for text in SMALL:
        assert run.tokenizer(text).input_ids == reference(pieces, text, image)
        assert opened.tokenizer(text).input_ids == reference(pieces, text, image)


def test_an_export_keeps_the_ids(checkpoint, tmp_path):
    """to-hf writes what transformers opens with the same ids; and to-llava what LLaVA opens."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(checkpoint / "tokenizer.model"))
    image = pieces.get_piece_size()
    assert image == 40  # rows of the small model
    hf, again = tmp_path / "hf", tmp_path / "again"
    to_hf(open_source(checkpoint), hf)
    theirs = AutoTokenizer.from_pretrained(hf)
    settings = json.loads((hf / "tokenizer_config.json").read_text())
    # transformers 4.57 knows this class and reads this field as a dict only. The class adds token
    # types unless told otherwise, and with them `generate` of its LLaVA raises.
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert settings["extra_special_tokens"] == {"image_token": "<image>"}
    assert settings["model_input_names"] == ["input_ids", "attention_mask"]
    fields = json.loads((hf / "processor_config.json").read_text())
    fields.pop("processor_class")
    processor = LlavaProcessor(CLIPImageProcessorPil.from_pretrained(hf), theirs, **fields)
    for text in SMALL:
        expected = reference(pieces, text, image)
        assert theirs(text).input_ids == expected
        images = [np.zeros((30, 20, 3), np.uint8)] * text.count("<image>")
        ids = processor(images=images or None, text=text)["input_ids"][0]
        assert ids == [id_ for id_ in expected for _ in range(4 if id_ == image else 1)]
    assert (hf / "tokenizer.model").read_bytes() == (checkpoint / "tokenizer.model").read_bytes()
    to_llava(open_source(hf), again)
    # LLaVA's transformers 4.37 opens this class with tokenizer.model and these tokens.
    settings = json.loads((again / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "LlamaTokenizer"
    added = {int(id_): token["content"] for id_, token in settings["added_tokens_decoder"].items()}
    assert added == {0: "<unk>", 1: "<s>", 2: "</s>", image: "<image>", image + 1: "<pad>"}
    assert settings["add_bos_token"]
    read = load_tokenizer(again, original=True)
    assert read.get_vocab() == theirs.get_vocab()
    for text in SMALL:
        assert read(text).input_ids == reference(pieces, text, image)


def test_a_saved_tokenizer_keeps_ids_in_hugging_faces_layout(tokenizer, pieces, tmp_path):
    """Every prompt, with a config.json as llava-hf has it, which decides the class."""
    save_tokenizer(tokenizer, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava"}))
    image = pieces.get_piece_size()
    for again in (AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)):
        assert again.image_token_id == image
        for prompt in PROMPTS:
            assert again(prompt).input_ids == reference(pieces, prompt, image)


def test_tokenizers_that_split_differently_are_told_apart(tokenizer, model_file):
    """They have the same vocabulary, but nothing computed with one may be used with the other."""
    theirs = LlamaTokenizer.from_pretrained(model_file.parent)
    theirs.add_tokens("<image>", special_tokens=True)
    assert theirs.get_vocab() == tokenizer.get_vocab()
    assert tokenizer_facts(theirs) != tokenizer_facts(tokenizer)


# --- what cannot be read


@pytest.mark.parametrize(
    "options",
    [
        {"model_type": "unigram", "vocab_size": 420},
        {"normalization_rule_name": "nmt_nfkc"},
        {"remove_extra_whitespaces": True},
        {"add_dummy_prefix": False},
    ],
)
def test_other_kinds_of_sentencepiece_models_are_refused(tmp_path, options):
    train_sentencepiece(tmp_path / "tokenizer.model", CORPUS, **options)
    with pytest.raises(DataError, match=r"tokenizer\.model: not a model like Llama's; supported"):
        load_tokenizer(tmp_path, original=True)


def test_directories_that_hold_no_tokenizer(model_file, tmp_path):
    message = r"tokenizer\.json: no such file, nor tokenizer\.model or vocab\.json; copy the"
    with pytest.raises(DataError, match=message):
        load_tokenizer(tmp_path, original=True)
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(DataError, match=r"the tokenizer does not load: .*; fetch its files again"):
        load_tokenizer(tmp_path, original=True)
    (tmp_path / "tokenizer.model").write_bytes(b"not a model")
    with pytest.raises(DataError, match=r"tokenizer\.model cannot be read as a sentencepiece"):
        load_tokenizer(tmp_path, original=True)
    shutil.copyfile(model_file, tmp_path / "tokenizer.model")
    for name in ("tokenizer_config.json", "special_tokens_map.json", "tokenizer.json"):
        for content, message in (("{", "cannot be read as JSON"), ("[]", "holds a list")):
            (tmp_path / name).write_text(content)
            with pytest.raises(DataError, match=f"{name} {message}"):
                load_tokenizer(tmp_path, original=True)
        (tmp_path / name).unlink()
    load_tokenizer(tmp_path, original=True)
