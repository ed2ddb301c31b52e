"""A base model that an earlier run made: which run, and what of it must fit."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

from seva_jax.config.base_models import Assets, BaseModel
from seva_jax.config.config_files import read_config
from seva_jax.config.experiment import Experiment
from seva_jax.config.source import fingerprint
from seva_jax.ranges import NO_EFFECT
from seva_jax.runtime.run_records import read_stages
from seva_jax.types import DataError


@dataclasses.dataclass(frozen=True)
class PriorRun(BaseModel):
    """The aligned model of a finished run, which may itself have started from another one.

    The work directories of all of them, and the checkpoint that the first one started from, have
    to stay where they are.

    Attributes:
        workdir: that run's.
        merge: add its adapters to the weights, so that the aligned model becomes the reference
            and adapters start anew. Otherwise the reference stays that of the earlier run, and
            adapters and other trained parts go on from where they were; the optimiser starts anew.
    """

    workdir: Annotated[str, NO_EFFECT] = ""
    merge: bool = True

    def assets(self) -> Assets:
        """See `BaseModel.assets`."""
        return self.earlier().base.assets()

    def earlier(self) -> Experiment:
        """The config of the earlier run, which need not have finished.

        Raises:
            DataError: there is no such run.
        """
        path = Path(self.workdir)
        if not self.workdir or not (path / "config.py").is_file():
            raise DataError(
                f"base.workdir {self.workdir!r} is not the work directory of a run (it has no "
                "config.py); run seva_jax.train there first"
            )
        return dataclasses.replace(read_config(path / "config.py"), workdir=self.workdir)

    def aligned(self) -> str:
        """Fingerprint of the model that the earlier run ended with.

        Raises:
            DataError: it has not ended.
        """
        done = read_stages(Path(self.workdir)).get("align")
        if done is None:
            raise DataError(
                f"{self.workdir}: its alignment is not finished, and this run starts from its "
                "result; run it to its end first"
            )
        return done["fingerprint"]


def base_fingerprint(experiment: Experiment) -> str:
    """Fingerprint of what a run starts from; of an earlier run, not where it lies."""
    base, rest = experiment.base, (experiment.seed, experiment.compute)
    if isinstance(base, PriorRun):
        return fingerprint(base.merge, base.aligned(), *rest)
    return fingerprint(base, *rest)


def answers_of_base(experiment: Experiment) -> Path | None:
    """Where a run finds what its base answered to evaluations before, as the earlier run's result.

    Args:
        experiment: the run. None is found unless the earlier run asked in the same way.
    """
    e, base = experiment, experiment.base
    if not isinstance(base, PriorRun):
        return None
    earlier, path = base.earlier(), Path(base.workdir)
    same = (e.compute, e.text.generate, e.text.max_length, e.rollout.cache) == (
        earlier.compute, earlier.text.generate, earlier.text.max_length, earlier.rollout.cache
    )  # fmt: skip
    return path / "evals" / "aligned" if same and "evaluate aligned" in read_stages(path) else None


def problems(experiment: Experiment, earlier: Experiment) -> list[str]:
    """What keeps a run from going on from another one.

    Args:
        experiment: its base is a `PriorRun`.
        earlier: the run named there.
    """
    e, base, found = experiment, experiment.base, []
    assert isinstance(base, PriorRun)
    weights = {e.compute.base_weights, earlier.compute.base_weights}
    if base.merge and weights != {"float"}:
        found.append(
            "the adapters of the run before cannot be merged into quantised weights, whose steps "
            "are larger than what adapters change; set compute.base_weights to float in both "
            "runs, or let the adapters go on (base.merge False, or refresh False of a stage)"
        )
    if base.merge:
        return found
    if missing := sorted(set(earlier.train.trained) - set(e.train.trained)):
        found.append(
            f"train.trained lacks {', '.join(missing)}, which the run before trained and which "
            "would have to go on from there; add it, or set base.merge (refresh of a stage)"
        )
    if "lora" in earlier.train.trained and e.lora != earlier.lora:
        found.append(
            f"lora is {e.lora}, but the adapters that go on are {earlier.lora}; make them equal, "
            "or set base.merge (refresh of a stage)"
        )
    if len(weights) > 1 or e.compute.param_dtype != earlier.compute.param_dtype:
        found.append(
            "compute.param_dtype and compute.base_weights must be those of the run before, whose "
            "reference stays; or set base.merge (refresh of a stage)"
        )
    return found
