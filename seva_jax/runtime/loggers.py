"""Where a run's metrics go in addition to metrics.jsonl: TensorBoard, Weights & Biases, trackio.

What lives here: `Logger` (the extension point), `LogWriter`, `TensorBoard`, `WandB`, `Trackio`.
What does not: `metrics.jsonl`, which is always written (`seva_jax/run/workdir.py`), and choosing
the pairs to show (`seva_jax/report/run_report.py`). The packages are optional and imported only
when a config asks for them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

import numpy as np
from typing_extensions import override

from seva_jax.runtime.copies import scratch_folder, upload
from seva_jax.runtime.files import write_text
from seva_jax.runtime.paths import short_path
from seva_jax.runtime.run_records import read_metrics
from seva_jax.runtime.stores import is_remote
from seva_jax.types import DataError

_COPY_EVERY_S = 30.0  # event files into a bucket


class LoggedRun(NamedTuple):
    """The run to be logged.

    Attributes:
        folder: its work directory. In a bucket, its files are written whole.
        config: dotted field names and plain values.
        num_rows: rows that its metrics.jsonl has already; more than 0 when a run is resumed.
    """

    folder: Path
    config: Mapping[str, Any]
    num_rows: int


class LoggedPair(NamedTuple):
    """A preference pair as one picture.

    Attributes:
        image_HWC: uint8, the clean image with the corrupted ones to its right.
        caption: question and answers.
    """

    image_HWC: np.ndarray
    caption: str


class LogWriter:
    """Receives the metrics and pairs of a run, on process 0 only."""

    def scalars(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Logs one row of metrics.

        A run that was killed resumes from its last checkpoint and logs the steps after it a second
        time, with the same values.

        Args:
            stage: "base" or "align".
            step: optimiser step of the stage.
            values: numbers by name.
        """
        raise NotImplementedError(f"{type(self).__name__} must define scalars")

    def pairs(self, pairs: Sequence[LoggedPair]) -> None:
        """Logs a few pairs, once, before alignment starts."""
        raise NotImplementedError(f"{type(self).__name__} must define pairs")

    def close(self) -> None:
        """Writes what is still buffered; nothing is logged after this."""
        raise NotImplementedError(f"{type(self).__name__} must define close")


@dataclasses.dataclass(frozen=True)
class Logger:
    """Base class of loggers; a config lists them: `loggers=(TensorBoard(),)`."""

    @property
    def needs_local_folder(self) -> bool:
        """Whether it cannot log a run whose work directory is in a bucket."""
        return False

    def check(self) -> None:
        """Checks before the run starts what would otherwise fail later.

        Raises:
            DataError: a package is missing; the message names the extra to install.
        """

    def open(self, run: LoggedRun) -> LogWriter:
        """Starts logging, or continues the log of an interrupted run.

        Raises:
            DataError: logging cannot start; the message says what to do.
        """
        raise NotImplementedError(f"{type(self).__name__} must define open")


def _missing(package: str, extra: str, who: str) -> DataError:
    return DataError(
        f"loggers: {who} needs {package}: pip install 'seva_jax[{extra}]', or leave it out"
    )


def _load_tensorboardx() -> ModuleType:
    try:
        import tensorboardX
    except ImportError:
        raise _missing("tensorboardX", "tensorboard", "TensorBoard") from None
    return tensorboardX


def _load_wandb() -> ModuleType:
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise _missing("wandb", "wandb", "WandB") from None
    return wandb


def _load_trackio() -> ModuleType:
    try:
        import trackio  # pyright: ignore[reportMissingImports]
        import trackio.sqlite_storage  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise _missing("trackio", "trackio", "Trackio") from None
    return trackio


@dataclasses.dataclass(frozen=True)
class TensorBoard(Logger):
    """Event files under WORKDIR/tensorboard, written without TensorFlow (extra "tensorboard").

    `tensorboard --logdir WORKDIR/tensorboard` shows them. In a bucket they are half a minute behind
    metrics.jsonl; after a kill, the resumed run writes what is missing.
    """

    @override
    def check(self) -> None:
        _load_tensorboardx()

    @override
    def open(self, run: LoggedRun) -> LogWriter:
        kind = _RemoteTensorBoardWriter if is_remote(run.folder) else _TensorBoardWriter
        return kind(run.folder / "tensorboard")


