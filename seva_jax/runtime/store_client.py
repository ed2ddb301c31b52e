"""The client of an object store: its settings, and what its errors mean.

What does not live here: paths (`stores.py`).

After failures of the network, 429 and 5xx a request is sent again with back-off, up to six times
within half a minute. These are numbers of gcsfs; a download may take minutes, and tensorstore,
which reads and writes arrays, a quarter of an hour. Then, and for everything else but a missing
object, there is one line (`StoreError`). Credentials are the ambient ones: those of `gcloud auth
application-default login`, or the service account of a VM or pod.
"""

from __future__ import annotations

import functools
import logging
import os
from typing import Any

from seva_jax.types import DataError

_SILENCE_S = 60  # without a byte of an answer, before a request is tried again
# Names of errors of aiohttp, requests, google.auth and Python, which are not all installed.
_UNREACHABLE = {"ClientError", "RequestException", "TransportError", "TimeoutError"}


class StoreError(Exception):
    """A store that does not do what it was asked, after retries. Ends the command with its line.

    Neither an `OSError` nor a `ValueError`: readers take those for broken files.
    """


@functools.lru_cache
def filesystem(scheme: str) -> Any:
    """Returns the fsspec file system of a scheme.

    Raises:
        DataError: its package is not installed.
        StoreError: it cannot be used, for example for lack of credentials.
    """
    # Otherwise gcsfs asks for the kind of bucket through gRPC, which takes a minute to fail where
    # only HTTP is let through.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # what it logs is raised as well
    try:
        import fsspec.config

        # A listing must show what other processes have written meanwhile.
        settings: dict[str, Any] = {"use_listings_cache": False}
        if scheme == "gs":
            import aiohttp

            # gcsfs sets no limit of its own, not even aiohttp's.
            settings["requests_timeout"] = aiohttp.ClientTimeout(
                total=None, sock_connect=_SILENCE_S, sock_read=_SILENCE_S
            )
            if not os.environ.get("STORAGE_EMULATOR_HOST"):
                # Neither tokens that an earlier login in a browser left, nor none.
                settings["token"] = "google_default"
        # Orbax finds them, too, under the second of the names.
        for name in {scheme, "gcs"} if scheme == "gs" else {scheme}:
            for option, value in settings.items():
                fsspec.config.conf.setdefault(name, {}).setdefault(option, value)
        return fsspec.filesystem(scheme)
    except ImportError as error:
        how = "pip install 'seva_jax[gcs]'" if scheme == "gs" else str(error)
        raise DataError(f"{scheme}:// needs another package: {how}") from error
    except Exception as error:
        raise StoreError(f"{scheme}://: {reason_of(error, scheme)}") from error


def has_project() -> bool:
    """Returns whether the client that Orbax uses finds the project that it wants to know."""
    from google.cloud import storage

    try:
        storage.Client()
    except OSError as error:
        if "Project was not passed" not in str(error):
            raise
        return False
    return True


def reason_of(error: Exception, url: str) -> str:
    """Returns what went wrong and what to do, in one line."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    text = " ".join((str(error) or type(error).__name__).split())[:300]
    code = str(getattr(error, "code", "") or getattr(error, "status", "") or "")
    bucket = url.partition("://")[2].partition("/")[0]
    if code == "401" or kinds & {"DefaultCredentialsError", "RefreshError"}:
        return (
            f"no valid credentials ({text}); run `gcloud auth application-default login`, or give "
            "the machine a service account"
        )
    if "Forbidden" in text or code == "403":
        return (
            f"these credentials may not do this in bucket {bucket} ({text}); give their account "
            "the roles Storage Object User and Storage Legacy Bucket Reader there, and check the "
            "name and the project of the bucket"
        )
    if code in ("408", "429") or code.startswith("5") or kinds & _UNREACHABLE:
        return f"the store does not answer after several attempts ({text}); run it again later"
    return f"{type(error).__name__}: {text}"
