"""Lines of libraries that tell a user of this package nothing, kept out of the terminal.

What lives here: which lines these are, and for each library the way that it offers to leave them
out. What does not: lines that may matter, such as errors, and warnings about the machine: they
stay.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from jax._src import hardware_utils  # by what JAX itself decides whether this host has TPUs
from typing_extensions import override

# Environment variables of libraries and of processes that they start. A user's own value stays.
_VARIABLES = {
    "GRPC_VERBOSITY": "ERROR",  # no notes about forks and proxies
    "TF_CPP_MIN_LOG_LEVEL": "1",  # no notes of TensorFlow about oneDNN; warnings stay
    # Python's own process that frees what Grain's processes shared says that it does.
    "PYTHONWARNINGS": "ignore:resource_tracker:UserWarning",
}
# Without a TPU, libtpu says in five lines that it cannot find out which one it is.
_WITHOUT_TPU = {"TPU_ACCELERATOR_TYPE": "v5litepod-4", "TPU_WORKER_HOSTNAMES": "localhost"}

# How messages begin, by the name of the logger.
_MESSAGES = {
    # Orbax, of every checkpoint: those of this package need no such file. tokamax, of every shape:
    # its block sizes are a rule's, not timed ones.
    "absl": ("Metadata file does not exist", "Autotuning cache miss"),
    # A store that cannot be reached without credentials says so itself.
    "google.auth._default": ("Authentication failed using Compute Engine",),
    # Only tokenizers and configs of transformers are used, which need no PyTorch.
    "transformers": ("PyTorch was not found", "None of PyTorch"),
}


class _Without(logging.Filter):
    """Leaves out messages by how they begin."""

    def __init__(self, beginnings: Sequence[str]) -> None:
        super().__init__()
        self._beginnings = tuple(beginnings)

    @override
    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(self._beginnings)


def quiet_libraries() -> None:
    """Leaves out the lines. Must be called before JAX is asked for a device; repeats do nothing."""
    chips, _ = hardware_utils.num_available_tpu_chips_and_device_id()
    for name, value in (_VARIABLES | (_WITHOUT_TPU if not chips else {})).items():
        os.environ.setdefault(name, value)
    import absl.logging  # noqa: F401, gives its logger a class of its own

    for name, beginnings in _MESSAGES.items():
        logger = logging.getLogger(name)
        if not any(isinstance(each, _Without) for each in logger.filters):
            logger.addFilter(_Without(beginnings))
