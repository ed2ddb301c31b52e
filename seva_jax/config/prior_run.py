"""A base model that an earlier run made, and what the two runs must have in common."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

from typing_extensions import override

from seva_jax.config.base_models import Assets, BaseModel
from seva_jax.config.config_files import read_config
from seva_jax.config.experiment import Experiment
from seva_jax.config.source import fingerprint
from seva_jax.models import LoraConfig
from seva_jax.ranges import NO_EFFECT
from seva_jax.runtime.run_records import read_stages
from seva_jax.runtime.stores import as_path
from seva_jax.types import DataError


@dataclasses.dataclass(frozen=True)
class PriorRun(BaseModel):
    """The aligned model of a finished run, which may itself have started from another one.

    The work directories of all these runs, and the checkpoint that the first one started from, must
    stay where they are.

    Attributes:
        workdir: work directory of the earlier run.
        merge: add its adapters to the weights, so that the aligned model becomes the reference
            and new adapters are trained. Otherwise the reference stays that of the earlier run, and
            training of its adapters and other trained parts continues, with a new optimiser state.
    """

    workdir: Annotated[str, NO_EFFECT] = ""
    merge: bool = True

    @override
    def assets(self) -> Assets:
        return self.earlier().base.assets()

    @override
    def lora(self, wanted: LoraConfig) -> LoraConfig:
        return wanted if self.merge else self.earlier().base.lora(wanted)

    def earlier(self) -> Experiment:
        """Returns the config of the earlier run, which need not have finished.

        Raises:
            DataError: there is no such run.
        """
        path = as_path(self.workdir)
        if not self.workdir or not (path / "config.py").is_file():
            raise DataError(
                f"base.workdir {self.workdir!r} is not the work directory of a run (it has no "
                "config.py); run seva_jax.train there first"
            )
        return dataclasses.replace(read_config(path / "config.py"), workdir=self.workdir)

    def aligned(self) -> str:
        """Returns the fingerprint of the model that the earlier run aligned.

        Raises:
            DataError: its alignment has not finished.
        """
        align = read_stages(as_path(self.workdir)).get("align")
        if align is None:
            raise DataError(
                f"{self.workdir}: its alignment is not finished, and this run starts from its "
                "result; finish it first"
            )
        return align["fingerprint"]


def base_fingerprint(experiment: Experiment) -> str:
    """Returns the fingerprint of a run's base model; where an earlier run is does not matter."""
    base, rest = experiment.base, (experiment.seed, experiment.compute)
    if isinstance(base, PriorRun):
        return fingerprint(base.merge, base.aligned(), *rest)
    return fingerprint(base, *rest)


def prior_answers(experiment: Experiment) -> Path | None:
    """Returns the directory of the earlier run's answers to evaluations, which are this base's.

    None if there are none, or if the earlier run evaluated with other settings.
    """
    base = experiment.base
    if not isinstance(base, PriorRun):
        return None
    path = as_path(base.workdir)
    same = _answer_settings(experiment) == _answer_settings(base.earlier())
    return path / "evals" / "aligned" if same and "evaluate aligned" in read_stages(path) else None


def _answer_settings(config: Experiment) -> str:
    text = config.text
    return fingerprint(config.compute, text.generate, text.max_length, config.rollout.cache)


def continuation_problems(experiment: Experiment, earlier: Experiment) -> list[str]:
    """Returns the problems that keep a run from starting from the model of another one.

    Args:
        experiment: a run whose base is a `PriorRun`.
        earlier: the config of the run named there.
    """
    base, compute = experiment.base, experiment.compute
    assert isinstance(base, PriorRun)
    weights = {compute.base_weights, earlier.compute.base_weights}
    if base.merge:
        if weights == {"float"}:
            return []
        return [
            "the adapters of the run before cannot be merged into quantised weights, whose steps "
            "are larger than what adapters change; set compute.base_weights to float in both "
            "runs, or continue with the adapters (base.merge False, or refresh False of a round)"
        ]
    problems: list[str] = []
    if missing := sorted(set(earlier.train.trained) - set(experiment.train.trained)):
        problems.append(
            f"train.trained lacks {', '.join(missing)}, which the run before trained and which "
            "this run would have to continue; add it, or set base.merge (refresh of a round)"
        )
    if "lora" in earlier.train.trained and experiment.lora.finished != earlier.lora.finished:
        problems.append(
            f"lora is {experiment.lora}, but the adapters of the run before are {earlier.lora}; "
            "make them equal, or set base.merge (refresh of a round)"
        )
    if len(weights) > 1 or compute.param_dtype != earlier.compute.param_dtype:
        problems.append(
            "compute.param_dtype and compute.base_weights must be those of the run before, whose "
            "reference stays; or set base.merge (refresh of a round)"
        )
    return problems
