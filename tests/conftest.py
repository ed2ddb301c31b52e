"""Sets up eight fake CPU devices and one cache of compiled programs before jax starts; fixtures."""

import atexit
import fcntl
import gc
import os
import re
import shutil
import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path

os.environ["JAX_PLATFORMS"] = os.environ.get("SEVA_JAX_TEST_PLATFORM", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
if version("jaxlib").startswith("0.10."):
    # The older of two code generators for fused loops compiles three times as fast; later versions
    # only have the newer one.
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers inherit the environment
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="seva_jax_programs_")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

# Pin each worker to a core if there are enough workers: two thread pools that share two cores make
# small programs half as slow again.
if hasattr(os, "sched_setaffinity") and "PYTEST_XDIST_WORKER" in os.environ:
    cores = sorted(os.sched_getaffinity(0))
    if int(os.environ["PYTEST_XDIST_WORKER_COUNT"]) >= len(cores):
        number = int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw"))
        os.sched_setaffinity(0, {cores[number % len(cores)]})

import jax
import pytest

# Tests compile many small programs once: compiling less thoroughly halves their time.
jax.config.update("jax_disable_most_optimizations", True)

# A failed assertion in a helper is explained as in a test.
pytest.register_assert_rewrite(*(path.stem for path in Path(__file__).parent.glob("helpers_*.py")))

# Generators of goldens need more packages, and a worker runs in a process of its own.
collect_ignore = ["goldens", "alone_worker.py"]


# Files that take minutes go first, so that no worker is left alone with one at the end. This needs
# --no-loadscope-reorder, because pytest-xdist would start with files of many tests.
_LONG = ("test_signals", "test_processes", "test_signals_two", "test_kills", "test_soak")


def pytest_collection_modifyitems(items):
    """Puts long files first and keeps the order of the others."""

    def place(item):
        name = item.path.stem
        return _LONG.index(name) if name in _LONG else len(_LONG)

    items.sort(key=place)


# Linux lets a process have 65,530 mappings of memory, a compiled program takes several, and one too
# many crashes the process. A few files of tests come to this number.
_MAPPINGS = 20_000


@pytest.fixture(scope="module", autouse=True)
def _few_programs():
    """Frees the compiled programs after a file of tests if the process has many mappings."""
    yield
    mappings = Path("/proc/self/maps")
    if mappings.exists() and mappings.read_text().count("\n") > _MAPPINGS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory):
    """Returns a folder with an undisturbed run of `helpers_run` and its compiled programs.

    It is made once for all processes that test.
    """
    from helpers_run import saved_steps, train

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "whole"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "finished").exists():
            # A checkpoint at every row of metrics.
            with train(folder / "cache", folder / "run", "--train.save-every-s", 1e-3) as run:
                assert run.status(900) == 0, run.output[-3000:]
            # The rows are 2 steps apart, and the two newest checkpoints are kept.
            assert saved_steps(folder / "run", "align") == [22, 24]
            (folder / "finished").touch()
    return folder


@pytest.fixture
def one_device():
    """Limits the meshes of runs to the first device."""
    from helpers_devices import limited_devices

    with limited_devices(1):
        yield


@pytest.fixture
def four_devices():
    """Limits the meshes of runs to the first four devices."""
    from helpers_devices import limited_devices

    with limited_devices(4):
        yield


@pytest.fixture(scope="session")
def tiny_pictures(tmp_path_factory):
    """Returns the folder of the TFDS data set that `helpers_formats.prepare_pictures` makes."""
    from helpers_formats import prepare_pictures

    return prepare_pictures(tmp_path_factory.mktemp("tfds"))


@pytest.fixture(scope="module")
def fuzz_folder(tmp_path_factory):
    """Returns a folder for files that has one image."""
    from helpers_fuzz import picture

    found = tmp_path_factory.mktemp("fuzz")
    (found / "a.png").write_bytes(picture())
    return found


_names = Counter()


@pytest.fixture(scope="session")
def emulator_url():
    """Returns the address of an emulator of Cloud Storage, one for each process that tests."""
    from helpers_gcs import emulator

    with emulator() as url:
        yield url


def _bucket(url, monkeypatch, request):
    from helpers_gcs import BUCKET, environment, forget_clients

    from seva_jax.runtime.copies import STAGED
    from seva_jax.runtime.stores import as_path

    monkeypatch.setenv(STAGED, str(request.getfixturevalue("tmp_path") / "staged"))
    for name, value in environment(url).items():
        monkeypatch.setenv(name, value)
    name = re.sub(r"\W+", "_", request.node.name).strip("_")
    _names[name] += 1  # files of tests may share names
    forget_clients()
    yield as_path(f"gs://{BUCKET}/{name}-{_names[name]}")
    forget_clients()


@pytest.fixture
def bucket(emulator_url, monkeypatch, request):
    """Returns an empty folder in a bucket of the emulator; also for commands that a test starts.

    Copies of its objects are kept in the folder `staged` of the test's own folder.
    """
    yield from _bucket(emulator_url, monkeypatch, request)


@pytest.fixture
def proxy(emulator_url):
    """Returns a proxy in front of the emulator, which makes faults (`helpers_proxy.py`)."""
    from helpers_proxy import fault_proxy

    with fault_proxy(emulator_url) as proxy:
        yield proxy


@pytest.fixture
def proxied(proxy, monkeypatch, request):
    """Returns an empty folder in a bucket that all clients reach through `proxy`."""
    yield from _bucket(proxy.url, monkeypatch, request)
