"""Writes a checkpoint, with or without a run's result, in the other of the two layouts.

Tensors are renamed and written to new files, a few in memory at a time; untrained ones are copied
byte by byte. Config, tokenizer and processor files are new. What does not live here: exports that
keep the layout (`export.py`), and the names of tensors (`table.py`).
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seva_jax.convert.chat_template import read_template
from seva_jax.convert.export import (
    TOWER,
    changes,
    merged,
    other_files,
    patched_copy,
    read_tensor,
)
from seva_jax.convert.families import LLAVA, family_of
from seva_jax.convert.files import (
    SafetensorsWriter,
    copy_file,
    new_directory,
    write_json,
)
from seva_jax.convert.hf_config import (
    llava_config_fields,
    read_context_length,
    read_special_tokens,
)
from seva_jax.convert.hf_text import original_problem
from seva_jax.convert.load import INDEX_FILE, SINGLE_FILE, read_headers, shapes_by_path
from seva_jax.convert.original import (
    llava_name_problem,
    original_text,
    read_json,
    require_sentencepiece,
)
from seva_jax.convert.original_config import original_fields
from seva_jax.convert.processor import image_processing, write_chat_template, write_processor
from seva_jax.convert.source import Source
from seva_jax.convert.table import EMBEDDING, HEAD, TABLE, original
from seva_jax.convert.tensors import Tensor, num_bytes, read_raw, require_unchanged
from seva_jax.images.preprocess import ImageProcessing
from seva_jax.models import Llava, LlavaConfig, abstract_params
from seva_jax.runtime.progress import Progress
from seva_jax.text.llama import MODEL_FILE, name_llama_class
from seva_jax.text.templates import Template
from seva_jax.text.tokenizer import load_tokenizer, save_tokenizer
from seva_jax.types import DataError

_SHARD_BYTES = 5 * 10**9
_VIDEO = "<video>"
_ROWS = 64  # Hugging Face's LLaVA pads its vocabulary to a multiple of this
_TORCH_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
# Files that both layouts have, with different contents.
_LAYOUT_FILES = ("config.json", "processor_config.json", "preprocessor_config.json")


def to_hf(source: Source, out: Path) -> str:
    """Writes the model in Hugging Face's layout, adapters merged and trained parts replaced.

    The tokenizer of an original LLaVA gains `<image>`, `<pad>` where its language model is Llama or
    has no padding token, and `<video>` where the model takes videos. If there are no rows for
    them, the vocabulary is padded to a multiple of 64; the new rows are the mean of the others.

    Args:
        source: the model to export.
        out: the new directory.

    Returns:
        A summary for the terminal.

    Raises:
        DataError: the checkpoint is damaged, `out` cannot be written, or transformers has no model
            that processes videos alike.
    """
    if source.tower is None:
        return patched_copy(source, out)
    config, theirs = source.config, read_json(source.directory / "config.json")
    processing = source.processing or image_processing(source.directory, source.tower)
    processing.to_processor_config()  # raises before anything is written
    context = read_context_length(source.directory, source.tower)
    special = read_special_tokens(source.directory)
    tokenizer = load_tokenizer(source.directory, original=True)
    if config.video_token_id is not None:
        tokenizer.add_tokens(_VIDEO, special_tokens=True)
        video: Any = tokenizer.convert_tokens_to_ids(_VIDEO)
        config = dataclasses.replace(config, video_token_id=video)
    if tokenizer.pad_token is None or not config.text.qkv_bias:
        tokenizer.add_special_tokens({"pad_token": "<pad>"})
    rows = config.text.vocab_size
    if len(tokenizer) > rows:
        rows = -(-len(tokenizer) // _ROWS) * _ROWS
    text = dataclasses.replace(config.text, vocab_size=rows)
    config = dataclasses.replace(config, text=text)
    template = source.template or read_template(source.directory, tokenizer, original=True)
    tensors = read_headers(source.directory, source.tower)
    spell = family_of(config).hub_name
    with new_directory(out, _size(tensors)) as scratch:
        fields = llava_config_fields(config, context, processing)
        fields |= {"torch_dtype": _torch_dtype(tensors)}
        write_json(scratch / "config.json", fields)
        tokens = {"eos_token_id": list(special.stop_ids), "pad_token_id": tokenizer.pad_token_id}
        start = theirs.get("bos_token_id", 1)
        write_json(scratch / "generation_config.json", {"bos_token_id": start, **tokens})
        save_tokenizer(tokenizer, scratch)
        if (source.directory / MODEL_FILE).is_file():  # for programs that take no tokenizer.json
            copy_file(source.directory / MODEL_FILE, scratch / MODEL_FILE)
        write_processor(scratch, config, processing)
        write_chat_template(scratch, template, family_of(config).chat_image)
        num = _rewrite(source, tensors, scratch, lambda name: ("", spell(name)), rows)
    return f"{out}: {num} of {len(tensors)} tensors changed, Hugging Face's layout"


def require_llava_opens(source: Source, out: Path) -> None:
    """Raises if the original LLaVA could not open what `to_llava` would write.

    Raises:
        DataError: its code does not have the model, the name of the directory would mislead its
            loader, or there is no tokenizer.model, which its slow tokenizer reads.
    """
    family, text = family_of(source.config), "llama"
    if source.tower is not None:
        path = source.directory / "config.json"
        text = original_text(path, read_json(path))
    elif family is not LLAVA:
        raise DataError(
            f"{source.directory} is a {family.model_type} in Hugging Face's layout, and only "
            "LLaVA-1.5 is written in the original layout; to-hf exports this model"
        )
    problem = original_problem(source.config.text)
    if problem and family is LLAVA and text == "llama":
        raise DataError(f"the original LLaVA cannot open this model: {problem}; use to-hf")
    if problem := llava_name_problem(out, text=text):
        raise DataError(problem)
    if text == "llama":
        require_sentencepiece(source.directory)


def to_llava(source: Source, out: Path) -> str:
    """Writes the model in the original LLaVA's layout, with its tower in OUT/vision_tower.

    All vocabulary rows of a Hugging Face checkpoint are kept, including padding.

    Args:
        source: the model to export.
        out: the new directory.

    Returns:
        A summary for the terminal.

    Raises:
        DataError: the checkpoint is damaged, or `out` cannot be written.
    """
    if source.tower is not None:
        return patched_copy(source, out)
    config = source.config
    context = read_context_length(source.directory)
    processing = source.processing or image_processing(source.directory, None)
    hf_fields = llava_config_fields(config, context, processing)
    special = read_special_tokens(source.directory)
    tensors = read_headers(source.directory)
    with new_directory(out, _size(tensors)) as scratch:
        tower = scratch / TOWER
        tower.mkdir()
        for path in other_files(source.directory):
            if path.name not in _LAYOUT_FILES and not path.name.startswith("chat_template"):
                copy_file(path, scratch / path.name)
        name_llama_class(scratch)
        place_of_tower = str(out.absolute() / TOWER)  # LLaVA takes a relative one from anywhere
        fields = original_fields(config, hf_fields, place_of_tower, processing)
        stop = next(iter(special.stop_ids), None)
        tokens = {"eos_token_id": stop, "pad_token_id": special.pad_id}
        dtype = {"torch_dtype": _torch_dtype(tensors)}
        write_json(scratch / "config.json", fields | tokens | dtype)
        write_json(tower / "config.json", hf_fields["vision_config"] | dtype)
        clip = processing.to_processor_config() | {"image_processor_type": "CLIPImageProcessor"}
        del clip["do_pad"]
        write_json(tower / "preprocessor_config.json", clip)

        def place(name: str) -> tuple[str, str]:
            return TOWER if name.startswith("vision_tower.") else "", original(name)

        num = _rewrite(source, tensors, scratch, place, config.text.vocab_size)
    return f"{out}: {num} of {len(tensors)} tensors changed, original layout"


def write_new(
    directory: Path,
    config: LlavaConfig,
    tokenizer: Any,
    processing: ImageProcessing,
    template: Template,
    read: Callable[[Sequence[str]], list[np.ndarray]],
) -> None:
    """Writes a model that was trained from scratch as a new Hugging Face directory, in float32.

    Args:
        directory: the new directory.
        config: the architecture.
        tokenizer: a tokenizer of transformers.
        processing: the image pipeline.
        template: the words around questions and answers.
        read: reads variables, given names such as "params/language/embedding".
    """
    shapes = shapes_by_path(abstract_params(Llava(config)))
    rows = [row for row in TABLE if row.ours in shapes]
    family = family_of(config)
    tensors = {
        family.hub_name(name): ("F32", row.their_shape(shapes[row.ours]))
        for row in rows
        for name in row.names(shapes[row.ours])
    }
    with new_directory(directory, sum(num_bytes(*x) for x in tensors.values())) as scratch:
        fields = llava_config_fields(config, processing=processing)
        write_json(scratch / "config.json", fields)
        ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        ids |= {"pad_token_id": tokenizer.pad_token_id}
        write_json(scratch / "generation_config.json", ids)
        save_tokenizer(tokenizer, scratch)
        write_processor(scratch, config, processing)
        write_chat_template(scratch, template, family.chat_image, family.chat_video)
        with SafetensorsWriter(scratch / SINGLE_FILE, tensors) as writer:
            for row in rows:
                (values,) = read([f"params/{row.ours}"])
                parts = values if row.stacked else [values]
                for name, part in zip(row.names(values.shape), parts, strict=True):
                    writer.write(family.hub_name(name), row.transform.write(part))


def _size(tensors: dict[str, Tensor]) -> int:
    return sum(num_bytes(tensor.dtype, tensor.shape) for tensor in tensors.values())


def _torch_dtype(tensors: dict[str, Tensor]) -> str:
    return _TORCH_DTYPES[tensors[EMBEDDING].dtype]


def _rewrite(
    source: Source,
    tensors: dict[str, Tensor],
    scratch: Path,
    place: Callable[[str], tuple[str, str]],
    rows: int,
) -> int:
    """Writes every tensor.

    Args:
        source: the model to export.
        tensors: the checkpoint's tensors, by canonical name.
        scratch: the new directory.
        place: returns the folder and the name that a tensor gets.
        rows: size of the new vocabulary.

    Returns:
        The number of tensors that were trained.
    """

    def resized(name: str, values: np.ndarray) -> np.ndarray:
        if name not in (EMBEDDING, HEAD):
            return values
        mean = values.mean(axis=0, keepdims=True).repeat(rows - len(values), 0)
        return np.concatenate([values, mean])

    shapes = {
        name: (rows, *t.shape[1:]) if name in (EMBEDDING, HEAD) else t.shape
        for name, t in tensors.items()
    }
    shards: dict[str, list[list[str]]] = {}  # folder -> names of each file
    left: dict[str, int] = {}
    for name, tensor in tensors.items():
        folder, size = place(name)[0], num_bytes(tensor.dtype, shapes[name])
        if size > left.get(folder, 0):
            shards.setdefault(folder, []).append([])
            left[folder] = _SHARD_BYTES
        shards[folder][-1].append(name)
        left[folder] -= size
    writers: dict[str, SafetensorsWriter] = {}
    with contextlib.ExitStack() as stack:
        for folder, files in shards.items():
            weight_map = {}
            for i, names in enumerate(files):
                file = f"model-{i + 1:05}-of-{len(files):05}.safetensors"
                file = file if len(files) > 1 else SINGLE_FILE
                layout = {place(n)[1]: (tensors[n].dtype, shapes[n]) for n in names}
                writer = stack.enter_context(SafetensorsWriter(scratch / folder / file, layout))
                writers |= dict.fromkeys(names, writer)
                weight_map |= dict.fromkeys(layout, file)
            if len(files) > 1:
                total = sum(num_bytes(tensors[n].dtype, shapes[n]) for f in files for n in f)
                index = {"metadata": {"total_size": total}, "weight_map": weight_map}
                write_json(scratch / folder / INDEX_FILE, index)
        bar = stack.enter_context(Progress("write", len(tensors), "tensor"))
        done = set()
        for row in TABLE:
            if changes(source, row):
                for name, values in merged(source, row, tensors):
                    writers[name].write(place(name)[1], resized(name, values))
                    done.add(name)
                    bar.update()
        for name in tensors.keys() - done:
            tensor = tensors[name]
            if shapes[name] != tensor.shape:
                writers[name].write(place(name)[1], resized(name, read_tensor(tensor)))
            else:
                writers[name].write_bytes(place(name)[1], read_raw(tensor))
            bar.update()
        require_unchanged(tensors.values())
    return len(done)
