"""Checks a model directory against the model and reads it onto devices.

The slice of every device is read from disk separately and cast on the way, so the host never holds
a whole tensor unless one device does. Linear kernels, which files have the other way round, are
transposed by accelerators themselves if the files hold the wanted dtype. Of an object store, a host
holds what it reads of one parameter. What does not live here: which tensor is which parameter
(`table.py`), bytes of files (`tensors.py`), how what is read comes onto devices (`placing.py`), and
the config (`hf_config.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from seva_jax.convert.original import listing, read_json, refuse_adapters
from seva_jax.convert.placing import on_devices, transposed_on_devices, transposes
from seva_jax.convert.table import (
    EMBEDDING,
    HEAD,
    TABLE,
    Index,
    Row,
    Shape,
    Transposed,
    canonical,
    canonical_of_tower,
    is_unused,
)
from seva_jax.convert.tensors import (
    DTYPES,
    Tensor,
    aligned,
    assign,
    opened,
    read_header,
    require_unchanged,
)
from seva_jax.models import (
    BaseWeights,
    Llava,
    LlavaConfig,
    abstract_params,
    abstract_stored,
    abstract_variables,
    is_quantised,
    quantise,
)
from seva_jax.runtime.stores import as_path, is_remote
from seva_jax.sharding import on_one_device
from seva_jax.types import DataError

SINGLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl")
_MAX_LINES = 5000  # in one error message
_THREADS = 4
_EQUAL_CHUNK = 1024  # rows compared at a time


class Changes(Protocol):
    """What an adapter does to a checkpoint, by the canonical names of tensors."""

    @property
    def whole(self) -> Mapping[str, Tensor]:
        """Tensors of other files, which take the place of the checkpoint's."""
        ...

    @property
    def low_rank(self) -> Mapping[str, Callable[[Index], np.ndarray]]:
        """Functions from a part of our parameter (of one layer) to what is added to it."""
        ...

    def tensors(self) -> Sequence[Tensor]:
        """Returns the tensors that both are made of."""
        ...


