"""What peft's adapter_config.json says, and which of it cannot be followed.

A field that is not known here must have a value that means "not used": peft adds kinds of LoRA as
fields, and an adapter must not be read as another kind than it is.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from seva_jax.convert.original import listing, read_json
from seva_jax.types import DataError

# Fields that do not change what a finished adapter computes, or that the names and shapes of its
# tensors show as well.
_WITHOUT_EFFECT = frozenset(
    {
        *("base_model_name_or_path", "revision", "task_type", "auto_mapping", "peft_version"),
        *("inference_mode", "runtime_config", "ephemeral_gpu_offload"),
        *("exclude_modules", "layers_to_transform", "layers_pattern", "qalora_group_size"),
        *("megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
        "ensure_weight_tying",  # a tied embedding is refused if it is changed
    }
)
_READ = frozenset(
    {
        *("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "bias"),
        *("target_modules", "modules_to_save", "init_lora_weights", "lora_dropout"),
    }
)
# Initial values that leave the base as it is. Others, such as "pissa", change it when peft loads
# the adapter.
_INITS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")


@dataclasses.dataclass(frozen=True)
class PeftFields:
    """The fields of an adapter_config.json that matter.

    Attributes:
        rank: default rank.
        alpha: default alpha.
        rslora: rank-stabilised: scaled by alpha / sqrt(rank) instead of alpha / rank.
        rank_pattern: ranks by patterns of module names.
        alpha_pattern: alphas by patterns of module names.
        target_modules: ends of names of adapted modules; empty where a regular expression or a
            word such as "all-linear" stands for them.
        modules_to_save: modules that are stored whole.
        every_layer: whether `target_modules` are adapted in every layer.
        dropout: share of the inputs that its training dropped.
    """

    rank: int
    alpha: float
    rslora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    target_modules: tuple[str, ...]
    modules_to_save: tuple[str, ...]
    every_layer: bool
    dropout: float

    def rank_and_alpha(self, module: str) -> tuple[int, float]:
        """Returns rank and alpha of the adapter on a module; its output is scaled by alpha / rank.

        Patterns are matched as by peft: the first that fits the end of the name counts.

        Args:
            module: name of the module, without peft's prefix.
        """
        rank = next((r for p, r in self.rank_pattern.items() if _fits(p, module)), self.rank)
        alpha = next((a for p, a in self.alpha_pattern.items() if _fits(p, module)), self.alpha)
        return rank, alpha * math.sqrt(rank) if self.rslora else alpha

    def unmatched(self, modules: Iterable[str]) -> list[str]:
        """Returns the patterns that fit none of these modules."""
        modules = list(modules)
        patterns = dict.fromkeys((*self.rank_pattern, *self.alpha_pattern))
        return [p for p in patterns if not any(_fits(p, module) for module in modules)]


def _fits(pattern: str, module: str) -> bool:
    return re.match(rf"(.*\.)?({pattern})$", module) is not None


def read_peft_fields(path: Path) -> PeftFields:
    """Reads an adapter_config.json.

    Raises:
        DataError: it cannot be read, or describes something other than plain LoRA; the message
            names every such field.
    """
    fields = read_json(path)
    kind = fields.get("peft_type")
    if kind != "LORA":
        raise DataError(
            f"{path}: peft_type is {kind!r}, and only LORA can be read; merge it with peft "
            "(merge_and_unload), where that can be done, and give the result as the base"
        )
    if problems := _problems(fields):
        raise DataError(
            f"{path} describes an adapter that is not supported; merge it with peft "
            f"(merge_and_unload) and give the result as the base:{listing(problems)}"
        )
    targets, saved = fields.get("target_modules"), fields.get("modules_to_save") or ()
    restricted = any(
        fields.get(name) is not None for name in ("layers_to_transform", "exclude_modules")
    )
    return PeftFields(
        rank=fields["r"],
        alpha=fields["lora_alpha"],
        rslora=bool(fields.get("use_rslora")),
        rank_pattern=fields.get("rank_pattern") or {},
        alpha_pattern=fields.get("alpha_pattern") or {},
        target_modules=tuple(targets) if isinstance(targets, list) else (),
        modules_to_save=tuple([saved] if isinstance(saved, str) else saved),
        every_layer=isinstance(targets, list) and not restricted,
        dropout=float(fields.get("lora_dropout") or 0),
    )


def _problems(fields: Mapping[str, Any]) -> list[str]:
    problems = []
    rank, alpha = fields.get("r"), fields.get("lora_alpha")
    if type(rank) is not int or rank < 1:
        problems.append(f"r is {rank!r}, expected a whole number from 1")
    if not _is_alpha(alpha):
        problems.append(f"lora_alpha is {alpha!r}, expected a number above 0")
    dropout = fields.get("lora_dropout") or 0
    if type(dropout) not in (int, float) or not 0 <= dropout < 1:
        problems.append(f"lora_dropout is {dropout!r}, expected a number from 0 to below 1")
    bias = fields.get("bias")
    if bias not in ("none", None):
        problems.append(f"bias is {bias!r}, supported: 'none'")
    init = fields.get("init_lora_weights", True)
    if init not in _INITS:
        problems.append(
            f"init_lora_weights is {init!r}, which changes the base; save the adapter with "
            "path_initial_model_for_weight_conversion of peft, which makes it a plain one"
        )
    for name, value_fits in (("rank_pattern", _is_rank), ("alpha_pattern", _is_alpha)):
        patterns = fields.get(name) or {}
        if not isinstance(patterns, dict):
            problems.append(f"{name} is {patterns!r}, expected an object")
            continue
        for pattern, value in patterns.items():
            if not value_fits(value) or not _compiles(pattern):
                problems.append(f"{name} has {pattern!r}: {value!r}, which cannot be followed")
    for name in ("target_modules", "modules_to_save"):
        values = fields.get(name) or []
        names = values if isinstance(values, list) else [values]
        if not all(isinstance(value, str) for value in names):
            problems.append(f"{name} is {values!r}, expected names")
    problems += [
        f"{name} is {value!r}, which is not supported"
        for name, value in sorted(fields.items())
        if name not in _READ | _WITHOUT_EFFECT and value not in (None, False, {}, [], "")
    ]
    return problems


def _is_rank(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_alpha(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value > 0


def _compiles(pattern: str) -> bool:
    try:
        re.compile(rf"(.*\.)?({pattern})$")
    except (re.error, RecursionError, OverflowError):
        return False
    return True
