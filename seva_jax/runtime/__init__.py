"""What a run needs of the machine and its processes; knows no model.

What lives here: processes and signals, files that survive a kill, journals, progress, loggers.
What does not: what a run does (`seva_jax/run`). Read next: `files.py`, then `journal.py`.
"""

from seva_jax.runtime.loggers import (
    LoggedPair,
    LoggedRun,
    Logger,
    LogWriter,
    TensorBoard,
    Trackio,
    WandB,
)
from seva_jax.runtime.processes import ProcessOptions
