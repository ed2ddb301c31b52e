"""Converts PyTorch's pickled weights (.bin) to safetensors without running code inside them.

This is the only place that opens pickles, and only with torch's weights-only reader. Needs torch.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from seva_jax.convert.export import other_files
from seva_jax.convert.files import copy_file, new_directory, write_json
from seva_jax.convert.load import INDEX_FILE
from seva_jax.convert.original import ADAPTER, ADAPTER_OTHERS, read_json
from seva_jax.runtime.progress import Progress
from seva_jax.runtime.stores import is_remote
from seva_jax.types import DataError

_INDEX = "pytorch_model.bin.index.json"
_ADAPTER = (ADAPTER, ADAPTER_OTHERS)


def from_bin(directory: Path, out: Path) -> str:
    """Copies a model directory, with its pytorch_model*.bin files as safetensors.

    Of a LoRA adapter, these are adapter_model.bin and LLaVA's non_lora_trainables.bin. One that is
    already there as safetensors is copied.

    Args:
        directory: a LLaVA checkpoint, a CLIP directory, or a LoRA adapter.
        out: the new directory.

    Returns:
        A summary for the terminal.

    Raises:
        DataError: torch is not installed, there are no such files, one holds more than tensors,
            or `out` cannot be written.
    """
    try:
        import torch
        from safetensors.torch import save_file
    except ImportError:
        raise DataError("from-bin needs torch to read pickles: pip install torch") from None
    safe = [p for x in _ADAPTER if (p := directory / f"{x}.safetensors").is_file()]
    pickled = [p for x in _ADAPTER if (p := directory / f"{x}.bin").is_file()]
    files = sorted(directory.glob("pytorch_model*.bin"))
    files += [path for path in pickled if path.with_suffix(".safetensors") not in safe]
    if not files:
        raise DataError(
            f"{directory} holds no pytorch_model*.bin, and no adapter_model.bin or "
            "non_lora_trainables.bin"
        )
    names = {f.name: f"{f.stem.replace('pytorch_model', 'model')}.safetensors" for f in files}
    num, index_path = 0, directory / _INDEX
    index = read_json(index_path) if index_path.exists() else None
    with new_directory(out, sum(path.stat().st_size for path in files)) as scratch:
        for path in [*other_files(directory), *safe]:
            copy_file(path, scratch / path.name)
        with Progress("convert", len(files), "file") as progress:
            for path in files:
                with _local(path) as local:
                    tensors = _read(torch, local, path)
                    num += len(tensors)
                    save_file(tensors, scratch / names[path.name], metadata={"format": "pt"})
                progress.update()
        if index is not None:
            try:
                weight_map = {key: names[file] for key, file in index["weight_map"].items()}
            except (KeyError, TypeError, AttributeError) as error:
                raise DataError(f"{index_path} names files that are not there: {error}") from None
            write_json(scratch / INDEX_FILE, index | {"weight_map": weight_map})
    return f"{out}: {num} tensors in {len(files)} safetensors files"


@contextlib.contextmanager
def _local(path: Path) -> Iterator[Path]:
    """Yields a local file with a file's content: itself, or a copy of an object for a while."""
    if not is_remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="seva_jax_export_") as folder:
        copy_file(path, Path(folder) / path.name)
        yield Path(folder) / path.name


def _read(torch: Any, local: Path, path: Path) -> dict[str, Any]:
    """Reads tensors from a local file; errors name the file that the user knows."""
    try:
        tensors = torch.load(local, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises many types, for damage and for refused content
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path} is damaged or holds more than weights: {reason}") from None
    if not isinstance(tensors, dict) or not all(torch.is_tensor(x) for x in tensors.values()):
        raise DataError(f"{path} holds more than tensors by name; only such files are converted")
    # Names that share one storage, such as those of a tied head, each get a copy.
    seen: set[int] = set()
    for name, tensor in tensors.items():
        shared = tensor.untyped_storage().data_ptr() in seen
        seen.add(tensor.untyped_storage().data_ptr())
        tensor = tensor.contiguous()
        tensors[name] = tensor.clone() if shared else tensor
    return tensors
