"""Writes a run's result as a whole model, in the layout of the checkpoint it started from.

The checkpoint's files are copied, and the trained tensors are written over their old bytes. The
order of tensors, their files and all untrained bytes stay identical, and only a few tensors are in
memory at a time. Names are those of the Hub. What does not live here: which tensor is which
parameter (`table.py`), the Hub's spelling of other files (`hub_files.py`), a change of layout
(`rewrite.py`), adapters alone (`peft.py`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath

import numpy as np

from seva_jax.convert.chat_template import own_chat_template, read_template
from seva_jax.convert.families import LLAVA, family_of
from seva_jax.convert.files import (
    SafetensorsWriter,
    copy_file,
    encode,
    new_directory,
    update_json,
)
from seva_jax.convert.hub_files import respell_files
from seva_jax.convert.load import INDEX_FILE, read_headers
from seva_jax.convert.original import read_json
from seva_jax.convert.original_config import aspect_ratio
from seva_jax.convert.processor import replace_processing, write_chat_template
from seva_jax.convert.source import Source
from seva_jax.convert.table import EMBEDDING, HEAD, TABLE, Row, canonical
from seva_jax.convert.tensors import (
    Tensor,
    data_start,
    read_raw,
    read_whole,
    require_unchanged,
)
from seva_jax.runtime.progress import Progress
from seva_jax.text.templates import Template
from seva_jax.text.tokenizer import load_tokenizer
from seva_jax.types import DataError

# Weight files of any format are not copied: they would hold the old weights.
_SAFE = ".safetensors"
_WEIGHTS = (_SAFE, ".bin", ".pt", ".pth", ".pkl", ".ckpt", ".h5", ".msgpack", ".gguf")
TOWER = "vision_tower"  # folder for the CLIP directory of an original LLaVA


def patched_copy(source: Source, out: Path) -> str:
    """Copies the checkpoint, with adapters merged and trained parts replaced.

    A checkpoint in Hugging Face's layout is spelled as on the Hub, so that transformers 4 and 5
    open it. Files that are spelled so already are copied byte by byte.

    The CLIP directory of an original LLaVA is copied too if it is inside the checkpoint, or if the
    tower was trained; config.json then names the copy by its absolute path, because LLaVA looks for
    a relative one from wherever it is started. Processor and chat template are written only where
    they are not those of the run.

    Args:
        source: the model to export.
        out: the new directory.

    Returns:
        A summary for the terminal.

    Raises:
        DataError: the checkpoint is damaged, or `out` cannot be written.
    """
    tensors = read_headers(source.directory, source.tower)
    changed = [row for row in TABLE if changes(source, row)]
    files = {path: PurePosixPath(path.name) for path in _copied(source.directory, tensors)}
    moved, folder = False, PurePosixPath(TOWER)
    if source.tower:
        inside = tower_inside(source)
        outside = {t.path.parent for t in tensors.values()} - {source.directory}
        trained = any(row.ours.startswith("vision") for row in changed)
        moved = inside or (bool(outside) and trained)
        if inside:
            inner = source.tower.resolve().relative_to(source.directory.resolve())
            folder = PurePosixPath(inner.as_posix())
        if moved:
            files |= {path: folder / path.name for path in _copied(source.tower, tensors)}
    spell = family_of(source.config).hub_name
    names = {name: t.name if source.tower else spell(name) for name, t in tensors.items()}
    with new_directory(out, sum(path.stat().st_size for path in files)) as scratch:
        with Progress("copy", len(files), "file") as bar:
            for path, name in files.items():
                (scratch / name).parent.mkdir(exist_ok=True, parents=True)
                inside = {names[key]: t for key, t in tensors.items() if t.path == path}
                _copy_respelled(path, scratch / name, inside)
                bar.update()
        if source.tower is None:
            _respell_index(scratch / INDEX_FILE, spell)
            respell_files(scratch, source.config)
            if source.processing is not None:
                replace_processing(scratch, source.config, source.processing)
            if source.template is not None:
                _keep_or_write_template(source, source.template, scratch)
        else:
            tower = str(out.absolute() / folder) if moved else None
            update_json(scratch / "config.json", llava_fields(source, tower))
        copies = {path: scratch / name for path, name in files.items()}
        starts = {path: data_start(copies[path]) for path in files if path.suffix == _SAFE}
        num = 0
        with Progress("merge", len(changed), "tensor") as bar:
            for row in changed:
                for name, values in merged(source, row, tensors):
                    num += 1
                    tensor = tensors[name]
                    with copies[tensor.path].open("r+b") as file:
                        file.seek(starts[tensor.path][names[name]])
                        file.write(encode(tensor, values))
                bar.update()
        require_unchanged(tensors.values())
    return f"{out}: {num} of {len(tensors)} tensors changed"


def _copy_respelled(path: Path, target: Path, tensors: Mapping[str, Tensor]) -> None:
    """Copies a file; its tensors, by new name, get these names."""
    if all(name == tensor.name for name, tensor in tensors.items()):
        copy_file(path, target)
        return
    in_order = sorted(tensors.items(), key=lambda item: item[1].start)
    layout = {name: (tensor.dtype, tensor.shape) for name, tensor in in_order}
    with SafetensorsWriter(target, layout) as writer:
        for name, tensor in in_order:
            writer.write_bytes(name, read_raw(tensor))


def _respell_index(path: Path, spell: Callable[[str], str]) -> None:
    if path.exists():
        weights = read_json(path)["weight_map"]
        update_json(
            path, {"weight_map": {spell(canonical(name)): x for name, x in weights.items()}}
        )


def _keep_or_write_template(source: Source, template: Template, scratch: Path) -> None:
    """Writes the run's chat template unless the checkpoint's own, already copied, says the same."""
    family = family_of(source.config)
    image = family.chat_image
    if own_chat_template(source.directory) is not None:
        with contextlib.suppress(DataError):  # it may be of a form that we do not know
            if read_template(source.directory, load_tokenizer(source.directory), False, image) == (
                template
            ):
                return
    write_chat_template(scratch, template, image, family.chat_video)


def tower_inside(source: Source) -> bool:
    """Returns whether the tower's directory of an original LLaVA is a folder of the checkpoint."""
    if source.tower is None or source.tower == source.directory:
        return False
    return source.tower.resolve().is_relative_to(source.directory.resolve())


