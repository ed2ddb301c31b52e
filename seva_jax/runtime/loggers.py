"""Where else a run's metrics go, beside metrics.jsonl: TensorBoard, Weights & Biases.

What lives here: `Logger` (the extension point), `LogWriter`, `TensorBoard`, `WandB`. What does
not: `metrics.jsonl`, which is always written (`workdir.py`), and choosing the pairs to show
(`results.py`). Both packages are optional and imported only when a config asks for them.

Shape suffixes: H image height, W image width, C = 3 colour channels.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

import numpy as np

from seva_jax.runtime.paths import short_path
from seva_jax.types import DataError


class LoggedRun(NamedTuple):
    """The run that is logged.

    Attributes:
        folder: its work directory.
        config: dotted field names and plain values.
        num_rows: rows its metrics.jsonl has already; grows whenever the run goes on.
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
    """Receives what a run logs, on process 0 only."""

    def scalars(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Takes one row of metrics.

        A run that was killed goes on at its last checkpoint and sends the steps after that again,
        with the same values.

        Args:
            stage: "base" or "align".
            step: optimiser step of the stage.
            values: the numbers by name.
        """
        raise NotImplementedError(f"{type(self).__name__} must define scalars")

    def pairs(self, pairs: Sequence[LoggedPair]) -> None:
        """Takes a few pairs, once, before alignment starts."""
        raise NotImplementedError(f"{type(self).__name__} must define pairs")

    def close(self) -> None:
        """Writes what is left; nothing follows."""
        raise NotImplementedError(f"{type(self).__name__} must define close")


@dataclasses.dataclass(frozen=True)
class Logger:
    """Base class of loggers; a config lists them: `loggers=(TensorBoard(),)`."""

    def check(self) -> None:
        """Finds what would fail later, before the run starts.

        Raises:
            DataError: a package is missing; names the extra that brings it.
        """

    def open(self, run: LoggedRun) -> LogWriter:
        """Starts logging, or goes on where an interrupted run stopped.

        Raises:
            DataError: it cannot be started; says what to do.
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


@dataclasses.dataclass(frozen=True)
class TensorBoard(Logger):
    """Event files under WORKDIR/tensorboard, written without TensorFlow (extra "tensorboard").

    `tensorboard --logdir WORKDIR/tensorboard` shows them.
    """

    def check(self) -> None:
        """See `Logger.check`."""
        _load_tensorboardx()

    def open(self, run: LoggedRun) -> LogWriter:
        """See `Logger.open`."""
        return _TensorBoardWriter(run.folder / "tensorboard")


class _TensorBoardWriter(LogWriter):
    """One folder of event files for each stage."""

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

    def scalars(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """See `LogWriter.scalars`."""
        board = self._board(stage, step)
        for name, value in values.items():
            board.add_scalar(name, value, step)
        board.flush()

    def pairs(self, pairs: Sequence[LoggedPair]) -> None:
        """See `LogWriter.pairs`."""
        board = self._board("pairs", 0)
        for index, pair in enumerate(pairs):
            board.add_image(f"pair/{index}", pair.image_HWC, 0, dataformats="HWC")
            # TensorBoard reads texts as Markdown, in which four blanks keep them as they are.
            board.add_text(f"pair/{index}", "    " + pair.caption.replace("\n", "\n    "), 0)
        board.flush()

    def close(self) -> None:
        """See `LogWriter.close`."""
        for board in self._boards.values():
            board.close()


@dataclasses.dataclass(frozen=True)
class WandB(Logger):
    """Weights & Biases (extra "wandb").

    The run's id is kept in WORKDIR/wandb_id.txt, so a run that is started again goes on as the
    same run there. No source code, terminal output, host or user name, list of packages or path of
    this machine is sent; of paths in the config, the last name. Its own debug.log, which stays in
    WORKDIR/wandb, has paths.

    Attributes:
        project: where the run is listed.
        name: of the run; "" takes the name of the work directory.
        entity: user or team; "" takes the account's own.
        mode: "offline" writes under WORKDIR/wandb, for `wandb sync --append` later; "online" sends
            as the run goes and needs `wandb login` or WANDB_API_KEY before.
    """

    project: str = "seva_jax"
    name: str = ""
    entity: str = ""
    mode: Literal["offline", "online"] = "offline"

    def check(self) -> None:
        """See `Logger.check`."""
        _load_wandb()

    def open(self, run: LoggedRun) -> LogWriter:
        """See `Logger.open`."""
        wandb = _load_wandb()
        file = run.folder / "wandb_id.txt"
        if not file.exists():
            file.write_text(uuid.uuid4().hex[:12] + "\n", encoding="utf-8")
        try:
            opened = wandb.init(
                project=self.project,
                entity=self.entity or None,
                name=self.name or run.folder.resolve().name,
                id=file.read_text(encoding="utf-8").strip(),
                # Offline there is nobody to ask for the earlier part; the id joins the parts.
                resume="allow" if self.mode == "online" else None,
                dir=str(run.folder),
                mode=self.mode,
                config={name: _shown(value) for name, value in run.config.items()},
                settings=wandb.Settings(
                    silent=True,
                    console="off",
                    save_code=False,
                    disable_code=True,
                    disable_git=True,
                    host="-",
                    # Paths of script and Python, account and arguments; names of packages.
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
    """A plain value of a config as others may see it."""
    if isinstance(value, list):
        return [_shown(x) for x in value]
    return short_path(value) if isinstance(value, str) else value


class _WandBWriter(LogWriter):
    """One run of Weights & Biases; every stage has an axis of its own."""

    def __init__(self, run: Any, make_image: Any, num_rows: int) -> None:
        self._run, self._make_image = run, make_image
        self._row = num_rows  # its own counter may only grow, also over interruptions
        self._stages: set[str] = set()

    def scalars(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """See `LogWriter.scalars`."""
        if stage not in self._stages:
            self._stages.add(stage)
            self._run.define_metric(f"{stage}/step")
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        row = {f"{stage}/{name}": value for name, value in values.items()}
        self._run.log(row | {f"{stage}/step": step}, step=self._row)
        self._row += 1

    def pairs(self, pairs: Sequence[LoggedPair]) -> None:
        """See `LogWriter.pairs`."""
        images = [self._make_image(pair.image_HWC, caption=pair.caption) for pair in pairs]
        self._run.log({"pairs": images}, step=self._row)

    def close(self) -> None:
        """See `LogWriter.close`."""
        self._run.finish()
