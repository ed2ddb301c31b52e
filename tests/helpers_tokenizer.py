"""Llama-style tokenizers built locally, for tests that need the real thing's behaviour.

And what an encoder needs beside one: the layout of images, and prompts.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from seva_jax.images import ImageLayouts, ImageProcessing
from seva_jax.types import Prompt

_START = ("<unk>", "<s>", "</s>")
_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))


def llama_style_tokenizer(corpus: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Trains a BPE with byte fallback and Llama's normaliser, laid out as `llava-hf` does.

    Ids: `<unk>` 0, `<s>` 1, `</s>` 2, 256 bytes, learned pieces, then `<image>` and `<pad>` last.

    Args:
        corpus: texts to learn pieces from.
        vocab_size: most ids in all (fewer when the corpus has no more to learn); over 261.
    """
    normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizer
    # Llama's pieces never reach across words; the final tokenizer needs no splitting for that.
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    num_pieces = vocab_size - len(_START) - len(_BYTES) - 2
    trained.train_from_iterator(
        corpus, BpeTrainer(vocab_size=num_pieces, show_progress=False, special_tokens=[])
    )
    learned = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    names = (*_START, *_BYTES, *(name for name, _ in learned))
    vocabulary = {name: id_ for id_, name in enumerate(names)}
    merges = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]

    inner = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    inner.normalizer = normalizer
    inner.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    inner.add_special_tokens([*_START, "<image>", "<pad>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )


# How Qwen 2 and Llama 3 cut a text into words; they differ in the digits of a number.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_LLAMA_3 = (
    "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eot_id|>",
)  # fmt: skip


def qwen2_style_tokenizer(
    corpus: Sequence[str], more: Sequence[str] = ("<image>", "<video>")
) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE with Qwen 2's special tokens, which adds none to a text.

    Args:
        corpus: texts to learn pieces from.
        more: further special tokens.
    """
    inner = _byte_level(corpus, "", (*_CHATML, *more))
    inner.normalizer = normalizers.NFC()
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|im_end|>", pad_token=end, unk_token=end
    )


def llama3_style_tokenizer(corpus: Sequence[str]) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE with Llama 3's special tokens, and one before each text."""
    inner = _byte_level(corpus, "{1,3}", (*_LLAMA_3, "<image>", "<pad>"))
    first = _LLAMA_3[0]
    inner.post_processor = processors.TemplateProcessing(
        single=f"{first} $A", special_tokens=[(first, inner.token_to_id(first))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token=first, eos_token="<|eot_id|>", pad_token="<pad>"
    )


def _byte_level(corpus: Sequence[str], digits: str, specials: Sequence[str]) -> Tokenizer:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS % digits), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=400, show_progress=False, initial_alphabet=alphabet)
    inner.train_from_iterator(corpus, trainer)
    inner.add_special_tokens(list(specials))
    return inner


def train_sentencepiece(path: Path, corpus: Sequence[str], **options: Any) -> Path:
    """Trains a sentencepiece model as Llama's was trained, and writes it to a file.

    Ids: `<unk>` 0, `<s>` 1, `</s>` 2, 256 bytes, learned pieces.

    Args:
        path: the new file.
        corpus: texts to learn pieces from.
        options: of the trainer, in place of Llama's.
    """
    model = io.BytesIO()
    llama = {
        "model_type": "bpe",
        "vocab_size": 500,
        "hard_vocab_limit": False,
        "byte_fallback": True,
        "split_digits": True,
        "allow_whitespace_only_pieces": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "num_threads": 1,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus), model_writer=model, **llama | options
    )
    path.write_bytes(model.getvalue())
    return path


def one_layout(tokens: int) -> ImageLayouts:
    """Returns `Encoder.layouts` for images that all take the same number of tokens."""
    return ImageLayouts(ImageProcessing(), tokens)


def asked(question: str, num_images: int = 1, start: str = "") -> Prompt:
    """Returns a prompt about images whose names do not matter."""
    return Prompt("", question, ("x",) * num_images, start=start)