def llava_fields(source: Source, tower: str | None) -> dict[str, object]:
    """Returns the fields of an original LLaVA's config.json that a run changes.

    Args:
        source: the model to export.
        tower: the new place of the tower's directory; None if that does not change.
    """
    fields: dict[str, object] = {} if tower is None else {"mm_vision_tower": tower}
    if source.processing is not None and family_of(source.config) is LLAVA:
        fields["image_aspect_ratio"] = aspect_ratio(source.processing)
    return fields


def other_files(directory: Path) -> list[Path]:
    """Returns the files of a checkpoint that are not weights: tokenizer, processor, README, ..."""
    return [path for path in sorted(directory.iterdir()) if _is_other(path)]


def _copied(directory: Path, tensors: Mapping[str, Tensor]) -> list[Path]:
    weights = {t.path for t in tensors.values() if t.path.parent == directory}
    index = directory / INDEX_FILE
    return [*sorted(weights), *([index] if index.exists() else []), *other_files(directory)]


def _is_other(path: Path) -> bool:
    hidden = path.name.startswith(".") or not path.is_file()
    return not hidden and path.suffix not in _WEIGHTS and not path.name.endswith(".index.json")


def _adapter(row: Row) -> str:
    return "lora/" + row.ours.removesuffix("/kernel")


def changes(source: Source, row: Row) -> bool:
    """Returns whether the run, or what it started from, changed the tensors of a row."""
    if source.adapter and source.adapter.changes(names_of(source, row)):
        return True
    trained = source.trained.keys() | set().union(*(run.trained for run in source.before))
    return bool(trained & {f"params/{row.ours}", f"{_adapter(row)}/a"})


def names_of(source: Source, row: Row) -> list[str]:
    """Returns the canonical names of a row's tensors."""
    config = source.config
    stacks = {
        "vision": config.tower_depth,
        "projector": len(config.vision.deep_layers),
        "language": config.text.num_layers,
    }
    return row.names((stacks[row.ours.partition("/")[0]],))


def merged(
    source: Source, row: Row, tensors: Mapping[str, Tensor]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields canonical name and new values, float32 in their layout, of a changed row's tensors."""
    ours, adapter = f"params/{row.ours}", _adapter(row)
    runs: list[tuple[np.float32, dict[str, np.ndarray]]] = []
    for run in (*source.before, source):
        wanted = [n for n in (ours, f"{adapter}/a", f"{adapter}/b") if n in run.trained]
        if wanted:
            scale = np.float32(0)
            if f"{adapter}/a" in wanted:
                scale = np.float32(run.lora.at(adapter.removeprefix("lora/")).scale)
            runs.append((scale, dict(zip(wanted, run.read(wanted), strict=True))))
    for layer, name in enumerate(names_of(source, row)):
        part = (lambda x, at=layer: x[at]) if row.stacked else (lambda x: x)
        values = None
        if not runs or ours not in runs[0][1]:
            values = (
                source.adapter.adapted(row, name, tensors[name])
                if source.adapter
                else read_tensor(tensors[name])
            )
        for scale, trained in runs:
            if ours in trained:
                values = row.transform.write(part(trained[ours]))
            if adapter + "/a" in trained:
                a, b = part(trained[f"{adapter}/a"]), part(trained[f"{adapter}/b"])
                values = values + row.transform.write(a @ b * scale)
        assert values is not None
        yield name, values
        if name == EMBEDDING and source.config.text.tied_head and HEAD in tensors:
            yield HEAD, values


def read_tensor(tensor: Tensor) -> np.ndarray:
    """Reads one of the checkpoint's tensors as float32."""
    return read_whole(tensor).astype(np.float32)