class _TensorBoardWriter(LogWriter):
    """Writes one folder of event files per stage."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._boards: dict[str, Any] = {}

    def _board(self, stage: str, step: int) -> Any:
        if stage not in self._boards:
            # Steps from here on replace those of an interrupted run.
            self._boards[stage] = _load_tensorboardx().SummaryWriter(
                str(self._folder / stage), purge_step=step, filename_suffix=f".{step}"
            )
        return self._boards[stage]

    def _add(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        board = self._board(stage, step)
        for name, value in values.items():
            board.add_scalar(name, value, step)
        board.flush()

    @override
    def scalars(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        self._add(stage, step, values)

    @override
    def pairs(self, pairs: Sequence[LoggedPair]) -> None:
        board = self._board("pairs", 0)
        for index, pair in enumerate(pairs):
            board.add_image(f"pair/{index}", pair.image_HWC, 0, dataformats="HWC")
            # TensorBoard renders text as Markdown; four spaces make it verbatim.
            board.add_text(f"pair/{index}", "    " + pair.caption.replace("\n", "\n    "), 0)
        board.flush()

    @override
    def close(self) -> None:
        for board in self._boards.values():
            board.close()


class _RemoteTensorBoardWriter(_TensorBoardWriter):
    """Writes event files to a folder on this machine, and copies them into the bucket.

    Each file is one object: a bucket allows no appending, and an object may be replaced once a
    second. A kill loses what was not copied, so the next file of a stage begins with its past rows.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(scratch_folder("tensorboard"))
        self._remote, self._copied_s = folder, time.monotonic()

    @override
    def scalars(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        if stage not in self._boards:
            past = read_metrics(self._remote.parent)
            for row in (r for r in past if r["stage"] == stage and r["step"] < step):
                self._add(stage, row.pop("step"), {k: v for k, v in row.items() if k != "stage"})
        self._add(stage, step, values)
        if time.monotonic() - self._copied_s > _COPY_EVERY_S:
            self._copy()

    def _copy(self) -> None:
        upload(self._folder, self._remote)
        self._copied_s = time.monotonic()

    @override
    def pairs(self, pairs: Sequence[LoggedPair]) -> None:
        super().pairs(pairs)
        self._copy()

    @override
    def close(self) -> None:
        super().close()
        self._copy()


@dataclasses.dataclass(frozen=True)
class WandB(Logger):
    """Weights & Biases (extra "wandb").

    The run's id is kept in WORKDIR/wandb_id.txt, so a resumed run continues the same run there. No
    source code, terminal output, host or user name, list of packages or path of this machine is
    sent; of a path in the config, only the last name. wandb's own debug.log does contain paths; it
    stays in WORKDIR/wandb. For a work directory in a bucket, mode must be "online".

    Attributes:
        project: the project that lists the run.
        name: name of the run; "" takes the name of the work directory.
        entity: user or team; "" takes the account's default.
        mode: "offline" writes under WORKDIR/wandb, for `wandb sync --append` later; "online" sends
            metrics during the run and needs `wandb login` or WANDB_API_KEY beforehand.
    """

    project: str = "seva_jax"
    name: str = ""
    entity: str = ""
    mode: Literal["offline", "online"] = "offline"

    @property
    @override
    def needs_local_folder(self) -> bool:
        return self.mode == "offline"

    @override
    def check(self) -> None:
        _load_wandb()

    @override
    def open(self, run: LoggedRun) -> LogWriter:
        wandb = _load_wandb()
        file = run.folder / "wandb_id.txt"
        if not file.exists():
            write_text(file, uuid.uuid4().hex[:12] + "\n")
        folder = run.folder
        if is_remote(folder):  # what stays there of an online run is only wandb's own log
            folder = scratch_folder("wandb")
        try:
            opened = wandb.init(
                project=self.project,
                entity=self.entity or None,
                name=self.name or run.folder.resolve().name,
                id=file.read_text(encoding="utf-8").strip(),
                # Offline, wandb cannot look up the earlier part; the id joins the parts.
                resume="allow" if self.mode == "online" else None,
                dir=str(folder),
                mode=self.mode,
                config={name: _shown(value) for name, value in run.config.items()},
                settings=wandb.Settings(
                    silent=True,
                    console="off",
                    save_code=False,
                    disable_code=True,
                    disable_git=True,
                    host="-",
                    # These would send paths, account and arguments; and names of packages.
                    x_disable_meta=True,
                    x_save_requirements=False,
                ),
            )
        except wandb.Error as error:
            raise DataError(
                f"Weights & Biases does not start: {error}; run `wandb login` once, or set "
                'mode="offline"'
            ) from None
        return _WandBWriter(opened, wandb.Image, run.num_rows)


def _shown(value: Any) -> Any:
    """Shortens the paths in a plain value of a config, which others may see."""
    if isinstance(value, list):
        return [_shown(x) for x in value]
    return short_path(value) if isinstance(value, str) else value


class _WandBWriter(LogWriter):
    """Writes to one run of Weights & Biases; every stage has a step axis of its own."""

    def __init__(self, run: Any, make_image: Any, num_rows: int) -> None:
        self._run, self._make_image = run, make_image
        self._row = num_rows  # wandb's own counter may only grow, also across interruptions
        self._stages: set[str] = set()

    @override
    def scalars(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        if stage not in self._stages:
            self._stages.add(stage)
            self._run.define_metric(f"{stage}/step")
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        row = {f"{stage}/{name}": value for name, value in values.items()}
        self._run.log(row | {f"{stage}/step": step}, step=self._row)
        self._row += 1

    @override
    def pairs(self, pairs: Sequence[LoggedPair]) -> None:
        images = [self._make_image(pair.image_HWC, caption=pair.caption) for pair in pairs]
        self._run.log({"pairs": images}, step=self._row)

    @override
    def close(self) -> None:
        self._run.finish()


@dataclasses.dataclass(frozen=True)
class Trackio(Logger):
    """A dashboard on this machine, without an account: trackio (extra "trackio").

    `trackio show --project NAME` shows it in a browser. trackio keeps the metrics and pictures of
    all runs of a machine in one folder, TRACKIO_DIR or ~/.cache/huggingface/trackio. The name of
    the run there is kept in WORKDIR/trackio_run.txt, so a resumed run continues it, without steps
    that are missing or occur twice. Of a path in the config, only the last name is shown.

    Attributes:
        project: the project that lists the run.
        name: name of the run, to which a few random letters are added; "" takes the name of the
            work directory.
    """

    project: str = "seva_jax"
    name: str = ""

    @override
    def check(self) -> None:
        _load_trackio()
        for variable in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
            if os.environ.get(variable):
                raise DataError(
                    f"loggers: Trackio keeps metrics on this machine, but {variable} is set, which "
                    "would send them elsewhere; unset it (`trackio sync` can publish a finished "
                    "project)"
                )

    @override
    def open(self, run: LoggedRun) -> LogWriter:
        trackio = _load_trackio()
        file = run.folder / "trackio_run.txt"
        if not file.exists():
            name = self.name or run.folder.resolve().name
            write_text(file, f"{name}-{uuid.uuid4().hex[:6]}\n")
        name = file.read_text(encoding="utf-8").strip()
        # The only way to read what a run has logged; here since trackio's first version.
        storage = trackio.sqlite_storage.SQLiteStorage
        try:
            known = storage.get_logs(self.project, name)
            with contextlib.redirect_stdout(io.StringIO()):  # it explains itself at length
                opened = trackio.init(
                    project=self.project,
                    name=name,
                    resume="allow",
                    config={key: _shown(value) for key, value in run.config.items()},
                    embed=False,
                    auto_log_cpu=False,
                    auto_log_gpu=False,
                )
        except (OSError, ValueError) as error:
            raise DataError(f"loggers: trackio does not start: {error}") from None
        writer = _TrackioWriter(opened, trackio, known)
        for row in read_metrics(run.folder):  # a kill may have lost the last ones
            rest = {key: value for key, value in row.items() if key not in ("stage", "step")}
            writer.scalars(row["stage"], row["step"], rest)
        return writer


class _TrackioWriter(LogWriter):
    """Writes to one run of trackio; leaves out what was logged before an interruption.

    Args:
        run: the run.
        trackio: the package.
        known: what has been logged, with "step" and names that begin with a stage.
    """

    def __init__(self, run: Any, trackio: Any, known: Sequence[Mapping[str, Any]]) -> None:
        self._run, self._trackio = run, trackio
        self._known = {(key.partition("/")[0], row["step"]) for row in known for key in row}

    @override
    def scalars(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        if (stage, step) not in self._known:
            self._known.add((stage, step))
            self._run.log({f"{stage}/{name}": value for name, value in values.items()}, step=step)

    @override
    def pairs(self, pairs: Sequence[LoggedPair]) -> None:
        if ("pair", 0) not in self._known:
            self._known.add(("pair", 0))
            images = [self._trackio.Image(x.image_HWC, caption=x.caption) for x in pairs]
            self._run.log({f"pair/{i}": image for i, image in enumerate(images)}, step=0)

    @override
    def close(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self._trackio.finish()  # of the run itself would be repeated, and said, at exit