def leaves_by_path(tree: Any) -> dict[str, Any]:
    """Returns the leaves of nested dicts by path, keys joined by "/"."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {_joined(path): leaf for path, leaf in leaves}


def shapes_by_path(tree: Any) -> dict[str, Shape]:
    """Returns the shapes of the leaves of nested dicts, see `leaves_by_path`."""
    return {path: leaf.shape for path, leaf in leaves_by_path(tree).items()}


def _joined(path: tuple[Any, ...]) -> str:
    # Keys of other kinds lead into the boxes that hold the names of a parameter's dims.
    return "/".join(str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey))


def load_params(
    directory: str | Path,
    config: LlavaConfig,
    dtype: str | np.dtype | type = "float32",
    shardings: Any = None,
    tower: Path | None = None,
    base_weights: BaseWeights = "float",
    each: Callable[[Any], Any] = lambda leaf: leaf,
    adapter: Changes | None = None,
) -> dict[str, Any]:
    """Reads the weights of a Hugging Face or an original LLaVA directory.

    Args:
        directory: holds model.safetensors, or several files and model.safetensors.index.json.
        config: the architecture, from `read_llava_config` of the same directory.
        dtype: dtype of the parameters, whatever the files hold.
        shardings: a sharding for each parameter, in a tree like `seva_jax.models.abstract_params`
            (or `abstract_stored`); None puts everything on this process's first device.
        tower: that of an original LLaVA, see `original_config.tower_directory`.
        base_weights: how the language model's kernels are stored. They are quantised one stack
            of layers at a time.
        each: called with every parameter once it is read; its result takes the parameter's place.
        adapter: merged into the weights slice by slice, see `adapters.read_adapter`. Sums are in
            float32 and rounded once; kernels are quantised after.

    Returns:
        The "params" collection, with `jax.Array` leaves, or `qwix.QArray`s where quantised.

    Raises:
        DataError: files are missing, damaged or not safetensors; or tensors are missing or
            unexpected, or have a wrong shape or an unsupported dtype. All are listed at once.
    """
    directory = as_path(directory)
    tensors = read_headers(directory, tower) | (dict(adapter.whole) if adapter else {})
    model = Llava(config)
    shapes = shapes_by_path(abstract_params(model))
    rows = {row.ours: row for row in TABLE if row.ours in shapes}
    if len(rows) != len(shapes):
        raise AssertionError(f"not in the conversion table: {sorted(shapes.keys() - rows.keys())}")
    shapes_of = {rows[ours]: shape for ours, shape in shapes.items()}
    _check_tensors(directory, tensors, shapes_of, config)
    if shardings is None:
        boxed = abstract_stored(abstract_variables(model)["params"], base_weights, dtype)
        shardings = on_one_device(boxed, jax.local_devices()[0])

    changes = adapter.low_rank if adapter else {}
    if config.text.tied_head and HEAD in tensors:
        _check_tied(directory, tensors[EMBEDDING], tensors[HEAD])

    def read(path: tuple[Any, ...], sharding: Any) -> Any:
        ours = _joined(path)
        kind = np.dtype(jnp.dtype(dtype))
        row, shape = rows[ours], shapes[ours]
        names = row.names(shape)
        where = sharding.qvalue if is_quantised(sharding) else sharding
        remote = is_remote(tensors[names[0]].path)
        as_it_is = not (remote or {*names} & {*changes}) and all(
            DTYPES[tensors[name].dtype] == kind for name in names
        )
        if as_it_is and isinstance(row.transform, Transposed) and transposes(where, shape):
            array = transposed_on_devices(shape, where, _their_reader(names, tensors))
        else:
            reader = _reader(row, shape, kind, tensors, changes)
            array = on_devices(shape, kind, where, reader, row.slow_dims if remote else None)
        # Transfers are asynchronous: without waiting, the host buffers of many leaves pile up.
        return each(jax.block_until_ready(quantise(ours, array, base_weights, sharding)))

    params = jax.tree_util.tree_map_with_path(read, shardings, is_leaf=is_quantised)
    require_unchanged([*tensors.values(), *(adapter.tensors() if adapter else ())])
    return params


def check_weights(directory: str | Path, config: LlavaConfig, tower: Path | None) -> int | None:
    """Checks names, shapes and dtypes of the weights of a checkpoint, reading only headers.

    Args:
        directory: see `load_params`.
        config: see `load_params`.
        tower: see `load_params`.

    Returns:
        The number of tensors; None if the directory holds no weights of any kind.

    Raises:
        DataError: as `load_params`.
    """
    directory = as_path(directory)
    if not any(any(directory.glob(kind)) for kind in ("*.safetensors", INDEX_FILE, *_PICKLES)):
        return None
    tensors = read_headers(directory, tower)
    shapes = shapes_by_path(abstract_params(Llava(config)))
    rows = {row: shapes[row.ours] for row in TABLE if row.ours in shapes}
    _check_tensors(directory, tensors, rows, config)
    return len(tensors)


def _reader(
    row: Row,
    shape: Shape,
    dtype: np.dtype,
    tensors: Mapping[str, Tensor],
    changes: Mapping[str, Callable[[Index], np.ndarray]],
) -> Callable[[Sequence[Index]], list[np.ndarray]]:
    """Returns a function that reads parts of one of our parameters, opening each tensor once."""
    names = row.names(shape)

    def read(parts: Sequence[Index]) -> list[np.ndarray]:
        arrays = [aligned([side.stop - side.start for side in part], dtype) for part in parts]
        wanted: dict[str, list[tuple[np.ndarray, Index]]] = {}
        for array, part in zip(arrays, parts, strict=True):
            if row.stacked:
                for layer, name in zip(array, names[part[0]], strict=True):
                    wanted.setdefault(name, []).append((layer, part[1:]))
            else:
                wanted.setdefault(names[0], []).append((array, part))

        def fill(name: str) -> None:
            rows = [row.transform.their_rows(part) for _, part in wanted[name]]
            with opened(tensors[name], rows) as source:
                for out, part in wanted[name]:
                    values = row.transform.read(source, part)
                    if name in changes:
                        values = values.astype(np.float32) + changes[name](part)
                    assign(out, values)

        # Transposing kernels takes longest, and NumPy lets other threads run meanwhile. Only a few
        # threads, because each holds a tensor.
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(fill, wanted))
        return arrays

    return read


def _their_reader(
    names: Sequence[str], tensors: Mapping[str, Tensor]
) -> Callable[[int, Index], np.ndarray]:
    """Returns a function that reads parts of tensors as the files have them, without a copy."""

    def read(layer: int, part: Index) -> np.ndarray:
        with opened(tensors[names[layer]]) as source:
            return source[part]

    return read


def read_headers(directory: Path, tower: Path | None = None) -> dict[str, Tensor]:
    """Returns every tensor of a checkpoint by canonical name, reading only the files' headers.

    Args:
        directory: the checkpoint.
        tower: the CLIP directory, for a checkpoint that does not hold its vision tower.

    Raises:
        DataError: files are missing or damaged, or contradict each other.
    """
    tensors = _read_headers(directory, canonical)
    if tower and not any(name.startswith("vision_tower.") for name in tensors):
        clip = _read_headers(tower, canonical_of_tower)
        tensors |= {name: t for name, t in clip.items() if name.startswith("vision_tower.")}
    return tensors


def tensor_names(directory: Path) -> set[str]:
    """Returns the canonical names of a checkpoint's tensors; none where it has no weights.

    Raises:
        DataError: files are missing or damaged.
    """
    if not any((directory / name).exists() for name in (SINGLE_FILE, INDEX_FILE)):
        return set()
    files, promised = _list_files(directory)
    if promised is not None:
        return {canonical(name) for name in promised}
    return {canonical(tensor.name) for name in files for tensor in read_header(directory / name)}


def _read_headers(directory: Path, spell: Callable[[str], str]) -> dict[str, Tensor]:
    refuse_adapters(directory)
    problems: list[str] = []
    tensors: dict[str, Tensor] = {}
    file_of: dict[str, str] = {}
    files, promised = _list_files(directory)
    for name in files:
        for tensor in read_header(directory / name):
            file_of[tensor.name] = name
            first = tensors.setdefault(spell(tensor.name), tensor)
            if first is not tensor:
                problems.append(
                    f"{tensor.name} in {name} is the same tensor as {first.name} in "
                    f"{first.path.name}"
                )
    if promised is not None:
        for tensor, name in promised.items():
            if file_of.get(tensor) != name:
                problems.append(f"{INDEX_FILE} promises {tensor} in {name}, which does not hold it")
        problems += [
            f"{tensor} in {name} is not listed in {INDEX_FILE}"
            for tensor, name in file_of.items()
            if tensor not in promised
        ]
    if problems:
        message = f"{directory}: the weight files contradict each other; fetch them again:"
        raise DataError(message + listing(problems))
    return tensors


def _list_files(directory: Path) -> tuple[list[str], Mapping[str, str] | None]:
    """Returns a checkpoint's weight files and, if it has an index, the file of each tensor."""
    if (directory / SINGLE_FILE).exists():
        return [SINGLE_FILE], None
    path = directory / INDEX_FILE
    if not path.exists():
        if pickles := sorted(p.name for kind in _PICKLES for p in directory.glob(kind)):
            whole = any(name.startswith("pytorch_model") for name in pickles)
            raise DataError(
                f"{directory} holds its weights as pickles ({', '.join(pickles)}). Opening a "
                "pickle can run code hidden in it, so they are refused; "
                + (
                    "convert them once, without running any: "
                    f"python -m seva_jax.convert from-bin {directory} OUT"
                    if whole
                    else "none is pytorch_model*.bin, the weights of a whole model: fetch those, "
                    "or give the model that these files belong to"
                )
            )
        raise DataError(
            f"{directory} holds neither {SINGLE_FILE} nor {INDEX_FILE}: fetch the weights"
        )
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise DataError(f"{path} has no weight_map: fetch it again")
    for name in weight_map.values():
        # The index is not trusted: it must not name files outside of its directory.
        if not isinstance(name, str) or PurePath(name).name != name:
            raise DataError(f"{path} names the file {name!r}, which is not in its own directory")
        if not name.endswith(".safetensors"):
            raise DataError(f"{path} names {name}, but only safetensors files are read")
    files = sorted(set(weight_map.values()))
    if missing := [name for name in files if not (directory / name).exists()]:
        raise DataError(
            f"{directory} lacks {len(missing)} of the {len(files)} files {INDEX_FILE} names: "
            f"{', '.join(missing)}; fetch them"
        )
    return files, weight_map


