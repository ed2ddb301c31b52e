"""Builds the tokenizer of an original LLaVA directory, with the token ids that LLaVA gives it.

LLaVA splits a prompt at `<image>` and encodes each piece with transformers 4's Python class
`LlamaTokenizer`, that is, with sentencepiece, which puts a "▁" before every piece. transformers 5
puts it only before the first, and that also depends on which files there are, so its own classes
are not used here. What does not live here: tokenizers of other directories (`tokenizer.py`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from seva_jax.types import IMAGE_MARKER, DataError

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerFast

MODEL_FILE, JSON_FILE, SETTINGS_FILE = "tokenizer.model", "tokenizer.json", "tokenizer_config.json"
_NAMES = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": None}
_JSON_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")  # read tokenizer.json as it is
_SPACE = "▁"  # how sentencepiece writes a space
# A text that a sentencepiece model encodes otherwise if it drops spaces or normalises characters.
_PROBE = "  USER:  a\tb\n\n1234 é e\u0301 ＡＢ ﬁ ① 中文 ▁x \U0001f600 don't ... "


class _Bpe(NamedTuple):
    """The pieces of a byte-pair encoding.

    Attributes:
        vocab: id of each piece.
        merges: pairs of pieces that are joined, in order of precedence.
        has_bytes: whether characters that no piece holds are spelled in bytes.
    """

    vocab: dict[str, int]
    merges: list[tuple[str, str]]
    has_bytes: bool


def llama_tokenizer(directory: Path) -> PreTrainedTokenizerFast | None:
    """Builds a tokenizer whose ids equal those of LLaVA's `tokenizer_image_token`.

    Its pieces come from `tokenizer.model`, or from `tokenizer.json` if that is the only one or
    `tokenizer_class` is PreTrainedTokenizerFast. Special and added tokens come from the other
    files, where they exist. `legacy` is not used: it matters only for texts that spell a special
    token, which `Encoder` refuses; nor is `add_prefix_space`, which LLaVA's transformers 4.37 does
    not know. `<image>` gets the first free id if it has none.

    Args:
        directory: a model in the original LLaVA's layout.

    Returns:
        The tokenizer, or None if there is only a `tokenizer.json` that is not of Llama's kind.

    Raises:
        DataError: a file is damaged, or asks for something that is not supported.
    """
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    stored, settings = _read(directory / JSON_FILE), _read(directory / SETTINGS_FILE)
    uses_json = stored and settings.get("tokenizer_class") in _JSON_CLASSES
    if (directory / MODEL_FILE).is_file() and not uses_json:
        bpe = _from_model(directory / MODEL_FILE)
    elif _is_llama(stored):
        bpe = _from_json(stored["model"])
    else:
        return None
    inner = _backend(bpe)
    named = _NAMES | settings | _read(directory / "special_tokens_map.json")
    added = _added_tokens(directory, stored, settings)
    known = bpe.vocab | {name: id_ for id_, (name, _) in added.items()}
    # A padding token that has no id is left out: any id can pad.
    names = {key: name for key in _NAMES if (name := _content(named[key])) in known}
    inner.add_special_tokens([_token(name) for name in names.values() if name in bpe.vocab])
    for id_, (name, special) in sorted(added.items()):
        (inner.add_special_tokens if special else inner.add_tokens)([_token(name, special)])
        if inner.token_to_id(name) != id_:
            raise DataError(
                f"{directory}: the added token {name!r} should have id {id_}, but gets "
                f"{inner.token_to_id(name)}; are all tokenizer files those of the same model?"
            )
    inner.add_special_tokens([_token(IMAGE_MARKER)])
    first, last = _ends(names, settings, stored if uses_json else {})
    inner.post_processor = processors.TemplateProcessing(
        single=[*first, "$A", *last],
        pair=[*first, "$A", *last, *first, "$B", *last],
        special_tokens=[(name, inner.token_to_id(name)) for name in (*first, *last)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        name_or_path=str(directory),
        extra_special_tokens={"image_token": IMAGE_MARKER},
        clean_up_tokenization_spaces=False,
        padding_side="left",
        **names,
    )


def name_llama_class(directory: Path) -> None:
    """Makes tokenizer_config.json name the class that the original LLaVA can open.

    Its transformers 4.37 does not read the tokenizer.json of later versions. Nothing is changed
    where another class is named, or where tokenizer.model is missing or has other pieces.

    Args:
        directory: a model in the original LLaVA's layout.
    """
    stored, settings = _read(directory / JSON_FILE), _read(directory / SETTINGS_FILE)
    path = directory / MODEL_FILE
    if settings.get("tokenizer_class") not in _JSON_CLASSES or not _is_llama(stored):
        return
    if not path.is_file() or _from_model(path).vocab != stored["model"]["vocab"]:
        return
    names = {key: name for key in _NAMES if (name := _content(settings.get(key)))}
    first, last = _ends(names, settings, stored)
    added = {token["id"]: token for token in stored["added_tokens"]}
    settings |= {
        "tokenizer_class": "LlamaTokenizer",
        "legacy": True,
        "add_bos_token": bool(first),
        "add_eos_token": bool(last),
        "added_tokens_decoder": {
            str(id_): {key: value for key, value in token.items() if key != "id"}
            for id_, token in sorted(added.items())
        },
    }
    for key in ("backend", "extra_special_tokens", "image_token"):
        settings.pop(key, None)
    write_settings(directory, settings)


def added_ids(directory: Path) -> dict[str, int]:
    """Returns the ids of a tokenizer's added tokens, those outside of its vocabulary, by name.

    Raises:
        DataError: a file is damaged.
    """
    settings = _read(directory / SETTINGS_FILE)
    stored = {} if "added_tokens_decoder" in settings else _read(directory / JSON_FILE)
    try:
        added = _added_tokens(directory, stored, settings)
        return {str(name): int(id_) for id_, (name, _) in added.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{directory}: the added tokens of its tokenizer cannot be read ({error!r}); fetch "
            f"{SETTINGS_FILE} and {JSON_FILE} again"
        ) from error


def write_settings(directory: Path, settings: dict[str, Any]) -> None:
    """Writes tokenizer_config.json as transformers does."""
    text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
    (directory / SETTINGS_FILE).write_text(text, encoding="utf-8")


def _backend(bpe: _Bpe) -> Tokenizer:
    """Returns a tokenizer that puts a "▁" before each text between special tokens."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    inner = Tokenizer(
        models.BPE(
            bpe.vocab,
            bpe.merges,
            unk_token="<unk>" if "<unk>" in bpe.vocab else None,
            byte_fallback=bpe.has_bytes,
            fuse_unk=True,
        )
    )
    # Added tokens are cut out before, so that this is done for each text between them.
    inner.normalizer = normalizers.Sequence(
        [normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)]
    )
    inner.decoder = decoders.Sequence(
        [
            decoders.Replace(_SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return inner


def _from_model(path: Path) -> _Bpe:
    """Reads a sentencepiece model: pieces of a higher score are joined first.

    Raises:
        DataError: the file is damaged, or the model encodes texts in another way than Llama's.
    """
    import sentencepiece

    try:
        model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{path} cannot be read as a sentencepiece model ({error}): fetch it again"
        ) from None
    pieces = [model.id_to_piece(id_) for id_ in range(model.get_piece_size())]
    vocab = {piece: id_ for id_, piece in enumerate(pieces)}
    kinds = (model.is_unknown, model.is_control, model.is_byte, model.is_unused)
    spelled = {p for p, id_ in vocab.items() if not any(is_kind(id_) for is_kind in kinds)}
    merges = sorted(
        (-model.get_score(vocab[piece]), vocab[piece[:at]], vocab[piece[at:]])
        for piece in spelled
        for at in range(1, len(piece))
        if piece[:at] in spelled and piece[at:] in spelled
    )
    bpe = _Bpe(
        vocab,
        [(pieces[left], pieces[right]) for _, left, right in merges],
        any(model.is_byte(id_) for id_ in vocab.values()),
    )
    probe = _PROBE + "".join(sorted(spelled, key=vocab.__getitem__))
    if _backend(bpe).encode(probe).ids != model.encode(probe):
        raise DataError(
            f"{path}: not a model like Llama's; supported are byte-pair encodings that keep all "
            "spaces and characters (identity normalisation) and put a space before the text"
        )
    return bpe


def _from_json(model: dict[str, Any]) -> _Bpe:
    pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
    merges = [(left, right) for left, right in pairs]
    return _Bpe(model["vocab"], merges, model.get("byte_fallback", False))


def _is_llama(stored: dict[str, Any]) -> bool:
    """Returns whether this is a tokenizer.json that transformers 4 or 5 makes for Llama."""
    if not stored or stored["model"].get("type") != "BPE":
        return False
    normalizer, split = stored.get("normalizer"), stored.get("pre_tokenizer")
    if split is None:  # transformers 4, legacy
        parts = (normalizer or {}).get("normalizers", [])
        return [part.get("type") for part in parts] == ["Prepend", "Replace"]
    return (
        normalizer is None
        and split.get("type") == "Metaspace"
        and split.get("split") is False
        and split.get("prepend_scheme") in ("first", "always")
    )


def _added_tokens(
    directory: Path, stored: dict[str, Any], settings: dict[str, Any]
) -> dict[int, tuple[str, bool]]:
    """Returns name and "is special" of each added token, by id."""
    if "added_tokens_decoder" in settings:
        tokens = [{**t, "id": int(i)} for i, t in settings["added_tokens_decoder"].items()]
    else:
        plain = _read(directory / "added_tokens.json").items()
        tokens = [{"content": name, "id": id_} for name, id_ in plain]
        tokens += stored.get("added_tokens", [])
    return {t["id"]: (t["content"], t.get("special", False)) for t in tokens}


def _ends(
    names: dict[str, str], settings: dict[str, Any], stored: dict[str, Any]
) -> tuple[list[str], list[str]]:
    """Returns the tokens to put before and after a text.

    Args:
        names: special tokens by kind.
        settings: content of tokenizer_config.json.
        stored: content of tokenizer.json, to follow where the settings say nothing; if empty,
            Llama's class is followed, which adds a start token and no end token.
    """
    parts = (stored.get("post_processor") or {}).get("single", [])
    placed = [part["SpecialToken"]["id"] for part in parts if "SpecialToken" in part]

    def tokens(key: str, default: bool) -> list[str]:
        name = names.get(key)
        adds = settings.get(f"add_{key}", name in placed if stored else default)
        return [name] if name and adds else []

    return tokens("bos_token", True), tokens("eos_token", False)


def _content(token: str | dict[str, Any] | None) -> str | None:
    return token["content"] if isinstance(token, dict) else token


def _token(name: str, special: bool = True) -> AddedToken:
    from tokenizers import AddedToken

    # A normalised one would be looked for as "▁</s>".
    return AddedToken(name, special=special, normalized=False)


def _read(path: Path) -> dict[str, Any]:
    """Reads a JSON object; a file that does not exist is empty."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error}): fetch it again") from None
    if not isinstance(value, dict):
        raise DataError(f"{path} holds a {type(value).__name__}, expected a JSON object")
    return value
