"""The language model in a config.json: fields of transformers' configs, and our `TextConfig`.

Llama (with Vicuna), Mistral, Qwen2 and Qwen3 are one decoder with options. Whatever these do not
cover is refused here, by field and value. What does not live here: the other parts of a config.json
(`hf_config.py`), the rotary frequencies (`seva_jax/models/rope.py`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from seva_jax.convert.original import unsupported
from seva_jax.models import DynamicRope, LinearRope, Llama3Rope, Rope, TextConfig, YarnRope
from seva_jax.models.rope import yarn_amplitude
from seva_jax.types import DataError

TEXT_MODELS = ("llama", "mistral", "qwen2", "qwen3")
# The language models of Qwen-VL, and the one that each is with positions of three axes.
_THREE_AXES = {"qwen2_vl_text": "qwen2", "qwen2_5_vl_text": "qwen2", "qwen3_vl_text": "qwen3"}
_AXES = 3
_SECTIONS = {"qwen2": (16, 24, 24), "qwen3": (24, 20, 20)}  # what transformers takes by default
_ROPES = {
    "default": Rope,
    "linear": LinearRope,
    "dynamic": DynamicRope,
    "llama3": Llama3Rope,
    "yarn": YarnRope,
}
_FULL, _SLIDING = "full_attention", "sliding_attention"
_SECTION = "text_config"
# Fields of our config, and their names in transformers.
_FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "mlp_size": "intermediate_size",
    "norm_eps": "rms_norm_eps",
}
_SIZES = tuple(ours for ours in _FIELDS if ours != "norm_eps")


def read_text_config(hf: Any, tied_head: bool) -> TextConfig:
    """Returns our config of a language model in which `text_problems` found nothing.

    Args:
        hf: transformers' config of the language model.
        tied_head: whether the head is the embedding table.
    """
    types = _layer_types(hf)
    return TextConfig(
        **_values(hf),
        rope_base=hf.rope_parameters["rope_theta"],
        tied_head=tied_head,
        rope=_read_rope(hf),
        qkv_bias=_kind(hf) == "qwen2",
        qk_norm=_kind(hf) == "qwen3",
        window=hf.sliding_window if _SLIDING in types else 0,
        full_layers=tuple(i for i, kind in enumerate(types) if kind == _FULL)
        if _SLIDING in types
        else (),
        rope_sections=tuple(_sections(hf)),
        rope_interleaved=_kind(hf) == "qwen3" and bool(_sections(hf)),
    )


def text_problems(hf: Any, kinds: Sequence[str] = TEXT_MODELS) -> list[str]:
    """Returns a line 'NAME is VALUE, supported: ...' for each field that we cannot honour.

    Args:
        hf: transformers' config of the language model.
        kinds: the supported language models.
    """
    problems = unsupported([(f"{_SECTION}.model_type", hf.model_type, kinds)])
    if problems:
        return problems
    values = _values(hf)
    for ours in _SIZES:
        size = values[ours]
        if type(size) is not int or not 1 <= size < 2**31:
            name = f"{_SECTION}.{_FIELDS[ours]}"
            problems.append(f"{name} is {size!r}, supported: a positive integer")
    problems += unsupported(
        (f"{_SECTION}.{name}", getattr(hf, name, supported), (supported,))
        for name, supported in (
            ("hidden_act", "silu"),
            # Llama and Qwen3 with it have a bias of the output, too; Qwen2 does not read it.
            *([("attention_bias", False)] if _kind(hf) != "qwen2" else []),
            ("mlp_bias", False),
        )
    )
    if not problems:
        problems += [*_head_problems(values), *_window_problems(hf), *_section_problems(hf)]
    return problems + _rope_problems(hf)


def text_fields(config: TextConfig, context_length: int | None = None) -> dict[str, Any]:
    """Returns the fields that `read_text_config` reads back as `config`.

    They are spelled as on the Hub, which transformers 4 and 5 read: `rope_theta` and `rope_scaling`
    are inside of `rope_parameters` in what version 5 writes, where version 4 does not look.

    Args:
        config: the architecture.
        context_length: `max_position_embeddings`; None leaves it out unless the rotary frequencies
            depend on it.

    Raises:
        DataError: no model of transformers has these options.
    """
    kind = _model_type(config)
    if kind is None:
        raise DataError(
            "no model of transformers has this language model, with qkv_bias "
            f"{config.qkv_bias}, qk_norm {config.qk_norm}, window {config.window} and full_layers "
            f"{list(config.full_layers)}: biases of q, k and v are Qwen2's, norms of q and k "
            "Qwen3's, and only these two have layers with and without a window"
        )
    return {
        "model_type": kind,
        **{name: getattr(config, ours) for ours, name in _FIELDS.items()},
        **_rope_fields(config, context_length),
        **_window_fields(config, kind),
        "tie_word_embeddings": config.tied_head,
    }


def original_problem(config: TextConfig) -> str | None:
    """Returns why the original LLaVA cannot open a language model; None if it can.

    Its class for others than Llama reads other fields, and its transformers 4.37 knows two ways to
    scale rotary frequencies.
    """
    if _model_type(config) != "llama":
        return "the language model has options that Llama does not have"
    if config.rope != Rope() and not isinstance(config.rope, LinearRope | DynamicRope):
        return f"its transformers does not know {type(config.rope).__name__}"
    return None


def _model_type(config: TextConfig) -> str | None:
    if config.rope_sections:
        plain = dataclasses.replace(config, rope_sections=(), rope_interleaved=False)
        wanted = "qwen3" if config.rope_interleaved else "qwen2"
        three_axes = {kind: name for name, kind in reversed(_THREE_AXES.items())}
        return three_axes[wanted] if _model_type(plain) == wanted else None
    if config.qkv_bias or config.qk_norm:
        both = config.qkv_bias and config.qk_norm
        return None if both else "qwen2" if config.qkv_bias else "qwen3"
    if not config.window:
        return "llama"
    return None if config.full_layers else "mistral"


def _values(hf: Any) -> dict[str, Any]:
    """Returns the values of `_FIELDS`, by our names."""
    values = {ours: getattr(hf, name, None) for ours, name in _FIELDS.items()}
    width, num = values["hidden_size"], values["num_heads"]
    if values["head_dim"] is None and isinstance(width, int) and isinstance(num, int) and num > 0:
        values["head_dim"] = width // num  # Qwen2's config does not have the field
    return values


def _head_problems(values: Mapping[str, Any]) -> list[str]:
    heads, groups, width = values["num_heads"], values["num_kv_heads"], values["head_dim"]
    problems = []
    if heads % groups:
        problems.append(
            f"{_SECTION}.num_key_value_heads is {groups}, which does not divide "
            f"num_attention_heads, {heads}"
        )
    if width % 2:
        problems.append(f"{_SECTION}.head_dim is {width}, supported: an even number")
    return problems


def _layer_types(hf: Any) -> Sequence[str]:
    """Returns the kind of attention of each layer, or one kind if all layers are alike."""
    if hf.model_type == "qwen3_vl_text":
        return [_FULL]
    if _kind(hf) in ("qwen2", "qwen3"):
        return hf.layer_types
    window = getattr(hf, "sliding_window", None) if hf.model_type == "mistral" else None
    return [_FULL if window is None else _SLIDING]


def _window_problems(hf: Any) -> list[str]:
    types, field = _layer_types(hf), f"{_SECTION}.layer_types"
    problems = []
    for kind in dict.fromkeys(types):
        problems += unsupported([(field, kind, (_FULL, _SLIDING))])
    if _SLIDING in types and hf.model_type in _THREE_AXES:
        problems.append(f"{field} has {_SLIDING!r}, supported with three axes: {_FULL!r}")
    given = getattr(hf, "layer_types", None)
    if hf.model_type == "mistral" and given is not None and {*given} != {*types}:
        problems.append(f"{field} is {given!r}, but all layers of a mistral are alike")
    window = getattr(hf, "sliding_window", None)
    if _SLIDING in types and (type(window) is not int or not 1 <= window < 2**31):
        problems.append(
            f"{_SECTION}.sliding_window is {window!r}, supported: a positive integer, or none"
        )
    return problems


def _window_fields(config: TextConfig, kind: str) -> dict[str, Any]:
    if kind == "llama":
        return {}
    if kind == "mistral":
        return {"sliding_window": config.window}
    if kind == "qwen3_vl_text":
        return {}
    if not config.window:
        return {"use_sliding_window": False}
    full = {*config.full_layers}
    types = [_FULL if i in full else _SLIDING for i in range(config.num_layers)]
    return {
        "use_sliding_window": True,
        "sliding_window": config.window,
        "max_window_layers": types.index(_SLIDING) if _SLIDING in types else config.num_layers,
        "layer_types": types,
    }


def _kind(hf: Any) -> str:
    """Returns the kind of decoder, whatever the axes of its positions."""
    return str(_THREE_AXES.get(hf.model_type, hf.model_type))


def _sections(hf: Any) -> Sequence[int]:
    """Returns how many rotary frequencies turn by each axis; nothing for one axis."""
    if hf.model_type not in _THREE_AXES:
        return ()
    return hf.rope_parameters.get("mrope_section", _SECTIONS[_kind(hf)])


def _section_problems(hf: Any) -> list[str]:
    if hf.model_type not in _THREE_AXES:
        return []
    sections, half = _sections(hf), _values(hf)["head_dim"] // 2
    whole = isinstance(sections, list | tuple) and all(type(x) is int and x > 0 for x in sections)
    if whole and len(sections) == _AXES and sum(sections) == half:
        return []
    return [
        f"{_SECTION}.rope_parameters.mrope_section is {sections!r}, supported: {_AXES} positive "
        f"integers whose sum is half of head_dim, {half}"
    ]


def _rope_problems(hf: Any) -> list[str]:
    rope, field = hf.rope_parameters, f"{_SECTION}.rope_parameters"
    kind = rope.get("rope_type")
    problems = unsupported(
        [
            (f"{field}.rope_type", kind, tuple(_ROPES)),
            (f"{field}.partial_rotary_factor", rope.get("partial_rotary_factor", 1.0), (1.0,)),
        ]
    )
    if problems:
        return problems
    least = {"rope_theta": 1 if kind == "yarn" else 0}
    if kind == "llama3":
        least |= dict.fromkeys(("factor", "low_freq_factor", "original_max_position_embeddings"), 0)
        low = rope.get("low_freq_factor")
        least["high_freq_factor"] = low if _is_number(low) else 0
    elif kind == "yarn":
        least |= {"factor": 0, "original_max_position_embeddings": 0}
        chosen = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")
        least |= {name: 0 for name in chosen if rope.get(name) is not None}
        rope = rope | {"factor": _yarn_factor(hf)}
    elif kind != "default":
        least["factor"] = 0
    for name, low in least.items():
        value = rope.get(name)
        if not _is_number(value) or not low < value < math.inf:
            problems.append(f"{field}.{name} is {value!r}, supported: a number above {low}")
    context = getattr(hf, "max_position_embeddings", None)
    if kind == "dynamic" and (type(context) is not int or not 1 <= context < 2**31):
        name = f"{_SECTION}.max_position_embeddings"
        problems.append(f"{name} is {context!r}, supported: a positive integer")
    return problems


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _yarn_factor(hf: Any) -> Any:
    """Returns YaRN's factor, which by default is the ratio of the lengths of the contexts."""
    rope = hf.rope_parameters
    context, original = hf.max_position_embeddings, rope.get("original_max_position_embeddings")
    if rope.get("factor") is None and _is_number(context) and _is_number(original) and original:
        return context / original
    return rope.get("factor")


