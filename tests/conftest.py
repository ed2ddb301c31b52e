"""Eight fake CPU devices for every test, set before jax starts."""

import os

os.environ["JAX_PLATFORMS"] = os.environ.get("SEVA_JAX_TEST_PLATFORM", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ["HF_HUB_OFFLINE"] = "1"

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

# Tests compile many small programs once: compiling less thoroughly halves their time.
jax.config.update("jax_disable_most_optimizations", True)

# Generators of goldens, which need more than the tests do, and what runs in a process of its own.
collect_ignore = ["goldens", "alone_worker.py"]


@pytest.fixture(scope="session")
def tiny_pictures(tmp_path_factory):
    """Where the TFDS data set `pictures` lies: see `helpers_formats.prepare_pictures`."""
    from helpers_formats import prepare_pictures

    return prepare_pictures(tmp_path_factory.mktemp("tfds"))


@pytest.fixture(scope="module")
def fuzz_folder(tmp_path_factory):
    """Where files are written, with one image."""
    from helpers_fuzz import picture

    found = tmp_path_factory.mktemp("fuzz")
    (found / "a.png").write_bytes(picture())
    return found


@pytest.fixture(scope="module")
def shared_programs(tmp_path_factory):
    """Programs that several runs of a module need are compiled once."""
    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
