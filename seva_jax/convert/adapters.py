"""Reads a LoRA adapter that others trained: a PEFT directory, or the original LLaVA's own.

What lives here: the tensors of an adapter by the tensors that they change (`read_adapter`), to be
merged into the base while that is loaded (an argument of `load.load_params`). What does not: what
adapter_config.json may say (`adapter_config.py`), a run's own adapters that continue one
(`continued.py`), and writing an adapter (`peft.py`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from seva_jax.convert.adapter_config import PeftFields, read_peft_fields
from seva_jax.convert.load import shapes_by_path
from seva_jax.convert.original import ADAPTER, ADAPTER_CONFIG, ADAPTER_OTHERS, listing
from seva_jax.convert.table import (
    EMBEDDING,
    HEAD,
    TABLE,
    Index,
    Row,
    Shape,
    Transposed,
    canonical,
    is_unused,
)
from seva_jax.convert.tensors import (
    DTYPES,
    Tensor,
    read_header,
    read_part,
    read_whole,
)
from seva_jax.models import Llava, LlavaConfig, abstract_params
from seva_jax.runtime.stores import as_path
from seva_jax.types import DataError

MOST_LINES = 1000  # in one error message

# X.lora_A.weight, with the adapter's name X.lora_A.default.weight; embeddings lack ".weight".
_LORA = re.compile(r"(.+)\.lora_(embedding_)?([AB])(\.(?!weight$)\w+)?(\.weight)?")
_LANGUAGE = re.compile(r"language_model\.model\.layers\.(\d+)\.(self_attn|mlp)\.(\w+)\.weight")


@dataclasses.dataclass(frozen=True)
class LowRank:
    """The change that an adapter makes to one tensor: alpha / rank * B A, in peft's layout.

    Attributes:
        a: [rank, inputs]; for an embedding [rank, vocabulary].
        b: [outputs, rank]; for an embedding [width, rank].
        alpha: see `LoraConfig.alpha`; includes the square root of the rank of rank-stabilised LoRA.
    """

    a: Tensor
    b: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        """The rank."""
        return self.a.shape[0]

    def factors(self, index: Index) -> tuple[np.ndarray, np.ndarray]:
        """Returns a part of A and of B in our layout, [F, R] and [R, O], float32.

        Args:
            index: the inputs and the outputs.
        """
        inputs, outputs = index
        everything = slice(0, self.rank)
        return (
            read_part(self.a, (everything, inputs)).T.astype(np.float32),
            read_part(self.b, (outputs, everything)).T.astype(np.float32),
        )

    def __call__(self, index: Index) -> np.ndarray:
        """Returns a part of the change in our layout, [F, O] in float32."""
        a_FR, b_RO = self.factors(index)
        return a_FR @ b_RO * np.float32(self.alpha / self.rank)


@dataclasses.dataclass(frozen=True)
class Adapter:
    """An adapter, whose files have been checked against a model.

    Attributes:
        directory: where it is.
        low_rank: changes by the canonical names of the tensors that they change, see
            `table.canonical`.
        whole: tensors that take the place of the base's, by canonical name: a projector, what peft
            calls `modules_to_save`, LLaVA's non_lora_trainables.
        dropout: of its training, see `LoraConfig.dropout`.
    """

    directory: Path
    low_rank: Mapping[str, LowRank]
    whole: Mapping[str, Tensor]
    dropout: float = 0.0

    def without_low_rank(self) -> Adapter:
        """Returns what is left to apply to a base whose adapters are trained further."""
        return dataclasses.replace(self, low_rank={})

    def tensors(self) -> list[Tensor]:
        """Returns all tensors of its files that count."""
        sides = [side for change in self.low_rank.values() for side in (change.a, change.b)]
        return [*sides, *self.whole.values()]

    def changes(self, names: Sequence[str]) -> bool:
        """Returns whether any of the tensors with these canonical names is changed."""
        return any(name in self.low_rank or name in self.whole for name in names)

    def adapted(self, row: Row, name: str, tensor: Tensor) -> np.ndarray:
        """Returns one of the base's tensors as the adapter makes it: float32, in its layout.

        Exports need this and `changes`, and nothing else of an adapter.

        Args:
            row: the row of the tensor in `TABLE`.
            name: its canonical name.
            tensor: the base's tensor.
        """
        tensor = self.whole.get(name, tensor)
        values = read_whole(tensor).astype(np.float32)
        if name not in self.low_rank:
            return values
        change = self.low_rank[name]
        index = slice(0, change.a.shape[1]), slice(0, change.b.shape[0])
        return values + row.transform.write(change(index))


def read_adapter(directory: str | Path, config: LlavaConfig) -> Adapter:
    """Reads what an adapter changes, and checks every tensor of it; weights are read later.

    Args:
        directory: holds adapter_config.json and adapter_model.safetensors, and LLaVA's also
            non_lora_trainables.safetensors.
        config: the architecture of the base.

    Raises:
        DataError: a file is missing, damaged or a pickle; the adapter is of a kind that is not
            supported; or tensors do not belong to this model. All of them are listed at once.
    """
    directory = as_path(directory)
    if not (directory / ADAPTER_CONFIG).is_file():
        raise DataError(
            f"adapter {str(directory)!r} holds no {ADAPTER_CONFIG}: give a directory that "
            "save_pretrained of a PeftModel wrote, or LLaVA's training with LoRA"
        )
    fields = read_peft_fields(directory / ADAPTER_CONFIG)
    tensors = [t for name in _files(directory) for t in read_header(directory / name)]
    return _Reader(directory, fields, config).read(tensors)


def _files(directory: Path) -> list[str]:
    """Returns the adapter's weight files.

    Raises:
        DataError: one is missing, or is there as a pickle only.
    """
    files = [f"{stem}.safetensors" for stem in (ADAPTER, ADAPTER_OTHERS)]
    there = [name for name in files if (directory / name).exists()]
    pickles = [
        f"{stem}.bin"
        for stem in (ADAPTER, ADAPTER_OTHERS)
        if (directory / f"{stem}.bin").exists() and f"{stem}.safetensors" not in there
    ]
    if pickles:
        raise DataError(
            f"{directory} holds weights as pickles ({', '.join(pickles)}). Opening a pickle can "
            "run code hidden in it, so they are refused; convert them once, without running any: "
            f"python -m seva_jax.convert from-bin {directory} OUT"
        )
    if files[0] not in there:
        raise DataError(f"{directory} holds no {files[0]}: fetch the weights of the adapter")
    return there


@dataclasses.dataclass
class _Reader:
    """Assigns an adapter's tensors to those of the base, and collects what is wrong.

    Attributes:
        directory: the adapter's.
        fields: what adapter_config.json says.
        config: the architecture of the base.
    """

    directory: Path
    fields: PeftFields
    config: LlavaConfig

    def __post_init__(self) -> None:
        shapes = shapes_by_path(abstract_params(Llava(self.config)))
        rows = [row for row in TABLE if row.ours in shapes]
        self.rows: dict[str, tuple[Row, Shape]] = {
            name: (row, row.their_shape(shapes[row.ours]))
            for row in rows
            for name in row.names(shapes[row.ours])
        }
        self.problems: list[str] = []

    def read(self, tensors: Sequence[Tensor]) -> Adapter:
        """Returns the adapter.

        Raises:
            DataError: see `read_adapter`.
        """
        sides: dict[str, dict[str, Tensor]] = {}  # canonical name -> "A" and "B"
        modules: dict[str, str] = {}  # canonical name -> their module
        whole: dict[str, Tensor] = {}
        for tensor in tensors:
            given = tensor.name.removeprefix("base_model.model.")
            matched = _LORA.fullmatch(given)
            if matched:
                module, embedding, side = matched[1], matched[2], matched[3]
                name = canonical(f"{module}.weight")
                modules[name] = module
                if self._takes(name, tensor) and self._is_linear(name, tensor, bool(embedding)):
                    self._put(sides.setdefault(name, {}), side, tensor)
            else:
                plain = re.sub(r"\.modules_to_save\.\w+(?=\.)", "", given)
                name = canonical(plain.replace(".base_layer.", "."))
                if self._takes(name, tensor) and self._has_shape(tensor, self.rows[name][1]):
                    self._put(whole, name, tensor)
        low_rank = dict(self._pairs(sides, modules))
        self._check_completeness(low_rank, modules, [t.name for t in tensors])
        if self.config.text.tied_head and ({EMBEDDING, HEAD} & (low_rank.keys() | whole.keys())):
            self.problems.append(
                "the base's head is its embedding (tie_word_embeddings), and the adapter changes "
                "one of them"
            )
        if self.problems:
            lines = listing(self.problems[:MOST_LINES])
            if len(self.problems) > MOST_LINES:
                lines += f"\n  and {len(self.problems) - MOST_LINES:,} more"
            raise DataError(
                f"adapter {self.directory} does not fit the model; check that it was trained on "
                f"this base, and that its files are whole:{lines}"
            )
        return Adapter(self.directory, low_rank, whole, self.fields.dropout)

    def _takes(self, name: str, tensor: Tensor) -> bool:
        if name in self.rows:
            if tensor.dtype in DTYPES:
                return True
            self.problems.append(f"dtype: {tensor.name} is {tensor.dtype}, not a float")
        elif not is_unused(name, self.config.tower_depth, self.config.vision.num_layers):
            self.problems.append(f"unexpected: {tensor.name} {list(tensor.shape)}")
        return False

    def _is_linear(self, name: str, tensor: Tensor, embedding: bool) -> bool:
        transform = self.rows[name][0].transform
        if name == EMBEDDING if embedding else isinstance(transform, Transposed):
            return True
        self.problems.append(f"not a linear layer: {tensor.name} {list(tensor.shape)}")
        return False

    def _has_shape(self, tensor: Tensor, shape: Shape) -> bool:
        if tensor.shape == shape:
            return True
        self.problems.append(
            f"misshapen: {tensor.name} {list(tensor.shape)} in {tensor.path.name}, expected "
            f"{list(shape)}"
        )
        return False

    def _put(self, taken: dict[str, Tensor], key: str, tensor: Tensor) -> None:
        first = taken.setdefault(key, tensor)
        if first is not tensor:
            self.problems.append(f"{tensor.name} is the same tensor as {first.name}")

    def _pairs(
        self, sides: Mapping[str, Mapping[str, Tensor]], modules: Mapping[str, str]
    ) -> Iterator[tuple[str, LowRank]]:
        """Yields the low-rank changes, as far as they are right."""
        for name, pair in sides.items():
            if len(pair) < 2:
                (side, tensor), *_ = pair.items()
                other = {"A": "B", "B": "A"}[side]
                self.problems.append(f"missing: lora_{other} that belongs to {tensor.name}")
                continue
            rank, alpha = self.fields.rank_and_alpha(modules[name])
            theirs = self.rows[name][1]
            outputs, inputs = theirs[::-1] if name == EMBEDDING else theirs
            fits_a = self._has_shape(pair["A"], (rank, inputs))
            if self._has_shape(pair["B"], (outputs, rank)) and fits_a:
                yield name, LowRank(pair["A"], pair["B"], alpha)

    def _check_completeness(
        self, low_rank: Mapping[str, LowRank], modules: Mapping[str, str], given: Sequence[str]
    ) -> None:
        """Collects what adapter_config.json promises and the files do not hold."""
        for name in self.rows if self.fields.every_layer else ():
            matched = _LANGUAGE.fullmatch(name)
            promised = matched and {matched[3], f"{matched[2]}.{matched[3]}"} & set(
                self.fields.target_modules
            )
            if promised and name not in modules:
                self.problems.append(f"missing: lora_A and lora_B of {name}")
        for module in self.fields.modules_to_save:
            if not any(f".{module}." in f".{name}" for name in given):
                self.problems.append(f"missing: {module}, which modules_to_save names")
        for pattern in self.fields.unmatched(modules.values()):
            self.problems.append(
                f"{ADAPTER_CONFIG}: the pattern {pattern!r} of rank_pattern or alpha_pattern "
                "matches no tensor"
            )
        if not low_rank and not self.problems:
            self.problems.append("it holds no lora_A and lora_B")
