"""A proxy in front of the emulator of Cloud Storage that makes it slow, overloaded or unreachable.

What lives here: the proxy. What does not: the emulator and the environment by which the clients of
the store find either one (`helpers_gcs.py`).
"""

import contextlib
import http.client
import http.server
import json
import random
import re
import socket
import threading
import time
import urllib.parse
from typing import NamedTuple

# Faults beside statuses such as 429: the connection ends before the request is forwarded; after
# half of the answer; or instead of the answer, when the request has been carried out.
CUT, HALF, LOST = "cut", "half", "lost"
_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}


class Seen(NamedTuple):
    """A request that came to the proxy.

    Attributes:
        method: of HTTP.
        path: with the query, unquoted.
        sent: bytes of the request's body.
        received: bytes of the answer's body; 0 if none was sent.
        fault: what the proxy did to it, or None.
    """

    method: str
    path: str
    sent: int
    received: int
    fault: int | str | None


class FaultProxy:
    """Forwards requests unchanged, apart from the faults that it is told to make.

    Attributes:
        url: its address.
        seen: all requests so far.
        delay_s: what every request waits for.
    """

    def __init__(self, target):
        self.url, self.seen, self.delay_s = "", [], 0.0
        self.target = target
        self.lock = threading.Lock()
        self._faults, self._draw, self._share = [], None, 0.0

    def inject(self, fault, times=1, match=""):
        """Makes the next requests fail.

        Args:
            fault: a status, `CUT`, `HALF` or `LOST`.
            times: how many of them.
            match: a regular expression, found in "METHOD path?query" of those that are meant.
        """
        with self.lock:
            self._faults.append([fault, times, re.compile(match)])

    def disturb(self, seed, share, faults=(429, 503, CUT, HALF)):
        """Makes a share of all requests fail, from now on, in ways that are drawn."""
        self._draw, self._share, self._kinds = random.Random(seed), share, faults

    def count(self, match=""):
        """Returns how many requests matched a regular expression, as for `inject`."""
        return sum(bool(re.search(match, f"{x.method} {x.path}")) for x in list(self.seen))

    def choose(self, request):
        """Returns the fault for a request, or None."""
        with self.lock:
            for fault in self._faults:
                if fault[1] and fault[2].search(request):
                    fault[1] -= 1
                    return fault[0]
            if self._draw and self._draw.random() < self._share:
                return self._draw.choice(self._kinds)
            return None


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    proxy: FaultProxy

    def setup(self):
        super().setup()
        host = urllib.parse.urlsplit(self.proxy.target).netloc
        self.behind = http.client.HTTPConnection(host, timeout=60)

    def finish(self):
        self.behind.close()
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, *_):
        pass

    def _body(self):
        if self.headers.get("Transfer-Encoding", "") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _ask(self, body):
        self.behind.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in _HOP:
                self.behind.putheader(name, value)
        self.behind.putheader("Content-Length", str(len(body)))
        self.behind.endheaders(body)
        answer = self.behind.getresponse()
        return answer, answer.read()

    def _answer(self, status, headers, body, half=False):
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() == "location":  # of a resumable upload, whose parts come here as well
                value = value.replace(self.proxy.target, self.proxy.url)
            if name.lower() not in _HOP:
                self.send_header(name, value)
        if self.command == "HEAD":
            length = dict((k.lower(), v) for k, v in headers).get("content-length", "0")
        else:
            length = str(len(body))
        if status not in (204, 304):
            self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if half else body)

    def _hang_up(self):
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def do_GET(self):
        with contextlib.suppress(ConnectionError):  # the client was killed
            self._forward()

    do_POST = do_PUT = do_DELETE = do_HEAD = do_PATCH = do_GET

    def _forward(self):
        body = self._body()
        path = urllib.parse.unquote(self.path)
        fault = self.proxy.choose(f"{self.command} {path}")
        time.sleep(self.proxy.delay_s)
        size = 0
        if isinstance(fault, int):
            error = {"error": {"code": fault, "message": f"made up by the proxy: {fault}"}}
            self._answer(fault, [("Content-Type", "application/json")], json.dumps(error).encode())
        elif fault == CUT:
            self._hang_up()
        else:
            answer, data = self._ask(body)
            if fault != LOST:
                size = len(data)
                self._answer(answer.status, answer.getheaders(), data, half=fault == HALF)
            if fault:
                self._hang_up()
        self.proxy.seen.append(Seen(self.command, path, len(body), size, fault))


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


@contextlib.contextmanager
def fault_proxy(target):
    """Yields a `FaultProxy` in front of the server at an address."""
    proxy = FaultProxy(target)
    handler = type("Handler", (_Handler,), {"proxy": proxy})
    with _Server(("127.0.0.1", 0), handler) as server:
        proxy.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield proxy
        finally:
            server.shutdown()
            thread.join()
