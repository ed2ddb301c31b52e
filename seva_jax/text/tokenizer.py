"""Tokenizers: loading one from a directory, checking and saving it, and building a word-level one.

What does not live here: the original LLaVA's tokenizer (`llama.py`), encoding examples
(`encode.py`). Read next: `encode.py`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seva_jax.runtime.copies import local_folder
from seva_jax.runtime.stores import as_path
from seva_jax.text.llama import (
    JSON_FILE,
    MODEL_FILE,
    SETTINGS_FILE,
    llama_tokenizer,
    write_settings,
)
from seva_jax.types import IMAGE_MARKER, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

SPECIALS = ("<pad>", "<s>", "</s>", "<unk>", IMAGE_MARKER)  # ids 0 to 4 of `word_tokenizer`
_NAMES = [f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")]
_VERSION_5 = ("backend", "is_local", "local_files_only", "model_specific_special_tokens")
_FILES = (JSON_FILE, MODEL_FILE, "vocab.json")
_ENDINGS = (".json", ".model", ".txt", ".jinja")  # of files that tokenizers are made of


def load_tokenizer(directory: str | Path, original: bool = False) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a model directory, without remote code.

    Args:
        directory: directory with `tokenizer.json`, `tokenizer.model` or `vocab.json`, on a disk or
            in an object store.
        original: whether the model is in the original LLaVA's layout. Then token ids are those of
            LLaVA's own code (see `llama_tokenizer`), and an image token is added after the last id
            if there is none.

    Raises:
        DataError: the directory or its tokenizer files are missing or unreadable.
    """
    directory = as_path(directory)
    local = local_folder(directory, _ENDINGS)
    if not local.is_dir():
        raise DataError(f"{directory}: no such directory; give the folder of a saved model")
    if not any((local / name).is_file() for name in _FILES):
        raise DataError(
            f"{directory / _FILES[0]}: no such file, nor {' or '.join(_FILES[1:])}; copy the "
            "model's tokenizer files there, or use tokenizer.save_pretrained(directory)"
        )
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    tokenizer = None
    try:
        if original:
            tokenizer = llama_tokenizer(local)
        if tokenizer is None:
            as_it_is = original and (local / JSON_FILE).is_file()
            kind = PreTrainedTokenizerFast if as_it_is else AutoTokenizer
            tokenizer = kind.from_pretrained(
                str(local), local_files_only=True, trust_remote_code=False
            )
    except DataError as error:
        raise DataError(str(error).replace(str(local), str(directory))) from error
    except Exception as error:  # transformers and tokenizers raise many types, some bare Exception
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"{directory}: the tokenizer does not load: {first_line}; fetch its files again, or "
            "use tokenizer.save_pretrained(directory)"
        ) from error
    tokenizer.name_or_path = str(directory)
    if original and IMAGE_MARKER not in tokenizer.get_vocab():
        tokenizer.add_tokens(IMAGE_MARKER, special_tokens=True)
    return tokenizer


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Saves a tokenizer so that transformers 4 and 5 open it with the same token ids.

    transformers 5 alone would write a class name and names of special tokens that 4 does not read,
    and 4 would give the model token types, at which its `generate` raises.
    """
    tokenizer.save_pretrained(directory)
    settings = json.loads((directory / SETTINGS_FILE).read_text(encoding="utf-8"))
    for name in _VERSION_5:
        settings.pop(name, None)
    if isinstance(listed := settings.get("extra_special_tokens"), list) and listed:
        settings["additional_special_tokens"] = listed  # transformers 4 has the list here
    # Processors ask for tokens of images by name.
    named = {key: token for key, token in settings.items() if key.endswith("_token")}
    if IMAGE_MARKER in tokenizer.get_vocab():
        named |= {"image_token": IMAGE_MARKER}
    settings |= {
        "tokenizer_class": "PreTrainedTokenizerFast",  # both read tokenizer.json as it is
        "model_input_names": ["input_ids", "attention_mask"],
        "extra_special_tokens": {key: x for key, x in named.items() if key not in _NAMES},
    }
    write_settings(directory, settings)


def tokenizer_facts(tokenizer: PreTrainedTokenizerBase) -> tuple[dict[str, int], str]:
    """Returns the vocabulary and everything else that token ids depend on, to be compared."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return tokenizer.get_vocab(), backend.to_str() if backend else ""


