"""A run's result as a full model, in the layout of the checkpoint it started from.

The checkpoint's files are copied and the trained tensors are written over their old bytes: names,
order, sharding and untouched tensors stay identical, and memory holds a few tensors at a time.
Which tensor is which is in `table.py`; adapters on their own are in `peft.py`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from safetensors import safe_open
from tqdm import tqdm

from seva_jax.convert.files import data_start, encode, new_directory
from seva_jax.convert.load import Tensor, read_headers
from seva_jax.convert.source import Source
from seva_jax.convert.table import EMBEDDING, HEAD, TABLE, Row

# Weights in other formats, and the indices of such: not copied, since they would be the old ones.
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".pkl", ".ckpt", ".h5", ".msgpack", ".gguf")


def to_hf(source: Source, out: Path) -> str:
    """Writes the model with adapters merged and trained parts replaced.

    Args:
        source: what to export. A checkpoint without a run is copied.
        out: the new directory.

    Returns:
        What was written, for people.

    Raises:
        DataError: the checkpoint is damaged, or `out` cannot be written.
    """
    tensors = read_headers(source.directory)
    weights = {tensor.path for tensor in tensors.values()}
    others = [path for path in sorted(source.directory.iterdir()) if _is_copied(path)]
    files = sorted(weights) + others
    with new_directory(out, sum(path.stat().st_size for path in files)) as scratch:
        with tqdm(total=len(files), desc="copy", unit="file") as bar:
            for path in files:
                shutil.copyfile(path, scratch / path.name)
                bar.update()
        starts = {path: data_start(path) for path in weights}
        num = 0
        changed = [row for row in TABLE if _changes(source, row)]
        with tqdm(total=len(changed), desc="merge", unit="tensor") as bar:
            for row in changed:
                for tensor, values in _merged(source, row, tensors):
                    num += 1
                    with (scratch / tensor.path.name).open("r+b") as file:
                        file.seek(starts[tensor.path][tensor.name])
                        file.write(encode(tensor, values))
                bar.update()
    return f"{out}: {num} of {len(tensors)} tensors changed"


def _is_copied(path: Path) -> bool:
    name = path.name
    if name.startswith(".") or not path.is_file():
        return False
    if name.endswith(".index.json"):
        return name == "model.safetensors.index.json"
    return path.suffix not in _WEIGHTS


def _adapter(row: Row) -> str:
    return "lora/" + row.ours.removesuffix("/kernel")


def _changes(source: Source, row: Row) -> bool:
    return f"params/{row.ours}" in source.trained or f"{_adapter(row)}/a" in source.trained


def _merged(
    source: Source, row: Row, tensors: Mapping[str, Tensor]
) -> Iterator[tuple[Tensor, np.ndarray]]:
    """Their tensors of one changed row, float32, in their layout."""
    ours, adapter = f"params/{row.ours}", _adapter(row)
    wanted = [n for n in (ours, f"{adapter}/a", f"{adapter}/b") if n in source.trained]
    trained = dict(zip(wanted, source.read(wanted), strict=True))
    shape = source.trained.get(ours) or (source.trained[f"{adapter}/a"][0],)
    for layer, name in enumerate(row.names(shape)):
        part = (lambda x, at=layer: x[at]) if row.stacked else (lambda x: x)
        if ours in trained:
            values = row.transform.write(part(trained[ours]))
        else:
            with safe_open(tensors[name].path, framework="np") as file:
                values = file.get_tensor(tensors[name].name).astype(np.float32)
        if adapter + "/a" in trained:
            a, b = part(trained[f"{adapter}/a"]), part(trained[f"{adapter}/b"])
            scale = np.float32(source.lora.alpha / source.lora.rank)
            values = values + row.transform.write(a @ b * scale)
        yield tensors[name], values
        if name == EMBEDDING and source.config.text.tied_head and HEAD in tensors:
            yield tensors[HEAD], values
