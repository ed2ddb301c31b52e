"""A fake endpoint for judges, in this process."""

import contextlib
import http.server
import json
import threading
import time


def chat(scores, explanation="because"):
    """Returns a reply with a verdict, wrapped in the words models like to add."""
    text = f"Sure {{:-}} ```json\n{json.dumps({'scores': scores, 'explanation': explanation})}```"
    return 200, {}, {"choices": [{"message": {"content": text}}]}


@contextlib.contextmanager
def server(*replies):
    """Serves one reply after the other, and the last one for ever; yields URL and requests."""
    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            reply = replies[min(len(seen), len(replies) - 1)]
            seen.append((self.path, self.headers.get("Authorization"), body))
            if reply == "hang":
                time.sleep(1.0)
                return
            status, headers, value = reply
            self.send_response(status)
            for name, text in headers.items():
                self.send_header(name, text)
            self.end_headers()
            self.wfile.write(value if isinstance(value, bytes) else json.dumps(value).encode())

        def log_message(self, *args):
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{httpd.server_port}/v1", seen
    finally:
        httpd.shutdown()
        thread.join()
        httpd.server_close()
