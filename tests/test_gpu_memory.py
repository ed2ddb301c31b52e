"""XLA's share of a GPU's memory, set before JAX looks for devices unless the user decides."""

import os

import pytest
from jaxlib.xla_client import generate_pjrt_gpu_plugin_options

from seva_jax.runtime import processes


@pytest.fixture
def environment(monkeypatch):
    """Returns an environment of the test's own, without any of the variables."""
    names = processes._MEMORY_VARIABLES
    own = {name: value for name, value in os.environ.items() if name not in names}
    monkeypatch.setattr(os, "environ", own)
    monkeypatch.setattr(os, "getenv", own.get)
    return own


def test_a_command_takes_92_percent(environment):
    """It is what JAX gives its client for GPUs, also in processes that the command starts."""
    assert "memory_fraction" not in generate_pjrt_gpu_plugin_options()
    for _ in range(2):  # as in a command that joins other processes
        with processes.one_line_errors():
            assert generate_pjrt_gpu_plugin_options()["memory_fraction"] == 0.92


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("XLA_CLIENT_MEM_FRACTION", "0.5"),
        ("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5"),
        ("XLA_PYTHON_CLIENT_PREALLOCATE", "false"),
        ("XLA_PYTHON_CLIENT_ALLOCATOR", "platform"),
    ],
)
def test_the_user_decides(environment, name, value):
    environment[name] = value
    asked = generate_pjrt_gpu_plugin_options()
    processes.set_gpu_memory_share()
    assert generate_pjrt_gpu_plugin_options() == asked
