"""Writes a run's adapters, to load on top of the run's checkpoint: PEFT's way, and LLaVA's.

What does not live here: adapters merged into the whole model (`export.py`, `rewrite.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from seva_jax.convert.export import llava_fields, merged, names_of, tower_inside
from seva_jax.convert.families import LLAVA, family_of
from seva_jax.convert.files import (
    SafetensorsWriter,
    copy_file,
    new_directory,
    update_json,
    write_json,
)
from seva_jax.convert.load import read_headers, shapes_by_path
from seva_jax.convert.original import (
    ADAPTER,
    ADAPTER_CONFIG,
    ADAPTER_OTHERS,
    llava_name_problem,
    require_sentencepiece,
)
from seva_jax.convert.source import Source
from seva_jax.convert.table import TABLE, Row, in_memory, original
from seva_jax.convert.tensors import num_bytes
from seva_jax.models import Llava, abstract_params
from seva_jax.runtime.progress import Progress
from seva_jax.types import DataError

_PREFIX = "base_model.model."  # PeftModel -> LoraModel -> their model
# Modules of the projector, the last ones of Qwen-VL; "{}" stands for a number.
_PROJECTOR = ("multi_modal_projector", "visual.merger", "visual.deepstack_merger_list.{}")
# The pattern that names the language model's layers is precise, because the vision tower has layers
# of the same names.
_HF_PATTERN, _LLAVA_PATTERN = r".*language_model\.layers", r"model\.layers"
_MODULE = re.compile("|".join(re.escape(x).replace(r"\{\}", r"\d+") for x in _PROJECTOR))
_OTHERS = f"{ADAPTER_OTHERS}.bin"


def to_peft(source: Source, out: Path) -> str:
    """Writes adapter_model.safetensors and adapter_config.json, as peft does.

    A projector that was trained, or that the adapter which the run continues stores whole, is
    stored whole, as one of peft's `modules_to_save`.

    Args:
        source: a run.
        out: the new directory.

    Returns:
        A summary for the terminal.

    Raises:
        DataError: there are no adapters, parts other than the projector were changed in full, the
            adapters change a merged model, transformers cannot have the base, or `out` cannot be
            written.
    """
    if source.tower and source.processing:
        source.processing.to_processor_config()  # raises if to-hf cannot write the base
    projector = _require_adapters(source)
    # peft opens this path as it stands, so it is whole, unlike those in configs and pages. An
    # adapter of an original LLaVA fits its conversion, which may be anywhere.
    base = None if source.tower else str(source.directory.absolute())
    fields = _fields(source, base, _HF_PATTERN, in_memory)
    names = (name for row in projector for name in names_of(source, row))
    modules = {match[0] for name in names if (match := _MODULE.match(name))}
    fields["modules_to_save"] = sorted(modules) or None
    num = _write(source, out, fields, in_memory, projector)
    summary = f"{out}: rank {source.lora.rank} adapters, {num} tensors"
    if source.tower:
        summary += (
            f"; they fit the output of `to-hf {source.directory} OUT`, not the original layout"
        )
    return summary


def to_llava_lora(source: Source, out: Path) -> str:
    """Writes the files that the original LLaVA's training with LoRA leaves.

    These are config.json, adapter_config.json, adapter_model.safetensors, and what was trained in
    full in non_lora_trainables.bin, which LLaVA reads with torch. Needs torch, which writes it.

    Args:
        source: a run whose base is in the original layout.
        out: the new directory.

    Returns:
        A summary for the terminal.

    Raises:
        DataError: torch is not installed, the base is in another layout or has no tokenizer.model,
            LLaVA would not take `out` for LoRA weights, the vision tower has adapters, or as
            `to_peft`.
    """
    try:
        import torch
    except ImportError:
        raise DataError(
            f"to-llava-lora needs torch, which writes {_OTHERS}: pip install torch; to-llava "
            "exports the whole model without it"
        ) from None
    clip = source.tower
    if clip is None:
        raise DataError(
            f"{source.directory} is in Hugging Face's layout, on which LLaVA's loader cannot put "
            "adapters; to-llava exports the whole model, to-peft the adapters for transformers"
        )
    if family_of(source.config) is not LLAVA:
        raise DataError(
            f"{source.directory} is no LLaVA-1.5, and LLaVA's loader puts adapters on no "
            "other model; to-llava exports the whole model"
        )
    if source.lora.vision:
        raise DataError(
            "LLaVA puts adapters on before it loads the vision tower, and this run has some on it; "
            "to-llava exports the whole model, to-peft the adapters for transformers"
        )
    if problem := llava_name_problem(out, lora=True):
        raise DataError(problem)
    require_sentencepiece(source.directory)  # LLaVA reads the base's
    projector = _require_adapters(source)
    fields = _fields(source, str(source.directory.absolute()), _LLAVA_PATTERN, original)

    def write_others(scratch: Path) -> None:
        tower = str(clip.absolute()) if tower_inside(source) else None
        copy_file(source.directory / "config.json", scratch / "config.json")
        update_json(scratch / "config.json", llava_fields(source, tower))
        tensors = read_headers(source.directory, source.tower)
        others: dict[str, Any] = {}
        for row in projector:
            for name, values in merged(source, row, tensors):
                others[f"{_PREFIX}{original(name)}"] = torch.from_numpy(values.copy())
        torch.save(others, scratch / _OTHERS)

    num = _write(source, out, fields, original, (), write_others)
    return (
        f"{out}: rank {source.lora.rank} adapters, {num} tensors; LLaVA opens it with --model-path "
        f"{out} --model-base {source.directory}"
    )


def _require_adapters(source: Source) -> list[Row]:
    """Returns the rows of the projector if it is stored whole, or raises, see `to_peft`."""
    if source.before:
        raise DataError(
            "these adapters change the merged model of an earlier run, not a checkpoint that peft "
            "could load; to-hf exports the whole model"
        )
    if source.adapter and source.adapter.low_rank:
        raise DataError(
            f"these adapters change the model with {source.adapter.directory} merged, not a "
            "checkpoint that peft could load; to-hf exports the whole model"
        )
    if not any(n.startswith("lora/") for n in source.trained):
        raise DataError("nothing was trained with adapters here; to-hf exports the whole model")
    extra = sorted({row.ours.split("/")[0] for row in TABLE if _is_whole(source, row)})
    if not set(extra) <= {"projector"}:
        raise DataError(
            f"the run or the adapter that it continues trained {', '.join(extra)} fully, which an "
            "adapter cannot hold here; to-hf exports the whole model"
        )
    bare = [row.theirs for row in TABLE if extra and _is_whole(source, row)]
    # peft stores modules whole, adapts parameters of two or three dims, and trains single rows of
    # embeddings; a parameter of one dim outside of a module is none of these.
    if bare := [name for name in bare if not name.startswith(_PROJECTOR)]:
        raise DataError(
            f"the run trained {', '.join(bare)} with the projector, which is no module that peft "
            "could store whole; to-hf exports the whole model (a run with --train.trained lora "
            "trains adapters alone)"
        )
    # All of the projector's tensors, as peft asks for all of a module.
    known = shapes_by_path(abstract_params(Llava(source.config)))
    rows = [row for row in TABLE if extra and row.theirs.startswith(_PROJECTOR)]
    return [row for row in rows if row.ours in known]


def _fields(
    source: Source, base: str | None, layers: str, spell: Callable[[str], str]
) -> dict[str, object]:
    """Returns adapter_config.json.

    Args:
        source: the run.
        base: the directory that the file names as the base.
        layers: pattern of the paths of the language model's layers.
        spell: returns a name of `TABLE` as their modules have it.
    """
    lora = source.lora
    patterns = []
    if lora.targets:
        patterns.append(rf"{layers}\.\d+\.(self_attn|mlp)\.({'|'.join(lora.targets)})")
    # Precise, as the tower has layers above those that the model takes features of.
    for row in _adapted(source):
        if not row.ours.startswith("language/"):
            numbers = "|".join(map(str, range(len(names_of(source, row)))))
            module = re.escape(spell(row.theirs).removesuffix(".weight"))
            module = module.replace(r"vision_model\.", r"(vision_model\.)?")  # see `in_memory`
            patterns.append(module.replace(r"\{\}", f"({numbers})"))
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "rank_pattern": _by_pattern(source, lora.rank_pattern, lambda x: lora.of(x).rank),
        "alpha_pattern": _by_pattern(source, lora.alpha_pattern, lambda x: lora.of(x).alpha),
        "lora_dropout": lora.dropout,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": "|".join(patterns),
    }


def _by_pattern(
    source: Source, given: Sequence[tuple[str, Any]], of: Callable[[str], Any]
) -> dict[str, Any]:
    """Returns peft's form of `LoraConfig.rank_pattern` or `alpha_pattern`.

    The first pattern that fits the end of a module's name counts, and the tower's linear layers
    have names of the language model's, so tower and projector come first.

    Args:
        source: the run.
        given: the pattern.
        of: returns the value of a target.
    """
    lora = source.lora
    others = {"vision": lora.vision, "connector": lora.connector}
    modules = {
        "vision": r"(vision_tower|visual\.blocks)\..*",
        "connector": r"((multi_modal|mm)_projector|visual\.merger|deepstack_merger_list)\..*",
    }
    first = {modules[name]: of(name) for name, on in others.items() if on and given}
    return first | {str(name): value for name, value in given if name not in others}


def _adapted(source: Source) -> list[Row]:
    """Returns the rows of the kernels that have adapters."""
    return [row for row in TABLE if f"lora/{row.ours.removesuffix('/kernel')}/a" in source.trained]


def _write(
    source: Source,
    out: Path,
    fields: Mapping[str, object],
    spell: Callable[[str], str],
    whole: Sequence[Row],
    more: Callable[[Path], None] = lambda scratch: None,
) -> int:
    """Writes the directory, and returns the number of tensors in adapter_model.safetensors.

    Args:
        source: the run.
        out: the new directory.
        fields: adapter_config.json.
        spell: returns a name of `TABLE` as their modules have it.
        whole: the rows of parameters that are stored whole.
        more: writes further files to the directory that it is given.
    """
    tensors = read_headers(source.directory, source.tower)
    names: dict[str, tuple[str, ...]] = {}  # ours -> theirs, one for each layer
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
    for row in _adapted(source):
        modules = [spell(name).removesuffix(".weight") for name in names_of(source, row)]
        for ours, theirs in (("a", "lora_A"), ("b", "lora_B")):
            path = f"lora/{row.ours.removesuffix('/kernel')}/{ours}"
            names[path] = tuple(f"{_PREFIX}{module}.{theirs}.weight" for module in modules)
            shape = row.their_shape(source.trained[path])
            shapes |= dict.fromkeys(names[path], ("F32", shape))
    for row in whole:
        for name in names_of(source, row):
            shapes[_PREFIX + spell(name)] = "F32", tensors[name].shape
    with new_directory(out, sum(num_bytes(*x) for x in shapes.values())) as scratch:
        bar = Progress("write", len(shapes), "tensor")
        with bar, SafetensorsWriter(scratch / f"{ADAPTER}.safetensors", shapes) as writer:
            for path, theirs in names.items():
                (values,) = source.read([path])
                parts = values if len(values.shape) == 3 else [values]
                for name, part in zip(theirs, parts, strict=True):
                    writer.write(name, part.T)
                    bar.update()
            for row in whole:
                for name, values in merged(source, row, tensors):
                    writer.write(_PREFIX + spell(name), values)
                    bar.update()
        write_json(scratch / ADAPTER_CONFIG, fields)
        more(scratch)
    return len(shapes)


def _is_whole(source: Source, row: Row) -> bool:
    """Returns whether the run trained a row's tensors in full, or continues such an adapter."""
    adapter = source.adapter
    before = adapter is not None and adapter.changes(names_of(source, row))
    return before or f"params/{row.ours}" in source.trained