def check_tokenizer(
    tokenizer: PreTrainedTokenizerBase,
    vocab_size: int,
    image_token_id: int,
    image_text: str = IMAGE_MARKER,
) -> None:
    """Checks that a tokenizer fits a model.

    Args:
        tokenizer: any tokenizer.
        vocab_size: rows of the model's embedding table.
        image_token_id: the id that the model replaces by image features; in the original LLaVA
            the first id after the vocabulary.
        image_text: how the tokenizer's text spells an image, see `Encoder`.

    Raises:
        DataError: the tokenizer does not fit; the message lists every problem, one per line.
    """
    problems = []
    outside = sorted(
        (id_, token)
        for token, id_ in tokenizer.get_vocab().items()
        if id_ >= vocab_size and not id_ == image_token_id == vocab_size
    )
    if outside:
        shown = ", ".join(f"{token!r}={id_}" for id_, token in outside[:3])
        problems.append(
            f"{len(outside)} token ids are outside the model's vocabulary of {vocab_size} "
            f"({shown}{', ...' if len(outside) > 3 else ''}): use the tokenizer saved with it"
        )
    # No padding token is needed: padding is masked, so any id will do.
    plain = tokenizer("a", add_special_tokens=False).input_ids
    no_start = tokenizer.bos_token_id is None and tokenizer("a").input_ids == plain
    if no_start and not _is_of_bytes(tokenizer):
        problems.append("there is no start token: set bos_token in tokenizer_config.json")
    if tokenizer.eos_token_id is None:
        problems.append("there is no end token: set eos_token in tokenizer_config.json")
    elif tokenizer("a").input_ids[-1:] == [tokenizer.eos_token_id]:
        problems.append("the tokenizer ends every text with its end token: set add_eos_token=false")
    if not 0 <= image_token_id <= vocab_size:  # = vocab_size: its embedding is never looked up
        problems.append(
            f"image token id {image_token_id} is outside the model's vocabulary of {vocab_size}"
        )
    image_ids = tokenizer(image_text, add_special_tokens=False).input_ids
    alone = image_text == IMAGE_MARKER
    if image_ids.count(image_token_id) != 1 or (alone and len(image_ids) != 1):
        problems.append(
            f"{image_text} becomes {image_ids}, not the model's image token [{image_token_id}]: "
            f"add {IMAGE_MARKER} to the tokenizer as a special token with that id"
            if alone
            else f"{image_text} becomes {image_ids}, which is not one image token {image_token_id} "
            "of the model and others around it: use the tokenizer saved with it"
        )
    if problems:
        where = f" of {name}" if (name := tokenizer.name_or_path) else ""
        lines = "\n  ".join(problems)
        raise DataError(f"the tokenizer{where} does not fit the model:\n  {lines}")


def _is_of_bytes(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Returns whether pieces are of bytes, as those of Qwen 2: many such have no start token."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    decoder = json.loads(backend.to_str())["decoder"] if backend else None
    return bool(decoder) and decoder["type"] == "ByteLevel"


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """Builds a tokenizer with one id per word, for worlds with a small vocabulary.

    Text is split at white space and around every punctuation mark; case is kept. Encoding adds
    `<s>` at the start. Decoding joins words by single spaces and attaches `. , ? !` to the word
    before; line breaks are lost. A word that is not in the list becomes `<unk>`, so the words of
    the template ("USER", "ASSISTANT", ":") must be in the list.

    Args:
        words: the vocabulary in the order of ids, from id 5 on; ids 0 to 4 are `SPECIALS`. Repeats
            are ignored.

    Raises:
        DataError: an entry is not a single word, so no text could produce it.

    >>> tokenizer = word_tokenizer(["a", "red", "circle", "."])
    >>> tokenizer("a red circle.").input_ids
    [1, 5, 6, 7, 8]
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    split = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(behavior="isolated")]
    )
    for word in words:
        if [piece for piece, _ in split.pre_tokenize_str(word)] != [word]:
            raise DataError(
                f"word_tokenizer: {word!r} is not a single word; split it at spaces and punctuation"
            )
    vocabulary = {token: id_ for id_, token in enumerate(dict.fromkeys((*SPECIALS, *words)))}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = split
    inner.decoder = decoders.WordPiece(cleanup=True)  # joins by spaces
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": IMAGE_MARKER},
        clean_up_tokenization_spaces=False,
    )
