"""What the report needs of a run's models, recorded so that the page can be made without them.

What lives here: `Shown` and the file report.json of a work directory. What does not: computing it
(`seva_jax/run/margins.py`, `seva_jax/run/own_prompts.py`), the page (`run_report.py`).
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from PIL import Image

from seva_jax.config import Assets, Checkpoint, Experiment, PriorRun, flatten, make_model
from seva_jax.images import PROCESSINGS, ImageProcessing
from seva_jax.models import num_parameters
from seva_jax.report.closing import devices
from seva_jax.report.markup import count_of
from seva_jax.report.settings import brief
from seva_jax.runtime.files import read_json, write_json
from seva_jax.types import DataError

FILE = "report.json"


@dataclasses.dataclass(frozen=True)
class Shown:
    """What only the run itself knows, as it is kept in report.json.

    Attributes:
        parameters: number of parameters of the base model.
        unused: parameters of its checkpoint behind the image features, which are not loaded.
        adapters: the adapters that were trained, as `settings.brief` writes them; "" for none.
        devices: number and kind of the devices, and the number of processes.
        mesh: axes of the mesh and their sizes.
        software: versions by name.
        processing: fields of the image pipeline.
        trained: number of pairs that were trained on; 0 if it was not recorded.
        margins: of some of them, the place in pairs.array_record and the reward margins before and
            after training; None where an image does not decode.
        own: answers to prompts of the run before and after, see `run/own_prompts.py`.
        left_out: how many of these prompts could not be asked, by reason.
    """

    parameters: int = 0
    unused: int = 0
    adapters: str = ""
    devices: str = ""
    mesh: str = ""
    software: str = ""
    processing: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    trained: int = 0
    margins: tuple[tuple[int, float | None, float | None], ...] = ()
    own: tuple[Mapping[str, Any], ...] = ()
    left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def write(self, workdir: Path) -> None:
        """Writes the record into a work directory."""
        write_json(workdir / FILE, vars(self))

    @classmethod
    def read(cls, workdir: Path) -> Shown:
        """Reads the record of a work directory; an empty one of a run that has not made any.

        Raises:
            DataError: the file is damaged.
        """
        file = workdir / FILE
        if not file.is_file():
            return cls()
        record = read_json(file)
        try:
            margins = tuple((int(place), x, y) for place, x, y in record.pop("margins"))
            return cls(margins=margins, own=tuple(record.pop("own")), **record)
        except (AttributeError, KeyError, TypeError, ValueError):
            raise DataError(
                f"{file} is not a record of this version; delete it and report.html, and run "
                "seva_jax.train again, which writes both"
            ) from None

    @property
    def image_processing(self) -> ImageProcessing | None:
        """The image pipeline; None if it was not recorded."""
        if not self.processing:
            return None
        fields: dict[str, Any] = {k: _tupled(v) for k, v in self.processing.items()}
        fields["resample"] = Image.Resampling[fields["resample"]]
        name = fields.pop("kind", ImageProcessing.__name__)  # older records do not say
        (kind,) = (x for x in PROCESSINGS if x.__name__ == name)
        return kind(**fields)


def facts_of_run(config: Experiment, mesh: jax.sharding.Mesh, assets: Assets) -> dict[str, Any]:
    """Returns the fields of `Shown` that are known without running a model.

    Args:
        config: the run's config.
        mesh: its devices.
        assets: what comes with the weights of its base model.
    """
    versions = [("Python", platform.python_version())]
    versions += [(name, _version(name)) for name in ("seva_jax", "jax", "flax")]
    base = config.base
    while isinstance(base, PriorRun):
        base = base.earlier().base
    checkpoint = isinstance(base, Checkpoint)
    return {
        "parameters": num_parameters(make_model(assets.config, config.compute)),
        "unused": assets.config.unused_parameters if checkpoint else 0,
        "adapters": brief(config.lora) if config.lora.rank else "",
        "devices": f"{devices()}, {count_of(jax.process_count(), 'process', 'es')}",
        "mesh": " × ".join(f"{name} {size}" for name, size in mesh.shape.items()),
        "software": ", ".join(f"{name} {version}" for name, version in versions),
        "processing": flatten(assets.processing) | {"kind": type(assets.processing).__name__},
    }


def _tupled(value: Any) -> Any:
    return tuple(map(_tupled, value)) if isinstance(value, list) else value


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        return "not installed"