def _read_rope(hf: Any) -> Rope:
    rope = hf.rope_parameters
    kind = _ROPES[rope["rope_type"]]
    if kind is LinearRope:
        return LinearRope(float(rope["factor"]))
    if kind is DynamicRope:
        return DynamicRope(float(rope["factor"]), hf.max_position_embeddings)
    if kind is Llama3Rope:
        return Llama3Rope(
            float(rope["factor"]),
            float(rope["low_freq_factor"]),
            float(rope["high_freq_factor"]),
            int(rope["original_max_position_embeddings"]),
        )
    if kind is YarnRope:
        factor = float(_yarn_factor(hf))
        attention = rope.get("attention_factor") or 0.0
        weights = rope.get("mscale"), rope.get("mscale_all_dim")
        if not attention and all(weights):
            attention = yarn_amplitude(factor, weights[0]) / yarn_amplitude(factor, weights[1])
        return YarnRope(
            factor,
            int(rope["original_max_position_embeddings"]),
            float(attention),
            float(rope.get("beta_fast") or 32),
            float(rope.get("beta_slow") or 1),
            bool(rope.get("truncate", True)),
        )
    return Rope()


def _rope_fields(config: TextConfig, context_length: int | None) -> dict[str, Any]:
    rope = config.rope
    kind = next(name for name, kind in _ROPES.items() if type(rope) is kind)
    scaling: dict[str, Any] = {}
    if isinstance(rope, LinearRope):
        scaling = {"type": kind, "factor": rope.factor}
    elif isinstance(rope, DynamicRope):
        scaling, context_length = {"type": kind, "factor": rope.factor}, rope.context
    elif isinstance(rope, Llama3Rope):
        scaling = {
            "rope_type": kind,
            "factor": rope.factor,
            "low_freq_factor": rope.low_factor,
            "high_freq_factor": rope.high_factor,
            "original_max_position_embeddings": rope.context,
        }
    elif isinstance(rope, YarnRope):
        scaling = {
            "rope_type": kind,
            "factor": rope.factor,
            "beta_fast": rope.beta_fast,
            "beta_slow": rope.beta_slow,
            "truncate": rope.truncate,
        }
        if rope.attention_factor:
            scaling["attention_factor"] = rope.attention_factor
        context_length = context_length or round(rope.factor * rope.context)
        # transformers 4 takes the ratio of both contexts for the factor if both are there.
        if context_length != rope.context:
            scaling["original_max_position_embeddings"] = rope.context
    if config.rope_sections:
        plain = {"rope_type": "default"} if config.rope_interleaved else {"type": "mrope"}
        scaling = (scaling or plain) | {"mrope_section": list(config.rope_sections)}
        if config.rope_interleaved:
            scaling["mrope_interleaved"] = True
    context = {} if context_length is None else {"max_position_embeddings": context_length}
    scaled = {"rope_scaling": scaling} if scaling else {}
    return {**context, "rope_theta": config.rope_base, **scaled}
