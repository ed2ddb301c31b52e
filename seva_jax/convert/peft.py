"""Writes a run's adapters as a PEFT directory, to load on top of the run's checkpoint."""

from __future__ import annotations

from pathlib import Path

from seva_jax.convert.export import merged, names_of, write_json
from seva_jax.convert.files import SafetensorsWriter, new_directory, num_bytes
from seva_jax.convert.load import read_headers
from seva_jax.convert.source import Source
from seva_jax.convert.table import TABLE, Row
from seva_jax.runtime.paths import hide_home
from seva_jax.runtime.progress import Progress
from seva_jax.types import DataError

_PREFIX = "base_model.model.model."  # PeftModel -> LoraModel -> LlavaForConditionalGeneration
_PROJECTOR = "multi_modal_projector"
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


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
            adapters change a merged model, or `out` cannot be written.
    """
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
    changed = [row for row in TABLE if _is_whole(source, row)]
    extra = sorted({row.ours.split("/")[0] for row in changed})
    if not any(n.startswith("lora/") for n in source.trained):
        raise DataError("nothing was trained with adapters here; to-hf exports the whole model")
    if not set(extra) <= {"projector"}:
        raise DataError(
            f"the run or the adapter that it continues trained {', '.join(extra)} fully, which an "
            "adapter cannot hold here; to-hf exports the whole model"
        )
    names: dict[str, tuple[str, ...]] = {}  # ours -> theirs, one for each layer
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
    for target in source.lora.targets:
        block = "self_attn" if target in _ATTENTION else "mlp"
        for ours, theirs in (("a", "lora_A"), ("b", "lora_B")):
            path = f"lora/language/layers/{target}/{ours}"
            num_layers, *shape = source.trained[path]
            names[path] = tuple(
                f"{_PREFIX}language_model.layers.{i}.{block}.{target}.{theirs}.weight"
                for i in range(num_layers)
            )
            shapes |= {name: ("F32", tuple(shape[::-1])) for name in names[path]}
    tensors = read_headers(source.directory, source.tower)
    # All of the projector's tensors, as peft asks for all of a module.
    whole = [row for row in TABLE if changed and row.theirs.startswith(f"{_PROJECTOR}.")]
    whole = [row for row in whole if row.theirs in tensors]
    shapes |= {_PREFIX + row.theirs: ("F32", tensors[row.theirs].shape) for row in whole}
    lora = source.lora
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": hide_home(str(source.directory)),
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "rank_pattern": {str(target): rank for target, rank in lora.rank_pattern},
        "alpha_pattern": {str(target): alpha for target, alpha in lora.alpha_pattern},
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        # A pattern, because the vision tower has layers of the same names.
        "target_modules": r".*language_model\.layers\.\d+\.(self_attn|mlp)\."
        f"({'|'.join(lora.targets)})",
        "modules_to_save": [_PROJECTOR] if whole else None,
    }
    with new_directory(out, sum(num_bytes(*x) for x in shapes.values())) as scratch:
        bar = Progress("write", len(shapes), "tensor")
        with bar, SafetensorsWriter(scratch / "adapter_model.safetensors", shapes) as writer:
            for path, theirs in names.items():
                (values,) = source.read([path])
                for name, part in zip(theirs, values, strict=True):
                    writer.write(name, part.T)
                    bar.update()
            for row in whole:
                for name, values in merged(source, row, tensors):
                    writer.write(_PREFIX + name, values)
                    bar.update()
        write_json(scratch / "adapter_config.json", fields)
    summary = f"{out}: rank {lora.rank} adapters, {len(shapes)} tensors"
    if source.tower:
        summary += (
            f"; they fit the output of `to-hf {source.directory} OUT`, not the original layout"
        )
    return summary


def _is_whole(source: Source, row: Row) -> bool:
    """Returns whether the run trained a row's tensors in full, or continues such an adapter."""
    adapter = source.adapter
    before = adapter is not None and adapter.changes(names_of(source, row))
    return before or f"params/{row.ours}" in source.trained
