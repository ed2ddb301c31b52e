"""Configs: every setting of a run, config files and the command line.

What lives here: `Experiment` and its sections, where the model to align comes from, and curricula
of several runs. What does not: running them (`seva_jax/train.py`). Read next: `experiment.py`.
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
from seva_jax.config.evaluated import evaluation_config
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
from seva_jax.config.smoke import ReducedBase, SmokePairs, SmokePrompts, SmokeSuite
from seva_jax.config.source import (
    differing_fields,
    fingerprint,
    flatten,
    is_within,
    public_name,
    suite_source,
    to_source,
    with_defaults,
    with_effect,
    without_effect,
)
from seva_jax.training.options import TrainOptions