def _check_tensors(
    directory: Path, tensors: Mapping[str, Tensor], rows: Mapping[Row, Shape], config: LlavaConfig
) -> None:
    """Raises one error that lists every difference between the files and the model."""
    for name, num in (
        ("text_config.num_hidden_layers", config.text.num_layers),
        ("vision_config.num_hidden_layers", config.vision.num_layers),
    ):
        if num > len(tensors):  # or the lists below, layer by layer, could exhaust the memory
            raise DataError(
                f"{directory}: {name} of config.json is {num}, but the files hold only "
                f"{len(tensors)} tensors; check that they belong to the same model"
            )
    expected = {
        name: row.their_shape(shape) for row, shape in rows.items() for name in row.names(shape)
    }
    problems = [
        f"missing: {name} {list(shape)}" for name, shape in expected.items() if name not in tensors
    ]
    for name, tensor in tensors.items():
        where = f"{tensor.name} {list(tensor.shape)} in {tensor.path.name}"
        if name in expected:
            if tensor.shape != expected[name]:
                problems.append(f"misshapen: {where}, expected {list(expected[name])}")
            if tensor.dtype not in DTYPES:
                problems.append(f"dtype: {where} is {tensor.dtype}, read: {', '.join(DTYPES)}")
        elif name == HEAD and config.text.tied_head:
            if tensor.shape != expected[EMBEDDING]:
                problems.append(f"misshapen: {where}, expected {list(expected[EMBEDDING])}")
        elif not is_unused(name, config.tower_depth, config.vision.num_layers):
            problems.append(f"unexpected: {where}")
    if problems:
        lines = listing(problems[:_MAX_LINES])
        if len(problems) > _MAX_LINES:  # more than any real model has: a hostile file
            lines += f"\n  and {len(problems) - _MAX_LINES:,} more"
        raise DataError(
            f"{directory}: {len(problems)} tensors do not fit config.json; check that weights "
            f"and config belong to the same model:{lines}"
        )


def _check_tied(directory: Path, embedding: Tensor, head: Tensor) -> None:
    """Raises if the files hold a head next to a tied embedding, and the two differ."""
    columns = slice(0, head.shape[1])
    for start in range(0, head.shape[0], _EQUAL_CHUNK):
        index = slice(start, min(start + _EQUAL_CHUNK, head.shape[0])), columns
        with opened(embedding, index[:1]) as embedding_VD, opened(head, index[:1]) as head_VD:
            if not np.array_equal(embedding_VD[index], head_VD[index]):
                raise DataError(
                    f"{directory}: config.json says tie_word_embeddings, but the files hold an "
                    "lm_head.weight that differs from the embedding; set tie_word_embeddings to "
                    "false"
                )
