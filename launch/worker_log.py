"""Which worker of a run this machine is, and the copy of its log in the work directory.

What lives here: `worker_name` and `KeptLog`, which `worker.py` uses.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent
UPLOAD_S = 30.0  # at most one write to an object store in this time
PART = 2**20  # bytes after which the next part of a log in an object store begins
LAST_S = 60.0  # for the last write, after the trainer has ended


def worker_name() -> str:
    """Returns the worker's number, with several slices that of the slice first: "3" or "1-3"."""
    worker = os.environ.get("TPU_WORKER_ID")
    slices = os.environ.get("MEGASCALE_NUM_SLICES")
    number = os.environ.get("MEGASCALE_SLICE_ID")
    if worker is None:
        worker = _metadata("agent-worker-number")
        if worker and slices is None:
            # Lines such as MEGASCALE_NUM_SLICES: '2'
            lines = [line.partition(":") for line in _metadata("tpu-env").splitlines()]
            tpu = {key.strip(): value.strip().strip("'") for key, _, value in lines}
            slices, number = tpu.get("MEGASCALE_NUM_SLICES"), tpu.get("MEGASCALE_SLICE_ID")
    worker = (worker or "0").strip()
    return f"{number or '0'}-{worker}" if slices and slices != "1" else worker


def _metadata(key: str) -> str:
    """Returns an attribute of this Compute Engine machine, or "" elsewhere."""
    host = os.environ.get("GCE_METADATA_HOST", "metadata.google.internal")
    url = f"http://{host}/computeMetadata/v1/instance/attributes/{key}"
    request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    for _ in range(4):
        try:
            with urllib.request.urlopen(request, timeout=2) as answer:
                return answer.read().decode()
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return ""
        except urllib.error.URLError as error:
            if isinstance(error.reason, socket.gaierror):
                return ""
        except OSError:
            pass
        time.sleep(0.5)
    return ""


def is_first(name: str) -> bool:
    """Returns whether a worker runs process 0."""
    return name in ("0", "0-0")


class KeptLog:
    """Copies a growing local log to WORKDIR/logs/worker-N.log, in a thread."""

    def __init__(self, log: Path, workdir: str, name: str) -> None:
        self._log, self._workdir, self._name = log, workdir, name
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._copy, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Writes the rest; gives up after a minute."""
        self._over.set()
        self._thread.join(LAST_S)

    def _copy(self) -> None:
        if not self._workdir:
            return
        try:
            if "://" in self._workdir:
                self._copy_to_store()
            else:
                self._copy_to_disk(Path(self._workdir))
        except Exception as error:
            self._report(error)

    def _report(self, error: Exception) -> None:
        text = f"worker.py: this log cannot be kept in {self._workdir} for now ({error})\n"
        sys.stderr.write(text)
        with contextlib.suppress(OSError), self._log.open("ab") as log:
            log.write(text.encode())

    def _new(self, at: int) -> bytes:
        with self._log.open("rb") as log:
            log.seek(at)
            return log.read()

    def _copy_to_disk(self, workdir: Path) -> None:
        target = CHECKOUT / workdir / "logs" / f"worker-{self._name}.log"
        at, over, reported = 0, False, False
        while not over:
            over = self._over.wait(1.0)
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("ab", buffering=0) as kept:
                    at += kept.write(self._new(at))
            except OSError as error:  # a full disk may have room again
                if not reported:
                    self._report(error)
                reported = True

    def _copy_to_store(self) -> None:
        """Writes the last part again whenever it has grown: an object cannot be appended to."""
        sys.path.insert(0, str(CHECKOUT))
        from seva_jax.runtime.store_client import StoreError
        from seva_jax.runtime.stores import as_path

        folder: Any = as_path(self._workdir) / "logs" / f"worker-{self._name}.log"
        part, begin, written = -1, 0, 0
        over, reported = False, False
        while not over:
            over = self._over.wait(UPLOAD_S)
            new = self._new(begin)
            if len(new) == written:
                continue
            try:
                if part < 0:  # lines of earlier starts are kept
                    part = max((int(x[:6]) for x in folder.below() if x[:6].isdigit()), default=-1)
                    part += 1
                (folder / f"{part:06}.log").write_bytes(new)
            except (StoreError, OSError) as error:  # the store may be reachable again next time
                if not reported:
                    self._report(error)
                reported = True
                continue
            written = len(new)
            if len(new) >= PART:
                part, begin, written = part + 1, begin + len(new), 0
