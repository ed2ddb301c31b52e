"""What a run is: every setting of it, config files and the command line.

What lives here: `Experiment` and its sections, where the model to align comes from, and curricula
of several runs. What does not: running them (`seva_jax/run`). Read next: `experiment.py`.
"""

from seva_jax.config.base_models import Assets, BaseModel, Checkpoint, TrainedBase
from seva_jax.config.command_line import load_experiment, load_experiments
from seva_jax.config.config_files import (
    config_directory,
    config_module,
    files_in,
    read_config,
    read_configs,
    read_suites,
)
from seva_jax.config.experiment import Curriculum, Evaluation, Experiment, Once, check
from seva_jax.config.options import (
    ComputeOptions,
    ReportOptions,
    RolloutOptions,
    TextOptions,
    make_model,
)
from seva_jax.config.prior_run import PriorRun
from seva_jax.config.rounds import Iterations, Round, Rounds, runs_of
from seva_jax.config.source import fingerprint, flatten, to_source, without_effect
from seva_jax.training.options import TrainOptions

__all__ = [
    "Assets",
    "BaseModel",
    "Checkpoint",
    "ComputeOptions",
    "Curriculum",
    "Evaluation",
    "Experiment",
    "Iterations",
    "Once",
    "PriorRun",
    "ReportOptions",
    "RolloutOptions",
    "Round",
    "Rounds",
    "TextOptions",
    "TrainOptions",
    "TrainedBase",
    "check",
    "config_directory",
    "config_module",
    "files_in",
    "fingerprint",
    "flatten",
    "load_experiment",
    "load_experiments",
    "make_model",
    "read_config",
    "read_configs",
    "read_suites",
    "runs_of",
    "to_source",
    "without_effect",
]
