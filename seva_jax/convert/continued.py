"""A run's own adapters that continue an adapter which others trained (`adapters.py`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from seva_jax.convert.adapters import MOST_LINES, Adapter
from seva_jax.convert.load import shapes_by_path
from seva_jax.convert.original import listing
from seva_jax.convert.placing import on_devices
from seva_jax.convert.table import TABLE, Index
from seva_jax.convert.tensors import read_part, require_unchanged
from seva_jax.models import (
    VISION_TARGETS,
    Llava,
    LlavaConfig,
    LoraConfig,
    LoraGroup,
    Target,
    abstract_params,
)
from seva_jax.runtime.stores import is_remote
from seva_jax.types import DataError

# Parts of the model whose adapters have one rank and alpha, by the names of `LoraConfig.of`.
_GROUPS: Mapping[str, tuple[LoraGroup, str]] = {
    "vision": ("vision", " of the vision tower"),
    "projector": ("connector", " of the projector"),
}
# What `LoraConfig.vision_targets` calls some of our linear layers.
_OTHER_NAMES = {"projection_layer": "out_proj", "mlp_fc1": "fc1", "mlp_fc2": "fc2"}


def lora_of(adapter: Adapter, config: LlavaConfig) -> LoraConfig:
    """Returns the config of a run's adapters that continue an adapter.

    Raises:
        DataError: the adapter changes tensors that have no adapters here, only some layers of the
            decoder or the tower, or one layer of the projector; or ranks or alphas differ between
            layers, or between linear layers of the tower or of the projector.
    """
    shapes = shapes_by_path(abstract_params(Llava(config)))
    problems = list[str]()
    found: dict[LoraGroup, set[tuple[int, float]]] = {}  # ranks and alphas
    layers: dict[LoraGroup, list[str]] = {"vision": [], "connector": []}
    for row in TABLE:
        names = row.names(shapes[row.ours]) if row.ours in shapes else []
        changed = [name for name in names if name in adapter.low_rank]
        if not changed:
            continue
        part = row.ours.partition("/")[0]
        target: Any = row.ours.removesuffix("/kernel").rpartition("/")[2]
        group, where = _GROUPS.get(part, (target, ""))
        if part == "language" and not row.stacked:
            problems.append(
                f"{row.theirs} is changed, and only linear layers of decoder, vision tower and "
                "projector have adapters here"
            )
        elif len(changed) < len(names):
            problems.append(f"{target}{where} of {len(changed)} of {len(names)} layers")
        kinds = {(adapter.low_rank[name].rank, adapter.low_rank[name].alpha) for name in changed}
        if len(kinds) > 1:
            problems.append(f"{target}{where} has ranks or alphas that differ between layers")
        found.setdefault(group, set()).update(kinds)
        layers.setdefault(group, []).append(row.theirs if group == "connector" else target)
    for group, where in _GROUPS.values():
        if len(found.get(group, ())) > 1:
            problems.append(f"the linear layers{where} have ranks or alphas that differ")
    linear = {
        row.theirs
        for row in TABLE
        if row.ours in shapes and row.ours.startswith("projector/") and row.ours.endswith("/kernel")
    }
    if layers["connector"] and {*layers["connector"]} != linear:
        problems.append(
            f"{layers['connector'][0]} is changed without the other linear layers of the projector"
        )
    if problems:
        raise DataError(
            f"adapter {adapter.directory} cannot be trained further; merge it into the base "
            "instead (base.merge True) and train new adapters:"
            + listing(sorted(problems)[:MOST_LINES])
        )
    of = {group: kinds.pop() for group, kinds in found.items()}
    (rank, alpha), _ = Counter(of.values()).most_common(1)[0]
    in_tower = {_OTHER_NAMES.get(name, name) for name in layers["vision"]}
    plain = LoraConfig()
    targets: list[Target] = [target for target in plain.targets if target in of]
    groups: list[LoraGroup] = [*targets, *(name for name, _ in _GROUPS.values() if name in of)]
    return LoraConfig(
        rank,
        alpha,
        tuple(targets),
        tuple((group, of[group][0]) for group in groups if of[group][0] != rank),
        tuple((group, of[group][1]) for group in groups if of[group][1] != alpha),
        adapter.dropout,
        vision="vision" in of,
        vision_targets=plain.vision_targets
        if not in_tower or in_tower == config.vision.linear_sizes.keys()
        else tuple(x for x in VISION_TARGETS if x in in_tower),
        connector="connector" in of,
    )


def read_lora(adapter: Adapter, like: Any) -> Any:
    """Reads the "lora" collection of a run that trains an adapter further, sharded.

    Args:
        adapter: see `read_adapter` and `lora_of`.
        like: the collection as `jax.ShapeDtypeStruct`s with shardings.
    """
    rows = {row.ours: row for row in TABLE}

    def one(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        *module, side = (key.key for key in path)
        row = rows["/".join([*module, "kernel"])]
        names = row.names(leaf.shape)

        def read_layer(name: str, part: Index) -> np.ndarray:
            tensor = getattr(adapter.low_rank[name], side)
            return read_part(tensor, part[::-1]).T.astype(leaf.dtype)

        def read_one(part: Index) -> np.ndarray:
            if not row.stacked:
                return read_layer(names[0], part)
            layers, *rest = part
            return np.stack([read_layer(name, tuple(rest)) for name in names[layers]])

        return on_devices(
            leaf.shape, np.dtype(leaf.dtype), leaf.sharding,
            lambda parts: [read_one(part) for part in parts],
            row.slow_dims if is_remote(adapter.directory) else None,
        )  # fmt: skip

    adapters = jax.tree_util.tree_map_with_path(one, like)
    require_unchanged(adapter.tensors())
    return adapters
